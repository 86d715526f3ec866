package site_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
)

func identityStories() []story {
	return []story{
		{"C41 a blocked computer does not come back by its identity", blockedIdentity},
		{"C41 a key that turns out to be a blocked computer's is held", blockedLater},
		{"a person's word on one blocked twin says nothing of another", twoBlocked},
		{"a person's rejection holds for the hardware id", rejectedHardware},
		{"a person's rejection holds for the identity", rejectedIdentity},
		{"a rejection outlives a quarantine", rejectedMoves},
		{"an account of another realm does not make a namesake obsolete", namesake},
		{"a long host name has an account of 15 characters", longName},
		{"one identity is one device", oneIdentity},
		{"an identity that goes from key to key waits for a person", flapping},
		{"C67 a crowd of twins does not hide what holds a device", crowdOfTwins},
		{"nobody decides without a name and a reason", reasons},
	}
}

// held fails the test unless the device waits for a person, by a rule that names the other device, and returns the conflict.
func (w *world) held(t testing.TB, what string, d site.Device, kind site.ConflictKind, because string) site.Conflict {
	t.Helper()
	a := d.Approval
	if a.Status != ccm.ApprovalNone || a.Level != proof.LevelKnown || d.Conflict == "" || !strings.Contains(a.Rule, because) {
		t.Fatalf("%s: conflict %q, %+v; want a rule with %q", what, d.Conflict, a, because)
	}
	c, err := w.Conflict(t.Context(), d.Conflict)
	if err != nil || c.State != site.ConflictWaiting || c.Kind != kind || c.Newcomer != d.ClientID {
		t.Fatalf("%s: conflict %+v, %v", what, c, err)
	}
	return c
}

func (w *world) decide(t testing.TB, id string, verdict site.ConflictState) {
	t.Helper()
	if _, err := w.DecideConflict(t.Context(), id, verdict, "bert", "looked at it"); err != nil {
		t.Fatal(err)
	}
}

// byCertificate is the caller with a certificate for the names and the n-th device's key.
func byCertificate(n int, names ...string) site.Caller {
	c := withMethod(proof.PKICertificate, n)
	c.Certificate = certificateFor(n, names...)
	return c
}

func blockedIdentity(t *testing.T, w *world) {
	w.company(t)
	user := entraUser(2)
	for n, test := range []struct {
		name       string
		old, fresh func(n int) site.Caller
		names      int // that the newcomer gives itself
	}{
		{"a Kerberos account", func(int) site.Caller { return computer(account(0), realm) }, func(int) site.Caller { return computer("wk0$", realm) }, 0},
		{"an Entra device", func(n int) site.Caller { return byEntra(n, entraDevice(1)) }, func(n int) site.Caller { return byEntra(n, entraDevice(1)) }, 9},
		{"an Entra device, by its user", func(n int) site.Caller { return byEntra(n, entraDevice(2)) }, func(n int) site.Caller { return byEntra(n, user) }, 9},
		{"a certificate", func(n int) site.Caller { return byCertificate(n, "wk3.corp.example") }, func(n int) site.Caller { return byCertificate(n, "WK3.corp.example") }, 3},
		{"a certificate under another name", func(n int) site.Caller { return byCertificate(n, "wk4.corp.example") }, func(n int) site.Caller { return byCertificate(n, "wk4.corp.example") }, 9},
	} {
		first, second := 10*n+1, 10*n+2
		old := w.registered(t, test.old(first), device(first).request(named(n), hardware(fmt.Sprint("2:", first)))).Device
		if old.Approval.Level != proof.LevelManaged || old.Proved == "" {
			t.Fatalf("%s: got %+v", test.name, old)
		}
		if _, err := w.Block(t.Context(), old.ClientID, "anna", "stolen"); err != nil {
			t.Fatal(err)
		}
		d := w.registered(t, test.fresh(second), device(second).request(named(test.names), hardware(fmt.Sprint("2:", second)))).Device
		c := w.held(t, test.name, d, site.ConflictIdentity, "proved identity of the blocked device "+string(old.ClientID))
		if d.Approval.Evidence["blocked-twin"] != string(old.ClientID) || c.Existing != old.ClientID || c.Evidence["would-be-level"] != "managed" {
			t.Errorf("%s: evidence %v, conflict %+v", test.name, d.Approval.Evidence, c)
		}
		if again := w.registered(t, test.fresh(second), device(second).request(named(test.names), hardware("2:FF"+fmt.Sprint(n)))).Device; again.Conflict != c.ID || again.Approval.Level != proof.LevelKnown {
			t.Errorf("%s, again: got %+v", test.name, again)
		}
		w.decide(t, c.ID, site.ConflictNew)
		free := w.registered(t, test.fresh(second), device(second).request(named(test.names), hardware("2:FF"+fmt.Sprint(n)))).Device
		if free.Approval.Level != proof.LevelManaged || free.Conflict != "" {
			t.Errorf("%s, after a person's decision: got %+v", test.name, free)
		}
	}
	if n := w.codes(t, catalog.TwinIdentity); n != 5 {
		t.Errorf("%d events, want 5", n)
	}
	w.set(t, "approval.mode", "everyone:1h")
	liar := w.registered(t, computer(account(0), realm), device(60).request(named(8))).Device
	w.held(t, "everyone, under another name", liar, site.ConflictIdentity, "proved identity of the blocked device")
	if d := w.registered(t, computer(account(0), "OTHER.EXAMPLE"), device(61).request(named(0))).Device; d.Conflict != "" || d.Approval.Status != ccm.ApprovalApproved {
		t.Errorf("the account of another realm: got %+v", d)
	}
}

func blockedLater(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	old := w.registered(t, computer(account(1), realm), device(1).request(named(1), hardware("2:AA"))).Device
	if _, err := w.Block(t.Context(), old.ClientID, "anna", "stolen"); err != nil {
		t.Fatal(err)
	}
	d := w.registered(t, with(bulk, device(2).thumbprint), device(2).request(named(1), hardware("2:BB"))).Device
	if d.Approval.Level != proof.LevelManaged {
		t.Fatalf("nothing ties them yet: %+v", d.Approval)
	}
	d = w.registered(t, computer(account(1), realm), device(2).request(named(1), hardware("2:BB"))).Device
	c := w.held(t, "it proves the blocked account", d, site.ConflictIdentity, "proved identity of the blocked device "+string(old.ClientID))
	w.decide(t, c.ID, site.ConflictMerged)
	if d := w.device(t, d.ClientID); d.Approval.Rule != "bulk registration token" || d.Approval.Level != proof.LevelManaged {
		t.Errorf("merged: got %+v", d.Approval)
	}
	person := w.registered(t, with(bulk, device(3).thumbprint), device(3).request(named(3), hardware("2:CC"))).Device
	if _, err := w.Approve(t.Context(), person.ClientID, proof.LevelSecrets, "anna", "seen"); err != nil {
		t.Fatal(err)
	}
	if d := w.registered(t, computer(account(1), realm), device(3).request(named(1), hardware("2:CC"))).Device; d.Approval.By != "anna" || d.Approval.Level != proof.LevelSecrets || d.Conflict != "" {
		t.Errorf("a person's approval: got %+v", d)
	}
}

func twoBlocked(t *testing.T, w *world) {
	comes := func(n int, edit ...func(*ccm.RegistrationRequest)) site.Device {
		return w.registered(t, computer(account(1), realm), device(n).request(append(edit, named(1), hardware(fmt.Sprint("2:", n)))...)).Device
	}
	block := func(d site.Device) {
		t.Helper()
		if _, err := w.Block(t.Context(), d.ClientID, "anna", "stolen"); err != nil {
			t.Fatal(err)
		}
	}
	one := comes(1, wanting("GUID:00000000-0000-4000-8000-000000000001")) // found first
	block(one)
	d := comes(2)
	w.decide(t, w.held(t, "by the first", d, site.ConflictIdentity, string(one.ClientID)).ID, site.ConflictNew)
	other := comes(3, wanting("GUID:FFFFFFFF-0000-4000-8000-000000000001"))
	block(other)
	d = comes(2)
	c := w.held(t, "by the other", d, site.ConflictIdentity, "proved identity of the blocked device "+string(other.ClientID))
	w.decide(t, c.ID, site.ConflictNew)
	if d = comes(2); d.Approval.Level != proof.LevelManaged || d.Conflict != "" {
		t.Errorf("after a person's word on both: got %+v", d)
	}
}

func rejectedHardware(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	for n := range 20 { // older devices with that id hide nothing
		w.registered(t, signed(), device(100+n).request(named(100+n), hardware("2:AA")))
	}
	old := w.registered(t, with(bulk, device(1).thumbprint), device(1).request(named(1), hardware("2:AA"))).Device
	if _, err := w.Reject(t.Context(), old.ClientID, "anna", "not ours"); err != nil {
		t.Fatal(err)
	}
	same := w.unchanged(t, old.ClientID)
	because := "hardware id of the rejected device " + string(old.ClientID)
	d := w.registered(t, with(bulk, device(2).thumbprint), device(2).request(named(2), hardware("2:AA"))).Device
	c := w.held(t, "a new key", d, site.ConflictHardware, because)
	if d.Approval.Evidence["rejected-twin"] != string(old.ClientID) || c.Existing != old.ClientID {
		t.Errorf("evidence %v, conflict %+v", d.Approval.Evidence, c)
	}
	junk := w.registered(t, signed(), device(3).request(named(3), hardware("2:AA"))).Device
	if junk.Conflict != "" || junk.Approval.Level != proof.LevelKnown {
		t.Errorf("a key that proves nothing waits for nothing: %+v", junk)
	}
	junk = w.registered(t, with(bulk, device(3).thumbprint), device(3).request(named(3), hardware("2:AA"))).Device
	w.held(t, "a proof that comes later", junk, site.ConflictHardware, because)
	w.set(t, "approval.mode", "everyone:1h")
	w.held(t, "everyone", w.registered(t, signed(), device(4).request(named(4), hardware("2:AA"))).Device, site.ConflictHardware, because)
	same()
	w.decide(t, c.ID, site.ConflictNew)
	for range 2 {
		if d := w.registered(t, with(bulk, device(2).thumbprint), device(2).request(named(2), hardware("2:AA"))).Device; d.Approval.Level != proof.LevelManaged || d.Approval.Rule != "bulk registration token" || d.Conflict != "" {
			t.Errorf("after a person's decision: got %+v", d)
		}
	}
	if _, err := w.Approve(t.Context(), old.ClientID, proof.LevelManaged, "anna", "ours after all"); err != nil {
		t.Fatal(err)
	}
	if d := w.registered(t, with(bulk, device(5).thumbprint), device(5).request(named(5), hardware("2:AA"))).Device; d.Approval.Level != proof.LevelManaged {
		t.Errorf("after the rejection: got %+v", d)
	}
}

func rejectedIdentity(t *testing.T, w *world) {
	old := w.registered(t, computer(account(1), realm), device(1).request(named(1), hardware("2:AA"))).Device
	if _, err := w.Reject(t.Context(), old.ClientID, "anna", "not ours"); err != nil {
		t.Fatal(err)
	}
	because := "proved identity of the rejected device " + string(old.ClientID)
	w.registered(t, computer(account(1), realm), device(1).request(named(1), hardware("2:AA")))
	if d := w.device(t, old.ClientID); d.Approval.By != "anna" || d.Conflict != "" {
		t.Errorf("the rejected device itself: got %+v", d)
	}
	var c site.Conflict
	for n, edit := range []func(*ccm.RegistrationRequest){hardware("2:AA"), hardware("2:BB"), wanting(old.ClientID), hinting(old.ClientID, 1)} {
		d := w.registered(t, computer(account(1), realm), device(2+n).request(named(1), edit)).Device
		c = w.held(t, fmt.Sprint("newcomer ", n), d, site.ConflictIdentity, because)
		if w.device(t, old.ClientID).Superseded() {
			t.Fatalf("newcomer %d took the place", n)
		}
	}
	w.decide(t, c.ID, site.ConflictMerged)
	if d := w.device(t, c.Newcomer); d.Approval.Level != proof.LevelManaged || !w.device(t, old.ClientID).Superseded() {
		t.Errorf("merged: got %+v", d)
	}
}

func rejectedMoves(t *testing.T, w *world) {
	bulk, a := w.bulk(t, 0), device(1)
	old := w.registered(t, with(bulk, a.thumbprint), a.request(named(1), hardware("2:AA"), w.sent)).Device
	if _, err := w.Reject(t.Context(), old.ClientID, "anna", "not ours"); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"2:BB", "2:AA"} { // one key on two computers
		w.clock.advance(time.Hour)
		w.registered(t, signed(), a.request(named(1), hardware(id), w.sent))
	}
	d := w.device(t, old.ClientID)
	if d.Conflict == "" || d.Approval.By != "anna" || d.Approval.Rule != "rejected by a person" {
		t.Fatalf("quarantined: got %+v", d)
	}
	fresh := w.registered(t, with(bulk, device(2).thumbprint), device(2).request(named(1), hardware("2:AA"))).Device
	w.held(t, "another key", fresh, site.ConflictHardware, string(old.ClientID))
	w.decide(t, d.Conflict, site.ConflictMerged)
	if d := w.device(t, old.ClientID); d.Approval.By != "anna" || d.Approval.Level != proof.LevelKnown || d.Conflict != "" {
		t.Errorf("released: got %+v", d)
	}
}

func namesake(t *testing.T, w *world) {
	w.set(t, "approval.trusted-realms", realm+",CHILD."+realm)
	pending := w.registered(t, signed(), device(1).request(named(1), hardware("2:AA"))).Device
	bare := w.registered(t, signed(), device(2).request(named(1), property("FQ Name", ""), hardware("2:BB"))).Device
	for n, id := range []string{"2:AA", "2:BB"} {
		child := func(r *ccm.RegistrationRequest) {
			r.Properties["Netbios Name"], r.Properties["FQ Name"] = "WK1", "wk1.child.corp.example"
		}
		d := w.registered(t, computer(account(1), "CHILD."+realm), device(3+n).request(wanting(pending.ClientID), child, hardware(id))).Device
		if d.Approval.Status != ccm.ApprovalApproved {
			t.Errorf("the namesake: got %+v", d.Approval)
		}
	}
	for _, d := range []site.Device{pending, bare} {
		if w.device(t, d.ClientID).Superseded() {
			t.Errorf("%s is obsolete", d.Name())
		}
	}
	own := w.registered(t, computer(account(1), realm), device(1).request(named(1), hardware("2:AA"))).Device // its key is good
	if own.ClientID != pending.ClientID || own.Approval.Status != ccm.ApprovalApproved {
		t.Errorf("got %+v", own)
	}
}

func longName(t *testing.T, w *world) {
	names := func(netbios, fqdn string) func(*ccm.RegistrationRequest) {
		return func(r *ccm.RegistrationRequest) {
			r.Properties["Netbios Name"], r.Properties["FQ Name"] = netbios, fqdn
		}
	}
	d := w.registered(t, computer("LONGCOMPUTERNAM$", realm), device(1).request(names("LONGCOMPUTERNAM", "longcomputername-01.corp.example"))).Device
	if d.Approval.Status != ccm.ApprovalApproved || d.Approval.Evidence["own-computer-account"] != "yes" {
		t.Errorf("got %+v", d.Approval)
	}
	for n, test := range []struct{ fqdn, why string }{
		{"longcomputerx.corp.example", "the first label of the DNS name is not the account's name"},
		{"longcomputername-01.evilcorp.example", "the domain of the DNS name does not belong to the realm CORP.EXAMPLE"},
	} {
		d := w.registered(t, computer("LONGCOMPUTERNAM$", realm), device(2+n).request(names("LONGCOMPUTERNAM", test.fqdn))).Device
		events, err := w.Events(t.Context(), site.EventFilter{Subject: string(d.ClientID), Code: string(catalog.RegistrationOutsideRealm)})
		if err != nil || len(events) != 1 || !strings.Contains(events[0].Detail, test.why) || d.Approval.Status != ccm.ApprovalNone {
			t.Errorf("%s: %+v, %+v, %v", test.fqdn, d.Approval, events, err)
		}
	}
	w.company(t)
	for n, fqdn := range []string{"longcomputername-01.corp.example", ""} {
		d := w.registered(t, byCertificate(10+n, "longcomputername-01.corp.example"), device(10+n).request(names("LONGCOMPUTERNAM", fqdn))).Device
		if got, want := d.Proved != "", fqdn != ""; got != want {
			t.Errorf("a certificate and the name %q: proved %q", fqdn, d.Proved)
		}
	}
}

// live returns the approved devices that have proved the identity and are not obsolete.
func (w *world) live(t testing.TB, identity string) (list []site.Device) {
	t.Helper()
	devices, err := w.Devices(t.Context(), site.DeviceFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		if d.Proved == identity && !d.Blocked() && d.Approval.Level >= proof.LevelManaged {
			list = append(list, d)
		}
	}
	return list
}

func oneIdentity(t *testing.T, w *world) {
	w.company(t)
	for _, test := range []struct {
		identity string
		caller   func(n int) site.Caller
	}{
		{"WK1$@" + realm, func(int) site.Caller { return computer(account(1), realm) }},
		{"entra:" + entraDevice(1).Device + "@" + contoso().ID, func(n int) site.Caller { return byEntra(n, entraDevice(1)) }},
		{"certificate:wk1.corp.example@" + companyPin(), func(n int) site.Caller { return byCertificate(n, "wk1.corp.example") }},
	} {
		before := len(w.conflicts(t, site.ConflictFilter{Kind: site.ConflictIdentity}))
		for n := range 4 {
			w.clock.advance(31 * time.Minute)
			d := w.registered(t, test.caller(n+1000), device(n+1000).request(named(1), hardware(fmt.Sprint("2:", n)), w.sent)).Device
			if live := w.live(t, test.identity); len(live) != 1 || live[0].ClientID != d.ClientID || d.Conflict != "" {
				t.Fatalf("%s, key %d: live %+v", test.identity, n, live)
			}
		}
		list := w.conflicts(t, site.ConflictFilter{Kind: site.ConflictIdentity})
		if len(list) != before+3 || list[0].State != site.ConflictResolved || list[0].By != "site" || !strings.HasPrefix(list[0].Evidence["same"], "proved identity") {
			t.Errorf("%s: conflicts %+v", test.identity, list)
		}
		for n := range 4 {
			w.execute(t, "delete from devices where key_thumbprint = '"+string(device(n+1000).thumbprint)+"'")
		}
	}
	if n := w.codes(t, catalog.TwinIdentity); n != 0 {
		t.Errorf("%d events; it is silent", n)
	}

	// A device that was approved by other means proves who it is later.
	bulk := w.bulk(t, 0)
	old := w.registered(t, computer(account(5), realm), device(5).request(named(5), hardware("2:55"))).Device
	fresh := w.registered(t, with(bulk, device(6).thumbprint), device(6).request(named(5), hardware("2:66"))).Device
	w.registered(t, computer(account(5), realm), device(6).request(named(5), hardware("2:66")))
	if d := w.device(t, old.ClientID); d.Obsolete.By != fresh.ClientID {
		t.Errorf("got %+v", d)
	}
	if out := w.registered(t, computer(account(5), realm), device(6).request(named(5), hardware("2:66"))); out.Changed || out.Device.Conflict != "" {
		t.Errorf("again: got %+v", out)
	}

	// What an earlier version let in: each of many approved.
	for n := range 5 {
		d := w.registered(t, computer(account(20+n), realm), device(20+n).request(named(20+n), hardware(fmt.Sprint("2:A", n)))).Device
		w.execute(t, "update devices set proved = 'WK7$@"+realm+"' where client_id = '"+string(d.ClientID)+"'")
	}
	w.registered(t, computer(account(7), realm), device(30).request(named(7), hardware("2:B0")))
	if live := w.live(t, "WK7$@"+realm); len(live) != 1 || live[0].Key != device(30).thumbprint {
		t.Errorf("live %+v", live)
	}
	if d := w.registered(t, computer(account(7), realm), device(31).request(named(7), hardware("2:B1"))).Device; d.Conflict != "" {
		t.Errorf("five at once are one replacement: got %+v", d)
	}
}

func flapping(t *testing.T, w *world) {
	register := func(n int) site.Device {
		t.Helper()
		return w.registered(t, computer(account(1), realm), device(n).request(named(1), hardware(fmt.Sprint("2:", n)), w.sent)).Device
	}
	for n := range 4 {
		register(n)
		w.clock.advance(time.Minute)
	}
	winner := w.live(t, "WK1$@"+realm)[0]
	same := w.unchanged(t, winner.ClientID)
	held := register(4)
	c := w.held(t, "the fifth key", held, site.ConflictIdentity, "one identity goes from key to key")
	if c.Existing != winner.ClientID || w.codes(t, catalog.TwinIdentity) != 1 {
		t.Errorf("got %+v, %d events", c, w.codes(t, catalog.TwinIdentity))
	}
	w.held(t, "the sixth", register(5), site.ConflictIdentity, "one identity")
	register(4)
	register(3)
	same()
	w.clock.advance(2 * time.Hour)
	w.held(t, "while a person has not decided", register(6), site.ConflictIdentity, "one identity")
	if d := register(4); d.Conflict != c.ID {
		t.Errorf("the held one again: %+v", d)
	}
	if out := w.registered(t, computer(account(1), realm), device(3).request(named(1), hardware("2:3C"), w.sent)).Device; out.Conflict != "" || out.Approval.Level != proof.LevelManaged {
		t.Errorf("a new mainboard of the one in place: got %+v", out)
	}
	w.decide(t, c.ID, site.ConflictNew)
	for _, n := range []int{3, 4, 3} {
		w.registered(t, computer(account(1), realm), device(n).request(named(1), w.sent))
	}
	if live := w.live(t, "WK1$@"+realm); len(live) != 2 {
		t.Errorf("a person said that these are two: %+v", live)
	}

	for n := range 4 { // slowly, as a computer that is set up anew now and then
		w.clock.advance(time.Hour)
		if d := w.registered(t, computer(account(2), realm), device(20+n).request(named(2), hardware(fmt.Sprint("2:2", n)), w.sent)).Device; d.Conflict != "" {
			t.Errorf("key %d: got %+v", n, d)
		}
	}
}

// crowdOfTwins: of two conflicts that hold a device one is decided, and many more wait in which it is the existing one.
func crowdOfTwins(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	lost := w.registered(t, computer(account(5), realm), device(1).request(named(5), hardware("2:55"))).Device
	if _, err := w.Block(t.Context(), lost.ClientID, "anna", "stolen"); err != nil {
		t.Fatal(err)
	}
	w.set(t, "conflict.resolution", "manual")
	w.registered(t, signed(), device(2).request(named(2), hardware("2:AA")))
	d := w.registered(t, with(bulk, device(3).thumbprint), device(3).request(named(5), hardware("2:AA"))).Device
	twin := w.held(t, "a twin", d, site.ConflictHardware, "")
	d = w.registered(t, computer(account(5), realm), device(3).request(named(5), hardware("2:AA"))).Device
	firm := w.held(t, "a blocked computer", d, site.ConflictIdentity, "blocked device")
	w.registered(t, signed(), device(3).request(named(5), hardware("2:BB")))
	for n := range 70 {
		w.clock.advance(time.Second)
		w.registered(t, signed(), device(10+n).request(named(10+n), hardware("2:BB")))
	}
	if n := len(w.conflicts(t, site.ConflictFilter{State: site.ConflictWaiting, Device: d.ClientID})); n != 72 {
		t.Fatalf("%d conflicts wait", n)
	}
	w.decide(t, firm.ID, site.ConflictNew)
	if d := w.device(t, d.ClientID); d.Conflict != twin.ID || d.Approval.Level != proof.LevelKnown {
		t.Errorf("one conflict waits still: %q, %+v", d.Conflict, d.Approval)
	}
	w.decide(t, twin.ID, site.ConflictNew)
	if d := w.device(t, d.ClientID); d.Conflict != "" || d.Approval.Level != proof.LevelManaged {
		t.Errorf("none waits: %q, %+v", d.Conflict, d.Approval)
	}
}

func reasons(t *testing.T, w *world) {
	w.set(t, "conflict.resolution", "manual")
	first := w.registered(t, signed(), device(1).request(named(1), hardware("2:AA"))).Device
	second := w.registered(t, signed(), device(2).request(named(2), hardware("2:AA"))).Device
	same, other := w.unchanged(t, first.ClientID), w.unchanged(t, second.ClientID)
	acts := map[string]func(by, why string) error{
		"merge": func(by, why string) error { return w.verdict(second.Conflict, site.ConflictMerged, by, why) },
		"new":   func(by, why string) error { return w.verdict(second.Conflict, site.ConflictNew, by, why) },
		"deny":  func(by, why string) error { return w.verdict(second.Conflict, site.ConflictBlocked, by, why) },
	}
	for _, verb := range []string{site.ActApprove, site.ActReject, site.ActBlock, site.ActUnblock} {
		acts[verb] = func(by, why string) error {
			_, err := w.Act(context.Background(), []ccm.ClientID{first.ClientID}, site.Act{Verb: verb, Level: proof.LevelManaged}, by, why)
			return err
		}
	}
	for name, act := range acts {
		entries := w.during(t, func() {
			for what, why := range map[string]string{"no reason": "", "blanks": " \t", "two lines": "seen\nP328 approved", "an escape": "\x1b[2J", "text that runs backwards": "\u202eseen", "too much": strings.Repeat("a", 513)} {
				refused(t, name+" for "+what, act("anna", why), catalog.ReasonNeeded)
			}
			for _, nobody := range []string{"", "site"} {
				refused(t, name+" by "+nobody, act(nobody, "seen"), catalog.InvalidArgument)
			}
		})
		if len(entries) > 0 {
			t.Errorf("%s: trust entries %s", name, actions(entries))
		}
	}
	same()
	other()
	if err := acts[site.ActBlock]("anna", strings.Repeat("a", 512)); err != nil {
		t.Error(err)
	}
}

func (w *world) verdict(id string, verdict site.ConflictState, by, why string) error {
	_, err := w.DecideConflict(context.Background(), id, verdict, by, why)
	return err
}
