package client

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/catalog"
)

func TestNoncesOfTheClient(t *testing.T) {
	var n nonces
	if n.heard("unasked", false); n.get() != "" {
		t.Error("a device that nobody asked for a nonce uses one")
	}
	for _, bad := range []string{"", "with space", "line\nend", `quo"te`, "ümlaut", strings.Repeat("x", maxNonce+1)} {
		if n.demanded(bad) || n.get() != "" {
			t.Errorf("takes %q", bad)
		}
	}
	if !n.demanded("first") || n.get() != "first" {
		t.Error("does not take the nonce that a server asks for")
	}
	if n.demanded("first") {
		t.Error("repeats for ever with the nonce that was refused")
	}
	if n.heard("", false); n.get() != "first" {
		t.Error("an answer without a nonce takes the last one away")
	}
	if n.heard("second", false); n.get() != "second" {
		t.Error("does not go on with the newest")
	}
	if n.heard("third", true); n.get() != "" {
		t.Error("goes on with nonces although the clock is right")
	}
}

// TestTheSiteRootSaysThatItIsLater: a certificate under the pinned root that begins after the device's clock shows that the clock is behind; one that has
// ended shows nothing.
func TestTheSiteRootSaysThatItIsLater(t *testing.T) {
	chain := func(from, to time.Time) []*x509.Certificate {
		return []*x509.Certificate{{NotBefore: from, NotAfter: to}, {NotBefore: begin().AddDate(-1, 0, 0), NotAfter: begin().AddDate(20, 0, 0)}}
	}
	for name, test := range map[string]struct{ clock, from, want time.Time }{
		"a right clock":      {begin(), begin().AddDate(0, 0, -1), begin()},
		"a clock way behind": {begin().AddDate(0, 0, -400), begin().AddDate(0, 0, -1), begin().AddDate(0, 0, -1)},
		"a clock ahead":      {begin().AddDate(2, 0, 0), begin().AddDate(0, 0, -1), begin().AddDate(2, 0, 0)},
	} {
		if got := notBefore(chain(test.from, begin().AddDate(1, 0, 0)), test.clock); !got.Equal(test.want) {
			t.Errorf("%s: judged at %s, want %s", name, got, test.want)
		}
	}
}

// testNonces are those of a site that changes its nonce with every good request.
type testNonces struct{ n, good, bad int }

func (s *testNonces) Nonce() string { return fmt.Sprint("nonce-", s.n) }

func (s *testNonces) GoodNonce(nonce string) bool {
	good := nonce == s.Nonce() || nonce == fmt.Sprint("nonce-", s.n-1) // heard from the answer before
	if good {
		s.n, s.good = s.n+1, s.good+1
	} else {
		s.bad++
	}
	return good
}

// TestAWrongClockWithoutTheServersTime: where no answer says the time, the nonces alone bring the device through, each the newest that it has heard. What is
// signed with a time of its own, an assertion, then fails, and says so.
func TestAWrongClockWithoutTheServersTime(t *testing.T) {
	site := newTestSite(t)
	nonces := &testNonces{}
	site.nonces = nonces
	agent := site.agentIn(t.TempDir(), new(int), &testClock{at: begin().Add(10 * time.Minute)})
	err := agent.Enrol(t.Context(), site.setup())
	if catalog.CodeOf(err) != catalog.AssertionExpired {
		t.Errorf("got %v, want the assertion for the self-prove token refused", err)
	}
	if got := agent.Status(); !got.State.registered() || got.ClockOffset != 0 {
		t.Errorf("got %+v", got)
	}
	if nonces.good < 3 || nonces.bad > 0 {
		t.Errorf("%d requests with the newest nonce and %d with another", nonces.good, nonces.bad)
	}
}
