package explain

import (
	"archive/zip"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"postern/catalog"
)

const forbidden = `<![LOG[[CCMHTTP] ERROR INFO: StatusCode= 403 StatusText= CMGConnector_Forbidden]LOG]!><time="09:00:00.000+00" date="03-11-2024" component="LocationServices" context="" type="3" thread="1" file="">`

// endless gives the same bytes again and again, so many in all, with what comes before and after.
func endless(before string, block []byte, size int64, after string) io.Reader {
	return io.MultiReader(strings.NewReader(before), io.LimitReader(&repeating{block: block}, size), strings.NewReader(after))
}

type repeating struct {
	block []byte
	at    int
}

func (r *repeating) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		copied := copy(p[n:], r.block[r.at:])
		n += copied
		r.at = (r.at + copied) % len(r.block)
	}
	return n, nil
}

// peak runs a reading and returns the most memory that was in use meanwhile, beyond what was before.
func peak(t *testing.T, in Input) (Report, uint64) {
	t.Helper()
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	most := before.HeapAlloc
	in.Progress = func(Progress) {
		runtime.ReadMemStats(&now)
		most = max(most, now.HeapAlloc)
	}
	report, err := Run(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return report, most - before.HeapAlloc
}

const memoryBound = 48 << 20

// A line of a gigabyte is read in pieces: what is in it is found, and the memory stays what it is.
func TestALineOfAGigabyte(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	report, memory := peak(t, Input{Paths: []string{"-"}, Stdin: endless("", bytes.Repeat([]byte("x"), 64<<10), size, forbidden+"\n")})
	if code(report) != catalog.SymptomConnectorForbidden || report.Evidence[0].Line != 1 {
		t.Errorf("got %v", report.Verdict)
	}
	if memory > memoryBound {
		t.Errorf("%d MiB of memory", memory>>20)
	}
}

// The memory does not depend on the size of a file: ids, marks and unanswered requests are bounded.
func TestMemoryIsBounded(t *testing.T) {
	size := int64(256 << 20)
	if testing.Short() {
		size = 64 << 20
	}
	folder := t.TempDir()
	paths, _ := siteLogs(t, folder, 4<<20)
	var block []byte
	for _, path := range paths[:1] {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		block = append(block, content...)
	}
	report, memory := peak(t, Input{Paths: []string{"-"}, Stdin: endless(forbidden+"\n", block, size, "\n"+forbidden+"\n")})
	if report.Verdict == nil {
		t.Errorf("got no verdict: %v", report.Undecided)
	}
	if memory > memoryBound {
		t.Errorf("%d MiB of memory", memory>>20)
	}
}

// A file with a hole of a gigabyte, as a crash of a file system leaves it.
func TestASparseFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "LocationServices.log")
	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(file, "%s\r\n", strings.ReplaceAll(string(noiseLines(1, 40)), "\r\n", "\n"))
	if _, err := file.WriteAt([]byte("\n"+forbidden+"\n"), size); err != nil {
		t.Fatal(err)
	}
	file.Close()
	report, memory := peak(t, Input{Paths: []string{path}})
	if code(report) != catalog.SymptomConnectorForbidden || memory > memoryBound {
		t.Errorf("got %v with %d MiB of memory", report.Verdict, memory>>20)
	}
}

func TestBytesThatAreNoText(t *testing.T) {
	cases := []struct {
		name    string
		content []byte
		want    catalog.Code
	}{
		{"records without line ends", []byte(strings.Repeat(strings.TrimSuffix(string(noiseLines(3, 1)), "\r\n"), 2000) + forbidden), "E023"},
		{"lines that end with a carriage return", []byte("one\r" + forbidden + "\rtwo\r"), "E023"},
		{"zero bytes in front, between and behind", []byte("\x00\x00\n" + string(make([]byte, 5000)) + "\n" + forbidden + "\x00\x00\x00\n"), "E023"},
		{"a zero byte after each line", []byte(string(noiseLines(2, 3)) + "\x00" + forbidden + "\n\x00"), "E023"},
		{"bytes that are no UTF-8", append([]byte("\xff\xfe\xfd \xc3\x28 \xed\xa0\x80\n\n"), []byte(forbidden+"\n")...), ""},
		{"Latin-1", []byte("Echec de la requ\xeate \xe9\xe8\n" + forbidden + "\n"), "E023"},
		{"UTF-16 with a lone surrogate", append(append([]byte{0xff, 0xfe, 0x00, 0xd8, 'x', 0, '\n', 0}, wide(forbidden)...), '\n', 0), "E023"},
		{"UTF-16 with a byte too many", append(append([]byte{0xff, 0xfe}, wide(forbidden+"\n")...), 'x'), "E023"},
		{"only a byte order mark", []byte{0xff, 0xfe}, ""},
		{"nothing", nil, ""},
		{"a record without an end, again and again", []byte(strings.Repeat("<![LOG[torn\n", 3000) + forbidden + "\n"), "E023"},
		{"a record that another begins in", []byte("<![LOG[first half of a line " + forbidden + "\n"), "E023"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			report, err := Run(t.Context(), Input{Paths: []string{"-"}, Stdin: bytes.NewReader(c.content)})
			if err != nil {
				t.Fatal(err)
			}
			if got := code(report); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			checkForm(t, report)
		})
	}
}

func wide(text string) []byte {
	_, out := toUTF16("", []byte(text))
	return out[2:]
}

// Members with names that lead elsewhere, links, encrypted and packed ones, bombs: nothing is written, and what was left unread
// is named.
func TestHostileArchives(t *testing.T) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	add := func(name string, content []byte) {
		member, err := w.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		member.Write(content)
	}
	add("../../../../tmp/escaped.log", []byte(forbidden+"\n"))
	add("/etc/absolute.log", []byte("nothing\n"))
	add(`C:\Windows\x.log`, []byte("nothing\n"))
	add("inner.zip", []byte("PK\x03\x04"))
	add("hidden.log", append([]byte("PK\x03\x04"), make([]byte, 100)...))
	add("bomb.log", bytes.Repeat([]byte("x"), 80<<20))
	add("\x1b[31mred\u202e.log", []byte("nothing\n"))
	link := &zip.FileHeader{Name: "link.log"}
	link.SetMode(os.ModeSymlink | 0o777)
	member, err := w.CreateHeader(link)
	if err != nil {
		t.Fatal(err)
	}
	member.Write([]byte("/etc/passwd"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	write(t, filepath.Join(folder, "a.zip"), b.Bytes())
	write(t, filepath.Join(folder, "packed.log.gz"), []byte{0x1f, 0x8b, 8, 0})
	write(t, filepath.Join(folder, "folder.tar.gz"), []byte{0x1f, 0x8b, 8, 0})
	write(t, filepath.Join(folder, "cabinet.cab"), []byte("MSCF\x00\x00\x00\x00"))
	write(t, filepath.Join(folder, "broken.zip"), append([]byte("PK\x03\x04"), make([]byte, 40)...))
	report := run(t, folder)
	if code(report) != catalog.SymptomConnectorForbidden {
		t.Errorf("got %v", report.Verdict)
	}
	said := strings.Join(report.Undecided, "\n")
	for _, want := range []string{"inner.zip was not read", "hidden.log was not read", "bomb.log was read to line", "link.log was not read", "packed.log.gz cannot be read", "folder.tar.gz was not read", "cabinet.cab was not read", "broken.zip is not a zip archive"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not said: %s", want, said)
		}
	}
	if strings.ContainsAny(said+written(report), "\x1b\u202e") {
		t.Error("a control character came through")
	}
	entries, err := os.ReadDir(folder)
	if err != nil || len(entries) != 5 {
		t.Errorf("the folder has %d entries now, %v", len(entries), err)
	}
}

func TestUnreadableFilesAreNamed(t *testing.T) {
	folder := t.TempDir()
	write(t, filepath.Join(folder, "good.log"), []byte(forbidden+"\n"))
	os.Symlink(filepath.Join(folder, "nowhere"), filepath.Join(folder, "link.log"))
	named := filepath.Join(folder, "link.log")
	report := run(t, folder, named)
	if code(report) != catalog.SymptomConnectorForbidden || !strings.Contains(strings.Join(report.Undecided, "\n"), "link.log cannot be read") {
		t.Errorf("got %v, %q", report.Verdict, report.Undecided)
	}
	r := &reading{limits: DefaultLimits()}
	f, err := r.file(t.Context(), "bad.log", io.MultiReader(strings.NewReader(forbidden+"\n"), failing{}), DefaultLimits())
	if err != nil || len(f.notes) != 1 || !strings.Contains(f.notes[0], "bad.log was read to line 1 only: the disk is gone") {
		t.Errorf("got %v, %v", f.notes, err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, fmt.Errorf("the disk is gone") }

// Many files: more than the limit are not read, and that is said. The limit is lowered from its hundred thousand here, so that
// the test does not have to make as many.
func TestManyFiles(t *testing.T) {
	folder := t.TempDir()
	for i := range 1200 {
		write(t, filepath.Join(folder, fmt.Sprintf("%04d.log", i)), []byte(forbidden+"\n"))
	}
	limits := DefaultLimits()
	limits.Files = 1000
	report, err := Run(t.Context(), Input{Paths: []string{folder}, Limits: limits})
	if err != nil || code(report) != catalog.SymptomConnectorForbidden || !strings.Contains(strings.Join(report.Undecided, "\n"), "only the first 1000 files were read") {
		t.Errorf("got %v, %q, %v", report.Verdict, report.Undecided, err)
	}
	if len(report.Evidence) > 24 || len(report.Events) > 120 || len(report.Looked) > 60 {
		t.Errorf("%d lines of evidence, %d events, %d files looked at", len(report.Evidence), len(report.Events), len(report.Looked))
	}
}

func TestTheReadingEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	in := Input{Paths: []string{"-"}, Stdin: endless("", noiseLines(1, 500), 1<<40, ""), Progress: func(Progress) { cancel() }}
	if _, err := Run(ctx, in); err != context.Canceled {
		t.Errorf("got %v", err)
	}
}

// A reading that goes on sees files grow, be cut and be put aside; it tells only of what is new, and ends with its context.
func TestFollow(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "LocationServices.log")
	well := strings.Replace(forbidden, "[CCMHTTP] ERROR INFO: StatusCode= 403 StatusText= CMGConnector_Forbidden", "Message '{A}' got reply message '{B}' to endpoint 'dummy'", 1)
	well = strings.Replace(well, `type="3"`, `type="1"`, 1)
	refused := strings.Replace(forbidden, "403 StatusText= CMGConnector_Forbidden", "401 StatusText= CMGService_Invalid_Token", 1)
	steps := []struct {
		name string
		act  func()
		want catalog.Code // "-" when nothing is told
	}{
		{"the same again", func() {}, "-"},
		{"a line more of what is known", func() { appendTo(t, path, forbidden+"\n") }, "-"},
		{"put aside, and a new one that is well", func() {
			os.Rename(path, strings.TrimSuffix(path, ".log")+".lo_")
			write(t, path, []byte(well+"\n"))
		}, catalog.Healthy},
		{"the older one removed", func() { os.Remove(strings.TrimSuffix(path, ".log") + ".lo_") }, catalog.Healthy}, // E023 is not even seen any more
		{"half a line", func() { appendTo(t, path, forbidden[:20]) }, "-"},
		{"cut, and another failure", func() { write(t, path, []byte(refused+"\n")) }, catalog.SymptomGatewayInvalidToken},
		{"gone", func() { os.Remove(path) }, "-"},
		{"back", func() { write(t, path, []byte(well+"\n"+forbidden+"\n")) }, catalog.SymptomConnectorForbidden},
	}
	write(t, path, []byte(forbidden+"\n"))
	ctx, cancel := context.WithCancel(t.Context())
	ticks, told, later := make(chan time.Time), make(chan catalog.Code, 1), time.Now().Add(24*time.Hour)
	done := make(chan error)
	go func() {
		done <- Follow(ctx, Input{Paths: []string{folder}}, ticks, func(r Report) { told <- code(r) })
	}()
	if got := <-told; got != catalog.SymptomConnectorForbidden {
		t.Fatalf("at the beginning: got %q", got)
	}
	for _, s := range steps {
		s.act()
		ticks <- later
		ticks <- time.Time{} // comes too soon, and is taken only when the reading has ended
		got := catalog.Code("-")
		select {
		case got = <-told:
		default:
		}
		if got != s.want {
			t.Errorf("%s: got %q, want %q", s.name, got, s.want)
		}
	}
	ticks <- time.Time{} // taken when the last reading has ended
	write(t, path, []byte(refused+"\n"))
	ticks <- time.Time{}
	ticks <- time.Time{} // too soon after it, both
	select {
	case got := <-told:
		t.Errorf("a tick too soon: got %q", got)
	default:
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("got %v at the end", err)
	}
	if err := Follow(t.Context(), Input{Paths: []string{filepath.Join(folder, "nothing")}}, ticks, nil); catalog.CodeOf(err) != catalog.ExplainNothingRead {
		t.Errorf("a path that leads nowhere: got %v", err)
	}
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(text); err != nil {
		t.Fatal(err)
	}
}
