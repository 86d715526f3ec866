package store

import (
	"time"

	"postern/site"
)

const selectTrust = "select sequence, entered_at, actor, action, subject, detail, previous, hash from trust_log"

var (
	putSetting  = upsert("settings", 1, "name", "value")
	appendTrust = insertNew("trust_log", "sequence", "entered_at", "actor", "action", "subject", "detail", "previous", "hash")
	addEvent    = insert("events", "happened_at", "code", "kind", "subject", "address", "trace_id", "detail")
)

// Setting implements site.Journal.
func (t *tx) Setting(name string) (string, error) {
	return one(t, "select value from settings where name = $1", value[string], name)
}

// PutSetting implements site.Journal.
func (t *tx) PutSetting(name, value string) error {
	_, err := t.exec(putSetting, name, value)
	return err
}

// Epoch implements site.Journal.
func (t *tx) Epoch() (uint64, error) {
	n, err := one(t, "select epoch from site_state", value[int64])
	return uint64(n), err
}

// NextEpoch implements site.Journal.
func (t *tx) NextEpoch(least uint64) (uint64, error) {
	var n int64
	err := t.returning("update site_state set epoch = case when epoch + 1 > $1 then epoch + 1 else $1 end returning epoch", []any{int64(least)}, func(r row) error { return r.Scan(&n) })
	return uint64(n), err
}

func scanTrust(r row, e *site.TrustEntry) error {
	var sequence int64
	err := r.Scan(&sequence, instant{&e.At}, &e.Actor, &e.Action, &e.Subject, &e.Detail, &e.Previous, &e.Hash)
	e.Sequence = uint64(sequence)
	return err
}

// TrustHead implements site.Journal. Inside Update the transaction holds the write lock, so the answer holds until the commit, and it is
// kept for the next transaction when nobody else wrote in between.
func (t *tx) TrustHead() (site.TrustEntry, error) {
	if t.lore.headKnown {
		return t.lore.head, t.failed
	}
	e, err := one(t, selectTrust+" order by sequence desc limit 1", scanTrust)
	if err != nil && err != site.ErrNotFound {
		return site.TrustEntry{}, err
	}
	t.lore.setHead(e)
	return e, nil
}

// AppendTrust implements site.Journal. The entry takes the site's time at microseconds, the precision of the column.
func (t *tx) AppendTrust(e site.TrustEntry) error {
	n, err := t.exec(appendTrust, int64(e.Sequence), micros(e.At), e.Actor, e.Action, e.Subject, e.Detail, e.Previous, e.Hash)
	if err := existsUnless(n, err); err != nil {
		return err
	}
	if t.lore.headKnown && e.Sequence > t.lore.head.Sequence {
		e.At = time.UnixMicro(micros(e.At)).UTC()
		t.lore.setHead(e)
	}
	return nil
}

// TrustEntries implements site.Journal.
func (t *tx) TrustEntries(after uint64, limit int) ([]site.TrustEntry, error) {
	return many(t, selectTrust+" where sequence > $1 order by sequence limit $2", scanTrust, int64(after), limitOf(limit))
}

// AddEvents implements site.Journal. The store chooses the ids.
func (t *tx) AddEvents(events []site.Event) error {
	for _, e := range events {
		if _, err := t.exec(addEvent, micros(e.At), e.Code, e.Kind, e.Subject, e.Address, e.TraceID, e.Detail); err != nil {
			return err
		}
	}
	return nil
}

// Events implements site.Journal.
func (t *tx) Events(f site.EventFilter) ([]site.Event, error) {
	var w where
	if f.Subject != "" {
		w.and("subject = ?", f.Subject)
	}
	if f.Code != "" {
		w.and("code = ?", f.Code)
	}
	if !f.After.IsZero() {
		w.and("happened_at > ?", micros(f.After))
	}
	tail := w.ordered("happened_at desc, id desc", f.Limit)
	return many(t, "select id, happened_at, code, kind, subject, address, trace_id, detail from events"+tail, func(r row, e *site.Event) error {
		return r.Scan(&e.ID, instant{&e.At}, &e.Code, &e.Kind, &e.Subject, &e.Address, &e.TraceID, &e.Detail)
	}, w.args...)
}

// DeleteEventsBefore implements site.Journal.
func (t *tx) DeleteEventsBefore(before time.Time, keep int) (int, error) {
	old, err := t.exec("delete from events where happened_at < $1", micros(before))
	if err != nil {
		return int(old), err
	}
	const beyond = "delete from events where (happened_at, id) <= (select happened_at, id from events order by happened_at desc, id desc limit 1 offset $1)"
	more, err := t.exec(beyond, int64(max(keep, 0)))
	return int(old + more), err
}
