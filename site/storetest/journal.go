package storetest

import (
	"fmt"
	"testing"
	"time"

	"postern/site"
)

func settings(t *testing.T, s site.Store) {
	get := func(name string) func(site.Tx) (string, error) {
		return func(tx site.Tx) (string, error) { return tx.Setting(name) }
	}
	missing(t, s, "unknown setting", get("site-code"))
	for _, value := range []string{"LAB", "", "PS1"} {
		update(t, s, func(tx site.Tx) error { return tx.PutSetting("site-code", value) })
		same(t, "setting", read(t, s, get("site-code")), value)
	}
	missing(t, s, "a setting in another case", get("Site-Code"))
}

func epoch(t *testing.T, s site.Store) {
	now := func(tx site.Tx) (uint64, error) { return tx.Epoch() }
	before := read(t, s, now)
	for n := range uint64(3) {
		var got uint64
		update(t, s, func(tx site.Tx) (err error) {
			got, err = tx.NextEpoch(0)
			return err
		})
		same(t, "next epoch", got, before+n+1)
		same(t, "epoch", read(t, s, now), got)
	}
	boom := fmt.Errorf("boom")
	refused(t, s, "a change that fails", boom, func(tx site.Tx) error {
		if _, err := tx.NextEpoch(0); err != nil {
			return err
		}
		return boom
	})
	same(t, "epoch after a change that failed", read(t, s, now), before+3)
}

// appendTrust adds the next link of the chain.
func appendTrust(tx site.Tx, subject string) error {
	head, err := tx.TrustHead()
	if err != nil {
		return err
	}
	e := site.TrustEntry{Sequence: head.Sequence + 1, At: start.Add(time.Duration(head.Sequence) * time.Microsecond), Actor: "site", Action: "test.act", Subject: subject, Detail: `{"a":"b"}`, Previous: head.Hash}
	e.Hash = e.Sum()
	return tx.AppendTrust(e)
}

// chain reads the whole trust log and fails the test where it is broken.
func chain(t testing.TB, s site.Store) []site.TrustEntry {
	t.Helper()
	entries := read(t, s, func(tx site.Tx) ([]site.TrustEntry, error) { return tx.TrustEntries(0, 0) })
	var before site.TrustEntry
	for _, e := range entries {
		if e.Sequence != before.Sequence+1 || e.Previous != before.Hash || e.Hash != e.Sum() {
			t.Fatalf("the chain is broken at entry %d", e.Sequence)
		}
		before = e
	}
	return entries
}

func trustLog(t *testing.T, s site.Store) {
	head := func(tx site.Tx) (site.TrustEntry, error) { return tx.TrustHead() }
	same(t, "head of an empty log", read(t, s, head), site.TrustEntry{})
	for n := range 5 {
		update(t, s, func(tx site.Tx) error { return appendTrust(tx, fmt.Sprint(n)) })
	}
	update(t, s, func(tx site.Tx) error { // two links in one change
		if err := appendTrust(tx, "5"); err != nil {
			return err
		}
		return appendTrust(tx, "6")
	})
	entries := chain(t, s)
	same(t, "subjects", list(entries, func(e site.TrustEntry) string { return e.Subject }), "0 1 2 3 4 5 6")
	same(t, "head", read(t, s, head), entries[6])
	taken := entries[3]
	refused(t, s, "a sequence number that is taken", site.ErrExists, func(tx site.Tx) error { return tx.AppendTrust(taken) })
	page := read(t, s, func(tx site.Tx) ([]site.TrustEntry, error) { return tx.TrustEntries(2, 3) })
	same(t, "a page", page, entries[2:5])
	same(t, "after the end", read(t, s, func(tx site.Tx) ([]site.TrustEntry, error) { return tx.TrustEntries(7, 3) }), nil)

	boom := fmt.Errorf("boom")
	refused(t, s, "a change that fails", boom, func(tx site.Tx) error {
		if err := appendTrust(tx, "lost"); err != nil {
			return err
		}
		return boom
	})
	update(t, s, func(tx site.Tx) error { return appendTrust(tx, "7") })
	same(t, "length", len(chain(t, s)), 8)
}

func events(t *testing.T, s site.Store) {
	event := func(n int, subject, code string) site.Event {
		return site.Event{At: start.Add(time.Duration(n) * time.Second), Code: code, Kind: "registration", Subject: subject, Address: "192.0.2.1", TraceID: fmt.Sprint("trace", n), Detail: fmt.Sprint(n)}
	}
	update(t, s, func(tx site.Tx) error {
		return tx.AddEvents([]site.Event{event(1, "a", "P300"), event(3, "b", ""), event(2, "a", "P301"), event(3, "a", "P301")})
	})
	update(t, s, func(tx site.Tx) error { return tx.AddEvents(nil) })
	all := func(f site.EventFilter) []site.Event {
		return read(t, s, func(tx site.Tx) ([]site.Event, error) { return tx.Events(f) })
	}
	name := func(e site.Event) string { return e.Detail + e.Subject }
	for _, test := range []struct {
		name   string
		filter site.EventFilter
		want   string
	}{
		{"all, the newest first", site.EventFilter{}, "3a 3b 2a 1a"},
		{"of one subject", site.EventFilter{Subject: "a"}, "3a 2a 1a"},
		{"of one code", site.EventFilter{Code: "P301"}, "3a 2a"},
		{"after a time", site.EventFilter{After: start.Add(2 * time.Second)}, "3a 3b"},
		{"limited", site.EventFilter{Limit: 1}, "3a"},
		{"all at once", site.EventFilter{Subject: "a", Code: "P301", After: start, Limit: 5}, "3a 2a"},
	} {
		same(t, test.name, list(all(test.filter), name), test.want)
	}
	got := all(site.EventFilter{Code: "P300"})[0]
	if got.ID == 0 {
		t.Error("an event has no id")
	}
	got.ID = 0
	same(t, "an event", got, event(1, "a", "P300"))

	drop := func(before time.Time, keep int) (n int) {
		update(t, s, func(tx site.Tx) (err error) {
			n, err = tx.DeleteEventsBefore(before, keep)
			return err
		})
		return n
	}
	same(t, "dropped by age", drop(start.Add(2*time.Second), 10), 1)
	same(t, "dropped by number", drop(start, 2), 1)
	same(t, "left", list(all(site.EventFilter{}), name), "3a 3b")
	same(t, "dropped when nothing is due", drop(start, 2), 0)
}
