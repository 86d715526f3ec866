package connector

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpproxy"

	"postern/auth"
	"postern/catalog"
	"postern/logfile"
)

// How often the connector looks after itself (product.md 1.2 rows 1 and 5).
const (
	maintainEvery = time.Minute
	trafficEvery  = 5 * time.Minute
)

// Gateway is one gateway to connect to.
type Gateway struct {
	Name    string
	Address string // host:port
	Pin     string // SHA-256 of its key, as the site lists it
}

// Config is what a connector needs. Fields with a default may be left out.
type Config struct {
	Name            string
	Certificate     tls.Certificate // role certificate, with the whole chain to the site root
	RootPin         string          // SHA-256 of the site root's key
	Roots           *auth.Anchors   // the site roots that are trusted, RootPin the first; default RootPin alone
	ManagementPoint string          // https URL of the management point that tells the site state

	Gateways              func() []Gateway // default: those of the site state
	ConnectionsPerGateway int              // default 2

	Proxy        func(*http.Request) (*url.URL, error) // way out; default what HTTPS_PROXY and NO_PROXY say
	BackendRoots *x509.CertPool                        // company authorities of backends, beside the site root; default none
	// ClientCertificates returns the machine's certificates of the company, for management
	// points that accept no role certificate: those of CompanyHosts (host or host:port), and
	// those that ask for other authorities' certificates than the site's. SelectCertificate
	// chooses. Default: none is ever shown.
	ClientCertificates func() []tls.Certificate
	CompanyHosts       []string

	AllowedNetworks []netip.Prefix // where backends may be; default anywhere but link-local and multicast
	BackendTimeout  time.Duration  // for the head of an answer; default 2 min
	Grace           time.Duration  // for requests under way when the connector stops; default 30 s

	Log    *logfile.Log // SMS_CLOUD_PROXYCONNECTOR.log; default: nothing is written
	Events *slog.Logger // default: nothing is logged

	OnRequest func(Exchange)      // after each request; may be nil
	OnTraffic func(TrafficReport) // every five minutes; may be nil

	Now    func() time.Time                                                     // default time.Now
	After  func(time.Duration) <-chan time.Time                                 // default time.After
	Random func() float64                                                       // in [0,1), for the spread of reconnects; default math/rand
	Dial   func(ctx context.Context, network, address string) (net.Conn, error) // towards gateways and proxies; default net.Dialer
}

func (c Config) withDefaults() Config {
	setDefault(&c.ConnectionsPerGateway, 2)
	setDefault(&c.BackendTimeout, 2*time.Minute)
	setDefault(&c.Grace, 30*time.Second)
	if c.Proxy == nil {
		c.Proxy = environmentProxy(httpproxy.FromEnvironment())
	}
	if c.Events == nil {
		c.Events = slog.New(slog.DiscardHandler)
	}
	if c.OnRequest == nil {
		c.OnRequest = func(Exchange) {}
	}
	if c.OnTraffic == nil {
		c.OnTraffic = func(TrafficReport) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.After == nil {
		c.After = time.After
	}
	if c.Random == nil {
		c.Random = rand.Float64
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext
	}
	return c
}

func setDefault[T int | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// Connector holds the connections to all gateways. Make it with [New]; it is safe for
// concurrent use.
type Connector struct {
	cfg             Config
	managementPoint *url.URL
	certificate     atomic.Pointer[tls.Certificate]
	state           *auth.State
	backends        atomic.Pointer[http.Transport] // replaced with the certificate
	traffic         *traffic
	following       *slot // the stream of the site state

	wake    chan struct{}  // the list of gateways may have changed
	keeping sync.WaitGroup // all connections, also those to gateways no longer listed

	mu      sync.Mutex
	keepers map[Gateway]*keeper
}

// New returns a connector that does nothing yet. Codes: ConnectorCertificateMissing,
// BackendNotAllowed for a management point that is not an https URL.
func New(cfg Config) (*Connector, error) {
	cfg = cfg.withDefaults()
	if len(cfg.Certificate.Certificate) == 0 || cfg.Certificate.PrivateKey == nil {
		return nil, catalog.Errorf(catalog.ConnectorCertificateMissing, "connector %s", cfg.Name)
	}
	base, err := backendURL(cfg.ManagementPoint, statePath)
	if err != nil {
		return nil, err
	}
	c := &Connector{
		cfg:             cfg,
		managementPoint: base,
		state:           siteState(cfg),
		traffic:         newTraffic(cfg.Name, cfg.Now()),
		following:       newSlot(cfg.Now()),
		wake:            make(chan struct{}, 1),
		keepers:         map[Gateway]*keeper{},
	}
	c.SetCertificate(cfg.Certificate)
	return c, nil
}

// SetCertificate makes new connections use another role certificate, as after its
// renewal. Requests to management points take new connections from now on: one that is
// kept alive for long would show the old certificate beyond its end.
func (c *Connector) SetCertificate(certificate tls.Certificate) {
	c.certificate.Store(&certificate)
	if old := c.backends.Swap(c.backendTransport()); old != nil {
		old.CloseIdleConnections()
	}
}

// Reload makes the connector read Config.Gateways again at once, not at the next turn.
func (c *Connector) Reload() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// State is the site state as the connector knows it.
func (c *Connector) State() *auth.State { return c.state }

// Run keeps the connections until ctx is done; then it drains them and returns nil. It
// must be called once.
func (c *Connector) Run(ctx context.Context) error {
	follow, stopFollowing := context.WithCancel(context.WithoutCancel(ctx))
	var following sync.WaitGroup
	following.Go(func() { c.follow(follow) })
	defer func() { c.backends.Load().CloseIdleConnections() }()
	defer following.Wait()
	defer stopFollowing()

	c.maintain(ctx)
	c.stopKeepers()
	return nil
}

// maintain repairs the set of connections once a minute and whenever the list of
// gateways may have changed.
func (c *Connector) maintain(ctx context.Context) {
	minute, report := c.cfg.After(maintainEvery), c.cfg.After(trafficEvery)
	c.cfg.Log.Infof(maintainingConnections)
	c.reconcile(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
			c.reconcile(ctx)
		case <-minute:
			minute = c.cfg.After(maintainEvery)
			c.cfg.Log.Infof(maintainingConnections)
			c.reconcile(ctx)
		case <-report:
			report = c.cfg.After(trafficEvery)
			c.cfg.OnTraffic(c.traffic.next(c.cfg.Now()))
		}
	}
}
