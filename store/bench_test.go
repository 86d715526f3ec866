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

// compare registers with shared commits and with one commit each, in turns, and reports both rates and their ratio.
func compare(b *testing.B, open func(store.Options) site.Store) {
	grouped, single := open(store.Options{}), open(store.Options{GroupSize: 1})
	register(b, grouped, callers)
	register(b, single, callers)
	var fast, slow float64
	for b.Loop() {
		fast += register(b, grouped, 4096)
		slow += register(b, single, 512)
	}
	b.ReportMetric(fast/float64(b.N), "grouped/s")
	b.ReportMetric(slow/float64(b.N), "single/s")
	b.ReportMetric(fast/slow, "ratio")
}

// BenchmarkSQLite reports durable registrations per second by 64 callers, with shared commits and without.
func BenchmarkSQLite(b *testing.B) {
	compare(b, func(o store.Options) site.Store {
		s, err := store.OpenSQLite(b.Context(), filepath.Join(b.TempDir(), "site.db"), o)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { s.Close() })
		return s
	})
}

// BenchmarkPostgreSQL does the same on a private PostgreSQL that syncs.
func BenchmarkPostgreSQL(b *testing.B) {
	server, err := postgrestest.New("-c", "fsync=on")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Close() })
	compare(b, func(o store.Options) site.Store {
		dsn, err := server.Database()
		if err != nil {
			b.Fatal(err)
		}
		return openPostgreSQL(b, dsn, o)
	})
}
