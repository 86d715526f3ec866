package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/catalog"
	"postern/internal/role"
	"postern/site"
	"postern/token"
)

func newAudit(s *session) *cobra.Command {
	return addSiteFlags(s, group("audit", "The trust log: list it, prove that it is whole, keep that proof elsewhere, export it",
		newAuditList(s), newAuditVerify(s), newAuditCheckpoint(s), newAuditExport(s)))
}

func newAuditList(s *session) *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "list", Short: "List the newest entries of the trust log, the newest last", Args: cobra.NoArgs,
		Example: "  postern audit list\n  postern audit list --limit 200",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
			if limit < 1 || limit > maxListed {
				return usageError{fmt.Errorf("--limit %d: want 1 to %d; `postern audit export` gives all", limit, maxListed)}
			}
			head, err := st.TrustHead(ctx)
			if err != nil {
				return err
			}
			entries, err := st.TrustLog(ctx, head.Sequence-min(head.Sequence, uint64(limit)), limit)
			if err != nil {
				return err
			}
			views := make([]map[string]any, 0, len(entries))
			for _, e := range entries {
				views = append(views, map[string]any{"sequence": e.Sequence, "at": e.At, "actor": e.Actor, "action": e.Action, "subject": e.Subject, "detail": e.Detail, "previous": e.Previous, "hash": e.Hash})
			}
			return s.print(views, func(w io.Writer) {
				table(w, "ENTRY\tWHEN\tWHO\tWHAT\tON\tDETAIL", func(row func(...any)) {
					for _, e := range entries {
						row(e.Sequence, stamp(e.At), e.Actor, e.Action, e.Subject, e.Detail)
					}
				})
			})
		}),
	}
	c.Flags().IntVar(&limit, "limit", 50, "how many")
	return c
}

const maxListed = 10_000

// seenAt is a checkpoint with the place that it was read from. One that a person names must be good; of the management point's own file, where a root
// that was revoked may have signed some, those that are not are told and left out.
type seenAt struct {
	raw, place string
	named      bool
}

// checkpointsAt reads the files of checkpoints that a person names, and before them the file in the management point's state folder.
func (s *session) checkpointsAt(config *role.Config, named []string) (all []seenAt, err error) {
	if config != nil {
		own := role.CheckpointFile(*config)
		raws, err := role.ReadCheckpoints(own)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintf(s.err, "warning: %s: %v\n", catalog.CodeOf(err), err)
		}
		for i, raw := range raws {
			all = append(all, seenAt{raw, fmt.Sprintf("checkpoint %d of %s", i+1, own), false})
		}
	}
	for _, path := range named {
		raws, err := role.ReadCheckpoints(path)
		if err != nil {
			return nil, err
		}
		if len(raws) == 0 {
			return nil, catalog.Errorf(catalog.CheckpointMalformed, "%s holds no checkpoint", path)
		}
		for i, raw := range raws {
			all = append(all, seenAt{raw, fmt.Sprintf("checkpoint %d of %s", i+1, path), true})
		}
	}
	return all, nil
}

// checkpointFlags are the flags of commands that hold the log against checkpoints. The files are read on this side of the administration door and go
// through it as standard input.
type checkpointFlags struct {
	files []string
	input string
}

func (f *checkpointFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.files, "checkpoint", nil, "file of checkpoints that were kept elsewhere; may be repeated")
	c.Flags().StringVar(&f.input, "input", "", "")
	c.Flags().MarkHidden("input")
	if c.Annotations == nil {
		c.Annotations = map[string]string{}
	}
	c.Annotations[inputAnnotation] = "input"
}

// send puts the checkpoints into standard input for the act, unless this is the side where the act runs.
func (f *checkpointFlags) send(s *session, c *cobra.Command, config *role.Config) error {
	if s.site != nil || f.input != "" {
		return nil
	}
	all, err := s.checkpointsAt(config, f.files)
	if err != nil {
		return err
	}
	var lines strings.Builder
	for _, one := range all {
		fmt.Fprintf(&lines, "%s\t%t\t%s\n", one.raw, one.named, one.place)
	}
	s.in = strings.NewReader(lines.String())
	return c.Flags().Set("input", "-")
}

// receive reads what send has put into standard input.
func (s *session) receive(ctx context.Context, st *site.Site) (all []token.Checkpoint, err error) {
	content, err := io.ReadAll(io.LimitReader(s.in, maxInput+1))
	if err != nil {
		return nil, fmt.Errorf("read the checkpoints: %w", err)
	}
	if len(content) > maxInput { // half of them would be judged as all of them
		return nil, catalog.Errorf(catalog.CheckpointMalformed, "the checkpoints have more than %d bytes together; give fewer, the newest ones", maxInput)
	}
	var list []seenAt
	for line := range strings.Lines(string(content)) {
		raw, rest, _ := strings.Cut(strings.TrimSpace(line), "\t")
		named, place, _ := strings.Cut(rest, "\t")
		list = append(list, seenAt{raw, place, named == "true"})
	}
	return s.openCheckpoints(list, func(raw string) (token.Checkpoint, error) { return st.OpenCheckpoint(ctx, raw) })
}

func (s *session) openCheckpoints(list []seenAt, open func(raw string) (token.Checkpoint, error)) (all []token.Checkpoint, err error) {
	for _, one := range list {
		c, err := open(one.raw)
		var coded *catalog.Error
		switch {
		case err == nil:
			all = append(all, c)
		case !errors.As(err, &coded):
			return nil, err
		case one.named:
			return nil, catalog.Wrap(coded.Code, coded.Err, "%s: %s", one.place, coded.Detail)
		default:
			fmt.Fprintf(s.err, "warning: %s: %s does not count: %s\n", coded.Code, one.place, coded.Detail)
		}
	}
	return all, nil
}

func newAuditVerify(s *session) *cobra.Command {
	var checkpoints checkpointFlags
	var file string
	var roots []string
	c := &cobra.Command{
		Use:   "verify",
		Short: "Prove that nobody edited, removed, moved or cut off entries of the trust log, or say which",
		Long: `Walks the whole trust log: each entry must fit its hash and the entry before. Then it holds the log against the checkpoints that the management
point signed, and against those given with --checkpoint: kept on another machine, they show what whoever has this one could hide. Changes nothing.

With --file it reads an exported log instead, on any machine, without a site. Give the hash of the site root with --site-root then: the checkpoints
in the file must be signed by it.`,
		Example: `  postern audit verify
  postern audit verify --checkpoint /mnt/elsewhere/checkpoints.jsonl
  postern audit verify --file export.jsonl --site-root 9f86d0... --checkpoint checkpoints.jsonl`,
		Args: cobra.NoArgs,
	}
	act := s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
		seen, err := s.receive(ctx, st)
		if err != nil {
			return err
		}
		report, err := st.Audit(ctx, seen)
		if err != nil {
			return err
		}
		return s.printAudit("site "+string(st.SiteCode()), report)
	})
	c.RunE = func(c *cobra.Command, arguments []string) error {
		if file != "" && s.site == nil {
			return s.verifyFile(file, checkpoints.files, roots)
		}
		if len(roots) > 0 && s.site == nil {
			return usageError{errors.New("--site-root is for --file; the site knows its root")}
		}
		config, err := s.siteConfig()
		if err != nil {
			return err
		}
		if err := checkpoints.send(s, c, config); err != nil {
			return err
		}
		return act(c, arguments)
	}
	checkpoints.add(c)
	c.Flags().StringVar(&file, "file", "", "an export to verify instead of the site's log")
	c.Flags().StringArrayVar(&roots, "site-root", nil, "with --file: hash of the site root that must have signed the checkpoints; may be repeated after a change of the root")
	return c
}

// siteConfig is the configuration of the management point, nil inside one that serves.
func (s *session) siteConfig() (*role.Config, error) {
	if s.site != nil {
		return nil, nil
	}
	config, err := s.configuration()
	if err != nil {
		return nil, err
	}
	return &config, nil
}

// verifyFile verifies an export without a site.
func (s *session) verifyFile(path string, files, roots []string) error {
	export, err := os.Open(path)
	if err != nil {
		return catalog.Wrap(catalog.AuditFile, err, "the export %s cannot be read", path)
	}
	defer export.Close()
	elsewhere, err := s.checkpointsAt(nil, files)
	if err != nil {
		return err
	}
	inside, err := role.ReadCheckpoints(path)
	if err != nil && catalog.CodeOf(err) != catalog.CheckpointMalformed { // the line that is not understood is told below
		return err
	}
	for i, raw := range inside {
		elsewhere = append(elsewhere, seenAt{raw, fmt.Sprintf("checkpoint %d of %s", i+1, path), true})
	}
	hierarchy, signers := "", map[string]bool{}
	seen, err := s.openCheckpoints(elsewhere, func(raw string) (token.Checkpoint, error) {
		c, root, err := token.OpenCheckpoint(raw, roots...)
		if err == nil && hierarchy != "" && c.Hierarchy != hierarchy {
			return c, catalog.Errorf(catalog.CheckpointOtherSite, "it is of hierarchy %s, one before it of %s", c.Hierarchy, hierarchy)
		}
		hierarchy, signers[root] = c.Hierarchy, true
		return c, err
	})
	if err != nil {
		return err
	}
	auditor := site.NewAuditor(seen, true)
	err = site.ReadTrustExport(export, func(e site.TrustEntry) error { auditor.Add(e); return nil }, func(string) error { return nil })
	report := auditor.Report()
	switch {
	case err != nil:
		return errors.Join(err, report.Err())
	case report.First == 0:
		return catalog.Errorf(catalog.TrustExportMalformed, "%s holds no entry", path)
	}
	report.EndSigned()
	if len(roots) == 0 {
		for root := range signers {
			fmt.Fprintf(s.err, "warning: the checkpoints are signed by the root %s; compare it with your site's, or give --site-root.\n", root)
		}
	}
	return s.printAudit(path, report)
}

// printAudit prints a report, and ends with an error when something is wrong.
func (s *session) printAudit(of string, r site.AuditReport) error {
	err := s.print(auditView{r.Err() == nil, r}, func(w io.Writer) {
		fmt.Fprintf(w, "Trust log of %s: entries %d to %d, from %s to %s.\n  newest hash  %s\n", of, r.First, r.Last, stamp(r.Begins), stamp(r.Ends), r.Hash)
		switch {
		case r.Fitting > 0:
			fmt.Fprintf(w, "  checkpoints  %d fit; the newest is of entry %d, %s\n", r.Fitting, r.Newest.Sequence, stamp(r.Newest.At))
		default:
			fmt.Fprintln(w, "  checkpoints  none: that its newest entries were cut off would not be seen")
		}
		if r.Unseen > 0 {
			fmt.Fprintf(w, "               %d of entries before the first one here\n", r.Unseen)
		}
		if r.First > 1 && r.Err() == nil {
			fmt.Fprintf(w, "  before       what came before entry %d is known by its hash only\n", r.First)
		}
		for _, from := range r.Restored {
			fmt.Fprintf(w, "  restored     from entry %d on the log was replaced by a backup, as a signed checkpoint says\n", from)
		}
		if r.Superseded > 0 {
			fmt.Fprintf(w, "               %d checkpoints saw what was there before and do not count\n", r.Superseded)
		}
		for _, f := range r.Findings {
			fmt.Fprintf(w, "  %-11s  %s\n", strings.ToUpper(string(f.Kind)), f.Text)
		}
		if r.Suppressed > 0 {
			fmt.Fprintf(w, "               and %d more\n", r.Suppressed)
		}
		if len(r.Findings) == 0 {
			fmt.Fprintln(w, "It is whole.")
		}
	})
	return errors.Join(err, r.Err())
}

// auditView is `postern audit verify` for scripts.
type auditView struct {
	Whole bool `json:"whole"`
	site.AuditReport
}

func newAuditCheckpoint(s *session) *cobra.Command {
	var checkpoints checkpointFlags
	var out, why string
	var accept bool
	c := &cobra.Command{
		Use:   "checkpoint",
		Short: "Sign how far the trust log goes now, to be kept elsewhere",
		Long: `Prints one line, signed by the site root: the number and the hash of the newest entry of the trust log. Kept on another machine, with a service that
stamps times, or on paper, it proves later that nothing up to there was changed or cut off. A management point signs one by itself each hour and each
thousand entries, into audit-checkpoints.jsonl of its state folder.

--accept is for a database that was replaced by an older copy in another way than "postern restore": it signs that the log is the right one although
earlier checkpoints saw more. The reason becomes an entry of the log. A log with an edited or missing entry is never accepted.`,
		Example: `  postern audit checkpoint
  postern audit checkpoint --out /mnt/elsewhere/checkpoints.jsonl
  postern audit checkpoint --accept --why "pg_restore of Monday's dump, change 4711"`,
		Args: cobra.NoArgs,
	}
	act := s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
		signed, made, err := s.makeCheckpoint(ctx, st, accept, why)
		if err != nil {
			return err
		}
		answer := map[string]any{"checkpoint": signed, "sequence": made.Sequence, "hash": made.Hash, "at": made.At, "hierarchy": made.Hierarchy}
		return s.print(answer, func(w io.Writer) {
			fmt.Fprintln(w, signed)
			fmt.Fprintf(s.err, "Checkpoint of entry %d, %s, hash %s. Keep it where this machine cannot change it.\n", made.Sequence, stamp(made.At), made.Hash)
		})
	})
	c.RunE = func(c *cobra.Command, arguments []string) error {
		if accept && strings.TrimSpace(why) == "" {
			return usageError{errors.New("give the reason with --why; it is kept in the trust log")}
		}
		if s.site != nil {
			return act(c, arguments)
		}
		config, err := s.siteConfig()
		if err != nil {
			return err
		}
		if err := checkpoints.send(s, c, config); err != nil {
			return err
		}
		var printed bytes.Buffer
		asJSON, stdout := s.asJSON, s.out
		s.out = &printed
		err = act(c, arguments)
		s.out = stdout
		if err != nil {
			return err
		}
		raws := checkpointsIn(printed.Bytes(), asJSON)
		if accept {
			if err := appendAll(role.CheckpointFile(*config), raws); err != nil {
				return err
			}
		}
		if out == "" {
			_, err := printed.WriteTo(s.out)
			return err
		}
		return appendAll(out, raws)
	}
	checkpoints.add(c)
	c.Flags().StringVar(&out, "out", "", "add it to this file instead of printing it")
	c.Flags().BoolVar(&accept, "accept", false, "accept that the log is not the one that earlier checkpoints saw")
	c.Flags().StringVar(&why, "why", "", "with --accept: the reason, kept in the trust log")
	return c
}

func (s *session) makeCheckpoint(ctx context.Context, st *site.Site, accept bool, why string) (string, token.Checkpoint, error) {
	seen, err := s.receive(ctx, st)
	if err != nil {
		return "", token.Checkpoint{}, err
	}
	if accept {
		return st.AcceptTrustLog(ctx, seen, why, s.actor)
	}
	report, err := st.Audit(ctx, seen) // what is wrong already is not signed
	if err == nil {
		err = report.Err()
	}
	if err != nil {
		return "", token.Checkpoint{}, err
	}
	return st.Checkpoint(ctx, report.Newest)
}

// checkpointsIn takes the signed line out of what the command printed.
func checkpointsIn(printed []byte, asJSON bool) []string {
	if !asJSON {
		return []string{strings.TrimSpace(string(printed))}
	}
	_, text, _ := strings.Cut(string(printed), `"checkpoint": "`)
	raw, _, _ := strings.Cut(text, `"`)
	return []string{raw}
}

func appendAll(path string, raws []string) error {
	for _, raw := range raws {
		if err := role.AppendCheckpoint(path, raw); err != nil {
			return err
		}
	}
	return nil
}

// exportPage is how many entries go through the administration door at once.
const exportPage = 2000

func newAuditExport(s *session) *cobra.Command {
	var out, since string
	var after uint64
	c := &cobra.Command{
		Use:   "export",
		Short: "Write the trust log as JSON lines, which anyone can verify without the site",
		Long: `Writes one entry on each line and ends with a signed checkpoint, so that a reader sees when lines were changed or cut off:
"postern audit verify --file FILE". Exports that follow each other (--after) may be put into one file.`,
		Example: `  postern audit export --out trust-log.jsonl
  postern audit export --since 24h
  postern audit export --after 1204 >> trust-log.jsonl`,
		Args: cobra.NoArgs,
	}
	page := s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
		begin, err := momentOf("since", since, time.Now())
		if err != nil {
			return err
		}
		from := after
		if !begin.IsZero() {
			if from, err = st.TrustSince(ctx, begin); err != nil {
				return err
			}
		}
		entries, signed, err := st.TrustPage(ctx, max(from, after), exportPage)
		if err != nil {
			return err
		}
		return site.WriteTrustExport(s.out, entries, signed)
	})
	c.RunE = func(c *cobra.Command, arguments []string) (err error) {
		if s.site != nil {
			return page(c, arguments)
		}
		to, done, err := s.exportTo(out)
		if err != nil {
			return err
		}
		total, err := s.exportPages(c, page, to)
		if err := errors.Join(err, done(err == nil)); err != nil {
			return err
		}
		fmt.Fprintf(s.err, "%d entries exported.\n", total)
		return nil
	}
	c.Flags().StringVar(&out, "out", "", "write to this new file instead of standard output")
	c.Flags().StringVar(&since, "since", "", "only entries since this time (2026-12-01T18:00:00Z), date (2026-12-01), or this long ago (24h)")
	c.Flags().Uint64Var(&after, "after", 0, "only entries after the one with this number")
	return c
}

// exportPages writes page after page until one ends with the checkpoint.
func (s *session) exportPages(c *cobra.Command, page func(*cobra.Command, []string) error, to io.Writer) (total int, err error) {
	stdout := s.out
	defer func() { s.out = stdout }()
	for {
		var lines bytes.Buffer
		s.out = &lines
		if err := page(c, nil); err != nil {
			return total, err
		}
		content, last, entries, ended := lines.Bytes(), uint64(0), 0, false
		err := site.ReadTrustExport(bytes.NewReader(content), func(e site.TrustEntry) error { last = e.Sequence; entries++; return nil }, func(string) error { ended = true; return nil })
		if err != nil {
			return total, err
		}
		if _, err := to.Write(content); err != nil {
			return total, catalog.Wrap(catalog.AuditFile, err, "the export cannot be written")
		}
		if total += entries; ended || entries == 0 {
			return total, nil
		}
		if err := errors.Join(c.Flags().Set("after", strconv.FormatUint(last, 10)), c.Flags().Set("since", "")); err != nil {
			return total, err
		}
	}
}

// exportTo opens the file that an export goes to. A file that is there is left alone, and one that was not finished is taken away.
func (s *session) exportTo(path string) (to io.Writer, done func(good bool) error, err error) {
	if path == "" {
		return s.out, func(bool) error { return nil }, nil
	}
	file, err := os.OpenFile(filepath.Clean(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, nil, catalog.Wrap(catalog.AuditFile, err, "the export %s cannot be made", path)
	}
	return file, func(good bool) error {
		err := errors.Join(file.Sync(), file.Close())
		if !good || err != nil {
			os.Remove(path)
		}
		if err != nil {
			return catalog.Wrap(catalog.AuditFile, err, "the export %s cannot be written", path)
		}
		return nil
	}, nil
}
