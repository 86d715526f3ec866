package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/inbox"
	"postern/proof"
)

// record returns the n-th record, every field set.
func record(n int) inbox.Record {
	return inbox.Record{
		ID: fmt.Sprintf("{%d}", n), ReceivedAt: time.Date(2026, 3, 1, 12, 0, n, 123456789, time.UTC),
		Proof:       proof.Proof{Method: proof.BulkToken, Key: "key", BulkID: "bulk", Certificate: []byte{0, 1, 2}, Address: "192.0.2.1", At: time.Date(2026, 3, 1, 12, 0, n, 0, time.UTC)},
		ContentType: `multipart/mixed; boundary="aAbBcCdDv1234567890VxXyYzZ"`, Message: []byte(fmt.Sprintf("--aAbB\r\n\x00\xff message %d", n)), ClientID: "GUID:1", TraceID: "trace",
	}
}

func open(t testing.TB, dir string, o inbox.Options) *inbox.Inbox {
	t.Helper()
	b, err := inbox.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func add(t testing.TB, b *inbox.Inbox, numbers ...int) {
	t.Helper()
	for _, n := range numbers {
		if err := b.Append(t.Context(), record(n)); err != nil {
			t.Fatalf("append %d: %v", n, err)
		}
	}
}

// replay applies everything and returns the ids in order.
func replay(t testing.TB, b *inbox.Inbox) (ids []string) {
	t.Helper()
	n, err := b.Replay(t.Context(), func(_ context.Context, r inbox.Record) error {
		ids = append(ids, r.ID)
		return nil
	})
	if err != nil {
		t.Fatalf("replay: %v", err)
	}
	if n != len(ids) {
		t.Errorf("replay says %d records, applied %d", n, len(ids))
	}
	return ids
}

func same[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func files(t testing.TB, dir, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestRecordsComeBackInOrder(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, inbox.Options{SegmentSize: 1000})
	for n := range 20 {
		add(t, b, n)
	}
	same(t, "pending", b.Pending(), 20)
	if len(files(t, dir, "*.log")) < 3 {
		t.Error("twenty records share fewer than three segments")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = open(t, dir, inbox.Options{})
	same(t, "pending in the next run", b.Pending(), 20)
	next := 0
	n, err := b.Replay(t.Context(), func(_ context.Context, r inbox.Record) error {
		same(t, "record", fmt.Sprintf("%+v", r), fmt.Sprintf("%+v", record(next)))
		next++
		return nil
	})
	if n != 20 || err != nil {
		t.Errorf("replay: %d, %v", n, err)
	}
	same(t, "pending after replay", b.Pending(), 0)
	same(t, "files after replay", len(files(t, dir, "*.log")), 0)
	same(t, "applied again", len(replay(t, b)), 0)
}

func TestReplayStopsAtAnErrorAndContinuesThere(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, inbox.Options{})
	add(t, b, 0, 1, 2, 3)
	away := errors.New("database away")
	n, err := b.Replay(t.Context(), func(_ context.Context, r inbox.Record) error {
		if r.ID == "{2}" {
			return away
		}
		return nil
	})
	if n != 2 || !errors.Is(err, away) {
		t.Errorf("replay: got %d, %v; want 2 and the error of apply", n, err)
	}
	same(t, "pending", b.Pending(), 2)
	add(t, b, 4)
	same(t, "the rest, in order", fmt.Sprint(replay(t, b)), "[{2} {3} {4}]")

	add(t, b, 5)
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := b.Replay(ended, func(context.Context, inbox.Record) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("replay after the end: %v", err)
	}
	same(t, "pending after that", b.Pending(), 1)
}

func TestAppendsGoOnDuringReplay(t *testing.T) {
	b := open(t, t.TempDir(), inbox.Options{SegmentSize: 500})
	const writers, each = 8, 40
	seen := map[string]int{}
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for n := range each {
				add(t, b, w*1000+n)
			}
		})
	}
	ended := make(chan struct{})
	go func() { all.Wait(); close(ended) }()
	for running := true; running; {
		select {
		case <-ended:
			running = false
		default:
		}
		for _, id := range replay(t, b) {
			seen[id]++
		}
	}
	same(t, "records seen", len(seen), writers*each)
	for id, n := range seen {
		if n != 1 {
			t.Errorf("record %s was applied %d times", id, n)
		}
	}
}

func TestFullInboxRefusesAndLosesNothing(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, inbox.Options{Limit: 3000})
	kept := 0
	var err error
	for n := 0; err == nil && n < 1000; n++ {
		if err = b.Append(t.Context(), record(n)); err == nil {
			kept++
		}
	}
	same(t, "code", catalog.CodeOf(err), catalog.InboxFull)
	if kept == 0 {
		t.Fatal("nothing was kept")
	}
	b.Close()
	b = open(t, dir, inbox.Options{Limit: 3000})
	same(t, "code in the next run", catalog.CodeOf(b.Append(t.Context(), record(1))), catalog.InboxFull)
	same(t, "kept", len(replay(t, b)), kept)
	add(t, b, 7) // there is room again
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, inbox.Options{})
	_, err := inbox.Open(dir, inbox.Options{})
	same(t, "a second process on the folder", catalog.CodeOf(err), catalog.InboxInUse)
	large := record(1)
	large.Message = make([]byte, inbox.MaxMessage+1)
	same(t, "a message that is too large", catalog.CodeOf(b.Append(t.Context(), large)), catalog.InboxRecordTooLarge)
	large.Message, large.TraceID = large.Message[:inbox.MaxMessage], strings.Repeat("x", 1<<20)
	same(t, "a head that is too large", catalog.CodeOf(b.Append(t.Context(), large)), catalog.InboxRecordTooLarge)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = inbox.Open(filepath.Join(file, "inbox"), inbox.Options{})
	same(t, "a folder that cannot be made", catalog.CodeOf(err), catalog.InboxUnwritable)
	b.Close()
	same(t, "append after close", catalog.CodeOf(b.Append(t.Context(), record(1))), catalog.InboxClosed)
}

func TestUnwritableFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "inbox")
	b := open(t, dir, inbox.Options{})
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	same(t, "append", catalog.CodeOf(b.Append(t.Context(), record(1))), catalog.InboxUnwritable)
	same(t, "pending", b.Pending(), 0)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	add(t, b, 2)
	same(t, "what was acknowledged", fmt.Sprint(replay(t, b)), "[{2}]")
}

// TestTornTail cuts and damages the newest file, at every byte where a record begins and at every seventh elsewhere: all whole records stay, and
// nothing panics.
func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, inbox.Options{})
	add(t, b, 0, 1, 2)
	b.Close()
	path := files(t, dir, "*.log")[0]
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	frame := len(whole) / 3
	for cut := range len(whole) + 1 {
		if cut%frame > 16 && cut%7 != 0 {
			continue // each cut costs three syncs
		}
		other := filepath.Join(t.TempDir(), "inbox")
		write(t, filepath.Join(other, filepath.Base(path)), whole[:cut])
		b := open(t, other, inbox.Options{})
		same(t, fmt.Sprint("records of a file cut at ", cut), b.Pending(), cut/frame)
		add(t, b, 9)
		same(t, "records with a new one", len(replay(t, b)), cut/frame+1)
		same(t, "files put aside", len(files(t, other, "*.bad")), min(cut%frame, 1))
		b.Close()
	}
	for at := frame; at < 2*frame; at += 7 {
		damaged := slices.Clone(whole)
		damaged[at] ^= 0x40
		other := filepath.Join(t.TempDir(), "inbox")
		write(t, filepath.Join(other, filepath.Base(path)), damaged)
		b := open(t, other, inbox.Options{})
		applied := fmt.Sprint(replay(t, b))
		bad, err := os.ReadFile(files(t, other, "*.bad")[0])
		if err != nil {
			t.Fatal(err)
		}
		if at < frame+4 { // the length: nobody knows where the next record begins
			same(t, fmt.Sprint("applied of a length damaged at ", at), applied, "[{0}]")
			same(t, "put aside", string(bad), string(damaged[frame:]))
		} else {
			same(t, fmt.Sprint("applied of a record damaged at ", at), applied, "[{0} {2}]")
			same(t, "put aside", string(bad), string(damaged[frame:2*frame]))
		}
		same(t, "pending", b.Pending(), 0)
		same(t, "segments", len(files(t, other, "*.log")), 0)
		b.Close()
	}
}

// TestDamageWhileRunning changes bytes of a file that the inbox has open: what is whole behind them is applied, and nothing is blocked.
func TestDamageWhileRunning(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(path string, size int64) error
		want   string
	}{
		"a changed byte":    {func(path string, size int64) error { return flip(path, size/3+20) }, "[{0} {2} {3}]"},
		"a changed length":  {func(path string, size int64) error { return flip(path, size/3+3) }, "[{0} {3}]"},
		"a file cut short":  {func(path string, size int64) error { return os.Truncate(path, size/3+20) }, "[{0} {3}]"},
		"cut at a boundary": {func(path string, size int64) error { return os.Truncate(path, size/3) }, "[{0} {3}]"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			b := open(t, dir, inbox.Options{})
			add(t, b, 0, 1, 2)
			path := files(t, dir, "*.log")[0]
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := test.damage(path, info.Size()); err != nil {
				t.Fatal(err)
			}
			first := true
			var ids []string
			if _, err := b.Replay(t.Context(), func(_ context.Context, r inbox.Record) error {
				if ids = append(ids, r.ID); first {
					first = false
					add(t, b, 3) // in the next segment
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			same(t, "applied", fmt.Sprint(ids), test.want)
			same(t, "pending", b.Pending(), 0)
			same(t, "files put aside", len(files(t, dir, "*.bad")), 1)
		})
	}
}

func flip(path string, at int64) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	content[at] ^= 0x40
	return os.WriteFile(path, content, 0o600)
}

func TestDamageIsPutAside(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, inbox.Options{})
	add(t, b, 0)
	b.Close()
	path := files(t, dir, "*.log")[0]
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	junk := "\x05\x00\x00\x00junk that is longer than it says"
	if _, err := f.WriteString(junk); err != nil {
		t.Fatal(err)
	}
	f.Close()
	b = open(t, dir, inbox.Options{})
	same(t, "pending", b.Pending(), 1)
	kept, err := os.ReadFile(files(t, dir, "*.bad")[0])
	if err != nil {
		t.Fatal(err)
	}
	same(t, "bytes put aside", string(kept), junk)

	replay(t, b)
	b.Close()
	b = open(t, dir, inbox.Options{}) // an empty inbox: the numbers of files begin again
	add(t, b, 1)
	b.Close()
	write(t, files(t, dir, "*.log")[0], []byte("more junk"))
	open(t, dir, inbox.Options{})
	kept = nil
	for _, path := range files(t, dir, "*.bad") {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, content...)
	}
	same(t, "bytes put aside by two runs", string(kept), junk+"more junk")
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
