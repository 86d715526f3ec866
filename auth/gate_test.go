package auth

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"postern/catalog"
)

func TestGateShedsWhatItCannotDo(t *testing.T) {
	shed := 0
	g := NewGate(1, 1, func() { shed++ })
	hold, held := make(chan struct{}), make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() { g.Do(t.Context(), func(func()) error { close(held); <-hold; return nil }) })
	<-held
	queued := make(chan error, 1)
	wait.Go(func() { queued <- g.Do(t.Context(), func(func()) error { return nil }) })
	for g.within.Load() < 2 {
		runtime.Gosched()
	}
	if err := g.Do(t.Context(), func(func()) error { return nil }); catalog.CodeOf(err) != catalog.TokenServiceBusy || shed != 1 {
		t.Errorf("a third got %v, %d shed, want %s and 1", err, shed, catalog.TokenServiceBusy)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Beside(1).Do(gone, func(func()) error { return nil }); catalog.CodeOf(err) != catalog.TokenServiceBusy || !errors.Is(err, context.Canceled) || shed != 1 {
		t.Errorf("one that did not wait got %v, %d shed", err, shed)
	}
	close(hold)
	wait.Wait()
	if err := <-queued; err != nil {
		t.Errorf("the one that waited got %v", err)
	}
}

func TestGateHoldsOnlySoMany(t *testing.T) {
	g := NewGate(2, 100, nil)
	lines := []*Gate{g, g.Beside(100)}
	var now, most atomic.Int64
	var wait sync.WaitGroup
	for i := range 100 {
		wait.Go(func() {
			err := lines[i%2].Do(t.Context(), func(func()) error {
				for n := now.Add(1); ; {
					old := most.Load()
					if n <= old || most.CompareAndSwap(old, n) {
						break
					}
				}
				runtime.Gosched()
				now.Add(-1)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if most.Load() > 2 || len(g.slots) != 0 || g.within.Load() != 0 {
		t.Errorf("%d at a time, %d slots kept, %d within; want at most 2, 0, 0", most.Load(), len(g.slots), g.within.Load())
	}
}

func TestGateGivesTheSlotOfOneThatOnlyWaits(t *testing.T) {
	g := NewGate(1, 1, nil)
	err := g.Do(t.Context(), func(leave func()) error {
		leave() // for the database
		return g.Do(t.Context(), func(leave func()) error { leave(); leave(); return nil })
	})
	if err != nil || len(g.slots) != 0 {
		t.Errorf("got %v with %d slots kept", err, len(g.slots))
	}
}
