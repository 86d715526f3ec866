package mp

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"postern/auth"
	"postern/catalog"
	"postern/inbox"
	"postern/logfile"
	"postern/site"
)

// Config is what a management point needs. Site and FQDN must be set; what is left out otherwise is not done, or takes its default.
type Config struct {
	Site      *site.Site
	Inbox     *inbox.Inbox       // keeps registrations while the database is away; nil: they are answered 503
	InboxDir  string             // where readable copies of registrations go, under auth/ddm.box/regreq (S0); "": none
	Logs      *logfile.Folder    // MP_RegistrationManager.log, CCM_STS.log, and the logs of gateways
	AccessLog *logfile.AccessLog // the web server's log
	Log       *slog.Logger       // discarded when nil
	Now       func() time.Time   // time.Now when nil
	Rand      io.Reader          // crypto/rand when nil

	RoleID    uint64 // the management point's number in gateway paths
	FQDN      string // its own name in replies and logs
	ServerIP  string // s-ip of the access log; the connection's when empty
	HTTPPort  int    // what location replies say; 80 when 0
	HTTPSPort int    // 443 when 0

	// Certificate returns the management point's own certificate, DER, for MPCERT and MPCERT2; nil: the site signing certificate stands in.
	Certificate func() []byte

	// Cloud judges tokens of the site's Entra tenants; nil refuses them all.
	Cloud auth.Cloud

	// Certificates judges client certificates of the company; nil refuses them all.
	Certificates auth.ClientCertificates

	// UnknownKey hears of the keys of tenants that gateways met in tokens and that the site state does not have; nil: nobody does. It must not
	// block.
	UnknownKey func(tenant, keyID string)

	// Identity returns the role certificate, leaf first and site root last, and its key, with which answers are signed for clients that ask;
	// nil: none are.
	Identity func() (chain [][]byte, key crypto.Signer)

	// Windows judges the tickets of Windows authentication; nil: this management point has no keytab and refuses them all.
	Windows auth.Negotiator
	// Shown returns the server certificates, DER, that a listener shows or has shown, for channel binding; nil: none.
	Shown func(Listener) [][]byte

	Hooks Hooks
}

// Hooks are called at what a metric may count. Any of them may be nil; they must not block.
type Hooks struct {
	Request      func(Exchange)          // every request, when it is over
	Refused      func(code catalog.Code) // every refusal, also those that the wire does not show
	Message      func(endpoint string, ok bool)
	Registration func(status int) // the registration status answered (protocol.md 3.4)
	Token        func(kind string)
	Streams      func(open int) // how many site-state streams are open
	Shed         func()         // the token service sent a request away unseen, because too many wait
}

// ManagementPoint serves the protocol. Make it with [New]; all its methods are safe for concurrent use.
type ManagementPoint struct {
	config Config
	site   *site.Site
	log    *slog.Logger
	now    func() time.Time

	routes    []Route
	endpoints []Endpoint

	bearer     *auth.Bearer
	connectors *connectorCache
	verifying  *auth.Gate // those whose proofs are not checked yet
	signing    *auth.Gate // and those whose are
	strangers  *room      // for the messages of those who have proved nothing yet
	proved     *room      // for all others' messages
	joins      *rate.Limiter
	renewals   renewals
	logs       logs
	beat       time.Duration
	streams    streams
	inflight   *auth.InFlight
	stopping   chan struct{}
	stop       sync.Once
	renamed    *renames
	copies     *inbox.RDRFolder // nil: none are written
}

// The limits of an HTTP server in front of devices (users-and-threats.md C92).
const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 120 * time.Second
	maxHeaderBytes    = 96 << 10 // a ticket of 64 KB in base64 and the rest
)

// beatEvery is how often a site-state stream says that the state is still in force (design decision 4).
const beatEvery = 10 * time.Second

// replayEvery is how often waiting registrations are tried again.
const replayEvery = 5 * time.Second

// New returns a management point. It does nothing by itself: serve its handlers, and call [ManagementPoint.Run].
func New(config Config) (*ManagementPoint, error) {
	switch {
	case config.Site == nil:
		return nil, errors.New("management point: a site is needed")
	case config.FQDN == "":
		return nil, errors.New("management point: its own name is needed")
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Rand == nil {
		config.Rand = rand.Reader
	}
	config.HTTPPort, config.HTTPSPort = cmp.Or(config.HTTPPort, 80), cmp.Or(config.HTTPSPort, 443)
	m := &ManagementPoint{
		config: config, site: config.Site, log: config.Log, now: func() time.Time { return notBefore(config.Site, config.Now) },
		connectors: newConnectorCache(),
		verifying:  auth.NewGate(auth.Processors(), maxVerifying, config.Hooks.Shed),
		strangers:  newRoom(strangersRoom),
		proved:     newRoom(provedRoom),
		joins:      rate.NewLimiter(joinsPerSecond, joinBurst),
		logs:       newLogs(config.Logs),
		beat:       beatEvery,
		stopping:   make(chan struct{}),
		renamed:    newRenames(),
	}
	m.bearer = auth.NewBearer(auth.BearerConfig{Keys: m.site, Revocation: m.site, Replay: replayMemory{shared: m.site, local: auth.NewMemory(maxRemembered, m.now)}, URL: m.calledURL, Now: m.now, Cloud: config.Cloud, Nonces: m.site, MutualTLS: true})
	m.inflight = auth.NewInFlight(auth.InFlightConfig{Keys: m.site, Revocation: m.site, Connector: m.site.ConnectorAdmitted, Now: m.now})
	m.signing = m.verifying.Beside(maxSigning)
	m.routes, m.endpoints = routeTable(), endpoints()
	if config.InboxDir == "" {
		return m, nil
	}
	copies, err := inbox.OpenRDR(config.InboxDir, config.Rand)
	if err != nil {
		return nil, err
	}
	m.copies = copies
	return m, nil
}

// notBefore is the clock's time, or the site's own reckoning when the clock jumped back.
func notBefore(s *site.Site, now func() time.Time) time.Time {
	if s.ClockBehind() != nil {
		return s.Now()
	}
	return now()
}

// Handler returns the handler of one kind of listener.
func (m *ManagementPoint) Handler(l Listener) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serve(l, w, r) })
}

// Server returns an HTTP server for one kind of listener, with the limits that every listener needs. The caller adds the certificate to
// TLSConfig. When it shuts down, streams of the site state end by themselves.
func (m *ManagementPoint) Server(l Listener) *http.Server {
	server := &http.Server{
		Handler:           m.Handler(l),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
		ConnContext:       m.inflight.ConnContext,
		ConnState:         m.inflight.ConnState,
	}
	server.Protocols.SetHTTP1(true)
	if l != HTTP {
		server.Protocols.SetHTTP2(true)
		// Asked for before the path is known, judged for each route. A certificate that is no connector's gives nothing.
		server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert}
	}
	server.RegisterOnShutdown(m.endStreams)
	return server
}

// Run applies waiting registrations, at once and every few seconds, and ends what is under way of what the site revokes, until ctx ends; then it ends the
// streams of the site state.
func (m *ManagementPoint) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { m.followRevocations(ctx) })
	defer m.endStreams()
	tick := time.NewTicker(replayEvery)
	defer tick.Stop()
	for {
		if err := m.Replay(ctx); err != nil && ctx.Err() == nil {
			m.log.WarnContext(ctx, "registrations still wait in the inbox", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
