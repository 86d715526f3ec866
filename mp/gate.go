package mp

import (
	"context"
	"sync/atomic"

	"postern/catalog"
)

// maxVerifying is how many requests may wait for their signatures to be checked. Each check takes well under a millisecond, so a full queue
// is emptied within a second; more is shed (users-and-threats.md R7).
const maxVerifying = 1024

// gate lets a few through at a time and a bounded number wait.
type gate struct {
	slots   chan struct{}
	waiting atomic.Int64
	limit   int64
}

func newGate(slots, waiting int) *gate {
	return &gate{slots: make(chan struct{}, slots), limit: int64(waiting)}
}

// do runs work when there is room, or answers TokenServiceBusy when too many wait already.
func (g *gate) do(ctx context.Context, work func() error) error {
	defer g.waiting.Add(-1)
	if g.waiting.Add(1) > g.limit+int64(cap(g.slots)) {
		return catalog.Errorf(catalog.TokenServiceBusy, "%d requests wait already", g.limit)
	}
	select {
	case g.slots <- struct{}{}:
	case <-ctx.Done():
		return catalog.Wrap(catalog.TokenServiceBusy, ctx.Err(), "the caller did not wait")
	}
	defer func() { <-g.slots }()
	return work()
}
