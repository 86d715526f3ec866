package auth

import (
	"slices"
	"strings"
	"sync"
	"time"

	"postern/catalog"
	"postern/token"
)

// Roots says which site roots vouch for role certificates.
type Roots interface {
	// TrustsRoot returns nil when certificates under the root with that pin are good, and
	// otherwise why not: RoleCertificateRoot, or RootRetired for one that was replaced.
	TrustsRoot(pin string) error
}

// RootPin is the one site root with that pin, and no other.
type RootPin string

// TrustsRoot implements Roots.
func (p RootPin) TrustsRoot(pin string) error {
	if p == "" || pin == "" || !strings.EqualFold(pin, string(p)) {
		return catalog.Errorf(catalog.RoleCertificateRoot, "the chain ends in the root %s", pin)
	}
	return nil
}

// Anchors are the site roots that a role trusts: the one that it was given, and those to
// which the site's own word has led since. Once led from a root to another, it is never
// led from the first to a third. It is safe for concurrent use.
type Anchors struct {
	pinned string
	keep   func(links []string) error
	now    func() time.Time

	mu    sync.RWMutex
	links []string // from the pinned root on
	roots []token.Root
	moved chan struct{} // closed when there is another newest root
}

// NewAnchors returns the pinned root with the links that were kept. keep is called with
// all links when there are more; nil keeps none. An error, of the codes of
// [token.FollowRoots], is about the links; the pinned root then stands alone.
func NewAnchors(pin string, links []string, keep func(links []string) error, now func() time.Time) (*Anchors, error) {
	pin = strings.ToLower(pin)
	a := &Anchors{pinned: pin, keep: keep, now: now, roots: []token.Root{{Pin: pin}}, moved: make(chan struct{})}
	roots, err := token.FollowRoots(pin, links)
	if err != nil {
		return a, err
	}
	a.links, a.roots = token.LinksFrom(pin, links), roots
	return a, nil
}

// Newest returns the pin of the newest root.
func (a *Anchors) Newest() string { return a.newest().Pin }

func (a *Anchors) newest() token.Root {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.roots[len(a.roots)-1]
}

// Links returns what led from the pinned root to the newest. It is not to be changed.
func (a *Anchors) Links() []string {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.links
}

// Moved returns a channel that is closed when another root becomes the newest.
func (a *Anchors) Moved() <-chan struct{} {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.moved
}

// Follow takes the links that a site tells of. changed says that there is another newest
// root; it is in force even when err, of code RootLinksNotKept, says that it could not
// be kept. Other errors are those of [token.FollowRoots] and change nothing. Links that
// tell less than is known are no error.
func (a *Anchors) Follow(links []string) (changed bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	grown, roots, err := a.led(links)
	if err != nil || grown == nil {
		return false, err
	}
	a.links, a.roots = grown, roots
	close(a.moved)
	a.moved = make(chan struct{})
	if a.keep == nil {
		return true, nil
	}
	if err := a.keep(slices.Clone(grown)); err != nil {
		return true, catalog.Wrap(catalog.RootLinksNotKept, err, "the root is now %s", roots[len(roots)-1].Pin)
	}
	return true, nil
}

// lead judges links and takes nothing over; the roots are empty when they lead no further.
func (a *Anchors) lead(links []string) (grown []string, roots []token.Root, err error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.led(links)
}

// led is lead with a.mu held.
func (a *Anchors) led(links []string) (grown []string, roots []token.Root, err error) {
	newest := a.roots[len(a.roots)-1].Pin
	on, err := token.FollowRoots(newest, links)
	switch {
	case catalog.CodeOf(err) == catalog.RootNotReached && a.fork(links):
		return nil, nil, catalog.Errorf(catalog.RootChainBroken, "a root before %s is said to have been replaced by another", newest)
	case catalog.CodeOf(err) == catalog.RootNotReached && a.knows(links):
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	case len(on) < 2:
		return nil, nil, nil
	}
	grown = append(slices.Clone(a.links), token.LinksFrom(newest, links)...)
	roots, err = token.FollowRoots(a.pinned, grown)
	return grown, roots, err
}

// fork reports whether links lead from a root that is known to another than is known.
func (a *Anchors) fork(links []string) bool {
	for _, raw := range links {
		link, err := token.OpenRoot(raw)
		at := slices.IndexFunc(a.roots, func(r token.Root) bool { return r.Pin == link.From })
		if err == nil && at >= 0 && at+1 < len(a.roots) && a.roots[at+1].Pin != token.PinOf(link.To) {
			return true
		}
	}
	return false
}

// knows reports whether the last of the links leads to a root that is known.
func (a *Anchors) knows(links []string) bool {
	link, err := token.OpenRoot(links[len(links)-1])
	return err == nil && slices.ContainsFunc(a.roots, func(r token.Root) bool { return r.Pin == token.PinOf(link.To) })
}

// TrustsRoot implements Roots: the newest root, and those before it for a while.
func (a *Anchors) TrustsRoot(pin string) error {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, root := range a.roots {
		switch {
		case pin == "" || !strings.EqualFold(root.Pin, pin):
			continue
		case root.Trusted(a.now()):
			return nil
		case root.Compromised:
			return catalog.Errorf(catalog.RootRetired, "the root %s was declared compromised %s", pin, stamp(root.Retired))
		}
		return catalog.Errorf(catalog.RootRetired, "the root %s was replaced %s", pin, stamp(root.Retired))
	}
	return catalog.Errorf(catalog.RoleCertificateRoot, "the chain ends in the root %s", pin)
}

// stands reports whether a pin is that of a known root, and whether it is the newest.
func (a *Anchors) stands(pin string) (known, newest bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	at := slices.IndexFunc(a.roots, func(r token.Root) bool { return strings.EqualFold(r.Pin, pin) })
	return at >= 0, at == len(a.roots)-1
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
