package storetest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/ccm"
	"postern/proof"
	"postern/site"
)

func devicesComeBack(t *testing.T, s site.Store) {
	full := device(1)
	bare := site.Device{ClientID: clientID(2), Key: key(2)}
	empty := device(3)
	empty.Record.Certificate, empty.Record.EncKey, empty.Record.PublicKey = nil, nil, nil
	empty.Approval.Evidence = nil
	negative := device(4)
	negative.Approval.Status = -1
	for name, want := range map[string]site.Device{"every field": full, "zero values": bare, "nothing in lists": empty, "unknown approval": negative} {
		put(t, s, want)
		byID := read(t, s, func(tx site.Tx) (site.Device, error) { return tx.Device(want.ClientID) })
		same(t, name+" by client id", byID, want)
		byKey := read(t, s, func(tx site.Tx) (site.Device, error) { return tx.DeviceByKey(want.Key) })
		same(t, name+" by key", byKey, want)
	}
	missing(t, s, "unknown client id", func(tx site.Tx) (site.Device, error) { return tx.Device(clientID(99)) })
	missing(t, s, "unknown key", func(tx site.Tx) (site.Device, error) { return tx.DeviceByKey(key(99)) })
	missing(t, s, "empty key", func(tx site.Tx) (site.Device, error) { return tx.DeviceByKey("") })

	emptied := full
	emptied.Record.Certificate, emptied.Approval.Evidence = []byte{}, map[string]string{}
	put(t, s, emptied)
	got := read(t, s, func(tx site.Tx) (site.Device, error) { return tx.Device(full.ClientID) })
	if got.Record.Certificate != nil || got.Approval.Evidence != nil {
		t.Errorf("empty values come back as %#v and %#v, want nil", got.Record.Certificate, got.Approval.Evidence)
	}
}

func devicesAreUnique(t *testing.T, s site.Store) {
	put(t, s, device(1), device(2))
	again := device(1)
	again.Record.NetbiosName, again.Created = "RENAMED", start.Add(time.Hour)
	put(t, s, again)
	same(t, "replaced device", read(t, s, func(tx site.Tx) (site.Device, error) { return tx.Device(clientID(1)) }), again)

	thief := device(3)
	thief.Key = key(1)
	refused(t, s, "a new client id with another device's key", site.ErrExists, func(tx site.Tx) error { return tx.PutDevice(thief) })
	change := device(2)
	change.Key = key(1)
	refused(t, s, "a device that takes another one's key", site.ErrExists, func(tx site.Tx) error { return tx.PutDevice(change) })
	same(t, "owner of the key", read(t, s, func(tx site.Tx) (site.Device, error) { return tx.DeviceByKey(key(1)) }), again)

	rekeyed := device(2)
	rekeyed.Key = key(4)
	put(t, s, rekeyed)
	missing(t, s, "key given up", func(tx site.Tx) (site.Device, error) { return tx.DeviceByKey(key(2)) })
	taken := device(5)
	taken.Key = key(2)
	put(t, s, taken) // a key given up is free
}

func devicesAreListed(t *testing.T, s site.Store) {
	var devices []site.Device
	for n := range 6 {
		d := device(n)
		d.Created = start.Add(time.Duration(-n/2) * time.Hour) // two of each age, the youngest first
		d.Approval.Status = ccm.ApprovalStatus(n % 3)
		d.Approval.Level = proof.Level(n % 2)
		d.Block.Blocked = n == 4
		devices = append(devices, d)
	}
	devices[1].Record.NetbiosName = "ÄRGER-İ"
	devices[2].Record.FQDName = "wk0.example.COM"
	put(t, s, devices...)

	status, level, yes, no := ccm.ApprovalStatus(2), proof.Level(1), true, false
	for _, test := range []struct {
		name   string
		filter site.DeviceFilter
		want   string
	}{
		{"all, the oldest first, then by client id", site.DeviceFilter{}, "4 5 2 3 0 1"},
		{"limited", site.DeviceFilter{Limit: 2}, "4 5"},
		{"continued", site.DeviceFilter{After: clientID(5), Limit: 2}, "2 3"},
		{"continued within one age", site.DeviceFilter{After: clientID(2)}, "3 0 1"},
		{"continued after the last", site.DeviceFilter{After: clientID(1)}, ""},
		{"continued after one that is not there", site.DeviceFilter{After: clientID(77)}, ""},
		{"by NetBIOS name in another case", site.DeviceFilter{Name: "wK3"}, "3"},
		{"by FQDN in another case", site.DeviceFilter{Name: "WK0.example.com"}, "2 0"},
		{"by a name that is not ASCII", site.DeviceFilter{Name: "ärger-İ"}, "1"},
		{"by part of a name", site.DeviceFilter{Name: "WK"}, ""},
		{"by a pattern", site.DeviceFilter{Name: "WK%"}, ""},
		{"by approval status", site.DeviceFilter{Status: &status}, "5 2"},
		{"by level", site.DeviceFilter{Level: &level}, "5 3 1"},
		{"blocked", site.DeviceFilter{Blocked: &yes}, "4"},
		{"not blocked", site.DeviceFilter{Blocked: &no}, "5 2 3 0 1"},
		{"by several at once", site.DeviceFilter{Status: &status, Level: &level, Blocked: &no, Name: "wk5", Limit: 9}, "5"},
	} {
		t.Run(test.name, func(t *testing.T) {
			found := read(t, s, func(tx site.Tx) ([]site.Device, error) { return tx.Devices(test.filter) })
			got := list(found, func(d site.Device) string { return fmt.Sprint(d.ClientID[len(d.ClientID)-1:]) })
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func devicesBlocked(t *testing.T, s site.Store) {
	blocked, free, nameless := device(1), device(2), device(3)
	blocked.Block.Blocked, nameless.Block.Blocked = true, true
	nameless.Record.HardwareID1 = ""
	put(t, s, blocked, free, nameless)

	ask := func(hardware string) string {
		return numbers(read(t, s, func(tx site.Tx) ([]ccm.ClientID, error) { return tx.RefusedHardware(hardware, 0) }))
	}
	same(t, "blocked hardware", ask(blocked.Record.HardwareID1), "1")
	same(t, "hardware of a free device", ask(free.Record.HardwareID1), "")
	same(t, "no hardware id, although a blocked device has none", ask(""), "")
	keys := func(tx site.Tx) ([]proof.KeyThumbprint, error) { return tx.BlockedKeys() }
	same(t, "blocked keys", read(t, s, keys), []proof.KeyThumbprint{key(1), key(3)})

	blocked.Block = site.Block{}
	put(t, s, blocked)
	same(t, "hardware of an unblocked device", ask(blocked.Record.HardwareID1), "")
	same(t, "blocked keys after unblocking", read(t, s, keys), []proof.KeyThumbprint{key(3)})
}

func devicesTouched(t *testing.T, s site.Store) {
	d := device(1)
	put(t, s, d)
	later := d.LastSeen.Add(time.Minute)
	for _, seen := range []time.Time{later, later.Add(-time.Second), start.Add(-time.Hour)} {
		update(t, s, func(tx site.Tx) error { return tx.TouchDevice(d.ClientID, seen) })
	}
	d.LastSeen = later
	same(t, "touched device", read(t, s, func(tx site.Tx) (site.Device, error) { return tx.Device(d.ClientID) }), d)
	update(t, s, func(tx site.Tx) error { return tx.TouchDevice(clientID(9), later) })
	missing(t, s, "a device that was only touched", func(tx site.Tx) (site.Device, error) { return tx.Device(clientID(9)) })
}

func devicesRefused(t *testing.T, s site.Store) {
	hardware := func(id string, limit int) string {
		return numbers(read(t, s, func(tx site.Tx) ([]ccm.ClientID, error) { return tx.RefusedHardware(id, limit) }))
	}
	identity := func(id string, limit int) string {
		return numbers(read(t, s, func(tx site.Tx) ([]ccm.ClientID, error) { return tx.RefusedIdentity(id, limit) }))
	}
	devices := make([]site.Device, 8)
	for n := range devices {
		devices[n] = device(n)
	}
	long := strings.Repeat("x", 100)
	devices[1].Approval.By, devices[1].Approval.Level = "anna", proof.LevelKnown
	devices[2].Block.Blocked, devices[2].Record.HardwareID1, devices[2].Proved = true, "2:AA", "WK2$@"+long+"1"
	devices[3].Approval.By, devices[3].Approval.Level, devices[3].Record.HardwareID1, devices[3].Proved = "anna", proof.LevelNone, "2:AA", "WK2$@"+long+"2"
	devices[4].Approval.By = "anna"              // approved by a person
	devices[5].Approval.Level = proof.LevelKnown // by the site
	devices[6].Approval.By, devices[6].Approval.Level = "", proof.LevelKnown
	devices[7].Approval.By, devices[7].Approval.Level, devices[7].Obsolete.By = "anna", proof.LevelKnown, clientID(1)
	same(t, "an identity where there is no device", identity(devices[2].Proved, 0), "")
	put(t, s, devices...)
	same(t, "rejected hardware", hardware(devices[1].Record.HardwareID1, 0), "1")
	same(t, "rejected identity", identity(devices[1].Proved, 0), "1")
	same(t, "blocked before rejected", hardware("2:AA", 0), "2 3")
	same(t, "limited", hardware("2:AA", 1), "2")
	same(t, "blocked identity", identity(devices[2].Proved, 0), "2")
	same(t, "an identity that begins alike", identity(devices[3].Proved, 0), "3")
	same(t, "no identity", identity("", 0), "")
	same(t, "no hardware id", hardware("", 0), "")
	same(t, "an identity that nobody has", identity("WK2$@"+long, 0), "")
	for n := 4; n < 8; n++ {
		same(t, fmt.Sprint("hardware of device ", n), hardware(devices[n].Record.HardwareID1, 0), "")
		same(t, fmt.Sprint("identity of device ", n), identity(devices[n].Proved, 0), "")
	}
	both := devices[3]
	both.Block.Blocked, both.Proved = true, devices[2].Proved
	put(t, s, both)
	same(t, "each once, though blocked and rejected", hardware("2:AA", 0), "2 3")
	same(t, "all of an identity", identity(both.Proved, 0), "2 3")
	put(t, s, devices[3])
	update(t, s, func(tx site.Tx) error { // seen in the change that does it
		d := devices[5]
		d.Approval.By = "anna"
		if err := tx.PutDevice(d); err != nil {
			return err
		}
		if ids, err := tx.RefusedIdentity(d.Proved, 0); err != nil || !slices.Equal(ids, []ccm.ClientID{d.ClientID}) {
			return fmt.Errorf("in the change: %v, %w", ids, err)
		}
		return nil
	})
	devices[1].Approval.Level = proof.LevelManaged
	put(t, s, devices[1])
	same(t, "approved after all", identity(devices[1].Proved, 0), "")
}

// numbers are the last digits of client ids.
func numbers(ids []ccm.ClientID) string {
	return list(ids, func(id ccm.ClientID) string { return string(id[len(id)-1:]) })
}

func devicesByIdentity(t *testing.T, s site.Store) {
	long := "WK1$@" + strings.Repeat("X", 80)
	var devices []site.Device
	for n := range 7 {
		d := device(n)
		d.Proved, d.Approval.Level = long, proof.LevelKnown
		devices = append(devices, d)
	}
	devices[1].Approval.Level = proof.LevelManaged
	devices[2].Obsolete = site.Obsolete{By: clientID(1), At: start.Add(time.Hour), Why: "proved"}
	devices[3].Obsolete = site.Obsolete{By: clientID(1), At: start.Add(time.Hour), Why: "proved"}
	devices[4].Obsolete = site.Obsolete{By: clientID(5), At: start.Add(2 * time.Hour), Why: "proved"}
	devices[6].Proved = long + "1"
	put(t, s, devices...)
	nobody := device(8)
	nobody.Proved = ""
	put(t, s, nobody)
	ask := func(identity string, limit int) string {
		found := read(t, s, func(tx site.Tx) ([]site.Device, error) { return tx.DevicesByIdentity(identity, limit) })
		for _, d := range found {
			same(t, "a device by its identity", d, read(t, s, func(tx site.Tx) (site.Device, error) { return tx.Device(d.ClientID) }))
		}
		return list(found, func(d site.Device) string { return string(d.ClientID[len(d.ClientID)-1:]) })
	}
	same(t, "the highest level and the newest first, without obsolete ones", ask(long, 8), "1 5 0")
	same(t, "limited", ask(long, 2), "1 5")
	same(t, "an identity that begins alike", ask(long+"1", 8), "6")
	same(t, "another case", ask(strings.ToLower(long), 8), "")
	same(t, "no identity", ask("", 8), "")
	for _, test := range []struct {
		name, identity string
		since          time.Time
		want           int
	}{
		{"by two", long, start, 2}, {"just then", long, start.Add(time.Hour), 2}, {"later", long, start.Add(time.Hour + time.Microsecond), 1},
		{"none so late", long, start.Add(3 * time.Hour), 0}, {"another", long + "1", start, 0}, {"no identity", "", start, 0},
	} {
		same(t, "replaced "+test.name, read(t, s, func(tx site.Tx) (int, error) { return tx.IdentityReplaced(test.identity, test.since) }), test.want)
	}
}
