package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"postern/catalog"
	"postern/proof"
)

// States of a key, in the order of its life. A prepared key is told to all who verify and
// signs nothing yet, so that its first token is understood everywhere. The newest active
// key of a kind signs. All but revoked keys verify until NotAfter; a revoked key is told to
// all who verify, and verifies nothing.
const (
	KeyPrepared = "prepared"
	KeyActive   = "active"
	KeyRetired  = "retired"
	KeyRevoked  = "revoked"
)

// KeyLifetime is how long a new key may be used. A key signs only tokens that end
// before it does, so a key should be replaced SelfProveLifetime before its end.
const KeyLifetime = 2 * 365 * 24 * time.Hour

// Key is one key of the site. A verifier needs everything but Signer.
type Key struct {
	ID          string // kid, or x5t of a bulk key: a lookup key without meaning
	Kind        Kind
	Algorithm   string // AlgorithmRS256 or AlgorithmES256; a token cannot choose another
	Certificate []byte // DER; bulk keys only
	Signer      crypto.Signer
	Public      crypto.PublicKey
	NotBefore   time.Time // signs from here on; an active key with a later NotBefore is prepared
	NotAfter    time.Time
	State       string // see KeyPrepared
}

// The algorithms that a token's key may have. Bulk keys are RS256 only, as documented;
// the others may be either, and are ES256 unless the site asks for RS256 (design
// decision 14).
const (
	AlgorithmES256 = algES256
	AlgorithmRS256 = algRS256
)

// NewKey makes an active key for that kind, with the algorithm that is usual for it. A
// bulk key is RSA-2048 with a certificate of its own, "SMS Token Signing Certificate",
// because the documented token names its key by x5t (protocol.md 6.3); the others are
// P-256.
func NewKey(kind Kind, now time.Time, random io.Reader) (Key, error) {
	p, _ := profileOf(kind)
	return NewKeyOf(kind, p.algorithm, now, random)
}

// NewKeyOf is [NewKey] with the given algorithm, where the kind allows it.
func NewKeyOf(kind Kind, algorithm string, now time.Time, random io.Reader) (Key, error) {
	key, err := newKey(kind, algorithm, now, random)
	if err != nil {
		return Key{}, fmt.Errorf("make %s signing key: %w", kind, err)
	}
	return key, nil
}

func newKey(kind Kind, algorithm string, now time.Time, random io.Reader) (Key, error) {
	p, ok := profileOf(kind)
	switch {
	case !ok:
		return Key{}, fmt.Errorf("unknown kind")
	case !p.allows(algorithm):
		return Key{}, fmt.Errorf("the algorithm is %q", algorithm)
	}
	key := Key{Kind: kind, Algorithm: algorithm, NotBefore: now, NotAfter: now.Add(KeyLifetime), State: KeyActive}
	if kind == KindBulk {
		return newBulkKey(key, random)
	}
	signer, err := newSigningKey(algorithm, random)
	if err != nil {
		return Key{}, err
	}
	thumbprint, err := proof.Thumbprint(signer.Public())
	key.ID, key.Signer, key.Public = string(thumbprint), signer, signer.Public()
	return key, err
}

func newSigningKey(algorithm string, random io.Reader) (crypto.Signer, error) {
	if algorithm == algRS256 {
		return rsa.GenerateKey(random, 2048)
	}
	return ecdsa.GenerateKey(elliptic.P256(), random)
}

func newBulkKey(key Key, random io.Reader) (Key, error) {
	signer, err := rsa.GenerateKey(random, 2048)
	if err != nil {
		return Key{}, err
	}
	serial, err := rand.Int(random, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return Key{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "SMS Token Signing Certificate"},
		NotBefore: key.NotBefore.Add(-Leeway), NotAfter: key.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(random, template, template, &signer.PublicKey, signer)
	key.ID, key.Certificate, key.Signer, key.Public = x5t(der), der, signer, &signer.PublicKey
	return key, err
}

// x5t is base64url of the SHA-1 of a certificate (RFC 7515 4.1.7). It finds a key;
// it protects nothing.
func x5t(der []byte) string {
	sum := sha1.Sum(der)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// verifies reports whether tokens by this key may be accepted at now.
func (k Key) verifies(now time.Time) bool {
	return (k.State == KeyPrepared || k.State == KeyActive || k.State == KeyRetired) && now.Before(k.NotAfter.Add(Leeway))
}

// signs reports whether this key may sign, at now, a token that ends at expires.
func (k Key) signs(kind Kind, now, expires time.Time) bool {
	return k.Kind == kind && k.State == KeyActive && k.Signer != nil && !now.Before(k.NotBefore) && !expires.After(k.NotAfter)
}

// Ring is the site's keys. It does not change: a rotation is a new ring made from
// the stored keys, so that two management points that share the keys agree. It is
// safe for concurrent use.
type Ring struct {
	hierarchy string
	keys      []Key
	signers   map[string]jose.Signer // by key id; not for bulk keys
	verifier  *Verifier
}

// NewRing returns a ring of these keys, of which those without a Signer only
// verify. hierarchy is the hierarchy id, a bare UUID in any case.
func NewRing(hierarchy string, keys []Key) *Ring {
	keys = slices.Clone(keys)
	slices.SortStableFunc(keys, func(a, b Key) int { return b.NotBefore.Compare(a.NotBefore) })
	r := &Ring{hierarchy: hierarchy, keys: keys, signers: map[string]jose.Signer{}, verifier: NewVerifier(hierarchy, keys)}
	for _, key := range keys {
		p, ok := profileOf(key.Kind)
		if !ok || key.Signer == nil || key.Kind == KindBulk {
			continue
		}
		if signer, err := newSigner(key.Signer, p.typ, key.ID, false); err == nil {
			r.signers[key.ID] = signer
		}
	}
	return r
}

// Verifier returns the verifier for the ring's keys.
func (r *Ring) Verifier() *Verifier { return r.verifier }

// PublicKeys returns the keys that gateways need, newest first.
func (r *Ring) PublicKeys() ([]PublicKey, error) {
	var keys []PublicKey
	for _, key := range r.keys {
		public, err := key.PublicKey()
		if err != nil {
			return nil, err
		}
		keys = append(keys, public)
	}
	return keys, nil
}

// Sign makes a token of that kind from the claims, by the newest active key. ID,
// and Client and a key binding where the kind has them, are the caller's; times that
// are zero are filled in: from now, for the kind's default lifetime. A lifetime
// above the kind's maximum is refused with TokenLifetime; TokenNoSigningKey says that
// no key may sign now.
func (r *Ring) Sign(kind Kind, claims Claims, now time.Time) (string, error) {
	p, ok := profileOf(kind)
	if !ok {
		return "", fmt.Errorf("sign token: unknown kind %q", kind)
	}
	claims = withTimes(kind, claims, now)
	if err := checkClaims(kind, p, claims); err != nil {
		return "", err
	}
	index := slices.IndexFunc(r.keys, func(k Key) bool { return k.signs(kind, now, claims.Expires) })
	if index < 0 {
		return "", catalog.Errorf(catalog.TokenNoSigningKey, "no active key for %s tokens until %s", kind, stamp(claims.Expires))
	}
	key := r.keys[index]
	if kind == KindBulk {
		return signBulk(key, newBulkClaims(r.hierarchy, claims))
	}
	signer, ok := r.signers[key.ID]
	if !ok {
		return "", catalog.Errorf(catalog.TokenNoSigningKey, "key %s cannot sign with %s", key.ID, key.Algorithm)
	}
	return signCompact(signer, newDeviceClaims(r.hierarchy, p.audience, claims))
}

func withTimes(kind Kind, c Claims, now time.Time) Claims {
	lifetimes := map[Kind]time.Duration{KindBulk: BulkLifetime, KindCCM: CCMLifetime, KindSelfProve: SelfProveLifetime}
	if c.IssuedAt.IsZero() {
		c.IssuedAt = now
	}
	if c.NotBefore.IsZero() {
		c.NotBefore = now
	}
	if c.Expires.IsZero() {
		c.Expires = c.NotBefore.Add(lifetimes[kind])
	}
	return c
}

func checkClaims(kind Kind, p profile, c Claims) error {
	lifetime := c.Expires.Sub(c.NotBefore)
	switch {
	case lifetime <= 0 || lifetime > p.longest:
		return catalog.Errorf(catalog.TokenLifetime, "%s asked, the maximum for a %s token is %s", lifetime, kind, p.longest)
	case c.ID == "":
		return catalog.Errorf(catalog.TokenClaims, "a token needs an id")
	case kind == KindBulk:
		return nil
	case c.Client == "":
		return catalog.Errorf(catalog.TokenClaims, "a %s token needs a client id", kind)
	case c.Key == "" && c.CertificateThumbprint == "":
		return catalog.Errorf(catalog.TokenClaims, "a %s token needs the key that must prove itself", kind)
	}
	return nil
}

// signBulk writes the header itself: the documented order is typ, alg, x5t, and the
// library sorts names.
func signBulk(key Key, claims bulkClaims) (string, error) {
	head, err := json.Marshal(struct {
		Type      string `json:"typ"`
		Algorithm string `json:"alg"`
		X5T       string `json:"x5t"`
	}{"JWT", algRS256, key.ID})
	if err != nil {
		return "", fmt.Errorf("encode header: %w", err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encode claims: %w", err)
	}
	input := base64.RawURLEncoding.EncodeToString(head) + "." + base64.RawURLEncoding.EncodeToString(payload)
	digest := sha256.Sum256([]byte(input))
	signature, err := key.Signer.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("sign bulk token: %w", err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}
