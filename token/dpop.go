package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"io"
	"time"

	"postern/catalog"
	"postern/proof"
)

// ProofLifetime is how long after its iat a proof is accepted, and therefore how
// long its id must be remembered. A proof from the future is accepted within Leeway.
const ProofLifetime = 5 * time.Minute

const (
	proofType  = "dpop+jwt"
	minProofID = 8
	maxProofID = 128
	maxURL     = 2048
)

// ProofClaims is what a proof of possession says (RFC 9449 4.2).
type ProofClaims struct {
	Key       proof.KeyThumbprint
	PublicKey crypto.PublicKey
	ID        string // jti
	Method    string // htm
	URL       string // htu, not yet compared with anything
	TokenHash string // ath
	Nonce     string
	IssuedAt  time.Time
}

// Until is when the proof's id may be forgotten.
func (p ProofClaims) Until() time.Time { return p.IssuedAt.Add(ProofLifetime) }

// dpopClaims are the claims of RFC 9449 4.2.
type dpopClaims struct {
	ID        string `json:"jti"`
	Method    string `json:"htm"`
	URL       string `json:"htu"`
	IssuedAt  *date  `json:"iat"`
	TokenHash string `json:"ath,omitempty"`
	Nonce     string `json:"nonce,omitempty"`
}

// SignProof makes the proof that goes with an access token in the header DPoP: by an
// RSA key (RS256) or a P-256 key (ES256). url is the external URL without query.
func SignProof(key crypto.Signer, method, url, accessToken string, now time.Time, random io.Reader) (string, error) {
	id := make([]byte, 16)
	if _, err := io.ReadFull(random, id); err != nil {
		return "", fmt.Errorf("make proof id: %w", err)
	}
	claims := dpopClaims{ID: base64.RawURLEncoding.EncodeToString(id), Method: method, URL: url, IssuedAt: newDate(now)}
	if accessToken != "" {
		claims.TokenHash = Hash(accessToken)
	}
	signer, err := newSigner(key, proofType, "", true)
	if err != nil {
		return "", fmt.Errorf("sign proof: %w", err)
	}
	return signCompact(signer, claims)
}

// VerifyProof checks a proof for a request with that method and that access token:
// signature by the key inside it, method (the case matters, CCM_POST is a method),
// hash of the token, and age. The caller must still compare Key with the token's,
// compare URL with the request's, and ask its replay memory about Key and ID. Codes:
// ProofMalformed, ProofAlgorithm, ProofKey, ProofSignature, ProofOtherMethod,
// ProofOtherToken, ProofStale, ProofFuture.
func VerifyProof(raw, method, accessToken string, now time.Time) (ProofClaims, error) {
	c, err := openCompact(raw, MaxToken, proofCodes(), "typ", "alg", "jwk")
	if err != nil {
		return ProofClaims{}, err
	}
	if c.header.Type != proofType {
		return ProofClaims{}, catalog.Errorf(catalog.ProofMalformed, "typ is not %s", proofType)
	}
	pub, err := readJWK(c.header.JWK)
	if err != nil {
		return ProofClaims{}, catalog.Wrap(catalog.ProofKey, err, "the proof must hold a public RSA or P-256 key")
	}
	algorithm, err := proofAlgorithm(pub, c.header.Algorithm)
	if err != nil {
		return ProofClaims{}, err
	}
	var claims dpopClaims
	if err := c.verify(algorithm, pub, &claims); err != nil {
		return ProofClaims{}, err
	}
	if err := claims.check(method, accessToken, now); err != nil {
		return ProofClaims{}, err
	}
	key, err := proof.Thumbprint(pub)
	if err != nil {
		return ProofClaims{}, catalog.Wrap(catalog.ProofKey, err, "the key has no thumbprint")
	}
	return ProofClaims{
		Key: key, PublicKey: pub, ID: claims.ID, Method: claims.Method, URL: claims.URL,
		TokenHash: claims.TokenHash, Nonce: claims.Nonce, IssuedAt: claims.IssuedAt.Time,
	}, nil
}

func proofCodes() codes {
	return codes{
		malformed: catalog.ProofMalformed, tooLarge: catalog.ProofMalformed, header: catalog.ProofMalformed,
		algorithm: catalog.ProofAlgorithm, signature: catalog.ProofSignature,
	}
}

// proofAlgorithm is the only place where a document names its own algorithm: the key
// in it decides which names are possible.
func proofAlgorithm(pub crypto.PublicKey, named string) (string, error) {
	var possible []string
	switch pub.(type) {
	case *rsa.PublicKey:
		possible = []string{algRS256, algPS256}
	case *ecdsa.PublicKey:
		possible = []string{algES256}
	}
	if !contains(possible, named) {
		return "", catalog.Errorf(catalog.ProofAlgorithm, "this key proves with %v", possible)
	}
	return named, nil
}

func (d dpopClaims) check(method, accessToken string, now time.Time) error {
	switch {
	case d.IssuedAt == nil || d.URL == "" || len(d.URL) > maxURL || len(d.Nonce) > maxURL || !proofIDForm(d.ID):
		return catalog.Errorf(catalog.ProofMalformed, "jti (%d to %d characters), htm, htu and iat are required", minProofID, maxProofID)
	case d.Method != method:
		return catalog.Errorf(catalog.ProofOtherMethod, "the request's method is %s", method)
	case !sameToken(d.TokenHash, accessToken):
		return catalog.Errorf(catalog.ProofOtherToken, "ath is not the hash of the token")
	case now.Sub(d.IssuedAt.Time) > ProofLifetime:
		return catalog.Errorf(catalog.ProofStale, "made %s, the clock here says %s", stamp(d.IssuedAt.Time), stamp(now))
	case d.IssuedAt.Sub(now) > Leeway:
		return catalog.Errorf(catalog.ProofFuture, "made %s, the clock here says %s", stamp(d.IssuedAt.Time), stamp(now))
	}
	return nil
}

func sameToken(hash, accessToken string) bool {
	if accessToken == "" {
		return hash == ""
	}
	return subtle.ConstantTimeCompare([]byte(hash), []byte(Hash(accessToken))) == 1
}

func proofIDForm(id string) bool {
	if len(id) < minProofID || len(id) > maxProofID {
		return false
	}
	for i := range len(id) {
		if !isBase64(id[i]) && id[i] != '.' && id[i] != '~' {
			return false
		}
	}
	return true
}
