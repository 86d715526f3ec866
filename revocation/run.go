package revocation

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"postern/catalog"
)

// Run fetches the configured lists and renews them before they end, until ctx ends. It returns nil.
func (c *Checker) Run(ctx context.Context) error {
	for {
		c.Refresh(ctx)
		timer := time.NewTimer(min(c.config.MinAge, time.Minute))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// Refresh fetches the configured lists that are due, and those that checks have used, and waits for them or for ctx.
func (c *Checker) Refresh(ctx context.Context) {
	if c.config.Policy == PolicyOff {
		return
	}
	addresses := slices.Collect(maps.Keys(c.lists.all()))
	addresses = append(addresses, c.listURLs...)
	slices.Sort(addresses)
	addresses = slices.Compact(addresses)
	for _, wait := range []bool{false, true} { // all begin before the first is waited for
		for _, address := range addresses {
			c.refresh(ctx, address, wait)
		}
	}
}

func (c *Checker) refresh(ctx context.Context, address string, wait bool) {
	cell := c.lists.cell(address, c.config.Now())
	cell.ask(ctx, plan[*list]{
		due:    func(v view[*list]) bool { return !wait && c.listDue(cell, v, nil) },
		usable: func(view[*list]) bool { return false },
		load:   func(v view[*list]) (*list, error) { return c.loadList(address, v, nil) },
		begin:  c.begin,
		now:    c.config.Now,
		wait:   wait,
	})
}

// SourceStatus is the health of one place that is asked.
type SourceStatus struct {
	Address    string
	Responder  bool
	Issuer     string        // of the list; "" when none was read
	Entries    int           // revoked certificates in it
	Fetched    time.Time     // when it was last confirmed; zero when never
	Age        time.Duration // since then
	ThisUpdate time.Time
	NextUpdate time.Time
	Stale      bool         // its next update has passed
	Code       catalog.Code // of the last failure; "" when the last attempt went well
	LastError  string       // the same for a person
}

// Status returns the health of every list and of every configured responder, sorted by address. It is for a health page:
// a list with Stale, or a source with a Code and an Age of zero, locks clients out under [PolicyRequire].
func (c *Checker) Status() (all []SourceStatus) {
	now := c.config.Now()
	held := c.lists.all()
	for _, address := range c.listURLs {
		if _, known := held[address]; !known {
			held[address] = view[*list]{}
		}
	}
	for address, v := range held {
		all = append(all, c.listStatus(address, v, now))
	}
	for _, address := range c.responders {
		status := SourceStatus{Address: address, Responder: true}
		status.fail(c.down.last(address, time.Time{}))
		all = append(all, status)
	}
	slices.SortFunc(all, func(a, b SourceStatus) int { return cmp.Compare(a.Address, b.Address) })
	return all
}

func (c *Checker) listStatus(address string, v view[*list], now time.Time) SourceStatus {
	status := SourceStatus{Address: address}
	status.fail(v.err)
	if !v.held {
		return status
	}
	status.Issuer, status.Entries = v.value.issuer, len(v.value.entries)
	status.Fetched, status.Age = v.fetched, now.Sub(v.fetched)
	status.ThisUpdate, status.NextUpdate = v.value.thisUpdate, v.value.nextUpdate
	status.Stale = now.After(v.value.ends(c.config))
	return status
}

func (s *SourceStatus) fail(err error) {
	if e, ok := asCatalog(err); ok {
		s.Code, s.LastError = e.Code, e.Detail
	}
}
