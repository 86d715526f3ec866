package realms

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/keytab"
)

// Principal says how a principal is made.
type Principal struct {
	Password        string   // "" gives it a random key
	EncryptionTypes []string // default those of the options
	Preauth         bool     // the KDC asks for proof before it answers
}

// AddPrincipal adds a principal, given without its realm.
func (r *Realms) AddPrincipal(realm, name string, p Principal) error {
	return r.Admin(realm, r.add(name, p))
}

func (r *Realms) add(name string, p Principal) string {
	key := "-randkey"
	if p.Password != "" {
		key = "-pw " + quote(p.Password)
	}
	types := p.EncryptionTypes
	if len(types) == 0 {
		types = r.options.EncryptionTypes
	}
	preauth := ""
	if p.Preauth {
		preauth = " +requires_preauth"
	}
	return fmt.Sprintf("addprinc -e %s %s%s %s", quote(keySalts(types)), key, preauth, quote(name))
}

// DeletePrincipal deletes a principal.
func (r *Realms) DeletePrincipal(realm, name string) error {
	return r.Admin(realm, "delprinc -force "+quote(name))
}

// ChangeKey gives a principal a new random key: the key version goes up by one, and keytabs that were written before are stale.
func (r *Realms) ChangeKey(realm, name string) error {
	return r.Admin(realm, "cpw -randkey -e "+quote(keySalts(r.options.EncryptionTypes))+" "+quote(name))
}

// Keytab writes the keys of principals to a keytab, after those that the file has.
func (r *Realms) Keytab(realm, file string, names ...string) error {
	var commands []string
	for _, name := range names {
		commands = append(commands, ktadd(file, name))
	}
	return r.Admin(realm, commands...)
}

func ktadd(file, name string) string { return "ktadd -norandkey -k " + quote(file) + " " + quote(name) }

// complaint is what kadmin.local says of a command that went wrong. It ends with 0 all the same.
var complaint = regexp.MustCompile(`(?m)^.*(: .* while |[Uu]sage: |Unknown request|Unable to).*$`)

// Admin gives commands to kadmin.local on a realm's database, all of them in one process, which takes about 50 ms.
func (r *Realms) Admin(realm string, commands ...string) error {
	k := r.find(realm)
	if k == nil {
		return fmt.Errorf("there is no realm %s here", realm)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return k.admin(ctx, commands)
}

func (k *realm) admin(ctx context.Context, commands []string) error {
	if strings.ContainsAny(strings.Join(commands, ""), "\r\n\x00") {
		return errors.New("a command of kadmin.local is one line")
	}
	k.editing.Lock()
	defer k.editing.Unlock()
	c := k.command(ctx, "kadmin.local", "-r", k.name)
	c.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	out, err := c.CombinedOutput()
	if found := complaint.FindAll(out, -1); err == nil && found != nil {
		err = fmt.Errorf("%q", found)
	}
	if err != nil {
		return fmt.Errorf("edit realm %s: %w", k.name, err)
	}
	return nil
}

// quote writes an argument for kadmin.local, where a quote within quotes is written twice.
func quote(argument string) string { return `"` + strings.ReplaceAll(argument, `"`, `""`) + `"` }

// trust is a secret that two realms share: computers of From are let in by To.
type trust struct{ from, to, password string }

func (t trust) principal() string { return "krbtgt/" + t.to + "@" + t.from }

// trusts returns every trust. Parent and child trust each other.
func (r *Realms) trusts() []trust {
	trusts := []trust{{r.Child, r.Parent, rand.Text()}, {r.Parent, r.Child, rand.Text()}}
	for _, other := range r.options.Others {
		trusts = append(trusts, trust{other.Name, other.TrustedBy, rand.Text()})
	}
	return trusts
}

// create makes a realm's database with everything that it begins with.
func (r *Realms) create(ctx context.Context, k *realm, trusts []trust) error {
	out, err := k.command(ctx, "kdb5_util", "-r", k.name, "create", "-s", "-P", rand.Text()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make the database: %w\n%s", err, out)
	}
	return k.admin(ctx, r.beginning(k, trusts))
}

// beginning lists the commands that fill a new database.
func (r *Realms) beginning(k *realm, trusts []trust) (commands []string) {
	for _, t := range trusts {
		if t.from == k.name || t.to == k.name {
			commands = append(commands, r.add(t.principal(), Principal{Password: t.password}))
		}
	}
	commands = append(commands, r.add(User, Principal{Password: r.password}))
	names := []string{Computer}
	if k.name == r.Parent {
		names = []string{r.Service("mp"), r.Service("mpcluster"), ReportsAccount}
	}
	for _, name := range append(slices.Clone(names), User) {
		commands = append(commands, ktadd(k.path(fileOf(name)), name))
	}
	for i, name := range names {
		names[i] = r.add(name, Principal{})
	}
	return append(names, commands...)
}

// Service returns the service principal name of a host in the parent's domain: Service("mp") is HTTP/mp.a2003.vm.local.
func (r *Realms) Service(label string) string { return "HTTP/" + r.Host(label) }

// fileOf returns a principal's keytab's file name.
func fileOf(name string) string {
	return strings.Trim(regexp.MustCompile(`[^A-Za-z0-9.]+`).ReplaceAllString(name, "-"), "-") + ".keytab"
}

// writeKeytabs finishes the cluster's keytab. In Active Directory the cluster's name is one of several names of a service account, and what
// ktpass or samba-tool export is the account's key under the account's name. MIT's database has no second names, so the name is a principal
// here and its key is filed under the account's name.
func (r *Realms) writeKeytabs() error {
	return Rename(r.find(r.Parent).path(fileOf(r.Service("mpcluster"))), r.ClusterKeytab(), ClusterAccount)
}

// Rename copies a keytab and files its keys under another principal's name in the same realm.
func Rename(from, to, principal string) error {
	keys, err := keytab.Load(from)
	if err != nil {
		return fmt.Errorf("read keytab: %w", err)
	}
	for i := range keys.Entries {
		components := strings.Split(principal, "/")
		keys.Entries[i].Principal.Components = components
		keys.Entries[i].Principal.NumComponents = int16(len(components))
		keys.Entries[i].Principal.NameType = 1 // KRB5_NT_PRINCIPAL
	}
	raw, err := keys.Marshal()
	if err != nil {
		return fmt.Errorf("write keytab: %w", err)
	}
	return os.WriteFile(to, raw, 0o600)
}

// MPKeytab is the keytab of the management point HTTP/mp.a2003.vm.local.
func (r *Realms) MPKeytab() string { return r.find(r.Parent).path(fileOf(r.Service("mp"))) }

// ClusterKeytab is the keytab of the service account [ClusterAccount], whose key is that of HTTP/mpcluster.a2003.vm.local.
func (r *Realms) ClusterKeytab() string { return filepath.Join(r.Folder, "cluster.keytab") }

// WrongKeytab is the keytab of [ReportsAccount]: the wrong key for every service. A server that has it is in the place of one whose service
// principal name is registered on another account.
func (r *Realms) WrongKeytab() string { return r.find(r.Parent).path(fileOf(ReportsAccount)) }

// ComputerKeytab is the keytab of [Computer] in a realm, "" for the parent.
func (r *Realms) ComputerKeytab(realm string) string {
	if k := r.find(realm); k != nil && realm != r.Parent {
		return k.path(fileOf(Computer))
	}
	return ""
}

// UserKeytab is the keytab of [User] in a realm.
func (r *Realms) UserKeytab(realm string) string {
	if k := r.find(realm); k != nil {
		return k.path(fileOf(User))
	}
	return ""
}
