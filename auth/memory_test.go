package auth

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"postern/catalog"
)

func TestMemoryRefusesRatherThanForgets(t *testing.T) {
	now := noon
	m := NewMemory(2, func() time.Time { return now })
	ask := func(id string) (bool, error) { return m.Fresh(t.Context(), id, now.Add(time.Minute)) }
	for _, id := range []string{"a", "b"} {
		if fresh, err := ask(id); !fresh || err != nil {
			t.Fatalf("%s: got %t, %v", id, fresh, err)
		}
	}
	_, err := ask("c")
	wantCode(t, err, catalog.ProofMemoryFull)
	if fresh, err := ask("a"); fresh || err != nil {
		t.Errorf("a known id while full: got %t, %v", fresh, err)
	}
	now = now.Add(time.Minute + bucketWidth)
	if fresh, err := ask("c"); !fresh || err != nil {
		t.Errorf("after the others' time: got %t, %v", fresh, err)
	}
	if got := m.Len(); got != 1 {
		t.Errorf("got %d ids, want 1", got)
	}
}

func TestMemoryTakesNoIDWhoseTimeIsOver(t *testing.T) {
	m := NewMemory(2, func() time.Time { return noon })
	if fresh, err := m.Fresh(t.Context(), "a", noon); fresh || err != nil {
		t.Errorf("got %t, %v", fresh, err)
	}
	if got := m.Len(); got != 0 {
		t.Errorf("got %d ids, want 0", got)
	}
}

func TestMemoryIsBoundedUnderManyIDs(t *testing.T) {
	m := NewMemory(1000, func() time.Time { return noon })
	for n := range 100_000 {
		_, _ = m.Fresh(t.Context(), fmt.Sprint(n), noon.Add(time.Minute))
	}
	if got := m.Len(); got != 1000 {
		t.Errorf("got %d ids, want 1000", got)
	}
}

// Whatever the clock and the ids do, no id is fresh twice within its time.
func TestMemoryNeverForgetsEarly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now, known := noon, map[string]time.Time{}
		m := NewMemory(8, func() time.Time { return now })
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 30).Draw(t, "seconds")) * time.Second)
			id := rapid.StringMatching(`[a-e]`).Draw(t, "id")
			until := now.Add(time.Duration(rapid.IntRange(1, 400).Draw(t, "life")) * time.Second)
			fresh, err := m.Fresh(t.Context(), id, until)
			if err == nil && fresh && now.Before(known[id]) {
				t.Fatalf("%s is fresh again before %s", id, known[id])
			}
			if fresh {
				known[id] = until
			}
		}
	})
}
