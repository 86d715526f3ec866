package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
	strictjson "github.com/go-jose/go-jose/v4/json" // refuses duplicate names and other case

	"postern/catalog"
)

// Budgets that hold before anything is decoded.
const (
	MaxToken    = 16 << 10 // a token, a proof or an assertion
	MaxDocument = 4 << 20  // a site state
	maxHeader   = 4 << 10  // base64url of a protected header; a 4096-bit jwk needs 1 KiB
	maxKeyID    = 64       // kid or x5t
)

// The algorithms that we sign or accept anywhere. Which one a key has is said by
// the key, never by the token.
const (
	algRS256 = string(jose.RS256)
	algPS256 = string(jose.PS256)
	algES256 = string(jose.ES256)
)

// codes are the catalogue codes of one conversation for the failures that every
// compact JWS shares.
type codes struct {
	malformed, tooLarge, header, algorithm, signature catalog.Code
}

// header is a protected header in which every name is one that we know.
type header struct {
	Type      string
	Algorithm string
	KeyID     string
	X5T       string
	JWK       strictjson.RawMessage
}

// compact is a compact JWS of which only the header has been read.
type compact struct {
	raw    string
	header header
	codes  codes
}

// openCompact checks the size, the alphabet and the three parts, then reads the
// header, which may hold the allowed names and nothing else: jku, x5u, x5c, crit
// and a jwk outside a proof end here, before anything acts on them.
func openCompact(raw string, limit int, c codes, allowed ...string) (compact, error) {
	first, err := firstPart(raw, limit, c)
	if err != nil {
		return compact{}, err
	}
	h, err := readHeader(first, c, allowed)
	if err != nil {
		return compact{}, err
	}
	return compact{raw: raw, header: h, codes: c}, nil
}

// firstPart checks all that can be checked without decoding, and returns the header as it came.
func firstPart(raw string, limit int, c codes) (string, error) {
	if len(raw) > limit {
		return "", catalog.Errorf(c.tooLarge, "%d bytes, the limit is %d", len(raw), limit)
	}
	first, rest, ok := strings.Cut(raw, ".")
	payload, signature, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || first == "" || payload == "" || signature == "" || !onlyBase64(first) || !onlyBase64(payload) || !onlyBase64(signature) {
		return "", catalog.Errorf(c.malformed, "not three base64url parts")
	}
	if len(first) > maxHeader {
		return "", catalog.Errorf(c.malformed, "the header has %d characters, the limit is %d", len(first), maxHeader)
	}
	return first, nil
}

func onlyBase64(part string) bool {
	for i := range len(part) {
		if !isBase64(part[i]) {
			return false
		}
	}
	return true
}

func isBase64(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

func readHeader(part string, c codes, allowed []string) (header, error) {
	decoded, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return header{}, catalog.Wrap(c.malformed, err, "the header is not base64url")
	}
	var fields map[string]strictjson.RawMessage
	if err := strictjson.Unmarshal(decoded, &fields); err != nil {
		return header{}, catalog.Wrap(c.malformed, err, "the header is not one JSON object")
	}
	for name := range fields {
		if !contains(allowed, name) {
			return header{}, catalog.Errorf(c.header, "the header may hold %s and nothing else", strings.Join(allowed, ", "))
		}
	}
	h := header{JWK: fields["jwk"]}
	for name, into := range map[string]*string{"typ": &h.Type, "alg": &h.Algorithm, "kid": &h.KeyID, "x5t": &h.X5T} {
		value, ok := fields[name]
		if !ok {
			continue
		}
		if err := strictjson.Unmarshal(value, into); err != nil {
			return header{}, catalog.Wrap(c.malformed, err, "the header field %s is not a string", name)
		}
	}
	return h, nil
}

func contains(names []string, name string) bool {
	for _, known := range names {
		if known == name {
			return true
		}
	}
	return false
}

// verify checks the signature with this key and this algorithm, then reads the
// payload into claims. Nothing of the payload is read before the signature holds.
func (c compact) verify(algorithm string, pub crypto.PublicKey, claims any) error {
	if c.header.Algorithm != algorithm {
		return catalog.Errorf(c.codes.algorithm, "the key signs with %s", algorithm)
	}
	payload, err := c.opened(algorithm, pub)
	if errors.Is(err, errEncoding) {
		return catalog.Wrap(c.codes.malformed, err, "not a signed document")
	}
	if err != nil {
		return catalog.Wrap(c.codes.signature, err, "the signature does not fit the key")
	}
	if err := strictjson.Unmarshal(payload, claims); err != nil {
		return catalog.Wrap(c.codes.malformed, err, "the content does not have the expected fields")
	}
	return nil
}

// signCompact signs v, as JSON, and returns the compact form.
func signCompact(signer jose.Signer, v any) (string, error) {
	payload, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encode: %w", err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return signed.CompactSerialize()
}

// newSigner returns a signer with that header type. keyID may be empty; embed
// writes the public key as jwk instead.
func newSigner(key crypto.Signer, typ, keyID string, embed bool) (jose.Signer, error) {
	algorithm, err := algorithmOf(key.Public())
	if err != nil {
		return nil, err
	}
	options := (&jose.SignerOptions{EmbedJWK: embed}).WithType(jose.ContentType(typ))
	if keyID != "" {
		options = options.WithHeader("kid", keyID)
	}
	return jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(algorithm), Key: cryptosigner.Opaque(key)}, options)
}

// algorithmOf is the one algorithm that we sign with for this type of key.
func algorithmOf(pub crypto.PublicKey) (string, error) {
	switch key := pub.(type) {
	case *rsa.PublicKey:
		return algRS256, nil
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() {
			return algES256, nil
		}
	}
	return "", fmt.Errorf("key type %T: want RSA or P-256", pub)
}

// Hash returns base64url of the SHA-256 of a token: the ath claim of RFC 9449, and
// a name under which a cache may keep what it learned of the token.
func Hash(raw string) string {
	sum := sha256.Sum256([]byte(raw))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
