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
		{"empty file", "", "EOF"},
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
