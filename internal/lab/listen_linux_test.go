package lab_test

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"postern/internal/role"
)

// TestNothingListensBeyondLoopback reads the kernel's own table of this process.
func TestNothingListensBeyondLoopback(t *testing.T) {
	w := newWorld(t)
	listening := listeners(t, os.Getpid())
	for _, l := range listening {
		if !l.IP.IsLoopback() {
			t.Errorf("%s listens beyond loopback", l)
		}
	}
	for name, address := range map[string]string{
		"management point": w.ManagementPoint.Addresses["https"], "management point, plain": w.ManagementPoint.Addresses["http"], "gateway": w.Gateway.Addresses["https"],
	} {
		if !slices.ContainsFunc(listening, func(l *net.TCPAddr) bool { return l.String() == address }) {
			t.Errorf("%s at %s is not among %v", name, address, listening)
		}
	}
	if want := 3; len(listening) != want {
		t.Errorf("%d sockets listen: %v; want %d, and none of the connector", len(listening), listening, want)
	}
}

// TestWrittenConfigurationListensOnLoopback: what `postern site init` writes without being told where to listen stays on this machine.
func TestWrittenConfigurationListensOnLoopback(t *testing.T) {
	t.Parallel()
	made := newSite(t, t.TempDir(), role.NewSite{})
	p := serve(t, "mp", made.Config)
	listening := listeners(t, p.Process.Pid)
	if len(listening) == 0 {
		t.Fatal("the management point does not listen")
	}
	for _, l := range listening {
		if !l.IP.IsLoopback() {
			t.Errorf("%s listens beyond loopback", l)
		}
	}
}

// listeners returns the TCP sockets of a process that listen.
func listeners(t testing.TB, pid int) (all []*net.TCPAddr) {
	t.Helper()
	own := map[string]bool{}
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if link, err := os.Readlink(filepath.Join(folder, e.Name())); err == nil {
			if inode, ok := strings.CutPrefix(link, "socket:["); ok {
				own[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	const listen = "0A"
	for _, table := range []string{"tcp", "tcp6"} {
		file, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			continue // no IPv6 here
		}
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			fields := strings.Fields(lines.Text())
			if len(fields) > 9 && fields[3] == listen && own[fields[9]] {
				all = append(all, kernelAddress(t, fields[1]))
			}
		}
	}
	return all
}

// kernelAddress reads an address as /proc/net/tcp has it: words of four bytes in the machine's order, then the port.
func kernelAddress(t testing.TB, text string) *net.TCPAddr {
	t.Helper()
	ip, port, _ := strings.Cut(text, ":")
	words, err := hex.DecodeString(ip)
	if err != nil {
		t.Fatal(err)
	}
	a := &net.TCPAddr{}
	for i := 0; i < len(words); i += 4 {
		slices.Reverse(words[i : i+4])
	}
	a.IP = words
	fmt.Sscanf(port, "%X", &a.Port)
	return a
}
