package entra

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern/catalog"
	"postern/internal/issuer"
	"postern/proof"
	"postern/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	deviceID  = "8d2b4ff9-0172-4998-9851-b5324303385f" // S2
	userID    = "e8838041-db7a-42d5-b9ae-78813910e4cc" // S2
	userSID   = "S-1-5-21-1527250992-855612568-2252598708-1604"
	deviceSID = "S-1-5-21-1527250992-855612568-2252598708-1105"
	otherID   = "2ca9a796-a1a6-43ec-88f1-5935b32155c5"
)

// start returns a provider of its own for a test.
func start(t testing.TB, o issuer.Options) *issuer.Issuer {
	t.Helper()
	provider, err := issuer.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := provider.Close(); err != nil {
			t.Error(err)
		}
	})
	return provider
}

func device() issuer.Device { return issuer.Device{ID: deviceID, OnPremSID: deviceSID} }

func user() issuer.User {
	return issuer.User{ObjectID: userID, Name: "meg@contoso.com", OnPremSID: userSID, Device: deviceID}
}

func validator(tenants ...token.Tenant) *Validator {
	return New(Config{Tenants: func() []token.Tenant { return tenants }})
}

func mint(t testing.TB, provider *issuer.Issuer, claims map[string]any, h issuer.Header) string {
	t.Helper()
	raw, err := provider.Mint(claims, h)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// with returns the claims with others in place; nil leaves one out.
func with(claims map[string]any, other map[string]any) map[string]any {
	claims = maps.Clone(claims)
	maps.Copy(claims, other)
	return claims
}

func TestGoodTokens(t *testing.T) {
	provider := start(t, issuer.Options{})
	tenant := provider.Tenant()
	v := validator(tenant)
	for _, version := range []issuer.Version{issuer.V1, issuer.V2} {
		deviceClaims, userClaims := provider.DeviceClaims(device(), version), provider.UserClaims(user(), version)
		for _, test := range []struct {
			name   string
			claims map[string]any
			want   proof.Cloud
		}{
			{"device", deviceClaims, proof.Cloud{Kind: proof.CloudDevice, Device: deviceID, DeviceSID: deviceSID}},
			{"user", userClaims, proof.Cloud{Kind: proof.CloudUser, Device: deviceID, User: userID, UserSID: userSID}},
			{"device that idtyp does not name", with(deviceClaims, map[string]any{"idtyp": nil}), proof.Cloud{Kind: proof.CloudDevice, Device: deviceID, DeviceSID: deviceSID}},
			{"user that idtyp names", with(userClaims, map[string]any{"idtyp": "user"}), proof.Cloud{Kind: proof.CloudUser, Device: deviceID, User: userID, UserSID: userSID}},
			{"user without device and SID", with(userClaims, map[string]any{"deviceid": nil, "onprem_sid": nil}), proof.Cloud{Kind: proof.CloudUser, User: userID}},
			{"ids in upper case", with(deviceClaims, map[string]any{"deviceid": strings.ToUpper(deviceID), "tid": strings.ToUpper(tenant.ID)}), proof.Cloud{Kind: proof.CloudDevice, Device: deviceID, DeviceSID: deviceSID}},
			{"audience in a list", with(deviceClaims, map[string]any{"aud": []string{"https://other", tenant.Audiences[1]}}), proof.Cloud{Kind: proof.CloudDevice, Device: deviceID, DeviceSID: deviceSID}},
			{"times with fractions", with(deviceClaims, map[string]any{"exp": float64(time.Now().Add(time.Hour).Unix()) + 0.5}), proof.Cloud{Kind: proof.CloudDevice, Device: deviceID, DeviceSID: deviceSID}},
			{"another person's names prove nothing", with(userClaims, map[string]any{"upn": "boss@contoso.com", "email": "boss@contoso.com", "preferred_username": "boss", "name": "Boss"}), proof.Cloud{Kind: proof.CloudUser, Device: deviceID, User: userID, UserSID: userSID}},
			{"groups that do not fit", with(userClaims, map[string]any{"_claim_names": map[string]any{"groups": "src1"}, "_claim_sources": map[string]any{"src1": map[string]any{"endpoint": "https://127.0.0.1:1/"}}}), proof.Cloud{Kind: proof.CloudUser, Device: deviceID, User: userID, UserSID: userSID}},
		} {
			t.Run(string(version)+" "+test.name, func(t *testing.T) {
				got, until, err := v.Validate(t.Context(), mint(t, provider, test.claims, issuer.Header{}))
				if err != nil {
					t.Fatal(err)
				}
				test.want.Tenant, test.want.Issuer, test.want.TokenID = tenant.ID, provider.IssuerOf(version), test.claims["uti"].(string)
				if got != test.want {
					t.Errorf("got  %+v\nwant %+v", got, test.want)
				}
				if left := time.Until(until); left < 58*time.Minute || left > 61*time.Minute {
					t.Errorf("it ends in %v", left)
				}
			})
		}
	}
}

// The rows of what a token can be wrong in; each has its own code, and none is cached
// as good.
func TestBadTokens(t *testing.T) {
	provider := start(t, issuer.Options{})
	other := start(t, issuer.Options{Tenant: otherID})
	foreign := start(t, issuer.Options{}) // not onboarded
	tenant, second := provider.Tenant(), other.Tenant()
	disabled := start(t, issuer.Options{})
	off := disabled.Tenant()
	off.Disabled = true
	unfetched := token.Tenant{ID: "5c0a1d4e-7a0e-4a8a-9a44-6d3d1a3f0d11", Issuers: []string{"https://sts.windows.net/5c0a1d4e-7a0e-4a8a-9a44-6d3d1a3f0d11/"}, Audiences: []string{"https://ConfigMgrService"}}
	v := validator(tenant, second, off, unfetched)
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	v1, v2, person := provider.DeviceClaims(device(), issuer.V1), provider.DeviceClaims(device(), issuer.V2), provider.UserClaims(user(), issuer.V1)
	now := time.Now()
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	claims := func(base map[string]any, pairs ...any) map[string]any {
		other := map[string]any{}
		for i := 0; i < len(pairs); i += 2 {
			other[pairs[i].(string)] = pairs[i+1]
		}
		return with(base, other)
	}
	fields := func(pairs ...any) issuer.Header {
		return issuer.Header{Fields: claims(map[string]any{}, pairs...)}
	}
	deep := any("end")
	for range 40 {
		deep = []any{deep}
	}
	for _, test := range []struct {
		name   string
		claims map[string]any
		header issuer.Header
		from   *issuer.Issuer
		want   catalog.Code
	}{
		{name: "another tenant's token", claims: foreign.DeviceClaims(device(), issuer.V1), from: foreign, want: catalog.EntraTenantUnknown},
		{name: "right tenant, issuer of nobody", claims: claims(v1, "iss", "https://evil.example/"+tenant.ID+"/"), want: catalog.EntraIssuer},
		{name: "right tenant, issuer without its slash", claims: claims(v1, "iss", strings.TrimSuffix(provider.IssuerOf(issuer.V1), "/")), want: catalog.EntraIssuer},
		{name: "right tenant, issuer of another tenant", claims: claims(v1, "iss", other.IssuerOf(issuer.V1)), want: catalog.EntraTenantMismatch},
		{name: "right issuer, tenant of nobody", claims: claims(v1, "tid", "11111111-2222-3333-4444-555555555555"), want: catalog.EntraTenantMismatch},
		{name: "another tenant that claims to be this one", claims: v1, from: other, want: catalog.EntraKeyUnknown},
		{name: "no tenant", claims: claims(v1, "tid", nil), want: catalog.EntraClaimMissing},
		{name: "no issuer", claims: claims(v1, "iss", nil), want: catalog.EntraClaimMissing},
		{name: "tenant is switched off", claims: disabled.DeviceClaims(device(), issuer.V1), from: disabled, want: catalog.EntraTenantDisabled},
		{name: "tenant whose keys were never fetched", claims: claims(v1, "tid", unfetched.ID, "iss", unfetched.Issuers[0]), want: catalog.EntraKeysMissing},

		{name: "right issuer, another audience", claims: claims(v1, "aud", "https://graph.microsoft.com"), want: catalog.EntraAudience},
		{name: "audience with more after it", claims: claims(v1, "aud", "https://ConfigMgrService.evil.example"), want: catalog.EntraAudience},
		{name: "audience in other case", claims: claims(v1, "aud", "https://configmgrservice"), want: catalog.EntraAudience},
		{name: "v2 audience with a slash", claims: claims(v2, "aud", "https://ConfigMgrService/"), want: catalog.EntraAudience},
		{name: "no audience", claims: claims(v1, "aud", nil), want: catalog.EntraClaimMissing},
		{name: "empty list of audiences", claims: claims(v1, "aud", []string{}), want: catalog.EntraClaimType},
		{name: "17 audiences", claims: claims(v1, "aud", strings.Split(strings.Repeat("x", 17), "")), want: catalog.EntraClaimType},

		{name: "v1 issuer, ver 2.0", claims: claims(v1, "ver", "2.0"), want: catalog.EntraVersion},
		{name: "v2 issuer, ver 1.0", claims: claims(v2, "ver", "1.0"), want: catalog.EntraVersion},
		{name: "v1 issuer, no ver", claims: claims(v1, "ver", nil), want: catalog.EntraVersion},

		{name: "user's token by another application", claims: claims(person, "appid", otherID), want: catalog.EntraClientApp},
		{name: "user's token by no application", claims: claims(person, "appid", nil), want: catalog.EntraClientApp},
		{name: "v1 token with the v2 claim for the application", claims: claims(person, "appid", nil, "azp", tenant.ClientApp), want: catalog.EntraClientApp},
		{name: "v2 user's token by another application", claims: claims(provider.UserClaims(user(), issuer.V2), "azp", otherID), want: catalog.EntraClientApp},
		{name: "device's token by another application", claims: claims(v1, "appid", otherID), want: catalog.EntraClientApp},

		{name: "an application's own token", claims: claims(v1, "idtyp", "app", "appid", tenant.ClientApp), want: catalog.EntraKind},
		{name: "an application's own token, idtyp not sent", claims: claims(v1, "idtyp", nil, "deviceid", nil, "appid", tenant.ClientApp), want: catalog.EntraKind},
		{name: "a device id that is not the subject, without a scope", claims: claims(v1, "idtyp", nil, "sub", otherID, "appid", tenant.ClientApp), want: catalog.EntraKind},
		{name: "idtyp in other case", claims: claims(v1, "idtyp", "Device", "appid", tenant.ClientApp), want: catalog.EntraKind},
		{name: "device's token without a device", claims: claims(v1, "deviceid", nil), want: catalog.EntraClaimMissing},
		{name: "user's token without a user", claims: claims(person, "oid", nil), want: catalog.EntraClaimMissing},

		{name: "nested actor", claims: claims(v1, "act", map[string]any{"sub": "service"}), want: catalog.EntraActor},
		{name: "may act", claims: claims(v1, "may_act", map[string]any{"sub": "service"}), want: catalog.EntraActor},
		{name: "actor token", claims: claims(v1, "actortoken", "eyJ"), want: catalog.EntraActor},

		{name: "ended 10 minutes ago", claims: claims(v1, "exp", at(-10*time.Minute)), want: catalog.EntraExpired},
		{name: "ended just beyond the leeway", claims: claims(v1, "exp", at(-token.Leeway-time.Second)), want: catalog.EntraExpired},
		{name: "begins in 10 minutes", claims: claims(v1, "nbf", at(10*time.Minute)), want: catalog.EntraNotYetValid},
		{name: "issued in 10 minutes", claims: claims(v1, "iat", at(10*time.Minute)), want: catalog.EntraNotYetValid},
		{name: "without an end", claims: claims(v1, "exp", nil), want: catalog.EntraClaimMissing},
		{name: "without a date", claims: claims(v1, "iat", nil), want: catalog.EntraClaimMissing},

		{name: "unsigned", claims: v1, header: issuer.Header{Algorithm: "none"}, want: catalog.EntraAlgorithm},
		{name: "unsigned, in other case", claims: v1, header: issuer.Header{Algorithm: "NoNe"}, want: catalog.EntraAlgorithm},
		{name: "HMAC keyed by the public key", claims: v1, header: issuer.Header{Algorithm: "HS256"}, want: catalog.EntraAlgorithm},
		{name: "PSS by the right key", claims: v1, header: issuer.Header{Algorithm: "PS256"}, want: catalog.EntraAlgorithm},
		{name: "longer hash by the right key", claims: v1, header: issuer.Header{Algorithm: "RS384"}, want: catalog.EntraAlgorithm},
		{name: "ES256 for an RSA key", claims: v1, header: fields("alg", "ES256"), want: catalog.EntraAlgorithm},
		{name: "RS256 that is in truth PSS", claims: v1, header: issuer.Header{Algorithm: "PS256", Fields: map[string]any{"alg": "RS256"}}, want: catalog.EntraSignature},
		{name: "no algorithm", claims: v1, header: fields("alg", nil), want: catalog.EntraAlgorithm},
		{name: "signed by another key under a known name", claims: v1, header: issuer.Header{Key: weak}, want: catalog.EntraSignature},
		{name: "key of nobody", claims: v1, header: issuer.Header{KeyID: "nobody"}, want: catalog.EntraKeyUnknown},
		{name: "key that looks like a file", claims: v1, header: issuer.Header{KeyID: "../../etc/passwd"}, want: catalog.EntraKeyUnknown},
		{name: "key with a line break", claims: v1, header: issuer.Header{KeyID: "a\nb"}, want: catalog.EntraTokenMalformed},
		{name: "no key", claims: v1, header: fields("kid", nil), want: catalog.EntraTokenMalformed},
		{name: "key is a number", claims: v1, header: fields("kid", 1), want: catalog.EntraTokenMalformed},

		{name: "jku", claims: v1, header: fields("jku", "https://127.0.0.1:1/keys"), want: catalog.EntraTokenBringsKey},
		{name: "x5u", claims: v1, header: fields("x5u", "https://127.0.0.1:1/chain"), want: catalog.EntraTokenBringsKey},
		{name: "x5c", claims: v1, header: fields("x5c", []string{"MII"}), want: catalog.EntraTokenBringsKey},
		{name: "jwk", claims: v1, header: fields("jwk", map[string]any{"kty": "RSA", "n": "AQ", "e": "AQAB"}), want: catalog.EntraTokenBringsKey},
		{name: "crit", claims: v1, header: fields("crit", []string{"exp"}), want: catalog.EntraTokenCritical},
		{name: "b64", claims: v1, header: fields("b64", false), want: catalog.EntraTokenCritical},
		{name: "zip", claims: v1, header: fields("zip", "DEF"), want: catalog.EntraTokenCritical},
		{name: "a DPoP proof", claims: v1, header: fields("typ", "dpop+jwt"), want: catalog.EntraTokenMalformed},
		{name: "large header", claims: v1, header: fields("x", strings.Repeat("x", 4096)), want: catalog.EntraTokenMalformed},
		{name: "deep header", claims: v1, header: fields("x", deep), want: catalog.EntraTokenMalformed},

		{name: "deep claims", claims: claims(v1, "x", deep), want: catalog.EntraTokenMalformed},
		{name: "large claims", claims: claims(v1, "x", strings.Repeat("x", 20_000)), want: catalog.EntraTokenTooLarge},
		{name: "device is a number", claims: claims(v1, "deviceid", 7), want: catalog.EntraClaimType},
		{name: "device is no GUID", claims: claims(v1, "deviceid", "../"+deviceID), want: catalog.EntraClaimType},
		{name: "device is empty", claims: claims(v1, "deviceid", ""), want: catalog.EntraClaimType},
		{name: "device is a list", claims: claims(v1, "deviceid", []string{deviceID}), want: catalog.EntraClaimType},
		{name: "object is no GUID", claims: claims(v1, "oid", "GUID:"+deviceID), want: catalog.EntraClaimType},
		{name: "tenant is an object", claims: claims(v1, "tid", map[string]any{"a": tenant.ID}), want: catalog.EntraClaimType},
		{name: "tenant with a line break", claims: claims(v1, "tid", "a\r\nb"), want: catalog.EntraClaimType},
		{name: "end is text", claims: claims(v1, "exp", "2030"), want: catalog.EntraClaimType},
		{name: "end is before 1970", claims: claims(v1, "exp", -1), want: catalog.EntraClaimType},
		{name: "end is in the year 300000", claims: claims(v1, "exp", 1e13), want: catalog.EntraClaimType},
		{name: "SID is none", claims: claims(v1, "onprem_sid", "S-1-5-21-1'; drop table"), want: catalog.EntraClaimType},
		{name: "token id with spaces", claims: claims(v1, "uti", "a b"), want: catalog.EntraClaimType},
		{name: "ver is a number", claims: claims(v1, "ver", 1.0), want: catalog.EntraClaimType},
		{name: "audience is an object", claims: claims(v1, "aud", map[string]any{}), want: catalog.EntraClaimType},
		{name: "idtyp is a list", claims: claims(v1, "idtyp", []string{"device"}), want: catalog.EntraClaimType},
	} {
		t.Run(test.name, func(t *testing.T) {
			from := test.from
			if from == nil {
				from = provider
			}
			raw := mint(t, from, test.claims, test.header)
			for range 2 { // the second time could come from the cache
				got, _, err := v.Validate(t.Context(), raw)
				if catalog.CodeOf(err) != test.want {
					t.Fatalf("got %v, want %s", err, test.want)
				}
				if got != (proof.Cloud{}) {
					t.Errorf("an error proves %+v", got)
				}
				if text := err.Error(); strings.Contains(text, raw) || strings.ContainsAny(text, "\r\n") {
					t.Errorf("the error is unfit for a log: %q", text)
				}
			}
		})
	}
	if got := v.cache.Len(); got > 0 {
		t.Errorf("%d are cached", got)
	}
}

// Every combination of six things that can be wrong is refused, whatever the others
// are, for both versions and both kinds (users-and-threats.md C56).
func TestWrongCombinations(t *testing.T) {
	provider := start(t, issuer.Options{})
	tenant := provider.Tenant()
	v := validator(tenant)
	wrong := []map[string]any{
		{"aud": "https://graph.microsoft.com"}, {"iss": "https://sts.windows.net/" + otherID + "/"}, {"tid": otherID},
		{"appid": otherID, "azp": otherID}, {"ver": "3.0"}, {"idtyp": "app"},
	}
	for _, version := range []issuer.Version{issuer.V1, issuer.V2} {
		for kind, base := range map[string]map[string]any{"device": provider.DeviceClaims(device(), version), "user": provider.UserClaims(user(), version)} {
			for bits := range 1 << len(wrong) {
				claims := base
				for i, other := range wrong {
					if bits>>i&1 == 1 {
						claims = with(claims, other)
					}
				}
				_, _, err := v.Validate(t.Context(), mint(t, provider, claims, issuer.Header{}))
				if good := err == nil; good != (bits == 0) || !good && catalog.CodeOf(err) == "" {
					t.Errorf("%s, version %s, wrong %06b: %v", kind, version, bits, err)
				}
			}
		}
	}
}

func TestTokensThatAreNone(t *testing.T) {
	provider := start(t, issuer.Options{})
	v := validator(provider.Tenant())
	good, err := provider.DeviceToken(device(), issuer.V1)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	twice := "eyJhbGciOiJSUzI1NiIsImFsZyI6Im5vbmUiLCJraWQiOiJhIn0" // {"alg":"RS256","alg":"none","kid":"a"}
	for _, test := range []struct {
		name, raw string
		want      catalog.Code
	}{
		{"empty", "", catalog.EntraTokenMalformed},
		{"two parts", parts[0] + "." + parts[1], catalog.EntraTokenMalformed},
		{"five parts, encrypted", good + ".x.y", catalog.EntraTokenMalformed},
		{"no signature", parts[0] + "." + parts[1] + ".", catalog.EntraTokenMalformed},
		{"padding", parts[0] + "=." + parts[1] + "." + parts[2], catalog.EntraTokenMalformed},
		{"algorithm twice", twice + "." + parts[1] + "." + parts[2], catalog.EntraTokenMalformed},
		{"claims are a list", parts[0] + ".W10." + parts[2], catalog.EntraTokenMalformed},
		{"claims are null", parts[0] + ".bnVsbA." + parts[2], catalog.EntraTokenMalformed},
		{"signature with other letters", parts[0] + "." + parts[1] + ".+/" + parts[2][2:], catalog.EntraTokenMalformed},
		{"one bit of the claims", parts[0] + "." + parts[1][:8] + flip(parts[1][8:9]) + parts[1][9:] + "." + parts[2], catalog.EntraTokenMalformed},
		{"one bit of the signature", parts[0] + "." + parts[1] + "." + parts[2][:9] + flip(parts[2][9:10]) + parts[2][10:], catalog.EntraSignature},
		{"a megabyte", strings.Repeat("A", 1<<20), catalog.EntraTokenTooLarge},
		{"a megabyte of dots", strings.Repeat(".", 1<<20), catalog.EntraTokenTooLarge},
		{"a good token that goes on for a megabyte", good + strings.Repeat("A", 1<<20), catalog.EntraTokenTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, _, err := v.Validate(t.Context(), test.raw); catalog.CodeOf(err) != test.want && !(test.name == "one bit of the claims" && err != nil) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
	large := strings.Repeat("A", 1<<20)
	if got := testing.AllocsPerRun(10, func() { _, _, _ = v.Validate(context.Background(), large) }); got > 20 {
		t.Errorf("a megabyte costs %v allocations before it is refused", got)
	}
}

func flip(letter string) string {
	if letter == "A" {
		return "B"
	}
	return "A"
}

// The clock: ten minutes either way are refused, the leeway is not; the error names it.
func TestLeeway(t *testing.T) {
	provider := start(t, issuer.Options{})
	tenant := provider.Tenant()
	raw, err := provider.DeviceToken(device(), issuer.V1)
	if err != nil {
		t.Fatal(err)
	}
	issued := time.Now()
	for _, test := range []struct {
		name   string
		clock  time.Duration // of the server, relative to the provider's
		leeway time.Duration
		want   catalog.Code
	}{
		{"clock is right", 0, 0, ""},
		{"clock is 50 s late", -50 * time.Second, 0, ""},
		{"clock is 10 min late", -10 * time.Minute, 0, catalog.EntraNotYetValid},
		{"clock is 10 min late, the leeway allows it", -10 * time.Minute, 11 * time.Minute, ""},
		{"token ended 50 s ago", time.Hour + 50*time.Second, 0, ""},
		{"token ended 10 min ago", time.Hour + 10*time.Minute, 0, catalog.EntraExpired},
		{"token ended 10 min ago, the leeway allows it", time.Hour + 10*time.Minute, 11 * time.Minute, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := New(Config{
				Tenants: func() []token.Tenant { return []token.Tenant{tenant} }, Leeway: test.leeway,
				Now: func() time.Time { return issued.Add(test.clock) },
			})
			_, _, err := v.Validate(t.Context(), raw)
			if got := catalog.CodeOf(err); got != test.want {
				t.Fatalf("got %v, want %s", err, test.want)
			}
			if err != nil && !strings.Contains(catalog.Public(err), "the leeway is 1m0s") {
				t.Errorf("it does not name the leeway: %s", catalog.Public(err))
			}
		})
	}
}

// A token that was good is judged again when the tenant changes: only its signature
// is remembered.
func TestRememberedTokenFollowsTheTenant(t *testing.T) {
	provider := start(t, issuer.Options{})
	tenant := provider.Tenant()
	clock := time.Now()
	v := New(Config{Tenants: func() []token.Tenant { return []token.Tenant{tenant} }, Now: func() time.Time { return clock }})
	raw, err := provider.DeviceToken(device(), issuer.V1)
	if err != nil {
		t.Fatal(err)
	}
	check := func(name string, want catalog.Code) {
		t.Helper()
		if _, _, err := v.Validate(t.Context(), raw); catalog.CodeOf(err) != want {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
	check("first", "")
	check("again", "")
	if got := v.cache.Len(); got != 1 {
		t.Fatalf("%d tokens are remembered", got)
	}
	for _, change := range []struct {
		name string
		make func(*token.Tenant)
		want catalog.Code
	}{
		{"disabled", func(t *token.Tenant) { t.Disabled = true }, catalog.EntraTenantDisabled},
		{"issuer taken away", func(t *token.Tenant) { t.Issuers = t.Issuers[1:] }, catalog.EntraIssuer},
		{"audience taken away", func(t *token.Tenant) { t.Audiences = t.Audiences[1:] }, catalog.EntraAudience},
		{"keys withdrawn", func(t *token.Tenant) { t.Keys = nil }, catalog.EntraKeysMissing},
		{"keys that cannot be read", func(t *token.Tenant) { t.Keys = []byte(`{"keys":[`) }, catalog.EntraKeysMissing},
	} {
		before := tenant
		change.make(&tenant)
		check(change.name, change.want)
		tenant = before
		check("back from "+change.name, "")
	}
	if err := provider.Rotate(); err != nil {
		t.Fatal(err)
	}
	tenant.Keys = provider.Tenant().Keys
	check("new key beside the old", "")
	provider.Forget()
	tenant.Keys = provider.Tenant().Keys
	check("key taken back", catalog.EntraKeyUnknown)
	clock = clock.Add(2 * time.Hour)
	tenant.Keys = nil
	check("keys gone", catalog.EntraKeysMissing)
}

func TestCacheIsBounded(t *testing.T) {
	provider := start(t, issuer.Options{})
	tenant := provider.Tenant()
	v := New(Config{Tenants: func() []token.Tenant { return []token.Tenant{tenant} }, CacheSize: 4})
	for range 10 {
		raw, err := provider.DeviceToken(device(), issuer.V2)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := v.Validate(t.Context(), raw); err != nil {
			t.Fatal(err)
		}
	}
	if got := v.cache.Len(); got != 4 {
		t.Errorf("%d tokens are kept, want 4", got)
	}
}

func TestUnknownKeysAreReportedAndBounded(t *testing.T) {
	provider := start(t, issuer.Options{})
	tenant := provider.Tenant()
	heard := 0
	v := New(Config{Tenants: func() []token.Tenant { return []token.Tenant{tenant} }, OnUnknownKey: func(TenantKey) { heard++ }})
	claims := provider.DeviceClaims(device(), issuer.V1)
	for i := range 100 {
		_, _, err := v.Validate(t.Context(), mint(t, provider, claims, issuer.Header{KeyID: fmt.Sprintf("made-up-%d", i)}))
		if catalog.CodeOf(err) != catalog.EntraKeyUnknown {
			t.Fatal(err)
		}
	}
	got := v.Unknown()
	if len(got) != maxUnknown || got[0].Tenant != tenant.ID || !strings.HasPrefix(got[0].KeyID, "made-up-") {
		t.Errorf("got %d, the first is %+v", len(got), got[0])
	}
	if again := v.Unknown(); len(again) != 0 {
		t.Errorf("%d are told twice", len(again))
	}
	if heard != 100 {
		t.Errorf("%d were heard of, want 100", heard)
	}
}

// The fields by which a token would have its key fetched never lead to a request.
func TestTokenLeadsNowhere(t *testing.T) {
	asked := 0
	trap := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer trap.Close()
	provider := start(t, issuer.Options{})
	v := validator(provider.Tenant())
	for _, field := range []string{"jku", "x5u"} {
		raw := mint(t, provider, provider.DeviceClaims(device(), issuer.V1), issuer.Header{Fields: map[string]any{field: trap.URL}})
		if _, _, err := v.Validate(t.Context(), raw); catalog.CodeOf(err) != catalog.EntraTokenBringsKey {
			t.Error(err)
		}
	}
	raw := mint(t, provider, with(provider.UserClaims(user(), issuer.V1), map[string]any{
		"_claim_names": map[string]any{"groups": "s"}, "_claim_sources": map[string]any{"s": map[string]any{"endpoint": trap.URL}},
	}), issuer.Header{})
	if _, _, err := v.Validate(t.Context(), raw); err != nil {
		t.Error(err)
	}
	if asked > 0 {
		t.Errorf("%d requests were made for a token", asked)
	}
}

func BenchmarkValidate(b *testing.B) {
	provider := start(b, issuer.Options{})
	tenant := provider.Tenant()
	tenants := []token.Tenant{tenant}
	raw, err := provider.DeviceToken(device(), issuer.V1)
	if err != nil {
		b.Fatal(err)
	}
	for name, size := range map[string]int{"remembered": 10, "new": -1} {
		b.Run(name, func(b *testing.B) {
			v := New(Config{Tenants: func() []token.Tenant { return tenants }, CacheSize: size})
			for b.Loop() {
				if _, _, err := v.Validate(b.Context(), raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
