package site_test

import (
	"encoding/json"
	"testing"

	"pgregory.net/rapid"

	"postern/site"
)

func TestFactsJSONIsWhatTheLibraryWrites(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ -~]{0,40}`), rapid.StringMatching(`[a-z0-9.-]{0,40}`))
	rapid.Check(t, func(t *rapid.T) {
		facts := rapid.MapOfN(text, text, 0, 24).Draw(t, "facts")
		want, err := json.Marshal(facts)
		if err != nil {
			t.Fatal(err)
		}
		if got := site.FactsJSON(facts); got != string(want) {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}
