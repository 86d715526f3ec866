package token

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"postern/catalog"
)

// What is remembered of a proof is its header and no more: the rest of the next proof is checked as if it were the first.
func TestProofKeysRememberTheHeaderAlone(t *testing.T) {
	for name, remembered := range map[string]bool{"first": false, "remembered": true} {
		keys := NewProofKeys(4)
		verify := func(raw, method, accessToken string) (ProofClaims, error) {
			return VerifyProofKnown(raw, method, accessToken, noon, nil, keys)
		}
		good := func() string {
			raw, err := SignProof(deviceKey(), "POST", stsURL, accessToken, noon, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			return raw
		}
		if remembered {
			if _, err := verify(good(), "POST", accessToken); err != nil {
				t.Fatal(err)
			}
		}
		if got := len(keys.recent) == 1; got != remembered {
			t.Errorf("%s: %d keys", name, len(keys.recent))
		}
		parts, other := strings.Split(good(), "."), strings.Split(good(), ".")
		for what, one := range map[string]struct {
			raw, method, token string
			want               catalog.Code
		}{
			"signature of another proof": {parts[0] + "." + parts[1] + "." + other[2], "POST", accessToken, catalog.ProofSignature},
			"short signature":            {parts[0] + "." + parts[1] + "." + parts[2][:40], "POST", accessToken, catalog.ProofSignature},
			"broken signature":           {parts[0] + "." + parts[1] + "." + parts[2][:41], "POST", accessToken, catalog.ProofMalformed},
			"other method":               {good(), "GET", accessToken, catalog.ProofOtherMethod},
			"other token":                {good(), "POST", "another", catalog.ProofOtherToken},
			"too large":                  {good() + strings.Repeat("A", MaxToken), "POST", accessToken, catalog.ProofMalformed},
		} {
			if _, err := verify(one.raw, one.method, one.token); catalog.CodeOf(err) != one.want {
				t.Errorf("%s, %s: %v, want %s", name, what, err, one.want)
			}
		}
		if got := len(keys.recent) == 1; got != remembered {
			t.Errorf("%s: a refused proof left %d keys", name, len(keys.recent))
		}
		first, err := VerifyProof(good(), "POST", accessToken, noon)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := verify(good(), "POST", accessToken); err != nil || again.Key != first.Key || !deviceKey().PublicKey.Equal(again.PublicKey) {
			t.Errorf("%s: %v, key %s, want %s", name, err, again.Key, first.Key)
		}
	}
}

func TestProofKeysAreBounded(t *testing.T) {
	keys := NewProofKeys(8)
	often := sha256.Sum256([]byte("often"))
	keys.remember(often, proofKey{algorithm: algES256})
	for n := range 100 {
		keys.remember(sha256.Sum256(fmt.Append(nil, n)), proofKey{})
		if _, ok := keys.get(often); !ok {
			t.Fatalf("after %d others the one that is asked for again and again is gone", n+1)
		}
		if got := len(keys.recent) + len(keys.older); got > 8 {
			t.Fatalf("%d keys, want at most 8", got)
		}
	}
	if _, ok := keys.get(sha256.Sum256(fmt.Append(nil, 0))); ok {
		t.Error("one that nobody asked for is still there")
	}
}
