package auth

import (
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"postern/catalog"
)

// bucketWidth is how finely a Memory forgets.
const bucketWidth = 10 * time.Second

// Memory is a Replay in memory, for one node. It holds a bounded number of ids; when
// it is full of ids that are still of use it refuses new ones with ProofMemoryFull
// rather than forget one. An id takes about 60 bytes. It is safe for concurrent use.
type Memory struct {
	limit int
	now   func() time.Time

	mu      sync.Mutex
	seen    map[replayID]struct{}
	buckets map[int64][]replayID // by end of use, in bucketWidths
	swept   int64
}

// replayID is the start of a SHA-256: ids of any length take the same room.
type replayID [16]byte

// NewMemory returns a memory of at most limit ids.
func NewMemory(limit int, now func() time.Time) *Memory {
	return &Memory{limit: limit, now: now, seen: map[replayID]struct{}{}, buckets: map[int64][]replayID{}}
}

// Fresh implements Replay. An id whose time is over is not fresh.
func (m *Memory) Fresh(_ context.Context, id string, until time.Time) (bool, error) {
	sum := sha256.Sum256([]byte(id))
	key := replayID(sum[:])
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	m.sweep(now)
	if _, ok := m.seen[key]; ok || !now.Before(until) {
		return false, nil
	}
	if len(m.seen) >= m.limit {
		return false, catalog.Errorf(catalog.ProofMemoryFull, "%d proofs are remembered, the limit is %d", len(m.seen), m.limit)
	}
	m.seen[key] = struct{}{}
	end := bucket(until)
	m.buckets[end] = append(m.buckets[end], key)
	return true, nil
}

// Len returns how many ids are remembered now.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweep(m.now())
	return len(m.seen)
}

func bucket(t time.Time) int64 { return t.Unix() / int64(bucketWidth/time.Second) }

// sweep forgets the buckets that lie wholly in the past.
func (m *Memory) sweep(now time.Time) {
	current := bucket(now)
	if current == m.swept {
		return
	}
	m.swept = current
	for end, ids := range m.buckets {
		if end >= current {
			continue
		}
		for _, id := range ids {
			delete(m.seen, id)
		}
		delete(m.buckets, end)
	}
}
