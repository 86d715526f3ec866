package client

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"postern/catalog"
	"postern/keyfile"
)

// TestAFullDisk: nothing can be written any more, in a real file system. The files stay as they were, the keys first of all; the message names the reason; and
// once there is room the device goes on.
func TestAFullDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disk")
	succeed(t, os.Mkdir(dir, 0o700))
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512k,mode=0700"); err != nil {
		if !errors.Is(err, fs.ErrPermission) {
			t.Fatal(err)
		}
		t.Skipf("a small disk needs the right to mount one: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	site := newTestSite(t)
	agent := site.agentIn(dir, new(int), site.clock)
	agent.enrol(t, site.setup())
	id, before := agent.Status().ClientID, agent.files(t)

	filler := filepath.Join(dir, "filler")
	fill(t, filler)
	for name, act := range map[string]func() error{
		"renew":      func() error { return agent.Renew(t.Context(), true) },
		"rotate key": func() error { return agent.RotateKey(t.Context()) },
	} {
		err := act()
		if catalog.CodeOf(err) != catalog.ClientStateNotWritten || !strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("%s: got %v, want %s with the reason", name, err, catalog.ClientStateNotWritten)
		}
	}
	if after := agent.files(t); after != before {
		t.Errorf("the full disk has changed the folder:\n%s\nbefore:\n%s", after, before)
	}
	if left, err := filepath.Glob(filepath.Join(agent.dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left over: %q, %v", left, err)
	}
	again := site.agentIn(dir, agent.made, site.clock) // a start on a full disk
	if got := again.Status(); got.ClientID != id || got.State != StateReady {
		t.Errorf("got %+v", got)
	}

	succeed(t, os.Remove(filler))
	succeed(t, again.Renew(t.Context(), true))
	if got := again.Status(); got.ClientID != id || got.LastError != "" {
		t.Errorf("with room again: %+v", got)
	}
}

// fill writes until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	succeed(t, err)
	defer file.Close()
	for size := 64 << 10; size > 0; size /= 2 {
		for err = error(nil); err == nil; {
			_, err = io.Copy(file, bytes.NewReader(make([]byte, size)))
		}
	}
	if err := keyfile.WriteFile(filepath.Join(filepath.Dir(path), "one more"), make([]byte, 5000)); err == nil {
		t.Fatal("the disk is not full")
	}
}
