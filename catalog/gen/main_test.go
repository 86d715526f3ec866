package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"postern/catalog"
)

// What is in the repository is what the generator writes; otherwise run
// `go generate ./catalog`.
func TestGeneratedFilesAreCurrent(t *testing.T) {
	want, err := outputs("..", catalog.Areas())
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob("../codes_*.go")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]byte{}
	for _, path := range paths {
		if got[filepath.Base(path)], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if g, w := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(g, w) {
		t.Errorf("got files %v, want %v", g, w)
	}
	for name := range want {
		if string(got[name]) != string(want[name]) {
			t.Errorf("%s is not current", name)
		}
	}
}

func TestThePageOfErrorsIsCurrent(t *testing.T) {
	got, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(errorsPage(catalog.Areas())) {
		t.Error("docs/errors.md is not current")
	}
}

func TestEveryAreaHasItsHeading(t *testing.T) {
	for _, area := range catalog.Areas() {
		if !slices.ContainsFunc(headings, func(h heading) bool { return h.area == area.Name }) {
			t.Errorf("area %s has no heading on the page", area.Name)
		}
	}
}

func TestAnAreaWithAMistakeKeepsItsFile(t *testing.T) {
	entry := catalog.Entry{Code: "P100", Name: "Lookup", Title: "x"}
	files, err := outputs("..", []catalog.Area{
		{Name: "wire", Entries: []catalog.Entry{entry}},
		{Name: "token", Entries: []catalog.Entry{{Code: "P200", Name: "Fine", Title: "Two\nlines"}}},
		{Name: "site", Err: os.ErrInvalid},
	})
	if err == nil || !strings.Contains(err.Error(), "area wire, not written") || !strings.Contains(err.Error(), "area site, not written") {
		t.Errorf("got %v", err)
	}
	if len(files) != 1 || !strings.Contains(string(files["codes_token.go"]), "\t// Fine: Two lines.\n\tFine Code = \"P200\"\n") {
		t.Errorf("got %s", files)
	}
}

func TestRunWritesAndRemoves(t *testing.T) {
	folder := t.TempDir()
	stale, docs := filepath.Join(folder, "codes_weather.go"), filepath.Join(folder, "docs", "errors.md")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(folder, docs); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Error("the constants of an area that is gone are still there")
	}
	for _, path := range []string{docs, filepath.Join(folder, "codes_operation.go")} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}
