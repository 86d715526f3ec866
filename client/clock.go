package client

import (
	"sync/atomic"
	"time"

	"postern/catalog"
	"postern/token"
)

// clock is the device's clock, corrected by what the site's answers say (design decision
// 10). The correction is for signatures only and is forgotten when the process ends.
type clock struct {
	now    func() time.Time
	offset atomic.Int64 // nanoseconds that the site is ahead
}

func (c *clock) corrected() time.Time { return c.now().Add(c.difference()) }

func (c *clock) difference() time.Duration { return time.Duration(c.offset.Load()) }

// learn takes the site's time from an answer and reports whether that changes anything. A
// difference within half the leeway explains no refusal.
func (c *clock) learn(site time.Time) bool {
	if site.IsZero() || site.Sub(c.corrected()).Abs() < token.Leeway/2 {
		return false
	}
	c.offset.Store(int64(site.Sub(c.now()).Truncate(time.Second)))
	return true
}

// clockCodes are the refusals that a wrong clock explains. An empty answer is one: a
// registration with certificates that have not begun is dropped without a word.
func clockCodes() []catalog.Code {
	return []catalog.Code{catalog.ProofStale, catalog.ProofFuture, catalog.ProofNonceNeeded, catalog.AssertionExpired, catalog.TokenNotYetValid, catalog.ReplyEmpty}
}
