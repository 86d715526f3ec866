package kerberos_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"postern/catalog"
	"postern/client/kerberos"
	"postern/internal/realms"
	"postern/internal/realms/realmstest"
)

// A device runs for months: its account's password changes and somebody renews the cache meanwhile.
func TestAChangedCredentialIsTakenUp(t *testing.T) {
	t.Parallel()
	r := realmstest.Start(t, realms.Options{})
	began := time.Now()

	t.Run("a keytab with a new key", func(t *testing.T) {
		now, file := began, filepath.Join(t.TempDir(), "machine.keytab")
		if err := r.AddPrincipal(realms.Child, "ROTATES$", realms.Principal{Preauth: true}); err != nil {
			t.Fatal(err)
		}
		if err := r.Keytab(realms.Child, file, "ROTATES$"); err != nil {
			t.Fatal(err)
		}
		m := machine(t, r, func(c *kerberos.Config) { c.Keytab, c.Now = file, func() time.Time { return now } })
		negotiate(t, m, r.Host("mp"), nil)
		if err := r.ChangeKey(realms.Child, "ROTATES$"); err != nil {
			t.Fatal(err)
		}
		now = began.Add(11 * time.Hour)
		if _, err := m.Negotiate(t.Context(), r.Host("mp"), nil); catalog.CodeOf(err) != catalog.ClientKerberosKey {
			t.Fatalf("with the former key: got %v, want %s", err, catalog.ClientKerberosKey)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := r.Keytab(realms.Child, file, "ROTATES$"); err != nil {
			t.Fatal(err)
		}
		negotiate(t, m, r.Host("mp"), nil)
	})

	t.Run("a cache with a new ticket", func(t *testing.T) {
		now := began
		first := realmstest.Login(t, r, realms.Child)
		m := machine(t, r, func(c *kerberos.Config) { c.Keytab, c.CCache, c.Now = "", first.Cache, func() time.Time { return now } })
		negotiate(t, m, r.Host("mp"), nil)
		other, err := r.Login(t.Context(), realms.Child, realms.User, r.UserKeytab(realms.Child))
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(other.Cache)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, first.Cache, string(content))
		now = began.Add(11 * time.Hour)
		if _, err := m.Negotiate(t.Context(), r.Host("mp"), nil); catalog.CodeOf(err) != catalog.ClientKerberosExpired {
			t.Fatalf("the cache of another account: got %v, want %s", err, catalog.ClientKerberosExpired)
		}
		if got, want := m.Principal(), realms.Computer+"@"+realms.Child; got != want {
			t.Errorf("principal %s, want %s", got, want)
		}
		now = began
		if err := first.Login(t.Context(), realms.Computer+"@"+realms.Child, r.ComputerKeytab(realms.Child)); err != nil {
			t.Fatal(err)
		}
		negotiate(t, m, r.Host("mp"), nil)
	})
}
