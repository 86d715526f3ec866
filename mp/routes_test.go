package mp

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
)

// credential is one way to present oneself.
type credential struct {
	name    string
	client  *http.Client
	headers func(method, address string) []string
}

// credentials makes every credential that a caller could try. The device is registered.
func credentials(f *fixture) []credential {
	d, stranger := f.device(0), f.device(1)
	bulk, _ := f.bulk(0)
	register := f.tokenFrom(f.exchange(d, bulk, url.Values{})).AccessToken
	f.register(d)
	client := f.tokenFrom(f.exchange(d, bulk, url.Values{})).AccessToken
	selfProve := f.tokenFrom(f.exchange(d, bulk, f.asking(d, "self-prove"))).AccessToken
	plain, connector, c := f.client, f.connector("C1"), f.company
	token := func(raw string, by *device) func(method, address string) []string {
		return func(method, address string) []string {
			return f.withToken(by.key, method, "https"+strings.TrimPrefix(strings.TrimPrefix(address, "https"), "http"), raw)
		}
	}
	fixed := func(headers ...string) func(string, string) []string {
		return func(string, string) []string { return headers }
	}
	none := fixed()
	return []credential{
		{"none", plain, none},
		{"bulk", plain, token(bulk, stranger)},
		{"ccm", plain, token(client, d)},
		{"ccm-register", plain, token(register, d)},
		{"self-prove", plain, token(selfProve, d)},
		{"ccm by another key", plain, token(client, stranger)},
		{"self-prove by another key", plain, token(selfProve, stranger)},
		{"token without proof", plain, fixed("Authorization", "DPoP "+client)},
		{"token as bearer", plain, fixed("Authorization", "Bearer "+client)},
		{"proof without token", plain, fixed("DPoP", "x.y.z")},
		{"garbage", plain, token("not.a.token", d)},
		{"basic", plain, fixed("Authorization", "Basic dTpw")},
		{"negotiate", plain, fixed("Authorization", "Negotiate YIIB")},
		{"ntlm", plain, fixed("Authorization", "Negotiate TlRMTVNTUAABAAAAAAAAAAAAAAA=")},
		{"connector", connector, none},
		{"foreign certificate", f.selfSignedClient(), none},
		{"company certificate", f.clientWith(c.device.TLS()), none},
		{"revoked certificate", f.clientWith(c.revoked.TLS()), none},
		{"company certificate and token", f.clientWith(c.device.TLS()), token(client, d)},
		{"company certificate and a gateway's headers", f.clientWith(c.device.TLS()), fixed(ccm.HeaderClientCertificate, certificateHeader(c.device))},
		{"certificate in the header of a stranger", plain, fixed(ccm.HeaderClientCertificate, certificateHeader(c.device))},
		{"relayed certificate", connector, fixed(ccm.HeaderClientCertificate, certificateHeader(c.device))},
		{"relayed certificate and proof", connector, c.relayed(f, c.device, c.device.Key)},
		{"relayed certificate and proof of another key", connector, c.relayed(f, c.device, stranger.key)},
		{"relayed certificate and garbage for proof", connector, fixed(ccm.HeaderClientCertificate, certificateHeader(c.device), "DPoP", "x.y.z")},
		{"relayed certificate and token", connector, fixed(ccm.HeaderClientCertificate, certificateHeader(c.device), "Authorization", "DPoP "+client)},
		{"relayed revoked certificate", connector, fixed(ccm.HeaderClientCertificate, certificateHeader(c.revoked))},
		{"relayed garbage", connector, fixed(ccm.HeaderClientCertificate, "AAAA")},
		{"relayed two headers", connector, fixed(ccm.HeaderClientCertificate, "AAAA,"+strings.Repeat("A", maxCertificateHeader))},
	}
}

// admitted says, independently of the table in the code, who gets past the door of which address. "bare" are those who show nothing
// that counts as a device's credential.
var admitted = map[string]string{
	"http /ccm_system/request":                    "bare",
	"http /ccm_system_altauth/request":            "bare",
	"http /sms_mp/.sms_aut":                       "bare",
	"http /sms_mp/.sms_pol":                       "bare",
	"http /sms_mp_altauth/.sms_aut":               "bare",
	"http /sms_mp_altauth/.sms_pol":               "bare",
	"enhanced-http /ccm_system/request":           "bare",
	"enhanced-http /ccm_system_altauth/request":   "bare",
	"enhanced-http /ccm_system_tokenauth/request": "ccm ccm-register",
	"enhanced-http /ccm_sts":                      "bare bulk self-prove holder",
	"enhanced-http /sms_mp/.sms_aut":              "bare",
	"enhanced-http /sms_mp/.sms_pol":              "bare",
	"enhanced-http /sms_mp_altauth/.sms_aut":      "bare",
	"enhanced-http /sms_mp_altauth/.sms_pol":      "bare",
	"enhanced-http /sms_mp_tokenauth/.sms_aut":    "ccm",
	"enhanced-http /sms_mp_tokenauth/.sms_pol":    "ccm",
	"enhanced-http /postern/state":                "connector",
	"enhanced-http /postern/join":                 "bare",
	"enhanced-http /postern/renew":                "connector",
	"http /postern/roots":                         "bare",
	"enhanced-http /postern/roots":                "bare",
	"https /postern/roots":                        "bare",
	"relayed /ccm_system/request":                 "relayed",
	"relayed /sms_mp/.sms_aut":                    "relayed",
	"relayed /sms_mp/.sms_pol":                    "relayed",
	"https /ccm_system/request":                   "company",
	"https /ccm_system_altauth/request":           "company",
	"https /sms_mp/.sms_aut":                      "company",
	"https /sms_mp/.sms_pol":                      "company",
	"https /sms_mp_altauth/.sms_aut":              "company",
	"https /sms_mp_altauth/.sms_pol":              "company",
	"https /ccm_system_tokenauth/request":         "ccm ccm-register",
	"https /ccm_sts":                              "bare bulk self-prove holder",
	"https /sms_mp_tokenauth/.sms_aut":            "ccm",
	"https /sms_mp_tokenauth/.sms_pol":            "ccm",
	"https /postern/state":                        "connector",
	"https /postern/join":                         "bare",
	"https /postern/renew":                        "connector",
}

// wantAdmitted judges one cell of the matrix. Where a path has an answer of its own for connectors, theirs is not the listener's.
func wantAdmitted(l Listener, path, who string) bool {
	path = " " + strings.ToLower(path)
	connector := who == "connector" || strings.HasPrefix(who, "relayed")
	if own, ok := admitted["relayed"+path]; ok && connector && l != HTTP {
		return own == "relayed" && (who == "relayed certificate" || who == "relayed certificate and proof")
	}
	words := strings.Fields(admitted[string(l)+path])
	silent := who == "none" || who == "connector" || who == "foreign certificate" || who == "company certificate" || who == "revoked certificate" ||
		who == "company certificate and a gateway's headers" || who == "certificate in the header of a stranger" ||
		who == "relayed certificate" || who == "relayed revoked certificate" || who == "relayed garbage" || who == "relayed two headers"
	switch {
	case who == "company certificate and token":
		return slices.Contains(words, "ccm")
	case strings.HasPrefix(who, "relayed certificate and proof") && slices.Contains(words, "holder"):
		return true // a proof without a token: what came beside it counts for nothing
	case who == "company certificate" && slices.Contains(words, "company"):
		return true
	case slices.Contains(words, "connector"):
		return connector && silent
	}
	return slices.Contains(words, who) || silent && slices.Contains(words, "bare")
}

// atTheDoor are the codes of an admission that failed.
func refusedAtTheDoor(g got) bool {
	inside := []catalog.Code{catalog.RequestMalformed, catalog.AuthQueryMalformed, catalog.AckMalformed, catalog.JoinLimited, catalog.RenewLimited}
	return g.StatusCode >= 400 && !slices.Contains(inside, catalog.Code(g.code()))
}

// TestEveryRouteEveryProof is the whole matrix: listener x route x credential.
func TestEveryRouteEveryProof(t *testing.T) {
	f := newFixture(t, withCompany(t))
	all := credentials(f)
	cells := 0
	for _, route := range Routes() {
		for _, l := range route.Listeners {
			if l == Relayed { // the other rows of its path are tried with everything that a connector may bring
				l = EnhancedHTTP
			}
			for _, c := range all {
				for _, method := range route.Methods {
					address := f.url(l, route.Path)
					g := f.probe(c, method, address)
					want, is := wantAdmitted(l, route.Path, c.name), !refusedAtTheDoor(g)
					if want != is {
						t.Errorf("%s %s %s with %s: %s %s, want admitted %v", l, method, route.Path, c.name, g.Status, g.code(), want)
					}
					if !is && g.StatusCode != 401 && g.StatusCode != 403 {
						t.Errorf("%s %s %s with %s: %s, want 401 or 403", l, method, route.Path, c.name, g.Status)
					}
					if _, known := catalog.Lookup(catalog.Code(g.code())); !is && !known {
						t.Errorf("%s %s %s with %s: the refusal has no catalogued code: %s", l, method, route.Path, c.name, g.body)
					}
					cells++
				}
			}
		}
	}
	if cells < 500 {
		t.Errorf("%d cells, want the whole matrix", cells)
	}
}

// probe sends a request without a body; an admitted stream is left after its first bytes.
func (f *fixture) probe(c credential, method, address string) got {
	f.Helper()
	if method == http.MethodGet && strings.HasSuffix(address, "/postern/state") {
		ctx, cancel := context.WithCancel(f.Context())
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, method, address, nil)
		f.must(err)
		headers := c.headers(method, address)
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		response, err := c.client.Do(r)
		f.must(err)
		defer response.Body.Close()
		if response.StatusCode == http.StatusOK {
			return got{Response: response}
		}
		return got{response, readAll(f, response)}
	}
	return f.send(c.client, method, address, "", nil, c.headers(method, address)...)
}

func TestHTTPSListenerAsksForAClientCertificate(t *testing.T) {
	f := newFixture(t)
	for _, path := range []string{"/SMS_MP/.sms_aut?SITESIGNCERT", "/sms_mp_altauth/.sms_aut?MPLIST"} {
		g := f.send(f.client, http.MethodGet, f.url(HTTPS, path), "", nil)
		if g.Status != "403 Client certificate required" {
			t.Errorf("%s: %q, want the phrase that clients compare", path, g.Status)
		}
	}
	g := f.send(f.client, "CCM_POST", f.url(HTTPS, "/ccm_system/request"), "", nil)
	if g.Status != "403 Client certificate required" {
		t.Errorf("ccm_system: %q", g.Status)
	}
	if g := f.send(f.selfSignedClient(), http.MethodGet, f.url(HTTPS, "/SMS_MP/.sms_aut?MPLIST"), "", nil); g.StatusCode != 403 || g.code() != string(catalog.ClientCertificateNotTrusted) {
		t.Errorf("a foreign certificate: %s %s", g.Status, g.code())
	}
	f.wantLogged("u_ex.log", "GET /SMS_MP/.sms_aut SITESIGNCERT", " 403 7 0 ", " 403 16 2148204809 ")
}

func TestPathsAndMethods(t *testing.T) {
	f := newFixture(t)
	for name, test := range map[string]struct {
		method, target string
		status         int
		code           catalog.Code
	}{
		"mixed case is the same address":       {"GET", "/sMs_Mp/.SMS_AUT?MPLIST", 200, ""},
		"trailing slash of windowsauth":        {"GET", "/CCM_System_WindowsAuth/", 401, catalog.NegotiateRequired},
		"parent segment":                       {"GET", "/SMS_MP/../SMS_MP/.sms_aut?MPLIST", 400, catalog.PathMalformed},
		"encoded parent segment":               {"GET", "/SMS_MP/%2e%2e/.sms_aut", 400, catalog.PathMalformed},
		"encoded slash":                        {"GET", "/SMS_MP%2f.sms_aut?MPLIST", 400, catalog.PathMalformed},
		"double slash":                         {"GET", "//SMS_MP/.sms_aut?MPLIST", 400, catalog.PathMalformed},
		"absolute form":                        {"GET", "http://elsewhere/SMS_MP/.sms_aut?MPLIST", 400, catalog.PathMalformed},
		"backslash":                            {"GET", `/SMS_MP\.sms_aut`, 400, catalog.PathMalformed},
		"a gateway's path at management point": {"GET", "/CCM_Proxy_MutualAuth/72057594037927937/SMS_MP/.sms_aut?MPLIST", 404, catalog.PathUnknown},
		"nothing there":                        {"GET", "/admin", 404, catalog.PathUnknown},
		"the root":                             {"GET", "/", 404, catalog.PathUnknown},
		"wrong method":                         {"DELETE", "/SMS_MP/.sms_aut", 405, catalog.MethodNotAllowed},
		"tokens over plain HTTP":               {"POST", "/CCM_STS", 404, catalog.RouteNotOnListener},
		"state over plain HTTP":                {"GET", "/postern/state", 404, catalog.RouteNotOnListener},
		"content is not published yet":         {"GET", "/CCM_Client/ccmsetup.cab", 404, catalog.PathUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			g := f.raw([]byte(test.method + " " + test.target + " HTTP/1.1\r\nHost: mp1.lab.local\r\nConnection: close\r\n\r\n"))
			if g.StatusCode != test.status || g.code() != string(test.code) {
				t.Errorf("%s %s: %s %s, want %d %s", test.method, test.target, g.Status, g.code(), test.status, test.code)
			}
			if test.status == 405 && g.Header.Get("Allow") != "GET" {
				t.Errorf("Allow %q, want GET", g.Header.Get("Allow"))
			}
		})
	}
}

func TestHopHeadersCountFromAConnectorOnly(t *testing.T) {
	f := newFixture(t)
	contentType, body := f.message("MP_ClientRegistration", f.registration(f.device(0)), nil)
	hop := []string{"Postern-Client-Address", "203.0.113.9", "Postern-Message-Id", "11111111-2222-3333-4444-555555555555",
		"Traceparent", "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"}
	g := f.send(f.selfSignedClient(), "CCM_POST", f.url(EnhancedHTTP, "/ccm_system_altauth/request"), contentType, body, hop...)
	if id := g.Header.Get("Postern-Message-Id"); id == hop[3] || id == "" {
		t.Errorf("a stranger chose the message id %q", id)
	}
	f.wantEvent(catalog.HopHeadersForged)
	f.wantEventFrom("127.0.0.1")

	contentType, body = f.message("MP_ClientRegistration", f.registration(f.device(1)), nil)
	g = f.send(f.connector("C1"), "CCM_POST", f.url(EnhancedHTTP, "/ccm_system_altauth/request"), contentType, body, hop...)
	if id := g.Header.Get("Postern-Message-Id"); id != hop[3] {
		t.Errorf("message id %q, want the connector's", id)
	}
	events, err := f.site.Events(t.Context(), site.EventFilter{Limit: 1})
	f.must(err)
	if e := events[0]; e.Address != "203.0.113.9" || e.TraceID != "0123456789abcdef0123456789abcdef" {
		t.Errorf("event %+v, want the device's address and the trace of the gateway", e)
	}
}

func (f *fixture) wantEventFrom(address string) {
	f.Helper()
	events, err := f.site.Events(f.Context(), site.EventFilter{Limit: 50})
	f.must(err)
	for _, e := range events {
		if e.Address != address {
			f.Errorf("event %+v, want address %s", e, address)
		}
	}
}

func TestBlockedConnectorIsRefusedEverywhere(t *testing.T) {
	f := newFixture(t)
	c := f.connector("C1")
	if g := f.send(c, "GET", f.url(EnhancedHTTP, "/SMS_MP_AltAuth/.sms_aut?MPLIST"), "", nil); g.StatusCode != 200 {
		t.Fatalf("before: %s", g.Status)
	}
	f.must(f.site.BlockConnector(t.Context(), "C1", true, "test", "try it"))
	for _, path := range []string{"/SMS_MP/.sms_aut?MPLIST", "/SMS_MP_AltAuth/.sms_aut?MPLIST", "/postern/state"} {
		if g := f.send(c, "GET", f.url(EnhancedHTTP, path), "", nil); g.StatusCode != 403 || g.code() != string(catalog.ConnectorBlocked) {
			t.Errorf("%s: %s %s, want 403 %s", path, g.Status, g.code(), catalog.ConnectorBlocked)
		}
	}
}

func TestExpiredConnectorCertificateGivesNoRights(t *testing.T) {
	f := newFixture(t)
	c := f.connector("C1")
	f.clock.advance(2 * 365 * 24 * time.Hour)
	if g := f.send(c, "GET", f.url(EnhancedHTTP, "/postern/state"), "", nil); g.StatusCode != 403 || g.code() != string(catalog.ConnectorOnly) {
		t.Errorf("%s %s, want 403 %s", g.Status, g.code(), catalog.ConnectorOnly)
	}
}

func TestRouteTableIsWhole(t *testing.T) {
	for _, route := range routeTable() {
		if route.handle == nil || len(route.Proofs) == 0 || len(route.Methods) == 0 || len(route.Listeners) == 0 {
			t.Errorf("%s: a route must say everything: %+v", route.Path, route)
		}
		if strings.Contains(route.Path, "AltAuth") && route.Ceiling != proof.LevelKnown {
			t.Errorf("%s: ceiling %s, want known", route.Path, route.Ceiling)
		}
		if slices.Contains(route.Listeners, HTTP) && len(route.kinds()) > 0 {
			t.Errorf("%s: a token over plain HTTP", route.Path)
		}
	}
}
