package site

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"slices"
	"strings"

	"postern/catalog"
	"postern/token"
)

// takeRoot keeps what is public of a root.
func (next *snapshot) takeRoot(record KeyRecord) {
	record.Private = nil
	next.rootRecords = append(next.rootRecords, record)
	slices.SortStableFunc(next.rootRecords, byEpoch)
}

// byEpoch orders roots as they followed one another, whatever the clock said.
func byEpoch(a, b KeyRecord) int { return cmp.Compare(a.Epoch, b.Epoch) }

// links are by what one root led to the next, in their order.
func (now *snapshot) links() (links []string) {
	for _, r := range now.rootRecords {
		if r.Link != "" {
			links = append(links, r.Link)
		}
	}
	return links
}

// revokedRoots are the pins of roots that were declared compromised.
func (now *snapshot) revokedRoots() (pins []string) {
	for _, r := range now.rootRecords {
		if r.State == token.KeyRevoked {
			pins = append(pins, token.PinOf(r.Public))
		}
	}
	slices.Sort(pins)
	return pins
}

// RootLinks returns by what one site root led to the next: all that somebody who trusts an earlier root needs to trust the present one.
func (s *Site) RootLinks() []string { return s.current.Load().state.Roots }

// TrustsRoot reports why role certificates under the root with that pin are refused, or nil. It has the shape of auth.Roots. Codes: RootRetired for
// a root of this site that was replaced too long ago or declared compromised, RoleCertificateRoot for any other.
func (s *Site) TrustsRoot(pin string) error {
	for _, r := range s.current.Load().rootRecords {
		if pin == "" || !strings.EqualFold(token.PinOf(r.Public), pin) {
			continue
		}
		switch {
		case r.State == token.KeyRevoked:
			return catalog.Errorf(catalog.RootRetired, "the root %s was declared compromised", pin)
		case r.State == token.KeyRetired && !s.now().Before(r.Changed.Add(token.RootOverlap)):
			return catalog.Errorf(catalog.RootRetired, "the root %s was replaced %s", pin, r.Changed.Format("2006-01-02"))
		}
		return nil
	}
	return catalog.Errorf(catalog.RoleCertificateRoot, "the chain ends in the root %s", pin)
}

// RootWaitsFor returns which gateways have not confirmed yet that the root of now is the site's. Until they have, at most a minute, a management point goes on
// under the root before: a device could not be led on by a gateway that does not know itself.
func (s *Site) RootWaitsFor(ctx context.Context) ([]string, error) {
	records := s.current.Load().rootRecords
	return s.WaitsFor(ctx, records[len(records)-1])
}

// OnceRoots are all roots that the site ever had. What stands under one of them that is trusted no more proves nothing by that; it serves where a
// key is known by its pin, and its holder is to get a certificate under the present root.
type OnceRoots struct{ site *Site }

// OnceRoots returns all roots that the site ever had.
func (s *Site) OnceRoots() OnceRoots { return OnceRoots{s} }

// TrustsRoot has the shape of auth.Roots.
func (o OnceRoots) TrustsRoot(pin string) error {
	if err := o.site.TrustsRoot(pin); catalog.CodeOf(err) != catalog.RootRetired {
		return err
	}
	return nil
}

// rotateRoot puts a new site root in the place of the present one, which signs that it does and whose private half is then erased. Everybody who
// trusts the old root is led to the new one by that signature; certificates under the old one are good for another [token.RootOverlap], or no more
// when it is declared compromised. Code: KeyChanged when another did the same meanwhile.
func (s *Site) rotateRoot(ctx context.Context, by, why string, compromised bool) (fresh KeyRecord, err error) {
	now, here := s.time(), s.current.Load()
	if len(here.state.Roots) >= token.MaxRootLinks {
		return fresh, catalog.Errorf(catalog.InvalidArgument, "the site root was replaced %d times, and more are not followed; make the site anew", token.MaxRootLinks)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), s.rand)
	if err != nil {
		return fresh, err
	}
	certificate, err := s.selfSigned(rootTemplate(here.settings.SiteCode, now), key)
	if err != nil {
		return fresh, err
	}
	link, err := token.SignRoot(token.RootLink{
		Hierarchy: here.hierarchy, Sequence: uint64(len(here.state.Roots)) + 1, Issued: now, Compromised: compromised,
	}, here.root, key)
	if err != nil {
		return fresh, err
	}
	fresh = KeyRecord{
		Purpose: PurposeRoot, Algorithm: token.AlgorithmES256, Certificate: certificate, State: token.KeyActive, NotBefore: now, NotAfter: now.Add(rootLife),
		Created: now, Changed: now, Link: link,
	}
	if err := s.seal(&fresh, key); err != nil {
		return fresh, err
	}
	err = s.store.Update(ctx, func(tx Tx) error {
		old, err := activeKey(tx, PurposeRoot)
		if err != nil {
			return err
		}
		if old.ID != here.rootID {
			return catalog.Errorf(catalog.KeyChanged, "the site root is %s now", token.PinOf(old.Public))
		}
		old.State, old.Changed, old.Private = token.KeyRetired, now, nil
		if compromised {
			old.State, old.Why = token.KeyRevoked, why
		}
		if fresh.Epoch, err = tx.NextEpoch(s.epochNow()); err != nil {
			return err
		}
		if err := tx.PutSigningKey(old); err != nil {
			return err
		}
		if err := tx.PutSigningKey(fresh); err != nil {
			return err
		}
		detail := map[string]string{"purpose": PurposeRoot, "from": token.PinOf(old.Public), "to": token.PinOf(fresh.Public)}
		if compromised {
			detail["why"] = why
			return s.trust(tx, by, "key.compromised", old.ID, detail)
		}
		return s.trust(tx, by, "key.rotate", fresh.ID, detail)
	})
	if err != nil {
		return KeyRecord{}, err
	}
	return fresh, s.putInForce(ctx)
}

// rotateSiteSigning makes another site signing certificate. It is what SITESIGNCERT serves and is signed by nobody but itself, as documented (S4); devices
// believe it because they asked a management point that they had recognised, so that nothing has to wait for the change.
func (s *Site) rotateSiteSigning(ctx context.Context, by, why string, compromised bool) (fresh KeyRecord, err error) {
	now, here := s.time(), s.current.Load()
	if fresh, err = s.newSiteSigning(here.settings.SiteCode, now); err != nil {
		return fresh, err
	}
	err = s.update(ctx, func(tx Tx) (bool, error) {
		old, err := activeKey(tx, PurposeSiteSigning)
		if err != nil {
			return false, err
		}
		if string(old.Certificate) != string(here.signing) {
			return false, catalog.Errorf(catalog.KeyChanged, "the site signing key is %s now", old.ID)
		}
		old.State, old.Changed = token.KeyRetired, now
		if compromised {
			old.State, old.Why, old.Private = token.KeyRevoked, why, nil
		}
		if err := tx.PutSigningKey(old); err != nil {
			return false, err
		}
		if err := tx.PutSigningKey(fresh); err != nil {
			return false, err
		}
		if compromised {
			return true, s.trust(tx, by, "key.compromised", old.ID, map[string]string{"purpose": PurposeSiteSigning, "to": fresh.ID, "why": why})
		}
		return true, s.trust(tx, by, "key.rotate", fresh.ID, map[string]string{"purpose": PurposeSiteSigning, "algorithm": fresh.Algorithm})
	})
	return fresh, err
}

func activeKey(tx Tx, purpose string) (KeyRecord, error) {
	records, err := tx.SigningKeys()
	if err != nil {
		return KeyRecord{}, err
	}
	for _, r := range records {
		if r.Purpose == purpose && r.State == token.KeyActive {
			return r, nil
		}
	}
	return KeyRecord{}, catalog.Errorf(catalog.KeyChanged, "there is no active %s key", purpose)
}
