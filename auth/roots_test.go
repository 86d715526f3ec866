package auth

import (
	"crypto"
	"crypto/x509"
	"errors"
	"slices"
	"testing"
	"time"

	"postern/catalog"
	"postern/token"
)

// line is a line of site roots and the links between.
type line struct {
	roots []crypto.Signer
	links []string
}

func newLine(t testing.TB, first crypto.Signer, changes int) line {
	t.Helper()
	l := line{roots: []crypto.Signer{first}}
	for i := range changes {
		l.roots = append(l.roots, newKey())
		l.links = append(l.links, rootLink(t, i+1, l.roots[i], l.roots[i+1], false))
	}
	return l
}

func rootLink(t testing.TB, sequence int, from, to crypto.Signer, compromised bool) string {
	t.Helper()
	raw, err := token.SignRoot(token.RootLink{Hierarchy: hierarchy, Sequence: uint64(sequence), Issued: noon, Compromised: compromised}, from, to)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (l line) pin(n int) string { return token.Pin(l.roots[n].Public()) }

func TestAnchorsAreLedAndRemember(t *testing.T) {
	l := newLine(t, newKey(), 3)
	now := noon
	clock := func() time.Time { return now }
	var kept []string
	keep := func(links []string) error { kept = links; return nil }
	a, err := NewAnchors(l.pin(0), nil, keep, clock)
	if err != nil {
		t.Fatal(err)
	}
	moved := a.Moved()
	if changed, err := a.Follow(l.links[:1]); !changed || err != nil || a.Newest() != l.pin(1) || !slices.Equal(kept, l.links[:1]) {
		t.Errorf("got %v, %v, at %s, kept %d", changed, err, a.Newest(), len(kept))
	}
	select {
	case <-moved:
	default:
		t.Error("nobody was told")
	}
	if changed, err := a.Follow(l.links[:1]); changed || err != nil {
		t.Errorf("the same again: %v, %v", changed, err)
	}
	if changed, err := a.Follow(l.links); !changed || err != nil || a.Newest() != l.pin(3) || len(kept) != 3 {
		t.Errorf("two more: %v, %v, at %s", changed, err, a.Newest())
	}
	if changed, err := a.Follow(l.links[:2]); changed || err != nil {
		t.Errorf("less than is known: %v, %v", changed, err)
	}
	again, err := NewAnchors(l.pin(0), kept, nil, clock)
	if err != nil || again.Newest() != l.pin(3) {
		t.Errorf("from disk: at %s, %v", again.Newest(), err)
	}
	late, err := NewAnchors(l.pin(2), l.links, nil, clock)
	if err != nil || late.Newest() != l.pin(3) || len(late.Links()) != 1 {
		t.Errorf("pinned later: at %s, %d links, %v", late.Newest(), len(late.Links()), err)
	}
	damaged, err := NewAnchors(l.pin(0), []string{tampered(l.links[0])}, nil, clock)
	if wantCode(t, err, catalog.RootLinkSignature); damaged.Newest() != l.pin(0) {
		t.Error("damaged links on disk leave the pinned root alone")
	}

	for n := range 3 {
		if err := a.TrustsRoot(l.pin(n)); err != nil {
			t.Errorf("root %d in the overlap: %v", n, err)
		}
	}
	now = noon.Add(token.RootOverlap)
	wantCode(t, a.TrustsRoot(l.pin(2)), catalog.RootRetired)
	if err := a.TrustsRoot(l.pin(3)); err != nil {
		t.Errorf("the newest root: %v", err)
	}
	wantCode(t, a.TrustsRoot(""), catalog.RoleCertificateRoot)
	wantCode(t, a.TrustsRoot(token.Pin(otherRoot().Public())), catalog.RoleCertificateRoot)
}

// Once led from a root to another, nobody is led from the first to a third, though it has signed that too.
func TestAForkIsRefused(t *testing.T) {
	l := newLine(t, newKey(), 2)
	thief := newKey()
	a, err := NewAnchors(l.pin(0), l.links, nil, func() time.Time { return noon })
	if err != nil {
		t.Fatal(err)
	}
	for name, links := range map[string][]string{
		"from the first root":            {rootLink(t, 1, l.roots[0], thief, false)},
		"from the one before the newest": {l.links[0], rootLink(t, 2, l.roots[1], thief, false)},
	} {
		_, err := a.Follow(links)
		wantCode(t, err, catalog.RootChainBroken)
		if a.Newest() != l.pin(2) {
			t.Fatalf("%s: led to %s", name, a.Newest())
		}
	}
	_, err = a.Follow([]string{rootLink(t, 3, thief, newKey(), false)})
	wantCode(t, err, catalog.RootNotReached)
}

func TestWhatCannotBeKeptIsInForce(t *testing.T) {
	l := newLine(t, newKey(), 1)
	a, err := NewAnchors(l.pin(0), nil, func([]string) error { return errors.New("disk full") }, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	changed, err := a.Follow(l.links)
	if wantCode(t, err, catalog.RootLinksNotKept); !changed || a.Newest() != l.pin(1) {
		t.Errorf("changed is %v, at %s", changed, a.Newest())
	}
}

func TestAStateUnderANewRootIsFollowed(t *testing.T) {
	l := newLine(t, siteRoot(), 2)
	now := noon
	withRoots := func(links ...string) func(*token.SiteState) {
		return func(s *token.SiteState) { s.Roots = links }
	}
	s := newState(&now)
	apply := func(raw string) error { _, err := s.Apply(raw); return err }
	if err := apply(stateLine(t, siteRoot(), 1, now, nil)); err != nil {
		t.Fatal(err)
	}
	refusals := map[string]struct {
		line string
		want catalog.Code
	}{
		"another root, without links":      {stateLine(t, otherRoot(), 2, now, nil), catalog.StateOtherRoot},
		"another root, with ours":          {stateLine(t, otherRoot(), 2, now, withRoots(l.links...)), catalog.StateOtherRoot},
		"the second root, with one link":   {stateLine(t, l.roots[2], 2, now, withRoots(l.links[0])), catalog.StateOtherRoot},
		"a root that is not the last":      {stateLine(t, l.roots[1], 2, now, withRoots(l.links...)), catalog.StateOtherRoot},
		"links that were tampered with":    {stateLine(t, l.roots[2], 2, now, withRoots(l.links[0], tampered(l.links[1]))), catalog.RootLinkSignature},
		"a beat before the state, by next": {beatLine(t, l.roots[1], 2, now), catalog.StateOtherRoot},
	}
	for name, test := range refusals {
		t.Run(name, func(t *testing.T) { wantCode(t, apply(test.line), test.want) })
	}
	if s.Anchors().Newest() != l.pin(0) {
		t.Fatalf("led to %s by what was refused", s.Anchors().Newest())
	}
	if err := apply(stateLine(t, l.roots[2], 2, now, withRoots(l.links...))); err != nil {
		t.Fatal(err)
	}
	if s.Anchors().Newest() != l.pin(2) {
		t.Errorf("led to %s", s.Anchors().Newest())
	}
	wantCode(t, apply(stateLine(t, siteRoot(), 3, now, nil)), catalog.StateOlderEpoch) // the old root has no say any more
	wantCode(t, apply(beatLine(t, siteRoot(), 2, now)), catalog.StateOlderEpoch)
	if err := apply(beatLine(t, l.roots[2], 2, now)); err != nil {
		t.Error(err)
	}
	if err := s.TrustsRoot(l.pin(1)); err != nil {
		t.Errorf("the root before, in the overlap: %v", err)
	}
	if err := apply(stateLine(t, l.roots[2], 3, now, func(st *token.SiteState) { st.Roots, st.RevokedRoots = l.links, []string{l.pin(1)} })); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.TrustsRoot(l.pin(1)), catalog.RootRetired)
}

func TestARoleCertificateUnderAReplacedRoot(t *testing.T) {
	l := newLine(t, siteRoot(), 1)
	now := noon
	a, err := NewAnchors(l.pin(0), l.links, nil, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	root := rootCertificate(t, siteRoot())
	template := roleTemplate(token.RoleConnector, x509.ExtKeyUsageClientAuth)
	extension, err := token.CarryLinks(l.links)
	if err != nil {
		t.Fatal(err)
	}
	template.ExtraExtensions = append(template.ExtraExtensions, extension)
	template.NotBefore, template.NotAfter = noon.Add(-time.Hour), noon.AddDate(1, 0, 0)
	leaf := issue(t, deviceKey(), root, template, siteRoot())
	if !slices.Equal(token.CarriedLinks(leaf), l.links) {
		t.Error("the certificate does not carry the links")
	}
	chain := []*x509.Certificate{leaf, root}
	if _, _, err := RoleCertificateUnder(chain, a, token.RoleConnector, noon); err != nil {
		t.Errorf("in the overlap: %v", err)
	}
	now = noon.Add(token.RootOverlap)
	_, _, err = RoleCertificateUnder(chain, a, token.RoleConnector, noon)
	wantCode(t, err, catalog.RootRetired)
}
