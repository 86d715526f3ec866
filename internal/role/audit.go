package role

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"postern/catalog"
	"postern/site"
	"postern/token"
)

// checkpointsName is where a management point keeps the checkpoints that it signs, in its state folder: one on each line, as `postern audit verify` reads them.
const checkpointsName = "audit-checkpoints.jsonl"

// When a management point signs a checkpoint of the trust log by itself.
const (
	checkpointEntries = 1000
	checkpointAge     = time.Hour
	checkpointLook    = 5 * time.Second
)

// CheckpointFile is where the management point with this configuration keeps its checkpoints.
func CheckpointFile(c Config) string { return filepath.Join(c.State, checkpointsName) }

// AppendCheckpoint adds a signed checkpoint to a file and returns when the disk has it. A line that a crash cut off is ended first.
func AppendCheckpoint(path, signed string) error {
	refuse := func(err error) error {
		return catalog.Wrap(catalog.AuditFile, err, "the checkpoint cannot be added to %s", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return refuse(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return refuse(err)
	}
	defer file.Close()
	if err := endLine(file); err != nil {
		return refuse(err)
	}
	if err := site.WriteTrustExport(file, nil, signed); err != nil {
		return refuse(err)
	}
	if err := file.Sync(); err != nil {
		return refuse(err)
	}
	return nil
}

func endLine(file *os.File) error {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return err
	}
	var last [1]byte
	if _, err := file.ReadAt(last[:], size-1); err != nil || last[0] == '\n' {
		return err
	}
	_, err = file.WriteString("\n")
	return err
}

// ReadCheckpoints returns the checkpoints in a file, not yet verified, also with an error: a line that is not understood takes none of the others away.
func ReadCheckpoints(path string) (all []string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, catalog.Wrap(catalog.AuditFile, err, "the checkpoints %s cannot be read", path)
	}
	defer file.Close()
	all, err = site.ReadCheckpoints(file)
	switch {
	case catalog.CodeOf(err) != "":
		return all, fmt.Errorf("%s: %w", path, err)
	case err != nil:
		return all, catalog.Wrap(catalog.AuditFile, err, "the checkpoints %s cannot be read to the end", path)
	}
	return all, nil
}

// checkpoints signs a checkpoint of the trust log each hour and each thousand entries, and notices when the log is not the one that it signed before.
type checkpoints struct {
	path    string
	site    *site.Site
	entries uint64 // after how many new ones a checkpoint is due
	now     func() time.Time
	log     *slog.Logger

	last    token.Checkpoint // the newest in the file; zero without one
	read    fs.FileInfo      // the file as it was when last was read from it
	began   time.Time
	said    time.Time // when the present problem was last logged
	problem atomic.Pointer[error]
}

func newCheckpoints(c Config, s *site.Site, now func() time.Time, log *slog.Logger) *checkpoints {
	return &checkpoints{path: CheckpointFile(c), site: s, entries: checkpointEntries, now: now, log: log, began: now()}
}

// run looks at the trust log every few seconds until ctx ends, and signs a checkpoint at its end: what is cut off while nobody looks is then seen at the next start.
func (c *checkpoints) run(ctx context.Context) error {
	look := time.NewTicker(checkpointLook)
	defer look.Stop()
	for {
		c.tell(c.look(ctx))
		select {
		case <-ctx.Done():
			c.tell(c.end(context.WithoutCancel(ctx)))
			return nil
		case <-look.C:
		}
	}
}

// checkpointEnd is how long the last checkpoint may hold up the end of the role.
const checkpointEnd = 5 * time.Second

// end signs a checkpoint of what came since the last one.
func (c *checkpoints) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkpointEnd)
	defer cancel()
	if err := c.look(ctx); err != nil {
		return err
	}
	head, err := c.site.WatchTrustLog(ctx)
	if errors.Is(err, site.ErrUnavailable) || ctx.Err() != nil || err == nil && head.Sequence == c.last.Sequence {
		return nil
	}
	if err != nil {
		return err
	}
	return c.sign(ctx)
}

// look signs a checkpoint when one is due. That the log was cut off is seen at once, whether one is due or not.
func (c *checkpoints) look(ctx context.Context) error {
	if err := c.reread(ctx); err != nil {
		return err
	}
	head, err := c.site.WatchTrustLog(ctx)
	if errors.Is(err, site.ErrUnavailable) || ctx.Err() != nil {
		return nil // the database is away, which others tell
	}
	if err != nil {
		return err
	}
	same := head.Sequence == c.last.Sequence && head.Hash == c.last.Hash
	since := c.last.At
	if c.last.Sequence == 0 {
		since = c.began.Add(-checkpointAge)
	}
	grown := head.Sequence > c.last.Sequence
	if same || grown && head.Sequence < c.last.Sequence+c.entries && c.now().Sub(since).Abs() < checkpointAge {
		return nil
	}
	return c.sign(ctx)
}

// sign adds a checkpoint to the file.
func (c *checkpoints) sign(ctx context.Context) error {
	signed, made, err := c.site.Checkpoint(ctx, c.last)
	if err != nil {
		return err
	}
	if err := AppendCheckpoint(c.path, signed); err != nil {
		return err
	}
	c.last = made
	c.read, _ = os.Stat(c.path)
	c.log.InfoContext(ctx, "trust log checkpoint", "sequence", made.Sequence, "hash", made.Hash)
	return nil
}

// reread finds the newest good checkpoint in the file, when the file is not the one that was read before.
func (c *checkpoints) reread(ctx context.Context) error {
	info, err := os.Stat(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a file that somebody took away does not make what it said untrue
	}
	if err != nil {
		return catalog.Wrap(catalog.AuditFile, err, "the checkpoints cannot be read")
	}
	if c.read != nil && os.SameFile(c.read, info) && c.read.Size() == info.Size() && c.read.ModTime().Equal(info.ModTime()) {
		return nil
	}
	raws, readErr := ReadCheckpoints(c.path)
	var newest token.Checkpoint
	for i := len(raws) - 1; i >= 0 && newest.Sequence == 0; i-- {
		if newest, err = c.site.OpenCheckpoint(ctx, raws[i]); errors.Is(err, site.ErrUnavailable) {
			return nil
		}
	}
	if newest.Sequence > 0 {
		c.last = newest
	}
	c.read = info
	if readErr != nil {
		c.log.WarnContext(ctx, "checkpoints of the trust log", "error", readErr)
	}
	return nil
}

// tell keeps the problem for the health and logs it, when it is new and then once an hour.
func (c *checkpoints) tell(err error) {
	if err == nil {
		c.problem.Store(nil)
		return
	}
	before := c.problem.Swap(&err)
	if before != nil && catalog.CodeOf(*before) == catalog.CodeOf(err) && c.now().Sub(c.said) < time.Hour {
		return
	}
	c.said = c.now()
	c.log.Error("trust log checkpoint", "code", string(catalog.CodeOf(err)), "error", err)
}

// health adds what is wrong with the trust log.
func (c *checkpoints) health(h *Health) {
	if err := c.problem.Load(); err != nil {
		h.problem("trust log: %s", catalog.Public(*err))
	}
}
