//go:build linux || darwin

package preflight

import "golang.org/x/sys/unix"

// room is what a user may still write below a folder, and whether this one may.
func room(folder string) (free uint64, writable bool, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(folder, &s); err != nil {
		return 0, false, err
	}
	return s.Bavail * uint64(s.Bsize), unix.Access(folder, unix.W_OK) == nil, nil
}

func openFiles() (uint64, error) {
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	return limit.Max, err // a Go program raises its own limit to this one
}
