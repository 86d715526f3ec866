package site_test

import (
	"path/filepath"
	"testing"
	"time"

	"postern/token"
)

// TestNoncesOfTheSite: all nodes know the same ones; what a client was given is good for five minutes, and not for six.
func TestNoncesOfTheSite(t *testing.T) {
	t.Parallel()
	w := newWorld(t, filepath.Join(t.TempDir(), "site.db"))
	other := w.node(t)
	given := w.Nonce()
	if given != other.Nonce() || given == "" {
		t.Errorf("one node gives %q, the other %q", given, other.Nonce())
	}
	for age := time.Duration(0); age <= 10*time.Minute; age += 10 * time.Second {
		mine, theirs := w.GoodNonce(given), other.GoodNonce(given)
		switch {
		case mine != theirs:
			t.Errorf("after %s one node says %v, the other %v", age, mine, theirs)
		case !mine && age < token.NonceLife:
			t.Errorf("not good after %s", age)
		case mine && age >= 6*time.Minute:
			t.Errorf("good after %s", age)
		}
		w.clock.advance(10 * time.Second)
	}
	for _, nonce := range []string{"", "made-up", given + "x", given} {
		if w.GoodNonce(nonce) {
			t.Errorf("%q is good", nonce)
		}
	}
}

// TestBeatsCarryTheNonce: what a management point gives to clients, gateways have heard in the line before.
func TestBeatsCarryTheNonce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, filepath.Join(t.TempDir(), "site.db"))
	line, epoch, err := w.State()
	if err != nil {
		t.Fatal(err)
	}
	state, err := token.OpenState(line, w.RootPin())
	if err != nil || !w.GoodNonce(state.Nonce) {
		t.Errorf("the state's nonce is %q, %v", state.Nonce, err)
	}
	w.clock.advance(token.NonceWindow)
	if w.Nonce() != state.Nonce {
		t.Errorf("clients are given %q, the line before had %q", w.Nonce(), state.Nonce)
	}
	if line, err = w.Beat(epoch); err != nil {
		t.Fatal(err)
	}
	beat, err := token.OpenBeat(line, w.RootPin())
	if err != nil || !w.GoodNonce(beat.Nonce) || beat.Nonce == state.Nonce {
		t.Errorf("the heartbeat's nonce is %q, %v", beat.Nonce, err)
	}
	again, _, err := w.State()
	if err != nil {
		t.Fatal(err)
	}
	if later, err := token.OpenState(again, w.RootPin()); err != nil || !later.Equal(state) {
		t.Errorf("another nonce counts as another state: %v", err)
	}
}
