package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// opened checks the signature of a compact JWS, whose form has been checked, and returns the payload. The header is not read a second time: which algorithm
// and which key it is has been decided by then. Nothing of the payload is decoded before the signature holds.
func (c compact) opened(algorithm string, pub crypto.PublicKey) ([]byte, error) {
	end := strings.LastIndexByte(c.raw, '.')
	signature, err := base64.RawURLEncoding.DecodeString(c.raw[end+1:])
	if err != nil {
		return nil, fmt.Errorf("signature: %w", errEncoding)
	}
	digest := sha256.Sum256([]byte(c.raw[:end]))
	if err := checkSignature(algorithm, pub, digest[:], signature); err != nil {
		return nil, err
	}
	payload, err := base64.RawURLEncoding.DecodeString(c.raw[strings.IndexByte(c.raw, '.')+1 : end])
	if err != nil {
		return nil, fmt.Errorf("payload: %w", errEncoding)
	}
	return payload, nil
}

var (
	errEncoding  = errors.New("not base64url")
	errSignature = errors.New("the signature does not hold")
)

// checkSignature is RFC 7518 3.3 to 3.5 for the three algorithms that there are here.
func checkSignature(algorithm string, pub crypto.PublicKey, digest, signature []byte) error {
	switch key := pub.(type) {
	case *rsa.PublicKey:
		if algorithm == algRS256 {
			return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest, signature)
		}
		if algorithm == algPS256 {
			return rsa.VerifyPSS(key, crypto.SHA256, digest, signature, nil)
		}
	case *ecdsa.PublicKey:
		const half = 32
		if algorithm != algES256 || len(signature) != 2*half {
			break
		}
		if ecdsa.Verify(key, digest, new(big.Int).SetBytes(signature[:half]), new(big.Int).SetBytes(signature[half:])) {
			return nil
		}
	}
	return errSignature
}
