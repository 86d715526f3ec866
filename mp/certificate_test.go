package mp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/inbox"
	"postern/internal/authority"
	"postern/proof"
	"postern/site"
	"postern/token"
)

// company is an authority of the company with what it issued, and the judge that knows it.
type company struct {
	*auth.Certificates
	clock     *clock
	between   *authority.Authority
	publisher *authority.Publisher
	device    *authority.Certificate // with the key of device 0, which is RSA
	elliptic  *authority.Certificate // whose key no device can sign a registration with
	revoked   *authority.Certificate
	expired   *authority.Certificate
	server    *authority.Certificate
	foreign   *authority.Certificate

	mu       sync.Mutex
	uploaded *token.Authorities
}

// withCompany gives the management point authorities of a company, which ask for lists.
func withCompany(t testing.TB) func(*Config) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	issue := func(issued *authority.Certificate, err error) *authority.Certificate {
		t.Helper()
		must(err)
		return issued
	}
	root, err := authority.NewRoot("Company Root", captured)
	must(err)
	other, err := authority.NewRoot("Somebody Else", captured)
	must(err)
	c := &company{}
	c.between, err = root.Intermediate("Company Issuing")
	must(err)
	c.device = issue(c.between.ClientFor("dev1.lab.local", keys[0]()))
	c.elliptic = issue(c.between.Client("dev1.lab.local"))
	c.revoked = issue(c.between.Client("lost.lab.local"))
	c.expired = issue(c.between.Client("old.lab.local", func(x *x509.Certificate) { x.NotAfter = captured.Add(-time.Minute) }))
	c.server = issue(c.between.Server([]string{"www.lab.local"}))
	c.foreign = issue(other.Client("dev1.lab.local"))
	c.between.Revoke(c.revoked.Certificate, captured.Add(-time.Hour), 1)
	c.publisher, err = authority.NewPublisher()
	must(err)
	t.Cleanup(c.publisher.Close)
	for path, by := range map[string]*authority.Authority{"/root.crl": root, "/between.crl": c.between} {
		list, err := by.List(captured)
		must(err)
		c.publisher.Put(path, list)
	}
	c.uploaded = &token.Authorities{
		Roots: [][]byte{root.Certificate.Raw}, Intermediates: [][]byte{c.between.Certificate.Raw}, Revocation: "require",
		Sources: []string{c.publisher.URL("/root.crl"), c.publisher.URL("/between.crl")},
	}
	return func(config *Config) {
		c.Certificates = auth.NewCertificates(auth.CertificatesConfig{Authorities: c.authorities, Now: func() time.Time { return c.clock.now() }})
		t.Cleanup(c.Close)
		config.Certificates = c
	}
}

func (c *company) authorities() *token.Authorities {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.uploaded
}

// upload changes what was uploaded.
func (c *company) upload(edit func(*token.Authorities)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := *c.uploaded
	edit(&next)
	c.uploaded = &next
}

// certificateHeader is what a gateway sends.
func certificateHeader(c *authority.Certificate) string {
	var texts []string
	for _, certificate := range c.Chain() {
		texts = append(texts, base64.StdEncoding.EncodeToString(certificate.Raw))
	}
	return strings.Join(texts, ",")
}

// relayed is what a connector brings of a device that proves its key.
func (c *company) relayed(f *fixture, shown *authority.Certificate, key crypto.Signer) func(method, address string) []string {
	return func(method, address string) []string {
		path, _, _ := strings.Cut(strings.TrimPrefix(address, "https://"), "?")
		_, path, _ = strings.Cut(path, "/")
		return append(f.possession(key, method, "/"+path), ccm.HeaderClientCertificate, certificateHeader(shown))
	}
}

// possession is a proof for a path behind the gateway's door for certificates.
func (f *fixture) possession(key crypto.Signer, method, path string) []string {
	f.Helper()
	htu := fmt.Sprintf("https://%s/CCM_Proxy_MutualAuth/%d%s", gatewayName, f.roleID, path)
	raw, err := token.SignProof(key, method, htu, "", f.clock.now(), rand.Reader)
	f.must(err)
	return []string{"DPoP", raw}
}

// What each bad certificate is answered with, shown directly and relayed; and what the access log says of it.
func TestCertificatesThatAreRefused(t *testing.T) {
	f := newFixture(t, withCompany(t))
	c, connector := f.company, f.connector("C1")
	for name, test := range map[string]struct {
		shown  *authority.Certificate
		code   catalog.Code
		logged string
	}{
		"revoked":     {c.revoked, catalog.CertificateRevoked, " 403 13 2148081680 "},
		"expired":     {c.expired, catalog.CertificateDate, " 403 17 2148204801 "},
		"wrong usage": {c.server, catalog.CertificateUsage, " 403 16 2148204816 "},
		"other root":  {c.foreign, catalog.CertificateIssuerMissing, " 403 16 2148204810 "},
	} {
		t.Run(name, func(t *testing.T) {
			for who, g := range map[string]got{
				"direct":  f.send(f.clientWith(test.shown.TLS()), "GET", f.url(HTTPS, "/SMS_MP/.sms_aut?MPLIST"), "", nil),
				"relayed": f.send(connector, "GET", f.url(EnhancedHTTP, "/SMS_MP/.sms_aut?MPLIST"), "", nil, ccm.HeaderClientCertificate, certificateHeader(test.shown)),
			} {
				if g.StatusCode != 403 || g.code() != string(test.code) || strings.Contains(g.Status, "required") {
					t.Errorf("%s: %s %s, want 403 %s", who, g.Status, g.code(), test.code)
				}
			}
			f.wantLogged("u_ex.log", test.logged)
		})
	}
	c.publisher.Switch(authority.Down)
	c.upload(func(a *token.Authorities) { a.Sources = []string{c.publisher.URL("/other.crl")} })
	if g := f.send(f.clientWith(c.device.TLS()), "GET", f.url(HTTPS, "/SMS_MP/.sms_aut?MPLIST"), "", nil); g.code() != string(catalog.RevocationUnreachable) {
		t.Errorf("source down: %s %s", g.Status, g.code())
	}
	f.wantLogged("u_ex.log", " 403 13 2148081683 ")
	c.upload(func(a *token.Authorities) { *a = token.Authorities{} })
	if g := f.send(f.clientWith(c.device.TLS()), "GET", f.url(HTTPS, "/SMS_MP/.sms_aut?MPLIST"), "", nil); g.StatusCode != 403 || g.code() != string(catalog.GatewayCertificateRoots) {
		t.Errorf("nothing uploaded: %s %s", g.Status, g.code())
	}
}

// pki registers through a client and returns what was answered and how the device stands.
func (f *fixture) pki(client *http.Client, l Listener, d *device, headers []string, edit ...func(*ccm.RegistrationRequest)) (ccm.RegistrationResponse, site.Device) {
	f.Helper()
	contentType, body := f.message("MP_ClientRegistration", f.registration(d, edit...), nil)
	g := f.send(client, "CCM_POST", f.url(l, "/ccm_system/request"), contentType, body, headers...)
	response, err := ccm.ParseRegistrationResponse(f.text(g))
	f.must(err)
	d.id = response.SMSID
	device, err := f.site.Device(f.Context(), d.id)
	f.must(err)
	return response, device
}

// certifiedDevice is device 0 with the company's certificate as its signing certificate.
func (f *fixture) certifiedDevice() *device {
	f.Helper()
	certificate, err := ccm.ParseCertificate(f.company.device.Certificate.Raw)
	f.must(err)
	return &device{key: f.company.device.Key.(*rsa.PrivateKey), cert: certificate}
}

func TestRegistrationByCertificate(t *testing.T) {
	f := newFixture(t, withCompany(t))
	c := f.company
	certified := func(r *ccm.RegistrationRequest) { r.KeyType = 1 } // what the message claims does not count
	d := f.certifiedDevice()
	response, device := f.pki(f.clientWith(c.device.TLS()), HTTPS, d, nil, certified)
	if response.ApprovalStatus != ccm.ApprovalNotApplicable || device.Approval.Level != proof.LevelManaged || device.Approval.Method != proof.PKICertificate || device.Record.KeyType != keyTypePKI {
		t.Errorf("with the certificate itself: %+v, %+v, key type %d", response, device.Approval, device.Record.KeyType)
	}

	own := f.device(1)
	response, device = f.pki(f.clientWith(c.elliptic.TLS()), HTTPS, own, nil)
	key, err := proof.Thumbprint(own.cert.PublicKey)
	f.must(err)
	if response.ApprovalStatus != ccm.ApprovalNotApplicable || device.Approval.Level != proof.LevelManaged || device.Key != key || device.Record.KeyType != 1 {
		t.Errorf("with a key of its own: %+v, %+v", response, device)
	}
	confirm := f.registration(own, func(r *ccm.RegistrationRequest) {
		r.Type, r.SMSID = ccm.RegistrationTypeConfirmation, own.id
	})
	contentType, body := f.message("MP_ClientRegistration", confirm, nil)
	confirmed, err := ccm.ParseRegistrationResponse(f.text(f.send(f.clientWith(c.elliptic.TLS()), "CCM_POST", f.url(HTTPS, "/ccm_system/request"), contentType, body)))
	f.must(err)
	if confirmed.Status != ccm.RegistrationDone || confirmed.SMSID != own.id {
		t.Errorf("confirmation: %+v", confirmed)
	}
}

// A certificate that only the gateway saw gives level known; with a proof of its key that is checked here, the device is managed.
func TestRegistrationThroughAGateway(t *testing.T) {
	f := newFixture(t, withCompany(t))
	c, connector := f.company, f.connector("C1")
	seen := []string{ccm.HeaderClientCertificate, certificateHeader(c.device)}
	d := f.certifiedDevice()
	response, device := f.pki(connector, EnhancedHTTP, d, seen)
	if response.ApprovalStatus != ccm.ApprovalNone || device.Approval.Level != proof.LevelKnown || device.Approval.Method != proof.PKICertificate {
		t.Errorf("seen by the gateway only: %+v, %+v", response, device.Approval)
	}
	proved := c.relayed(f, c.device, c.device.Key)("CCM_POST", f.url(EnhancedHTTP, "/ccm_system/request"))
	response, device = f.pki(connector, EnhancedHTTP, d, proved)
	if response.ApprovalStatus != ccm.ApprovalNotApplicable || device.Approval.Level != proof.LevelManaged {
		t.Errorf("with a proof of the key: %+v, %+v", response, device.Approval)
	}
	contentType, body := f.message("MP_ClientRegistration", f.registration(d), nil)
	send := func(headers []string) got {
		return f.send(connector, "CCM_POST", f.url(HTTPS, "/ccm_system/request"), contentType, body, headers...)
	}
	if g := send(proved); g.StatusCode != 401 || g.code() != string(catalog.ProofReplayed) {
		t.Errorf("the proof again: %s %s", g.Status, g.code())
	}
	if g := send(append(f.possession(keys[1](), "CCM_POST", "/ccm_system/request"), seen...)); g.code() != string(catalog.ProofOtherKey) {
		t.Errorf("another key's proof: %s %s", g.Status, g.code())
	}
	if g := send(append(f.possession(c.device.Key, "CCM_POST", "/ccm_system_altauth/request"), seen...)); g.code() != string(catalog.ProofOtherURL) {
		t.Errorf("a proof for another path: %s %s", g.Status, g.code())
	}
	own := f.device(1)
	response, device = f.pki(connector, EnhancedHTTP, own, c.relayed(f, c.elliptic, c.elliptic.Key)("CCM_POST", f.url(EnhancedHTTP, "/ccm_system/request")))
	if response.ApprovalStatus != ccm.ApprovalNone || device.Approval.Level != proof.LevelKnown {
		t.Errorf("a registration by another key than the certificate's: %+v, %+v", response, device.Approval)
	}
	if g := send(nil); g.Status != "403 Client certificate required" {
		t.Errorf("nothing: %s", g.Status)
	}
}

// policiesOf returns the ids of the policies in an answer, nil when there is none.
func (f *fixture) policiesOf(g got) []string {
	f.Helper()
	if g.StatusCode != http.StatusOK || len(g.body) == 0 {
		return nil
	}
	reply, err := ccm.ParseAssignmentsReply(f.text(g))
	f.must(err)
	var ids []string
	for _, a := range reply.Assignments {
		ids = append(ids, a.PolicyID)
	}
	slices.Sort(ids)
	return ids
}

// publish makes a policy for all devices of a level and returns its id.
func (f *fixture) publish(name string, level proof.Level) string {
	f.Helper()
	p, err := f.site.AddPolicy(f.Context(), site.NewPolicy{Category: name, Body: []byte("<Policy/>"), All: true, Level: level, By: "test"})
	f.must(err)
	return p.ID
}

func TestPolicyByCertificate(t *testing.T) {
	f := newFixture(t, withCompany(t))
	c, connector := f.company, f.connector("C1")
	d := f.certifiedDevice()
	_, _ = f.pki(f.clientWith(c.device.TLS()), HTTPS, d, nil)
	other := f.device(1)
	_, _ = f.pki(f.clientWith(c.elliptic.TLS()), HTTPS, other, nil)
	known := f.publish("known", proof.LevelKnown)
	managed := f.publish("managed", proof.LevelManaged)
	both := []string{known, managed}
	slices.Sort(both)

	direct := f.clientWith(c.device.TLS())
	relayed := func(method, path string) []string {
		return c.relayed(f, c.device, c.device.Key)(method, f.url(EnhancedHTTP, path))
	}
	seen := []string{ccm.HeaderClientCertificate, certificateHeader(c.device)}
	const request = "/ccm_system/request"
	unsigned := func(h *ccm.Header) { h.SourceID = string(d.id) }
	for _, test := range []struct {
		name    string
		client  *http.Client
		l       Listener
		sign    *device
		ask     *device
		headers []string
		want    []string
	}{
		{"direct, not signed", direct, HTTPS, nil, d, nil, both},
		{"direct, signed", direct, HTTPS, d, d, nil, both},
		{"direct, signed by another device, as inside without certificates", direct, HTTPS, other, other, nil, both},
		{"relayed, not signed", connector, EnhancedHTTP, nil, d, seen, nil},
		{"relayed, signed", connector, EnhancedHTTP, d, d, seen, []string{known}},
		{"relayed with proof, not signed", connector, EnhancedHTTP, nil, d, relayed("CCM_POST", request), both},
		{"relayed with proof, signed", connector, HTTPS, d, d, relayed("CCM_POST", request), both},
		{"relayed with proof, signed by the device that registered with the certificate", connector, EnhancedHTTP, other, other,
			c.relayed(f, c.elliptic, c.elliptic.Key)("CCM_POST", f.url(EnhancedHTTP, request)), both},
		{"relayed with proof, a message of another device", connector, EnhancedHTTP, other, other, relayed("CCM_POST", request), []string{known}},
	} {
		t.Run(test.name, func(t *testing.T) {
			edit := unsigned
			if test.sign != nil {
				edit = func(*ccm.Header) {}
			}
			contentType, body := f.message("MP_PolicyManager", f.assignments(test.ask), test.sign, edit)
			g := f.send(test.client, "CCM_POST", f.url(test.l, request), contentType, body, test.headers...)
			if got := f.policiesOf(g); !slices.Equal(got, test.want) {
				t.Errorf("%s, policies %v, want %v", g.Status, got, test.want)
			}
		})
	}
	contentType, body := f.message("MP_PolicyManager", f.assignments(other), nil, func(h *ccm.Header) { h.SourceID = string(other.id) })
	if got := f.policiesOf(f.send(direct, "CCM_POST", f.url(HTTPS, request), contentType, body)); got != nil {
		t.Errorf("the certificate opens another device's policies: %v", got)
	}
	f.wantEvent(catalog.MessageOtherDevice)

	path := "/SMS_MP/.sms_pol?" + managed + ".1_00"
	reads := func(client *http.Client, l Listener, headers ...string) bool {
		g := f.send(client, "GET", f.url(l, path), "", nil, headers...)
		return g.StatusCode == 200 && string(g.body) != ccm.PolicyError
	}
	if !reads(direct, HTTPS) || !reads(connector, EnhancedHTTP, relayed("GET", "/SMS_MP/.sms_pol")...) {
		t.Error("the certificate's own device does not read its policy")
	}
	if reads(connector, EnhancedHTTP, seen...) {
		t.Error("a certificate that only the gateway saw reads a policy of level managed")
	}
	if reads(f.clientWith(c.elliptic.TLS()), HTTPS) {
		t.Error("a certificate of no device reads a policy of level managed")
	}
}

// A connection proves nothing for its next request.
func TestBlockedWhileTheConnectionIsOpen(t *testing.T) {
	f := newFixture(t, withCompany(t))
	d := f.certifiedDevice()
	client := f.clientWith(f.company.device.TLS())
	_, _ = f.pki(client, HTTPS, d, nil)
	ask := func() got { return f.send(client, "GET", f.url(HTTPS, "/SMS_MP/.sms_aut?MPLIST"), "", nil) }
	if g := ask(); g.StatusCode != 200 {
		t.Fatalf("before: %s", g.Status)
	}
	_, err := f.site.Block(t.Context(), d.id, "test", "lost")
	f.must(err)
	if g := ask(); g.StatusCode != 403 || g.code() != string(catalog.KeyBlocked) {
		t.Errorf("after: %s %s", g.Status, g.code())
	}
	f.wantLogged("u_ex.log", " 403 13 2148081680 ")
}

// A registration that waits for the database keeps what its certificate proved, and what it did not.
func TestInboxKeepsWhatACertificateProved(t *testing.T) {
	open := func(c *Config) {
		waiting, err := inbox.Open(filepath.Join(t.TempDir(), "log"), inbox.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { waiting.Close() })
		c.Inbox = waiting
	}
	for name, test := range map[string]struct {
		level   proof.Level
		keyType int
		shown   func(*company) *authority.Certificate
		device  func(*fixture) *device
		direct  bool
	}{
		"direct": {proof.LevelManaged, keyTypePKI, func(c *company) *authority.Certificate { return c.device }, (*fixture).certifiedDevice, true},
		"direct, with a key of its own": {proof.LevelManaged, 1, func(c *company) *authority.Certificate { return c.elliptic },
			func(f *fixture) *device { return f.device(1) }, true},
		"seen by a gateway only": {proof.LevelKnown, keyTypePKI, func(c *company) *authority.Certificate { return c.device }, (*fixture).certifiedDevice, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, withCompany(t), open)
			d, shown := test.device(f), test.shown(f.company)
			client, l, headers := f.clientWith(shown.TLS()), HTTPS, []string(nil)
			if !test.direct {
				client, l, headers = f.connector("C1"), EnhancedHTTP, []string{ccm.HeaderClientCertificate, certificateHeader(shown)}
			}
			f.store.take(true)
			contentType, body := f.message("MP_ClientRegistration", f.registration(d), nil)
			response, err := ccm.ParseRegistrationResponse(f.text(f.send(client, "CCM_POST", f.url(l, "/ccm_system/request"), contentType, body, headers...)))
			f.must(err)
			if response.Status != ccm.RegistrationPending {
				t.Fatalf("answered %+v", response)
			}
			f.store.take(false)
			f.must(f.mp.Replay(t.Context()))
			got, err := f.site.Device(t.Context(), response.SMSID)
			f.must(err)
			if got.Approval.Level != test.level || got.Approval.Method != proof.PKICertificate || got.Record.KeyType != test.keyType {
				t.Errorf("%+v, key type %d", got.Approval, got.Record.KeyType)
			}
		})
	}
}

// What a connector passes on as a device's certificates is read within bounds, and only as they were written.
func FuzzReadCertificates(f *testing.F) {
	issued, err := authority.NewRoot("Company Root", captured)
	if err != nil {
		f.Fatal(err)
	}
	text := base64.StdEncoding.EncodeToString(issued.Certificate.Raw)
	for _, seed := range []string{"", ",", "AAAA", text, text + "," + text, text + ",", "MAA=", strings.Repeat(text+",", maxPassedOn)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		chain, err := readCertificates([]string{header})
		if err != nil {
			if _, known := catalog.Lookup(catalog.CodeOf(err)); !known {
				t.Errorf("no code: %v", err)
			}
			return
		}
		if len(chain) == 0 || len(chain) > maxPassedOn || slices.Contains(chain, nil) {
			t.Errorf("%d certificates", len(chain))
		}
	})
}

func TestUnknownKeysOfAGateway(t *testing.T) {
	heard := make(chan token.UnknownKey, 10)
	f := newFixture(t, func(c *Config) {
		c.UnknownKey = func(tenant, keyID string) { heard <- token.UnknownKey{Tenant: tenant, KeyID: keyID} }
	})
	connector := f.connector("C1")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	f.must(err)
	send := func(by crypto.Signer, keys ...token.UnknownKey) got {
		raw, err := token.SignAck(by, token.Ack{Gateway: "gw9.lab.example", Epoch: f.site.Epoch(), At: f.clock.now(), UnknownKeys: keys})
		f.must(err)
		return f.send(connector, "POST", f.url(EnhancedHTTP, "/postern/state"), "application/jose", []byte(raw))
	}
	want := token.UnknownKey{Tenant: "9aaf466a-3f40-4468-b3cd-f0010f21f05a", KeyID: "k2"}
	if g := send(key, want); g.StatusCode != 403 || len(heard) > 0 {
		t.Errorf("a gateway that is not listed was heard: %s", g.Status)
	}
	_, err = f.site.AddGateway(t.Context(), "https://gw9.lab.example", token.Pin(key.Public()), "test")
	f.must(err)
	if g := send(key, want); g.StatusCode != 200 || len(heard) != 1 || <-heard != want {
		t.Errorf("not heard: %s", g.Status)
	}
	if g := send(key, make([]token.UnknownKey, token.MaxUnknownKeys+1)...); g.code() != string(catalog.AckMalformed) {
		t.Errorf("too many: %s %s", g.Status, g.code())
	}
	if g := send(key, token.UnknownKey{Tenant: strings.Repeat("a", 300)}); g.code() != string(catalog.AckMalformed) {
		t.Errorf("too long: %s %s", g.Status, g.code())
	}
}
