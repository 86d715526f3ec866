package client

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/internal/authority"
	"postern/proof"
	"postern/token"
)

// kindPKI stands for a client certificate in the test site.
const kindPKI token.Kind = "pki"

// byCertificate is the door for client certificates: judged against the company's root, and
// behind a gateway only with a proof of the certificate's own key.
func (s *testSite) byCertificate(w http.ResponseWriter, r *http.Request, path ccm.Path) error {
	if len(r.TLS.PeerCertificates) == 0 || s.company == nil {
		return catalog.Errorf(catalog.GatewayClientCertificate, "no client certificate")
	}
	leaf, roots := r.TLS.PeerCertificates[0], x509.NewCertPool()
	roots.AddCert(s.company.Certificate)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: s.clock.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return catalog.Wrap(catalog.GatewayClientCertificate, err, "")
	}
	s.shownBy = append(s.shownBy, leaf.Subject.CommonName)
	if r.Header.Get("Authorization") != "" {
		return catalog.Errorf(catalog.ProofNotAccepted, "this address takes a client certificate")
	}
	claims := token.Claims{Kind: kindPKI}
	if path.Door == ccm.DoorDirect && r.Header.Get("DPoP") != "" {
		return catalog.Errorf(catalog.ProofNotAccepted, "no proof here")
	}
	if path.Door != ccm.DoorDirect {
		p, err := token.VerifyProof(r.Header.Get("DPoP"), r.Method, "", s.clock.now())
		if err != nil {
			return err
		}
		if key, err := proof.Thumbprint(leaf.PublicKey); err != nil || key != p.Key || p.URL != "https://"+r.Host+strings.Split(r.RequestURI, "?")[0] {
			return catalog.Errorf(catalog.ProofOtherKey, "%s", p.URL)
		}
	}
	switch path.Endpoint {
	case ccm.EndpointSystem:
		return s.message(w, r, claims)
	case ccm.EndpointMP:
		if path.Rest == "/.sms_aut" {
			return s.aut(w, path.Query)
		}
		return s.body(w, r, path, claims)
	}
	return catalog.Errorf(catalog.PathUnknown, "no such endpoint")
}

var testRSA = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func newECKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// company is an authority of the company with which the site judges client certificates.
func (s *testSite) newCompany() *authority.Authority {
	s.t.Helper()
	root, err := authority.NewRoot("Corp Root", begin())
	if err != nil {
		s.t.Fatal(err)
	}
	s.do(func() { s.company = root })
	return root
}

// issue writes a client's certificate and key into a folder, as NAME.pem and NAME.key.
func issue(t testing.TB, from *authority.Authority, folder, name string, key crypto.Signer, edits ...authority.Edit) CertificateFile {
	t.Helper()
	issued, err := from.ClientFor(name, key, edits...)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := CertificateFile{filepath.Join(folder, name+".pem"), filepath.Join(folder, name+".key")}
	for path, content := range map[string][]byte{file.Certificate: authority.PEM(issued.Chain()...), file.Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return file
}

func TestADeviceEnrolsByACertificateOfTheCompany(t *testing.T) {
	for _, way := range []string{"gateway", "inside"} {
		for _, kind := range []string{"RSA", "EC"} {
			t.Run(way+" "+kind, func(t *testing.T) {
				site := newTenantSite(t) // its tenant would do, too
				site.policies = []testPolicy{{id: "{22222222-2222-4222-8222-222222222222}", text: "<Policy>sealed</Policy>", sealed: true}}
				root := site.newCompany()
				var key crypto.Signer = testRSA()
				if kind == "EC" {
					key = newECKey(t)
				}
				setup := site.setup()
				if way == "inside" {
					setup = site.inside("https")
				}
				file := issue(t, root, t.TempDir(), "wk02-020-51w.child.test", key)
				setup.Certificate.Files = []CertificateFile{file}
				agent := site.newAgent()
				agent.enrol(t, setup)

				status := agent.Status()
				if status.State != StateReady || status.ApprovalStatus != ccm.ApprovalNotApplicable || !strings.HasPrefix(status.Proof, "PKI certificate: ") || status.Certificate == "" || len(status.Tokens) != 0 {
					t.Errorf("got %+v", status)
				}
				if got := site.count("ccm_sts") + site.count("aadauthinfo") + site.tenant.asked(); got != 0 {
					t.Errorf("%d requests for tokens, want none: the certificate is preferred", got)
				}
				if got, err := agent.Policy("{22222222-2222-4222-8222-222222222222}"); got != "<Policy>sealed</Policy>" || err != nil {
					t.Errorf("got the policy %q, %v", got, err)
				}
				thumbprint, _ := proof.Thumbprint(key.Public())
				if got := status.Key == thumbprint; got != (kind == "RSA") {
					t.Errorf("the certificate's key signs messages: %v", got)
				}
				checkCertificateUse(t, site, agent, file)
			})
		}
	}
}

// checkCertificateUse looks at what happens after enrolment: with the certificate, in
// another process too, and not without it.
func checkCertificateUse(t *testing.T, site *testSite, agent *testAgent, file CertificateFile) {
	t.Helper()
	if _, err := agent.Send(t.Context(), "MP_Echo", "<A/>"); err != nil {
		t.Error(err)
	}
	agent.Close()
	again := site.agentIn(filepath.Dir(agent.dir), agent.made, agent.clock)
	if _, err := again.Send(t.Context(), "MP_Echo", "<A/>"); err != nil {
		t.Errorf("another process: %v", err)
	}
	if err := os.Rename(file.Key, file.Key+"x"); err != nil {
		t.Fatal(err)
	}
	before := site.count("ccm_system")
	gone := site.agentIn(filepath.Dir(agent.dir), agent.made, agent.clock)
	if _, err := gone.Send(t.Context(), "MP_Echo", "<A/>"); catalog.CodeOf(err) != catalog.ClientCertificateUnusable || site.count("ccm_system") != before {
		t.Errorf("without the key: got %v", err)
	}
	if got := gone.Status(); got.State != StateReady {
		t.Errorf("got %+v", got)
	}
}

func TestACertificateThatIsNotValidGivesWayToTheTenantAndTheToken(t *testing.T) {
	site := newTenantSite(t)
	root := site.newCompany()
	expired := func(c *x509.Certificate) { c.NotAfter = begin().Add(-time.Hour) }
	setup := site.setup()
	setup.Certificate.Files = []CertificateFile{issue(t, root, t.TempDir(), "wk02", testRSA(), expired)}
	agent := site.newAgent()
	agent.enrol(t, setup)
	if got := agent.Status(); got.ApprovalStatus != ccm.ApprovalEntra || got.Certificate != "" {
		t.Errorf("got %+v", got)
	}
	if got := stepsOf(agent)[1]; got != "FAIL client: client certificate of the company" {
		t.Errorf("got the step %q", got)
	}
	if text := readLog(t, agent, "ClientIDManagerStartup.log"); !strings.Contains(text, "it expired at 2026-03-02T07:00:00Z") {
		t.Errorf("ClientIDManagerStartup.log does not say why:\n%s", text)
	}
}

func TestADeviceThatGetsACertificateRegistersWithIt(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	before := agent.Status().ClientID
	setup := site.setup()
	setup.Certificate.Files = []CertificateFile{issue(t, site.newCompany(), t.TempDir(), "wk02", testRSA())}
	agent.enrol(t, setup)
	if got := agent.Status(); got.ClientID == before || got.ApprovalStatus != ccm.ApprovalNotApplicable || len(got.Tokens) != 0 || agent.cached().CCM.Token != "" {
		t.Errorf("got %+v", got)
	}
}

// The company's own renewal puts another certificate into the same files: what is shown and
// what proves it are of one key at any time.
func TestACertificateThatIsRenewedOnDiskIsShownFromThenOn(t *testing.T) {
	site := newTestSite(t)
	folder, root := t.TempDir(), site.newCompany()
	setup := site.setup()
	setup.Certificate.Files = []CertificateFile{issue(t, root, folder, "wk02", newECKey(t))}
	agent := site.newAgent()
	agent.enrol(t, setup)
	issue(t, root, folder, "wk02", newECKey(t))
	for range 2 {
		if _, err := agent.Policies(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := agent.Send(t.Context(), "MP_Echo", "<A/>"); err != nil {
			t.Error(err)
		}
	}
}

func TestTheServerWantsAnotherCertificate(t *testing.T) {
	site := newTestSite(t)
	site.newCompany()
	foreign, err := authority.NewRoot("Another Root", begin())
	if err != nil {
		t.Fatal(err)
	}
	setup := site.setup()
	setup.Certificate.Files = []CertificateFile{issue(t, foreign, t.TempDir(), "wk02", testRSA())}
	agent := site.newAgent()
	if err := agent.Enrol(t.Context(), setup); catalog.CodeOf(err) != catalog.GatewayClientCertificate {
		t.Errorf("got %v", err)
	}
	for file, begins := range map[string]string{"CcmMessaging.log": "", "ccmsetup.log": "Enrolment did not succeed: "} {
		text := records(readLog(t, agent, file))
		if !slices.ContainsFunc(text, func(line string) bool {
			return strings.HasPrefix(line, begins+string(catalog.GatewayClientCertificate)+" ")
		}) {
			t.Errorf("%s does not say the code:\n%s", file, strings.Join(text, "\n"))
		}
	}
}

func TestPickACertificate(t *testing.T) {
	root, err := authority.NewRoot("Corp Root", begin())
	if err != nil {
		t.Fatal(err)
	}
	other, err := authority.NewRoot("Other Root", begin())
	if err != nil {
		t.Fatal(err)
	}
	key := newECKey(t)
	years := func(n int) authority.Edit {
		return func(c *x509.Certificate) { c.NotAfter = begin().AddDate(n, 0, 0) }
	}
	unit := func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{"Kiosks"} }
	tests := []struct {
		name   string
		fill   func(folder string)
		choice CertificateChoice
		want   string // file, or ""
		code   catalog.Code
	}{
		{"the one with the computer's name", func(f string) { issue(t, root, f, "wk02", key); issue(t, root, f, "wk03", key) }, CertificateChoice{}, "wk02.pem", ""},
		{"by its whole name", func(f string) { issue(t, root, f, "wk02.corp.test", key) }, CertificateChoice{}, "wk02.corp.test.pem", ""},
		{"nothing", func(string) {}, CertificateChoice{}, "", ""},
		{"another domain", func(f string) { issue(t, root, f, "wk02.evil.test", key) }, CertificateChoice{}, "", ""},
		{"expired", func(f string) { issue(t, root, f, "wk02", key, years(-1)) }, CertificateChoice{}, "", ""},
		{"not for clients", func(f string) {
			issue(t, root, f, "wk02", key, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
		}, CertificateChoice{}, "", ""},
		{"a key that is open to others", func(f string) {
			issue(t, root, f, "wk02", key)
			if err := os.Chmod(filepath.Join(f, "wk02.key"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, CertificateChoice{}, "", ""},
		{"another's key", func(f string) {
			issue(t, root, f, "wk02", key)
			issue(t, root, f, "wk03", newECKey(t))
			if err := os.Rename(filepath.Join(f, "wk03.key"), filepath.Join(f, "wk02.key")); err != nil {
				t.Fatal(err)
			}
		}, CertificateChoice{}, "", ""},
		{"issuers", func(f string) { issue(t, root, f, "wk02", key); issue(t, other, f, "wk02.corp.test", key) },
			CertificateChoice{Issuers: issuers(t, "O=Postern tests; CN=other root")}, "wk02.corp.test.pem", ""},
		{"part of the subject", func(f string) { issue(t, root, f, "kiosk-7", key) }, CertificateChoice{Select: "subjectstr:KIOSK"}, "kiosk-7.pem", ""},
		{"the exact subject", func(f string) { issue(t, root, f, "kiosk-7", key); issue(t, root, f, "kiosk-77", key) }, CertificateChoice{Select: "Subject:kiosk-7"}, "kiosk-7.pem", ""},
		{"an attribute", func(f string) { issue(t, root, f, "a", key, unit); issue(t, root, f, "b", key) }, CertificateChoice{Select: "subjectattr:OU = kiosks"}, "a.pem", ""},
		{"several", func(f string) { issue(t, root, f, "kiosk-7", key); issue(t, root, f, "kiosk-8", key) }, CertificateChoice{Select: "subjectstr:kiosk"}, "", catalog.ClientCertificateSeveral},
		{"several, the longest", func(f string) {
			issue(t, root, f, "kiosk-7", key, years(3))
			issue(t, root, f, "kiosk-8", key, years(2))
		},
			CertificateChoice{Select: "subjectstr:kiosk", First: true}, "kiosk-7.pem", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			folder := t.TempDir()
			test.fill(folder)
			test.choice.Store = folder
			got, left, err := test.choice.pick("wk02.corp.test", begin())
			name := ""
			if got != nil {
				name = filepath.Base(got.file.Certificate)
			}
			if name != test.want || catalog.CodeOf(err) != test.code {
				t.Errorf("got %q, %v (left out: %q), want %q", name, err, left, test.want)
			}
		})
	}
}

func issuers(t *testing.T, text string) []pkix.RDNSequence {
	t.Helper()
	list, err := parseIssuers(text)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func FuzzCompanyCertificate(f *testing.F) {
	root, err := authority.NewRoot("Corp Root", begin())
	if err != nil {
		f.Fatal(err)
	}
	file := issue(f, root, f.TempDir(), "wk02", newECKey(f))
	certificate, _ := os.ReadFile(file.Certificate)
	key, _ := os.ReadFile(file.Key)
	f.Add(append(bytes.Clone(certificate), key...))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	path := filepath.Join(f.TempDir(), "fuzz.pem")
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readCompanyCertificate(CertificateFile{Certificate: path}, begin())
		if (got == nil) == (err == nil) || err != nil && catalog.CodeOf(err) != catalog.ClientCertificateUnusable {
			t.Errorf("got %v, %v", got, err)
		}
	})
}
