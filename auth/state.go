package auth

import (
	"slices"
	"strings"
	"sync"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

// StaleAfter is how long a gateway hears nothing valid before it calls itself stale.
// The site sends a line every ten seconds.
const StaleAfter = 30 * time.Second

// State is what a gateway or a connector knows of the site: the newest state signed
// by the pinned root, or by the one to which the site has led from there, and when the
// site was last heard. It is Keys and Revocation for a [Bearer], and the [Roots] of role
// certificates. It is safe for concurrent use.
//
// Before the first state it knows no key and answers Revoked with StateMissing: a
// gateway asks Current first and answers 503, so that no client throws a good token
// away.
type State struct {
	anchors *Anchors
	now     func() time.Time

	mu    sync.RWMutex
	view  *view     // nil before the first state; never changed, only replaced
	sent  time.Time // the site's time in the newest line
	heard time.Time // our time when that line came

	nonces heardNonces
}

// view is one state with what is looked up in it at every request.
type view struct {
	state        token.SiteState
	verifier     *token.Verifier
	tokens       map[string]bool
	keys         map[proof.KeyThumbprint]bool
	certificates map[string]bool
	published    map[door]string
	roots        map[string]bool // revoked
}

type door struct {
	role     uint64
	endpoint ccm.Endpoint
}

// NewState returns a State that trusts the site root with that pin, and those to which the
// site leads from there.
func NewState(rootPin string, now func() time.Time) *State {
	anchors, _ := NewAnchors(rootPin, nil, nil, now) // without links nothing can be wrong with them
	return NewStateUnder(anchors, now)
}

// NewStateUnder returns a State that trusts these roots.
func NewStateUnder(anchors *Anchors, now func() time.Time) *State {
	return &State{anchors: anchors, now: now}
}

// Anchors returns the site roots that the state is judged by.
func (s *State) Anchors() *Anchors { return s.anchors }

// Apply takes one line of the site's stream: a signed state or a signed heartbeat.
// changed says that another state is in force now. On an error the state at hand is
// kept: StateMalformed, StateTooLarge, StateOtherRoot, StateSignature,
// StateOlderEpoch; StateStale when a heartbeat is not of now; StateBehind when it
// speaks of a state that never came; StateMissing when it comes before any.
//
// Several connectors relay the same lines, so a line that was heard already is no
// error. An old state may still be the newest, so its age is not judged; only a line
// that is of now, and newer than the last, counts as hearing from the site. A relay
// can therefore hold the site's voice back, but it can neither hide that nor bring
// back the past.
func (s *State) Apply(line string) (changed bool, err error) {
	line = strings.TrimSpace(line)
	if token.Document(line) == token.DocumentBeat {
		beat, signer, err := token.OpenBeatOf(line)
		if err == nil {
			err = s.signedBy(signer)
		}
		if err != nil {
			return false, err
		}
		return false, s.applyBeat(beat)
	}
	state, err := token.OpenStateFollowing(line, s.ledTo)
	if err != nil {
		return false, err
	}
	return s.applyState(state)
}

// signedBy takes the word of the newest root alone. One before it speaks of the past.
func (s *State) signedBy(signer string) error {
	switch known, newest := s.anchors.stands(signer); {
	case newest:
		return nil
	case known:
		return catalog.Errorf(catalog.StateOlderEpoch, "signed by the root %s, which was replaced", signer)
	}
	return catalog.Errorf(catalog.StateOtherRoot, "signed by the root %s", signer)
}

// ledTo judges the signer of a state by what the state tells of changes of the root: it
// must be the newest root that they lead to.
func (s *State) ledTo(signer string, links []string) error {
	err := s.signedBy(signer)
	if catalog.CodeOf(err) != catalog.StateOtherRoot || len(links) == 0 {
		return err
	}
	_, further, failed := s.anchors.lead(links)
	if failed != nil {
		return failed
	}
	if len(further) == 0 || further[len(further)-1].Pin != signer {
		return err
	}
	_, err = s.anchors.Follow(links)
	return notKept(err)
}

// notKept leaves out that new links could not be written: whoever gave the function that
// writes knows it.
func notKept(err error) error {
	if catalog.CodeOf(err) == catalog.RootLinksNotKept {
		return nil
	}
	return err
}

func (s *State) applyBeat(beat token.Beat) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.view == nil:
		return catalog.Errorf(catalog.StateMissing, "a heartbeat before any state")
	case beat.Epoch < s.view.state.Epoch:
		return catalog.Errorf(catalog.StateOlderEpoch, "a heartbeat of epoch %d, this is %d", beat.Epoch, s.view.state.Epoch)
	case beat.Epoch > s.view.state.Epoch:
		return catalog.Errorf(catalog.StateBehind, "a heartbeat of epoch %d, this is %d", beat.Epoch, s.view.state.Epoch)
	case !s.ofNow(beat.At):
		return catalog.Errorf(catalog.StateStale, "a heartbeat of %s, the clock here says %s",
			beat.At.UTC().Format(time.RFC3339), s.now().UTC().Format(time.RFC3339))
	}
	s.hear(beat.At)
	s.nonces.hear(beat.Nonce, s.now())
	return nil
}

func (s *State) applyState(state token.SiteState) (bool, error) {
	next, err := newView(state)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.view != nil && state.Epoch < s.view.state.Epoch {
		return false, catalog.Errorf(catalog.StateOlderEpoch, "epoch %d, this is %d", state.Epoch, s.view.state.Epoch)
	}
	if s.ofNow(state.Issued) {
		s.hear(state.Issued)
		s.nonces.hear(state.Nonce, s.now())
	}
	if s.view != nil && state.Epoch == s.view.state.Epoch && (!state.Issued.After(s.view.state.Issued) || state.Equal(s.view.state)) {
		return false, nil
	}
	s.view = next
	return true, nil
}

// ofNow allows for the clocks' leeway and for the time that a line may be on its way.
func (s *State) ofNow(at time.Time) bool {
	age := s.now().Sub(at)
	return age <= token.Leeway+StaleAfter && age >= -token.Leeway
}

func (s *State) hear(at time.Time) {
	if at.After(s.sent) {
		s.sent, s.heard = at, s.now()
	}
}

func newView(state token.SiteState) (*view, error) {
	verifier, err := state.Verifier()
	if err != nil {
		return nil, catalog.Wrap(catalog.StateMalformed, err, "a key in the state cannot be read")
	}
	v := &view{
		state: state, verifier: verifier, tokens: set(state.BlockedTokens), keys: set(state.BlockedKeys),
		certificates: set(state.BlockedCertificates), published: map[door]string{}, roots: set(state.RevokedRoots),
	}
	for _, role := range state.Published {
		for _, endpoint := range role.Endpoints {
			v.published[door{role.RoleID, endpoint}] = role.InternalURL
		}
	}
	return v, nil
}

func set[T comparable](items []T) map[T]bool {
	m := make(map[T]bool, len(items))
	for _, item := range items {
		m[item] = true
	}
	return m
}

func (s *State) current() *view {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.view
}

// Current returns the state in force; ok is false before the first. Its slices are
// shared and must not be changed.
func (s *State) Current() (state token.SiteState, ok bool) {
	v := s.current()
	if v == nil {
		return token.SiteState{}, false
	}
	return v.state, true
}

// LastHeard is when the last line came that was of that moment; zero when none did.
func (s *State) LastHeard() time.Time {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.heard
}

// Stale reports whether the site has not been heard for StaleAfter. The state at hand
// stays in force; a stale gateway says so in its health.
func (s *State) Stale() bool {
	heard := s.LastHeard()
	return heard.IsZero() || s.now().Sub(heard) > StaleAfter
}

// Verifier implements Keys. Before the first state it knows no key.
func (s *State) Verifier() *token.Verifier {
	if v := s.current(); v != nil {
		return v.verifier
	}
	return token.NewVerifier("", nil)
}

// Revoked implements Revocation. A blocked bulk token also ends the tokens that were
// got with it before registration, and leaves registered devices alone. A disabled tenant
// ends every token that came by it.
func (s *State) Revoked(c token.Claims) error {
	v := s.current()
	switch {
	case v == nil:
		return catalog.Errorf(catalog.StateMissing, "no site state yet")
	case v.tokens[c.ID]:
		return catalog.Errorf(catalog.TokenBlocked, "token %s", c.ID)
	case c.Scope == token.ScopeRegister && v.tokens[c.BulkID]:
		return catalog.Errorf(catalog.TokenBlocked, "bulk registration token %s", c.BulkID)
	case v.keys[c.Key]:
		return catalog.Errorf(catalog.KeyBlocked, "key %s", c.Key)
	case c.Cloud != nil:
		return v.tenantRevoked(*c.Cloud)
	}
	return nil
}

// tenantRevoked refuses the site's own tokens that came by a tenant which is disabled, or
// gone, or has dropped the issuer.
func (v *view) tenantRevoked(cloud proof.Cloud) error {
	for _, tenant := range v.state.Tenants {
		switch {
		case tenant.ID != cloud.Tenant:
			continue
		case tenant.Disabled:
			return catalog.Errorf(catalog.EntraTenantDisabled, "tenant %s is disabled", tenant.ID)
		case cloud.Issuer != "" && !slices.Contains(tenant.Issuers, cloud.Issuer):
			return catalog.Errorf(catalog.EntraTenantDisabled, "tenant %s has no issuer %.200q any more", tenant.ID, cloud.Issuer)
		}
		return nil
	}
	return catalog.Errorf(catalog.EntraTenantDisabled, "tenant %.128q is not onboarded any more", cloud.Tenant)
}

// Tenants returns the onboarded tenants; none before the site has been heard. The slice
// is not to be changed.
func (s *State) Tenants() []token.Tenant {
	if v := s.current(); v != nil {
		return v.state.Tenants
	}
	return nil
}

// Authorities returns the company's authorities for client certificates; nil when none
// were uploaded or the site has not been heard. It is not to be changed.
func (s *State) Authorities() *token.Authorities {
	if v := s.current(); v != nil {
		return v.state.Authorities
	}
	return nil
}

// RevokedCertificate answers RoleCertificateBlocked for the pin of a role's key that
// the site has revoked.
func (s *State) RevokedCertificate(pin string) error {
	if v := s.current(); v != nil && v.certificates[strings.ToLower(pin)] {
		return catalog.Errorf(catalog.RoleCertificateBlocked, "key %s", pin)
	}
	return nil
}

// TrustsRoot implements Roots. Beside what the links tell, the site may have revoked a
// root that it had replaced.
func (s *State) TrustsRoot(pin string) error {
	if v := s.current(); v != nil && v.roots[strings.ToLower(pin)] {
		return catalog.Errorf(catalog.RootRetired, "the site has revoked the root %s", pin)
	}
	return s.anchors.TrustsRoot(pin)
}

// Published returns the internal URL of a role when the site publishes this endpoint
// of it.
func (s *State) Published(role uint64, e ccm.Endpoint) (internalURL string, ok bool) {
	v := s.current()
	if v == nil {
		return "", false
	}
	internalURL, ok = v.published[door{role, e}]
	return internalURL, ok
}
