package auth

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
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
// net/http and calls Begin for each request that has proved something, and again when it
// turns out to have proved more. It is safe for concurrent use. Make it with [NewInFlight].
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
	gone   bool
	doomed bool // will be closed
}

// underWay is one request.
type underWay struct {
	uses   []Use // guarded by the mutex of InFlight
	on     *held // nil when the server told nothing about its connection
	alone  bool  // on its connection: HTTP/1
	cancel context.CancelCauseFunc
	cut    bool // guarded by the mutex of InFlight
	answer atomic.Int32

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

type (
	heldKey  struct{}
	underKey struct{}
)

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
//
// Begin with a request that it has returned before adds to what that uses; to call the end
// of then is enough, and is needed after an error too.
func (f *InFlight) Begin(w http.ResponseWriter, r *http.Request, use Use) (under *http.Request, end func(), err error) {
	if q, ok := r.Context().Value(underKey{}).(*underWay); ok {
		f.note(q, use)
		return r, func() { f.end(q) }, f.refused(use)
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	q := &underWay{cancel: cancel, control: http.NewResponseController(w), alone: r.ProtoMajor == 1}
	if h, ok := r.Context().Value(heldKey{}).(*held); ok {
		q.on = h
	}
	f.note(q, use)
	if err := f.refused(use); err != nil { // asked after it was noted, so that no revocation falls between
		f.end(q)
		return nil, nil, err
	}
	return r.WithContext(context.WithValue(ctx, underKey{}, q)), func() { f.end(q) }, nil
}

func (f *InFlight) note(q *underWay, use Use) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.requests[q]; !known && len(q.uses) > 0 {
		return // it has ended
	}
	q.uses = append(q.uses, use)
	f.requests[q] = struct{}{}
	if h := q.on; h != nil && !h.gone {
		h.used, h.last = true, use
		if use.Connector != "" {
			h.last.Claims = token.Claims{}
		}
	}
}

// What is known of the answer to a request.
const (
	answerFar int32 = iota
	answerAwaited
	answerBegun
)

// Await tells of a request that Begin has returned that it has gone on whole to somebody who
// judges it too, and that nothing but the answer is to come. A revocation then lets it come
// for a moment: it may be the request's own doing, as when a device changes its key.
func Await(under *http.Request) {
	if q, ok := under.Context().Value(underKey{}).(*underWay); ok {
		q.answer.CompareAndSwap(answerFar, answerAwaited)
	}
}

// Answered tells that the answer has begun.
func Answered(under *http.Request) {
	if q, ok := under.Context().Value(underKey{}).(*underWay); ok {
		q.answer.Store(answerBegun)
	}
}

// Requests returns how many requests are under way that have proved something.
func (f *InFlight) Requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.requests)
}

func (f *InFlight) end(q *underWay) {
	f.mu.Lock()
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

// refusedAny says why one of several is refused now.
func (f *InFlight) refusedAny(uses []Use) error {
	for _, use := range uses {
		if err := f.refused(use); err != nil {
			return err
		}
	}
	return nil
}

// farewell is how long a request that was cut has for its last words, and how long its
// connection is open after that: whoever asks just then shall hear why it is refused. It
// is longer than the rest of a body is read, and leaves time of the five seconds in which
// a revocation is in force everywhere, open connections included.
const farewell = 3 * time.Second

// Cut ends the requests under way whose proof is revoked now: at once, or a moment later
// where [Await] says that only the answer is awaited. After that moment it closes the
// connections that were used by it last, idle or not, and those of HTTP/1 on which such a
// request has not ended. Requests of others on such a connection, as a proxy may have them,
// are let finish; the connection goes with the next Cut. It returns how many of each it
// ends, and does not wait. It is to be called after each change of what is revoked.
func (f *InFlight) Cut() (requests, connections int) {
	cut, doomed := f.condemn()
	for q, why := range cut {
		q.interrupt(why)
	}
	if len(cut)+len(doomed) > 0 {
		time.AfterFunc(farewell, func() {
			for _, c := range f.stillDoomed(doomed) {
				hangUp(c)
			}
			for q, why := range cut {
				q.hangUp(why)
			}
		})
	}
	return len(cut), len(doomed)
}

// stillDoomed spares the connections on which something else was proved meanwhile: a device
// that has just changed its key goes on with the new one.
func (f *InFlight) stillDoomed(doomed []*held) (ending []net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range doomed {
		if h.doomed = f.refused(h.last) != nil; h.doomed {
			ending = append(ending, h.conn)
		}
	}
	return ending
}

// condemn finds what is to be ended.
func (f *InFlight) condemn() (cut map[*underWay]error, doomed []*held) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cut = map[*underWay]error{}
	busy := map[*held]bool{} // has requests under way that are not cut
	for q := range f.requests {
		if why := f.refusedAny(q.uses); why != nil && !q.cut {
			q.cut, cut[q] = true, why
		}
		if !q.cut && q.on != nil {
			busy[q.on] = true
		}
	}
	for _, h := range f.connections {
		if !h.used || h.doomed || busy[h] || f.refused(h.last) == nil {
			continue
		}
		h.doomed = true
		doomed = append(doomed, h)
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
	if q.answer.Load() != answerAwaited {
		q.cancel(why)
		q.control.SetReadDeadline(time.Unix(1, 0)) // a writer without deadlines ends with its connection
	}
	q.control.SetWriteDeadline(time.Now().Add(farewell))
}

// hangUp ends a request whose moment is over, and closes its connection: a peer may hold it
// up, its writer may be about to close it, and the farewell of TLS alone takes five seconds.
func (q *underWay) hangUp(why error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return
	}
	q.cancel(why)
	if q.alone && q.on != nil {
		hangUp(q.on.conn)
	}
}

// hangUp closes a connection without the farewell of TLS, which a peer may hold up.
func hangUp(c net.Conn) {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	c.Close()
}
