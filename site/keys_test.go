package site_test

import (
	"bytes"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"postern/catalog"
	"postern/keyfile"
	"postern/proof"
	"postern/site"
	"postern/store"
	"postern/token"
)

func keyStories() []story {
	return []story{
		{"C53 rotation keeps tokens in the field good", rotation},
		{"another site.key is refused", wrongKeyFile},
		{"private keys are not in the database in clear", keysSealed},
		{"a site is made once", initTwice},
	}
}

func rotation(t *testing.T, w *world) {
	a := device(1)
	raw, bulk, err := w.NewBulkToken(t.Context(), site.NewBulk{Lifetime: site.BulkMaxLifetime, By: "anna"})
	if err != nil {
		t.Fatal(err)
	}
	id := w.registered(t, with(bulk, a.thumbprint), a.request()).Device.ClientID
	selfProve := func() site.Issued {
		issued, err := w.ask(t, site.Exchange{Caller: with(bulk, a.thumbprint), Want: token.KindSelfProve, Assertion: w.assertion(1, id, audience), Audience: audience})
		if err != nil {
			t.Fatal(err)
		}
		return issued
	}
	old := map[token.Kind]string{token.KindBulk: raw, token.KindCCM: exchange(t, w, bulk, 1).Token, token.KindSelfProve: selfProve().Token}
	node := w.node(t)
	lifetimes := map[token.Kind]time.Duration{token.KindBulk: token.BulkMaximumLifetime, token.KindCCM: token.CCMLifetime, token.KindSelfProve: token.SelfProveLifetime}
	for kind := range old {
		epoch := w.Epoch()
		var fresh site.KeyRecord
		entries := w.during(t, func() {
			if fresh, err = w.RotateKey(t.Context(), kind, "anna"); err != nil {
				t.Fatal(err)
			}
		})
		if actions(entries) != "key.rotate" || entries[0].Subject != fresh.ID || w.Epoch() != epoch+1 {
			t.Errorf("%s: trust entries %+v, epoch %d, want %d", kind, entries, w.Epoch(), epoch+1)
		}
		records, err := w.SigningKeys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		states := map[string]int{}
		for _, r := range records {
			if r.Purpose == "token:"+string(kind) {
				states[r.State]++
			}
		}
		if !reflect.DeepEqual(states, map[string]int{token.KeyActive: 1, token.KeyRetired: 1}) {
			t.Errorf("%s: keys are %v", kind, states)
		}
	}
	w.clock.advance(-30 * time.Second) // a node whose clock is behind signs with the new keys
	if err := node.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := node.IssueToken(t.Context(), site.Exchange{Caller: with(bulk, a.thumbprint), Want: token.KindCCM}); err != nil {
		t.Errorf("a node whose clock is 30 s behind: %v", err)
	}
	w.clock.advance(30 * time.Second)
	for kind, raw := range old {
		if _, err := w.Verifier().Verify(raw, w.clock.now(), kind); err != nil {
			t.Errorf("an old %s token after the rotation: %v", kind, err)
		}
		last := begin.Add(lifetimes[kind] - time.Second)
		if _, err := w.Verifier().Verify(raw, last, kind); err != nil {
			t.Errorf("an old %s token in its last second: %v", kind, err)
		}
	}
	newRaw, _, err := w.NewBulkToken(t.Context(), site.NewBulk{By: "anna"})
	if err != nil {
		t.Fatal(err)
	}
	fresh := map[token.Kind]string{token.KindBulk: newRaw, token.KindCCM: exchange(t, w, bulk, 1).Token, token.KindSelfProve: selfProve().Token}
	for kind, raw := range fresh {
		before := must(w.Verifier().Verify(old[kind], w.clock.now(), kind))
		after, err := node.Verifier().Verify(raw, w.clock.now(), kind)
		if err != nil || after.KeyID == before.KeyID {
			t.Errorf("a new %s token: key %s, old key %s, %v", kind, after.KeyID, before.KeyID, err)
		}
	}
	_, err = w.RotateKey(t.Context(), "user", "anna")
	refused(t, "an unknown kind", err, catalog.InvalidArgument)
}

func wrongKeyFile(t *testing.T, w *world) {
	other, err := keyfile.Open(t.TempDir(), keyfile.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = site.Open(t.Context(), site.Config{Store: w.store, Sealer: other, Now: w.clock.now})
	refused(t, "open with another site.key", err, catalog.KeyFileWrong)
	w.execute(t, "update signing_keys set private_key = (select private_key from signing_keys where purpose = 'token:ccm') where purpose = 'token:self-prove'")
	_, err = site.Open(t.Context(), w.config(w.store))
	refused(t, "a sealed key moved to another row", err, catalog.KeyFileWrong)
}

func keysSealed(t *testing.T, w *world) {
	records, err := w.SigningKeys(t.Context())
	if err != nil || len(records) != 5 {
		t.Fatalf("%d keys, %v", len(records), err)
	}
	purposes := map[string]bool{}
	dump := w.dump(t)
	for _, r := range records {
		purposes[r.Purpose] = true
		private, err := w.sealer.Open("signing-key:"+r.ID, r.Private)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(dump, r.Private) || !bytes.Contains(dump, r.Public) {
			t.Errorf("%s: the search does not see what is there", r.Purpose)
		}
		if middle := private[len(private)/2:]; bytes.Contains(dump, private) || bytes.Contains(dump, middle[:16]) && !bytes.Contains(r.Public, middle[:16]) {
			t.Errorf("%s: the private key is in the database", r.Purpose)
		}
	}
	if len(purposes) != 5 {
		t.Errorf("purposes: %v", purposes)
	}
}

func initTwice(t *testing.T, w *world) {
	before, err := w.SigningKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	entries, pin, hierarchy, epoch := w.entries(t), w.RootPin(), w.Hierarchy(), w.Epoch()
	_, err = site.Init(t.Context(), w.config(w.store), site.InitOptions{SiteCode: "XYZ", By: "eve"})
	refused(t, "a second init", err, catalog.AlreadyExists)
	if err := w.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, err := w.SigningKeys(t.Context())
	if err != nil || !reflect.DeepEqual(after, before) || !reflect.DeepEqual(w.entries(t), entries) {
		t.Errorf("the first site changed: %v", err)
	}
	if w.RootPin() != pin || w.Hierarchy() != hierarchy || w.Epoch() != epoch || w.SiteCode() != "LAB" {
		t.Errorf("the first site is %s %s %s at epoch %d", w.SiteCode(), w.RootPin(), w.Hierarchy(), w.Epoch())
	}
}

func TestInitMakesASite(t *testing.T) {
	model, err := born()
	if err != nil {
		t.Fatal(err)
	}
	if len(model.trust) != 1 || model.trust[0].Action != "site.init" || model.trust[0].Actor != "anna" || model.trust[0].Subject != "LAB" {
		t.Errorf("trust entries: %+v", model.trust)
	}
	i := slices.IndexFunc(model.keys, func(k site.KeyRecord) bool { return k.Purpose == site.PurposeRoot })
	w := newWorld(t, filepath.Join(t.TempDir(), "site.db"))
	if w.RootPin() != token.PinOf(model.keys[i].Public) || len(w.SigningCertificate()) == 0 || w.Settings().Approval != site.ApproveTrustedDomains || w.Settings().LegacyKeys {
		t.Errorf("pin %s, settings %+v", w.RootPin(), w.Settings())
	}
}

func TestOpenNeedsASite(t *testing.T) {
	w := &world{address: filepath.Join(t.TempDir(), "site.db"), clock: new(clock)}
	w.clock.set(begin)
	_, err := site.Open(t.Context(), w.config(w.open(t, store.Options{NoSync: true})))
	refused(t, "an empty store", err, catalog.SiteNotInitialised)
}

func TestWithoutADatabaseNothingIsDecided(t *testing.T) {
	w := newWorld(t, filepath.Join(t.TempDir(), "site.db"))
	bulk := w.bulk(t, 0)
	w.store.Close()
	_, registerErr := w.Register(t.Context(), signed(), device(1).request())
	_, confirmErr := w.Confirm(t.Context(), signed(), device(1).confirmation(clientID(1)))
	_, issueErr := w.ask(t, site.Exchange{Caller: with(bulk, synthetic(1))})
	_, policyErr := w.AddPolicy(t.Context(), site.NewPolicy{Body: []byte("<P/>"), Targets: nil, All: true})
	_, targetErr := w.AddPolicy(t.Context(), site.NewPolicy{Body: []byte("<P/>"), Targets: clientIDs(1)})
	_, approveErr := w.Approve(t.Context(), clientID(1), proof.LevelManaged, "anna", "seen")
	for what, err := range map[string]error{
		"register": registerErr, "confirm": confirmErr, "issue": issueErr, "add policy": policyErr, "add policy with targets": targetErr, "approve": approveErr,
	} {
		unavailable(t, what, err)
	}
}
