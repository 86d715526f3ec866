package site_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
	"postern/token"
)

func conflictStories() []story {
	return []story{
		{"a computer that proves its own account is approved, with the evidence", kerberosApproves},
		{"C69 a ticket of another account is stored and waits", kerberosOfAnother},
		{"integrated authentication is not forgotten", integratedStays},
		{"everyone is approved, for a time", everyoneForATime},
		{"C78 one authenticator serves one registration, on any node", replayedAuthenticator},
		{"C65 hardware twins are two devices", hardwareTwins},
		{"hardware ids known to be shared match nothing", sharedIDs},
		{"a re-imaged computer replaces its former record", reimaged},
		{"C61 another account with the same hardware and name replaces nothing", foreignAccount},
		{"manual: a twin is held until a person decides", heldTwin},
		{"a person merges what the site left as two", mergeLater},
		{"C63 a key on two computers is quarantined", keyOnTwo},
		{"C63 an old registration sent again quarantines nobody", replayedMove},
		{"a new mainboard, proved by the same account, is silent", newMainboard},
		{"a hint and a proof as good move the client id", hintRotates},
		{"C61 a hint alone moves nothing", hintAlone},
		{"obsolete devices go after 90 days", sweepObsolete},
		{"many at once, each in the trust log", actOnMany},
		{"C67 junk hides nobody in the groups", groupsStayFew},
	}
}

// computer is the caller with a ticket of the account in the realm, for the n-th device's key. Each call makes a fresh authenticator.
func computer(account, realm string) site.Caller {
	t := &proof.Ticket{Account: account, Realm: realm, Domain: "CORP", SID: "S-1-5-21-1-2-3-1104", PAC: true, Service: "HTTP/mp.corp.example@" + realm, KeyVersion: 3, EncryptionType: 18,
		Use: fmt.Sprint("use-", uses.Add(1)), UseUntil: begin.Add(time.Hour)}
	return site.Caller{Proof: proof.Proof{Method: proof.Kerberos, Account: t.LogName(), Realm: realm, SID: t.SID, Ticket: t, Address: "192.0.2.9"}, Ceiling: proof.LevelManaged, Direct: true}
}

var uses atomic.Int64

const realm = "CORP.EXAMPLE"

// named has the names of the n-th computer of the domain.
func named(n int) func(*ccm.RegistrationRequest) {
	return func(r *ccm.RegistrationRequest) {
		r.Properties["Netbios Name"], r.Properties["FQ Name"] = fmt.Sprint("WK", n), fmt.Sprintf("wk%d.corp.example", n)
	}
}

func account(n int) string { return fmt.Sprintf("WK%d$", n) }

func hardware(id string) func(*ccm.RegistrationRequest) { return property("HardwareID1", id) }

// sent sets the time that the request says of itself.
func (w *world) sent(r *ccm.RegistrationRequest) {
	r.TimeStamp = w.clock.now().Format("2006-01-02T15:04:05Z")
}

func (w *world) set(t testing.TB, name, value string) {
	t.Helper()
	if err := w.Set(t.Context(), name, value, "anna"); err != nil {
		t.Fatal(err)
	}
}

func (w *world) device(t testing.TB, id ccm.ClientID) site.Device {
	t.Helper()
	d, err := w.Device(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (w *world) conflicts(t testing.TB, filter site.ConflictFilter) []site.Conflict {
	t.Helper()
	list, err := w.Conflicts(t.Context(), filter)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// oneConflict returns the only conflict there is.
func (w *world) oneConflict(t testing.TB) site.Conflict {
	t.Helper()
	list := w.conflicts(t, site.ConflictFilter{})
	if len(list) != 1 {
		t.Fatalf("%d conflicts, want 1: %+v", len(list), list)
	}
	return list[0]
}

func (w *world) codes(t testing.TB, code catalog.Code) int {
	t.Helper()
	events, err := w.Events(t.Context(), site.EventFilter{Code: string(code)})
	if err != nil {
		t.Fatal(err)
	}
	return len(events)
}

// unchanged returns a check that the device's record is byte for byte as it is now, but for when it was seen.
func (w *world) unchanged(t testing.TB, id ccm.ClientID) func() {
	t.Helper()
	w.Flush(t.Context())
	before := w.device(t, id)
	return func() {
		t.Helper()
		after := w.device(t, id)
		after.LastSeen = before.LastSeen
		if !reflect.DeepEqual(after, before) {
			t.Errorf("the record changed:\n got %+v\nwant %+v", after, before)
		}
	}
}

func kerberosApproves(t *testing.T, w *world) {
	w.set(t, "approval.trusted-realms", "CHILD.CORP.EXAMPLE=CHILD;branch.example")
	out := w.registered(t, computer(account(1), realm), device(1).request(named(1)))
	a := out.Device.Approval
	if a.Status != ccm.ApprovalApproved || a.Level != proof.LevelManaged || a.Method != proof.Kerberos || a.Rule != "Kerberos, trusted realm, own computer account" || a.By != "site" {
		t.Errorf("got %+v", a)
	}
	want := map[string]string{"key": string(device(1).thumbprint), "account": "WK1$", "realm": realm, "domain": "CORP", "sid": "S-1-5-21-1-2-3-1104", "service": "HTTP/mp.corp.example@" + realm,
		"key-version": "3", "encryption-type": "18", "pac": "yes", "own-computer-account": "yes", "address": "192.0.2.9"}
	if !reflect.DeepEqual(a.Evidence, want) {
		t.Errorf("evidence\n got %v\nwant %v", a.Evidence, want)
	}
	r := out.Device.Record
	if r.Identity != `CORP\WK1$` || r.ApprovalMethod != 1 || !r.IsIntegratedAuth || out.Device.Proved != "WK1$@"+realm {
		t.Errorf("got %+v, proved %q", r, out.Device.Proved)
	}
	branch := func(r *ccm.RegistrationRequest) {
		r.Properties["Netbios Name"], r.Properties["FQ Name"] = "WK2", "WK2.Branch.Example."
	}
	if got := w.registered(t, computer("wk2$", "CHILD.CORP.EXAMPLE"), device(2).request(branch)).Device.Approval; got.Status != ccm.ApprovalApproved {
		t.Errorf("a suffix that a person has listed: got %+v", got)
	}
	if got := w.registered(t, computer("wk3$", realm), device(3).request(branch, property("Netbios Name", "WK3"), property("FQ Name", "wk3.branch.example"))).Device.Approval; got.Status != ccm.ApprovalNone {
		t.Errorf("a suffix of another realm: got %+v", got)
	}
	w.set(t, "approval.mode", "manual")
	manual := w.registered(t, computer(account(4), realm), device(4).request(named(4))).Device
	if manual.Approval.Status != ccm.ApprovalNone || manual.Approval.Evidence["own-computer-account"] != "yes" || !manual.Record.IsIntegratedAuth {
		t.Errorf("manual: got %+v", manual)
	}
}

func kerberosOfAnother(t *testing.T, w *world) {
	for n, test := range []struct {
		account string
		edit    func(*ccm.RegistrationRequest)
		code    catalog.Code
	}{
		{"bob", named(0), catalog.RegistrationUserAccount},
		{account(7), named(1), catalog.RegistrationOtherComputer},
		{account(2), func(r *ccm.RegistrationRequest) {
			r.Properties["Netbios Name"], r.Properties["FQ Name"] = "WK2", "wk2.evilcorp.example"
		}, catalog.RegistrationOutsideRealm},
	} {
		out := w.registered(t, computer(test.account, realm), device(n).request(test.edit))
		d := out.Device
		if !out.New || d.Approval.Status != ccm.ApprovalNone || d.Approval.Level != proof.LevelKnown || d.Record.ApprovalMethod != 1 || !d.Record.IsIntegratedAuth || d.Approval.Evidence["own-computer-account"] != "no" {
			t.Errorf("%s: got %+v", test.account, d)
		}
		if n := w.codes(t, test.code); n != 1 {
			t.Errorf("%s: %d events with code %s, want 1", test.account, n, test.code)
		}
	}
}

func integratedStays(t *testing.T, w *world) {
	a := device(1)
	w.registered(t, computer(account(1), realm), a.request(named(1)))
	for _, caller := range []site.Caller{signed(), withMethod(proof.CCMToken, 1), computer("bob", realm)} {
		d := w.registered(t, caller, a.request(named(1), property("MACAddress", string(caller.Method)+caller.Account))).Device
		if d.Record.Identity != `CORP\WK1$` || !d.Record.IsIntegratedAuth || d.Record.ApprovalMethod != 1 || d.Proved != "WK1$@"+realm || d.Approval.Status != ccm.ApprovalApproved {
			t.Errorf("after %s: got %+v, proved %q", caller.Method, d.Record, d.Proved)
		}
	}
	renamed := w.registered(t, computer(account(2), realm), a.request(named(2))).Device
	if renamed.Proved != "WK2$@"+realm || renamed.Record.Identity != `CORP\WK2$` {
		t.Errorf("after a rename: got %q, %q", renamed.Proved, renamed.Record.Identity)
	}
	b := device(2)
	w.registered(t, signed(), b.request(named(3)))
	if d := w.registered(t, computer("bob", realm), b.request(named(3))).Device; d.Proved != "BOB@"+realm || !d.Record.IsIntegratedAuth || d.Approval.Status != ccm.ApprovalNone {
		t.Errorf("a first proof, of a user: got %+v", d)
	}
	if d := w.registered(t, computer(account(3), realm), b.request(named(3))).Device; d.Proved != "WK3$@"+realm || d.Approval.Status != ccm.ApprovalApproved {
		t.Errorf("then its own account: got %+v", d)
	}
}

func everyoneForATime(t *testing.T, w *world) {
	w.set(t, "approval.mode", "everyone:1h")
	if got := w.registered(t, signed(), device(1).request(named(1))).Device.Approval; got.Status != ccm.ApprovalApproved || got.Level != proof.LevelManaged || got.Evidence["everyone-until"] == "" {
		t.Errorf("before the end: got %+v", got)
	}
	if got := w.registered(t, computer("bob", realm), device(2).request(named(2))).Device.Approval; got.Status != ccm.ApprovalApproved {
		t.Errorf("a user's ticket: got %+v", got)
	}
	if got := w.registered(t, computer(account(1), realm), device(1).request(named(1))).Device.Approval; got.Method != proof.Kerberos || got.Evidence["everyone-until"] != "" {
		t.Errorf("a proof after all: got %+v", got)
	}
	w.clock.advance(time.Hour)
	if got := w.registered(t, signed(), device(3).request(named(3))).Device.Approval; got.Status != ccm.ApprovalNone {
		t.Errorf("at the end: got %+v", got)
	}
	if got := w.registered(t, computer(account(4), realm), device(4).request(named(4))).Device.Approval; got.Status != ccm.ApprovalApproved {
		t.Errorf("after the end the mode is trusted-domains: got %+v", got)
	}
	if mode := w.Settings().ApprovalAt(w.clock.now()); mode != site.ApproveTrustedDomains {
		t.Errorf("mode %s", mode)
	}
}

func replayedAuthenticator(t *testing.T, w *world) {
	other := w.node(t)
	caller := computer(account(1), realm)
	w.registered(t, caller, device(1).request(named(1)))
	entries := w.during(t, func() {
		for name, s := range map[string]*site.Site{"the same node": w.Site, "the other node": other} {
			_, err := s.Register(t.Context(), caller, device(1).request(named(1)))
			refused(t, "a replay to "+name, err, catalog.KerberosReplay)
			_, err = s.Register(t.Context(), caller, device(2).request(named(1)))
			refused(t, "a replay with another key to "+name, err, catalog.KerberosReplay)
		}
	})
	if len(entries) != 0 {
		t.Errorf("a replay left %s", actions(entries))
	}
	unchanging := computer(account(1), realm) // nothing is written but the note
	if out := w.registered(t, unchanging, device(1).request(named(1))); out.Changed {
		t.Errorf("got %+v", out)
	}
	_, err := other.Register(t.Context(), unchanging, device(1).request(named(1)))
	refused(t, "a replay of a registration that changed nothing", err, catalog.KerberosReplay)
	if w.onPostgreSQL() {
		fresh, err := other.Fresh(t.Context(), caller.Ticket.Use, caller.Ticket.UseUntil)
		if err != nil || fresh {
			t.Errorf("a message with the same authenticator: fresh %t, %v", fresh, err)
		}
	}

	for round := range 5 {
		contested := computer(account(10+round), realm)
		var served, replays atomic.Int32
		var all sync.WaitGroup
		for i := range 16 {
			request := device(20 + 16*round + i).request(named(10 + round))
			s := []*site.Site{w.Site, other}[i%2]
			all.Go(func() {
				_, err := s.Register(t.Context(), contested, request)
				switch {
				case err == nil:
					served.Add(1)
				case catalog.CodeOf(err) == catalog.KerberosReplay:
					replays.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		all.Wait()
		if served.Load() != 1 || replays.Load() != 15 {
			t.Errorf("one authenticator served %d and was refused %d times", served.Load(), replays.Load())
		}
	}
	blocked := w.registered(t, computer(account(3), realm), device(3).request(named(3))).Device
	if _, err := w.Block(t.Context(), blocked.ClientID, "anna", "stolen"); err != nil {
		t.Fatal(err)
	}
	late := computer(account(3), realm)
	_, err = w.Register(t.Context(), late, device(3).request(named(3)))
	refused(t, "a blocked device", err, catalog.DeviceBlocked)
	if _, err := w.Unblock(t.Context(), blocked.ClientID, "anna", "found"); err != nil {
		t.Fatal(err)
	}
	w.registered(t, late, device(3).request(named(3))) // what was refused left no note
}

func hardwareTwins(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	victim := w.registered(t, with(bulk, device(1).thumbprint), device(1).request(named(1), hardware("2:AA"))).Device
	same := w.unchanged(t, victim.ClientID)
	out := w.registered(t, signed(), device(2).request(named(1), hardware("2:AA")))
	same()
	if !out.New || out.Device.Approval.Status != ccm.ApprovalNone || out.Device.Conflict != "" {
		t.Errorf("got %+v", out.Device)
	}
	c := w.oneConflict(t)
	if c.Kind != site.ConflictHardware || c.State != site.ConflictNew || c.By != "site" || c.Newcomer != out.Device.ClientID || c.Existing != victim.ClientID || c.Hardware != "2:AA" ||
		c.Evidence["same"] != "hardware id, NetBIOS name, FQDN" {
		t.Errorf("got %+v", c)
	}
	if n := w.codes(t, catalog.TwinHardware); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
	for _, n := range []int{1, 2} { // again: nothing new
		if out := w.registered(t, signed(), device(n).request(named(1), hardware("2:AA"))); out.Changed {
			t.Errorf("device %d changed", n)
		}
	}
	w.registered(t, with(bulk, device(2).thumbprint), device(2).request(named(1), hardware("2:AA"))) // raised: the pair is known already
	w.oneConflict(t)
	for n := 3; n < 30; n++ { // each newcomer has one conflict, however many have the id
		w.registered(t, signed(), device(n).request(named(n), hardware("2:AA")))
	}
	if n := len(w.conflicts(t, site.ConflictFilter{})); n != 28 {
		t.Errorf("%d conflicts, want 28", n)
	}
	same()
}

func sharedIDs(t *testing.T, w *world) {
	w.set(t, "conflict.shared-hardware-ids", "2:aa, 4C4C")
	bulk := w.bulk(t, 0)
	first := w.registered(t, with(bulk, device(1).thumbprint), device(1).request(named(1), hardware("2:AA"))).Device
	w.registered(t, signed(), device(2).request(named(2), hardware("2:AA")))
	w.registered(t, signed(), device(3).request(named(3), hardware("2:BB"), property("SMBIOSID", "4c4c")))
	w.registered(t, signed(), device(4).request(named(4), hardware("2:BB"), property("SMBIOSID", "4c4c")))
	w.registered(t, signed(), device(1).request(named(1), hardware("2:CC"))) // from a shared id to its own
	if list := w.conflicts(t, site.ConflictFilter{}); len(list) != 0 {
		t.Errorf("conflicts %+v", list)
	}
	w.registered(t, signed(), device(1).request(named(1), hardware("2:AA")))
	if _, err := w.Block(t.Context(), first.ClientID, "anna", "stolen"); err != nil {
		t.Fatal(err)
	}
	if got := w.registered(t, with(bulk, device(5).thumbprint), device(5).request(named(5), hardware("2:AA"))).Device.Approval; got.Status != ccm.ApprovalApproved {
		t.Errorf("the shared id of a blocked device: got %+v", got)
	}
}

func reimaged(t *testing.T, w *world) {
	old := w.registered(t, computer(account(1), realm), device(1).request(named(1), hardware("2:AA"))).Device
	issued := exchange(t, w, w.bulk(t, 0), 1)
	_, epoch, err := w.State()
	if err != nil {
		t.Fatal(err)
	}
	var out site.Registration
	entries := w.during(t, func() {
		out = w.registered(t, computer(account(1), realm), device(2).request(wanting(old.ClientID), named(1), hardware("2:AA")))
	})
	if !out.New || out.Device.ClientID == old.ClientID || out.Device.Approval.Status != ccm.ApprovalApproved {
		t.Fatalf("got %+v", out.Device)
	}
	if got := actions(entries); got != "device.obsolete device.register" {
		t.Errorf("trust entries %q", got)
	}
	now := w.device(t, old.ClientID)
	if now.Obsolete.By != out.Device.ClientID || !now.Superseded() || !now.Blocked() || now.Obsolete.Why != "proved by the same identity" {
		t.Errorf("the former record: %+v", now.Obsolete)
	}
	if c := w.oneConflict(t); c.State != site.ConflictResolved || c.By != "site" || c.Kind != site.ConflictClientID {
		t.Errorf("got %+v", c)
	}

	_, err = w.Register(t.Context(), computer(account(1), realm), device(1).request(named(1)))
	refused(t, "the former key registers", err, catalog.DeviceObsolete)
	if err == nil || !strings.Contains(err.Error(), string(out.Device.ClientID)) {
		t.Errorf("%v does not name %s", err, out.Device.ClientID)
	}
	_, err = w.Confirm(t.Context(), signed(), device(1).confirmation(old.ClientID))
	refused(t, "the former key confirms", err, catalog.DeviceObsolete)
	_, err = w.IssueToken(t.Context(), site.Exchange{Caller: withMethod(proof.CCMToken, 1), Want: token.KindCCM})
	refused(t, "the former key asks for a token", err, catalog.DeviceObsolete)
	refused(t, "its token", w.Revoked(issued.Claims), catalog.DeviceObsolete)
	_, err = w.Assignments(t.Context(), now)
	refused(t, "its policies", err, catalog.DeviceObsolete)
	_, err = w.Approve(t.Context(), old.ClientID, proof.LevelManaged, "anna", "seen")
	refused(t, "its approval by a person", err, catalog.DeviceObsolete)
	raw, after, err := w.State()
	if err != nil || after <= epoch {
		t.Errorf("epoch %d after %d, %v", after, epoch, err)
	}
	state, err := token.OpenState(raw, w.RootPin())
	if err != nil || !reflect.DeepEqual(state.BlockedKeys, []proof.KeyThumbprint{device(1).thumbprint}) {
		t.Errorf("gateways refuse %v, %v", state.BlockedKeys, err)
	}
	if found, err := w.FindDevice(t.Context(), "WK1"); err != nil || found.ClientID != out.Device.ClientID {
		t.Errorf("by name: %s, %v", found.ClientID, err)
	}

	// Again, and this time it asks for the client id that is obsolete.
	third := w.registered(t, computer(account(1), realm), device(3).request(wanting(old.ClientID), named(1), hardware("2:AA"))).Device
	if got := w.device(t, out.Device.ClientID); got.Obsolete.By != third.ClientID {
		t.Errorf("the second record: %+v", got.Obsolete)
	}
	if got := w.device(t, old.ClientID); got.Obsolete.By != out.Device.ClientID {
		t.Errorf("the first record: %+v", got.Obsolete)
	}

	// A record that nothing stands behind but its name gives way to the account.
	junk := w.registered(t, signed(), device(4).request(named(5), hardware("2:EE"))).Device
	own := w.registered(t, computer(account(5), realm), device(5).request(named(5), hardware("2:EE"))).Device
	if got := w.device(t, junk.ClientID); got.Obsolete.By != own.ClientID {
		t.Errorf("a record known by its name: %+v", got.Obsolete)
	}
	// It may also prove itself after it registered.
	early := w.registered(t, signed(), device(6).request(named(1), hardware("2:AA"))).Device
	if early.Approval.Status != ccm.ApprovalNone || w.device(t, third.ClientID).Superseded() {
		t.Errorf("before the proof: %+v", early)
	}
	early = w.registered(t, computer(account(1), realm), device(6).request(named(1), hardware("2:AA"))).Device
	if early.Approval.Status != ccm.ApprovalApproved || w.device(t, third.ClientID).Obsolete.By != early.ClientID {
		t.Errorf("after the proof: %+v", early)
	}

	// Gateways are told of the four keys until no token that is bound to them can last. The management point always refuses them.
	for _, told := range []struct {
		after time.Duration
		keys  int
	}{{2*token.SelfProveLifetime - time.Hour, 4}, {2 * time.Hour, 0}} {
		w.clock.advance(told.after)
		if err := w.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		raw, _, err := w.State()
		state, opened := token.OpenState(raw, w.RootPin())
		if err != nil || opened != nil || len(state.BlockedKeys) != told.keys {
			t.Errorf("gateways refuse %v, want %d keys; %v, %v", state.BlockedKeys, told.keys, err, opened)
		}
		refused(t, "its token", w.Revoked(issued.Claims), catalog.DeviceObsolete)
	}
}

func foreignAccount(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	own := w.registered(t, computer(account(1), realm), device(1).request(named(1), hardware("2:AA"))).Device
	token := w.registered(t, with(bulk, device(2).thumbprint), device(2).request(named(2), hardware("2:BB"))).Device
	rejected := w.registered(t, signed(), device(3).request(named(3), hardware("2:CC"))).Device
	if _, err := w.Reject(t.Context(), rejected.ClientID, "anna", "not ours"); err != nil {
		t.Fatal(err)
	}
	checks := []func(){w.unchanged(t, own.ClientID), w.unchanged(t, token.ClientID), w.unchanged(t, rejected.ClientID)}
	for n, newcomer := range []struct {
		caller site.Caller
		edit   func(*ccm.RegistrationRequest)
		wanted ccm.ClientID
		id     string
	}{
		{computer(account(9), realm), named(1), own.ClientID, "2:AA"},           // its name, another account
		{computer(account(1), "OTHER.EXAMPLE"), named(1), own.ClientID, "2:AA"}, // its account in another realm
		{computer("bob", realm), named(1), own.ClientID, "2:AA"},
		{computer(account(2), realm), named(2), token.ClientID, "2:BB"}, // the other is approved by another proof
		{computer(account(3), realm), named(3), rejected.ClientID, "2:CC"},
	} {
		out := w.registered(t, newcomer.caller, device(10+n).request(wanting(newcomer.wanted), newcomer.edit, hardware(newcomer.id)))
		if out.Device.ClientID == newcomer.wanted {
			t.Errorf("newcomer %d took %s", n, newcomer.wanted)
		}
	}
	for _, check := range checks {
		check()
	}
}

func heldTwin(t *testing.T, w *world) {
	w.set(t, "conflict.resolution", "manual")
	bulk := w.bulk(t, 0)
	victim := w.registered(t, with(bulk, device(1).thumbprint), device(1).request(named(1), hardware("2:AA"))).Device
	same := w.unchanged(t, victim.ClientID)
	hold := func(n int) (site.Device, site.Conflict) {
		t.Helper()
		d := w.registered(t, with(bulk, device(n).thumbprint), device(n).request(named(n), hardware("2:AA"))).Device
		if d.Approval.Status != ccm.ApprovalNone || d.Approval.Level != proof.LevelKnown || d.Conflict == "" {
			t.Fatalf("device %d: got %+v", n, d)
		}
		c, err := w.Conflict(t.Context(), d.Conflict)
		if err != nil || c.State != site.ConflictWaiting || c.Newcomer != d.ClientID || c.Existing != victim.ClientID || c.Evidence["would-be-level"] != "managed" {
			t.Fatalf("device %d: conflict %+v, %v", n, c, err)
		}
		return d, c
	}
	decide := func(c site.Conflict, verdict site.ConflictState) error {
		_, err := w.DecideConflict(t.Context(), c.ID, verdict, "bert", "looked at it")
		return err
	}
	held, c := hold(2)
	_, err := w.Approve(t.Context(), held.ClientID, proof.LevelManaged, "anna", "seen")
	refused(t, "approval past the conflict", err, catalog.DeviceHeld)
	if again := w.registered(t, withMethod(proof.Entra, 2), device(2).request(named(2), hardware("2:AA"))).Device; again.Approval.Level != proof.LevelKnown {
		t.Errorf("another proof while it is held: got %+v", again.Approval)
	}
	entries := w.during(t, func() {
		for range 2 {
			if err := decide(c, site.ConflictNew); err != nil {
				t.Error(err)
			}
		}
	})
	if got := actions(entries); got != "device.conflict conflict.new" || entries[1].Actor != "bert" || !strings.Contains(entries[1].Detail, "looked at it") {
		t.Errorf("trust entries %q: %+v", got, entries)
	}
	refused(t, "another verdict", decide(c, site.ConflictBlocked), catalog.ConflictDecided)
	refused(t, "no verdict", decide(c, site.ConflictResolved), catalog.InvalidArgument)
	refused(t, "no conflict", decide(site.Conflict{ID: "x"}, site.ConflictNew), catalog.ConflictUnknown)
	free := w.device(t, held.ClientID)
	if free.Approval.Status != ccm.ApprovalApproved || free.Approval.Method != proof.BulkToken || free.Approval.Evidence["bulk-token"] != bulk.ID || free.Conflict != "" {
		t.Errorf("released: got %+v", free)
	}
	same()

	stranger, c := hold(3)
	if err := decide(c, site.ConflictBlocked); err != nil {
		t.Fatal(err)
	}
	_, err = w.Register(t.Context(), signed(), device(3).request())
	refused(t, "a blocked stranger", err, catalog.DeviceBlocked)
	refused(t, "its key", w.Revoked(token.Claims{Key: stranger.Key}), catalog.KeyBlocked)
	unblocked, err := w.Unblock(t.Context(), stranger.ClientID, "bert", "else its hardware id lets nobody in")
	if err != nil || unblocked.Approval.Status != ccm.ApprovalNone || unblocked.Approval.Level != proof.LevelKnown || unblocked.Conflict != "" {
		t.Fatalf("a stranger that was let in again is approved: %+v, %v", unblocked, err)
	}

	// An anonymous twin that proves more while it is held gets that.
	anonymous := w.registered(t, signed(), device(4).request(named(4), hardware("2:AA"))).Device
	w.registered(t, with(bulk, device(4).thumbprint), device(4).request(named(4), hardware("2:AA")))
	same()
	if c, err = w.Conflict(t.Context(), anonymous.Conflict); err != nil {
		t.Fatal(err)
	}
	if err := decide(c, site.ConflictMerged); err != nil {
		t.Fatal(err)
	}
	merged := w.device(t, anonymous.ClientID)
	if merged.Approval.Status != ccm.ApprovalApproved || merged.Approval.Evidence["bulk-token"] != bulk.ID || merged.Key != device(4).thumbprint {
		t.Errorf("merged: got %+v", merged)
	}
	if got := w.device(t, victim.ClientID); got.Obsolete.By != merged.ClientID || got.Obsolete.Why != "looked at it" {
		t.Errorf("the existing record: %+v", got.Obsolete)
	}
	refused(t, "the existing key", w.Revoked(token.Claims{Key: victim.Key}), catalog.DeviceObsolete)

	// A proof by the same account resolves silently, also in this mode.
	first := w.registered(t, computer(account(7), realm), device(7).request(named(7), hardware("2:77"))).Device
	second := w.registered(t, computer(account(7), realm), device(8).request(named(7), hardware("2:77"))).Device
	if second.Conflict != "" || second.Approval.Status != ccm.ApprovalApproved || !w.device(t, first.ClientID).Superseded() {
		t.Errorf("got %+v", second)
	}
}

func mergeLater(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	old := w.registered(t, with(bulk, device(1).thumbprint), device(1).request(named(1), hardware("2:AA"))).Device
	if _, err := w.Approve(t.Context(), old.ClientID, proof.LevelSecrets, "anna", "server"); err != nil {
		t.Fatal(err)
	}
	fresh := w.registered(t, signed(), device(2).request(named(1), hardware("2:AA"))).Device
	c := w.oneConflict(t)
	if _, err := w.DecideConflict(t.Context(), c.ID, site.ConflictMerged, "bert", "new disk"); err != nil {
		t.Fatal(err)
	}
	if got := w.device(t, fresh.ClientID); got.Approval.Status != ccm.ApprovalNone || got.Approval.Level != proof.LevelKnown {
		t.Errorf("the newcomer inherited: %+v", got.Approval)
	}
	if got := w.device(t, old.ClientID); got.Obsolete.By != fresh.ClientID {
		t.Errorf("got %+v", got.Obsolete)
	}
	third := w.registered(t, signed(), device(3).request(wanting(fresh.ClientID), named(3))).Device
	list := w.conflicts(t, site.ConflictFilter{Device: third.ClientID})
	if len(list) != 1 {
		t.Fatalf("got %+v", list)
	}
	if _, err := w.DecideConflict(t.Context(), list[0].ID, site.ConflictMerged, "bert", "seen"); err != nil {
		t.Fatal(err)
	}
	if got := w.device(t, fresh.ClientID); got.Obsolete.By != third.ClientID {
		t.Errorf("got %+v", got.Obsolete)
	}
}

func keyOnTwo(t *testing.T, w *world) {
	a, bulk := device(1), w.bulk(t, 0)
	id := w.registered(t, with(bulk, a.thumbprint), a.request(named(1), hardware("2:AA"), w.sent)).Device.ClientID
	come := func(hardwareID string) site.Device {
		t.Helper()
		w.clock.advance(time.Hour)
		return w.registered(t, signed(), a.request(named(1), hardware(hardwareID), w.sent)).Device
	}
	if d := come("2:BB"); d.Approval.Status != ccm.ApprovalApproved || d.Conflict != "" || d.Record.HardwareID1 != "2:BB" {
		t.Errorf("the first change: got %+v", d)
	}
	if c := w.oneConflict(t); c.Kind != site.ConflictKey || c.State != site.ConflictResolved || c.Newcomer != id || c.Existing != id || c.Evidence["former-hardware"] != "2:AA" {
		t.Errorf("got %+v", c)
	}
	flipped := come("2:AA")
	if flipped.Approval.Status != ccm.ApprovalNone || flipped.Approval.Level != proof.LevelKnown || flipped.Conflict == "" {
		t.Fatalf("the former hardware again: got %+v", flipped)
	}
	if n := w.codes(t, catalog.TwinKey); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
	for _, caller := range []site.Caller{with(bulk, a.thumbprint), withMethod(proof.Entra, 1), signed()} {
		if d := w.registered(t, caller, a.request(named(1), hardware("2:BB"), w.sent)).Device; d.Approval.Level != proof.LevelKnown {
			t.Errorf("%s lifts the quarantine: %+v", caller.Method, d.Approval)
		}
	}
	_, err := w.DecideConflict(t.Context(), flipped.Conflict, site.ConflictNew, "bert", "two")
	refused(t, "one key as two devices", err, catalog.ConflictVerdict)
	if _, err := w.DecideConflict(t.Context(), flipped.Conflict, site.ConflictMerged, "bert", "it moves between hosts"); err != nil {
		t.Fatal(err)
	}
	d := w.device(t, id)
	if d.Approval.Status != ccm.ApprovalApproved || d.Approval.Rule != "bulk registration token" || d.Conflict != "" {
		t.Errorf("merged: got %+v", d.Approval)
	}
	for _, hardwareID := range []string{"2:AA", "2:BB", "2:AA"} {
		if d := come(hardwareID); d.Approval.Status != ccm.ApprovalApproved || d.Record.HardwareID1 != hardwareID {
			t.Errorf("after the merge, %s: got %+v", hardwareID, d)
		}
	}
	if n := len(w.conflicts(t, site.ConflictFilter{})); n != 2 {
		t.Errorf("%d conflicts, want 2", n)
	}
	if d := come(""); d.Record.HardwareID1 != "2:AA" {
		t.Errorf("a missing hardware id takes the known one away: %q", d.Record.HardwareID1)
	}
	come("2:CC")
	if d := come("2:BB"); d.Conflict == "" {
		t.Errorf("a flip with a third: got %+v", d)
	}
}

func replayedMove(t *testing.T, w *world) {
	a, bulk := device(1), w.bulk(t, 0)
	recorded := a.request(named(1), hardware("2:AA"), w.sent)
	w.registered(t, with(bulk, a.thumbprint), recorded)
	w.clock.advance(30 * 24 * time.Hour)
	w.registered(t, signed(), a.request(named(1), hardware("2:BB"), w.sent))
	out := w.registered(t, signed(), recorded)
	if out.Device.Approval.Status != ccm.ApprovalApproved || out.Device.Conflict != "" || out.Device.Record.HardwareID1 != "2:BB" {
		t.Errorf("got %+v", out.Device)
	}
}

func newMainboard(t *testing.T, w *world) {
	a := device(1)
	w.registered(t, computer(account(1), realm), a.request(named(1), hardware("2:AA"), w.sent))
	w.clock.advance(48 * time.Hour)
	d := w.registered(t, computer(account(1), realm), a.request(named(1), hardware("2:BB"), w.sent)).Device
	if d.Approval.Status != ccm.ApprovalApproved || d.Conflict != "" || w.codes(t, catalog.TwinKey) != 0 {
		t.Errorf("got %+v", d)
	}
	w.clock.advance(48 * time.Hour)
	if d := w.registered(t, computer(account(1), realm), a.request(named(1), hardware("2:AA"), w.sent)).Device; d.Conflict == "" {
		t.Errorf("a restored snapshot beside the original: got %+v", d)
	}
}

// hinting brings a hint for the id by the n-th device's key.
func hinting(id ccm.ClientID, n int) func(*ccm.RegistrationRequest) {
	return func(r *ccm.RegistrationRequest) {
		r.SMSID, r.Hint = id, must(ccm.SignRegistrationHint(id, device(n).key))
	}
}

func hintRotates(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	old := w.registered(t, with(bulk, device(1).thumbprint), device(1).request(named(1), hardware("2:AA"))).Device
	issued := exchange(t, w, bulk, 1)
	w.clock.advance(time.Hour)
	var out site.Registration
	entries := w.during(t, func() {
		out = w.registered(t, with(bulk, device(2).thumbprint), device(2).request(hinting(old.ClientID, 1), named(1), hardware("2:AA")))
	})
	d := out.Device
	if out.New || d.ClientID != old.ClientID || d.Record.SMSID != old.ClientID || d.Key != device(2).thumbprint || !d.Created.Equal(old.Created) || d.Approval.Status != ccm.ApprovalApproved ||
		d.Approval.Evidence["key"] != string(device(2).thumbprint) || d.Approval.Evidence["wanted-but-taken"] != "" {
		t.Errorf("got %+v", d)
	}
	if got := actions(entries); got != "device.rekey device.register" {
		t.Errorf("trust entries %q", got)
	}
	if c := w.oneConflict(t); c.State != site.ConflictResolved || !c.Hint || c.Evidence["hint"] != "verified" {
		t.Errorf("got %+v", c)
	}
	if list, err := w.Devices(t.Context(), site.DeviceFilter{}); err != nil || len(list) != 1 {
		t.Errorf("%d devices, %v", len(list), err)
	}
	for _, caller := range []site.Caller{signed(), with(bulk, device(1).thumbprint)} {
		_, err := w.Register(t.Context(), caller, device(1).request(named(1)))
		refused(t, "the former key registers", err, catalog.DeviceObsolete)
	}
	_, err := w.IssueToken(t.Context(), site.Exchange{Caller: with(bulk, device(1).thumbprint), Want: token.KindCCM})
	refused(t, "the former key gets a token", err, catalog.DeviceObsolete)
	refused(t, "its token", w.Revoked(issued.Claims), catalog.DeviceObsolete)
	w.registered(t, signed(), device(2).request(named(1), hardware("2:AA")))
	again := w.registered(t, with(bulk, device(3).thumbprint), device(3).request(hinting(old.ClientID, 1), named(1))) // the former key's hint is worth nothing now
	if again.Device.ClientID == old.ClientID {
		t.Error("a hint of a former key moved the client id")
	}

	mine := w.registered(t, computer(account(5), realm), device(5).request(named(5))).Device
	if got := w.registered(t, computer(account(5), realm), device(6).request(hinting(mine.ClientID, 5), named(5))).Device; got.ClientID != mine.ClientID || got.Proved != "WK5$@"+realm {
		t.Errorf("by the same account: got %+v", got)
	}
}

func hintAlone(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	known := w.registered(t, signed(), device(1).request(named(1))).Device
	managed := w.registered(t, with(bulk, device(2).thumbprint), device(2).request(named(2))).Device
	person := w.registered(t, with(bulk, device(3).thumbprint), device(3).request(named(3))).Device
	own := w.registered(t, computer(account(4), realm), device(4).request(named(4))).Device
	blocked := w.registered(t, with(bulk, device(5).thumbprint), device(5).request(named(5))).Device
	if _, err := w.Approve(t.Context(), person.ClientID, proof.LevelManaged, "anna", "seen"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Block(t.Context(), blocked.ClientID, "anna", "stolen"); err != nil {
		t.Fatal(err)
	}
	for n, test := range []struct {
		name   string
		caller site.Caller
		owner  site.Device
		by     int // whose key signed the hint
	}{
		{"nothing but the hint, for a known device", signed(), known, 1},
		{"nothing but the hint, for a managed device", signed(), managed, 2},
		{"a hint by another key", with(bulk, device(20+2).thumbprint), managed, 1},
		{"a device that a person approved", with(bulk, device(20+3).thumbprint), person, 3},
		{"a device with an account, by token", with(bulk, device(20+4).thumbprint), own, 4},
		{"a device with an account, by another account", computer(account(9), realm), own, 4},
		{"a blocked device", with(bulk, device(20+6).thumbprint), blocked, 5},
	} {
		same := w.unchanged(t, test.owner.ClientID)
		out := w.registered(t, test.caller, device(20+n).request(hinting(test.owner.ClientID, test.by), named(9)))
		if !out.New || out.Device.ClientID == test.owner.ClientID {
			t.Errorf("%s: got %s", test.name, out.Device.ClientID)
		}
		same()
		list := w.conflicts(t, site.ConflictFilter{Device: out.Device.ClientID, Kind: site.ConflictClientID})
		if len(list) != 1 || list[0].Hint != (test.by != 1 || test.owner.ClientID == known.ClientID) {
			t.Errorf("%s: conflicts %+v", test.name, list)
		}
	}
	if n := w.codes(t, catalog.RegistrationHintRefused); n != 7 {
		t.Errorf("%d events, want 7", n)
	}
	w.set(t, "approval.mode", "everyone:1h") // is no proof
	same := w.unchanged(t, managed.ClientID)
	if out := w.registered(t, signed(), device(40).request(hinting(managed.ClientID, 2), named(2))); out.Device.ClientID == managed.ClientID || out.Device.Approval.Status != ccm.ApprovalApproved {
		t.Errorf("everyone with a hint: got %+v", out.Device)
	}
	same()
}

func sweepObsolete(t *testing.T, w *world) {
	old := w.registered(t, computer(account(1), realm), device(1).request(named(1), hardware("2:AA"))).Device
	current := w.registered(t, computer(account(1), realm), device(2).request(named(1), hardware("2:AA"))).Device
	stolen := w.registered(t, computer(account(2), realm), device(3).request(named(2), hardware("2:BB"))).Device
	w.registered(t, computer(account(2), realm), device(4).request(named(2), hardware("2:BB")))
	if _, err := w.Block(t.Context(), stolen.ClientID, "anna", "its disk was stolen"); err != nil {
		t.Fatal(err)
	}
	w.Flush(t.Context())
	for _, step := range []struct {
		after time.Duration
		want  int
	}{{89 * 24 * time.Hour, 0}, {2 * 24 * time.Hour, 1}, {time.Hour, 0}} {
		w.clock.advance(step.after)
		if n, err := w.Sweep(t.Context()); n != step.want || err != nil {
			t.Errorf("after %s more: %d removed, %v; want %d", step.after, n, err, step.want)
		}
	}
	if _, err := w.Device(t.Context(), old.ClientID); !errors.Is(err, site.ErrNotFound) {
		t.Errorf("the obsolete record: %v", err)
	}
	w.device(t, current.ClientID)
	_, err := w.Register(t.Context(), computer(account(2), realm), device(3).request(named(2), hardware("2:BB")))
	refused(t, "a blocked key that was obsolete too", err, catalog.DeviceBlocked)
	if err := w.Revoked(token.Claims{Key: old.Key}); err != nil {
		t.Errorf("a key that no record has any more: %v", err)
	}
	if entries := w.entries(t); entries[len(entries)-1].Action != "device.remove" {
		t.Errorf("the last trust entry is %s", entries[len(entries)-1].Action)
	}
}

func actOnMany(t *testing.T, w *world) {
	var ids []ccm.ClientID
	for n := range 40 {
		ids = append(ids, w.registered(t, signed(), device(n).request(named(n))).Device.ClientID)
	}
	_, epoch, _ := w.State()
	entries := w.during(t, func() {
		devices, err := w.Act(t.Context(), ids, site.Act{Verb: site.ActApprove, Level: proof.LevelManaged}, "bert", "the new floor")
		if err != nil || len(devices) != 40 || devices[39].Approval.Status != ccm.ApprovalApproved {
			t.Errorf("%d devices, %v", len(devices), err)
		}
	})
	if len(entries) != 40 || entries[17].Actor != "bert" || !strings.Contains(entries[17].Detail, "the new floor") || entries[17].Subject != string(ids[17]) {
		t.Errorf("%d trust entries", len(entries))
	}
	if _, after, _ := w.State(); after != epoch {
		t.Error("approval moved the site state")
	}
	if _, err := w.Act(t.Context(), ids, site.Act{Verb: site.ActBlock}, "bert", "flood"); err != nil {
		t.Error(err)
	}
	refused(t, "a blocked one", w.Revoked(token.Claims{Key: device(33).thumbprint}), catalog.KeyBlocked)
	_, err := w.Act(t.Context(), append(ids[:3:3], clientID(404)), site.Act{Verb: site.ActUnblock}, "bert", "seen")
	refused(t, "one of them is unknown", err, catalog.DeviceUnknown)
	if !w.device(t, ids[0]).Block.Blocked {
		t.Error("the others were changed")
	}
}

func groupsStayFew(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	for n := range 120 {
		name := fmt.Sprintf("%c%c%c%c-%04d", 'A'+n%26, 'A'+n/26, 'A'+n%7, 'A'+n%5, n)
		w.registered(t, signed(), device(n).request(property("Netbios Name", name), property("FQ Name", "")))
	}
	for n := 120; n < 125; n++ {
		w.registered(t, with(bulk, device(n).thumbprint), device(n).request(property("Netbios Name", fmt.Sprint("LAPTOP-", n)), property("FQ Name", "")))
	}
	w.registered(t, computer("bob", realm), device(130).request(property("Netbios Name", "CEO-DESK"), property("FQ Name", "")))
	groups, err := w.DeviceGroups(t.Context(), site.DeviceFilter{})
	if err != nil || len(groups) >= 50 {
		t.Fatalf("%d groups, %v", len(groups), err)
	}
	total, seen := 0, ""
	for _, g := range groups {
		total += g.Count
		seen += fmt.Sprintln(g.Method, g.Origin, g.Pattern, g.Count)
	}
	if total != 126 {
		t.Errorf("%d devices in the groups, want 126", total)
	}
	for _, want := range []string{"kerberos " + realm + " CEO-DESK 1", "bulk-token " + bulk.ID + " LAPTOP-# 5"} {
		if !strings.Contains(seen, want) {
			t.Errorf("no group %q among\n%s", want, seen)
		}
	}
}
