package store_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"postern/ccm"
	"postern/site"
	"postern/store"
)

// childDatabase tells the test binary that it is the child of TestKilledWriter.
const childDatabase = "POSTERN_TEST_DATABASE"

func TestMain(m *testing.M) {
	if path := os.Getenv(childDatabase); path != "" {
		registerForever(path)
	}
	os.Exit(m.Run())
}

// registerForever registers devices from several goroutines and prints the client id of each that was acknowledged.
func registerForever(path string) {
	s, err := store.OpenSQLite(context.Background(), path, store.Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var printing sync.Mutex
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for {
				d := newDevice()
				if err := s.Update(context.Background(), func(tx site.Tx) error { return registration(tx, d) }); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				printing.Lock()
				os.Stdout.WriteString(string(d.ClientID) + "\n")
				printing.Unlock()
			}
		})
	}
	all.Wait()
}

// TestKilledWriter kills a process that registers, at random instants, again and again on the same file: nothing acknowledged is lost, and the
// trust log is whole.
func TestKilledWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "site.db")
	acknowledged := map[ccm.ClientID]bool{}
	for range 20 {
		for _, id := range runAndKill(t, path) {
			acknowledged[id] = true
		}
	}
	if len(acknowledged) == 0 {
		t.Fatal("no child acknowledged anything")
	}
	s, err := store.OpenSQLite(t.Context(), path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	devices := map[ccm.ClientID]bool{}
	for _, d := range read(t, s, func(tx site.Tx) ([]site.Device, error) { return tx.Devices(site.DeviceFilter{}) }) {
		devices[d.ClientID] = true
	}
	for id := range acknowledged {
		if !devices[id] {
			t.Errorf("%s was acknowledged and is lost", id)
		}
	}
	if entries := checkChain(t, s); entries != len(devices) {
		t.Errorf("%d devices have %d trust entries", len(devices), entries)
	}
}

// runAndKill returns what the child acknowledged before it was killed.
func runAndKill(t *testing.T, path string) (ids []ccm.ClientID) {
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childDatabase+"="+path)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for first := true; lines.Scan(); first = false {
		if first { // it has begun to write: kill it soon
			time.AfterFunc(rand.N(10*time.Millisecond), func() { child.Process.Kill() })
		}
		ids = append(ids, ccm.ClientID(lines.Text()))
	}
	_ = child.Wait()
	return ids
}

// checkChain returns the number of trust entries and fails the test where the chain is broken.
func checkChain(t testing.TB, s site.Store) int {
	t.Helper()
	entries := read(t, s, func(tx site.Tx) ([]site.TrustEntry, error) { return tx.TrustEntries(0, 0) })
	var before site.TrustEntry
	for _, e := range entries {
		if e.Sequence != before.Sequence+1 || e.Previous != before.Hash || e.Hash != e.Sum() {
			t.Fatalf("the chain is broken at entry %d", e.Sequence)
		}
		before = e
	}
	return len(entries)
}

func read[T any](t testing.TB, s site.Store, ask func(site.Tx) (T, error)) (v T) {
	t.Helper()
	err := s.View(t.Context(), func(tx site.Tx) (err error) {
		v, err = ask(tx)
		return err
	})
	if err != nil {
		t.Fatalf("view: %v", err)
	}
	return v
}
