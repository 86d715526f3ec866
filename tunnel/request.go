package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"

	"postern/catalog"
)

// outgoing returns the request as the tunnel carries it, without its body, and the body.
func outgoing(req *http.Request) (*http.Request, *body) {
	out := new(http.Request)
	*out = *req
	out.Close = false // would end the whole connection
	out.Body, out.GetBody = nil, nil
	if out.URL.Host == "" {
		u := *req.URL
		u.Host = "tunnel"
		out.URL = &u
	}
	out.Header = carriedHeader(req.Header)
	return out, newBody(req.Body)
}

// hopByHop are the headers that speak of one connection of HTTP/1.1. In the tunnel they
// would be refused or, as "Connection: close", end it for everyone.
var hopByHop = [...]string{"Connection", "Proxy-Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Te"}

// carriedHeader returns a header without hop-by-hop fields and without net/http's own
// User-Agent. It copies only when it must.
func carriedHeader(h http.Header) http.Header {
	_, agent := h["User-Agent"]
	clean := agent
	for _, name := range hopByHop {
		_, has := h[name]
		clean = clean && !has
	}
	if clean && h != nil {
		return h
	}
	out := make(http.Header, len(h)+1)
	for name, values := range h {
		out[name] = values
	}
	for _, name := range hopByHop {
		delete(out, name)
	}
	if !agent {
		out["User-Agent"] = nil
	}
	return out
}

// roundTrip sends the request over this connection, on which a place is reserved. An
// error that wraps errNotSent means that not a byte of it has left.
func (l *link) roundTrip(out *http.Request, b *body) (*http.Response, error) {
	var sent atomic.Bool
	trace := &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }}
	out = out.WithContext(httptrace.WithClientTrace(out.Context(), trace))
	if b.present() {
		out.Body = b.attempt()
	}
	resp, err := l.cc.RoundTrip(out)
	if err != nil && !sent.Load() {
		return nil, fmt.Errorf("%w: %w", errNotSent, err)
	}
	if err != nil {
		return nil, err
	}
	if resp.Body != http.NoBody {
		resp.Body = &answer{ReadCloser: resp.Body, ctx: out.Context(), name: l.info.Name}
	}
	return resp, nil
}

// answer is the body of a response; an answer that breaks off has its code.
type answer struct {
	io.ReadCloser
	ctx  context.Context
	name string
}

func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err == nil || err == io.EOF || a.ctx.Err() != nil {
		return n, err
	}
	if reset := (streamError{}); errors.As(err, &reset) {
		return n, catalog.Wrap(catalog.TunnelAborted, err, "connector %s broke off the answer", a.name)
	}
	return n, catalog.Wrap(catalog.TunnelLost, err, "connector %s", a.name)
}

// rememberBytes is how much of a body is kept so that a request that a stopping
// connector did not take can be sent again; an ordinary message fits.
const rememberBytes = 16 << 10

// body is a request's body that can be started again as long as little of it was read.
type body struct {
	src io.ReadCloser // nil when there is none

	reading sync.Mutex // held while src is read; guards what follows
	current *attempt
	seen    []byte
	tooMuch bool
	srcErr  error

	settled atomic.Bool // no further attempt will come

	closing sync.Mutex // guards what follows
	final   bool       // the current attempt's Close closes src
	closed  bool       // the current attempt has been closed
}

func newBody(src io.ReadCloser) *body {
	if src == http.NoBody {
		src = nil
	}
	return &body{src: src}
}

func (b *body) present() bool { return b.src != nil }

// attempt returns a reader of the whole body; earlier ones return no more.
func (b *body) attempt() io.ReadCloser {
	a := &attempt{body: b}
	b.reading.Lock()
	b.current = a
	b.reading.Unlock()
	b.closing.Lock()
	b.closed = false
	b.closing.Unlock()
	return a
}

// rewind reports whether the body can be sent again.
func (b *body) rewind() bool {
	if !b.present() {
		return true
	}
	if !b.reading.TryLock() {
		return false // a read is under way and would take bytes from the next attempt
	}
	defer b.reading.Unlock()
	b.current = nil
	return !b.tooMuch
}

// settle says that no further attempt comes, and closes the body when nobody else will.
func (b *body) settle() {
	if !b.present() {
		return
	}
	b.settled.Store(true)
	b.closing.Lock()
	b.final = true
	mustClose := b.closed || b.unused()
	b.closing.Unlock()
	if mustClose {
		b.src.Close()
	}
}

// unused reports whether no attempt reads the body.
func (b *body) unused() bool {
	if !b.reading.TryLock() {
		return false
	}
	defer b.reading.Unlock()
	return b.current == nil
}

type attempt struct {
	body   *body
	offset int
}

var errAbandoned = errors.New("the request is sent over another connection")

func (a *attempt) Read(p []byte) (int, error) {
	b := a.body
	b.reading.Lock()
	defer b.reading.Unlock()
	if b.current != a {
		return 0, errAbandoned
	}
	if a.offset < len(b.seen) {
		n := copy(p, b.seen[a.offset:])
		a.offset += n
		return n, nil
	}
	if b.srcErr != nil {
		return 0, b.srcErr
	}
	n, err := b.src.Read(p)
	b.srcErr = err
	b.remember(p[:n])
	a.offset = len(b.seen)
	return n, err
}

// remember keeps what was read as long as the request may have to be sent again.
func (b *body) remember(p []byte) {
	if b.tooMuch || b.settled.Load() || len(b.seen)+len(p) > rememberBytes {
		b.tooMuch, b.seen = true, nil
		return
	}
	b.seen = append(b.seen, p...)
}

func (a *attempt) Close() error {
	b := a.body
	b.closing.Lock()
	final := b.final && !b.closed
	b.closed = true
	b.closing.Unlock()
	if final {
		return b.src.Close()
	}
	return nil
}
