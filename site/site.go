package site

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

// Sealer keeps secrets at rest: the site's private keys and the bodies of secret policies. *keyfile.Key is one.
type Sealer interface {
	Seal(label string, plain []byte) []byte
	Open(label string, sealed []byte) ([]byte, error)
}

// Config is what a site needs from outside.
type Config struct {
	Store  Store
	Sealer Sealer
	Now    func() time.Time // time.Now when nil
	Rand   io.Reader        // crypto/rand when nil
	Log    *slog.Logger     // discarded when nil

	Revocations RevocationLog // keeps revocations beside the store; nil: none are kept
}

// Site is one site: its devices, tokens, policies, keys and the roles around it. All methods are safe for concurrent use.
type Site struct {
	store  Store
	sealer Sealer
	now    func() time.Time // of clock
	clock  *clock
	rand   io.Reader
	log    *slog.Logger

	current atomic.Pointer[snapshot]
	refresh sync.Mutex // one refresh at a time

	watch    sync.Mutex
	watchers map[chan struct{}]struct{}

	revoked revokedLog
	acks    takenAcks
	watched atomic.Pointer[TrustEntry] // of the trust log, see [Site.WatchTrustLog]

	pending pending  // events and last-seen times not yet written
	fetches sync.Map // by tenant: [Fetch], how its keys were fetched last
}

// snapshot is what the site keeps in memory of its database: replaced whole, never changed.
type snapshot struct {
	settings    Settings
	hierarchy   string
	root        crypto.Signer
	rootID      string // of its record
	nonces      []byte // key of the nonces, see nonceKey
	rootCert    *x509.Certificate
	rootRecords []KeyRecord // all, the oldest first; without their private halves
	records     []KeyRecord // of the keys, without private halves
	signing     []byte      // DER of the site signing certificate
	ring        *token.Ring
	verifier    *token.Verifier
	keys        []token.Key
	points      []ManagementPoint
	gateways    []Gateway
	connectors  []Connector
	tenants     []Tenant
	authorities []Authority
	issuers     []*x509.Certificate // of authorities, read
	revocation  Revocation
	blockedBy   map[string]bool // tracked ids of blocked bulk tokens
	blockedKey  map[proof.KeyThumbprint]bool
	replaced    map[proof.KeyThumbprint]Replaced // keys of obsolete devices and former keys
	kept        []Revoked                        // revocations without a record here
	state       token.SiteState
}

// Open opens a site that [Init] has made.
func Open(ctx context.Context, config Config) (*Site, error) {
	s := newSite(config)
	if err := s.Refresh(ctx); err != nil {
		return nil, fmt.Errorf("open site: %w", err)
	}
	if err := s.recall(ctx); err != nil {
		return nil, fmt.Errorf("open site: %w", err)
	}
	return s, nil
}

func newSite(config Config) *Site {
	defaults(&config)
	s := &Site{store: config.Store, sealer: config.Sealer, clock: newClock(config.Now), rand: config.Rand, log: config.Log}
	s.now = s.clock.now
	s.revoked.log = config.Revocations
	s.watchers = make(map[chan struct{}]struct{})
	s.pending.seen = make(map[ccm.ClientID]time.Time)
	return s
}

// refreshEvery is the least time between two refreshes that Run makes: every registration is a change to the database too, and a burst of them
// is no reason to read everything again and again.
const refreshEvery = 100 * time.Millisecond

// refreshRetry is when Run reads again after the database did not answer, so that a block is not missed.
const refreshRetry = 500 * time.Millisecond

// Run keeps the site current until ctx ends: it follows changes that other processes and nodes make, and writes events and
// last-seen times in batches. The last batch is written before it returns.
func (s *Site) Run(ctx context.Context) error {
	changes := s.store.Changes(ctx)
	flush, tend := time.NewTicker(flushEvery), time.NewTicker(tendEvery)
	defer flush.Stop()
	defer tend.Stop()
	defer s.flushFinally()
	due := time.After(0) // what others changed before we listened; nil when no refresh is due
	var last time.Time
	behind := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-changes:
			if !open {
				return nil
			}
			if due == nil {
				due = time.After(refreshEvery - time.Since(last))
			}
		case <-due:
			due, last = nil, time.Now()
			if err := s.Refresh(ctx); err != nil && ctx.Err() == nil {
				s.log.Error("refresh after a change", "error", err)
				due = time.After(refreshRetry)
			}
		case <-flush.C:
			behind = s.watchClock(behind)
			s.Flush(ctx)
			if due == nil && s.revoked.problem.has(catalog.RevocationLogWrite) {
				due = time.After(refreshEvery)
			}
		case <-tend.C:
			s.Tend(ctx)
		}
	}
}

// Refresh reads the settings, keys, peers and blocks from the store. Run calls it after every change; acts of this process call
// it themselves, so that a block is in force when they return.
func (s *Site) Refresh(ctx context.Context) error {
	s.refresh.Lock()
	defer s.refresh.Unlock()
	next, err := s.readKept(ctx)
	if err != nil {
		return err
	}
	if before := s.current.Load(); before != nil && before.settings.ClockAccepted != next.settings.ClockAccepted {
		s.clock.heed(next.settings.ClockAccepted)
	}
	before := s.current.Swap(next)
	if before == nil || before.state.Epoch != next.state.Epoch {
		s.announce()
	}
	return nil
}

// readKept reads the store and brings it and the log of revocations together: what is in force here has been kept there.
func (s *Site) readKept(ctx context.Context) (*snapshot, error) {
	const most = 3 // another node may change something at any time
	for try := 1; ; try++ {
		next, err := s.read(ctx)
		if err != nil {
			return nil, err
		}
		again, err := s.keepRevocations(ctx, next, try == 1)
		if err != nil {
			return nil, err
		}
		if !again || try == most {
			return next, nil
		}
	}
}

func (s *Site) read(ctx context.Context) (*snapshot, error) {
	next := &snapshot{blockedBy: map[string]bool{}, blockedKey: map[proof.KeyThumbprint]bool{}}
	var epoch uint64
	var records []KeyRecord
	err := s.store.View(ctx, func(tx Tx) (err error) {
		if next.settings, next.hierarchy, err = readSettings(tx); err != nil {
			return err
		}
		if epoch, err = tx.Epoch(); err != nil {
			return err
		}
		if records, err = tx.SigningKeys(); err != nil {
			return err
		}
		if next.points, err = tx.ManagementPoints(); err != nil {
			return err
		}
		if next.gateways, err = tx.Gateways(); err != nil {
			return err
		}
		if next.connectors, err = tx.Connectors(); err != nil {
			return err
		}
		if next.tenants, err = tx.Tenants(); err != nil {
			return err
		}
		if next.authorities, err = tx.Authorities(); err != nil {
			return err
		}
		if next.revocation, err = readRevocation(tx); err != nil {
			return err
		}
		return readBlocks(tx, next)
	})
	if errors.Is(err, ErrNotFound) {
		return nil, catalog.Wrap(catalog.SiteNotInitialised, err, "the store holds no site; run `postern site init` first")
	}
	if err != nil {
		return nil, err
	}
	if err := s.unseal(next, records); err != nil {
		return nil, err
	}
	for _, a := range next.authorities {
		issuer, err := x509.ParseCertificate(a.Certificate)
		if err != nil { // it was readable when it was uploaded
			s.log.Error("an uploaded authority cannot be read", "fingerprint", a.Fingerprint, "error", err)
			continue
		}
		next.issuers = append(next.issuers, issuer)
	}
	next.state = next.siteState(epoch, s.now())
	return next, nil
}

func readBlocks(tx Tx, next *snapshot) error {
	bulk, err := tx.BulkTokens()
	if err != nil {
		return err
	}
	for _, t := range bulk {
		if t.Blocked {
			next.blockedBy[t.ID] = true
		}
	}
	keys, err := tx.BlockedKeys()
	if err != nil {
		return err
	}
	for _, key := range keys {
		next.blockedKey[key] = true
	}
	kept, err := tx.KeptRevocations()
	if err != nil {
		return err
	}
	next.keepKept(kept)
	next.replaced, err = tx.ReplacedKeys()
	return err
}

// Settings returns the site's settings.
func (s *Site) Settings() Settings { return s.current.Load().settings }

// SiteCode returns the three-character site code.
func (s *Site) SiteCode() ccm.SiteCode { return s.current.Load().settings.SiteCode }

// Hierarchy returns the hierarchy id: a lower-case GUID, the tenant of the site's own tokens (protocol.md 6.3).
func (s *Site) Hierarchy() string { return s.current.Load().hierarchy }

// ManagementPoints lists the site's management points by role id.
func (s *Site) ManagementPoints() []ManagementPoint { return s.current.Load().points }

// Gateways lists the site's gateways by name.
func (s *Site) Gateways() []Gateway { return s.current.Load().gateways }

// Connectors lists the site's connectors by name.
func (s *Site) Connectors() []Connector { return s.current.Load().connectors }

// Verifier returns the verifier of the site's own tokens. It has the shape of auth.Keys.
func (s *Site) Verifier() *token.Verifier { return s.current.Load().verifier }

// Revoked reports why the token with these claims is refused although it verifies: its bulk token or its key is blocked, or the tenant by which its
// device came is disabled or gone.
// It has the shape of auth.Revocation.
func (s *Site) Revoked(c token.Claims) error {
	now := s.current.Load()
	for _, id := range []string{c.ID, c.BulkID} {
		if id != "" && now.blockedBy[id] {
			return catalog.Errorf(catalog.TokenBlocked, "bulk registration token %s is blocked", id)
		}
	}
	if now.blockedKey[c.Key] {
		return catalog.Errorf(catalog.KeyBlocked, "the device with key %s is blocked", c.Key)
	}
	if by, replaced := now.replaced[c.Key]; replaced {
		return obsoleteError(by.By)
	}
	return now.cloudAdmitted(c.Cloud)
}

// OwnName reports whether host (without port, any case) is a name of a management point of this site.
func (s *Site) OwnName(host string) bool {
	for _, m := range s.current.Load().points {
		if m.answersTo(host) {
			return true
		}
	}
	return false
}

// Fresh remembers id until the given time and reports whether it is new. It has the shape of auth.Replay.
func (s *Site) Fresh(ctx context.Context, id string, until time.Time) (bool, error) {
	return s.store.Remember(ctx, id, until)
}

// update runs change, appends its trust entries in the same transaction, and refreshes when change says that the site state moved.
func (s *Site) update(ctx context.Context, change func(Tx) (moved bool, err error)) error {
	var moved bool
	err := s.store.Update(ctx, func(tx Tx) (err error) {
		moved, err = change(tx)
		if err == nil && moved {
			_, err = tx.NextEpoch(s.epochNow())
		}
		return err
	})
	if err != nil {
		return err
	}
	if !moved {
		return nil
	}
	return s.putInForce(ctx)
}

// putInForce takes up what was changed, and says when a revocation in it could not be kept for a restore.
func (s *Site) putInForce(ctx context.Context) error {
	if err := s.Refresh(ctx); err != nil {
		return err
	}
	return s.revoked.problem.get(catalog.RevocationLogWrite)
}
