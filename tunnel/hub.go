package tunnel

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/catalog"
)

// HubConfig is how a Hub works. The zero value is good.
type HubConfig struct {
	MaxConnections int           // in all; default 64
	MaxPerName     int           // of one connector; default 16
	HeaderBytes    int64         // largest head of an answer; default 64 KiB
	PingAfter      time.Duration // silence after which the peer is pinged; default 3 s
	PingTimeout    time.Duration // unanswered for so long ends the connection; default 5 s

	OnChange func()           // called after a connection came or went, never with a lock held; may be nil
	Now      func() time.Time // default time.Now
	Log      *slog.Logger     // default: nothing is logged
}

// Connection is what the accepting side knows of one live connection.
type Connection struct {
	ID       string    `json:"id"`     // unique in this process
	Name     string    `json:"name"`   // the connector's name, as its certificate has it
	Pin      string    `json:"pin"`    // SHA-256 of its key, as its certificate has it
	Remote   string    `json:"remote"` // its network address
	Since    time.Time `json:"since"`
	InFlight int       `json:"in_flight"` // requests under way
	Draining bool      `json:"draining"`  // the connector is stopping: what is under way ends, nothing new is sent
}

// Hub is the accepting side: it holds the connections that connectors have opened and
// sends requests over them. It is safe for concurrent use. Make it with [NewHub].
type Hub struct {
	cfg HubConfig

	mu     sync.RWMutex
	links  []*link // in the order of arrival
	closed bool

	turn atomic.Uint32 // where the next choice starts: round robin among equals
}

// NewHub returns a Hub without connections.
func NewHub(cfg HubConfig) *Hub {
	cfg.MaxConnections = cmp.Or(max(cfg.MaxConnections, 0), 64)
	cfg.MaxPerName = cmp.Or(max(cfg.MaxPerName, 0), 16)
	cfg.HeaderBytes = cmp.Or(max(cfg.HeaderBytes, 0), defaultHeaderBytes)
	cfg.PingAfter = cmp.Or(max(cfg.PingAfter, 0), defaultPingAfter)
	cfg.PingTimeout = cmp.Or(max(cfg.PingTimeout, 0), defaultPingTimeout)
	if cfg.OnChange == nil {
		cfg.OnChange = func() {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Hub{cfg: cfg}
}

// Add takes a connection that a connector of this name and pin has opened; its TLS
// handshake must be done. From now on the connection is the Hub's. The returned channel
// is closed when the connection has ended; the end of ctx ends it. On an error (codes
// TunnelFull, TunnelClosed, TunnelHandshake) the connection is closed already.
func (h *Hub) Add(ctx context.Context, c net.Conn, name, pin string) (done <-chan struct{}, err error) {
	l := &link{
		conn: newConn(c),
		info: Connection{ID: rand.Text(), Name: name, Pin: pin, Remote: c.RemoteAddr().String(), Since: h.cfg.Now()},
	}
	if err := h.start(ctx, l); err != nil {
		l.conn.end()
		return nil, err
	}
	stop := context.AfterFunc(ctx, l.conn.end)
	go func() {
		<-l.conn.ended
		stop()
		h.remove(l)
	}()
	return l.conn.ended, nil
}

// start begins HTTP/2 on the connection and puts it into the table.
func (h *Hub) start(ctx context.Context, l *link) error {
	if err := h.room(l); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, l.conn.end)
	cc, err := h.transport(l.conn).NewClientConn(ctx, "http", "tunnel:80")
	stop()
	if err != nil {
		return catalog.Wrap(catalog.TunnelHandshake, err, "begin the tunnel with connector %s", l.info.Name)
	}
	l.cc = cc
	h.mu.Lock()
	if err := h.roomLocked(l); err != nil {
		h.mu.Unlock()
		return err
	}
	h.links = append(h.links, l)
	h.mu.Unlock()
	h.cfg.Log.Info("connector connected", "connector", l.info.Name, "connection", l.info.ID, "remote", l.info.Remote)
	h.cfg.OnChange()
	return nil
}

func (h *Hub) room(l *link) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.roomLocked(l)
}

func (h *Hub) roomLocked(l *link) error {
	if h.closed {
		return catalog.Errorf(catalog.TunnelClosed, "the gateway takes no more connections")
	}
	if len(h.links) >= h.cfg.MaxConnections {
		return catalog.Errorf(catalog.TunnelFull, "%d connections are open", len(h.links))
	}
	same := 0
	for _, other := range h.links {
		if other.info.Name == l.info.Name {
			same++
		}
	}
	if same >= h.cfg.MaxPerName {
		return catalog.Errorf(catalog.TunnelFull, "connector %s has %d connections open", l.info.Name, same)
	}
	return nil
}

// transport returns an http.Transport whose one connection is c.
func (h *Hub) transport(c net.Conn) *http.Transport {
	return &http.Transport{
		Protocols:              onlyHTTP2(),
		HTTP2:                  http2Config(defaultMaxStreams, h.cfg.PingAfter, h.cfg.PingTimeout),
		DisableCompression:     true, // what the device asked for is what the management point sees
		MaxResponseHeaderBytes: h.cfg.HeaderBytes,
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return c, nil },
	}
}

func (h *Hub) remove(l *link) {
	h.mu.Lock()
	h.links = slices.DeleteFunc(h.links, func(other *link) bool { return other == l })
	h.mu.Unlock()
	l.cc.Close() // what still waits for an answer gets its error now
	h.cfg.Log.Info("connector disconnected", "connector", l.info.Name, "connection", l.info.ID, "cause", l.conn.cause())
	h.cfg.OnChange()
}

// Connections returns the live connections in the order of their arrival.
func (h *Hub) Connections() []Connection {
	h.mu.RLock()
	defer h.mu.RUnlock()
	all := make([]Connection, 0, len(h.links))
	for _, l := range h.links {
		all = append(all, l.connection())
	}
	return all
}

// Drop ends every connection for which the function says so, and with it the requests
// on it: for a connector whose certificate was revoked.
func (h *Hub) Drop(drop func(Connection) bool) {
	var ending sync.WaitGroup // at once: each takes as long as its peer lets it, up to closeTimeout
	for _, l := range h.live() {
		if drop(l.connection()) {
			ending.Go(l.conn.end)
		}
	}
	ending.Wait()
}

// Close ends all connections and refuses new ones. Requests under way get an error of
// code TunnelLost.
func (h *Hub) Close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.Drop(func(Connection) bool { return true })
}

func (h *Hub) live() []*link {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.Clone(h.links)
}

// RoundTrip sends a request over the live connection with the least under way. Both
// bodies stream. Its errors are *catalog.Error of code NoConnector, TunnelBusy,
// TunnelLost, TunnelAborted, TunnelHeaderTooLarge or TunnelClosed, or the error of the
// request's context. A request that cannot have been acted upon is sent again over
// another connection; one that may have been is not, unless it is a GET or HEAD without
// a body. Hop-by-hop headers of HTTP/1.1 are not carried, in either direction.
func (h *Hub) RoundTrip(req *http.Request) (*http.Response, error) {
	return h.send(req, func(tried []*link) (*link, error) { return h.choose(tried) })
}

// Through returns an http.RoundTripper that uses one particular connection, for as long
// as it lives. When that has ended or is draining, its error is of code TunnelGone; when
// it has no place free now, of code TunnelBusy.
func (h *Hub) Through(id string) http.RoundTripper { return through{h, id} }

type through struct {
	hub *Hub
	id  string
}

func (t through) RoundTrip(req *http.Request) (*http.Response, error) {
	return t.hub.send(req, func([]*link) (*link, error) { return t.hub.find(t.id) })
}

func (h *Hub) find(id string) (*link, error) {
	for _, l := range h.live() {
		switch {
		case l.info.ID != id:
		case l.reserve():
			return l, nil
		case !l.draining():
			return nil, catalog.Errorf(catalog.TunnelBusy, "connection %s", id)
		}
	}
	return nil, catalog.Errorf(catalog.TunnelGone, "connection %s", id)
}

// choose reserves a place on the connection with the least under way, leaving out those
// that were tried.
func (h *Hub) choose(tried []*link) (*link, error) {
	type candidate struct {
		*link
		load int
	}
	h.mu.RLock()
	closed, total := h.closed, len(h.links)
	first := h.turn.Add(1)
	var room [8]candidate
	candidates := room[:0]
	for i := range h.links {
		l := h.links[(uint(i)+uint(first))%uint(total)]
		if !slices.Contains(tried, l) {
			candidates = append(candidates, candidate{l, l.cc.InFlight()})
		}
	}
	h.mu.RUnlock()

	slices.SortStableFunc(candidates, func(a, b candidate) int { return cmp.Compare(a.load, b.load) })
	for _, c := range candidates {
		if c.reserve() {
			return c.link, nil
		}
	}
	switch {
	case closed:
		return nil, catalog.Errorf(catalog.TunnelClosed, "no new requests")
	case len(candidates) > 0 && !allDraining(h.live()):
		return nil, catalog.Errorf(catalog.TunnelBusy, "%d connections", total)
	default:
		return nil, catalog.Errorf(catalog.NoConnector, "no connection is open")
	}
}

func allDraining(links []*link) bool {
	return !slices.ContainsFunc(links, func(l *link) bool { return !l.draining() })
}

// maxAttempts bounds how often one request is sent.
const maxAttempts = 4

// send sends a request over the links that next names, until one took it.
func (h *Hub) send(req *http.Request, next func(tried []*link) (*link, error)) (*http.Response, error) {
	out, body := outgoing(req)
	var tried []*link
	var last error
	for range maxAttempts {
		l, err := next(tried)
		if err != nil {
			body.settle()
			return nil, err
		}
		resp, err := l.roundTrip(out, body)
		if err == nil {
			body.settle()
			return resp, nil
		}
		again, err := l.judge(req, body, err)
		if !again {
			body.settle()
			return nil, err
		}
		last, tried = err, append(tried, l)
		h.cfg.Log.Info("request sent again over another connection", "connection", l.info.ID, "cause", err)
	}
	body.settle()
	return nil, last
}

// link is one connection in the Hub.
type link struct {
	conn *conn
	cc   *http.ClientConn
	info Connection
	size atomic.Int64 // requests that it carries at a time, as last seen
}

// reserve takes a place for one request; exactly one roundTrip must follow.
func (l *link) reserve() bool {
	if l.cc.Reserve() != nil {
		return false
	}
	if free := l.cc.Available(); free > 0 {
		l.size.Store(int64(free + l.cc.InFlight()))
	}
	return true
}

func (l *link) connection() Connection {
	c := l.info
	c.InFlight, c.Draining = l.cc.InFlight(), l.draining()
	return c
}

// draining reports whether the connection refuses new requests although it has room.
// net/http does not say that a GOAWAY came; that no place is free with few in use does.
// The two numbers are not read at once, so an eighth is left for the difference.
func (l *link) draining() bool {
	if l.cc.Available() > 0 {
		return false
	}
	used, size := int64(l.cc.InFlight()), l.size.Load()
	return used == 0 || used < size-size/8
}

// streamError is net/http's unexported error of one stream, which errors.As converts to
// any struct of the same fields.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (streamError) Error() string { return "stream error" }

// refusedStream is HTTP/2's REFUSED_STREAM: no application processing has happened (RFC 9113, 8.7).
const refusedStream = 7

// The texts of net/http's own unexported errors; tests fail when they change.
const (
	textGoAway      = "http2: Transport received Server's graceful shutdown GOAWAY"
	textHeaderLimit = "http2: request header list larger than peer's advertised limit"
)

var errNotSent = errors.New("not sent")

// judge says whether a failed request may be sent again, and gives the error its code.
func (l *link) judge(req *http.Request, body *body, err error) (again bool, coded error) {
	if ctx := req.Context(); ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if strings.HasSuffix(err.Error(), textHeaderLimit) {
		return false, catalog.Wrap(catalog.TunnelHeaderTooLarge, err, "the connector's limit")
	}
	lost := l.cc.Err() != nil
	again = (unacted(err) || lost && harmless(req)) && body.rewind()
	if lost || errors.Is(err, errNotSent) {
		return again, catalog.Wrap(catalog.TunnelLost, err, "connector %s", l.info.Name)
	}
	return again, catalog.Wrap(catalog.TunnelAborted, err, "connector %s", l.info.Name)
}

// unacted reports whether nobody can have acted upon a request that ended so.
func unacted(err error) bool {
	var reset streamError
	return errors.Is(err, errNotSent) || err.Error() == textGoAway || errors.As(err, &reset) && reset.Code == refusedStream
}

// harmless reports whether acting twice upon a request does no harm (RFC 9110, 9.2.2).
func harmless(req *http.Request) bool {
	empty := req.Body == nil || req.Body == http.NoBody
	return empty && (req.Method == http.MethodGet || req.Method == http.MethodHead)
}
