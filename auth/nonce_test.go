package auth

import (
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"postern/catalog"
	"postern/token"
)

// nonced makes the proof of a request anew, by a device whose clock is off, with a nonce.
func (f *fixture) nonced(t testing.TB, off time.Duration, nonce, raw string) string {
	t.Helper()
	p, err := token.SignProofNonce(deviceKey(), "CCM_POST", stsURL, raw, nonce, f.now.Add(off), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAProofWithANonceIsUsedOnce(t *testing.T) {
	nonces := &heard{}
	f := newFixture(func(c *BearerConfig) { c.Nonces = nonces })
	nonces.now = func() time.Time { return f.now }
	nonces.hear("first", f.now)
	raw := signed(t, token.KindCCM, nil)
	for _, off := range []time.Duration{-400 * 24 * time.Hour, 10 * time.Minute, 400 * 24 * time.Hour} {
		f.now = noon
		r := f.request(t, raw)
		r.Header.Set("DPoP", f.nonced(t, off, "", raw))
		_, err := f.bearer.Proof(r, token.KindCCM)
		wantCode(t, err, catalog.ProofNonceNeeded)
		r.Header.Set("DPoP", f.nonced(t, off, nonces.Nonce(), raw))
		if _, err := f.bearer.Proof(r, token.KindCCM); err != nil {
			t.Fatalf("a clock that is %s off, with a nonce: %v", off, err)
		}
		for after := time.Duration(0); after < 20*time.Minute; after += 10 * time.Second { // the iat of a fast clock comes to pass in between
			f.now = noon.Add(after)
			if _, err := f.bearer.Proof(r, token.KindCCM); err == nil {
				t.Fatalf("a clock that is %s off: accepted again after %s", off, after)
			}
		}
	}
}

// heard has the shape of token.Nonces, with the nonces that a test lets it hear.
type heard struct {
	heardNonces
	now func() time.Time
}

func (h *heard) Nonce() string               { return h.give(h.now()) }
func (h *heard) GoodNonce(nonce string) bool { return h.good(nonce, h.now()) }

func TestNoncesAreHeardFromTheSite(t *testing.T) {
	now := noon
	var h heardNonces
	for i := range 40 {
		h.hear(fmt.Sprint("nonce-", i), now)
		h.hear(fmt.Sprint("nonce-", i), now.Add(token.NonceWindow/2)) // with every beat again
		now = now.Add(token.NonceWindow)
	}
	for i := range 40 {
		age := time.Duration(40-i) * token.NonceWindow
		if got, want := h.good(fmt.Sprint("nonce-", i), now), age < token.NonceLife; got != want {
			t.Errorf("a nonce heard %s ago: got %v, want %v", age, got, want)
		}
	}
	if got := h.give(now); got != "nonce-38" {
		t.Errorf("gives %q, want the one before the newest, which others have heard too", got)
	}
	if len(h.list) > maxHeard {
		t.Errorf("%d are kept", len(h.list))
	}
	if h.good("", now) || h.good("made-up", now) {
		t.Error("a nonce that nobody gave is good")
	}
	if later := now.Add(token.NonceLife); h.give(later) != "" {
		t.Errorf("a gateway that hears nothing gives %q", h.give(later))
	}
	if back := now.Add(-400 * 24 * time.Hour); h.good("nonce-39", back) {
		t.Error("a nonce is good before it was heard")
	}
}

func TestABeatSentAgainBringsNoNonceBack(t *testing.T) {
	now := noon
	s := newState(&now)
	if _, err := s.Apply(stateLine(t, siteRoot(), 1, now, func(state *token.SiteState) { state.Nonce = "zero" })); err != nil {
		t.Fatal(err)
	}
	first, err := token.SignBeatOf(token.Beat{Epoch: 1, At: now, Nonce: "first"}, siteRoot())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(first); err != nil || !s.GoodNonce("first") || !s.GoodNonce("zero") || s.Nonce() != "zero" {
		t.Fatalf("the nonces of state and heartbeat: %v", err)
	}
	for range 2 * int(token.NonceLife/token.NonceWindow) {
		now = now.Add(token.NonceWindow / 2)
		s.Apply(first) // an old line is no error as long as it could be of now
	}
	if s.GoodNonce("first") || s.Nonce() != "" {
		t.Error("whoever relays an old heartbeat keeps its nonce alive")
	}
	forged, err := token.SignBeatOf(token.Beat{Epoch: 1, At: now, Nonce: "forged"}, otherRoot())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(forged); catalog.CodeOf(err) != catalog.StateOtherRoot || s.GoodNonce("forged") {
		t.Errorf("a nonce of another root: %v", err)
	}
}
