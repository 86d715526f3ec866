package site

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"postern/proof"
)

// DeviceGroup is devices that came the same way under names of one pattern.
type DeviceGroup struct {
	Method  proof.Method `json:"method"`
	Origin  string       `json:"origin"`  // realm, tenant, authority, or tracked id of the bulk token; "" for none
	Pattern string       `json:"pattern"` // of the names: # stands for digits, A for letters where there were too many patterns, * for any
	Count   int          `json:"count"`
	Example string       `json:"example"`
	First   time.Time    `json:"first"`
	Last    time.Time    `json:"last"`
}

// maxGroups is how many groups a person is shown: junk by the hundred thousand must not hide the one device that matters (C67).
const maxGroups = 49

const devicePage = 1000

// EachDevice calls each with every device that the filter lets through, by age, a page at a time.
func (s *Site) EachDevice(ctx context.Context, filter DeviceFilter, each func(Device)) error {
	left := filter.Limit
	for {
		filter.Limit = devicePage
		if left > 0 {
			filter.Limit = min(left, devicePage)
		}
		page, err := s.Devices(ctx, filter)
		if err != nil {
			return err
		}
		for _, d := range page {
			each(d)
		}
		if left -= len(page); len(page) < filter.Limit || left == 0 {
			return nil
		}
		filter.After = page[len(page)-1].ClientID
	}
}

// DeviceGroups groups devices by how they came and what they are called: at most 49 groups, the smallest first, since a crowd is easy to judge.
func (s *Site) DeviceGroups(ctx context.Context, filter DeviceFilter) ([]DeviceGroup, error) {
	groups := map[groupKey]*DeviceGroup{}
	err := s.EachDevice(ctx, filter, func(d Device) {
		key := keyOfGroup(d)
		if groups[key] == nil {
			groups[key] = &DeviceGroup{Method: key.method, Origin: key.origin, Pattern: key.pattern, Example: d.Name(), First: d.Created}
		}
		g := groups[key]
		g.Count++
		g.Last = d.Created
	})
	if err != nil {
		return nil, err
	}
	return fewer(groups), nil
}

type groupKey struct {
	method  proof.Method
	origin  string
	pattern string
}

func keyOfGroup(d Device) groupKey {
	host, _, _ := strings.Cut(d.Record.FQDName, ".")
	key := groupKey{method: d.Approval.Method, origin: d.Approval.Evidence["realm"], pattern: runs(cmp.Or(d.Record.NetbiosName, host), unicode.IsDigit, '#')}
	for _, fact := range []string{factTenant, "certificate-issuer", "bulk-token"} {
		key.origin = cmp.Or(key.origin, d.Approval.Evidence[fact])
	}
	return key
}

// runs writes one sign for each run of runes of a class, and the rest in upper case.
func runs(name string, class func(rune) bool, sign rune) string {
	var b strings.Builder
	inside := false
	for _, r := range strings.ToUpper(name) {
		if class(r) && !inside {
			b.WriteRune(sign)
		}
		if inside = class(r); !inside {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// coarser are the ways to write fewer patterns, each coarser than the one before.
func coarser() []func(groupKey) groupKey {
	pattern := func(change func(string) string) func(groupKey) groupKey {
		return func(k groupKey) groupKey { k.pattern = change(k.pattern); return k }
	}
	return []func(groupKey) groupKey{
		pattern(func(p string) string { return runs(p, unicode.IsLetter, 'A') }),
		pattern(func(string) string { return "*" }),
		func(k groupKey) groupKey { k.origin, k.pattern = "*", "*"; return k },
		func(groupKey) groupKey { return groupKey{"*", "*", "*"} },
	}
}

// fewer joins groups until few enough are left. Those of the way that has the most patterns are joined first, so that a flood through one way hides
// nothing that came through another.
func fewer(groups map[groupKey]*DeviceGroup) []DeviceGroup {
	for _, change := range coarser() {
		for len(groups) > maxGroups {
			crowd, most := crowdOf(groups, change)
			if most < 2 {
				break
			}
			groups = joined(groups, crowd, change)
		}
	}
	list := make([]DeviceGroup, 0, len(groups))
	for _, g := range groups {
		list = append(list, *g)
	}
	slices.SortFunc(list, func(a, b DeviceGroup) int {
		return cmp.Or(cmp.Compare(a.Count, b.Count), cmp.Compare(fmt.Sprint(a.Method, a.Origin, a.Pattern), fmt.Sprint(b.Method, b.Origin, b.Pattern)))
	})
	return list
}

// crowdOf finds the group into which the change would join the most.
func crowdOf(groups map[groupKey]*DeviceGroup, change func(groupKey) groupKey) (crowd groupKey, most int) {
	counts := map[groupKey]int{}
	for key := range groups {
		counts[change(key)]++
	}
	for key, n := range counts {
		if n > most || n == most && fmt.Sprint(key) < fmt.Sprint(crowd) {
			crowd, most = key, n
		}
	}
	return crowd, most
}

func joined(groups map[groupKey]*DeviceGroup, crowd groupKey, change func(groupKey) groupKey) map[groupKey]*DeviceGroup {
	next := map[groupKey]*DeviceGroup{}
	for key, g := range groups {
		if change(key) == crowd {
			key = crowd
		}
		into := next[key]
		if into == nil {
			copied := *g
			copied.Method, copied.Origin, copied.Pattern = key.method, key.origin, key.pattern
			next[key] = &copied
			continue
		}
		into.Count += g.Count
		if g.First.Before(into.First) {
			into.First, into.Example = g.First, g.Example
		}
		if g.Last.After(into.Last) {
			into.Last = g.Last
		}
	}
	return next
}
