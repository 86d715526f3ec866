package store_test

import (
	"fmt"
	"testing"

	"postern/site"
	"postern/site/storetest"
	"postern/store"
	"postern/store/postgrestest"
)

func openPostgreSQL(t testing.TB, dsn string, o store.Options) *store.Store {
	t.Helper()
	s, err := store.OpenPostgreSQL(t.Context(), dsn, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestPostgreSQL gives each case a schema of its own in one database, which is faster than a database each.
func TestPostgreSQL(t *testing.T) {
	dsn, cases := postgrestest.Start(t), 0
	storetest.Run(t, func(t testing.TB) site.Store {
		cases++
		schema := fmt.Sprint("case", cases)
		if err := raw(t, dsn, "create schema "+schema); err != nil {
			t.Fatal(err)
		}
		return openPostgreSQL(t, dsn+"&search_path="+schema, store.Options{})
	})
}
