package realms

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Packages are the Debian packages with the programs that the realms and their clients need.
func Packages() []string { return []string{"krb5-kdc", "krb5-admin-server", "krb5-user"} }

// Install is the line that installs them.
const Install = "apt-get install krb5-kdc krb5-admin-server krb5-user"

// Missing names the programs that this machine lacks.
func Missing() (names []string) {
	for _, name := range []string{"kdb5_util", "kadmin.local", "krb5kdc", "kinit", "kvno"} {
		if find(name) == "" {
			names = append(names, name)
		}
	}
	return names
}

// find returns a program's path, "" when it is missing. Debian keeps some where only root's PATH leads.
func find(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	folders := []string{"/usr/sbin", "/usr/local/sbin", "/sbin"}
	at := slices.IndexFunc(folders, func(folder string) bool {
		info, err := os.Stat(filepath.Join(folder, name))
		return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
	})
	if at < 0 {
		return ""
	}
	return filepath.Join(folders[at], name)
}

// command prepares a program of the realm's server side, on the realm's private files.
func (k *realm) command(ctx context.Context, program string, arguments ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, find(program), arguments...)
	c.Dir = k.folder
	c.Env = append(cleanEnvironment(),
		"KRB5_CONFIG="+k.path("krb5.conf"),
		"KRB5_KDC_PROFILE="+k.path("kdc.conf"),
		"KRB5RCACHENAME=none:",
	)
	return c
}

// cleanEnvironment is ours without what would lead Kerberos to other files or translate its messages.
func cleanEnvironment() []string {
	kept := slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return strings.HasPrefix(entry, "KRB5") || strings.HasPrefix(entry, "LC_") || strings.HasPrefix(entry, "LANG")
	})
	return append(kept, "LC_ALL=C")
}
