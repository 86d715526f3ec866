package inbox

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
)

// Replay applies the records in the order in which they were appended, and removes what was applied, until none is left. It returns the
// number of records applied. When apply returns an error, Replay stops and returns it; that record comes first next time. apply must be
// idempotent: after a crash, records that were applied may come again. A record that can never be applied must be noted by apply and
// answered nil, or it blocks those behind it. Appends go on meanwhile; a second Replay waits for the first.
func (b *Inbox) Replay(ctx context.Context, apply func(context.Context, Record) error) (n int, err error) {
	b.replaying.Lock()
	defer b.replaying.Unlock()
	for {
		s := b.oldest()
		if s == nil {
			return n, nil
		}
		applied, err := b.replaySegment(ctx, s, apply)
		n += applied
		if err != nil {
			return n, fmt.Errorf("replay inbox: %w", err)
		}
		b.remove(s)
	}
}

// oldest returns the first segment, or nil when there is no record. The segment is sealed: its records are all there are.
func (b *Inbox) oldest() *segment {
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.segments) == 0 {
		return nil
	}
	if !b.segments[0].sealed {
		b.sealLast()
	}
	return b.segments[0]
}

func (b *Inbox) replaySegment(ctx context.Context, s *segment, apply func(context.Context, Record) error) (n int, err error) {
	f, err := os.Open(s.path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := f.Seek(s.offset, io.SeekStart); err != nil {
		return 0, err
	}
	in := bufio.NewReaderSize(f, 1<<16)
	for b.left(s) {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		r, size, err := readFrame(in)
		if err != nil {
			return n, fmt.Errorf("read record of %s: %w", s.path, err)
		}
		if err := apply(ctx, r); err != nil {
			return n, fmt.Errorf("record %s: %w", r.ID, err)
		}
		n++
		b.mu.Lock()
		s.applied++
		s.offset += size
		b.mu.Unlock()
	}
	return n, nil
}

func (b *Inbox) left(s *segment) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return s.applied < s.records
}

func (b *Inbox) remove(s *segment) {
	b.mu.Lock()
	defer b.mu.Unlock()
	_ = os.Remove(s.path) // if it stays, its records are applied again after a restart
	b.size -= s.size
	b.segments = slices.DeleteFunc(b.segments, func(other *segment) bool { return other == s })
}
