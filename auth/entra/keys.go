package entra

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"postern/catalog"
	"postern/proof"
)

// The algorithms that are accepted. Which one a key has is said by the key, never by
// the token (RFC 8725 3.1).
const (
	algRS256 = string(jose.RS256)
	algES256 = string(jose.ES256)
)

// Budgets of a key set.
const (
	maxKeySet   = 1 << 20
	maxKeys     = 64
	maxKey      = 32 << 10 // one key with its certificates
	maxKeyDepth = 8
	minRSA      = 2048
	maxRSA      = 8192
)

// key is a key of a provider by which its tokens are judged.
type key struct {
	id         string
	algorithm  string
	public     crypto.PublicKey
	thumbprint proof.KeyThumbprint
}

// parseKeys reads a key set (RFC 7517). Keys that are for something else, of another
// type, too weak, or of another tenant are left out, as section 5 asks; skipped says
// how many. The code is EntraKeySet.
func parseKeys(raw []byte, tenantID string) (keys []key, skipped int, err error) {
	if len(raw) > maxKeySet {
		return nil, 0, catalog.Errorf(catalog.EntraKeySet, "%d bytes, the limit is %d", len(raw), maxKeySet)
	}
	if !within(raw, maxKeyDepth) {
		return nil, 0, catalog.Errorf(catalog.EntraKeySet, "nested deeper than %d", maxKeyDepth)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(raw, &set); err != nil {
		return nil, 0, catalog.Wrap(catalog.EntraKeySet, err, "not a key set in JSON")
	}
	if len(set.Keys) > maxKeys {
		return nil, 0, catalog.Errorf(catalog.EntraKeySet, "%d keys, the limit is %d", len(set.Keys), maxKeys)
	}
	for _, one := range set.Keys {
		k, err := parseKey(one, tenantID)
		if err != nil {
			skipped++
			continue
		}
		keys = append(keys, k)
	}
	if keys, err = distinct(keys); err != nil {
		return nil, skipped, err
	}
	if len(keys) == 0 {
		return nil, skipped, catalog.Errorf(catalog.EntraKeySet, "no key for %s or %s among %d", algRS256, algES256, len(set.Keys))
	}
	return keys, skipped, nil
}

func parseKey(raw []byte, tenantID string) (key, error) {
	if len(raw) > maxKey {
		return key{}, fmt.Errorf("%d bytes", len(raw))
	}
	// Entra says in each key for which issuer it is; {tenantid} stands for any tenant.
	var of struct {
		Issuer string `json:"issuer"`
	}
	if err := json.Unmarshal(raw, &of); err != nil {
		return key{}, fmt.Errorf("read issuer: %w", err)
	}
	if of.Issuer != "" && !strings.Contains(of.Issuer, "{tenantid}") && guidIn(of.Issuer) && !strings.Contains(strings.ToLower(of.Issuer), strings.ToLower(tenantID)) {
		return key{}, fmt.Errorf("a key of another tenant")
	}
	var jwk jose.JSONWebKey
	if err := json.Unmarshal(raw, &jwk); err != nil {
		return key{}, fmt.Errorf("read key: %w", err)
	}
	public := jwk.Public()
	algorithm, err := algorithmOf(public.Key)
	switch {
	case err != nil:
		return key{}, err
	case jwk.Use != "" && jwk.Use != "sig":
		return key{}, fmt.Errorf("for %q", jwk.Use)
	case jwk.Algorithm != "" && jwk.Algorithm != algorithm:
		return key{}, fmt.Errorf("for the algorithm %q", jwk.Algorithm)
	case !visible(jwk.KeyID):
		return key{}, fmt.Errorf("without a usable name")
	}
	thumbprint, err := proof.Thumbprint(public.Key)
	if err != nil {
		return key{}, err
	}
	return key{id: jwk.KeyID, algorithm: algorithm, public: public.Key, thumbprint: thumbprint}, nil
}

// guidIn reports whether a segment of the address is a GUID.
func guidIn(address string) bool {
	return slices.ContainsFunc(strings.Split(address, "/"), guid)
}

// algorithmOf is the one algorithm that is accepted for this type of key.
func algorithmOf(public crypto.PublicKey) (string, error) {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSA || bits > maxRSA || k.E < 3 || k.E%2 == 0 {
			return "", fmt.Errorf("an RSA key of %d bits with exponent %d", bits, k.E)
		}
		return algRS256, nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return algES256, nil
		}
	}
	return "", fmt.Errorf("key type %T", public)
}

// distinct sorts the keys by name and drops repetitions. Two keys by one name are an
// error: which of them is meant would be a matter of luck.
func distinct(keys []key) ([]key, error) {
	keys = slices.Clone(keys)
	slices.SortStableFunc(keys, func(a, b key) int { return cmp.Compare(a.id, b.id) })
	keys = slices.CompactFunc(keys, func(a, b key) bool { return a.id == b.id && a.thumbprint == b.thumbprint })
	for i := 1; i < len(keys); i++ {
		if keys[i].id == keys[i-1].id {
			return nil, catalog.Errorf(catalog.EntraKeySet, "two different keys are named %q", keys[i].id)
		}
	}
	return keys, nil
}

// formatKeys writes the keys as a key set with nothing but the public parts, always in
// the same order: equal keys give equal bytes.
func formatKeys(keys []key) (json.RawMessage, error) {
	set := jose.JSONWebKeySet{Keys: make([]jose.JSONWebKey, 0, len(keys))}
	for _, k := range keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.public, KeyID: k.id, Algorithm: k.algorithm, Use: "sig"})
	}
	raw, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("encode keys: %w", err)
	}
	return raw, nil
}
