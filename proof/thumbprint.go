package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
)

// KeyThumbprint names a public key: base64url of the SHA-256 of its RFC 7638 JSON
// Web Key. It is the identity of a device (design decision 1).
type KeyThumbprint string

// Thumbprint returns the thumbprint of an RSA or NIST-curve public key. Other keys
// are an error.
func Thumbprint(pub crypto.PublicKey) (KeyThumbprint, error) {
	jwk, err := canonical(make([]byte, 0, 512), pub)
	if err != nil {
		return "", fmt.Errorf("thumbprint: %w", err)
	}
	sum := sha256.Sum256(jwk)
	return KeyThumbprint(encode(sum[:])), nil
}

// canonical appends the JSON of RFC 7638 3.2: required members only, sorted, no space.
func canonical(to []byte, pub crypto.PublicKey) ([]byte, error) {
	switch key := pub.(type) {
	case *rsa.PublicKey:
		return rsaKey(to, key)
	case *ecdsa.PublicKey:
		return ecdsaKey(to, key)
	default:
		return nil, fmt.Errorf("key type %T is not supported", pub)
	}
}

func rsaKey(to []byte, key *rsa.PublicKey) ([]byte, error) {
	if key == nil || key.N == nil || key.N.Sign() <= 0 || key.E <= 0 {
		return nil, fmt.Errorf("the RSA key is empty")
	}
	exponent := binary.BigEndian.AppendUint64(make([]byte, 0, 8), uint64(key.E))
	to = append(to, `{"e":"`...)
	to = base64.RawURLEncoding.AppendEncode(to, bytes.TrimLeft(exponent, "\x00"))
	to = append(to, `","kty":"RSA","n":"`...)
	to = base64.RawURLEncoding.AppendEncode(to, key.N.Bytes())
	return append(to, `"}`...), nil
}

func ecdsaKey(to []byte, key *ecdsa.PublicKey) ([]byte, error) {
	if key == nil || key.Curve == nil {
		return nil, fmt.Errorf("the EC key is empty")
	}
	point, err := key.Bytes() // 0x04, X, Y
	if err != nil {
		return nil, err
	}
	half := 1 + len(point)/2
	return append(to, `{"crv":"`+key.Params().Name+`","kty":"EC","x":"`+encode(point[1:half])+`","y":"`+encode(point[half:])+`"}`...), nil
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
