package gateway

import (
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
)

// maxLimited bounds how many addresses have a rate of their own at a time.
const maxLimited = 4096

// searchEvery is how many unknown addresses pass between two searches for room.
const searchEvery = 256

// limiter limits the rate of requests without proof, for each address. When it knows
// too many addresses, those that have been quiet make room; when none has, the rest
// share one rate, so that a flood costs no memory.
type limiter struct {
	rate  rate.Limit
	burst int

	mu     sync.Mutex
	by     map[netip.Prefix]*rate.Limiter
	shared *rate.Limiter
	missed uint // requests since the map was full, so that it is not searched for each
}

func newLimiter(r rate.Limit, burst int) *limiter {
	return &limiter{rate: r, burst: burst, by: map[netip.Prefix]*rate.Limiter{}, shared: rate.NewLimiter(10*r, 10*burst)}
}

func (l *limiter) allow(address string) bool {
	from := prefix(address)
	l.mu.Lock()
	defer l.mu.Unlock()
	own, ok := l.by[from]
	if !ok && len(l.by) >= maxLimited {
		if l.missed%searchEvery == 0 {
			l.forget()
		}
		l.missed++
	}
	if !ok && len(l.by) >= maxLimited {
		return l.shared.Allow()
	}
	if !ok {
		own = rate.NewLimiter(l.rate, l.burst)
		l.by[from] = own
	}
	return own.Allow()
}

// forget drops the addresses that may do again all that a new one may.
func (l *limiter) forget() {
	for from, own := range l.by {
		if own.Tokens() >= float64(l.burst) {
			delete(l.by, from)
		}
	}
}
