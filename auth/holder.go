package auth

import (
	"net/http"
	"time"

	"postern/catalog"
	"postern/proof"
	"postern/token"
)

// Holder returns what a request without a token proves: that its caller holds the key of the proof in its header DPoP, made for this method and address,
// fresh, and used for the first time. Of whom that key is it says nothing; the method of the result is [proof.Assertion], for a conversation in which an
// assertion by a registered key follows. A key that was revoked is an error, and so is a token beside the proof.
func (b *Bearer) Holder(r *http.Request) (proof.Proof, error) {
	if inQuery(r) {
		return proof.Proof{}, catalog.Errorf(catalog.TokenInQuery, "an address must not hold a token")
	}
	if len(r.Header.Values("Authorization")) > 0 {
		return proof.Proof{}, catalog.Errorf(catalog.TokenWrongKind, "a token and a proof without its hash do not go together")
	}
	raw, err := proofHeader(r)
	if err != nil {
		return proof.Proof{}, err
	}
	now := b.config.Now()
	p, err := token.VerifyProofKnown(raw, r.Method, "", now, b.config.Nonces, b.keys)
	if err != nil {
		return proof.Proof{}, err
	}
	if err := b.bound(r, credential{claims: token.Claims{Key: p.Key}}, p); err != nil {
		return proof.Proof{}, err
	}
	return proof.Proof{Method: proof.Assertion, Key: p.Key, Address: address(r), At: now}, nil
}

// Bare reports whether a request shows a proof of a key and no token.
func Bare(r *http.Request) bool {
	return len(r.Header.Values("Authorization")) == 0 && len(r.Header.Values("DPoP")) > 0
}

// NotBefore returns the clock's time, or, when the clock says less than that, the newest time that the site has told: what has ended by then does not
// begin to be good again because the clock here was set back (users-and-threats.md C54), nor by a restart after that.
func (s *State) NotBefore(now time.Time) time.Time {
	if newest := s.newest(); newest.After(now) {
		return newest
	}
	return now
}

// Behind returns by how much the clock is behind the newest time that the site has told, beyond the leeway; 0 when it is not.
func (s *State) Behind(now time.Time) time.Duration {
	if behind := s.newest().Sub(now); behind > token.Leeway {
		return behind
	}
	return 0
}

// newest is the newest time that the site has told: in a line of its moment, or in the state in force.
func (s *State) newest() time.Time {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.view != nil && s.view.state.Issued.After(s.sent) {
		return s.view.state.Issued
	}
	return s.sent
}
