package auth

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"

	"postern/catalog"
)

// Gate keeps the token service from taking the machine: a few requests at a time have their
// signatures checked and made, a bounded number wait, and the rest is shed (design decision
// 14, users-and-threats.md R7). It is safe for concurrent use.
type Gate struct {
	slots  chan struct{}
	within atomic.Int64 // those who wait and those who are through
	limit  int64        // of both
	shed   func()
}

// Processors is how many slots a gate before signatures should have: one processor is always
// left for everything else. A role may run more goroutines at a time than there are
// processors; that makes none.
func Processors() int { return max(1, min(runtime.GOMAXPROCS(0), runtime.NumCPU())-1) }

// NewGate returns a gate that lets slots through at a time while waiting others wait. shed
// hears of each who is sent away; it may be nil.
func NewGate(slots, waiting int, shed func()) *Gate {
	return &Gate{slots: make(chan struct{}, slots), limit: int64(waiting + slots), shed: shed}
}

// Beside returns a gate with a line of its own before the same slots.
func (g *Gate) Beside(waiting int) *Gate {
	return &Gate{slots: g.slots, limit: int64(waiting + cap(g.slots)), shed: g.shed}
}

// Do runs work when there is a slot, or answers TokenServiceBusy when too many wait already
// or ctx ends first. work may call leave when only waiting for somebody else is left to it:
// another has the slot from then on.
func (g *Gate) Do(ctx context.Context, work func(leave func()) error) error {
	defer g.within.Add(-1)
	if g.within.Add(1) > g.limit {
		if g.shed != nil {
			g.shed()
		}
		return catalog.Errorf(catalog.TokenServiceBusy, "%d requests wait already", g.limit-int64(cap(g.slots)))
	}
	select {
	case g.slots <- struct{}{}:
	case <-ctx.Done():
		return catalog.Wrap(catalog.TokenServiceBusy, ctx.Err(), "the caller did not wait")
	}
	leave := sync.OnceFunc(func() { <-g.slots })
	defer leave()
	return work(leave)
}

// Load is how many requests wait or are through, and how many may.
func (g *Gate) Load() (now, most int) { return int(g.within.Load()), int(g.limit) }
