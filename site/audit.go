package site

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/catalog"
	"postern/token"
)

// Auditor reads a trust log entry by entry, from a store or from an exported file, and tells what is wrong with it: an entry that was edited, that is
// missing, that stands in another's place, and, against checkpoints, a log that was cut off or written anew (C113).
type Auditor struct {
	report     AuditReport
	partial    bool
	last       TrustEntry
	loose      bool // the last entry is not where it belongs, so that nothing can be said of how the next continues it
	gaps       []gap
	waiting    map[uint64][]token.Checkpoint // by the entry that they saw, until that is read
	unfit      []uint64                      // entries that checkpoints saw otherwise
	seen       TrustEntry                    // that this process read before, zero without one: see [Site.WatchTrustLog]
	superseded int
}

// gap is a stretch of entries that were not where they belong.
type gap struct {
	from, to uint64
	finding  int // of the report; -1 when there was no room for it
}

// AuditReport is what an audit found.
type AuditReport struct {
	First      uint64           `json:"first"` // number of the first entry read; 0 when there was none
	Last       uint64           `json:"last"`  // number of the newest
	Hash       string           `json:"hash"`  // of the newest
	Begins     time.Time        `json:"begins,omitzero"`
	Ends       time.Time        `json:"ends,omitzero"`
	Fitting    int              `json:"checkpoints"`          // that fit the log
	Newest     token.Checkpoint `json:"newest_checkpoint"`    // of those
	Unseen     int              `json:"checkpoints_before"`   // of entries before the first one read
	Superseded int              `json:"checkpoints_replaced"` // of a log that a restored backup replaced
	Restored   []uint64         `json:"restored,omitempty"`   // entries from which the log was replaced by a backup, as checkpoints say
	Findings   []Finding        `json:"findings"`
	Suppressed int              `json:"more_findings,omitempty"` // that there was no room for
}

// Finding is one thing that is wrong with a trust log.
type Finding struct {
	Kind  FindingKind  `json:"kind"`
	Entry uint64       `json:"entry"` // the first that is concerned
	Code  catalog.Code `json:"code"`
	Text  string       `json:"text"`
}

// FindingKind says in a word what was done to a log.
type FindingKind string

// What can have been done to a log.
const (
	FindingEdited    FindingKind = "edited"    // its hash does not fit its content
	FindingUnlinked  FindingKind = "unlinked"  // it does not continue the one before, whose hash was computed anew
	FindingMissing   FindingKind = "missing"   // entries are not there
	FindingOrder     FindingKind = "order"     // it stands where another belongs
	FindingTwice     FindingKind = "twice"     // its number was there before
	FindingCutOff    FindingKind = "cut-off"   // a checkpoint saw a longer log
	FindingRewritten FindingKind = "rewritten" // a checkpoint saw another entry there
	FindingUnsigned  FindingKind = "unsigned"  // no checkpoint covers it, where one should
)

// maxFindings bounds a report: a log that was tampered with a hundred times needs no further count.
const maxFindings = 100

// NewAuditor returns an auditor that holds a log against these checkpoints, whose signatures have been verified. A partial log may begin with any entry.
func NewAuditor(checkpoints []token.Checkpoint, partial bool) *Auditor {
	a := &Auditor{partial: partial, waiting: map[uint64][]token.Checkpoint{}}
	var restores []token.Checkpoint
	for _, c := range checkpoints {
		if c.Restored > 0 && !slices.Contains(a.report.Restored, c.Restored) {
			a.report.Restored = append(a.report.Restored, c.Restored)
			restores = append(restores, c)
		}
	}
	for _, c := range checkpoints {
		if slices.ContainsFunc(restores, func(later token.Checkpoint) bool { return replaced(c, later) }) {
			a.superseded++
			continue
		}
		if same := a.waiting[c.Sequence]; !slices.ContainsFunc(same, func(o token.Checkpoint) bool { return o.Hash == c.Hash }) {
			a.waiting[c.Sequence] = append(same, c)
		}
	}
	slices.Sort(a.report.Restored)
	return a
}

// replaced reports whether what a checkpoint saw went away with a restored backup, of which a later checkpoint tells.
func replaced(c, later token.Checkpoint) bool {
	return c.Sequence >= later.Restored && c.At.Before(later.At)
}

// Add reads the next entry.
func (a *Auditor) Add(e TrustEntry) {
	switch {
	case e.Sequence == 0:
		a.find(FindingOrder, 0, "an entry has the number 0, which none has")
		return
	case a.report.First == 0:
		a.begin(e)
	case e.Sequence <= a.last.Sequence:
		a.late(e)
		return
	case e.Sequence > a.last.Sequence+1:
		a.missing(a.last.Sequence+1, e.Sequence-1)
	}
	adjacent := e.Sequence == a.last.Sequence+1 && !a.loose
	a.loose = false
	switch {
	case e.Hash != e.Sum():
		a.altered(e)
	case adjacent && e.Previous != a.last.Hash:
		a.find(FindingUnlinked, e.Sequence, "entry %d does not continue entry %d, which is not the one that was there when entry %d was written", e.Sequence, e.Sequence-1, e.Sequence)
	}
	a.compare(e.Sequence, e.Hash)
	a.last = e
	a.report.Last, a.report.Hash, a.report.Ends = e.Sequence, e.Hash, e.At
}

func (a *Auditor) begin(e TrustEntry) {
	a.report.First, a.report.Begins = e.Sequence, e.At
	if !a.partial && e.Sequence > 1 {
		a.missing(1, e.Sequence-1)
		return
	}
	if a.last.Sequence = e.Sequence - 1; e.Sequence > 1 { // what came before is known by its hash only
		a.last.Hash = e.Previous
		a.compare(e.Sequence-1, e.Previous)
	}
}

// late meets an entry whose place has passed.
func (a *Auditor) late(e TrustEntry) {
	for i, g := range a.gaps {
		if g.from > e.Sequence || e.Sequence > g.to {
			continue
		}
		text := fmt.Sprintf("entry %d stands after entry %d", e.Sequence, a.last.Sequence)
		if g.finding >= 0 && g.from == g.to {
			a.report.Findings[g.finding] = Finding{FindingOrder, e.Sequence, catalog.TrustLogBroken, text}
		} else {
			a.find(FindingOrder, e.Sequence, "%s", text)
		}
		if g.from == g.to {
			a.gaps = slices.Delete(a.gaps, i, i+1)
		}
		a.compare(e.Sequence, e.Hash)
		return
	}
	a.find(FindingTwice, e.Sequence, "entry %d is there twice", e.Sequence)
}

// reach is how far from its place an entry that was moved is looked for.
const reach = 1000

// altered tells an entry that was moved from one that was edited: with the number of the place that it came from, its hash fits.
func (a *Auditor) altered(e TrustEntry) {
	if len(a.report.Findings) >= maxFindings {
		a.report.Suppressed++
		return
	}
	moved := e
	for _, place := range [2]uint64{e.Sequence - min(e.Sequence, reach), e.Sequence + 1} {
		for moved.Sequence = place; moved.Sequence < place+reach; moved.Sequence++ {
			if moved.Sum() == e.Hash {
				a.find(FindingOrder, e.Sequence, "where entry %d belongs stands entry %d", e.Sequence, moved.Sequence)
				a.loose = true
				return
			}
		}
	}
	a.find(FindingEdited, e.Sequence, "entry %d was edited: its hash does not fit its content", e.Sequence)
}

func (a *Auditor) missing(from, to uint64) {
	text := fmt.Sprintf("entries %d to %d are missing", from, to)
	if from == to {
		text = fmt.Sprintf("entry %d is missing", from)
	}
	g := gap{from, to, len(a.report.Findings)}
	if !a.find(FindingMissing, from, "%s", text) {
		g.finding = -1
	}
	if len(a.gaps) < maxFindings {
		a.gaps = append(a.gaps, g)
	}
}

func (a *Auditor) find(kind FindingKind, entry uint64, format string, arguments ...any) bool {
	codes := map[FindingKind]catalog.Code{FindingCutOff: catalog.TrustLogCutOff, FindingRewritten: catalog.TrustLogRewritten}
	if len(a.report.Findings) >= maxFindings {
		a.report.Suppressed++
		return false
	}
	a.report.Findings = append(a.report.Findings, Finding{kind, entry, cmp.Or(codes[kind], catalog.TrustLogBroken), fmt.Sprintf(format, arguments...)})
	return true
}

// compare holds the entry's hash against the checkpoints that saw it. What was written anew at one entry is so at all after it: the first is told.
func (a *Auditor) compare(sequence uint64, hash string) {
	if sequence == a.seen.Sequence && hash != a.seen.Hash {
		a.find(FindingRewritten, sequence, "entry %d is not the one that this management point read before: it, or one before it, was written anew", sequence)
		a.unfit = append(a.unfit, sequence)
	}
	for _, c := range a.waiting[sequence] {
		if c.Hash == hash {
			a.report.Fitting++
			if c.Sequence >= a.report.Newest.Sequence {
				a.report.Newest = c
			}
			continue
		}
		if len(a.unfit) == 0 {
			a.find(FindingRewritten, sequence, "entry %d is not the one that the checkpoint of %s saw: it, or one before it, was written anew", sequence, c.At.Format(time.RFC3339))
		}
		a.unfit = append(a.unfit, sequence)
	}
	delete(a.waiting, sequence)
}

// Report returns what was found, after the last entry.
func (a *Auditor) Report() AuditReport {
	var beyond []token.Checkpoint
	for sequence, list := range a.waiting {
		switch {
		case sequence > a.last.Sequence:
			beyond = append(beyond, list...)
			for range list {
				a.unfit = append(a.unfit, sequence)
			}
		case sequence < a.report.First:
			a.report.Unseen += len(list)
		}
	}
	a.waiting = nil
	a.report.Superseded = a.superseded
	if len(beyond) > 0 {
		c := slices.MaxFunc(beyond, func(a, b token.Checkpoint) int { return cmp.Compare(a.Sequence, b.Sequence) })
		a.find(FindingCutOff, a.last.Sequence+1, "the log ends with entry %d; the checkpoint of %s saw entry %d", a.last.Sequence, c.At.Format(time.RFC3339), c.Sequence)
	}
	if a.last.Sequence < a.seen.Sequence {
		a.unfit = append(a.unfit, a.last.Sequence+1)
		if len(beyond) == 0 {
			a.find(FindingCutOff, a.last.Sequence+1, "the log ends with entry %d; this management point read entry %d before", a.last.Sequence, a.seen.Sequence)
		}
	}
	if a.report.First == 0 && len(a.report.Findings) == 0 && !a.partial {
		a.find(FindingMissing, 1, "the log is empty: its first entry, by `postern site init`, is missing")
	}
	return a.report
}

// Err returns nil when nothing is wrong, and otherwise the first finding with its code.
func (r AuditReport) Err() error {
	if len(r.Findings) == 0 {
		return nil
	}
	texts := make([]string, 0, 3)
	for _, f := range r.Findings[:min(3, len(r.Findings))] {
		texts = append(texts, f.Text)
	}
	if more := len(r.Findings) + r.Suppressed - len(texts); more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return catalog.Errorf(r.Findings[0].Code, "%s", strings.Join(texts, "; "))
}

// EndSigned adds a finding when entries follow the newest checkpoint that fits. Every export ends with one: without it, its end was cut off, or something was added.
func (r *AuditReport) EndSigned() {
	if r.Newest.Sequence >= r.Last {
		return
	}
	text := fmt.Sprintf("entries %d to %d are covered by no checkpoint: the end was cut off, or they were added", max(r.Newest.Sequence+1, r.First), r.Last)
	r.Findings = append(r.Findings, Finding{FindingUnsigned, max(r.Newest.Sequence+1, r.First), catalog.TrustExportMalformed, text})
}

// auditPage is how many entries are read at once.
const auditPage = 1000

// Audit reads the whole trust log and holds it against checkpoints that [Site.OpenCheckpoint] has read, and against what [Site.WatchTrustLog] saw of it in this
// process. What is wrong is in the report; an error means that it could not be read.
func (s *Site) Audit(ctx context.Context, checkpoints []token.Checkpoint) (AuditReport, error) {
	return s.audit(ctx, NewAuditor(checkpoints, false))
}

func (s *Site) audit(ctx context.Context, a *Auditor) (AuditReport, error) {
	if seen := s.watched.Load(); seen != nil {
		a.seen = *seen
	}
	for after := uint64(0); ; {
		entries, err := s.TrustLog(ctx, after, auditPage)
		if err != nil {
			return AuditReport{}, err
		}
		for _, e := range entries {
			a.Add(e)
		}
		if len(entries) < auditPage {
			return a.Report(), nil
		}
		after = entries[len(entries)-1].Sequence
	}
}

// OpenCheckpoint reads a checkpoint of this site, signed by its root or by one that was its root before.
func (s *Site) OpenCheckpoint(ctx context.Context, raw string) (token.Checkpoint, error) {
	keys, err := s.SigningKeys(ctx)
	if err != nil {
		return token.Checkpoint{}, err
	}
	roots := []string{s.RootPin()}
	for _, k := range keys {
		if k.Purpose == PurposeRoot && k.State != token.KeyRevoked {
			roots = append(roots, token.PinOf(k.Public))
		}
	}
	c, _, err := token.OpenCheckpoint(raw, roots...)
	if err == nil && !strings.EqualFold(c.Hierarchy, s.Hierarchy()) {
		return token.Checkpoint{}, catalog.Errorf(catalog.CheckpointOtherSite, "the checkpoint is of hierarchy %s, this site is of %s", shown(c.Hierarchy), s.Hierarchy())
	}
	return c, err
}

// TrustHead returns the newest entry of the trust log.
func (s *Site) TrustHead(ctx context.Context) (head TrustEntry, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		head, err = tx.TrustHead()
		return err
	})
	return head, err
}

// WatchTrustLog returns the newest entry of the trust log, and notices when the log is not the one that it saw the last time: between two checkpoints, nothing
// else tells that its newest entries were cut off. Codes: TrustLogCutOff, TrustLogRewritten.
func (s *Site) WatchTrustLog(ctx context.Context) (head TrustEntry, err error) {
	var before TrustEntry
	if seen := s.watched.Load(); seen != nil {
		before = *seen
	}
	head, there, err := s.headAnd(ctx, before.Sequence)
	switch {
	case err != nil:
		return head, err
	case head.Sequence < before.Sequence:
		return head, catalog.Errorf(catalog.TrustLogCutOff, "the log ends with entry %d; this management point read entry %d before", head.Sequence, before.Sequence)
	case there.Hash != before.Hash:
		return head, catalog.Errorf(catalog.TrustLogRewritten, "entry %d is not the one that this management point read before", before.Sequence)
	}
	s.watched.Store(&head)
	return head, nil
}

// headAnd returns the end of the trust log and, as it stands there at the same moment, the entry with a number: zero when there is none.
func (s *Site) headAnd(ctx context.Context, sequence uint64) (head, there TrustEntry, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		if head, err = tx.TrustHead(); err != nil || sequence == 0 || sequence > head.Sequence {
			return err
		}
		there, err = entryAt(tx, sequence)
		return err
	})
	return head, there, err
}

// entryAt returns the entry with that number, zero when there is none.
func entryAt(tx Tx, sequence uint64) (TrustEntry, error) {
	entries, err := tx.TrustEntries(sequence-1, 1)
	if err != nil || len(entries) == 0 || entries[0].Sequence != sequence {
		return TrustEntry{}, err
	}
	return entries[0], nil
}

// Checkpoint signs how far the trust log goes now. It signs nothing when the log is not the one that the last checkpoint saw, if there is one: codes TrustLogCutOff
// and TrustLogRewritten.
func (s *Site) Checkpoint(ctx context.Context, last token.Checkpoint) (signed string, c token.Checkpoint, err error) {
	head, seen, err := s.headAnd(ctx, last.Sequence)
	switch {
	case err != nil:
		return "", c, err
	case head.Sequence < max(last.Sequence, 1):
		return "", c, catalog.Errorf(catalog.TrustLogCutOff, "the log ends with entry %d; the checkpoint of %s saw entry %d", head.Sequence, last.At.Format(time.RFC3339), last.Sequence)
	case last.Sequence > 0 && seen.Hash != last.Hash:
		return "", c, catalog.Errorf(catalog.TrustLogRewritten, "entry %d is not the one that the checkpoint of %s saw", last.Sequence, last.At.Format(time.RFC3339))
	}
	return s.checkpointAt(head, 0)
}

func (s *Site) checkpointAt(e TrustEntry, restored uint64) (signed string, c token.Checkpoint, err error) {
	c = token.Checkpoint{Hierarchy: s.Hierarchy(), Sequence: e.Sequence, Hash: e.Hash, At: s.time(), Restored: restored}
	if signed, err = token.SignCheckpoint(c, s.current.Load().root); err != nil {
		return "", c, fmt.Errorf("sign a checkpoint: %w", err)
	}
	return signed, c, nil
}

// CheckpointAfterRestore signs how far the log goes after [Site.Restored]: what checkpoints from before saw at the number of the first entry of the restore
// or later went away with the store that the backup replaced. The restore's entries are those of what was applied again, and that of Restored.
func (s *Site) CheckpointAfterRestore(ctx context.Context) (signed string, c token.Checkpoint, err error) {
	head, err := s.TrustHead(ctx)
	if err != nil {
		return "", c, err
	}
	began, err := s.restoreBegan(ctx, head)
	if err != nil {
		return "", c, err
	}
	return s.checkpointAt(head, began)
}

// restoreBegan returns the number of the first entry of the restore that the newest one ends.
func (s *Site) restoreBegan(ctx context.Context, head TrustEntry) (began uint64, err error) {
	began = head.Sequence
	for began > 1 {
		after := began - min(began, auditPage+1)
		entries, err := s.TrustLog(ctx, after, int(began-1-after))
		if err != nil {
			return 0, err
		}
		for _, e := range slices.Backward(entries) {
			if !slices.Contains([]string{actionOlder, actionKept, actionRootKept}, e.Action) {
				return began, nil
			}
			began = e.Sequence
		}
		if len(entries) == 0 {
			break
		}
	}
	return began, nil
}

// AcceptTrustLog is a person's word that a log which does not fit these checkpoints is the right one: its database was replaced by an older copy. The reason
// becomes an entry of the log, and the signed checkpoint says from which entry on earlier ones do not count. A log that does not fit itself is never accepted.
func (s *Site) AcceptTrustLog(ctx context.Context, checkpoints []token.Checkpoint, why, by string) (signed string, c token.Checkpoint, err error) {
	if err := CheckReason(why); err != nil {
		return "", c, err
	}
	a := NewAuditor(checkpoints, false)
	report, err := s.audit(ctx, a)
	if err != nil {
		return "", c, err
	}
	for _, f := range report.Findings {
		if f.Code == catalog.TrustLogBroken {
			return "", c, report.Err()
		}
	}
	if len(a.unfit) == 0 {
		return "", c, catalog.Errorf(catalog.InvalidArgument, "the log fits every checkpoint: there is nothing to accept")
	}
	from := slices.Min(a.unfit)
	var entry TrustEntry
	err = s.store.Update(ctx, func(tx Tx) (err error) {
		if err := s.trust(tx, by, "audit.accept", strconv.FormatUint(from, 10), map[string]string{"why": why}); err != nil {
			return err
		}
		entry, err = tx.TrustHead()
		return err
	})
	if err != nil {
		return "", c, err
	}
	s.watched.Store(&entry)
	return s.checkpointAt(entry, min(from, entry.Sequence))
}

// TrustPage returns the next entries after a number for an export, and, when they are the last, a signed checkpoint of them: with it a reader sees that nothing
// was cut off. Where nothing follows and nothing came before, the log is empty and there is no checkpoint. A log that is not the one that [Site.WatchTrustLog] saw
// is not signed.
func (s *Site) TrustPage(ctx context.Context, after uint64, limit int) (entries []TrustEntry, signed string, err error) {
	var newest TrustEntry
	err = s.store.View(ctx, func(tx Tx) (err error) {
		if entries, err = tx.TrustEntries(after, limit); err != nil || len(entries) >= limit {
			return err
		}
		newest, err = tx.TrustHead()
		return err
	})
	if err != nil || newest.Sequence == 0 {
		return entries, "", err
	}
	if _, err := s.WatchTrustLog(ctx); err != nil {
		return nil, "", err
	}
	signed, _, err = s.checkpointAt(newest, 0)
	return entries, signed, err
}

// TrustSince returns the number of the last entry before the first one that was made at that time or later, so that [Site.TrustPage] goes on from there.
func (s *Site) TrustSince(ctx context.Context, since time.Time) (after uint64, err error) {
	for {
		entries, err := s.TrustLog(ctx, after, auditPage)
		if err != nil {
			return after, err
		}
		for _, e := range entries {
			if !e.At.Before(since) {
				return after, nil
			}
			after = e.Sequence
		}
		if len(entries) < auditPage {
			return after, nil
		}
	}
}
