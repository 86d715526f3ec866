package role

import (
	"bytes"
	"database/sql"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/site"
	"postern/token"
)

// notary is a site on a real file with the part of a management point that signs checkpoints, and a clock that only the test moves.
type notary struct {
	*testing.T
	*checkpoints
	site   *site.Site
	config Config
	clock  time.Time
	logged bytes.Buffer
}

func notaryOf(t *testing.T) *notary {
	w := &notary{T: t, clock: time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC)}
	now := func() time.Time { return w.clock }
	made, err := InitSite(t.Context(), NewSite{Dir: filepath.Join(t.TempDir(), "site"), Code: "P01", Actor: "test"}, Protection{}, now)
	if err != nil {
		t.Fatal(err)
	}
	if w.config, err = Load(made.Config); err != nil {
		t.Fatal(err)
	}
	opened, err := OpenSite(t.Context(), w.config, Protection{}, now, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close() })
	w.site = opened.Site
	w.start()
	return w
}

// start begins anew, as after a restart.
func (w *notary) start() {
	w.checkpoints = newCheckpoints(w.config, w.site, func() time.Time { return w.clock }, slog.New(slog.NewTextHandler(&w.logged, nil)))
	w.entries = 5
}

// change makes so many entries.
func (w *notary) change(n int) {
	w.Helper()
	for range n {
		if _, _, err := w.site.NewBulkToken(w.Context(), site.NewBulk{By: "test"}); err != nil {
			w.Fatal(err)
		}
	}
}

// signed returns the entries of which there are checkpoints in the file.
func (w *notary) signed() (all []uint64) {
	w.Helper()
	raws, err := ReadCheckpoints(w.path)
	if err != nil {
		w.Fatal(err)
	}
	for _, raw := range raws {
		c, err := w.site.OpenCheckpoint(w.Context(), raw)
		if err != nil {
			w.Fatal(err)
		}
		all = append(all, c.Sequence)
	}
	return all
}

// looks fails unless one look ends with that code and leaves checkpoints of these entries.
func (w *notary) looks(what string, code catalog.Code, want ...uint64) {
	w.Helper()
	err := w.look(w.Context())
	w.tell(err)
	if catalog.CodeOf(err) != code || err != nil && code == "" {
		w.Errorf("%s: %v, want code %q", what, err, code)
	}
	if got := w.signed(); len(got) != len(want) || len(got) > 0 && got[len(got)-1] != want[len(want)-1] {
		w.Errorf("%s: there are checkpoints of %v, want %v", what, got, want)
	}
	h := Health{OK: true}
	if w.health(&h); h.OK != (code == "") || code != "" && len(h.Problem) != 1 {
		w.Errorf("%s: the health is %+v", what, h)
	}
}

// tamper changes the store behind the site's back.
func (w *notary) tamper(statements ...string) {
	w.Helper()
	db, err := sql.Open("sqlite", w.config.Store+"?_pragma=busy_timeout(5000)")
	if err != nil {
		w.Fatal(err)
	}
	defer db.Close()
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			w.Fatalf("%s: %v", statement, err)
		}
	}
}

func TestCheckpointsAreSignedInTime(t *testing.T) {
	w := notaryOf(t)
	w.looks("at the start", "", 1)
	w.looks("nothing new", "", 1)
	w.change(4)
	w.looks("a few new ones", "", 1)
	w.change(1)
	w.looks("as many as are due", "", 1, 6)
	w.change(1)
	w.clock = w.clock.Add(59 * time.Minute)
	w.looks("in less than an hour", "", 1, 6)
	w.start()
	w.looks("after a restart", "", 1, 6)
	w.clock = w.clock.Add(time.Minute)
	w.looks("after an hour", "", 1, 6, 7)
	w.clock = w.clock.Add(48 * time.Hour)
	w.looks("nothing new for days", "", 1, 6, 7)
	w.change(1)
	w.clock = w.clock.Add(-400 * 24 * time.Hour)
	w.looks("a clock set back", "", 1, 6, 7, 8)
	if info, err := os.Stat(w.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info.Mode(), err)
	}
	if text := w.logged.String(); !strings.Contains(text, "sequence=7") || strings.Contains(text, "eyJ") {
		t.Errorf("the log says %s", text)
	}
}

func TestCheckpointsOfALogThatWasTamperedWith(t *testing.T) {
	w := notaryOf(t)
	w.change(5)
	w.looks("at the start", "", 6)
	w.tamper("drop trigger trust_log_no_update", "drop trigger trust_log_no_delete", "delete from trust_log where sequence > 4")
	w.looks("cut off", catalog.TrustLogCutOff, 6)
	w.looks("still cut off", catalog.TrustLogCutOff, 6)
	if n := strings.Count(w.logged.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d alarms in the log, want one an hour", n)
	}
	w.start()
	w.looks("after a restart", catalog.TrustLogCutOff, 6)
	w.change(2)
	w.looks("grown to the same length", catalog.TrustLogRewritten, 6)
	w.change(10)
	w.looks("grown beyond", catalog.TrustLogRewritten, 6)
	if n := strings.Count(w.logged.String(), "level=ERROR"); n != 3 {
		t.Errorf("%d alarms in the log, want one for each that is new", n)
	}

	seen, err := w.site.OpenCheckpoint(t.Context(), w.raw(0))
	if err != nil {
		t.Fatal(err)
	}
	w.clock = w.clock.Add(time.Minute)
	accepted, _, err := w.site.AcceptTrustLog(t.Context(), []token.Checkpoint{seen}, "a copy", "anna")
	if err != nil {
		t.Fatal(err)
	}
	if err := AppendCheckpoint(w.path, accepted); err != nil {
		t.Fatal(err)
	}
	w.looks("accepted by a person", "", 6, 17)
	w.change(5)
	w.looks("and on", "", 6, 17, 22)
}

// TestTailThatWasCutOffBetweenCheckpoints: what no checkpoint has seen yet, the running management point has.
func TestTailThatWasCutOffBetweenCheckpoints(t *testing.T) {
	w := notaryOf(t)
	w.looks("at the start", "", 1)
	w.change(3)
	w.looks("a few new ones", "", 1)
	w.tamper("drop trigger trust_log_no_update", "drop trigger trust_log_no_delete", "delete from trust_log where sequence > 2")
	verified := func(what string, want catalog.Code) {
		t.Helper()
		report, err := w.site.Audit(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := catalog.CodeOf(report.Err()); got != want {
			t.Errorf("%s: the audit says %v, want %q", what, report.Err(), want)
		}
	}
	w.looks("cut off", catalog.TrustLogCutOff, 1)
	verified("cut off", catalog.TrustLogCutOff)
	if _, signed, err := w.site.TrustPage(t.Context(), 0, 100); catalog.CodeOf(err) != catalog.TrustLogCutOff || signed != "" {
		t.Errorf("what was cut off is exported, signed %q: %v", signed, err)
	}
	w.change(2)
	w.looks("grown to the same length", catalog.TrustLogRewritten, 1)
	verified("grown to the same length", catalog.TrustLogRewritten)
	w.change(2)
	w.looks("grown beyond", catalog.TrustLogRewritten, 1)
	verified("grown beyond", catalog.TrustLogRewritten)
	accepted, _, err := w.site.AcceptTrustLog(t.Context(), nil, "a copy", "anna")
	if err != nil {
		t.Fatal(err)
	}
	if err := AppendCheckpoint(w.path, accepted); err != nil {
		t.Fatal(err)
	}
	w.looks("accepted by a person", "", 1, 7)
	verified("accepted by a person", "")
	w.change(2)
	if err := w.end(t.Context()); err != nil || !slices.Equal(w.signed(), []uint64{1, 7, 9}) {
		t.Errorf("at the end of the role there are checkpoints of %v, %v", w.signed(), err)
	}
	if err := w.end(t.Context()); err != nil || len(w.signed()) != 3 {
		t.Errorf("and where nothing is new: %v, %v", w.signed(), err)
	}
}

func (w *notary) raw(n int) string {
	w.Helper()
	raws, err := ReadCheckpoints(w.path)
	if err != nil || n >= len(raws) {
		w.Fatalf("%d checkpoints, %v", len(raws), err)
	}
	return raws[n]
}

// TestCheckpointFileThatACrashCutOff: what a crash left of a line takes away neither the checkpoints before it nor those after.
func TestCheckpointFileThatACrashCutOff(t *testing.T) {
	w := notaryOf(t)
	w.looks("at the start", "", 1)
	file, err := os.OpenFile(w.path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(`{"checkpoint":"eyJhbGci`); err != nil {
		t.Fatal(err)
	}
	file.Close()
	w.start()
	w.change(5)
	if err := w.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	raws, err := ReadCheckpoints(w.path)
	if len(raws) != 2 || catalog.CodeOf(err) != catalog.CheckpointMalformed {
		t.Fatalf("%d checkpoints, %v", len(raws), err)
	}
	w.start()
	if err := w.reread(t.Context()); err != nil || w.last.Sequence != 6 {
		t.Errorf("the newest is of entry %d, %v", w.last.Sequence, err)
	}
}

func TestCheckpointFileThatCannotBeWritten(t *testing.T) {
	w := notaryOf(t)
	if err := os.MkdirAll(w.path, 0o700); err != nil { // a folder in its place
		t.Fatal(err)
	}
	if err := w.look(t.Context()); catalog.CodeOf(err) != catalog.AuditFile {
		t.Errorf("got %v, want code %s", err, catalog.AuditFile)
	}
}
