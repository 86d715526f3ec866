//go:build ad && linux

package realms

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"text/template"
	"time"
	"unicode/utf16"

	"golang.org/x/sync/errgroup"

	"postern/catalog"
)

// ForestPackages are the Debian packages that a forest needs beside [Packages].
func ForestPackages() []string {
	return []string{"samba", "samba-ad-provision", "samba-dsdb-modules", "samba-vfs-modules", "winbind", "python3-samba", "ldb-tools", "krb5-user", "attr", "acl"}
}

// ForestOptions say which forest to start.
type ForestOptions struct {
	Realm   string // e.g. A2003.VM.LOCAL; its DNS domain is the same in lower case
	Domain  string // the NetBIOS name, e.g. A2003
	Address string // a loopback address of its own, e.g. 127.0.0.31: the ports are the well-known ones
	Forward string // the domain controller that knows other names, "" for none
}

// Forest is an Active Directory forest of one domain with one domain controller, by Samba. It needs root: for the ports 53, 88, 389 and 445, and
// for a mount namespace, because Samba's file server finds its other half under /run/samba only and two controllers must not share it.
type Forest struct {
	ForestOptions
	Folder string
	// AdministratorPassword is that of the domain's Administrator.
	AdministratorPassword string

	process *process
	keeper  *keeper
	stop    sync.Once
}

// StartForest provisions a domain controller and starts it; this takes five to twenty seconds. Stop ends it.
func StartForest(ctx context.Context, options ForestOptions) (*Forest, error) {
	if err := forestReady(); err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", "postern-forest-") // 0700
	if err != nil {
		return nil, fmt.Errorf("make the forest's folder: %w", err)
	}
	f := &Forest{ForestOptions: options, Folder: folder, AdministratorPassword: "Passw0rd!x1"}
	if f.keeper, err = keep(folder); err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	if err := f.start(ctx); err != nil {
		f.Stop()
		return nil, fmt.Errorf("forest %s: %w", f.Realm, err)
	}
	return f, nil
}

func forestReady() error {
	var missing []string
	for _, name := range []string{"samba", "samba-tool", "ldbadd", "ldbmodify", "ldbsearch", "unshare", "nsenter", "kinit"} {
		if find(name) == "" {
			missing = append(missing, name)
		}
	}
	switch {
	case len(missing) > 0:
		return catalog.Errorf(catalog.ToolMissing, "a forest needs %s; install with: apt-get install --no-install-recommends %s", strings.Join(missing, ", "), strings.Join(ForestPackages(), " "))
	case os.Geteuid() != 0:
		return errors.New("a forest needs root: for ports below 1024 and a mount namespace")
	}
	return nil
}

// start provisions the domain and starts its controller. The program takes its name from the namespace's own resolver and /run.
func (f *Forest) start(ctx context.Context) error {
	if err := f.provision(ctx); err != nil {
		return err
	}
	const script = `mount -t tmpfs tmpfs /run && mkdir /run/samba && mount --bind "$1/resolv.conf" /etc/resolv.conf &&
exec "$2" -F --no-process-group -s "$1/etc/smb.conf"`
	c := exec.Command(find("unshare"), "-m", "sh", "-c", script, "samba", f.Folder, find("samba"))
	c.Dir, c.Env = f.Folder, f.environment()
	var err error
	if f.process, err = begin(c, f.path("log/out.log")); err != nil {
		return err
	}
	for _, port := range []string{"88", "389", "445", "53"} {
		if err := f.await(ctx, net.JoinHostPort(f.Address, port)); err != nil {
			return err
		}
	}
	return nil
}

// provision makes the domain. Without a file of ours the machine's own /etc/samba/smb.conf is copied in; without the interface the machine's
// other addresses get into DNS, and trusts cannot be made. TDB_NO_FSYNC is in the environment: the databases are thrown away.
func (f *Forest) provision(ctx context.Context) error {
	for _, folder := range []string{"etc", "run", "run/ncalrpc", "log", "cache"} {
		if err := os.Mkdir(f.path(folder), 0o700); err != nil {
			return err
		}
	}
	err := errors.Join(
		f.fill("base.conf", "[global]\n interfaces = {{.Address}}/8\n bind interfaces only = yes\n"),
		f.fill("resolv.conf", "nameserver {{.Address}}\n"),
		f.fill("krb5.conf", forestClient),
	)
	if err != nil {
		return err
	}
	out, err := f.command(ctx, "samba-tool", "domain", "provision", "-s", f.path("base.conf"), "--targetdir="+f.Folder,
		"--realm="+f.Realm, "--domain="+f.Domain, "--server-role=dc", "--dns-backend=SAMBA_INTERNAL", "--adminpass="+f.AdministratorPassword,
		"--host-name="+f.HostName(), "--host-ip="+f.Address).CombinedOutput()
	if err != nil {
		return fmt.Errorf("provision: %w\n%s", err, out)
	}
	return f.fill("etc/smb.conf", forestServer)
}

const forestClient = `[libdefaults]
 default_realm = {{.Realm}}
 dns_lookup_realm = false
 dns_lookup_kdc = false
 rdns = false
 dns_canonicalize_hostname = false
 canonicalize = true
 udp_preference_limit = 1
[realms]
 {{.Realm}} = {
  kdc = {{.Address}}
  admin_server = {{.Address}}
 }
`

// The mask of the interface has to be that of a real one (lo has /8), or the file server ends the whole.
const forestServer = `[global]
 netbios name = {{.HostName}}
 realm = {{.Realm}}
 workgroup = {{.Domain}}
 server role = active directory domain controller
 interfaces = {{.Address}}/8
 bind interfaces only = yes
 server services = s3fs, rpc, ldap, cldap, kdc, winbindd, dns
 dns forwarder = {{or .Forward "0.0.0.0"}}
 allow dns updates = disabled
 tls enabled = no
 prefork children = 1
 rpc server dynamic port range = 49152-49300
 private dir = {{.Folder}}/private
 state directory = {{.Folder}}/state
 cache directory = {{.Folder}}/cache
 lock directory = {{.Folder}}/run
 pid directory = {{.Folder}}/run
 ncalrpc dir = {{.Folder}}/run/ncalrpc
 binddns dir = {{.Folder}}/bind-dns
 ntp signd socket directory = {{.Folder}}/run/ntp_signd
 usershare path =
 load printers = no
 printcap name = /dev/null
 log file = {{.Folder}}/log/log.%m
 logging = file
 log level = 1
[sysvol]
 path = {{.Folder}}/state/sysvol
 read only = no
[netlogon]
 path = {{.Folder}}/state/sysvol/{{.DNSDomain}}/scripts
 read only = no
`

func (f *Forest) fill(name, text string) error {
	var out strings.Builder
	if err := template.Must(template.New(name).Parse(text)).Execute(&out, f); err != nil {
		return err
	}
	return os.WriteFile(f.path(name), []byte(out.String()), 0o600)
}

func (f *Forest) path(name string) string { return filepath.Join(f.Folder, name) }

// DNSDomain is the domain's DNS name, HostName its controller's.
func (f *Forest) DNSDomain() string { return strings.ToLower(f.Realm) }
func (f *Forest) HostName() string  { return "DC-" + f.Domain }

// DN returns the name of an object of the domain's directory: DN("CN=Users") is CN=Users,DC=a2003,DC=vm,DC=local.
func (f *Forest) DN(below string) string {
	return below + ",DC=" + strings.ReplaceAll(f.Realm, ".", ",DC=")
}

func (f *Forest) environment() []string {
	return append(cleanEnvironment(), "KRB5_CONFIG="+f.path("krb5.conf"), "KRB5CCNAME=FILE:"+f.path("ccache"), "TDB_NO_FSYNC=1")
}

func (f *Forest) command(ctx context.Context, program string, arguments ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, find(program), arguments...)
	c.Dir, c.Env = f.Folder, f.environment()
	dieWithParent(c)
	return c
}

func (f *Forest) await(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for !answers(ctx, address) {
		select {
		case <-f.process.ended:
			out, _ := os.ReadFile(f.path("log/out.log"))
			return fmt.Errorf("the domain controller ended at once: %s", out)
		case <-ctx.Done():
			return fmt.Errorf("no answer on %s: %w", address, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Stop ends the domain controller and removes its folder. Its children end with it.
func (f *Forest) Stop() {
	f.stop.Do(func() {
		f.process.end()
		f.keeper.release()
		os.RemoveAll(f.Folder)
	})
}

// Tool runs samba-tool on the domain controller, in its namespace, and returns what it printed.
func (f *Forest) Tool(ctx context.Context, arguments ...string) (string, error) {
	inside := append([]string{"-t", fmt.Sprint(f.process.id()), "-m", find("samba-tool")}, arguments...)
	out, err := f.command(ctx, "nsenter", append(inside, "-s", f.path("etc/smb.conf"))...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("samba-tool %s: %w: %s", strings.Join(arguments[:min(2, len(arguments))], " "), err, out)
	}
	return string(out), nil
}

// Modify changes the directory by LDIF, with the directory's own checks.
func (f *Forest) Modify(ctx context.Context, ldif string) error {
	return f.ldb(ctx, "ldbmodify", f.path("private/sam.ldb"), ldif)
}

// Force changes the directory by LDIF below its checks, in the file of the domain's partition: a service principal name can then be on two
// accounts, as it can be after a merge of two controllers' changes.
func (f *Forest) Force(ctx context.Context, ldif string) error {
	partition := strings.TrimPrefix(strings.ToUpper(f.DN("")), ",")
	return f.ldb(ctx, "ldbmodify", f.path("private/sam.ldb.d/"+partition+".ldb"), ldif)
}

func (f *Forest) ldb(ctx context.Context, program, database, ldif string) error {
	c := f.command(ctx, program, "-H", database)
	c.Stdin = strings.NewReader(ldif)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, out)
	}
	return nil
}

// Search returns the values of an attribute of the objects that a filter finds.
func (f *Forest) Search(ctx context.Context, filter, attribute string) (values []string, err error) {
	out, err := f.command(ctx, "ldbsearch", "-H", f.path("private/sam.ldb"), filter, attribute).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("ldbsearch: %w: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if value, found := strings.CutPrefix(line, attribute+": "); found {
			values = append(values, strings.TrimSpace(value))
		}
	}
	return values, nil
}

// Account is a computer or a service account to make.
type Account struct {
	Name            string // a computer's without the $
	Computer        bool
	Password        string
	Services        []string // service principal names
	EncryptionTypes int      // msDS-SupportedEncryptionTypes; 24 is AES only; 0 leaves it unset, and tickets for the account are RC4
}

// AESOnly is AES128 and AES256 in msDS-SupportedEncryptionTypes.
const AESOnly = 24

// SAMName is the account's name in tickets: a computer's ends in $.
func (a Account) SAMName() string {
	if a.Computer {
		return a.Name + "$"
	}
	return a.Name
}

// DN returns where the account is in the directory.
func (a Account) DN(f *Forest) string {
	if a.Computer {
		return f.DN("CN=" + a.Name + ",CN=Computers")
	}
	return f.DN("CN=" + a.Name + ",CN=Users")
}

// Add makes accounts, all in one step.
func (f *Forest) Add(ctx context.Context, accounts ...Account) error {
	var ldif strings.Builder
	for _, a := range accounts {
		class, control := "user", 512 // NORMAL_ACCOUNT
		if a.Computer {
			class, control = "computer", 4096 // WORKSTATION_TRUST_ACCOUNT
		}
		fmt.Fprintf(&ldif, "dn: %s\nobjectClass: %s\nsAMAccountName: %s\nuserAccountControl: %d\nunicodePwd:: %s\n", a.DN(f), class, a.SAMName(), control, quotedPassword(a.Password))
		for _, service := range a.Services {
			fmt.Fprintf(&ldif, "servicePrincipalName: %s\n", service)
		}
		if a.EncryptionTypes != 0 {
			fmt.Fprintf(&ldif, "msDS-SupportedEncryptionTypes: %d\n", a.EncryptionTypes)
		}
		ldif.WriteString("\n")
	}
	return f.ldb(ctx, "ldbadd", f.path("private/sam.ldb"), ldif.String())
}

// quotedPassword is a password as the attribute unicodePwd takes it: in quotes, UTF-16LE, here in LDIF's base64.
func quotedPassword(password string) string {
	var raw []byte
	for _, unit := range utf16.Encode([]rune(`"` + password + `"`)) {
		raw = append(raw, byte(unit), byte(unit>>8))
	}
	return base64.StdEncoding.EncodeToString(raw)
}

// Keytab exports an account's keys, under the account's name. Exporting a service principal name instead would give an RC4 key alone.
func (f *Forest) Keytab(ctx context.Context, file, samName string) error {
	if _, err := f.Tool(ctx, "domain", "exportkeytab", file, "--principal="+samName); err != nil {
		return err
	}
	if _, err := os.Stat(file); err != nil {
		return fmt.Errorf("export keytab of %s: the account has no keys: %w", samName, err)
	}
	return nil
}

// Trust makes a forest trust in both directions, in both forests. Each must forward DNS to the other.
func (f *Forest) Trust(ctx context.Context, other *Forest) error {
	_, err := f.Tool(ctx, "domain", "trust", "create", other.Realm, "--type=forest", "--direction=both", "--create-location=both",
		"-U", "Administrator@"+other.Realm+"%"+other.AdministratorPassword)
	return err
}

// ForestsConfig writes a clients' krb5.conf that names each forest's KDC and nothing else: the way between them is by referral.
func ForestsConfig(file string, forests ...*Forest) error {
	c := configuration{Realm: forests[0].Realm, Folder: filepath.Dir(file)}
	for _, f := range forests {
		c.Realms = append(c.Realms, kdcAddress{f.Realm, net.JoinHostPort(f.Address, "88")})
	}
	return write(file, "client", c)
}

// StartForests starts forests that forward DNS to each other in pairs, at the same time.
func StartForests(ctx context.Context, options ...ForestOptions) ([]*Forest, error) {
	forests := make([]*Forest, len(options))
	var group errgroup.Group
	for i, o := range options {
		if o.Forward == "" && len(options) > 1 {
			o.Forward = options[(i+1)%len(options)].Address
		}
		group.Go(func() (err error) {
			forests[i], err = StartForest(ctx, o)
			return err
		})
	}
	err := group.Wait()
	if err == nil {
		return forests, nil
	}
	for _, f := range forests {
		if f != nil {
			f.Stop()
		}
	}
	return nil, err
}
