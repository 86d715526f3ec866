package diag

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"postern/catalog"
)

// State is how a finding came out.
type State string

// The states of a finding.
const (
	Pass    State = "pass"
	Warn    State = "warn"    // works, but not for long or not as meant
	Fail    State = "fail"    // does not work
	Skipped State = "skipped" // could not be told
)

// Patience is how long a diagnosis waits for one exchange where nobody says another time.
const Patience = 5 * time.Second

// Check is one thing that a diagnosis looks at.
type Check struct {
	Name string // short, for the table
	What string // one sentence: what is looked at
	// Run looks. What it learned for later checks it keeps where those find it. It
	// returns soon after ctx ends.
	Run func(ctx context.Context) []Finding
}

// Finding is one thing that a check has found.
type Finding struct {
	Check  string
	State  State
	Code   catalog.Code // "" for a pass, and for what was skipped only because an earlier check failed
	Title  string       // one sentence without a full stop
	Detail string       // the particulars: names, numbers, addresses
	Remedy []string     // in the order in which a person follows them
	Took   time.Duration
}

// MarshalJSON writes the finding with the names that scripts may rely on.
func (f Finding) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Check  string       `json:"check"`
		State  State        `json:"state"`
		Code   catalog.Code `json:"code,omitempty"`
		Title  string       `json:"title"`
		Detail string       `json:"detail,omitempty"`
		Remedy []string     `json:"remedy,omitempty"`
		TookMS int64        `json:"took_ms"`
	}{f.Check, f.State, f.Code, f.Title, f.Detail, f.Remedy, f.Took.Milliseconds()})
}

// Good returns a pass.
func Good(title, detail string, arguments ...any) Finding {
	return Finding{State: Pass, Title: title, Detail: fmt.Sprintf(detail, arguments...)}
}

// Found returns a finding whose title and remedy are the catalogue's.
func Found(state State, code catalog.Code, detail string, arguments ...any) Finding {
	entry, _ := catalog.Lookup(code)
	return Finding{State: state, Code: code, Title: entry.Title, Detail: fmt.Sprintf(detail, arguments...), Remedy: entry.Remedy}
}

// FromError returns a finding for an error of the catalogue; for any other error it has
// the code other. What the error wraps is part of the detail: a diagnosis is read by
// the person whose machine it is.
func FromError(state State, err error, other catalog.Code) Finding {
	var coded *catalog.Error
	if !errors.As(err, &coded) {
		return Found(state, other, "%v", err)
	}
	detail := coded.Detail
	if coded.Err != nil {
		detail = strings.TrimPrefix(detail+": "+coded.Err.Error(), ": ")
	}
	return Found(state, coded.Code, "%s", detail)
}

// NotLooked returns what a check says that needs what an earlier one did not get.
func NotLooked(because string, arguments ...any) Finding {
	return Finding{State: Skipped, Title: "not looked at", Detail: fmt.Sprintf(because, arguments...)}
}

// Run runs the checks in order and returns all findings. Each is told as soon as its
// check has ended, so that a person sees how far the diagnosis is. Checks that did not
// come to run because ctx ended are skipped.
func Run(ctx context.Context, checks []Check, tell func(Finding)) []Finding {
	var all []Finding
	for _, check := range checks {
		for _, finding := range runOne(ctx, check) {
			finding.Check = cmp.Or(finding.Check, check.Name)
			all = append(all, finding)
			if tell != nil {
				tell(finding)
			}
		}
	}
	return all
}

func runOne(ctx context.Context, check Check) []Finding {
	if ctx.Err() != nil {
		return []Finding{NotLooked("the time for the whole diagnosis had passed")}
	}
	began := time.Now()
	findings := check.Run(ctx)
	took := time.Since(began)
	for i := range findings {
		findings[i].Took = cmp.Or(findings[i].Took, took)
	}
	return findings
}

// Failed says whether any finding is a fail.
func Failed(findings []Finding) bool {
	return slices.ContainsFunc(findings, func(f Finding) bool { return f.State == Fail })
}

// Codes returns the codes of the findings that are in one of the states, in order.
func Codes(findings []Finding, states ...State) []catalog.Code {
	var codes []catalog.Code
	for _, f := range findings {
		if f.Code != "" && slices.Contains(states, f.State) {
			codes = append(codes, f.Code)
		}
	}
	return codes
}

// Write writes one finding as a row of the table that a person reads: how it came out, what
// was looked at, the time that it took, the particulars, and what to do. Control characters
// in what others sent are shown, not obeyed.
func Write(w io.Writer, f Finding) {
	mark := map[State]string{Pass: "ok  ", Warn: "WARN", Fail: "FAIL", Skipped: "--  "}[f.State]
	title := f.Title
	if f.Code != "" {
		title = string(f.Code) + " " + title
	}
	if f.State == Skipped && f.Detail != "" && !strings.Contains(f.Detail, "\n") {
		title, f.Detail = title+": "+f.Detail, ""
	}
	const lead = 29
	fmt.Fprintf(w, "%s  %-14s%6d ms  %s\n", mark, Printable(f.Check), f.Took.Milliseconds(), Printable(title))
	for line := range strings.Lines(strings.TrimRight(f.Detail, "\n")) {
		fmt.Fprintf(w, "%*s%s\n", lead, "", Printable(strings.TrimRight(line, "\n")))
	}
	for i, step := range f.Remedy {
		fmt.Fprintf(w, "%*s%s%s\n", lead, "", map[bool]string{true: "do: ", false: "    "}[i == 0], strings.Join(strings.Fields(step), " "))
	}
}

// Summary counts the findings in one line.
func Summary(findings []Finding) string {
	count := map[State]int{}
	for _, f := range findings {
		count[f.State]++
	}
	return fmt.Sprintf("%d ok, %d warnings, %d failed, %d not told", count[Pass], count[Warn], count[Fail], count[Skipped])
}

// Printable shows the control characters of what others sent, what formats or reorders
// text, and what is no UTF-8, as question marks. A terminal or a page then writes one line
// and obeys nothing.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}
