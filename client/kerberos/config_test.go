package kerberos

import (
	"os"
	"path/filepath"
	"testing"
)

// A machine that joined a domain often names no server: its krb5.conf leaves that to DNS.
func TestServersAreLookedUpUnlessForbidden(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want bool
	}{
		"not said":        {"[libdefaults]\n default_realm = CORP.EXAMPLE\n", true},
		"said in a note":  {"[libdefaults]\n# dns_lookup_kdc = false\n", true},
		"forbidden":       {"[libdefaults]\n dns_lookup_kdc = false\n", false},
		"forbidden, no":   {"[libdefaults]\n\tdns_lookup_kdc=no\n", false},
		"allowed":         {"[libdefaults]\n dns_lookup_kdc = true\n", true},
		"another setting": {"[libdefaults]\n dns_lookup_realm = false\n", true},
	} {
		path := filepath.Join(t.TempDir(), "krb5.conf")
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := readConfig(path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := c.LibDefaults.DNSLookupKDC; got != test.want {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
}
