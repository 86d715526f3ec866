package store

import (
	"bytes"
	"context"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"postern/ccm"
	"postern/site"
)

// pair opens two stores on one file, as two processes have it.
func pair(t *testing.T) (one, other *Store) {
	path := filepath.Join(t.TempDir(), "site.db")
	stores := make([]*Store, 2)
	for n := range stores {
		var err error
		if stores[n], err = openFile(t, path, migrations); err != nil {
			t.Fatal(err)
		}
	}
	return stores[0], stores[1]
}

func update(t *testing.T, s *Store, change func(site.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), change); err != nil {
		t.Fatal(err)
	}
}

// TestBlockAndReservationOfAnotherProcess changes what a writer remembers behind its back.
func TestBlockAndReservationOfAnotherProcess(t *testing.T) {
	one, other := pair(t)
	device := filled(1)
	device.Record.HardwareID1 = "hardware"
	blocked := func(s *Store) (ids []ccm.ClientID) {
		t.Helper()
		update(t, s, func(tx site.Tx) (err error) {
			ids, err = tx.RefusedHardware("hardware", 0)
			return err
		})
		return ids
	}
	update(t, one, func(tx site.Tx) error { return tx.PutDevice(device) })
	for n, block := range []bool{false, true, false, true} {
		device.Block.Blocked = block
		update(t, []*Store{one, other}[n/2], func(tx site.Tx) error {
			if _, err := tx.RefusedHardware("hardware", 0); err != nil { // which the writer then remembers
				return err
			}
			return tx.PutDevice(device)
		})
		for _, s := range []*Store{one, other} {
			if got := len(blocked(s)) > 0; got != block {
				t.Errorf("step %d: blocked %v, want %v", n, got, block)
			}
		}
	}

	reserved := func(tx site.Tx) error {
		_, err := tx.Reservation("new")
		return err
	}
	update(t, one, func(tx site.Tx) error {
		if _, err := tx.DeviceByKey("new"); err != site.ErrNotFound {
			t.Errorf("a key that nobody has: %v", err)
		}
		if err := reserved(tx); err != site.ErrNotFound {
			t.Errorf("before the reservation: %v", err)
		}
		if err := tx.PutReservation(site.Reservation{Key: "new", ClientID: "GUID:R"}); err != nil {
			return err
		}
		return reserved(tx)
	})
	update(t, other, func(tx site.Tx) error {
		if _, err := tx.DeviceByKey("new"); err != site.ErrNotFound {
			t.Errorf("a key with a reservation only: %v", err)
		}
		return reserved(tx)
	})
}

// TestOneCertificateIsStoredOnce has a device that signs and decrypts with one certificate, and then with two.
func TestOneCertificateIsStoredOnce(t *testing.T) {
	s, err := openFile(t, filepath.Join(t.TempDir(), "site.db"), migrations)
	if err != nil {
		t.Fatal(err)
	}
	device := filled(1)
	for name, key := range map[string][]byte{"the same": bytes.Clone(device.Record.Certificate), "another": []byte("another"), "none": nil} {
		device.Record.EncKey = key
		update(t, s, func(tx site.Tx) error { return tx.PutDevice(device) })
		var got site.Device
		var length int64
		err := s.View(t.Context(), func(v site.Tx) (err error) {
			if length, err = one(v.(*tx), "select length(enc_key) from devices", value[int64]); err == nil {
				got, err = v.Device(device.ClientID)
			}
			return err
		})
		if err != nil || !bytes.Equal(got.Record.EncKey, key) || name == "the same" && length != 0 {
			t.Errorf("%s: got %d bytes, of which %d are stored, %v; want %d", name, len(got.Record.EncKey), length, err, len(key))
		}
	}
}

// TestLateChangesJoinTheGroup lets changes arrive while another runs: they share its commit.
func TestLateChangesJoinTheGroup(t *testing.T) {
	s, err := openFile(t, filepath.Join(t.TempDir(), "site.db"), migrations)
	if err != nil {
		t.Fatal(err)
	}
	const late = 20
	put := func(n int) func(site.Tx) error { return func(tx site.Tx) error { return tx.PutDevice(filled(n)) } }
	done, begun := make(chan error, late+1), make(chan *tx, 1)
	go func() {
		done <- s.Update(context.Background(), func(v site.Tx) error {
			for n := range late {
				go func() {
					done <- s.Update(context.Background(), func(v site.Tx) error {
						if n == 0 {
							begun <- v.(*tx)
						}
						return put(n)(v)
					})
				}()
			}
			s.writer.waitFor(late)
			begun <- v.(*tx)
			return put(late)(v)
		})
	}()
	if first, second := <-begun, <-begun; first != second {
		t.Error("a change that waited before the commit got a transaction of its own")
	}
	for range late + 1 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// waitFor waits until so many changes are in the queue.
func (w *writer) waitFor(n int) {
	for {
		w.mu.Lock()
		waits := len(w.queue)
		w.mu.Unlock()
		if waits >= n {
			return
		}
		runtime.Gosched()
	}
}

func TestScan(t *testing.T) {
	type name string
	var (
		n     int8
		u     uint64
		yes   bool
		text  name
		bytes []byte
	)
	if err := (sqliteRow{int64(-5), int64(7), int64(1), "text", []byte("b")}).Scan(&n, &u, &yes, &text, bytesTo{&bytes}); err != nil || n != -5 || u != 7 || !yes || text != "text" || string(bytes) != "b" {
		t.Errorf("got %d, %d, %v, %q, %q, %v", n, u, yes, text, bytes, err)
	}
	for what, scan := range map[string]func() error{
		"too large a number": func() error { return sqliteRow{int64(300)}.Scan(&n) },
		"a negative number":  func() error { return sqliteRow{int64(-1)}.Scan(&u) },
		"text to a number":   func() error { return sqliteRow{"5"}.Scan(&n) },
		"a number to text":   func() error { return sqliteRow{int64(5)}.Scan(&text) },
		"null":               func() error { return sqliteRow{nil}.Scan(&text) },
		"too few columns":    func() error { return sqliteRow{int64(5)}.Scan(&n, &u) },
	} {
		if scan() == nil {
			t.Errorf("%s fits", what)
		}
	}
}

// TestTwinsAreFoundByIndex: neither these questions nor what many devices have proved may slow the one writer, and what every registration asks
// does not sort.
func TestTwinsAreFoundByIndex(t *testing.T) {
	s, err := openFile(t, filepath.Join(t.TempDir(), "site.db"), migrations)
	if err != nil {
		t.Fatal(err)
	}
	for query, args := range map[string][]any{
		sameHardware: {"a"}, byIdentity: {"a", "a", int64(8)}, identityReplaced: {"a", int64(1), "a"}, someRefused: {}, refusedHardware: {"a", "a", int64(8)}, refusedIdentity: {"a", "a", "a", "a", int64(8)},
	} {
		var plan []string
		err := s.View(t.Context(), func(v site.Tx) error {
			return v.(*tx).query("explain query plan "+query, args, func(r row) error {
				var id, parent, unused int64
				var detail string
				err := r.Scan(&id, &parent, &unused, &detail)
				plan = append(plan, detail)
				return err
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range plan {
			if strings.Contains(step, "devices") && !strings.Contains(step, "INDEX devices_") {
				t.Errorf("%s: %s", query, step)
			}
			if query == sameHardware && strings.Contains(step, "TEMP B-TREE") {
				t.Errorf("%s sorts: %s", query, step)
			}
		}
		if len(plan) == 0 {
			t.Errorf("%s: no plan", query)
		}
	}
}
