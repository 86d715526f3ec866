package lab_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/client"
	"postern/gateway"
	"postern/internal/role"
	"postern/site"
	"postern/token"
)

// agent enrols a device of the client's own kind through the gateway.
func (w *world) agent(name string, edit ...func(*client.Config)) *client.Agent {
	w.Helper()
	config := client.Config{Dir: filepath.Join(w.Dir, "agent-"+name)}
	for _, e := range edit {
		e(&config)
	}
	agent, err := client.Open(config)
	w.must(err)
	w.Cleanup(func() { agent.Close() })
	if agent.Status().State == client.StateNew {
		raw, _ := w.bulk(1)
		w.must(agent.Enrol(w.Context(), w.Setup(name, raw)))
	}
	return agent
}

const siteInformation = `<SiteInformationRequest SchemaVersion="1.00"><SiteCode Name="LAB"/></SiteInformationRequest>`

// active is the id of the key that signs for a purpose.
func (w *world) active(purpose string) string {
	w.Helper()
	records, err := w.Site().SigningKeys(context.Background())
	w.must(err)
	for i := len(records) - 1; i >= 0; i-- {
		if (records[i].Purpose == purpose || records[i].Purpose == "token:"+purpose) && records[i].State == token.KeyActive {
			return records[i].ID
		}
	}
	w.Fatalf("no active %s key", purpose)
	return ""
}

// shownRoot is the root under which a server's certificate is.
func (w *world) shownRoot(address string) string {
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return ""
	}
	defer conn.Close()
	chain := conn.ConnectionState().PeerCertificates
	return token.Pin(chain[len(chain)-1].PublicKey)
}

// underNewRoot waits until every role stands under the site's root of now.
func (w *world) underNewRoot() {
	w.Helper()
	eventually(w, "the gateway shows a certificate under the new root", func() bool { return w.shownRoot(w.GatewayHost) == w.Site().RootPin() })
	eventually(w, "the management point shows one", func() bool { return w.shownRoot(w.ManagementPoint.Addresses["https"]) == w.Site().RootPin() })
	eventually(w, "the connector has one", func() bool { return w.connectorRoot() == w.Site().RootPin() })
}

// connectorRoot is the root under which the connector's kept certificate is.
func (w *world) connectorRoot() string {
	config, err := role.Load(filepath.Join(w.Dir, "connector", "connector.yaml"))
	w.must(err)
	return keptRoot(w, config)
}

// load is devices that exchange tokens and send requests all the while.
type load struct {
	work     sync.WaitGroup
	requests atomic.Int64
	mu       sync.Mutex
	failed   []string
}

func (l *load) run(ctx context.Context, name string, act func(context.Context) error) {
	l.work.Go(func() {
		for ctx.Err() == nil {
			if err := act(context.WithoutCancel(ctx)); err != nil {
				l.mu.Lock()
				l.failed = append(l.failed, fmt.Sprintf("%s: %v", name, err))
				l.mu.Unlock()
			}
			l.requests.Add(1)
		}
	})
}

// Each signing key is replaced, twice, while devices enrol, renew and ask: no request fails (C53).
func TestEverySigningKeyIsReplacedUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var l load
	for i := range 3 {
		agent := w.agent(fmt.Sprint("busy", i))
		l.run(ctx, fmt.Sprint("renew ", i), func(ctx context.Context) error {
			defer agent.Close() // the next makes a new connection
			return agent.Renew(ctx, true)
		})
		l.run(ctx, fmt.Sprint("send ", i), func(ctx context.Context) error {
			_, err := agent.Send(ctx, "MP_LocationManager", siteInformation)
			return err
		})
	}
	inside, err := client.Open(client.Config{Dir: filepath.Join(w.Dir, "agent-inside")})
	w.must(err)
	t.Cleanup(func() { inside.Close() })
	w.must(inside.Enrol(t.Context(), client.Setup{ManagementPoint: w.ManagementPointURL(), SiteCode: "LAB", RootKey: w.SiteRoot, Name: "inside"}))
	l.run(ctx, "inside", func(ctx context.Context) error {
		defer inside.Close()
		return inside.Renew(ctx, true)
	})
	stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 30 * time.Second}
	t.Cleanup(stranger.CloseIdleConnections)
	l.run(ctx, "bulk", func(ctx context.Context) error {
		raw, _, err := w.Site().NewBulkToken(ctx, site.NewBulk{MaxUses: 1, By: "test"})
		if err != nil {
			return err
		}
		d := newDevice(t, "NEW")
		address := w.outside(ccm.DoorServerAuth, "/CCM_STS")
		got, err := w.try(stranger, http.MethodPost, address, form, []byte(d.grant(t, address, token.KindCCM)), proofOf(t, d.key, http.MethodPost, address, raw))
		if err == nil && got.status != http.StatusOK {
			err = fmt.Errorf("%s", got)
		}
		return err
	})

	for range 2 {
		for _, purpose := range site.Purposes() {
			before := w.active(purpose)
			fresh, err := w.Site().Rotate(t.Context(), purpose, "test")
			w.must(err)
			eventually(t, purpose+" has another key", func() bool { return w.active(purpose) == fresh.ID })
			if before == fresh.ID {
				t.Errorf("%s: the key is the one before", purpose)
			}
			for n := l.requests.Load() + 5; l.requests.Load() < n; {
				time.Sleep(time.Millisecond)
			}
		}
		w.underNewRoot()
	}
	stop()
	l.work.Wait()
	t.Logf("%d requests", l.requests.Load())
	for _, e := range w.gateway.all() { // also what a device did again by itself
		if e.Status.Code != http.StatusOK {
			t.Errorf("the gateway answered %s with %d: %v", e.Path.Internal(), e.Status.Code, e.Err)
		}
	}
	for _, e := range w.point.all() {
		if e.Status.Code >= 300 {
			t.Errorf("the management point answered %s with %d: %v", e.Route, e.Status.Code, e.Err)
		}
	}
	if len(l.failed) > 0 {
		t.Errorf("%d requests failed, of them:\n%s", len(l.failed), strings.Join(l.failed[:min(5, len(l.failed))], "\n"))
	}
}

// awaitEpoch waits until the gateway has confirmed what the site says now.
func (w *world) awaitEpoch() {
	w.Helper()
	eventually(w, "the gateway has confirmed the state of now", func() bool {
		gateways := w.Site().Gateways()
		return len(gateways) > 0 && gateways[0].Acknowledged >= w.Site().Epoch()
	})
}

// What a revoked key signed is taken nowhere once the gateway has confirmed it, although it was taken a moment before.
func TestNothingByARevokedKeyIsAccepted(t *testing.T) {
	t.Parallel()
	for _, kind := range token.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			d := w.enrolled("REVOKED")
			bulk, _ := w.bulk(0)
			raw := map[token.Kind]string{token.KindBulk: bulk, token.KindCCM: d.ccm, token.KindSelfProve: d.selfProve}[kind]
			use := func(host func(string) string) answer {
				if kind == token.KindCCM {
					address := host("/CCM_System_TokenAuth/request")
					contentType, data := d.encode(w, "MP_LocationManager", siteInformation, true)
					return w.send(w.http1(), "CCM_POST", address, contentType, data, proofOf(w, d.key, "CCM_POST", address, raw))
				}
				address := host("/CCM_STS")
				return w.send(w.http1(), http.MethodPost, address, form, []byte(d.grant(w, address, token.KindCCM)), proofOf(w, d.key, http.MethodPost, address, raw))
			}
			doors := map[string]func(string) string{
				"gateway":          func(path string) string { return w.outside(ccm.DoorServerAuth, path) },
				"management point": w.inside,
			}
			for name, door := range doors {
				if got := use(door); got.status != http.StatusOK {
					t.Fatalf("%s, before: %s", name, got)
				}
			}
			before := w.active(string(kind))
			revoked, err := w.Site().Compromise(t.Context(), string(kind), "a test", "test")
			w.must(err)
			if len(revoked) != 1 || revoked[0].ID != before {
				t.Errorf("revoked are %+v", revoked)
			}
			w.awaitEpoch()
			for name, door := range doors {
				if got := use(door); got.status != http.StatusUnauthorized || got.problem() != catalog.TokenKeyRevoked {
					t.Errorf("%s, after: %s", name, got)
				}
			}
			w.enrolled("NEXT") // what signs now is taken at once
		})
	}
}

// A device that was away while the site root was replaced twice comes back through the gateway by itself.
func TestADeviceThatSleptThroughTwoRootsReturns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	asleep := w.agent("asleep")
	first := asleep.Status().Anchor
	w.must(asleep.Close())
	for range 2 {
		_, err := w.Site().Rotate(t.Context(), site.PurposeRoot, "test")
		w.must(err)
		w.underNewRoot()
	}
	awake := w.agent("asleep")
	w.must(awake.Renew(t.Context(), true))
	if _, err := awake.Send(t.Context(), "MP_LocationManager", siteInformation); err != nil {
		t.Errorf("send: %v", err)
	}
	if got := awake.Status().Anchor; got == first || !strings.HasSuffix(got, w.Site().RootPin()) {
		t.Errorf("the device trusts the %s, the site's root is %s", got, w.Site().RootPin())
	}
	// Someone enrols it again by a command from before; a new device with the old hash is led on as well.
	w.must(awake.Enrol(t.Context(), w.Setup("asleep", "")))
	w.agent("late")
}

// A server that is none of the site's is asked how the root was replaced, gets no more than that question, and is not believed.
func TestAFakeServerWithAChainOfItsOwnGetsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	root := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		w.must(err)
		return key
	}
	fake := root()
	link := func(sequence uint64, from, to *ecdsa.PrivateKey) string {
		raw, err := token.SignRoot(token.RootLink{Hierarchy: w.Site().Hierarchy(), Sequence: sequence, Issued: time.Now()}, from, to)
		w.must(err)
		return raw
	}
	_, err := w.Site().Rotate(t.Context(), site.PurposeRoot, "test")
	w.must(err)
	_, err = w.Site().Rotate(t.Context(), site.PurposeRoot, "test")
	w.must(err)
	w.underNewRoot()
	genuine := w.Site().RootLinks()
	parts := strings.Split(genuine[1], ".")
	tampered := parts[0] + "." + parts[1][:len(parts[1])-8] + "AAAAAAAA." + parts[2]
	document := func(links ...string) string {
		content, err := token.MarshalRoots(links)
		w.must(err)
		return string(content)
	}
	for name, test := range map[string]struct {
		answer string
		want   catalog.Code
	}{
		"a chain of its own":            {document(link(1, root(), fake)), catalog.ClientRootRefused},
		"a chain of its own after ours": {document(append(slices.Clone(genuine), link(3, root(), fake))...), catalog.ClientRootRefused},
		"our links tampered with":       {document(genuine[0], tampered), catalog.ClientRootRefused},
		"a link left out":               {document(genuine[1]), catalog.ClientRootRefused},
		"links in another order":        {document(genuine[1], genuine[0]), catalog.ClientRootRefused},
		"our links, and another root":   {document(genuine...), catalog.ClientServerRoot},
		"no links":                      {document(), catalog.ClientServerRoot},
		"no answer":                     {"", catalog.ClientServerRoot},
		"an answer without end":         {strings.Repeat(" ", token.MaxRoots+1), catalog.ClientServerRoot},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.on(t)
			setup := func() client.Setup { raw, _ := w.bulk(1); return w.Setup("FAKED", raw) }
			var mu sync.Mutex
			var seen []*http.Request
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				seen = append(seen, r)
				rw.Write([]byte(test.answer))
			}))
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			server.TLS = &tls.Config{Certificates: []tls.Certificate{roleCertificate(w, fake, token.RoleGateway)}}
			server.StartTLS()
			defer server.Close()
			led := false // to the fake server
			dial := func(ctx context.Context, network, address string) (net.Conn, error) {
				if led {
					address = server.Listener.Addr().String()
				}
				return (&net.Dialer{}).DialContext(ctx, network, address)
			}
			agent, err := client.Open(client.Config{Dir: filepath.Join(t.TempDir(), "device"), Dial: dial})
			w.must(err)
			defer agent.Close()
			led = true
			if err := agent.Enrol(t.Context(), setup()); catalog.CodeOf(err) != test.want {
				t.Errorf("enrol at the fake server: got %v, want %s", err, test.want)
			}
			mu.Lock()
			for _, r := range seen {
				if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/postern/roots") || r.ContentLength > 0 {
					t.Errorf("the fake server was sent %s %s", r.Method, r.URL)
				}
				for _, header := range []string{"Authorization", "DPoP", "User-Agent", "Traceparent", ccm.HeaderSignedReply} {
					if r.Header.Get(header) != "" {
						t.Errorf("the fake server was sent the header %s", header)
					}
				}
				if len(r.TLS.PeerCertificates) > 0 {
					t.Error("the fake server was shown a certificate")
				}
			}
			if len(seen) == 0 {
				t.Error("the fake server was asked nothing")
			}
			mu.Unlock()
			led = false
			w.must(agent.Close())
			if err := agent.Enrol(t.Context(), setup()); err != nil {
				t.Errorf("at the true gateway: %v", err)
			}
		})
	}
}

// roleCertificate is a certificate for localhost under a root of its own.
func roleCertificate(w *world, key *ecdsa.PrivateKey, as string) tls.Certificate {
	w.Helper()
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Postern Site Root LAB"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	root, err := x509.CreateCertificate(rand.Reader, authority, authority, key.Public(), key)
	w.must(err)
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"localhost"},
		URIs: []*url.URL{token.RoleURI(w.Site().Hierarchy(), as, "localhost")},
	}, authority, own.Public(), key)
	w.must(err)
	return tls.Certificate{Certificate: [][]byte{leaf, root}, PrivateKey: own}
}

// connected reports whether the gateway works with the site's state of now.
func (w *world) connected() bool {
	status := w.Gateway.Gateway.Status()
	return len(status.Connectors) > 0 && status.Epoch == w.Site().Epoch() && status.Certificate.Source == gateway.CertificateSite
}

// A gateway that was off while the root was replaced hears of it through a connector, whose certificate leads there; a connector asks its management point.
func TestRolesThatSleptThroughARootComeBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	environment := role.Environment{}
	gatewayConfig, err := role.Load(filepath.Join(w.Dir, "gateway", "gateway.yaml"))
	w.must(err)
	connectorConfig, err := role.Load(filepath.Join(w.Dir, "connector", "connector.yaml"))
	w.must(err)
	rotate := func() {
		_, err := w.Site().Rotate(t.Context(), site.PurposeRoot, "test")
		w.must(err)
	}

	w.must(w.Gateway.Stop())
	rotate()
	rotate()
	eventually(t, "the connector has a certificate under the new root", func() bool { return w.connectorRoot() == w.Site().RootPin() })
	w.Gateway, err = role.StartGateway(t.Context(), gatewayConfig, environment)
	w.must(err)
	eventually(t, "the gateway is back", w.connected)
	w.underNewRoot()

	w.must(w.Connector.Stop())
	rotate()
	rotate()
	w.Connector, err = role.StartConnector(t.Context(), connectorConfig, environment)
	w.must(err)
	eventually(t, "the connector is back", w.connected)
	w.underNewRoot()

	// What they were led to is kept: both start again without being told anew.
	w.must(w.Gateway.Stop())
	w.Gateway, err = role.StartGateway(t.Context(), gatewayConfig, environment)
	w.must(err)
	eventually(t, "the gateway is back again", w.connected)
	if got := w.shownRoot(w.GatewayHost); got != w.Site().RootPin() {
		t.Errorf("after a restart the gateway shows a certificate under %s, the site's root is %s", got, w.Site().RootPin())
	}
	w.agent("after")
}

// A backup from before a change of the root does not lock everybody out who was led on.
func TestABackupFromBeforeTheRootWasReplaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	agent := w.agent("led-on")
	config, err := role.Load(filepath.Join(w.Dir, "site", "mp.yaml"))
	w.must(err)
	config.Listen.HTTPS, config.Listen.HTTP = w.ManagementPoint.Addresses["https"], w.ManagementPoint.Addresses["http"]
	w.must(w.ManagementPoint.Stop())
	backup := filepath.Join(t.TempDir(), "backup.db")
	opened, err := role.OpenSite(t.Context(), config, role.Protection{}, time.Now, nil)
	w.must(err)
	w.must(opened.Backup(t.Context(), backup))
	w.must(opened.Close())
	w.ManagementPoint, err = role.StartManagementPoint(t.Context(), config, role.Environment{})
	w.must(err)
	for _, act := range []func() error{
		func() error { _, err := w.Site().Rotate(t.Context(), site.PurposeRoot, "test"); return err },
		func() error {
			_, err := w.Site().Compromise(t.Context(), site.PurposeRoot, "lost", "test")
			return err
		},
	} {
		w.must(act())
		w.underNewRoot()
	}
	w.must(agent.Renew(t.Context(), true))
	pin := w.Site().RootPin()
	eventually(t, "the root is kept beside the store", func() bool {
		content, err := os.ReadFile(filepath.Join(config.State, "site-roots.json"))
		return err == nil && strings.Count(string(content), `"link"`) == 2
	})

	w.must(w.ManagementPoint.Stop())
	_, err = role.Restore(config, backup, time.Now())
	w.must(err)
	w.ManagementPoint, err = role.StartManagementPoint(t.Context(), config, role.Environment{})
	w.must(err)
	if got := w.Site().RootPin(); got != pin {
		t.Fatalf("the restored site's root is %s, it was %s", got, pin)
	}
	if err := w.Site().TrustsRoot(w.SiteRoot); err != nil {
		t.Errorf("the first root, in its overlap: %v", err)
	}
	eventually(t, "the gateway works with the restored site", w.connected)
	w.must(agent.Renew(t.Context(), true))
}

// A root that is declared compromised vouches for nothing from then on, and the roles that run recover by themselves.
func TestACompromisedRootIsReplacedWithoutHands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	agent := w.agent("steady")
	old, stolen := w.Site().RootPin(), w.connectorCertificate("stolen")
	_, err := w.Site().Compromise(t.Context(), site.PurposeRoot, "the backup was lost", "test")
	w.must(err)
	if err := w.Site().TrustsRoot(old); catalog.CodeOf(err) != catalog.RootRetired {
		t.Errorf("the old root: got %v", err)
	}
	w.underNewRoot()
	eventually(t, "the gateway works again", w.connected)
	w.must(agent.Renew(t.Context(), true))
	if got := agent.Status().Anchor; !strings.HasSuffix(got, w.Site().RootPin()) {
		t.Errorf("the device trusts the %s", got)
	}
	conn, err := tls.Dial("tcp", w.GatewayHost, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"postern-tunnel/1"}, Certificates: []tls.Certificate{stolen}})
	if err == nil {
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err = conn.Read(make([]byte, 1)); err == nil {
			t.Error("a connector's certificate under the compromised root is taken by the gateway")
		}
		conn.Close()
	}
	point := w.certified("stolen", stolen)
	point.Transport.(*http.Transport).TLSClientConfig.VerifyConnection = nil
	if got, err := w.try(point, http.MethodGet, w.inside("/postern/state"), "", nil, nil); err == nil && got.status == http.StatusOK {
		t.Errorf("the management point tells it the state: %s", got)
	}
}

// keptRoot is the root under which the certificate in a role's state folder is.
func keptRoot(w *world, config role.Config) string {
	content, err := os.ReadFile(filepath.Join(config.State, "role.crt"))
	w.must(err)
	pin := ""
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		w.must(err)
		pin = token.Pin(certificate.PublicKey)
	}
	return pin
}
