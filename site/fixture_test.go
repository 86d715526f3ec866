package site_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"database/sql"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/catalog"
	"postern/ccm"
	"postern/keyfile"
	"postern/proof"
	"postern/site"
	"postern/store"
	"postern/store/postgrestest"
)

// world is one site on a real database, with a clock that only the test moves.
type world struct {
	*site.Site
	store   *store.Store
	address string // of the database, for another node
	sealer  *keyfile.Key
	clock   *clock
}

type clock struct{ nanos atomic.Int64 }

func (c *clock) now() time.Time           { return time.Unix(0, c.nanos.Load()).UTC() }
func (c *clock) advance(by time.Duration) { c.nanos.Add(int64(by)) }
func (c *clock) set(to time.Time)         { c.nanos.Store(to.UnixNano()) }
func (w *world) config(s site.Store) site.Config {
	return site.Config{Store: s, Sealer: w.sealer, Now: w.clock.now}
}

// begin is when every test begins.
var begin = time.Date(2026, 11, 21, 20, 49, 8, 123456000, time.UTC)

// story is a test that runs on both databases.
type story struct {
	name string
	tell func(*testing.T, *world)
}

func TestOnSQLite(t *testing.T) {
	t.Parallel()
	for _, s := range stories() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.tell(t, newWorld(t, filepath.Join(t.TempDir(), "site.db")))
		})
	}
}

func TestOnPostgreSQL(t *testing.T) {
	t.Parallel()
	address := postgrestest.Start(t) // one database, emptied between stories: to make one takes long
	for _, s := range stories() {
		t.Run(s.name, func(t *testing.T) {
			w := newWorld(t, address)
			t.Cleanup(func() { w.empty(t) })
			s.tell(t, w)
		})
	}
}

// empty makes a PostgreSQL database as it was before the first record.
func (w *world) empty(t testing.TB) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), w.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	statements := []string{"alter table trust_log disable trigger all"}
	for _, table := range tables(t, conn) {
		if !strings.HasPrefix(table, "schema_") {
			statements = append(statements, "delete from "+pgx.Identifier{table}.Sanitize())
		}
	}
	statements = append(statements, "insert into site_state (id, epoch) values (1, 0)", "alter table trust_log enable trigger all")
	if _, err := conn.Exec(context.Background(), strings.Join(statements, "; ")); err != nil {
		t.Fatal(err)
	}
}

// tables names the tables, those that point to others first.
func tables(t testing.TB, conn *pgx.Conn) []string {
	t.Helper()
	rows, err := conn.Query(context.Background(), "select table_name from information_schema.tables where table_schema = 'public' order by table_name desc")
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func stories() []story {
	return slices.Concat(registerStories(), issueStories(), bulkStories(), policyStories(), keyStories(), peerStories(), stateStories(), trustStories(), conflictStories(), tenantStories(), entraStories(), authorityStories(), identityStories(), returnStories(), auditStories(), rotateStories(), confirmStories())
}

// born is a site as Init leaves it: making its keys takes long, so that it is done once and its records are copied.
var born = sync.OnceValues(func() (*template, error) {
	dir, err := os.MkdirTemp("", "site")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	t := &template{}
	if t.empty, err = emptyDatabase(filepath.Join(dir, "empty.db")); err != nil {
		return nil, err
	}
	if t.sealer, err = keyfile.Open(dir, keyfile.Options{Create: true}); err != nil {
		return nil, err
	}
	ctx := context.Background()
	s, err := store.Open(ctx, filepath.Join(dir, "site.db"), store.Options{NoSync: true})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if _, err := site.Init(ctx, site.Config{Store: s, Sealer: t.sealer, Now: func() time.Time { return begin }}, site.InitOptions{SiteCode: "LAB", By: "anna"}); err != nil {
		return nil, err
	}
	return t, s.View(ctx, t.read)
})

// emptyDatabase is an SQLite database whose schema is there: to migrate to it takes most of a small test's time.
func emptyDatabase(path string) ([]byte, error) {
	s, err := store.Open(context.Background(), path, store.Options{NoSync: true})
	if err != nil {
		return nil, err
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

type template struct {
	empty    []byte
	sealer   *keyfile.Key
	settings map[string]string
	keys     []site.KeyRecord
	trust    []site.TrustEntry
}

func (t *template) read(tx site.Tx) (err error) {
	t.settings = map[string]string{}
	for _, name := range []string{"site.code", "site.hierarchy"} {
		if t.settings[name], err = tx.Setting(name); err != nil {
			return err
		}
	}
	if t.keys, err = tx.SigningKeys(); err != nil {
		return err
	}
	t.trust, err = tx.TrustEntries(0, 0)
	return err
}

func (t *template) write(tx site.Tx) error {
	for name, value := range t.settings {
		if err := tx.PutSetting(name, value); err != nil {
			return err
		}
	}
	for _, key := range t.keys {
		if err := tx.PutSigningKey(key); err != nil {
			return err
		}
	}
	for _, entry := range t.trust {
		if err := tx.AppendTrust(entry); err != nil {
			return err
		}
	}
	if err := tx.PutTenant(site.Tenant{Tenant: contoso(), Created: begin, By: "anna"}); err != nil {
		return err
	}
	_, err := tx.NextEpoch(uint64(begin.UnixMilli()))
	return err
}

func newWorld(t testing.TB, address string) *world {
	t.Helper()
	model, err := born()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{address: address, sealer: model.sealer, clock: new(clock)}
	w.clock.set(begin)
	if _, err := os.Stat(address); !w.onPostgreSQL() && errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(address, model.empty, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.store = w.open(t, store.Options{NoSync: true})
	if err := w.store.Update(t.Context(), model.write); err != nil {
		t.Fatal(err)
	}
	if w.Site, err = site.Open(t.Context(), w.config(w.store)); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) open(t testing.TB, o store.Options) *store.Store {
	t.Helper()
	o.Now, o.PollInterval = w.clock.now, 5*time.Millisecond
	s, err := store.Open(t.Context(), w.address, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// node returns another site on the same database, as another management point has it.
func (w *world) node(t testing.TB) *site.Site {
	t.Helper()
	s, err := site.Open(t.Context(), w.config(w.open(t, store.Options{NoSync: true})))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// onPostgreSQL reports which database this is.
func (w *world) onPostgreSQL() bool { return strings.HasPrefix(w.address, "postgres://") }

// execute runs statements behind the site's back; $ON$ stands for "on trust_log", which only PostgreSQL wants after a trigger's name.
func (w *world) execute(t testing.TB, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if err := w.executeOne(t, statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

func (w *world) executeOne(t testing.TB, statement string) error {
	if w.onPostgreSQL() {
		conn, err := pgx.Connect(t.Context(), w.address)
		if err != nil {
			return err
		}
		defer conn.Close(context.Background())
		_, err = conn.Exec(t.Context(), statement)
		return err
	}
	db, err := sql.Open("sqlite", w.address+"?_pragma=busy_timeout(5000)")
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.ExecContext(t.Context(), statement)
	return err
}

// dump returns every byte that the database keeps.
func (w *world) dump(t testing.TB) []byte {
	t.Helper()
	var all bytes.Buffer
	if w.onPostgreSQL() {
		w.dumpPostgreSQL(t, &all)
		return all.Bytes()
	}
	for _, suffix := range []string{"", "-wal"} {
		content, err := os.ReadFile(w.address + suffix)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(content)
	}
	return all.Bytes()
}

func (w *world) dumpPostgreSQL(t testing.TB, all *bytes.Buffer) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, table := range tables(t, conn) {
		rows, err := conn.Query(t.Context(), "select * from "+pgx.Identifier{table}.Sanitize())
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			values, err := rows.Values()
			if err != nil {
				t.Fatal(err)
			}
			for _, value := range values {
				if b, ok := value.([]byte); ok {
					all.Write(b)
				} else {
					fmt.Fprint(all, value)
				}
				all.WriteByte('\n')
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// entries returns the whole trust log.
func (w *world) entries(t testing.TB) []site.TrustEntry {
	t.Helper()
	entries, err := w.TrustLog(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// during returns the trust entries that act leaves.
func (w *world) during(t testing.TB, act func()) []site.TrustEntry {
	t.Helper()
	before := len(w.entries(t))
	act()
	return w.entries(t)[before:]
}

// actions names entries in order.
func actions(entries []site.TrustEntry) string {
	var names []string
	for _, e := range entries {
		names = append(names, e.Action)
	}
	return strings.Join(names, " ")
}

//go:embed testdata/primes.txt
var primesText string

var primes = sync.OnceValue(func() (list []*big.Int) {
	for line := range strings.Lines(primesText) {
		if p, ok := new(big.Int).SetString(strings.TrimSpace(line), 16); ok {
			list = append(list, p)
		}
	}
	return list
})

// keyOf returns the n-th test key: the n-th pair of the primes. There are 1128.
func keyOf(n int) *rsa.PrivateKey {
	list := primes()
	j := 1
	for ; n >= j; j++ {
		n -= j
	}
	p, q, one := list[j], list[n], big.NewInt(1)
	phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537}, Primes: []*big.Int{p, q}}
	key.D = new(big.Int).ModInverse(big.NewInt(65537), phi)
	key.Precompute()
	return key
}

// agent is a device: its key and its certificates.
type agent struct {
	key           *rsa.PrivateKey
	thumbprint    proof.KeyThumbprint
	signing       *ccm.Certificate
	encryption    *ccm.Certificate
	encryptionKey *rsa.PrivateKey
}

var agents sync.Map // by number: func() *agent

// device returns the n-th device. Its encryption key is its signing key, as third-party clients have it, but for the first.
func device(n int) *agent {
	made, _ := agents.LoadOrStore(n, sync.OnceValue(func() *agent { return newAgent(keyOf(n), begin) }))
	return made.(func() *agent)()
}

func newAgent(key *rsa.PrivateKey, now time.Time) *agent {
	thumbprint, err := proof.Thumbprint(&key.PublicKey)
	if err != nil {
		panic(err)
	}
	certificate := must(ccm.NewClientCertificate(key, "ConfigMgr Client", ccm.UsageSigning|ccm.UsageEncryption, now, rand.Reader))
	return &agent{key, thumbprint, certificate, certificate, key}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// request returns a signed registration of the device; edit may change it before it is signed.
func (a *agent) request(edit ...func(*ccm.RegistrationRequest)) *ccm.RegistrationRequest {
	r := ccm.RegistrationRequest{
		Type: ccm.RegistrationTypeRegistration, TimeStamp: begin.Format("2006-01-02T15:04:05Z"), Agent: ccm.Agent{Identity: "CcmExec", Version: "5.00.9128.1000"},
		Signing: a.signing, Encryption: a.encryption, KeyType: 1, Properties: map[string]string{"Netbios Name": "WK1", "FQ Name": "wk1.example.com", "InternetFlag": "1"},
	}
	for _, change := range edit {
		change(&r)
	}
	return parse(must(ccm.BuildRegistration(r, a.key)))
}

// confirmation returns a signed confirmation of the id.
func (a *agent) confirmation(id ccm.ClientID) *ccm.RegistrationRequest {
	return a.request(func(r *ccm.RegistrationRequest) {
		r.Type, r.SMSID, r.SignatureSMSID = ccm.RegistrationTypeConfirmation, id, string(id)
	})
}

// sha1 returns the request signed with SHA-1, as clients of 2007 did; algorithm is what it says of it.
func (a *agent) sha1(algorithm string, edit ...func(*ccm.RegistrationRequest)) *ccm.RegistrationRequest {
	r := ccm.RegistrationRequest{Type: ccm.RegistrationTypeRegistration, TimeStamp: "2026-11-21T20:49:08Z", Signing: a.signing, KeyType: 1}
	for _, change := range edit {
		change(&r)
	}
	text := strings.Replace(must(ccm.BuildRegistration(r, a.key)), "1.2.840.113549.1.1.11", algorithm, 1)
	data := text[strings.Index(text, "<Data") : strings.Index(text, "</Data>")+len("</Data>")]
	hash := crypto.SHA1.New()
	hash.Write(utf16(data))
	signature := must(rsa.SignPKCS1v15(nil, a.key, crypto.SHA1, hash.Sum(nil)))
	slices.Reverse(signature)
	from, to := strings.Index(text, "<SignatureValue>")+len("<SignatureValue>"), strings.Index(text, "</SignatureValue>")
	return parse(text[:from] + hex.EncodeToString(signature) + text[to:])
}

func parse(text string) *ccm.RegistrationRequest {
	return must(ccm.ParseRegistration(&ccm.Message{Body: append(utf16(text), 0, 0)}))
}

func utf16(text string) []byte { return ccm.PolicyBody(text)[2:] }

// wanting asks for a client id.
func wanting(id ccm.ClientID) func(*ccm.RegistrationRequest) {
	return func(r *ccm.RegistrationRequest) { r.SMSID = id }
}

// property sets a discovery property.
func property(name, value string) func(*ccm.RegistrationRequest) {
	return func(r *ccm.RegistrationRequest) { r.Properties[name] = value }
}

// clientID returns the n-th made-up client id.
func clientID(n int) ccm.ClientID {
	return ccm.ClientID(fmt.Sprintf("GUID:00000000-0000-4000-8000-%012X", n))
}

// signed is the caller of a request that proved nothing but its signature.
func signed() site.Caller {
	return site.Caller{Proof: proof.Proof{Method: proof.MessageSignature, Address: "192.0.2.7"}, Ceiling: proof.LevelManaged}
}

// with is the caller who showed a bulk token and a proof of the key.
func with(bulk site.BulkToken, key proof.KeyThumbprint) site.Caller {
	return site.Caller{Proof: proof.Proof{Method: proof.BulkToken, Key: key, BulkID: bulk.ID, TokenID: bulk.ID, Address: "192.0.2.7"}, Ceiling: proof.LevelManaged}
}

// registered registers the device and fails the test when it does not work.
func (w *world) registered(t testing.TB, caller site.Caller, request *ccm.RegistrationRequest) site.Registration {
	t.Helper()
	out, err := w.Register(t.Context(), caller, request)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// bulk makes a bulk token for so many uses.
func (w *world) bulk(t testing.TB, uses int) site.BulkToken {
	t.Helper()
	_, kept, err := w.NewBulkToken(t.Context(), site.NewBulk{MaxUses: uses, By: "anna"})
	if err != nil {
		t.Fatal(err)
	}
	return kept
}

// refused fails the test unless err has the code.
func refused(t testing.TB, what string, err error, want catalog.Code) {
	t.Helper()
	if got := catalog.CodeOf(err); got != want || err == nil {
		t.Errorf("%s: got %v, want code %s", what, err, want)
	}
}
