package postern_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// importTable says for each package what it may import of ours, which outside
// libraries it may use ("any" where that is free), and what it must never import.
// A package below one of these, without a row of its own, belongs to that row.
// The reasons are in docs/architecture.md.
const importTable = `
package         | of ours                     | libraries                      | never
catalog         |                             | go.yaml.in/yaml/v3             |
catalog/gen     | catalog                     |                                |
logfile         |                             |                                | net/http
keyfile         |                             | golang.org/x/crypto            | net/http
ccm             | catalog                     | golang.org/x/text              |
proof           | ccm                         |                                | net/http
tunnel          | catalog                     | golang.org/x                   |
revocation      | catalog                     | golang.org/x/crypto            |
token           | ccm proof catalog           | github.com/go-jose/go-jose/v4  | net/http database/sql
site            | ccm proof catalog token     | golang.org/x                   | net/http database/sql
site/storetest  | site vocabulary             | any                            | net/http
store           | site vocabulary             | any                            | net/http
inbox           | site vocabulary             | any                            | net/http
auth            | vocabulary                  | any                            | database/sql
auth/kerberos   | auth vocabulary             | any                            | database/sql
auth/entra      | auth vocabulary             | any                            | database/sql
mp              | site inbox auth vocabulary  | any                            | database/sql
gateway         | auth vocabulary             | any                            | database/sql
connector       | auth vocabulary             | any                            | database/sql
client          | vocabulary                  | any                            | database/sql
client/kerberos | client vocabulary           | any                            | database/sql
client/entra    | client vocabulary           | any                            | database/sql
diag            | client vocabulary           | any                            | database/sql
diag/kerberos   | diag client vocabulary      | any                            | database/sql
diag/analyze    | diag client vocabulary      | any                            | database/sql
diag/preflight  | diag diag/analyze client vocabulary | any                            | database/sql
console         | site diag vocabulary        | any                            | database/sql
internal/role   | all                         | any                            |
internal/realms | catalog                     | any                            |
internal/issuer | proof token catalog         | any                            |
internal/authority | catalog                  | any                            |
internal/lab    | all                         | any                            |
internal/swarm  | all                         | any                            |
cmd/postern     | all                         | any                            |
bench           | all                         | any                            |
`

// vocabulary is what every package above it may import.
var vocabulary = []string{"ccm", "proof", "catalog", "token", "tunnel", "revocation", "logfile", "keyfile"}

// farFrom says what a package must not reach even through others: the public edge can
// hold no device database.
var farFrom = map[string][]string{
	"gateway":   {"site", "store", "mp"},
	"connector": {"site", "store", "mp"},
	"client":    {"site", "store", "mp", "inbox", "auth", "gateway", "connector"},
}

type row struct {
	ours, libraries, never []string
}

func readImportTable(t *testing.T) map[string]row {
	t.Helper()
	rows := map[string]row{}
	for line := range strings.Lines(strings.TrimSpace(importTable)) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 {
			t.Fatalf("row %q has %d cells", line, len(cells))
		}
		ours := strings.Fields(cells[1])
		if slices.Contains(ours, "vocabulary") {
			ours = append(ours, vocabulary...)
		}
		rows[strings.TrimSpace(cells[0])] = row{ours, strings.Fields(cells[2]), strings.Fields(cells[3])}
	}
	delete(rows, "package")
	return rows
}

// rowOf returns the name of the row that a package belongs to, or "".
func rowOf(rows map[string]row, pkg string) string {
	for name := pkg; name != "."; name = path.Dir(name) {
		if _, ok := rows[name]; ok {
			return name
		}
	}
	return ""
}

// sourcePackage is a package as its files show it, without its tests.
type sourcePackage struct {
	files   []*ast.File
	imports map[string]bool
}

// module parses every package of the module by its folder; "." is the root. Files of
// other platforms are read too.
func module(t *testing.T) (map[string]*sourcePackage, *token.FileSet) {
	t.Helper()
	packages, positions := map[string]*sourcePackage{}, token.NewFileSet()
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != "." && (entry.Name() == "testdata" || strings.HasPrefix(entry.Name(), ".") || strings.HasPrefix(entry.Name(), "_")):
			return filepath.SkipDir
		case entry.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		return addFile(packages, positions, name)
	})
	if err != nil {
		t.Fatal(err)
	}
	return packages, positions
}

func addFile(packages map[string]*sourcePackage, positions *token.FileSet, name string) error {
	file, err := parser.ParseFile(positions, name, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	dir := filepath.ToSlash(filepath.Dir(name))
	pkg := packages[dir]
	if pkg == nil {
		pkg = &sourcePackage{imports: map[string]bool{}}
		packages[dir] = pkg
	}
	pkg.files = append(pkg.files, file)
	for _, imported := range file.Imports {
		pkg.imports[strings.Trim(imported.Path.Value, `"`)] = true
	}
	return nil
}

func TestPackagesImportWhatTheTableAllows(t *testing.T) {
	rows := readImportTable(t)
	packages, _ := module(t)
	for _, name := range slices.Sorted(maps.Keys(packages)) {
		if name == "." {
			continue
		}
		own := rowOf(rows, name)
		if own == "" {
			t.Errorf("%s is not in the import table", name)
			continue
		}
		for _, imported := range slices.Sorted(maps.Keys(packages[name].imports)) {
			if reason := refusal(rows, own, imported); reason != "" {
				t.Errorf("%s imports %s: %s", name, imported, reason)
			}
		}
	}
}

// refusal returns why a package of the row own may not import a path, or "".
func refusal(rows map[string]row, own, imported string) string {
	allowed := rows[own]
	if within(imported, allowed.never) {
		return "the table says never"
	}
	target, ours := strings.CutPrefix(imported, "postern/")
	switch {
	case ours:
		if row := rowOf(rows, target); row != own && !slices.Contains(allowed.ours, row) && !slices.Contains(allowed.ours, "all") {
			return fmt.Sprintf("the table allows %v", allowed.ours)
		}
	case strings.Contains(strings.Split(imported, "/")[0], "."):
		if !within(imported, allowed.libraries) && !slices.Contains(allowed.libraries, "any") {
			return fmt.Sprintf("the table allows the libraries %v", allowed.libraries)
		}
	}
	return ""
}

func TestTheTableRefuses(t *testing.T) {
	rows := readImportTable(t)
	tests := []struct {
		pkg, imported string
		allowed       bool
	}{
		{"gateway", "postern/auth", true},
		{"gateway", "postern/token", true},
		{"gateway", "postern/site", false},
		{"gateway", "postern/auth/entra", false},
		{"tunnel", "postern/ccm", false},
		{"token", "github.com/go-jose/go-jose/v4/jwt", true},
		{"token", "net/http", false},
		{"token", "net/http/httptest", false},
		{"site", "database/sql", false},
		{"logfile", "postern/catalog", false},
		{"logfile", "github.com/spf13/cobra", false},
		{"client", "postern/keyfile", true},
		{"client", "postern/site", false},
		{"cmd/postern", "postern/internal/role", true},
		{"mp", "postern/store", false},
		{"mp", "postern/mp/below", true},
	}
	for _, test := range tests {
		if got := refusal(rows, test.pkg, test.imported); (got == "") != test.allowed {
			t.Errorf("%s imports %s: got %q, want allowed %v", test.pkg, test.imported, got, test.allowed)
		}
	}
}

// within says whether a path is one of the roots or lies below one.
func within(imported string, roots []string) bool {
	return slices.ContainsFunc(roots, func(root string) bool {
		return imported == root || strings.HasPrefix(imported, root+"/")
	})
}

func TestThePublicEdgeReachesNoDatabase(t *testing.T) {
	rows := readImportTable(t)
	packages, _ := module(t)
	for name, forbidden := range farFrom {
		for target, chain := range reach(packages, name) {
			if slices.Contains(forbidden, rowOf(rows, target)) {
				t.Errorf("%s reaches %s by %s", name, target, strings.Join(chain, " → "))
			}
		}
	}
}

// reach returns every package of ours that start imports, directly or through others,
// with the way there.
func reach(packages map[string]*sourcePackage, start string) map[string][]string {
	ways := map[string][]string{start: {start}}
	for queue := []string{start}; len(queue) > 0; queue = queue[1:] {
		pkg := packages[queue[0]]
		if pkg == nil {
			continue
		}
		for imported := range pkg.imports {
			target, ours := strings.CutPrefix(imported, "postern/")
			if _, seen := ways[target]; !ours || seen {
				continue
			}
			ways[target] = append(slices.Clone(ways[queue[0]]), target)
			queue = append(queue, target)
		}
	}
	delete(ways, start)
	return ways
}

func TestEveryPackageHasAComment(t *testing.T) {
	packages, _ := module(t)
	for _, name := range slices.Sorted(maps.Keys(packages)) {
		pkg := packages[name]
		want := "Package " + pkg.files[0].Name.Name + " "
		if pkg.files[0].Name.Name == "main" {
			want = "Command " + path.Base(name) + " "
		}
		var comments int
		for _, file := range pkg.files {
			if strings.HasPrefix(file.Doc.Text(), want) {
				comments++
			}
		}
		if comments != 1 {
			t.Errorf("%s: got %d package comments that begin with %q, want 1", name, comments, want)
		}
	}
}

func TestPackagesAreNamedForTheirJob(t *testing.T) {
	packages, _ := module(t)
	for name := range packages {
		if slices.Contains([]string{"util", "utils", "common", "types", "helper", "helpers", "manager", "misc"}, path.Base(name)) {
			t.Errorf("%s says nothing about its job", name)
		}
	}
}
