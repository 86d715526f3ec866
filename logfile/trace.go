package logfile

import (
	"context"
	"encoding/hex"
	"strings"
)

// Trace is what ties the events of one request together, from the client to the
// management point. The JSON events of a context that carries one hold it.
type Trace struct {
	ID      string // trace id of W3C Trace Context: 32 lower-case hex digits
	Span    string // id of the caller's part: 16 lower-case hex digits
	Message string // id of the protocol message or proxied request
}

type traceKey struct{}

// WithTrace returns a context whose events carry t.
func WithTrace(ctx context.Context, t Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// WithMessage returns a context whose events carry a message id beside the trace that
// ctx has already.
func WithMessage(ctx context.Context, id string) context.Context {
	t := TraceOf(ctx)
	t.Message = id
	return WithTrace(ctx, t)
}

// TraceOf returns the trace that ctx carries, or the zero Trace.
func TraceOf(ctx context.Context) Trace {
	t, _ := ctx.Value(traceKey{}).(Trace)
	return t
}

// NewTrace makes a trace from 24 random bytes.
func NewTrace(random [24]byte) Trace {
	return Trace{ID: hex.EncodeToString(random[:16]), Span: hex.EncodeToString(random[16:])}
}

// Traceparent returns the value of the header of that name (W3C Trace Context,
// section 3.2), or "" when t has no ids.
func (t Trace) Traceparent() string {
	if t.ID == "" || t.Span == "" {
		return ""
	}
	return "00-" + t.ID + "-" + t.Span + "-01"
}

// ParseTraceparent reads the header; ok is false for a value that is absent, malformed
// or all zero, in which case the receiver makes a trace of its own.
func ParseTraceparent(value string) (t Trace, ok bool) {
	if len(value) < 55 || len(value) > 256 || value[:2] == "ff" {
		return Trace{}, false
	}
	parts := strings.SplitN(value, "-", 5)
	if len(parts) < 4 || parts[0] == "00" && len(parts) != 4 {
		return Trace{}, false
	}
	sizes := [4]int{2, 32, 16, 2}
	for i, size := range sizes {
		if len(parts[i]) != size || strings.Trim(parts[i], "0123456789abcdef") != "" {
			return Trace{}, false
		}
	}
	if strings.Trim(parts[1], "0") == "" || strings.Trim(parts[2], "0") == "" {
		return Trace{}, false
	}
	return Trace{ID: parts[1], Span: parts[2]}, true
}
