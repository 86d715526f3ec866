package role

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/auth"
	"postern/auth/entra"
	"postern/catalog"
	"postern/connector"
	"postern/gateway"
	"postern/inbox"
	"postern/keyfile"
	"postern/logfile"
	"postern/mp"
	"postern/site"
)

// Environment is what a role needs beside its configuration.
type Environment struct {
	Protection Protection
	Now        func() time.Time // time.Now when nil
	Events     slog.Handler     // gets every event beside the log file; may be nil

	// Verbs makes the commands that the management point's door runs; nil runs none.
	Verbs func(s *site.Site, backup func(ctx context.Context, path string) error) RunVerb

	ObserveManagementPoint func(mp.Exchange)        // every request that a management point answered; may be nil
	ObserveGateway         func(gateway.Exchange)   // every request that a gateway answered; may be nil
	ObserveConnector       func(connector.Exchange) // every request that a connector forwarded; may be nil
}

// Running is a started role.
type Running struct {
	Name      string
	Addresses map[string]string // listener name (https, http, pki) to the address in use
	Pin       string            // gateway: of its own key
	Site      *site.Site        // management point
	Connector *connector.Connector
	Gateway   *gateway.Gateway

	since  time.Time
	cancel context.CancelFunc
	work   sync.WaitGroup
	failed chan error
	clean  []func(context.Context)
}

// stopGrace is how long a role waits for requests under way.
const stopGrace = 20 * time.Second

// Wait blocks until ctx ends or the role fails by itself, then stops it.
func (r *Running) Wait(ctx context.Context) error {
	var err error
	select {
	case <-ctx.Done():
	case err = <-r.failed:
	}
	return errors.Join(err, r.Stop())
}

// Stop ends the role: no new requests, those under way finish, then everything is closed in the reverse order of its start.
func (r *Running) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	for i := len(r.clean) - 1; i >= 0; i-- {
		r.clean[i](ctx)
	}
	r.clean = nil
	r.cancel()
	r.work.Wait()
	return nil
}

func (r *Running) onStop(f func(context.Context)) { r.clean = append(r.clean, f) }

// keep runs a part of the role until it stops; a part that ends with an error ends the role.
func (r *Running) keep(name string, part func() error) {
	r.work.Go(func() {
		if err := part(); err != nil && !errors.Is(err, http.ErrServerClosed) {
			select {
			case r.failed <- fmt.Errorf("%s: %w", name, err):
			default:
			}
		}
	})
}

// run keeps a part that lives until its context ends. Stop waits for it before it closes what the part was started after.
func (r *Running) run(ctx context.Context, name string, part func(context.Context) error) {
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	r.keep(name, func() error {
		defer close(done)
		return part(ctx)
	})
	r.onStop(func(context.Context) { stop(); <-done })
}

// begin makes what every role has: logs, events, door.
func begin(ctx context.Context, c Config, e *Environment) (context.Context, *Running, *logfile.Folder, *slog.Logger) {
	if e.Now == nil {
		e.Now = time.Now
	}
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &Running{Name: c.Name, Addresses: map[string]string{}, since: e.Now(), cancel: cancel, failed: make(chan error, 1)}
	logs := logfile.NewFolder(c.Logs, logfile.Options{Verbose: c.Verbose, Now: e.Now})
	r.onStop(func(context.Context) { logs.Close() })
	var handler slog.Handler = logs.Events(c.Role + ".json")
	if e.Events != nil {
		handler = slog.NewMultiHandler(handler, e.Events)
	}
	return inner, r, logs, slog.New(handler).With("role", c.Role, "name", c.Name)
}

// listen opens a listener, which ends with the role at the latest: also where the role never came to serve it.
func listen(r *Running, name, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, explain(err, address)
	}
	r.onStop(func(context.Context) { l.Close() })
	r.Addresses[name] = l.Addr().String()
	return l, nil
}

// StartManagementPoint starts a management point. On an error nothing of it is left running.
func StartManagementPoint(ctx context.Context, c Config, e Environment) (r *Running, err error) {
	if c.Role != ManagementPoint {
		return nil, catalog.Errorf(catalog.ConfigInvalid, "%s is the configuration of a %s", c.path, c.Role)
	}
	if Knock(c) != nil { // before the store is opened: a newer program would migrate it under the one that runs
		return nil, catalog.Errorf(catalog.StateInUse, "a management point runs on %s", c.State)
	}
	inner, r, logs, log := begin(ctx, c, &e)
	defer stopOnError(r, &err)
	opened, err := OpenSite(ctx, c, e.Protection, e.Now, log)
	if err != nil {
		return nil, err
	}
	r.Site = opened.Site
	r.onStop(func(context.Context) { opened.Close() })
	roots := newKeptRoots(c, opened.Site, log)
	roots.restore(ctx)
	roots.keep(ctx)
	waiting, err := inbox.Open(filepath.Join(c.State, "inboxes", "auth", "ddm.box", "log"), inbox.Options{Log: log})
	if err != nil {
		return nil, err
	}
	r.onStop(func(context.Context) { waiting.Close() })

	listeners, err := c.listeners(r)
	if err != nil {
		return nil, err
	}
	point, err := opened.Site.Enlist(ctx, c.managementPoint(r))
	if err != nil {
		return nil, err
	}
	certificate, err := issueForever(inner, opened.Site, c, e.Now, log)
	if err != nil {
		return nil, err
	}
	windows, err := openWindows(c, opened.Site, opened.Site.Now)
	if err != nil {
		return nil, err
	}
	tenants, err := openTenants(c, opened.Site, opened.Site.Now, log)
	if err != nil {
		return nil, err
	}
	certificates := auth.NewCertificates(auth.CertificatesConfig{Authorities: opened.Site.Authorities, Revocation: opened.Site, Now: opened.Site.Now, Log: log})
	r.onStop(func(context.Context) { certificates.Close() })
	registry, hooks := managementPointMetrics(e.ObserveManagementPoint)
	server, err := mp.New(mp.Config{
		Site: opened.Site, Inbox: waiting, InboxDir: filepath.Join(c.State, "inboxes"), Logs: logs, AccessLog: logs.Access("u_ex.log"), Log: log, Now: e.Now,
		RoleID: point.RoleID, FQDN: point.FQDN, HTTPPort: portOf(r.Addresses["http"]), HTTPSPort: portOf(cmp.Or(r.Addresses["https"], r.Addresses["pki"])),
		Cloud: tenants.validator, UnknownKey: tenants.unknownKey, Certificates: certificates,
		Certificate: certificate.leaf, Windows: windows.negotiator(), Shown: shown(listeners, certificate), Identity: certificate.identity, Hooks: hooks,
	})
	if err != nil {
		return nil, err
	}
	r.run(inner, "site", opened.Site.Run)
	r.run(inner, "management point", server.Run)
	r.run(inner, "kept site roots", roots.run)
	r.run(inner, "site root", func(ctx context.Context) error { return certificate.followRoot(ctx, opened.Site, c, log) })
	for _, l := range listeners {
		serve(r, server, l, certificate)
		if l.tls != nil {
			r.run(inner, "certificate of the company", func(ctx context.Context) error { return l.tls.watch(ctx, log, nil) })
		}
	}
	r.run(inner, "tenants", tenants.source.Run)
	r.run(inner, "tenant keys", tenants.publish)
	r.run(inner, "client certificates", certificates.Run)
	if windows != nil {
		r.run(inner, "keytab", func(ctx context.Context) error { return windows.watch(ctx, log) })
	}
	marks := newCheckpoints(c, opened.Site, e.Now, log)
	r.run(inner, "checkpoints of the trust log", marks.run)
	health := func() Health {
		h := managementPointHealth(c, opened, waiting, parts{windows, tenants, certificates}, e.Now)
		marks.health(&h)
		roots.health(&h)
		for _, l := range listeners {
			l.tls.health(&h)
		}
		revocationsHealth(&h, c, opened.Site)
		return h
	}
	return r, openDoor(r, c, &door{health: health, metrics: registry, logs: logs, run: verbs(e, opened)})
}

func verbs(e Environment, opened *OpenedSite) RunVerb {
	if e.Verbs == nil {
		return nil
	}
	return e.Verbs(opened.Site, opened.Backup)
}

func openDoor(r *Running, c Config, d *door) error {
	health := d.health
	d.health = func() Health {
		h := health()
		h.Since = r.since
		return h
	}
	if err := d.open(DoorPath(c)); err != nil {
		return err
	}
	r.onStop(d.close)
	return nil
}

func stopOnError(r *Running, err *error) {
	if *err != nil {
		r.Stop()
	}
}

// pointListener is one listener of a management point.
type pointListener struct {
	net.Listener
	kind mp.Listener
	name string
	tls  *pair // company certificate; nil for the site's own or for plain HTTP
}

func (c Config) listeners(r *Running) (all []pointListener, err error) {
	for _, want := range []struct {
		name, address string
		kind          mp.Listener
	}{{"https", c.Listen.HTTPS, mp.EnhancedHTTP}, {"http", c.Listen.HTTP, mp.HTTP}, {"pki", c.Listen.PKI.Address, mp.HTTPS}} {
		if want.address == "" {
			continue
		}
		p := pointListener{kind: want.kind, name: want.name}
		if want.kind == mp.HTTPS {
			if p.tls, err = openPair(c.Listen.PKI.Certificate, c.Listen.PKI.Key); err != nil {
				return all, err
			}
		}
		if p.Listener, err = listen(r, want.name, want.address); err != nil {
			return all, err
		}
		all = append(all, p)
	}
	return all, nil
}

func loadPair(certificate, key string) (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return pair, catalog.Wrap(catalog.ConfigInvalid, err, "the certificate %s with the key %s cannot be used", certificate, key)
	}
	return pair, nil
}

// managementPoint is how the site lists this management point.
func (c Config) managementPoint(r *Running) site.ManagementPoint {
	address := cmp.Or(r.Addresses["https"], r.Addresses["pki"])
	internal := ""
	if address != "" {
		internal = "https://" + net.JoinHostPort(c.Name, strconv.Itoa(portOf(address)))
	}
	name, _, _ := strings.Cut(c.Name, ".")
	return site.ManagementPoint{Name: strings.ToUpper(name), FQDN: c.Name, InternalURL: internal, HTTP: c.Listen.HTTP != "", Names: c.Names}
}

func portOf(address string) int {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(port)
	return n
}

func serve(r *Running, m *mp.ManagementPoint, l pointListener, issued *issuedCertificate) {
	server := m.Server(l.kind)
	r.onStop(func(ctx context.Context) {
		if server.Shutdown(ctx) != nil {
			server.Close()
		}
	})
	switch {
	case l.kind == mp.HTTP:
		r.keep(l.name, func() error { return server.Serve(l) })
		return
	case l.tls != nil:
		server.TLSConfig.GetCertificate = l.tls.get
	default:
		server.TLSConfig.GetCertificate = issued.get
	}
	r.keep(l.name, func() error { return server.ServeTLS(l, "", "") })
}

// issuedCertificate is the certificate that the site issued to this management point; it is replaced before it ends.
type issuedCertificate struct {
	current, before atomic.Pointer[tls.Certificate]
}

func (i *issuedCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return i.current.Load(), nil
}

func (i *issuedCertificate) leaf() []byte { return i.current.Load().Certificate[0] }

func (i *issuedCertificate) identity() ([][]byte, crypto.Signer) {
	current := i.current.Load()
	return current.Certificate, current.PrivateKey.(crypto.Signer)
}

// renewEvery is how often a management point takes a fresh certificate; a certificate lives a year.
const renewEvery = 30 * 24 * time.Hour

// issueForever issues the enhanced HTTP certificate ("SMS Role SSL Certificate", product.md 2.13) now and every thirty days. Its key lives in memory only.
func issueForever(ctx context.Context, s *site.Site, c Config, now func() time.Time, log *slog.Logger) (*issuedCertificate, error) {
	issued := &issuedCertificate{}
	if err := issued.renew(s, c); err != nil {
		return nil, err
	}
	go every(ctx, renewEvery, func() {
		if err := issued.renew(s, c); err != nil {
			log.Error("renew the role certificate", "error", err)
		}
	})
	return issued, nil
}

// every acts at each interval until ctx ends. Its error is nil.
func every(ctx context.Context, interval time.Duration, act func()) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			act()
		}
	}
}

func (i *issuedCertificate) renew(s *site.Site, c Config) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	chain, err := s.IssueRole(site.RoleManagementPoint, c.Name, key.Public(), append([]string{c.Name}, c.Names...))
	if err != nil {
		return err
	}
	i.before.Store(i.current.Swap(&tls.Certificate{Certificate: chain, PrivateKey: key}))
	return nil
}

// leaves are the certificates that open connections may have seen.
func (i *issuedCertificate) leaves() [][]byte {
	all := [][]byte{i.leaf()}
	if before := i.before.Load(); before != nil {
		all = append(all, before.Certificate[0])
	}
	return all
}

// shown tells the management point which certificate each of its listeners shows.
func shown(listeners []pointListener, issued *issuedCertificate) func(mp.Listener) [][]byte {
	company := map[mp.Listener]*pair{}
	for _, l := range listeners {
		if l.tls != nil {
			company[l.kind] = l.tls
		}
	}
	return func(kind mp.Listener) [][]byte {
		if own, ok := company[kind]; ok {
			return own.leaves()
		}
		return issued.leaves()
	}
}

// identity is what a gateway or connector is known by and knows its site by: the pinned site root, its own key, and what protects that.
func (c Config) identity(p Protection) (root string, key crypto.Signer, protectedBy string, err error) {
	if root, err = parsePin(c.SiteRoot); err != nil {
		return "", nil, "", err
	}
	key, protectedBy, err = loadRoleKey(c.State, p)
	return root, key, protectedBy, err
}

// StartGateway starts a gateway.
func StartGateway(ctx context.Context, c Config, e Environment) (r *Running, err error) {
	if c.Role != Gateway {
		return nil, catalog.Errorf(catalog.ConfigInvalid, "%s is the configuration of a %s", c.path, c.Role)
	}
	inner, r, logs, log := begin(ctx, c, &e)
	defer stopOnError(r, &err)
	root, key, protectedBy, err := c.identity(e.Protection)
	if err != nil {
		return nil, err
	}
	registry, observe := gatewayMetrics(e.ObserveGateway)
	config, err := c.gatewayConfig(root, key, e.Now)
	if err != nil {
		return nil, err
	}
	var company *pair
	if c.TLS.Certificate != "" {
		if company, err = openPair(c.TLS.Certificate, c.TLS.Key); err != nil {
			return nil, err
		}
		config.ClientCertificate = company.current.Load()
	}
	config.Logs, config.Log, config.Now, config.Observe = logs, log, e.Now, observe
	config.State = auth.NewStateUnder(c.anchors(root, e.Now, log), e.Now)
	judged := func() time.Time { return config.State.NotBefore(e.Now()) }
	certificates := auth.NewCertificates(auth.CertificatesConfig{Authorities: config.State.Authorities, Revocation: config.State, Now: judged, Log: log})
	r.onStop(func(context.Context) { certificates.Close() })
	config.Certificates = certificates
	var g *gateway.Gateway // set before it serves, and so before a token is judged
	config.Cloud = entra.New(entra.Config{Tenants: config.State.Tenants, Leeway: c.Entra.Leeway, Now: judged, OnUnknownKey: func(k entra.TenantKey) { g.UnknownKey(k.Tenant, k.KeyID) }})
	if g, err = gateway.New(config); err != nil {
		return nil, err
	}
	r.Gateway, r.Pin = g, g.Pin()
	gatewayGauges(registry, g, e.Now)
	l, err := listen(r, "https", c.Listen.HTTPS)
	if err != nil {
		return nil, err
	}
	r.run(inner, "gateway", func(ctx context.Context) error { return g.Serve(ctx, l) })
	r.run(inner, "client certificates", certificates.Run)
	if company != nil {
		r.run(inner, "certificate of the company", func(ctx context.Context) error { return company.watch(ctx, log, g.UseCertificate) })
	}
	health := func() Health {
		h := gatewayHealth(c, g, protectedBy)
		company.health(&h)
		certificatesHealth(&h, certificates)
		rootsHealth(&h, config.State.Anchors())
		return h
	}
	return r, openDoor(r, c, &door{health: health, metrics: registry, logs: logs})
}

func (c Config) gatewayConfig(root string, key crypto.Signer, now func() time.Time) (gateway.Config, error) {
	own, err := selfSigned(key, c.Name, now())
	if err != nil {
		return gateway.Config{}, err
	}
	config := gateway.Config{
		Names: append([]string{c.Name}, c.Names...), RootPin: root, Key: key, Certificate: own.Certificate[0], StateFile: filepath.Join(c.State, siteStateName),
		KeepCertificate: func(chain [][]byte) error {
			return keyfile.WriteFile(filepath.Join(c.State, roleCertName), encodeChain(chain))
		},
	}
	if content, err := readBounded(filepath.Join(c.State, roleCertName)); err == nil {
		config.IssuedCertificate = decodeChain(content)
	}
	return config, nil
}

// StartConnector starts a connector.
func StartConnector(ctx context.Context, c Config, e Environment) (r *Running, err error) {
	if c.Role != Connector {
		return nil, catalog.Errorf(catalog.ConfigInvalid, "%s is the configuration of a %s", c.path, c.Role)
	}
	inner, r, logs, log := begin(ctx, c, &e)
	defer stopOnError(r, &err)
	root, key, protectedBy, err := c.identity(e.Protection)
	if err != nil {
		return nil, err
	}
	content, err := readBounded(filepath.Join(c.State, roleCertName))
	if err != nil {
		return nil, catalog.Wrap(catalog.KeyFileMissing, err, "the connector has no certificate; run `postern connector join`")
	}
	registry, observe := connectorMetrics(e.ObserveConnector)
	config := connector.Config{
		Name: c.Name, Certificate: tls.Certificate{Certificate: decodeChain(content), PrivateKey: key}, RootPin: root, ManagementPoint: c.ManagementPoint,
		ConnectionsPerGateway: c.Connections, Log: logs.Log(logfile.File{Name: "SMS_CLOUD_PROXYCONNECTOR.log", Component: "SMS_CLOUD_PROXYCONNECTOR", Format: logfile.Server}), Events: log, OnRequest: observe, Now: e.Now,
	}
	config.Roots = c.anchors(root, e.Now, log)
	if config.BackendRoots, err = c.backendRoots(); err != nil {
		return nil, err
	}
	if c.ClientCertificates != "" {
		config.ClientCertificates, config.CompanyHosts = companyCertificates(c.ClientCertificates, log), c.CompanyHosts
	}
	if len(c.Gateways) > 0 {
		listed, err := listedGateways(c.Gateways)
		if err != nil {
			return nil, err
		}
		config.Gateways = func() []connector.Gateway { return listed }
	}
	out, err := connector.New(config)
	if err != nil {
		return nil, err
	}
	r.Connector = out
	r.run(inner, "connector", out.Run)
	renewal := &renewing{config: c, roots: config.Roots, key: key, now: e.Now, log: log}
	renewal.current.Store(&config.Certificate)
	r.run(inner, "connector certificate", func(ctx context.Context) error { return renewal.run(ctx, out) })
	health := func() Health {
		h := connectorHealth(c, out, *renewal.current.Load(), protectedBy)
		rootsHealth(&h, config.Roots)
		return h
	}
	return r, openDoor(r, c, &door{health: health, metrics: registry, logs: logs})
}

// backendRoots are the authorities of management points that hold a certificate of the company; nil when there are none.
func (c Config) backendRoots() (*x509.CertPool, error) {
	if c.BackendRoots == "" {
		return nil, nil
	}
	content, err := readBounded(c.BackendRoots)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(content) {
		return nil, catalog.Wrap(catalog.ConfigInvalid, err, "backend_roots names %s, which holds no certificates in PEM form", c.BackendRoots)
	}
	return pool, nil
}

func listedGateways(listed []Listed) (all []connector.Gateway, err error) {
	for _, g := range listed {
		u, err := url.Parse(g.URL)
		if err != nil || u.Scheme != "https" || u.Host == "" {
			return nil, catalog.Errorf(catalog.ConfigInvalid, "gateways: %q is not an https address", g.URL)
		}
		pin, err := parsePin(g.Pin)
		if err != nil {
			return nil, err
		}
		all = append(all, connector.Gateway{Name: u.Hostname(), Address: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")), Pin: pin})
	}
	return all, nil
}

// Start starts the role that the configuration is for.
func Start(ctx context.Context, c Config, e Environment) (*Running, error) {
	start := map[string]func(context.Context, Config, Environment) (*Running, error){
		ManagementPoint: StartManagementPoint, Gateway: StartGateway, Connector: StartConnector,
	}
	return start[c.Role](ctx, c, e)
}
