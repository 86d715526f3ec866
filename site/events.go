package site

import (
	"context"
	"sync"
	"time"

	"postern/ccm"
)

const (
	flushEvery    = 2 * time.Second
	maxPending    = 4096    // events waiting for the store; more are counted and dropped
	keepEvents    = 100_000 // newest events kept in the store
	keepEventsFor = 30 * 24 * time.Hour
)

// pending holds what need not be durable before an answer: events and last-seen times.
type pending struct {
	sync.Mutex
	events  []Event
	dropped int
	seen    map[ccm.ClientID]time.Time
	flushes int
}

// Note records an event. It never blocks: events are written in batches, and a flood of them is counted, not kept.
func (s *Site) Note(e Event) {
	if e.At.IsZero() {
		e.At = s.time()
	}
	s.pending.Lock()
	defer s.pending.Unlock()
	if len(s.pending.events) >= maxPending {
		s.pending.dropped++
		return
	}
	s.pending.events = append(s.pending.events, e)
}

// Seen notes that the device spoke just now; written in batches.
func (s *Site) Seen(id ccm.ClientID) {
	now := s.time()
	s.pending.Lock()
	defer s.pending.Unlock()
	if _, noted := s.pending.seen[id]; noted || len(s.pending.seen) < maxPending {
		s.pending.seen[id] = now
	}
}

// Flush writes waiting events and last-seen times.
func (s *Site) Flush(ctx context.Context) {
	events, seen, clean := s.takePending()
	if len(events) == 0 && len(seen) == 0 && !clean {
		return
	}
	err := s.store.Update(ctx, func(tx Tx) error {
		for id, at := range seen {
			if err := tx.TouchDevice(id, at); err != nil {
				return err
			}
		}
		if err := tx.AddEvents(events); err != nil || !clean {
			return err
		}
		if _, err := tx.DeleteReservationsBefore(s.time()); err != nil {
			return err
		}
		_, err := tx.DeleteEventsBefore(s.time().Add(-keepEventsFor), keepEvents)
		return err
	})
	if err != nil {
		s.log.Error("write events", "lost", len(events), "error", err)
	}
	if clean {
		if n, err := s.Sweep(ctx); err != nil {
			s.log.Error("remove obsolete devices", "error", err)
		} else if n > 0 {
			s.log.Info("obsolete devices removed", "count", n)
		}
	}
}

func (s *Site) takePending() (events []Event, seen map[ccm.ClientID]time.Time, clean bool) {
	s.pending.Lock()
	defer s.pending.Unlock()
	events, seen = s.pending.events, s.pending.seen
	if s.pending.dropped > 0 {
		s.log.Warn("events dropped", "count", s.pending.dropped)
		s.pending.dropped = 0
	}
	s.pending.events, s.pending.seen = nil, make(map[ccm.ClientID]time.Time)
	s.pending.flushes++
	return events, seen, s.pending.flushes%600 == 1
}

func (s *Site) flushFinally() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s.Flush(ctx)
}

// Events returns recorded events, newest first.
func (s *Site) Events(ctx context.Context, filter EventFilter) (events []Event, err error) {
	s.Flush(ctx)
	err = s.store.View(ctx, func(tx Tx) (err error) {
		events, err = tx.Events(filter)
		return err
	})
	return events, err
}
