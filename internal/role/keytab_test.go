package role

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/keytab"

	"postern/auth"
	"postern/auth/kerberos"
	"postern/catalog"
)

// keytabOf is a keytab's content with one key of an encryption type.
func keytabOf(t *testing.T, principal string, kind int32) []byte {
	t.Helper()
	keys := keytab.New()
	if err := keys.AddEntry(principal, "CORP.EXAMPLE", "secret", time.Unix(1, 0), 1, kind); err != nil {
		t.Fatal(err)
	}
	raw, err := keys.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// watched is a management point's Windows authentication without the management point.
type watched struct {
	*windows
	t   *testing.T
	log bytes.Buffer
}

func newWatched(t *testing.T) *watched {
	t.Helper()
	w := &watched{t: t, windows: &windows{path: filepath.Join(t.TempDir(), "mp.keytab")}}
	w.write(keytabOf(t, "HTTP/first", 18))
	first, err := w.load()
	if err != nil {
		t.Fatal(err)
	}
	if w.acceptor, err = kerberos.New(kerberos.Config{Keytab: first, Replay: auth.NewMemory(1, time.Now)}); err != nil {
		t.Fatal(err)
	}
	w.taken(first)
	return w
}

func (w *watched) write(content []byte) {
	w.t.Helper()
	if err := os.WriteFile(w.path, content, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// now looks at the file and returns what health says of it.
func (w *watched) now() (principals []string, problems string) {
	w.refresh(slog.New(slog.NewTextHandler(&w.log, nil)))
	h := Health{OK: true, Detail: map[string]any{}}
	w.health(&h)
	return h.Detail["kerberos"].(map[string]any)["principals"].([]string), strings.Join(h.Problem, "; ")
}

func TestAKeytabThatIsNotTakenLeavesTheOneBefore(t *testing.T) {
	w := newWatched(t)
	first := []string{"HTTP/first@CORP.EXAMPLE"}
	for _, test := range []struct {
		name    string
		content []byte
	}{{"noise", []byte("noise")}, {"RC4 alone", keytabOf(t, "HTTP/weak", 23)}} {
		w.write(test.content)
		if got, problems := w.now(); !slices.Equal(got, first) || !strings.Contains(problems, "stays in use") {
			t.Errorf("%s: health names %v, %q; want the keytab in use and why the other is not", test.name, got, problems)
		}
	}
	w.write(keytabOf(t, "HTTP/second", 18))
	if got, problems := w.now(); !slices.Equal(got, []string{"HTTP/second@CORP.EXAMPLE"}) || problems != "" {
		t.Errorf("the good one after it: %v, %q", got, problems)
	}
}

// A file that goes and comes back looks as before.
func TestAKeytabThatComesBackIsNoProblem(t *testing.T) {
	w := newWatched(t)
	if err := os.Rename(w.path, w.path+".away"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, problems := w.now(); !strings.Contains(problems, "stays in use") {
			t.Errorf("while it is away: %q", problems)
		}
	}
	if got := strings.Count(w.log.String(), "not taken"); got != 1 {
		t.Errorf("logged %d times, want once", got)
	}
	if err := os.Rename(w.path+".away", w.path); err != nil {
		t.Fatal(err)
	}
	if _, problems := w.now(); problems != "" {
		t.Errorf("after it came back: %q", problems)
	}
}

// A copy with the times of the original (cp -p, rsync -t) is another file all the same.
func TestAnotherKeytabWithTheSameTimesIsSeen(t *testing.T) {
	w := newWatched(t)
	before, err := os.Stat(w.path)
	if err != nil {
		t.Fatal(err)
	}
	copied := w.path + ".new"
	if err := os.WriteFile(copied, keytabOf(t, "HTTP/other", 18), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(copied, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(copied, w.path); err != nil {
		t.Fatal(err)
	}
	if got, _ := w.now(); !slices.Equal(got, []string{"HTTP/other@CORP.EXAMPLE"}) {
		t.Errorf("got %v, want the other keytab's", got)
	}
}

func TestKerberosSettingsAreChecked(t *testing.T) {
	point := "role: management-point\nname: x\nstore: a\nsite_key: b\nlisten: {https: ':1'}\n"
	for name, test := range map[string]struct{ content, says string }{
		"unknown binding":                  {point + "kerberos: {keytab: k, channel_binding: sometimes}\n", "kerberos.channel_binding"},
		"unknown binding without a keytab": {point + "kerberos: {channel_binding: sometimes}\n", "kerberos.channel_binding"},
		"at a gateway":                     {"role: gateway\nname: x\nsite_root: y\nlisten: {https: ':1'}\nkerberos: {keytab: k}\n", "management point"},
		"required":                         {point + "kerberos: {keytab: k, channel_binding: required}\n", ""},
	} {
		_, err := parse(filepath.Join(t.TempDir(), "role.yaml"), []byte(test.content))
		if test.says == "" && err == nil {
			continue
		}
		if catalog.CodeOf(err) != catalog.ConfigInvalid || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v, want one that says %q", name, err, test.says)
		}
	}
}
