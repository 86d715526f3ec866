package site_test

import (
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
	"postern/store/postgrestest"
	"postern/token"
)

const changeURL = "https://gw.lab.example/CCM_Proxy_ServerAuth/72057594037927937/CCM_System_TokenAuth/request"

// keyChange is a good request of a device to have its key changed.
func keyChange(t testing.TB, w *world, id ccm.ClientID, from, to *agent) site.KeyChange {
	t.Helper()
	statement, err := token.SignKeyChange(from.key, id, to.thumbprint, changeURL, w.clock.now())
	if err != nil {
		t.Fatal(err)
	}
	caller := site.Caller{Proof: proof.Proof{Method: proof.CCMToken, Scope: token.ScopeClient, Key: from.thumbprint, Client: id, Address: "192.0.2.7"}, Ceiling: proof.LevelSecrets}
	return site.KeyChange{Caller: caller, Request: to.request(wanting(id)), Statement: statement, Audience: changeURL}
}

// TestChangeOfAKey: what stays, what goes, and what every node knows of it.
func TestChangeOfAKey(t *testing.T) {
	t.Parallel()
	for name, address := range map[string]string{"SQLite": filepath.Join(t.TempDir(), "site.db"), "PostgreSQL": postgrestest.Start(t)} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, address)
			from, to := device(1), device(2)
			before := w.registered(t, with(w.bulk(t, 1), from.thumbprint), from.request(property("HardwareID1", "2:AB"))).Device
			ask, epoch := keyChange(t, w, before.ClientID, from, to), w.Epoch()
			var out site.Registration
			entries := w.during(t, func() {
				var err error
				if out, err = w.ChangeKey(t.Context(), ask); err != nil {
					t.Fatal(err)
				}
			})
			if got := actions(entries); got != "device.rekey" {
				t.Errorf("the trust log has %q", got)
			}
			after := out.Device
			if after.ClientID != before.ClientID || after.Key != to.thumbprint || after.Approval.Rule != before.Approval.Rule || after.Approval.Level != before.Approval.Level ||
				after.Record.HardwareID1 != before.Record.HardwareID1 || after.Record.Thumbprint != to.signing.Thumbprint() || after.Record.EncThumbprint != to.encryption.Thumbprint() {
				t.Errorf("got %+v", after)
			}
			if w.Epoch() <= epoch {
				t.Error("gateways do not hear of it")
			}
			if err := w.Revoked(token.Claims{Key: from.thumbprint}); catalog.CodeOf(err) != catalog.DeviceObsolete {
				t.Errorf("the former key: %v", err)
			}
			_, err := w.ChangeKey(t.Context(), ask)
			refused(t, "again", err, catalog.KeyChangeNotByDevice)
			_, err = w.Register(t.Context(), signed(), from.request())
			refused(t, "the former key registers", err, catalog.DeviceObsolete)
			_, err = w.ChangeKey(t.Context(), keyChange(t, w, before.ClientID, to, from))
			refused(t, "back to the former key", err, catalog.KeyChangeTaken)
			if found, err := w.node(t).DeviceByKey(t.Context(), to.thumbprint); err != nil || found.ClientID != before.ClientID {
				t.Errorf("another node finds %+v, %v", found, err)
			}
		})
	}
}

// TestRefusedChangesOfAKey: each is refused with its code, and changes nothing.
func TestRefusedChangesOfAKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, filepath.Join(t.TempDir(), "site.db"))
	from, to, other := device(1), device(2), device(3)
	id := w.registered(t, with(w.bulk(t, 1), from.thumbprint), from.request()).Device.ClientID
	w.registered(t, signed(), other.request(property("Netbios Name", "WK3"), property("FQ Name", "wk3.example.com")))
	for name, test := range map[string]struct {
		edit func(*site.KeyChange)
		want catalog.Code
	}{
		"a self-prove token":        {func(k *site.KeyChange) { k.Caller.Method = proof.SelfProveToken }, catalog.KeyChangeNotByDevice},
		"a token of scope register": {func(k *site.KeyChange) { k.Caller.Scope = token.ScopeRegister }, catalog.KeyChangeNotByDevice},
		"no proof of a key":         {func(k *site.KeyChange) { k.Caller.Key = "" }, catalog.KeyChangeNotByDevice},
		"a proof by another key":    {func(k *site.KeyChange) { k.Caller.Key = to.thumbprint }, catalog.KeyChangeNotByDevice},
		"another device's id":       {func(k *site.KeyChange) { k.Request = to.request(wanting(clientID(9))) }, catalog.KeyChangeNotByDevice},
		"no such device":            {func(k *site.KeyChange) { k.Caller.Client = clientID(9) }, catalog.DeviceUnknown},
		"no statement":              {func(k *site.KeyChange) { k.Statement = "" }, catalog.KeyChangeInvalid},
		"another address":           {func(k *site.KeyChange) { k.Audience += "/x" }, catalog.KeyChangeInvalid},
		"the same key":              {func(k *site.KeyChange) { *k = keyChange(t, w, id, from, from) }, catalog.KeyChangeInvalid},
		"the key of another device": {func(k *site.KeyChange) { *k = keyChange(t, w, id, from, other) }, catalog.KeyChangeTaken},
		"a request by a third key":  {func(k *site.KeyChange) { k.Request = device(4).request(wanting(id)) }, catalog.KeyChangeInvalid},
		"a weak signature":          {func(k *site.KeyChange) { k.Request = to.sha1("1.2.840.113549.1.1.5", wanting(id)) }, catalog.RegistrationWeakKey},
		"a statement of ten minutes": {func(k *site.KeyChange) {
			k.Statement = must(token.SignKeyChange(from.key, id, to.thumbprint, changeURL, begin.Add(-10*time.Minute)))
		}, catalog.KeyChangeInvalid},
		"a statement from the future": {func(k *site.KeyChange) {
			k.Statement = must(token.SignKeyChange(from.key, id, to.thumbprint, changeURL, begin.Add(10*time.Minute)))
		}, catalog.KeyChangeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			ask := keyChange(t, w, id, from, to)
			test.edit(&ask)
			if entries := w.during(t, func() {
				_, err := w.ChangeKey(t.Context(), ask)
				refused(t, name, err, test.want)
			}); len(entries) > 0 {
				t.Errorf("the trust log has %q", actions(entries))
			}
			if found, err := w.Device(t.Context(), id); err != nil || found.Key != from.thumbprint {
				t.Errorf("the device has the key %s, %v", found.Key, err)
			}
		})
	}
	if _, err := w.Block(t.Context(), id, "anna", "lost"); err != nil {
		t.Fatal(err)
	}
	_, err := w.ChangeKey(t.Context(), keyChange(t, w, id, from, to))
	refused(t, "a blocked device", err, catalog.DeviceBlocked)
}

// TestOneKeyHasOneSuccessor: of many changes at once, exactly one is kept.
func TestOneKeyHasOneSuccessor(t *testing.T) {
	t.Parallel()
	w := newWorld(t, filepath.Join(t.TempDir(), "site.db"))
	from := device(1)
	id := w.registered(t, with(w.bulk(t, 1), from.thumbprint), from.request()).Device.ClientID
	var wait sync.WaitGroup
	results := make(chan error, 8)
	for i := range cap(results) {
		ask := keyChange(t, w, id, from, device(10+i))
		wait.Go(func() {
			_, err := w.ChangeKey(t.Context(), ask)
			results <- err
		})
	}
	wait.Wait()
	close(results)
	done := 0
	for err := range results {
		if err == nil {
			done++
		} else if code := catalog.CodeOf(err); code != catalog.KeyChangeNotByDevice || errors.Is(err, site.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	}
	if done != 1 {
		t.Errorf("%d changes were kept", done)
	}
}
