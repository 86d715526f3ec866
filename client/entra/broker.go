package entra

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"postern/catalog"
	"postern/keyfile"
	"postern/logfile"
)

// Config is what a Broker needs. Join is required.
type Config struct {
	Join JoinState

	// Key and File keep tokens sealed between runs, such as the agent's state.key and
	// entra.sealed in its folder. Without them they are kept in memory.
	Key  *keyfile.Key
	File string

	Log *logfile.Log // ADALOperationProvider.log, see LogFile; nil writes none

	// SignIn shows a person the code of a sign-in. Nil: nobody can be asked, and a user's
	// token comes only from an earlier sign-in. It must not write to a log.
	SignIn func(Prompt)

	Roots *x509.CertPool // authorities of the provider's certificate; nil: the join state's ca_file, else the system's
	// Dial opens connections; default net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Proxy says which proxy to use; default http.ProxyFromEnvironment.
	Proxy func(*http.Request) (*url.URL, error)
	Now   func() time.Time // default time.Now; assertions of Microsoft's library have the system's time
	Rand  io.Reader        // default crypto/rand
}

// Prompt is what a person needs to sign in on another screen.
type Prompt struct {
	Address string // https
	Code    string
	Expires time.Time
}

// When tokens are renewed.
const (
	closeToExpiry = 5 * time.Minute  // a token that ends sooner is renewed before it is used
	acquireTime   = 45 * time.Second // all exchanges for one token, but for a person's
	signInTime    = 15 * time.Minute // for a person to enter the code
	quietTime     = time.Minute      // after a provider did not answer, while a token lasts
)

// Broker gets tokens with what the join has left on the device. It is safe for concurrent
// use.
type Broker struct {
	config Config
	http   *http.Client
	store  *store

	turn chan struct{} // holds one element while a token is being got

	mu    sync.Mutex // guards what follows
	ended uint64     // how many have been got or not
	last  outcome
	quiet map[subject]time.Time
}

var _ Signer = (*Broker)(nil)

// outcome is how the last turn ended, for those who waited through it.
type outcome struct {
	want  Want
	token Token
	err   error
}

// New returns a Broker. Nothing is sent, and neither certificate nor key is read before
// they are needed. Errors have the code EntraJoinState.
func New(c Config) (*Broker, error) {
	join, err := c.Join.complete()
	if err != nil {
		return nil, catalog.Wrap(catalog.EntraJoinState, err, "%s", cmp.Or(c.Join.Source, "join state"))
	}
	c.Join = join
	roots, err := c.roots()
	if err != nil {
		return nil, err
	}
	c = c.withDefaults()
	return &Broker{
		config: c, http: newClient(c, roots), store: &store{key: c.Key, path: c.File},
		turn: make(chan struct{}, 1), quiet: map[subject]time.Time{},
	}, nil
}

func (c Config) roots() (*x509.CertPool, error) {
	if c.Roots != nil || c.Join.CAFile == "" {
		return c.Roots, nil
	}
	content, err := readOwned(c.Join.CAFile, maxPEM, 0o022)
	if err != nil {
		return nil, catalog.Wrap(catalog.EntraJoinState, err, "the ca_file %s", c.Join.CAFile)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(content) {
		return nil, catalog.Errorf(catalog.EntraJoinState, "the ca_file %s has no certificate", c.Join.CAFile)
	}
	return pool, nil
}

func (c Config) withDefaults() Config {
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	if c.Proxy == nil {
		c.Proxy = http.ProxyFromEnvironment
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	return c
}

// Close ends idle connections. The broker may be used again afterwards.
func (b *Broker) Close() error {
	b.http.CloseIdleConnections()
	return nil
}

// Join returns the join state that the broker works with.
func (b *Broker) Join() JoinState { return b.config.Join }

// Token is [Signer]'s.
func (b *Broker) Token(ctx context.Context, want Want) (Token, error) {
	want, err := b.settle(want)
	if err != nil {
		return Token{}, err
	}
	seen := b.turns()
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return Token{}, ctx.Err()
	}
	defer func() { <-b.turn }()
	if last, ok := b.since(seen, want); ok {
		return last.token, last.err
	}
	l := lines{want.Log}
	if l.log == nil {
		l.log = b.config.Log
	}
	token, err := b.get(ctx, want, l)
	b.finished(outcome{want, token, err})
	return token, err
}

// settle fills in what the join says and refuses what it cannot serve.
func (b *Broker) settle(w Want) (Want, error) {
	j := b.config.Join
	switch {
	case j.JoinType == JoinNone:
		return w, catalog.Errorf(catalog.EntraNotJoined, "%s says join type %s", cmp.Or(j.Source, "the join state"), j.JoinType)
	case w.TenantID != "" && !strings.EqualFold(w.TenantID, j.TenantID):
		return w, catalog.Errorf(catalog.EntraNotJoined, "the site asks for the tenant %.64q, and the device is in %s", w.TenantID, j.TenantID)
	case w.ClientApp == "" || w.Resource == "" || !plainText(w.ClientApp) || !plainText(w.Resource):
		return w, catalog.Errorf(catalog.EntraRefused, "the site has named no client application (AADCLIENTAPPID) or no resource (AADRESOURCEURI)")
	}
	authority, ok := j.authority(w.Authority)
	if !ok {
		return w, catalog.Errorf(catalog.EntraNotJoined, "the site names the provider %.120q, and the device belongs to %s", w.Authority, j.Authority)
	}
	w.TenantID, w.Authority = j.TenantID, authority
	return w, nil
}

func (b *Broker) turns() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ended
}

// since returns how a turn for the same ended while this caller waited. Whoever's own
// context ended does not count for others.
func (b *Broker) since(seen uint64, want Want) (outcome, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	own := errors.Is(b.last.err, context.Canceled) || errors.Is(b.last.err, context.DeadlineExceeded)
	return b.last, b.ended > seen && b.last.want == want && !own
}

func (b *Broker) finished(o outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended++
	b.last = o
}

// get tries the device's own identity first, then a user's (S2).
func (b *Broker) get(ctx context.Context, want Want, l lines) (Token, error) {
	if err := b.store.load(); err != nil {
		l.cacheLost(err)
	}
	if want.User || b.spare(want) {
		return b.user(ctx, want, l)
	}
	token, deviceErr := b.device(ctx, want, l)
	if deviceErr == nil || ctx.Err() != nil {
		return token, deviceErr
	}
	l.fallingBack(b.config.Join.User)
	token, userErr := b.user(ctx, want, l)
	if userErr == nil || ctx.Err() != nil {
		return token, userErr
	}
	code := catalog.EntraNoToken
	if catalog.CodeOf(deviceErr) == catalog.EntraUnreachable || catalog.CodeOf(userErr) == catalog.EntraUnreachable {
		code = catalog.EntraUnreachable // nobody has judged this device: waiting may help
	}
	return Token{}, catalog.Wrap(code, errors.Join(deviceErr, userErr), "device: %s; user: %s", plain(deviceErr), plain(userErr))
}

// spare reports whether a user's token lasts while the provider is left in peace: then the
// device's own is not asked for at every call.
func (b *Broker) spare(w Want) bool {
	now := b.config.Now()
	return b.store.find(b.subject(KindUser, w)).lasts(now) && now.Before(b.quietUntil(b.subject(KindDevice, w)))
}

func (b *Broker) subject(kind string, w Want) subject {
	s := subject{Kind: kind, Tenant: w.TenantID, Authority: w.Authority, ClientApp: w.ClientApp, Resource: w.Resource}
	if kind == KindDevice {
		s.Device = b.config.Join.DeviceID
	}
	return s
}

func (b *Broker) device(ctx context.Context, w Want, l lines) (Token, error) {
	l.gettingDevice(w)
	return b.renewed(ctx, b.subject(KindDevice, w), l, func(entry) (entry, error) { return b.acquireDevice(ctx, w) })
}

func (b *Broker) user(ctx context.Context, w Want, l lines) (Token, error) {
	of := b.subject(KindUser, w)
	l.gettingUser(w, b.userOf(b.store.find(of)))
	return b.renewed(ctx, of, l, func(old entry) (entry, error) { return b.acquireUser(ctx, w, old) })
}

// userOf is the user for the log: of the join state, else who signed in before.
func (b *Broker) userOf(old entry) User {
	u := b.config.Join.User
	u.ObjectID = cmp.Or(u.ObjectID, old.Account)
	return u
}

// renewed returns the token at hand, or the next one when it is time. One that cannot be
// renewed because the provider is away goes on until it ends; one that the provider
// refuses to renew does not.
func (b *Broker) renewed(ctx context.Context, of subject, l lines, acquire func(entry) (entry, error)) (Token, error) {
	now, old := b.config.Now(), b.store.find(of)
	if old.lasts(now) && (now.Before(old.Renew) || now.Before(b.quietUntil(of))) {
		l.retrieved(old.result())
		return old.result(), nil
	}
	next, err := acquire(old)
	if err == nil {
		next.subject = of
		return b.keep(next, l)
	}
	if ctx.Err() != nil {
		return Token{}, err
	}
	l.failed(err)
	if catalog.CodeOf(err) != catalog.EntraUnreachable {
		return Token{}, err
	}
	b.beQuiet(of, now.Add(b.jitter(quietTime)))
	if !old.lasts(now) {
		return Token{}, err
	}
	l.goingOn(err, old.Expires)
	return old.result(), nil
}

// keep caches a token. That it could not be written is no reason to be without it.
func (b *Broker) keep(e entry, l lines) (Token, error) {
	now := b.config.Now()
	if e.Token == "" || len(e.Token) > maxToken || strings.ContainsFunc(e.Token, func(r rune) bool { return r <= ' ' || r > '~' }) || !e.lasts(now) {
		return Token{}, catalog.Errorf(catalog.EntraUnreachable, "the provider's answer has no token that lasts")
	}
	e.Expires = e.Expires.UTC().Truncate(time.Second)
	left := e.Expires.Sub(now) - closeToExpiry
	e.Renew = now.Add(max(0, left-b.fraction(left/5))).UTC()
	if err := b.store.put(e); err != nil {
		l.cacheLost(err)
	}
	b.beQuiet(e.subject, time.Time{})
	l.retrieved(e.result())
	return e.result(), nil
}

func (b *Broker) quietUntil(of subject) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.quiet[of]
}

func (b *Broker) beQuiet(of subject, until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if delete(b.quiet, of); !until.IsZero() && len(b.quiet) < maxEntries {
		b.quiet[of] = until
	}
}

// fraction returns a random part of d, so that devices that began together do not go on
// together.
func (b *Broker) fraction(d time.Duration) time.Duration {
	var n [8]byte
	if _, err := io.ReadFull(b.config.Rand, n[:]); err != nil || d <= 0 {
		return 0
	}
	return time.Duration(binary.BigEndian.Uint64(n[:]) % uint64(d))
}

func (b *Broker) jitter(d time.Duration) time.Duration { return d - d/5 + b.fraction(2*(d/5)) }
