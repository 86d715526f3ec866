package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"postern/catalog"
)

const (
	// writeLock is the advisory lock of writing transactions: "postern" in ASCII.
	writeLock int64 = 0x706f737465726e
	// migrationLock is the advisory lock of the node that migrates.
	migrationLock = writeLock + 1
	// channel is where nodes tell each other of commits.
	channel = "postern_changes"

	connectTimeout     = 5 * time.Second
	transactionTimeout = 15 * time.Second
	cleanupEvery       = time.Minute
)

// OpenPostgreSQL opens the PostgreSQL database at dsn. Several nodes may have it open. The address must lead to the primary and to real
// sessions: a pooler in transaction mode loses the notifications between nodes.
func OpenPostgreSQL(ctx context.Context, dsn string, o Options) (*Store, error) {
	o = o.withDefaults()
	config, err := postgresConfig(dsn, o)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, away.wrap(err)
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	b := &postgresBackend{pool: pool, now: o.Now, log: o.Log, cancel: cancel}
	if o.ReadOnly {
		if err := b.judge(ctx); err != nil {
			return nil, errors.Join(err, b.close())
		}
		return &Store{backend: b, changes: newSubscribers()}, nil
	}
	if err := b.migrate(ctx); err != nil {
		return nil, errors.Join(err, b.close())
	}
	node := rand.Text()
	b.writer = &postgresSession{config: config.ConnConfig, node: node, now: o.Now}
	s := &Store{backend: b, changes: newSubscribers()}
	s.writer = newWriter(b.writer, o.GroupSize, s.changes.notify)
	go s.writer.loop()
	b.running.Go(func() { b.listen(running, node, s.changes.notify) })
	b.running.Go(func() { b.cleanup(running) })
	return s, nil
}

func postgresConfig(dsn string, o Options) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, catalog.Wrap(catalog.StoreAddress, err, "the PostgreSQL address is not understood")
	}
	config.MaxConns = int32(o.Readers)
	if config.MaxConns <= 0 {
		config.MaxConns = 8
	}
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = connectTimeout
	}
	parameters := config.ConnConfig.RuntimeParams
	parameters["timezone"] = "UTC"
	if o.ReadOnly {
		parameters["default_transaction_read_only"] = "on"
	}
	// A node that hangs with the write lock must not stop the others for ever.
	parameters["idle_in_transaction_session_timeout"] = "15s"
	if parameters["application_name"] == "" {
		parameters["application_name"] = "postern"
	}
	return config, nil
}

// postgresBackend is a PostgreSQL database: a pool for views and one connection that writes.
type postgresBackend struct {
	pool    *pgxpool.Pool
	writer  *postgresSession
	now     func() time.Time
	log     *slog.Logger
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// judge refuses a schema that is not this binary's.
func (b *postgresBackend) judge(ctx context.Context) error {
	if err := b.pool.Ping(ctx); err != nil {
		return unavailable(postgresError(err, true))
	}
	return b.withMigrator(func(p *goose.Provider) error { return judge(ctx, p) })
}

// migrate brings the schema forward, one node at a time.
func (b *postgresBackend) migrate(ctx context.Context) error {
	conn, err := pgx.ConnectConfig(ctx, b.pool.Config().ConnConfig)
	if err != nil {
		return unavailable(postgresError(err, true))
	}
	defer conn.Close(context.WithoutCancel(ctx)) // ends the lock too
	if _, err := conn.Exec(ctx, "select pg_advisory_lock($1)", migrationLock); err != nil {
		return unavailable(postgresError(err, true))
	}
	return b.withMigrator(func(p *goose.Provider) error {
		return migrate(ctx, p, func(int64) error { return nil })
	})
}

func (b *postgresBackend) withMigrator(act func(*goose.Provider) error) error {
	db := stdlib.OpenDBFromPool(b.pool)
	defer db.Close()
	p, err := newMigrator(goose.DialectPostgres, db, migrations, "postgresql")
	if err != nil {
		return err
	}
	return act(p)
}

func (b *postgresBackend) version(ctx context.Context) (version int64, err error) {
	err = b.withMigrator(func(p *goose.Provider) error {
		version, err = p.GetDBVersion(ctx)
		return err
	})
	if err != nil {
		return 0, viewError(ctx, err)
	}
	return version, nil
}

func (b *postgresBackend) view(ctx context.Context, read func(session) error) error {
	conn, err := b.pool.Acquire(ctx)
	if err != nil {
		return viewError(ctx, err)
	}
	defer conn.Release()
	c := &postgresSession{conn: conn.Conn(), ctx: ctx}
	defer c.rollback()
	if _, err := c.conn.Exec(ctx, "begin isolation level repeatable read read only"); err != nil {
		return viewError(ctx, err)
	}
	return read(c)
}

// viewError is ctx's own error when that is why it did not work.
func viewError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return unavailable(postgresError(err, true))
}

// remember keeps ids in a table that all nodes share. It does not wait for the disk: a crash of the server may forget the last half second.
func (b *postgresBackend) remember(ctx context.Context, id string, until time.Time) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var batch pgx.Batch
	batch.Queue("begin")
	batch.Queue("set local synchronous_commit to off")
	batch.Queue(noteUse, fingerprintOf(id).String(), micros(until), micros(b.now()))
	batch.Queue("commit")
	conn, err := b.pool.Acquire(ctx)
	if err != nil {
		return false, viewError(ctx, err)
	}
	defer conn.Release()
	results := conn.SendBatch(ctx, &batch)
	var tag pgconn.CommandTag
	for i := range batch.Len() {
		t, execErr := results.Exec()
		err = errors.Join(err, execErr)
		if i == 2 {
			tag = t
		}
	}
	if err := errors.Join(err, results.Close()); err != nil {
		return false, viewError(ctx, err)
	}
	return tag.RowsAffected() == 1, nil
}

// cleanup drops remembered ids that have expired.
func (b *postgresBackend) cleanup(ctx context.Context) {
	tick := time.NewTicker(cleanupEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := b.pool.Exec(ctx, dropUses, micros(b.now())); err != nil && ctx.Err() == nil {
			b.log.Warn("drop expired ids", "error", err)
		}
	}
}

// listen calls notify after commits of other nodes, and whenever it begins to listen, because it may have missed some.
func (b *postgresBackend) listen(ctx context.Context, node string, notify func()) {
	for ctx.Err() == nil {
		err := b.listenOnce(ctx, node, notify)
		if ctx.Err() != nil {
			return
		}
		b.log.Warn("listen for changes of other nodes", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (b *postgresBackend) listenOnce(ctx context.Context, node string, notify func()) error {
	conn, err := pgx.ConnectConfig(ctx, b.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "listen "+channel); err != nil {
		return err
	}
	notify()
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		if n.Payload != node {
			notify()
		}
	}
}

func (b *postgresBackend) backup(context.Context, string) error {
	return catalog.Errorf(catalog.BackupPostgreSQL, "use pg_dump for this database")
}

func (b *postgresBackend) close() error {
	b.cancel()
	b.running.Wait()
	if b.writer != nil {
		b.writer.close()
	}
	b.pool.Close()
	return nil
}

// postgresSession is one connection. The writer's connects when it must; a view's is lent by the pool.
type postgresSession struct {
	config *pgx.ConnConfig // nil in a view
	node   string
	now    func() time.Time
	conn   *pgx.Conn
	ctx    context.Context // of the transaction under way
	cancel context.CancelFunc
	open   bool
}

func (c *postgresSession) begin() (fresh bool, err error) {
	for range 2 { // the second time on a new connection, when the server has closed the old one meanwhile
		c.ctx, c.cancel = context.WithTimeout(context.Background(), transactionTimeout)
		if err = c.connect(); err == nil {
			err = c.start()
		}
		if err == nil {
			c.open = true
			return true, nil
		}
		c.rollback()
		if c.alive() {
			break
		}
	}
	return false, unavailable(err)
}

func (c *postgresSession) connect() error {
	if c.alive() {
		return nil
	}
	conn, err := pgx.ConnectConfig(c.ctx, c.config)
	if err != nil {
		return postgresError(err, true)
	}
	c.conn = conn
	// What is acknowledged must be on disk, whatever the server's default says.
	_, err = conn.Exec(c.ctx, "select set_config('synchronous_commit', 'on', false) where current_setting('synchronous_commit') = 'off'")
	return postgresError(err, conn.IsClosed())
}

// start begins the transaction and takes the write lock, in one round trip.
func (c *postgresSession) start() error {
	var batch pgx.Batch
	batch.Queue("begin isolation level read committed")
	batch.Queue("select pg_advisory_xact_lock($1)", writeLock)
	c.open = true
	return postgresError(c.conn.SendBatch(c.ctx, &batch).Close(), c.conn.IsClosed())
}

// commit commits and tells the other nodes, in one round trip.
func (c *postgresSession) commit() error {
	var batch pgx.Batch
	batch.Queue("select pg_notify($1, $2)", channel, c.node)
	batch.Queue("commit")
	results := c.conn.SendBatch(c.ctx, &batch)
	_, err := results.Exec()
	var tag pgconn.CommandTag
	if err == nil {
		tag, err = results.Exec()
	}
	err = errors.Join(err, results.Close())
	if err == nil && tag.String() != "COMMIT" {
		err = fmt.Errorf("the transaction ended with %s", tag)
	}
	if err = postgresError(err, c.conn.IsClosed()); err != nil {
		if errors.Is(err, errRetry) {
			return err
		}
		return unavailable(err)
	}
	c.open = false
	c.done()
	return nil
}

func (c *postgresSession) rollback() {
	defer c.done()
	if c.conn == nil || c.conn.IsClosed() {
		c.open = false
		return
	}
	if !c.open && c.config != nil {
		return
	}
	c.open = false
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), connectTimeout)
	defer cancel()
	if _, err := c.conn.Exec(ctx, "rollback"); err != nil {
		_ = c.conn.Close(ctx) // never lend or use a connection in an unknown state
	}
}

func (c *postgresSession) done() {
	if c.cancel != nil {
		c.cancel()
		c.cancel = nil
	}
}

func (c *postgresSession) alive() bool { return c.conn != nil && !c.conn.IsClosed() }

func (c *postgresSession) exec(query string, args ...any) (int64, error) {
	tag, err := c.conn.Exec(c.ctx, query, args...)
	return tag.RowsAffected(), postgresError(err, c.conn.IsClosed())
}

func (c *postgresSession) query(query string, args []any, each func(row) error) error {
	rows, err := c.conn.Query(c.ctx, query, args...)
	if err != nil {
		return postgresError(err, c.conn.IsClosed())
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows); err != nil {
			return err
		}
	}
	rows.Close()
	return postgresError(rows.Err(), c.conn.IsClosed())
}

// note implements session: in the table that [Store.Remember] uses, which all nodes share.
func (c *postgresSession) note(id fingerprint, until time.Time) (bool, error) {
	n, err := c.exec(noteUse, id.String(), micros(until), micros(c.now()))
	return n > 0, err
}

func (c *postgresSession) close() {
	if c.alive() {
		ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
		defer cancel()
		_ = c.conn.Close(ctx)
	}
}
