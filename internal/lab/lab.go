package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/client"
	"postern/connector"
	"postern/gateway"
	"postern/internal/issuer"
	"postern/internal/realms"
	"postern/internal/role"
	"postern/logfile"
	"postern/mp"
	"postern/site"
)

// SiteCode is the code of the lab's site.
const SiteCode = "LAB"

// Lab is a running hierarchy.
type Lab struct {
	Dir             string
	SiteRoot        string
	ManagementPoint *role.Running
	Gateway         *role.Running
	Connector       *role.Running
	GatewayHost     string // host:port that devices use

	temporary bool // Dir is ours to remove

	pointLogs string // of the management point
	made      role.MadeSite
	trail     *trail
	now       func() time.Time
	provider  *issuer.Issuer // of the stories with a tenant
	realms    *realms.Realms // of the stories inside a domain
	company   *company
	clock     *movedClock // of the story that moves it
	options   Options
	stops     []func() // of what a story needs beside the hierarchy
}

// Options say where and how a lab runs.
type Options struct {
	Dir   string           // empty: a temporary folder that Stop removes
	Verbs func() VerbMaker // nil: the management point's door runs no commands
	HTTP  bool             // also plain HTTP at the management point
	Store string           // a database address instead of SQLite in the folder
	Now   func() time.Time
	// Realms, when not nil, are the domains: the management point gets their keytab and the name that they know it by.
	Realms *realms.Realms
	// Provider, when not nil, is a stand-in for Entra whose TLS the management point trusts.
	Provider *issuer.Issuer
	company  *company    // of the story with certificates
	clock    *movedClock // of the story of a device's life
	// Report is told of every step as it ends; may be nil.
	Report func(Step)
	// Observe is told of every request at every hop, beside the steps.
	Observe Observers
}

// Observers are told of every request that has ended; any may be nil. They are called from many goroutines and must not block.
type Observers struct {
	ManagementPoint func(mp.Exchange)
	Gateway         func(gateway.Exchange)
	Connector       func(connector.Exchange)
}

// both returns a function that tells the two.
func both[E any](first, second func(E)) func(E) {
	if second == nil {
		return first
	}
	return func(e E) {
		first(e)
		second(e)
	}
}

// VerbMaker makes the commands of a management point's administration door.
type VerbMaker = func(s *site.Site, backup func(ctx context.Context, path string) error) role.RunVerb

const readyWithin = 20 * time.Second

// Start brings the hierarchy up, each role by the acts of a deployment (design decision 15). On an error everything is stopped again.
func Start(ctx context.Context, options Options) (l *Lab, err error) {
	if options.Now == nil {
		options.Now = time.Now
	}
	l = &Lab{Dir: options.Dir, now: options.Now, trail: newTrail(options.Report), realms: options.Realms, provider: options.Provider, company: options.company, clock: options.clock, options: options}
	if l.temporary = l.Dir == ""; l.temporary {
		if l.Dir, err = os.MkdirTemp("", "postern-lab-"); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			l.Stop()
		}
	}()
	for _, part := range l.parts() {
		if err := l.trail.tell(part.hop, func() (string, error) { return part.does(ctx, options) }); err != nil {
			return l, fmt.Errorf("start %s: %w", part.hop, err)
		}
	}
	return l, nil
}

// part is a part of the hierarchy and what starts it.
type part struct {
	hop  string
	does func(context.Context, Options) (string, error)
}

// parts are those of the hierarchy, in their order. A lab inside a domain has no way in from the internet.
func (l *Lab) parts() []part {
	inner := []part{{"site", l.startSite}, {"management point", l.startManagementPoint}}
	if l.realms != nil {
		return inner
	}
	return append(inner, part{"gateway", l.startGateway}, part{"connector", l.startConnector}, part{"tunnel", l.awaitTunnel})
}

// Stop ends every role, in the reverse order, and removes the folder when it is a temporary one.
func (l *Lab) Stop() error {
	var errs []error
	for _, r := range []*role.Running{l.Connector, l.Gateway, l.ManagementPoint} {
		if r != nil {
			errs = append(errs, r.Stop())
		}
	}
	for _, stop := range l.stops {
		stop()
	}
	if l.temporary {
		errs = append(errs, os.RemoveAll(l.Dir))
	}
	return errors.Join(errs...)
}

func (l *Lab) startSite(ctx context.Context, options Options) (string, error) {
	ask := role.NewSite{Dir: filepath.Join(l.Dir, "site"), Code: SiteCode, HTTPS: "127.0.0.1:0", Store: options.Store, Actor: "lab"}
	if options.HTTP {
		ask.HTTP = "127.0.0.1:0"
	}
	if l.realms != nil {
		ask.Name = l.realms.Host("mp")
	}
	made, err := role.InitSite(ctx, ask, role.Protection{}, l.now)
	l.made, l.SiteRoot = made, made.SiteRoot
	return "site " + SiteCode + " made: site root, signing keys and store, the keys sealed with site.key", err
}

func (l *Lab) startManagementPoint(ctx context.Context, options Options) (string, error) {
	config, err := role.Load(l.made.Config)
	if err != nil {
		return "", err
	}
	config.Verbose, l.pointLogs = true, config.Logs
	if l.realms != nil {
		config.Names = append(config.Names, "localhost")
		config.Kerberos.Keytab = l.realms.MPKeytab()
	}
	if l.provider != nil {
		config.Entra.Roots = filepath.Join(l.Dir, providerFile)
		if err := os.WriteFile(config.Entra.Roots, l.provider.RootPEM(), 0o600); err != nil {
			return "", err
		}
	}
	environment := role.Environment{Now: l.now, ObserveManagementPoint: both(l.trail.managementPoint, options.Observe.ManagementPoint)}
	if options.Verbs != nil {
		environment.Verbs = options.Verbs()
	}
	if l.ManagementPoint, err = role.StartManagementPoint(ctx, config, environment); err != nil {
		return "", err
	}
	return "listens at " + l.ManagementPointURL() + " with a certificate that the site issued (enhanced HTTP)", nil
}

// ManagementPointURL is where inside clients and connectors reach the management point.
func (l *Lab) ManagementPointURL() string {
	return l.ManagementPoint.Site.ManagementPoints()[0].InternalURL
}

func (l *Lab) startGateway(ctx context.Context, options Options) (string, error) {
	address, err := role.FreeAddress()
	if err != nil {
		return "", err
	}
	made, err := role.InitGateway(role.NewGateway{Dir: filepath.Join(l.Dir, "gateway"), Name: "localhost", SiteRoot: l.SiteRoot, Listen: address}, role.Protection{})
	if err != nil {
		return "", err
	}
	config, err := role.Load(made.Config)
	if err != nil {
		return "", err
	}
	if _, err := l.Site().AddGateway(ctx, made.URL, made.Pin, "lab"); err != nil {
		return "", err
	}
	config.Verbose = true
	if l.Gateway, err = role.StartGateway(ctx, config, role.Environment{Now: l.now, ObserveGateway: both(l.trail.gateway, options.Observe.Gateway)}); err != nil {
		return "", err
	}
	l.GatewayHost = net.JoinHostPort("localhost", portOf(l.Gateway.Addresses["https"]))
	return "listens at https://" + l.GatewayHost + "; its key was made in place and the site lists its pin", nil
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

func (l *Lab) startConnector(ctx context.Context, options Options) (string, error) {
	return l.startConnectorAs(ctx, options, "lab1", "connector")
}

func (l *Lab) startConnectorAs(ctx context.Context, options Options, name, folder string) (string, error) {
	code, err := l.Site().Invite(ctx, name, "lab")
	if err != nil {
		return "", err
	}
	ask := role.NewConnector{Dir: filepath.Join(l.Dir, folder), ManagementPoint: l.ManagementPointURL(), Code: code + "." + l.SiteRoot}
	made, err := role.JoinConnector(ctx, ask, role.Protection{}, l.now)
	if err != nil {
		return "", err
	}
	config, err := role.Load(made.Config)
	if err != nil {
		return "", err
	}
	config.Verbose = true
	if l.Connector, err = role.StartConnector(ctx, config, role.Environment{Now: l.now, ObserveConnector: both(l.trail.connector, options.Observe.Connector)}); err != nil {
		return "", err
	}
	return "joined with a one-time code and has its own certificate; no port of it is open", nil
}

// awaitTunnel waits until the gateway knows the site and has the certificate that devices verify.
func (l *Lab) awaitTunnel(ctx context.Context, _ Options) (string, error) {
	return "connector dialled out, proved its certificate and checked the gateway's pin; the gateway has the signed site state", l.awaitGateway(ctx, ready)
}

func (l *Lab) awaitGateway(ctx context.Context, ready func(gateway.Status) bool) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		if ready(l.Gateway.Gateway.Status()) {
			return nil
		}
		select {
		case <-ctx.Done():
			return catalog.Errorf(catalog.InternalError, "the gateway did not get the site state within %s", readyWithin)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ready: a connector is there, the signed state has come, and the site has issued the certificate that devices verify.
func ready(s gateway.Status) bool {
	return len(s.Connectors) > 0 && s.Epoch > 0 && s.Certificate.Source == gateway.CertificateSite
}

// Site is the lab's site.
func (l *Lab) Site() *site.Site { return l.ManagementPoint.Site }

// HostName is what a device is told as CCMHOSTNAME: the gateway with the path of the management point (S2).
func (l *Lab) HostName() string {
	return l.GatewayHost + ccm.ExternalPath(ccm.DoorMutualAuth, l.Site().ManagementPoints()[0].RoleID, "")
}

// NewDevice returns a device with a state folder of its own. It knows nothing yet.
func (l *Lab) NewDevice(name string) (*client.Agent, error) {
	dir := filepath.Join(l.Dir, "device-"+name)
	logs := logfile.NewFolder(filepath.Join(dir, "logs"), logfile.Options{Now: l.now})
	return client.Open(client.Config{Dir: dir, Now: l.now, Logs: logs, Observe: l.trail.device(name)})
}

// Setup is what a person gives a device with a bulk registration token.
func (l *Lab) Setup(name, token string) client.Setup {
	gateway := client.Gateway{Host: l.GatewayHost, RoleID: l.Site().ManagementPoints()[0].RoleID}
	return client.Setup{Gateway: gateway, SiteCode: SiteCode, RootKey: l.SiteRoot, Token: client.Secret(token), Name: name}
}
