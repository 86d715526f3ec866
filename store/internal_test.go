package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
)

func openFile(t testing.TB, path string, files fs.FS) (*Store, error) {
	t.Helper()
	s, err := openSQLiteWith(t.Context(), path, Options{}.withDefaults(), files)
	if err == nil {
		t.Cleanup(func() { s.Close() })
	}
	return s, err
}

// later returns the migrations of a later version, whose last step is the given SQL.
func later(t testing.TB, step string) fs.FS {
	t.Helper()
	const folder = "migrations/sqlite"
	known, err := fs.ReadDir(migrations, folder)
	if err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{folder + "/99999_later.sql": {Data: []byte("-- +goose Up\n" + step)}}
	for _, entry := range known {
		text, err := fs.ReadFile(migrations, folder+"/"+entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		files[folder+"/"+entry.Name()] = &fstest.MapFile{Data: text}
	}
	return files
}

// present is the version of the schema that this binary makes.
func present(t testing.TB) int64 {
	t.Helper()
	known, err := fs.ReadDir(migrations, "migrations/sqlite")
	if err != nil {
		t.Fatal(err)
	}
	var version int64
	if _, err := fmt.Sscanf(known[len(known)-1].Name(), "%d_", &version); err != nil { // they are sorted by name
		t.Fatal(err)
	}
	return version
}

func setting(t testing.TB, s *Store, name string) string {
	t.Helper()
	var value string
	err := s.View(t.Context(), func(tx site.Tx) (err error) {
		value, err = tx.Setting(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestBackupBeforeMigration(t *testing.T) {
	path := filepath.Join(t.TempDir(), "site.db")
	s, err := openFile(t, path, migrations)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), func(tx site.Tx) error { return tx.PutSetting("a", "b") }); err != nil {
		t.Fatal(err)
	}
	s.Close()
	copies := func() []string {
		found, _ := filepath.Glob(path + ".bak-*")
		return found
	}
	if n := len(copies()); n != 0 {
		t.Fatalf("a new file has %d copies", n)
	}

	if _, err := openFile(t, path, later(t, "CREATE TABLE broken (;")); catalog.CodeOf(err) != catalog.StoreMigration {
		t.Fatalf("a step that does not work: %v", err)
	}
	for _, c := range copies() {
		os.Remove(c)
	}
	s, err = openFile(t, path, later(t, "UPDATE settings SET value = 'migrated';"))
	if err != nil {
		t.Fatal(err)
	}
	if got := setting(t, s, "a"); got != "migrated" {
		t.Errorf("after the migration: %q", got)
	}
	s.Close()
	if len(copies()) != 1 || !strings.HasPrefix(copies()[0], fmt.Sprintf("%s.bak-%d-", path, present(t))) {
		t.Fatalf("copies: %q", copies())
	}
	if _, err := openFile(t, path, migrations); catalog.CodeOf(err) != catalog.StoreNewerSchema {
		t.Errorf("the version before on the migrated file: %v", err)
	}
	s, err = openFile(t, copies()[0], migrations)
	if err != nil {
		t.Fatal(err)
	}
	if got := setting(t, s, "a"); got != "b" {
		t.Errorf("in the copy: %q", got)
	}
}

func TestNoMigrationWithoutBackup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "site.db")
	s, err := openFile(t, path, migrations)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	p, err := openSQLite(path, Options{}.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	migrator, err := newMigrator("sqlite3", p.writers, later(t, "UPDATE settings SET value = 'migrated';"), "sqlite")
	if err != nil {
		t.Fatal(err)
	}
	full := errors.New("disk full")
	if err := migrate(t.Context(), migrator, func(int64) error { return full }); !errors.Is(err, full) {
		t.Errorf("migrate: %v", err)
	}
	if version, err := migrator.GetDBVersion(t.Context()); version != present(t) || err != nil {
		t.Errorf("version %d, %v; want %d", version, err, present(t))
	}
}

// pragma runs SQL on the writer's connection, between transactions' statements.
func pragma(t testing.TB, s *Store, query string) {
	t.Helper()
	err := s.Update(t.Context(), func(v site.Tx) error {
		return v.(*tx).session.query(query, nil, func(row) error { return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
}

func filled(n int) site.Device {
	return site.Device{ClientID: ccm.ClientID(fmt.Sprint("GUID:", n)), Key: proof.KeyThumbprint(fmt.Sprint("key", n)), Record: site.Record{Certificate: make([]byte, 3000)}}
}

func TestDiskFull(t *testing.T) {
	s, err := openFile(t, filepath.Join(t.TempDir(), "site.db"), migrations)
	if err != nil {
		t.Fatal(err)
	}
	pragma(t, s, "pragma max_page_count = 80")
	kept := 0
	for ; err == nil && kept < 1000; kept++ {
		err = s.Update(t.Context(), func(tx site.Tx) error { return tx.PutDevice(filled(kept)) })
	}
	kept--
	if !errors.Is(err, site.ErrUnavailable) || catalog.CodeOf(err) != catalog.DiskFull {
		t.Fatalf("on a full disk: %v", err)
	}

	// Those that still fit are kept although they wait together with those that do not.
	const n = 40
	errs := make([]error, n)
	done := make(chan int)
	for i := range n {
		go func() {
			errs[i] = s.Update(context.Background(), func(tx site.Tx) error {
				if i%2 == 0 {
					return tx.PutDevice(filled(5000 + i))
				}
				return tx.PutSetting("same", "value")
			})
			done <- i
		}()
	}
	for range n {
		<-done
	}
	for i, err := range errs {
		if full := i%2 == 0; full != errors.Is(err, site.ErrUnavailable) || !full && err != nil {
			t.Errorf("change %d: %v", i, err)
		}
	}
	// A change that hides the failure is not acknowledged.
	if err := s.Update(t.Context(), func(tx site.Tx) error { _ = tx.PutDevice(filled(9000)); return nil }); !errors.Is(err, site.ErrUnavailable) {
		t.Errorf("a change that hides the failure: %v", err)
	}
	own := errors.New("own words")
	err = s.Update(t.Context(), func(tx site.Tx) error {
		if tx.PutDevice(filled(9001)) != nil {
			return own
		}
		return nil
	})
	if !errors.Is(err, own) || !errors.Is(err, site.ErrUnavailable) {
		t.Errorf("a change that puts the failure in its own words: %v", err)
	}

	pragma(t, s, "pragma max_page_count = 100000")
	for i := range 50 {
		if err := s.Update(t.Context(), func(tx site.Tx) error { return tx.PutDevice(filled(2000 + i)) }); err != nil {
			t.Fatalf("with space again: %v", err)
		}
	}
	var devices []site.Device
	err = s.View(t.Context(), func(tx site.Tx) (err error) {
		devices, err = tx.Devices(site.DeviceFilter{})
		return err
	})
	if err != nil || len(devices) != kept+50 {
		t.Errorf("%d devices, %v; want %d", len(devices), err, kept+50)
	}
}

func TestReadOnlyFile(t *testing.T) {
	s, err := openFile(t, filepath.Join(t.TempDir(), "site.db"), migrations)
	if err != nil {
		t.Fatal(err)
	}
	pragma(t, s, "pragma query_only = 1")
	err = s.Update(t.Context(), func(tx site.Tx) error { return tx.PutSetting("a", "b") })
	if !errors.Is(err, site.ErrUnavailable) || catalog.CodeOf(err) != catalog.StoreReadOnly {
		t.Errorf("update: %v", err)
	}
}

func TestAnonymous(t *testing.T) {
	for in, want := range map[string]string{
		"select 1":          "select 1",
		"a = $1 and b = $2": "a = ? and b = ?",
		"a = $1 or b = $1":  "a = $1 or b = $1",
		"a = $2 and b = $1": "a = $2 and b = $1",
		"values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)": "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		"a = $10": "a = $10",
	} {
		if got := anonymous(in); got != want {
			t.Errorf("anonymous(%q): got %q, want %q", in, got, want)
		}
	}
}

func TestVersionRank(t *testing.T) {
	order := []string{"", "0.5", "1", "1.1", "1_02", "1.10", "2.0", "10.00", "2147483647.1"}
	for i := 1; i < len(order); i++ {
		if versionRank(order[i-1]) > versionRank(order[i]) {
			t.Errorf("%q ranks above %q", order[i-1], order[i])
		}
	}
}
