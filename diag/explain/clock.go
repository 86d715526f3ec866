package explain

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// clockDifference is the least difference worth a word: a message takes some seconds on its way.
const clockDifference = time.Minute

// difference is how far the clock of one folder is ahead of another's, by the ids that both name.
type difference struct {
	folder, other string // folder is ahead
	by            time.Duration
	ids           int
}

// differences compares the clocks of all folders with an id in common.
func (t *timeline) differences() (all []difference) {
	spans := map[[2]string][]time.Duration{}
	for id, folders := range t.ids {
		clients := 0
		for _, m := range folders {
			if !m.server {
				clients++
			}
		}
		if strings.HasPrefix(id, registrationOf) && clients != 1 {
			continue // of machines with one identity each has sent its own
		}
		for a, at := range folders {
			for b, bt := range folders {
				if a < b {
					spans[[2]string{a, b}] = append(spans[[2]string{a, b}], bt.at.Sub(at.at))
				}
			}
		}
	}
	for pair, times := range spans {
		slices.Sort(times)
		d := difference{pair[1], pair[0], times[len(times)/2], len(times)}
		if d.by < 0 {
			d = difference{d.other, d.folder, -d.by, d.ids}
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b difference) int {
		return cmp.Or(cmp.Compare(b.ids, a.ids), cmp.Compare(a.folder, b.folder), cmp.Compare(a.other, b.other))
	})
	return all
}

// correct brings the times of all folders to one clock: that of the folder that has most in common with others. Folders without
// a common id stay as they are.
func (t *timeline) correct() {
	all := t.differences()
	t.offsets = map[string]time.Duration{}
	if len(all) == 0 {
		return
	}
	known := map[string]time.Duration{all[0].other: 0}
	for before := 0; before < len(known); { // the pairs with most in common first, until no other folder is reached
		before = len(known)
		for _, d := range all {
			_, one := known[d.folder]
			base, other := known[d.other]
			switch {
			case other && !one:
				known[d.folder] = base + d.by
			case one && !other:
				known[d.other] = known[d.folder] - d.by
			}
		}
	}
	for folder, by := range known {
		if by.Abs() >= clockDifference {
			t.offsets[folder] = by
		}
	}
	if len(t.offsets) > 0 {
		t.shift()
	}
}

// shift takes the offsets off the times of all lines. The files keep theirs.
func (t *timeline) shift() {
	one := func(l line) line {
		if by := t.offsets[folderOf(l.file)]; by != 0 && !l.time.IsZero() {
			l.time = l.time.Add(-by)
		}
		return l
	}
	for m, sightings := range t.seen {
		shifted := make([]*sighting, len(sightings))
		for i, s := range sightings {
			shifted[i] = &sighting{last: one(s.last), count: s.count}
			for _, l := range s.lines {
				shifted[i].lines = append(shifted[i].lines, one(l))
			}
		}
		t.seen[m] = shifted
	}
	for client, attempts := range t.attempts {
		shifted := slices.Clone(attempts)
		for i := range shifted {
			shifted[i].l = one(shifted[i].l)
		}
		t.attempts[client] = shifted
	}
}

// clocks says by how much clocks differ.
func (t *timeline) clocks() (all []string) {
	for _, d := range t.differences() {
		if d.by < clockDifference || len(all) == mostPlaces {
			continue
		}
		what := "the times of the story are corrected by that"
		if len(t.offsets) == 0 {
			what = "the order of their lines is doubtful"
		}
		all = append(all, fmt.Sprintf("the clock of %s seems to be %s ahead of that of %s, by %s that both name; %s",
			printable(d.folder), span(d.by), printable(d.other), number(d.ids, "id"), what))
	}
	slices.Sort(all)
	return all
}

// elsewhere says where other machines name the message of a line.
func (t *timeline) elsewhere(l *line) (all []string) {
	for _, id := range ids(l) {
		for _, folder := range slices.Sorted(maps.Keys(t.ids[id])) {
			if m := t.ids[id][folder]; folder != folderOf(l.file) {
				all = append(all, fmt.Sprintf("the same message, %s, is in %s", id, m.line))
			}
		}
	}
	return all
}
