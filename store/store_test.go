package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"postern/catalog"
	"postern/site"
	"postern/store"
	"postern/store/postgrestest"
)

// both runs the test on an SQLite file and on a PostgreSQL database.
func both(t *testing.T, test func(t *testing.T, address string)) {
	t.Run("SQLite", func(t *testing.T) { test(t, filepath.Join(t.TempDir(), "site.db")) })
	t.Run("PostgreSQL", func(t *testing.T) { test(t, postgrestest.Start(t)) })
}

func open(t testing.TB, address string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), address, store.Options{PollInterval: 5 * time.Millisecond, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// raw runs SQL on the database as an administrator's shell would.
func raw(t testing.TB, address, query string) error {
	t.Helper()
	if strings.HasPrefix(address, "postgres:") {
		conn, err := pgx.Connect(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		_, err = conn.Exec(t.Context(), query)
		return err
	}
	db, err := sql.Open("sqlite", address)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	_, err = db.ExecContext(t.Context(), query)
	return err
}

func hasCode(t testing.TB, what string, err error, want catalog.Code) {
	t.Helper()
	if got := catalog.CodeOf(err); got != want {
		t.Errorf("%s: got code %q (%v), want %q", what, got, err, want)
	}
}

// TestTwoStores has two stores on one database, as two processes or nodes have it.
func TestTwoStores(t *testing.T) {
	both(t, func(t *testing.T, address string) {
		a, b := open(t, address), open(t, address)
		told := b.Changes(t.Context())
		for deadline := time.After(10 * time.Second); len(told) == 0; { // PostgreSQL: until it listens
			select {
			case <-deadline:
				t.Fatal("no word of the other store's commits")
			case <-time.After(time.Millisecond):
			}
			register(t, a, 1)
		}

		var all sync.WaitGroup
		for _, s := range []site.Store{a, b} {
			all.Go(func() { register(t, s, 150) })
		}
		all.Wait()
		entries := checkChain(t, a)
		if entries < 301 || entries != checkChain(t, b) {
			t.Errorf("the stores see %d and %d entries, want more than 300", entries, checkChain(t, b))
		}
		exactlyOne(t, a, b)
	})
}

// exactlyOne lets both stores race for the last use of tokens.
func exactlyOne(t *testing.T, stores ...site.Store) {
	usedUp := errors.New("used up")
	for n := range 20 {
		token := site.BulkToken{ID: fmt.Sprint("token", n), MaxUses: 1}
		if err := stores[0].Update(t.Context(), func(tx site.Tx) error { return tx.PutBulkToken(token) }); err != nil {
			t.Fatal(err)
		}
		errs := make([]error, 6)
		var all sync.WaitGroup
		for i := range errs {
			d := newDevice()
			all.Go(func() {
				errs[i] = stores[i%2].Update(t.Context(), func(tx site.Tx) error {
					now, err := tx.BulkToken(token.ID)
					if err == nil && now.Uses >= now.MaxUses {
						err = usedUp
					}
					if err != nil {
						return err
					}
					return tx.UseToken(token.ID, site.TokenUse{Key: d.Key, ClientID: d.ClientID})
				})
			})
		}
		all.Wait()
		served := 0
		for _, err := range errs {
			if err == nil {
				served++
			} else if !errors.Is(err, usedUp) {
				t.Errorf("use: %v", err)
			}
		}
		if served != 1 {
			t.Errorf("a token for one device served %d", served)
		}
	}
}

func TestRememberIsShared(t *testing.T) {
	address := postgrestest.Start(t)
	a, b := open(t, address), open(t, address)
	until := time.Now().Add(time.Minute)
	for i, s := range []*store.Store{a, b} {
		fresh, err := s.Remember(t.Context(), "id", until)
		if err != nil || fresh != (i == 0) {
			t.Errorf("store %d: %v, %v", i, fresh, err)
		}
	}
}

func TestTrustLogIsAppendOnly(t *testing.T) {
	both(t, func(t *testing.T, address string) {
		s := open(t, address)
		register(t, s, 3)
		attacks := []string{"update trust_log set actor = 'x' where sequence = 2", "delete from trust_log where sequence = 2", "delete from trust_log"}
		if strings.HasPrefix(address, "postgres:") {
			attacks = append(attacks, "truncate trust_log")
		}
		for _, attack := range attacks {
			if err := raw(t, address, attack); err == nil || !strings.Contains(err.Error(), "append-only") {
				t.Errorf("%s: got %v, want a refusal", attack, err)
			}
		}
		if n := checkChain(t, s); n != 3 {
			t.Errorf("%d entries left of 3", n)
		}
	})
}

func TestNewerSchemaIsRefused(t *testing.T) {
	both(t, func(t *testing.T, address string) {
		s := open(t, address)
		version, err := s.SchemaVersion(t.Context())
		if err != nil || version < 1 {
			t.Fatalf("version %d, %v", version, err)
		}
		register(t, s, 1)
		s.Close()
		if err := raw(t, address, "insert into schema_version (version_id, is_applied) values (9999, true)"); err != nil {
			t.Fatal(err)
		}
		_, err = store.Open(t.Context(), address, store.Options{})
		hasCode(t, "open", err, catalog.StoreNewerSchema)
		if err := raw(t, address, "delete from schema_version where version_id = 9999"); err != nil {
			t.Fatal(err)
		}
		if n := checkChain(t, open(t, address)); n != 1 {
			t.Errorf("%d entries after going back, want 1", n)
		}
	})
}

// TestReadOnly: who only looks makes, migrates and writes nothing.
func TestReadOnly(t *testing.T) {
	both(t, func(t *testing.T, address string) {
		look := func() (*store.Store, error) {
			return store.Open(t.Context(), address, store.Options{ReadOnly: true})
		}
		if !strings.HasPrefix(address, "postgres:") {
			_, err := look()
			hasCode(t, "what is not there", err, catalog.StoreUnavailable)
			if _, err := os.Stat(address); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("looking made the file: %v", err)
			}
		}
		running := open(t, address)
		register(t, running, 1)
		version, err := running.SchemaVersion(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s, err := look()
		if err != nil {
			t.Fatal(err)
		}
		register(t, running, 1) // it goes on meanwhile
		if n := checkChain(t, s); n != 2 {
			t.Errorf("%d entries are seen, want 2", n)
		}
		err = s.Update(t.Context(), func(tx site.Tx) error { return tx.PutSetting("a", "b") })
		hasCode(t, "update", err, catalog.StoreReadOnly)
		_, err = s.Remember(t.Context(), "a", time.Now().Add(time.Hour))
		hasCode(t, "remember", err, catalog.StoreReadOnly)
		if seen, err := s.SchemaVersion(t.Context()); err != nil || seen != version {
			t.Errorf("version %d, %v; want %d", seen, err, version)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		running.Close()
		for _, test := range []struct {
			name, change, back string
			code               catalog.Code
		}{
			{"older", fmt.Sprint("update schema_version set version_id = -1 where version_id = ", version), fmt.Sprint("update schema_version set version_id = ", version, " where version_id = -1"), catalog.StoreOlderSchema},
			{"newer", "insert into schema_version (version_id, is_applied) values (9999, true)", "delete from schema_version where version_id = 9999", catalog.StoreNewerSchema},
		} {
			if err := raw(t, address, test.change); err != nil {
				t.Fatal(err)
			}
			_, err := look()
			hasCode(t, test.name, err, test.code)
			if err := raw(t, address, test.back); err != nil {
				t.Fatal(err)
			}
		}
		if copies, err := filepath.Glob(address + ".bak-*"); len(copies) != 0 {
			t.Errorf("looking made copies: %v, %v", copies, err)
		}
		if n := checkChain(t, open(t, address)); n != 2 {
			t.Errorf("%d entries afterwards, want 2", n)
		}
	})
}

func TestManyNodesOpenAtOnce(t *testing.T) {
	both(t, func(t *testing.T, address string) {
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				s, err := store.Open(t.Context(), address, store.Options{})
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				s.Close()
			})
		}
		all.Wait()
	})
}

func TestBackup(t *testing.T) {
	s := openSQLite(t, store.Options{})
	register(t, s, 20)
	path := filepath.Join(t.TempDir(), "copy 'of' site.db")
	if err := s.Backup(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	register(t, s, 5) // the copy is of that moment
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("the copy: %v, %v", info, err)
	}
	if n := checkChain(t, open(t, path)); n != 20 {
		t.Errorf("the copy has %d entries, want 20", n)
	}
	hasCode(t, "a copy over a file", s.Backup(t.Context(), path), catalog.BackupFailed)
	hasCode(t, "a copy into no folder", s.Backup(t.Context(), filepath.Join(path, "x")), catalog.BackupFailed)
	hasCode(t, "PostgreSQL", open(t, postgrestest.Start(t)).Backup(t.Context(), path+"2"), catalog.BackupPostgreSQL)
}

func TestFilesAreOwnerOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "site.db")
	register(t, open(t, path), 1)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(path + suffix)
		if err != nil || runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", suffix, info.Mode(), err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	text := filepath.Join(t.TempDir(), "notes.txt")
	if err := os.WriteFile(text, []byte(strings.Repeat("this is no database\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, address string
		want          catalog.Code
	}{
		{"no address", "", catalog.StoreAddress},
		{"another database", "mysql://root@localhost/site", catalog.StoreAddress},
		{"a broken PostgreSQL address", "postgres://localhost:notaport/site?sslmode=disable", catalog.StoreAddress},
		{"no PostgreSQL there", "postgres:///site?sslmode=disable&user=x&host=" + t.TempDir(), catalog.StoreUnavailable},
		{"a folder that is not there", filepath.Join(t.TempDir(), "no", "site.db"), catalog.StoreUnavailable},
		{"a folder", t.TempDir(), catalog.StoreUnavailable},
		{"a file that is no database", text, catalog.StoreDamaged},
	} {
		s, err := store.Open(t.Context(), test.address, store.Options{})
		if err == nil {
			s.Close()
		}
		hasCode(t, test.name, err, test.want)
	}
}

// TestPostgreSQLGoesAway stops the server under the store: everything says so, and works again when it is back.
func TestPostgreSQLGoesAway(t *testing.T) {
	server, err := postgrestest.New()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	address, err := server.Database()
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, address)
	register(t, s, 10)
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}

	var all sync.WaitGroup
	for range 20 {
		d := newDevice()
		all.Go(func() {
			err := s.Update(t.Context(), func(tx site.Tx) error { return registration(tx, d) })
			if !errors.Is(err, site.ErrUnavailable) {
				t.Errorf("update: %v", err)
			}
			hasCode(t, "update", err, catalog.StoreUnavailable)
		})
	}
	all.Wait()
	err = s.View(t.Context(), func(tx site.Tx) error { _, err := tx.Epoch(); return err })
	if !errors.Is(err, site.ErrUnavailable) {
		t.Errorf("view: %v", err)
	}
	if _, err := s.Remember(t.Context(), "id", time.Now().Add(time.Hour)); !errors.Is(err, site.ErrUnavailable) {
		t.Errorf("remember: %v", err)
	}

	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	register(t, s, 10)
	if n := checkChain(t, s); n != 20 {
		t.Errorf("%d trust entries, want 20", n)
	}
}

func TestReadOnlyPostgreSQL(t *testing.T) {
	address := postgrestest.Start(t)
	open(t, address).Close()
	s := open(t, address+"&default_transaction_read_only=on")
	err := s.Update(t.Context(), func(tx site.Tx) error { return tx.PutDevice(newDevice()) })
	if !errors.Is(err, site.ErrUnavailable) {
		t.Errorf("update: %v", err)
	}
	hasCode(t, "update", err, catalog.StoreReadOnly)
}

func TestMemoryIsBounded(t *testing.T) {
	now := time.Now()
	s := openSQLite(t, store.Options{Remembered: 3, Now: func() time.Time { return now }})
	for n := range 3 {
		if fresh, err := s.Remember(t.Context(), fmt.Sprint(n), now.Add(time.Duration(n+1)*time.Second)); !fresh || err != nil {
			t.Fatalf("id %d: %v, %v", n, fresh, err)
		}
	}
	_, err := s.Remember(t.Context(), "one more", now.Add(time.Hour))
	hasCode(t, "one more", err, catalog.ReplayMemoryFull)
	if fresh, err := s.Remember(t.Context(), "1", now.Add(time.Hour)); fresh || err != nil {
		t.Errorf("a known id in a full memory: %v, %v", fresh, err)
	}
	now = now.Add(1500 * time.Millisecond) // the first expires
	if fresh, err := s.Remember(t.Context(), "one more", now.Add(time.Hour)); !fresh || err != nil {
		t.Errorf("one more later: %v, %v", fresh, err)
	}
}

// TestGoexit ends the writer's goroutine from within a change, as t.FailNow in a change does: the store goes on.
func TestGoexit(t *testing.T) {
	s := openSQLite(t, store.Options{NoSync: true})
	err := s.Update(t.Context(), func(tx site.Tx) error {
		if err := tx.PutDevice(newDevice()); err != nil {
			return err
		}
		runtime.Goexit()
		return nil
	})
	if err == nil {
		t.Error("a change that ended the goroutine was acknowledged")
	}
	register(t, s, 1)
	if n := len(read(t, s, func(tx site.Tx) ([]site.Device, error) { return tx.Devices(site.DeviceFilter{}) })); n != 1 {
		t.Errorf("%d devices, want 1", n)
	}
}

func TestNothingIsLeftRunning(t *testing.T) {
	both(t, func(t *testing.T, address string) {
		before := goleak.IgnoreCurrent()
		s := open(t, address)
		s.Changes(t.Context())
		register(t, s, 10)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t, before)
	})
}
