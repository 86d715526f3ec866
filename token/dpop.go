package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
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

	until time.Time // of a proof with a good nonce
}

// Until is when the proof's id may be forgotten.
func (p ProofClaims) Until() time.Time {
	if !p.until.IsZero() {
		return p.until
	}
	return p.IssuedAt.Add(ProofLifetime)
}

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
	return SignProofNonce(key, method, url, accessToken, "", now, random)
}

// SignProofNonce is [SignProof] with a nonce that the server has given; "" for none.
func SignProofNonce(key crypto.Signer, method, url, accessToken, nonce string, now time.Time, random io.Reader) (string, error) {
	id := make([]byte, 16)
	if _, err := io.ReadFull(random, id); err != nil {
		return "", fmt.Errorf("make proof id: %w", err)
	}
	claims := dpopClaims{ID: base64.RawURLEncoding.EncodeToString(id), Method: method, URL: url, IssuedAt: newDate(now), Nonce: nonce}
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
	return VerifyProofNonce(raw, method, accessToken, now, nil)
}

// VerifyProofNonce is [VerifyProof] at a server that gives nonces; nil for one that does
// not. There a good nonce stands for the proof's age. Further codes: ProofNonceNeeded
// instead of ProofStale and ProofFuture where there is a nonce to give, and
// ProofNonceUnknown.
func VerifyProofNonce(raw, method, accessToken string, now time.Time, nonces Nonces) (ProofClaims, error) {
	return VerifyProofKnown(raw, method, accessToken, now, nonces, nil)
}

// VerifyProofKnown is [VerifyProofNonce] that reads the keys of devices which prove again and again
// from keys.
func VerifyProofKnown(raw, method, accessToken string, now time.Time, nonces Nonces, keys *ProofKeys) (ProofClaims, error) {
	head, err := firstPart(raw, MaxToken, proofCodes())
	if err != nil {
		return ProofClaims{}, err
	}
	hash := sha256.Sum256([]byte(head))
	key, known := keys.get(hash)
	if !known {
		if key, err = readProofKey(head); err != nil {
			return ProofClaims{}, err
		}
	}
	var claims dpopClaims
	c := compact{raw: raw, header: header{Algorithm: key.algorithm}, codes: proofCodes()}
	if err := c.verify(key.algorithm, key.public, &claims); err != nil {
		return ProofClaims{}, err
	}
	if err := claims.check(method, accessToken); err != nil {
		return ProofClaims{}, err
	}
	until, err := claims.inTime(now, nonces)
	if err != nil {
		return ProofClaims{}, err
	}
	if !known {
		keys.remember(hash, key)
	}
	return ProofClaims{
		Key: key.thumbprint, PublicKey: key.public, ID: claims.ID, Method: claims.Method, URL: claims.URL,
		TokenHash: claims.TokenHash, Nonce: claims.Nonce, IssuedAt: claims.IssuedAt.Time, until: until,
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

func (d dpopClaims) check(method, accessToken string) error {
	switch {
	case d.IssuedAt == nil || d.URL == "" || len(d.URL) > maxURL || len(d.Nonce) > maxURL || !proofIDForm(d.ID):
		return catalog.Errorf(catalog.ProofMalformed, "jti (%d to %d characters), htm, htu and iat are required", minProofID, maxProofID)
	case d.Method != method:
		return catalog.Errorf(catalog.ProofOtherMethod, "the request's method is %s", method)
	case !sameToken(d.TokenHash, accessToken):
		return catalog.Errorf(catalog.ProofOtherToken, "ath is not the hash of the token")
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
