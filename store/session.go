package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"postern/proof"
	"postern/site"
)

// session is one connection to the database with at most one transaction open. Errors are translated already: those that mean that the
// database did not work wrap site.ErrUnavailable.
type session interface {
	// begin starts a writing transaction. fresh means that others may have written since the last one.
	begin() (fresh bool, err error)
	commit() error
	rollback()   // harmless without a transaction
	alive() bool // false when another try on this connection is pointless
	exec(query string, args ...any) (affected int64, err error)
	query(query string, args []any, each func(row) error) error
	// note remembers an id until the given time when the transaction commits, and reports whether it is new.
	note(id fingerprint, until time.Time) (fresh bool, err error)
}

// row scans the columns of one result.
type row interface{ Scan(dest ...any) error }

// lore is what is known of the database without asking it again, as long as nobody else writes.
type lore struct {
	head         site.TrustEntry // the newest trust entry
	headKnown    bool
	someRefused  bool // devices are blocked or rejected, or were
	refusedKnown bool
	someFormer   bool // devices had other keys before
	formerKnown  bool
}

func (l *lore) setHead(e site.TrustEntry) { l.head, l.headKnown = e, true }
func (l *lore) forget()                   { *l = lore{} }

// tx is a transaction: site.Tx over a session. Its methods are in the files of their topics.
type tx struct {
	session  session
	readOnly bool
	wrote    bool  // the running change has written
	keep     bool  // something is there to commit
	failed   error // a statement failed, so the transaction is lost
	lore     *lore
	// A key that no device has and that no client id is reserved for, looked up in this transaction and not written since.
	newKey proof.KeyThumbprint
}

var errReadOnly = errors.New("a view cannot write")

// exec runs a statement that writes.
func (t *tx) exec(query string, args ...any) (int64, error) {
	if t.readOnly {
		return 0, errReadOnly
	}
	if t.failed != nil {
		return 0, t.failed
	}
	n, err := t.session.exec(query, args...)
	t.wrote = t.wrote || n > 0
	if err != nil {
		t.failed = err
	}
	return n, err
}

// query runs a statement that returns rows.
func (t *tx) query(query string, args []any, each func(row) error) error {
	if t.failed != nil {
		return t.failed
	}
	err := t.session.query(query, args, each)
	if err != nil {
		t.failed = err
	}
	return err
}

// returning runs a statement that writes and returns one row.
func (t *tx) returning(query string, args []any, each func(row) error) error {
	if t.readOnly {
		return errReadOnly
	}
	t.wrote = true
	return t.query(query, args, each)
}

// outcome is what the caller gets to hear when its change returned err: the failure of the database too, when there was one.
func (t *tx) outcome(err error) error {
	switch {
	case t.failed == nil, err != nil && errors.Is(err, t.failed):
		return err
	case err == nil:
		return t.failed
	}
	return fmt.Errorf("%w (%w)", err, t.failed)
}

// one runs a query for a single record, or returns site.ErrNotFound.
func one[T any](t *tx, query string, scan func(row, *T) error, args ...any) (T, error) {
	var v T
	found := false
	err := t.query(query, args, func(r row) error {
		found = true
		return scan(r, &v)
	})
	if err == nil && !found {
		err = site.ErrNotFound
	}
	return v, err
}

// many runs a query for a list.
func many[T any](t *tx, query string, scan func(row, *T) error, args ...any) ([]T, error) {
	var list []T
	err := t.query(query, args, func(r row) error {
		var v T
		if err := scan(r, &v); err != nil {
			return err
		}
		list = append(list, v)
		return nil
	})
	return list, err
}

// value scans a row of one column.
func value[T any](r row, v *T) error { return r.Scan(v) }

// Times are kept as microseconds since 1970 UTC, in both databases and also for the zero time, so that they come back as they went in and
// sort as they should.

// micros is the column value of t.
func micros(t time.Time) int64 { return t.UnixMicro() }

// instant scans a time.
type instant struct{ to *time.Time }

// Scan implements sql.Scanner.
func (i instant) Scan(src any) error {
	n, ok := src.(int64)
	if !ok {
		return fmt.Errorf("scan time: got %T", src)
	}
	*i.to = time.UnixMicro(n).UTC()
	return nil
}

// blob is the column value of b: columns are never null, and an empty value is read as nil.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// bytesTo scans a blob.
type bytesTo struct{ to *[]byte }

// Scan implements sql.Scanner.
func (b bytesTo) Scan(src any) error {
	v, ok := src.([]byte)
	if !ok && src != nil {
		return fmt.Errorf("scan bytes: got %T", src)
	}
	*b.to = append([]byte(nil), v...)
	return nil
}

// object is the column value of a list or map: JSON, empty text when there is nothing.
func object[T any](v T, length int) (string, error) {
	if length == 0 {
		return "", nil
	}
	text, err := json.Marshal(v)
	return string(text), err
}

// objectTo scans a list or map.
type objectTo[T any] struct{ to *T }

// Scan implements sql.Scanner.
func (o objectTo[T]) Scan(src any) error {
	text, ok := src.(string)
	if !ok {
		return fmt.Errorf("scan JSON: got %T", src)
	}
	if text == "" {
		return nil
	}
	return json.Unmarshal([]byte(text), o.to)
}

// limitOf is a row limit as SQL wants it; 0 means all.
func limitOf(n int) int64 {
	if n <= 0 {
		return 1 << 62
	}
	return int64(n)
}
