package explain

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"postern/catalog"
	"postern/diag"
)

// Sure says how sure a verdict is.
type Sure string

// The two degrees. What is less sure is no verdict.
const (
	Certain Sure = "certain"
	Likely  Sure = "likely"
)

// Verdict is one entry of the catalogue, and how sure it is.
type Verdict struct {
	Code  catalog.Code `json:"code"`
	Title string       `json:"title"`
	Sure  Sure         `json:"sure"`
}

// Evidence is one line that proves a verdict.
type Evidence struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Text string `json:"text"`
}

// Report is what the logs say. Its JSON form is the one that scripts may rely on.
type Report struct {
	Verdict   *Verdict   // the first wrong thing, or P000; nil is "don't know"
	Also      []Verdict  // what else was seen: other sights of it, consequences, what is history
	Evidence  []Evidence // in the order in which to read them
	Remedy    []string
	Followed  []string // what followed from it, in the order of time
	Undecided []string // what was looked at and could not be decided

	Looked []string       // what was read, for a person
	over   []catalog.Code // of Also, what is history
	others []catalog.Code // of Also, what other devices met
	Events []Event        // the story in the order of time, for a picture
}

// MarshalJSON writes the report with lists that are never null.
func (r Report) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Verdict   *Verdict   `json:"verdict"`
		Also      []Verdict  `json:"also"`
		Evidence  []Evidence `json:"evidence"`
		Remedy    []string   `json:"remedy"`
		Followed  []string   `json:"followed"`
		Undecided []string   `json:"undecided"`
	}{r.Verdict, list(r.Also), list(r.Evidence), list(r.Remedy), list(r.Followed), list(r.Undecided)})
}

func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// Write writes the report for a person: the verdict first, then what proves it, what to do, what followed, and what
// was looked at.
func (r Report) Write(w io.Writer) {
	if r.Verdict == nil {
		fmt.Fprintln(w, "Don't know: the lines do not decide what is wrong.")
	} else {
		fmt.Fprintf(w, "%s %s (%s)\n", r.Verdict.Code, r.Verdict.Title, r.Verdict.Sure)
	}
	section(w, "What shows it", r.Evidence, func(e Evidence) string { return fmt.Sprintf("%s:%d  %s", e.File, e.Line, e.Text) })
	if r.Verdict != nil {
		n := 0
		section(w, "What to do", r.Remedy, func(step string) string { n++; return fmt.Sprintf("%d. %s", n, step) })
	}
	section(w, "What followed", r.Followed, func(s string) string { return s })
	section(w, "Seen as well", r.notFollowed(), func(v Verdict) string { return fmt.Sprintf("%s %s (%s)", v.Code, v.Title, r.Standing(v)) })
	if r.Verdict != nil { // else it is below
		section(w, "Looked at", r.Looked, func(s string) string { return s })
	}
	section(w, "Not decided", r.Undecided, func(s string) string { return s })
}

// notFollowed is what was seen as well and is not named among what followed.
func (r Report) notFollowed() []Verdict {
	return slices.DeleteFunc(slices.Clone(r.Also), func(v Verdict) bool {
		return slices.ContainsFunc(r.Followed, func(s string) bool { return strings.HasPrefix(s, string(v.Code)+" ") })
	})
}

// Standing says how sure something is that was seen as well, or that it is over.
func (r Report) Standing(v Verdict) string {
	if slices.Contains(r.over, v.Code) {
		return "is over"
	}
	if slices.Contains(r.others, v.Code) {
		return "of another device"
	}
	return string(v.Sure)
}

func section[T any](w io.Writer, title string, items []T, text func(T) string) {
	if len(items) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s\n", title)
	for _, item := range items {
		fmt.Fprintf(w, "  %s\n", text(item))
	}
}

// judge makes the report of a timeline. It is a pure function of it.
func judge(t *timeline, notes []string) Report {
	logons, open := refusedLogons(t)
	t.explainLogons(logons)
	findings := current(t, append(t.findings(logons), logons...))
	report := Report{Looked: t.looked(), Undecided: slices.Clone(notes)}
	active, past := divide(findings)
	active, others := t.setAside(active)
	first := roots(active)
	unknown, recovered := t.recovered(append(t.refusals(first), t.unknown()...))
	switch works := t.works(); {
	case len(first) > 0:
		report.blame(t, first[0], active)
	case len(works) > 0 && len(unknown)-recovered == 0 && t.enough(works, open):
		report.healthy(works, len(open)+len(others) > 0 || recovered > 0 || slices.ContainsFunc(past, finding.vague))
	}
	report.also(slices.Concat(active, others), past)
	report.harmless(t)
	report.Undecided = append(report.Undecided, unknown...)
	for _, l := range open[:min(len(open), mostPlaces)] {
		report.undecided("%s: a client was asked to authenticate (401), and neither a 200 nor a second 401 follows; the log may end too early", place(&l))
	}
	if more := len(open) - mostPlaces; more > 0 {
		report.undecided("the same of %s more", number(more, "client"))
	}
	for _, f := range others {
		report.others = append(report.others, f.code)
		report.undecided("%s %s (%s) is of another device, as far as these logs tell: nearly all others were served there, and no client's log shows that answer", f.code, titleOf(f.code), place(&f.lines[0]))
	}
	for _, f := range past {
		report.over = append(report.over, f.code)
		report.undecided("%s was seen %s until %s, and is over since %s: whether it comes again, the logs do not say", f.code, times(f.count), place(&f.last), place(t.firstWell(&f)))
	}
	report.doubts(first)
	report.Undecided = append(report.Undecided, t.clocks()...)
	if report.Verdict == nil {
		report.Undecided = append(report.Undecided, t.looked()...)
		report.Remedy = nil
	}
	report.Events = t.events(&report, active, past, t.works())
	return report
}

// mostPlaces is how many places of one kind are named.
const mostPlaces = 20

func (r *Report) undecided(format string, arguments ...any) {
	r.Undecided = append(r.Undecided, fmt.Sprintf(format, arguments...))
}

// findings turns marks into findings, one for each code.
func (t *timeline) findings(logons []finding) []finding {
	var all []finding
	for m, sightings := range t.seen {
		code := catalog.Code(m)
		if entry, ok := catalog.Lookup(code); !ok || entry.Severity == catalog.SeverityInfo {
			continue
		}
		r := ruleOf(code)
		if len(r.with) > 0 && !t.alone(r) && !slices.ContainsFunc(logons, func(f finding) bool { return slices.Contains(r.found, f.code) }) {
			continue
		}
		if slices.Contains(selectionCodes[1:], code) {
			continue // see certificateSelection
		}
		if code == catalog.SymptomServerNameMismatch && onlyBesideNumber(t, sightings) {
			continue // the number decides; see disagreement
		}
		all = append(all, t.finding(r, sightings))
	}
	for _, find := range extra {
		all = append(all, find(t)...)
	}
	slices.SortStableFunc(all, func(a, b finding) int { return cmp.Or(cmp.Compare(a.code, b.code), earlier(a.lines[0], b.lines[0])) })
	return all
}

// alone says whether the lines of a symptom mean something here.
func (t *timeline) alone(r rule) bool {
	return slices.ContainsFunc(r.with, func(code catalog.Code) bool { return len(t.seen[mark(code)]) > 0 })
}

func (t *timeline) finding(r rule, sightings []*sighting) finding {
	f := finding{code: r.code, sure: cmp.Or(r.sure, Certain), last: sightings[0].last}
	for _, s := range sightings {
		f.lines = append(f.lines, s.lines...)
		f.count += s.count
		if after(&s.last, &f.last) {
			f.last = s.last
		}
		if len(f.lines) > 100*sightingLines {
			f.lines = earliest(f.lines)
		}
	}
	f.lines = earliest(f.lines)
	return f
}

// earliest sorts lines and returns as many of them as a finding has.
func earliest(lines []line) []line {
	slices.SortStableFunc(lines, earlier)
	return cut(lines)
}

// current merges findings of one code and says of each whether it is history: after its last line in every folder, the
// same machine shows that it works.
func current(t *timeline, findings []finding) (merged []finding) {
	at := map[catalog.Code]int{}
	for _, f := range findings {
		if f.over == nil {
			f.over = t.history(f)
		}
		i, ok := at[f.code]
		if !ok {
			at[f.code] = len(merged)
			merged = append(merged, f)
			continue
		}
		m := &merged[i]
		m.count += f.count
		if m.over != nil && f.over == nil { // what goes on proves more than what is over
			m.lines, m.last, m.over, f.lines = f.lines, f.last, nil, m.lines
		}
		m.lines = cut(append(m.lines, f.lines...))
	}
	for i := range merged {
		if f := &merged[i]; f.over == nil {
			f.over = passedBy(f, merged)
		}
	}
	return merged
}

func divide(findings []finding) (active, past []finding) {
	for _, f := range findings {
		if f.over != nil {
			past = append(past, f)
			continue
		}
		active = append(active, f)
	}
	return active, past
}

// ownWindow is how far a code of our own may be from what follows from it; clocks of two machines differ by some seconds.
const ownWindow = 5 * time.Minute

// causes says whether one finding is why another is there.
func causes(cause, effect *finding) bool {
	r := ruleOf(effect.code)
	if effect.because != "" {
		return effect.because == cause.code
	}
	if cause.because == effect.code {
		return false
	}
	if slices.Contains(r.follows, cause.code) || slices.Contains(r.partOf, cause.code) {
		return true
	}
	if r.weak > 0 && ruleOf(cause.code).weak < r.weak && severity(cause.code) != catalog.SeverityInfo && !slices.Contains(ruleOf(cause.code).follows, effect.code) {
		return true
	}
	return r.own && ours(cause.code) && together(cause, effect)
}

func ours(code catalog.Code) bool { return strings.HasPrefix(string(code), "P") }

func together(a, b *finding) bool {
	for i := range a.lines {
		for j := range b.lines {
			x, y := a.lines[i].time, b.lines[j].time
			if x.IsZero() || y.IsZero() || x.Sub(y).Abs() <= ownWindow {
				return true
			}
		}
	}
	return false
}

var severities = []catalog.Severity{catalog.SeverityError, catalog.SeverityWarning, catalog.SeverityInfo}

// roots returns the findings that nothing else explains, the first wrong thing first: the worst, then the earliest, then
// the first in the order of a diagnosis.
func roots(active []finding) []finding {
	var all []finding
	timed := true
	for i := range active {
		effect := &active[i]
		if severity(effect.code) == catalog.SeverityInfo || slices.ContainsFunc(active, func(c finding) bool { return c.code != effect.code && causes(&c, effect) }) {
			continue
		}
		all = append(all, *effect)
		timed = timed && !effect.lines[0].time.IsZero()
	}
	slices.SortStableFunc(all, func(a, b finding) int {
		by := cmp.Compare(slices.Index(severities, severity(a.code)), slices.Index(severities, severity(b.code)))
		if by == 0 && timed {
			by = a.lines[0].time.Compare(b.lines[0].time)
		}
		return cmp.Or(by, cmp.Compare(rank(a.code), rank(b.code)), cmp.Compare(a.code, b.code))
	})
	return all
}

func severity(code catalog.Code) catalog.Severity {
	entry, _ := catalog.Lookup(code)
	return entry.Severity
}

// blame writes the verdict, what proves it and what followed from it.
func (r *Report) blame(t *timeline, root finding, active []finding) {
	entry, _ := catalog.Lookup(root.code)
	r.Verdict = &Verdict{root.code, entry.Title, root.sure}
	r.Remedy = steps(entry.Remedy)
	r.prove(root.lines, 5)
	for _, f := range consequences(root, active) {
		part := slices.Contains(ruleOf(f.code).partOf, root.code) || f.because == root.code
		if part || ours(root.code) {
			r.prove(f.lines, 2)
		}
		if !part {
			r.prove(f.lines, 1)
			r.Followed = append(r.Followed, fmt.Sprintf("%s %s, %s from %s", f.code, titleOf(f.code), times(f.count), place(&f.lines[0])))
		}
	}
	for _, s := range t.sightings(refusal) {
		if l := s.lines[0]; len(r.Followed) < 24 && explains(&root, &l) {
			r.Followed = append(r.Followed, fmt.Sprintf("a device was refused, %s from %s: %s", times(s.count), place(&l), shown(l.text)))
		}
	}
	for i := range root.lines {
		for _, sentence := range t.elsewhere(&root.lines[i]) {
			if !slices.Contains(r.Followed, sentence) && len(r.Followed) < 24 {
				r.Followed = append(r.Followed, sentence)
			}
		}
	}
	if root.code == catalog.SymptomTokenLifetimeOver || slices.ContainsFunc(active, func(f finding) bool { return f.code == catalog.SymptomTokenLifetimeOver }) {
		for _, s := range t.sightings(lifetimePart) {
			r.prove(s.lines, 2)
		}
		r.Followed = append(r.Followed, lifetimes(t)...)
	}
}

// consequences returns what follows from a finding, directly or through others, by time.
func consequences(root finding, active []finding) []finding {
	reached := []finding{root}
	for i := 0; i < len(reached); i++ {
		for _, f := range active {
			if causes(&reached[i], &f) && !slices.ContainsFunc(reached, func(r finding) bool { return r.code == f.code }) {
				reached = append(reached, f)
			}
		}
	}
	all := reached[1:]
	slices.SortStableFunc(all, func(a, b finding) int { return earlier(a.lines[0], b.lines[0]) })
	return all
}

func (r *Report) prove(lines []line, most int) {
	for _, l := range lines[:min(most, len(lines))] {
		e := Evidence{printable(l.file), l.number, shown(l.text)}
		if len(r.Evidence) < 24 && !slices.Contains(r.Evidence, e) {
			r.Evidence = append(r.Evidence, e)
		}
	}
}

// enough says whether what went well outweighs requests that were never answered: the last lines of a log always cut some
// conversations in two. Where none was ever seen whole, other requests tell nothing of them.
func (t *timeline) enough(works []finding, open []line) bool {
	well, whole := 0, false
	for _, f := range t.files {
		well += f.kinds[accessLine] / 5
	}
	for _, w := range works {
		if mark(w.code) == firstLeg {
			well += w.count / 2
			whole = true
		}
	}
	return len(open) == 0 || whole && well >= 4*len(open)
}

// harmless names what was seen and is no failure.
func (r *Report) harmless(t *timeline) {
	for m := range t.seen {
		if entry, ok := catalog.Lookup(catalog.Code(m)); ok && entry.Severity == catalog.SeverityInfo && entry.Code != catalog.Healthy &&
			!slices.ContainsFunc(r.Also, func(v Verdict) bool { return v.Code == entry.Code }) {
			r.Also = append(r.Also, Verdict{entry.Code, entry.Title, Certain})
		}
	}
	slices.SortStableFunc(r.Also, func(a, b Verdict) int { return cmp.Compare(a.Code, b.Code) })
}

func (r *Report) healthy(works []finding, doubt bool) {
	entry, _ := catalog.Lookup(catalog.Healthy)
	r.Verdict = &Verdict{catalog.Healthy, entry.Title, Certain}
	if doubt || len(works) == 1 && (mark(works[0].code) == fine || works[0].code == catalog.SymptomNoDeviceManagement) {
		r.Verdict.Sure = Likely
	}
	r.Remedy = steps(entry.Remedy[:1])
	for _, w := range works {
		r.prove(w.lines, 2)
		if mark(w.code) == firstLeg {
			r.Also = append(r.Also, Verdict{catalog.SymptomNegotiateFirstLeg, titleOf(catalog.SymptomNegotiateFirstLeg), Certain})
		}
	}
}

// works returns what went well, each as a finding with its mark for a code.
func (t *timeline) works() (all []finding) {
	for _, m := range good {
		if sightings := t.seen[m]; len(sightings) > 0 {
			f := t.finding(rule{}, sightings)
			f.code = catalog.Code(m)
			all = append(all, f)
		}
	}
	return all
}

func (r *Report) also(active, past []finding) {
	for _, f := range slices.Concat(active, past) {
		if r.Verdict != nil && f.code == r.Verdict.Code {
			continue
		}
		r.Also = append(r.Also, Verdict{f.code, titleOf(f.code), f.sure})
	}
	slices.SortStableFunc(r.Also, func(a, b Verdict) int { return cmp.Compare(a.Code, b.Code) })
}

// doubts says what the verdict leaves open.
func (r *Report) doubts(causes []finding) {
	if r.Verdict == nil {
		return
	}
	for _, f := range causes[min(1, len(causes)):] {
		r.undecided("%s %s (%s) is not known to follow from %s; it may be another matter", f.code, titleOf(f.code), place(&f.lines[0]), r.Verdict.Code)
	}
	if doubt, ok := doubtful[r.Verdict.Code]; ok {
		r.Undecided = append(r.Undecided, doubt)
	}
}

// doubtful are verdicts that leave a question which other logs answer.
var doubtful = map[catalog.Code]string{
	catalog.SymptomNegotiateFailed: "which of E003 to E010 it is (name on another account, cluster name, kernel mode, trust, clock, duplicate name, unknown name, DNS): " +
		"the access log does not say; the client's System event log, a network trace or `postern kerberos check` does",
	catalog.SymptomGatewayInvalidToken:       "whether the token expired (E061, E081), is blocked (E079) or was pasted incompletely: CCM_STS.log of the management point, or the gateway's JSON log, says",
	catalog.SymptomTLSFailed:                 "which part of the check failed: the lines with WINHTTP_CALLBACK_STATUS_FLAG_ are not there",
	catalog.SymptomClientCertificateRequired: "which certificates the connection point has: SMS_CLOUD_PROXYCONNECTOR.log with verbose lines says which filter leaves none",
	catalog.SymptomConnectorForbidden:        "which certificate is bound to port 443 of the management point: no log says",
}

// explains says whether a finding is why a device was refused with a plain status: a code of our own servers at that
// time, or a symptom that is read from the line before.
func explains(root *finding, l *line) bool {
	return (ours(root.code) || root.code == catalog.SymptomTenantNotOnboarded) && together(root, &finding{lines: []line{*l}})
}

// unexplained are failures that their line does not explain, as they are told where nothing else is.
var unexplained = []struct {
	mark      mark
	what, why string
}{
	{postFailed, "a message was not taken", "and the line does not say why"},
	{redirected, "the web server sent a client elsewhere", "which no management point does"},
	{notForwarded, "a request was not carried inside", "and no rule knows why"},
}

// refusals are the answers to devices that nothing explains.
func (t *timeline) refusals(causes []finding) (all []string) {
	more := 0
	for _, s := range t.sightings(refusal) {
		l := s.lines[0]
		switch {
		case slices.ContainsFunc(causes, func(f finding) bool { return explains(&f, &l) }):
		case len(all) == mostPlaces:
			more += s.count
		default:
			all = append(all, fmt.Sprintf("%s: a device was refused, %s, and the line does not say why: %s", place(&l), times(s.count), shown(l.text)))
		}
	}
	for _, u := range unexplained {
		for _, s := range t.sightings(u.mark) {
			if l := s.lines[0]; len(causes) == 0 && len(all) < mostPlaces {
				all = append(all, fmt.Sprintf("%s: %s, %s, %s: %s", place(&l), u.what, times(s.count), u.why, shown(l.text)))
			}
		}
	}
	if more > 0 {
		all = append(all, fmt.Sprintf("a device was refused %s more, and the lines do not say why", times(more)))
	}
	return all
}

// unknownShown is how many lines are shown that no rule knows, of each text one.
const unknownShown = 5

func (t *timeline) unknown() (all []string) {
	count, told := 0, 0
	seen := map[string]bool{}
	for _, f := range t.files {
		if !f.known() {
			continue
		}
		count += f.unknown.count
		for _, l := range f.unknown.lines {
			text := digits.ReplaceAllString(l.low, "0")
			if seen[text] {
				told++
			} else if len(all) < unknownShown {
				seen[text] = true
				told++
				all = append(all, fmt.Sprintf("%s: no rule knows this line: %s", place(&l), shown(l.text)))
			}
		}
	}
	if count > told {
		all = append(all, fmt.Sprintf("%d more lines look like failures, and no rule knows them", count-told))
	}
	return all
}

var digits = regexp.MustCompile(`[0-9a-f]{8}[-_][0-9a-f_-]{27}|[0-9]+`)

// filesNamed is how many files are named of which nothing is known.
const filesNamed = 5

// noKnownLine is said of files that hold nothing of use. What follows it are their names, which may be any.
const noKnownLine = " in which nothing is a line of a log that is known"

// looked says what was read.
func (t *timeline) looked() (all []string) {
	var other []string
	for _, f := range t.files {
		if !f.known() {
			other = append(other, printable(f.name))
			continue
		}
		var forms []string
		for k, name := range kindNames {
			if f.kinds[kind(k)] > 0 && (k > 0 || len(f.kinds) == 1) {
				forms = append(forms, name)
			}
		}
		when := ""
		if !f.first.IsZero() {
			when = fmt.Sprintf(", %s to %s", f.first.UTC().Format(stampLayout), f.last.UTC().Format(stampLayout+" UTC"))
		}
		if len(all) < 50 {
			all = append(all, fmt.Sprintf("%s: %s, %s%s", printable(f.name), strings.Join(forms, " and "), number(f.lines, "line"), when))
		} else if len(all) == 50 {
			all = append(all, "and more")
		}
	}
	if len(other) > 0 {
		names := strings.Join(other[:min(len(other), filesNamed)], ", ")
		if more := len(other) - filesNamed; more > 0 {
			names += fmt.Sprintf(" and %d more", more)
		}
		all = append(all, number(len(other), "file")+noKnownLine+": "+names)
	}
	return all
}

func number(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

const stampLayout = "2006-01-02 15:04:05"

func span(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	}
	return fmt.Sprintf("%d seconds", int(d.Seconds()))
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func place(l *line) string { return fmt.Sprintf("%s:%d", printable(l.file), l.number) }

func folderOf(file string) string { return path.Dir(file) }

func titleOf(code catalog.Code) string {
	entry, _ := catalog.Lookup(code)
	return entry.Title
}

func steps(remedy []string) []string {
	all := make([]string, len(remedy))
	for i, step := range remedy {
		all[i] = strings.Join(strings.Fields(step), " ")
	}
	return all
}

// token finds what must not be shown: tokens are credentials.
var token = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]*){0,4}|(?i:(regtoken:|bearer |dpop |negotiate )[A-Za-z0-9_.+/=-]{16,})`)

const shownCap = 400

// shown makes a line fit to be shown: no token, no control character, not overlong.
func shown(text string) string {
	text = printable(token.ReplaceAllString(text, "(token left out)"))
	if len(text) > shownCap {
		text = strings.ToValidUTF8(text[:shownCap], "") + "..."
	}
	return text
}

// printable is [diag.Printable] for lines of a log, of which one may be several: the breaks become blanks.
func printable(text string) string {
	return strings.TrimSpace(diag.Printable(strings.NewReplacer("\n", " ", "\t", " ", "\r", " ").Replace(text)))
}
