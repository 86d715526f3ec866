package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
)

// dynasty is a line of site roots with the links between.
type dynasty struct {
	keys  []*ecdsa.PrivateKey
	links []string
}

func newDynasty(t testing.TB, changes int) dynasty {
	t.Helper()
	var d dynasty
	for i := range changes + 1 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		d.keys = append(d.keys, key)
		if i > 0 {
			d.links = append(d.links, d.link(t, i, i-1, i, RootLink{}))
		}
	}
	return d
}

func (d dynasty) link(t testing.TB, sequence, from, to int, link RootLink) string {
	t.Helper()
	link.Hierarchy, link.Sequence = hierarchy, uint64(sequence)
	if link.Issued.IsZero() {
		link.Issued = noon.AddDate(0, sequence, 0)
	}
	raw, err := SignRoot(link, d.keys[from], d.keys[to])
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (d dynasty) pin(n int) string { return Pin(d.keys[n].Public()) }

func TestRootsAreFollowedFromThePinnedOne(t *testing.T) {
	d := newDynasty(t, 3)
	for from := range 4 {
		roots, err := FollowRoots(strings.ToUpper(d.pin(from)), d.links)
		if err != nil || len(roots) != 4-from || roots[0].Pin != d.pin(from) || roots[len(roots)-1].Pin != d.pin(3) {
			t.Errorf("from root %d: got %+v, %v", from, roots, err)
			continue
		}
		for i, root := range roots {
			last := i == len(roots)-1
			if root.Sequence != uint64(from+i) || root.Retired.IsZero() != last {
				t.Errorf("from root %d: root %d is %+v", from, i, root)
			}
		}
		if got := LinksFrom(d.pin(from), d.links); !slices.Equal(got, d.links[from:]) {
			t.Errorf("from root %d: %d links are kept", from, len(got))
		}
	}
	if roots, err := FollowRoots(d.pin(0), nil); err != nil || len(roots) != 1 {
		t.Errorf("without links: got %+v, %v", roots, err)
	}
}

func TestAReplacedRootIsTrustedForAWhile(t *testing.T) {
	d := newDynasty(t, 1)
	stolen := []string{d.link(t, 1, 0, 1, RootLink{Compromised: true})}
	changed := noon.AddDate(0, 1, 0)
	for name, test := range map[string]struct {
		links []string
		root  int
		at    time.Time
		want  bool
	}{
		"the new one":                     {d.links, 1, changed.AddDate(10, 0, 0), true},
		"the old one at once":             {d.links, 0, changed, true},
		"the old one in its last second":  {d.links, 0, changed.Add(RootOverlap - time.Second), true},
		"the old one after the overlap":   {d.links, 0, changed.Add(RootOverlap), false},
		"a stolen one at once":            {stolen, 0, changed, false},
		"what comes after the stolen one": {stolen, 1, changed, true},
	} {
		roots, err := FollowRoots(d.pin(0), test.links)
		if err != nil {
			t.Fatal(err)
		}
		if got := roots[test.root].Trusted(test.at); got != test.want {
			t.Errorf("%s: trusted is %v", name, got)
		}
	}
}

func TestHostileRootLinks(t *testing.T) {
	d, other := newDynasty(t, 3), newDynasty(t, 3)
	parts := strings.Split(d.links[1], ".")
	tampered := parts[0] + "." + parts[1][:len(parts[1])-8] + "AAAAAAAA." + parts[2]
	possession, err := signDocument(d.keys[1], DocumentRootPossession, RootLink{Hierarchy: hierarchy, Sequence: 1, From: d.pin(0), Issued: noon})
	if err != nil {
		t.Fatal(err)
	}
	signed := func(by int, link RootLink) string {
		raw, err := signDocument(d.keys[by], DocumentRoot, link)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	first, err := OpenRoot(d.links[0])
	if err != nil {
		t.Fatal(err)
	}
	forged := func(change func(*RootLink)) string {
		link := first
		change(&link)
		return signed(0, link)
	}
	foreign := first
	foreign.Hierarchy = "00000000-0000-0000-0000-000000000000"
	otherHierarchy, err := SignRoot(RootLink{Hierarchy: foreign.Hierarchy, Sequence: 2, Issued: noon}, d.keys[1], d.keys[2])
	if err != nil {
		t.Fatal(err)
	}
	state, err := SignState(testState(t), d.keys[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		links []string
		want  catalog.Code
	}{
		"another site's":                        {other.links, catalog.RootNotReached},
		"one tampered with":                     {[]string{d.links[0], tampered, d.links[2]}, catalog.RootLinkSignature},
		"one left out":                          {[]string{d.links[0], d.links[2]}, catalog.RootChainBroken},
		"in another order":                      {[]string{d.links[1], d.links[0], d.links[2]}, catalog.RootChainBroken},
		"one twice":                             {[]string{d.links[0], d.links[0]}, catalog.RootChainBroken},
		"two heirs":                             {[]string{d.links[0], d.link(t, 1, 0, 2, RootLink{})}, catalog.RootChainBroken},
		"back to the first":                     {[]string{d.links[0], d.link(t, 2, 1, 0, RootLink{})}, catalog.RootChainBroken},
		"into another hierarchy":                {[]string{d.links[0], otherHierarchy}, catalog.RootChainBroken},
		"a change to itself":                    {[]string{d.link(t, 1, 0, 0, RootLink{})}, catalog.RootLinkMalformed},
		"without the new root's signature":      {[]string{forged(func(l *RootLink) { l.Possession = "" })}, catalog.RootLinkMalformed},
		"with the new root's word on other":     {[]string{forged(func(l *RootLink) { l.Possession = possession })}, catalog.RootLinkSignature},
		"declared compromised by one root only": {[]string{forged(func(l *RootLink) { l.Compromised = true })}, catalog.RootLinkSignature},
		"issued at another time":                {[]string{forged(func(l *RootLink) { l.Issued = l.Issued.AddDate(1, 0, 0) })}, catalog.RootLinkSignature},
		"signed by the new root only":           {[]string{signed(1, first)}, catalog.RootLinkSignature},
		"a possession as a link":                {[]string{first.Possession}, catalog.RootLinkMalformed},
		"a state":                               {[]string{state}, catalog.RootLinkMalformed},
		"empty":                                 {[]string{""}, catalog.RootLinkMalformed},
		"9 KiB":                                 {[]string{strings.Repeat("a", 9<<10)}, catalog.RootLinkMalformed},
		"too many":                              {slices.Repeat(d.links[:1], MaxRootLinks+1), catalog.RootLinkMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := FollowRoots(d.pin(0), test.links)
			wantCode(t, err, test.want)
		})
	}
}

func TestRootsTravel(t *testing.T) {
	d := newDynasty(t, 2)
	for _, links := range [][]string{nil, d.links} {
		content, err := MarshalRoots(links)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseRoots(content)
		if err != nil || !slices.Equal(got, links) {
			t.Errorf("got %d links, %v", len(got), err)
		}
	}
	for name, content := range map[string]string{"not JSON": "<html>", "a list": "[]", "two documents": `{"roots":[]}{"roots":[]}`, "a name twice": `{"roots":[],"roots":[]}`, "too large": strings.Repeat(" ", MaxRoots+1)} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseRoots([]byte(content))
			wantCode(t, err, catalog.RootLinkMalformed)
		})
	}
}

// A chain as long as a site may have it fits the document and the state.
func TestTheLongestChainFits(t *testing.T) {
	d := newDynasty(t, MaxRootLinks)
	content, err := MarshalRoots(d.links)
	if err != nil || len(content) > MaxRoots {
		t.Errorf("%d bytes, %v", len(content), err)
	}
	if roots, err := FollowRoots(d.pin(0), d.links); err != nil || len(roots) != MaxRootLinks+1 {
		t.Errorf("%d roots, %v", len(roots), err)
	}
}

func FuzzFollowRoots(f *testing.F) {
	d := newDynasty(f, 2)
	pin := d.pin(0)
	for _, links := range [][]string{d.links, d.links[1:], {d.links[0], ""}, nil} {
		content, err := MarshalRoots(links)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		links, err := ParseRoots(content)
		if err != nil {
			return
		}
		roots, err := FollowRoots(pin, links)
		if err != nil {
			return
		}
		for _, root := range roots {
			if root.Pin != pin && root.Pin != d.pin(1) && root.Pin != d.pin(2) {
				t.Errorf("led to the root %s", root.Pin)
			}
		}
	})
}
