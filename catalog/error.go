package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Error is a failure that a peer or a person can meet. Detail may be shown to both;
// Err is the cause and is for our own log only.
type Error struct {
	Code   Code
	Detail string // for peer and person; never a token, key or password
	Err    error  // for our log, may be nil
}

// Errorf returns an error of the given code. The formatted text is shown to peers
// and people; a cause that is not meant for them goes through [Wrap].
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// Wrap returns an error of the given code with a cause that only our log sees.
func Wrap(code Code, err error, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...), Err: err}
}

// Error returns "code: detail: cause", for our log.
func (e *Error) Error() string {
	parts := []string{string(e.Code)}
	if e.Detail != "" {
		parts = append(parts, e.Detail)
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	if len(parts) == 1 {
		parts = append(parts, entryOf(e.Code).Title)
	}
	return strings.Join(parts, ": ")
}

// Unwrap returns the cause, or nil.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code of the first *Error in the chain of err, or "" when there
// is none.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

// DetailOf returns what the first *Error in the chain of err says for people, without its
// cause, which may quote what a peer sent; "" when there is none.
func DetailOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Detail
	}
	return ""
}

// Public returns the text of err that a person outside may read: title, detail and
// remedy, on several lines. It never holds the cause. An error without a code gives
// the text of [InternalError].
func Public(err error) string {
	entry, detail := public(err)
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", entry.Code, entry.Title)
	if detail != "" {
		fmt.Fprintf(&b, "%s\n", detail)
	}
	for i, step := range entry.Remedy {
		fmt.Fprintf(&b, "%d. %s\n", i+1, step)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// problem is the body of application/problem+json (RFC 9457, section 3), with the
// code and the remedy as extension members.
type problem struct {
	Type     string   `json:"type"`
	Title    string   `json:"title"`
	Status   int      `json:"status"`
	Detail   string   `json:"detail,omitempty"`
	Instance string   `json:"instance,omitempty"`
	Code     Code     `json:"code"`
	Remedy   []string `json:"remedy"`
}

// Problem returns err as RFC 9457 JSON, with the same content as [Public]. The
// instance names this one occurrence (a request id), or is empty. The status is the
// entry's, or 500 when it has none.
func Problem(err error, instance string) []byte {
	entry, detail := public(err)
	status := entry.Status
	if status == 0 {
		status = http.StatusInternalServerError
	}
	body, _ := json.Marshal(problem{ // strings and integers always marshal
		Type:     "urn:postern:problem:" + string(entry.Code),
		Title:    entry.Title,
		Status:   status,
		Detail:   detail,
		Instance: instance,
		Code:     entry.Code,
		Remedy:   entry.Remedy,
	})
	return body
}

// public returns what may be said about err: the entry of its code and its detail.
func public(err error) (Entry, string) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return entryOf(InternalError), ""
	}
	if _, known := Lookup(e.Code); !known {
		return entryOf(InternalError), ""
	}
	return entryOf(e.Code), e.Detail
}

// entryOf returns the entry of a code, and something readable for an unknown one.
func entryOf(code Code) Entry {
	if entry, ok := Lookup(code); ok {
		return entry
	}
	return Entry{Code: code, Title: "unknown code"}
}
