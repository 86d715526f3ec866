package role_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/internal/role"
)

func TestLoadRefuses(t *testing.T) {
	cases := []struct{ why, content, says string }{
		{"empty file", "", "is empty"},
		{"nothing but a remark", "# later\n", "is empty"},
		{"a second document that nobody would read", "role: gateway\nname: x\nsite_root: y\nlisten: {https: ':1'}\n---\ntls: {certificate: c.pem, key: c.key}\n", "---"},
		{"no role", "name: x\n", "role is"},
		{"unknown role", "role: proxy\n", `role is "proxy"`},
		{"unknown setting", "role: gateway\nname: x\nsitte_root: y\n", "sitte_root"},
		{"not YAML", "role: [gateway\n", "yaml"},
		{"gateway without site root", "role: gateway\nname: x\nlisten: {https: ':1'}\n", "site_root"},
		{"connector without management point", "role: connector\nname: x\nsite_root: y\n", "management_point"},
		{"management point that listens nowhere", "role: management-point\nname: x\nstore: a\nsite_key: b\n", "listen.https"},
		{"address without port", "role: gateway\nname: x\nsite_root: y\nlisten: {https: localhost}\n", "listen.https"},
		{"certificate without key", "role: gateway\nname: x\nsite_root: y\nlisten: {https: ':1'}\ntls: {certificate: c.pem}\n", "tls needs"},
		{"company certificate incomplete", "role: management-point\nname: x\nstore: a\nsite_key: b\nlisten: {pki: {address: ':1'}}\n", "listen.pki"},
		{"leeway beyond ten minutes", "role: gateway\nname: x\nsite_root: y\nlisten: {https: ':1'}\nentra: {leeway: 11m}\n", "entra.leeway"},
		{"leeway below zero", "role: gateway\nname: x\nsite_root: y\nlisten: {https: ':1'}\nentra: {leeway: -1m}\n", "entra.leeway"},
		{"providers at a connector", "role: connector\nname: x\nsite_root: y\nmanagement_point: https://mp\nentra: {leeway: 1m}\n", "entra is a setting"},
		{"providers at a gateway", "role: gateway\nname: x\nsite_root: y\nlisten: {https: ':1'}\nentra: {roots: ca.pem}\n", "asks no provider"},
		{"a name with a scheme", "role: gateway\nname: https://gw.example.net\nsite_root: y\nlisten: {https: ':1'}\n", "without https://"},
		{"a further name with a port", "role: management-point\nname: mp\nnames: ['mp.corp.example:8444']\nstore: a\nsite_key: b\nlisten: {https: ':1'}\n", "without a port"},
		{"larger than the budget", "# " + strings.Repeat("x", 1<<20) + "\n", "bytes"},
	}
	for _, c := range cases {
		t.Run(c.why, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "role.yaml")
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := role.Load(path)
			if got := catalog.CodeOf(err); got != catalog.ConfigInvalid {
				t.Fatalf("code %q, want %q (%v)", got, catalog.ConfigInvalid, err)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q does not say %q", err, c.says)
			}
		})
	}
}

func TestLoadNamesAMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mp.yaml")
	_, err := role.Load(path)
	if catalog.CodeOf(err) != catalog.ConfigInvalid || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestLoadResolvesPathsFromTheFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "mp.yaml")
	content := "role: management-point\nname: x\nstore: site.db\nsite_key: site.key\nlisten: {https: ':1'}\nstate: mp\n"
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := role.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2]string{
		"store": {c.Store, "site.db"}, "site_key": {c.SiteKey, "site.key"}, "state": {c.State, "mp"}, "logs": {c.Logs, "mp/logs"},
	} {
		if want := filepath.Join(dir, pair[1]); pair[0] != want {
			t.Errorf("%s is %q, want %q", name, pair[0], want)
		}
	}
}

func TestTheLeewayIsReadForBothThatJudge(t *testing.T) {
	for _, content := range []string{
		"role: gateway\nname: x\nsite_root: y\nlisten: {https: ':1'}\nentra: {leeway: 2m30s}\n",
		"role: management-point\nname: x\nstore: a\nsite_key: b\nlisten: {https: ':1'}\nentra: {leeway: 2m30s}\n",
	} {
		path := filepath.Join(t.TempDir(), "role.yaml")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := role.Load(path)
		if err != nil || c.Entra.Leeway != 150*time.Second {
			t.Errorf("%s: got %s, %v", c.Role, c.Entra.Leeway, err)
		}
	}
}

// What `init` is told wrong is refused before anything is made.
func TestInitMakesNothingOfWhatARoleWouldNotTake(t *testing.T) {
	const root = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
	folder := func(t *testing.T) string { return filepath.Join(t.TempDir(), "new") }
	tests := map[string]func(dir string) error{
		"a gateway's name with a scheme": func(dir string) error {
			_, err := role.InitGateway(role.NewGateway{Dir: dir, Name: "https://gw.example.net", SiteRoot: root}, role.Protection{})
			return err
		},
		"a gateway's name with a port": func(dir string) error {
			_, err := role.InitGateway(role.NewGateway{Dir: dir, Name: "gw.example.net:443", SiteRoot: root}, role.Protection{})
			return err
		},
		"a gateway without a name": func(dir string) error {
			_, err := role.InitGateway(role.NewGateway{Dir: dir, SiteRoot: root}, role.Protection{})
			return err
		},
		"a site's address without a port": func(dir string) error {
			_, err := role.InitSite(t.Context(), role.NewSite{Dir: dir, Code: "P01", HTTPS: "mp.corp.example"}, role.Protection{}, time.Now)
			return err
		},
		"a site's name with a line break": func(dir string) error {
			_, err := role.InitSite(t.Context(), role.NewSite{Dir: dir, Code: "P01", Name: "mp\nverbose: true"}, role.Protection{}, time.Now)
			return err
		},
	}
	for name, make := range tests {
		dir := folder(t)
		if err := make(dir); catalog.CodeOf(err) != catalog.InvalidArgument {
			t.Errorf("%s: %v, want %s", name, err, catalog.InvalidArgument)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: something was made in its folder", name)
		}
	}
}
