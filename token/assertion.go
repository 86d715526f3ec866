package token

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	strictjson "github.com/go-jose/go-jose/v4/json"

	"postern/catalog"
	"postern/ccm"
)

// AssertionLifetime is how long an assertion lives, and the longest that is accepted.
const AssertionLifetime = 5 * time.Minute

const assertionType = "client-assertion+jwt"

// AssertionClaims is what a device says of itself with its registered key (RFC 7523).
type AssertionClaims struct {
	Client   ccm.ClientID
	ID       string // jti: to be remembered until Expires + Leeway
	Audience string
	IssuedAt time.Time
	Expires  time.Time
}

type assertionClaims struct {
	Issuer    string `json:"iss"`
	Subject   string `json:"sub"`
	Audience  string `json:"aud"`
	ID        string `json:"jti"`
	IssuedAt  *date  `json:"iat"`
	NotBefore *date  `json:"nbf"`
	Expires   *date  `json:"exp"`
}

// SignAssertion makes an assertion by the registered key for the token service at
// audience, its external URL.
func SignAssertion(key *rsa.PrivateKey, client ccm.ClientID, audience string, now time.Time) (string, error) {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return "", fmt.Errorf("make assertion id: %w", err)
	}
	signer, err := newSigner(key, assertionType, "", false)
	if err != nil {
		return "", fmt.Errorf("sign assertion: %w", err)
	}
	return signCompact(signer, assertionClaims{
		Issuer: string(client), Subject: string(client), Audience: audience, ID: base64.RawURLEncoding.EncodeToString(id),
		IssuedAt: newDate(now), NotBefore: newDate(now), Expires: newDate(now.Add(AssertionLifetime)),
	})
}

// VerifyAssertion checks an assertion with the key that the site has on record for
// the device, for the token service at audience. The caller compares Client with the
// device of that key and asks its replay memory about ID. Codes: AssertionMalformed,
// AssertionSignature, AssertionAudience, AssertionClient, AssertionExpired.
func VerifyAssertion(raw string, pub *rsa.PublicKey, audience string, now time.Time) (AssertionClaims, error) {
	c, err := openCompact(raw, MaxToken, assertionCodes(), "typ", "alg")
	if err != nil {
		return AssertionClaims{}, err
	}
	if c.header.Type != assertionType {
		return AssertionClaims{}, catalog.Errorf(catalog.AssertionMalformed, "typ is not %s", assertionType)
	}
	if pub == nil {
		return AssertionClaims{}, catalog.Errorf(catalog.AssertionSignature, "no key is on record")
	}
	var a assertionClaims
	if err := c.verify(algRS256, pub, &a); err != nil {
		return AssertionClaims{}, err
	}
	return a.check(audience, now)
}

func assertionCodes() codes {
	return codes{
		malformed: catalog.AssertionMalformed, tooLarge: catalog.AssertionMalformed, header: catalog.AssertionMalformed,
		algorithm: catalog.AssertionSignature, signature: catalog.AssertionSignature,
	}
}

func (a assertionClaims) check(audience string, now time.Time) (AssertionClaims, error) {
	if a.IssuedAt == nil || a.NotBefore == nil || a.Expires == nil || !proofIDForm(a.ID) {
		return AssertionClaims{}, catalog.Errorf(catalog.AssertionMalformed, "iss, sub, aud, jti, iat, nbf and exp are required")
	}
	client, err := ccm.ParseClientID(a.Subject)
	if err != nil || subtle.ConstantTimeCompare([]byte(a.Issuer), []byte(a.Subject)) != 1 {
		return AssertionClaims{}, catalog.Errorf(catalog.AssertionClient, "iss and sub must both be the client id")
	}
	if a.Audience != audience {
		return AssertionClaims{}, catalog.Errorf(catalog.AssertionAudience, "made for another token service than %s", audience)
	}
	early := now.Before(a.NotBefore.Add(-Leeway)) || now.Before(a.IssuedAt.Add(-Leeway))
	if early || !now.Before(a.Expires.Add(Leeway)) || a.Expires.Sub(a.IssuedAt.Time) > AssertionLifetime {
		return AssertionClaims{}, catalog.Errorf(catalog.AssertionExpired, "good from %s to %s, the clock here says %s",
			stamp(a.NotBefore.Time), stamp(a.Expires.Time), stamp(now))
	}
	return AssertionClaims{Client: client, ID: a.ID, Audience: a.Audience, IssuedAt: a.IssuedAt.Time, Expires: a.Expires.Time}, nil
}

// AssertionSubject returns the client id that an assertion claims, so that the key on
// record can be found. Nothing is verified: use it for the lookup and for nothing else.
func AssertionSubject(raw string) (ccm.ClientID, error) {
	if _, err := openCompact(raw, MaxToken, assertionCodes(), "typ", "alg"); err != nil {
		return "", err
	}
	var a assertionClaims
	if err := peek(raw, &a); err != nil {
		return "", catalog.Wrap(catalog.AssertionMalformed, err, "the content does not have the expected fields")
	}
	client, err := ccm.ParseClientID(a.Subject)
	if err != nil {
		return "", catalog.Wrap(catalog.AssertionClient, err, "sub is not a client id")
	}
	return client, nil
}

// peek reads a payload without verifying it.
func peek(raw string, claims any) error {
	first, last := -1, -1
	for i := range len(raw) {
		if raw[i] != '.' {
			continue
		}
		if first < 0 {
			first = i
		}
		last = i
	}
	if first < 0 || first == last {
		return errors.New("not three parts")
	}
	payload, err := base64.RawURLEncoding.DecodeString(raw[first+1 : last])
	if err != nil {
		return err
	}
	return strictjson.Unmarshal(payload, claims)
}
