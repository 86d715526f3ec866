package site

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"postern/ccm"
	"postern/token"
)

// published are the endpoints of a management point that gateways let through (design decision 3). ccm_system_windowsauth is never among them.
func published() []ccm.Endpoint {
	return []ccm.Endpoint{
		ccm.EndpointSTS, ccm.EndpointSystemTokenAuth, ccm.EndpointMPTokenAuth, ccm.EndpointClient, ccm.EndpointContent,
		ccm.EndpointSystem, ccm.EndpointMP, ccm.EndpointState,
	}
}

// replacedTold is how long gateways are told of a key that was replaced. No token that is bound to it lasts half as long; afterwards it is the management
// point that refuses it, and the state does not grow with every device that was ever made anew.
const replacedTold = 2 * token.SelfProveLifetime

// siteState builds the document that gateways and connectors live by (design decision 4). Lists are sorted, so that equal states are equal bytes.
func (now *snapshot) siteState(epoch uint64, at time.Time) token.SiteState {
	state := token.SiteState{
		Epoch:     epoch,
		SiteCode:  now.settings.SiteCode,
		Hierarchy: now.hierarchy,
		Root:      now.rootCert.RawSubjectPublicKeyInfo,
	}
	if keys, err := now.ring.PublicKeys(); err == nil {
		state.Keys = keys
	}
	for _, m := range now.points {
		state.Published = append(state.Published, token.Published{RoleID: m.RoleID, Name: m.FQDN, InternalURL: m.InternalURL, Endpoints: published()})
	}
	for _, g := range now.gateways {
		state.Gateways = append(state.Gateways, token.Gateway{Name: g.Name, URL: g.URL, Pin: g.Pin})
	}
	for _, c := range now.connectors {
		if c.Blocked {
			state.BlockedCertificates = append(state.BlockedCertificates, c.Pin)
		}
	}
	state.BlockedCertificates = append(state.BlockedCertificates, now.keptPins()...)
	for _, t := range now.tenants {
		state.Tenants = append(state.Tenants, t.Tenant)
	}
	state.Authorities = now.publishedAuthorities()
	state.Roots, state.RevokedRoots = now.links(), now.revokedRoots()
	state.Return = now.settings.Return
	state.BlockedTokens = slices.Sorted(maps.Keys(now.blockedBy))
	keys := slices.Collect(maps.Keys(now.blockedKey))
	for key, by := range now.replaced {
		if at.Sub(by.At) < replacedTold {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	state.BlockedKeys = slices.Compact(keys)
	slices.Sort(state.BlockedCertificates)
	return state
}

// State returns the site state of this moment, signed by the site root.
func (s *Site) State() (signed string, epoch uint64, err error) {
	now := s.current.Load()
	state := now.state
	state.Issued, state.Nonce = s.now().UTC(), s.newestNonce()
	signed, err = token.SignState(state, now.root)
	if err != nil {
		return "", 0, fmt.Errorf("sign site state: %w", err)
	}
	return signed, state.Epoch, nil
}

// Beat returns a signed word that the given epoch is still in force.
func (s *Site) Beat(epoch uint64) (string, error) {
	return token.SignBeatOf(token.Beat{Epoch: epoch, At: s.now(), Nonce: s.newestNonce()}, s.current.Load().root)
}

// Epoch returns the epoch of the site state in force here.
func (s *Site) Epoch() uint64 { return s.current.Load().state.Epoch }

// Watch returns a channel that receives when the site state moved; it is closed when ctx ends.
func (s *Site) Watch(ctx context.Context) <-chan struct{} {
	moved := make(chan struct{}, 1)
	s.watch.Lock()
	s.watchers[moved] = struct{}{}
	s.watch.Unlock()
	context.AfterFunc(ctx, func() {
		s.watch.Lock()
		defer s.watch.Unlock()
		delete(s.watchers, moved)
		close(moved)
	})
	return moved
}

func (s *Site) announce() {
	s.watch.Lock()
	defer s.watch.Unlock()
	for moved := range s.watchers {
		select {
		case moved <- struct{}{}:
		default: // one is waiting there already
		}
	}
}

// Restored notes that the store was replaced by a backup. The epoch rises above every one that was ever published, since epochs follow the clock,
// so that gateways take the older state as the newer word of the site.
func (s *Site) Restored(ctx context.Context, by string) error {
	return s.update(ctx, func(tx Tx) (bool, error) {
		return true, s.trust(tx, by, "site.restore", string(s.SiteCode()), nil)
	})
}

// epochNow is the epoch of this moment: milliseconds of the clock. Epochs that follow the clock keep rising when the store is replaced by an older
// copy; within a millisecond, or when the clock stands back, they rise by one.
func (s *Site) epochNow() uint64 { return uint64(max(0, s.now().UnixMilli())) }
