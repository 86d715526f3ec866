package explain

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/unicode"
	"pgregory.net/rapid"

	"postern/catalog"
)

// want is what a labelled incident says of itself: the verdict ("" is "don't know"), codes that are seen as well, and
// lines that are among the evidence.
type want struct {
	Verdict  catalog.Code
	Sure     Sure
	Also     []catalog.Code
	Evidence []string
}

type incident struct {
	name, logs string
	want       want
}

func incidents(t testing.TB) (all []incident) {
	t.Helper()
	folders, err := os.ReadDir("../testdata/incidents")
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range folders {
		in := incident{name: folder.Name(), logs: filepath.Join("..", "testdata", "incidents", folder.Name(), "logs")}
		content, err := os.ReadFile(filepath.Join(in.logs, "..", "want.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(content, &in.want); err != nil {
			t.Fatalf("%s: %v", in.name, err)
		}
		all = append(all, in)
	}
	return all
}

func run(t testing.TB, paths ...string) Report {
	t.Helper()
	report, err := Run(t.Context(), Input{Paths: paths})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func code(r Report) catalog.Code {
	if r.Verdict == nil {
		return ""
	}
	return r.Verdict.Code
}

func TestIncidents(t *testing.T) {
	for _, in := range incidents(t) {
		t.Run(in.name, func(t *testing.T) {
			report := run(t, in.logs)
			if got := code(report); got != in.want.Verdict {
				t.Fatalf("verdict: got %q, want %q\n%s", got, in.want.Verdict, written(report))
			}
			if report.Verdict != nil && in.want.Sure != "" && report.Verdict.Sure != in.want.Sure {
				t.Errorf("sure: got %q, want %q", report.Verdict.Sure, in.want.Sure)
			}
			for _, c := range in.want.Also {
				if !slices.ContainsFunc(report.Also, func(v Verdict) bool { return v.Code == c }) {
					t.Errorf("also: %s is not there\n%s", c, written(report))
				}
			}
			for _, line := range in.want.Evidence {
				if !slices.Contains(placesOf(in, report), line) {
					t.Errorf("evidence: %s is not there\n%s", line, written(report))
				}
			}
			checkForm(t, report)
		})
	}
}

func written(r Report) string {
	var b strings.Builder
	r.Write(&b)
	return b.String()
}

func placesOf(in incident, r Report) (places []string) {
	for _, e := range r.Evidence {
		places = append(places, strings.TrimPrefix(place(&line{file: e.File, number: e.Line}), filepath.ToSlash(in.logs)+"/"))
	}
	return places
}

// checkForm checks what holds for every report.
func checkForm(t *testing.T, r Report) {
	t.Helper()
	switch {
	case r.Verdict == nil && len(r.Undecided) == 0:
		t.Error("no verdict, and not a word on what was looked at")
	case r.Verdict != nil && (len(r.Evidence) == 0 || len(r.Remedy) == 0 || r.Verdict.Title == ""):
		t.Errorf("a verdict without evidence, remedy or title: %+v", r)
	}
	content, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(content, []byte(":null")) && r.Verdict != nil {
		t.Errorf("a list is null: %s", content)
	}
}

// rewrite copies the logs of an incident with their content changed.
func rewrite(t testing.TB, in incident, change func(name string, content []byte) (string, []byte)) string {
	t.Helper()
	to := t.TempDir()
	err := filepath.WalkDir(in.logs, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		relative, _ := filepath.Rel(in.logs, path)
		name, content := change(relative, content)
		os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o700)
		return os.WriteFile(filepath.Join(to, name), content, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func TestTheEncodingChangesNothing(t *testing.T) {
	encodings := map[string]encoding.Encoding{
		"UTF-16, little-endian, with its mark":    unicode.UTF16(unicode.LittleEndian, unicode.UseBOM),
		"UTF-16, little-endian, without the mark": unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM),
		"UTF-16, big-endian, with its mark":       unicode.UTF16(unicode.BigEndian, unicode.UseBOM),
		"UTF-16, big-endian, without the mark":    unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM),
		"UTF-8 with its mark":                     unicode.UTF8BOM,
	}
	for name, e := range encodings {
		t.Run(name, func(t *testing.T) {
			for i, in := range incidents(t) {
				if i%4 != 0 { // all of them come in one of the encodings in TestCorpus
					continue
				}
				folder := rewrite(t, in, func(name string, content []byte) (string, []byte) {
					if !utf8.Valid(content) { // another encoding is what this incident is about
						return name, content
					}
					encoded, err := e.NewEncoder().Bytes(content)
					if err != nil {
						t.Fatal(err)
					}
					return name, encoded
				})
				if got := code(run(t, folder)); got != in.want.Verdict {
					t.Errorf("%s: got %q, want %q", in.name, got, in.want.Verdict)
				}
			}
		})
	}
}

func TestTheNameOfAFileChangesNothing(t *testing.T) {
	for _, in := range incidents(t) {
		folder := rewrite(t, in, func(name string, content []byte) (string, []byte) {
			return filepath.Join(filepath.Dir(name), "x"+strings.ToUpper(strings.ReplaceAll(filepath.Base(name), ".", "_"))), content
		})
		if got := code(run(t, folder)); got != in.want.Verdict {
			t.Errorf("%s: got %q, want %q", in.name, got, in.want.Verdict)
		}
	}
}

// A rotated log is the beginning of the story in the .lo_ file and its end in the .log file.
func TestRotatedLogs(t *testing.T) {
	for _, in := range incidents(t) {
		to := t.TempDir()
		rewrite(t, in, func(name string, content []byte) (string, []byte) {
			half := bytes.Index(content[len(content)/3:], []byte("\r\n<![LOG["))
			os.MkdirAll(filepath.Join(to, filepath.Dir(name)), 0o700)
			if half < 0 || filepath.Ext(name) != ".log" {
				os.WriteFile(filepath.Join(to, name), content, 0o600)
				return name, content
			}
			half += len(content)/3 + 2
			os.WriteFile(filepath.Join(to, strings.TrimSuffix(name, ".log")+".lo_"), content[:half], 0o600)
			os.WriteFile(filepath.Join(to, name), content[half:], 0o600)
			return name, content
		})
		if got := code(run(t, to)); got != in.want.Verdict {
			t.Errorf("%s: got %q, want %q\n%s", in.name, got, in.want.Verdict, written(run(t, to)))
		}
	}
}

// A log whose last line is torn is at worst less sure, never another verdict of the same kind of certainty about nothing.
func TestTornEndsDoNotMislead(t *testing.T) {
	for i, in := range incidents(t) {
		for _, off := range []int{1, 20, 60}[i%3 : i%3+1] {
			folder := rewrite(t, in, func(name string, content []byte) (string, []byte) {
				return name, content[:max(len(content)-off, 0)]
			})
			report, err := Run(t.Context(), Input{Paths: []string{folder}})
			if err != nil {
				t.Fatalf("%s: %v", in.name, err)
			}
			if got := code(report); got == catalog.Healthy && in.want.Verdict != catalog.Healthy && in.want.Verdict != "" {
				t.Errorf("%s without its last %d bytes: got healthy, want %q or nothing", in.name, off, in.want.Verdict)
			}
		}
	}
}

func TestTheOrderOfFilesChangesNothing(t *testing.T) {
	all := incidents(t)
	rapid.Check(t, func(rt *rapid.T) {
		in := rapid.SampledFrom(all).Draw(rt, "incident")
		var paths []string
		filepath.WalkDir(in.logs, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				paths = append(paths, path)
			}
			return err
		})
		want, err := json.Marshal(run(t, in.logs))
		if err != nil {
			rt.Fatal(err)
		}
		shuffled := rapid.Permutation(paths).Draw(rt, "order")
		got, err := json.Marshal(run(t, append(shuffled, shuffled[0])...))
		if err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			rt.Fatalf("%s: got %s, want %s", in.name, got, want)
		}
	})
}

// pack makes a zip archive of files.
func pack(t testing.TB, files map[string][]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "logs.zip")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w := zip.NewWriter(out)
	for name, content := range files {
		member, err := w.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		member.Write(content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestArchivesAndStandardInput(t *testing.T) {
	for _, in := range incidents(t) {
		files := map[string][]byte{}
		rewrite(t, in, func(name string, content []byte) (string, []byte) {
			files["../../"+filepath.ToSlash(name)] = content // what the path says is only shown
			return name, content
		})
		if got := code(run(t, pack(t, files))); got != in.want.Verdict {
			t.Errorf("%s packed: got %q, want %q", in.name, got, in.want.Verdict)
		}
	}
	content, err := os.ReadFile("../testdata/incidents/s1-refused-twice/logs/u_ex.log")
	if err != nil {
		t.Fatal(err)
	}
	report, err := Run(t.Context(), Input{Paths: []string{"-"}, Stdin: bytes.NewReader(content)})
	if err != nil || code(report) != catalog.SymptomNegotiateFailed || report.Evidence[0].File != stdinName {
		t.Errorf("standard input: got %+v, %v", report, err)
	}
}

func TestPatterns(t *testing.T) {
	if got := code(run(t, "../testdata/incidents/s4-forbidden/logs/*.lo*")); got != catalog.SymptomConnectorForbidden {
		t.Errorf("got %q", got)
	}
}

func TestWhatCannotBeReadIsSaid(t *testing.T) {
	if _, err := Run(t.Context(), Input{Paths: []string{filepath.Join(t.TempDir(), "nothing.log")}}); catalog.CodeOf(err) != catalog.ExplainNothingRead {
		t.Errorf("a path that leads to nothing: got %v", err)
	}
	report := run(t, filepath.Join(t.TempDir(), "nothing.log"), "../testdata/incidents/s4-forbidden/logs")
	if code(report) != catalog.SymptomConnectorForbidden || len(report.Undecided) == 0 || !strings.Contains(report.Undecided[0], "nothing.log") {
		t.Errorf("one of two paths: got %+v", report)
	}
	binary := filepath.Join(t.TempDir(), "site.db")
	os.WriteFile(binary, append([]byte("SQLite format 3\x00"), make([]byte, 4096)...), 0o600)
	if report := run(t, binary); report.Verdict != nil || len(report.Undecided) == 0 {
		t.Errorf("a database: got %+v", report)
	}
}

func TestLimitsAreKeptAndSaid(t *testing.T) {
	bomb := pack(t, map[string][]byte{"bomb.log": bytes.Repeat([]byte{' '}, 40<<20)})
	long := filepath.Join(t.TempDir(), "long.log")
	os.WriteFile(long, bytes.Repeat([]byte("CMGService"), 1<<20), 0o600)
	cases := []struct {
		name, path string
		limits     func(*Limits)
		says       string
	}{
		{"a member that unpacks to far more than it is", bomb, func(*Limits) {}, "unpacks to far more"},
		{"a file beyond the bytes", "../testdata/incidents/s4-token-expired/logs", func(l *Limits) { l.FileBytes = 200 }, "was read to line"},
		{"all files beyond the bytes", "../testdata/incidents/s4-token-expired/logs", func(l *Limits) { l.Bytes = 100 }, "all files together"},
		{"a file beyond the lines", "../testdata/incidents/s4-tls-0x9/logs", func(l *Limits) { l.Lines = 2 }, "was read to line 2 only"},
		{"more files than allowed", "../testdata/incidents/s4-token-expired/logs", func(l *Limits) { l.Files = 1 }, "only the first 1 files"},
		{"a line without an end", long, func(l *Limits) { l.Line = 1 << 10 }, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			limits := DefaultLimits()
			c.limits(&limits)
			report, err := Run(t.Context(), Input{Paths: []string{c.path}, Limits: limits})
			if err != nil {
				t.Fatal(err)
			}
			if all := strings.Join(report.Undecided, "\n"); !strings.Contains(all, c.says) {
				t.Errorf("got %q, want a word on %q", all, c.says)
			}
		})
	}
}

// What a log holds is shown, not obeyed; a token in it is not shown.
func TestHostileTextIsHarmless(t *testing.T) {
	folder := t.TempDir()
	secret := "eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJ1cm46c2NjbSJ9.c2lnbmF0dXJl"
	os.WriteFile(filepath.Join(folder, "a\x1b[31m.log"), []byte("\x1b]0;owned\a StatusText=CMGConnector_Forbidden \u202eregtoken:"+secret+" <script>alert(1)</script>\n"), 0o600)
	report := run(t, folder)
	if code(report) != catalog.SymptomConnectorForbidden {
		t.Fatalf("got %+v", report)
	}
	all := written(report)
	if strings.ContainsAny(all, "\x1b\a\u202e") {
		t.Errorf("control characters came through: %q", all)
	}
	if strings.Contains(all, secret[:20]) || strings.Contains(all, "c2lnbmF0dXJl") {
		t.Errorf("a token came through: %q", all)
	}
}

// Clocks of two machines that differ are found by what both name.
func TestClockDifferenceIsReported(t *testing.T) {
	folder := t.TempDir()
	client := `<![LOG[Message '{BD03DEED-D09A-4E63-ADAD-596376FFB0DA}' got reply message '{36EE3A78-8F6E-425F-BF5C-8460E8E56C33}' to endpoint 'dummy']LOG]!><time="08:00:02.000+00" date="10-28-2020" component="CcmMessaging" context="" type="1" thread="1" file="">` + "\n"
	server := `MessageID: BD03DEED-D09A-4E63-ADAD-596376FFB0DA RequestURI: https://MP/CCM_STS EndpointName: CCM_STS ResponseHeader: HTTP/1.1 200 OK ~~ ResponseBodySize: 0 ElapsedTime: 2 ms~~  $$<SMS_CLOUD_PROXYCONNECTOR><10-28-2020 08:10:02.000+00><thread=1 (0x1)>` + "\n"
	os.MkdirAll(filepath.Join(folder, "client"), 0o700)
	os.MkdirAll(filepath.Join(folder, "server"), 0o700)
	os.WriteFile(filepath.Join(folder, "client", "CcmMessaging.log"), []byte(client), 0o600)
	os.WriteFile(filepath.Join(folder, "server", "connector.log"), []byte(server), 0o600)
	report := run(t, folder)
	if got := strings.Join(report.Undecided, "\n"); !strings.Contains(got, "server seems to be 10 minutes ahead") {
		t.Errorf("got %q", got)
	}
}

// Every code of the tables is one of the catalogue, and every code that the tables mark has a rule.
func TestTheTablesAgree(t *testing.T) {
	marked := map[catalog.Code]bool{}
	for _, k := range looks {
		c := catalog.Code(k.mark)
		if entry, known := catalog.Lookup(c); known && entry.Severity != catalog.SeverityInfo {
			marked[c] = true
			if rank(c) < 0 {
				t.Errorf("%s is marked and has no rule", c)
			}
		} else if strings.HasPrefix(string(c), "E") && len(c) == 4 && !known {
			t.Errorf("%s is marked and not in the catalogue", c)
		}
	}
	for _, r := range rules {
		for _, c := range slices.Concat(r.follows, r.partOf, r.with, []catalog.Code{r.code}) {
			if _, known := catalog.Lookup(c); !known {
				t.Errorf("rule %s names %s, which is not in the catalogue", r.code, c)
			}
		}
		for _, c := range r.follows {
			if slices.Contains(ruleOf(c).follows, r.code) {
				t.Errorf("%s and %s follow from each other", r.code, c)
			}
		}
	}
}

// docs/explain.md shows what is really printed.
func TestTheDocumentShowsRealOutput(t *testing.T) {
	page, err := os.ReadFile("../../docs/explain.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"s4-token-expired", "s1-first-leg-only"} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(filepath.Join("..", "testdata", "incidents", name))
			if got := written(run(t, "logs")); !strings.Contains(string(page), got) {
				t.Errorf("docs/explain.md does not show:\n%s", got)
			}
		})
	}
}

func TestGUIDs(t *testing.T) {
	const a, b = "BD03DEED-D09A-4E63-ADAD-596376FFB0DA", "36EE3A78-8F6E-425F-BF5C-8460E8E56C33"
	cases := []struct {
		name, text string
		want       []string
	}{
		{"none", "- no-id -- here -", nil},
		{"in braces", "Message '{" + a + "}' got reply message '{" + b + "}'", []string{a, b}},
		{"in lower case", "GUID:" + strings.ToLower(a) + ".", []string{a}},
		{"behind another dash", "x-y-" + a, []string{a}},
		{"torn", a[:30], nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := guids(c.text, 4); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// A look without an anchor would not be found: only those of a listing, which are tried on each of its lines, have none.
func TestEveryLookHasAnAnchor(t *testing.T) {
	for i := range looks {
		if k := &looks[i]; !k.request && k.mark != listedName && k.mark != listedTwice && len(k.anchors()) == 0 {
			t.Errorf("look %d for %s has no anchor: %q %q", i, k.mark, k.all, k.any)
		}
		for _, text := range append(looks[i].anchors(), looks[i].all...) {
			if text != lower(text) {
				t.Errorf("%q of %s is not in lower case", text, looks[i].mark)
			}
		}
	}
}

// The set of candidates has room for the whole table.
func TestTheTableFitsTheMatcher(t *testing.T) {
	if room := len(candidates{}) * 64; len(looks) > room {
		t.Errorf("%d looks, room for %d", len(looks), room)
	}
}
