package explain

import (
	"cmp"
	"fmt"
	"html/template"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"postern/catalog"
)

// Event is one moment of the story, for the picture of the timeline.
type Event struct {
	Time time.Time
	File string
	Line int
	Code catalog.Code // "" for work that went well
	Part Part
	Text string
}

// Part is what an event is in the story.
type Part string

// The parts of a story.
const (
	First   Part = "first"   // the first wrong thing
	Then    Part = "then"    // what followed from it
	Other   Part = "other"   // another matter
	History Part = "history" // over since
	Well    Part = "well"    // work that went well
)

// events collects the moments of a story: the first and the last line of each finding in each file.
func (t *timeline) events(r *Report, active, past, works []finding) (all []Event) {
	add := func(f finding, part Part) {
		lines := f.lines[:min(len(f.lines), 4)]
		for _, l := range append(slices.Clone(lines), f.last) {
			e := Event{l.time, printable(l.file), l.number, f.code, part, shown(l.text)}
			if part == Well {
				e.Code = ""
			}
			if !l.time.IsZero() && len(all) < 120 && !slices.Contains(all, e) {
				all = append(all, e)
			}
		}
	}
	for _, f := range active {
		switch {
		case r.Verdict != nil && f.code == r.Verdict.Code:
			add(f, First)
		case slices.ContainsFunc(r.Followed, func(s string) bool { return strings.HasPrefix(s, string(f.code)+" ") }):
			add(f, Then)
		default:
			add(f, Other)
		}
	}
	for _, f := range past {
		add(f, History)
	}
	for _, f := range works {
		add(f, Well)
	}
	slices.SortStableFunc(all, func(a, b Event) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(slices.Index(parts, a.Part), slices.Index(parts, b.Part)))
	})
	return all
}

// pageHead is how every page begins.
const pageHead = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="postern explain">
`

// IsPage reports whether r holds a page that [Report.WriteHTML] wrote; it reads no more than the page's beginning.
func IsPage(r io.Reader) bool {
	head := make([]byte, len(pageHead))
	_, err := io.ReadFull(r, head)
	return err == nil && string(head) == pageHead
}

// WriteHTML writes the report as one page that needs nothing else: no script, no font, no picture from elsewhere, and a
// policy that forbids all of these. Everything that comes from a log is text to it.
func (r Report) WriteHTML(w io.Writer) error {
	return page.Execute(w, pageOf(r))
}

// pageData is what the page shows.
type pageData struct {
	Report
	State   string // right, wrong, unknown
	Entry   catalog.Entry
	Picture *picture
	Groups  []evidenceGroup
	Others  []Verdict
}

// evidenceGroup is the evidence of one file.
type evidenceGroup struct {
	File  string
	Lines []Evidence
	Open  bool
}

func pageOf(r Report) pageData {
	d := pageData{Report: r, State: "unknown", Picture: draw(r.Events), Others: r.notFollowed()}
	if r.Verdict != nil {
		d.Entry, _ = catalog.Lookup(r.Verdict.Code)
		d.State = "wrong"
		if r.Verdict.Code == catalog.Healthy {
			d.State = "right"
		}
	}
	for _, e := range r.Evidence {
		i := slices.IndexFunc(d.Groups, func(g evidenceGroup) bool { return g.File == e.File })
		if i < 0 {
			i = len(d.Groups)
			d.Groups = append(d.Groups, evidenceGroup{File: e.File, Open: i == 0})
		}
		d.Groups[i].Lines = append(d.Groups[i].Lines, e)
	}
	for _, g := range d.Groups {
		slices.SortStableFunc(g.Lines, func(a, b Evidence) int { return cmp.Compare(a.Line, b.Line) })
	}
	return d
}

// picture is the timeline, drawn.
type picture struct {
	Width, Height int
	Lanes         []lane
	Ticks         []tick
	Marks         []dot
	Bottom        int
	Left          int
	Span          string
	Legend        []Part
}

type lane struct {
	Y     int
	Name  string
	Whole string
}

type tick struct {
	X    int
	Text string
}

type dot struct {
	X, Y  int
	Part  Part
	Label string
	Above int
	Title string
}

// Measures of the picture.
const (
	pictureWidth = 960
	laneHeight   = 44
	laneLeft     = 214
	laneRight    = 40
	lanesMost    = 16
)

// draw places events in one lane for each file, by time from left to right.
func draw(events []Event) *picture {
	if len(events) == 0 {
		return nil
	}
	p := &picture{Width: pictureWidth, Left: laneLeft}
	first, last := events[0].Time, events[len(events)-1].Time
	length := max(last.Sub(first), time.Second)
	laneOf := map[string]int{}
	var files []string
	for _, e := range events {
		if !slices.Contains(files, e.File) && len(files) < lanesMost {
			files = append(files, e.File)
		}
	}
	slices.Sort(files)
	for i, file := range files {
		laneOf[file] = 34 + i*laneHeight
		p.Lanes = append(p.Lanes, lane{laneOf[file], shortName(file), file})
	}
	p.Bottom = 34 + len(files)*laneHeight - 14
	p.Height = p.Bottom + 34
	room := pictureWidth - laneLeft - laneRight
	at := func(t time.Time) int { return laneLeft + int(float64(room)*float64(t.Sub(first))/float64(length)) }
	labelled := map[int]int{} // lane to the end of its last label
	for _, e := range events {
		y, ok := laneOf[e.File]
		if !ok {
			continue
		}
		d := dot{X: at(e.Time), Y: y, Part: e.Part, Title: fmt.Sprintf("%s %s %s:%d %s", e.Time.UTC().Format(stampLayout), e.Code, e.File, e.Line, e.Text)}
		if e.Code != "" && d.X >= labelled[y] {
			d.Label = string(e.Code)
			labelled[y] = d.X + 44
		}
		if len(p.Marks) == 0 || p.Marks[len(p.Marks)-1].X != d.X || p.Marks[len(p.Marks)-1].Y != d.Y {
			p.Marks = append(p.Marks, d)
		}
		if !slices.Contains(p.Legend, e.Part) {
			p.Legend = append(p.Legend, e.Part)
		}
	}
	slices.SortFunc(p.Legend, func(a, b Part) int { return cmp.Compare(slices.Index(parts, a), slices.Index(parts, b)) })
	layout := "15:04:05"
	if first.UTC().YearDay() != last.UTC().YearDay() || first.Year() != last.Year() {
		layout = "01-02 15:04"
	}
	for i := range 5 {
		moment := first.Add(length * time.Duration(i) / 4)
		p.Ticks = append(p.Ticks, tick{at(moment), moment.UTC().Format(layout)})
	}
	p.Span = fmt.Sprintf("%s to %s UTC", first.UTC().Format(stampLayout), last.UTC().Format(stampLayout))
	return p
}

// shortName is the end of a file's name that fits beside a lane.
func shortName(file string) string {
	name := file
	if folder := path.Base(path.Dir(file)); folder != "." && folder != "/" && folder != ".." {
		name = folder + "/" + path.Base(file)
	}
	const most = 24
	if runes := []rune(name); len(runes) > most {
		name = "…" + string(runes[len(runes)-most+1:])
	}
	return name
}

// parts are the parts of a story, the most important first.
var parts = []Part{First, Then, Other, History, Well}

// legend says what the parts are.
var legend = map[Part]string{First: "the first wrong thing", Then: "what followed", Other: "another matter", History: "over since", Well: "went well"}

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"legend": func(p Part) string { return legend[p] },
	"add":    func(a, b int) int { return a + b },
	"sure": func(s Sure) string {
		if s == Likely {
			return "likely"
		}
		return "certain"
	},
}).Parse(pageText))

const pageText = pageHead + `<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{{with .Verdict}}{{.Code}} {{.Title}}{{else}}Not decided{{end}}</title>
<style>
:root { color-scheme: light dark; --paper: #fbfaf8; --ink: #1d1f24; --soft: #5c6370; --line: #dcd9d2; --card: #ffffff;
  --wrong: #b3261e; --right: #1d7a4c; --unknown: #8a6100; --then: #c2700c; --other: #5b5fc7; --history: #8b929e; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e8e6e1; --soft: #a2a8b3; --line: #33373f; --card: #1e2127;
  --wrong: #ff8a7f; --right: #6fd3a0; --unknown: #f0c050; --then: #f2a65a; --other: #a7aaff; --history: #7a818d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header { border-left: 6px solid var(--tone); padding: .2rem 0 .3rem 1.25rem; margin-bottom: 2rem; }
.wrong { --tone: var(--wrong); } .right { --tone: var(--right); } .unknown { --tone: var(--unknown); }
header p.code { margin: 0; color: var(--tone); font-weight: 650; letter-spacing: .02em; }
h1 { margin: .1rem 0 .4rem; font-size: 1.75rem; line-height: 1.25; font-weight: 650; }
header p.cause { margin: 0; color: var(--soft); max-width: 46rem; }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; font-weight: 650; }
ol, ul { margin: 0; padding-left: 1.3rem; } li { margin: .3rem 0; overflow-wrap: anywhere; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .75rem; overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 40rem; height: auto; }
figcaption { color: var(--soft); font-size: .85rem; padding: .4rem .25rem 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
figcaption i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .35rem; }
svg text { font: 12px system-ui, "Segoe UI", Roboto, sans-serif; fill: var(--soft); }
svg .label { font-weight: 650; font-size: 11px; fill: var(--ink); }
svg line { stroke: var(--line); }
.first { fill: var(--wrong); background: var(--wrong); } .then { fill: var(--then); background: var(--then); } .other { fill: var(--other); background: var(--other); }
.history { fill: var(--history); background: var(--history); } .well { fill: var(--right); background: var(--right); }
details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin: .6rem 0; }
summary { cursor: pointer; padding: .6rem .9rem; font-weight: 600; overflow-wrap: anywhere; } summary span { color: var(--soft); font-weight: 400; }
table { border-collapse: collapse; width: 100%; } td { vertical-align: top; padding: .35rem .9rem; border-top: 1px solid var(--line); }
td.n { color: var(--soft); text-align: right; width: 4.5rem; font-variant-numeric: tabular-nums; }
td.t { font: 13px/1.5 ui-monospace, "Cascadia Mono", Consolas, Menlo, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
.soft { color: var(--soft); } footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; border-top: 1px solid var(--line); padding-top: .8rem; }
@media print { body { background: none; } details:not([open]) > *:not(summary) { display: block; } main { padding: 0; } }
</style>
</head>
<body>
<main>
<header class="{{.State}}">
{{- with .Verdict}}
<p class="code">{{.Code}} · {{sure .Sure}}</p>
<h1>{{.Title}}</h1>
<p class="cause">{{$.Entry.Cause}}</p>
{{- else}}
<p class="code">not decided</p>
<h1>The lines do not decide what is wrong</h1>
<p class="cause">What was looked at, and what is missing for a verdict, is below.</p>
{{- end}}
</header>
{{- with .Remedy}}
<section>
<h2>What to do</h2>
<ol>{{range .}}<li>{{.}}</li>{{end}}</ol>
{{- with $.Entry.Confirm}}<p class="soft">It helped when: {{.}}</p>{{end}}
</section>
{{- end}}
{{- with .Picture}}
<section>
<h2>When it happened</h2>
<figure>
<svg viewBox="0 0 {{.Width}} {{.Height}}" role="img" aria-label="Timeline, {{.Span}}">
{{- $p := .}}
{{- range .Ticks}}
<line x1="{{.X}}" y1="14" x2="{{.X}}" y2="{{$p.Bottom}}" stroke-dasharray="2 4"/><text x="{{.X}}" y="{{add $p.Bottom 20}}" text-anchor="middle">{{.Text}}</text>
{{- end}}
{{- range .Lanes}}
<line x1="{{$p.Left}}" y1="{{.Y}}" x2="{{add $p.Width -40}}" y2="{{.Y}}"/><text x="{{add $p.Left -14}}" y="{{add .Y 4}}" text-anchor="end">{{.Name}}<title>{{.Whole}}</title></text>
{{- end}}
{{- range .Marks}}
<circle class="{{.Part}}" cx="{{.X}}" cy="{{.Y}}" r="6"><title>{{.Title}}</title></circle>
{{- end}}
{{- range .Marks}}{{if .Label}}
<text class="label" x="{{.X}}" y="{{add .Y -11}}" text-anchor="middle">{{.Label}}</text>{{end}}
{{- end}}
</svg>
<figcaption><span>{{.Span}}</span>{{range .Legend}}<span><i class="{{.}}"></i>{{legend .}}</span>{{end}}</figcaption>
</figure>
</section>
{{- end}}
{{- with .Groups}}
<section>
<h2>What shows it</h2>
{{- range .}}
<details{{if .Open}} open{{end}}><summary>{{.File}} <span>{{len .Lines}} {{if eq (len .Lines) 1}}line{{else}}lines{{end}}</span></summary>
<table>{{range .Lines}}<tr><td class="n">{{.Line}}</td><td class="t">{{.Text}}</td></tr>{{end}}</table></details>
{{- end}}
</section>
{{- end}}
{{- with .Followed}}
<section><h2>What followed</h2><ul>{{range .}}<li>{{.}}</li>{{end}}</ul></section>
{{- end}}
{{- with .Others}}
<section><h2>Seen as well</h2><ul>{{range .}}<li>{{.Code}} {{.Title}} <span class="soft">({{$.Standing .}})</span></li>{{end}}</ul></section>
{{- end}}
{{- with .Undecided}}
<section><h2>Not decided</h2><ul>{{range .}}<li>{{.}}</li>{{end}}</ul></section>
{{- end}}
{{- with .Looked}}
<section><details><summary>What was read <span>{{len .}}</span></summary><table>{{range .}}<tr><td class="t">{{.}}</td></tr>{{end}}</table></details></section>
{{- end}}
<footer>Written by postern explain. The page holds everything it shows; it loads nothing and runs nothing.</footer>
</main>
</body>
</html>
`
