package connector

import "time"

// The bounds of the pause between two tries.
const (
	firstPause   = 500 * time.Millisecond
	longestPause = time.Minute
	leastPause   = 100 * time.Millisecond
)

// backoff says how long to wait before the next try: each time twice as long at most,
// and a random part of it, also when the longest pause is reached, so that connectors
// that lost one gateway together do not come back together.
type backoff struct {
	random func() float64
	most   time.Duration
}

func newBackoff(random func() float64) *backoff { return &backoff{random: random, most: firstPause} }

func (b *backoff) next() time.Duration {
	pause := time.Duration(b.random() * float64(b.most))
	b.most = min(2*b.most, longestPause)
	return max(pause, leastPause)
}

func (b *backoff) reset() { b.most = firstPause }
