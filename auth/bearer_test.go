package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

const (
	hierarchy = "7b0c3806-d28c-4a45-adb2-fb9f94a462f8"
	client    = ccm.ClientID("GUID:13E80CEF-5698-4C63-9ED6-E58FBFF78C38")
	bulkID    = "ea2fc510-a3be-4cef-90b0-2a0515c4e40c"
	stsURL    = "https://cmg.contoso.com/CCM_STS"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Keys of all tests, made once.
var (
	siteRing = sync.OnceValue(func() *token.Ring {
		var keys []token.Key
		for _, kind := range token.Kinds() {
			key, err := token.NewKey(kind, noon.Add(-time.Hour), rand.Reader)
			if err != nil {
				panic(err)
			}
			keys = append(keys, key)
		}
		return token.NewRing(hierarchy, keys)
	})
	deviceKey = sync.OnceValue(newKey)
	thiefKey  = sync.OnceValue(newKey)
)

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

func thumbprint(t testing.TB, key crypto.Signer) proof.KeyThumbprint {
	t.Helper()
	got, err := proof.Thumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func signed(t testing.TB, kind token.Kind, change func(*token.Claims)) string {
	t.Helper()
	claims := token.Claims{ID: bulkID}
	if kind != token.KindBulk {
		claims = token.Claims{ID: "jti-1", Client: client, Key: thumbprint(t, deviceKey()), Scope: token.ScopeClient, BulkID: bulkID, TokenType: token.TypeDevice}
	}
	if change != nil {
		change(&claims)
	}
	raw, err := siteRing().Sign(kind, claims, noon)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// fixture is a Bearer with a clock and with revocations that a test can change.
type fixture struct {
	bearer  *Bearer
	memory  *Memory
	now     time.Time
	ring    *token.Ring
	revoked error
	asked   []token.Claims
}

func (f *fixture) Verifier() *token.Verifier { return f.ring.Verifier() }

func (f *fixture) Revoked(c token.Claims) error {
	f.asked = append(f.asked, c)
	return f.revoked
}

func newFixture(change func(*BearerConfig)) *fixture {
	f := &fixture{now: noon, ring: siteRing()}
	f.memory = NewMemory(100, func() time.Time { return f.now })
	config := BearerConfig{Keys: f, Revocation: f, Replay: f.memory, URL: sameAddress, Now: func() time.Time { return f.now }}
	if change != nil {
		change(&config)
	}
	f.bearer = NewBearer(config)
	return f
}

func sameAddress(r *http.Request, htu *url.URL) error {
	if strings.EqualFold(htu.Host, r.Host) && strings.EqualFold(htu.Path, r.URL.Path) {
		return nil
	}
	return errors.New("another address")
}

func newRequest(method, target string) *http.Request {
	r := httptest.NewRequest(method, target, nil)
	r.RemoteAddr = "192.0.2.7:50000"
	return r
}

// request is a good request with that token and a new proof.
func (f *fixture) request(t testing.TB, raw string) *http.Request {
	t.Helper()
	r := newRequest("CCM_POST", stsURL)
	r.Header.Set("Authorization", "DPoP "+raw)
	r.Header.Set("DPoP", f.proof(t, deviceKey(), "CCM_POST", stsURL, raw))
	return r
}

func (f *fixture) proof(t testing.TB, key crypto.Signer, method, address, raw string) string {
	t.Helper()
	p, err := token.SignProof(key, method, address, raw, f.now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func wantCode(t testing.TB, err error, want catalog.Code) {
	t.Helper()
	if got := catalog.CodeOf(err); got != want || (err != nil) != (want != "") {
		t.Errorf("got code %q (%v), want %q", got, err, want)
	}
}

func TestProofSaysWhatWasProved(t *testing.T) {
	methods := map[token.Kind]proof.Method{token.KindBulk: proof.BulkToken, token.KindCCM: proof.CCMToken, token.KindSelfProve: proof.SelfProveToken}
	for kind, method := range methods {
		f := newFixture(nil)
		got, err := f.bearer.Proof(f.request(t, signed(t, kind, nil)), kind)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		want := proof.Proof{Method: method, Key: thumbprint(t, deviceKey()), Client: client, TokenID: "jti-1", BulkID: bulkID, Scope: token.ScopeClient, Address: "192.0.2.7", At: noon, Issued: noon}
		if kind == token.KindBulk {
			want.Client, want.TokenID, want.Scope = "", bulkID, ""
		}
		if want.SigningKey = got.SigningKey; got.SigningKey == "" {
			t.Errorf("%s: the key that signed the token is not named", kind)
		}
		if got.SigningKey == "" || got.Issued.IsZero() != (kind == token.KindBulk) {
			t.Errorf("%s: signed by %q at %s", kind, got.SigningKey, got.Issued)
		}
		want.SigningKey, want.Issued = got.SigningKey, got.Issued
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: got %+v, want %+v", kind, got, want)
		}
	}
}

func TestKindMatrix(t *testing.T) {
	for _, kind := range token.Kinds() {
		raw := signed(t, kind, nil)
		f := newFixture(nil)
		for range 2 { // the second time from the cache
			for _, accepted := range token.Kinds() {
				_, err := f.bearer.Proof(f.request(t, raw), accepted)
				want := catalog.TokenWrongKind
				if kind == accepted {
					want = ""
				}
				if got := catalog.CodeOf(err); got != want {
					t.Errorf("a %s token where %s is accepted: got %q, want %q", kind, accepted, got, want)
				}
			}
			_, err := f.bearer.Proof(f.request(t, raw))
			wantCode(t, err, catalog.TokenWrongKind)
		}
	}
}

func TestRefusals(t *testing.T) {
	raw := signed(t, token.KindCCM, nil)
	other := signed(t, token.KindCCM, func(c *token.Claims) { c.ID = "jti-2" })
	header := func(name string, values ...string) func(*fixture, *http.Request) {
		return func(_ *fixture, r *http.Request) {
			r.Header.Del(name)
			for _, value := range values {
				r.Header.Add(name, value)
			}
		}
	}
	proofBy := func(key crypto.Signer, method, address, raw string) func(*fixture, *http.Request) {
		return func(f *fixture, r *http.Request) { r.Header.Set("DPoP", f.proof(t, key, method, address, raw)) }
	}
	at := func(shift time.Duration) func(*fixture, *http.Request) {
		return func(f *fixture, r *http.Request) {
			f.now = noon.Add(shift)
			r.Header.Set("DPoP", f.proof(t, deviceKey(), "CCM_POST", stsURL, raw))
			f.now = noon
		}
	}
	tests := map[string]struct {
		change func(*fixture, *http.Request)
		want   catalog.Code
	}{
		"good":                          {nil, ""},
		"scheme in another case":        {header("Authorization", "dpop "+raw), ""},
		"address in another case":       {proofBy(deviceKey(), "CCM_POST", "https://CMG.contoso.com/ccm_sts", raw), ""},
		"nothing at all":                {func(_ *fixture, r *http.Request) { r.Header = http.Header{} }, catalog.TokenMissing},
		"a proof without token":         {header("Authorization"), catalog.TokenMissing},
		"a token without proof":         {header("DPoP"), catalog.TokenWithoutProof},
		"a bearer token of ours":        {header("Authorization", "Bearer "+raw), catalog.TokenWithoutProof},
		"a foreign bearer token":        {header("Authorization", "Bearer eyJ.abc.def"), catalog.TokenScheme},
		"Negotiate":                     {header("Authorization", "Negotiate YII="), catalog.TokenScheme},
		"Basic":                         {header("Authorization", "Basic YTpi"), catalog.TokenScheme},
		"an empty Authorization":        {header("Authorization", ""), catalog.TokenScheme},
		"the scheme alone":              {header("Authorization", "DPoP"), catalog.TokenMalformed},
		"two Authorization headers":     {header("Authorization", "DPoP "+raw, "DPoP "+raw), catalog.TokenScheme},
		"two tokens in one header":      {header("Authorization", "DPoP "+raw+", DPoP "+raw), catalog.TokenMalformed},
		"two proofs":                    {header("DPoP", "a", "b"), catalog.ProofMalformed},
		"an empty proof":                {header("DPoP", ""), catalog.ProofMalformed},
		"the token as its own proof":    {header("DPoP", raw), catalog.ProofMalformed},
		"a token in the query":          {func(_ *fixture, r *http.Request) { r.URL.RawQuery = "a=1&ACCESS_TOKEN=x" }, catalog.TokenInQuery},
		"a proof by another key":        {proofBy(thiefKey(), "CCM_POST", stsURL, raw), catalog.ProofOtherKey},
		"a proof for another token":     {proofBy(deviceKey(), "CCM_POST", stsURL, other), catalog.ProofOtherToken},
		"a proof for another method":    {proofBy(deviceKey(), "POST", stsURL, raw), catalog.ProofOtherMethod},
		"a proof for another path":      {proofBy(deviceKey(), "CCM_POST", "https://cmg.contoso.com/SMS_MP", raw), catalog.ProofOtherURL},
		"a proof for another host":      {proofBy(deviceKey(), "CCM_POST", "https://evil.example/CCM_STS", raw), catalog.ProofOtherURL},
		"a proof for plain http":        {proofBy(deviceKey(), "CCM_POST", "http://cmg.contoso.com/CCM_STS", raw), catalog.ProofOtherURL},
		"a proof with a query":          {proofBy(deviceKey(), "CCM_POST", stsURL+"?a=1", raw), catalog.ProofOtherURL},
		"a proof with an empty query":   {proofBy(deviceKey(), "CCM_POST", stsURL+"?", raw), catalog.ProofOtherURL},
		"a proof with a fragment":       {proofBy(deviceKey(), "CCM_POST", stsURL+"#a", raw), catalog.ProofOtherURL},
		"a proof with a user":           {proofBy(deviceKey(), "CCM_POST", "https://u@cmg.contoso.com/CCM_STS", raw), catalog.ProofOtherURL},
		"a proof for no URL":            {proofBy(deviceKey(), "CCM_POST", "https://[::1", raw), catalog.ProofOtherURL},
		"a proof from five minutes ago": {at(-5 * time.Minute), ""},
		"an older proof":                {at(-5*time.Minute - time.Second), catalog.ProofStale},
		"a proof a minute ahead":        {at(time.Minute), ""},
		"a proof further ahead":         {at(time.Minute + time.Second), catalog.ProofFuture},
		"a blocked token":               {func(f *fixture, _ *http.Request) { f.revoked = catalog.Errorf(catalog.TokenBlocked, "x") }, catalog.TokenBlocked},
		"a blocked token by another key": {func(f *fixture, r *http.Request) {
			f.revoked = catalog.Errorf(catalog.TokenBlocked, "x")
			proofBy(thiefKey(), "CCM_POST", stsURL, raw)(f, r)
		}, catalog.ProofOtherKey},
		"an expired token": {func(f *fixture, r *http.Request) {
			f.now = noon.Add(token.CCMLifetime + token.Leeway)
			proofBy(deviceKey(), "CCM_POST", stsURL, raw)(f, r)
		}, catalog.TokenExpired},
		"a token not yet valid": {func(f *fixture, r *http.Request) {
			f.now = noon.Add(-token.Leeway - time.Second)
			proofBy(deviceKey(), "CCM_POST", stsURL, raw)(f, r)
		}, catalog.TokenNotYetValid},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFixture(nil)
			r := f.request(t, raw)
			if test.change != nil {
				test.change(f, r)
			}
			p, err := f.bearer.Proof(r, token.KindCCM)
			wantCode(t, err, test.want)
			if err != nil && p.Method != "" {
				t.Errorf("a refused request proves %s", p.Method)
			}
			if wantLen := map[bool]int{true: 1}[err == nil]; f.memory.Len() != wantLen {
				t.Errorf("got %d ids remembered, want %d", f.memory.Len(), wantLen)
			}
			if err != nil && (strings.Contains(err.Error(), raw) || strings.Contains(err.Error(), raw[len(raw)-40:])) {
				t.Error("the error holds the token")
			}
		})
	}
}

func TestReplayedProof(t *testing.T) {
	f := newFixture(nil)
	raw := signed(t, token.KindCCM, nil)
	r := f.request(t, raw)
	if _, err := f.bearer.Proof(r, token.KindCCM); err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{0, time.Second, 299 * time.Second, 300 * time.Second} {
		f.now = noon.Add(after)
		_, err := f.bearer.Proof(r, token.KindCCM)
		wantCode(t, err, catalog.ProofReplayed)
	}
	f.now = noon.Add(301 * time.Second)
	_, err := f.bearer.Proof(r, token.KindCCM)
	wantCode(t, err, catalog.ProofStale)
}

// A proof from the future lives longer; it must not outlive the memory of it.
func TestReplayOfAProofFromTheFuture(t *testing.T) {
	f := newFixture(nil)
	raw := signed(t, token.KindCCM, nil)
	f.now = noon.Add(time.Minute)
	r := f.request(t, raw)
	f.now = noon
	if _, err := f.bearer.Proof(r, token.KindCCM); err != nil {
		t.Fatal(err)
	}
	for second := time.Duration(0); second <= 7*60; second += 5 {
		f.now = noon.Add(second * time.Second)
		if _, err := f.bearer.Proof(r, token.KindCCM); err == nil {
			t.Fatalf("accepted again after %d s", second)
		}
	}
}

func TestConcurrentUsesOfOneProof(t *testing.T) {
	f := newFixture(func(c *BearerConfig) { c.Revocation = nil })
	r := f.request(t, signed(t, token.KindCCM, nil))
	results := make(chan error, 50)
	var wg sync.WaitGroup
	for range cap(results) {
		wg.Go(func() {
			_, err := f.bearer.Proof(r, token.KindCCM)
			results <- err
		})
	}
	wg.Wait()
	close(results)
	succeeded := 0
	for err := range results {
		if err == nil {
			succeeded++
		}
	}
	if succeeded != 1 {
		t.Errorf("got %d, want exactly 1", succeeded)
	}
}

func TestCachedTokenIsJudgedAgain(t *testing.T) {
	raw := signed(t, token.KindCCM, nil)
	f := newFixture(nil)
	ask := func() error {
		_, err := f.bearer.Proof(f.request(t, raw), token.KindCCM)
		return err
	}
	wantCode(t, ask(), "")
	if got := f.bearer.cache.Len(); got != 1 {
		t.Fatalf("got %d cached, want 1", got)
	}
	f.revoked = catalog.Errorf(catalog.KeyBlocked, "x")
	wantCode(t, ask(), catalog.KeyBlocked)
	f.revoked = nil
	wantCode(t, ask(), "")
	if len(f.asked) != 3 {
		t.Errorf("revocation was asked %d times, want 3", len(f.asked))
	}
	f.now = noon.Add(token.CCMLifetime + token.Leeway)
	wantCode(t, ask(), catalog.TokenExpired)
	f.now, f.ring = noon, token.NewRing(hierarchy, nil)
	wantCode(t, ask(), catalog.TokenUnknownKey)
}

func TestRevocationSeesTheKeyOfABulkUse(t *testing.T) {
	f := newFixture(nil)
	if _, err := f.bearer.Proof(f.request(t, signed(t, token.KindBulk, nil)), token.KindBulk); err != nil {
		t.Fatal(err)
	}
	if got, want := f.asked[0].Key, thumbprint(t, deviceKey()); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

type brokenReplay struct{ err error }

func (b brokenReplay) Fresh(context.Context, string, time.Time) (bool, error) { return true, b.err }

func TestReplayMemoryThatCannotTellRefuses(t *testing.T) {
	raw := signed(t, token.KindCCM, nil)
	for want, err := range map[catalog.Code]error{
		catalog.ProofMemoryFailed: errors.New("database is away"),
		catalog.ProofMemoryFull:   catalog.Errorf(catalog.ProofMemoryFull, "x"),
	} {
		f := newFixture(func(c *BearerConfig) { c.Replay = brokenReplay{err} })
		_, got := f.bearer.Proof(f.request(t, raw), token.KindCCM)
		wantCode(t, got, want)
	}
}

func TestTokenBoundToACertificate(t *testing.T) {
	certificate := func(key crypto.Signer) *x509.Certificate {
		return issue(t, key, nil, &x509.Certificate{}, nil)
	}
	mine, foreign := certificate(deviceKey()), certificate(thiefKey())
	sum := sha256.Sum256(mine.Raw)
	bound := signed(t, token.KindCCM, func(c *token.Claims) {
		c.Key, c.CertificateThumbprint = "", base64.RawURLEncoding.EncodeToString(sum[:])
	})
	tests := map[string]struct {
		scheme    string
		mutualTLS bool
		shown     *x509.Certificate
		want      catalog.Code
	}{
		"its certificate":                        {"Bearer", true, mine, ""},
		"another certificate":                    {"Bearer", true, foreign, catalog.TokenOtherCertificate},
		"no certificate":                         {"Bearer", true, nil, catalog.TokenOtherCertificate},
		"where mutual TLS is not allowed":        {"Bearer", false, mine, catalog.TokenWithoutProof},
		"a proof of key instead of certificate":  {"DPoP", true, mine, catalog.TokenOtherCertificate},
		"a proof of key where TLS ends in front": {"DPoP", false, nil, catalog.TokenOtherCertificate},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFixture(func(c *BearerConfig) { c.MutualTLS = test.mutualTLS })
			r := f.request(t, bound)
			r.Header.Set("Authorization", test.scheme+" "+bound)
			r.TLS = &tls.ConnectionState{}
			if test.shown != nil {
				r.TLS.PeerCertificates = []*x509.Certificate{test.shown}
			}
			p, err := f.bearer.Proof(r, token.KindCCM)
			wantCode(t, err, test.want)
			if err == nil && (p.Client != client || string(p.Certificate) != string(mine.Raw)) {
				t.Errorf("got %+v", p)
			}
		})
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := NewCache[token.Claims](3)
	hash := func(n byte) [sha256.Size]byte { return sha256.Sum256([]byte{n}) }
	for n := range byte(10) {
		c.Put(hash(n), token.Claims{ID: fmt.Sprint(n)}, noon.Add(time.Hour), noon)
		c.Get(hash(0))
	}
	if got := c.Len(); got != 3 {
		t.Errorf("got %d, want 3", got)
	}
	if _, ok := c.Get(hash(0)); !ok {
		t.Error("the one in use was forgotten")
	}
	if _, ok := c.Get(hash(5)); ok {
		t.Error("an old one is still there")
	}
	c.Put(hash(20), token.Claims{}, noon.AddDate(0, 0, 1), noon.Add(2*time.Hour))
	if got := c.Len(); got != 1 {
		t.Errorf("got %d after the others expired, want 1", got)
	}
	none := NewCache[token.Claims](-1)
	none.Put(hash(1), token.Claims{}, noon.Add(time.Hour), noon)
	if got := none.Len(); got != 0 {
		t.Errorf("got %d, want none", got)
	}
}

func BenchmarkProof(b *testing.B) {
	for name, size := range map[string]int{"cached": 0, "uncached": -1} {
		b.Run(name, func(b *testing.B) {
			f := newFixture(func(c *BearerConfig) {
				c.CacheSize, c.Replay, c.Revocation = size, brokenReplay{}, nil
			})
			r := f.request(b, signed(b, token.KindCCM, nil))
			for b.Loop() {
				if _, err := f.bearer.Proof(r, token.KindCCM); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
