package site_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/ccm"
	"postern/internal/role"
	"postern/proof"
	"postern/site"
	"postern/store"
)

const (
	benchCallers = 64   // registrations under way at once
	benchGrouped = 1024 // registrations of a round with shared commits
	benchSingle  = 256  // registrations of a round with a commit each
)

// BenchmarkRegister reports durable registrations per second by 64 callers on SQLite, each of a new key with a bulk token: signature, approval,
// record and trust entry, everything but the HTTP around it. Rounds with shared commits and with one commit each alternate, each round on a new
// database. In "running" the site follows its own commits meanwhile, as in a management point.
func BenchmarkRegister(b *testing.B) {
	role.UseProcessors() // as the process of a management point does
	requests := make([]*ccm.RegistrationRequest, benchGrouped)
	for n := range requests {
		requests[n] = device(n).request(property("HardwareID1", string(device(n).thumbprint)))
	}
	for _, running := range []bool{false, true} {
		b.Run(map[bool]string{false: "alone", true: "running"}[running], func(b *testing.B) {
			var grouped, single float64
			for b.Loop() {
				grouped += registrationRate(b, store.Options{}, requests, running)
				single += registrationRate(b, store.Options{GroupSize: 1}, requests[:benchSingle], running)
			}
			b.ReportMetric(grouped/float64(b.N), "grouped/s")
			b.ReportMetric(single/float64(b.N), "single/s")
			b.ReportMetric(grouped/single, "ratio")
		})
	}
}

// registrationRate registers all requests on a new site and returns how many there were per second.
func registrationRate(b *testing.B, o store.Options, requests []*ccm.RegistrationRequest, running bool) float64 {
	b.Helper()
	w := durableWorld(b, o)
	_, bulk, err := w.NewBulkToken(b.Context(), site.NewBulk{By: "anna"})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	if running {
		go func() { ended <- w.Run(ctx) }()
	} else {
		ended <- nil
	}
	begin := time.Now()
	w.registerAll(b, bulk, requests)
	rate := float64(len(requests)) / time.Since(begin).Seconds()
	stop()
	if err := <-ended; err != nil {
		b.Error(err)
	}
	return rate
}

// registerAll registers devices 0, 1, 2 and so on with their requests.
func (w *world) registerAll(b *testing.B, bulk site.BulkToken, requests []*ccm.RegistrationRequest) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range benchCallers {
		all.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n >= len(requests) {
					return
				}
				if out, err := w.Register(b.Context(), with(bulk, device(n).thumbprint), requests[n]); err != nil || !out.New {
					b.Errorf("got %+v, %v", out, err)
					return
				}
			}
		})
	}
	all.Wait()
}

// durableWorld is a site on an SQLite file that waits for the disk.
func durableWorld(b *testing.B, o store.Options) *world {
	b.Helper()
	w := newWorld(b, filepath.Join(b.TempDir(), "site.db"))
	if err := w.store.Close(); err != nil {
		b.Fatal(err)
	}
	w.store = w.open(b, o)
	config, opened := w.config(w.store), time.Now()
	config.Now = func() time.Time { return begin.Add(time.Since(opened)) } // ids and ages follow the clock, so it goes on as in life
	var err error
	if w.Site, err = site.Open(b.Context(), config); err != nil {
		b.Fatal(err)
	}
	return w
}

// BenchmarkRefresh reports what a management point does after changes, at most ten times a second, with many keys that are refused.
func BenchmarkRefresh(b *testing.B) {
	for _, keys := range []int{0, 20_000} {
		b.Run(fmt.Sprint(keys), func(b *testing.B) {
			w := newWorld(b, filepath.Join(b.TempDir(), "site.db"))
			err := w.store.Update(b.Context(), func(tx site.Tx) (err error) {
				for i := 0; i < keys && err == nil; i++ {
					err = tx.PutFormerKey(proof.KeyThumbprint(fmt.Sprintf("key-%039d", i)), clientID(1), begin)
				}
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := w.Refresh(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
