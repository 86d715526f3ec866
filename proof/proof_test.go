package proof

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"math/big"
	"testing"
)

func number(t *testing.T, text string) *big.Int {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return new(big.Int).SetBytes(b)
}

func TestThumbprint(t *testing.T) {
	// RFC 7638 3.1 and RFC 9449 4.1 with 6.1.
	rsaKey := &rsa.PublicKey{E: 65537, N: number(t, "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw")}
	//lint:ignore SA1019 the vector gives coordinates
	ecKey := &ecdsa.PublicKey{Curve: elliptic.P256(), X: number(t, "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs"), Y: number(t, "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA")}
	tests := map[string]struct {
		pub  crypto.PublicKey
		want KeyThumbprint
	}{
		"RSA":       {rsaKey, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"},
		"P-256":     {ecKey, "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"},
		"nil RSA":   {(*rsa.PublicKey)(nil), ""},
		"empty RSA": {&rsa.PublicKey{}, ""},
		"nil EC":    {(*ecdsa.PublicKey)(nil), ""},
		//lint:ignore SA1019 no other way makes a point off the curve
		"point off the curve": {&ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)}, ""},
		"Ed25519":             {ed25519.PublicKey(make([]byte, 32)), ""},
		"nothing":             {nil, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Thumbprint(test.pub)
			if got != test.want || (err == nil) != (test.want != "") {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestLevels(t *testing.T) {
	for _, want := range []Level{LevelNone, LevelKnown, LevelManaged, LevelSecrets} {
		got, err := ParseLevel(want.String())
		if err != nil || got != want {
			t.Errorf("%s: got %v, %v", want, got, err)
		}
	}
	if _, err := ParseLevel("Managed"); err == nil {
		t.Error("a level in another case is accepted")
	}
	if got, want := Level(9).String(), "level(9)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if LevelNone >= LevelKnown || LevelKnown >= LevelManaged || LevelManaged >= LevelSecrets {
		t.Error("the levels are not ordered")
	}
}

func TestMethodsAreDistinct(t *testing.T) {
	seen := map[Method]bool{}
	for _, method := range Methods() {
		if seen[method] || method == "" {
			t.Errorf("%q is there twice or empty", method)
		}
		seen[method] = true
	}
}
