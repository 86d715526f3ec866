package gateway

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// counter is a number that many goroutines add to.
type counter struct{ n atomic.Int64 }

func (c *counter) add(n int64) int64 { return c.n.Add(n) }
func (c *counter) load() int64       { return c.n.Load() }

// connections is a listener with a limit in all and for each address, so that one
// sender cannot take all places. Beyond the limit there are spare places that only a
// connector may take, so that a flood of devices never keeps a connector out (C92).
type connections struct {
	net.Listener
	limit, spare, perAddress int
	refused                  *counter

	mu        sync.Mutex
	open      int
	byAddress map[netip.Prefix]int
}

func newConnections(l net.Listener, limits Limits, refused *counter) *connections {
	return &connections{
		Listener: l, limit: limits.Connections, spare: 2 * limits.Connectors, perAddress: limits.PerAddress,
		refused: refused, byAddress: map[netip.Prefix]int{},
	}
}

// connection is an accepted connection that gives its place back.
type connection struct {
	net.Conn
	spare   bool // only a connector may have this place
	release func()
	once    sync.Once
	broken  atomic.Bool // what comes next on it is no request
}

type connectionKey struct{}

// withConnection is for http.Server.ConnContext.
func withConnection(ctx context.Context, c net.Conn) context.Context {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	own, _ := c.(*connection)
	return context.WithValue(ctx, connectionKey{}, own)
}

// connectionOf returns the connection of a request, or nil outside of Serve.
func connectionOf(ctx context.Context) *connection {
	own, _ := ctx.Value(connectionKey{}).(*connection)
	return own
}

// spoil makes sure that nothing more is read from the connection as a request.
func (c *connection) spoil() {
	if c != nil {
		c.broken.Store(true)
	}
}

func (c *connection) spoilt() bool { return c != nil && c.broken.Load() }

// Read implements net.Conn.
func (c *connection) Read(p []byte) (int, error) {
	if c.spoilt() {
		return 0, net.ErrClosed
	}
	return c.Conn.Read(p)
}

// Accept implements net.Listener. Connections beyond the limits are closed unread.
func (l *connections) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if taken, ok := l.take(c); ok {
			return taken, nil
		}
		l.refused.add(1)
		c.Close()
	}
}

func (l *connections) take(c net.Conn) (*connection, bool) {
	from := prefix(c.RemoteAddr().String())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.limit+l.spare || l.byAddress[from] >= l.perAddress {
		return nil, false
	}
	spare := l.open >= l.limit
	l.open++
	l.byAddress[from]++
	return &connection{Conn: c, spare: spare, release: func() { l.give(from) }}, true
}

func (l *connections) give(from netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.byAddress[from]--; l.byAddress[from] <= 0 {
		delete(l.byAddress, from)
	}
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.once.Do(c.release)
	return c.Conn.Close()
}

// prefix returns what counts as one address: an IPv4 address, or an IPv6 /64. What is
// no address counts as one, too.
func prefix(remote string) netip.Prefix {
	addressPort, err := netip.ParseAddrPort(remote)
	address := addressPort.Addr()
	if err != nil {
		address, _ = netip.ParseAddr(remote)
	}
	address = address.Unmap().WithZone("")
	bits := 64
	if address.Is4() {
		bits = 32
	}
	from, _ := address.Prefix(bits)
	return from
}
