package site_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/proof"
	"postern/site"
	"postern/token"
)

func auditStories() []story {
	stories := []story{
		{"C113 a whole log with its checkpoints is whole", wholeLog},
		{"C113 a checkpoint is signed only of the log that the last one saw", checkpointOfTheSameLog},
		{"C119 a restored backup is no alarm, and says so", restoredLog},
		{"C113 a person accepts what a database lost, and no broken log", acceptedLog},
		{"a checkpoint of others is refused", foreignCheckpoints},
		{"an export is verified without the site", exported},
		{"C46 a bulk token is exchanged in its networks only", bulkInNetworks},
		{"C46 a bulk token registers computers of its names only", bulkForNames},
	}
	for _, c := range tamperings() {
		stories = append(stories, story{"C113 " + c.name, c.tell})
	}
	return stories
}

// checkpoint signs one and reads it as a verification does.
func (w *world) checkpoint(t testing.TB) token.Checkpoint {
	t.Helper()
	signed, made, err := w.Checkpoint(t.Context(), token.Checkpoint{})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := w.OpenCheckpoint(t.Context(), signed)
	if err != nil || opened != made {
		t.Fatalf("got %+v, %v, want %+v", opened, err, made)
	}
	return made
}

func (w *world) audited(t testing.TB, checkpoints ...token.Checkpoint) site.AuditReport {
	t.Helper()
	report, err := w.Audit(t.Context(), checkpoints)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// findings are the findings of a report in short.
func findings(r site.AuditReport) string {
	var texts []string
	for _, f := range r.Findings {
		texts = append(texts, fmt.Sprint(f.Kind, " ", f.Entry))
	}
	return strings.Join(texts, ", ")
}

func wholeLog(t *testing.T, w *world) {
	first := w.checkpoint(t)
	fill(t, w)
	w.clock.advance(time.Hour)
	second := w.checkpoint(t)
	r := w.audited(t, second, first)
	head := w.entries(t)[5]
	if r.Err() != nil || r.First != 1 || r.Last != 6 || r.Hash != head.Hash || r.Fitting != 2 || r.Newest != second || !r.Begins.Equal(truncated(begin)) || !r.Ends.Equal(head.At) {
		t.Errorf("got %+v", r)
	}
	if first.Sequence != 1 || second.Sequence != 6 || second.Hash != head.Hash || !second.At.Equal(truncated(begin.Add(time.Hour))) || second.Hierarchy != w.Hierarchy() {
		t.Errorf("the checkpoints are %+v and %+v", first, second)
	}
}

// tamperer is who has the database, but not the site's keys.
type tamperer struct {
	name   string
	change func(*testing.T, *world)
	// What is found without a checkpoint, and with checkpoints of entries 3 and 6, the newest at the time.
	alone, checked string
}

func (c tamperer) tell(t *testing.T, w *world) {
	w.registered(t, signed(), device(0).request())
	w.registered(t, signed(), device(1).request())
	checkpoints := []token.Checkpoint{w.checkpoint(t)}
	for n := 2; n < 5; n++ {
		w.registered(t, signed(), device(n).request())
	}
	checkpoints = append(checkpoints, w.checkpoint(t))
	if r := w.audited(t, checkpoints...); r.Err() != nil || r.Last != 6 || r.Fitting != 2 {
		t.Fatalf("before: %+v", r)
	}
	w.unlock(t)
	c.change(t, w)
	for what, check := range map[string]struct {
		report site.AuditReport
		want   string
	}{"without a checkpoint": {w.audited(t), c.alone}, "with checkpoints": {w.audited(t, checkpoints...), c.checked}} {
		if got := findings(check.report); got != check.want {
			t.Errorf("%s: found %q, want %q", what, got, check.want)
		}
		if err := check.report.Err(); (err == nil) != (check.want == "") || err != nil && catalog.CodeOf(err) == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func tamperings() []tamperer {
	by := func(statements ...string) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { w.execute(t, statements...) }
	}
	swap := []string{"update trust_log set sequence = -sequence where sequence in (3, 4)", "update trust_log set sequence = sequence + 7 where sequence < 0"}
	return []tamperer{
		{"an edited detail", by("update trust_log set detail = '{}' where sequence = 4"), "edited 4", "edited 4"},
		{"an edited actor", by("update trust_log set actor = 'bob' where sequence = 1"), "edited 1", "edited 1"},
		{"an edited time", by("update trust_log set entered_at = entered_at + 1 where sequence = 6"), "edited 6", "edited 6"},
		{"an edited entry with a fitting hash", func(t *testing.T, w *world) { w.rewrite(t, 4, 4) }, "unlinked 5", "unlinked 5"},
		{"an edited newest entry with a fitting hash", func(t *testing.T, w *world) { w.rewrite(t, 6, 6) }, "", "rewritten 6"},
		{"all written anew from an entry on", func(t *testing.T, w *world) { w.rewrite(t, 4, 6) }, "", "rewritten 6"},
		{"all written anew from the first entry on", func(t *testing.T, w *world) { w.rewrite(t, 1, 6) }, "", "rewritten 3"},
		{"a removed entry", by("delete from trust_log where sequence = 4"), "missing 4", "missing 4"},
		{"a removed first entry", by("delete from trust_log where sequence = 1"), "missing 1", "missing 1"},
		{"removed entries, and an edited one", by("delete from trust_log where sequence in (2, 3)", "update trust_log set subject = 'x' where sequence = 5"), "missing 2, edited 5", "missing 2, edited 5"},
		{"a removed entry, the others moved up", by("delete from trust_log where sequence = 3", "update trust_log set sequence = 3 where sequence = 4", "update trust_log set sequence = 4 where sequence = 5",
			"update trust_log set sequence = 5 where sequence = 6"), "order 3, order 4, order 5", "order 3, rewritten 3, order 4, order 5, cut-off 6"},
		{"two entries in each other's place", by(swap...), "order 3, order 4", "order 3, rewritten 3, order 4"},
		{"the newest entries cut off", by("delete from trust_log where sequence > 4"), "", "cut-off 5"},
		{"the newest entries cut off, and new ones made", func(t *testing.T, w *world) {
			w.execute(t, "delete from trust_log where sequence > 4")
			for n := 5; n < 9; n++ {
				w.registered(t, signed(), device(n).request())
			}
		}, "", "rewritten 6"},
		{"everything removed", by("delete from trust_log"), "missing 1", "cut-off 1"},
	}
}

// rewrite edits an entry and computes it and those after it anew, up to the last.
func (w *world) rewrite(t *testing.T, edited, last int) {
	t.Helper()
	entries := w.entries(t)
	entries[edited-1].Actor = "bob"
	for i := edited - 1; i < last; i++ {
		if e := &entries[i]; i > 0 {
			e.Previous = entries[i-1].Hash
		}
		entries[i].Hash = entries[i].Sum()
		e := entries[i]
		w.execute(t, fmt.Sprintf("update trust_log set actor = '%s', previous = '%s', hash = '%s' where sequence = %d", e.Actor, e.Previous, e.Hash, e.Sequence))
	}
}

func checkpointOfTheSameLog(t *testing.T, w *world) {
	fill(t, w)
	seen := w.checkpoint(t)
	if signed, c, err := w.Checkpoint(t.Context(), seen); err != nil || signed == "" || c.Sequence != seen.Sequence {
		t.Errorf("of an unchanged log: %+v, %v", c, err)
	}
	w.unlock(t)
	w.rewrite(t, 6, 6)
	_, _, err := w.Checkpoint(t.Context(), seen)
	refused(t, "of a log written anew", err, catalog.TrustLogRewritten)
	w.execute(t, "delete from trust_log where sequence = 6")
	_, _, err = w.Checkpoint(t.Context(), seen)
	refused(t, "of a log that was cut off", err, catalog.TrustLogCutOff)
	w.execute(t, "delete from trust_log")
	_, _, err = w.Checkpoint(t.Context(), token.Checkpoint{})
	refused(t, "of an empty log", err, catalog.TrustLogCutOff)
}

func restoredLog(t *testing.T, w *world) {
	fill(t, w)
	before := w.checkpoint(t)
	w.clock.advance(time.Hour)
	old := w.entries(t)[2]
	w.unlock(t)
	w.execute(t, "delete from trust_log where sequence > 3") // as a backup has it
	if err := w.Restored(t.Context(), "anna"); err != nil {
		t.Fatal(err)
	}
	if got := findings(w.audited(t, before)); got != "cut-off 5" {
		t.Errorf("without the word of the site: %q", got)
	}
	raw, mark, err := w.CheckpointAfterRestore(t.Context())
	if err != nil || mark.Restored != 4 || mark.Sequence != 4 {
		t.Fatalf("got %+v, %v", mark, err)
	}
	if opened, err := w.OpenCheckpoint(t.Context(), raw); err != nil || opened != mark {
		t.Errorf("got %+v, %v", opened, err)
	}
	early := token.Checkpoint{Hierarchy: w.Hierarchy(), Sequence: old.Sequence, Hash: old.Hash, At: before.At}
	r := w.audited(t, before, mark, early)
	if r.Err() != nil || r.Superseded != 1 || r.Fitting != 2 || !slices.Equal(r.Restored, []uint64{4}) {
		t.Errorf("got %+v", r)
	}
	early.Hash = strings.Repeat("0", 64) // what was there before the restore must still fit
	if got := findings(w.audited(t, before, mark, early)); got != "rewritten 3" {
		t.Errorf("an entry before the restore: %q", got)
	}
	w.clock.advance(time.Hour)
	for n := 5; n < 8; n++ {
		w.registered(t, signed(), device(n).request())
	}
	later := w.checkpoint(t)
	w.execute(t, "delete from trust_log where sequence > 5")
	if got := findings(w.audited(t, before, mark, later)); got != "cut-off 6" {
		t.Errorf("cut off again after the restore: %q", got)
	}
}

func acceptedLog(t *testing.T, w *world) {
	fill(t, w)
	before := w.checkpoint(t)
	w.clock.advance(time.Hour)
	_, _, err := w.AcceptTrustLog(t.Context(), []token.Checkpoint{before}, "why", "anna")
	refused(t, "nothing is wrong", err, catalog.InvalidArgument)
	w.unlock(t)
	w.execute(t, "delete from trust_log where sequence > 4")
	_, mark, err := w.AcceptTrustLog(t.Context(), []token.Checkpoint{before}, "dump of Monday", "anna")
	if err != nil || mark.Sequence != 5 || mark.Restored != 5 {
		t.Fatalf("got %+v, %v", mark, err)
	}
	entry := w.entries(t)[4]
	if entry.Action != "audit.accept" || entry.Actor != "anna" || !strings.Contains(entry.Detail, "dump of Monday") || mark.Hash != entry.Hash {
		t.Errorf("the entry is %+v", entry)
	}
	if r := w.audited(t, before, mark); r.Err() != nil || r.Superseded != 1 {
		t.Errorf("got %+v", r)
	}
	w.execute(t, "update trust_log set actor = 'bob' where sequence = 2")
	_, _, err = w.AcceptTrustLog(t.Context(), []token.Checkpoint{before}, "why", "anna")
	refused(t, "an edited entry", err, catalog.TrustLogBroken)
}

// root is the site root's private key, as a test may have it.
func (w *world) root(t *testing.T) crypto.Signer {
	t.Helper()
	keys, err := w.SigningKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if k.Purpose == site.PurposeRoot {
			return must(x509.ParsePKCS8PrivateKey(must(w.sealer.Open("signing-key:"+k.ID, k.Private)))).(*ecdsa.PrivateKey)
		}
	}
	t.Fatal("there is no root")
	return nil
}

func foreignCheckpoints(t *testing.T, w *world) {
	good := w.checkpoint(t)
	other := good
	other.Hierarchy = "6b0c9a5e-0000-4000-8000-000000000000"
	for name, c := range map[string]struct {
		raw  string
		want catalog.Code
	}{
		"another key's":             {must(token.SignCheckpoint(good, newECKey())), catalog.CheckpointOtherRoot},
		"another hierarchy's":       {must(token.SignCheckpoint(other, w.root(t))), catalog.CheckpointOtherSite},
		"a state":                   {must(signedState(w)), catalog.CheckpointMalformed},
		"something else altogether": {"eyJ", catalog.CheckpointMalformed},
	} {
		_, err := w.OpenCheckpoint(t.Context(), c.raw)
		refused(t, name, err, c.want)
	}
	w.execute(t, "update signing_keys set state = 'retired' where purpose = 'root'")
	if _, err := w.OpenCheckpoint(t.Context(), must(token.SignCheckpoint(good, w.root(t)))); err != nil {
		t.Errorf("of a former root: %v", err)
	}
}

func signedState(w *world) (string, error) {
	raw, _, err := w.State()
	return raw, err
}

// export is the log as lines, in pages of two.
func (w *world) export(t *testing.T, after uint64) []string {
	t.Helper()
	var all bytes.Buffer
	for {
		entries, signed, err := w.TrustPage(t.Context(), after, 2)
		if err != nil {
			t.Fatal(err)
		}
		if err := site.WriteTrustExport(&all, entries, signed); err != nil {
			t.Fatal(err)
		}
		if signed != "" {
			return slices.Collect(strings.Lines(all.String()))
		}
		after = entries[len(entries)-1].Sequence
	}
}

// verifyLines verifies an export as a stranger does who knows the root.
func verifyLines(lines []string, root string) (site.AuditReport, []site.TrustEntry, error) {
	var entries []site.TrustEntry
	var seen []token.Checkpoint
	err := site.ReadTrustExport(strings.NewReader(strings.Join(lines, "")), func(e site.TrustEntry) error {
		entries = append(entries, e)
		return nil
	}, func(raw string) error {
		c, _, err := token.OpenCheckpoint(raw, root)
		seen = append(seen, c)
		return err
	})
	auditor := site.NewAuditor(seen, true)
	for _, e := range entries {
		auditor.Add(e)
	}
	report := auditor.Report()
	if report.EndSigned(); len(report.Findings) > 1 && report.Findings[len(report.Findings)-1].Kind == site.FindingUnsigned {
		report.Findings = report.Findings[:len(report.Findings)-1] // what follows from another finding
	}
	return report, entries, err
}

func exported(t *testing.T, w *world) {
	fill(t, w)
	w.clock.advance(time.Hour)
	hostile := device(5).request(property("Netbios Name", "W\u00dcRZBURG"))
	id := w.registered(t, signed(), hostile).Device.ClientID
	if _, err := w.Approve(t.Context(), id, proof.LevelManaged, "anna", "<b>\"quoted\" \\ & 日本</b>"); err != nil {
		t.Fatal(err)
	}
	want, lines := w.entries(t), w.export(t, 0)
	report, got, err := verifyLines(lines, w.RootPin())
	if err != nil || report.Err() != nil || report.Fitting != 1 || len(lines) != len(want)+1 {
		t.Fatalf("got %+v, %v of %d lines", report, err, len(lines))
	}
	if !slices.EqualFunc(got, want, func(a, b site.TrustEntry) bool { return a == b }) {
		t.Errorf("read %+v, want %+v", got, want)
	}
	if _, _, err := verifyLines(lines, token.Pin(newECKey().Public())); catalog.CodeOf(err) != catalog.CheckpointOtherRoot {
		t.Errorf("by another root: %v", err)
	}
	edited := slices.Clone(lines)
	edited[3] = strings.Replace(edited[3], `"actor":"site"`, `"actor":"anna"`, 1)
	swapped := slices.Clone(lines)
	swapped[2], swapped[3] = swapped[3], swapped[2]
	last := len(lines) - 1
	second := w.export(t, 4)
	for name, c := range map[string]struct {
		lines []string
		want  string
	}{
		"whole":                              {lines, ""},
		"a part":                             {second, ""},
		"two exports one after the other":    {slices.Concat(lines[:4], second), ""},
		"blank lines between":                {[]string{strings.Join(lines, "\n")}, ""},
		"an edited line":                     {edited, "edited 4"},
		"a removed line":                     {slices.Concat(lines[:3], lines[4:]), "missing 4"},
		"a line twice":                       {slices.Concat(lines[:4], lines[3:]), "twice 4"},
		"two lines in each other's place":    {swapped, "order 3"},
		"entries cut off, the checkpoint on": {slices.Concat(lines[:5], lines[last:]), "cut-off 6"},
		"cut off with the checkpoint":        {lines[:5], "unsigned 1"},
		"an entry added at the end":          {append(slices.Clone(lines[:last]), w.forged(t), lines[last]), "unsigned 9"},
		"the beginning cut off":              {lines[3:], ""}, // a part, as --after gives it
	} {
		report, _, err := verifyLines(c.lines, w.RootPin())
		if err != nil || findings(report) != c.want {
			t.Errorf("%s: found %q, %v, want %q", name, findings(report), err, c.want)
		}
	}
	after, err := w.TrustSince(t.Context(), begin.Add(time.Hour))
	if err != nil || after != 6 {
		t.Errorf("the last entry before the last hour is %d, %v, want 6", after, err)
	}
	if after, err = w.TrustSince(t.Context(), begin.Add(48*time.Hour)); err != nil || after != want[len(want)-1].Sequence {
		t.Errorf("nothing since: %d, %v", after, err)
	}
}

// forged is a line that continues the log as only its chain asks.
func (w *world) forged(t *testing.T) string {
	t.Helper()
	entries := w.entries(t)
	e := entries[len(entries)-1]
	e.Sequence, e.Previous, e.Action = e.Sequence+1, e.Hash, "device.approve"
	e.Hash = e.Sum()
	var line bytes.Buffer
	if err := site.WriteTrustExport(&line, []site.TrustEntry{e}, ""); err != nil {
		t.Fatal(err)
	}
	return line.String()
}

func TestExportsThatAreNone(t *testing.T) {
	good := `{"sequence":1,"at":"2026-11-21T20:49:08Z","actor":"a","action":"b","subject":"c","detail":"{}","previous":"","hash":"d"}`
	entries := 0
	read := func(text string) error {
		return site.ReadTrustExport(strings.NewReader(text), func(site.TrustEntry) error { entries++; return nil }, func(string) error { return nil })
	}
	if err := read(good + "\r\n\n" + good); err != nil || entries != 2 {
		t.Fatalf("a good one: %d entries, %v", entries, err)
	}
	for name, text := range map[string]string{
		"no JSON":                    "hello",
		"a list":                     "[]",
		"nothing in it":              "{}",
		"cut off":                    good[:len(good)-1],
		"cut off in a text":          good[:40],
		"something behind":           good + "1",
		"two on a line":              good + good,
		"a field more":               strings.Replace(good, "{", `{"approved_by":"bob",`, 1),
		"a field twice":              strings.Replace(good, "{", `{"actor":"bob",`, 1),
		"another case":               strings.Replace(good, `"actor"`, `"Actor"`, 1),
		"a field less":               strings.Replace(good, `"actor":"a",`, ``, 1),
		"detail as an object":        strings.Replace(good, `"{}"`, `{}`, 1),
		"no time":                    strings.Replace(good, "2026-11-21T20:49:08Z", "yesterday", 1),
		"entry 0":                    strings.Replace(good, `:1,`, `:0,`, 1),
		"entry -1":                   strings.Replace(good, `:1,`, `:-1,`, 1),
		"half an entry":              strings.Replace(good, `:1,`, `:1.5,`, 1),
		"entry 2 to the power of 64": strings.Replace(good, `:1,`, `:18446744073709551616,`, 1),
		"a number as text":           strings.Replace(good, `:1,`, `:"1",`, 1),
		"an empty checkpoint":        `{"checkpoint":""}`,
		"a checkpoint and more":      `{"checkpoint":"eyJ","sequence":1}`,
		"a line without an end":      strings.Repeat("x", 1<<20+1),
	} {
		if err := read(good + "\n" + text + "\n"); catalog.CodeOf(err) != catalog.TrustExportMalformed || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%s: got %v, want code %s of line 2", name, err, catalog.TrustExportMalformed)
		}
	}
	stop := errors.New("stop")
	if err := site.ReadTrustExport(strings.NewReader(good), func(site.TrustEntry) error { return stop }, nil); !errors.Is(err, stop) {
		t.Errorf("an error of the caller: %v", err)
	}
}

func TestCheckpointFilesThatAreDamaged(t *testing.T) {
	all, err := site.ReadCheckpoints(strings.NewReader("eyJa\n{\"checkpoint\":\"eyJb\"}\n{\"checkpoint\":\"ey\n\n{\"checkpoint\":\"eyJc\"}\n"))
	if got := strings.Join(all, " "); got != "eyJa eyJb eyJc" || catalog.CodeOf(err) != catalog.CheckpointMalformed || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestAuditIsBounded: whoever makes up a log makes neither the report nor the time long.
func TestAuditIsBounded(t *testing.T) {
	auditor := site.NewAuditor(nil, false)
	for n := range uint64(20_000) {
		auditor.Add(site.TrustEntry{Sequence: 5 + 3*n, Hash: "x"})
		auditor.Add(site.TrustEntry{Sequence: 3 * n})
	}
	if r := auditor.Report(); len(r.Findings) != 100 || r.Suppressed < 40_000 {
		t.Errorf("%d findings and %d more", len(r.Findings), r.Suppressed)
	}
}

func FuzzReadTrustExport(f *testing.F) {
	f.Add([]byte(`{"sequence":1,"at":"2026-11-21T20:49:08.123456Z","actor":"a","action":"b","subject":"c","detail":"{}","previous":"","hash":"d"}` + "\n" + `{"checkpoint":"eyJ"}`))
	f.Add([]byte("eyJhbGciOiJFUzI1NiJ9.e30.AAAA\n\n{\"checkpoint\":\"\"}"))
	f.Add([]byte(`{"sequence":18446744073709551615,"at":"0001-01-01T00:00:00Z","actor":"","action":"","subject":"","detail":"","previous":"","hash":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var entries []site.TrustEntry
		var raws []string
		auditor := site.NewAuditor([]token.Checkpoint{{Sequence: 1, Hash: "d", At: begin}}, true)
		err := site.ReadTrustExport(bytes.NewReader(data), func(e site.TrustEntry) error {
			entries = append(entries, e)
			auditor.Add(e)
			return nil
		}, func(raw string) error { raws = append(raws, raw); return nil })
		_ = auditor.Report().Err()
		if err != nil {
			if catalog.CodeOf(err) != catalog.TrustExportMalformed {
				t.Errorf("an error without its code: %v", err)
			}
			return
		}
		if all, err := site.ReadCheckpoints(bytes.NewReader(data)); err != nil || !slices.Equal(all, raws) {
			t.Errorf("the same checkpoints read alone: %q, %v, want %q", all, err, raws)
		}
		var again bytes.Buffer
		if err := site.WriteTrustExport(&again, entries, ""); err != nil {
			t.Fatal(err)
		}
		var second []site.TrustEntry
		if err := site.ReadTrustExport(&again, func(e site.TrustEntry) error { second = append(second, e); return nil }, nil); err != nil || !slices.Equal(second, entries) {
			t.Errorf("written and read again: %+v, %v, want %+v", second, err, entries)
		}
	})
}

// limited makes a bulk token with limits.
func (w *world) limited(t *testing.T, ask site.NewBulk) site.BulkToken {
	t.Helper()
	ask.By = "anna"
	_, kept, err := w.NewBulkToken(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	return kept
}

// from is the caller at another address.
func from(address string, c site.Caller) site.Caller {
	c.Address = address
	return c
}

func bulkInNetworks(t *testing.T, w *world) {
	bulk := w.limited(t, site.NewBulk{MaxUses: 2, Networks: []string{"192.0.2.0/25", "2001:db8::/32"}})
	for _, address := range []string{"198.51.100.1", "192.0.2.200", "2001:db9::1", "", "unknown"} {
		entries := w.during(t, func() {
			_, err := w.ask(t, site.Exchange{Caller: from(address, with(bulk, synthetic(1)))})
			refused(t, "from "+address, err, catalog.BulkOutsideNetwork)
		})
		if len(entries) != 0 {
			t.Errorf("from %q: trust entries %s", address, actions(entries))
		}
	}
	for n, address := range []string{"192.0.2.7", "::ffff:192.0.2.8"} {
		if _, err := w.ask(t, site.Exchange{Caller: from(address, with(bulk, synthetic(n)))}); err != nil {
			t.Errorf("from %s: %v", address, err)
		}
	}
	_, err := w.ask(t, site.Exchange{Caller: from("198.51.100.1", with(bulk, synthetic(0)))})
	refused(t, "a key that has used it, from elsewhere", err, catalog.BulkOutsideNetwork)
	kept, err := w.BulkToken(t.Context(), bulk.ID)
	if err != nil || kept.Uses != 2 || fmt.Sprint(kept.Networks) != "[192.0.2.0/25 2001:db8::/32]" {
		t.Errorf("got %+v, %v", kept, err)
	}
	uses, err := w.TokenUses(t.Context(), bulk.ID, 10)
	if err != nil || len(uses) != 2 || uses[0].Address == uses[1].Address {
		t.Errorf("uses: %+v, %v", uses, err)
	}
}

func bulkForNames(t *testing.T, w *world) {
	bulk := w.limited(t, site.NewBulk{NamePattern: "wk*"})
	a := device(1)
	caller := with(bulk, a.thumbprint)
	if _, err := w.ask(t, site.Exchange{Caller: caller}); err != nil {
		t.Fatal(err)
	}
	for name, request := range map[string][2]string{"another computer": {"SRV1", "srv1.example.com"}, "a computer of two names": {"WK1", "srv1.example.com"}, "no name": {"", ""}} {
		entries := w.during(t, func() {
			_, err := w.Register(t.Context(), caller, a.request(property("Netbios Name", request[0]), property("FQ Name", request[1])))
			refused(t, name, err, catalog.BulkNameOutsidePattern)
		})
		if len(entries) != 0 {
			t.Errorf("%s: trust entries %s", name, actions(entries))
		}
	}
	out := w.registered(t, caller, a.request())
	if out.Device.Approval.Level != proof.LevelManaged {
		t.Errorf("got %+v", out.Device.Approval)
	}
	_, err := w.Register(t.Context(), caller, a.request(property("Netbios Name", "DC1"), property("FQ Name", "dc1.example.com")))
	refused(t, "the same device under another name", err, catalog.BulkNameOutsidePattern)
	if d, err := w.Device(t.Context(), out.Device.ClientID); err != nil || d.Record.NetbiosName != "WK1" {
		t.Errorf("the device is %+v, %v", d.Record, err)
	}
}
