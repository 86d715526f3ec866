package role_test

import (
	"bytes"
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/internal/role"
	"postern/site"
	"postern/token"
)

// invited is a management point that runs, and what a connector that it has invited joins with.
func invited(t *testing.T) (point *role.Running, ask role.NewConnector) {
	t.Helper()
	dir := t.TempDir()
	made, err := role.InitSite(t.Context(), role.NewSite{Dir: filepath.Join(dir, "site"), Code: "P01", HTTPS: "127.0.0.1:0", Actor: "test"}, role.Protection{}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	point = start(t, made.Config)
	code, err := point.Site.Invite(t.Context(), "dc1", "test")
	if err != nil {
		t.Fatal(err)
	}
	return point, role.NewConnector{Dir: filepath.Join(dir, "connector"), ManagementPoint: point.Site.ManagementPoints()[0].InternalURL, Code: code + "." + made.SiteRoot}
}

// TestConnectorRenewsItsCertificate: a connector whose certificate has less than ninety days left gets another for the same key. A blocked one does not.
func TestConnectorRenewsItsCertificate(t *testing.T) {
	for name, blocked := range map[string]bool{"admitted": false, "blocked": true} {
		t.Run(name, func(t *testing.T) {
			point, ask := invited(t)
			joined, err := role.JoinConnector(t.Context(), ask, role.Protection{}, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(ask.Dir, "role.crt")
			before := read(t, file)
			if blocked {
				if err := point.Site.BlockConnector(t.Context(), "dc1", true, "test", "try it"); err != nil {
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

// A code that was printed before the site root was replaced joins a connector all the same: the old root's signature leads to the new one. A root that nothing
// leads to stays refused.
func TestAConnectorJoinsWithTheHashOfARootThatWasReplaced(t *testing.T) {
	point, ask := invited(t)
	code := ask.Code
	if _, err := point.Site.Rotate(t.Context(), site.PurposeRoot, "test"); err != nil {
		t.Fatal(err)
	}
	ask.Code = strings.Split(code, ".")[0] + "." + strings.Repeat("0", 64)
	if _, err := role.JoinConnector(t.Context(), ask, role.Protection{}, time.Now); catalog.CodeOf(err) != catalog.JoinUnreachable {
		t.Errorf("with another root: %v, want %s", err, catalog.JoinUnreachable)
	}
	newest := role.PinnedTLS(point.Site.RootPin(), token.RoleManagementPoint, time.Now)
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) { // until its certificate is under the new root
		connection, err := tls.Dial("tcp", point.Addresses["https"], newest)
		if err == nil {
			connection.Close()
			break
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
	}
	ask.Code = code
	joined, err := role.JoinConnector(t.Context(), ask, role.Protection{}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if config, err := role.Load(joined.Config); err != nil || config.SiteRoot != point.Site.RootPin() {
		t.Errorf("it trusts %q (%v), want the root of now, %s", config.SiteRoot, err, point.Site.RootPin())
	}
}
