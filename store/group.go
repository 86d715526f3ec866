package store

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"postern/site"
)

// errRetry marks a failure of PostgreSQL that a second try may not meet: a deadlock, a serialization failure, a lost race for a unique value.
var errRetry = errors.New("try the transaction again")

const maxTries = 5

// call is one Update in the queue.
type call struct {
	change func(site.Tx) error
	state  atomic.Int32 // waiting, then begun or abandoned
	err    error        // what change returned in the current run
	done   chan error
}

const (
	waiting int32 = iota
	begun
	abandoned
)

// writer runs updates, as many as wait in one transaction.
type writer struct {
	session session
	group   int     // how many share a transaction at most
	running []*call // the group under way; only the writer's goroutine uses it
	lore    lore
	commits func() // told after each commit that changed something
	tick    time.Duration
	poll    func() // called every tick between groups, when tick is not 0

	mu     sync.Mutex
	queue  []*call
	closed bool
	wake   chan struct{} // capacity one
	ended  chan struct{}
}

func newWriter(s session, group int, commits func()) *writer {
	return &writer{session: s, group: group, commits: commits, wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

func (w *writer) update(ctx context.Context, change func(site.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &call{change: change, done: make(chan error, 1)}
	if !w.enqueue(c) {
		return errClosed()
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
	}
	if c.state.CompareAndSwap(waiting, abandoned) {
		return ctx.Err()
	}
	return <-c.done // the change is running and writes to its caller's variables: wait for it
}

func (w *writer) enqueue(c *call) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	w.queue = append(w.queue, c)
	w.signal()
	return true
}

func (w *writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// close lets everything in the queue finish and stops the writer.
func (w *writer) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.signal()
	<-w.ended
}

// loop is the writer's goroutine.
func (w *writer) loop() {
	stopped := false
	defer func() {
		if stopped {
			close(w.ended)
			return
		}
		// A change ended this goroutine (testing.T.FailNow does); answer its group and go on in a new one.
		w.rollback()
		answer(w.running, errors.New("a change ended the writer's goroutine"))
		go w.loop()
	}()
	ticks, stop := w.ticks()
	defer stop()
	for {
		clear(w.running)
		w.running = w.running[:0]
		open := w.take()
		if len(w.running) > 0 {
			w.run()
			continue
		}
		if !open {
			stopped = true
			return
		}
		select {
		case <-w.wake:
		case <-ticks:
			w.poll()
		}
	}
}

func (w *writer) ticks() (<-chan time.Time, func()) {
	if w.tick <= 0 {
		return nil, func() {}
	}
	t := time.NewTicker(w.tick)
	return t.C, t.Stop
}

// take moves changes from the queue into the group until it is full, without those whose callers have gone. It reports whether more may come.
func (w *writer) take() (open bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) > 0 && len(w.running) < w.group {
		c := w.queue[0]
		w.queue[0] = nil
		w.queue = w.queue[1:]
		if c.state.CompareAndSwap(waiting, begun) {
			w.running = append(w.running, c)
		}
	}
	return !w.closed
}

// join takes the changes that have come since into the group that runs. When there are none, it lets the goroutines go on that can go on: on a
// busy machine they are callers about to come, and the more share a commit, the less each costs. On an idle one nothing is waited for.
func (w *writer) join() {
	before := len(w.running)
	if w.take(); len(w.running) == before && before < w.group {
		runtime.Gosched()
		w.take()
	}
}

func (w *writer) run() {
	if w.group > 1 && w.together() {
		return
	}
	for _, c := range w.running {
		c.answer(w.alone(c))
	}
}

// together runs the group in one transaction and answers it, or reports false when each must run alone; then nothing was kept. Changes that
// come while it runs join: the commit costs as much as ten of them, and they would only wait for it.
func (w *writer) together() bool {
	t, err := w.begin()
	if err != nil {
		answer(w.running, err)
		return true
	}
	for n := 0; n < len(w.running); n++ {
		c := w.running[n]
		t.wrote = false
		c.err = t.run(c.change)
		if t.failed == nil && (c.err == nil || !t.wrote) {
			t.keep = t.keep || t.wrote
			if n == len(w.running)-1 {
				w.join()
			}
			continue
		}
		w.rollback()
		if t.failed == nil && len(w.running) == 1 {
			c.answer(c.err)
			return true
		}
		if t.failed == nil || w.session.alive() {
			return false
		}
		answer(w.running, t.failed)
		return true
	}
	if err := w.commit(t); err != nil {
		if errors.Is(err, errRetry) {
			return false
		}
		answer(w.running, err) // even those with errors of their own: they may have seen what is not kept
		return true
	}
	for _, c := range w.running {
		c.answer(c.err)
	}
	return true
}

// alone runs one change in a transaction of its own.
func (w *writer) alone(c *call) error {
	var err error
	for range maxTries {
		if err = w.try(c); !errors.Is(err, errRetry) {
			return err
		}
	}
	return unavailable(err)
}

func (w *writer) try(c *call) error {
	t, err := w.begin()
	if err != nil {
		return err
	}
	err = t.outcome(t.run(c.change))
	if err != nil {
		w.rollback()
		return err
	}
	t.keep = t.wrote
	return w.commit(t)
}

func (w *writer) begin() (*tx, error) {
	fresh, err := w.session.begin()
	if err != nil {
		w.rollback()
		return nil, err
	}
	if fresh {
		w.lore.forget()
	}
	return &tx{session: w.session, lore: &w.lore}, nil
}

func (w *writer) commit(t *tx) error {
	if !t.keep {
		w.rollback()
		return nil
	}
	if err := w.session.commit(); err != nil {
		w.rollback()
		return err
	}
	w.commits()
	return nil
}

// rollback ends the transaction, if there is one, and forgets what was learnt in it.
func (w *writer) rollback() {
	w.session.rollback()
	w.lore.forget()
}

func (c *call) answer(err error) { c.done <- err }

func answer(group []*call, err error) {
	for _, c := range group {
		select {
		case c.done <- err:
		default: // answered already
		}
	}
}

// run calls change; a panic becomes an error.
func (t *tx) run(change func(site.Tx) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("change panicked: %v\n%s", p, debug.Stack())
		}
	}()
	return change(t)
}
