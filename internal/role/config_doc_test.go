package role

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// settings returns the path of every setting of a configuration type, as its file has it:
// listen.pki.address, gateways[].url.
func settings(t reflect.Type, prefix string) (paths []string) {
	for i := range t.NumField() {
		field := t.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if !field.IsExported() || name == "" || name == "-" {
			continue
		}
		path, inner := prefix+name, field.Type
		if inner.Kind() == reflect.Slice && inner.Elem().Kind() == reflect.Struct {
			paths = append(paths, path)
			path, inner = path+"[]", inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			paths = append(paths, settings(inner, path+".")...)
			continue
		}
		paths = append(paths, path)
	}
	return paths
}

// documented returns the settings in the table of docs/configuration.md.
func documented(t *testing.T) map[string]bool {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(page), "## Settings\n")
	table, _, ended := strings.Cut(table, "\n## ")
	if !found || !ended {
		t.Fatal("docs/configuration.md has no section Settings")
	}
	rows := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(table, -1) {
		rows[row[1]] = true
	}
	return rows
}

func TestEverySettingIsDocumented(t *testing.T) {
	rows := documented(t)
	for _, setting := range settings(reflect.TypeFor[Config](), "") {
		if !rows[setting] {
			t.Errorf("docs/configuration.md has no row for %s", setting)
		}
		delete(rows, setting)
	}
	for setting := range rows {
		t.Errorf("docs/configuration.md has a row for %s, which is no setting", setting)
	}
}

func TestEverySettingSaysWhatItIs(t *testing.T) {
	var check func(reflect.Type)
	check = func(kind reflect.Type) {
		for i := range kind.NumField() {
			field := kind.Field(i)
			if !field.IsExported() {
				continue
			}
			inner := field.Type
			if inner.Kind() == reflect.Slice {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct {
				check(inner)
				continue
			}
			if field.Tag.Get("doc") == "" {
				t.Errorf("%s.%s has no doc tag", kind.Name(), field.Name)
			}
		}
	}
	check(reflect.TypeFor[Config]())
}

// The examples of the page are configurations that a role takes.
func TestDocumentedExamplesAreRead(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(page, -1)
	if len(examples) != 3 {
		t.Fatalf("got %d examples, want one for each role", len(examples))
	}
	for _, example := range examples {
		if _, err := parse(filepath.Join(t.TempDir(), "role.yaml"), example[1]); err != nil {
			t.Errorf("%v\n%s", err, example[1])
		}
	}
}
