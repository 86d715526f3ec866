package revocation

import (
	"context"
	"slices"
	"sync"
	"time"

	"postern/catalog"
)

// cell keeps the last good value of one source and lets one load run at a time, however many ask.
type cell[V any] struct {
	mu        sync.Mutex
	value     V
	held      bool
	fetched   time.Time // when the value was last confirmed
	attempted time.Time
	err       error         // of the last attempt
	loading   chan struct{} // closed when the load that runs has ended
	used      time.Time
}

// view is what a cell held at one moment.
type view[V any] struct {
	value   V
	held    bool
	fetched time.Time
	err     error
}

func (c *cell[V]) view() view[V] { return view[V]{c.value, c.held, c.fetched, c.err} }

// plan says how a cell is filled.
type plan[V any] struct {
	due    func(view[V]) bool // a load shall run
	usable func(view[V]) bool // what is held can be used while it runs
	load   func(view[V]) (value V, err error)
	begin  func(run func()) // runs the load beside the caller
	now    func() time.Time
	wait   bool // wait for the load when nothing usable is held
}

// ask returns what the cell holds, after the load that p wants. A wait that ctx ends is an error of the view.
func (c *cell[V]) ask(ctx context.Context, p plan[V]) view[V] {
	c.mu.Lock()
	c.used = p.now()
	if c.loading == nil && p.due(c.view()) {
		c.start(p)
	}
	loading, got := c.loading, c.view()
	c.mu.Unlock()
	if loading == nil || !p.wait || p.usable(got) {
		return got
	}
	select {
	case <-loading:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.view()
	case <-ctx.Done():
		got.err = catalog.Wrap(catalog.RevocationUnreachable, ctx.Err(), "no answer came in time")
		return got
	}
}

// start begins a load; c.mu is held.
func (c *cell[V]) start(p plan[V]) {
	done, before := make(chan struct{}), c.view()
	c.loading, c.attempted = done, p.now()
	p.begin(func() {
		value, err := p.load(before)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.loading, c.err = nil, err; err == nil {
			c.value, c.held, c.fetched = value, true, p.now()
		}
		close(done)
	})
}

// cache is a bounded number of cells. When it is full, the half that was used longest ago is dropped.
type cache[K comparable, V any] struct {
	mu    sync.Mutex
	limit int
	cells map[K]*cell[V]
}

func newCache[K comparable, V any](limit int) *cache[K, V] {
	return &cache[K, V]{limit: limit, cells: map[K]*cell[V]{}}
}

// cell returns the cell of a key, new when there is none.
func (c *cache[K, V]) cell(key K, now time.Time) *cell[V] {
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := c.cells[key]; found != nil {
		return found
	}
	if len(c.cells) >= c.limit {
		c.drop()
	}
	made := &cell[V]{used: now}
	c.cells[key] = made
	return made
}

// drop forgets the half of the cells that was used longest ago; c.mu is held.
func (c *cache[K, V]) drop() {
	keys := c.byUse()
	for _, key := range keys[:(len(keys)+1)/2] {
		delete(c.cells, key)
	}
}

// byUse returns the keys, the one used longest ago first; c.mu is held.
func (c *cache[K, V]) byUse() []K {
	uses := make(map[K]time.Time, len(c.cells))
	keys := make([]K, 0, len(c.cells))
	for key, cell := range c.cells {
		cell.mu.Lock()
		uses[key] = cell.used
		cell.mu.Unlock()
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b K) int { return uses[a].Compare(uses[b]) })
	return keys
}

// shrink drops cells, the one used longest ago first and never keep, until their sizes fit the limit.
func (c *cache[K, V]) shrink(limit int, keep K, size func(V) int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	total := 0
	keys := c.byUse()
	sizes := make(map[K]int, len(keys))
	for _, key := range keys {
		if got := c.cells[key].now(); got.held {
			sizes[key] = size(got.value)
			total += sizes[key]
		}
	}
	for _, key := range keys {
		if total <= limit {
			return
		}
		if key != keep && sizes[key] > 0 {
			delete(c.cells, key)
			total -= sizes[key]
		}
	}
}

// now is what a cell holds, without asking for a load.
func (c *cell[V]) now() view[V] {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view()
}

// all returns what every cell holds.
func (c *cache[K, V]) all() map[K]view[V] {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := make(map[K]view[V], len(c.cells))
	for key, cell := range c.cells {
		held[key] = cell.now()
	}
	return held
}
