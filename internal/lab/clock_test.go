package lab_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/client"
	"postern/logfile"
)

// TestDeviceClockIsWrong (design decision 10): a device whose clock is an hour off learns the time from the site it trusts, enrols, and says
// so. It never moves its own clock.
func TestDeviceClockIsWrong(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, off := range map[string]time.Duration{"an hour behind": -time.Hour, "an hour ahead": time.Hour, "half a minute behind": -30*time.Second + time.Second} {
		t.Run(name, func(t *testing.T) {
			w := w.on(t)
			dir := filepath.Join(t.TempDir(), "device")
			now := func() time.Time { return time.Now().Add(off) }
			logs := logfile.NewFolder(filepath.Join(dir, "logs"), logfile.Options{Now: now})
			defer logs.Close()
			agent, err := client.Open(client.Config{Dir: dir, Now: now, Logs: logs})
			w.must(err)
			defer agent.Close()
			raw, _ := w.bulk(1)
			w.must(agent.Enrol(t.Context(), w.Setup("clock", raw)))
			status := agent.Status()
			if status.State != client.StateReady {
				t.Fatalf("the device is %s", status.State)
			}
			if status.ClockOffset == 0 && off.Abs() < time.Minute {
				return // within the leeway nothing has to be said
			}
			if miss := (status.ClockOffset + off).Abs(); miss > 5*time.Second {
				t.Errorf("learned an offset of %s, want %s", status.ClockOffset, -off)
			}
			said := false
			files, _ := filepath.Glob(filepath.Join(dir, "logs", "*.log"))
			for _, file := range files {
				text, err := os.ReadFile(file)
				w.must(err)
				said = said || strings.Contains(strings.ToLower(string(text)), "clock")
			}
			if !said {
				t.Errorf("no log of the device speaks of its clock: %v", files)
			}
		})
	}
}
