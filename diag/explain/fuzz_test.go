package explain

import (
	"archive/zip"
	"bufio"
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
	return Limits{Files: 8, FileBytes: 1 << 16, Bytes: 1 << 17, Line: 1 << 12, Lines: 1 << 10, Members: 64, Directory: 1 << 16, ZipRatio: 20, Kept: 64, Memory: 1 << 20}
}

// FuzzText reads bytes as text of whatever encoding they seem to be.
func FuzzText(f *testing.F) {
	f.Add([]byte("CMGConnector_Forbidden"))
	f.Fuzz(func(t *testing.T, content []byte) {
		r, isText := text(bufio.NewReader(bytes.NewReader(content)))
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

// FuzzAccess reads a line as a record of a web server's log, with the fields of a header line.
func FuzzAccess(f *testing.F) {
	f.Add("date time s-ip cs-method cs-uri-stem sc-status", "2024-03-11 09:00:00 10.0.0.5 GET /SMS_MP/.sms_aut 200")
	f.Fuzz(func(t *testing.T, header, text string) {
		o := newObserver("fuzz.log", fuzzLimits(), room{memory: 1 << 20, ids: 64})
		o.record([]byte("#Fields: "+header), 1)
		o.record([]byte(text), 2)
		if o.end().lines > 1 {
			t.Fatal("one line was counted twice")
		}
	})
}

// FuzzScanner cuts bytes into records: nothing is lost but line ends, and the numbers of lines never go back.
func FuzzScanner(f *testing.F) {
	f.Add([]byte("<![LOG[a\nb]LOG]!><time=\"\">\nplain\n<![LOG[torn\n<![LOG[c]LOG]!>\n"), 16)
	f.Fuzz(func(t *testing.T, content []byte, limit int) {
		limits := fuzzLimits()
		limits.Line = 8 + limit&0xff
		s := newScanner(bytes.NewReader(content), limits, nil)
		total, number := 0, 0
		for {
			record, at, err := s.next()
			if err != nil {
				break
			}
			if at < number || len(record) > limits.Line+1 && bytes.IndexByte(record, '\n') < 0 {
				t.Fatalf("line %d after %d, %d bytes", at, number, len(record))
			}
			total, number = total+len(record), at
		}
		if int64(len(content)) <= limits.FileBytes && total+bytes.Count(content, newLine) < len(content) {
			t.Fatalf("%d bytes of %d", total, len(content))
		}
	})
}

// FuzzRedaction replaces names in any text, and never by something that would be replaced again.
func FuzzRedaction(f *testing.F) {
	f.Add(`URL=https://cmg.fabrikam.net/x FAB\PC-0417$ GUID:5B1D7E44-2B57-49D8-8C7B-0F0E8BB4A801 10.20.7.41`)
	f.Fuzz(func(t *testing.T, text string) {
		r := Report{Evidence: []Evidence{{"logs/a.log", 1, shown(text)}}}
		once := r.Redacted()
		if !utf8.ValidString(once.Evidence[0].Text) {
			t.Fatalf("not valid: %q", once.Evidence[0].Text)
		}
	})
}

// FuzzPage writes a page of any text: it stays text.
func FuzzPage(f *testing.F) {
	f.Add(hostile)
	f.Fuzz(func(t *testing.T, text string) {
		if !utf8.ValidString(text) {
			return
		}
		r := Report{Verdict: &Verdict{"E023", text, Likely}, Evidence: []Evidence{{text, 1, text}}, Followed: []string{text}, Events: []Event{{File: text, Text: text, Part: Part(text)}}}
		var b bytes.Buffer
		if err := r.WriteHTML(&b); err != nil {
			t.Fatal(err)
		}
		if tags := bytes.Count(b.Bytes(), []byte("<")); tags > 400 || bytes.Contains(b.Bytes(), []byte("<script")) || bytes.Contains(b.Bytes(), []byte("<img")) {
			t.Fatalf("%d tags: %s", tags, b.Bytes())
		}
	})
}
