package entra

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"postern/catalog"
	"postern/internal/issuer"
	"postern/token"
)

// clock is a clock that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// site is a management point's view: the tenants, and a Source for them.
type site struct {
	source *Source
	clock  *clock
	tenant token.Tenant
}

func newSite(provider *issuer.Issuer) *site {
	x := &site{clock: newClock(), tenant: provider.Tenant()}
	x.tenant.Keys = nil
	x.source = NewSource(SourceConfig{Tenants: x.tenants, Roots: provider.Roots(), Now: x.clock.Now})
	return x
}

func (x *site) tenants() []token.Tenant { return []token.Tenant{x.tenant} }

// published are the tenants as the site's state has them.
func (x *site) published() []token.Tenant {
	tenant := x.tenant
	tenant.Keys = x.source.Keys(tenant.ID)
	return []token.Tenant{tenant}
}

func changed(s *Source) bool {
	select {
	case <-s.Changed():
		return true
	default:
		return false
	}
}

// The life of a tenant's keys: fetched, refreshed, rotated, used while the provider is
// away, withdrawn when they are too old, and back.
func TestKeysOverTime(t *testing.T) {
	provider := start(t, issuer.Options{})
	x := newSite(provider)
	v := New(Config{Tenants: x.published, Now: x.clock.Now, OnUnknownKey: x.source.Unknown})
	validate := func() catalog.Code {
		t.Helper()
		claims := provider.DeviceClaims(device(), issuer.V2)
		now := x.clock.Now()
		claims["iat"], claims["nbf"], claims["exp"] = now.Unix(), now.Unix(), now.Add(time.Hour).Unix()
		_, _, err := v.Validate(t.Context(), mint(t, provider, claims, issuer.Header{}))
		return catalog.CodeOf(err)
	}
	if got := validate(); got != catalog.EntraKeysMissing {
		t.Errorf("before the first fetch: %q", got)
	}
	pause := x.source.pass(t.Context())
	if !changed(x.source) || validate() != "" {
		t.Fatalf("after the first fetch: %+v", x.source.Status())
	}
	if pause != idle {
		t.Errorf("then it rests for %v, want %v", pause, idle)
	}
	if got, want := provider.Fetches(), (issuer.Fetches{Discovery: 2, Keys: 2}); got != want {
		t.Errorf("it asked %+v, want %+v: one of each for both issuers", got, want)
	}

	x.clock.pass(5*time.Hour + 59*time.Minute)
	x.source.pass(t.Context())
	if got := provider.Fetches().Keys; got != 2 {
		t.Errorf("before its time it asked %d times", got)
	}
	x.clock.pass(2 * time.Minute)
	x.source.pass(t.Context())
	if got := provider.Fetches().Keys; got != 4 || changed(x.source) {
		t.Errorf("after six hours it asked %d times", got)
	}

	if err := provider.Rotate(); err != nil {
		t.Fatal(err)
	}
	x.clock.pass(2 * time.Minute)
	if got := validate(); got != catalog.EntraKeyUnknown {
		t.Errorf("signed by the new key: %q", got)
	}
	x.source.pass(t.Context())
	if !changed(x.source) || validate() != "" {
		t.Error("the new key was not fetched at once")
	}

	provider.Down()
	before := x.source.Keys(x.tenant.ID)
	x.clock.pass(7 * time.Hour)
	x.source.pass(t.Context())
	status := x.source.Status()[0]
	if got := validate(); got != "" || !bytes.Equal(before, x.source.Keys(x.tenant.ID)) {
		t.Errorf("while the provider is away: %q", got)
	}
	if !status.Stale || status.Age.Round(time.Hour) != 7*time.Hour || catalog.CodeOf(status.Err) != catalog.EntraProviderUnreachable || status.Keys != 2 {
		t.Errorf("status while it is away: %+v", status)
	}
	x.clock.pass(7 * 24 * time.Hour)
	if got := validate(); got != catalog.EntraKeysMissing || !changed(x.source) {
		t.Errorf("after a week away: %q", got)
	}
	if got := x.source.Status()[0]; catalog.CodeOf(got.Err) != catalog.EntraKeysOld || got.Keys != 0 {
		t.Errorf("status after a week away: %+v", got)
	}

	provider.Up()
	provider.Forget()
	x.source.pass(t.Context())
	if status := x.source.Status()[0]; !changed(x.source) || validate() != "" || status.Err != nil || status.Keys != 1 {
		t.Errorf("when it is back: %+v", status)
	}
}

// However many made-up key ids come, the provider is asked once within the floor, and
// tokens by known keys are not affected.
func TestFloodOfUnknownKeys(t *testing.T) {
	provider := start(t, issuer.Options{})
	x := newSite(provider)
	x.source.pass(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- x.source.Run(ctx) }()
	x.clock.pass(2 * time.Minute)
	tenants := x.published()
	v := New(Config{Tenants: func() []token.Tenant { return tenants }, OnUnknownKey: x.source.Unknown})
	good, err := provider.DeviceToken(device(), issuer.V1)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	started := time.Now()
	const flood = 10_000
	for i := range flood {
		head := fmt.Sprintf(`{"typ":"JWT","alg":"RS256","kid":"%08d"}`, i)
		raw := encoded(head) + "." + parts[1] + "." + parts[2]
		if _, _, err := v.Validate(ctx, raw); catalog.CodeOf(err) != catalog.EntraKeyUnknown {
			t.Fatal(err)
		}
		if i%1000 == 0 {
			if _, _, err := v.Validate(ctx, good); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%v for each", time.Since(started)/flood)
	for provider.Fetches().Keys < 4 { // the one fetch may still be on its way
		if time.Since(started) > 20*time.Second {
			t.Fatal("nothing was fetched")
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got, want := provider.Fetches(), (issuer.Fetches{Discovery: 4, Keys: 4}); got != want {
		t.Errorf("it asked %+v, want %+v: once at the start and once for the flood, for both issuers", got, want)
	}
	if err := x.source.Refresh(t.Context(), x.tenant.ID); catalog.CodeOf(err) != catalog.EntraRefreshTooSoon {
		t.Errorf("an administrator within the floor: %v", err)
	}
	x.clock.pass(time.Minute)
	if err := x.source.Refresh(t.Context(), strings.ToUpper(x.tenant.ID)); err != nil {
		t.Errorf("an administrator after the floor: %v", err)
	}
	if err := x.source.Refresh(t.Context(), otherID); catalog.CodeOf(err) != catalog.EntraTenantUnknown {
		t.Errorf("for nobody's tenant: %v", err)
	}
}

func TestKnownKeyWantsNoFetch(t *testing.T) {
	provider := start(t, issuer.Options{})
	x := newSite(provider)
	x.source.pass(t.Context())
	x.clock.pass(time.Hour)
	keys, _, err := parseKeys(x.source.Keys(x.tenant.ID), x.tenant.ID)
	if err != nil {
		t.Fatal(err)
	}
	x.source.Unknown(TenantKey{Tenant: x.tenant.ID, KeyID: keys[0].id}) // a gateway that is behind
	x.source.Unknown(TenantKey{Tenant: otherID, KeyID: "a"})
	x.source.pass(t.Context())
	if got := provider.Fetches().Keys; got != 2 {
		t.Errorf("it asked %d times, want 2", got)
	}
}

// A tenant with other issuers is fetched anew, a removed one is forgotten.
func TestTenantsChange(t *testing.T) {
	provider := start(t, issuer.Options{})
	x := newSite(provider)
	x.tenant.Issuers = x.tenant.Issuers[:1]
	x.source.pass(t.Context())
	x.clock.pass(2 * time.Minute)
	x.tenant.Issuers = provider.Tenant().Issuers
	x.source.pass(t.Context())
	if got := provider.Fetches().Discovery; got != 3 {
		t.Errorf("it asked %d times, want 3", got)
	}
	id := x.tenant.ID
	x.source.config.Tenants = func() []token.Tenant { return nil }
	x.source.pass(t.Context())
	if x.source.Keys(id) != nil || len(x.source.Status()) > 0 {
		t.Error("a removed tenant has keys")
	}
}

func TestRestoredKeys(t *testing.T) {
	provider := start(t, issuer.Options{})
	first := newSite(provider)
	first.source.pass(t.Context())
	keys := first.source.Keys(first.tenant.ID)
	provider.Down()
	for _, test := range []struct {
		name string
		age  time.Duration
		want bool
	}{
		{"of an hour ago", time.Hour, true},
		{"of eight days ago", 8 * 24 * time.Hour, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			x := newSite(provider)
			if err := x.source.Restore(x.tenant.ID, keys, x.clock.Now().Add(-test.age)); err != nil {
				t.Fatal(err)
			}
			x.source.pass(t.Context())
			if got := bytes.Equal(x.source.Keys(x.tenant.ID), keys); got != test.want {
				t.Errorf("in use: %v, want %v; %+v", got, test.want, x.source.Status())
			}
		})
	}
	if err := first.source.Restore(first.tenant.ID, []byte("x"), time.Now()); catalog.CodeOf(err) != catalog.EntraKeySet {
		t.Errorf("not a key set: %v", err)
	}
}

// provider is a provider with faults; its paths are the discovery document and /keys.
type provider struct {
	server    *httptest.Server
	discovery func(w http.ResponseWriter, r *http.Request)
	keys      func(w http.ResponseWriter, r *http.Request)
}

func newProvider(t *testing.T) *provider {
	p := &provider{}
	p.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/realm/.well-known/openid-configuration" && p.discovery != nil:
			p.discovery(w, r)
		case r.URL.Path == "/realm/.well-known/openid-configuration":
			p.write(w, map[string]string{"issuer": p.issuer(), "jwks_uri": p.server.URL + "/keys"})
		case r.URL.Path == "/keys":
			p.keys(w, r)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(p.server.Close)
	return p
}

func (p *provider) issuer() string { return p.server.URL + "/realm" }

func (p *provider) write(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (p *provider) source(clock *clock) *Source {
	tenant := token.Tenant{ID: "realm", Issuers: []string{p.issuer()}, Audiences: []string{"https://ConfigMgrService"}}
	return NewSource(SourceConfig{Tenants: func() []token.Tenant { return []token.Tenant{tenant} }, LoopbackHTTP: true, Now: clock.Now})
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func keySetOf(keys ...jose.JSONWebKey) jose.JSONWebKeySet { return jose.JSONWebKeySet{Keys: keys} }

func TestFaultyProviders(t *testing.T) {
	strong, weak := rsaKey(t, 2048), rsaKey(t, 1024)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("another host was asked") }))
	defer elsewhere.Close()
	good := keySetOf(jose.JSONWebKey{Key: &strong.PublicKey, KeyID: "a"})
	many := make([]jose.JSONWebKey, 65)
	for i := range many {
		many[i] = jose.JSONWebKey{Key: &strong.PublicKey, KeyID: fmt.Sprint(i)}
	}
	discovery := func(issuer, keys string) func(*provider) func(http.ResponseWriter, *http.Request) {
		return func(p *provider) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, _ *http.Request) {
				expand := strings.NewReplacer("{self}", p.server.URL, "{elsewhere}", elsewhere.URL)
				p.write(w, map[string]string{"issuer": expand.Replace(issuer), "jwks_uri": expand.Replace(keys)})
			}
		}
	}
	raw := func(contentType, body string) func(*provider) func(http.ResponseWriter, *http.Request) {
		return func(p *provider) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", contentType)
				fmt.Fprint(w, strings.ReplaceAll(body, "{self}", p.server.URL))
			}
		}
	}
	redirect := func(to string) func(*provider) func(http.ResponseWriter, *http.Request) {
		return func(p *provider) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, strings.NewReplacer("{self}", p.server.URL, "{elsewhere}", elsewhere.URL).Replace(to), http.StatusFound)
			}
		}
	}
	for _, test := range []struct {
		name      string
		discovery func(*provider) func(http.ResponseWriter, *http.Request)
		keysBy    func(*provider) func(http.ResponseWriter, *http.Request)
		keys      any
		want      catalog.Code
		count     int
		skipped   int
	}{
		{name: "all is well", keys: good, count: 1},
		{name: "key for ES256", keys: keySetOf(jose.JSONWebKey{Key: &curve.PublicKey, KeyID: "a", Algorithm: "ES256"}), count: 1},
		{name: "weak, foreign and symmetric keys beside a good one", keys: keySetOf(
			jose.JSONWebKey{Key: &weak.PublicKey, KeyID: "weak"}, jose.JSONWebKey{Key: &strong.PublicKey, KeyID: "enc", Use: "enc"},
			jose.JSONWebKey{Key: &strong.PublicKey, KeyID: "pss", Algorithm: "PS256"}, jose.JSONWebKey{Key: []byte("secret"), KeyID: "oct"},
			jose.JSONWebKey{Key: &strong.PublicKey}, jose.JSONWebKey{Key: &strong.PublicKey, KeyID: "a"}), count: 1, skipped: 5},
		{name: "one key twice", keys: keySetOf(good.Keys[0], good.Keys[0]), count: 1},
		{name: "redirection on the same host", discovery: redirect("{self}/keys"), keysBy: raw("application/json", `{}`), want: catalog.EntraDiscovery},

		{name: "settings of another issuer", discovery: discovery("{self}/other", "{self}/keys"), keys: good, want: catalog.EntraDiscovery},
		{name: "settings with a slash more", discovery: discovery("{self}/realm/", "{self}/keys"), keys: good, want: catalog.EntraDiscovery},
		{name: "keys on another host", discovery: discovery("{self}/realm", "{elsewhere}/keys"), keys: good, want: catalog.EntraDiscovery},
		{name: "keys on the network without TLS", discovery: discovery("{self}/realm", "http://192.0.2.1/keys"), keys: good, want: catalog.EntraDiscovery},
		{name: "keys in a file", discovery: discovery("{self}/realm", "file:///etc/passwd"), keys: good, want: catalog.EntraDiscovery},
		{name: "keys nowhere", discovery: discovery("{self}/realm", ""), keys: good, want: catalog.EntraDiscovery},
		{name: "settings are a sign-in page", discovery: raw("text/html", "<html>"), keys: good, want: catalog.EntraProviderUnreachable},
		{name: "settings are not JSON", discovery: raw("application/json", "<html>"), keys: good, want: catalog.EntraDiscovery},
		{name: "settings are deep", discovery: raw("application/json", strings.Repeat("[", 1000)), keys: good, want: catalog.EntraDiscovery},
		{name: "settings are endless", discovery: raw("application/json", strings.Repeat(" ", maxDiscovery+1)), keys: good, want: catalog.EntraDiscovery},
		{name: "redirection to another host", discovery: redirect("{elsewhere}/"), keys: good, want: catalog.EntraRedirect},
		{name: "redirection without end", discovery: redirect("{self}/realm/.well-known/openid-configuration"), keys: good, want: catalog.EntraRedirect},
		{name: "keys are redirected to another host", keysBy: redirect("{elsewhere}/keys"), want: catalog.EntraRedirect},

		{name: "no keys", keys: keySetOf(), want: catalog.EntraKeySet},
		{name: "only a weak key", keys: keySetOf(jose.JSONWebKey{Key: &weak.PublicKey, KeyID: "weak"}), want: catalog.EntraKeySet},
		{name: "65 keys", keys: keySetOf(many...), want: catalog.EntraKeySet},
		{name: "two keys by one name", keys: keySetOf(good.Keys[0], jose.JSONWebKey{Key: &curve.PublicKey, KeyID: "a"}), want: catalog.EntraKeySet},
		{name: "keys are endless", keysBy: raw("application/json", strings.Repeat(" ", maxKeySet+1)), want: catalog.EntraKeySet},
		{name: "keys are deep", keysBy: raw("application/json", `{"keys":`+strings.Repeat("[", 1000)), want: catalog.EntraKeySet},
		{name: "keys are not JSON", keysBy: raw("application/json", "keys"), want: catalog.EntraKeySet},
		{name: "a modulus of a megabyte", keysBy: raw("application/json", `{"keys":[{"kty":"RSA","kid":"a","e":"AQAB","n":"`+strings.Repeat("A", 1_000_000)+`"}]}`), want: catalog.EntraKeySet},
		{name: "server error", keysBy: func(*provider) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "x", http.StatusInternalServerError) }
		}, want: catalog.EntraProviderUnreachable},
		{name: "not modified, though nothing is at hand", keysBy: func(*provider) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) }
		}, want: catalog.EntraProviderUnreachable},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newProvider(t)
			if test.discovery != nil {
				p.discovery = test.discovery(p)
			}
			p.keys = func(w http.ResponseWriter, _ *http.Request) { p.write(w, test.keys) }
			if test.keysBy != nil {
				p.keys = test.keysBy(p)
			}
			s := p.source(newClock())
			err := s.Refresh(t.Context(), "realm")
			if got := catalog.CodeOf(err); got != test.want {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			status := s.Status()[0]
			if status.Keys != test.count || status.Skipped != test.skipped || len(s.Keys("realm")) > 0 != (test.count > 0) {
				t.Errorf("got %+v, want %d keys and %d left out", status, test.count, test.skipped)
			}
		})
	}
}

// A provider that goes wrong does not take the keys at hand away.
func TestFaultKeepsKeys(t *testing.T) {
	p, c := newProvider(t), newClock()
	good := keySetOf(jose.JSONWebKey{Key: &rsaKey(t, 2048).PublicKey, KeyID: "a"})
	p.keys = func(w http.ResponseWriter, _ *http.Request) { p.write(w, good) }
	s := p.source(c)
	s.pass(t.Context())
	keys := s.Keys("realm")
	if len(keys) == 0 {
		t.Fatal(s.Status())
	}
	p.keys = func(w http.ResponseWriter, _ *http.Request) { p.write(w, keySetOf()) }
	c.pass(7 * time.Hour)
	s.pass(t.Context())
	if status := s.Status()[0]; !bytes.Equal(s.Keys("realm"), keys) || !status.Stale || catalog.CodeOf(status.Err) != catalog.EntraKeySet {
		t.Errorf("got %+v", status)
	}
}

func TestConditionalRequestsAndCacheControl(t *testing.T) {
	good := keySetOf(jose.JSONWebKey{Key: &rsaKey(t, 2048).PublicKey, KeyID: "a"})
	for _, test := range []struct {
		cacheControl string
		want         time.Duration
	}{
		{"", 6 * time.Hour},
		{"private, max-age=86400", 6 * time.Hour},
		{"max-age=3600", time.Hour},
		{"max-age=1", 15 * time.Minute},
		{"no-store, max-age=0", 6 * time.Hour},
		{"max-age=99999999999999999999", 6 * time.Hour},
		{"max-age=-5", 6 * time.Hour},
	} {
		t.Run(test.cacheControl, func(t *testing.T) {
			p, c := newProvider(t), newClock()
			full, same := 0, 0
			p.keys = func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", test.cacheControl)
				w.Header().Set("ETag", `"1"`)
				if r.Header.Get("If-None-Match") == `"1"` {
					same++
					w.WriteHeader(http.StatusNotModified)
					return
				}
				full++
				p.write(w, good)
			}
			s := p.source(c)
			s.pass(t.Context())
			first := s.Status()[0]
			if got := first.Next.Sub(c.Now()); got != test.want {
				t.Errorf("next in %v, want %v", got, test.want)
			}
			c.pass(test.want)
			s.pass(t.Context())
			if full != 1 || same != 1 {
				t.Errorf("%d full answers and %d without a body, want one of each", full, same)
			}
			if second := s.Status()[0]; second.Keys != 1 || second.Age != 0 {
				t.Errorf("after it: %+v", second)
			}
		})
	}
}

func TestFailuresPause(t *testing.T) {
	p, c := newProvider(t), newClock()
	asked := 0
	p.discovery = func(w http.ResponseWriter, _ *http.Request) { asked++; w.WriteHeader(http.StatusBadGateway) }
	s := p.source(c)
	for range 2 * 60 { // two hours, minute by minute
		s.pass(t.Context())
		c.pass(time.Minute)
	}
	if asked < 8 || asked > 14 {
		t.Errorf("in two hours it asked %d times", asked)
	}
}

func TestCheckIssuer(t *testing.T) {
	for _, test := range []struct {
		issuer   string
		loopback bool
		want     bool
	}{
		{"https://login.microsoftonline.com/" + otherID + "/v2.0", false, true},
		{"https://keycloak.example:8443/realms/devices", false, true},
		{"http://127.0.0.1:8080/realms/devices", true, true},
		{"http://[::1]:8080/realms/devices", true, true},
		{"http://127.0.0.1:8080/realms/devices", false, false},
		{"http://keycloak.example/realms/devices", true, false},
		{"http://localhost.evil.example/", true, false},
		{"https://user:secret@keycloak.example/", false, false},
		{"https://user:secret@key cloak.example/", false, false},
		{"https://keycloak.example/?tenant=a", false, false},
		{"https://keycloak.example/#a", false, false},
		{"https:///realms", false, false},
		{"https:keycloak.example", false, false},
		{"file:///etc/passwd", true, false},
		{"", true, false},
		{"https://key\ncloak/", false, false},
	} {
		err := CheckIssuer(test.issuer, test.loopback)
		if got := err == nil; got != test.want || err != nil && catalog.CodeOf(err) != catalog.EntraIssuerNotAllowed {
			t.Errorf("%q, %v: got %v", test.issuer, test.loopback, err)
		}
		if err != nil && strings.Contains(catalog.Public(err), "secret") {
			t.Errorf("%q: the password is shown: %v", test.issuer, err)
		}
	}
}

// Entra's keys say for which tenant they are; keys for personal accounts do not count
// for a company's tenant.
func TestKeysOfAnotherTenant(t *testing.T) {
	one, two := rsaKey(t, 2048), rsaKey(t, 2048)
	set := `{"keys":[` + jwk(t, one, "a", "https://login.microsoftonline.com/{tenantid}/v2.0") + "," +
		jwk(t, two, "b", "https://login.microsoftonline.com/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0") + `]}`
	keys, skipped, err := parseKeys([]byte(set), otherID)
	if err != nil || len(keys) != 1 || keys[0].id != "a" || skipped != 1 {
		t.Errorf("got %d keys, %d left out, %v", len(keys), skipped, err)
	}
}

func jwk(t *testing.T, key *rsa.PrivateKey, id, issuer string) string {
	t.Helper()
	raw, err := json.Marshal(jose.JSONWebKey{Key: &key.PublicKey, KeyID: id})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(raw), "}") + `,"issuer":"` + issuer + `"}`
}

// A provider that answers nothing costs the timeout and no more.
func TestSilentProvider(t *testing.T) {
	p := newProvider(t)
	release := make(chan struct{})
	p.discovery = func(http.ResponseWriter, *http.Request) { <-release }
	defer close(release)
	s := p.source(newClock())
	s.config.Timeout = 50 * time.Millisecond
	if err := s.Refresh(t.Context(), "realm"); catalog.CodeOf(err) != catalog.EntraProviderUnreachable {
		t.Error(err)
	}
}

// A server that a roots pool does not know gets no trust.
func TestProviderWithUnknownAuthority(t *testing.T) {
	provider := start(t, issuer.Options{})
	x := newSite(provider)
	x.source = NewSource(SourceConfig{Tenants: x.tenants, Now: x.clock.Now})
	if err := x.source.Refresh(t.Context(), x.tenant.ID); catalog.CodeOf(err) != catalog.EntraProviderUnreachable {
		t.Error(err)
	}
	if got := provider.Fetches(); got != (issuer.Fetches{}) {
		t.Errorf("it asked %+v", got)
	}
}

// A silent issuer takes no time from the tenant's others: their keys come all the same.
func TestSilentIssuerBesideAGoodOne(t *testing.T) {
	silent, good := newProvider(t), newProvider(t)
	release := make(chan struct{})
	silent.discovery = func(http.ResponseWriter, *http.Request) { <-release }
	defer close(release)
	keys := keySetOf(jose.JSONWebKey{Key: rsaKey(t, 2048).Public(), KeyID: "a"})
	good.keys = func(w http.ResponseWriter, _ *http.Request) { good.write(w, keys) }
	tenant := token.Tenant{ID: "realm", Issuers: []string{silent.issuer(), good.issuer()}, Audiences: []string{"https://ConfigMgrService"}}
	s := NewSource(SourceConfig{Tenants: func() []token.Tenant { return []token.Tenant{tenant} }, LoopbackHTTP: true, Now: newClock().Now})
	s.config.Timeout = 2 * time.Second
	if err := s.Refresh(t.Context(), "realm"); catalog.CodeOf(err) != catalog.EntraProviderUnreachable {
		t.Error(err)
	}
	if s.Keys("realm") == nil {
		t.Errorf("the other issuer was not asked: %+v", s.Status())
	}
}

// TestOneIssuerWithTooManyKeys: an issuer whose keys do not fit beside those of the tenant's other issuers is at fault alone, and its last keys stay; so does
// everybody else's, and what an earlier process left makes room for what is fresh.
func TestOneIssuerWithTooManyKeys(t *testing.T) {
	many := func(name string, n int) (keys []jose.JSONWebKey) {
		for i := range n {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, jose.JSONWebKey{Key: key.Public(), KeyID: fmt.Sprint(name, "-", i)})
		}
		return keys
	}
	steady, growing, clock := newProvider(t), newProvider(t), newClock()
	few, more := many("steady", 30), many("growing", 40)
	serve := func(p *provider, keys ...jose.JSONWebKey) {
		p.keys = func(w http.ResponseWriter, _ *http.Request) { p.write(w, keySetOf(keys...)) }
	}
	serve(steady, few...)
	serve(growing, more[:30]...)
	tenant := token.Tenant{ID: "realm", Issuers: []string{growing.issuer(), steady.issuer()}, Audiences: []string{"https://ConfigMgrService"}}
	source := func() *Source {
		return NewSource(SourceConfig{Tenants: func() []token.Tenant { return []token.Tenant{tenant} }, LoopbackHTTP: true, Now: clock.Now})
	}
	s := source()
	if err := s.Refresh(t.Context(), "realm"); err != nil {
		t.Fatal(err)
	}
	kept := s.Keys("realm")
	serve(growing, more...)
	clock.pass(time.Hour)
	if err := s.Refresh(t.Context(), "realm"); catalog.CodeOf(err) != catalog.EntraKeySet {
		t.Errorf("70 keys: %v", err)
	}
	if status := s.Status()[0]; status.Keys != 60 || !status.Stale || !bytes.Equal(s.Keys("realm"), kept) {
		t.Errorf("the keys at hand are not those of before: %+v", status)
	}
	serve(growing, more[10:]...) // as many as before, ten of them new
	clock.pass(time.Hour)
	if err := s.Refresh(t.Context(), "realm"); err != nil || s.Status()[0].Keys != 60 || bytes.Equal(s.Keys("realm"), kept) {
		t.Errorf("after it: %v, %+v", err, s.Status()[0])
	}

	fresh := source()
	if err := fresh.Restore("realm", kept, clock.Now()); err != nil || fresh.Status()[0].Keys != 60 {
		t.Fatalf("%v, %+v", err, fresh.Status())
	}
	steady.discovery = func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusServiceUnavailable) }
	if err := fresh.Refresh(t.Context(), "realm"); catalog.CodeOf(err) != catalog.EntraProviderUnreachable {
		t.Errorf("got %v", err)
	}
	if got := fresh.Status()[0].Keys; got != 30 {
		t.Errorf("%d keys, want the 30 that are fresh: 70 do not fit", got)
	}
}
