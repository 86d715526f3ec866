package realms

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"postern/catalog"
)

// The names of seed S0.
const (
	Parent   = "A2003.VM.LOCAL"
	Child    = "CHILD.A2003.VM.LOCAL"
	External = "EXTERNAL.EXAMPLE"
	Partner  = "PARTNER.EXAMPLE"

	// Computer is the computer account that every realm but the parent has: its own in each, under one name.
	Computer = "WK02-020-51W$"
	// User is a person's account in every realm.
	User = "admin1"
	// ClusterAccount is the service account of the cluster's name, ReportsAccount another one (both in the parent).
	ClusterAccount, ReportsAccount = "svc-mp", "svc-reports"
)

// The encryption types by MIT's names.
const (
	AES256     = "aes256-cts-hmac-sha1-96"    // 18
	AES128     = "aes128-cts-hmac-sha1-96"    // 17
	AES256SHA2 = "aes256-cts-hmac-sha384-192" // 20
	AES128SHA2 = "aes128-cts-hmac-sha256-128" // 19
	RC4        = "arcfour-hmac"               // 23
)

// Options say which realms to start. The zero value gives the parent and the child.
type Options struct {
	Parent, Child   string   // default [Parent] and [Child]
	Host            string   // the loopback address of the KDCs, default 127.0.0.1
	EncryptionTypes []string // of the principals that are made, the ticket's first; default AES256, AES128, AES256SHA2
	Others          []Other
	Folder          string // where the private folder is made, default the temporary folder
}

// Other is a further realm. Its computers come to the parent's management point over a trust of the parent or of the child.
type Other struct {
	Name      string
	TrustedBy string // the realm that lets its computers in: the parent, or the child, through which the ticket then transits
	// Referral says that its KDC knows the way to the parent's hosts. Without it the KDC answers "server not found in Kerberos database", as a
	// domain controller does when there is only an external trust; MIT's own client then guesses the realm from the host's name, others give up.
	Referral bool
	// Unchecked makes the parent's KDC give tickets whose path it has not checked, so without the flag TRANSITED-POLICY-CHECKED. It matters only
	// to a realm that the child trusts, and is one setting of the parent's KDC: it holds for every other realm too.
	Unchecked bool
}

// ExternalTrust is a realm with only an external trust to the parent: no referral leads there.
func ExternalTrust() Other { return Other{Name: External, TrustedBy: Parent} }

// Transit is a realm that the child trusts and the parent does not: its tickets for the parent's services pass through the child, and the
// parent's KDC finds the path in order.
func Transit() Other { return Other{Name: Partner, TrustedBy: Child, Referral: true} }

// Realms are the running KDCs. Its methods may be called concurrently, but for those that stop and start.
type Realms struct {
	Parent, Child string // their names
	Folder        string // private to this process's account; gone after Stop

	options  Options
	password string // of the users
	realms   []*realm
	keeper   *keeper
	stop     sync.Once
	logins   atomic.Int64
}

// realm is one KDC with its database.
type realm struct {
	name    string
	folder  string
	address string
	process *process
	editing sync.Mutex // one kadmin.local at a time
}

// Start starts the realms and waits until they answer. Stop ends them; they end with this process too, however it ends (on Linux). The context
// is for the starting alone. A missing program is the catalogue's ToolMissing, with the line that installs it.
func Start(ctx context.Context, options Options) (*Realms, error) {
	if missing := Missing(); len(missing) > 0 {
		return nil, catalog.Errorf(catalog.ToolMissing, "Kerberos realms need %s; install with: %s", strings.Join(missing, ", "), Install)
	}
	r, err := prepare(options)
	if err != nil {
		return nil, err
	}
	if err := r.start(ctx); err != nil {
		r.Stop()
		return nil, err
	}
	return r, nil
}

func prepare(options Options) (*Realms, error) {
	options = options.defaults()
	folder, err := os.MkdirTemp(options.Folder, "postern-realms-") // 0700
	if err != nil {
		return nil, fmt.Errorf("make the realms' folder: %w", err)
	}
	if folder, err = filepath.Abs(folder); err != nil {
		return nil, err
	}
	r := &Realms{Parent: options.Parent, Child: options.Child, Folder: folder, options: options, password: rand.Text()}
	for _, name := range r.Names() {
		r.realms = append(r.realms, &realm{name: name, folder: filepath.Join(folder, strings.ToLower(name))})
	}
	if r.keeper, err = keep(folder); err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	return r, nil
}

func (o Options) defaults() Options {
	if o.Parent == "" {
		o.Parent = Parent
	}
	if o.Child == "" {
		o.Child = Child
	}
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	if len(o.EncryptionTypes) == 0 {
		o.EncryptionTypes = []string{AES256, AES128, AES256SHA2}
	}
	return o
}

// start makes the databases, then starts the KDCs: on ports that were free a moment ago, and on others when somebody else was quicker.
func (r *Realms) start(ctx context.Context) error {
	if err := errors.Join(r.choosePorts(), r.each(makeFolder), r.writeConfigurations()); err != nil {
		return err
	}
	trusts := r.trusts()
	if err := r.each(func(k *realm) error { return r.create(ctx, k, trusts) }); err != nil {
		return err
	}
	if err := r.writeKeytabs(); err != nil {
		return err
	}
	const attempts = 5
	for attempt := 1; ; attempt++ {
		err := r.each(func(k *realm) error { return k.run(ctx) })
		if err == nil || attempt == attempts || !errors.Is(err, errPortTaken) {
			return err
		}
		r.endAll()
		if err := errors.Join(r.choosePorts(), r.writeConfigurations()); err != nil {
			return err
		}
	}
}

func makeFolder(k *realm) error {
	return errors.Join(os.Mkdir(k.folder, 0o700), os.WriteFile(k.path("kadm5.acl"), nil, 0o600))
}

// each does one act for every realm at once.
func (r *Realms) each(act func(*realm) error) error {
	var group errgroup.Group
	for _, k := range r.realms {
		group.Go(func() error {
			if err := act(k); err != nil {
				return fmt.Errorf("realm %s: %w", k.name, err)
			}
			return nil
		})
	}
	return group.Wait()
}

func (r *Realms) choosePorts() (err error) {
	var held []net.Listener // until all are chosen, so that no port is chosen twice
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	for _, k := range r.realms {
		l, err := listenAnywhere(r.options.Host)
		if err != nil {
			return fmt.Errorf("find a free port: %w", err)
		}
		held, k.address = append(held, l), l.Addr().String()
	}
	return nil
}

// listenAnywhere listens on a free port below those that systems give away by themselves, so that nobody else is likely to have it a moment later.
func listenAnywhere(host string) (l net.Listener, err error) {
	const first, count, tries = 10_100, 1_800, 100
	for range tries {
		if l, err = net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(first+mathrand.N(count)))); err == nil {
			return l, nil
		}
	}
	return nil, err
}

// Stop ends the KDCs and removes the folder. Calling it again does nothing.
func (r *Realms) Stop() {
	r.stop.Do(func() {
		r.endAll()
		r.keeper.release()
		os.RemoveAll(r.Folder)
	})
}

func (r *Realms) endAll() {
	for _, k := range r.realms {
		k.process.end()
		k.process = nil
	}
}

// Names returns the realms, the parent first, then the child.
func (r *Realms) Names() []string {
	names := []string{r.options.Parent, r.options.Child}
	for _, other := range r.options.Others {
		names = append(names, other.Name)
	}
	return names
}

// Host returns a host's name in the parent realm's DNS domain: Host("mp") is mp.a2003.vm.local.
func (r *Realms) Host(label string) string { return label + "." + strings.ToLower(r.Parent) }

// Password is the password of [User] in each realm.
func (r *Realms) Password() string { return r.password }

// Address returns host:port of a realm's KDC, "" for one that is not here.
func (r *Realms) Address(name string) string {
	if k := r.find(name); k != nil {
		return k.address
	}
	return ""
}

// KDCLog returns what a realm's KDC has logged so far.
func (r *Realms) KDCLog(name string) string {
	k := r.find(name)
	if k == nil {
		return ""
	}
	raw, _ := os.ReadFile(k.path("kdc.log"))
	return string(raw)
}

// Processes returns the process ids of the running KDCs.
func (r *Realms) Processes() (ids []int) {
	for _, k := range r.realms {
		if k.process != nil {
			ids = append(ids, k.process.id())
		}
	}
	return ids
}

// StopKDC ends one realm's KDC, as an outage does; StartKDC starts it again at the same address.
func (r *Realms) StopKDC(name string) error {
	k := r.find(name)
	if k == nil {
		return fmt.Errorf("there is no realm %s here", name)
	}
	k.process.end()
	k.process = nil
	return nil
}

// StartKDC starts a KDC that StopKDC ended.
func (r *Realms) StartKDC(ctx context.Context, name string) error {
	k := r.find(name)
	if k == nil {
		return fmt.Errorf("there is no realm %s here", name)
	}
	return k.run(ctx)
}

func (r *Realms) find(name string) *realm {
	at := slices.IndexFunc(r.realms, func(k *realm) bool { return k.name == name })
	if at < 0 {
		return nil
	}
	return r.realms[at]
}

func (k *realm) path(name string) string { return filepath.Join(k.folder, name) }

// errPortTaken means that another program got the port between its choice and the KDC's start.
var errPortTaken = errors.New("the KDC's port is taken")

// run starts the KDC and waits until it serves.
func (k *realm) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if k.process, err = begin(k.command(context.Background(), "krb5kdc", "-n", "-r", k.name), k.path("out.log")); err != nil {
		return err
	}
	for {
		out, _ := os.ReadFile(k.path("out.log"))
		// The KDC writes this line when its sockets are bound, so that it is not somebody else who answers below.
		if strings.Contains(string(out), "starting...") && answers(ctx, k.address) {
			return nil
		}
		select {
		case <-k.process.ended:
			return k.whyEnded(string(out))
		case <-ctx.Done():
			return fmt.Errorf("the KDC does not answer on %s: %w\n%s", k.address, ctx.Err(), out)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (k *realm) whyEnded(out string) error {
	log, _ := os.ReadFile(k.path("kdc.log"))
	if text := out + string(log); strings.Contains(text, "Address already in use") {
		return errPortTaken
	}
	return fmt.Errorf("the KDC ended at once: %s%s", out, log)
}

func answers(ctx context.Context, address string) bool {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
