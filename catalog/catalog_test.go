package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
)

func TestTheCatalogueIsSound(t *testing.T) {
	for _, area := range Areas() {
		if area.Err != nil {
			t.Errorf("%s.yaml: %v", area.Name, area.Err)
		}
		if len(area.Entries) == 0 {
			t.Errorf("%s.yaml has no entries", area.Name)
		}
	}
}

func TestReferencesLeadSomewhere(t *testing.T) {
	for _, entry := range All() {
		for _, code := range entry.See {
			if _, ok := Lookup(code); !ok {
				t.Errorf("%s: see %s, which does not exist", entry.Code, code)
			}
		}
	}
}

func TestLookup(t *testing.T) {
	entry, ok := Lookup(InternalError)
	if !ok || entry.Name != "InternalError" || entry.Status != 500 {
		t.Errorf("got %+v, %v", entry, ok)
	}
	if entry, ok := Lookup("P999"); ok {
		t.Errorf("got %+v for a code that does not exist", entry)
	}
	all := All()
	for i := 1; i < len(all); i++ {
		if all[i-1].Code >= all[i].Code {
			t.Errorf("%s stands before %s", all[i-1].Code, all[i].Code)
		}
	}
}

const sound = `
- code: P200
  name: TokenExample
  severity: error
  title: A title
  looks: [a]
  where: [b]
  cause: c
  remedy: [d]
  confirm: e
  source: f
`

func TestMistakesInAnAreaAreFound(t *testing.T) {
	tests := []struct {
		name, area, text, want string
	}{
		{"nothing wrong", "token", sound, ""},
		{"outside the range", "wire", sound, "outside the range"},
		{"unknown area", "weather", sound, "outside the range"},
		{"not a code", "token", strings.Replace(sound, "P200", "X200", 1), "code is not P or E"},
		{"not a name", "token", strings.Replace(sound, "TokenExample", "tokenExample", 1), "name is not an exported Go name"},
		{"unknown severity", "token", strings.Replace(sound, "severity: error", "severity: fatal", 1), "severity is not"},
		{"no remedy", "token", strings.Replace(sound, "[d]", "[]", 1), "remedy is empty"},
		{"an empty step", "token", strings.Replace(sound, "[d]", `["d", " "]`, 1), "remedy is empty"},
		{"no cause", "token", strings.Replace(sound, "cause: c", "cause: ''", 1), "cause is empty"},
		{"no place", "token", strings.Replace(sound, "  where: [b]\n", "", 1), "where is empty"},
		{"unknown field", "token", sound + "  color: red\n", "field color not found"},
		{"status out of range", "token", sound + "  status: 99\n", "status is not an HTTP status"},
		{"code twice", "token", sound + strings.Replace(sound, "TokenExample", "Other", 1), "P200 is already taken"},
		{"name twice", "token", sound + strings.Replace(sound, "P200", "P201", 1), "TokenExample is already taken"},
		{"not YAML", "token", "\t-", "parse data/token.yaml"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			table := newTable(readAreas(fstest.MapFS{"data/" + test.area + ".yaml": {Data: []byte(test.text)}}))
			got := fmt.Sprint(table.areas[0].Err)
			if test.want == "" && table.areas[0].Err == nil {
				if len(table.all) != 1 {
					t.Errorf("got %d entries", len(table.all))
				}
				return
			}
			if test.want == "" || !strings.Contains(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if len(table.all) != 0 {
				t.Errorf("an area with a mistake is in use")
			}
		})
	}
}

func TestErrorKeepsItsCauseToItself(t *testing.T) {
	cause := errors.New("dial 10.0.0.5: password secret refused")
	err := fmt.Errorf("register: %w", Wrap(StoreUnavailable, cause, "the site cannot store %s now", "GUID:1"))

	if want := "register: P752: the site cannot store GUID:1 now: dial 10.0.0.5: password secret refused"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if got := CodeOf(err); got != StoreUnavailable {
		t.Errorf("got code %q", got)
	}
	if !errors.Is(err, cause) {
		t.Error("the cause is not in the chain")
	}
	public, problem := Public(err), string(Problem(err, "urn:uuid:1"))
	for _, text := range []string{public, problem} {
		if strings.Contains(text, "secret") || !strings.Contains(text, "the site cannot store GUID:1 now") || !strings.Contains(text, "P752") {
			t.Errorf("got %s", text)
		}
	}
	entry, _ := Lookup(StoreUnavailable)
	if !strings.HasPrefix(public, "P752: "+entry.Title+"\n") || !strings.HasSuffix(public, "3. "+entry.Remedy[2]) {
		t.Errorf("got %s", public)
	}
}

func TestErrorsWithoutACodeSayNothing(t *testing.T) {
	internal, _ := Lookup(InternalError)
	for name, err := range map[string]error{
		"plain error":  errors.New("open /var/lib/secret"),
		"unknown code": Errorf("P999", "secret"),
	} {
		if got := Public(err); strings.Contains(got, "secret") || !strings.HasPrefix(got, "P750: "+internal.Title) {
			t.Errorf("%s: got %s", name, got)
		}
	}
	if got := CodeOf(errors.New("x")); got != "" {
		t.Errorf("got code %q", got)
	}
}

func TestErrorText(t *testing.T) {
	tests := []struct {
		err  *Error
		want string
	}{
		{Errorf(NotFound, "no device %s", "X"), "P759: no device X"},
		{&Error{Code: NotFound}, "P759: What was asked for does not exist"},
		{&Error{Code: "P999"}, "P999: unknown code"},
		{Wrap(NotFound, errors.New("cause"), ""), "P759: cause"},
	}
	for _, test := range tests {
		if got := test.err.Error(); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestProblemFollowsTheSpecification(t *testing.T) {
	var got map[string]any
	if err := json.Unmarshal(Problem(Errorf(NotFound, "no device \"X\"\n"), "urn:uuid:1"), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"type": "urn:postern:problem:P759", "title": "What was asked for does not exist", "status": 404.0,
		"detail": "no device \"X\"\n", "instance": "urn:uuid:1", "code": "P759"}
	for key, value := range want {
		if got[key] != value {
			t.Errorf("%s: got %v, want %v", key, got[key], value)
		}
	}
	if steps, ok := got["remedy"].([]any); !ok || len(steps) != 2 {
		t.Errorf("remedy: got %v", got["remedy"])
	}
	if err := json.Unmarshal(Problem(Errorf(AdminDoorClosed, "x"), ""), &got); err != nil || got["status"] != 500.0 {
		t.Errorf("an entry without a status: got %v, %v", got["status"], err)
	}
}
