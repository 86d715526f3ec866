package lab_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
	"time"

	"postern/internal/role"
	"postern/site"
)

// newSite makes a site in a folder, as `postern site init` does.
func newSite(t testing.TB, dir string, ask role.NewSite) role.MadeSite {
	t.Helper()
	ask.Dir, ask.Code, ask.Actor = filepath.Join(dir, "site"), "PRC", "test"
	if ask.HTTPS == "" {
		ask.HTTPS = freeAddress(t)
	}
	made, err := role.InitSite(t.Context(), ask, role.Protection{}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// freeAddress is an address that nobody has now, below the ports that the system gives away by itself: roles that are stopped and started
// again need the same one.
func freeAddress(t testing.TB) string {
	t.Helper()
	for range 100 {
		if l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 12_000+rand.N(8_000))); err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

// openSite opens the site of a management point's configuration in this process.
func openSite(t testing.TB, config string) *site.Site {
	t.Helper()
	c, err := role.Load(config)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := role.OpenSite(t.Context(), c, role.Protection{}, time.Now, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close() })
	return opened.Site
}
