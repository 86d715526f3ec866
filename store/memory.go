package store

import (
	"container/heap"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"

	"postern/catalog"
	"postern/site"
)

// memory remembers ids until they expire, up to a limit. When it is full it refuses: to forget early would let a proof be used twice.
type memory struct {
	limit int
	now   func() time.Time

	mu    sync.Mutex
	known map[fingerprint]int64 // until when
	order expiries
}

// fingerprint stands for an id, so that long ones need no more room.
type fingerprint [16]byte

func fingerprintOf(id string) fingerprint {
	sum := sha256.Sum256([]byte(id))
	return fingerprint(sum[:16])
}

// String returns the fingerprint in hexadecimal.
func (f fingerprint) String() string { return hex.EncodeToString(f[:]) }

type expiry struct {
	id    fingerprint
	until int64
}

func newMemory(limit int, now func() time.Time) *memory {
	return &memory{limit: limit, now: now, known: make(map[fingerprint]int64)}
}

func (m *memory) remember(id string, until time.Time) (bool, error) {
	return m.note(fingerprintOf(id), until)
}

func (m *memory) note(key fingerprint, until time.Time) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(m.now().UnixMicro())
	if _, seen := m.known[key]; seen {
		return false, nil
	}
	if len(m.known) >= m.limit {
		return false, catalog.Wrap(catalog.ReplayMemoryFull, site.ErrUnavailable, "too many requests in a short time")
	}
	m.known[key] = until.UnixMicro()
	heap.Push(&m.order, expiry{key, until.UnixMicro()})
	return true, nil
}

// drop takes back a note whose change was undone. Its expiry stays in the order and later finds nothing.
func (m *memory) drop(key fingerprint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.known, key)
}

// forget drops what has expired.
func (m *memory) forget(now int64) {
	for len(m.order) > 0 && m.order[0].until < now {
		if e := heap.Pop(&m.order).(expiry); m.known[e.id] == e.until { // else it was taken back, and perhaps noted again
			delete(m.known, e.id)
		}
	}
}

// expiries is a heap with the earliest first.
type expiries []expiry

func (e expiries) Len() int           { return len(e) }
func (e expiries) Less(i, j int) bool { return e[i].until < e[j].until }
func (e expiries) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *expiries) Push(x any)        { *e = append(*e, x.(expiry)) }
func (e *expiries) Pop() any {
	old := *e
	last := old[len(old)-1]
	*e = old[:len(old)-1]
	return last
}
