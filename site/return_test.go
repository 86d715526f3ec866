package site_test

import (
	"context"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
	"postern/token"
)

func returnStories() []story {
	return []story{
		{"C73 a device that was away too long comes back into quarantine", comesBack},
		{"C73 a fresh proof lifts quarantine, a stale one does not", freshProofLifts},
		{"a person lifts quarantine where the site says so", personLifts},
		{"a device whose tokens were lost comes back without quarantine", lostTokens},
		{"C60 whoever proves no registered key gets one answer", oneAnswer},
		{"blocked, rejected and obsolete devices do not come back", neverReturn},
		{"return can be switched off, and gateways hear of it", returnOff},
		{"lives are settings", livesAreSettings},
		{"C54 the clock jumps", clockJumps},
		{"a device of a disabled tenant does not come back by its key", tenantGone},
	}
}

// byKey is the caller through a gateway who proved a key and nothing else.
func byKey(n int) site.Caller {
	return site.Caller{Proof: proof.Proof{Method: proof.Assertion, Key: device(n).thumbprint, Address: "198.51.100.7"}, Ceiling: proof.LevelSecrets}
}

// comeBack asks for a CCM token by the registered key alone.
func (w *world) comeBack(t testing.TB, n int, id ccm.ClientID) (site.Issued, error) {
	t.Helper()
	return w.ask(t, site.Exchange{Caller: byKey(n), Assertion: w.assertion(n, id, audience), Audience: audience})
}

// asleep registers device n, approved for secrets by a person, and lets it sleep.
func (w *world) asleep(t testing.TB, n int, days int) site.Device {
	t.Helper()
	id := w.registered(t, signed(), device(n).request()).Device.ClientID
	if _, err := w.Approve(t.Context(), id, proof.LevelSecrets, "anna", "seen"); err != nil {
		t.Fatal(err)
	}
	w.Flush(t.Context())
	w.clock.advance(time.Duration(days) * 24 * time.Hour)
	return must(w.Device(t.Context(), id))
}

func comesBack(t *testing.T, w *world) {
	before := w.asleep(t, 1, 365)
	id := before.ClientID
	p := must(w.AddPolicy(t.Context(), site.NewPolicy{Body: []byte("<Secret/>"), Flags: ccm.PolicySecret, All: true, By: "anna"}))
	var issued site.Issued
	entries := w.during(t, func() { issued = must(w.comeBack(t, 1, id)) })
	if got := actions(entries); got != "device.quarantine" {
		t.Errorf("trust entries: got %q", got)
	}
	if claims := w.verified(t, issued, token.KindCCM); claims.Scope != token.ScopeClient || claims.Client != id {
		t.Errorf("got %+v", claims)
	}
	if issued.Approval != ccm.ApprovalNone || issued.Quarantine != site.LiftAutomatically {
		t.Errorf("got approval %d and quarantine %q", issued.Approval, issued.Quarantine)
	}
	got := must(w.Device(t.Context(), id))
	if !got.Quarantined() || got.Level() != proof.LevelKnown || got.Approval.Level != proof.LevelSecrets || got.Approval.By != "anna" {
		t.Errorf("got %+v, level %s", got.Approval, got.Level())
	}
	if list := must(w.Assignments(t.Context(), got)); len(list) != 0 {
		t.Errorf("assigned %v", list)
	}
	_, err := w.PolicyBody(t.Context(), &got, p.ID, "")
	refused(t, "a secret", err, catalog.PolicyLevel)
	if entries := w.during(t, func() { must(w.comeBack(t, 1, id)) }); len(entries) != 0 {
		t.Errorf("coming back again: got %s", actions(entries))
	}
	yes := true
	if list := must(w.Devices(t.Context(), site.DeviceFilter{Quarantined: &yes})); len(list) != 1 {
		t.Errorf("in quarantine: got %d devices", len(list))
	}
	if events := must(w.Events(t.Context(), site.EventFilter{Code: string(catalog.DeviceQuarantined)})); len(events) != 1 {
		t.Errorf("got %d events", len(events))
	}
}

func freshProofLifts(t *testing.T, w *world) {
	id := w.asleep(t, 1, 120).ClientID
	must(w.comeBack(t, 1, id))
	since := w.clock.now()
	w.clock.advance(time.Minute)
	now := func(r *ccm.RegistrationRequest) { r.TimeStamp = w.clock.now().Format("2006-01-02T15:04:05Z") }
	with := func(issued time.Time, ceiling proof.Level) site.Caller {
		return site.Caller{Proof: proof.Proof{Method: proof.CCMToken, Key: device(1).thumbprint, Client: id, Scope: token.ScopeClient, Issued: issued}, Ceiling: ceiling}
	}
	for name, try := range map[string]struct {
		caller site.Caller
		edit   func(*ccm.RegistrationRequest)
	}{
		"its signature alone":               {signed(), now},
		"a token from before the return":    {with(since.Add(-time.Hour), proof.LevelSecrets), now},
		"an address that gives known only":  {with(since, proof.LevelKnown), now},
		"a message recorded before it left": {with(since, proof.LevelSecrets), func(*ccm.RegistrationRequest) {}},
	} {
		w.registered(t, try.caller, device(1).request(try.edit))
		if got := must(w.Device(t.Context(), id)); !got.Quarantined() {
			t.Fatalf("%s has lifted the quarantine", name)
		}
	}
	var out site.Registration
	entries := w.during(t, func() { out = w.registered(t, with(since, proof.LevelSecrets), device(1).request(now)) })
	if got := out.Device; got.Quarantined() || got.Level() != proof.LevelSecrets || got.Status() != ccm.ApprovalApproved || !out.Changed {
		t.Errorf("got %+v", got)
	}
	if got := actions(entries); got != "device.release device.update" {
		t.Errorf("trust entries: got %q", got)
	}
}

func personLifts(t *testing.T, w *world) {
	if err := w.Set(t.Context(), "return.lift", "manual", "anna"); err != nil {
		t.Fatal(err)
	}
	for n, verb := range map[int]string{1: site.ActRelease, 2: site.ActApprove} {
		id := w.asleep(t, n, 91).ClientID
		if issued := must(w.comeBack(t, n, id)); issued.Quarantine != site.LiftManually {
			t.Errorf("got %q", issued.Quarantine)
		}
		caller := site.Caller{Proof: proof.Proof{Method: proof.CCMToken, Key: device(n).thumbprint, Client: id, Scope: token.ScopeClient, Issued: w.clock.now()}, Ceiling: proof.LevelSecrets}
		w.registered(t, caller, device(n).request())
		if got := must(w.Device(t.Context(), id)); !got.Quarantined() {
			t.Error("lifted without a person")
		}
		got := must(w.Act(t.Context(), []ccm.ClientID{id}, site.Act{Verb: verb, Level: proof.LevelSecrets}, "bert", "seen again"))[0]
		if got.Quarantined() || got.Level() != proof.LevelSecrets {
			t.Errorf("%s: got %+v", verb, got)
		}
		_, err := w.Act(t.Context(), []ccm.ClientID{id}, site.Act{Verb: site.ActRelease}, "bert", "again")
		refused(t, "releasing a free device", err, catalog.DeviceNotQuarantined)
	}
}

func lostTokens(t *testing.T, w *world) {
	id := w.asleep(t, 1, 89).ClientID
	issued := must(w.comeBack(t, 1, id))
	if got := must(w.Device(t.Context(), id)); got.Quarantined() || issued.Quarantine != "" || issued.Approval != ccm.ApprovalApproved {
		t.Errorf("got %+v and %+v", got.Quarantine, issued)
	}
}

func oneAnswer(t *testing.T, w *world) {
	id := w.asleep(t, 1, 100).ClientID
	blocked := w.asleep(t, 2, 100).ClientID
	must(w.Block(t.Context(), blocked, "anna", "stolen"))
	for name, subject := range map[string]ccm.ClientID{"a device": id, "a blocked device": blocked, "no device": clientID(404)} {
		_, err := w.comeBack(t, 3, subject)
		refused(t, "an unknown key that speaks for "+name, err, catalog.ReturnUnknown)
	}
	inside := site.Caller{Proof: proof.Proof{Method: proof.Assertion}, Direct: true, Ceiling: proof.LevelManaged}
	answers := map[string]bool{}
	for _, subject := range []ccm.ClientID{id, blocked, clientID(404)} {
		_, err := w.ask(t, site.Exchange{Caller: inside, Assertion: w.assertion(3, subject, audience), Audience: audience})
		answers[catalog.Public(err)] = true
	}
	if len(answers) != 1 {
		t.Errorf("inside, by a strange key: %d different answers: %v", len(answers), answers)
	}
	_, err := w.comeBack(t, 2, blocked)
	refused(t, "the blocked device itself", err, catalog.DeviceBlocked)
}

func neverReturn(t *testing.T, w *world) {
	blocked, rejected := w.asleep(t, 1, 0).ClientID, w.asleep(t, 2, 365).ClientID
	must(w.Block(t.Context(), blocked, "anna", "stolen"))
	must(w.Reject(t.Context(), rejected, "anna", "not ours"))
	for n, c := range map[int]struct {
		id   ccm.ClientID
		code catalog.Code
	}{1: {blocked, catalog.DeviceBlocked}, 2: {rejected, catalog.ReturnRejected}} {
		entries := w.during(t, func() {
			_, err := w.comeBack(t, n, c.id)
			refused(t, "return", err, c.code)
		})
		if len(entries) != 0 {
			t.Errorf("got %s", actions(entries))
		}
	}
}

func returnOff(t *testing.T, w *world) {
	id := w.asleep(t, 1, 365).ClientID
	returns := func() (bool, uint64) {
		line, epoch, err := w.State()
		if err != nil {
			t.Fatal(err)
		}
		return must(token.OpenState(line, w.RootPin())).Return, epoch
	}
	on, before := returns()
	if err := w.Set(t.Context(), "return.enabled", "false", "anna"); err != nil {
		t.Fatal(err)
	}
	if off, after := returns(); !on || off || after <= before {
		t.Errorf("the state says %t at epoch %d, then %t at %d", on, before, off, after)
	}
	_, err := w.comeBack(t, 1, id)
	refused(t, "return", err, catalog.ReturnOff)
	inside := site.Caller{Proof: proof.Proof{Method: proof.Assertion}, Direct: true, Ceiling: proof.LevelManaged}
	must(w.ask(t, site.Exchange{Caller: inside, Assertion: w.assertion(1, id, audience), Audience: audience}))
}

func livesAreSettings(t *testing.T, w *world) {
	for _, c := range []struct {
		name, value string
		code        catalog.Code
	}{
		{"token.self-prove-days", "91", catalog.InvalidArgument}, {"token.self-prove-days", "1", catalog.InvalidArgument}, {"token.self-prove-days", "x", catalog.InvalidArgument},
		{"token.self-prove-renew-days", "0", catalog.InvalidArgument}, {"token.self-prove-renew-days", "90", catalog.InvalidArgument},
		{"token.self-prove-days", "30", catalog.InvalidArgument}, {"token.self-prove-renew-days", "5", ""}, {"token.self-prove-days", "10", ""},
		{"token.self-prove-renew-days", "10", catalog.InvalidArgument}, {"return.lift", "never", catalog.InvalidArgument},
	} {
		if err := w.Set(t.Context(), c.name, c.value, "anna"); catalog.CodeOf(err) != c.code {
			t.Errorf("%s %s: got %v, want %q", c.name, c.value, err, c.code)
		}
	}
	id := w.asleep(t, 1, 9).ClientID
	issued := must(w.ask(t, site.Exchange{Caller: withMethod(proof.SelfProveToken, 1), Want: token.KindSelfProve, Assertion: w.assertion(1, id, audience), Audience: audience}))
	if life := issued.Claims.Expires.Sub(issued.Claims.IssuedAt); life != 10*24*time.Hour || issued.RenewAfter != 5*24*time.Hour {
		t.Errorf("got a life of %s, renewed after %s", life, issued.RenewAfter)
	}
	w.Flush(t.Context())
	w.clock.advance(10 * 24 * time.Hour)
	if issued := must(w.comeBack(t, 1, id)); issued.Quarantine != site.LiftAutomatically {
		t.Error("no quarantine after the ten days that a token lives")
	}
}

// clockJumps sets the server's clock back and forth: nothing that has ended is accepted again, also after a restart, and the alarm is raised.
func clockJumps(t *testing.T, w *world) {
	id := w.registered(t, signed(), device(1).request()).Device.ClientID
	ask := site.Exchange{Caller: withMethod(proof.SelfProveToken, 1), Want: token.KindSelfProve, Audience: audience}
	ask.Assertion = w.assertion(1, id, audience)
	issued := must(w.ask(t, ask))
	w.clock.advance(91 * 24 * time.Hour)
	must(w.Approve(t.Context(), id, proof.LevelManaged, "anna", "seen")) // the newest entry of the trust log
	accepted := func(s *site.Site) error {
		_, err := s.Verifier().Verify(issued.Token, s.Now(), token.KindSelfProve)
		return err
	}
	refused(t, "an ended token", accepted(w.Site), catalog.TokenExpired)
	right := w.clock.now()
	for _, back := range []time.Duration{time.Hour, 400 * 24 * time.Hour} {
		w.clock.set(right.Add(-back))
		for name, s := range map[string]*site.Site{"while it runs": w.Site, "after a restart": w.node(t)} {
			refused(t, name+", an ended token with the clock back by "+back.String(), accepted(s), catalog.TokenExpired)
			refused(t, name+", the alarm", s.ClockBehind(), catalog.ClockBehind)
			if off := s.Now().Sub(right); off < 0 || off > time.Minute {
				t.Errorf("%s the site thinks it is off by %s", name, off)
			}
		}
	}
	w.clock.set(right.Add(time.Hour))
	if err := w.ClockBehind(); err != nil {
		t.Errorf("the clock is right again: %v", err)
	}
	other := w.node(t)
	w.clock.set(right.Add(-time.Hour)) // it was an hour ahead all the time
	refused(t, "another word", w.Set(t.Context(), "clock.accepted", "later", "anna"), catalog.InvalidArgument)
	refused(t, "the clock after another word", w.ClockBehind(), catalog.ClockBehind)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Set(ended, "clock.accepted", "now", "anna"); err == nil {
		t.Error("a word that was not kept is no error")
	}
	refused(t, "the clock after a word that was not kept", w.ClockBehind(), catalog.ClockBehind)
	if err := w.Set(t.Context(), "clock.accepted", "now", "anna"); err != nil {
		t.Fatal(err)
	}
	if err := other.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*site.Site{"here": w.Site, "at another node": other, "after a restart": w.node(t)} {
		if err := s.ClockBehind(); err != nil || !s.Now().Equal(w.clock.now()) {
			t.Errorf("%s: got %v and %s", name, err, s.Now())
		}
	}
}

// tenantGone: a device that is approved on its tenant's word alone gets nothing by its key once the tenant is disabled, and what it has got by it names the
// tenant, so that gateways refuse that too.
func tenantGone(t *testing.T, w *world) {
	caller := byEntra(1, entraDevice(1))
	id := w.registered(t, caller, device(1).request()).Device.ClientID
	w.Flush(t.Context())
	w.clock.advance(120 * 24 * time.Hour)
	issued := must(w.comeBack(t, 1, id))
	if c := issued.Claims.Cloud; c == nil || c.Tenant != caller.Cloud.Tenant {
		t.Errorf("the token names the tenant %+v", c)
	}
	if err := w.EnableTenant(t.Context(), caller.Cloud.Tenant, false, "anna", "merger"); err != nil {
		t.Fatal(err)
	}
	_, err := w.comeBack(t, 1, id)
	refused(t, "return", err, catalog.EntraTenantDisabled)
}
