package lab_test

import (
	"crypto"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/gateway"
	"postern/internal/issuer"
	"postern/internal/lab"
	"postern/mp"
	"postern/proof"
	"postern/token"
)

// cloud is a world with three providers: the tenant's, whose keys the management point fetches; another tenant's; and one that nobody onboarded.
type cloud struct {
	*world
	provider, other, foreign *issuer.Issuer
	disabled                 *issuer.Issuer
}

func newCloud(t testing.TB) *cloud {
	t.Helper()
	start := func() *issuer.Issuer {
		i, err := issuer.Start(issuer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { i.Close() })
		return i
	}
	c := &cloud{provider: start(), other: start(), foreign: start(), disabled: start()}
	c.world = newWorld(t, func(o *lab.Options) { o.Provider = c.provider })
	tenant := c.provider.Tenant()
	tenant.Keys = nil // the management point fetches them
	_, err := c.Site().AddTenant(t.Context(), tenant, "test")
	c.must(err)
	for _, i := range []*issuer.Issuer{c.other, c.disabled} {
		tenant := i.Tenant()
		_, err := c.Site().AddTenant(t.Context(), tenant, "test")
		c.must(err)
		c.must(c.Site().SetTenantKeys(t.Context(), tenant.ID, tenant.Keys, time.Now()))
	}
	c.must(c.Site().EnableTenant(t.Context(), c.disabled.Tenant().ID, false, "test", "switched off"))
	eventually(t, "the gateway knows the tenants with their keys", func() bool {
		known := c.Gateway.Gateway.Status().Tenants
		off := slices.ContainsFunc(known, func(t gateway.Tenant) bool { return t.Disabled })
		return len(known) == 3 && off && !slices.ContainsFunc(known, func(t gateway.Tenant) bool { return !t.Keys })
	})
	return c
}

// on returns the same world for a subtest.
func (c *cloud) on(t testing.TB) *cloud {
	other := *c
	other.world = c.world.on(t)
	return &other
}

// bearing returns the headers that carry a tenant's token with a proof by a key.
func bearing(t testing.TB, key crypto.Signer, method, htu, raw string) http.Header {
	t.Helper()
	header := proofOf(t, key, method, htu, raw)
	header.Set("Authorization", "Bearer "+raw)
	return header
}

// stations are the two ends that judge a tenant's token at CCM_STS.
func (c *cloud) stations() map[string]string {
	return map[string]string{"gateway": c.outside(ccm.DoorServerAuth, "/CCM_STS"), "management point": c.inside("/CCM_STS")}
}

// TestTenantsTokensThatAreRefused: everything that can be wrong with a tenant's token or with how it is sent, at the gateway and at the management
// point that is asked directly. Each has its code, nothing of it reaches further, and the site stays as it was.
func TestTenantsTokensThatAreRefused(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	d, stranger := newDevice(t, "cloud"), newDevice(t, "stranger")
	joined, person := c.provider.AddDevice(issuer.Device{}), c.provider.AddUser(issuer.User{Name: "meg@contoso.com"})
	v1, v2 := c.provider.DeviceClaims(joined, issuer.V1), c.provider.DeviceClaims(joined, issuer.V2)
	user := c.provider.UserClaims(person, issuer.V1)
	tenant := c.provider.Tenant()
	with := func(base map[string]any, pairs ...any) map[string]any {
		claims := maps.Clone(base)
		for i := 0; i < len(pairs); i += 2 {
			claims[pairs[i].(string)] = pairs[i+1]
		}
		return claims
	}
	mint := func(from *issuer.Issuer, claims map[string]any, h issuer.Header) string {
		raw, err := from.Mint(claims, h)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	field := func(name string, value any) issuer.Header { return issuer.Header{Fields: map[string]any{name: value}} }
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }

	type refused struct {
		name   string
		code   catalog.Code
		header func(t testing.TB, htu string) http.Header
	}
	var list []refused
	minted := func(name string, code catalog.Code, raw string) {
		list = append(list, refused{name, code, func(t testing.TB, htu string) http.Header { return bearing(t, d.key, http.MethodPost, htu, raw) }})
	}
	ours := func(name string, code catalog.Code, claims map[string]any, h issuer.Header) {
		minted(name, code, mint(c.provider, claims, h))
	}
	good := mint(c.provider, v1, issuer.Header{})

	minted("of a tenant that nobody onboarded", catalog.EntraTenantUnknown, mint(c.foreign, c.foreign.DeviceClaims(joined, issuer.V1), issuer.Header{}))
	minted("of a tenant that is switched off", catalog.EntraTenantDisabled, mint(c.disabled, c.disabled.DeviceClaims(joined, issuer.V1), issuer.Header{}))
	minted("of another tenant that claims to be this one", catalog.EntraKeyUnknown, mint(c.other, v1, issuer.Header{}))
	ours("right tenant, another tenant's issuer", catalog.EntraTenantMismatch, with(v1, "iss", c.other.IssuerOf(issuer.V1)), issuer.Header{})
	ours("right tenant, issuer of nobody", catalog.EntraIssuer, with(v1, "iss", "https://evil.example/"+tenant.ID+"/"), issuer.Header{})
	ours("right issuer, another tenant", catalog.EntraTenantMismatch, with(v1, "tid", c.other.Tenant().ID), issuer.Header{})
	ours("right issuer, another audience", catalog.EntraAudience, with(v1, "aud", "https://graph.microsoft.com"), issuer.Header{})
	ours("version 2.0 of the issuer of version 1.0", catalog.EntraVersion, with(v1, "ver", "2.0"), issuer.Header{})
	ours("version 1.0 of the issuer of version 2.0", catalog.EntraVersion, with(v2, "ver", "1.0"), issuer.Header{})
	ours("user's token by another application", catalog.EntraClientApp, with(user, "appid", c.other.Tenant().ClientApp), issuer.Header{})
	ours("an application's own token", catalog.EntraKind, with(v1, "idtyp", "app", "appid", tenant.ClientApp), issuer.Header{})
	ours("nested actor", catalog.EntraActor, with(v1, "act", map[string]any{"sub": "service", "act": map[string]any{"sub": "inner"}}), issuer.Header{})
	for _, algorithm := range []string{"none", "HS256", "PS256"} {
		ours("alg "+algorithm, catalog.EntraAlgorithm, v1, issuer.Header{Algorithm: algorithm})
	}
	ours("jku", catalog.EntraTokenBringsKey, v1, field("jku", "https://127.0.0.1:1/keys"))
	ours("x5u", catalog.EntraTokenBringsKey, v1, field("x5u", "https://127.0.0.1:1/chain"))
	ours("jwk", catalog.EntraTokenBringsKey, v1, field("jwk", map[string]any{"kty": "RSA", "n": "AQ", "e": "AQAB"}))
	ours("crit", catalog.EntraTokenCritical, v1, field("crit", []string{"exp"}))
	ours("a key that the tenant does not list", catalog.EntraKeyUnknown, v1, issuer.Header{KeyID: "nobody"})
	ours("another key under a listed name", catalog.EntraSignature, v1, issuer.Header{Key: stranger.key})
	ours("device id is a number", catalog.EntraClaimType, with(v1, "deviceid", 7), issuer.Header{})
	ours("tenant is a list", catalog.EntraClaimType, with(v1, "tid", []string{tenant.ID}), issuer.Header{})
	ours("no device", catalog.EntraClaimMissing, with(v1, "deviceid", nil), issuer.Header{})
	ours("no end", catalog.EntraClaimMissing, with(v1, "exp", nil), issuer.Header{})
	ours("ended 10 minutes ago", catalog.EntraExpired, with(v1, "exp", in(-10*time.Minute)), issuer.Header{})
	ours("begins in 10 minutes", catalog.EntraNotYetValid, with(v1, "nbf", in(10*time.Minute)), issuer.Header{})
	ours("issued in 10 minutes", catalog.EntraNotYetValid, with(v1, "iat", in(10*time.Minute)), issuer.Header{})
	ours("17 kilobytes", catalog.EntraTokenTooLarge, with(v1, "x", strings.Repeat("x", 13<<10)), issuer.Header{})
	minted("a good token with more behind it", catalog.EntraSignature, good[:len(good)-4]+"AAAA")

	sent := func(name string, code catalog.Code, header func(t testing.TB, htu string) http.Header) {
		list = append(list, refused{name, code, header})
	}
	sent("good, without a proof", catalog.TokenScheme, func(testing.TB, string) http.Header { return http.Header{"Authorization": {"Bearer " + good}} })
	sent("good, with a proof for another token", catalog.ProofOtherToken, func(t testing.TB, htu string) http.Header {
		h := bearing(t, d.key, http.MethodPost, htu, good+"x")
		h.Set("Authorization", "Bearer "+good)
		return h
	})
	sent("good, with a proof for another address", catalog.ProofOtherURL, func(t testing.TB, htu string) http.Header {
		return bearing(t, d.key, http.MethodPost, htu+"/x", good)
	})
	sent("good, with a proof for another method", catalog.ProofOtherMethod, func(t testing.TB, htu string) http.Header {
		return bearing(t, d.key, http.MethodGet, htu, good)
	})
	sent("good, beside a token of the site", catalog.TokenScheme, func(t testing.TB, htu string) http.Header {
		h := bearing(t, d.key, http.MethodPost, htu, good)
		h.Add("Authorization", "DPoP "+good)
		return h
	})

	for station, address := range c.stations() {
		for _, bad := range list {
			t.Run(station+"/"+bad.name, func(t *testing.T) {
				c := c.on(t)
				want := refusal{status: http.StatusUnauthorized, code: bad.code}
				if station == "gateway" {
					want.reason = "CMGService_Invalid_Token"
				}
				c.refuses(want, func() answer {
					a := c.send(c.http1(), http.MethodPost, address, form, []byte(d.grant(t, address, token.KindCCM)), bad.header(t, address))
					if _, reached := c.point.get(a.id()); reached && station == "gateway" {
						t.Error("the refused request reached the management point")
					}
					return a
				})
			})
		}
		t.Run(station+"/a megabyte", func(t *testing.T) {
			c := c.on(t)
			c.unchanged(func() {
				a, err := c.try(c.http1(), http.MethodPost, address, form, nil, bearing(t, d.key, http.MethodPost, address, good+strings.Repeat("A", 1<<20)))
				if err == nil && a.status != http.StatusRequestHeaderFieldsTooLarge {
					t.Errorf("answered %s", a)
				}
			})
		})
		t.Run(station+"/a proof twice", func(t *testing.T) {
			c := c.on(t)
			header := bearing(t, d.key, http.MethodPost, address, good)
			ask := func() answer {
				return c.send(c.http1(), http.MethodPost, address, form, []byte(d.grant(t, address, token.KindCCM)), header)
			}
			c.token(ask())
			if a := ask(); a.status != http.StatusUnauthorized || a.problem() != catalog.ProofReplayed {
				t.Errorf("answered %s", a)
			}
		})
	}
}

// TestATenantsTokenOpensTheTokenServiceOnly: on every route of the gateway and of the management point a good token of a tenant is let in where the
// table names it, and is nothing anywhere else.
func TestATenantsTokenOpensTheTokenServiceOnly(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	d := newDevice(t, "cloud")
	good, err := c.provider.DeviceToken(c.provider.AddDevice(issuer.Device{}), issuer.V2)
	c.must(err)
	none := []catalog.Code{catalog.TokenScheme, catalog.TokenWrongKind, catalog.TokenWithoutProof, catalog.ProofNotAccepted}
	from := 0
	for _, row := range gateway.Routes() {
		for _, path := range row.Paths() {
			path = strings.NewReplacer("<id>", fmt.Sprint(c.role), "<file>", "file.txt").Replace(path)
			address, method := "https://"+c.GatewayHost+path, row.Methods[0]
			from++
			a := c.send(c.http2(1+from/15), method, address, "", nil, bearing(t, d.key, method, address, good))
			e := c.world.gateway.of(t, a.id())
			switch takes := row.Proof.Anyone || slices.Contains(row.Proof.Tokens, auth.KindEntra); {
			case takes && e.Proof.Method != proof.Entra:
				t.Errorf("gateway %s: proved %q, %v", path, e.Proof.Method, e.Err)
			case !takes && row.Proof.Certificate:
				if a.status != http.StatusForbidden {
					t.Errorf("gateway %s: answered %s", path, a)
				}
			case !takes && (a.status != http.StatusUnauthorized || !slices.Contains(none, e.Code()) || e.Proof.Method != ""):
				t.Errorf("gateway %s: proved %q, answered %s with %s", path, e.Proof.Method, a, e.Code())
			}
		}
	}
	for _, row := range mp.Routes() {
		if !slices.Contains(row.Listeners, mp.EnhancedHTTP) || row.Path == "/CCM_STS" {
			continue
		}
		method := row.Methods[0]
		a := c.send(c.http2(1), method, c.inside(row.Path), "", nil, bearing(t, d.key, method, c.inside(row.Path), good))
		if code := a.problem(); a.status != http.StatusUnauthorized || !slices.Contains(append(none, catalog.NegotiateRequired), code) {
			t.Errorf("management point %s: answered %s with %s", row.Path, a, code)
		}
	}
}

// TestATokenOfTheSiteEndsWithItsTenant: the same CCM token, before the tenant is switched off, while it is, and after, at both ends.
func TestATokenOfTheSiteEndsWithItsTenant(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	for _, kind := range []string{"device", "user"} {
		t.Run(kind, func(t *testing.T) {
			c := c.on(t)
			d := newDevice(t, "cloud-"+kind)
			raw, err := c.provider.DeviceToken(c.provider.AddDevice(issuer.Device{}), issuer.V1)
			if kind == "user" {
				raw, err = c.provider.UserToken(c.provider.AddUser(issuer.User{Name: "meg@contoso.com"}), issuer.V2)
			}
			c.must(err)
			exchange := func() answer {
				address := c.outside(ccm.DoorServerAuth, "/CCM_STS")
				return c.send(c.http1(), http.MethodPost, address, form, []byte(d.grant(t, address, token.KindCCM)), bearing(t, d.key, http.MethodPost, address, raw))
			}
			first := c.token(exchange())
			if first.Scope != token.ScopeRegister {
				t.Fatalf("scope %q before registration", first.Scope)
			}
			response, err := ccm.ParseRegistrationResponse(c.text(c.message(d, first.AccessToken, "MP_ClientRegistration", d.registration(t), false)))
			c.must(err)
			if d.id = response.SMSID; response.ApprovalStatus != ccm.ApprovalEntra {
				t.Errorf("approval status %d", response.ApprovalStatus)
			}
			var issued struct {
				AccessToken string `json:"access_token"`
				ExpiresIn   int    `json:"expires_in"`
			}
			a := exchange()
			if err := json.Unmarshal(a.body, &issued); err != nil || issued.ExpiresIn < 28790 || issued.ExpiresIn > 28800 {
				t.Errorf("want a token of eight hours: %s", a)
			}
			d.ccm = issued.AccessToken
			ask := func(where string) answer {
				address := map[string]string{"gateway": c.outside(ccm.DoorServerAuth, "/SMS_MP_TokenAuth/.sms_aut"), "management point": c.inside("/SMS_MP_TokenAuth/.sms_aut")}[where]
				return c.send(c.http1(), http.MethodGet, address+"?MPLIST", "", nil, proofOf(t, d.key, http.MethodGet, address, d.ccm))
			}
			for _, enabled := range []bool{true, false, true} {
				c.must(c.Site().EnableTenant(t.Context(), c.provider.Tenant().ID, enabled, "test", "the test"))
				eventually(t, "the gateway has heard of it", func() bool { return c.Gateway.Gateway.Status().Epoch == c.Site().Epoch() })
				for _, where := range []string{"gateway", "management point"} {
					switch a := ask(where); {
					case enabled && a.status != http.StatusOK:
						t.Errorf("%s, tenant enabled: %s", where, a)
					case !enabled && (a.status != http.StatusUnauthorized || a.problem() != catalog.EntraTenantDisabled):
						t.Errorf("%s, tenant disabled: %s", where, a)
					}
				}
			}
		})
	}
}

// TestAnotherDevicesIdentityOnTheSameKey: a key that stands for one device of a tenant gets no token by another's identity.
func TestAnotherDevicesIdentityOnTheSameKey(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	d := newDevice(t, "first")
	address := c.outside(ccm.DoorServerAuth, "/CCM_STS")
	exchange := func(from *issuer.Issuer) answer {
		raw, err := from.DeviceToken(from.AddDevice(issuer.Device{}), issuer.V1)
		c.must(err)
		p, err := token.SignProof(d.key, http.MethodPost, address, raw, time.Now(), rand.Reader)
		c.must(err)
		return c.send(c.http1(), http.MethodPost, address, form, []byte(d.grant(t, address, token.KindCCM)), http.Header{"Authorization": {"Bearer " + raw}, "Dpop": {p}})
	}
	first := c.token(exchange(c.provider))
	c.text(c.message(d, first.AccessToken, "MP_ClientRegistration", d.registration(t), false))
	for name, from := range map[string]*issuer.Issuer{"of the same tenant": c.provider, "of another tenant": c.other} {
		if a := exchange(from); a.problem() != catalog.EntraOtherDevice {
			t.Errorf("a device %s: %s", name, a)
		}
	}
}

// TestAADAuthInfoTellsOfOnboardedTenantsOnly: four values for a tenant that is let in, and one and the same answer for all others, whoever asks.
func TestAADAuthInfoTellsOfOnboardedTenantsOnly(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	asked := 0
	ask := func(query string) answer {
		asked++
		return c.send(c.http2(1+asked/15), http.MethodGet, "https://"+c.GatewayHost+"/CCM_Proxy_ServerAuth/AADAuthInfo"+query, "", nil, nil)
	}
	tenant := c.provider.Tenant()
	want := map[string]string{"TenantId": tenant.ID, "ClientAppId": tenant.ClientApp, "ResourceUri": tenant.Resource, "Authority": tenant.Issuers[0]}
	for _, query := range []string{"?TenantID=" + tenant.ID, "?tenantid=" + strings.ToUpper(tenant.ID), "?x=1&TenantID=" + tenant.ID} {
		a := ask(query)
		var got map[string]string
		if err := json.Unmarshal(a.body, &got); err != nil || a.status != http.StatusOK || !maps.Equal(got, want) {
			t.Errorf("%s: %s, want %v and nothing else", query, a, want)
		}
	}
	without := func(a answer) string { return strings.ReplaceAll(string(a.body), a.id(), "") }
	unknown := ask("?TenantID=" + c.foreign.Tenant().ID)
	if unknown.status != http.StatusNotFound || unknown.problem() != catalog.GatewayTenantUnknown {
		t.Fatalf("a tenant that nobody onboarded: %s", unknown)
	}
	if a := ask("?TenantID=" + c.disabled.Tenant().ID); a.status != unknown.status || without(a) != without(unknown) {
		t.Errorf("a tenant that is switched off: %s, want %s", a, unknown)
	}
	for _, query := range []string{
		"", "?", "?TenantID=", "?TenantID=*", "?TenantID=" + tenant.ID[:35], "?TenantID=" + tenant.ID + "%00", "?TenantID=../" + tenant.ID,
		"?TenantID=" + strings.Repeat("a", 300), "?TenantID=" + tenant.ID + "&" + strings.Repeat("a", 300), "?TenantID=none&TenantID=" + tenant.ID,
	} {
		if a := ask(query); a.status != http.StatusNotFound || a.problem() != catalog.GatewayTenantUnknown || strings.Contains(string(a.body), tenant.ClientApp) {
			t.Errorf("%.60s: %s", query, a)
		}
	}
}
