package explain

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf8"
)

// fuzzLimits are small, so that a fuzzer meets them.
func fuzzLimits() Limits {
	return Limits{Files: 8, FileBytes: 1 << 16, Bytes: 1 << 17, Line: 1 << 12, Lines: 1 << 10, ZipRatio: 20, Kept: 64}
}

// FuzzText reads bytes as text of whatever encoding they seem to be.
func FuzzText(f *testing.F) {
	f.Add([]byte("CMGConnector_Forbidden"))
	f.Fuzz(func(t *testing.T, content []byte) {
		r, isText := text(bytes.NewReader(content))
		if !isText {
			return
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzLines reads bytes as a log file of whatever formats.
func FuzzLines(f *testing.F) {
	for _, in := range incidents(f) {
		files, _ := filepath.Glob(filepath.Join(in.logs, "*"))
		for _, name := range files {
			if content, err := os.ReadFile(name); err == nil {
				f.Add(content)
			}
		}
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		number := 0
		for l, err := range lines("fuzz.log", bytes.NewReader(content), fuzzLimits()) {
			if err != nil {
				return
			}
			if l.number < number || l.number <= 0 {
				t.Fatalf("line %d after line %d", l.number, number)
			}
			number = l.number
		}
	})
}

// FuzzEvent reads a line as one of our JSON events.
func FuzzEvent(f *testing.F) {
	f.Add(`{"time":"2026-11-22T03:18:20Z","level":"DEBUG","msg":"request refused","code":"P215","status":401}`)
	f.Fuzz(func(t *testing.T, text string) {
		if l, ok := parseEvent(text); ok && (l.event == nil || l.time.IsZero()) {
			t.Fatalf("an event without its parts: %+v", l)
		}
	})
}

// FuzzFragment reads a line as a quoted access record.
func FuzzFragment(f *testing.F) {
	f.Add("CCM_POST /ccm_system_windowsauth/request - 80 - 192.168.20.102 ccmhttp 401 2 2148074254")
	f.Fuzz(func(t *testing.T, text string) {
		for _, part := range split(text) {
			if r, ok := parseFragment(part); ok && (r.Status < 100 || r.Status > 599 || r.Method == "") {
				t.Fatalf("%q: %+v", part, r)
			}
		}
	})
}

// FuzzArchive reads bytes as a zip archive of logs.
func FuzzArchive(f *testing.F) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	member, _ := w.Create("../LocationServices.log")
	member.Write([]byte("[CCMHTTP] ERROR INFO: StatusCode= 403 StatusText= CMGConnector_Forbidden"))
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "logs.zip")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = Run(t.Context(), Input{Paths: []string{path}, Limits: fuzzLimits()})
	})
}

// FuzzReport explains any bytes and checks what holds for every report.
func FuzzReport(f *testing.F) {
	f.Add([]byte("WAM token request failed\nFalling back to get user\nFailed to get AAD token"))
	f.Fuzz(func(t *testing.T, content []byte) {
		report, err := Run(t.Context(), Input{Paths: []string{"-"}, Stdin: bytes.NewReader(content), Limits: fuzzLimits()})
		if err != nil {
			t.Fatal(err)
		}
		checkForm(t, report)
		all := written(report)
		encoded, err := json.Marshal(report)
		if err != nil || !utf8.Valid(encoded) || !utf8.ValidString(all) {
			t.Fatalf("report is not valid: %v %q", err, all)
		}
	})
}
