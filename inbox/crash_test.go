package inbox_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"postern/inbox"
)

// childFolder tells the test binary that it is the child of TestKilledWriter.
const childFolder = "POSTERN_TEST_INBOX"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childFolder); dir != "" {
		appendForever(dir)
	}
	os.Exit(m.Run())
}

// appendForever appends from several goroutines and prints the id of each record that was acknowledged.
func appendForever(dir string) {
	b, err := inbox.Open(dir, inbox.Options{SegmentSize: 20_000})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	start := rand.IntN(1 << 30) // seconds after March 2026 in a record: no year above 9999
	var printing sync.Mutex
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for n := start + w; ; n += 4 {
				if err := b.Append(context.Background(), record(n)); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				printing.Lock()
				os.Stdout.WriteString(record(n).ID + "\n")
				printing.Unlock()
			}
		})
	}
	all.Wait()
}

// TestKilledWriter kills a process that appends, at random instants, again and again on the same folder: nothing acknowledged is lost.
func TestKilledWriter(t *testing.T) {
	dir := t.TempDir()
	acknowledged := map[string]bool{}
	for range 10 {
		for _, id := range runAndKill(t, dir) {
			acknowledged[id] = true
		}
	}
	if len(acknowledged) == 0 {
		t.Fatal("no child acknowledged anything")
	}
	b := open(t, dir, inbox.Options{})
	found := map[string]bool{}
	for _, id := range replay(t, b) {
		found[id] = true
	}
	for id := range acknowledged {
		if !found[id] {
			t.Errorf("record %s was acknowledged and is lost", id)
		}
	}
}

// runAndKill returns what the child acknowledged before it was killed.
func runAndKill(t *testing.T, dir string) (ids []string) {
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childFolder+"="+dir)
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
			time.AfterFunc(rand.N(15*time.Millisecond), func() { child.Process.Kill() })
		}
		ids = append(ids, lines.Text())
	}
	if err := child.Wait(); child.ProcessState.Exited() {
		t.Errorf("the child ended by itself: %v", err)
	}
	return ids
}
