package diag

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
)

func TestRunTellsEachFindingInOrder(t *testing.T) {
	var told []string
	checks := []Check{
		{Name: "first", Run: func(context.Context) []Finding { return []Finding{Good("it works", "as %s", "meant")} }},
		{Name: "second", Run: func(context.Context) []Finding {
			return []Finding{Found(Warn, catalog.CheckClockDrift, "by 70 s"), Found(Fail, catalog.CheckClockSkew, "by 400 s")}
		}},
		{Name: "third", Run: func(context.Context) []Finding { return []Finding{NotLooked("the second failed")} }},
	}
	findings := Run(t.Context(), checks, func(f Finding) { told = append(told, f.Check+" "+string(f.State)) })
	if want := []string{"first pass", "second warn", "second fail", "third skipped"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	if !Failed(findings) || Failed(findings[:2]) {
		t.Errorf("failed %v of all and %v of the first two, want true and false", Failed(findings), Failed(findings[:2]))
	}
	if got := Codes(findings, Warn, Fail); !slices.Equal(got, []catalog.Code{catalog.CheckClockDrift, catalog.CheckClockSkew}) {
		t.Errorf("codes %v", got)
	}
	if got := Summary(findings); got != "1 ok, 1 warnings, 1 failed, 1 not told" {
		t.Errorf("summary %q", got)
	}
}

func TestRunSkipsWhatComesAfterTheTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	findings := Run(ctx, []Check{
		{Name: "first", Run: func(context.Context) []Finding { cancel(); return nil }},
		{Name: "second", Run: func(context.Context) []Finding { t.Error("it ran"); return nil }},
	}, nil)
	if len(findings) != 1 || findings[0].Check != "second" || findings[0].State != Skipped {
		t.Errorf("findings %+v", findings)
	}
}

func TestFromError(t *testing.T) {
	coded := catalog.Wrap(catalog.CheckKDCUnreachable, errors.New("refused"), "kdc1")
	if f := FromError(Fail, coded, catalog.CheckKDCRefused); f.Code != catalog.CheckKDCUnreachable || f.Detail != "kdc1: refused" || len(f.Remedy) == 0 {
		t.Errorf("a catalogued error: %+v", f)
	}
	if f := FromError(Fail, errors.New("else"), catalog.CheckKDCRefused); f.Code != catalog.CheckKDCRefused || f.Detail != "else" {
		t.Errorf("another error: %+v", f)
	}
}

// What scripts read and what a person reads.
func TestFormsOfAFinding(t *testing.T) {
	f := Found(Fail, catalog.CheckClockSkew, "first\nsecond \x1b[31mred")
	f.Check, f.Took = "clock", 1500*time.Millisecond
	f.Remedy = []string{"do one", "do two"}
	encoded, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"check":"clock","state":"fail","code":"P905","title":"The clocks differ by more than five minutes","detail":"first\nsecond \u001b[31mred","remedy":["do one","do two"],"took_ms":1500}`
	if string(encoded) != want {
		t.Errorf("JSON\n%s\nwant\n%s", encoded, want)
	}
	var text strings.Builder
	Write(&text, f)
	want = `FAIL  clock           1500 ms  P905 The clocks differ by more than five minutes
                             first
                             second ?[31mred
                             do: do one
                                 do two
`
	if text.String() != want {
		t.Errorf("text\n%s\nwant\n%s", text.String(), want)
	}
}
