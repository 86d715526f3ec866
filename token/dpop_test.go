package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/catalog"
)

const (
	stsURL      = "https://cmg.contoso.com/CCM_Proxy_ServerAuth/72057594037937981/CCM_STS"
	accessToken = "eyJ.access.token"
)

func proofHead(t testing.TB, alg string, jwk map[string]any) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{"typ": "dpop+jwt", "alg": alg, "jwk": jwk})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func proofPayload(changes map[string]any) string {
	claims := map[string]any{"jti": "0123456789abcdef", "htm": "CCM_POST", "htu": stsURL, "iat": noon.Unix(), "ath": Hash(accessToken)}
	for name, value := range changes {
		if claims[name] = value; value == nil {
			delete(claims, name)
		}
	}
	b, _ := json.Marshal(claims)
	return string(b)
}

func TestProofRoundTrip(t *testing.T) {
	p256 := mustEC()
	for name, key := range map[string]crypto.Signer{"RSA": deviceKey(), "P-256": p256} {
		t.Run(name, func(t *testing.T) {
			raw, err := SignProof(key, "CCM_POST", stsURL, accessToken, noon, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			got, err := VerifyProof(raw, "CCM_POST", accessToken, noon.Add(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			if want := thumbprint(t, key.Public()); got.Key != want {
				t.Errorf("key: got %s, want %s", got.Key, want)
			}
			if got.URL != stsURL || got.Method != "CCM_POST" || !got.IssuedAt.Equal(noon) || len(got.ID) != 22 {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestProofIDsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 3 {
		raw, err := SignProof(mustEC(), "POST", stsURL, accessToken, noon, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		p, err := VerifyProof(raw, "POST", accessToken, noon)
		if err != nil || seen[p.ID] {
			t.Fatalf("got id %q again or %v", p.ID, err)
		}
		seen[p.ID] = true
	}
}

func TestHostileProofs(t *testing.T) {
	key, ec := deviceKey(), mustEC()
	rsaJWK := jwkOf(t, &key.PublicKey)
	withJWK := func(alg string, jwk map[string]any, signer crypto.Signer) string {
		return forge(t, proofHead(t, alg, jwk), proofPayload(nil), signer, false)
	}
	and := func(jwk map[string]any, name string, value any) map[string]any {
		changed := map[string]any{name: value}
		for n, v := range jwk {
			if n != name {
				changed[n] = v
			}
		}
		return changed
	}
	claims := func(changes map[string]any) string {
		return forge(t, proofHead(t, "RS256", rsaJWK), proofPayload(changes), key, false)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString

	tests := map[string]struct {
		raw  string
		want catalog.Code
	}{
		"good, RS256":                {claims(nil), ""},
		"good, PS256":                {forge(t, proofHead(t, "PS256", rsaJWK), proofPayload(nil), key, true), ""},
		"good, ES256":                {withJWK("ES256", jwkOf(t, &ec.PublicKey), ec), ""},
		"good, jwk with alg and use": {withJWK("RS256", and(and(rsaJWK, "alg", "RS256"), "use", "sig"), key), ""},
		"empty":                      {"", catalog.ProofMalformed},
		"1 MiB of dots":              {strings.Repeat(".", 1<<20), catalog.ProofMalformed},
		"a token instead":            {sign(t, KindCCM), catalog.ProofMalformed},
		"typ of a token":             {forge(t, strings.Replace(proofHead(t, "RS256", rsaJWK), "dpop+jwt", "JWT", 1), proofPayload(nil), key, false), catalog.ProofMalformed},
		"jku in the header":          {forge(t, strings.Replace(proofHead(t, "RS256", rsaJWK), "{", `{"jku":"http://127.0.0.1:1/",`, 1), proofPayload(nil), key, false), catalog.ProofMalformed},
		"kid in the header":          {forge(t, strings.Replace(proofHead(t, "RS256", rsaJWK), "{", `{"kid":"a",`, 1), proofPayload(nil), key, false), catalog.ProofMalformed},
		"no jwk":                     {forge(t, `{"typ":"dpop+jwt","alg":"RS256"}`, proofPayload(nil), key, false), catalog.ProofKey},
		"private RSA jwk":            {withJWK("RS256", and(rsaJWK, "d", b64(key.D.Bytes())), key), catalog.ProofKey},
		"private EC jwk":             {withJWK("ES256", and(jwkOf(t, &ec.PublicKey), "d", b64(make([]byte, 32))), ec), catalog.ProofKey},
		"symmetric jwk":              {forge(t, proofHead(t, "HS256", map[string]any{"kty": "oct", "k": "AAAA"}), proofPayload(nil), key, false), catalog.ProofKey},
		"jwk with a certificate":     {withJWK("RS256", and(rsaJWK, "x5u", "http://127.0.0.1:1/"), key), catalog.ProofKey},
		"RSA-1024":                   {withJWK("RS256", jwkOf(t, &weakKey().PublicKey), weakKey()), catalog.ProofKey},
		"RSA exponent 1":             {withJWK("RS256", and(rsaJWK, "e", "AQ"), key), catalog.ProofKey},
		"RSA of 8192 bits":           {withJWK("RS256", and(rsaJWK, "n", b64(append([]byte{0x80}, make([]byte, 1023)...))), key), catalog.ProofKey},
		"P-384":                      {forge384(t, p384), catalog.ProofKey},
		"point off the curve":        {withJWK("ES256", and(jwkOf(t, &ec.PublicKey), "x", b64(make([]byte, 32))), ec), catalog.ProofKey},
		"alg none":                   {withJWK("none", rsaJWK, key), catalog.ProofAlgorithm},
		"alg HS256":                  {withJWK("HS256", rsaJWK, key), catalog.ProofAlgorithm},
		"alg RS512":                  {withJWK("RS512", rsaJWK, key), catalog.ProofAlgorithm},
		"alg ES256 with RSA":         {withJWK("ES256", rsaJWK, key), catalog.ProofAlgorithm},
		"another key's signature":    {forge(t, proofHead(t, "RS256", rsaJWK), proofPayload(nil), otherKey(), false), catalog.ProofSignature},
		"another method":             {claims(map[string]any{"htm": "POST"}), catalog.ProofOtherMethod},
		"method in another case":     {claims(map[string]any{"htm": "ccm_post"}), catalog.ProofOtherMethod},
		"no method":                  {claims(map[string]any{"htm": nil}), catalog.ProofOtherMethod},
		"another token":              {claims(map[string]any{"ath": Hash("another")}), catalog.ProofOtherToken},
		"no ath":                     {claims(map[string]any{"ath": nil}), catalog.ProofOtherToken},
		"no jti":                     {claims(map[string]any{"jti": nil}), catalog.ProofMalformed},
		"jti too short":              {claims(map[string]any{"jti": "1234567"}), catalog.ProofMalformed},
		"jti too long":               {claims(map[string]any{"jti": strings.Repeat("a", 129)}), catalog.ProofMalformed},
		"jti with a newline":         {claims(map[string]any{"jti": "12345678\n"}), catalog.ProofMalformed},
		"no htu":                     {claims(map[string]any{"htu": nil}), catalog.ProofMalformed},
		"htu of 3 KiB":               {claims(map[string]any{"htu": "https://a/" + strings.Repeat("a", 3<<10)}), catalog.ProofMalformed},
		"no iat":                     {claims(map[string]any{"iat": nil}), catalog.ProofMalformed},
		"iat as text":                {claims(map[string]any{"iat": "now"}), catalog.ProofMalformed},
		"five minutes old":           {claims(map[string]any{"iat": noon.Add(-ProofLifetime).Unix()}), ""},
		"older":                      {claims(map[string]any{"iat": noon.Add(-ProofLifetime - time.Second).Unix()}), catalog.ProofStale},
		"a minute ahead":             {claims(map[string]any{"iat": noon.Add(Leeway).Unix()}), ""},
		"further ahead":              {claims(map[string]any{"iat": noon.Add(Leeway + time.Second).Unix()}), catalog.ProofFuture},
		"duplicate htm":              {forge(t, proofHead(t, "RS256", rsaJWK), strings.Replace(proofPayload(nil), "{", `{"htm":"GET",`, 1), key, false), catalog.ProofMalformed},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := VerifyProof(test.raw, "CCM_POST", accessToken, noon)
			wantCode(t, err, test.want)
		})
	}
}

func forge384(t testing.TB, key *ecdsa.PrivateKey) string {
	t.Helper()
	head := base64.RawURLEncoding.EncodeToString([]byte(proofHead(t, "ES384", jwkOf(t, &key.PublicKey))))
	return head + "." + base64.RawURLEncoding.EncodeToString([]byte(proofPayload(nil))) + ".AAAA"
}

func TestProofWithoutTokenHasNoHash(t *testing.T) {
	raw, err := SignProof(deviceKey(), "POST", stsURL, "", noon, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyProof(raw, "POST", "", noon); err != nil {
		t.Error(err)
	}
	_, err = VerifyProof(raw, "POST", accessToken, noon)
	wantCode(t, err, catalog.ProofOtherToken)
}

func TestAssertions(t *testing.T) {
	key := deviceKey()
	good, err := SignAssertion(key, client, stsURL, noon)
	if err != nil {
		t.Fatal(err)
	}
	head := `{"typ":"client-assertion+jwt","alg":"RS256"}`
	payload := string(part(t, good, 1))
	with := func(name, value string) string {
		return forge(t, head, replaceClaim(payload, name, value), key, false)
	}
	tests := map[string]struct {
		raw      string
		audience string
		now      time.Time
		want     catalog.Code
	}{
		"good":                     {good, stsURL, noon, ""},
		"good at the end":          {good, stsURL, noon.Add(AssertionLifetime + Leeway - time.Second), ""},
		"over":                     {good, stsURL, noon.Add(AssertionLifetime + Leeway), catalog.AssertionExpired},
		"ahead":                    {good, stsURL, noon.Add(-Leeway - time.Second), catalog.AssertionExpired},
		"another token service":    {good, "https://mp.contoso.com/CCM_STS", noon, catalog.AssertionAudience},
		"another key":              {forge(t, head, payload, otherKey(), false), stsURL, noon, catalog.AssertionSignature},
		"alg PS256":                {forge(t, `{"typ":"client-assertion+jwt","alg":"PS256"}`, payload, key, true), stsURL, noon, catalog.AssertionSignature},
		"alg none":                 {forge(t, `{"typ":"client-assertion+jwt","alg":"none"}`, payload, key, false), stsURL, noon, catalog.AssertionSignature},
		"typ of a proof":           {forge(t, `{"typ":"dpop+jwt","alg":"RS256"}`, payload, key, false), stsURL, noon, catalog.AssertionMalformed},
		"jwk in the header":        {forge(t, `{"typ":"client-assertion+jwt","alg":"RS256","jwk":{}}`, payload, key, false), stsURL, noon, catalog.AssertionMalformed},
		"issuer is another device": {with("iss", `"GUID:00000000-0000-0000-0000-000000000000"`), stsURL, noon, catalog.AssertionClient},
		"no exp":                   {with("exp", "null"), stsURL, noon, catalog.AssertionMalformed},
		"lives a year":             {with("exp", fmt.Sprint(noon.AddDate(1, 0, 0).Unix())), stsURL, noon, catalog.AssertionExpired},
		"no jti":                   {with("jti", `""`), stsURL, noon, catalog.AssertionMalformed},
		"1 MiB of dots":            {strings.Repeat(".", 1<<20), stsURL, noon, catalog.AssertionMalformed},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := VerifyAssertion(test.raw, &key.PublicKey, test.audience, test.now)
			wantCode(t, err, test.want)
			if err == nil && got.Client != client {
				t.Errorf("got %s, want %s", got.Client, client)
			}
		})
	}
	if got, err := AssertionSubject(good); err != nil || got != client {
		t.Errorf("subject: got %s, %v", got, err)
	}
	_, err = VerifyAssertion(good, nil, stsURL, noon)
	wantCode(t, err, catalog.AssertionSignature)
}
