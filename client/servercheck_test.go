package client

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/internal/authority"
	"postern/revocation"
)

// corporation is a company's authority with an issuing one below it, whose lists a web
// server publishes where the certificates say.
type corporation struct {
	t         *testing.T
	root      *authority.Authority
	issuing   *authority.Authority
	publisher *authority.Publisher
}

func newCorporation(t *testing.T) *corporation {
	t.Helper()
	c := &corporation{t: t}
	var err error
	if c.publisher, err = authority.NewPublisher(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.publisher.Close)
	if c.root, err = authority.NewRoot("Corp Root", begin()); err != nil {
		t.Fatal(err)
	}
	if c.issuing, err = c.root.Intermediate("Corp Issuing", c.listAt("/root.crl")); err != nil {
		t.Fatal(err)
	}
	c.publish()
	return c
}

func (c *corporation) listAt(path string) authority.Edit {
	return func(certificate *x509.Certificate) {
		certificate.CRLDistributionPoints = []string{c.publisher.URL(path)}
	}
}

func (c *corporation) publish() {
	c.t.Helper()
	for path, from := range map[string]*authority.Authority{"/root.crl": c.root, "/issuing.crl": c.issuing} {
		c.put(path, from, begin().Add(-time.Hour))
	}
}

func (c *corporation) put(path string, from *authority.Authority, at time.Time) {
	c.t.Helper()
	der, err := from.List(at)
	if err != nil {
		c.t.Fatal(err)
	}
	c.publisher.Put(path, der)
}

func (c *corporation) server(names []string, edits ...authority.Edit) *authority.Certificate {
	c.t.Helper()
	issued, err := c.issuing.Server(names, append([]authority.Edit{c.listAt("/issuing.crl")}, edits...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	return issued
}

// behind is a site whose gateway shows a certificate of the company, and the line for it.
func (c *corporation) behind(shown *authority.Certificate) (*testSite, Setup) {
	c.t.Helper()
	site := newTestSite(c.t)
	site.lists = &http.Client{Transport: &http.Transport{}} // may go to this host
	site.do(func() { site.shown = shown.TLS() })
	setup := site.setup()
	setup.RootKey, setup.CAFile = "", writePEM(c.t, c.root.Certificate.Raw)
	return site, setup
}

func TestAGatewayWithACertificateOfTheCompanyIsCheckedForRevocation(t *testing.T) {
	corp := newCorporation(t)
	site, setup := corp.behind(corp.server([]string{gatewayHost}))
	agent := site.newAgent()
	agent.enrol(t, setup)
	if asked, _ := corp.publisher.Requests("/issuing.crl"); asked != 1 {
		t.Errorf("asked %d times for the list, want once", asked)
	}
	if asked, _ := corp.publisher.Requests("/root.crl"); asked != 1 {
		t.Errorf("asked %d times for the root's list, want once", asked)
	}
	if got := agent.Status().Revocation; !strings.Contains(got, "refused") {
		t.Errorf("status says %q", got)
	}
	text := readLog(t, agent, "ccmsetup.log")
	if !strings.Contains(text, "[Created connection on port 443]") || !strings.Contains(text, "[Enabled SSL revocation check.]") {
		t.Errorf("ccmsetup.log:\n%s", text)
	}
	rooted := newTestSite(t)
	other := rooted.newAgent()
	other.enrol(t, rooted.setup())
	if got := other.Status().Revocation; !strings.HasPrefix(got, "no lists: ") || strings.Contains(readLog(t, other, "ccmsetup.log"), "revocation check") {
		t.Errorf("under the site root: status says %q", got)
	}
}

// S2, "Microsoft Entra info request from ccmsetup": the four lines, one after the other.
func TestTheGatewayIsAskedForTheTenantWithTheLinesOfTheDocuments(t *testing.T) {
	corp := newCorporation(t)
	site := newTenantSite(t)
	site.lists = &http.Client{Transport: &http.Transport{}}
	site.do(func() { site.shown = corp.server([]string{gatewayHost}).TLS() })
	setup := site.byTenant()
	setup.RootKey, setup.CAFile = "", writePEM(t, corp.root.Certificate.Raw)
	agent := site.newAgent()
	agent.enrol(t, setup)
	want := []string{
		"Getting AAD info from CMG 'gateway.test'",
		"SMS CCM 5.0: Host=gateway.test, Path=/CCM_Proxy_ServerAuth/AADAuthInfo?TenantID=" + site.provider.Tenant().ID + ", Port=443, Protocol=https, CcmTokenAuth=0, Flags=0x1304, Options=0xe0",
		"Created connection on port 443",
		"Enabled SSL revocation check.",
	}
	if got := records(readLog(t, agent, "ccmsetup.log")); indexOf(got, want) < 0 {
		t.Errorf("got\n%s\nwant in it\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Each failure has the number, flags and text of S4, and a sentence.
func TestServersOfTheCompanyThatAreRefused(t *testing.T) {
	corp := newCorporation(t)
	foreign, err := authority.NewRoot("Foreign Root", begin())
	if err != nil {
		t.Fatal(err)
	}
	corp.put("/expired.crl", corp.issuing, begin().AddDate(0, 0, -8))
	corp.put("/foreign.crl", foreign, begin().Add(-time.Hour))
	revoked := corp.server([]string{gatewayHost})
	corp.issuing.Revoke(revoked.Certificate, begin().Add(-time.Hour), 1)
	corp.publish()
	foreignServer, err := foreign.Server([]string{gatewayHost})
	if err != nil {
		t.Fatal(err)
	}
	incomplete := corp.server([]string{gatewayHost})
	incomplete.Above = nil

	const revFailed, isRevoked, invalidCA, name, date, usage = "CERT_REV_FAILED", "CERT_REVOKED", "INVALID_CA", "CERT_CN_INVALID", "CERT_DATE_INVALID", "CERT_WRONG_USAGE"
	tests := []struct {
		name    string
		server  *authority.Certificate
		status  string // lpvStatusInformation
		flags   []string
		code    catalog.Code
		without bool // /nocrlcheck helps
	}{
		{"expired list", corp.server([]string{gatewayHost}, corp.listAt("/expired.crl")), "0x1", []string{revFailed}, catalog.RevocationListDate, true},
		{"list of another issuer", corp.server([]string{gatewayHost}, corp.listAt("/foreign.crl")), "0x1", []string{revFailed}, catalog.RevocationListForeign, true},
		{"list that is not there", corp.server([]string{gatewayHost}, corp.listAt("/none.crl")), "0x1", []string{revFailed}, catalog.RevocationUnreachable, true},
		{"no list is named", corp.server([]string{gatewayHost}, func(c *x509.Certificate) { c.CRLDistributionPoints = nil }), "0x1", []string{revFailed}, catalog.RevocationSourceMissing, true},
		{"revoked", revoked, "0x4", []string{isRevoked}, catalog.CertificateRevoked, true},
		{"another name", corp.server([]string{"other.test"}), "0x10", []string{name}, catalog.ClientServerHost, false},
		{"a wildcard of another level", corp.server([]string{"*.gateway.test"}), "0x10", []string{name}, catalog.ClientServerHost, false},
		{"the name as common name only", corp.server([]string{gatewayHost}, func(c *x509.Certificate) { c.DNSNames = nil }), "0x10", []string{name}, catalog.ClientServerHost, false},
		{"expired", corp.server([]string{gatewayHost}, func(c *x509.Certificate) { c.NotAfter = begin().Add(-time.Hour) }), "0x20", []string{date}, catalog.ClientServerExpired, false},
		{"for clients", corp.server([]string{gatewayHost}, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), "0x40", []string{usage}, catalog.ClientServerRole, false},
		{"intermediate missing", incomplete, "0x9", []string{revFailed, invalidCA}, catalog.ClientServerUntrusted, false},
		{"unknown root", foreignServer, "0x9", []string{revFailed, invalidCA}, catalog.ClientServerUntrusted, false},
		{"unknown root and another name", must(foreign.Server([]string{"other.test"})), "0x19", []string{revFailed, invalidCA, name}, catalog.ClientServerUntrusted, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			site, setup := corp.behind(test.server)
			agent := site.newAgent()
			err := agent.Enrol(t.Context(), setup)
			if catalog.CodeOf(err) != test.code {
				t.Errorf("got %v, want %s", err, test.code)
			}
			if got := site.count("ccm_sts"); got != 0 {
				t.Errorf("%d requests came through", got)
			}
			entry, _ := catalog.Lookup(test.code)
			for file, options := range map[string]string{"LocationServices.log": "63", "ccmsetup.log": "224"} {
				lines := []string{
					"[CCMHTTP] AsyncCallback():", "[CCMHTTP] AsyncCallback(): WINHTTP_CALLBACK_STATUS_SECURE_FAILURE Encountered",
					"[CCMHTTP] : dwStatusInformationLength is 4", "[CCMHTTP] : lpvStatusInformation is " + test.status,
				}
				for _, flag := range test.flags {
					lines = append(lines, "[CCMHTTP] : WINHTTP_CALLBACK_STATUS_FLAG_"+flag+" is set")
				}
				lines = append(lines, "[CCMHTTP] ERROR: URL=https://gateway.test/CCM_Proxy_ServerAuth/72057594037937981/CCM_STS, Port=443, Options="+options+", Code=12175, Text=ERROR_WINHTTP_SECURE_FAILURE")
				text := records(readLog(t, agent, file))
				if at := indexOf(text, lines); at < 0 {
					t.Errorf("%s lacks\n%s\nin\n%s", file, strings.Join(lines, "\n"), strings.Join(text, "\n"))
				} else if after := text[at+len(lines)]; !strings.HasPrefix(after, string(test.code)+" "+entry.Title+": ") {
					t.Errorf("%s has no sentence for a person: %q", file, after)
				}
			}
			setup.NoCRLCheck = true
			err = agent.Enrol(t.Context(), setup)
			if test.without && err != nil || !test.without && catalog.CodeOf(err) != test.code {
				t.Errorf("with /nocrlcheck: got %v", err)
			}
			if text := readLog(t, agent, "LocationServices.log"); !test.without && test.status == "0x9" && !strings.Contains(text, "lpvStatusInformation is 0x8") {
				t.Error("with /nocrlcheck the flag is 0x8")
			}
		})
	}
}

func must(c *authority.Certificate, err error) *authority.Certificate {
	if err != nil {
		panic(err)
	}
	return c
}

// records are the messages of a log.
func records(text string) (list []string) {
	for line := range strings.Lines(text) {
		message, _, found := strings.Cut(strings.TrimPrefix(line, "<![LOG["), "]LOG]!>")
		if found {
			list = append(list, message)
		}
	}
	return list
}

// indexOf is where lines stand one after the other, with one more behind them.
func indexOf(text, lines []string) int {
	for at := range len(text) - len(lines) {
		if slices.Equal(text[at:at+len(lines)], lines) {
			return at
		}
	}
	return -1
}

// E056: the switch covers the set-up; later traffic is checked.
func TestNoCRLCheckCoversTheSetupOnly(t *testing.T) {
	corp := newCorporation(t)
	site, setup := corp.behind(corp.server([]string{gatewayHost}))
	corp.publisher.Switch(authority.Down)
	setup.NoCRLCheck = true
	agent := site.newAgent()
	agent.enrol(t, setup)
	if strings.Contains(readLog(t, agent, "ccmsetup.log"), "Enabled SSL revocation check.") {
		t.Error("ccmsetup.log says that revocation was checked")
	}
	send := func() error {
		_, err := agent.Send(t.Context(), "MP_Echo", "<A/>")
		return err
	}
	if err := send(); catalog.CodeOf(err) != catalog.RevocationUnreachable || !Transient(err) {
		t.Errorf("afterwards: got %v", err)
	}
	corp.publisher.Switch(authority.Healthy)
	site.clock.add(2 * time.Minute)
	if err := send(); err != nil {
		t.Errorf("the list is there: %v", err)
	}
	agent.Close()
	corp.publisher.Switch(authority.Down)
	setup.NoCRLCheck, setup.CRLCheck = false, revocation.PolicyPrefer
	agent.enrol(t, setup)
	if err := send(); err != nil {
		t.Errorf("a list that is away is let pass by --crl-check prefer: %v", err)
	}
	if text := readLog(t, agent, "ccmsetup.log"); !strings.Contains(text, "issuing.crl") {
		t.Errorf("ccmsetup.log has no warning:\n%s", text)
	}
}

func TestAListMayBeNamed(t *testing.T) {
	corp := newCorporation(t)
	site, setup := corp.behind(corp.server([]string{gatewayHost}, func(c *x509.Certificate) { c.CRLDistributionPoints = nil }))
	setup.CRLSources = []string{corp.publisher.URL("/issuing.crl")}
	site.newAgent().enrol(t, setup)
	setup.CRLSources = []string{"ftp://x"}
	if err := site.newAgent().Enrol(t.Context(), setup); catalog.CodeOf(err) != catalog.RevocationConfig {
		t.Errorf("got %v", err)
	}
	setup.CRLCheck = "sometimes"
	if err := site.newAgent().Enrol(t.Context(), setup); catalog.CodeOf(err) != catalog.ClientCommandValue {
		t.Errorf("got %v", err)
	}
}

// E047.
func TestHandshakesThatFailForAnotherReason(t *testing.T) {
	tests := []struct {
		name   string
		server func(*tls.Config)
		code   catalog.Code
		lines  []string
	}{
		{"old TLS", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS11; c.MinVersion = tls.VersionTLS10 }, catalog.ClientTLSFailed,
			[]string{"lpvStatusInformation is 0x80000000", "WINHTTP_CALLBACK_STATUS_FLAG_SECURITY_CHANNEL_ERROR is set", "Code=12175, Text=ERROR_WINHTTP_SECURE_FAILURE"}},
		{"a client certificate is wanted, by an older TLS that does not say so", func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert; c.MaxVersion = tls.VersionTLS12 }, catalog.ClientTLSFailed,
			[]string{"lpvStatusInformation is 0x80000000", "or wants a client certificate"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			site := newTestSite(t)
			usual := site.server.TLS.GetConfigForClient
			site.server.TLS.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				config, err := usual(hello)
				test.server(config)
				return config, err
			}
			agent := site.newAgent()
			err := agent.Enrol(t.Context(), site.setup())
			if catalog.CodeOf(err) != test.code {
				t.Errorf("got %v, want %s", err, test.code)
			}
			text := readLog(t, agent, "ccmsetup.log")
			for _, line := range test.lines {
				if !strings.Contains(text, line) {
					t.Errorf("ccmsetup.log lacks %q:\n%s", line, text)
				}
			}
		})
	}
}

// E052. The alert of TLS 1.3 comes after the client has begun to send, and is lost now and
// then: it is judged by itself.
func TestAServerThatWantsAClientCertificateIsToldFromOthers(t *testing.T) {
	for text, want := range map[string]struct {
		code catalog.Code
		log  winHTTP
	}{
		"tls: certificate required":          {catalog.ClientCertificateWanted, winHTTP{12044, "ERROR_WINHTTP_CLIENT_AUTH_CERT_NEEDED", 0}},
		"tls: unknown certificate authority": {catalog.ClientCertificateWanted, winHTTP{12044, "ERROR_WINHTTP_CLIENT_AUTH_CERT_NEEDED", 0}},
		"tls: internal error":                {catalog.ClientTLSFailed, winHTTP{12175, "ERROR_WINHTTP_SECURE_FAILURE", revocation.FlagChannel}},
	} {
		err := connectionError(&url.Error{Op: "Get", Err: &net.OpError{Op: "remote error", Err: errors.New(text)}}, begin())
		got, ok := explained(err)
		if catalog.CodeOf(err) != want.code || !ok || got != want.log {
			t.Errorf("%s: got %v, %+v, want %+v", text, err, got, want)
		}
	}
}

func TestAnEmptyAnswerIsJudgedByItsSignature(t *testing.T) {
	for name, test := range map[string]struct {
		site func(*testSite)
		code catalog.Code
	}{
		"signed":     {func(*testSite) {}, catalog.ReplyEmpty},
		"not signed": {func(s *testSite) { s.unsigned = true }, catalog.ClientReplyUnsigned},
		"forged":     {func(s *testSite) { s.forge = true }, catalog.ReplyOther},
	} {
		t.Run(name, func(t *testing.T) {
			site := newTestSite(t)
			agent := site.newAgent()
			agent.enrol(t, site.setup())
			site.do(func() { test.site(site) })
			_, err := agent.Send(t.Context(), "MP_PolicyManager", "<A/>") // is refused
			if got := catalog.CodeOf(err); got != test.code {
				t.Errorf("got %v, want %s", err, test.code)
			}
		})
	}
}

// writeChain writes certificates into one PEM file.
func writeChain(t *testing.T, certificates ...*x509.Certificate) string {
	t.Helper()
	var content []byte
	for _, certificate := range certificates {
		content = append(content, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})...)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAnAuthorityBelowTheRootMayBeTheAnchor(t *testing.T) {
	corp := newCorporation(t)
	shown := corp.server([]string{gatewayHost})
	shown.Above = nil
	site, setup := corp.behind(shown)
	setup.CAFile = writeChain(t, corp.issuing.Certificate, corp.root.Certificate)
	agent := site.newAgent()
	if err := agent.Enrol(t.Context(), setup); err != nil {
		t.Error(err)
	}
}
