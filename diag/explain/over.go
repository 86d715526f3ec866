package explain

import (
	"cmp"
	"postern/catalog"
	"regexp"
	"slices"
	"strings"
)

func (t *timeline) history(f finding) (since *line) {
	sightings := t.seen[mark(f.code)]
	if since := t.through(f.code, sightings); since != nil {
		return since
	}
	if slices.Contains(oneActor, f.code) {
		if since := quiet(t, sightings); since != nil {
			return since
		}
	}
	over := overOf(f.code)
	if len(over) == 0 {
		return nil
	}
	if len(sightings) == 0 || len(f.lines) > 0 && f.code == catalog.SymptomNoEntraToken {
		sightings = []*sighting{{last: f.last}}
	} else if known, ok := t.over[f.code]; ok {
		return known
	}
	for _, s := range sightings {
		since = t.wellAfter(&s.last, over)
		if since == nil {
			since = t.calmSince(&s.last, ruleOf(f.code).calm)
		}
		if since != nil && !slices.Contains(renewed, over[0]) && s.returns(since) {
			since = nil
		}
		if since == nil {
			break
		}
	}
	if len(t.seen[mark(f.code)]) > 0 {
		t.over[f.code] = since
	}
	return since
}

// quiet returns what went well in the log of each sighting long after the last of them, and several times longer than it was ever away before.
func quiet(t *timeline, sightings []*sighting) (since *line) {
	for _, s := range sightings {
		longest := quietTime
		for i, l := range append(slices.Clone(s.lines), s.last) {
			if i > 0 {
				longest = max(longest, 4*l.time.Sub(s.lines[i-1].time))
			}
		}
		since = nil
		for _, w := range t.later(&s.last, good...) {
			if l := &w.last; !s.last.time.IsZero() && s.count > 1 && l.time.Sub(s.last.time) >= longest && (since == nil || after(l, since)) {
				since = l
			}
		}
		if since == nil {
			return nil
		}
	}
	return since
}

// through returns the last request that shows that a web server refuses a symptom's clients no more: all got through later, or so many did for so long that it was
// the server's affair; nil when one did not, or when other logs show the symptom.
func (t *timeline) through(code catalog.Code, sightings []*sighting) (since *line) {
	all := t.failed[code]
	if all == nil || all.more || slices.ContainsFunc(sightings, func(s *sighting) bool { return s.last.access == nil }) {
		return nil
	}
	if all.well == all.count || all.well >= 3 && 4*all.well >= all.count && all.since.time.Sub(all.last) >= quietTime {
		return all.since
	}
	return nil
}

// firstWell returns the first line that is kept of what ended a finding.
func (t *timeline) firstWell(f *finding) *line {
	first := f.over
	for _, m := range good {
		for _, s := range t.ofLog[generations(f.over.file)][m] {
			at := slices.IndexFunc(s.lines, func(l line) bool { return after(&l, &f.last) })
			if at >= 0 && s.last.number == f.over.number && s.last.file == f.over.file && after(first, &s.lines[at]) {
				first = &s.lines[at]
			}
		}
	}
	return first
}

// vague says whether nothing but replies of another host, or of one that is not named, show that the way to a gateway is free again.
func (f finding) vague() bool {
	return namesGateway(f.last.low) && f.last.toHost() != "" && f.over.toHost() != f.last.toHost() && strings.Contains(f.over.low, "reply")
}

// overOf returns after what a symptom is history: for a code that our own client names, a way to the site that works.
func overOf(code catalog.Code) []mark {
	if ofOurClient(code) {
		return working
	}
	over := ruleOf(code).over
	if len(over) > 0 {
		over = slices.Concat(over, passed(code))
	}
	return over
}

// ofOurClient says whether only a device names the code.
func ofOurClient(code catalog.Code) bool {
	return code >= "P550" && code <= "P649" || code >= "P990" && code <= "P998"
}

// wellAfter returns what shows, later than a line, on its machine, that something works: of its own log the last such line.
func (t *timeline) wellAfter(bad *line, over []mark) (well *line) {
	anyWay := !namesGateway(bad.low) || t.quietAfter(bad)
	ends := func(s *sighting, m mark) bool {
		if ofWay(m) || ofContent(bad) && m != downloaded { // that messages are answered says nothing of content
			return bad.toHost() != "" && s.last.toHost() == bad.toHost()
		}
		return anyWay || t.sameWay(bad, s, m)
	}
	for _, m := range over {
		for _, s := range t.later(bad, m) {
			if ends(s, m) && (well == nil || inLog(&s.last, well) > 0) {
				well = &s.last
			}
		}
	}
	if well != nil {
		return well
	}
	for _, m := range over {
		for _, s := range t.of(bad, m) {
			if after(&s.last, bad) && ends(s, m) {
				return &s.last
			}
		}
	}
	return nil
}

// calmSince returns other work on the machine of a line, long after it.
func (t *timeline) calmSince(bad *line, calm []mark) *line {
	for _, s := range t.of(bad, calm...) {
		if l := &s.last; !bad.time.IsZero() && l.time.Sub(bad.time) >= quietTime {
			return l
		}
	}
	return nil
}

// sameWay says whether work that goes well ends what was wrong with the way to a gateway: what the management point of the company's
// network answers tells nothing of it, unless the log goes on long without that. Where only some lines name their host, those
// without one are of the same. A client that goes on with another gateway is well, unless it had that one all the time.
func (t *timeline) sameWay(bad *line, s *sighting, m mark) bool {
	well := &s.last
	one, other := bad.toHost(), well.toHost()
	if other != "" || m == delivered {
		return other == one && one != "" || namesGateway(well.low) && (one == "" || other == "" || !s.had(other, bad))
	}
	return !slices.ContainsFunc(t.ofLog[generations(well.file)][delivered], func(s *sighting) bool {
		return after(&s.last, bad) && s.last.toHost() != "" && !t.sameWay(bad, s, delivered)
	})
}

// had says whether a line of the sighting is about the host and before another line.
func (s *sighting) had(host string, other *line) bool {
	return slices.ContainsFunc(s.lines, func(l line) bool { return l.toHost() == host && !after(&l, other) })
}

// quietAfter says whether the log of a line goes on long after it.
func (t *timeline) quietAfter(bad *line) bool {
	return !bad.time.IsZero() && slices.ContainsFunc(t.logs[generations(bad.file)], func(f *logFile) bool {
		return f.last.Add(-t.offsets[folderOf(f.name)]).Sub(bad.time) >= quietTime
	})
}

// toHost is the host that a line is about, "" where it is not said.
func (l *line) toHost() string { return cmp.Or(hostOf(l.low), l.host) }

var hostForm = regexp.MustCompile(`(?:https?://|host[= ]'?|hostname ?= ?"|server ')([a-z0-9][a-z0-9.-]*)`)

func hostOf(low string) string {
	if found := hostForm.FindStringSubmatch(low); found != nil {
		return strings.TrimRight(found[1], ".")
	}
	return ""
}

// passedBy returns the first line of what one part of the site failed with later: it has got past what it failed with before.
func passedBy(f *finding, all []finding) *line {
	if !slices.Contains(oneActor, f.code) {
		return nil
	}
	for i := range all {
		if later := &all[i]; later.code != f.code && slices.Contains(oneActor, later.code) && later.count > 1 && sameLog(&later.lines[0], &f.last) && after(&later.lines[0], &f.last) {
			return &later.lines[0]
		}
	}
	return nil
}

// recovered says how many of the lines that nobody knows are history: when each log that has any shows later that its work goes on,
// all of them are.
func (t *timeline) recovered(unknown []string) ([]string, int) {
	for _, f := range t.files {
		if f.seen[redirected] != nil { // that other paths are answered says nothing of it
			return unknown, 0
		}
		for _, s := range []*sighting{f.seen[refusal], f.seen[postFailed], &f.unknown} {
			if s != nil && s.count > 0 && f.known() && !t.goesOn(f, s) {
				return unknown, 0
			}
		}
		if s := f.seen[notForwarded]; s != nil && !f.seldom(s) {
			return unknown, 0
		}
	}
	return unknown, len(unknown)
}

// seldom says whether a connection point got good answers to nearly everything else, also after the last failure.
func (f *logFile) seldom(failed *sighting) bool {
	well := f.seen[forwarded]
	return well != nil && after(&well.last, &failed.last) && (failed.count == 1 || well.count >= 30*failed.count)
}

// goesOn says whether a log of the machine shows later that its work goes on, and not only until it comes again: the log of the sighting, or another one where that
// does not end with it.
func (t *timeline) goesOn(f *logFile, bad *sighting) bool {
	well := t.wellAfter(&bad.last, progress)
	return well != nil && (sameLog(well, &bad.last) || f.last.After(bad.last.time)) && !bad.returns(well)
}
