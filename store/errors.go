package store

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"postern/catalog"
	"postern/site"
)

// failure is how one kind of database failure is told.
type failure struct {
	code   catalog.Code
	detail string
}

func (f failure) wrap(err error) error {
	return catalog.Wrap(f.code, fmt.Errorf("%w: %w", site.ErrUnavailable, err), "%s", f.detail)
}

var (
	away     = failure{catalog.StoreUnavailable, "the database does not answer"}
	diskFull = failure{catalog.DiskFull, "the disk of the database is full"}
	readOnly = failure{catalog.StoreReadOnly, "the database cannot be written"}
	busy     = failure{catalog.StoreBusy, "another program holds the database"}
	damaged  = failure{catalog.StoreDamaged, "the database or its disk is damaged"}
)

// unavailable wraps err in site.ErrUnavailable unless it is already.
func unavailable(err error) error {
	if errors.Is(err, site.ErrUnavailable) {
		return err
	}
	return away.wrap(err)
}

// sqliteFailures are the primary result codes of SQLite that mean that the database did not work.
var sqliteFailures = map[int]failure{
	sqlite3.SQLITE_FULL:     diskFull,
	sqlite3.SQLITE_READONLY: readOnly,
	sqlite3.SQLITE_PERM:     readOnly,
	sqlite3.SQLITE_BUSY:     busy,
	sqlite3.SQLITE_LOCKED:   busy,
	sqlite3.SQLITE_IOERR:    damaged,
	sqlite3.SQLITE_CORRUPT:  damaged,
	sqlite3.SQLITE_NOTADB:   damaged,
	sqlite3.SQLITE_CANTOPEN: away,
	sqlite3.SQLITE_NOMEM:    away,
	sqlite3.SQLITE_PROTOCOL: busy,
}

func sqliteError(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		if f, known := sqliteFailures[e.Code()&0xff]; known {
			return f.wrap(err)
		}
		return fmt.Errorf("SQLite: %w", err)
	}
	if errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, sql.ErrTxDone) {
		return away.wrap(err)
	}
	return err
}

// The SQLSTATE codes of PostgreSQL that matter here.
const (
	stateDiskFull = "53100"
	stateReadOnly = "25006"
	stateLock     = "55P03" // lock_not_available
	stateCanceled = "57014" // query_canceled, by a timeout
)

var stateRetry = []string{
	"40001", // serialization_failure
	"40P01", // deadlock_detected
	"23505", // unique_violation: another node was faster
}

// postgresError translates err; closed says that the connection did not survive it.
func postgresError(err error, closed bool) error {
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		if closed {
			return away.wrap(err)
		}
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	switch {
	case e.Code == stateDiskFull:
		return diskFull.wrap(err)
	case e.Code == stateReadOnly:
		return readOnly.wrap(err)
	case e.Code == stateLock, e.Code == stateCanceled:
		return busy.wrap(err)
	case slices.Contains(stateRetry, e.Code):
		return fmt.Errorf("%w: %w", errRetry, err)
	case slices.Contains(awayClasses, e.Code[:min(2, len(e.Code))]):
		return away.wrap(err)
	}
	return fmt.Errorf("PostgreSQL: %w", err)
}

// awayClasses are the classes of SQLSTATE that mean that the server did not work: connection, no such database, authorization, resources,
// operator intervention, system, internal.
var awayClasses = []string{"08", "3D", "28", "53", "57", "58", "XX"}
