package token

import (
	"slices"
	"strings"
	"time"

	"postern/catalog"
)

func tokenCodes() codes {
	return codes{
		malformed: catalog.TokenMalformed, tooLarge: catalog.TokenTooLarge, header: catalog.TokenHeader,
		algorithm: catalog.TokenAlgorithm, signature: catalog.TokenSignature,
	}
}

// Verifier verifies tokens of one hierarchy with public keys. It does not change
// and is safe for concurrent use.
type Verifier struct {
	hierarchy string
	byID      map[string]Key
	revoked   map[string]bool // ids of keys that were
}

// NewVerifier returns a verifier for these keys. Keys without a public
// part and keys whose algorithm is not their own, or none of their kind, are left out.
func NewVerifier(hierarchy string, keys []Key) *Verifier {
	v := &Verifier{hierarchy: strings.ToLower(hierarchy), byID: make(map[string]Key, len(keys)), revoked: map[string]bool{}}
	for _, key := range keys {
		if key.State == KeyRevoked {
			v.revoked[key.ID] = true
			continue
		}
		p, ok := profileOf(key.Kind)
		algorithm, err := algorithmOf(key.Public)
		if !ok || err != nil || !p.allows(key.Algorithm) || algorithm != key.Algorithm || !keyIDForm(key.ID) {
			continue
		}
		key.Signer = nil
		v.byID[key.ID] = key
	}
	return v
}

// Verify checks a token and returns what it says. It is a token of one of the
// accepted kinds: with none, every token is refused. The key is looked up by x5t or
// kid and brings its algorithm; nothing in the token chooses either. Each reason to
// refuse has its own code: TokenTooLarge, TokenMalformed, TokenHeader,
// TokenUnknownKey, TokenKeyRevoked, TokenAlgorithm, TokenSignature, TokenWrongKind, TokenIssuer,
// TokenAudience, TokenNoExpiry, TokenClaims, TokenExpired (with [ExpiredError]),
// TokenNotYetValid.
func (v *Verifier) Verify(raw string, now time.Time, accept ...Kind) (Claims, error) {
	c, err := openCompact(raw, MaxToken, tokenCodes(), "typ", "alg", "kid", "x5t")
	if err != nil {
		return Claims{}, err
	}
	key, err := v.key(c.header, now)
	if err != nil {
		return Claims{}, err
	}
	claims, err := v.claims(c, key)
	if err != nil {
		return Claims{}, err
	}
	claims.KeyID = key.ID
	if err := v.Check(claims, now, accept...); err != nil {
		return Claims{}, err
	}
	return claims, nil
}

// Check judges claims that Verify returned before, for a cache: the key may have
// been revoked or replaced since, time has passed, another kind may be asked for.
func (v *Verifier) Check(claims Claims, now time.Time, accept ...Kind) error {
	if _, err := v.usable(claims.KeyID, now); err != nil {
		return err
	}
	if !slices.Contains(accept, claims.Kind) {
		return catalog.Errorf(catalog.TokenWrongKind, "this is a %s token, accepted here: %s", claims.Kind, list(accept))
	}
	return claims.checkTimes(now)
}

// CheckKey answers TokenUnknownKey when the key with that id verifies nothing now: for
// what a token has opened and is still under way.
func (v *Verifier) CheckKey(id string, now time.Time) error {
	_, err := v.usable(id, now)
	return err
}

func list(kinds []Kind) string {
	if len(kinds) == 0 {
		return "none"
	}
	names := make([]string, len(kinds))
	for i, kind := range kinds {
		names[i] = string(kind)
	}
	return strings.Join(names, ", ")
}

// key finds the key by x5t (bulk) or kid (the others).
func (v *Verifier) key(h header, now time.Time) (Key, error) {
	id := h.KeyID
	if id == "" {
		id = h.X5T
	} else if h.X5T != "" {
		return Key{}, catalog.Errorf(catalog.TokenHeader, "kid and x5t together")
	}
	key, err := v.usable(id, now)
	if err != nil {
		return Key{}, err
	}
	if (key.Kind == KindBulk) != (h.X5T != "") {
		return Key{}, catalog.Errorf(catalog.TokenUnknownKey, "the key is not named in the way of its kind")
	}
	return key, nil
}

func (v *Verifier) usable(id string, now time.Time) (Key, error) {
	if !keyIDForm(id) {
		return Key{}, catalog.Errorf(catalog.TokenUnknownKey, "the key id is missing or not 1 to %d base64url characters", maxKeyID)
	}
	if v.revoked[id] {
		return Key{}, catalog.Errorf(catalog.TokenKeyRevoked, "key %s", id)
	}
	key, ok := v.byID[id]
	if !ok {
		return Key{}, catalog.Errorf(catalog.TokenUnknownKey, "no key %s", id)
	}
	if !key.verifies(now) {
		return Key{}, catalog.Errorf(catalog.TokenUnknownKey, "key %s is out of use", id)
	}
	return key, nil
}

func keyIDForm(id string) bool { return id != "" && len(id) <= maxKeyID && onlyBase64(id) }

func (v *Verifier) claims(c compact, key Key) (Claims, error) {
	p, _ := profileOf(key.Kind)
	if key.Kind == KindBulk {
		var b bulkClaims
		if err := c.verify(key.Algorithm, key.Public, &b); err != nil {
			return Claims{}, err
		}
		if c.header.Type != p.typ {
			return Claims{}, catalog.Errorf(catalog.TokenWrongKind, "the key signs documents of type %s", p.typ)
		}
		return b.claims(v.hierarchy)
	}
	var d deviceClaims
	if err := c.verify(key.Algorithm, key.Public, &d); err != nil {
		return Claims{}, err
	}
	if c.header.Type != p.typ {
		return Claims{}, catalog.Errorf(catalog.TokenWrongKind, "the key signs documents of type %s", p.typ)
	}
	return d.claims(key.Kind, v.hierarchy, p.audience)
}
