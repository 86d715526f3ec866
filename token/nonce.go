package token

import (
	"time"

	"postern/catalog"
)

// A site's nonce changes every NonceWindow, and is good for NonceLife from when a server
// first hears of it: for devices whose clock cannot be trusted (RFC 9449 8).
const (
	NonceWindow = 30 * time.Second
	NonceLife   = 5 * time.Minute
)

// Nonces are what a server knows of the site's nonces. It answers from memory.
type Nonces interface {
	// Nonce returns the one to give to a client, which all servers of the site know by
	// now; "" when there is none.
	Nonce() string
	// GoodNonce reports whether a nonce is the site's, and not too old.
	GoodNonce(nonce string) bool
}

// inTime judges when a proof was made: by its nonce, when it has one, and else by its iat.
// until is when the id of one with a nonce may be forgotten: it is good as long as the
// nonce, whatever the iat, so the iat never stands in for a nonce that is not good.
func (d dpopClaims) inTime(now time.Time, nonces Nonces) (until time.Time, err error) {
	if d.Nonce != "" && nonces != nil {
		if !nonces.GoodNonce(d.Nonce) {
			return until, catalog.Errorf(catalog.ProofNonceUnknown, "repeat the request with the one in DPoP-Nonce")
		}
		return now.Add(NonceLife + NonceWindow + Leeway), nil
	}
	made := d.IssuedAt.Time
	switch old, ahead := now.Sub(made) > ProofLifetime, made.Sub(now) > Leeway; {
	case !old && !ahead:
		return until, nil
	case nonces != nil && nonces.Nonce() != "":
		return until, catalog.Errorf(catalog.ProofNonceNeeded, "made %s, the clock here says %s; repeat the request with the nonce in DPoP-Nonce", stamp(made), stamp(now))
	case ahead:
		return until, catalog.Errorf(catalog.ProofFuture, "made %s, the clock here says %s", stamp(made), stamp(now))
	}
	return until, catalog.Errorf(catalog.ProofStale, "made %s, the clock here says %s", stamp(made), stamp(now))
}

// AsksNonce reports whether a refusal is to be answered with a nonce, with which the client
// repeats its request.
func AsksNonce(err error) bool {
	code := catalog.CodeOf(err)
	return code == catalog.ProofNonceNeeded || code == catalog.ProofNonceUnknown
}
