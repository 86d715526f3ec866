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
// answered nil, or it blocks those behind it. A record that the disk has damaged is put aside and logged (InboxDamaged). Appends go on meanwhile; a second Replay waits for the first.
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
	// no further than what was acknowledged, whatever a write that did not work left behind it
	in := bufio.NewReaderSize(io.NewSectionReader(f, s.offset, s.size-s.offset), 1<<16)
	for s.offset < s.size {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		r, size, err := readFrame(in)
		switch err {
		case nil:
			if err := apply(ctx, r); err != nil {
				return n, fmt.Errorf("record %s: %w", r.ID, err)
			}
			n++
		case errDamaged, io.EOF:
			if size == 0 {
				size = s.size - s.offset // nobody knows where the next record begins
			}
			if err := b.putAside(s, io.NewSectionReader(f, s.offset, size)); err != nil {
				return n, fmt.Errorf("put aside a damaged record of %s: %w", s.path, err)
			}
		default:
			return n, fmt.Errorf("read record of %s: %w", s.path, err)
		}
		b.done(s, size)
	}
	return n, nil
}

func (b *Inbox) done(s *segment, size int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.applied = min(s.applied+1, s.records) // a damaged length may have made two records of one
	s.offset += size
}

func (b *Inbox) remove(s *segment) {
	b.mu.Lock()
	defer b.mu.Unlock()
	_ = os.Remove(s.path) // if it stays, its records are applied again after a restart
	b.size -= s.size
	b.segments = slices.DeleteFunc(b.segments, func(other *segment) bool { return other == s })
}
