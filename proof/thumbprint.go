package proof

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/big"
)

// KeyThumbprint names a public key: base64url of the SHA-256 of its RFC 7638 JSON
// Web Key. It is the identity of a device (design decision 1).
type KeyThumbprint string

// Thumbprint returns the thumbprint of an RSA or NIST-curve public key. Other keys
// are an error.
func Thumbprint(pub crypto.PublicKey) (KeyThumbprint, error) {
	jwk, err := canonical(pub)
	if err != nil {
		return "", fmt.Errorf("thumbprint: %w", err)
	}
	sum := sha256.Sum256([]byte(jwk))
	return KeyThumbprint(encode(sum[:])), nil
}

// canonical is the JSON of RFC 7638 3.2: required members only, sorted, no space.
func canonical(pub crypto.PublicKey) (string, error) {
	switch key := pub.(type) {
	case *rsa.PublicKey:
		return rsaKey(key)
	case *ecdsa.PublicKey:
		return ecdsaKey(key)
	default:
		return "", fmt.Errorf("key type %T is not supported", pub)
	}
}

func rsaKey(key *rsa.PublicKey) (string, error) {
	if key == nil || key.N == nil || key.N.Sign() <= 0 || key.E <= 0 {
		return "", fmt.Errorf("the RSA key is empty")
	}
	exponent := big.NewInt(int64(key.E)).Bytes()
	return `{"e":"` + encode(exponent) + `","kty":"RSA","n":"` + encode(key.N.Bytes()) + `"}`, nil
}

func ecdsaKey(key *ecdsa.PublicKey) (string, error) {
	if key == nil || key.Curve == nil {
		return "", fmt.Errorf("the EC key is empty")
	}
	point, err := key.Bytes() // 0x04, X, Y
	if err != nil {
		return "", err
	}
	half := 1 + len(point)/2
	return `{"crv":"` + key.Params().Name + `","kty":"EC","x":"` + encode(point[1:half]) + `","y":"` + encode(point[half:]) + `"}`, nil
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
