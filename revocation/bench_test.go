package revocation

import (
	"crypto/x509"
	"math/big"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"postern/catalog"
)

// longList is a list of n entries with serial numbers as long as a Microsoft authority's.
func longList(t testing.TB, w *world, n int) []byte {
	t.Helper()
	base := new(big.Int).Lsh(big.NewInt(0x43), 144)
	entries := make([]x509.RevocationListEntry, n)
	for i := range entries {
		serial := new(big.Int).Add(base, big.NewInt(int64(i)*0x9e3779b1%(1<<40)))
		entries[i] = x509.RevocationListEntry{SerialNumber: serial, RevocationTime: start(), ReasonCode: 4}
	}
	return must[[]byte](t)(w.between.List(start().Add(-time.Hour), func(l *x509.RevocationList) { l.RevokedCertificateEntries = entries }))
}

func TestAnEntryTakes28Bytes(t *testing.T) {
	if size := unsafe.Sizeof(entry{}); size != 28 {
		t.Errorf("got %d", size)
	}
}

// A list of 100,000 entries is held in a fraction of its own size.
func TestALongList(t *testing.T) {
	w := newWorld(t)
	der := longList(t, w, 100_000)
	w.publisher.Put(betweenList, der)
	c := w.checker()
	ask(t, c, w.good.Chain(), ForClient(), "")
	status := c.Status()
	if got := status[0].Entries + status[1].Entries; got != 100_000 {
		t.Errorf("got %d entries", got)
	}
	tight := w.checker(func(c *Config) { c.MaxEntries = 99_999 })
	ask(t, tight, w.good.Chain(), ForClient(), catalog.RevocationListMalformed)
}

func BenchmarkReadList(b *testing.B) {
	w := newWorld(b)
	der := longList(b, w, 400_000)
	b.SetBytes(int64(len(der)))
	b.ReportAllocs()
	var read unsignedList
	for b.Loop() {
		read = must[unsignedList](b)(readList(der, 1_000_000))
	}
	b.ReportMetric(float64(len(der))/400_000, "file-bytes/entry")
	runtime.KeepAlive(read)
}

func BenchmarkReadListByX509(b *testing.B) {
	w := newWorld(b)
	der := longList(b, w, 400_000)
	b.SetBytes(int64(len(der)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := x509.ParseRevocationList(der); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	w := newWorld(b)
	w.publisher.Put(betweenList, longList(b, w, 400_000))
	c := w.checker(func(c *Config) { c.MaxBytes = 64_000_000 })
	chain := w.good.Chain()
	ask(b, c, chain, ForClient(), "")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Check(b.Context(), chain, ForClient()); err != nil {
			b.Fatal(err)
		}
	}
}
