package tunnel

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// ALPN is the protocol name by which TLS tells a tunnel from HTTPS on one port.
const ALPN = "postern-tunnel/1"

// The defaults of [HubConfig] and [ServeConfig]. A black-holed peer is noticed after
// pingAfter plus pingTimeout, under ten seconds.
const (
	defaultMaxStreams  = 1000
	defaultHeaderBytes = 64 << 10
	defaultPingAfter   = 3 * time.Second
	defaultPingTimeout = 5 * time.Second
	defaultGrace       = 30 * time.Second

	// streamWindow bounds what one stalled request may hold in memory.
	streamWindow = 256 << 10
	// writeTimeout drops a connection that takes no byte at all.
	writeTimeout = 10 * time.Second
	// closeTimeout bounds the polite end of TLS on a peer that does not listen.
	closeTimeout = 250 * time.Millisecond
)

// http2Config returns the settings of one side. The connection's window is the sum of
// its streams' windows: a stalled request never stops the others.
func http2Config(streams int, pingAfter, pingTimeout time.Duration) *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams:          streams,
		MaxReceiveBufferPerConnection: streams * streamWindow,
		MaxReceiveBufferPerStream:     streamWindow,
		SendPingTimeout:               pingAfter,
		PingTimeout:                   pingTimeout,
		WriteByteTimeout:              writeTimeout,
	}
}

// onlyHTTP2 is HTTP/2 with prior knowledge, as net/http calls it: TLS is below us.
func onlyHTTP2() *http.Protocols {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	return &protocols
}

// conn hides a *tls.Conn from net/http, which treats one that it sees as its own
// affair and drops it, and says when the connection has ended and why.
type conn struct {
	net.Conn
	ended   chan struct{} // closed when the connection is
	endOnce sync.Once
	broken  atomic.Pointer[error] // the first error of Read or Write
	began   atomic.Bool           // HTTP/2 has begun, on the serving side
}

func newConn(c net.Conn) *conn { return &conn{Conn: c, ended: make(chan struct{})} }

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.note(err)
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.note(err)
	return n, err
}

func (c *conn) note(err error) {
	if err == nil || errors.Is(err, net.ErrClosed) {
		return // closed by ourselves
	}
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		return // a deadline of net/http's own
	}
	c.broken.CompareAndSwap(nil, &err)
}

// cause returns why the connection broke, or nil when we closed it ourselves.
func (c *conn) cause() error {
	if err := c.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// Close ends the connection.
func (c *conn) Close() error {
	c.end()
	return nil
}

func (c *conn) end() {
	c.endOnce.Do(func() {
		close(c.ended)
		if raw, ok := c.Conn.(interface{ NetConn() net.Conn }); ok {
			force := time.AfterFunc(closeTimeout, func() { raw.NetConn().Close() })
			defer force.Stop()
		}
		c.Conn.Close()
	})
}
