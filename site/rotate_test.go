package site_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/site"
	"postern/token"
)

func rotateStories() []story {
	return []story{
		{"C53 a new key signs when every gateway has confirmed it", preparedUntilConfirmed},
		{"a gateway that is silent holds a key up for a minute", preparedAtMostAMinute},
		{"other management points have time to read a new key", preparedForOtherNodes},
		{"keys are replaced by themselves", replacedByThemselves},
		{"C53 a compromised token key is revoked and another signs", compromisedKeys},
		{"the site root is replaced and leads to the next", rootReplaced},
		{"a compromised root vouches for nothing", rootCompromised},
		{"what is to be revoked must be there, and why", compromiseRefused},
	}
}

// states counts the keys of a purpose by state.
func (w *world) states(t testing.TB, purpose string) map[string]int {
	t.Helper()
	records, err := w.SigningKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]int{}
	for _, r := range records {
		if r.Purpose == purpose {
			states[r.State]++
		}
	}
	return states
}

func (w *world) wantStates(t testing.TB, what, purpose string, want map[string]int) {
	t.Helper()
	if got := w.states(t, purpose); !reflect.DeepEqual(got, want) {
		t.Errorf("%s: keys of %s are %v, want %v", what, purpose, got, want)
	}
}

const ccmKeys = "token:ccm"

func preparedUntilConfirmed(t *testing.T, w *world) {
	key := newECKey()
	w.addGateway(t, "https://gw.example.com", token.Pin(key.Public()))
	confirm := func(epoch uint64) {
		if _, err := w.Acknowledge(t.Context(), w.ack(key, func(a *token.Ack) { a.Epoch = epoch })); err != nil {
			t.Fatal(err)
		}
	}
	confirm(w.Epoch())
	var fresh site.KeyRecord
	entries := w.during(t, func() { fresh = must(w.RotateKey(t.Context(), token.KindCCM, "anna")) })
	if fresh.State != token.KeyPrepared || fresh.Epoch != w.Epoch() || actions(entries) != "key.prepare" {
		t.Errorf("got %s of epoch %d at %d, trust entries %s", fresh.State, fresh.Epoch, w.Epoch(), actions(entries))
	}
	if again := must(w.RotateKey(t.Context(), token.KindCCM, "bob")); again.ID != fresh.ID {
		t.Error("a second key is prepared beside the first")
	}
	raw, _ := must2(w.State())
	state := must(token.OpenState(raw, w.RootPin()))
	if !slices.ContainsFunc(state.Keys, func(k token.PublicKey) bool { return k.ID == fresh.ID && k.State == token.KeyPrepared }) {
		t.Error("gateways are not told of the prepared key")
	}
	if names := must(w.WaitsFor(t.Context(), fresh)); len(names) != 1 || names[0] != "gateway gw.example.com" {
		t.Errorf("waits for %q", names)
	}
	w.Tend(t.Context())
	w.wantStates(t, "not confirmed", ccmKeys, map[string]int{token.KeyActive: 1, token.KeyPrepared: 1})
	confirm(fresh.Epoch - 1)
	w.Tend(t.Context())
	w.wantStates(t, "an older epoch confirmed", ccmKeys, map[string]int{token.KeyActive: 1, token.KeyPrepared: 1})
	confirm(fresh.Epoch)
	entries = w.during(t, func() { w.Tend(t.Context()); w.Tend(t.Context()) })
	w.wantStates(t, "confirmed", ccmKeys, map[string]int{token.KeyActive: 1, token.KeyRetired: 1})
	if actions(entries) != "key.rotate" || entries[0].Subject != fresh.ID {
		t.Errorf("trust entries %s", actions(entries))
	}
}

func preparedAtMostAMinute(t *testing.T, w *world) {
	key := newECKey()
	w.addGateway(t, "https://gw.example.com", token.Pin(key.Public()))
	if _, err := w.Acknowledge(t.Context(), w.ack(key, func(a *token.Ack) { a.Epoch = w.Epoch() })); err != nil {
		t.Fatal(err)
	}
	must(w.RotateKey(t.Context(), token.KindCCM, "anna"))
	w.clock.advance(59 * time.Second)
	w.Tend(t.Context())
	w.wantStates(t, "after 59 s", ccmKeys, map[string]int{token.KeyActive: 1, token.KeyPrepared: 1})
	w.clock.advance(time.Second)
	w.Tend(t.Context())
	w.wantStates(t, "after a minute", ccmKeys, map[string]int{token.KeyActive: 1, token.KeyRetired: 1})
	w.clock.advance(5 * time.Minute)
	if fresh := must(w.RotateKey(t.Context(), token.KindCCM, "anna")); fresh.State != token.KeyActive {
		t.Errorf("a gateway that was not heard for five minutes holds the key up: it is %s", fresh.State)
	}
}

func preparedForOtherNodes(t *testing.T, w *world) {
	for _, name := range []string{"mp1.example.com", "mp2.example.com"} {
		must(w.Enlist(t.Context(), site.ManagementPoint{Name: name, FQDN: name, InternalURL: "https://" + name}))
	}
	if fresh := must(w.RotateKey(t.Context(), token.KindCCM, "anna")); fresh.State != token.KeyPrepared {
		t.Errorf("the key is %s", fresh.State)
	}
	w.clock.advance(2 * time.Second)
	w.Tend(t.Context())
	w.wantStates(t, "after two seconds", ccmKeys, map[string]int{token.KeyActive: 1, token.KeyRetired: 1})
}

func replacedByThemselves(t *testing.T, w *world) {
	counts := func() (all [3]int) {
		for i, kind := range token.Kinds() {
			for _, n := range w.states(t, "token:"+string(kind)) {
				all[i] += n
			}
		}
		return all
	}
	if token.Kinds()[0] != token.KindBulk || token.Kinds()[1] != token.KindCCM {
		t.Fatalf("the kinds are %v", token.Kinds())
	}
	for _, step := range []struct {
		days int
		want [3]int
	}{{29, [3]int{1, 1, 1}}, {30, [3]int{1, 2, 1}}, {60, [3]int{1, 3, 1}}, {90, [3]int{1, 4, 2}}, {2*365 - 7 - 31, [3]int{1, 5, 3}}, {2*365 - 7 - 29, [3]int{2, 5, 3}}} {
		w.clock.set(begin.AddDate(0, 0, step.days))
		w.Tend(t.Context())
		w.Tend(t.Context())
		if got := counts(); got != step.want {
			t.Errorf("after %d days: %v keys of bulk, ccm and self-prove, want %v", step.days, got, step.want)
		}
	}
	if err := w.Set(t.Context(), "key.rotate-days", "ccm=0,self-prove=0", "anna"); err != nil {
		t.Fatal(err)
	}
	before := counts()
	w.clock.advance(100 * 24 * time.Hour)
	w.Tend(t.Context())
	if got := counts(); got != before {
		t.Errorf("switched off: %v keys, before %v", got, before)
	}
	if err := w.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	raw, _ := must2(w.State())
	for _, k := range must(token.OpenState(raw, w.RootPin())).Keys {
		if w.clock.now().After(k.NotAfter.Add(24 * time.Hour)) {
			t.Errorf("gateways are still told of the %s key that ended %s", k.Kind, k.NotAfter)
		}
	}
	for _, bad := range []string{"ccm", "ccm=-1", "ccm=601", "user=3", "30"} {
		refused(t, bad, w.Set(t.Context(), "key.rotate-days", bad, "anna"), catalog.InvalidArgument)
	}
}

func compromisedKeys(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	old := exchange(t, w, bulk, 1).Token
	must(w.RotateKey(t.Context(), token.KindCCM, "anna"))
	newer := exchange(t, w, bulk, 2).Token
	told := must(w.Consequences(t.Context(), "ccm"))
	if len(told.Keys) != 2 || len(told.Text) == 0 || told.Keys[0].Private != nil {
		t.Errorf("told %+v", told)
	}
	var revoked []site.KeyRecord
	epoch := w.Epoch()
	entries := w.during(t, func() { revoked = must(w.Compromise(t.Context(), "ccm", "lost", "anna")) })
	if len(revoked) != 2 || actions(entries) != "key.compromised key.compromised key.rotate" || w.Epoch() <= epoch {
		t.Errorf("revoked %d, trust entries %s, epoch %d", len(revoked), actions(entries), w.Epoch())
	}
	w.wantStates(t, "after", ccmKeys, map[string]int{token.KeyRevoked: 2, token.KeyActive: 1})
	node := w.node(t)
	for what, raw := range map[string]string{"the old key's": old, "the newer key's": newer} {
		for _, verifier := range []*token.Verifier{w.Verifier(), node.Verifier()} {
			_, err := verifier.Verify(raw, w.clock.now(), token.KindCCM)
			refused(t, what, err, catalog.TokenKeyRevoked)
		}
	}
	raw, _ := must2(w.State())
	gateway := must(must(token.OpenState(raw, w.RootPin())).Verifier())
	_, err := gateway.Verify(old, w.clock.now(), token.KindCCM)
	refused(t, "at a gateway", err, catalog.TokenKeyRevoked)
	if _, err := gateway.Verify(exchange(t, w, bulk, 1).Token, w.clock.now(), token.KindCCM); err != nil {
		t.Errorf("what signs now: %v", err)
	}
	records := must(w.SigningKeys(t.Context()))
	for _, r := range records {
		if r.State == token.KeyRevoked && (len(r.Private) > 0 || r.Why != "lost") {
			t.Errorf("of a revoked key is kept: %d bytes private, why %q", len(r.Private), r.Why)
		}
	}

	// One retired key alone: what signs now goes on.
	before := must(w.RotateKey(t.Context(), token.KindSelfProve, "anna"))
	at := slices.IndexFunc(records, func(r site.KeyRecord) bool { return r.Purpose == "token:self-prove" })
	if revoked := must(w.Compromise(t.Context(), records[at].ID, "lost", "anna")); len(revoked) != 1 || revoked[0].ID != records[at].ID {
		t.Errorf("revoked %+v", revoked)
	}
	after := must(w.SigningKeys(t.Context()))
	at = slices.IndexFunc(after, func(r site.KeyRecord) bool {
		return r.Purpose == "token:self-prove" && r.State == token.KeyActive
	})
	if after[at].ID != before.ID {
		t.Error("the active key was replaced as well")
	}
}

func rootReplaced(t *testing.T, w *world) {
	first := w.RootPin()
	for n := range 2 {
		before := w.RootPin()
		entries := w.during(t, func() { must(w.Rotate(t.Context(), site.PurposeRoot, "anna")) })
		if actions(entries) != "key.rotate" || w.RootPin() == before || len(w.RootLinks()) != n+1 {
			t.Errorf("trust entries %s, root %s, %d links", actions(entries), w.RootPin(), len(w.RootLinks()))
		}
	}
	roots, err := token.FollowRoots(first, w.RootLinks())
	if err != nil || len(roots) != 3 || roots[2].Pin != w.RootPin() {
		t.Fatalf("led to %+v, %v", roots, err)
	}
	for _, r := range must(w.SigningKeys(t.Context())) {
		if r.Purpose == site.PurposeRoot && (r.State == token.KeyActive) != (len(r.Private) > 0) {
			t.Errorf("a root that is %s has %d bytes private", r.State, len(r.Private))
		}
	}
	if node := w.node(t); node.RootPin() != w.RootPin() || node.TrustsRoot(first) != nil {
		t.Error("another node has another root, or does not trust the first")
	}
	chain := must(w.IssueRole(site.RoleConnector, "dc1", newECKey().Public(), nil))
	if leaf := parseChain(t, chain)[0]; !slices.Equal(token.CarriedLinks(leaf), w.RootLinks()) {
		t.Error("a connector's certificate does not lead gateways to the new root")
	}
	w.clock.advance(token.RootOverlap - time.Second)
	if err := w.TrustsRoot(first); err != nil {
		t.Errorf("in the last second of the overlap: %v", err)
	}
	w.clock.advance(time.Second)
	refused(t, "after the overlap", w.TrustsRoot(first), catalog.RootRetired)
	if err := w.OnceRoots().TrustsRoot(first); err != nil {
		t.Errorf("for a renewal: %v", err)
	}
	refused(t, "another site's root", w.OnceRoots().TrustsRoot(strings.Repeat("0", 64)), catalog.RoleCertificateRoot)
}

func rootCompromised(t *testing.T, w *world) {
	first := w.RootPin()
	must(w.Rotate(t.Context(), site.PurposeRoot, "anna"))
	second := w.RootPin()
	if told := must(w.Consequences(t.Context(), "root")); len(told.Keys) != 1 || len(told.Text) < 3 {
		t.Errorf("told %+v", told)
	}
	must(w.Compromise(t.Context(), "root", "lost", "anna"))
	refused(t, "the compromised root", w.TrustsRoot(second), catalog.RootRetired)
	if err := w.TrustsRoot(first); err != nil {
		t.Errorf("the root before it: %v", err)
	}
	roots, err := token.FollowRoots(first, w.RootLinks())
	if err != nil || len(roots) != 3 || !roots[1].Compromised || roots[1].Trusted(w.clock.now()) || !roots[0].Trusted(w.clock.now()) {
		t.Errorf("led to %+v, %v", roots, err)
	}
	old := must(w.SigningKeys(t.Context()))[slices.IndexFunc(must(w.SigningKeys(t.Context())), func(r site.KeyRecord) bool { return token.PinOf(r.Public) == first })]
	must(w.Compromise(t.Context(), old.ID, "lost too", "anna"))
	refused(t, "a replaced root, by its id", w.TrustsRoot(first), catalog.RootRetired)
	raw, _ := must2(w.State())
	if state := must(token.OpenState(raw, w.RootPin())); !slices.Contains(state.RevokedRoots, first) || !slices.Contains(state.RevokedRoots, second) {
		t.Errorf("gateways are told that %q are revoked", state.RevokedRoots)
	}
	before := string(w.SigningCertificate())
	must(w.Compromise(t.Context(), site.PurposeSiteSigning, "lost", "anna"))
	if string(w.SigningCertificate()) == before {
		t.Error("SITESIGNCERT is the one before")
	}
}

func compromiseRefused(t *testing.T, w *world) {
	for what, test := range map[string]struct {
		what, why string
		want      catalog.Code
	}{
		"without a reason": {"ccm", " ", catalog.KeyWhyNeeded},
		"no such purpose":  {"policy", "lost", catalog.KeyUnknown},
		"nothing":          {"", "lost", catalog.KeyUnknown},
	} {
		entries := w.during(t, func() {
			_, err := w.Compromise(t.Context(), test.what, test.why, "anna")
			refused(t, what, err, test.want)
		})
		if len(entries) > 0 {
			t.Errorf("%s: trust entries %s", what, actions(entries))
		}
	}
	_, err := w.Rotate(t.Context(), "policy", "anna")
	refused(t, "rotate no such purpose", err, catalog.KeyUnknown)
}

func must2[A, B any](a A, b B, err error) (A, B) {
	if err != nil {
		panic(err)
	}
	return a, b
}
