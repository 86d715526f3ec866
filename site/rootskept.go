package site

import (
	"context"
	"slices"
	"time"

	"postern/catalog"
	"postern/token"
)

// KeptRoot is a site root as a management point keeps it beside its store: a backup from before a change of the root knows nothing of the new one, and whoever
// was led to that trusts no other. The private half is sealed as in the store.
type KeptRoot struct {
	ID          string    `json:"id"`
	Certificate []byte    `json:"certificate"`
	Public      []byte    `json:"public"`
	Private     []byte    `json:"private,omitempty"` // sealed; of the active one
	State       string    `json:"state"`
	Created     time.Time `json:"created"`
	Changed     time.Time `json:"changed,omitzero"`
	NotAfter    time.Time `json:"not_after"`
	Why         string    `json:"why,omitempty"`
	Link        string    `json:"link,omitempty"`
	Epoch       uint64    `json:"epoch,string"`
}

// KeepRoots returns all roots of the site, the oldest first.
func (s *Site) KeepRoots(ctx context.Context) (roots []KeptRoot, err error) {
	records, err := s.SigningKeys(ctx)
	slices.SortStableFunc(records, byEpoch)
	for _, r := range records {
		if r.Purpose == PurposeRoot {
			roots = append(roots, KeptRoot{r.ID, r.Certificate, r.Public, r.Private, r.State, r.Created, r.Changed, r.NotAfter, r.Why, r.Link, r.Epoch})
		}
	}
	return roots, err
}

// RestoreRoots brings back the roots that a restored store has forgotten, when what was kept leads on from the store's root. It reports whether there were any.
// Code RootChainBroken: what was kept does not lead on from it.
func (s *Site) RestoreRoots(ctx context.Context, kept []KeptRoot) (restored bool, err error) {
	here := s.current.Load()
	at, links := -1, []string(nil)
	for i, r := range kept {
		if r.ID == here.rootID {
			at = i
		}
		if r.Link != "" {
			links = append(links, r.Link)
		}
	}
	if at == len(kept)-1 || at < 0 && len(links) <= len(here.state.Roots) {
		return false, nil // what is kept is not newer
	}
	roots, err := token.FollowRoots(s.RootPin(), links)
	newest := kept[len(kept)-1]
	if err != nil || at < 0 || roots[len(roots)-1].Pin != token.PinOf(newest.Public) {
		return false, catalog.Wrap(catalog.RootChainBroken, err, "the kept roots do not lead on from the store's root %s", s.RootPin())
	}
	if _, err := s.sealer.Open(sealLabel(newest.ID), newest.Private); err != nil {
		return false, catalog.Wrap(catalog.KeyFileWrong, err, "the kept root %s cannot be opened with this site.key", newest.ID)
	}
	err = s.update(ctx, func(tx Tx) (bool, error) {
		for _, r := range kept[at:] {
			record := KeyRecord{
				ID: r.ID, Purpose: PurposeRoot, Algorithm: token.AlgorithmES256, Certificate: r.Certificate, Public: r.Public, Private: r.Private, State: r.State,
				NotBefore: r.Created, NotAfter: r.NotAfter, Created: r.Created, Changed: r.Changed, Why: r.Why, Link: r.Link, Epoch: r.Epoch,
			}
			if err := tx.PutSigningKey(record); err != nil {
				return false, err
			}
		}
		return true, s.trust(tx, actorSite, actionRootKept, newest.ID, map[string]string{"from": s.RootPin(), "to": token.PinOf(newest.Public)})
	})
	return err == nil, err
}
