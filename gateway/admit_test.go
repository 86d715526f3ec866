package gateway

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

// credential is one way to come to the gateway.
type credential struct {
	name string
	show func(*device, *http.Request)
}

func credentials(blocked string) []credential {
	with := func(kind token.Kind, scope string) func(*device, *http.Request) {
		return func(d *device, r *http.Request) { d.show(r, d.token(kind, scope, rand.Text(), time.Now())) }
	}
	return []credential{
		{"nothing", func(*device, *http.Request) {}},
		{"bulk", with(token.KindBulk, "")},
		{"self-prove", with(token.KindSelfProve, "")},
		{"ccm register", with(token.KindCCM, token.ScopeRegister)},
		{"ccm client", with(token.KindCCM, token.ScopeClient)},
		{"ccm without scope", with(token.KindCCM, token.ScopeClient+"x")},
		{"expired", func(d *device, r *http.Request) {
			d.show(r, d.token(token.KindCCM, token.ScopeClient, rand.Text(), time.Now().Add(-9*time.Hour)))
		}},
		{"not yet valid", func(d *device, r *http.Request) {
			d.show(r, d.token(token.KindCCM, token.ScopeClient, rand.Text(), time.Now().Add(time.Hour)))
		}},
		{"blocked token", func(d *device, r *http.Request) {
			d.show(r, d.token(token.KindCCM, token.ScopeClient, blocked, time.Now()))
		}},
		{"blocked bulk token", func(d *device, r *http.Request) { d.show(r, d.token(token.KindBulk, "", blocked, time.Now())) }},
		{"no proof", func(d *device, r *http.Request) {
			d.show(r, d.ccmToken())
			r.Header.Del("DPoP")
		}},
		{"another key's proof", func(d *device, r *http.Request) {
			raw := d.ccmToken()
			newDevice(d.t).show(r, raw)
		}},
		{"proof for another path", func(d *device, r *http.Request) {
			raw := d.ccmToken()
			d.show(r, raw)
			r.Header.Set("DPoP", d.proof(r.Method, "https://"+host+"/CCM_Proxy_ServerAuth/1/CCM_STS", raw))
		}},
		{"proof for another host", func(d *device, r *http.Request) {
			raw := d.ccmToken()
			d.show(r, raw)
			r.Header.Set("DPoP", d.proof(r.Method, "https://evil.example"+r.URL.Path, raw))
		}},
		{"proof for another method", func(d *device, r *http.Request) {
			raw := d.ccmToken()
			d.show(r, raw)
			r.Header.Set("DPoP", d.proof("PUT", "https://"+host+r.URL.Path, raw))
		}},
		{"proof for another token", func(d *device, r *http.Request) {
			d.show(r, d.ccmToken())
			r.Header.Set("DPoP", d.proof(r.Method, "https://"+host+r.URL.Path, d.ccmToken()))
		}},
		{"bearer", func(d *device, r *http.Request) { r.Header.Set("Authorization", "Bearer "+d.ccmToken()) }},
		{"basic", func(_ *device, r *http.Request) { r.SetBasicAuth("user", "word") }},
		{"garbage", func(d *device, r *http.Request) { d.show(r, "a.b.c") }},
		{"two tokens", func(d *device, r *http.Request) {
			d.show(r, d.ccmToken())
			r.Header.Add("Authorization", "DPoP "+d.ccmToken())
		}},
		{"proof alone", func(d *device, r *http.Request) {
			r.Header.Set("DPoP", d.proof(r.Method, "https://"+host+r.URL.Path, ""))
		}},
	}
}

// bad credentials are refused on every route that looks at one, also where none is asked.
var badCredentials = []string{
	"expired", "not yet valid", "blocked token", "blocked bulk token", "no proof", "another key's proof", "proof for another path", "proof for another host",
	"proof for another method", "proof for another token", "bearer", "basic", "garbage", "two tokens", "proof alone",
}

func TestAdmissionMatrix(t *testing.T) {
	const blocked = "0f8fad5b-d9cb-469f-a165-70867728950e"
	w := newWorld(t)
	w.site.state.BlockedTokens = []string{blocked}
	w.connect()
	d, client := newDevice(t), w.client(true)

	const uncertified, invalid, missing, scope = "403 Client certificate required", "401 CMGService_Invalid_Token", "404 Not Found", "403 Forbidden"
	good := []string{"bulk", "self-prove", "ccm register", "ccm client", "ccm without scope"}
	all := append([]string{"nothing"}, append(good, badCredentials...)...)
	mutual, server := ccm.DoorMutualAuth, ccm.DoorServerAuth
	type outcome map[string][]string // status to credentials
	type row struct {
		method, path string
		want         outcome
	}
	anyone := outcome{"200": append([]string{"nothing"}, good...), invalid: badCredentials}
	exchange := outcome{"200": {"bulk", "self-prove"}, invalid: append([]string{"nothing", "ccm register", "ccm client", "ccm without scope"}, badCredentials...)}
	message := outcome{"200": {"ccm register", "ccm client"}, scope: {"ccm without scope"}, invalid: append([]string{"nothing", "bulk", "self-prove"}, badCredentials...)}
	registered := outcome{"200": {"ccm client"}, scope: {"ccm register", "ccm without scope"}, invalid: append([]string{"nothing", "bulk", "self-prove"}, badCredentials...)}
	never, certificate := outcome{missing: all}, outcome{uncertified: all}
	tenant := outcome{missing: append([]string{"nothing"}, good...), invalid: badCredentials}
	rows := []row{
		{"GET", "/CCM_Proxy_MutualAuth/ServiceMetadata", anyone},
		{"GET", "/ccm_proxy_serverauth/SERVICEMETADATA", outcome{"200": good, invalid: append([]string{"nothing"}, badCredentials...)}},
		{"GET", "/CCM_Proxy_ServerAuth/AADAuthInfo?TenantID=9aaf466a-3f40-4468-b3cd-f0010f21f05a", tenant},
		{"GET", "/CCM_Proxy_MutualAuth/AADAuthInfo", tenant},
		{"POST", external(server, "/CCM_STS"), exchange},
		{"POST", external(mutual, "/ccm_sts"), exchange},
		{"CCM_POST", external(server, "/ccm_system_tokenauth/request"), message},
		{"POST", external(mutual, "/CCM_System_TokenAuth/request"), message},
		{"GET", external(server, "/SMS_MP_TokenAuth/.sms_aut?MPLIST"), registered},
		{"GET", external(mutual, "/SMS_MP_TokenAuth/.sms_pol?{a}.1_00"), registered},
		{"GET", external(server, "/CCM_Client/ccmsetup.cab"), registered},
		{"GET", external(mutual, "/downloadrestservice.svc/getcontentxmlsecure?pid=A&cid=B"), registered},
		{"CCM_POST", external(mutual, "/ccm_system/request"), certificate},
		{"GET", external(mutual, "/SMS_MP/.sms_aut?SITESIGNCERT"), certificate},
		{"GET", strings.Replace(external(mutual, "/SMS_MP/.sms_aut"), fmt.Sprint(role), "7", 1), certificate}, // real or not, one answer

		{"CCM_POST", external(server, "/ccm_system/request"), never},
		{"GET", external(server, "/SMS_MP/.sms_aut?MPLIST"), never},
		{"CCM_POST", external(mutual, "/ccm_system_windowsauth/request"), never},
		{"CCM_POST", external(server, "/ccm_system_windowsauth/request"), never},
		{"CCM_POST", external(server, "/ccm_system_altauth/request"), never},
		{"GET", external(mutual, "/SMS_MP_AltAuth/.sms_aut"), never},
		{"POST", external(server, "/CCM_Incoming/x"), never},
		{"GET", external(server, "/postern/state"), never},
		{"GET", "/postern/state", never},
		{"POST", "/CCM_STS", never},
		{"CCM_POST", "/ccm_system_tokenauth/request", never},
		{"GET", "/", never},
		{"GET", "/favicon.ico", never},
		{"GET", external(server, "/SMS_MP_TokenAuth/secret"), never},
		{"POST", external(server, "/CCM_STS/more"), never},
	}
	for _, row := range rows {
		for _, credential := range credentials(blocked) {
			r := request(t, row.method, row.path, strings.NewReader(""))
			credential.show(d, r)
			got := do(t, client, r)
			want := ""
			for status, names := range row.want {
				if slices.Contains(names, credential.name) {
					want = status
				}
			}
			phrase := strings.TrimSpace(fmt.Sprint(got.status, " ", got.header.Get(ccm.HeaderStatus)))
			if phrase != want {
				t.Errorf("%s %s with %s: %s (code %s), want %s", row.method, row.path, credential.name, phrase, got.code, want)
			}
			if got.status >= 400 && (got.code == "" || got.problem.Status != got.status || got.problem.Instance == "") {
				t.Errorf("%s %s with %s: no account of the refusal: %s", row.method, row.path, credential.name, got.body)
			}
			if got.status == 401 && !strings.HasPrefix(got.header.Get("WWW-Authenticate"), "DPoP ") {
				t.Errorf("401 without WWW-Authenticate")
			}
		}
	}
}

func TestProofIsGoodForOneRequest(t *testing.T) {
	w := newWorld(t)
	w.connect()
	d, client := newDevice(t), w.client(true)
	r := d.show(request(t, "CCM_POST", tokenPath("/ccm_system_tokenauth/request"), nil), d.ccmToken())
	if got := do(t, client, r.Clone(t.Context())); got.status != 200 {
		t.Fatalf("first use: %d %s", got.status, got.body)
	}
	if got, want := do(t, client, r.Clone(t.Context())).code, catalog.ProofReplayed; got != want {
		t.Errorf("second use: code %s, want %s", got, want)
	}
}

func TestBlockedKeyEndsItsNextRequest(t *testing.T) {
	w := newWorld(t)
	w.connect()
	d, client := newDevice(t), w.client(true)
	raw := d.ccmToken()
	ask := func() answered {
		return do(t, client, d.show(request(t, "GET", tokenPath("/CCM_Client/ccmsetup.cab"), nil), raw))
	}
	if got := ask(); got.status != 200 {
		t.Fatalf("before: %d %s", got.status, got.body)
	}
	w.site.change(func(s *token.SiteState) { s.BlockedKeys = []proof.KeyThumbprint{d.id} })
	eventually(t, "epoch 2", func() bool { return w.gateway.Status().Epoch == 2 })
	if got := ask(); got.code != catalog.KeyBlocked {
		t.Errorf("after: %d %s, want %s", got.status, got.code, catalog.KeyBlocked)
	}
}

// A stranger cannot tell a role that exists from one that does not, nor an endpoint that
// is kept inside from one that nobody has (C19).
func TestWhatIsNotPublishedLooksTheSame(t *testing.T) {
	w := newWorld(t)
	w.connect()
	d, client := newDevice(t), w.client(true)
	raw := d.ccmToken()
	paths := []string{
		"/nothing", "/CCM_Proxy_ServerAuth/1/nothing", external(ccm.DoorServerAuth, "/nothing"), external(ccm.DoorServerAuth, "/ccm_system_windowsauth/request"),
		"/CCM_Proxy_ServerAuth/1/ccm_system_windowsauth/request", external(ccm.DoorServerAuth, "/postern/state"), "/CCM_Proxy_ServerAuth/1/postern/state", "/postern/state",
		"/CCM_Proxy_ServerAuth/1/CCM_Client/ccmsetup.cab", "/CCM_Proxy_ServerAuth/72057594037937982/CCM_Client/ccmsetup.cab",
	}
	for _, path := range paths {
		got := do(t, client, d.show(request(t, "GET", path, nil), raw))
		if got.status != 404 || got.code != catalog.GatewayNotPublished {
			t.Errorf("%s: %d %s", path, got.status, got.code)
		}
		same := strings.ReplaceAll(got.body, got.problem.Instance, "")
		first := do(t, client, request(t, "GET", paths[0], nil))
		if want := strings.ReplaceAll(first.body, first.problem.Instance, ""); same != want {
			t.Errorf("%s: body %s, want %s", path, same, want)
		}
	}
	for _, path := range []string{"/CCM_Proxy_ServerAuth/1/CCM_STS", tokenPath("/CCM_STS")} {
		if got := do(t, client, request(t, "POST", path, nil)); got.code != catalog.TokenMissing {
			t.Errorf("%s without token: %s, want %s", path, got.code, catalog.TokenMissing)
		}
	}
}

func TestMethodHostAndSize(t *testing.T) {
	w := newWorld(t)
	w.connect()
	d, client := newDevice(t), w.client(true)
	tests := []struct {
		name, method, path string
		edit               func(*http.Request)
		want               catalog.Code
	}{
		{"messages are not read", "GET", tokenPath("/ccm_system_tokenauth/request"), nil, catalog.GatewayMethod},
		{"files are not written", "PUT", tokenPath("/CCM_Client/ccmsetup.cab"), nil, catalog.GatewayMethod},
		{"a method of nobody", "BREW", tokenPath("/CCM_STS"), nil, catalog.GatewayMethod},
		{"another host", "POST", tokenPath("/CCM_STS"), func(r *http.Request) { r.Host = "mp.example" }, catalog.GatewayOtherHost},
		{"a name that ends like ours", "POST", tokenPath("/CCM_STS"), func(r *http.Request) { r.Host = "x." + host }, catalog.GatewayOtherHost},
		{"a token in the address", "GET", tokenPath("/CCM_Client/a?access_token=x"), nil, catalog.TokenInQuery},
		{"too long a path", "GET", tokenPath("/CCM_Client/" + strings.Repeat("a", 9000)), nil, catalog.PathTooLong},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := d.show(request(t, test.method, test.path, nil), d.ccmToken())
			if test.edit != nil {
				test.edit(r)
			}
			got := do(t, client, r)
			if got.code != test.want {
				t.Errorf("got %d %s, want %s", got.status, got.code, test.want)
			}
			if got.status == 405 && got.header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
		})
	}
}

func TestAnonymousRoutesAreRateLimited(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Limits.Anonymous, c.Limits.AnonymousBurst = 0.001, 3 })
	w.connect()
	client := w.client(true)
	ask := func(method, path string) answered { return do(t, client, request(t, method, path, nil)) }
	for range 3 {
		if got := ask("GET", "/CCM_Proxy_MutualAuth/ServiceMetadata"); got.status != 200 {
			t.Fatalf("within the limit: %d", got.status)
		}
	}
	for _, path := range []string{"/CCM_Proxy_MutualAuth/ServiceMetadata", "/CCM_Proxy_ServerAuth/AADAuthInfo"} {
		if got := ask("GET", path); got.code != catalog.GatewayTooManyRequests || got.header.Get("Retry-After") == "" {
			t.Errorf("beyond the limit %s: %d %s", path, got.status, got.code)
		}
	}
	if got := ask("POST", tokenPath("/CCM_STS")); got.code != catalog.TokenMissing {
		t.Errorf("a route with proofs: %s, want %s", got.code, catalog.TokenMissing)
	}
}

// AADAuthInfo tells what a device needs of an onboarded tenant, and of no other (S2).
func TestTenantsThatAreToldOf(t *testing.T) {
	const onboarded, disabled = "9aaf466a-3f40-4468-b3cd-f0010f21f05a", "0b7c8ab3-54a3-4d54-b58f-6a1f6c0ad0d4"
	w := newWorld(t)
	w.connect()
	w.site.change(func(s *token.SiteState) {
		tenant := token.Tenant{
			ID: onboarded, Issuers: []string{"https://login.example/v2.0", "https://sts.example/"}, Audiences: []string{"api://secret-audience"},
			ClientApp: "client-app", Resource: "https://ConfigMgrService", Keys: json.RawMessage(`{"keys":[]}`),
		}
		s.Tenants = append(s.Tenants, tenant)
		tenant.ID, tenant.Disabled = disabled, true
		s.Tenants = append(s.Tenants, tenant)
	})
	eventually(t, "the tenants are known", func() bool { return len(w.gateway.Status().Tenants) == 2 })
	client := w.client(true)
	told := `{"TenantId":"` + onboarded + `","ClientAppId":"client-app","ResourceUri":"https://ConfigMgrService","Authority":"https://login.example/v2.0"}`
	tests := []struct {
		name, query string
		want        string // "" for a refusal
	}{
		{"onboarded", "?TenantID=" + onboarded, told},
		{"in another case", "?tenantid=" + strings.ToUpper(onboarded), told},
		{"switched off", "?TenantID=" + disabled, ""},
		{"unknown", "?TenantID=6b5c0d3f-71a5-4a0c-9b38-3c4e4a1f9f11", ""},
		{"empty", "?TenantID=", ""},
		{"nothing asked", "", ""},
		{"another question", "?Tenant=" + onboarded, ""},
		{"the beginning of one", "?TenantID=" + onboarded[:35], ""},
		{"behind more than is read", "?a=" + strings.Repeat("a", maxTenantQuery) + "&TenantID=" + onboarded, ""},
	}
	refusals := map[string]string{}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := do(t, client, request(t, "GET", "/CCM_Proxy_ServerAuth/AADAuthInfo"+test.query, nil))
			if test.want != "" {
				if got.status != 200 || got.body != test.want {
					t.Errorf("%d %s, want %s", got.status, got.body, test.want)
				}
				return
			}
			refusals[test.name] = strings.ReplaceAll(got.body, got.problem.Instance, "")
			if got.status != 404 || got.code != catalog.GatewayTenantUnknown {
				t.Errorf("%d %s, want 404 %s", got.status, got.code, catalog.GatewayTenantUnknown)
			}
			for _, secret := range []string{onboarded, disabled, "secret-audience", "client-app", "login.example"} {
				if strings.Contains(strings.ToLower(got.body), secret) {
					t.Errorf("it tells %q: %s", secret, got.body)
				}
			}
		})
	}
	if off, unknown := refusals["switched off"], refusals["unknown"]; off != unknown {
		t.Errorf("a tenant that is switched off shows: %s, an unknown one %s", off, unknown)
	}
}

func TestMetadataSaysNothingOfTheSite(t *testing.T) {
	w := newWorld(t)
	client := w.client(true)
	ask := func() string {
		return do(t, client, request(t, "GET", "/CCM_Proxy_MutualAuth/ServiceMetadata", nil)).body
	}
	if got, want := ask(), `{"service":"postern-gateway","healthy":false}`; got != want {
		t.Errorf("without connector %s, want %s", got, want)
	}
	w.connect()
	if got, want := ask(), `{"service":"postern-gateway","healthy":true}`; got != want {
		t.Errorf("with connector %s, want %s", got, want)
	}
}

func TestClientCertificateIsAskedForAndJudgedByRoute(t *testing.T) {
	w := newWorld(t)
	w.connect()
	key := newKey(t)
	client := w.client(true)
	client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{{Certificate: [][]byte{selfSigned(t, key)}, PrivateKey: key}}
	got := do(t, client, request(t, "GET", external(ccm.DoorMutualAuth, "/SMS_MP/.sms_aut?MPLIST"), nil))
	if got.status != 403 || got.code != catalog.GatewayCertificateRoots {
		t.Errorf("with an unknown certificate: %d %q %s", got.status, got.header.Get(ccm.HeaderStatus), got.code)
	}
	if got := do(t, client, request(t, "GET", "/CCM_Proxy_MutualAuth/ServiceMetadata", nil)); got.status != 200 {
		t.Errorf("a route that needs none: %d", got.status)
	}
}

func TestBeforeTheFirstStateTokensAreNotCalledInvalid(t *testing.T) {
	w := newWorld(t)
	d := newDevice(t)
	got := do(t, w.client(true), d.show(request(t, "POST", tokenPath("/CCM_STS"), nil), d.ccmToken()))
	if got.status != 503 || got.code != catalog.StateMissing || got.header.Get("Retry-After") == "" {
		t.Errorf("got %d %s %v", got.status, got.code, got.header)
	}
}

func TestRoutesAreTheTableOfTheDesign(t *testing.T) {
	for _, route := range Routes() {
		q := route.Proof
		asks := 0
		for _, asked := range []bool{q.Anyone, q.Certificate, len(q.Tokens) > 0} {
			if asked {
				asks++
			}
		}
		if asks != 1 || len(route.Methods) == 0 || len(route.Doors) == 0 || len(route.Paths()) == 0 || q.String() == "" {
			t.Errorf("row %+v is not complete", route)
		}
		if strings.Contains(string(route.Endpoint), "windowsauth") || strings.Contains(string(route.Endpoint), "altauth") || route.Endpoint == ccm.EndpointState && !slices.Equal(route.Rests, []string{"/roots"}) {
			t.Errorf("%s must never be published", route.Endpoint)
		}
		for _, path := range route.Paths() {
			path = strings.NewReplacer("<id>", fmt.Sprint(role), "<file>", "ccmsetup.cab").Replace(path)
			p, err := ccm.ParsePath(path)
			if err != nil || !route.matches(p) {
				t.Errorf("path %s of the row does not lead to it: %v", path, err)
			}
		}
	}
	if got, want := Routes()[3].Paths()[1], "/CCM_Proxy_ServerAuth/<id>/CCM_STS"; got != want {
		t.Errorf("path %s, want %s", got, want)
	}
}

func FuzzLocate(f *testing.F) {
	for _, seed := range []string{
		"/CCM_Proxy_ServerAuth/72057594037937981/CCM_STS", "/CCM_Proxy_MutualAuth/ServiceMetadata", "/postern/state",
		"/CCM_Proxy_ServerAuth/1/..%2f..%2fpostern/state", "//ccm_system/request", "https://evil.example/CCM_STS",
	} {
		f.Add(seed, host)
	}
	g := &Gateway{names: []string{host}, routes: Routes()}
	f.Fuzz(func(t *testing.T, target, of string) {
		x := &exchange{}
		err := g.locate(&http.Request{Method: "POST", RequestURI: target, Host: of}, x)
		if err != nil && catalog.CodeOf(err) == "" {
			t.Errorf("%q: error without code: %v", target, err)
		}
		if x.route != nil && (x.path.Door == ccm.DoorDirect || x.path.Endpoint == ccm.EndpointState) {
			t.Errorf("%q leads to %+v", target, x.path)
		}
		if err == nil && hostName(of) != host {
			t.Errorf("host %q is taken for ours", of)
		}
	})
}
