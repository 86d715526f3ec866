package lab_test

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern/catalog"
	"postern/ccm"
	"postern/internal/lab"
	"postern/proof"
	"postern/site"
)

// upWithin is the promise of a lab after the build; the race detector and a busy machine get more.
const upWithin = 3 * time.Second

func TestLabIsUpWithinSeconds(t *testing.T) {
	began := time.Now()
	newWorld(t)
	if took := time.Since(began); took > upWithin*slowness {
		t.Errorf("the lab was up after %s, want %s", took, upWithin)
	}
}

func TestEveryStepOfTheEnrolStoryIsOK(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	story, err := lab.FindStory("enrol")
	w.must(err)
	w.must(story.Ready())
	w.must(w.Tell(t.Context(), story))
	hops := map[string]int{}
	for _, step := range w.Steps() {
		hops[step.Hop]++
		if !step.OK || step.Code != "" || step.Error != "" || step.What == "" || step.MS < 0 {
			t.Errorf("step %+v is not ok", step)
		}
	}
	for _, hop := range []string{"site", "management point", "gateway", "connector", "tunnel", "administrator", "device laptop1"} {
		if hops[hop] == 0 {
			t.Errorf("no step at %s: %v", hop, slices.Sorted(maps.Keys(hops)))
		}
	}
	devices, err := w.Site().Devices(t.Context(), site.DeviceFilter{})
	w.must(err)
	if len(devices) != 1 || devices[0].Approval.Status != ccm.ApprovalApproved || devices[0].Approval.Level != proof.LevelManaged || devices[0].Name() != "laptop1" {
		t.Errorf("the site knows %+v, want laptop1, approved and managed", devices)
	}
	if _, err := w.Site().VerifyTrustLog(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestFailedStepSaysWhy: a step that fails has its code and its text at every hop that knows, and nothing after it.
func TestFailedStepSaysWhy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw, kept := w.bulk(1)
	_, err := w.Site().BlockBulkToken(t.Context(), kept.ID, true, "test", "try it")
	w.must(err)
	w.settled()
	if err := w.Enrol(t.Context(), "refused", raw); catalog.CodeOf(err) != catalog.TokenBlocked {
		t.Errorf("enrol: %v, want %s", err, catalog.TokenBlocked)
	}
	told := map[string]bool{}
	for _, step := range w.Steps() {
		if step.OK {
			continue
		}
		told[step.Hop] = true
		if step.Code != string(catalog.TokenBlocked) || step.Error == "" || strings.Contains(step.Error, raw) {
			t.Errorf("failed step %+v, want code %s and a text", step, catalog.TokenBlocked)
		}
	}
	if !told["gateway"] || !told["device refused"] {
		t.Errorf("failed steps at %v, want the gateway and the device", told)
	}
}

func TestUnknownStoryIsRefused(t *testing.T) {
	if _, err := lab.FindStory("nonsense"); err == nil || !strings.Contains(err.Error(), "enrol") {
		t.Errorf("FindStory: %v, want an error that names the stories", err)
	}
}

// TestOnceAndJSON runs the lab as a person does.
func TestOnceAndJSON(t *testing.T) {
	t.Parallel()
	out, stderr, code := run(t, "lab", "--json")
	if code != 0 || stderr != "" {
		t.Fatalf("lab --json: exit %d, standard error %q", code, stderr)
	}
	var report map[string]any
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("standard output is not one JSON document: %v\n%s", err, out)
	}
	steps, _ := report["steps"].([]any)
	if report["ok"] != true || len(steps) < 10 {
		t.Fatalf("ok %v with %d steps", report["ok"], len(steps))
	}
	for _, s := range steps {
		step := s.(map[string]any)
		_, hop := step["hop"].(string)
		_, what := step["what"].(string)
		_, took := step["ms"].(float64)
		if !hop || !what || !took || step["ok"] != true || step["code"] != nil || step["error"] != nil {
			t.Errorf("step %v", step)
		}
	}

	out, stderr, code = run(t, "lab", "--once")
	if code != 0 || stderr != "" || !strings.Contains(out, "Every step went well.") || strings.Contains(out, "FAIL") {
		t.Errorf("lab --once: exit %d, %q\n%s", code, stderr, out)
	}
	if _, stderr, code = run(t, "lab", "--story", "nonsense"); code == 0 || !strings.Contains(stderr, "enrol") {
		t.Errorf("lab --story nonsense: exit %d, %q", code, stderr)
	}
}

// TestStopLeavesNothing: no goroutine, and no folder when it was a temporary one.
func TestStopLeavesNothing(t *testing.T) {
	before := goleak.IgnoreCurrent()
	l, err := lab.Start(t.Context(), lab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	story, err := lab.FindStory("enrol")
	if err == nil {
		err = l.Tell(t.Context(), story)
	}
	if err != nil {
		t.Error(err)
	}
	if err := l.Stop(); err != nil {
		t.Error(err)
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(l.Dir); !os.IsNotExist(err) {
		t.Errorf("the temporary folder %s is still there", l.Dir)
	}
}

// TestFailedStartLeavesNothing: a folder that holds a site is refused, left as it is, and nothing keeps running.
func TestFailedStartLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	first, err := lab.Start(t.Context(), lab.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Stop()
	before := goleak.IgnoreCurrent()
	if _, err := lab.Start(t.Context(), lab.Options{Dir: dir}); err == nil {
		t.Error("a second lab started in the folder of the first")
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

func TestEveryStepOfTheCloudStoriesIsOK(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][]string{
		"entra": {"stand-in", "Validated AAD token. TokenType: Device", "approval status 3, level managed", "of another tenant is refused (P", "disabled the tenant"},
		"pki":   {"approval status 2, level managed", "has a certificate that the company revoked, and is refused (P979)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			story, err := lab.FindStory(name)
			if err != nil {
				t.Fatal(err)
			}
			l, err := story.Start(t.Context(), lab.Options{Dir: t.TempDir(), HTTP: true})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Stop()
			if err := l.Tell(t.Context(), story); err != nil {
				t.Error(err)
			}
			var told strings.Builder
			for _, step := range l.Steps() {
				told.WriteString(strings.ToLower(step.Hop + " " + step.What + "\n"))
				if !step.OK || step.Code != "" || step.Error != "" {
					t.Errorf("step %+v is not ok", step)
				}
			}
			for _, text := range want {
				if !strings.Contains(told.String(), strings.ToLower(text)) {
					t.Errorf("the story does not tell %q:\n%s", text, told.String())
				}
			}
		})
	}
}
