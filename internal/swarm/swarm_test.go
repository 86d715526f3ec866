package swarm

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"os"
	"testing"
	"time"

	"postern/catalog"
)

const serversFolder = "SWARM_TEST_SERVERS"

// TestMain is the servers' process when a test has started it as that.
func TestMain(m *testing.M) {
	dir := os.Getenv(serversFolder)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := Serve(context.Background(), dir, os.Stdin, os.Stdout); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}

func TestKeysAreUsableAndDifferent(t *testing.T) {
	const count = 12
	pool, err := newKeys(t.Context(), count)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	digest := sha256.Sum256([]byte("x"))
	for n := range count {
		key, err := pool.key(n)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		if err := rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest[:], signature); err != nil {
			t.Error(err)
		}
		if got := key.N.BitLen(); got != keyBits {
			t.Errorf("key %d has %d bits", n, got)
		}
		seen[key.N.String()] = true
	}
	if len(seen) != count {
		t.Errorf("got %d different keys, want %d", len(seen), count)
	}
}

func TestFleetsOfNoSize(t *testing.T) {
	for _, options := range []Options{{Devices: MinDevices - 1}, {Devices: MaxDevices + 1}, {Devices: MinDevices, Sleepers: MinDevices + 1}} {
		if _, err := Run(t.Context(), options); catalog.CodeOf(err) != catalog.SwarmSize {
			t.Errorf("%+v: got %v", options, err)
		}
	}
}

func TestServersThatDoNotStart(t *testing.T) {
	if _, err := Run(t.Context(), Options{Devices: MinDevices, Servers: []string{os.Args[0], "-test.list", "^$"}}); catalog.CodeOf(err) != catalog.SwarmServers {
		t.Errorf("got %v", err)
	}
}

// A small fleet lives its whole life against the real servers.
func TestALife(t *testing.T) {
	t.Setenv(serversFolder, t.TempDir())
	const count, sleepers, retry = 12, 3, 4 * time.Second
	report, err := Run(t.Context(), Options{Devices: count, Sleepers: sleepers, Servers: []string{os.Args[0]}, firstRetry: retry})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Acts) != 6 {
		t.Errorf("got %d acts, want 6", len(report.Acts))
	}
	for _, act := range report.Acts {
		if act.Failed > 0 || act.Requests < int64(act.Devices) {
			t.Errorf("%+v", act)
		}
	}
	back := 0
	for _, n := range report.Storm {
		back += n
	}
	if early := retry - retry/spread; back != count || report.AllBack < early.Seconds() {
		t.Errorf("%d were back, the last after %.1f s: %v", back, report.AllBack, report.Storm)
	}
	if report.Quarantined != sleepers || report.Lifted != sleepers {
		t.Errorf("%d were in quarantine and %d left it, want %d", report.Quarantined, report.Lifted, sleepers)
	}
}
