package explain

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/catalog"
)

func zipped(t testing.TB, add func(w *zip.Writer)) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	add(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(content)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Logs that were put aside and packed one by one are read; what unpacks to too much, and what is a packed folder under another name,
// is not, and that is said.
func TestGzipFiles(t *testing.T) {
	tar := make([]byte, 1024)
	copy(tar, "logs/LocationServices.log")
	copy(tar[tarAt:], "ustar\x00")
	cases := []struct {
		name    string
		content []byte
		want    catalog.Code
		says    string
	}{
		{"a log", gzipped(t, []byte(forbidden+"\n")), catalog.SymptomConnectorForbidden, ""},
		{"two of them, one after the other", append(gzipped(t, noiseLines(1, 9)), gzipped(t, []byte(forbidden+"\n"))...), catalog.SymptomConnectorForbidden, ""},
		{"in UTF-16", gzipped(t, append([]byte{0xff, 0xfe}, wide(forbidden)...)), catalog.SymptomConnectorForbidden, ""},
		{"one that unpacks to far more", gzipped(t, bytes.Repeat([]byte("x"), 40<<20)), "", "unpacks to far more"},
		{"one that was cut", gzipped(t, []byte(strings.Repeat(forbidden+"\n", 9)))[:60], "", "was read to line"},
		{"a packed folder", gzipped(t, append(tar, forbidden...)), "", "holds no text"},
		{"a packed one in a packed one", gzipped(t, gzipped(t, []byte(forbidden))), "", "holds no text"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "LocationServices.log.gz")
			write(t, path, c.content)
			report := run(t, path)
			if got, said := code(report), strings.Join(report.Undecided, "\n"); got != c.want || !strings.Contains(said, c.says) {
				t.Errorf("got %q and %q, want %q and %q", got, said, c.want, c.says)
			}
		})
	}
}

// The list of an archive's members is read as far as it may be long, whatever the archive says of it.
func TestAnArchiveWithALongList(t *testing.T) {
	content := zipped(t, func(w *zip.Writer) {
		for i := range 3000 {
			w.Create(fmt.Sprintf("%04d-%s.log", i, strings.Repeat("x", 100)))
		}
	})
	copy(content[len(content)-14:], []byte{1, 0, 1, 0}) // "one member"
	path := filepath.Join(t.TempDir(), "logs.zip")
	write(t, path, content)
	limits := DefaultLimits()
	limits.Directory = 100 << 10
	_, err := Run(t.Context(), Input{Paths: []string{path}, Limits: limits})
	if catalog.CodeOf(err) != catalog.ExplainNothingRead || !strings.Contains(err.Error(), "list of files is too long") {
		t.Errorf("got %v", err)
	}
}

// All members of one archive together may become no more than its size allows.
func TestManyMembersThatUnpackToMuch(t *testing.T) {
	bombs := t.TempDir()
	write(t, filepath.Join(bombs, "b.zip"), zipped(t, func(w *zip.Writer) {
		for i := range 90 { // each becomes no more than one may
			member, _ := w.Create(fmt.Sprintf("%d.log", i))
			member.Write(bytes.Repeat([]byte("x"), 1<<20))
		}
	}))
	report := run(t, bombs)
	if said := strings.Join(report.Undecided, "\n"); !strings.Contains(said, "b.zip!9") || !strings.Contains(said, "unpacks to far more") {
		t.Errorf("got %q", said)
	}
}

// A link that a person names is followed; links inside a folder are not.
func TestALinkToAFolder(t *testing.T) {
	folder := t.TempDir()
	write(t, filepath.Join(folder, "logs", "LocationServices.log"), []byte(forbidden+"\n"))
	link := filepath.Join(folder, "link")
	if err := os.Symlink("logs", link); err != nil {
		t.Fatal(err)
	}
	if got := code(run(t, link)); got != catalog.SymptomConnectorForbidden {
		t.Errorf("got %q", got)
	}
	if report := run(t, folder); len(report.Looked) != 1 {
		t.Errorf("got %q, want the file once", report.Looked)
	}
}
