package entra

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"postern/catalog"
	"postern/token"
)

// SourceConfig is what a Source needs.
type SourceConfig struct {
	// Tenants gives the onboarded tenants of this moment; their Keys are not read. It
	// must not be nil.
	Tenants func() []token.Tenant
	// Roots are the authorities for the providers' TLS; nil means the system's.
	Roots *x509.CertPool
	// Hosts are hosts, with the port when it is not 443, besides the issuers' own that
	// may serve a tenant's keys, e.g. www.googleapis.com.
	Hosts []string
	// LoopbackHTTP lets an issuer on this machine be reached without TLS.
	LoopbackHTTP bool
	// Interval is the longest time between two fetches; 0 means 6 hours. A provider's
	// Cache-Control may shorten it down to a quarter of an hour.
	Interval time.Duration
	// Floor is the shortest time between two fetches of one tenant, however many
	// unknown keys are met; 0 means 60 seconds.
	Floor time.Duration
	// MaxAge is how long keys are used while their provider cannot be reached; 0 means
	// 7 days. Tokens that it has minted have ended by then, so nobody loses by it, and a
	// key that was withdrawn because it is in other hands does not count for ever.
	MaxAge time.Duration
	// Timeout bounds one fetch from one issuer; 0 means 10 seconds. An issuer that is
	// silent takes no time from the tenant's others.
	Timeout time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log hears of failures and of changed keys; nil means nobody.
	Log *slog.Logger
}

const (
	shortestInterval = 15 * time.Minute // whatever Cache-Control says
	longestPause     = 15 * time.Minute // after failures
	idle             = time.Minute      // between two looks at the list of tenants
	parallel         = 8                // tenants fetched at a time
)

// Source keeps the keys of the tenants fresh. It is safe for concurrent use.
type Source struct {
	config  SourceConfig
	fetcher *fetcher
	wake    chan struct{}
	changed chan struct{}

	mu      sync.Mutex
	tenants map[string]*tenantKeys // by id, lower case
}

// tenantKeys is what is known of one tenant's keys. Fields are read and written under
// Source.mu; fetching is held during a fetch.
type tenantKeys struct {
	id      string
	issuers []string

	fetching sync.Mutex

	answers  map[string]fetched // by issuer
	restored fetched            // from an earlier process, until every issuer has answered
	current  json.RawMessage    // what Keys returns
	until    time.Time          // when the first of the answers behind it is too old
	known    map[string]bool    // key ids in current
	tried    time.Time          // when the last fetch began
	next     time.Time
	wanted   bool // an unknown key was met since tried
	failures int
	err      error
}

// TenantStatus is how fresh a tenant's keys are.
type TenantStatus struct {
	Tenant  string
	Keys    int           // how many keys are in use
	Skipped int           // how many more the provider lists, which are not for tokens or too weak
	Fetched time.Time     // when the provider last answered with good keys; zero: never
	Age     time.Duration // since then
	Next    time.Time     // when it is asked again
	Stale   bool          // the last attempt failed; the keys in use are older
	Err     error         // of the last attempt, a *catalog.Error; nil: it was good
}

// NewSource returns a Source. It fetches nothing before Run or Refresh.
func NewSource(config SourceConfig) *Source {
	for _, setting := range []struct {
		value    *time.Duration
		standard time.Duration
	}{
		{&config.Interval, 6 * time.Hour}, {&config.Floor, time.Minute}, {&config.MaxAge, 7 * 24 * time.Hour}, {&config.Timeout, 10 * time.Second},
	} {
		if *setting.value <= 0 {
			*setting.value = setting.standard
		}
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	return &Source{
		config: config, fetcher: newFetcher(config), tenants: map[string]*tenantKeys{},
		wake: make(chan struct{}, 1), changed: make(chan struct{}, 1),
	}
}

// Run fetches what is due until ctx ends, and then returns nil. Failures are logged
// and in Status; they end nothing.
func (s *Source) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		timer := time.NewTimer(s.pass(ctx))
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// pass fetches every tenant that is due and returns how long nothing will be.
func (s *Source) pass(ctx context.Context) time.Duration {
	s.follow()
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, tenant := range s.due() {
		group.Go(func() error {
			s.fetch(ctx, tenant, true)
			return nil
		})
	}
	_ = group.Wait() // no error is returned; each is in its tenant's status
	return s.pause()
}

// follow takes over the list of tenants: new ones, removed ones, other issuers.
func (s *Source) follow() {
	listed := s.config.Tenants()
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make(map[string]bool, len(listed))
	for _, tenant := range listed {
		id := strings.ToLower(tenant.ID)
		ids[id] = true
		t := s.tenant(id)
		if !slices.Equal(t.issuers, tenant.Issuers) {
			t.issuers = slices.Clone(tenant.Issuers)
			t.next = time.Time{}
			for issuer := range t.answers {
				if !slices.Contains(t.issuers, issuer) {
					delete(t.answers, issuer)
				}
			}
		}
		s.rebuild(t)
	}
	for id := range s.tenants {
		if !ids[id] {
			delete(s.tenants, id)
		}
	}
}

// tenant returns the tenant's entry, a new one when there is none.
func (s *Source) tenant(id string) *tenantKeys {
	t := s.tenants[id]
	if t == nil {
		t = &tenantKeys{id: id, answers: map[string]fetched{}}
		s.tenants[id] = t
	}
	return t
}

func (s *Source) due() []*tenantKeys {
	s.mu.Lock()
	defer s.mu.Unlock()
	var due []*tenantKeys
	for _, t := range s.tenants {
		if !s.config.Now().Before(s.nextOf(t)) {
			due = append(due, t)
		}
	}
	return due
}

// nextOf says when the tenant may be fetched again: at its time, or at once when a key
// was missed, but never within the floor.
func (s *Source) nextOf(t *tenantKeys) time.Time {
	floor := t.tried.Add(s.config.Floor)
	if t.tried.IsZero() || t.wanted || t.next.Before(floor) {
		if t.tried.IsZero() {
			return time.Time{}
		}
		return floor
	}
	return t.next
}

func (s *Source) pause() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	pause, now := idle, s.config.Now()
	for _, t := range s.tenants {
		pause = min(pause, s.nextOf(t).Sub(now))
	}
	return max(pause, 10*time.Millisecond)
}

// fetch asks every issuer of the tenant. Of two calls at a time the second does
// nothing, unless the floor has passed meanwhile.
func (s *Source) fetch(ctx context.Context, t *tenantKeys, onlyDue bool) error {
	t.fetching.Lock()
	defer t.fetching.Unlock()
	now := s.config.Now()
	s.mu.Lock()
	if early := !t.tried.IsZero() && now.Before(t.tried.Add(s.config.Floor)); early || onlyDue && now.Before(s.nextOf(t)) {
		s.mu.Unlock()
		return catalog.Errorf(catalog.EntraRefreshTooSoon, "the tenant %s", t.id)
	}
	t.tried, t.wanted = now, false
	issuers, answers := slices.Clone(t.issuers), make(map[string]fetched, len(t.answers))
	for issuer, answer := range t.answers {
		answers[issuer] = answer
	}
	s.mu.Unlock()

	var first error
	for _, issuer := range issuers {
		answer, err := s.ask(ctx, t.id, issuer, issuers, answers[issuer], now)
		if err == nil {
			err = fits(answers, issuer, answer)
		}
		if err != nil {
			if first == nil {
				first = err
			}
			if errors.Is(err, context.Canceled) {
				break // the process ends
			}
			s.config.Log.Warn("fetch keys of tenant", "tenant", t.id, "issuer", issuer, "code", catalog.CodeOf(err), "error", err)
			continue
		}
		answers[issuer] = answer
	}
	s.settle(t, issuers, answers, first)
	return first
}

// ask fetches from one issuer, in its own time.
func (s *Source) ask(ctx context.Context, tenantID, issuer string, issuers []string, last fetched, now time.Time) (fetched, error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	return s.fetcher.fetch(ctx, tenantID, issuer, issuers, last, now)
}

// settle writes down what a fetch brought, if the tenant still has those issuers.
func (s *Source) settle(t *tenantKeys, issuers []string, answers map[string]fetched, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(issuers, t.issuers) {
		return
	}
	t.answers, t.err = answers, err
	if err != nil {
		t.failures++
		t.next = t.tried.Add(min(s.config.Floor<<min(t.failures-1, 8), max(longestPause, s.config.Floor)))
	} else {
		t.failures = 0
		t.restored = fetched{}
		t.next = t.tried.Add(s.interval(answers))
	}
	s.rebuild(t)
}

// interval is the shortest that a provider asked for, within the bounds.
func (s *Source) interval(answers map[string]fetched) time.Duration {
	interval := s.config.Interval
	for _, answer := range answers {
		if answer.maxAge > 0 {
			interval = min(interval, max(answer.maxAge, shortestInterval))
		}
	}
	return interval
}

// rebuild makes the key set from all answers that are not too old, and signals when it
// is another one.
func (s *Source) rebuild(t *tenantKeys) {
	oldest := s.config.Now().Add(-s.config.MaxAge)
	t.until = s.config.Now().Add(s.config.MaxAge)
	answers := t.usable(oldest)
	for _, answer := range answers {
		if until := answer.at.Add(s.config.MaxAge); until.Before(t.until) {
			t.until = until
		}
	}
	var current json.RawMessage
	var err error
	keys := firstOfEach(answers)
	if len(keys) > 0 {
		current, err = formatKeys(keys)
	}
	switch {
	case err != nil:
		t.err = err
	case len(keys) == 0 && t.current != nil:
		t.err = catalog.Errorf(catalog.EntraKeysOld, "the tenant %s: no keys since %s ago", t.id, s.config.MaxAge)
		s.config.Log.Error("withdraw keys of tenant", "tenant", t.id, "code", catalog.EntraKeysOld)
	}
	if bytes.Equal(current, t.current) {
		return
	}
	s.config.Log.Info("keys of tenant changed", "tenant", t.id, "keys", len(keys))
	t.current, t.known = current, make(map[string]bool, len(keys))
	for _, k := range keys {
		t.known[k.id] = true
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// age withdraws what has become too old since the last look.
func (s *Source) age(t *tenantKeys) {
	if !s.config.Now().Before(t.until) {
		s.rebuild(t)
	}
}

// usable returns the answers that still count, in the order of the issuers; what an
// earlier process left counts until every issuer has answered.
func (t *tenantKeys) usable(oldest time.Time) []fetched {
	var answers []fetched
	for _, issuer := range t.issuers {
		if answer := t.answers[issuer]; len(answer.keys) > 0 && answer.at.After(oldest) {
			answers = append(answers, answer)
		}
	}
	if len(t.restored.keys) > 0 && t.restored.at.After(oldest) {
		answers = append(answers, t.restored)
	}
	return answers
}

// firstOfEach keeps the first key of each name: several issuers of one tenant mostly
// have the same keys. The keys of one answer are kept together or not at all, so that one
// too many never costs those of the others: [fits] lets none come, and what an earlier
// process left, which is the last, makes room.
func firstOfEach(answers []fetched) (keys []key) {
	seen := map[string]bool{}
	for _, answer := range answers {
		more := slices.DeleteFunc(slices.Clone(answer.keys), func(k key) bool { return seen[k.id] })
		if len(keys)+len(more) > maxKeys {
			continue
		}
		for _, k := range more {
			seen[k.id] = true
		}
		keys = append(keys, more...)
	}
	slices.SortFunc(keys, func(a, b key) int { return strings.Compare(a.id, b.id) })
	return keys
}

// fits refuses an answer with whose keys a tenant would have too many. The issuer's last
// answer stays in use, as after any other fault.
func fits(answers map[string]fetched, issuer string, answer fetched) error {
	all := maps.Clone(answers)
	all[issuer] = answer
	names := map[string]bool{}
	for _, one := range all {
		for _, k := range one.keys {
			names[k.id] = true
		}
	}
	if len(names) > maxKeys {
		return catalog.Errorf(catalog.EntraKeySet, "%d keys with those of the tenant's other issuers, the limit is %d", len(names), maxKeys)
	}
	return nil
}

// Refresh fetches the tenant's keys now. Within the floor since the last fetch the
// answer is EntraRefreshTooSoon, for a tenant that is not onboarded EntraTenantUnknown;
// otherwise it is what the fetch met: EntraProviderUnreachable, EntraRedirect,
// EntraDiscovery, EntraKeySet or EntraIssuerNotAllowed.
func (s *Source) Refresh(ctx context.Context, tenantID string) error {
	s.follow()
	s.mu.Lock()
	t := s.tenants[strings.ToLower(tenantID)]
	s.mu.Unlock()
	if t == nil {
		return catalog.Errorf(catalog.EntraTenantUnknown, "tenant %s", quote(tenantID))
	}
	return s.fetch(ctx, t, false)
}

// Unknown says that a token named a key that its tenant does not list. It never
// blocks. Run fetches the tenant's keys at once, but not twice within the floor; a key
// that is listed by now, and a tenant that is not onboarded, change nothing.
func (s *Source) Unknown(missed TenantKey) {
	s.mu.Lock()
	t := s.tenants[strings.ToLower(missed.Tenant)]
	first := t != nil && !t.wanted && !t.known[missed.KeyID]
	if first {
		t.wanted = true
	}
	s.mu.Unlock()
	if first {
		s.Poke()
	}
}

// Poke says that the list of tenants has changed.
func (s *Source) Poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Restore gives keys that an earlier process fetched at that time, as Keys returned
// them. They count until every issuer of the tenant has answered, and not beyond
// MaxAge. The code is EntraKeySet.
func (s *Source) Restore(tenantID string, keys json.RawMessage, at time.Time) error {
	read, _, err := parseKeys(keys, tenantID)
	if err != nil {
		return err
	}
	s.mu.Lock()
	t := s.tenant(strings.ToLower(tenantID))
	t.restored = fetched{keys: read, at: at}
	s.mu.Unlock()
	s.follow()
	return nil
}

// Keys returns the tenant's key set (JWKS, RFC 7517), nil when there is none that may
// be used. It has only the public parts of keys that can sign tokens, in a fixed
// order, so equal keys are equal bytes.
func (s *Source) Keys(tenantID string) json.RawMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tenants[strings.ToLower(tenantID)]
	if t == nil {
		return nil
	}
	s.age(t)
	return slices.Clone(t.current)
}

// Changed is signalled when a tenant's keys are other ones than before; several
// changes may come as one signal.
func (s *Source) Changed() <-chan struct{} { return s.changed }

// Status returns how fresh every tenant's keys are, ordered by tenant.
func (s *Source) Status() []TenantStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.config.Now()
	statuses := make([]TenantStatus, 0, len(s.tenants))
	for _, t := range s.tenants {
		s.age(t)
		status := TenantStatus{Tenant: t.id, Keys: len(t.known), Next: s.nextOf(t), Err: t.err, Stale: t.err != nil && len(t.known) > 0}
		for _, answer := range t.usable(time.Time{}) {
			status.Skipped += answer.skipped
			if status.Fetched.IsZero() || answer.at.Before(status.Fetched) {
				status.Fetched, status.Age = answer.at, now.Sub(answer.at)
			}
		}
		statuses = append(statuses, status)
	}
	slices.SortFunc(statuses, func(a, b TenantStatus) int { return strings.Compare(a.Tenant, b.Tenant) })
	return statuses
}
