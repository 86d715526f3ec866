package store

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"postern/site"
)

// TestUpgradeFromTheFirstSchema reads a device that the first version wrote: it is neither obsolete nor held, and it is found by its hardware id.
func TestUpgradeFromTheFirstSchema(t *testing.T) {
	const first = "migrations/sqlite/00001_first_light.sql"
	text, err := fs.ReadFile(migrations, first)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "site.db")
	old, err := openSQLite(path, Options{}.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	if err := old.migrate(t.Context(), fstest.MapFS{first: {Data: text}}); err != nil {
		t.Fatal(err)
	}
	rows, err := old.writers.QueryContext(t.Context(), "select name, type from pragma_table_info('devices')")
	if err != nil {
		t.Fatal(err)
	}
	var names, values []string
	empty := map[string]string{"TEXT": "''", "INTEGER": "0", "BLOB": "x''"}
	known := map[string]string{"client_id": "'GUID:1'", "key_thumbprint": "'key'", "hardware_id1": "'2:AA'"}
	for rows.Next() {
		var name, kind string
		if err := rows.Scan(&name, &kind); err != nil {
			t.Fatal(err)
		}
		names, values = append(names, name), append(values, empty[kind])
		if value, ok := known[name]; ok {
			values[len(values)-1] = value
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := old.writers.ExecContext(t.Context(), fmt.Sprintf("insert into devices (%s) values (%s)", strings.Join(names, ", "), strings.Join(values, ", "))); err != nil {
		t.Fatal(err)
	}
	if err := old.close(); err != nil {
		t.Fatal(err)
	}

	s, err := openFile(t, path, migrations)
	if err != nil {
		t.Fatal(err)
	}
	err = s.View(t.Context(), func(tx site.Tx) error {
		found, err := tx.DevicesByHardware("2:AA", 8)
		if err == nil && (len(found) != 1 || !reflect.DeepEqual(found[0].Obsolete, site.Obsolete{At: time.Time{}}) || found[0].Conflict != "" || found[0].Proved != "") {
			err = fmt.Errorf("got %+v", found)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestUpgradeOfGateways: of a gateway that an earlier version listed it is not known when it confirmed.
func TestUpgradeOfGateways(t *testing.T) {
	before := fstest.MapFS{}
	files, err := fs.Glob(migrations, "migrations/sqlite/0000[1-8]*.sql")
	if err != nil || len(files) < 6 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, name := range files {
		text, err := fs.ReadFile(migrations, name)
		if err != nil {
			t.Fatal(err)
		}
		before[name] = &fstest.MapFile{Data: text}
	}
	path := filepath.Join(t.TempDir(), "site.db")
	old, err := openSQLite(path, Options{}.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	if err := old.migrate(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	const listed = "insert into gateways (name, url, pin, acknowledged, heard, created, created_by) values ('gw', 'https://gw', 'pin', 7, 1, 1, 'anna')"
	if _, err := old.writers.ExecContext(t.Context(), listed); err != nil {
		t.Fatal(err)
	}
	if err := old.close(); err != nil {
		t.Fatal(err)
	}
	s, err := openFile(t, path, migrations)
	if err != nil {
		t.Fatal(err)
	}
	err = s.View(t.Context(), func(tx site.Tx) error {
		gateways, err := tx.Gateways()
		if err == nil && (len(gateways) != 1 || gateways[0].Acknowledged != 7 || !gateways[0].AcknowledgedAt.IsZero() || !gateways[0].Certified.IsZero() || gateways[0].Certificate != nil) {
			err = fmt.Errorf("got %+v", gateways)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestNotesSurviveARestart: what was used must not be used again because the process started anew.
func TestNotesSurviveARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "site.db")
	now := time.Now()
	at := now
	o := Options{Now: func() time.Time { return at }}.withDefaults()
	reopen := func() *Store {
		s, err := openSQLiteWith(t.Context(), path, o, migrations)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	note := func(s *Store, id string) error {
		return s.Update(t.Context(), func(tx site.Tx) error { return tx.NoteUse(id, now.Add(time.Hour)) })
	}
	s := reopen()
	if err := note(s, "a"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = reopen()
	if err := note(s, "a"); err != site.ErrExists {
		t.Errorf("noted again after a restart: %v", err)
	}
	if fresh, err := s.Remember(t.Context(), "a", now.Add(time.Hour)); fresh || err != nil {
		t.Errorf("remembered after a restart: %v, %v", fresh, err)
	}
	s.Close()
	at = now.Add(2 * time.Hour)
	s = reopen()
	defer s.Close()
	if err := note(s, "b"); err != nil { // which drops what is over
		t.Fatal(err)
	}
	var left int64
	if err := s.View(t.Context(), func(x site.Tx) error {
		return x.(*tx).query("select count(*) from remembered", nil, func(r row) error { return r.Scan(&left) })
	}); err != nil || left != 1 {
		t.Errorf("%d notes left, %v; want 1", left, err)
	}
}
