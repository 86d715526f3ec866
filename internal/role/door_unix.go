//go:build unix

package role

import (
	"net"
	"os"
	"syscall"
)

// listenPrivately makes the socket with nobody but its owner allowed from the first moment.
func listenPrivately(path string) (net.Listener, error) {
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return listener, os.Chmod(path, 0o600)
}
