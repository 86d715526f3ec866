package token

import (
	"crypto/rand"
	"testing"
)

// The figures of design decision 14: what an exchange costs to sign and to verify.
func BenchmarkSign(b *testing.B) {
	for _, kind := range []Kind{KindCCM, KindBulk} {
		p, _ := profileOf(kind)
		b.Run(p.algorithm, func(b *testing.B) {
			ring, claims := testRing(), claimsOf(b, kind)
			for b.Loop() {
				if _, err := ring.Sign(kind, claims, noon); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, kind := range []Kind{KindCCM, KindBulk} {
		p, _ := profileOf(kind)
		b.Run(p.algorithm, func(b *testing.B) {
			verifier, raw := testRing().Verifier(), sign(b, kind)
			for b.Loop() {
				if _, err := verifier.Verify(raw, noon, kind); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerifyProof(b *testing.B) {
	raw, err := SignProof(deviceKey(), "CCM_POST", stsURL, accessToken, noon, rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	for name, keys := range map[string]*ProofKeys{"new": nil, "known": NewProofKeys(10)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := VerifyProofKnown(raw, "CCM_POST", accessToken, noon, nil, keys); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
