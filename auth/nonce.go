package auth

import (
	"sync"
	"time"

	"postern/token"
)

// heardNonces are the site's nonces of the last five minutes, the newest last. They come in
// signed lines that were of their moment; each counts from when it was first heard.
type heardNonces struct {
	mu   sync.RWMutex
	list []heardNonce
}

type heardNonce struct {
	nonce string
	at    time.Time
}

// maxHeard is how many there can be in a nonce's life, and one more. A clock that was set
// back makes none of them last longer than until as many others have come.
const maxHeard = int(token.NonceLife/token.NonceWindow) + 1

func (h *heardNonces) hear(nonce string, now time.Time) {
	if nonce == "" {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, known := range h.list {
		if known.nonce == nonce {
			return
		}
	}
	kept := make([]heardNonce, 0, maxHeard)
	for _, known := range h.list[max(0, len(h.list)-maxHeard+1):] {
		if known.lasts(now) {
			kept = append(kept, known)
		}
	}
	h.list = append(kept, heardNonce{nonce, now})
}

func (n heardNonce) lasts(now time.Time) bool { return now.Sub(n.at).Abs() < token.NonceLife }

func (h *heardNonces) good(nonce string, now time.Time) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, known := range h.list {
		if known.nonce == nonce {
			return known.lasts(now)
		}
	}
	return false
}

// give returns the one before the newest, which every other gateway has heard by now, or
// the only one.
func (h *heardNonces) give(now time.Time) string {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, known := range h.list[max(0, len(h.list)-2):] {
		if known.lasts(now) {
			return known.nonce
		}
	}
	return ""
}

// Nonce implements [token.Nonces]; "" when the site has not been heard for five minutes.
func (s *State) Nonce() string { return s.nonces.give(s.now()) }

// GoodNonce implements [token.Nonces].
func (s *State) GoodNonce(nonce string) bool { return s.nonces.good(nonce, s.now()) }
