package connector

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/catalog"
	"postern/ccm"
	"postern/logfile"
	"postern/token"
)

// companyBackend is a management point of another make in HTTPS mode: its certificate is
// the company's, and so must the caller's be (S4).
func companyBackend(t *testing.T, config *tls.Config, trusts *x509.Certificate) (address string) {
	t.Helper()
	config.ClientAuth = tls.RequestClientCert
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ErrorLog: quiet(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch shown := r.TLS.PeerCertificates; {
		case len(shown) == 0:
			ccm.WriteStatus(w, r, ccm.StatusClientCertificateRequired, nil, nil)
		case shown[0].CheckSignatureFrom(trusts) != nil:
			ccm.WriteStatus(w, r, ccm.StatusOf(http.StatusForbidden), nil, nil)
		default:
			w.Header().Set("Content-Type", "text/plain")
			w.Write([]byte(shown[0].Subject.CommonName))
		}
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return "localhost:" + port
}

func TestWhichCertificateAManagementPointIsShown(t *testing.T) {
	company, stranger := newAuthority(t), newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(company.certificate)
	named := func(name string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: name} }
	}
	machine := func() []tls.Certificate {
		return []tls.Certificate{
			stranger.issue(t, "", "", x509.ExtKeyUsageClientAuth, named("foreign")),
			company.issue(t, "", "", x509.ExtKeyUsageServerAuth, named("server")),
			company.issue(t, "", "", x509.ExtKeyUsageClientAuth, named("machine")),
		}
	}
	unfit := func() []tls.Certificate { return machine()[:2] }
	byCompany := func(*site) tls.Certificate {
		return company.issue(t, "", "", x509.ExtKeyUsageServerAuth, func(c *x509.Certificate) { c.DNSNames = []string{"localhost"} })
	}
	bySite := func(s *site) tls.Certificate {
		return s.root.issue(t, token.RoleManagementPoint, "mp2", x509.ExtKeyUsageServerAuth)
	}
	tests := []struct {
		name    string
		server  func(*site) tls.Certificate
		asksFor *authority // whose certificates the backend names
		listed  bool
		machine func() []tls.Certificate
		want    string // the certificate that was shown, or the phrase of a refusal
	}{
		{"listed", byCompany, nil, true, machine, "machine"},
		{"names the company's authority", byCompany, company, false, machine, "machine"},
		{"neither", byCompany, nil, false, machine, "CMGConnector_Forbidden"},
		{"no certificate fits", byCompany, nil, true, unfit, "CMGConnector_Clientcertificaterequired"},
		{"no certificates at hand", byCompany, nil, true, nil, "CMGConnector_Forbidden"},
		{"listed by mistake: it is one of the site's", bySite, company, true, machine, "CMGConnector_Forbidden"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			log, err := logfile.Open(dir, logfile.File{Name: "SMS_CLOUD_PROXYCONNECTOR.log", Format: logfile.Server})
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			log.SetVerbose(true)
			s, g, c := connected(t, func(c *Config) {
				c.BackendRoots, c.ClientCertificates, c.Log = pool, test.machine, log
				if test.listed {
					c.CompanyHosts = []string{"LOCALHOST"}
				}
			})
			config := &tls.Config{Certificates: []tls.Certificate{test.server(s)}}
			if test.asksFor != nil {
				config.ClientCAs = x509.NewCertPool()
				config.ClientCAs.AddCert(test.asksFor.certificate)
			}
			internal := "https://" + companyBackend(t, config, company.certificate)
			s.change(func(state *token.SiteState) { state.Published[0].InternalURL = internal })
			eventually(t, func() bool { url, _ := c.State().Published(role, ccm.EndpointMP); return url == internal })
			a := send(t, g.hub, newRequest(t, "GET", target("/SMS_MP/.sms_aut?SITESIGNCERT"), nil))
			got := a.body
			if a.status != 200 {
				got = a.header.Get(ccm.HeaderStatus)
			}
			if got != test.want {
				t.Errorf("got %d %q, want %q", a.status, got, test.want)
			}
			content, err := os.ReadFile(filepath.Join(dir, "SMS_CLOUD_PROXYCONNECTOR.log"))
			if err != nil {
				t.Fatal(err)
			}
			lines := map[string][]string{
				"machine":                                {"Filtered cert count with digital signature: 3~~", "Not allowed cert: CN=foreign~~", "Not client auth cert: CN=server~~", "Filtered cert count with client auth: 1~~"},
				"CMGConnector_Clientcertificaterequired": {"Filtered cert count with client auth: 0~~", "HTTP/1.1 403 CMGConnector_Clientcertificaterequired~~"},
				"CMGConnector_Forbidden":                 {"HTTP/1.1 403 CMGConnector_Forbidden~~"},
			}
			for _, line := range lines[test.want] {
				if !strings.Contains(string(content), line) {
					t.Errorf("no line with %q in\n%s", line, content)
				}
			}
		})
	}
}

// The authorities that were uploaded to the site allow certificates too.
func TestUploadedAuthoritiesAllow(t *testing.T) {
	company := newAuthority(t)
	s, _, c := connected(t)
	good := []tls.Certificate{company.issue(t, "", "", x509.ExtKeyUsageClientAuth)}
	if _, err := SelectCertificate(good, c.allowedRoots(), c.cfg.Now(), nil); catalog.CodeOf(err) != catalog.ConnectorNoClientCertificate {
		t.Errorf("before: %v", err)
	}
	s.change(func(state *token.SiteState) {
		state.Authorities = &token.Authorities{Roots: [][]byte{company.certificate.Raw}, Revocation: "off"}
	})
	eventually(t, func() bool { return c.State().Authorities() != nil })
	if _, err := SelectCertificate(good, c.allowedRoots(), c.cfg.Now(), nil); err != nil {
		t.Errorf("after: %v", err)
	}
}
