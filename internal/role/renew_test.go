package role_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"postern/internal/role"
)

// TestConnectorRenewsItsCertificate: a connector whose certificate has less than ninety days left gets another for the same key. A blocked one does not.
func TestConnectorRenewsItsCertificate(t *testing.T) {
	for name, blocked := range map[string]bool{"admitted": false, "blocked": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			made, err := role.InitSite(t.Context(), role.NewSite{Dir: filepath.Join(dir, "site"), Code: "P01", HTTPS: "127.0.0.1:0", Actor: "test"}, role.Protection{}, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			point := start(t, made.Config)
			code, err := point.Site.Invite(t.Context(), "dc1", "test")
			if err != nil {
				t.Fatal(err)
			}
			ask := role.NewConnector{Dir: filepath.Join(dir, "connector"), ManagementPoint: point.Site.ManagementPoints()[0].InternalURL, Code: code + "." + made.SiteRoot}
			joined, err := role.JoinConnector(t.Context(), ask, role.Protection{}, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, "connector", "role.crt")
			before := read(t, file)
			if blocked {
				if err := point.Site.BlockConnector(t.Context(), "dc1", true, "test"); err != nil {
					t.Fatal(err)
				}
			}
			config, err := role.Load(joined.Config)
			if err != nil {
				t.Fatal(err)
			}
			later := func() time.Time { return time.Now().Add(300 * 24 * time.Hour) }
			r, err := role.Start(t.Context(), config, role.Environment{Now: later})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Stop()
			changed := false
			for until := time.Now().Add(10 * time.Second); !changed && time.Now().Before(until) && !(blocked && time.Now().Add(9*time.Second).After(until)); time.Sleep(10 * time.Millisecond) {
				changed = !bytes.Equal(before, read(t, file))
			}
			if changed == blocked {
				t.Errorf("renewed: %v, blocked: %v", changed, blocked)
			}
		})
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
