package explain

import (
	"cmp"
	"iter"
	"maps"
	mathbits "math/bits"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"postern/catalog"
)

// timeline is what all files say, merged: who said what, when, in which order. It holds some lines of each mark in
// each file, not all lines, so that its size does not depend on the size of the logs.
type timeline struct {
	limits   Limits
	files    []*logFile
	seen     map[mark][]*sighting // in the order of the files
	attempts map[string][]attempt // of Windows authentication, what is not answered in its own file, by client
	kept     int                  // attempts kept
	links    map[string]*linkTrouble
	ids      map[string]map[string]time.Time // message and client ids: when each folder first has one
	ended    []logLife                       // tokens met after their end
	assigned []assignment
}

// logFile is what is known of one file.
type logFile struct {
	name        string
	lines       int
	kinds       map[kind]int
	marks       int
	first, last time.Time
	unknown     sighting // lines that look like failures and that no rule knows
}

// known says whether the file is a log that could be read.
func (f *logFile) known() bool {
	return f.marks > 0 || f.kinds[clientLine]+f.kinds[serverLine]+f.kinds[accessLine]+f.kinds[eventLine] > 0
}

// sighting is a mark in one file.
type sighting struct {
	lines []line // the first of them
	last  line
	count int
}

const sightingLines = 8

func (s *sighting) add(l line) {
	if s.count++; len(s.lines) < sightingLines {
		s.lines = append(s.lines, l)
	}
	s.last = l
}

// linkTrouble is a link of a role that is down: since when, until when it was said to be.
type linkTrouble struct {
	code  catalog.Code
	lines sighting
}

// assignment is a client id that a site gave.
type assignment struct {
	id string
	l  line
}

func newTimeline(limits Limits) *timeline {
	return &timeline{limits: limits, seen: map[mark][]*sighting{}, attempts: map[string][]attempt{}, links: map[string]*linkTrouble{}, ids: map[string]map[string]time.Time{}}
}

// begin starts a file; lines of it follow in their order.
func (t *timeline) begin(name string) *observer {
	f := &logFile{name: name, kinds: map[kind]int{}}
	t.files = append(t.files, f)
	return &observer{timeline: t, file: f, marks: map[mark]*sighting{}, open: map[string][]attempt{}}
}

// observer takes the lines of one file.
type observer struct {
	timeline *timeline
	file     *logFile
	marks    map[mark]*sighting
	open     map[string][]attempt
	lifetime lifetimeParts
}

func (o *observer) observe(l line) {
	f := o.file
	f.lines++
	f.kinds[l.kind]++
	if !l.time.IsZero() {
		if f.first.IsZero() || l.time.Before(f.first) {
			f.first = l.time
		}
		if l.time.After(f.last) {
			f.last = l.time
		}
	}
	o.handshake(l)
	marked := o.own(l)
	for i := range o.looks(&l) {
		if k := &looks[i]; k.matches(&l) {
			o.mark(k.mark, l)
			marked = true
		}
	}
	o.lifetime.observe(o.timeline, &l)
	switch {
	case marked:
		f.marks++
		o.identify(l)
	case troubled(&l):
		f.unknown.add(l)
	}
}

// looks yields the looks that may match a line.
func (o *observer) looks(l *line) iter.Seq[int] {
	return func(yield func(int) bool) {
		m := theMatcher()
		if l.access != nil { // what a request is called is not what the server says
			for _, i := range m.always {
				if !yield(i) {
					return
				}
			}
			return
		}
		found := m.find(l.text)
		for word, bits := range found {
			for ; bits != 0; bits &= bits - 1 {
				if !yield(word<<6 | mathbits.TrailingZeros64(bits)) {
					return
				}
			}
		}
	}
}

func (o *observer) mark(m mark, l line) {
	s := o.marks[m]
	if s == nil {
		s = &sighting{}
		o.marks[m] = s
		o.timeline.seen[m] = append(o.timeline.seen[m], s)
	}
	if n := len(s.lines); n > 0 && s.last.number == l.number && s.last.text == l.text { // one line, one sighting
		return
	}
	s.add(l)
	if m == registered || m == mark(catalog.SymptomNotApproved) {
		o.assign(l)
	}
	if m == linked {
		for key := range o.timeline.links {
			if strings.HasPrefix(key, generations(o.file.name)+"\n") {
				delete(o.timeline.links, key)
			}
		}
	}
}

// own marks a line that names a code of ours.
func (o *observer) own(l line) bool {
	code, ofLink, ok := ownCode(&l)
	if !ok {
		return false
	}
	if !ofLink {
		o.mark(mark(code), l)
		return true
	}
	key := generations(o.file.name) + "\n" + string(code)
	if o.timeline.links[key] == nil {
		o.timeline.links[key] = &linkTrouble{code: code}
	}
	o.timeline.links[key].lines.add(l)
	return true
}

// end closes the file: what was not answered in it may be answered in another.
func (o *observer) end() {
	for _, client := range slices.Sorted(maps.Keys(o.open)) {
		for _, a := range o.open[client] {
			if o.timeline.kept < o.timeline.limits.Kept {
				o.timeline.kept++
				o.timeline.attempts[client] = append(o.timeline.attempts[client], a)
			}
		}
	}
}

// guids returns the first ids in a text, in upper case, at most so many.
func guids(text string, most int) (all []string) {
	const length = 36
	for from := 8; len(all) < most; {
		dash := strings.IndexByte(text[min(from, len(text)):], '-')
		if dash < 0 {
			break
		}
		begin := from + dash - 8
		if begin+length > len(text) {
			break
		}
		if isGUID(text[begin : begin+length]) {
			all = append(all, strings.ToUpper(text[begin:begin+length]))
			from = begin + length + 8
			continue
		}
		from += dash + 1
	}
	return all
}

func isGUID(text string) bool {
	for i := range len(text) {
		digit := text[i]
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if digit != '-' {
				return false
			}
		case digit >= '0' && digit <= '9', digit >= 'a' && digit <= 'f', digit >= 'A' && digit <= 'F':
		default:
			return false
		}
	}
	return true
}

// identify keeps when a folder first has an id, so that the clocks of machines can be compared by what they have in common.
func (o *observer) identify(l line) {
	t := o.timeline
	if l.time.IsZero() || len(t.ids) >= t.limits.Kept {
		return
	}
	for _, id := range ids(&l) {
		if t.ids[id] == nil {
			t.ids[id] = map[string]time.Time{}
		}
		folder := path.Dir(l.file)
		if at, ok := t.ids[id][folder]; !ok || l.time.Before(at) {
			t.ids[id][folder] = l.time
		}
	}
}

// ids returns the message ids that a line names, in one form.
func ids(l *line) []string {
	if l.event != nil {
		if l.event.Message == "" {
			return nil
		}
		return []string{strings.ToUpper(l.event.Message)}
	}
	if l.access != nil {
		return nil
	}
	return guids(l.text, 4)
}

func (o *observer) assign(l line) {
	if id := guids(l.text, 1); len(id) > 0 && len(o.timeline.assigned) < o.timeline.limits.Kept {
		o.timeline.assigned = append(o.timeline.assigned, assignment{id[0], l})
	}
}

// sightings returns every sighting of the marks.
func (t *timeline) sightings(marks ...mark) []*sighting {
	var all []*sighting
	for _, m := range marks {
		all = append(all, t.seen[m]...)
	}
	return all
}

// sameLog says whether two lines are of one log: of one file, or of a log and its older generation, whose name ends in
// .lo_ instead of .log.
func sameLog(a, b *line) bool { return a.file == b.file || generations(a.file) == generations(b.file) }

// generations is the name that a log and its older generation have in common.
func generations(file string) string {
	if older, ok := strings.CutSuffix(file, ".lo_"); ok {
		return older + ".log"
	}
	return file
}

// inLog orders lines of one log by their place.
func inLog(a, b *line) int {
	return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.number, b.number)) // "_" is before "g"
}

// after says that a line is later than another: by place in one log, else by time where both have one.
func after(a, b *line) bool {
	if sameLog(a, b) {
		return inLog(a, b) > 0
	}
	return !a.time.IsZero() && !b.time.IsZero() && a.time.After(b.time)
}

// earlier orders lines for a person: in one log by place, else by time where both have one.
func earlier(a, b line) int {
	if !sameLog(&a, &b) && !a.time.IsZero() && !b.time.IsZero() {
		return cmp.Or(a.time.Compare(b.time), inLog(&a, &b))
	}
	return inLog(&a, &b)
}

// sameMachine says whether two lines are probably of one machine: their files are in one folder, or in two folders of
// one client (its setup has a folder of its own).
func sameMachine(a, b *line) bool { return path.Dir(a.file) == path.Dir(b.file) }

// logLife is a token that was met after its end.
type logLife struct {
	until, now time.Time
	l          line
}

// lifetimeParts collects the times of an expired token, which stand on one record or on lines of their own (S4:L103-112).
type lifetimeParts struct {
	until time.Time
	from  line
}

var (
	validTo     = regexp.MustCompile(`ValidTo: '([0-9/]{8,10} [0-9:]{8})'`)
	currentTime = regexp.MustCompile(`Current time: '([0-9/]{8,10} [0-9:]{8})'`)
)

func (p *lifetimeParts) observe(t *timeline, l *line) {
	if l.access != nil || !strings.Contains(l.text, ": '") || len(t.ended) >= sightingLines {
		return
	}
	if until, ok := usTime(validTo.FindStringSubmatch(l.text)); ok {
		p.until, p.from = until, *l
	}
	now, ok := usTime(currentTime.FindStringSubmatch(l.text))
	if !ok || p.until.IsZero() {
		return
	}
	t.ended = append(t.ended, logLife{p.until, now, p.from})
	p.until = time.Time{}
}

func usTime(found []string) (time.Time, bool) {
	if found == nil {
		return time.Time{}, false
	}
	at, err := time.Parse("1/2/2006 15:04:05", found[1])
	return at, err == nil
}
