package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"fmt"
	"io"
	"reflect"
	"time"
)

// sqliteSession is one connection with its prepared statements. One goroutine at a time uses it.
//
// It uses the driver without database/sql, which would take a tenth of a registration's time for locks, argument checks and copies that one
// goroutine with few, known statements does not need.
type sqliteSession struct {
	conn     driver.Conn
	prepared map[string]sqliteStatement
	args     []driver.NamedValue // of the statement that runs, kept for the next
	open     bool                // a transaction is open
	version  int64
	noticed  func()        // told of commits of others that begin sees
	memory   *memory       // of ids that must not be seen twice; only the writer's session has one
	noted    []fingerprint // by the open transaction
	swept    time.Time     // when expired notes were dropped last
}

// sqliteStatement is a prepared statement of the driver.
type sqliteStatement interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

func newSQLiteSession(ctx context.Context, connector driver.Connector) (*sqliteSession, error) {
	conn, err := connector.Connect(ctx)
	if err != nil {
		return nil, unavailable(sqliteError(err))
	}
	return &sqliteSession{conn: conn, prepared: make(map[string]sqliteStatement), version: -1}, nil
}

// statement returns the prepared statement of a query; the queries of this package are few.
func (c *sqliteSession) statement(query string) (sqliteStatement, error) {
	if s, ok := c.prepared[query]; ok {
		return s, nil
	}
	prepared, err := c.conn.Prepare(anonymous(query))
	if err != nil {
		return nil, sqliteError(err)
	}
	s, ok := prepared.(sqliteStatement)
	if !ok {
		return nil, fmt.Errorf("the driver's statement is a %T", prepared)
	}
	c.prepared[query] = s
	return s, nil
}

// bind returns the arguments as the driver wants them, in a slice that the next call uses again: the driver keeps none.
func (c *sqliteSession) bind(args []any) ([]driver.NamedValue, error) {
	c.args = c.args[:0]
	for i, arg := range args {
		v := driver.NamedValue{Ordinal: i + 1, Value: arg}
		if !driver.IsValue(arg) {
			var err error
			if v.Value, err = driver.DefaultParameterConverter.ConvertValue(arg); err != nil {
				return nil, fmt.Errorf("argument %d: %w", i+1, err)
			}
		}
		c.args = append(c.args, v)
	}
	return c.args, nil
}

func (c *sqliteSession) run(query string) error {
	_, err := c.exec(query)
	return err
}

func (c *sqliteSession) begin() (fresh bool, err error) {
	if err := c.run("begin immediate"); err != nil {
		return false, unavailable(err)
	}
	c.open = true
	if !c.foreign() {
		return false, nil
	}
	if c.noticed != nil {
		c.noticed()
	}
	return true, nil
}

// foreign reports whether another connection has committed since it was asked last, or when that cannot be known.
func (c *sqliteSession) foreign() bool {
	before := c.version
	err := c.query("pragma data_version", nil, func(r row) error { return r.Scan(&c.version) })
	return err != nil || c.version != before
}

func (c *sqliteSession) commit() error {
	if err := c.run("commit"); err != nil {
		return unavailable(err)
	}
	c.open, c.noted = false, c.noted[:0]
	return nil
}

func (c *sqliteSession) rollback() {
	if c.open {
		_ = c.run("rollback") // fails when SQLite has rolled back by itself, as it does on a full disk
		c.open = false
	}
	for _, id := range c.noted {
		c.memory.drop(id)
	}
	c.noted = c.noted[:0]
}

const (
	noteUse    = "insert into remembered (id, until) values ($1, $2) on conflict (id) do update set until = excluded.until where remembered.until < $3"
	dropUses   = "delete from remembered where until < $1"
	sweepEvery = time.Minute
)

// note implements session. The id is in memory at once, so that nobody else takes it for new meanwhile, and on disk with the commit.
func (c *sqliteSession) note(id fingerprint, until time.Time) (bool, error) {
	fresh, err := c.memory.note(id, until)
	if err != nil || !fresh {
		return false, err
	}
	c.noted = append(c.noted, id)
	now := c.memory.now()
	if now.Sub(c.swept) >= sweepEvery {
		if _, err := c.exec(dropUses, micros(now)); err != nil {
			return false, err
		}
		c.swept = now
	}
	n, err := c.exec(noteUse, id.String(), micros(until), micros(now))
	return n > 0, err
}

// recall fills the memory with the notes of before.
func (c *sqliteSession) recall() error {
	return c.query("select id, until from remembered where until >= $1", []any{micros(c.memory.now())}, func(r row) error {
		var text string
		var until time.Time
		if err := r.Scan(&text, instant{&until}); err != nil {
			return err
		}
		id, err := hex.DecodeString(text)
		if err != nil || len(id) != len(fingerprint{}) {
			return nil // not one of ours
		}
		_, err = c.memory.note(fingerprint(id), until)
		return err
	})
}

// alive is always true: a file goes on as soon as it can be written again.
func (c *sqliteSession) alive() bool { return true }

func (c *sqliteSession) exec(query string, args ...any) (int64, error) {
	s, err := c.statement(query)
	if err != nil {
		return 0, err
	}
	values, err := c.bind(args)
	if err != nil {
		return 0, err
	}
	defer clear(values)
	result, err := s.ExecContext(context.Background(), values)
	if err != nil {
		return 0, sqliteError(err)
	}
	return result.RowsAffected()
}

func (c *sqliteSession) query(query string, args []any, each func(row) error) error {
	s, err := c.statement(query)
	if err != nil {
		return err
	}
	values, err := c.bind(args)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(context.Background(), values)
	clear(values)
	if err != nil {
		return sqliteError(err)
	}
	err = eachRow(rows, each)
	if closing := rows.Close(); err == nil {
		err = sqliteError(closing)
	}
	return err
}

func eachRow(rows driver.Rows, each func(row) error) error {
	cells := make(sqliteRow, len(rows.Columns()))
	for {
		if err := rows.Next(cells); err == io.EOF {
			return nil
		} else if err != nil {
			return sqliteError(err)
		}
		if err := each(cells); err != nil {
			return err
		}
	}
}

func (c *sqliteSession) close() error {
	for _, s := range c.prepared {
		_ = s.Close()
	}
	return c.conn.Close()
}

// sqliteRow is one result: int64, string, []byte or nil in each column.
type sqliteRow []driver.Value

// Scan implements row. Numbers go to integers and booleans, text to strings; a [sql.Scanner] does what it wants.
func (r sqliteRow) Scan(dest ...any) error {
	if len(dest) != len(r) {
		return fmt.Errorf("scan: %d columns to %d variables", len(r), len(dest))
	}
	for i, to := range dest {
		if err := assign(to, r[i]); err != nil {
			return fmt.Errorf("scan column %d: %w", i+1, err)
		}
	}
	return nil
}

func assign(to any, from driver.Value) error {
	if scanner, ok := to.(sql.Scanner); ok {
		return scanner.Scan(from)
	}
	v := reflect.ValueOf(to).Elem()
	switch from := from.(type) {
	case string:
		if v.Kind() == reflect.String {
			v.SetString(from)
			return nil
		}
	case int64:
		switch {
		case v.Kind() == reflect.Bool:
			v.SetBool(from != 0)
			return nil
		case v.CanInt() && !v.OverflowInt(from):
			v.SetInt(from)
			return nil
		case v.CanUint() && from >= 0 && !v.OverflowUint(uint64(from)):
			v.SetUint(uint64(from))
			return nil
		}
	}
	return fmt.Errorf("a %T does not fit a %s", from, v.Type())
}
