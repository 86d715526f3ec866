package auth

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"

	"postern/proof"
	"postern/token"
)

// Use is what a request uses that may be revoked while it is under way.
type Use struct {
	Claims token.Claims // what was proved, as [Revocation] is asked; zero for nothing
	// Connector is the pin of the connector whose connection the request came over; ""
	// when the connection is the caller's own.
	Connector string
}

// ClaimsOf returns what a proof says in the form in which [Revocation] is asked.
func ClaimsOf(p proof.Proof) token.Claims {
	return token.Claims{ID: p.TokenID, KeyID: p.SigningKey, Client: p.Client, Key: p.Key, Scope: p.Scope, BulkID: p.BulkID, Cloud: p.Cloud}
}

// InFlightConfig is what an InFlight needs.
type InFlightConfig struct {
	Keys       Keys       // a key that is revoked ends what its tokens opened
	Revocation Revocation // asked about what was proved
	// Connector says whether the connector with that pin is refused; nil when none
	// relays here.
	Connector func(pin string) error
	Now       func() time.Time // time.Now when nil
}

// InFlight knows the requests under way and the connections that they came over, so that
// a revocation ends both: [InFlight.Cut]. A server passes ConnContext and ConnState to
// net/http and calls Begin for each request that has proved something. It is safe for
// concurrent use. Make it with [NewInFlight].
type InFlight struct {
	config InFlightConfig

	mu          sync.Mutex
	requests    map[*underWay]struct{}
	connections map[net.Conn]*held
}

// held is an open connection. It is guarded by the mutex of InFlight.
type held struct {
	conn   net.Conn
	used   bool // something was proved on it
	last   Use  // what was proved last; of a connector's connection only the connector
	open   int  // requests under way that are not cut
	gone   bool
	doomed bool // will be closed
}

// underWay is one request.
type underWay struct {
	use    Use
	on     *held // nil when the server told nothing about its connection
	cancel context.CancelCauseFunc
	cut    bool // guarded by the mutex of InFlight

	mu      sync.Mutex // held while control is used: after the handler's return it must not be
	ended   bool
	control *http.ResponseController
}

// NewInFlight returns an InFlight.
func NewInFlight(config InFlightConfig) *InFlight {
	if config.Now == nil {
		config.Now = time.Now
	}
	return &InFlight{config: config, requests: map[*underWay]struct{}{}, connections: map[net.Conn]*held{}}
}

type heldKey struct{}

// ConnContext is for http.Server.ConnContext.
func (f *InFlight) ConnContext(ctx context.Context, c net.Conn) context.Context {
	h := &held{conn: c}
	f.mu.Lock()
	f.connections[c] = h
	f.mu.Unlock()
	return context.WithValue(ctx, heldKey{}, h)
}

// ConnState is for http.Server.ConnState.
func (f *InFlight) ConnState(c net.Conn, state http.ConnState) {
	if state != http.StateClosed && state != http.StateHijacked {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if h := f.connections[c]; h != nil {
		h.gone = true
		delete(f.connections, c)
	}
}

// Begin notes a request that has proved something. The handler goes on with the request
// that it returns, whose context ends when what was proved is revoked: context.Cause is
// then the revocation, a *catalog.Error. end must be called before the handler returns. An
// error says that it is revoked already: between the proof and now; end need not be called.
func (f *InFlight) Begin(w http.ResponseWriter, r *http.Request, use Use) (under *http.Request, end func(), err error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	q := &underWay{use: use, cancel: cancel, control: http.NewResponseController(w)}
	f.mu.Lock()
	if h, ok := r.Context().Value(heldKey{}).(*held); ok && !h.gone {
		q.on = h
		h.used, h.last = true, use
		if use.Connector != "" {
			h.last.Claims = token.Claims{}
		}
		h.open++
	}
	f.requests[q] = struct{}{}
	f.mu.Unlock()
	if err := f.refused(use); err != nil { // asked after it was noted, so that no revocation falls between
		f.end(q)
		return nil, nil, err
	}
	return r.WithContext(ctx), func() { f.end(q) }, nil
}

// Requests returns how many requests are under way that have proved something.
func (f *InFlight) Requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.requests)
}

func (f *InFlight) end(q *underWay) {
	f.mu.Lock()
	if q.on != nil && !q.cut {
		q.on.open--
	}
	delete(f.requests, q)
	f.mu.Unlock()
	q.mu.Lock()
	q.ended = true
	q.mu.Unlock()
	q.cancel(nil)
}

// refused says why what is used is refused now.
func (f *InFlight) refused(use Use) error {
	if use.Connector != "" && f.config.Connector != nil {
		if err := f.config.Connector(use.Connector); err != nil {
			return err
		}
	}
	if use.Claims.KeyID != "" {
		if err := f.config.Keys.Verifier().CheckKey(use.Claims.KeyID, f.config.Now()); err != nil {
			return err
		}
	}
	if use.Claims == (token.Claims{}) {
		return nil
	}
	return f.config.Revocation.Revoked(use.Claims)
}

// farewell is how long a request that was cut has for its last words, and how long its
// connection is open after that: whoever asks just then shall hear why it is refused. It
// is longer than the rest of a body is read, and leaves time of the five seconds in which
// a revocation is in force everywhere, open connections included.
const farewell = 3 * time.Second

// Cut ends the requests under way whose proof is revoked now, at once, and a moment later
// the connections that were used by it last, idle or not. Requests of others on such a
// connection, as a proxy may have them, are let finish; the connection goes with the next
// Cut. It returns how many of each it ended, and does not wait. It is to be called after
// each change of what is revoked.
func (f *InFlight) Cut() (requests, connections int) {
	cut, doomed := f.condemn()
	for q, why := range cut {
		q.interrupt(why)
	}
	if len(doomed) > 0 {
		time.AfterFunc(farewell, func() {
			for _, c := range doomed {
				hangUp(c)
			}
		})
	}
	return len(cut), len(doomed)
}

// condemn finds what is to be ended.
func (f *InFlight) condemn() (cut map[*underWay]error, doomed []net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cut = map[*underWay]error{}
	for q := range f.requests {
		if q.cut {
			continue
		}
		if why := f.refused(q.use); why != nil {
			q.cut, cut[q] = true, why
			if q.on != nil {
				q.on.open--
			}
		}
	}
	for c, h := range f.connections {
		if !h.used || h.doomed || h.open > 0 || f.refused(h.last) == nil {
			continue
		}
		h.doomed = true
		doomed = append(doomed, c)
	}
	return cut, doomed
}

// interrupt ends a request: its context, a read of its body under way, and soon a write.
func (q *underWay) interrupt(why error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return
	}
	q.cancel(why)
	q.control.SetReadDeadline(time.Unix(1, 0)) // a writer without deadlines ends with its connection
	q.control.SetWriteDeadline(time.Now().Add(farewell))
}

// hangUp closes a connection without the farewell of TLS, which a peer may hold up.
func hangUp(c net.Conn) {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	c.Close()
}
