package tunnel

import (
	"cmp"
	"context"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"postern/catalog"
)

// ServeConfig is how the dialling side works. The zero value is good.
type ServeConfig struct {
	MaxStreams  int           // requests at a time; default 1000
	HeaderBytes int           // largest head of a request or an answer; default 64 KiB
	PingAfter   time.Duration // silence after which the peer is pinged; default 3 s
	PingTimeout time.Duration // unanswered for so long ends the connection; default 5 s
	Grace       time.Duration // how long requests under way may take after the end of ctx; default 30 s
	OnReady     func()        // called once the peer has begun to speak the tunnel's protocol; may be nil
	Log         *slog.Logger  // default: nothing is logged
}

// Serve answers the requests that come over a connection that this side has opened; its
// TLS handshake must be done. It takes the connection over and returns when it has ended.
//
// When ctx is done it drains: the peer is told to send no more, requests under way may
// end within the grace time, and Serve returns nil; that takes a second at least, in
// which the peer reads the message. Otherwise it returns an error of
// code TunnelLost, or of code TunnelHandshake when nothing came that is a tunnel. A panic
// of the handler ends one request only. A handler's context ends with the request it
// answers, be it that the device went away or the connection.
func Serve(ctx context.Context, c net.Conn, h http.Handler, cfg ServeConfig) error {
	cfg.MaxStreams = cmp.Or(max(cfg.MaxStreams, 0), defaultMaxStreams)
	cfg.HeaderBytes = cmp.Or(max(cfg.HeaderBytes, 0), defaultHeaderBytes)
	cfg.PingAfter = cmp.Or(max(cfg.PingAfter, 0), defaultPingAfter)
	cfg.PingTimeout = cmp.Or(max(cfg.PingTimeout, 0), defaultPingTimeout)
	cfg.Grace = cmp.Or(max(cfg.Grace, 0), defaultGrace)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	carried := newConn(c)
	server := newServer(guarded{h, cfg.HeaderBytes, cfg.Log}, cfg)
	server.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateActive && carried.began.CompareAndSwap(false, true) && cfg.OnReady != nil {
			cfg.OnReady()
		}
	}
	listener := &oneConn{conn: make(chan net.Conn, 1), closed: make(chan struct{}), addr: c.LocalAddr()}
	listener.conn <- carried

	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(listener) // always ErrServerClosed: Accept fails only when the listener is closed
	}()
	err := wait(ctx, server, carried, cfg)
	server.Close()
	<-served
	return err
}

func newServer(h http.Handler, cfg ServeConfig) *http.Server {
	return &http.Server{
		Handler:           h,
		Protocols:         onlyHTTP2(),
		HTTP2:             http2Config(cfg.MaxStreams, cfg.PingAfter, cfg.PingTimeout),
		MaxHeaderBytes:    cfg.HeaderBytes,
		ReadHeaderTimeout: cfg.PingAfter + cfg.PingTimeout, // for the preface only
		ErrorLog:          log.New(logWriter{cfg.Log}, "", 0),
	}
}

// wait returns when the connection has ended, by itself or drained.
func wait(ctx context.Context, server *http.Server, c *conn, cfg ServeConfig) error {
	select {
	case <-c.ended:
		return lost(c)
	case <-ctx.Done():
	}
	if !c.began.Load() {
		c.end() // nothing can be under way, and Shutdown does not know the connection yet
		return nil
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.Grace)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		cfg.Log.Warn("requests cut off by the end of the grace time")
	}
	c.end()
	return nil
}

// lost says how the connection ended that nobody here wanted to end.
func lost(c *conn) error {
	cause := c.cause()
	if cause == nil {
		cause = errors.New("no answer to a ping, or not the tunnel's protocol")
	}
	code := catalog.TunnelLost
	if !c.began.Load() {
		code = catalog.TunnelHandshake
	}
	return catalog.Wrap(code, cause, "the gateway at %s", c.RemoteAddr())
}

// guarded wraps the handler, so that one request cannot end the tunnel for all: not by a
// panic, not by a backend's "Connection: close", not by a head that the peer refuses.
type guarded struct {
	handler     http.Handler
	headerBytes int
	log         *slog.Logger
}

func (g guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler && v != errHeadTooLarge {
				g.log.Error("handler panicked", "panic", v, "stack", string(debug.Stack()))
			}
			panic(http.ErrAbortHandler) // net/http resets the stream
		}
	}()
	answer := &response{ResponseWriter: w, limit: g.headerBytes}
	g.handler.ServeHTTP(answer, r)
	answer.clean()
}

// response keeps hop-by-hop headers and heads beyond the limit out of the tunnel.
type response struct {
	http.ResponseWriter
	limit int
	wrote bool
}

func (w *response) clean() {
	if w.wrote {
		return
	}
	w.wrote = true
	header := w.Header()
	for _, name := range hopByHop {
		delete(header, name)
	}
	if headSize(header) > w.limit {
		panic(errHeadTooLarge)
	}
}

var errHeadTooLarge = errors.New("the head of the answer is larger than the tunnel carries")

// headSize is the size that HTTP/2 counts (RFC 9113, 6.5.2).
func headSize(h http.Header) (size int) {
	for name, values := range h {
		for _, value := range values {
			size += len(name) + len(value) + 32
		}
	}
	return size
}

func (w *response) WriteHeader(status int) {
	if status >= 200 {
		w.clean()
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	w.clean()
	return w.ResponseWriter.Write(p)
}

// Flush sends what was written so far.
func (w *response) Flush() {
	w.clean()
	w.ResponseWriter.(http.Flusher).Flush() // HTTP/2 always can
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// oneConn is a listener with one connection. Its Close unblocks Accept; without that
// http.Server.Close hangs.
type oneConn struct {
	conn   chan net.Conn
	once   sync.Once
	closed chan struct{}
	addr   net.Addr
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *oneConn) Addr() net.Addr { return l.addr }

// logWriter gives net/http's own lines to slog.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Debug("net/http", "line", string(p))
	return len(p), nil
}
