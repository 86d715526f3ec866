package auth

import (
	"container/list"
	"crypto/sha256"
	"sync"
	"time"
)

// Cache keeps what was found of documents whose signature was good, by the SHA-256 of the
// document, until each ends; the least recently used make room. It holds no document. It
// is safe for concurrent use. Make it with [NewCache].
type Cache[V any] struct {
	limit int

	mu     sync.Mutex
	byHash map[[sha256.Size]byte]*list.Element
	recent *list.List // of *cached[V], most recently used first
}

type cached[V any] struct {
	hash  [sha256.Size]byte
	found V
	until time.Time
}

// NewCache returns a cache of so many entries; one of none or fewer keeps nothing.
func NewCache[V any](limit int) *Cache[V] {
	return &Cache[V]{limit: limit, byHash: map[[sha256.Size]byte]*list.Element{}, recent: list.New()}
}

// Get returns what was found of the document with that hash. It may have ended.
func (c *Cache[V]) Get(hash [sha256.Size]byte) (found V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	element, ok := c.byHash[hash]
	if !ok {
		return found, false
	}
	c.recent.MoveToFront(element)
	return element.Value.(*cached[V]).found, true
}

// Put keeps what was found. The oldest entry makes room, and so do ended ones at the cold
// end. What is kept already stays.
func (c *Cache[V]) Put(hash [sha256.Size]byte, found V, until, now time.Time) {
	if c.limit <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.byHash[hash]; ok {
		return
	}
	c.byHash[hash] = c.recent.PushFront(&cached[V]{hash, found, until})
	for last := c.recent.Back(); last != nil; last = c.recent.Back() {
		entry := last.Value.(*cached[V])
		if len(c.byHash) <= c.limit && now.Before(entry.until) {
			return
		}
		c.recent.Remove(last)
		delete(c.byHash, entry.hash)
	}
}

// Len returns how many entries there are.
func (c *Cache[V]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.byHash)
}
