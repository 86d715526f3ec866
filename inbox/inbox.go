package inbox

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// Record is one registration that waits for the database.
type Record struct {
	ID          string // the message's id, or another that names the record in logs
	ReceivedAt  time.Time
	Proof       proof.Proof // what the caller had proved
	Ceiling     proof.Level // the highest level that its route gives
	Direct      bool        // no gateway and connector stood between
	ContentType string
	Message     []byte       // the message as it was received
	ClientID    ccm.ClientID // the id that the device was told; final at confirmation
	TraceID     string
}

// Options adjust an inbox. The zero value is right for a server.
type Options struct {
	Limit       int64        // bytes on disk at most; 256 MiB when 0
	SegmentSize int64        // bytes after which a new file is begun; 4 MiB when 0
	Log         *slog.Logger // discarded when nil
}

const (
	suffix    = ".log"
	badSuffix = ".bad"
)

// Inbox is an open inbox. All methods are safe for concurrent use. One process uses a folder at a time.
type Inbox struct {
	dir  string
	o    Options
	lock *flock.Flock

	mu       sync.Mutex
	queue    []*appending
	segments []*segment // oldest first; the last is being written when it is open
	next     uint64     // number of the next segment
	size     int64      // bytes of all segments
	closed   bool

	wake      chan struct{} // capacity one
	ended     chan struct{}
	replaying sync.Mutex // held by Replay
	writing   sync.Mutex // held while a group is written, and to seal a segment in between; taken before mu
	active    *os.File   // of the last segment
}

// segment is one file.
type segment struct {
	path    string
	sealed  bool
	size    int64
	records int
	applied int   // of records, and those put aside, since this process began
	offset  int64 // after the last of them
}

type appending struct {
	frame []byte
	done  chan error
}

// Open opens the inbox in dir, and makes the folder, owner-only, when it does not exist. Records of earlier runs are there again. What
// follows the last whole record of a file, as a crash may leave it, is put aside in a file that ends in .bad, and logged (InboxDamaged). So is
// a damaged record between whole ones, when Replay comes to it.
func Open(dir string, o Options) (*Inbox, error) {
	if o.Limit <= 0 {
		o.Limit = 256 << 20
	}
	if o.SegmentSize <= 0 {
		o.SegmentSize = 4 << 20
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, catalog.Wrap(catalog.InboxUnwritable, err, "the inbox folder %s cannot be made", dir)
	}
	b := &Inbox{dir: dir, o: o, lock: flock.New(filepath.Join(dir, "lock"), flock.SetPermissions(0o600)), wake: make(chan struct{}, 1), ended: make(chan struct{})}
	switch locked, err := b.lock.TryLock(); {
	case err != nil:
		return nil, catalog.Wrap(catalog.InboxUnwritable, err, "the inbox folder %s cannot be used", dir)
	case !locked:
		return nil, catalog.Errorf(catalog.InboxInUse, "another process holds %s", b.lock.Path())
	}
	if err := b.load(); err != nil {
		return nil, errors.Join(err, b.lock.Close())
	}
	go b.write()
	return b, nil
}

// load finds the segments of earlier runs.
func (b *Inbox) load() error {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return catalog.Wrap(catalog.InboxUnwritable, err, "the inbox folder %s cannot be read", b.dir)
	}
	for _, entry := range entries {
		var number uint64
		if name, ok := strings.CutSuffix(entry.Name(), suffix); !ok {
			continue
		} else if _, err := fmt.Sscanf(name, "%016x", &number); err != nil {
			continue
		}
		b.next = max(b.next, number+1)
		s, err := b.loadSegment(filepath.Join(b.dir, entry.Name()))
		if err != nil {
			return catalog.Wrap(catalog.InboxUnwritable, err, "the inbox file %s cannot be read", entry.Name())
		}
		if s.records == 0 {
			_ = os.Remove(s.path)
			continue
		}
		b.segments = append(b.segments, s)
		b.size += s.size
	}
	slices.SortFunc(b.segments, func(a, c *segment) int { return cmp.Compare(a.path, c.path) })
	return nil
}

// loadSegment counts the records of a file and cuts off what follows the last whole one. A damaged record with whole ones behind it stays in
// its place until Replay comes to it.
func (b *Inbox) loadSegment(path string) (*segment, error) {
	s := &segment{path: path, sealed: true}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<16)
	var damaged []int64 // sizes of the frames behind s.size
	for {
		_, n, err := readFrame(in)
		switch {
		case err == nil:
			s.records += len(damaged) + 1
			for _, size := range append(damaged, n) {
				s.size += size
			}
			damaged = nil
			continue
		case err == errDamaged && n > 0:
			damaged = append(damaged, n)
			continue
		case err == io.EOF && damaged == nil:
			return s, nil
		case err != io.EOF && err != errDamaged:
			return nil, err
		}
		if err := b.putAside(s, io.NewSectionReader(f, s.size, math.MaxInt64-s.size)); err != nil {
			return nil, err
		}
		return s, f.Truncate(s.size)
	}
}

// putAside keeps a durable copy of bytes of a segment that are no record, behind what an earlier file of this number may have left: numbers
// begin again once the inbox is empty.
func (b *Inbox) putAside(s *segment, damaged io.Reader) error {
	path := strings.TrimSuffix(s.path, suffix) + badSuffix
	bad, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer bad.Close()
	n, err := io.Copy(bad, damaged)
	if err == nil {
		err = bad.Sync() // before the original is cut
	}
	b.o.Log.Warn("inbox file holds bytes that are no record", "code", string(catalog.InboxDamaged), "file", path, "bytes", n)
	return err
}

// Append keeps the record and returns when it is durable. It refuses with InboxFull when the inbox has reached its size limit, with
// InboxRecordTooLarge, with InboxUnwritable when the disk does not take it, and with InboxClosed. When ctx ends first, it returns ctx.Err() and
// the record may be kept or not.
func (b *Inbox) Append(ctx context.Context, r Record) error {
	if len(r.Message) > MaxMessage {
		return catalog.Errorf(catalog.InboxRecordTooLarge, "the message has %d bytes; at most %d are kept", len(r.Message), MaxMessage)
	}
	frame, err := appendFrame(nil, r)
	if err != nil {
		return err
	}
	if len(frame) > frameHead+maxFrame { // readFrame would take it for damage, and with it everything behind it
		return catalog.Errorf(catalog.InboxRecordTooLarge, "the record has %d bytes; at most %d are kept", len(frame), frameHead+maxFrame)
	}
	a := &appending{frame: frame, done: make(chan error, 1)}
	b.mu.Lock()
	closed := b.closed
	if !closed {
		b.queue = append(b.queue, a)
	}
	b.mu.Unlock()
	if closed {
		return catalog.Errorf(catalog.InboxClosed, "the inbox is closed")
	}
	b.signal()
	select {
	case err := <-a.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *Inbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Pending returns the number of records that have not been applied.
func (b *Inbox) Pending() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, s := range b.segments {
		n += s.records - s.applied
	}
	return n
}

// Close lets appends under way finish and frees the folder. Records stay for the next run.
func (b *Inbox) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.signal()
	<-b.ended
	return b.lock.Close()
}

// write is the writer's goroutine: it takes everything that waits, writes it with one sync, and answers.
func (b *Inbox) write() {
	defer close(b.ended)
	for range b.wake {
		b.mu.Lock()
		group, closed := b.queue, b.closed
		b.queue = nil
		b.mu.Unlock()
		b.writeGroup(group)
		if closed {
			b.sealActive()
			return
		}
	}
}

// writeGroup writes those appends of the group that fit under the limit.
func (b *Inbox) writeGroup(group []*appending) {
	var taken []*appending
	var frames []byte
	b.mu.Lock()
	room := b.o.Limit - b.size
	b.mu.Unlock()
	for _, a := range group {
		if int64(len(frames)+len(a.frame)) > room {
			a.done <- catalog.Errorf(catalog.InboxFull, "the inbox holds %d bytes, its limit", b.o.Limit)
			continue
		}
		frames = append(frames, a.frame...)
		taken = append(taken, a)
	}
	if len(taken) == 0 {
		return
	}
	err := b.writeFrames(frames, len(taken))
	for _, a := range taken {
		a.done <- err
	}
}

// writeFrames makes the frames durable, all or none.
func (b *Inbox) writeFrames(frames []byte, records int) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	s, err := b.open()
	if err == nil {
		if _, err = b.active.Write(frames); err == nil {
			err = b.active.Sync()
		}
		if err != nil {
			b.abandon(s)
		}
	}
	if err != nil {
		return catalog.Wrap(catalog.InboxUnwritable, err, "the inbox could not be written")
	}
	b.mu.Lock()
	s.size += int64(len(frames))
	s.records += records
	b.size += int64(len(frames))
	if s.size >= b.o.SegmentSize {
		b.sealLast()
	}
	b.mu.Unlock()
	return nil
}

// open returns the segment to write to, a new one when the last is sealed.
func (b *Inbox) open() (*segment, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.segments); n > 0 && !b.segments[n-1].sealed {
		return b.segments[n-1], nil
	}
	s := &segment{path: filepath.Join(b.dir, fmt.Sprintf("%016x%s", b.next, suffix))}
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syncFolder(b.dir); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(s.path))
	}
	b.next++
	b.active = f
	b.segments = append(b.segments, s)
	return s, nil
}

// abandon ends a segment after a write or sync that did not work: nobody knows what of it is on disk. The acknowledged records before stay.
func (b *Inbox) abandon(s *segment) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.sealed = true
	_ = b.active.Truncate(s.size) // readers stop at the acknowledged size in any case
	b.closeActive()
	if s.records == 0 {
		_ = os.Remove(s.path)
		b.segments = slices.DeleteFunc(b.segments, func(other *segment) bool { return other == s })
	}
}

// sealActive lets the next append begin a new segment.
func (b *Inbox) sealActive() {
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sealLast()
}

// sealLast ends the segment that is being written, if there is one.
func (b *Inbox) sealLast() {
	if n := len(b.segments); n > 0 {
		b.segments[n-1].sealed = true
	}
	b.closeActive()
}

func (b *Inbox) closeActive() {
	if b.active != nil {
		_ = b.active.Close() // everything acknowledged is synced
		b.active = nil
	}
}

// syncFolder makes a new name in the folder durable. Where folders cannot be synced (Windows), the file system does it by itself.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, os.ErrInvalid) && !errors.Is(err, os.ErrPermission) {
		return err
	}
	return nil
}
