package storetest

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/ccm"
	"postern/proof"
	"postern/site"
)

func devicesWithMarks(t *testing.T, s site.Store) {
	obsolete := device(1)
	obsolete.Obsolete = site.Obsolete{By: clientID(2), At: start.Add(time.Hour), Why: "proved by the same account"}
	held := device(2)
	held.Conflict = "0123456789abcdef"
	put(t, s, obsolete, held)
	for _, want := range []site.Device{obsolete, held} {
		same(t, "device", read(t, s, func(tx site.Tx) (site.Device, error) { return tx.DeviceByKey(want.Key) }), want)
	}
	current := held
	current.Conflict, current.Proved = "", ""
	put(t, s, current)
	same(t, "marks taken away", read(t, s, func(tx site.Tx) (site.Device, error) { return tx.Device(current.ClientID) }), current)
}

func devicesByHardware(t *testing.T, s site.Store) {
	var devices []site.Device
	for n := range 5 {
		d := device(n)
		d.Record.HardwareID1, d.Created = "2:AA", start.Add(time.Duration(-n)*time.Hour)
		devices = append(devices, d)
	}
	devices[3].Obsolete.By = clientID(4)
	devices[2].Record.HardwareID1 = ""
	put(t, s, devices...)
	ask := func(hardware string, limit int) string {
		found := read(t, s, func(tx site.Tx) ([]site.Device, error) { return tx.DevicesByHardware(hardware, limit) })
		for _, d := range found {
			same(t, "a device by its hardware", d, read(t, s, func(tx site.Tx) (site.Device, error) { return tx.Device(d.ClientID) }))
		}
		return list(found, func(d site.Device) string { return string(d.ClientID[len(d.ClientID)-1:]) })
	}
	same(t, "the oldest first, without obsolete ones", ask("2:AA", 8), "4 1 0")
	same(t, "limited", ask("2:AA", 2), "4 1")
	same(t, "another id", ask("2:aa", 8), "")
	same(t, "no id", ask("", 8), "")
	alike := device(6)
	alike.Record.HardwareID1 = "2:1111111122222222"
	other := device(7)
	other.Record.HardwareID1 = "2:3333333322222222"
	put(t, s, alike, other)
	same(t, "an id that ends alike", ask(other.Record.HardwareID1, 8), "7")
}

func devicesFiltered(t *testing.T, s site.Store) {
	var devices []site.Device
	for n := range 6 {
		d := device(n)
		d.Record.NetbiosName, d.Record.FQDName = fmt.Sprintf("WK-%d", n), fmt.Sprintf("wk-%d.corp.Example.com", n)
		d.Proved = fmt.Sprintf("WK-%d$@CORP.EXAMPLE.COM", n)
		devices = append(devices, d)
	}
	devices[1].Record.FQDName = "wk-1.evilcorp.example.com"
	devices[2].Record.NetbiosName, devices[2].Record.FQDName = "100%_SURE!", "corp.example.com"
	devices[3].Proved = "WK-3$@CHILD.CORP.EXAMPLE.COM"
	devices[4].Approval.Method, devices[4].Conflict = proof.Kerberos, "c"
	devices[5].Obsolete.By = clientID(1)
	for _, n := range []int{0, 1, 2, 4, 5} {
		devices[n].Quarantine = site.Quarantine{}
	}
	put(t, s, devices...)
	yes, no := true, false
	for _, test := range []struct {
		name   string
		filter site.DeviceFilter
		want   string
	}{
		{"name like", site.DeviceFilter{NameLike: "wk-*"}, "0 1 3 4 5"},
		{"name like with one character open", site.DeviceFilter{NameLike: "WK-?"}, "0 1 3 4 5"},
		{"name like in the middle", site.DeviceFilter{NameLike: "*-4.CORP*"}, "4"},
		{"name like without a star is the whole name", site.DeviceFilter{NameLike: "wk-"}, ""},
		{"percent and underscore stand for themselves", site.DeviceFilter{NameLike: "%__SURE!"}, ""},
		{"and are found", site.DeviceFilter{NameLike: "100%_s*!"}, "2"},
		{"domain on label boundary", site.DeviceFilter{Domain: ".Corp.example.COM."}, "0 3 4 5"},
		{"a domain above", site.DeviceFilter{Domain: "example.com"}, "0 1 2 3 4 5"},
		{"realm, whole", site.DeviceFilter{Realm: "corp.example.com"}, "0 1 2 4 5"},
		{"method", site.DeviceFilter{Method: proof.Kerberos}, "4"},
		{"held", site.DeviceFilter{Held: &yes}, "4"},
		{"not held", site.DeviceFilter{Held: &no}, "0 1 2 3 5"},
		{"obsolete", site.DeviceFilter{Obsolete: &yes}, "5"},
		{"not obsolete", site.DeviceFilter{Obsolete: &no}, "0 1 2 3 4"},
		{"in quarantine", site.DeviceFilter{Quarantined: &yes}, "3"},
		{"not in quarantine", site.DeviceFilter{Quarantined: &no}, "0 1 2 4 5"},
		{"registered since", site.DeviceFilter{Since: start.Add(4 * time.Second)}, "4 5"},
		{"registered before", site.DeviceFilter{Before: start.Add(2 * time.Second)}, "0 1"},
		{"seen before", site.DeviceFilter{SeenBefore: start.Add(time.Second)}, "0"},
		{"several", site.DeviceFilter{Domain: "corp.example.com", NameLike: "wk*", Obsolete: &no, After: clientID(0), Limit: 1}, "3"},
	} {
		found := read(t, s, func(tx site.Tx) ([]site.Device, error) { return tx.Devices(test.filter) })
		same(t, test.name, list(found, func(d site.Device) string { return string(d.ClientID[len(d.ClientID)-1:]) }), test.want)
	}
}

func replacedKeys(t *testing.T, s site.Store) {
	former := func(n int) func(site.Tx) (ccm.ClientID, error) {
		return func(tx site.Tx) (ccm.ClientID, error) { return tx.FormerKey(key(n)) }
	}
	missing(t, s, "a former key where there is none", former(1))
	obsolete := device(2)
	obsolete.Obsolete.By, obsolete.Obsolete.At = clientID(3), start.Add(time.Hour)
	put(t, s, obsolete, device(3))
	update(t, s, func(tx site.Tx) error { return tx.PutFormerKey(key(1), clientID(3), start) })
	update(t, s, func(tx site.Tx) error { return tx.PutFormerKey(key(1), clientID(9), start) }) // the first stays
	same(t, "former key", read(t, s, former(1)), clientID(3))
	missing(t, s, "the key of a device", former(3))
	replaced := func(tx site.Tx) (map[proof.KeyThumbprint]site.Replaced, error) { return tx.ReplacedKeys() }
	same(t, "replaced keys", read(t, s, replaced), map[proof.KeyThumbprint]site.Replaced{key(1): {By: clientID(3), At: start}, key(2): {By: clientID(3), At: start.Add(time.Hour)}})

	boom := errors.New("boom")
	refused(t, s, "a change that fails", boom, func(tx site.Tx) error {
		if err := tx.PutFormerKey(key(7), clientID(7), start); err != nil {
			return err
		}
		return boom
	})
	missing(t, s, "the key of a change that failed", former(7))
	update(t, s, func(tx site.Tx) error { return tx.PutPolicy(policy("{A}", "1.00", false, obsolete.ClientID)) })
	update(t, s, func(tx site.Tx) error { return tx.DeleteDevice(obsolete.ClientID) })
	update(t, s, func(tx site.Tx) error { return tx.DeleteDevice(obsolete.ClientID) })
	missing(t, s, "a deleted device", func(tx site.Tx) (site.Device, error) { return tx.Device(obsolete.ClientID) })
	same(t, "policies for a deleted device", len(read(t, s, func(tx site.Tx) ([]site.Policy, error) { return tx.PoliciesFor(obsolete.ClientID) })), 0)
	same(t, "replaced keys after deleting", read(t, s, replaced), map[proof.KeyThumbprint]site.Replaced{key(1): {By: clientID(3), At: start}})
	update(t, s, func(tx site.Tx) error { // the key is free in the same change
		if err := tx.DeleteDevice(clientID(3)); err != nil {
			return err
		}
		d := device(4)
		d.Key = key(3)
		return tx.PutDevice(d)
	})
}

func conflict(n int) site.Conflict {
	at := start.Add(time.Duration(n) * time.Second)
	return site.Conflict{
		ID: fmt.Sprintf("conflict-%d", n), Kind: site.ConflictHardware, Newcomer: clientID(n), Existing: clientID(0), Hardware: fmt.Sprint("2:", n), Hint: n%2 == 0,
		Evidence: map[string]string{"same": "hardware id"}, State: site.ConflictWaiting, Rule: "a rule", By: "anna", Why: "because", Created: at, Decided: at.Add(time.Microsecond),
	}
}

func conflicts(t *testing.T, s site.Store) {
	var all []site.Conflict
	for n := 1; n <= 5; n++ {
		c := conflict(n)
		all = append(all, c)
	}
	all[1].State, all[2].Kind, all[3].Evidence = site.ConflictNew, site.ConflictKey, nil
	all[4].Newcomer, all[4].Existing, all[4].Decided = clientID(1), clientID(2), time.Time{}
	update(t, s, func(tx site.Tx) error {
		for _, c := range all {
			if err := tx.PutConflict(c); err != nil {
				return err
			}
		}
		return nil
	})
	for _, want := range all {
		same(t, "conflict", read(t, s, func(tx site.Tx) (site.Conflict, error) { return tx.Conflict(want.ID) }), want)
	}
	missing(t, s, "unknown conflict", func(tx site.Tx) (site.Conflict, error) { return tx.Conflict("conflict-9") })
	for _, test := range []struct {
		name   string
		filter site.ConflictFilter
		want   string
	}{
		{"all, the newest first", site.ConflictFilter{}, "5 4 3 2 1"},
		{"limited", site.ConflictFilter{Limit: 2}, "5 4"},
		{"continued", site.ConflictFilter{After: "conflict-4", Limit: 2}, "3 2"},
		{"continued after one that is not there", site.ConflictFilter{After: "conflict-9"}, ""},
		{"of a kind", site.ConflictFilter{Kind: site.ConflictKey}, "3"},
		{"in a state", site.ConflictFilter{State: site.ConflictWaiting}, "5 4 3 1"},
		{"of a device", site.ConflictFilter{Device: clientID(1)}, "5 1"},
		{"of the other device", site.ConflictFilter{Device: clientID(2), State: site.ConflictWaiting}, "5"},
	} {
		found := read(t, s, func(tx site.Tx) ([]site.Conflict, error) { return tx.Conflicts(test.filter) })
		same(t, test.name, list(found, func(c site.Conflict) string { return strings.TrimPrefix(c.ID, "conflict-") }), test.want)
	}
	last := func(kind site.ConflictKind, a, b int) func(site.Tx) (site.Conflict, error) {
		return func(tx site.Tx) (site.Conflict, error) { return tx.LastConflict(kind, clientID(a), clientID(b)) }
	}
	again := conflict(6)
	again.Newcomer = clientID(1)
	update(t, s, func(tx site.Tx) error { return tx.PutConflict(again) })
	same(t, "the newest of a pair", read(t, s, last(site.ConflictHardware, 1, 0)), again)
	missing(t, s, "the pair the other way", last(site.ConflictHardware, 0, 1))
	missing(t, s, "another kind", last(site.ConflictClientID, 1, 0))
	again.State, again.By, again.Why = site.ConflictMerged, "bert", "seen"
	update(t, s, func(tx site.Tx) error { return tx.PutConflict(again) })
	same(t, "decided", read(t, s, func(tx site.Tx) (site.Conflict, error) { return tx.Conflict(again.ID) }), again)
}

func notedUses(t *testing.T, s site.Store) {
	later, ago := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	note := func(id string, until time.Time) error {
		return s.Update(t.Context(), func(tx site.Tx) error { return tx.NoteUse(id, until) })
	}
	fresh := func(id string, until time.Time) bool {
		t.Helper()
		fresh, err := s.Remember(t.Context(), id, until)
		if err != nil {
			t.Fatal(err)
		}
		return fresh
	}
	for _, test := range []struct {
		name, id string
		until    time.Time
		want     error
	}{
		{"first", "a", later, nil}, {"again", "a", later, site.ErrExists}, {"again with another time", "a", ago, site.ErrExists}, {"another", "b", later, nil},
		{"over at once", "c", ago, nil}, {"after it was over", "c", later, nil}, {"and again", "c", later, site.ErrExists},
	} {
		if err := note(test.id, test.until); !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
	if fresh("a", later) {
		t.Error("what a change noted is fresh to remember")
	}
	if !fresh("r", later) || !errors.Is(note("r", later), site.ErrExists) {
		t.Error("what was remembered can be noted by a change")
	}

	boom := errors.New("boom")
	refused(t, s, "a change that fails", boom, func(tx site.Tx) error {
		if err := tx.NoteUse("undone", later); err != nil {
			return err
		}
		return boom
	})
	if err := note("undone", later); err != nil {
		t.Errorf("after a change that was undone: %v", err)
	}
	refused(t, s, "twice in one change", site.ErrExists, func(tx site.Tx) error {
		if err := tx.NoteUse("twice", later); err != nil {
			return err
		}
		return tx.NoteUse("twice", later)
	})
	if err := s.View(t.Context(), func(tx site.Tx) error { return tx.NoteUse("view", later) }); err == nil || errors.Is(err, site.ErrExists) {
		t.Errorf("in a view: %v", err)
	}

	// A contested id, in groups with changes that fail, which run again.
	var served atomic.Int32
	errs := together(t.Context(), s, 60, func(i int, tx site.Tx) error {
		if i%7 == 3 {
			if err := tx.NoteUse(fmt.Sprint("own ", i), later); err != nil {
				return err
			}
			return boom
		}
		if err := tx.NoteUse("contested", later); err != nil {
			return err
		}
		return tx.PutSetting("winner", fmt.Sprint(i))
	})
	for i, err := range errs {
		switch {
		case err == nil:
			served.Add(1)
		case i%7 == 3 && errors.Is(err, boom):
			if err := note(fmt.Sprint("own ", i), later); err != nil {
				t.Errorf("note of change %d, which failed: %v", i, err)
			}
		case !errors.Is(err, site.ErrExists):
			t.Errorf("change %d: %v", i, err)
		}
	}
	same(t, "changes for which one id was new", served.Load(), 1)
}
