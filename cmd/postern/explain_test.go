package main

import (
	"strings"
	"testing"
	"time"

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
