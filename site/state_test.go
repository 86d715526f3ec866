package site_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
	"postern/token"
)

func stateStories() []story {
	return []story{
		{"the state opens with the root's pin alone and says what the site is", stateOpens},
		{"two nodes say the same", statesEqual},
		{"the epoch is above what gateways saw when an older copy of the database is restored", restoredEpoch},
		{"the epoch rises by what gateways must know and by nothing else", epochs},
		{"watchers hear of each move and are let go", watchers},
	}
}

// opened returns the signed state as a gateway reads it.
func (w *world) opened(t testing.TB) token.SiteState {
	t.Helper()
	raw, epoch, err := w.State()
	if err != nil {
		t.Fatal(err)
	}
	state, err := token.OpenState(raw, w.RootPin())
	if err != nil {
		t.Fatal(err)
	}
	if state.Epoch != epoch || epoch != w.Epoch() {
		t.Errorf("epochs %d, %d and %d", state.Epoch, epoch, w.Epoch())
	}
	return state
}

func stateOpens(t *testing.T, w *world) {
	gatewayKey := newECKey()
	w.addGateway(t, "https://gw.example.com", token.Pin(gatewayKey.Public()))
	point, err := w.Enlist(t.Context(), site.ManagementPoint{Name: "MP1", FQDN: "mp1.example.com", InternalURL: "https://mp1.example.com:8443"})
	if err != nil {
		t.Fatal(err)
	}
	var blocked []string
	for range 3 {
		bulk := w.bulk(t, 0)
		if _, err := w.BlockBulkToken(t.Context(), bulk.ID, true, "anna", "try it"); err != nil {
			t.Fatal(err)
		}
		blocked = append(blocked, bulk.ID)
	}
	var keys []proof.KeyThumbprint
	for n := range 3 {
		if _, err := w.Block(t.Context(), w.registered(t, signed(), device(n).request()).Device.ClientID, "anna", "seen"); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, device(n).thumbprint)
	}
	slices.Sort(blocked)
	slices.Sort(keys)
	state := w.opened(t)
	if state.SiteCode != "LAB" || state.Hierarchy != w.Hierarchy() || token.PinOf(state.Root) != w.RootPin() || !state.Issued.Equal(begin) {
		t.Errorf("got %+v", state)
	}
	if !slices.Equal(state.BlockedTokens, blocked) || !slices.Equal(state.BlockedKeys, keys) || len(state.Keys) != 3 {
		t.Errorf("blocked tokens %v, keys %v, %d verification keys", state.BlockedTokens, state.BlockedKeys, len(state.Keys))
	}
	if len(state.Gateways) != 1 || state.Gateways[0] != (token.Gateway{Name: "gw.example.com", URL: "https://gw.example.com", Pin: token.Pin(gatewayKey.Public())}) {
		t.Errorf("gateways %+v", state.Gateways)
	}
	if len(state.Published) != 1 || state.Published[0].RoleID != point.RoleID || state.Published[0].InternalURL != point.InternalURL || slices.Contains(state.Published[0].Endpoints, ccm.EndpointSystemWindowsAuth) {
		t.Errorf("published %+v", state.Published)
	}
	raw, _, _ := w.State()
	_, err = token.OpenState(raw, pin)
	refused(t, "with another root's pin", err, catalog.StateOtherRoot)
	_, err = token.OpenState(alter(raw), w.RootPin())
	refused(t, "altered", err, catalog.StateSignature)
	gateway := auth.NewState(w.RootPin(), w.clock.now)
	if changed, err := gateway.Apply(raw); err != nil || !changed {
		t.Errorf("a gateway does not take it: %v", err)
	}
	bulk := w.bulk(t, 0)
	issued := exchange(t, w, bulk, 9)
	if _, err := gateway.Verifier().Verify(issued.Token, w.clock.now(), token.KindCCM); err != nil {
		t.Errorf("a gateway does not know the site's tokens: %v", err)
	}
	beat, err := w.Beat(w.Epoch())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := token.OpenBeat(beat, w.RootPin()); err != nil || b.Epoch != w.Epoch() || !b.At.Equal(begin) {
		t.Errorf("beat %+v, %v", b, err)
	}
}

func statesEqual(t *testing.T, w *world) {
	for n := range 5 {
		bulk := w.bulk(t, 0)
		if _, err := w.BlockBulkToken(t.Context(), bulk.ID, n%2 == 0, "anna", "try it"); err != nil {
			t.Fatal(err)
		}
	}
	node := w.node(t)
	w.clock.advance(time.Minute)
	raw, _, err := node.State()
	if err != nil {
		t.Fatal(err)
	}
	other, err := token.OpenState(raw, w.RootPin())
	if err != nil || !other.Equal(w.opened(t)) {
		t.Errorf("got %+v, want %+v, %v", other, w.opened(t), err)
	}
}

func restoredEpoch(t *testing.T, w *world) {
	older := w.Epoch()
	for range 5 {
		w.clock.advance(time.Hour)
		if _, err := w.RotateKey(t.Context(), token.KindCCM, "anna"); err != nil {
			t.Fatal(err)
		}
	}
	seen := w.Epoch()
	w.execute(t, fmt.Sprintf("update site_state set epoch = %d", older))
	w.clock.advance(time.Second)
	if err := w.Restored(t.Context(), "anna"); err != nil || w.Epoch() <= seen {
		t.Errorf("epoch %d after the restore, gateways saw %d, %v", w.Epoch(), seen, err)
	}
}

func epochs(t *testing.T, w *world) {
	ctx, bulk, key := t.Context(), w.bulk(t, 0), newECKey()
	var id ccm.ClientID
	var code string
	steps := []struct {
		name  string
		act   func() error
		moves bool
	}{
		{"register", func() error {
			id = w.registered(t, with(bulk, device(1).thumbprint), device(1).request()).Device.ClientID
			return nil
		}, false},
		{"exchange", func() error { exchange(t, w, bulk, 2); return nil }, false},
		{"new bulk token", func() error { w.bulk(t, 0); return nil }, false},
		{"approve", func() error { _, err := w.Approve(ctx, id, proof.LevelSecrets, "anna", "seen"); return err }, false},
		{"reject", func() error { _, err := w.Reject(ctx, id, "anna", "seen"); return err }, false},
		{"block device", func() error { _, err := w.Block(ctx, id, "anna", "seen"); return err }, true},
		{"block device again", func() error { _, err := w.Block(ctx, id, "anna", "why"); return err }, false},
		{"unblock device", func() error { _, err := w.Unblock(ctx, id, "anna", "seen"); return err }, true},
		{"block token", func() error { _, err := w.BlockBulkToken(ctx, bulk.ID, true, "anna", "try it"); return err }, true},
		{"block token again", func() error { _, err := w.BlockBulkToken(ctx, bulk.ID, true, "anna", "try it"); return err }, false},
		{"add policy", func() error { w.add(t, site.NewPolicy{ID: "P1", All: true}); return nil }, false},
		{"remove policy", func() error { return w.RemovePolicy(ctx, "P1", "anna") }, false},
		{"set", func() error { return w.Set(ctx, "policy.aes256", "true", "anna") }, false},
		{"rotate", func() error { _, err := w.RotateKey(ctx, token.KindCCM, "anna"); return err }, true},
		{"add gateway", func() error { w.addGateway(t, "https://gw.example.com", token.Pin(key.Public())); return nil }, true},
		{"acknowledge", func() error { _, err := w.Acknowledge(ctx, w.ack(key)); return err }, false},
		{"remove gateway", func() error { return w.RemoveGateway(ctx, "gw.example.com", "anna", "try it") }, true},
		{"invite", func() error { code = w.invite(t, "hq-1"); return nil }, false},
		{"join", func() error { _, _, err := w.Join(ctx, code, requestFor(newECKey())); return err }, true},
		{"block connector", func() error { return w.BlockConnector(ctx, "hq-1", true, "anna", "try it") }, true},
		{"block connector again", func() error { return w.BlockConnector(ctx, "hq-1", true, "anna", "try it") }, false},
		{"enlist", func() error { _, err := w.Enlist(ctx, site.ManagementPoint{FQDN: "mp1.example.com"}); return err }, true},
		{"enlist again", func() error { _, err := w.Enlist(ctx, site.ManagementPoint{FQDN: "mp1.example.com"}); return err }, false},
		{"restore", func() error { return w.Restored(ctx, "anna") }, true},
		{"events", func() error { w.Note(site.Event{Kind: "test"}); w.Seen(id); w.Flush(ctx); return nil }, false},
	}
	for _, step := range steps {
		before := w.Epoch()
		if err := step.act(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		want := before
		if step.moves {
			want++
		}
		if w.Epoch() != want {
			t.Errorf("%s: epoch %d, want %d", step.name, w.Epoch(), want)
		}
	}
	if !w.Settings().AES256 {
		t.Error("a setting is not in force when Set returns")
	}
}

func watchers(t *testing.T, w *world) {
	ctx, stop := context.WithCancel(t.Context())
	first, second := w.Watch(ctx), w.Watch(t.Context())
	bulk := w.bulk(t, 0)
	for _, blocked := range []bool{true, false} { // two moves that nobody fetched are one
		if _, err := w.BlockBulkToken(t.Context(), bulk.ID, blocked, "anna", "try it"); err != nil {
			t.Fatal(err)
		}
	}
	for name, moved := range map[string]<-chan struct{}{"first": first, "second": second} {
		if _, open := <-moved; !open {
			t.Errorf("%s: closed", name)
		}
		select {
		case <-moved:
			t.Errorf("%s: a burst came twice", name)
		default:
		}
	}
	stop()
	if _, open := <-first; open {
		t.Error("the channel is open after its context ended")
	}
	if _, err := w.BlockBulkToken(t.Context(), bulk.ID, true, "anna", "try it"); err != nil {
		t.Fatal(err)
	}
	if _, open := <-second; !open {
		t.Error("the other watcher was closed too")
	}
}
