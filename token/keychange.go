package token

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

const keyChangeType = "postern-key-change+jwt"

// KeyChange is the statement by which a device's registered key names its successor.
type KeyChange struct {
	Client  ccm.ClientID
	Next    proof.KeyThumbprint // the key that is to take its place
	ID      string              // jti: to be remembered until Expires + Leeway
	Expires time.Time
}

type keyChangeClaims struct {
	assertionClaims
	Confirmation struct {
		Thumbprint string `json:"jkt"` // RFC 7638, as in RFC 9449 6.1
	} `json:"cnf"`
}

// SignKeyChange makes such a statement by the registered key, for the management point at
// audience, the external URL to which the registration goes. It lives as long as an
// assertion.
func SignKeyChange(key *rsa.PrivateKey, client ccm.ClientID, next proof.KeyThumbprint, audience string, now time.Time) (string, error) {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return "", fmt.Errorf("make statement id: %w", err)
	}
	signer, err := newSigner(key, keyChangeType, "", false)
	if err != nil {
		return "", fmt.Errorf("sign key change: %w", err)
	}
	claims := keyChangeClaims{assertionClaims: assertionClaims{
		Issuer: string(client), Subject: string(client), Audience: audience, ID: base64.RawURLEncoding.EncodeToString(id),
		IssuedAt: newDate(now), NotBefore: newDate(now), Expires: newDate(now.Add(AssertionLifetime)),
	}}
	claims.Confirmation.Thumbprint = string(next)
	return signCompact(signer, claims)
}

// VerifyKeyChange checks a statement with the key that the site has on record. The caller
// compares Client and Next with the registration that came with it, and asks its replay
// memory about ID. Everything that is wrong has the code KeyChangeInvalid.
func VerifyKeyChange(raw string, pub *rsa.PublicKey, audience string, now time.Time) (KeyChange, error) {
	bad := codes{
		malformed: catalog.KeyChangeInvalid, tooLarge: catalog.KeyChangeInvalid, header: catalog.KeyChangeInvalid,
		algorithm: catalog.KeyChangeInvalid, signature: catalog.KeyChangeInvalid,
	}
	c, err := openCompact(raw, MaxToken, bad, "typ", "alg")
	switch {
	case err != nil:
		return KeyChange{}, err
	case c.header.Type != keyChangeType:
		return KeyChange{}, catalog.Errorf(catalog.KeyChangeInvalid, "typ is not %s", keyChangeType)
	case pub == nil:
		return KeyChange{}, catalog.Errorf(catalog.KeyChangeInvalid, "no key is on record")
	}
	var k keyChangeClaims
	if err := c.verify(algRS256, pub, &k); err != nil {
		return KeyChange{}, err
	}
	a, err := k.check(audience, now)
	if err != nil {
		return KeyChange{}, catalog.Wrap(catalog.KeyChangeInvalid, err, "the statement's claims do not hold")
	}
	next := k.Confirmation.Thumbprint
	if sum, err := base64.RawURLEncoding.DecodeString(next); err != nil || len(sum) != 32 {
		return KeyChange{}, catalog.Errorf(catalog.KeyChangeInvalid, "cnf.jkt is not the thumbprint of a key")
	}
	return KeyChange{Client: a.Client, Next: proof.KeyThumbprint(next), ID: a.ID, Expires: a.Expires}, nil
}

// Names reports whether the statement is of that device and for that key.
func (k KeyChange) Names(client ccm.ClientID, next proof.KeyThumbprint) bool {
	return k.Client == client && subtle.ConstantTimeCompare([]byte(k.Next), []byte(next)) == 1
}
