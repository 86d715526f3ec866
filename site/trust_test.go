package site_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/proof"
	"postern/site"
	"postern/token"
)

func trustStories() []story {
	return []story{
		{"R10 every act that changes trust leaves exactly one entry", oneEntryEach},
		{"R10 the trust log cannot be changed by a statement", appendOnly},
		{"R10 an edited entry is found", tampering("update trust_log set detail = '{}' where sequence = 4", 4)},
		{"R10 an edited actor is found", tampering("update trust_log set actor = 'bob' where sequence = 2", 2)},
		{"R10 an edited time is found", tampering("update trust_log set entered_at = entered_at + 1 where sequence = 3", 3)},
		{"R10 an entry taken out is found", tampering("delete from trust_log where sequence = 3", 3)},
		{"R10 a missing first entry is found", tampering("delete from trust_log where sequence = 1", 1)},
		{"R10 an emptied log is found", tampering("delete from trust_log", 0)},
		{"R10 entries in another order are found", tampering("update trust_log set sequence = -sequence where sequence in (3, 4); update trust_log set sequence = sequence + 7 where sequence < 0", 3)},
		{"R10 an edited entry with a fitting hash is found by the next", rehashed},
		{"why a person did something is in its entry", whys},
		{"events are written in batches", eventsBatched},
		{"a flood of events is bounded", eventsBounded},
		{"last-seen times are written in batches and bounded", seenBatched},
		{"old events are dropped", eventsExpire},
	}
}

func oneEntryEach(t *testing.T, w *world) {
	ctx := t.Context()
	a, key := device(1), newECKey()
	bulk := w.bulk(t, 0)
	var id = exchange(t, w, bulk, 1).Claims.Client
	var code string
	steps := []struct {
		want, actor string
		act         func() error
	}{
		{"token.new", "anna", func() error { _, _, err := w.NewBulkToken(ctx, site.NewBulk{By: "anna"}); return err }},
		{"token.use", "site", func() error { exchange(t, w, bulk, 2); return nil }},
		{"device.register", "site", func() error { w.registered(t, signed(), a.request()); return nil }},
		{"device.update", "site", func() error { w.registered(t, with(bulk, a.thumbprint), a.request()); return nil }},
		{"device.approve", "anna", func() error { _, err := w.Approve(ctx, id, proof.LevelSecrets, "anna", "server"); return err }},
		{"device.reject", "anna", func() error { _, err := w.Reject(ctx, id, "anna", "seen"); return err }},
		{"device.block", "anna", func() error { _, err := w.Block(ctx, id, "anna", "seen"); return err }},
		{"device.unblock", "anna", func() error { _, err := w.Unblock(ctx, id, "anna", "seen"); return err }},
		{"token.block", "anna", func() error { _, err := w.BlockBulkToken(ctx, bulk.ID, true, "anna", "try it"); return err }},
		{"token.unblock", "anna", func() error { _, err := w.BlockBulkToken(ctx, bulk.ID, false, "anna", "try it"); return err }},
		{"policy.add", "anna", func() error { w.add(t, site.NewPolicy{ID: "P1", All: true}); return nil }},
		{"policy.remove", "anna", func() error { return w.RemovePolicy(ctx, "P1", "anna") }},
		{"setting.set", "anna", func() error { return w.Set(ctx, "approval.mode", "manual", "anna") }},
		{"key.rotate", "anna", func() error { _, err := w.RotateKey(ctx, token.KindCCM, "anna"); return err }},
		{"gateway.add", "anna", func() error { w.addGateway(t, "https://gw.example.com", token.Pin(key.Public())); return nil }},
		{"certificate.issue", "site", func() error {
			_, err := w.Acknowledge(ctx, w.ack(key, func(a *token.Ack) { a.CSR = requestFor(key) }))
			return err
		}},
		{"gateway.remove", "anna", func() error { return w.RemoveGateway(ctx, "gw.example.com", "anna", "try it") }},
		{"connector.invite", "anna", func() error { code = w.invite(t, "hq-1"); return nil }},
		{"connector.join", "site", func() error { _, _, err := w.Join(ctx, code, requestFor(newECKey())); return err }},
		{"connector.block", "anna", func() error { return w.BlockConnector(ctx, "hq-1", true, "anna", "try it") }},
		{"connector.unblock", "anna", func() error { return w.BlockConnector(ctx, "hq-1", false, "anna", "try it") }},
		{"site.restore", "anna", func() error { return w.Restored(ctx, "anna") }},
		{"management-point.enlist", "site", func() error { _, err := w.Enlist(ctx, site.ManagementPoint{FQDN: "mp1.example.com"}); return err }},
	}
	for _, step := range steps {
		entries := w.during(t, func() {
			if err := step.act(); err != nil {
				t.Errorf("%s: %v", step.want, err)
			}
		})
		if actions(entries) != step.want || entries[0].Actor != step.actor || !json.Valid([]byte(entries[0].Detail)) || !entries[0].At.Equal(truncated(begin)) {
			t.Errorf("want one %s by %s, got %+v", step.want, step.actor, entries)
		}
	}
	all := w.entries(t)
	if n, err := w.VerifyTrustLog(ctx); err != nil || n != uint64(len(all)) {
		t.Errorf("%d of %d entries verified, %v", n, len(all), err)
	}
	if all[0].Action != "site.init" || all[0].Previous != "" || all[1].Previous != all[0].Hash {
		t.Errorf("the chain begins with %+v", all[0])
	}
	page, err := w.TrustLog(ctx, 3, 2)
	if err != nil || len(page) != 2 || page[0].Sequence != 4 {
		t.Errorf("a page: %+v, %v", page, err)
	}
}

// fill leaves some entries.
func fill(t *testing.T, w *world) {
	for n := range 5 {
		w.registered(t, signed(), device(n).request())
	}
	if n, err := w.VerifyTrustLog(t.Context()); err != nil || n != 6 {
		t.Fatalf("%d entries, %v", n, err)
	}
}

func appendOnly(t *testing.T, w *world) {
	fill(t, w)
	for _, statement := range []string{"update trust_log set actor = 'bob'", "delete from trust_log", "delete from trust_log where sequence = 6"} {
		if err := w.executeOne(t, statement); err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: got %v", statement, err)
		}
	}
	if n, err := w.VerifyTrustLog(t.Context()); err != nil || n != 6 {
		t.Errorf("%d entries, %v", n, err)
	}
}

// unlock takes the triggers away that keep the trust log append-only.
func (w *world) unlock(t *testing.T) {
	t.Helper()
	if w.onPostgreSQL() {
		w.execute(t, "alter table trust_log disable trigger all")
		return
	}
	w.execute(t, "drop trigger trust_log_no_update", "drop trigger trust_log_no_delete")
}

// tampering changes the log behind the site's back; the error must name the first wrong entry, 0 for an empty log.
func tampering(statements string, first uint64) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		fill(t, w)
		w.unlock(t)
		w.execute(t, strings.Split(statements, "; ")...)
		n, err := w.VerifyTrustLog(t.Context())
		refused(t, statements, err, catalog.TrustLogBroken)
		if first > 0 && (err == nil || !strings.Contains(err.Error(), fmt.Sprintf("entry %d ", first)) || n >= first) {
			t.Errorf("%d entries are said to be good: %v, want entry %d named", n, err, first)
		}
	}
}

func rehashed(t *testing.T, w *world) {
	fill(t, w)
	forged := w.entries(t)[2]
	forged.Actor = "bob"
	w.unlock(t)
	w.execute(t, "update trust_log set actor = 'bob', hash = '"+forged.Sum()+"' where sequence = 3")
	n, err := w.VerifyTrustLog(t.Context())
	refused(t, "the entry after it", err, catalog.TrustLogBroken)
	if n != 3 {
		t.Errorf("%d entries are said to be good, want 3", n)
	}
}

func whys(t *testing.T, w *world) {
	id := w.registered(t, signed(), device(1).request()).Device.ClientID
	entries := w.during(t, func() {
		_, approveErr := w.Approve(t.Context(), id, proof.LevelManaged, "anna", "asset 17")
		_, blockErr := w.Block(t.Context(), id, "bob", "stolen")
		_, unblockErr := w.Unblock(t.Context(), id, "anna", "found")
		if approveErr != nil || blockErr != nil || unblockErr != nil {
			t.Fatal(approveErr, blockErr, unblockErr)
		}
	})
	for i, want := range []string{"asset 17", "stolen", "found"} {
		var detail map[string]string
		if err := json.Unmarshal([]byte(entries[i].Detail), &detail); err != nil || detail["why"] != want {
			t.Errorf("%s: why is %q, want %q", entries[i].Action, detail["why"], want)
		}
	}
	d, err := w.Device(t.Context(), id)
	if err != nil || d.Approval.Why != "asset 17" || d.Approval.By != "anna" || d.Block.Why != "found" || d.Blocked() {
		t.Errorf("got %+v %+v, %v", d.Approval, d.Block, err)
	}
}

// stored counts the events that lie in the store.
func (w *world) stored(t *testing.T) int {
	t.Helper()
	var events []site.Event
	err := w.store.View(t.Context(), func(tx site.Tx) (err error) {
		events, err = tx.Events(site.EventFilter{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return len(events)
}

func eventsBatched(t *testing.T, w *world) {
	w.Flush(t.Context())
	ctx, stop := context.WithCancel(t.Context())
	commits := w.store.Changes(ctx)
	for n := range 500 {
		w.Note(site.Event{Kind: "test", Subject: fmt.Sprint(n), Code: string(catalog.TokenExpired)})
	}
	if n := w.stored(t); n != 0 {
		t.Errorf("%d events were written at once", n)
	}
	w.Flush(ctx)
	w.Flush(ctx) // nothing waits: nothing is written
	if n := w.stored(t); n != 500 {
		t.Errorf("%d events after the flush", n)
	}
	<-commits
	select {
	case <-commits:
		if !w.onPostgreSQL() { // there, a node also hears that it began to listen
			t.Error("more than one commit")
		}
	default:
	}
	stop()
	got, err := w.Events(t.Context(), site.EventFilter{Limit: 1})
	if err != nil || len(got) != 1 || got[0].Subject != "499" || !got[0].At.Equal(truncated(begin)) {
		t.Errorf("the newest is %+v, %v", got, err)
	}
}

func eventsBounded(t *testing.T, w *world) {
	for range 10_000 {
		w.Note(site.Event{Kind: "flood"})
	}
	w.Flush(t.Context())
	if n := w.stored(t); n != 4096 {
		t.Errorf("%d events of 10000 were kept, want 4096", n)
	}
	w.Note(site.Event{Kind: "after"})
	if got, err := w.Events(t.Context(), site.EventFilter{Limit: 1}); err != nil || got[0].Kind != "after" {
		t.Errorf("after the flood: %+v, %v", got, err)
	}
}

func seenBatched(t *testing.T, w *world) {
	id := w.registered(t, signed(), device(1).request()).Device.ClientID
	w.Flush(t.Context())
	for n := range 10_000 {
		w.Seen(clientID(n)) // nobody has these
	}
	w.Flush(t.Context())
	w.Seen(id)
	for n := range 10_000 {
		w.Seen(clientID(n))
	}
	w.clock.advance(time.Minute)
	w.Seen(id) // noted already, so a full memory does not matter
	w.Flush(t.Context())
	if d, err := w.Device(t.Context(), id); err != nil || !d.LastSeen.Equal(truncated(begin.Add(time.Minute))) {
		t.Errorf("last seen %s, %v", d.LastSeen, err)
	}
}

func eventsExpire(t *testing.T, w *world) {
	w.Note(site.Event{Kind: "old"})
	w.Flush(t.Context())
	w.clock.advance(31 * 24 * time.Hour)
	fresh := w.node(t) // its first flush cleans
	fresh.Note(site.Event{Kind: "new"})
	events, err := fresh.Events(t.Context(), site.EventFilter{})
	if err != nil || len(events) != 1 || events[0].Kind != "new" {
		t.Errorf("got %+v, %v", events, err)
	}
}
