package store_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/ccm"
	"postern/proof"
	"postern/site"
	"postern/store"
	"postern/store/postgrestest"
)

// callers is how many registrations are under way at once.
const callers = 64

// registration does what a registration does to the store: looks for the device by key and by client id, writes it, and appends to the trust log.
func registration(tx site.Tx, d site.Device) error {
	if _, err := tx.DeviceByKey(d.Key); err != site.ErrNotFound {
		return fmt.Errorf("by key: %w", err)
	}
	if _, err := tx.Device(d.ClientID); err != site.ErrNotFound {
		return fmt.Errorf("by client id: %w", err)
	}
	if err := tx.PutDevice(d); err != nil {
		return err
	}
	head, err := tx.TrustHead()
	if err != nil {
		return err
	}
	e := site.TrustEntry{Sequence: head.Sequence + 1, At: d.Created, Actor: "site", Action: "device.register", Subject: string(d.ClientID), Detail: "{}", Previous: head.Hash}
	e.Hash = e.Sum()
	return tx.AppendTrust(e)
}

// newDevice returns a device as a real registration makes it: about 2 KB.
func newDevice() site.Device {
	id, now := rand.Text(), time.Now().UTC().Truncate(time.Microsecond)
	return site.Device{
		ClientID: ccm.ClientID("GUID:" + id), Key: proof.KeyThumbprint("thumbprint-" + id),
		Record: site.Record{
			SiteCode: "LAB", SMSID: ccm.ClientID("GUID:" + id), Certificate: make([]byte, 800), EncKey: make([]byte, 800), PublicKey: make([]byte, 276),
			Thumbprint: id, EncThumbprint: id, NetbiosName: "WK" + id, FQDName: "wk" + id + ".example.com", HardwareID1: "2:" + id, MACAddress: id, SMBIOSID: id,
		},
		Approval: site.Approval{Status: 1, Level: proof.LevelManaged, Method: proof.BulkToken, Rule: "bulk", Evidence: map[string]string{"token": id}, By: "site", At: now},
		Created:  now, Updated: now, LastSeen: now,
	}
}

// register makes n registrations by the callers and returns how many there were per second.
func register(b testing.TB, s site.Store, n int) float64 {
	var left atomic.Int64
	left.Store(int64(n))
	begin := time.Now()
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				d := newDevice()
				if err := s.Update(context.Background(), func(tx site.Tx) error { return registration(tx, d) }); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	return float64(n) / time.Since(begin).Seconds()
}

// compare registers with shared commits and with one commit each, in turns, and reports both rates and their ratio. The two databases always
// hold the same number of devices: the more there are, the more pages a registration writes.
func compare(b *testing.B, address func() string) {
	for _, devices := range []int{1000, 20000} {
		b.Run(fmt.Sprintf("%d devices", devices), func(b *testing.B) {
			grouped, single := filled(b, address(), devices, store.Options{}), filled(b, address(), devices, store.Options{GroupSize: 1})
			var fast, slow float64
			for b.Loop() {
				fast += register(b, grouped, 1024)
				slow += register(b, single, 1024)
			}
			b.ReportMetric(fast/float64(b.N), "grouped/s")
			b.ReportMetric(slow/float64(b.N), "single/s")
			b.ReportMetric(fast/slow, "ratio")
		})
	}
}

// filled opens a database with the options after it was given so many devices.
func filled(b *testing.B, address string, devices int, o store.Options) *store.Store {
	s := opened(b, address, store.Options{})
	register(b, s, devices)
	s.Close()
	return opened(b, address, o)
}

func opened(b *testing.B, address string, o store.Options) *store.Store {
	s, err := store.Open(b.Context(), address, o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

// BenchmarkSQLite reports durable registrations per second by 64 callers, with shared commits and without.
func BenchmarkSQLite(b *testing.B) {
	compare(b, func() string { return filepath.Join(b.TempDir(), rand.Text()+".db") })
}

// BenchmarkPostgreSQL does the same on a private PostgreSQL that syncs.
func BenchmarkPostgreSQL(b *testing.B) {
	server, err := postgrestest.New("-c", "fsync=on")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Close() })
	compare(b, func() string {
		dsn, err := server.Database()
		if err != nil {
			b.Fatal(err)
		}
		return dsn
	})
}
