package lab_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"postern/catalog"
	"postern/ccm"
	"postern/internal/role"
)

// TestDiskFull (design decision 8): while there is no room, a registration is kept or refused with a code, never half of both. When there is
// room again the management point goes on by itself, and what it acknowledged is still there, also after kill -9.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	t.Run("a full file system", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=0700"); err != nil {
			if !errors.Is(err, fs.ErrPermission) {
				t.Fatal(err)
			}
			t.Skipf("a small file system needs the right to mount one: %v", err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		d := deployPoint(t, role.NewSite{Dir: dir})
		fill := filepath.Join(dir, "fill")
		testDiskFull(d, func() { fillUp(t, fill) }, func() { d.must(os.Remove(fill)) })
	})
	t.Run("a limit of file size", func(t *testing.T) {
		t.Parallel()
		d := deployPoint(t, role.NewSite{})
		limit := func(to uint64) {
			d.must(unix.Prlimit(d.point.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: to, Max: unix.RLIM_INFINITY}, nil))
		}
		testDiskFull(d, func() { limit(1) }, func() { limit(unix.RLIM_INFINITY) })
	})
}

// fillUp writes until nothing more fits.
func fillUp(t testing.TB, path string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for size := 64 << 10; size > 0; {
		if _, err := file.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func testDiskFull(d *deployment, fill, free func()) {
	d.Helper()
	var told acknowledged
	register := func() (refused catalog.Code) {
		d.Helper()
		one := newDevice(d, "full")
		response, a, err := d.tryRegister(one)
		d.must(err)
		switch {
		case response.Status == ccm.RegistrationDone || response.Status == ccm.RegistrationPending:
			told.add(one, response.SMSID)
			return ""
		case a.status != 503 || a.problem() == "" || a.header.Get("Retry-After") == "":
			d.Errorf("refused with %s, want 503, a code and Retry-After", a)
		}
		return a.problem()
	}
	for range 5 {
		if code := register(); code != "" {
			d.Fatalf("refused with %s while there is room", code)
		}
	}
	fill()
	refused := map[catalog.Code]int{}
	for range 12 {
		refused[register()]++
	}
	if refused[""] == 12 {
		d.Error("nothing was refused: the disk was not full")
	}
	d.Logf("while the disk was full: %v", refused)
	free()
	eventually(d, "the management point takes registrations again", func() bool { return register() == "" })
	d.kept(&told)
	d.point.kill()
	d.restartPoint(func(*exec.Cmd) {})
	d.kept(&told)
}
