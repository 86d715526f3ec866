package catalog

import (
	"cmp"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
)

//go:generate go run ./gen

// Code names one entry of the catalogue: "P" and three digits for what Postern
// itself says, "E" and three digits for a symptom that the documents of the
// original product describe. The empty code means "none".
type Code string

// Severity says how much an entry matters to the person who reads it.
type Severity string

// The three severities of an entry.
const (
	SeverityInfo    Severity = "info"    // healthy, or harmless
	SeverityWarning Severity = "warning" // works, but not for long or not as meant
	SeverityError   Severity = "error"   // something a user wanted did not happen
)

// Entry is one thing that can go wrong. Remedy is a list of steps in the order in
// which a person follows them.
type Entry struct {
	Code     Code     `yaml:"code"`
	Name     string   `yaml:"name"` // the Go constant
	Severity Severity `yaml:"severity"`
	Title    string   `yaml:"title"` // one sentence without a full stop
	Looks    []string `yaml:"looks"` // log lines, status lines, messages
	Where    []string `yaml:"where"` // the logs and surfaces that show them
	Cause    string   `yaml:"cause"`
	Remedy   []string `yaml:"remedy"`
	Confirm  string   `yaml:"confirm"` // how to know that the remedy helped
	Source   string   `yaml:"source"`  // where the fact is from
	See      []Code   `yaml:"see"`     // related entries, may be empty
	Status   int      `yaml:"status"`  // HTTP status when it is answered over HTTP, else 0
}

// Area is one file of the catalogue: entries that one part of Postern owns, in a
// range of codes of its own.
type Area struct {
	Name    string
	Entries []Entry // sorted by code
	Err     error   // what is wrong with the file, nil when it may be used
}

// Lookup returns the entry of a code. It is safe for concurrent use.
func Lookup(code Code) (Entry, bool) {
	entry, ok := load().byCode[code]
	return entry, ok
}

// All returns every entry, sorted by code. The slice is the caller's.
func All() []Entry { return slices.Clone(load().all) }

// Areas returns the catalogue file by file, sorted by name, each with what is
// wrong in it. It is for the generator and for tests; others use [Lookup] and [All].
func Areas() []Area { return slices.Clone(load().areas) }

//go:embed data/*.yaml
var data embed.FS

// table is the parsed catalogue.
type table struct {
	areas  []Area
	all    []Entry
	byCode map[Code]Entry
}

// load parses the embedded files once. An area with a mistake in it is left out of
// the lookups, so that a mistake in one file is not an outage; tests refuse it.
var load = sync.OnceValue(func() table {
	return newTable(readAreas(data))
})

func newTable(areas []Area) table {
	check(areas)
	t := table{areas: areas, byCode: map[Code]Entry{}}
	for _, area := range areas {
		if area.Err != nil {
			continue
		}
		for _, entry := range area.Entries {
			t.all = append(t.all, entry)
			t.byCode[entry.Code] = entry
		}
	}
	slices.SortFunc(t.all, func(a, b Entry) int { return cmp.Compare(a.Code, b.Code) })
	return t
}

// readAreas parses data/*.yaml of fsys.
func readAreas(fsys fs.FS) []Area {
	names, err := fs.Glob(fsys, "data/*.yaml")
	if err != nil {
		panic("catalog: " + err.Error()) // the pattern is a constant
	}
	slices.Sort(names)
	areas := make([]Area, 0, len(names))
	for _, name := range names {
		areas = append(areas, readArea(fsys, name))
	}
	return areas
}

func readArea(fsys fs.FS, name string) Area {
	area := Area{Name: strings.TrimSuffix(path.Base(name), ".yaml")}
	file, err := fsys.Open(name)
	if err != nil {
		area.Err = fmt.Errorf("open %s: %w", name, err)
		return area
	}
	defer file.Close()
	decoder := yaml.NewDecoder(file)
	decoder.KnownFields(true)
	if err := decoder.Decode(&area.Entries); err != nil {
		area.Err = fmt.Errorf("parse %s: %w", name, err)
		area.Entries = nil
		return area
	}
	slices.SortFunc(area.Entries, func(a, b Entry) int { return cmp.Compare(a.Code, b.Code) })
	return area
}

// ranges are the codes that each area owns, first and last.
var ranges = map[string][2]Code{
	"explain":      {"P000", "P009"},
	"wire":         {"P100", "P149"},
	"message":      {"P150", "P199"},
	"token":        {"P200", "P299"},
	"registration": {"P300", "P349"},
	"mp":           {"P350", "P399"},
	"gateway":      {"P400", "P449"},
	"connector":    {"P450", "P499"},
	"tunnel":       {"P500", "P549"},
	"client":       {"P550", "P649"},
	"policy":       {"P650", "P699"},
	"site":         {"P700", "P749"},
	"operation":    {"P750", "P799"},
	"store":        {"P800", "P829"},
	"inbox":        {"P830", "P849"},
	"kerberos":     {"P850", "P899"},
	"check":        {"P900", "P939"},
	"entra":        {"P940", "P969"},
	"revocation":   {"P970", "P989"},
	"entraclient":  {"P990", "P998"},
	"keys":         {"P010", "P021"},
	"swarm":        {"P084", "P087"},
	"analyze":      {"P088", "P099"},
	"return":       {"P022", "P031"},
	"roaming":      {"P032", "P039"},
	"revoke":       {"P040", "P053"},
	"audit":        {"P068", "P083"},
	"possession":   {"P054", "P067"},
	"sources":      {"E001", "E162"},
}

var (
	codeForm = regexp.MustCompile(`^[PE][0-9]{3}$`)
	nameForm = regexp.MustCompile(`^[A-Z][A-Za-z0-9]+$`)
)

// check sets Err of every area that breaks a rule of the catalogue.
func check(areas []Area) {
	codes, names := map[Code]string{}, map[string]string{}
	for i := range areas {
		for _, entry := range areas[i].Entries {
			areas[i].Err = errors.Join(areas[i].Err,
				checkEntry(areas[i].Name, entry),
				checkTaken(codes, entry.Code, areas[i].Name),
				checkTaken(names, entry.Name, areas[i].Name))
		}
	}
}

func checkTaken[K ~string](taken map[K]string, key K, area string) error {
	if other, ok := taken[key]; ok {
		return fmt.Errorf("%s is already taken in area %s", key, other)
	}
	taken[key] = area
	return nil
}

func checkEntry(area string, e Entry) error {
	rules := []struct {
		ok   bool
		what string
	}{
		{codeForm.MatchString(string(e.Code)), "code is not P or E and three digits"},
		{inRange(area, e.Code), "code is outside the range of area " + area},
		{nameForm.MatchString(e.Name), "name is not an exported Go name"},
		{slices.Contains([]Severity{SeverityInfo, SeverityWarning, SeverityError}, e.Severity), "severity is not info, warning or error"},
		{filled(e.Title), "title is empty"},
		{!strings.HasSuffix(e.Title, "."), "title ends with a full stop"},
		{filled(e.Looks...), "looks is empty"},
		{filled(e.Where...), "where is empty"},
		{filled(e.Cause), "cause is empty"},
		{filled(e.Remedy...), "remedy is empty"},
		{filled(e.Confirm), "confirm is empty"},
		{filled(e.Source), "source is empty"},
		{e.Status == 0 || e.Status >= 200 && e.Status <= 599, "status is not an HTTP status"},
	}
	var broken error
	for _, rule := range rules {
		if !rule.ok {
			broken = errors.Join(broken, fmt.Errorf("%s %s: %s", e.Code, e.Name, rule.what))
		}
	}
	return broken
}

func inRange(area string, code Code) bool {
	owned, ok := ranges[area]
	return ok && code >= owned[0] && code <= owned[1]
}

func filled(values ...string) bool {
	return len(values) > 0 && !slices.ContainsFunc(values, func(s string) bool { return strings.TrimSpace(s) == "" })
}
