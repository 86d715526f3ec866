package explain

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"postern/catalog"
)

// attempt is one request to the Windows authentication of a management point.
type attempt struct {
	l  line
	ok bool
}

// legGap is how long the second leg of a healthy conversation takes at most: the client fetches a ticket meanwhile
// (two seconds in S0:L6, with a referral to another domain).
const legGap = time.Minute

const windowsAuthFolder = "/ccm_system_windowsauth"

// handshake keeps a request of Windows authentication until it is answered: a 401 and the 200 that follows are one
// healthy conversation (S0:L6-7, S1:L36-40) and are not kept.
func (o *observer) handshake(l line) {
	r := l.access
	if r == nil || len(r.Stem) < len(windowsAuthFolder) || !strings.EqualFold(r.Stem[:len(windowsAuthFolder)], windowsAuthFolder) {
		return
	}
	client := r.ClientAddress + " " + r.UserAgent
	open := o.open[client]
	switch {
	case r.Status == http.StatusUnauthorized:
	case r.Status/100 != 2:
		return
	case len(open) > 0 && !open[len(open)-1].ok && near(&open[len(open)-1].l, &l):
		o.mark(firstLeg, open[len(open)-1].l)
		o.mark(firstLeg, l)
		o.open[client] = open[:len(open)-1]
		return
	}
	if len(open) >= o.timeline.limits.Kept {
		open = open[1:]
	}
	o.open[client] = append(open, attempt{l, r.Status != http.StatusUnauthorized})
}

func near(a, b *line) bool {
	if a.time.IsZero() || b.time.IsZero() {
		return true
	}
	gap := b.time.Sub(a.time)
	return gap >= 0 && gap <= legGap
}

// windowsAuth finds clients that Windows authentication refused: two 401 in a row, and no 200 (S1:L40-42).
func windowsAuth(t *timeline) (found []finding, open []line) {
	for _, client := range slices.Sorted(maps.Keys(t.attempts)) {
		attempts := slices.Clone(t.attempts[client])
		slices.SortStableFunc(attempts, func(a, b attempt) int { return earlier(a.l, b.l) })
		var run []line
		for _, a := range attempts {
			if !a.ok {
				run = append(run, a.l)
				continue
			}
			run = nil
		}
		switch sure, failed := inARow(run); {
		case failed:
			found = append(found, finding{code: catalog.SymptomNegotiateFailed, sure: sure, lines: cut(run), count: len(run)})
		case len(run) > 0:
			open = append(open, run[0])
		}
	}
	return found, open
}

// inARow says whether the refusals are a failure: two within a minute are, three at any distance probably.
func inARow(run []line) (Sure, bool) {
	for i := 1; i < len(run); i++ {
		if near(&run[i-1], &run[i]) {
			return Certain, true
		}
	}
	return Likely, len(run) >= 3
}

func cut(lines []line) []line { return slices.Clone(lines[:min(len(lines), sightingLines)]) }
