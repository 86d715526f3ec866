package explain

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"postern/catalog"
)

// attempt is one request to a path that wants a logon, or was answered as if it did.
type attempt struct {
	l  line
	ok bool
}

// waiting is what a client asked of one door and has no answer to: what was refused since the last success, and the refusals
// before it, which are over.
type waiting struct {
	well    *line  // the last success that no refusal is the first leg of, or that came after other refusals
	refused []line // since then, some of them
	past    []line // the last refusals that a later success ended
}

// refusedKept is how many refusals of one client are kept: the first ones, and the last two.
const refusedKept = 16

func (w *waiting) refuse(l line) {
	if len(w.refused) < refusedKept {
		w.refused = append(w.refused, l)
		return
	}
	w.refused[refusedKept-2], w.refused[refusedKept-1] = w.refused[refusedKept-1], l
}

// kept is how many lines of the client are kept.
func (w *waiting) kept() int { return len(w.refused) + len(w.past) }

// succeed takes a success, and returns the refusal that was the first leg of its conversation.
func (w *waiting) succeed(l line) (first *line) {
	if n := len(w.refused); n > 0 && near(&w.refused[n-1], &l) {
		leg := w.refused[n-1]
		first, w.refused = &leg, w.refused[:n-1]
	}
	if n := len(w.refused); first != nil && (n == 0 || near(&w.refused[n-1], &l)) {
		return first // what is refused so shortly before may be another conversation of the same address
	}
	if len(w.refused) > 0 {
		w.past = w.refused
	}
	w.well, w.refused = &l, nil
	return first
}

// attempts is the same in the order of time.
func (w *waiting) attempts() (all []attempt) {
	for _, l := range w.past {
		all = append(all, attempt{l: l})
	}
	if w.well != nil {
		all = append(all, attempt{*w.well, true})
	}
	for _, l := range w.refused {
		all = append(all, attempt{l: l})
	}
	return all
}

// legGap is how long the second leg of a healthy conversation takes at most: the client fetches a ticket meanwhile
// (two seconds in S0:L6, with a referral to another domain).
const legGap = time.Minute

// Paths with Windows authentication.
const (
	windowsAuthFolder = "/ccm_system_windowsauth"
	windowsAuthData   = "/sms_mp_windowsauth"
)

// Doors are the groups of paths whose refusals mean different things.
const (
	doorWindows        = "windows"
	doorOpen           = "open" // no logon belongs here
	doorAdministration = "administration"
)

// doorOf tells the group of a request's path, "" for one that is none of ours.
func doorOf(l *line) string {
	stem := l.access.Stem
	switch {
	case ofAdministration(l):
		return doorAdministration
	case !ofManagementPoint(stem):
		return ""
	case len(stem) >= len(windowsAuthData) && (strings.EqualFold(stem[:len(windowsAuthData)], windowsAuthData) ||
		len(stem) >= len(windowsAuthFolder) && strings.EqualFold(stem[:len(windowsAuthFolder)], windowsAuthFolder)):
		return doorWindows
	}
	return doorOpen
}

// handshake keeps a request of Windows authentication until it is answered: a 401 and the 200 that follows are one
// healthy conversation (S0:L6-7, S1:L36-40) and are not kept.
func (o *observer) handshake(l line) {
	r := l.access
	if r == nil || r.Status != http.StatusUnauthorized && r.Status/100 != 2 {
		return
	}
	door := doorOf(&l)
	if foreign(&l) || door == doorWindows && r.Method == http.MethodGet && strings.EqualFold(folderOfStem(r.Stem), windowsAuthFolder[1:]) {
		return // clients post there; a scanner asks
	}
	if door == "" || door == doorOpen && r.Status == http.StatusUnauthorized && r.SubStatus != 1 && r.SubStatus != 2 {
		return
	}
	client := door + " " + r.ClientAddress + " " + r.UserAgent[:min(len(r.UserAgent), 100)]
	if door == doorOpen {
		client += " " + folderOfStem(r.Stem)
	}
	w, ok := o.file.attempts[client], r.Status != http.StatusUnauthorized
	if w == nil {
		if len(o.file.attempts) >= o.limits.Kept || ok && door == doorOpen {
			return
		}
		w = &waiting{}
		o.file.attempts[client] = w
	}
	o.waiting -= w.kept()
	switch {
	case !ok:
		before := len(w.refused)
		if o.waiting+w.kept() < o.limits.Kept || len(w.refused) == refusedKept {
			w.refuse(l.short())
		}
		if door == doorOpen {
			o.refused += len(w.refused) - before
		}
	case door == doorOpen:
		o.refused -= len(w.refused)
		delete(o.file.attempts, client)
		return
	default:
		if first := w.succeed(l.short()); first != nil && door == doorWindows {
			o.mark(firstLeg, *first)
			o.mark(firstLeg, l)
		}
	}
	o.waiting += w.kept()
}

// folderOfStem is the first part of a path, in lower case.
func folderOfStem(stem string) string {
	folder, _, _ := strings.Cut(strings.TrimPrefix(strings.ToLower(stem), "/"), "/")
	return folder
}

func near(a, b *line) bool {
	if a.time.IsZero() || b.time.IsZero() {
		return true
	}
	gap := b.time.Sub(a.time)
	return gap >= 0 && gap <= legGap
}

// doorCodes are what it means that a door refuses again and again.
var doorCodes = map[string]catalog.Code{doorWindows: catalog.SymptomNegotiateFailed, doorOpen: catalog.SymptomAccessLogonFailed, doorAdministration: catalog.SymptomAdministrationLogon}

// refusedLogons finds clients that a door refused: two 401 in a row, and no 200 (S1:L40-42). What a later 200 ended is over.
func refusedLogons(t *timeline) (found []finding, open []line) {
	for _, client := range slices.Sorted(maps.Keys(t.attempts)) {
		attempts := slices.Clone(t.attempts[client])
		slices.SortStableFunc(attempts, func(a, b attempt) int { return earlier(a.l, b.l) })
		door, _, _ := strings.Cut(client, " ")
		var run []line
		for i := range attempts {
			a := &attempts[i]
			if !a.ok {
				run = append(run, a.l)
				continue
			}
			if sure, failed := inARow(run); failed && !near(&run[len(run)-1], &a.l) {
				found = append(found, finding{code: doorCodes[door], sure: sure, lines: cut(run), last: run[len(run)-1], count: len(run), over: &a.l})
			}
			run = nil
		}
		switch sure, failed := inARow(run); {
		case failed:
			found = append(found, finding{code: doorCodes[door], sure: sure, lines: cut(run), last: run[len(run)-1], count: len(run)})
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
