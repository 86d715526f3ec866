package client

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sync/singleflight"

	"postern/catalog"
	"postern/keyfile"
	"postern/logfile"
	"postern/revocation"
)

// Config is what an Agent needs. Dir is required.
type Config struct {
	Dir string // state folder, made when it is missing; owner-only

	Passphrase []byte // protects state.key, when given
	Credential string // path of a systemd credential that is the key, instead of state.key

	Now     func() time.Time // the device's clock; default time.Now
	Rand    io.Reader        // safe for concurrent use; default crypto/rand
	Logs    *logfile.Folder  // ccmsetup.log and the others; nil writes none
	Log     *slog.Logger     // default: nothing is logged
	Observe func(Step)       // told of every act as it ends; may be nil
	Say     func(string)     // told what a person must not miss, such as trust on first use; may be nil

	// Negotiator gives the proof of this computer in its domain, for registering inside. It
	// is called when it is needed; its error is told, kept for Status, and the device
	// registers without. Nil: never Kerberos.
	Negotiator func() (Negotiator, error)

	// Entra gives the device's way to tokens of its tenant. It is called when it is needed;
	// its error is told, and stops an enrolment that has nothing else to show. Nil: never.
	Entra func() (Entra, error)

	// Lists fetches revocation lists and OCSP answers about servers. Nil: a client of its own,
	// without a proxy, that goes to no address of this host unless it was configured.
	Lists *http.Client

	// Wait returns after d, or with ctx's error. Default: a timer.
	Wait func(ctx context.Context, d time.Duration) error
	// Dial opens connections; default net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Addresses are this machine's, by which a change of network is noticed; default net.InterfaceAddrs.
	Addresses func() ([]net.Addr, error)
	// NetworkChange returns nil once changed says so, or with ctx's error. Default: it asks every 15 seconds. One that waits for a word of the system should
	// ask when the machine wakes up, too.
	NetworkChange func(ctx context.Context, changed func() bool) error
	// Proxy says which proxy to use; default http.ProxyFromEnvironment.
	Proxy func(*http.Request) (*url.URL, error)
}

// Agent is the client of one state folder. It is safe for concurrent use; several
// processes may share a folder, and take turns when they change it.
type Agent struct {
	config Config
	logs   logs
	log    *slog.Logger
	key    *keyfile.Key
	clock  *clock
	nonces nonces

	acts chan struct{} // holds one element while an act changes the folder
	lock *flock.Flock  // the same between processes

	mu     sync.Mutex   // guards what follows
	writes *flock.Flock // the same between processes, for one change of state.json; see writing
	record record
	tokens tokenCache
	keys   *identity
	next   *identity // of a change of the keys that is not known to have ended
	client *http.Client
	via    string // what client was made for

	company    *companyCertificate // that this device shows
	companyErr error               // why the one on record cannot be shown
	checkers   map[string]*revocation.Checker
	quietUntil time.Time // the provider or the site was away: a token that lasts is not renewed before

	setupUnchecked atomic.Bool // /NoCRLCheck, while enrolling

	renewals singleflight.Group
	makeKeys func(random io.Reader) (signing, encryption *rsaKey, err error)
}

// Open opens the agent of a state folder, and makes the folder and its key file when they
// are missing. Nothing is sent. Errors have the codes ClientFolderOpen, ClientStateDamaged,
// ClientStateNotWritten, ClientKeysUnreadable, FolderNotWritable and those of the key file.
func Open(config Config) (*Agent, error) {
	config = config.withDefaults()
	if err := openFolder(config.Dir); err != nil {
		return nil, err
	}
	key, err := openKey(config)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		config: config, log: config.Log, logs: newLogs(config.Logs), key: key, clock: &clock{now: config.Now},
		acts: make(chan struct{}, 1), lock: lockFile(config.Dir, "lock"), writes: lockFile(config.Dir, "state.lock"),
		makeKeys: generateKeys, checkers: map[string]*revocation.Checker{},
	}
	return a, a.load()
}

func (c Config) withDefaults() Config {
	now := c.Now
	if now == nil {
		now = time.Now
	}
	c.Now = func() time.Time { return now().Round(0) } // the clock of the wall: the other one stands still while the machine sleeps, and tokens end all the same
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Observe == nil {
		c.Observe = func(Step) {}
	}
	if c.Say == nil {
		c.Say = func(string) {}
	}
	if c.Wait == nil {
		c.Wait = wait
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: 30 * time.Second}).DialContext
	}
	if c.Addresses == nil {
		c.Addresses = net.InterfaceAddrs
	}
	if c.NetworkChange == nil {
		c.NetworkChange = pollNetwork
	}
	if c.Proxy == nil {
		c.Proxy = http.ProxyFromEnvironment
	}
	return c
}

// Close ends idle connections. The agent may be used again afterwards.
func (a *Agent) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client != nil {
		a.client.CloseIdleConnections()
		a.client = nil
	}
	for _, checker := range a.checkers {
		checker.Close()
	}
	clear(a.checkers)
	return nil
}

// Keep returns the key of the state folder and the path of a file in it, for what belongs
// to this device and is to be sealed beside its keys: tokens of its tenant, for example.
func (a *Agent) Keep(name string) (*keyfile.Key, string) { return a.key, a.path(name) }

// lockTimeout is how long an act waits for another process to finish its own.
const lockTimeout = 30 * time.Second

func lockFile(dir, name string) *flock.Flock {
	return flock.New(filepath.Join(dir, name), flock.SetPermissions(0o600))
}

// notLocked says why a lock of the folder was not taken.
func (a *Agent) notLocked(err error) error {
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		return catalog.Errorf(catalog.ClientFolderInUse, "another process works on %s", a.config.Dir)
	}
	return catalog.Wrap(catalog.ClientStateNotWritten, err, "the lock of %s cannot be taken", a.config.Dir)
}

// exclusive runs an act that changes the folder: one at a time in this process and among
// processes, on what the folder says now.
func (a *Agent) exclusive(ctx context.Context, act func() error) error {
	select {
	case a.acts <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-a.acts }()
	waiting, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	if locked, err := a.lock.TryLockContext(waiting, 50*time.Millisecond); !locked {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return a.notLocked(err)
	}
	defer a.lock.Unlock()
	if err := a.load(); err != nil {
		return err
	}
	return act()
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// jitter returns a duration between d-d/5 and d+d/5, so that devices that began together
// do not go on together.
func (a *Agent) jitter(d time.Duration) time.Duration {
	var b [8]byte
	if _, err := io.ReadFull(a.config.Rand, b[:]); err != nil || d < 5 {
		return d
	}
	return d - d/5 + time.Duration(binary.BigEndian.Uint64(b[:])%uint64(2*(d/5)))
}
