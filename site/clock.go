package site

import (
	"context"
	"errors"
	"sync"
	"time"

	"postern/catalog"
	"postern/token"
)

// clock is the site's clock as it judges by it: that of the machine, but never far below a time that the site has seen, so that nothing which had ended
// is good again because somebody set the clock back (users-and-threats.md C54).
type clock struct {
	wall func() time.Time

	mu      sync.Mutex
	newest  time.Time // that was seen
	since   time.Time // when it was seen, for measuring from there; with the reading that no setting of the clock moves
	behind  bool
	accepts string // the newest acceptance that was heeded
}

func newClock(wall func() time.Time) *clock { return &clock{wall: wall} }

// now returns the time. While the machine's clock is behind by more than the leeway, it is the newest time seen and what has gone by since.
func (c *clock) now() time.Time {
	wall := c.wall()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.behind = c.newest.Sub(wall) > token.Leeway; c.behind {
		return c.newest.Add(time.Since(c.since))
	}
	if wall.After(c.newest) {
		c.newest, c.since = wall.Round(0), time.Now()
	}
	return wall
}

// seen notes a time that the site's own records tell.
func (c *clock) seen(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.After(c.newest) {
		c.newest, c.since = at, time.Now()
	}
}

// accept forgets what was seen: the machine's clock is right. undo takes that back.
func (c *clock) accept() (undo func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	newest, since := c.newest, c.since
	c.newest, c.behind = time.Time{}, false
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if newest.After(c.newest) {
			c.newest, c.since = newest, since
		}
	}
}

// heed accepts the clock when a person has said so since, at this node or another; it reports whether that is news.
func (c *clock) heed(accepted string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if accepted == c.accepts {
		return false
	}
	c.accepts, c.newest = accepted, time.Time{}
	return true
}

// lag is by how much the machine's clock is behind; 0 when it is not.
func (c *clock) lag() time.Duration {
	now := c.now()
	c.mu.Lock()
	behind := c.behind
	c.mu.Unlock()
	if !behind {
		return 0
	}
	return now.Sub(c.wall())
}

const clockNow = "now"

// canonicalClock takes the word that the clock is right; kept is when it was said.
func canonicalClock(value string, now time.Time) (string, error) {
	if value != clockNow {
		return "", catalog.Errorf(catalog.InvalidArgument, "%s is %q; the only value is %s", settingClock, value, clockNow)
	}
	return now.UTC().Format(time.RFC3339Nano), nil
}

// Now is the time by which the site judges; see [Site.ClockBehind].
func (s *Site) Now() time.Time { return s.now() }

// ClockBehind reports by how much the machine's clock is behind the newest time that the site has seen, as an error with the code ClockBehind; nil when it
// is not, or by no more than the leeway. The site then goes on by the time that it measures itself, and nothing that has ended begins to be good again.
func (s *Site) ClockBehind() error {
	lag := s.clock.lag()
	if lag == 0 {
		return nil
	}
	return catalog.Errorf(catalog.ClockBehind, "the clock says %s, and it has been %s already", s.clock.wall().UTC().Format(time.RFC3339), s.now().UTC().Format(time.RFC3339))
}

// watchClock raises the alarm when the machine's clock jumped back, and says when that is over.
func (s *Site) watchClock(was bool) (behind bool) {
	err := s.ClockBehind()
	switch behind = err != nil; {
	case behind && !was:
		s.log.Error("the clock of this machine jumped back; nothing that has ended is accepted again", "code", string(catalog.ClockBehind), "error", err)
		s.Note(Event{Code: string(catalog.ClockBehind), Kind: "clock", Detail: err.Error()})
	case was && !behind:
		s.log.Info("the clock is right again")
	}
	return behind
}

// recall reads the newest times that the store has: of the trust log, and of what gateways said last.
func (s *Site) recall(ctx context.Context) error {
	return s.store.View(ctx, func(tx Tx) error {
		head, err := tx.TrustHead()
		if err != nil {
			return err
		}
		gateways, err := tx.Gateways()
		if err != nil {
			return err
		}
		newest := head.At
		accepted, err := optional(tx, settingClock)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		for _, g := range gateways {
			if accepted == "" && g.Heard.After(newest) { // once the clock was set right, what was heard by the wrong one may still be there
				newest = g.Heard
			}
		}
		s.clock.heed(accepted)
		s.clock.seen(newest)
		return nil
	})
}
