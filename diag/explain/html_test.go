package explain

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"postern/catalog"
)

// hostile is what is put into every field that can come from a log.
const hostile = `"><script>document.title='RAN'</script><img src=x onerror="document.title='RAN'"><svg onload="document.title='RAN'">` +
	`<style>*{background:url(http://127.0.0.1:1/ran)}</style><a href="javascript:document.title='RAN'">x</a>{{.}}<!--]]></title></svg></details>`

func hostileReport() Report {
	at := time.Date(2024, 3, 11, 9, 0, 0, 0, time.UTC)
	r := Report{
		Verdict:  &Verdict{catalog.SymptomConnectorForbidden, hostile, Sure(hostile)},
		Also:     []Verdict{{catalog.Code(hostile), hostile, Likely}},
		Evidence: []Evidence{{hostile, 1, hostile}, {hostile + "2", 2, hostile}},
		Remedy:   []string{hostile}, Followed: []string{hostile}, Undecided: []string{hostile}, Looked: []string{hostile},
	}
	for i, part := range []Part{First, Then, Other, History, Well, Part(hostile)} {
		r.Events = append(r.Events, Event{at.Add(time.Duration(i) * time.Minute), hostile + fmt.Sprint(i%3), i, catalog.Code(hostile), part, hostile})
	}
	return r
}

func pageOfReport(t testing.TB, r Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestThePageLoadsNothing(t *testing.T) {
	reports := []Report{hostileReport(), {}, run(t, "../testdata/incidents/s4-token-expired/logs"), run(t, "../testdata/incidents/s0-approved/logs")}
	for _, r := range reports {
		text := pageOfReport(t, r)
		if !strings.Contains(text, `<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">`) {
			t.Error("the policy is not there")
		}
		for _, form := range []string{`(?i)<script`, `(?i)<(img|iframe|object|embed|link|base|form|a)\b`, `(?i)\son[a-z]+\s*=\s*"`, `(?i)(src|href)\s*=`, `(?i)url\(http`} {
			if found := regexp.MustCompile(form).FindString(text); found != "" && strings.Count(text, found) > strings.Count(text, strings.ReplaceAll(strings.ReplaceAll(found, "<", "&lt;"), `"`, "&#34;")) {
				t.Errorf("%s is in the page", found)
			}
		}
	}
}

// The page is opened in a browser with a script in every field: nothing runs.
func TestThePageRunsNothing(t *testing.T) {
	browser, err := browserPath()
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	file := filepath.Join(folder, "page.html")
	// The page's own title is fixed text; the verdict's words are hostile in the body, and in the title of another one.
	write(t, file, []byte(pageOfReport(t, hostileReport())))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dump := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir="+filepath.Join(folder, "profile"),
		"--virtual-time-budget=2000", "--dump-dom", "file://"+file)
	out, err := dump.Output()
	if err != nil {
		t.Fatalf("the browser: %v", err)
	}
	dom := string(out)
	title := regexp.MustCompile(`(?s)<title>(.*?)</title>`).FindStringSubmatch(dom)
	switch {
	case title == nil || !strings.Contains(title[1], "E023"):
		t.Errorf("title: got %q", title)
	case strings.TrimSpace(title[1]) == "RAN":
		t.Error("a script ran")
	}
	for _, tag := range []string{"<script", "<img", "<a "} {
		if strings.Contains(dom, tag) {
			t.Errorf("an element %s came out of a log", tag)
		}
	}
	if !strings.Contains(dom, "What shows it") || !strings.Contains(dom, "<circle") {
		t.Error("the page is not whole")
	}
}

func browserPath() (string, error) {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("a browser is needed: install chromium")
}

func TestRedaction(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "DESK-42.fabrikam.net")
	secret := "eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJ1cm46c2NjbSJ9.c2lnbmF0dXJl"
	write(t, filepath.Join(folder, "LocationServices.log"), []byte(
		`<![LOG[[CCMHTTP] ERROR: URL=https://cmg.fabrikam.net/CCM_Proxy_MutualAuth/72057594037938011/SMS_MP/.sms_aut?SITESIGNCERT, Port=443, Options=31, Code=0, Text=CCM_E_BAD_HTTP_STATUS_CODE]LOG]!><time="09:00:00.000+00" date="03-11-2024" component="LocationServices" context="" type="3" thread="1" file="">`+"\n"+
			`<![LOG[[CCMHTTP] ERROR INFO: StatusCode=403 StatusText=CMGConnector_Forbidden for FABRIKAM\jane.doe (jane.doe@fabrikam.net, S-1-5-21-1-2-3-1001) on DESK-42 GUID:5B1D7E44-2B57-49D8-8C7B-0F0E8BB4A801 from 10.20.7.41 and fe80::1c2:3 regtoken:`+secret+` password=hunter2 CN=Jane Doe]LOG]!><time="09:00:01.000+00" date="03-11-2024" component="LocationServices" context="" type="3" thread="1" file="">`+"\n"))
	write(t, filepath.Join(folder, "JANESPC", "of jane.txt"), []byte("no log at all\n"))
	plain := run(t, folder)
	report := plain.Redacted()
	var text strings.Builder
	report.Write(&text)
	all := text.String() + pageOfReport(t, report) + mustJSON(t, report)
	for _, private := range []string{"fabrikam", "jane", "DESK-42", "5B1D7E44", "10.20.7.41", "fe80::1c2:3", "hunter2", "eyJ0", "c2ln", "S-1-5-21", "72057594037938011"} {
		if strings.Contains(strings.ToLower(all), strings.ToLower(private)) {
			t.Errorf("%s came through: %s", private, text.String())
			break
		}
	}
	if code(report) != catalog.SymptomConnectorForbidden || !strings.Contains(all, "CMGConnector_Forbidden") || !strings.Contains(all, "LocationServices.log") {
		t.Errorf("what matters is gone: %s", text.String())
	}
	if strings.Contains(mustJSON(t, plain), "GUID-1") {
		t.Error("the report itself was changed")
	}
	again := plain.Redacted()
	if mustJSON(t, again) != mustJSON(t, report) {
		t.Error("the placeholders are not stable")
	}
}

// No name, address or id of any incident survives the redaction.
func TestRedactionOfTheCorpus(t *testing.T) {
	for _, in := range incidents(t) {
		text := mustJSON(t, run(t, in.logs).Redacted())
		for _, private := range []string{"fabrikam", "contoso", "10.20.7.", "10.20.1.", "192.168.", "S-1-5-21-"} {
			if strings.Contains(strings.ToLower(text), strings.ToLower(private)) {
				t.Errorf("%s: %s came through: %s", in.name, private, text)
				break
			}
		}
	}
}

func mustJSON(t testing.TB, r Report) string {
	t.Helper()
	content, err := r.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// EXPLAIN_PAGES=FOLDER writes pages to look at into a folder.
func TestPagesToLookAt(t *testing.T) {
	folder := os.Getenv("EXPLAIN_PAGES")
	if folder == "" {
		return
	}
	for _, name := range []string{"s4-token-expired", "s4-no-certificate-left", "s0-approved", "s1-first-leg-only", "own-device-blocked"} {
		write(t, filepath.Join(folder, name+".html"), []byte(pageOfReport(t, run(t, "../testdata/incidents/"+name+"/logs"))))
	}
}
