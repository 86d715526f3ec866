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
	if door == "" || door == doorOpen && r.Status == http.StatusUnauthorized && r.SubStatus != 1 && r.SubStatus != 2 {
		return
	}
	client := door + " " + r.ClientAddress + " " + r.UserAgent
	if door == doorOpen {
		client += " " + folderOfStem(r.Stem)
	}
	open := o.open[client]
	ok := r.Status != http.StatusUnauthorized
	switch {
	case ok && door == doorOpen:
		o.refused -= len(open)
		delete(o.open, client)
		return
	case ok && len(open) > 0 && !open[len(open)-1].ok && near(&open[len(open)-1].l, &l):
		if door == doorWindows {
			o.mark(firstLeg, open[len(open)-1].l)
			o.mark(firstLeg, l)
		}
		o.open[client] = open[:len(open)-1]
		return
	}
	if len(open) >= o.limits.Kept || len(o.open) >= o.limits.Kept && open == nil {
		return
	}
	if door == doorOpen {
		o.refused++
	}
	o.open[client] = append(open, attempt{l, ok})
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

// refusedLogons finds clients that a door refused: two 401 in a row, and no 200 (S1:L40-42).
func refusedLogons(t *timeline) (found []finding, open []line) {
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
		door, _, _ := strings.Cut(client, " ")
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
