package token

import (
	"crypto/rand"
	"crypto/rsa"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

const (
	changeClient   = ccm.ClientID("GUID:13E80CEF-5698-4C63-9ED6-E58FBFF78C38")
	changeAudience = "https://gw.test/CCM_Proxy_ServerAuth/1/CCM_System_TokenAuth/request"
)

var changeKeys = sync.OnceValue(func() [2]*rsa.PrivateKey {
	var keys [2]*rsa.PrivateKey
	for i := range keys {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[i] = key
	}
	return keys
})

func TestAKeyNamesItsSuccessor(t *testing.T) {
	keys := changeKeys()
	next, err := proof.Thumbprint(&keys[1].PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	good, err := SignKeyChange(keys[0], changeClient, next, changeAudience, noon)
	if err != nil {
		t.Fatal(err)
	}
	got, err := VerifyKeyChange(good, &keys[0].PublicKey, changeAudience, noon)
	if err != nil || !got.Names(changeClient, next) || got.Names(changeClient, next+"x") || got.Names("", next) || got.ID == "" {
		t.Errorf("got %+v, %v", got, err)
	}
	assertion, err := SignAssertion(keys[0], changeClient, changeAudience, noon)
	if err != nil {
		t.Fatal(err)
	}
	bad, err := SignKeyChange(keys[0], changeClient, "short", changeAudience, noon)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		raw      string
		key      *rsa.PublicKey
		audience string
		at       time.Time
	}{
		"empty":                  {"", &keys[0].PublicKey, changeAudience, noon},
		"by the new key":         {good, &keys[1].PublicKey, changeAudience, noon},
		"without a key":          {good, nil, changeAudience, noon},
		"another address":        {good, &keys[0].PublicKey, changeAudience + "/", noon},
		"ended":                  {good, &keys[0].PublicKey, changeAudience, noon.Add(AssertionLifetime + Leeway)},
		"not begun":              {good, &keys[0].PublicKey, changeAudience, noon.Add(-Leeway - time.Second)},
		"an assertion":           {assertion, &keys[0].PublicKey, changeAudience, noon},
		"names no key":           {bad, &keys[0].PublicKey, changeAudience, noon},
		"the signature cut off":  {good[:strings.LastIndex(good, ".")+1], &keys[0].PublicKey, changeAudience, noon},
		"with a character added": {good + "A", &keys[0].PublicKey, changeAudience, noon},
		"too large":              {good + strings.Repeat("A", MaxToken), &keys[0].PublicKey, changeAudience, noon},
	} {
		if _, err := VerifyKeyChange(test.raw, test.key, test.audience, test.at); catalog.CodeOf(err) != catalog.KeyChangeInvalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := VerifyAssertion(good, &keys[0].PublicKey, changeAudience, noon); catalog.CodeOf(err) != catalog.AssertionMalformed {
		t.Errorf("as an assertion: %v", err)
	}
}

// FuzzKeyChange: what a stranger writes is refused with the code, and never accepted.
func FuzzKeyChange(f *testing.F) {
	key := &changeKeys()[0].PublicKey
	f.Fuzz(func(t *testing.T, raw string) {
		if k, err := VerifyKeyChange(raw, key, changeAudience, noon); catalog.CodeOf(err) != catalog.KeyChangeInvalid {
			t.Errorf("got %+v, %v", k, err)
		}
	})
}

// FuzzNonce: a nonce that a proof holds is compared and never more.
func FuzzNonce(f *testing.F) {
	f.Fuzz(func(t *testing.T, nonce string) {
		claims := dpopClaims{IssuedAt: newDate(noon), Nonce: nonce}
		if _, err := claims.inTime(noon, given("good")); (err == nil) != (nonce == "" || nonce == "good") {
			t.Errorf("%q: %v", nonce, err)
		}
	})
}
