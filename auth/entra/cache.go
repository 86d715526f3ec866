package entra

import (
	"container/list"
	"crypto/sha256"
	"sync"
	"time"

	"postern/proof"
)

// cache keeps tokens whose signature was good by the SHA-256 of the token, the least
// recently used ones making room. It holds no token.
type cache struct {
	limit int

	mu     sync.Mutex
	byHash map[[sha256.Size]byte]*list.Element
	recent *list.List // of *cached, most recently used first
}

// cached is what a token said, and the key that it was found to be signed by. Whether
// that key still counts is asked at every use.
type cached struct {
	hash     [sha256.Size]byte
	document document
	key      proof.KeyThumbprint
	until    time.Time
}

func newCache(limit int) *cache {
	return &cache{limit: limit, byHash: map[[sha256.Size]byte]*list.Element{}, recent: list.New()}
}

func (c *cache) get(hash [sha256.Size]byte) (cached, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	element, ok := c.byHash[hash]
	if !ok {
		return cached{}, false
	}
	c.recent.MoveToFront(element)
	return *element.Value.(*cached), true
}

// put keeps an entry. The oldest one makes room, and so do ended ones at the cold end.
func (c *cache) put(entry cached, now time.Time) {
	if c.limit <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.byHash[entry.hash]; ok {
		return
	}
	c.byHash[entry.hash] = c.recent.PushFront(&entry)
	for last := c.recent.Back(); last != nil; last = c.recent.Back() {
		oldest := last.Value.(*cached)
		if len(c.byHash) <= c.limit && now.Before(oldest.until) {
			return
		}
		c.recent.Remove(last)
		delete(c.byHash, oldest.hash)
	}
}

func (c *cache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.byHash)
}
