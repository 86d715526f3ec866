package inbox_test

import (
	"path/filepath"
	"slices"
	"testing"

	"postern/inbox"
)

func TestLookReadsBesideTheOwnerAndChangesNothing(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, inbox.Options{SegmentSize: 1})
	add(t, b, 1, 2, 3)
	var want, got []string
	for n := 1; n <= 3; n++ {
		want = append(want, record(n).ID)
	}
	if err := inbox.Look(dir, func(r inbox.Record) { got = append(got, r.ID) }); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if b.Pending() != 3 {
		t.Errorf("%d records wait, want 3", b.Pending())
	}
	if err := inbox.Look(filepath.Join(dir, "none"), func(inbox.Record) { t.Error("a record in no folder") }); err != nil {
		t.Error(err)
	}
}
