package store

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"postern/catalog"
	"postern/site"
)

// Options adjust a store. The zero value is right for a server.
type Options struct {
	// GroupSize is the largest number of updates that share one commit; 256 when 0, and 1 gives each its own.
	GroupSize int
	// PollInterval is how often an SQLite store looks for commits of other processes; 200 ms when 0.
	PollInterval time.Duration
	// Readers is the largest number of concurrent views; 4 on SQLite and 8 on PostgreSQL when 0.
	Readers int
	// Remembered is the largest number of ids that an SQLite store remembers at once; 1<<20 when 0.
	Remembered int
	// ReadOnly opens a database only to look at it. Nothing is made, migrated or written: what is not there is refused with the code StoreUnavailable, a schema
	// that is not this binary's with StoreOlderSchema or StoreNewerSchema, and every Update and Remember with StoreReadOnly. Changes tells of nothing.
	ReadOnly bool
	// NoSync lets SQLite answer before the disk has the change: a power loss takes the newest changes away. Only for throw-away sites and tests.
	NoSync bool
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// Log takes what has no caller to answer to; discarded when nil.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.GroupSize <= 0 {
		o.GroupSize = 256
	}
	if o.PollInterval <= 0 {
		o.PollInterval = 200 * time.Millisecond
	}
	if o.Remembered <= 0 {
		o.Remembered = 1 << 20
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Store is an open database. It implements site.Store; all methods are safe for concurrent use.
type Store struct {
	backend backend
	writer  *writer // nil in a store that is opened read-only
	changes *subscribers
	close   sync.Once
	closed  error
}

var _ site.Store = (*Store)(nil)

// backend is what the two databases do differently.
type backend interface {
	view(ctx context.Context, read func(session) error) error
	remember(ctx context.Context, id string, until time.Time) (bool, error)
	backup(ctx context.Context, path string) error
	version(ctx context.Context) (int64, error)
	close() error
}

// Open opens the database at address: a PostgreSQL address (postgres:// or postgresql://), or else the path of an SQLite file, which is
// made when it does not exist. The schema is brought up to date first; a schema newer than this binary is refused (catalog code
// StoreNewerSchema). An SQLite file is copied to PATH.bak-VERSION-TIME before it is migrated. [Options.ReadOnly] does none of that.
func Open(ctx context.Context, address string, o Options) (*Store, error) {
	switch {
	case strings.HasPrefix(address, "postgres://"), strings.HasPrefix(address, "postgresql://"):
		return OpenPostgreSQL(ctx, address, o)
	case address == "", strings.Contains(address, "://"):
		return nil, catalog.Errorf(catalog.StoreAddress, "the database address must be a file path or begin with postgres://")
	}
	return OpenSQLite(ctx, address, o)
}

// View implements site.Store.
func (s *Store) View(ctx context.Context, read func(site.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.backend.view(ctx, func(c session) error {
		t := &tx{session: c, readOnly: true, lore: new(lore)}
		err := read(t)
		if ctx.Err() != nil && t.failed != nil {
			return ctx.Err()
		}
		return t.outcome(err)
	})
}

// Update implements site.Store. A caller whose ctx ends while its change waits in the queue gets ctx.Err() and the change never runs;
// once the change has begun, the caller gets its outcome. change must not call the store.
//
// When PostgreSQL goes away during the commit itself, the outcome is not known: the error wraps site.ErrUnavailable although the change may
// have been kept. Changes are idempotent for that reason.
func (s *Store) Update(ctx context.Context, change func(site.Tx) error) error {
	if s.writer == nil {
		return errLookedAt()
	}
	return s.writer.update(ctx, change)
}

// Remember implements site.Store.
func (s *Store) Remember(ctx context.Context, id string, until time.Time) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if s.writer == nil {
		return false, errLookedAt()
	}
	return s.backend.remember(ctx, id, until)
}

// Changes implements site.Store. The channel is also closed by Close.
func (s *Store) Changes(ctx context.Context) <-chan struct{} { return s.changes.add(ctx) }

// Backup writes a consistent copy of an SQLite database to path, owner-only and synced, while the store is in use. It refuses a path that
// exists (BackupFailed). For PostgreSQL it returns BackupPostgreSQL: its own tools do that.
func (s *Store) Backup(ctx context.Context, path string) error { return s.backend.backup(ctx, path) }

// SchemaVersion returns the version of the schema that is in use.
func (s *Store) SchemaVersion(ctx context.Context) (int64, error) { return s.backend.version(ctx) }

// Close implements site.Store. Closing twice is harmless.
func (s *Store) Close() error {
	s.close.Do(func() {
		if s.writer != nil {
			s.writer.close()
		}
		s.changes.close()
		if err := s.backend.close(); err != nil {
			s.closed = fmt.Errorf("close store: %w", err)
		}
	})
	return s.closed
}

// errClosed is what a closed store answers.
func errClosed() error {
	return catalog.Wrap(catalog.StoreClosed, site.ErrUnavailable, "the database is closed")
}

// errLookedAt is what a store that was opened read-only answers to a change.
func errLookedAt() error {
	return catalog.Wrap(catalog.StoreReadOnly, site.ErrUnavailable, "the database was opened only to be looked at")
}
