package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/diag/explain"
)

// Nothing is shown in the first second, then a line that is overwritten, and at the end it is wiped away.
func TestProgressOfALongReading(t *testing.T) {
	var out strings.Builder
	at := time.Date(2024, 3, 11, 9, 0, 0, 0, time.UTC)
	show := showProgress(&out, func() time.Time { return at })
	step := func(after time.Duration, p explain.Progress) string {
		out.Reset()
		at = at.Add(after)
		show(p)
		return out.String()
	}
	cases := []struct {
		name  string
		after time.Duration
		p     explain.Progress
		want  string
	}{
		{"in the first second", 900 * time.Millisecond, explain.Progress{Files: 3, Bytes: 1 << 20}, ""},
		{"after it", 200 * time.Millisecond, explain.Progress{Files: 3, Done: 1, Bytes: 300 << 20}, "\r\x1b[K300 MB, 1 of 3 files"},
		{"at once again", 10 * time.Millisecond, explain.Progress{Files: 3, Done: 1, Bytes: 301 << 20}, ""},
		{"later", time.Second, explain.Progress{Files: 3, Done: 2, Bytes: 600 << 20}, "\r\x1b[K600 MB, 2 of 3 files"},
		{"at the end", time.Second, explain.Progress{Files: 3, Done: 3, Bytes: 900 << 20}, "\r\x1b[K"},
	}
	for _, c := range cases {
		if got := step(c.after, c.p); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	if s := (&session{err: &out}); s.progress(time.Now) != nil {
		t.Error("what is no terminal is shown progress")
	}
}

// A page goes into a new file, or to what is no file and stays what it is.
func TestWhereAPageGoes(t *testing.T) {
	folder := t.TempDir()
	link := filepath.Join(folder, "out")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(folder, "page.html"), link} {
		if err := writePage(path, explain.Report{}); err != nil {
			t.Error(err)
		}
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is %v now, %v", info, err)
	}
	if content, err := os.ReadFile(filepath.Join(folder, "page.html")); err != nil || !strings.Contains(string(content), "</html>") {
		t.Errorf("got %d bytes, %v", len(content), err)
	}
	log := filepath.Join(folder, "CCM_STS.log")
	if err := os.WriteFile(log, []byte("a line"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, free := range map[string]bool{"": true, filepath.Join(folder, "new"): true, filepath.Join(folder, "page.html"): true, link: true, log: false} {
		if err := freeForPage(path); free != (err == nil) || !free && catalog.CodeOf(err) != catalog.PageNotWritten {
			t.Errorf("%q: %v", path, err)
		}
	}
	if err := writePage(folder, explain.Report{}); err == nil {
		t.Error("a page was written over a folder")
	}
}

func TestWhatExplainIsNotAskedFor(t *testing.T) {
	cases := []struct {
		name, want string
		arguments  []string
	}{
		{"nothing", "name a log file", nil},
		{"nothing but a page to write", "LOGS --html page.html", []string{"--html", "logs"}},
		{"standard input, again and again", "standard input cannot be", []string{"--follow", "-"}},
		{"no time between two looks", "--every wants a time", []string{"--follow", "--every", "0s", "logs"}},
	}
	for _, c := range cases {
		command := newExplain(&session{})
		command.SetArgs(c.arguments)
		command.SilenceErrors, command.SilenceUsage = true, true
		if err := command.Execute(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}
