package auth

import (
	"container/list"
	"crypto/sha256"
	"sync"
	"time"

	"postern/token"
)

// cache keeps the claims of verified tokens by the SHA-256 of the token, the least
// recently used ones making room. It holds no token.
type cache struct {
	limit int

	mu     sync.Mutex
	byHash map[[sha256.Size]byte]*list.Element
	recent *list.List // of *cached, most recently used first
}

type cached struct {
	hash   [sha256.Size]byte
	claims token.Claims
}

func newCache(limit int) *cache {
	return &cache{limit: limit, byHash: map[[sha256.Size]byte]*list.Element{}, recent: list.New()}
}

func (c *cache) get(hash [sha256.Size]byte) (token.Claims, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	element, ok := c.byHash[hash]
	if !ok {
		return token.Claims{}, false
	}
	c.recent.MoveToFront(element)
	return element.Value.(*cached).claims, true
}

// put keeps the claims. The oldest entry makes room, and so do expired ones at the
// cold end.
func (c *cache) put(hash [sha256.Size]byte, claims token.Claims, now time.Time) {
	if c.limit <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.byHash[hash]; ok {
		return
	}
	c.byHash[hash] = c.recent.PushFront(&cached{hash: hash, claims: claims})
	for last := c.recent.Back(); last != nil; last = c.recent.Back() {
		entry := last.Value.(*cached)
		if len(c.byHash) <= c.limit && now.Before(entry.claims.Expires.Add(token.Leeway)) {
			return
		}
		c.recent.Remove(last)
		delete(c.byHash, entry.hash)
	}
}

func (c *cache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.byHash)
}
