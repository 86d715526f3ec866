package store

import (
	"context"
	"sync"
)

// subscribers are the channels that Changes has given out.
type subscribers struct {
	mu     sync.Mutex
	all    map[chan struct{}]func() bool // with what stops waiting for the context
	closed bool
}

func newSubscribers() *subscribers { return &subscribers{all: make(map[chan struct{}]func() bool)} }

// add returns a channel of capacity one: a burst that nobody has received yet is one value.
func (s *subscribers) add(ctx context.Context) <-chan struct{} {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		close(c)
		return c
	}
	s.all[c] = context.AfterFunc(ctx, func() { s.remove(c) })
	return c
}

func (s *subscribers) remove(c chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.all[c]; ok {
		delete(s.all, c)
		close(c)
	}
}

// notify tells every subscriber that something was committed.
func (s *subscribers) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.all {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// any reports whether somebody listens.
func (s *subscribers) any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all) > 0
}

func (s *subscribers) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c, stop := range s.all {
		stop()
		close(c)
	}
	clear(s.all)
}
