package gateway

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/logfile"
	"postern/proof"
)

// Exchange is what the gateway tells of one request when it has ended.
type Exchange struct {
	MessageID     string // the one id from client to management point
	TraceID       string // of W3C trace context
	Method        string
	Path          ccm.Path    // zero when the path was refused
	Proof         proof.Proof // what was proved here; zero when nothing was asked or the proof was refused
	Status        ccm.Status  // as answered; code 0 when the device went away first
	Err           error       // why it was refused or broken off, nil when it was answered
	RequestBytes  int64       // of the body, as far as it was read
	ResponseBytes int64
	Duration      time.Duration
}

// Code returns the catalogue's code of a refusal, "" when there was none.
func (e Exchange) Code() catalog.Code { return catalog.CodeOf(e.Err) }

// exchange is one request under way.
type exchange struct {
	id      string
	trace   logfile.Trace
	method  string
	address string
	began   time.Time
	path    ccm.Path
	route   *Route
	proof   proof.Proof
	status  ccm.Status
	err     error

	certificates []*x509.Certificate // of the device, on a route that asks for one; also refused ones
	upload       *upload             // nil when nothing is carried inside
	received     counter             // bytes of the request's body
	sent         int64
	started      bool // the answer's head has left
}

// errClientGone says that there is nobody to answer.
var errClientGone = errors.New("the device went away")

// ServeHTTP admits one request and carries it, or says why not.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if connectionOf(r.Context()).spoilt() {
		panic(http.ErrAbortHandler) // what looks like a request is the rest of a body
	}
	g.busy.begin()
	defer g.busy.end()
	x := g.begin(r)
	r = r.WithContext(logfile.WithTrace(r.Context(), x.trace))
	defer g.end(r.Context(), x)
	answered := false
	defer func() { x.upload.finish(answered) }()
	err := g.serve(w, r, x)
	switch {
	case err == nil:
	case catalog.CodeOf(err) == "" && (errors.Is(err, errClientGone) || r.Context().Err() != nil):
		x.err, x.status = errClientGone, ccm.Status{}
		panic(http.ErrAbortHandler) // a return would say 200
	case x.started:
		x.err = err
		panic(http.ErrAbortHandler) // the device must not take half an answer for a whole one
	default:
		g.refuse(w, r, x, err)
	}
	answered = true
}

func (g *Gateway) serve(w http.ResponseWriter, r *http.Request, x *exchange) error {
	if err := g.admit(r, x); err != nil {
		return err
	}
	r, end, err := g.hold(w, r, x)
	if err != nil {
		return err
	}
	defer end()
	switch x.route.answer {
	case answerMetadata:
		return g.metadata(w, r, x)
	case answerRoots:
		return g.roots(w, r, x)
	case answerTenant:
		return g.tenant(w, r, x)
	}
	return g.forward(w, r, x)
}

func (g *Gateway) begin(r *http.Request) *exchange {
	x := &exchange{method: r.Method, began: g.now(), address: r.RemoteAddr}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		x.address = host
	}
	var random [40]byte
	io.ReadFull(g.rand, random[:]) // an id that is not random harms nothing
	x.id = messageID([16]byte(random[24:]))
	x.trace = logfile.NewTrace([24]byte(random[:24]))
	if theirs, ok := logfile.ParseTraceparent(r.Header.Get("Traceparent")); ok {
		x.trace.ID = theirs.ID
	}
	x.trace.Message = x.id
	return x
}

// messageID writes 16 random bytes as a version 4 UUID.
func messageID(b [16]byte) string {
	b[6], b[8] = b[6]&0x0F|0x40, b[8]&0x3F|0x80
	text := hex.EncodeToString(b[:])
	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}

func (g *Gateway) end(ctx context.Context, x *exchange) {
	e := Exchange{
		MessageID: x.id, TraceID: x.trace.ID, Method: x.method, Path: x.path, Proof: x.proof, Status: x.status, Err: x.err,
		RequestBytes: x.received.load(), ResponseBytes: x.sent, Duration: g.now().Sub(x.began),
	}
	g.service.count(g.known(x), e)
	if e.Err != nil {
		g.refused(x)
		g.log.DebugContext(ctx, "request refused", "status", e.Status.Code, "code", e.Code(), "cause", e.Err, "address", x.address)
	} else {
		g.log.DebugContext(ctx, "request answered", "endpoint", x.path.Endpoint, "status", e.Status.Code, "proof", x.proof.Method, "took", e.Duration)
	}
	g.hook(e)
}

// known reports whether the request's endpoint exists here, so that it may have counters
// of its own.
func (g *Gateway) known(x *exchange) bool {
	if x.route == nil {
		return false
	}
	_, published := g.state.Published(x.path.RoleID, x.path.Endpoint)
	return published || x.route.answer != answerForward
}
