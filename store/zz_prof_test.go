package store_test

import (
	"path/filepath"
	"testing"

	"postern/store"
)

func BenchmarkZZ(b *testing.B) {
	s, err := store.OpenSQLite(b.Context(), filepath.Join(b.TempDir(), "site.db"), store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	register(b, s, 64)
	b.ResetTimer()
	b.ReportMetric(register(b, s, b.N), "grouped/s")
}
