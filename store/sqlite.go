package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/pressly/goose/v3"
	"modernc.org/sqlite" // also the driver "sqlite"

	"postern/catalog"
)

// OpenSQLite opens the SQLite file at path, and makes it, owner-only, when it does not exist. The folder must exist. Several processes
// may have the file open; it must be on a local disk.
func OpenSQLite(ctx context.Context, path string, o Options) (*Store, error) {
	return openSQLiteWith(ctx, path, o.withDefaults(), migrations)
}

func openSQLiteWith(ctx context.Context, path string, o Options, files fs.FS) (*Store, error) {
	open := makeFile
	if o.ReadOnly {
		open = readable
	}
	if err := open(path); err != nil {
		return nil, catalog.Wrap(catalog.StoreUnavailable, err, "the database file %s cannot be opened", path)
	}
	b, err := openSQLite(path, o)
	if err != nil {
		return nil, err
	}
	if o.ReadOnly {
		if err := b.judge(ctx, files); err != nil {
			return nil, errors.Join(err, b.close())
		}
		return &Store{backend: b, changes: newSubscribers()}, nil
	}
	if err := b.migrate(ctx, files); err != nil {
		return nil, errors.Join(err, b.close())
	}
	if b.writer, err = newSQLiteSession(ctx, b.writing); err != nil {
		return nil, errors.Join(err, b.close())
	}
	b.writer.memory = b.memory
	if err := b.writer.recall(); err != nil {
		return nil, errors.Join(err, b.close())
	}
	s := &Store{backend: b, changes: newSubscribers()}
	s.writer = newWriter(b.writer, o.GroupSize, s.changes.notify)
	s.writer.tick, s.writer.poll = o.PollInterval, func() {
		if s.changes.any() && b.writer.foreign() {
			s.writer.lore.forget()
			s.changes.notify()
		}
	}
	b.writer.noticed = s.changes.notify
	go s.writer.loop()
	return s, nil
}

// sqliteBackend is an SQLite file: one connection that writes and a few that read.
type sqliteBackend struct {
	path     string
	writing  driver.Connector
	reading  driver.Connector
	writers  *sql.DB // for the migrations; of a store that is read only, for what is known of them
	writer   *sqliteSession
	idle     chan *sqliteSession // readers not in use; nil stands for one not opened yet
	memory   *memory
	noSync   bool
	migrator *goose.Provider
}

func openSQLite(path string, o Options) (*sqliteBackend, error) {
	synchronous := "FULL"
	if o.NoSync {
		synchronous = "OFF"
	}
	b := &sqliteBackend{path: path, memory: newMemory(o.Remembered, o.Now), noSync: o.NoSync}
	var err error
	// A long write-ahead log (32 MB) lets a page that many registrations touch be copied back once and not each time.
	if b.writing, err = sqlite.NewConnector(sqliteAddress(path, "journal_mode(WAL)", "busy_timeout(5000)", "foreign_keys(1)", "synchronous("+synchronous+")", "wal_autocheckpoint(8000)")); err != nil {
		return nil, fmt.Errorf("open SQLite: %w", err)
	}
	if b.reading, err = sqlite.NewConnector(sqliteAddress(path, "busy_timeout(5000)", "query_only(1)")); err != nil {
		return nil, fmt.Errorf("open SQLite: %w", err)
	}
	b.writers = sql.OpenDB(b.writing)
	if o.ReadOnly {
		b.writers = sql.OpenDB(b.reading)
	}
	readers := o.Readers
	if readers <= 0 {
		readers = 4
	}
	b.idle = make(chan *sqliteSession, readers)
	for range readers {
		b.idle <- nil
	}
	return b, nil
}

// sqliteAddress is the data source name of path with the pragmas. The path is escaped: it may hold any character.
func sqliteAddress(path string, pragmas ...string) string {
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute
	}
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // a drive letter
	}
	query := url.Values{"_pragma": pragmas, "_txlock": {"immediate"}}
	return "file://" + (&url.URL{Path: path}).EscapedPath() + "?" + query.Encode()
}

// makeFile makes an empty owner-only file; SQLite itself would follow the umask.
func makeFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// judge refuses a schema that is not this binary's.
func (b *sqliteBackend) judge(ctx context.Context, files fs.FS) error {
	if err := b.database(ctx, files); err != nil {
		return err
	}
	return judge(ctx, b.migrator)
}

// database tells a file that is no database, and makes the migrator of one that is.
func (b *sqliteBackend) database(ctx context.Context, files fs.FS) (err error) {
	var tables int
	if err := b.writers.QueryRowContext(ctx, "select count(*) from sqlite_schema").Scan(&tables); err != nil {
		return sqliteError(err) // and not that a migration does not work
	}
	b.migrator, err = newMigrator(goose.DialectSQLite3, b.writers, files, "sqlite")
	return err
}

// migrate brings the schema forward, one process at a time.
func (b *sqliteBackend) migrate(ctx context.Context, files fs.FS) error {
	lock := flock.New(b.path+".lock", flock.SetPermissions(0o600))
	if _, err := lock.TryLockContext(ctx, 20*time.Millisecond); err != nil {
		return catalog.Wrap(catalog.StoreMigration, err, "another process migrates the database, or its folder cannot be written")
	}
	defer lock.Close()
	if err := b.database(ctx, files); err != nil {
		return err
	}
	return migrate(ctx, b.migrator, func(version int64) error {
		if version == 0 {
			return nil // a new file
		}
		path := fmt.Sprintf("%s.bak-%d-%s", b.path, version, time.Now().UTC().Format("20060102T150405Z"))
		if err := b.copyTo(ctx, path); err != nil {
			return catalog.Wrap(catalog.StoreMigrationBackup, err, "the copy %s was not written, so nothing was changed", path)
		}
		return nil
	})
}

func (b *sqliteBackend) version(ctx context.Context) (int64, error) {
	version, err := b.migrator.GetDBVersion(ctx)
	return version, sqliteError(err)
}

func (b *sqliteBackend) view(ctx context.Context, read func(session) error) error {
	c, err := b.reader(ctx)
	if err != nil {
		return err
	}
	defer func() { b.idle <- c }()
	defer c.rollback()
	if err := c.run("begin deferred"); err != nil {
		return err
	}
	c.open = true
	return read(c)
}

// reader takes an idle connection, or opens one of those not opened yet.
func (b *sqliteBackend) reader(ctx context.Context) (*sqliteSession, error) {
	select {
	case c, ok := <-b.idle:
		if !ok {
			return nil, errClosed()
		}
		if c != nil {
			return c, nil
		}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c, err := newSQLiteSession(context.WithoutCancel(ctx), b.reading)
	if err != nil {
		b.idle <- nil
		return nil, err
	}
	return c, nil
}

func (b *sqliteBackend) remember(_ context.Context, id string, until time.Time) (bool, error) {
	return b.memory.remember(id, until)
}

func (b *sqliteBackend) backup(ctx context.Context, path string) error {
	if err := b.copyTo(ctx, path); err != nil {
		return catalog.Wrap(catalog.BackupFailed, err, "the copy %s was not written", path)
	}
	return nil
}

// copyTo writes a consistent copy of the database to path, which must not exist, and syncs it.
func (b *sqliteBackend) copyTo(ctx context.Context, path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	db, err := sql.Open("sqlite", sqliteAddress(b.path, "busy_timeout(5000)"))
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "vacuum into $1", path); err != nil {
		return sqliteError(err)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// syncFolder makes a new name in the folder durable. Where folders cannot be synced (Windows), the file system does it by itself.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, os.ErrInvalid) && !errors.Is(err, os.ErrPermission) {
		return err
	}
	return nil
}

func (b *sqliteBackend) close() error {
	var errs []error
	for range cap(b.idle) { // waits for the views under way
		if c := <-b.idle; c != nil {
			errs = append(errs, c.close())
		}
	}
	close(b.idle)
	if b.writer != nil {
		errs = append(errs, b.writer.close())
	}
	return errors.Join(append(errs, b.writers.Close())...)
}
