package store

import (
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/site"
)

const selectConflict = "select id, kind, newcomer, existing, hardware, hint, evidence, state, rule, actor, why, created, decided from conflicts"

var putConflict = upsert("conflicts", 1, "id", "kind", "newcomer", "existing", "hardware", "hint", "evidence", "state", "rule", "actor", "why", "created", "decided")

func scanConflict(r row, c *site.Conflict) error {
	return r.Scan(&c.ID, &c.Kind, &c.Newcomer, &c.Existing, &c.Hardware, &c.Hint, objectTo[map[string]string]{&c.Evidence}, &c.State, &c.Rule, &c.By, &c.Why,
		instant{&c.Created}, instant{&c.Decided})
}

// Conflict implements site.Conflicts.
func (t *tx) Conflict(id string) (site.Conflict, error) {
	return one(t, selectConflict+" where id = $1", scanConflict, id)
}

// LastConflict implements site.Conflicts.
func (t *tx) LastConflict(kind site.ConflictKind, newcomer, existing ccm.ClientID) (site.Conflict, error) {
	return one(t, selectConflict+" where newcomer = $1 and existing = $2 and kind = $3 order by created desc, id desc limit 1", scanConflict,
		string(newcomer), string(existing), string(kind))
}

// Conflicts implements site.Conflicts.
func (t *tx) Conflicts(f site.ConflictFilter) ([]site.Conflict, error) {
	var w where
	if f.Kind != "" {
		w.and("kind = ?", string(f.Kind))
	}
	if f.State != "" {
		w.and("state = ?", string(f.State))
	}
	if f.Device != "" {
		w.and("(newcomer = ? or existing = ?)", string(f.Device))
	}
	if f.After != "" {
		w.and("(created, id) < (select created, id from conflicts where id = ?)", f.After)
	}
	tail := w.ordered("created desc, id desc", f.Limit)
	return many(t, selectConflict+tail, scanConflict, w.args...)
}

// PutConflict implements site.Conflicts.
func (t *tx) PutConflict(c site.Conflict) error {
	evidence, err := object(c.Evidence, len(c.Evidence))
	if err != nil {
		return err
	}
	_, err = t.exec(putConflict, c.ID, string(c.Kind), string(c.Newcomer), string(c.Existing), c.Hardware, c.Hint, evidence, string(c.State), c.Rule, c.By, c.Why,
		micros(c.Created), micros(c.Decided))
	return err
}

// NoteUse implements site.Uses.
func (t *tx) NoteUse(id string, until time.Time) error {
	if t.readOnly {
		return errReadOnly
	}
	if t.failed != nil {
		return t.failed
	}
	fresh, err := t.session.note(fingerprintOf(id), until)
	t.wrote = t.wrote || fresh
	switch {
	case catalog.CodeOf(err) == catalog.ReplayMemoryFull:
		return err // the transaction is as it was
	case err != nil:
		t.failed = err
		return err
	case !fresh:
		return site.ErrExists
	}
	return nil
}
