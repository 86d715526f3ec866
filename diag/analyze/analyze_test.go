package analyze

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/diag"
	"postern/internal/authority"
)

func dates(from, to time.Duration) authority.Edit {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(to) }
}

const day = 24 * time.Hour

// TestCertificatesAndVersions goes through every way in which TLS fails, each with the flag
// that a Windows client logs (S4).
func TestCertificatesAndVersions(t *testing.T) {
	w := newWorld(t)
	named := []string{host}
	alone := must[*authority.Authority](t)(authority.NewRoot(host, time.Now(), func(c *x509.Certificate) {
		c.DNSNames, c.ExtKeyUsage = named, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}))
	for _, test := range []struct {
		name        string
		shown       tls.Certificate
		from, to    uint16
		tls         string // wanted
		certificate string
		versions    string
		says        string
	}{
		{"good", w.server(named).TLS(), 0, 0, "pass", "pass", "pass", "trusted by the authorities that were given"},
		{"expired", w.server(named, dates(-90*day, -day)).TLS(), 0, 0, "pass", "fail P975", "pass", "0x20: WINHTTP_CALLBACK_STATUS_FLAG_CERT_DATE_INVALID"},
		{"not valid yet", w.server(named, dates(day, 90*day)).TLS(), 0, 0, "pass", "fail P975", "pass", "0x20"},
		{"ends soon", w.server(named, dates(-300*day, 10*day)).TLS(), 0, 0, "pass", "pass, warn P095", "pass", "in 9 days"},
		{"wrong name", w.server([]string{"other.contoso.example"}).TLS(), 0, 0, "pass", "fail P974", "pass", "0x10: WINHTTP_CALLBACK_STATUS_FLAG_CERT_CN_INVALID"},
		{"wrong usage", w.server(named, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }).TLS(), 0, 0, "pass", "fail P976", "pass", "0x40: WINHTTP_CALLBACK_STATUS_FLAG_CERT_WRONG_USAGE"},
		{"self-signed", tls.Certificate{Certificate: [][]byte{alone.Certificate.Raw}, PrivateKey: alone.Key}, 0, 0, "pass", "fail P973", "pass", "0x8: WINHTTP_CALLBACK_STATUS_FLAG_INVALID_CA"},
		{"missing intermediate", tls.Certificate{Certificate: w.server(named).TLS().Certificate[:1], PrivateKey: nil}, 0, 0, "pass", "fail P972", "pass", "0x8"},
		{"TLS 1.0 only", w.server(named).TLS(), tls.VersionTLS10, tls.VersionTLS10, "fail P988", "pass", "fail P988", "offered: TLS 1.0; not offered: TLS 1.1, TLS 1.2, TLS 1.3"},
		{"every version", w.server(named).TLS(), tls.VersionTLS10, tls.VersionTLS13, "pass", "pass", "warn P091", "offered: TLS 1.0, TLS 1.1, TLS 1.2, TLS 1.3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name == "missing intermediate" {
				whole := w.server(named).TLS()
				test.shown = tls.Certificate{Certificate: whole.Certificate[:1], PrivateKey: whole.PrivateKey}
			}
			s := w.standIn(&tls.Config{Certificates: []tls.Certificate{test.shown}, MinVersion: test.from, MaxVersion: test.to}, microsoft())
			got := w.run(w.options(s))
			got.is(t, "TLS", test.tls)
			got.is(t, "certificate", test.certificate)
			got.is(t, "versions", test.versions)
			if !strings.Contains(got.String(), test.says) {
				t.Errorf("nothing says %q:\n%s", test.says, got)
			}
			if wantFail := strings.Contains(test.tls+test.certificate+test.versions, "fail"); diag.Failed(got) != wantFail {
				t.Errorf("failed %v, want %v:\n%s", diag.Failed(got), wantFail, got)
			}
		})
	}
}

// TestRevocation: a list that says so, a list that is away, none.
func TestRevocation(t *testing.T) {
	w := newWorld(t)
	good, withdrawn, none := w.server([]string{host}), w.server([]string{host}), must[*authority.Certificate](t)(w.between.Server([]string{host}))
	w.between.Revoke(withdrawn.Certificate, time.Now().Add(-48*time.Hour), 1)
	w.lists.Put("/between.crl", must[[]byte](t)(w.between.List(time.Now().Add(-time.Hour))))
	for _, test := range []struct {
		name, want string
		shown      *authority.Certificate
		mode       authority.Mode
		says       []string
	}{
		{"good", "pass", good, authority.Healthy, []string{"/between.crl"}},
		{"revoked", "fail P979", withdrawn, authority.Healthy, []string{"0x4: WINHTTP_CALLBACK_STATUS_FLAG_CERT_REVOKED"}},
		{"the list is away", "fail P981", good, authority.Failing, []string{"0x1: WINHTTP_CALLBACK_STATUS_FLAG_CERT_REV_FAILED"}},
		{"no list is named", "fail P980", none, authority.Healthy, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.lists.Switch(test.mode)
			defer w.lists.Switch(authority.Healthy)
			s := w.standIn(&tls.Config{Certificates: []tls.Certificate{test.shown.TLS()}}, microsoft())
			w.run(w.options(s)).is(t, "revocation", test.want, test.says...)
		})
	}
}

// TestNames: what resolvers say, the chain of aliases, split DNS, a loop, a server that fails.
func TestNames(t *testing.T) {
	w := newWorld(t)
	s := w.standIn(&tls.Config{Certificates: []tls.Certificate{w.server([]string{host}).TLS()}}, microsoft())
	chain := zone{"CNAME " + host + ".": {"gw.westeurope.cloudapp.example."}, "A gw.westeurope.cloudapp.example.": {"127.0.0.1"}}.serve(t)
	elsewhere := zone{"A " + host + ".": {"203.0.113.7"}}.serve(t)
	nothing, failing := zone{}.serve(t), zone{"SERVFAIL": nil}.serve(t)
	loop := zone{"CNAME " + host + ".": {"a.contoso.example."}, "CNAME a.contoso.example.": {host + "."}}.serve(t)
	for _, test := range []struct {
		name, here string
		others     []string
		want       string
		says       []string
	}{
		{"nobody else is asked", w.dns, nil, "pass, skipped", []string{"--resolver"}},
		{"aliases, and the other agrees", chain, []string{w.dns}, "pass, pass", []string{host + " -> gw.westeurope.cloudapp.example -> 127.0.0.1"}},
		{"split DNS: known outside only", nothing, []string{chain}, "fail E143, pass", []string{"split DNS", "gw.westeurope.cloudapp.example"}},
		{"known nowhere", nothing, []string{nothing}, "fail P557, fail P557", []string{"no such name"}},
		{"two answers", w.dns, []string{elsewhere}, "pass, warn P090", []string{"203.0.113.7"}},
		{"not known outside", w.dns, []string{nothing}, "pass, warn P090", []string{"no address"}},
		{"a resolver that fails", w.dns, []string{failing}, "pass, skipped", []string{"SERVFAIL"}},
		{"aliases in a circle", w.dns, []string{loop}, "pass, warn P090", []string{"no address"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := w.options(s, func(o *Options) {
				o.Resolver, o.Nameserver, o.Resolvers, o.Timeout = resolver(test.here), test.here, test.others, time.Second
			})
			got := findings(diag.Run(t.Context(), New(o)[:1], nil))
			got.is(t, "name", test.want, test.says...)
		})
	}
}

func TestAddressesThatAreNone(t *testing.T) {
	for _, address := range []string{"", "http://gw.contoso.example", "https://", "https://user:secret@gw.contoso.example", "https://gw/other/path", "https://gw/CCM_Proxy_MutualAuth/x", "https://gw/CCM_Proxy_MutualAuth/1/SMS_MP"} {
		got := findings(diag.Run(t.Context(), New(Options{Gateway: address}), nil))
		got.is(t, "name", "fail P760")
		if len(got.of("request")) != 1 {
			t.Errorf("%q: the checks end early", address)
		}
	}
	r := newRun(Options{Gateway: "gw.contoso.example/CCM_Proxy_MutualAuth/72057594037937995"})
	if r.broken != nil || r.host != host || r.port != "443" || r.RoleID != 72057594037937995 {
		t.Errorf("what stands in CCMHOSTNAME was read as %q %q %d, %v", r.host, r.port, r.RoleID, r.broken)
	}
}

// TestWhatIsNoGateway: servers that speak no TLS, say nothing, or are another web site.
func TestWhatIsNoGateway(t *testing.T) {
	w := newWorld(t)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	silent := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	t.Cleanup(func() { silent.Close() })
	closed := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	closed.Close()
	address := func(a net.Addr) func(*Options) {
		_, port, _ := net.SplitHostPort(a.String())
		return func(o *Options) { o.Gateway, o.Timeout = "https://"+host+":"+port, 300*time.Millisecond }
	}
	web := w.standIn(&tls.Config{Certificates: []tls.Certificate{w.server([]string{host}).TLS()}}, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		fmt.Fprint(rw, "<html>\x1b[31m Welcome</html>")
	}))
	got := w.run(w.options(web))
	got.is(t, "service", "fail P092", "<html>?[31m Welcome", "text/html")
	got.is(t, "MPLIST", "skipped")
	w.run(w.options(web, address(plain.Listener.Addr()))).is(t, "TLS", "fail P988")
	w.run(w.options(web, address(silent.Addr()))).is(t, "TLS", "fail P559")
	w.run(w.options(web, address(closed.Addr()))).is(t, "connection", "fail P558", "refused")
}

// TestMicrosoftGateway: against a stand-in with Microsoft's paths, statuses and phrases.
func TestMicrosoftGateway(t *testing.T) {
	w := newWorld(t)
	s := w.standIn(&tls.Config{Certificates: []tls.Certificate{w.server([]string{host}).TLS()}, ClientAuth: tls.RequestClientCert}, microsoft())
	device := must[*authority.Certificate](t)(w.between.Client("wk01.contoso.example"))
	pair := device.TLS()
	raw := bulk(time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	got := w.run(w.options(s, func(o *Options) {
		o.Gateway += "/CCM_Proxy_MutualAuth/72057594037937995"
		o.TenantID, o.Token, o.Certificate, o.ClientRoots = "7b0c3806-d28c-4a45-adb2-fb9f94a462f8", raw, &pair, []*x509.Certificate{w.root.Certificate}
	}))
	got.is(t, "service", "pass", "Microsoft", "401 CMGService_Invalid_Token")
	got.is(t, "clock", "pass")
	got.is(t, "tenant", "pass")
	got.is(t, "token", "pass, skipped", "a bulk registration token", "gateways of ours only")
	got.is(t, "client cert", "pass")
	got.is(t, "MPLIST", "pass", "mp1.corp.contoso.example")
	got.is(t, "request", "skipped", "only our roles")
	for _, r := range s.requests() {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("%s carried Authorization", r.URL)
		}
	}
	other := w.run(w.options(s, func(o *Options) { o.TenantID = "11111111-2222-3333-4444-555555555555" }))
	other.is(t, "tenant", "fail E065")
	other.is(t, "MPLIST", "skipped", "--state")
	alone := w.run(w.options(s, func(o *Options) { o.Certificate = &pair }))
	alone.is(t, "MPLIST", "skipped", "--role")
}

// TestFourFilters: the filters of the connection point in its order (S4, E019 to E022).
func TestFourFilters(t *testing.T) {
	w := newWorld(t)
	foreign := must[*authority.Authority](t)(authority.NewRoot("Fabrikam Root", time.Now()))
	client := func(edits ...authority.Edit) tls.Certificate {
		return must[*authority.Certificate](t)(w.between.Client("wk01.contoso.example", edits...)).TLS()
	}
	withoutKey := client()
	withoutKey.PrivateKey = nil
	for _, test := range []struct {
		name, want, says string
		pair             tls.Certificate
	}{
		{"good", "pass", "digital signature, allowed root CA, private key, client auth", client()},
		{"no digital signature", "fail P976", "filter 1 of 4", client(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })},
		{"another root", "fail E021", "filter 2 of 4", must[*authority.Certificate](t)(foreign.Client("wk01.contoso.example")).TLS()},
		{"no private key", "fail E022", "filter 3 of 4", withoutKey},
		{"not for clients", "fail E020", "filter 4 of 4", client(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })},
		{"expired", "fail E029", "passes the filters", client(dates(-90*day, -day))},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRun(Options{Certificate: &test.pair, ClientRoots: []*x509.Certificate{w.root.Certificate}})
			got := findings(diag.Run(t.Context(), []diag.Check{{Name: "client cert", Run: r.checkClientCertificate}}, nil))
			got.is(t, "client cert", test.want, test.says)
		})
	}
	// Without given authorities, those count that the gateway names.
	pool := x509.NewCertPool()
	pool.AddCert(foreign.Certificate)
	s := w.standIn(&tls.Config{Certificates: []tls.Certificate{w.server([]string{host}).TLS()}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}, microsoft())
	pair := client()
	w.run(w.options(s, func(o *Options) { o.Certificate = &pair })).is(t, "client cert", "fail E021", "names its authorities")
	// A gateway that names none: the second filter is not told, and not said to have passed.
	s = w.standIn(&tls.Config{Certificates: []tls.Certificate{w.server([]string{host}).TLS()}, ClientAuth: tls.RequestClientCert}, postern(true))
	got := w.run(w.options(s, func(o *Options) { o.Certificate, o.RoleID = &pair, 1 }))
	got.is(t, "client cert", "skipped, pass", "it passes: digital signature, private key, client auth")
	// It refuses the certificate: the request that did not go through is not called one that did.
	got.is(t, "MPLIST", "fail E033")
	got.is(t, "request", "skipped, skipped", "did not come back good")
}

// bulk is an unsigned token of the form of S3, with a signature that a test can look for.
func bulk(from, to time.Time) string {
	part := func(v any) string {
		content, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(content)
	}
	return part(map[string]string{"typ": "JWT", "alg": "RS256", "x5t": "MWRWRmKUBVc6RCHjBN42fxoeGD0"}) + "." + part(map[string]any{
		"SCCMTokenCategory": "SCCMPreAuthToken", "Type": "BulkRegistration", "TenantId": "7B0C3806-D28C-4A45-ADB2-FB9F94A462F8", "UniqueId": "ea2fc510-a3be-4cef-90b0-2a0515c4e40c",
		"iss": "urn:sccm:oauth2:7b0c3806-d28c-4a45-adb2-fb9f94a462f8", "aud": "urn:sccm:service", "exp": to.Unix(), "nbf": from.Unix(), "canary": "claims-that-nobody-knows",
	}) + "." + base64.RawURLEncoding.EncodeToString([]byte("signature-canary-signature-canary"))
}

// TestTokens: what is said of a token, and that no part of it is in any form of the answer.
func TestTokens(t *testing.T) {
	w := newWorld(t)
	s := w.standIn(&tls.Config{Certificates: []tls.Certificate{w.server([]string{host}).TLS()}}, postern(true))
	now := time.Now()
	for _, test := range []struct {
		name, raw, want string
		says            []string
	}{
		{"good", bulk(now.Add(-time.Hour), now.Add(72*time.Hour)), "pass, pass", []string{"id: ea2fc510-a3be-4cef-90b0-2a0515c4e40c", "whoever holds it can use it", "takes the token"}},
		{"expired", bulk(now.Add(-96*time.Hour), now.Add(-72*time.Hour)), "fail P210", []string{"it ended 3 days ago"}},
		{"not yet", bulk(now.Add(time.Hour), now.Add(72*time.Hour)), "fail P211", []string{"it begins in 1h0m"}},
		{"no end", bulk(now, time.Unix(0, 0)), "fail P212", nil},
		{"cut", bulk(now, now.Add(time.Hour))[:120], "fail P201", []string{"Was it cut"}},
		{"no base64", "a b.c*d.e", "fail P201", []string{"base64url"}},
		{"no JSON", "YWJj.YWJj.YWJj", "fail P201", []string{"not JSON"}},
		{"too large", strings.Repeat("a", maxToken+1), "fail P202", nil},
		{"a date beyond all dates", strings.Replace(bulk(now, now), bulk(now, now)[strings.Index(bulk(now, now), ".")+1:strings.LastIndex(bulk(now, now), ".")], base64.RawURLEncoding.EncodeToString([]byte(`{"exp":1e300}`)), 1), "pass, pass", []string{"9999-12-31"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := w.run(w.options(s, func(o *Options) { o.Token = test.raw }))
			got.is(t, "token", test.want, test.says...)
			encoded, err := json.Marshal([]diag.Finding(got))
			if err != nil {
				t.Fatal(err)
			}
			text := got.String() + string(encoded)
			parts := append(strings.Split(test.raw, "."), "signature-canary", "claims-that-nobody-knows", test.raw)
			for _, part := range parts {
				if len(part) > 8 && strings.Contains(text, part) {
					t.Errorf("the answer holds a part of the token: %.20s...", part)
				}
			}
		})
	}
}

// TestNoTokenLeavesForAServerThatIsNotRecognised: whoever shows a certificate that is not
// found good, or another one on the second connection, gets nothing secret.
func TestNoTokenLeavesForAServerThatIsNotRecognised(t *testing.T) {
	w := newWorld(t)
	raw := bulk(time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	pair := must[*authority.Certificate](t)(w.between.Client("wk01.contoso.example")).TLS()
	foreign := must[*authority.Authority](t)(authority.NewRoot("Foreign Root", time.Now()))
	good, bad := w.server([]string{host}).TLS(), must[*authority.Certificate](t)(foreign.Server([]string{host})).TLS()
	for _, test := range []struct {
		name  string
		shown func(connection int) *tls.Certificate
	}{
		{"a foreign certificate", func(int) *tls.Certificate { return &bad }},
		{"a foreign one after the first connection", func(n int) *tls.Certificate {
			if n == 1 {
				return &good
			}
			return &bad
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var connections atomic.Int32
			s := w.standIn(&tls.Config{ClientAuth: tls.RequestClientCert, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return test.shown(int(connections.Add(1))), nil
			}}, postern(true))
			got := w.run(w.options(s, func(o *Options) { o.Token, o.Certificate, o.RoleID = raw, &pair, 72057594037937995 }))
			for _, r := range s.requests() {
				if r.Header.Get("Authorization") != "" || r.Header.Get("Dpop") != "" || len(r.TLS.PeerCertificates) > 0 {
					t.Errorf("%s carried a credential:\n%s", r.URL, got)
				}
			}
			if len(s.requests()) == 0 {
				t.Error("nothing was asked at all")
			}
		})
	}
}

// TestClocksAndHealth: the Date of the answers, and what ServiceMetadata says.
func TestClocksAndHealth(t *testing.T) {
	w := newWorld(t)
	shown := w.server([]string{host}).TLS()
	s := w.standIn(&tls.Config{Certificates: []tls.Certificate{shown}}, postern(false))
	w.run(w.options(s)).is(t, "service", "fail P093", "200 OK")
	for _, test := range []struct {
		ahead time.Duration
		want  string
		says  string
	}{{0, "pass", "no difference"}, {90 * time.Second, "warn P582", "ahead"}, {-10 * time.Minute, "fail P582", "behind"}} {
		got := w.run(w.options(s, func(o *Options) { o.Now = func() time.Time { return time.Now().Add(test.ahead) } }))
		got.is(t, "clock", test.want, test.says)
	}
}

// FuzzToken: whatever stands in the file, reading it ends, and errors quote nothing of it.
func FuzzToken(f *testing.F) {
	f.Add(bulk(time.Unix(1589442318, 0), time.Unix(1589701518, 0)))
	f.Add("a.b.c")
	f.Add("..")
	f.Fuzz(func(t *testing.T, raw string) {
		s, err := decode(raw)
		if err != nil && len(raw) > 40 && strings.Contains(err.Error(), raw) {
			t.Errorf("the error quotes the token: %v", err)
		}
		if text := s.lines(); strings.ContainsAny(text, "\x1b\x00\r") {
			t.Errorf("control characters in %q", text)
		}
	})
}
