package lab_test

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern/internal/lab"
)

// revokedWithin is how soon a block is to be felt; what is measured here is one device at one gateway.
const revokedWithin = 5 * time.Second

func TestEveryStepOfTheLifeStoryIsOK(t *testing.T) {
	t.Parallel()
	story, err := lab.FindStory("life")
	if err != nil {
		t.Fatal(err)
	}
	l, err := story.Start(t.Context(), lab.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Stop(); err != nil {
			t.Error(err)
		}
	}()
	if err := l.Tell(t.Context(), story); err != nil {
		t.Fatal(err)
	}
	hops, text := map[string]int{}, ""
	for _, step := range l.Steps() {
		hops[step.Hop]++
		text += step.Hop + ": " + step.What + "\n"
		if !step.OK || step.Code != "" || step.Error != "" || step.What == "" || step.MS < 0 {
			t.Errorf("step %+v is not ok", step)
		}
	}
	for _, hop := range []string{"site", "management point", "gateway", "connector", "tunnel", "administrator", "device laptop1"} {
		if hops[hop] == 0 {
			t.Errorf("no step at %s: %v", hop, slices.Sorted(maps.Keys(hops)))
		}
	}
	at := 0
	for _, want := range []string{"way inside", "leaves", "CCM token by self-prove token", "way internet", "self-prove token by self-prove token", "blocked it", "refuses it", "unblocked it", "is let in again",
		"365 days", "CCM token by assertion of the registered key", "to prove the device afresh", "device.quarantine", "comes home", "way inside: the management point answers"} {
		next := strings.Index(text[at:], want)
		if next < 0 {
			t.Fatalf("%q is missing, or not in its place:\n%s", want, text)
		}
		at += next
	}
	found := regexp.MustCompile(`refuses it ([0-9.]+) s after`).FindStringSubmatch(text)
	if took, err := strconv.ParseFloat(found[1], 64); err != nil || took > (revokedWithin*slowness).Seconds() {
		t.Errorf("refused after %s s, want %s", found[1], revokedWithin)
	}
}
