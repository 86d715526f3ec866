package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	strictjson "github.com/go-jose/go-jose/v4/json"
)

// Sizes of an RSA key that a caller may bring. Below it is weak, above it costs the
// server more than the caller.
const (
	minRSABits = 2048
	maxRSABits = 4096
)

// readJWK reads the public key of a header. Anything but the members of a public RSA
// or P-256 key is refused: private members, symmetric keys, certificates, addresses.
func readJWK(raw strictjson.RawMessage) (crypto.PublicKey, error) {
	if len(raw) == 0 {
		return nil, errors.New("no jwk")
	}
	var members map[string]strictjson.RawMessage
	if err := strictjson.Unmarshal(raw, &members); err != nil {
		return nil, errors.New("the jwk is not a JSON object")
	}
	for name := range members {
		if !contains([]string{"kty", "n", "e", "crv", "x", "y", "alg", "use", "kid"}, name) {
			return nil, errors.New("the jwk holds more than a public RSA or P-256 key")
		}
	}
	var key jose.JSONWebKey
	if err := key.UnmarshalJSON(raw); err != nil {
		return nil, errors.New("the jwk is not a key")
	}
	return key.Key, checkCallersKey(key.Key)
}

func checkCallersKey(pub crypto.PublicKey) error {
	switch key := pub.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fmt.Errorf("the RSA key has %d bits, want %d to %d", bits, minRSABits, maxRSABits)
		}
		if key.E < 3 || key.E%2 == 0 {
			return errors.New("the RSA exponent is not usable")
		}
		return nil
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return errors.New("the curve is not P-256")
		}
		return nil
	}
	return fmt.Errorf("the key is neither RSA nor P-256")
}
