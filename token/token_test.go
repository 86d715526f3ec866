package token

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	strictjson "github.com/go-jose/go-jose/v4/json"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

const (
	hierarchy = "7b0c3806-d28c-4a45-adb2-fb9f94a462f8"
	client    = ccm.ClientID("GUID:13E80CEF-5698-4C63-9ED6-E58FBFF78C38")
	bulkID    = "ea2fc510-a3be-4cef-90b0-2a0515c4e40c"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// The keys of the tests are made once: RSA keys are slow to make.
var (
	siteKeys = sync.OnceValue(func() map[Kind]Key {
		keys := map[Kind]Key{}
		for _, kind := range Kinds() {
			key, err := NewKey(kind, noon.Add(-time.Hour), rand.Reader)
			if err != nil {
				panic(err)
			}
			keys[kind] = key
		}
		return keys
	})
	deviceKey = sync.OnceValue(func() *rsa.PrivateKey { return mustRSA(2048) })
	otherKey  = sync.OnceValue(func() *rsa.PrivateKey { return mustRSA(2048) })
	weakKey   = sync.OnceValue(func() *rsa.PrivateKey { return mustRSA(1024) })
	rootKey   = sync.OnceValue(mustEC)
	otherRoot = sync.OnceValue(mustEC)
)

func mustRSA(bits int) *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err)
	}
	return key
}

func mustEC() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

func thumbprint(t testing.TB, pub crypto.PublicKey) proof.KeyThumbprint {
	t.Helper()
	key, err := proof.Thumbprint(pub)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func testRing() *Ring {
	keys := siteKeys()
	return NewRing(hierarchy, []Key{keys[KindBulk], keys[KindCCM], keys[KindSelfProve]})
}

func claimsOf(t testing.TB, kind Kind) Claims {
	t.Helper()
	if kind == KindBulk {
		return Claims{ID: bulkID}
	}
	c := Claims{ID: "jti-1", Client: client, Key: thumbprint(t, &deviceKey().PublicKey), BulkID: bulkID, TokenType: TypeDevice}
	if kind == KindCCM {
		c.Scope = ScopeClient
	}
	return c
}

func sign(t testing.TB, kind Kind) string {
	t.Helper()
	raw, err := testRing().Sign(kind, claimsOf(t, kind), noon)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// forge signs any header and payload, as an attacker who holds the key might.
func forge(t testing.TB, head, payload string, key crypto.Signer, pss bool) string {
	t.Helper()
	input := base64.RawURLEncoding.EncodeToString([]byte(head)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	digest := sha256.Sum256([]byte(input))
	var options crypto.SignerOpts = crypto.SHA256
	if pss {
		options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	}
	signature, err := key.Sign(rand.Reader, digest[:], options)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := key.Public().(*ecdsa.PublicKey); ok {
		signature = fixedWidth(t, key.(*ecdsa.PrivateKey), digest[:])
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func fixedWidth(t testing.TB, key *ecdsa.PrivateKey, digest []byte) []byte {
	t.Helper()
	r, s, err := ecdsa.Sign(rand.Reader, key, digest)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out
}

func part(t testing.TB, raw string, n int) []byte {
	t.Helper()
	decoded, err := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[n])
	if err != nil {
		t.Fatal(err)
	}
	return decoded
}

// names returns the names of a JSON object in their order.
func names(t testing.TB, object []byte) []string {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(object))
	var found []string
	for depth, name := 0, true; ; {
		item, err := decoder.Token()
		if err != nil {
			return found
		}
		switch v := item.(type) {
		case json.Delim:
			if v == '{' {
				depth++
				name = true
			} else {
				depth--
			}
			continue
		case string:
			if depth == 1 && name {
				found = append(found, v)
			}
		}
		name = !name
	}
}

func wantCode(t testing.TB, err error, want catalog.Code) {
	t.Helper()
	if got := catalog.CodeOf(err); got != want {
		t.Errorf("got code %q (%v), want %q", got, err, want)
	}
}

func TestBulkTokenHasTheDocumentedShape(t *testing.T) {
	file, err := os.ReadFile("testdata/bulk.jwt") // S3
	if err != nil {
		t.Fatal(err)
	}
	documented, ours := strings.TrimSpace(string(file)), sign(t, KindBulk)

	for n, name := range []string{"header", "claims"} {
		got, want := names(t, part(t, ours, n)), names(t, part(t, documented, n))
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
	if got, want := len(part(t, ours, 2)), len(part(t, documented, 2)); got != want {
		t.Errorf("signature: got %d bytes, want %d", got, want)
	}

	var got, want map[string]any
	unmarshal(t, part(t, ours, 1), &got)
	unmarshal(t, part(t, documented, 1), &want)
	for _, name := range []string{"SCCMTokenCategory", "Authority", "License", "Type", "TenantId", "UniqueId", "iss", "aud"} {
		if got[name] != want[name] {
			t.Errorf("%s: got %v, want %v", name, got[name], want[name])
		}
	}
	if got, want := got["exp"].(float64)-got["nbf"].(float64), want["exp"].(float64)-want["nbf"].(float64); got != want {
		t.Errorf("lifetime: got %v seconds, want %v", got, want)
	}
}

func unmarshal(t testing.TB, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

func TestDocumentedTokenIsReadAndItsKeyIsUnknown(t *testing.T) {
	file, err := os.ReadFile("testdata/bulk.jwt")
	if err != nil {
		t.Fatal(err)
	}
	raw := strings.TrimSpace(string(file))
	_, err = testRing().Verifier().Verify(raw, noon, KindBulk)
	wantCode(t, err, catalog.TokenUnknownKey)

	var b bulkClaims
	if err := strictjson.Unmarshal(part(t, raw, 1), &b); err != nil {
		t.Fatal(err)
	}
	got, err := b.claims(hierarchy)
	if err != nil {
		t.Fatal(err)
	}
	if want := time.Date(2020, 5, 17, 7, 45, 18, 0, time.UTC); !got.Expires.Equal(want) || got.ID != bulkID {
		t.Errorf("got %s until %s, want %s until %s", got.ID, got.Expires, bulkID, want)
	}
}

func TestClaimsSurvive(t *testing.T) {
	for _, kind := range Kinds() {
		got, err := testRing().Verifier().Verify(sign(t, kind), noon, kind)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		want := withTimes(kind, claimsOf(t, kind), noon)
		want.Kind, want.KeyID, want.Hierarchy = kind, siteKeys()[kind].ID, hierarchy
		if kind == KindBulk {
			want.BulkID, want.IssuedAt = want.ID, time.Time{}
		}
		if got != want {
			t.Errorf("%s: got %+v, want %+v", kind, got, want)
		}
	}
}

func TestEachKindIsAcceptedOnlyAsItself(t *testing.T) {
	verifier := testRing().Verifier()
	for _, kind := range Kinds() {
		raw := sign(t, kind)
		for _, accepted := range Kinds() {
			_, err := verifier.Verify(raw, noon, accepted)
			want := catalog.TokenWrongKind
			if kind == accepted {
				want = ""
			}
			if got := catalog.CodeOf(err); got != want {
				t.Errorf("a %s token where %s is accepted: got %q, want %q", kind, accepted, got, want)
			}
		}
		if _, err := verifier.Verify(raw, noon); catalog.CodeOf(err) != catalog.TokenWrongKind {
			t.Errorf("a %s token where nothing is accepted: got %v", kind, err)
		}
	}
}

// A key of one kind signs what looks like a token of another kind: header type and
// claims decide too, not only the key.
func TestAKeySignsOnlyItsKind(t *testing.T) {
	keys := siteKeys()
	ccmPayload := string(part(t, sign(t, KindCCM), 1))
	bulkPayload := string(part(t, sign(t, KindBulk), 1))
	selfKey, bulkKey := keys[KindSelfProve], keys[KindBulk]
	tests := map[string]struct {
		raw  string
		want catalog.Code
	}{
		"self-prove key, CCM type":           {forge(t, `{"typ":"ccm+jwt","alg":"ES256","kid":"`+selfKey.ID+`"}`, ccmPayload, selfKey.Signer, false), catalog.TokenWrongKind},
		"self-prove key, CCM claims":         {forge(t, `{"typ":"selfprove+jwt","alg":"ES256","kid":"`+selfKey.ID+`"}`, ccmPayload, selfKey.Signer, false), catalog.TokenAudience},
		"bulk key, CCM claims":               {forge(t, `{"typ":"JWT","alg":"RS256","x5t":"`+bulkKey.ID+`"}`, ccmPayload, bulkKey.Signer, false), catalog.TokenWrongKind},
		"bulk key, CCM type":                 {forge(t, `{"typ":"ccm+jwt","alg":"RS256","x5t":"`+bulkKey.ID+`"}`, bulkPayload, bulkKey.Signer, false), catalog.TokenWrongKind},
		"bulk key named by kid":              {forge(t, `{"typ":"JWT","alg":"RS256","kid":"`+bulkKey.ID+`"}`, bulkPayload, bulkKey.Signer, false), catalog.TokenUnknownKey},
		"bulk key, another category":         {forge(t, `{"typ":"JWT","alg":"RS256","x5t":"`+bulkKey.ID+`"}`, strings.Replace(bulkPayload, "SCCMPreAuthToken", "S{CMPreAuthToken", 1), bulkKey.Signer, false), catalog.TokenWrongKind},
		"bulk key, another hierarchy":        {forge(t, `{"typ":"JWT","alg":"RS256","x5t":"`+bulkKey.ID+`"}`, strings.Replace(bulkPayload, "7b0c3806", "00000000", 1), bulkKey.Signer, false), catalog.TokenIssuer},
		"bulk key, another audience":         {forge(t, `{"typ":"JWT","alg":"RS256","x5t":"`+bulkKey.ID+`"}`, strings.Replace(bulkPayload, "urn:sccm:service", "urn:sccm:other", 1), bulkKey.Signer, false), catalog.TokenAudience},
		"a list of audiences is not ours":    {forge(t, `{"typ":"JWT","alg":"RS256","x5t":"`+bulkKey.ID+`"}`, strings.Replace(bulkPayload, `"urn:sccm:service"`, `["urn:sccm:service"]`, 1), bulkKey.Signer, false), catalog.TokenMalformed},
		"CCM key with a proof's header type": {forge(t, `{"typ":"dpop+jwt","alg":"ES256","kid":"`+keys[KindCCM].ID+`"}`, ccmPayload, keys[KindCCM].Signer, false), catalog.TokenWrongKind},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := testRing().Verifier().Verify(test.raw, noon, Kinds()...)
			wantCode(t, err, test.want)
		})
	}
}

func TestHostileTokens(t *testing.T) {
	keys := siteKeys()
	bulk, ccmKey := keys[KindBulk], keys[KindCCM]
	good := sign(t, KindBulk)
	payload, ccmPayload := string(part(t, good, 1)), string(part(t, sign(t, KindCCM), 1))
	bulkHead := `{"typ":"JWT","alg":"RS256","x5t":"` + bulk.ID + `"}`
	ccmHead := `{"typ":"ccm+jwt","alg":"ES256","kid":"` + ccmKey.ID + `"}`
	withHead := func(head string) string { return forge(t, head, payload, bulk.Signer, false) }
	withClaims := func(claims string) string { return forge(t, bulkHead, claims, bulk.Signer, false) }
	with := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(payload) }
	kid := func(id string) string {
		b, _ := json.Marshal(id)
		return forge(t, `{"typ":"ccm+jwt","alg":"ES256","kid":`+string(b)+`}`, ccmPayload, ccmKey.Signer, false)
	}
	parts := strings.Split(good, ".")

	tests := map[string]struct {
		raw  string
		want catalog.Code
	}{
		"empty":                           {"", catalog.TokenMalformed},
		"no dots":                         {"abc", catalog.TokenMalformed},
		"two parts":                       {parts[0] + "." + parts[1], catalog.TokenMalformed},
		"four parts":                      {good + ".AAAA", catalog.TokenMalformed},
		"no signature":                    {parts[0] + "." + parts[1] + ".", catalog.TokenMalformed},
		"line break inside":               {parts[0] + ".\n" + parts[1] + "." + parts[2], catalog.TokenMalformed},
		"padding":                         {good + "=", catalog.TokenMalformed},
		"JSON serialization":              {`{"payload":"e30","signatures":[]}`, catalog.TokenMalformed},
		"1 MiB of dots":                   {strings.Repeat(".", 1<<20), catalog.TokenTooLarge},
		"16 KiB and one":                  {strings.Repeat("a", MaxToken+1), catalog.TokenTooLarge},
		"16 KiB of dots":                  {strings.Repeat(".", MaxToken), catalog.TokenMalformed},
		"header of 5 KiB":                 {withHead(`{"typ":"` + strings.Repeat("J", 5<<10) + `"}`), catalog.TokenMalformed},
		"header not JSON":                 {withHead(`typ`), catalog.TokenMalformed},
		"header is an array":              {withHead(`["RS256"]`), catalog.TokenMalformed},
		"header deeply nested":            {withHead(strings.Repeat(`{"typ":`, 400)), catalog.TokenMalformed},
		"header with alg twice":           {withHead(`{"typ":"JWT","alg":"none","alg":"RS256","x5t":"` + bulk.ID + `"}`), catalog.TokenMalformed},
		"alg is a number":                 {withHead(`{"typ":"JWT","alg":256,"x5t":"` + bulk.ID + `"}`), catalog.TokenMalformed},
		"alg none":                        {withHead(`{"typ":"JWT","alg":"none","x5t":"` + bulk.ID + `"}`), catalog.TokenAlgorithm},
		"alg None in mixed case":          {withHead(`{"typ":"JWT","alg":"NoNe","x5t":"` + bulk.ID + `"}`), catalog.TokenAlgorithm},
		"no alg":                          {withHead(`{"typ":"JWT","x5t":"` + bulk.ID + `"}`), catalog.TokenAlgorithm},
		"RS256 in lower case":             {withHead(`{"typ":"JWT","alg":"rs256","x5t":"` + bulk.ID + `"}`), catalog.TokenAlgorithm},
		"HS256 over the public key":       {hmacToken(t, bulk), catalog.TokenAlgorithm},
		"PS256 by the RS256 key":          {forge(t, `{"typ":"JWT","alg":"PS256","x5t":"`+bulk.ID+`"}`, payload, bulk.Signer, true), catalog.TokenAlgorithm},
		"PS256 signature named RS256":     {forge(t, bulkHead, payload, bulk.Signer, true), catalog.TokenSignature},
		"RS256 by the ES256 key's id":     {forge(t, `{"typ":"ccm+jwt","alg":"RS256","kid":"`+ccmKey.ID+`"}`, ccmPayload, otherKey(), false), catalog.TokenAlgorithm},
		"another key's signature":         {forge(t, bulkHead, payload, otherKey(), false), catalog.TokenSignature},
		"signature of zeros":              {parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 256)), catalog.TokenSignature},
		"ES256 signature of zeros":        {base64.RawURLEncoding.EncodeToString([]byte(ccmHead)) + "." + base64.RawURLEncoding.EncodeToString([]byte(ccmPayload)) + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)), catalog.TokenSignature},
		"changed payload":                 {parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(with("BulkRegistration", "BulkRegistratiom"))) + "." + parts[2], catalog.TokenSignature},
		"no key named":                    {withHead(`{"typ":"JWT","alg":"RS256"}`), catalog.TokenUnknownKey},
		"unknown x5t":                     {withHead(`{"typ":"JWT","alg":"RS256","x5t":"MWRWRmKUBVc6RCHjBN42fxoeGD0"}`), catalog.TokenUnknownKey},
		"kid and x5t":                     {withHead(`{"typ":"JWT","alg":"RS256","kid":"a","x5t":"` + bulk.ID + `"}`), catalog.TokenHeader},
		"kid with a path":                 {kid("../../etc/passwd"), catalog.TokenUnknownKey},
		"kid with SQL":                    {kid("' OR 1=1 --"), catalog.TokenUnknownKey},
		"kid with a newline":              {kid("a\nb"), catalog.TokenUnknownKey},
		"kid with NUL":                    {kid("a\x00"), catalog.TokenUnknownKey},
		"kid of 65 characters":            {kid(strings.Repeat("a", 65)), catalog.TokenUnknownKey},
		"kid is an object":                {withHead(`{"typ":"ccm+jwt","alg":"ES256","kid":{"a":1}}`), catalog.TokenMalformed},
		"jwk":                             {withHead(`{"typ":"JWT","alg":"RS256","jwk":{"kty":"RSA"}}`), catalog.TokenHeader},
		"jku":                             {withHead(`{"typ":"JWT","alg":"RS256","x5t":"` + bulk.ID + `","jku":"http://127.0.0.1:1/"}`), catalog.TokenHeader},
		"x5u":                             {withHead(`{"typ":"JWT","alg":"RS256","x5t":"` + bulk.ID + `","x5u":"http://127.0.0.1:1/"}`), catalog.TokenHeader},
		"x5c":                             {withHead(`{"typ":"JWT","alg":"RS256","x5t":"` + bulk.ID + `","x5c":[]}`), catalog.TokenHeader},
		"crit":                            {withHead(`{"typ":"JWT","alg":"RS256","x5t":"` + bulk.ID + `","crit":["exp"]}`), catalog.TokenHeader},
		"b64 false":                       {withHead(`{"typ":"JWT","alg":"RS256","x5t":"` + bulk.ID + `","b64":false}`), catalog.TokenHeader},
		"zip":                             {withHead(`{"typ":"JWT","alg":"RS256","x5t":"` + bulk.ID + `","zip":"DEF"}`), catalog.TokenHeader},
		"no exp":                          {withClaims(with(`"exp"`, `"ex"`)), catalog.TokenNoExpiry},
		"exp null":                        {withClaims(replaceClaim(payload, "exp", "null")), catalog.TokenNoExpiry},
		"exp as text":                     {withClaims(replaceClaim(payload, "exp", `"1"`)), catalog.TokenMalformed},
		"exp with a fraction":             {withClaims(replaceClaim(payload, "exp", `1.5`)), catalog.TokenMalformed},
		"exp a huge number":               {withClaims(replaceClaim(payload, "exp", `1e400`)), catalog.TokenMalformed},
		"exp beyond the year 9999":        {withClaims(replaceClaim(payload, "exp", `253402300800`)), catalog.TokenMalformed},
		"exp negative":                    {withClaims(replaceClaim(payload, "exp", `-1`)), catalog.TokenMalformed},
		"no nbf":                          {withClaims(with(`"nbf"`, `"nb"`)), catalog.TokenClaims},
		"no id":                           {withClaims(with(bulkID, "")), catalog.TokenClaims},
		"duplicate exp":                   {withClaims(strings.Replace(payload, `"exp"`, `"exp":9999999999,"exp"`, 1)), catalog.TokenMalformed},
		"claim names in another case":     {withClaims(with(`"exp"`, `"EXP"`)), catalog.TokenNoExpiry},
		"claims are an array":             {withClaims(`[]`), catalog.TokenMalformed},
		"claims with trailing data":       {withClaims(payload + `{}`), catalog.TokenMalformed},
		"claims deeply nested":            {withClaims(strings.Repeat(`{"a":`, 1500)), catalog.TokenMalformed},
		"CCM token without a key":         {forge(t, ccmHead, strings.Replace(ccmPayload, `"jkt"`, `"jku"`, 1), ccmKey.Signer, false), catalog.TokenClaims},
		"CCM token for no device":         {forge(t, ccmHead, strings.Replace(ccmPayload, `GUID:`, `GUID-`, 1), ccmKey.Signer, false), catalog.TokenClaims},
		"CCM token for another hierarchy": {forge(t, ccmHead, strings.Replace(ccmPayload, "urn:postern:hierarchy:7", "urn:postern:hierarchy:8", 1), ccmKey.Signer, false), catalog.TokenIssuer},
	}
	verifier := testRing().Verifier()
	if _, err := verifier.Verify(good, noon, KindBulk); err != nil {
		t.Fatalf("the good token: %v", err)
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := verifier.Verify(test.raw, noon, Kinds()...)
			wantCode(t, err, test.want)
			if test.raw != "" && err != nil && len(test.raw) > 20 && strings.Contains(catalog.Public(err), test.raw[:20]) {
				t.Error("the error holds a part of the token")
			}
		})
	}
}

func replaceClaim(payload, name, value string) string {
	var fields map[string]json.RawMessage
	_ = json.Unmarshal([]byte(payload), &fields)
	fields[name] = json.RawMessage(value)
	var pairs []string
	for name, value := range fields {
		pairs = append(pairs, fmt.Sprintf("%q:%s", name, value))
	}
	return "{" + strings.Join(pairs, ",") + "}"
}

func hmacToken(t testing.TB, key Key) string {
	t.Helper()
	public, err := x509.MarshalPKIXPublicKey(key.Public)
	if err != nil {
		t.Fatal(err)
	}
	input := base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"JWT","alg":"HS256","x5t":"`+key.ID+`"}`)) + "." + strings.Split(sign(t, KindBulk), ".")[1]
	mac := hmac.New(sha256.New, public)
	mac.Write([]byte(input))
	return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func TestTimes(t *testing.T) {
	verifier := testRing().Verifier()
	for _, kind := range Kinds() {
		raw, claims := sign(t, kind), withTimes(kind, claimsOf(t, kind), noon)
		tests := map[string]struct {
			now  time.Time
			want catalog.Code
		}{
			"last second of the leeway before": {claims.NotBefore.Add(-Leeway), ""},
			"one second too early":             {claims.NotBefore.Add(-Leeway - time.Second), catalog.TokenNotYetValid},
			"at the end":                       {claims.Expires, ""},
			"last second of the leeway after":  {claims.Expires.Add(Leeway - time.Second), ""},
			"leeway over":                      {claims.Expires.Add(Leeway), catalog.TokenExpired},
			"years later":                      {claims.Expires.Add(400 * 24 * time.Hour), catalog.TokenExpired},
		}
		for name, test := range tests {
			t.Run(string(kind)+" "+name, func(t *testing.T) {
				_, err := verifier.Verify(raw, test.now, kind)
				wantCode(t, err, test.want)
			})
		}
	}
}

func TestExpiredTokenSaysTheDocumentedText(t *testing.T) {
	ring := testRing()
	end := time.Date(2026, 3, 2, 22, 3, 24, 0, time.UTC)
	raw, err := ring.Sign(KindBulk, Claims{ID: bulkID, NotBefore: noon, Expires: end}, noon)
	if err != nil {
		t.Fatal(err)
	}
	_, err = ring.Verifier().Verify(raw, time.Date(2026, 3, 28, 13, 5, 5, 0, time.UTC), KindBulk)
	var expired *ExpiredError
	if !errors.As(err, &expired) {
		t.Fatalf("got %v, want an ExpiredError", err)
	}
	want := "IDX10223: Lifetime validation failed. The token is expired. ValidTo: '03/02/2026 22:03:24' Current time: '03/28/2026 13:05:05'."
	if got := expired.Error(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLifetimes(t *testing.T) {
	tests := map[string]struct {
		kind Kind
		life time.Duration
		want catalog.Code
	}{
		"bulk, a minute":                 {KindBulk, time.Minute, ""},
		"bulk, the documented maximum":   {KindBulk, 10080 * time.Minute, ""},
		"bulk, a minute above":           {KindBulk, 10081 * time.Minute, catalog.TokenLifetime},
		"bulk, ends before it begins":    {KindBulk, -time.Minute, catalog.TokenLifetime},
		"CCM, eight hours":               {KindCCM, 8 * time.Hour, ""},
		"CCM, a second above":            {KindCCM, 8*time.Hour + time.Second, catalog.TokenLifetime},
		"self-prove, ninety days":        {KindSelfProve, 90 * 24 * time.Hour, ""},
		"self-prove, ninety days and on": {KindSelfProve, 91 * 24 * time.Hour, catalog.TokenLifetime},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			claims := claimsOf(t, test.kind)
			claims.NotBefore, claims.Expires = noon, noon.Add(test.life)
			_, err := testRing().Sign(test.kind, claims, noon)
			wantCode(t, err, test.want)
		})
	}
}

func TestSignRefusesUnboundTokens(t *testing.T) {
	for name, claims := range map[string]Claims{
		"no id":     {Client: client, Key: "k"},
		"no client": {ID: "1", Key: "k"},
		"no key":    {ID: "1", Client: client},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := testRing().Sign(KindCCM, claims, noon)
			wantCode(t, err, catalog.TokenClaims)
		})
	}
}

func newTestKey(t testing.TB, from time.Time) Key {
	t.Helper()
	key, err := NewKey(KindCCM, from, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestRotation(t *testing.T) {
	older, newer := newTestKey(t, noon.Add(-48*time.Hour)), newTestKey(t, noon)
	prepared := newTestKey(t, noon.Add(24*time.Hour))
	claims := claimsOf(t, KindCCM)

	before := NewRing(hierarchy, []Key{older})
	old, err := before.Sign(KindCCM, claims, noon)
	if err != nil {
		t.Fatal(err)
	}
	ring := NewRing(hierarchy, []Key{older, prepared, newer})
	raw, err := ring.Sign(KindCCM, claims, noon)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ring.Verifier().Verify(raw, noon, KindCCM)
	if err != nil || got.KeyID != newer.ID {
		t.Errorf("the newest active key signs: got %s (%v), want %s", got.KeyID, err, newer.ID)
	}
	if raw, err = ring.Sign(KindCCM, claims, noon.Add(25*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got, _ = ring.Verifier().Verify(raw, noon.Add(25*time.Hour), KindCCM); got.KeyID != prepared.ID {
		t.Errorf("the prepared key signs when its time has come: got %s, want %s", got.KeyID, prepared.ID)
	}

	retired := older
	retired.State = KeyRetired
	ring = NewRing(hierarchy, []Key{retired})
	held, err := ring.Verifier().Verify(old, noon, KindCCM)
	if err != nil {
		t.Errorf("a retired key verifies: %v", err)
	}
	_, err = ring.Sign(KindCCM, claims, noon)
	wantCode(t, err, catalog.TokenNoSigningKey)

	ended := retired
	ended.NotAfter = noon.Add(-Leeway)
	_, err = NewRing(hierarchy, []Key{ended}).Verifier().Verify(old, noon, KindCCM)
	wantCode(t, err, catalog.TokenUnknownKey)

	revoked := older
	revoked.State = KeyRevoked
	verifier := NewRing(hierarchy, []Key{revoked, newer}).Verifier()
	_, err = verifier.Verify(old, noon, KindCCM)
	wantCode(t, err, catalog.TokenKeyRevoked)
	wantCode(t, verifier.Check(held, noon, KindCCM), catalog.TokenKeyRevoked)

	next := newer
	next.State = KeyPrepared
	ring = NewRing(hierarchy, []Key{older, next})
	raw, err = ring.Sign(KindCCM, claims, noon)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ring.Verifier().Verify(raw, noon, KindCCM); err != nil || got.KeyID != older.ID {
		t.Errorf("a prepared key signs nothing: got %s, %v", got.KeyID, err)
	}
	if raw, err = NewRing(hierarchy, []Key{newer}).Sign(KindCCM, claims, noon); err != nil {
		t.Fatal(err)
	}
	if _, err := ring.Verifier().Verify(raw, noon, KindCCM); err != nil {
		t.Errorf("a prepared key verifies what another node signs with it already: %v", err)
	}
}

func TestAKeySignsNothingThatOutlivesIt(t *testing.T) {
	key := newTestKey(t, noon)
	key.NotAfter = noon.Add(CCMLifetime - time.Second)
	_, err := NewRing(hierarchy, []Key{key}).Sign(KindCCM, claimsOf(t, KindCCM), noon)
	wantCode(t, err, catalog.TokenNoSigningKey)
}

func TestTwoNodesShareKeys(t *testing.T) {
	raw := sign(t, KindCCM)
	public, err := testRing().PublicKeys()
	if err != nil {
		t.Fatal(err)
	}
	state := SiteState{Hierarchy: strings.ToUpper(hierarchy), Keys: public}
	verifier, err := state.Verifier()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifier.Verify(raw, noon, KindCCM); err != nil {
		t.Error(err)
	}
}

func TestVerifierLeavesOutKeysOfAnotherAlgorithm(t *testing.T) {
	for name, change := range map[string]func(*Key){
		"a bulk key with ES256":        func(k *Key) { k.Algorithm = AlgorithmES256 },
		"a P-256 key that says RS256":  func(k *Key) { *k = siteKeys()[KindCCM]; k.Algorithm = AlgorithmRS256 },
		"a P-256 key for bulk tokens":  func(k *Key) { *k = siteKeys()[KindCCM]; k.Kind = KindBulk },
		"an RSA key that says PS256":   func(k *Key) { k.Kind, k.Algorithm = KindCCM, "PS256" },
		"a key that says nothing":      func(k *Key) { k.Kind, k.Algorithm = KindCCM, "" },
		"a bulk key for another kind":  func(k *Key) { k.Kind = KindCCM }, // which is named by kid
		"an RSA key that says ES256":   func(k *Key) { k.Kind, k.Algorithm = KindCCM, AlgorithmES256 },
		"a key of a kind that is none": func(k *Key) { k.Kind = "x" },
	} {
		key := siteKeys()[KindBulk]
		change(&key)
		verifier := NewVerifier(hierarchy, []Key{key})
		for _, kind := range Kinds() {
			_, err := verifier.Verify(sign(t, kind), noon, Kinds()...)
			if got := catalog.CodeOf(err); got != catalog.TokenUnknownKey {
				t.Errorf("%s, %s token: got %q", name, kind, got)
			}
		}
	}
}

// TestRS256ByChoice: CCM and self-prove keys may be RSA; both algorithms stand in one ring, and each key brings its own.
func TestRS256ByChoice(t *testing.T) {
	for _, kind := range []Kind{KindCCM, KindSelfProve} {
		rsaKey, err := NewKeyOf(kind, AlgorithmRS256, noon, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		ring := NewRing(hierarchy, []Key{siteKeys()[kind], rsaKey})
		raw, err := ring.Sign(kind, claimsOf(t, kind), noon)
		if err != nil {
			t.Fatal(err)
		}
		keys, err := ring.PublicKeys()
		if err != nil {
			t.Fatal(err)
		}
		atGateway, err := SiteState{Hierarchy: hierarchy, Keys: keys}.Verifier()
		if err != nil {
			t.Fatal(err)
		}
		for name, token := range map[string]string{"RS256": raw, "ES256": sign(t, kind)} {
			for _, verifier := range []*Verifier{ring.Verifier(), atGateway} {
				claims, err := verifier.Verify(token, noon, kind)
				if want := map[string]string{"RS256": rsaKey.ID, "ES256": siteKeys()[kind].ID}[name]; err != nil || claims.KeyID != want {
					t.Errorf("%s %s: key %s, %v", kind, name, claims.KeyID, err)
				}
			}
		}
		payload := strings.Split(raw, ".")[1]
		forged := forge(t, `{"typ":"`+map[Kind]string{KindCCM: "ccm+jwt", KindSelfProve: "selfprove+jwt"}[kind]+`","alg":"PS256","kid":"`+rsaKey.ID+`"}`, payload, rsaKey.Signer, true)
		_, err = ring.Verifier().Verify(forged, noon, kind)
		wantCode(t, err, catalog.TokenAlgorithm)
	}
	for kind, algorithm := range map[Kind]string{KindBulk: AlgorithmES256, KindCCM: "HS256", KindSelfProve: "", "x": AlgorithmES256} {
		if _, err := NewKeyOf(kind, algorithm, noon, rand.Reader); err == nil {
			t.Errorf("a %s key with %q is made", kind, algorithm)
		}
	}
}

func TestBulkKeyHasItsCertificate(t *testing.T) {
	key := siteKeys()[KindBulk]
	certificate, err := x509.ParseCertificate(key.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := certificate.Subject.CommonName, "SMS Token Signing Certificate"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !certificate.PublicKey.(*rsa.PublicKey).Equal(key.Public) || key.ID != x5t(key.Certificate) {
		t.Error("the certificate is not the key's")
	}
}

func TestRefusalIsCheap(t *testing.T) {
	verifier, dots := testRing().Verifier(), strings.Repeat(".", 1<<20)
	allocated := testing.AllocsPerRun(100, func() { _, _ = verifier.Verify(dots, noon, KindBulk) })
	if allocated > 20 {
		t.Errorf("got %v allocations, want at most 20", allocated)
	}
}

func jwkOf(t testing.TB, pub crypto.PublicKey) map[string]any {
	t.Helper()
	b64 := base64.RawURLEncoding.EncodeToString
	switch key := pub.(type) {
	case *rsa.PublicKey:
		return map[string]any{"kty": "RSA", "n": b64(key.N.Bytes()), "e": b64(big.NewInt(int64(key.E)).Bytes())}
	case *ecdsa.PublicKey:
		point, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		half := 1 + len(point)/2
		return map[string]any{"kty": "EC", "crv": key.Params().Name, "x": b64(point[1:half]), "y": b64(point[half:])}
	}
	t.Fatalf("no jwk for %T", pub)
	return nil
}
