package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"
	"time"

	"postern/catalog"
)

// given is a server that has given one nonce, or none yet.
type given string

func (g given) Nonce() string               { return string(g) }
func (g given) GoodNonce(nonce string) bool { return nonce == string(g) && g != "" }

func TestANonceStandsForTheClock(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const year = 400 * 24 * time.Hour
	for name, test := range map[string]struct {
		off    time.Duration // of the device's clock
		nonce  string
		server Nonces
		want   catalog.Code
	}{
		"a right clock":                               {0, "", given("good"), ""},
		"a right clock and a nonce":                   {0, "good", given("good"), ""},
		"a right clock and a nonce of somebody else":  {0, "made-up", given("good"), catalog.ProofNonceUnknown},
		"400 days back":                               {-year, "", given("good"), catalog.ProofNonceNeeded},
		"400 days back, with the nonce":               {-year, "good", given("good"), ""},
		"400 days back, with a nonce that is made up": {-year, "made-up", given("good"), catalog.ProofNonceUnknown},
		"ten minutes ahead":                           {10 * time.Minute, "", given("good"), catalog.ProofNonceNeeded},
		"ten minutes ahead, with the nonce":           {10 * time.Minute, "good", given("good"), ""},
		"400 days ahead, with the nonce":              {year, "good", given("good"), ""},
		"a server that has no nonce, and an old one":  {0, "good", given(""), catalog.ProofNonceUnknown},
		"a server that has no nonce, a slow clock":    {-year, "", given(""), catalog.ProofStale},
		"a server that has no nonce, a fast clock":    {year, "", given(""), catalog.ProofFuture},
		"a server without nonces":                     {-year, "good", nil, catalog.ProofStale},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := SignProofNonce(key, "POST", "https://gw.test/CCM_STS", "token", test.nonce, noon.Add(test.off), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			got, err := VerifyProofNonce(raw, "POST", "token", noon, test.server)
			if catalog.CodeOf(err) != test.want || (err == nil) != (test.want == "") {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			if err != nil {
				return
			}
			if left := got.Until().Sub(noon); test.nonce != "" && (left < NonceLife || left > 10*time.Minute) {
				t.Errorf("its id is remembered for %s, want at least the nonce's life and not much more", left)
			}
		})
	}
}
