package postern_test

import (
	"flag"
	"fmt"
	"go/ast"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"postern/gateway"
	"postern/mp"
)

var update = flag.Bool("update", false, "write the tables of the documents anew")

// documents reads every Markdown file of the module.
func documents(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != "." && (entry.Name() == "testdata" || strings.HasPrefix(entry.Name(), ".")):
			return filepath.SkipDir
		case entry.IsDir() || !strings.HasSuffix(name, ".md"):
			return nil
		}
		content, err := os.ReadFile(name)
		pages[filepath.ToSlash(name)] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

var (
	link      = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	fence     = regexp.MustCompile("(?s)```.*?```")
	quoted    = regexp.MustCompile("`([^`\n]+)`")
	testName  = regexp.MustCompile(`^(Test|Fuzz|Benchmark)[A-Z]\w*$`)
	qualified = regexp.MustCompile(`^([a-z]+)\.([A-Za-z]\w*)(?:\.([A-Za-z]\w*))?$`)
)

func TestRelativeLinksLeadSomewhere(t *testing.T) {
	for name, text := range documents(t) {
		for _, found := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			target, _, _ := strings.Cut(found[1], "#")
			if target == "" || strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), filepath.FromSlash(target))); err != nil {
				t.Errorf("%s links to %s, which does not exist", name, found[1])
			}
		}
	}
}

// A document that names a test promises something that the test shows.
func TestNamedTestsExist(t *testing.T) {
	known := testFunctions(t)
	for name, text := range documents(t) {
		for _, found := range quoted.FindAllStringSubmatch(text, -1) {
			if testName.MatchString(found[1]) && !known[found[1]] {
				t.Errorf("%s names the test %s, which does not exist", name, found[1])
			}
		}
	}
}

var testFunction = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)

func testFunctions(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{}
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		content, err := os.ReadFile(name)
		for _, found := range testFunction.FindAllStringSubmatch(string(content), -1) {
			known[found[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return known
}

// docs/architecture.md walks a request with function names; the walk must be one that
// the code takes.
func TestTheArchitectureNamesWhatExists(t *testing.T) {
	names, packages := declaredNames(t)
	const page = "docs/architecture.md"
	text := documents(t)[page]
	for _, found := range quoted.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		parts := qualified.FindStringSubmatch(found[1])
		if parts == nil || !packages[parts[1]] || slices.Contains([]string{"go", "md", "yaml"}, parts[2]) {
			continue
		}
		if !names[found[1]] {
			t.Errorf("%s names %s, which the code does not have", page, found[1])
		}
	}
}

// declaredNames returns pkg.Name and pkg.Type.Method of everything that is declared, and
// the names of the packages.
func declaredNames(t *testing.T) (names, packages map[string]bool) {
	t.Helper()
	names, packages = map[string]bool{}, map[string]bool{}
	parsed, _ := module(t)
	for pkg := range maps.Values(parsed) {
		for _, file := range pkg.files {
			packages[file.Name.Name] = true
			for _, declaration := range file.Decls {
				for _, name := range namesOf(declaration) {
					names[file.Name.Name+"."+name] = true
				}
			}
		}
	}
	return names, packages
}

func namesOf(declaration ast.Decl) (names []string) {
	switch d := declaration.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil {
			return []string{d.Name.Name}
		}
		return []string{receiver(d.Recv.List[0].Type) + "." + d.Name.Name}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			names = append(names, namesOfSpec(spec)...)
		}
	}
	return names
}

// namesOfSpec returns a type's name with the methods of an interface, or the names of
// values.
func namesOfSpec(spec ast.Spec) (names []string) {
	switch s := spec.(type) {
	case *ast.TypeSpec:
		names = append(names, s.Name.Name)
		if i, ok := s.Type.(*ast.InterfaceType); ok {
			for _, method := range i.Methods.List {
				for _, name := range method.Names {
					names = append(names, s.Name.Name+"."+name.Name)
				}
			}
		}
	case *ast.ValueSpec:
		for _, name := range s.Names {
			names = append(names, name.Name)
		}
	}
	return names
}

func receiver(expression ast.Expr) string {
	switch e := expression.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// The tables of docs/security.md are made from the tables by which requests are
// admitted.
func TestTheRouteTablesAreCurrent(t *testing.T) {
	const page = "docs/security.md"
	text := documents(t)[page]
	want := replaceTable(t, text, "gateway routes", gatewayTable())
	want = replaceTable(t, want, "management point routes", managementPointTable())
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if text != want {
		t.Errorf("%s shows other routes than the code has; run go test -run TestTheRouteTablesAreCurrent -update .", page)
	}
}

// replaceTable puts a table between the marks of that name.
func replaceTable(t *testing.T, text, name, table string) string {
	t.Helper()
	begin, end := "<!-- "+name+" -->\n", "<!-- end -->"
	before, rest, found := strings.Cut(text, begin)
	_, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatalf("no marks for the %s", name)
	}
	return before + begin + table + end + after
}

func gatewayTable() string {
	var b strings.Builder
	b.WriteString("| methods | path | proof | body |\n| --- | --- | --- | --- |\n")
	for _, route := range gateway.Routes() {
		for _, path := range route.Paths() {
			fmt.Fprintf(&b, "| %s | `%s` | %s | %s |\n", strings.Join(route.Methods, ", "), path, route.Proof, size(route.Body))
		}
	}
	return b.String()
}

func managementPointTable() string {
	var b strings.Builder
	b.WriteString("| methods | path | listeners | any one of | level at most | body |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, route := range mp.Routes() {
		var listeners, proofs []string
		for _, l := range route.Listeners {
			listeners = append(listeners, string(l))
		}
		for _, p := range route.Proofs {
			proofs = append(proofs, string(p))
		}
		fmt.Fprintf(&b, "| %s | `%s` | %s | %s | %s | %s |\n", strings.Join(route.Methods, ", "), route.Path,
			strings.Join(listeners, ", "), strings.Join(proofs, ", "), route.Ceiling, size(route.Body))
	}
	return b.String()
}

// size writes a number of bytes.
func size(bytes int64) string {
	switch {
	case bytes == 0:
		return "-"
	case bytes%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", bytes>>20)
	}
	return fmt.Sprintf("%d KiB", bytes>>10)
}

// Every library that the product uses has its reason on a page.
func TestEveryLibraryHasItsReason(t *testing.T) {
	content, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	page := documents(t)["docs/decisions/0001-libraries.md"]
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if len(fields) != 2 || !strings.HasPrefix(fields[1], "v") || !strings.Contains(fields[0], ".") {
			continue // not a direct requirement
		}
		if !strings.Contains(page, "`"+fields[0]+"`") {
			t.Errorf("docs/decisions/0001-libraries.md does not say why %s is used", fields[0])
		}
	}
}
