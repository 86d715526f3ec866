package logfile

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func fixed() time.Time { return time.Date(2026, 3, 4, 5, 6, 7, 8e6, time.UTC) }

func content(t testing.TB, elements ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elements...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func readAll(t testing.TB, file string) []Record {
	t.Helper()
	var records []Record
	for record, err := range Read(strings.NewReader(file), DefaultReadLimits()) {
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, record)
	}
	return records
}

func TestLogWritesItsComponent(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, File{Name: "MP_RegistrationManager.log", Now: fixed})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.Infof("Processing Registration request from Client '%s'", "GUID:1")
	l.Warningf("w")
	l.Errorf("e %d", 7)
	records := readAll(t, content(t, dir, "MP_RegistrationManager.log"))
	if len(records) != 3 {
		t.Fatalf("got %d records", len(records))
	}
	want := Record{Format: Client, Time: fixed(), Severity: Info, Component: "MP_RegistrationManager", Thread: Thread("MP_RegistrationManager"),
		Message: "Processing Registration request from Client 'GUID:1'", Line: 1}
	if got := records[0]; got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if records[1].Severity != Warning || records[2].Severity != Error || records[2].Message != "e 7" {
		t.Errorf("got %+v", records[1:])
	}
}

type named string

func TestArgumentsCannotBeginALine(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, File{Name: "a.log", Now: fixed})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.Infof("first\nsecond %s %v %s %d", "x\nforged", errors.New("y\nforged"), named("z\nforged"), 3)
	got := readAll(t, content(t, dir, "a.log"))[0].Message
	want := "first\nsecond x\\nforged y\\nforged z\\nforged 3"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// refusal is an error whose methods, as usual, need more than a nil pointer.
type refusal struct{ why string }

func (r *refusal) Error() string { return r.why }

func TestAnArgumentThatIsANilPointerIsPrintedAsFmtDoes(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, File{Name: "a.log", Now: fixed})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var none *refusal
	l.Infof("refused: %v", error(none))
	if got, want := readAll(t, content(t, dir, "a.log"))[0].Message, "refused: <nil>"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestVerboseLinesFollowTheSwitch(t *testing.T) {
	dir := t.TempDir()
	folder := NewFolder(dir, Options{Now: fixed})
	defer folder.Close()
	l := folder.Log(File{Name: "SMS_CLOUD_PROXYCONNECTOR.log", Format: Server})
	l.Verbosef("off")
	folder.Verbose("sms_cloud_proxyconnector", true)
	l.Verbosef("on")
	folder.Verbose("", false)
	l.Verbosef("off again")
	folder.Verbose("Later", true)
	folder.Log(File{Name: "Later.log"}).Verbosef("on from the start")
	if got := readAll(t, content(t, dir, "SMS_CLOUD_PROXYCONNECTOR.log")); len(got) != 1 || got[0].Message != "on" {
		t.Errorf("got %+v", got)
	}
	if got := readAll(t, content(t, dir, "Later.log")); len(got) != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestFolderOpensFilesAtTheFirstLine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	folder := NewFolder(dir, Options{})
	defer folder.Close()
	l := folder.Log(File{Name: "CCM_STS.log"})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder exists before the first line: %v", err)
	}
	if again := folder.Log(File{Name: "ccm_sts.log"}); again != l {
		t.Error("the same file gave another log")
	}
	l.Infof("x")
	if got := len(readAll(t, content(t, dir, "CCM_STS.log"))); got != 1 {
		t.Errorf("got %d records", got)
	}
	if got := folder.Components(); len(got) != 1 || got[0].Name != "CCM_STS" || got[0].Verbose {
		t.Errorf("got %+v", got)
	}
}

func TestRotationKeepsOneOlderGeneration(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, File{Name: "CMGService.log", Format: Server, Limit: 1000, Now: fixed})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		l.Infof("line %02d", i)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.Infof("line 40") // a closed log opens its file again
	l.Close()
	now, before := content(t, dir, "CMGService.log"), content(t, dir, "CMGService.lo_")
	if len(now) > 1000 || len(before) > 1000 {
		t.Errorf("got %d and %d bytes, want at most 1000", len(now), len(before))
	}
	records := append(readAll(t, before), readAll(t, now)...)
	for i, record := range records {
		if want := fmt.Sprintf("line %02d", 41-len(records)+i); record.Message != want {
			t.Errorf("got %q, want %q", record.Message, want)
		}
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 2 {
		t.Errorf("got %d files, want 2", len(entries))
	}
}

func TestConcurrentLinesStayWhole(t *testing.T) {
	dir := t.TempDir()
	folder := NewFolder(dir, Options{Limit: 1 << 20})
	defer folder.Close()
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			for i := range 50 {
				folder.Log(File{Name: "a.log"}).Infof("worker %d line %d %s", worker, i, strings.Repeat("x", i))
				folder.Verbose("a", i%2 == 0)
			}
		})
	}
	group.Wait()
	records := readAll(t, content(t, dir, "a.log"))
	if len(records) != 400 {
		t.Errorf("got %d records, want 400", len(records))
	}
	for _, record := range records {
		if record.Format != Client {
			t.Errorf("broken line: %q", record.Message)
		}
	}
}

func TestAnUnwritableLogCountsItsLines(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	folder := NewFolder(filepath.Join(file, "below"), Options{})
	folder.Log(File{Name: "a.log"}).Infof("x")
	folder.Access("b.log").Write(AccessRecord{})
	slog.New(folder.Events("c.json")).Info("x")
	if got := folder.Lost(); got != 3 {
		t.Errorf("got %d lost lines, want 3", got)
	}
	if _, err := Open(filepath.Join(file, "below"), File{Name: "a.log"}); err == nil {
		t.Error("opened a log below a file")
	}
}

func TestNothingIsWrittenByANilLog(t *testing.T) {
	var folder *Folder
	for _, l := range []*Log{nil, folder.Log(File{Name: "a.log"})} {
		l.Infof("x")
		l.Verbosef("x")
		l.SetVerbose(true)
		l.Write(Record{})
		if l.Verbose() || l.Path() != "" || l.Component() != "" || l.Lost() != 0 || l.Close() != nil {
			t.Error("a nil log has a state")
		}
	}
	folder.Access("a").Write(AccessRecord{})
	folder.Verbose("", true)
	slog.New(folder.Events("e")).With("a", 1).WithGroup("g").Info("x")
	if folder.Components() != nil || folder.Lost() != 0 || folder.Dir() != "" || folder.Close() != nil {
		t.Error("a nil folder has a state")
	}
}

func TestFilesAreNotForEverybody(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such modes")
	}
	dir := t.TempDir()
	l, err := Open(filepath.Join(dir, "logs"), File{Name: "../../a.log"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Stat(filepath.Join(dir, "logs", "a.log")) // the name cannot leave the folder
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm() & 0o007; got != 0 {
		t.Errorf("got mode %v", info.Mode())
	}
}

func TestAccessLogHasItsHeaderInEachFile(t *testing.T) {
	dir := t.TempDir()
	l := newAccessLog(dir, File{Name: "u_ex.log", Limit: 2000, Now: fixed})
	defer l.Close()
	for range 30 {
		l.Write(AccessRecord{ServerAddress: "127.0.0.1", Method: "CCM_POST", Stem: "/ccm_system_windowsauth/request", Port: 80, ClientAddress: "127.0.0.1", UserAgent: "ccmhttp", Status: 401, SubStatus: 2, Windows: 2148074254})
	}
	for _, name := range []string{"u_ex.log", "u_ex.lo_"} {
		file := content(t, dir, name)
		if !strings.HasPrefix(file, "#Software: Postern\r\n#Version: 1.0\r\n#Date: 2026-03-04 05:06:07\r\n#Fields: date time s-ip cs-method ") {
			t.Errorf("%s begins %q", name, file[:80])
		}
		for _, record := range readAll(t, file) {
			if record.Format != W3C || record.Access.Windows != 2148074254 || !record.Time.Equal(fixed().Truncate(time.Second)) {
				t.Errorf("got %+v", record)
			}
		}
	}
}

func TestEventsCarryTheIdsOfTheirContext(t *testing.T) {
	dir := t.TempDir()
	folder := NewFolder(dir, Options{})
	defer folder.Close()
	events := folder.Events("postern.json")
	logger := slog.New(events).With("role", "gateway")
	trace := NewTrace([24]byte{1, 2, 3})
	ctx := WithMessage(WithTrace(t.Context(), trace), "m1")
	logger.InfoContext(ctx, "admit", "path", "/CCM_STS")
	logger.DebugContext(ctx, "hidden")
	folder.Verbose("", true)
	logger.DebugContext(ctx, "shown")

	var got []map[string]any
	lines := bufio.NewScanner(strings.NewReader(content(t, dir, "postern.json")))
	for lines.Scan() {
		event := map[string]any{}
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			t.Fatal(err)
		}
		got = append(got, event)
	}
	if len(got) != 2 {
		t.Fatalf("got %d events, want 2", len(got))
	}
	for key, want := range map[string]string{"trace_id": trace.ID, "span_id": trace.Span, "message_id": "m1", "role": "gateway", "path": "/CCM_STS"} {
		if got[0][key] != want {
			t.Errorf("%s: got %v, want %v", key, got[0][key], want)
		}
	}
}

func TestTraceparent(t *testing.T) {
	trace := NewTrace([24]byte{1, 2, 3, 23: 9})
	if got, ok := ParseTraceparent(trace.Traceparent()); !ok || got != trace {
		t.Errorf("got %+v, want %+v", got, trace)
	}
	for name, value := range map[string]string{
		"empty":           "",
		"all zero":        "00-00000000000000000000000000000000-0000000000000000-00",
		"upper case":      "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
		"forbidden":       "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"more in 00":      "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
		"line break":      "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333\n-01",
		"part is missing": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331aaaa",
	} {
		if got, ok := ParseTraceparent(value); ok {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if got := (Trace{}).Traceparent(); got != "" {
		t.Errorf("got %q", got)
	}
}

func BenchmarkInfof(b *testing.B) {
	l, err := Open(b.TempDir(), File{Name: "a.log"})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	b.ReportAllocs()
	for b.Loop() {
		l.Infof("Processing Registration request from Client '%s'", "GUID:11111111-2222-3333-4444-555555555555")
	}
}

func TestWriteIsOneCallWithOneBuffer(t *testing.T) {
	record := Record{Format: Client, Time: fixed(), Severity: Info, Component: "A", Thread: 4, Message: "a message"}
	buffer := make([]byte, 0, 512)
	if got := testing.AllocsPerRun(100, func() { buffer = record.Append(buffer[:0]) }); got > 0 {
		t.Errorf("got %v allocations for a line", got)
	}
	if !bytes.HasSuffix(buffer, []byte("\r\n")) {
		t.Errorf("got %q", buffer)
	}
}
