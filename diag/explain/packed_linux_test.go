package explain

import (
	"archive/zip"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// A folder may hold more archives than a process may have files open: none stays open. Linux says which are.
func TestManyArchives(t *testing.T) {
	folder := t.TempDir()
	content := zipped(t, func(w *zip.Writer) {
		member, _ := w.Create("LocationServices.log")
		member.Write([]byte(forbidden + "\n"))
	})
	for i := range 300 {
		write(t, filepath.Join(folder, fmt.Sprintf("%03d.zip", i)), content)
	}
	before := openFiles(t)
	c := &collector{limits: DefaultLimits()}
	if err := c.collect(t.Context(), []string{folder}); err != nil || len(c.sources) != 300 {
		t.Fatalf("got %d files, %v", len(c.sources), err)
	}
	if after := openFiles(t); after > before+20 {
		t.Errorf("%d files are open, %d before", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
