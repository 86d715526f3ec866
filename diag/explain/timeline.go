package explain

import (
	"bytes"
	"cmp"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/catalog"
)

// timeline is what all files say, merged: who said what, when, in which order. It holds some lines of each mark in
// each file, not all lines, so that its size does not depend on the size of the logs.
type timeline struct {
	files    []*logFile                      // in the order of their names
	seen     map[mark][]*sighting            // in the order of the files
	machines map[string]map[mark][]*sighting // ... of one machine, some of them
	logs     map[string][]*logFile           // the generations of one log
	ofLog    map[string]map[mark][]*sighting // ... and what they say
	attempts map[string][]attempt            // of authentication, what is not answered in its own file, by client
	links    map[string]*linkTrouble
	ids      map[string]map[string]meeting // message ids: where each folder first has one
	offsets  map[string]time.Duration      // how far the clock of a folder is ahead
	ended    []logLife                     // tokens met after their end
	assigned []assignment
	over     map[catalog.Code]*line // what is history, as far as it was asked
	failed   map[catalog.Code]*failedClients
}

// failedClients is how those went on whom web servers refused with one symptom.
type failedClients struct {
	count, well int
	last        time.Time // that one was refused
	since       *line     // the last that got through
	more        bool      // there were more than are followed
}

// logFile is what one file says.
type logFile struct {
	name        string
	lines       int
	kinds       [len(kindNames)]int
	marks       int
	first, last time.Time
	unknown     sighting // lines that look like failures and that no rule knows
	seen        map[mark]*sighting
	attempts    map[string]*waiting
	links       map[catalog.Code]*linkTrouble
	linked      bool
	ids         map[string]meeting
	ended       []logLife
	assigned    []assignment
	notes       []string // what of it could not be read
	failed      map[failedClient]*failedRun
	client      bool // lines of a client are in it
}

// failedClient is who was refused what by a web server.
type failedClient struct {
	code            catalog.Code
	address, folder string
}

// failedRun is how that went on.
type failedRun struct {
	last line
	well *line // a request of the same client to the same folder that was answered after it
}

// clientsKept is how many refused clients of one file are followed.
const clientsKept = 1000

// known says whether the file is a log that could be read.
func (f *logFile) known() bool {
	return f.marks > 0 || f.kinds[clientLine]+f.kinds[serverLine]+f.kinds[accessLine]+f.kinds[eventLine] > 0
}

// sighting is a mark in one file.
type sighting struct {
	lines []line // the first of them
	last  line
	count int
	turns int           // how often it came again within the hour although work went well since the last time
	gap   time.Duration // the longest time between two such lines

	pending []byte // the last line, not parsed yet
	number  int
}

// sightingLines is how many lines of a mark are kept of a file, and fewSightingLines of one of so many that the memory gets scarce.
const (
	sightingLines    = 8
	fewSightingLines = 2
)

func (s *sighting) add(l line, most int) {
	if s.count++; len(s.lines) < most {
		s.lines = append(s.lines, l)
	}
	s.last, s.number = l, 0
}

// lineKept is how much of a line is kept; what rules look for in kept lines stands at their beginning.
const lineKept = 4 << 10

// short is the line as it is kept: not overlong, and without the line before it.
func (l line) short() line {
	if l.before != nil && l.number-l.before.number <= nearLines {
		l.host = hostOf(l.before.low)
	}
	l.before = nil
	if len(l.text) > lineKept {
		l.text = strings.Clone(l.text[:lineKept])
	}
	if len(l.low) > lineKept {
		l.low = strings.Clone(l.low[:lineKept])
	}
	return l
}

// size is about how much memory the kept line takes.
func (l *line) size() int64 {
	size := 160 + len(l.text) + len(l.low)
	if l.access != nil || l.event != nil {
		size += 256 + len(l.text)
	}
	return int64(size)
}

// size is about how much memory is kept of the file.
func (f *logFile) size() int64 {
	size := int64(2048 + 300*len(f.seen) + 256*len(f.ids))
	of := func(lines ...line) {
		for i := range lines {
			size += lines[i].size()
		}
	}
	for _, s := range f.seen {
		of(s.lines...)
		of(s.last)
	}
	for _, w := range f.attempts {
		of(w.refused...)
		of(w.past...)
	}
	for _, a := range f.assigned {
		of(a.l)
	}
	of(f.unknown.lines...)
	for _, run := range f.failed {
		size += 256
		of(run.last)
	}
	return size
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

// merge makes the timeline of files. The files stay as they are, so that they can be merged again.
func merge(files []*logFile) *timeline {
	t := &timeline{seen: map[mark][]*sighting{}, machines: map[string]map[mark][]*sighting{}, logs: map[string][]*logFile{}, ofLog: map[string]map[mark][]*sighting{},
		attempts: map[string][]attempt{}, links: map[string]*linkTrouble{}, ids: map[string]map[string]meeting{}, over: map[catalog.Code]*line{}, failed: map[catalog.Code]*failedClients{}}
	t.files = slices.SortedStableFunc(slices.Values(files), func(a, b *logFile) int { return cmp.Compare(a.name, b.name) })
	for _, f := range t.files {
		log := generations(f.name)
		t.logs[log] = append(t.logs[log], f)
		for m, s := range f.seen {
			t.seen[m] = append(t.seen[m], s)
		}
		for client, w := range f.attempts {
			t.attempts[client] = append(t.attempts[client], w.attempts()...)
		}
		t.mergeLinks(f)
		for id, at := range f.ids {
			t.meet(id, folderOf(f.name), at)
		}
		t.follow(f)
		t.ended = append(t.ended, f.ended...)
		t.assigned = append(t.assigned, f.assigned...)
	}
	t.correct()
	t.index()
	return t
}

// follow adds what became of the clients that a web server refused.
func (t *timeline) follow(f *logFile) {
	for client, run := range f.failed {
		all := t.failed[client.code]
		if all == nil {
			all = &failedClients{}
			t.failed[client.code] = all
		}
		all.count++
		all.more = all.more || len(f.failed) >= clientsKept
		if run.last.time.After(all.last) {
			all.last = run.last.time
		}
		if run.well == nil {
			continue
		}
		if all.well++; all.since == nil || after(run.well, all.since) {
			all.since = run.well
		}
	}
}

// sightingsOfMachine is how many files of one machine are compared with each other for one mark; a machine has fewer logs.
const sightingsOfMachine = 64

// index sorts the sightings by machine and by log. Of a folder with more logs than a machine has, the first and the last are kept.
func (t *timeline) index() {
	for m, sightings := range t.seen {
		for _, s := range sightings {
			machine, log := machineOf(s.last.file), generations(s.last.file)
			if t.machines[machine] == nil {
				t.machines[machine] = map[mark][]*sighting{}
			}
			if t.ofLog[log] == nil {
				t.ofLog[log] = map[mark][]*sighting{}
			}
			all := t.machines[machine][m]
			if len(all) == sightingsOfMachine {
				all = append(all[:sightingsOfMachine/2], all[sightingsOfMachine/2+1:]...)
			}
			t.machines[machine][m] = append(all, s)
			t.ofLog[log][m] = append(t.ofLog[log][m], s)
		}
	}
}

// later returns the sightings of the marks in the log of a line that end after it.
func (t *timeline) later(l *line, marks ...mark) (all []*sighting) {
	for _, m := range marks {
		for _, s := range t.ofLog[generations(l.file)][m] {
			if inLog(&s.last, l) > 0 {
				all = append(all, s)
			}
		}
	}
	return all
}

// of returns the sightings of the marks on the machine of a line.
func (t *timeline) of(l *line, marks ...mark) (all []*sighting) {
	machine := t.machines[machineOf(l.file)]
	for _, m := range marks {
		all = append(all, machine[m]...)
	}
	return all
}

func (t *timeline) mergeLinks(f *logFile) {
	log := generations(f.name) + "\n"
	if f.linked {
		for key := range t.links {
			if strings.HasPrefix(key, log) {
				delete(t.links, key)
			}
		}
	}
	for code, trouble := range f.links {
		whole := &linkTrouble{code: code}
		if before := t.links[log+string(code)]; before != nil {
			whole.lines = before.lines
		}
		whole.lines.lines = cut(slices.Concat(whole.lines.lines, trouble.lines.lines))
		whole.lines.last = trouble.lines.last
		whole.lines.count += trouble.lines.count
		t.links[log+string(code)] = whole
	}
}

// meeting is the first line of a file, or of a folder, with an id.
type meeting struct {
	at     time.Time
	line   string // its place
	server bool   // of a registration: a server has received it
}

// registrationOf begins the id of a registration, which is a client's.
const registrationOf = "registration of "

// foldersOfID is in how many folders an id is looked for: a message passes fewer machines.
const foldersOfID = 12

// meet keeps where a folder first has an id, so that the clocks of machines can be compared by what they have in common.
func (t *timeline) meet(id, folder string, m meeting) {
	if t.ids[id] == nil {
		t.ids[id] = map[string]meeting{}
	}
	if len(t.ids[id]) == foldersOfID {
		return
	}
	if first, ok := t.ids[id][folder]; !ok || m.at.Before(first.at) {
		t.ids[id][folder] = m
	}
}

// observer takes the records of one file.
type observer struct {
	limits   Limits
	most     int // lines of a mark that are kept
	ids      int // ids that are kept
	file     *logFile
	waiting  int // lines kept of what is not answered
	lifetime lifetimeParts
	columns  *accessColumns
	cells    cells
	found    candidates
	address  *line                     // the last line with an address of an HTTP request
	held     []held                    // lines whose address may follow
	clients  map[string][]failedClient // whose requests were refused, by address
	listing  bool                      // what follows is a listing of the directory
	well     int                       // number of the last line that shows work to go well
	refused  int                       // open refusals on paths that need no logon
	tail     []byte                    // a copy of the last record that may have a time
}

func newObserver(name string, limits Limits, left room) *observer {
	o := &observer{limits: limits, most: sightingLines, clients: map[string][]failedClient{}, ids: min(idsKept, limits.Kept, max(left.ids, 0)), file: &logFile{name: name, seen: map[mark]*sighting{},
		attempts: map[string]*waiting{}, links: map[catalog.Code]*linkTrouble{}, ids: map[string]meeting{}}}
	if left.memory < limits.Memory/2 {
		o.most = fewSightingLines
	}
	return o
}

// turnTime is how soon a failure comes again that was not over although something went well meanwhile.
const turnTime = time.Hour

// add takes a line of a sighting.
func (o *observer) add(s *sighting, l line) {
	if len(s.lines) > 0 && len(s.lines) < o.most && o.well > s.last.number && l.number > o.well {
		if gap := l.time.Sub(s.last.time); gap <= turnTime {
			s.turns++
			s.gap = max(s.gap, gap)
		}
	}
	s.add(l, o.most)
}

// returns says whether a failure that something seems to have ended will come again: it did so before, and the time that is known
// to be without it is no longer than it was then.
func (s *sighting) returns(since *line) bool {
	return s.turns >= 2 && (since.time.IsZero() || s.last.time.IsZero() || since.time.Sub(s.last.time) <= 4*s.gap)
}

// full says that no more lines of a mark are kept but the last one.
func (o *observer) full(s *sighting) bool { return s != nil && len(s.lines) >= o.most }

// record takes the next record of the file. What no anchor is in is counted and not looked at again.
func (o *observer) record(raw []byte, number int) {
	raw = trimmed(raw)
	if len(raw) == 0 {
		return
	}
	o.file.lines++
	o.found = candidates{}
	k := kindOf(raw)
	switch {
	case raw[0] == '#' && o.directive(raw):
		o.file.lines--
		return
	case k == accessLine && o.request(raw, number):
		return
	}
	if k == plainLine && !o.listing {
		o.listing = bytes.Contains(raw, accountStart) && bytes.Contains(raw, accountEnd)
	}
	m := theMatcher()
	m.find(raw, &o.found)
	if k == clientLine {
		o.found.remove(&m.words)
	}
	if k == accessLine { // a date, and no record of a web server that a rule could use at once
		k = plainLine
	}
	timed := k != plainLine
	if o.found.none() && !o.listing && (k == clientLine && bytes.Count(raw, clientStart) == 1 || k == serverLine || k == eventLine || k == plainLine && !fragmentLike(raw)) {
		o.file.kinds[k]++
		o.keepTime(raw, number, timed)
		return
	}
	if (k == clientLine || k == serverLine) && o.saturated(raw, number, k) {
		return
	}
	all := fromRecord(o.file.name, number, raw)
	for _, l := range all {
		if len(all) == 1 && !o.listing {
			o.observe(l, &o.found)
			continue
		}
		o.observe(l, nil)
	}
}

// A distinguished name in a plain line begins a listing of the directory, whatever the language of the sentence around it.
var accountStart, accountEnd = []byte("CN="), []byte(",DC=")

// keepTime notes the first time of the file, and what to read the last one from.
func (o *observer) keepTime(raw []byte, number int, timed bool) {
	if !timed {
		return
	}
	if o.file.first.IsZero() {
		for _, l := range fromRecord(o.file.name, number, raw) {
			o.span(l.time)
		}
		return
	}
	o.tail = append(o.tail[:0], raw[:min(len(raw), 8<<10)]...)
	if len(raw) > 8<<10 {
		o.tail = append(o.tail[:0], raw[len(raw)-8<<10:]...)
	}
}

func (o *observer) span(at time.Time) {
	f := o.file
	if at.IsZero() {
		return
	}
	if f.first.IsZero() || at.Before(f.first) {
		f.first = at
	}
	if at.After(f.last) {
		f.last = at
	}
}

// saturated takes a record whose every mark has enough lines: only the last one is of interest, and it is parsed when the file
// ends.
func (o *observer) saturated(raw []byte, number int, k kind) bool {
	trouble, needed := false, false
	o.found.each(func(i int) {
		m := looks[i].mark
		trouble = trouble || m == troubleLine || m == troubleWord
		needed = needed || !looks[i].enough || !o.full(o.file.seen[m])
	})
	if !trouble && !needed { // nothing but more of what went well
		o.found.each(func(i int) {
			if looks[i].well {
				o.well = number
			}
		})
		o.file.kinds[k]++
		o.file.marks++
		o.keepTime(raw, number, true)
		return true
	}
	if trouble && namesOwnCode(raw) {
		return false
	}
	l := line{file: o.file.name, number: number, kind: k}
	switch {
	case k == serverLine:
		l.text = string(raw[:lastIndex(raw, serverMark)])
	case bytes.Count(raw, clientStart) == 1:
		l.text = string(raw[len(recordStart) : len(recordStart)+bytes.Index(raw[len(recordStart):], clientEnd)])
	default:
		return false
	}
	l.low, l.component = lower(l.text), componentOf(raw, k)
	full := true
	var matching [4]*sighting
	n := 0
	o.found.each(func(i int) {
		look := &looks[i]
		if !full || look.enough && o.full(o.file.seen[look.mark]) || look.mark == message && o.met(raw) || !look.matches(&l) {
			return
		}
		s := o.file.seen[look.mark]
		if full = look.plain && o.full(s) && n < len(matching); full {
			matching[n] = s
			n++
			if look.well {
				o.well = number
			}
		}
	})
	if !full || trouble && n == 0 {
		return false
	}
	if strings.Contains(l.low, "url=http") {
		if len(o.held) > 0 {
			o.release(&l)
		}
		o.address = &l
	}
	for _, s := range matching[:n] {
		s.count++
		s.pending, s.number = append(s.pending[:0], raw...), number
	}
	o.file.kinds[k]++
	o.file.marks += min(n, 1)
	o.keepTime(raw, number, true)
	return true
}

// namesOwnCode says whether a record may name a code of ours.
func namesOwnCode(raw []byte) bool {
	for at := bytes.IndexByte(raw, 'P'); at >= 0 && at+3 < len(raw); {
		if raw[at+1]-'0' < 10 && raw[at+2]-'0' < 10 && raw[at+3]-'0' < 10 {
			return true
		}
		next := bytes.IndexByte(raw[at+1:], 'P')
		if next < 0 {
			return false
		}
		at += 1 + next
	}
	return false
}

// componentOf cuts the component out of a framed record.
func componentOf(raw []byte, k kind) string {
	begin, end := []byte(` component="`), byte('"')
	if k == serverLine {
		begin, end = serverMark, '>'
	}
	at := lastIndex(raw, begin)
	if at < 0 {
		return ""
	}
	rest := raw[at+len(begin):]
	if size := bytes.IndexByte(rest, end); size >= 0 {
		return string(rest[:size])
	}
	return ""
}

// lastIndex is bytes.LastIndex for a mark near the end, whose last byte is rare there.
func lastIndex(raw, mark []byte) int {
	for end := len(raw); end >= len(mark); {
		at := bytes.LastIndexByte(raw[:end], mark[len(mark)-1])
		if begin := at + 1 - len(mark); begin >= 0 && bytes.Equal(raw[begin:at+1], mark) {
			return begin
		}
		end = at
	}
	return -1
}

// idsKept is how many ids of one file are kept: enough to compare its clock with another's.
const idsKept = 4000

// met says whether a record that names a message tells nothing new of it.
func (o *observer) met(raw []byte) bool {
	if len(o.file.ids) >= o.ids {
		return true
	}
	at := bytes.IndexByte(raw, '-')
	for ; at >= 0 && at < len(raw); at++ {
		if begin := at - 8; begin >= 0 && begin+36 <= len(raw) && raw[at] == '-' && raw[begin+13] == '-' && raw[begin+18] == '-' && raw[begin+23] == '-' {
			_, known := o.file.ids[string(bytes.ToUpper(raw[begin:begin+36]))]
			return known
		}
		next := bytes.IndexByte(raw[at+1:], '-')
		if next < 0 {
			return false
		}
		at += next
	}
	return false
}

// fragmentLike says whether a plain line may be a quoted access record, or hold another record.
func fragmentLike(raw []byte) bool {
	return bytes.Contains(raw, fragmentMark) || bytes.Contains(raw, clientStart) || bytes.IndexByte(raw, '\r') >= 0
}

var fragmentMark = []byte(" /")

func (o *observer) directive(raw []byte) bool {
	if bytes.HasPrefix(raw, fieldsDirective) {
		if names := strings.Fields(string(raw[len(fieldsDirective):])); len(names) > 0 && len(names) <= mostFields {
			o.columns = columnsOf(names)
		}
		return true
	}
	name, _, found := bytes.Cut(raw, []byte(":"))
	return found && slices.Contains(directives, string(name))
}

// directives of the W3C extended log file format.
var directives = []string{"#Software", "#Version", "#Date", "#Start-Date", "#End-Date", "#Remark"}

// request takes a line of a web server's log. A request that was answered as it should be is counted, and the first of them
// are kept.
func (o *observer) request(raw []byte, number int) bool {
	if !o.cells.of(raw) {
		return false
	}
	where := o.cells.columns(o.columns)
	if where == nil {
		return false
	}
	status, stem := o.cells.number(where.code), o.cells.at(where.stem)
	elsewhere := status/100 == 3 && status != http.StatusNotModified && ofManagementPoint(string(stem))
	if status < 400 && !elsewhere && o.refused == 0 && !begins(stem, windowsAuthFolder) && !begins(stem, administration) && !begins(stem, windowsAuthData) &&
		(status/100 != 2 || o.full(o.file.seen[answered]) || !ofManagementPoint(string(stem))) && (len(o.clients) == 0 || o.clients[string(o.cells.at(where.client))] == nil) {
		o.file.kinds[accessLine]++
		o.keepTime(raw, number, true)
		return true
	}
	record, ok := o.cells.record(where)
	if !ok {
		return false
	}
	o.observe(line{file: o.file.name, number: number, kind: accessLine, time: record.Time, text: string(raw[:min(len(raw), lineKept)]), access: &record}, nil)
	return true
}

// heldLines is how many lines wait for the address that they are about.
const heldLines = 8

// held is a line that waits, and the looks that may match it where they are known.
type held struct {
	l     line
	found *candidates
}

// awaitsAddress says whether a client writes the address only after the line: it tells of a failure first, with what it was told of it.
func awaitsAddress(l *line) bool {
	return l.kind == clientLine && containsAny(l.low, addressFollows) && !strings.Contains(l.low, "://")
}

var addressFollows = []string{"failed in winhttp", "winhttp_callback_status_", "lpvstatusinformation"}

// observe takes a line, and the looks that may match it where they are known.
func (o *observer) observe(l line, found *candidates) {
	if awaitsAddress(&l) && len(o.held) < heldLines {
		if found != nil {
			copied := *found
			found = &copied
		}
		o.held = append(o.held, held{l, found})
		return
	}
	if len(o.held) > 0 {
		o.release(&l)
	}
	o.see(l, found)
}

// release takes the lines that wait when the address has come, or comes too late; nil says that nothing comes any more.
func (o *observer) release(l *line) {
	if l != nil && l.number-o.held[0].l.number <= nearLines {
		if !strings.Contains(l.low, "url=http") {
			return
		}
		address := line{file: l.file, number: l.number, time: l.time, text: l.text, low: l.low}.short()
		for i := range o.held {
			o.held[i].l.before = &address
		}
	}
	for _, h := range o.held {
		o.see(h.l, h.found)
	}
	o.held = o.held[:0]
}

// see takes a line as it is.
func (o *observer) see(l line, found *candidates) {
	f := o.file
	f.kinds[l.kind]++
	o.span(l.time)
	if l.before == nil {
		l.before = o.address
	}
	o.handshake(l)
	marked := o.own(l)
	f.client = f.client || l.component != "" && ofClient(&l)
	symptom, failed := marked, false
	o.each(&l, found, func(k *look) {
		if !k.matches(&l) {
			return
		}
		_, known := catalog.Lookup(catalog.Code(k.mark))
		switch {
		case (sideChannel(&l) || ofOtherService(&l)) && slices.Contains(wayCodes, catalog.Code(k.mark)):
			marked = true // its client gets on without it
			return
		case k.mark == notForwarded:
			failed = true
			return
		case k.request && known:
			o.fail(catalog.Code(k.mark), &l)
		}
		o.mark(k.mark, l)
		symptom = symptom || known
		marked = marked || k.mark != serverError
		o.listing = o.listing || k.mark == listing
	})
	if failed && !symptom {
		o.mark(notForwarded, l)
		marked = true
	}
	if l.access != nil {
		o.succeed(&l)
	}
	o.lifetime.observe(f, &l)
	switch {
	case marked:
		f.marks++
		o.identify(l)
	case troubled(&l):
		o.add(&f.unknown, l.short())
	}
	if strings.Contains(l.low, "url=http") || strings.Contains(l.low, "host=") && strings.Contains(l.low, "path=") {
		address := line{file: l.file, number: l.number, time: l.time, text: l.text, low: l.low}.short()
		o.address = &address
	}
}

// each calls act with the looks that may match a line.
func (o *observer) each(l *line, found *candidates, act func(*look)) {
	if l.access != nil { // what a request is called is not what the server says
		if foreign(l) {
			return
		}
		for _, i := range requestLooks() {
			act(&looks[i])
		}
		return
	}
	if found == nil {
		m := theMatcher()
		found = &candidates{}
		if o.listing {
			*found = m.always
		}
		m.find([]byte(l.text), found)
	}
	found.each(func(i int) { act(&looks[i]) })
}

// requestLooks are the looks for records of a web server, in the order of the table.
var requestLooks = sync.OnceValue(func() (all []int) {
	for i := range looks {
		if looks[i].request {
			all = append(all, i)
		}
	}
	return all
})

// fail follows a client whose request a web server refused with what a symptom is made of.
func (o *observer) fail(code catalog.Code, l *line) {
	if o.file.failed == nil {
		o.file.failed = map[failedClient]*failedRun{}
	}
	client := failedClient{code, l.access.ClientAddress, folderOfStem(l.access.Stem)}
	run := o.file.failed[client]
	if run == nil {
		if len(o.file.failed) >= clientsKept {
			return
		}
		run = &failedRun{}
		o.file.failed[client] = run
		o.clients[client.address] = append(o.clients[client.address], client)
	}
	run.last, run.well = l.short(), nil
}

// succeed notes that a client got through that was refused before: it was answered, or failed with what comes after its certificate was accepted.
func (o *observer) succeed(l *line) {
	for _, client := range o.clients[l.access.ClientAddress] {
		run := o.file.failed[client]
		if run.well != nil || client.folder != folderOfStem(l.access.Stem) {
			continue
		}
		if status := l.access.Status; status/100 == 2 || run.last.access.Status == http.StatusForbidden && status/100 == 5 {
			well := l.short()
			run.well = &well
		}
	}
}

func (o *observer) mark(m mark, l line) {
	f := o.file
	l = l.short()
	s := f.seen[m]
	if s == nil {
		s = &sighting{}
		f.seen[m] = s
	}
	if n := len(s.lines); n > 0 && s.last.number == l.number && s.last.text == l.text { // one line, one sighting
		return
	}
	o.add(s, l)
	if goesWell(m) {
		o.well = l.number
	}
	if m == registered || m == mark(catalog.SymptomNotApproved) {
		o.assign(l)
	}
	if m == linked {
		f.linked = true
		clear(f.links)
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
	if o.file.links[code] == nil {
		o.file.links[code] = &linkTrouble{code: code}
	}
	o.file.links[code].lines.add(l.short(), o.most)
	return true
}

// end closes the file: what was not answered in it may be answered in another.
func (o *observer) end() *logFile {
	f := o.file
	if len(o.held) > 0 {
		o.release(nil)
	}
	for _, s := range f.seen {
		if s.number > 0 {
			for _, l := range fromRecord(f.name, s.number, s.pending) {
				l.host = s.last.host
				s.last = l.short()
			}
			s.pending, s.number = nil, 0
		}
	}
	if len(o.tail) > 0 {
		var last time.Time
		if o.cells.of(o.tail) && kindOf(o.tail) == accessLine {
			if where := o.cells.columns(o.columns); where != nil {
				record, _ := o.cells.record(where)
				last = record.Time
			}
		} else if all := fromRecord(f.name, 0, o.tail); len(all) > 0 {
			last = all[len(all)-1].time
		}
		o.span(last)
	}
	return f
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

// identify keeps when the file first has an id.
func (o *observer) identify(l line) {
	if l.time.IsZero() || len(o.file.ids) >= o.ids {
		return
	}
	for _, id := range ids(&l) {
		if first, ok := o.file.ids[id]; !ok || l.time.Before(first.at) {
			o.file.ids[id] = meeting{l.time, place(&l), strings.Contains(l.low, "processing registration request")}
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
	if l.access != nil || !containsAny(l.low, idWords) {
		return nil
	}
	all := guids(l.text, 4)
	if strings.Contains(l.low, "registration request") { // the id is of a client and not of a message
		for i := range all {
			all[i] = registrationOf + all[i]
		}
	}
	return all
}

// idWords are in lines whose ids are of a message, or of one registration.
var idWords = []string{"message", "registration request"}

// assignmentsKept is how many changes of its id are kept of a log.
const assignmentsKept = 64

func (o *observer) assign(l line) {
	all := o.file.assigned
	if id := guids(l.text, 1); len(id) > 0 && len(all) < assignmentsKept && (len(all) == 0 || all[len(all)-1].id != id[0]) {
		o.file.assigned = append(all, assignment{id[0], l})
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

// machineOf is what the files of one machine have in common: their folder. Of a client it is the one above those of its setup
// and of its work, which have two (ccmsetup/Logs and CCM/Logs), of a server those of the site, of the management point and of the web server.
func machineOf(file string) string {
	folder := folderOf(file)
	for _, own := range []string{"w3svc1", "logfiles", "logs", "inetpub", "sms_ccm", "sms", "ccm", "ccmsetup"} {
		at := len(folder) - len(own)
		if at >= 0 && strings.EqualFold(folder[at:], own) && (at == 0 || folder[at-1] == '/' || folder[at-1] == '!') {
			folder = folder[:max(at-1, 0)]
		}
	}
	return cmp.Or(folder, ".")
}

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

func (p *lifetimeParts) observe(t *logFile, l *line) {
	if l.access != nil || !strings.Contains(l.text, ": '") || len(t.ended) >= sightingLines {
		return
	}
	if until, ok := usTime(validTo.FindStringSubmatch(l.text)); ok {
		p.until, p.from = until, l.short()
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
