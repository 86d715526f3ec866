package gateway

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	pki "postern/internal/authority"
	"postern/proof"
	"postern/token"
)

// company is an authority whose certificates the site's state accepts, behind an
// intermediate one that the state does not have: devices show it.
type company struct {
	t         testing.TB
	root      *pki.Authority
	between   *pki.Authority
	publisher *pki.Publisher
	judge     *auth.Certificates
	ahead     atomic.Int64 // of the judge's clock
}

// newCompanyWorld is a gateway with a connector, and the company in its state.
func newCompanyWorld(t testing.TB, policy string, edit ...func(*Config)) (*world, *company) {
	t.Helper()
	c := &company{t: t}
	var err error
	c.root, err = pki.NewRoot("Company Root", time.Now())
	c.must(err)
	c.between, err = c.root.Intermediate("Company Issuing")
	c.must(err)
	c.publisher, err = pki.NewPublisher()
	c.must(err)
	t.Cleanup(c.publisher.Close)
	c.publish()
	s := newSite(t)
	s.state.Authorities = &token.Authorities{
		Roots: [][]byte{c.root.Certificate.Raw}, Revocation: policy, Sources: []string{c.publisher.URL("/root.crl"), c.publisher.URL("/between.crl")},
	}
	judged := func(config *Config) {
		c.judge = auth.NewCertificates(auth.CertificatesConfig{Authorities: config.State.Authorities, Revocation: config.State, Now: c.now}) // as the role does
		t.Cleanup(c.judge.Close)
		config.Certificates = c.judge
	}
	w := startWorld(t, s, newKey(t), append([]func(*Config){judged}, edit...)...)
	w.connect()
	return w, c
}

func (c *company) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *company) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (c *company) publish() {
	c.t.Helper()
	for path, by := range map[string]*pki.Authority{"/root.crl": c.root, "/between.crl": c.between} {
		list, err := by.List(c.now())
		c.must(err)
		c.publisher.Put(path, list)
	}
}

func (c *company) client(edits ...pki.Edit) *pki.Certificate {
	c.t.Helper()
	issued, err := c.between.Client("wk1.corp.example", edits...)
	c.must(err)
	return issued
}

// certified is a device's HTTP client that shows a certificate.
func (w *world) certified(certificate tls.Certificate, http2 bool) *http.Client {
	client := w.client(http2)
	client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{certificate}
	return client
}

// possession is a proof of a key for a request without a token.
func possession(t testing.TB, key crypto.Signer, r *http.Request) *http.Request {
	t.Helper()
	p, err := token.SignProof(key, r.Method, "https://"+host+r.URL.Path, "", time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("DPoP", p)
	return r
}

func mutual(internal string) string { return external(ccm.DoorMutualAuth, internal) }

func TestCertificateGoesInside(t *testing.T) {
	w, c := newCompanyWorld(t, "require")
	inside := make(chan http.Header, 10)
	w.site.backend = func(rw http.ResponseWriter, r *http.Request) { inside <- r.Header }
	device := c.client()
	text := func(chain []*x509.Certificate) string {
		var texts []string
		for _, certificate := range chain {
			texts = append(texts, base64.StdEncoding.EncodeToString(certificate.Raw))
		}
		return strings.Join(texts, ",")
	}
	for _, http2 := range []bool{false, true} {
		client := w.certified(device.TLS(), http2)
		for _, ask := range []struct{ method, path string }{{"CCM_POST", "/ccm_system/request"}, {"GET", "/SMS_MP/.sms_aut?MPLIST"}, {"GET", "/SMS_MP/.sms_pol?{a}.1_00"}} {
			r := request(t, ask.method, mutual(ask.path), nil)
			r.Header.Set(ccm.HeaderClientCertificate, "AAAA") // a device says nothing of itself
			if got := do(t, client, r); got.status != 200 {
				t.Fatalf("%s: %d %s", ask.path, got.status, got.body)
			}
			header := await(t, inside)
			if got := header.Values(ccm.HeaderClientCertificate); len(got) != 1 || got[0] != text(device.Chain()) || header.Get("DPoP") != "" {
				t.Errorf("%s: inside came %q", ask.path, got)
			}
		}
		e := await(t, w.seen)
		if e.Proof.Method != proof.PKICertificate || e.Proof.Key == "" || e.Proof.Address != "127.0.0.1" {
			t.Errorf("proved %+v", e.Proof)
		}
	}
	r := possession(t, device.Key, request(t, "GET", mutual("/SMS_MP/.sms_aut?MPLIST"), nil))
	client := w.certified(device.TLS(), true)
	if got := do(t, client, r); got.status != 200 {
		t.Errorf("with a proof of the key: %d %s", got.status, got.body)
	}
	if header := await(t, inside); header.Get("DPoP") == "" {
		t.Error("the proof stays outside, where it proves nothing to the management point")
	}
	d := newDevice(t)
	if got := do(t, client, d.show(request(t, "GET", tokenPath("/SMS_MP_TokenAuth/.sms_aut?MPLIST"), nil), d.ccmToken())); got.status != 200 {
		t.Errorf("a token beside a certificate that the route does not ask for: %d %s", got.status, got.body)
	}
	if header := await(t, inside); header.Get(ccm.HeaderClientCertificate) != "" {
		t.Error("a certificate went inside with a token")
	}
}

func TestCertificatesThatAreRefused(t *testing.T) {
	w, c := newCompanyWorld(t, "require")
	w.site.backend = func(http.ResponseWriter, *http.Request) { t.Error("a refused request went inside") }
	stranger, err := pki.NewRoot("Company Root", time.Now())
	c.must(err)
	foreign, err := stranger.Client("wk1.corp.example")
	c.must(err)
	server, err := c.between.Server([]string{"www.corp.example"})
	c.must(err)
	revoked := c.client()
	c.between.Revoke(revoked.Certificate, time.Now(), 1)
	c.publish()
	good := c.client()
	alone := tls.Certificate{Certificate: [][]byte{good.Certificate.Raw}, PrivateKey: good.Key}
	large := c.client(func(x *x509.Certificate) {
		x.DNSNames = append(x.DNSNames, strings.Split(strings.TrimSuffix(strings.Repeat("a-name-of-a-computer.corp.example ", 600), " "), " ")...)
	})
	key := newKey(t)
	connector := w.site.root.issue(t, token.RoleConnector, "connector-1", &key.PublicKey)
	d := newDevice(t)
	plain := func(r *http.Request) *http.Request { return r }
	for name, test := range map[string]struct {
		shown  tls.Certificate
		edit   func(*http.Request) *http.Request
		status int
		code   catalog.Code
	}{
		"none":                     {tls.Certificate{}, plain, 403, catalog.GatewayClientCertificate},
		"none, but a token":        {tls.Certificate{}, func(r *http.Request) *http.Request { return d.show(r, d.ccmToken()) }, 403, catalog.GatewayClientCertificate},
		"good, and a token":        {good.TLS(), func(r *http.Request) *http.Request { return d.show(r, d.ccmToken()) }, 401, catalog.TokenWrongKind},
		"revoked":                  {revoked.TLS(), plain, 403, catalog.CertificateRevoked},
		"revoked, and a token":     {revoked.TLS(), func(r *http.Request) *http.Request { return d.show(r, d.ccmToken()) }, 401, catalog.TokenWrongKind},
		"a namesake's":             {foreign.TLS(), plain, 403, catalog.CertificateIssuerMissing},
		"for servers":              {server.TLS(), plain, 403, catalog.CertificateUsage},
		"expired":                  {c.client(func(x *x509.Certificate) { x.NotAfter = time.Now().Add(-time.Minute) }).TLS(), plain, 403, catalog.CertificateDate},
		"intermediate missing":     {alone, plain, 403, catalog.CertificateIssuerMissing},
		"too large to be passed":   {large.TLS(), plain, 403, catalog.CertificateUnreadable},
		"a connector's":            {tls.Certificate{Certificate: connector, PrivateKey: key}, plain, 403, catalog.ClientCertificateNotTrusted},
		"with another key's proof": {good.TLS(), func(r *http.Request) *http.Request { return possession(t, d.key, r) }, 401, catalog.ProofOtherKey},
		"with garbage for proof": {good.TLS(), func(r *http.Request) *http.Request {
			r.Header.Set("DPoP", "x.y.z")
			return r
		}, 401, catalog.ProofMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			got := do(t, w.certified(test.shown, true), test.edit(request(t, "GET", mutual("/SMS_MP/.sms_aut?MPLIST"), nil)))
			if got.status != test.status || got.code != test.code {
				t.Errorf("%d %s %s, want %d %s", got.status, got.code, got.body, test.status, test.code)
			}
			if required := got.header.Get(ccm.HeaderStatus) == "Client certificate required"; required != (test.code == catalog.GatewayClientCertificate) {
				t.Errorf("phrase %q", got.header.Get(ccm.HeaderStatus))
			}
		})
	}
}

func TestProofOfACertificatesKeyIsGoodOnce(t *testing.T) {
	w, c := newCompanyWorld(t, "off")
	device := c.client()
	client := w.certified(device.TLS(), true)
	r := possession(t, device.Key, request(t, "GET", mutual("/SMS_MP/.sms_aut?MPLIST"), nil))
	if got := do(t, client, r.Clone(t.Context())); got.status != 200 {
		t.Fatalf("first: %d %s", got.status, got.body)
	}
	if got := do(t, client, r.Clone(t.Context())); got.status != 401 || got.code != catalog.ProofReplayed {
		t.Errorf("again: %d %s", got.status, got.code)
	}
}

// What was good when the connection began may not be now.
func TestRevokedWhileTheConnectionIsOpen(t *testing.T) {
	w, c := newCompanyWorld(t, "require")
	device := c.client()
	client := w.certified(device.TLS(), true)
	ask := func() answered { return do(t, client, request(t, "GET", mutual("/SMS_MP/.sms_aut?MPLIST"), nil)) }
	if got := ask(); got.status != 200 {
		t.Fatalf("before: %d %s", got.status, got.body)
	}
	c.between.Revoke(device.Certificate, time.Now(), 1)
	c.ahead.Store(int64(25 * time.Hour))
	c.publish()
	c.judge.Refresh(t.Context())
	if got := ask(); got.status != 403 || got.code != catalog.CertificateRevoked {
		t.Errorf("on the list: %d %s", got.status, got.code)
	}
	other := c.client()
	client = w.certified(other.TLS(), true)
	if got := ask(); got.status != 200 {
		t.Fatalf("another: %d %s", got.status, got.body)
	}
	key, err := proof.Thumbprint(other.Key.Public())
	c.must(err)
	w.site.change(func(s *token.SiteState) { s.BlockedKeys = []proof.KeyThumbprint{key} })
	eventually(t, "the blocked key is refused", func() bool { got := ask(); return got.status == 403 && got.code == catalog.KeyBlocked })
	w.site.change(func(s *token.SiteState) { s.BlockedKeys, s.Authorities = nil, nil })
	eventually(t, "the authority is withdrawn", func() bool { return ask().code == catalog.GatewayCertificateRoots })
}

func TestSourceDownUnderEachPolicy(t *testing.T) {
	for policy, want := range map[string]int{"require": 403, "prefer": 200, "off": 200} {
		t.Run(policy, func(t *testing.T) {
			w, c := newCompanyWorld(t, policy)
			c.publisher.Switch(pki.Down)
			got := do(t, w.certified(c.client().TLS(), false), request(t, "GET", mutual("/SMS_MP/.sms_aut?MPLIST"), nil))
			if got.status != want || want == 403 && got.code != catalog.RevocationUnreachable {
				t.Errorf("%d %s, want %d", got.status, got.code, want)
			}
		})
	}
}

func TestLargeChainsEndTheHandshake(t *testing.T) {
	w, c := newCompanyWorld(t, "off")
	shown := c.client().TLS()
	for range maxDeviceChain {
		shown.Certificate = append(shown.Certificate, c.root.Certificate.Raw)
	}
	if response, err := w.certified(shown, true).Do(request(t, "GET", "/CCM_Proxy_MutualAuth/ServiceMetadata", nil)); err == nil {
		response.Body.Close()
		t.Errorf("eleven certificates: %s", response.Status)
	}
}

func TestBeforeTheFirstStateCertificatesAreNotCalledBad(t *testing.T) {
	w := newWorld(t, func(config *Config) {
		judge := auth.NewCertificates(auth.CertificatesConfig{Authorities: config.State.Authorities})
		t.Cleanup(judge.Close)
		config.Certificates = judge
	})
	key := newKey(t)
	got := do(t, w.certified(tls.Certificate{Certificate: [][]byte{selfSigned(t, key)}, PrivateKey: key}, true), request(t, "GET", mutual("/SMS_MP/.sms_aut?MPLIST"), nil))
	if got.status != 503 || got.code != catalog.StateMissing {
		t.Errorf("%d %s", got.status, got.code)
	}
}

// The site hears of unknown keys at once, and not more often than the floor.
func TestUnknownKeysAreToldAtOnce(t *testing.T) {
	const floor = 300 * time.Millisecond
	w := newWorld(t, func(c *Config) { c.Limits.Reports, c.Limits.Acknowledgements = floor, time.Hour })
	w.connect()
	keys := func() []token.UnknownKey {
		for {
			if ack := await(t, w.site.acks); len(ack.UnknownKeys) > 0 {
				return ack.UnknownKeys
			}
		}
	}
	const tenant = "9aaf466a-3f40-4468-b3cd-f0010f21f05a"
	w.gateway.UnknownKey(tenant, "k1")
	if got := keys(); len(got) != 1 || got[0] != (token.UnknownKey{Tenant: tenant, KeyID: "k1"}) {
		t.Errorf("told %v", got)
	}
	began := time.Now()
	for range 1000 {
		w.gateway.UnknownKey(tenant, rand.Text())
	}
	w.gateway.UnknownKey(tenant, strings.Repeat("k", 300))
	w.gateway.UnknownKey("", "k")
	if got := keys(); len(got) < token.MaxUnknownKeys-1 || len(got) > token.MaxUnknownKeys { // the first may still be there
		t.Errorf("told %d keys of a flood, want %d", len(got), token.MaxUnknownKeys)
	}
	if took := time.Since(began); took < floor/2 {
		t.Errorf("told again after %s", took)
	}
}
