package gateway

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"postern/auth"
	"postern/catalog"
	"postern/logfile"
	"postern/token"
	"postern/tunnel"
)

// Config is what a Gateway needs. Fields without "default" are required.
type Config struct {
	// Names are the host names (or addresses) by which devices reach this gateway,
	// without port. A certificate of the site must be for one of them: it is for the host
	// under which the site lists the gateway.
	Names []string
	// RootPin is the hash of the site root's key (token.Pin), given to `gateway init`.
	RootPin string
	// Key is the key made by `gateway init`, whose pin the site lists. Connectors know
	// the gateway by it, and it signs acknowledgements.
	Key crypto.Signer
	// Certificate is the self-signed certificate of Key, DER, shown to connectors.
	Certificate []byte

	// ClientCertificate is the company's certificate for devices. When nil, the gateway
	// asks the site for one and shows the self-signed one until it has it.
	ClientCertificate *tls.Certificate
	// IssuedCertificate is the chain that KeepCertificate kept before a restart, leaf
	// first; nil when none was.
	IssuedCertificate [][]byte
	// KeepCertificate keeps a chain that the site issued; nil keeps nothing.
	KeepCertificate func(chain [][]byte) error

	// State is what the gateway knows of the site; made with the same RootPin.
	State *auth.State
	// StateFile is where the last signed state is kept, so that a restart knows what is
	// blocked before the first connector comes; "" keeps none.
	StateFile string

	// Cloud judges tokens of the tenants that State lists; nil refuses them all.
	Cloud auth.Cloud
	// Certificates judges client certificates under the authorities that State lists;
	// nil refuses them all.
	Certificates auth.ClientCertificates

	Logs *logfile.Folder  // of CMGService.log; nil writes none
	Log  *slog.Logger     // default: nothing is logged
	Now  func() time.Time // default time.Now
	Rand io.Reader        // default crypto/rand

	Limits Limits
	// Observe is told of every request when it has ended, for metrics; may be nil. It is
	// called from many goroutines.
	Observe func(Exchange)
}

// Limits are the budgets of a gateway. Zero values mean the defaults.
type Limits struct {
	MessageBytes     int64 // body of a message; default 16 MiB
	TokenBytes       int64 // body of a token exchange; default 64 KiB
	Connections      int   // of devices at a time; default 8192
	PerAddress       int   // of them from one address (IPv6: one /64); default 512
	Connectors       int   // tunnel connections at a time; default 64
	PerConnector     int   // of them by one connector; default 16
	Streams          int   // requests at a time on one HTTP/2 connection; default 100
	Proofs           int   // proofs remembered against replay; default 200000
	Anonymous        rate.Limit
	AnonymousBurst   int // requests without proof from one address: default 2 a second, at once 20
	Return           rate.Limit
	ReturnBurst      int           // requests with a key alone from one address: default 1 a second, at once 20
	ReturnAll        rate.Limit    // and in all: default 50 a second, at once twice that
	Header           time.Duration // of a TLS handshake, and of a request's head; default 5 s
	Idle             time.Duration // of a connection between requests; default 2 minutes
	Stall            time.Duration // of a device in the middle of a body; default 30 s
	Answer           time.Duration // of the inside between two signs of life; default 2 minutes
	Grace            time.Duration // of requests under way when the gateway stops; default 15 s
	Statistics       time.Duration // between statistics lines in CMGService.log; default 1 minute
	Acknowledgements time.Duration // between acknowledgements when nothing changes; default 1 minute
	Reports          time.Duration // at least, between two that are sent because of unknown keys or refusals; default 10 s
	LogSync          time.Duration // between two portions of CMGService.log sent inside; default 5 minutes (S2)
	Retry            time.Duration // before the state is asked for again, at first; default 1 s
}

func (l Limits) withDefaults() Limits {
	l.MessageBytes = cmp.Or(l.MessageBytes, 16<<20)
	l.TokenBytes = cmp.Or(l.TokenBytes, 64<<10)
	l.Connections = cmp.Or(l.Connections, 8192)
	l.PerAddress = cmp.Or(l.PerAddress, 512)
	l.Connectors = cmp.Or(l.Connectors, 64)
	l.PerConnector = cmp.Or(l.PerConnector, 16)
	l.Streams = cmp.Or(l.Streams, 100)
	l.Proofs = cmp.Or(l.Proofs, 200_000)
	l.Anonymous = cmp.Or(l.Anonymous, 2)
	l.AnonymousBurst = cmp.Or(l.AnonymousBurst, 20)
	l.Return = cmp.Or(l.Return, 1)
	l.ReturnBurst = cmp.Or(l.ReturnBurst, 20)
	l.ReturnAll = cmp.Or(l.ReturnAll, 50)
	l.Header = cmp.Or(l.Header, 5*time.Second)
	l.Idle = cmp.Or(l.Idle, 2*time.Minute)
	l.Stall = cmp.Or(l.Stall, 30*time.Second)
	l.Answer = cmp.Or(l.Answer, 2*time.Minute)
	l.Grace = cmp.Or(l.Grace, 15*time.Second)
	l.Statistics = cmp.Or(l.Statistics, time.Minute)
	l.Acknowledgements = cmp.Or(l.Acknowledgements, time.Minute)
	l.Reports = cmp.Or(l.Reports, 10*time.Second)
	l.LogSync = cmp.Or(l.LogSync, 5*time.Minute)
	l.Retry = cmp.Or(l.Retry, time.Second)
	return l
}

// headerBytes bounds the head of a request.
const headerBytes = 32 << 10

// Gateway is the public edge of a site. Make it with [New]; it is an http.Handler for
// what devices send, and [Gateway.Serve] is the whole listener.
type Gateway struct {
	names  []string
	key    crypto.Signer
	pin    string
	log    *slog.Logger
	now    func() time.Time
	rand   io.Reader
	limits Limits
	hook   func(Exchange)

	state        *auth.State
	bearer       *auth.Bearer
	judge        auth.ClientCertificates // nil: none is accepted
	hub          *tunnel.Hub
	standing     standing
	routes       []Route
	certificates *certificates
	anonymous    *limiter
	returns      *returns
	exchanges    *auth.Gate // before the proofs of token exchanges
	service      *serviceLog
	kept         *keptState
	acked        acknowledged
	reports      *reports
	quiet        *rate.Sometimes // lines that a stranger can cause without end
	buffers      sync.Pool
	busy         busy
	connectors   chan struct{} // told that connectors came or went
	acknowledge  chan struct{} // told that there is something to acknowledge
	turnedAway   counter
	inflight     *auth.InFlight
	cutOff       cutOff
}

// New returns a Gateway. It reads the kept site state. Its error is of code
// GatewayConfiguration.
func New(config Config) (*Gateway, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	config.fill()
	g := &Gateway{
		names: config.Names, key: config.Key, pin: token.Pin(config.Key.Public()),
		log: config.Log, now: config.Now, rand: config.Rand, limits: config.Limits.withDefaults(), hook: config.Observe,
		state:       config.State,
		judge:       config.Certificates,
		quiet:       &rate.Sometimes{First: 10, Interval: 10 * time.Second},
		connectors:  make(chan struct{}, 1),
		acknowledge: make(chan struct{}, 1),
		reports:     newReports(),
	}
	var err error
	if g.certificates, err = newCertificates(config, g.now); err != nil {
		return nil, err
	}
	g.routes = routes(g.limits)
	g.bearer = auth.NewBearer(auth.BearerConfig{
		Keys: g.state, Revocation: g.state, Replay: auth.NewMemory(g.limits.Proofs, g.judgeTime), URL: g.sameURL, Now: g.judgeTime,
		Cloud: config.Cloud, Nonces: g.state,
	})
	g.returns = g.newReturns()
	g.exchanges = auth.NewGate(auth.Processors(), maxExchanges, nil)
	g.inflight = auth.NewInFlight(auth.InFlightConfig{Keys: g.state, Revocation: g.state, Now: g.judgeTime})
	g.hub = tunnel.NewHub(tunnel.HubConfig{
		MaxConnections: g.limits.Connectors, MaxPerName: g.limits.PerConnector,
		OnChange: func() { tell(g.connectors) }, Now: g.now, Log: g.log,
	})
	g.anonymous = newLimiter(g.limits.Anonymous, g.limits.AnonymousBurst)
	g.service = newServiceLog(config.Logs, g.now)
	g.kept = &keptState{path: config.StateFile}
	g.buffers.New = func() any { return new([streamBuffer]byte) }
	g.recall()
	return g, nil
}

func (c *Config) check() error {
	rules := []struct {
		ok   bool
		what string
	}{
		{len(c.Names) > 0 && c.Names[0] != "", "a host name is required"},
		{len(c.RootPin) == 64, "the hash of the site root is required: 64 hexadecimal digits"},
		{c.Key != nil && len(c.Certificate) > 0, "the key and certificate of `postern gateway init` are required"},
		{c.State != nil, "a site state is required"},
	}
	for _, rule := range rules {
		if !rule.ok {
			return catalog.Errorf(catalog.GatewayConfiguration, "%s", rule.what)
		}
	}
	return nil
}

func (c *Config) fill() {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Observe == nil {
		c.Observe = func(Exchange) {}
	}
	names := make([]string, len(c.Names))
	for i, name := range c.Names {
		names[i] = strings.ToLower(strings.TrimSuffix(name, "."))
	}
	c.Names = names
}

// Pin returns the pin of the gateway's own key, which the site must list.
func (g *Gateway) Pin() string { return g.pin }

// Serve accepts devices and connectors on one listener until ctx ends, then lets
// requests under way end within the grace time and returns nil. It takes the listener
// over. It may be called once.
func (g *Gateway) Serve(ctx context.Context, l net.Listener) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { g.followAll(background) })
	work.Go(func() { g.acknowledgeAll(background) })
	work.Go(func() { g.keepStatistics(background) })

	server := g.server(background)
	served := make(chan error, 1)
	go func() {
		served <- server.ServeTLS(newConnections(l, g.limits, &g.turnedAway), "", "")
	}()
	select {
	case err := <-served:
		g.hub.Close()
		server.Close()
		stop()
		return err
	case <-ctx.Done():
		g.drain(server)
		stop()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}
}

// drain ends the devices' requests first and the connectors' connections, which carry
// them, after that: net/http waits for both at once.
func (g *Gateway) drain(server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), g.limits.Grace)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- server.Shutdown(ctx) }()
	g.busy.wait(ctx)
	g.hub.Close()
	if err := <-done; err != nil {
		g.log.Warn("requests cut off by the end of the grace time")
	}
	server.Close()
}

func (g *Gateway) server(ctx context.Context) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Server{
		Handler:   g,
		Protocols: &protocols, // without it, TLSNextProto switches HTTP/2 off
		TLSConfig: g.tlsConfig(),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){
			tunnel.ALPN: func(_ *http.Server, c *tls.Conn, _ http.Handler) { g.carry(ctx, c) },
		},
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          g.limits.Streams,
			MaxReceiveBufferPerConnection: 1 << 20,
			MaxReceiveBufferPerStream:     256 << 10,
			SendPingTimeout:               15 * time.Second,
			PingTimeout:                   10 * time.Second,
			WriteByteTimeout:              10 * time.Second,
		},
		ReadHeaderTimeout:            g.limits.Header, // also bounds the TLS handshake
		MaxHeaderBytes:               headerBytes,
		IdleTimeout:                  g.limits.Idle,
		DisableGeneralOptionsHandler: true,
		ConnContext:                  g.connContext,
		ConnState:                    g.inflight.ConnState,
		ErrorLog:                     log.New(noise{g}, "", 0),
	}
}

// noise takes net/http's own lines, which any stranger can cause.
type noise struct{ g *Gateway }

func (n noise) Write(p []byte) (int, error) {
	n.g.quiet.Do(func() { n.g.log.Debug("net/http", "line", strings.TrimSpace(string(p))) })
	return len(p), nil
}

// tell wakes the reader of a channel with room for one.
func tell(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// busy counts requests under way.
type busy struct {
	mu    sync.Mutex
	count int
	idle  chan struct{} // closed when count is zero and somebody waits
}

func (b *busy) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count++
}

func (b *busy) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count--
	if b.count == 0 && b.idle != nil {
		close(b.idle)
		b.idle = nil
	}
}

// wait returns when nothing is under way, or at the end of ctx.
func (b *busy) wait(ctx context.Context) {
	b.mu.Lock()
	if b.count == 0 {
		b.mu.Unlock()
		return
	}
	if b.idle == nil {
		b.idle = make(chan struct{})
	}
	idle := b.idle
	b.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}
