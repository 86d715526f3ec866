package store_test

import (
	"path/filepath"
	"testing"

	"postern/site"
	"postern/site/storetest"
	"postern/store"
)

// openSQLite opens an SQLite store in a folder of its own.
func openSQLite(t testing.TB, o store.Options) *store.Store {
	t.Helper()
	s, err := store.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "site #1 100%.db"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSQLite(t *testing.T) {
	storetest.Run(t, func(t testing.TB) site.Store { return openSQLite(t, store.Options{NoSync: true}) })
}
