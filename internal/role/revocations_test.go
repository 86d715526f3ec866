package role

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/jackc/pgx/v5"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
	"postern/store/postgrestest"
	"postern/token"
)

// house is a site whose store can be replaced by an older copy.
type house struct {
	t      *testing.T
	config Config
	opened *OpenedSite
	copies int
}

func newHouse(t *testing.T, postgresql bool) *house {
	t.Helper()
	dir := t.TempDir()
	ask := NewSite{Dir: dir, Code: "P01", Actor: "test"}
	if postgresql {
		ask.Store = postgrestest.Start(t)
	}
	made, err := InitSite(t.Context(), ask, Protection{}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	config, err := Load(made.Config)
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, config: config}
	h.open()
	t.Cleanup(func() { h.opened.Close() })
	return h
}

func (h *house) openWith(c Config) *OpenedSite {
	h.t.Helper()
	opened, err := OpenSite(h.t.Context(), c, Protection{}, time.Now, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return opened
}

func (h *house) open() *site.Site {
	h.t.Helper()
	h.opened = h.openWith(h.config)
	return h.opened.Site
}

// second is another management point on the same store, with a state folder of its own.
func (h *house) second() Config {
	c := h.config
	c.Name, c.State = "mp2", h.t.TempDir()
	return c
}

func (h *house) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// backup copies the store; restore puts the copy in its place and returns the site as it opens then.
func (h *house) backup() (restore func() *site.Site) {
	h.t.Helper()
	if strings.HasPrefix(h.config.Store, "postgres") {
		copied := h.copyDatabase()
		return func() *site.Site {
			h.must(h.opened.Close())
			h.config.Store = copied
			return h.open()
		}
	}
	h.copies++
	path := filepath.Join(h.t.TempDir(), fmt.Sprint("backup-", h.copies))
	h.must(h.opened.Backup(h.t.Context(), path))
	return func() *site.Site {
		h.must(h.opened.Close())
		_, err := Restore(h.config, path, time.Now())
		h.must(err)
		return h.open()
	}
}

// copyDatabase makes another database from the present one, as a dump that is restored would be.
func (h *house) copyDatabase() (address string) {
	h.t.Helper()
	h.must(h.opened.Close())
	parsed, err := pgx.ParseConfig(h.config.Store)
	h.must(err)
	admin := parsed.Copy()
	admin.Database = "postgres"
	conn, err := pgx.ConnectConfig(h.t.Context(), admin)
	h.must(err)
	defer conn.Close(context.Background())
	h.copies++
	name := fmt.Sprintf("%s_copy_%d", parsed.Database, h.copies)
	_, err = conn.Exec(h.t.Context(), "create database "+pgx.Identifier{name}.Sanitize()+" template "+pgx.Identifier{parsed.Database}.Sanitize())
	h.must(err)
	h.open()
	return strings.Replace(h.config.Store, parsed.Database, name, 1)
}

// device puts a device into the store, as a registration does.
func (h *house) device(n int) site.Device {
	h.t.Helper()
	d := site.Device{
		ClientID: ccm.ClientID(fmt.Sprintf("GUID:00000000-0000-4000-8000-%012d", n)), Key: proof.KeyThumbprint(fmt.Sprintf("%043d", n)), Created: time.Now().UTC(),
	}
	d.Record.NetbiosName = fmt.Sprint("WK", n)
	h.must(h.opened.config.Store.Update(h.t.Context(), func(tx site.Tx) error { return tx.PutDevice(d) }))
	return d
}

func (h *house) state() token.SiteState {
	h.t.Helper()
	raw, _, err := h.opened.Site.State()
	h.must(err)
	state, err := token.OpenState(raw, h.opened.Site.RootPin())
	h.must(err)
	return state
}

func (h *house) bulk() string {
	h.t.Helper()
	_, kept, err := h.opened.Site.NewBulkToken(h.t.Context(), site.NewBulk{By: "anna"})
	h.must(err)
	return kept.ID
}

func (h *house) connector(name string) (pin string) {
	h.t.Helper()
	code, err := h.opened.Site.Invite(h.t.Context(), name, "anna")
	h.must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	h.must(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	h.must(err)
	_, _, err = h.opened.Site.Join(h.t.Context(), code, csr)
	h.must(err)
	return token.Pin(key.Public())
}

func (h *house) tenant(id string) {
	h.t.Helper()
	_, err := h.opened.Site.AddTenant(h.t.Context(), token.Tenant{ID: id, Issuers: []string{"https://id." + id + ".example/"}, Audiences: []string{"https://ConfigMgrService"}}, "anna")
	h.must(err)
}

func each(t *testing.T, tell func(*testing.T, *house)) {
	for name, postgresql := range map[string]bool{"SQLite": false, "PostgreSQL": true} {
		t.Run(name, func(t *testing.T) { tell(t, newHouse(t, postgresql)) })
	}
}

const (
	pinA = "00112233445566778899aabbccddeeff00112233445566778899aabbccddee0a"
	pinB = "00112233445566778899aabbccddeeff00112233445566778899aabbccddee0b"
)

// C119: a restored backup revives nothing that was revoked since it was taken, also what was made after it.
func TestRevocationsOutliveARestore(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx, s := t.Context(), h.opened.Site
		old, early := h.device(1), h.device(3)
		oldToken, oldPin := h.bulk(), h.connector("dc1")
		h.tenant("disabled")
		h.tenant("removed")
		h.tenant("stays")
		for name, pin := range map[string]string{"gw.example.com": pinA, "gw2.example.com": pinB} {
			_, err := s.AddGateway(ctx, "https://"+name, pin, "anna")
			h.must(err)
		}
		_, err := s.Block(ctx, early.ClientID, "anna", "before the backup")
		h.must(err)
		restore := h.backup()
		s = h.opened.Site

		young := h.device(2)
		youngToken, youngPin := h.bulk(), h.connector("dc2")
		for _, d := range []site.Device{old, young} {
			_, err := s.Block(ctx, d.ClientID, "anna", "stolen")
			h.must(err)
		}
		for _, id := range []string{oldToken, youngToken} {
			_, err := s.BlockBulkToken(ctx, id, true, "anna", "try it")
			h.must(err)
		}
		for _, name := range []string{"dc1", "dc2"} {
			h.must(s.BlockConnector(ctx, name, true, "anna", "try it"))
		}
		h.must(s.EnableTenant(ctx, "disabled", false, "anna", "merger"))
		h.must(s.RemoveTenant(ctx, "removed", "anna", "sold"))
		h.must(s.RemoveGateway(ctx, "gw.example.com", "anna", "try it"))
		_, err = s.Unblock(ctx, early.ClientID, "anna", "found")
		h.must(err)
		epoch := s.Epoch()

		s = restore()
		state := h.state()
		if state.Epoch <= epoch {
			t.Errorf("epoch %d after %d: gateways would not take it", state.Epoch, epoch)
		}
		for _, d := range []site.Device{old, young} {
			if !slices.Contains(state.BlockedKeys, d.Key) {
				t.Errorf("device %s is let in again", d.ClientID)
			}
		}
		for _, id := range []string{oldToken, youngToken} {
			if !slices.Contains(state.BlockedTokens, id) {
				t.Errorf("token %s is let in again", id)
			}
		}
		for _, pin := range []string{oldPin, youngPin} {
			if !slices.Contains(state.BlockedCertificates, pin) {
				t.Errorf("connector %s is let in again", pin)
			}
		}
		for _, tenant := range state.Tenants {
			if tenant.Disabled != (tenant.ID != "stays") {
				t.Errorf("tenant %s: disabled %t", tenant.ID, tenant.Disabled)
			}
		}
		if len(state.Gateways) != 1 || state.Gateways[0].Pin != pinB {
			t.Errorf("gateways %+v", state.Gateways)
		}
		if !slices.Contains(state.BlockedKeys, early.Key) {
			t.Error("what the backup has blocked is not blocked")
		}
		if d, err := s.Device(ctx, old.ClientID); err != nil || d.Block.By != "anna" || d.Block.Why != "stolen" {
			t.Errorf("the block is now %+v, %v", d.Block, err)
		}
		if again := s.AppliedAgain(); len(again) != 9 {
			t.Errorf("applied again: %+v", again)
		}
		entries, err := s.TrustLog(ctx, 0, 1000)
		h.must(err)
		kept := 0
		for _, e := range entries {
			if e.Action == "revocation.kept" {
				kept++
			}
		}
		if kept != 9 {
			t.Errorf("%d entries in the trust log", kept)
		}
		if _, err := s.VerifyTrustLog(ctx); err != nil {
			t.Error(err)
		}

		// A person's word counts from now on, also for what was made after the backup.
		_, err = s.Unblock(ctx, old.ClientID, "berta", "found")
		h.must(err)
		_, err = s.Unblock(ctx, early.ClientID, "berta", "found")
		h.must(err)
		h.must(s.LiftRevocation(ctx, site.RevokedDevice, string(young.Key), "berta", "found"))
		h.must(s.EnableTenant(ctx, "disabled", true, "berta", "no merger"))
		_, err = s.AddGateway(ctx, "https://gw.example.com", pinA, "berta")
		h.must(err)
		h.must(h.opened.Close())
		s = h.open()
		state = h.state()
		if len(state.BlockedKeys) != 0 || len(state.Gateways) != 2 || state.Tenants[0].Disabled {
			t.Errorf("what was lifted is revoked again: %+v", state)
		}
		if again := s.AppliedAgain(); len(again) != 0 {
			t.Errorf("applied again: %+v", again)
		}
		if err := s.LiftRevocation(ctx, site.RevokedDevice, "none", "berta", "x"); catalog.CodeOf(err) != catalog.NoRevocation {
			t.Errorf("lifting nothing: %v", err)
		}
	})
}

// Restored twice, and restored to a time before a block that was lifted and set again.
func TestRestoredAgainAndAgain(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx := t.Context()
		d := h.device(1)
		act := func(act func(context.Context, ccm.ClientID, string, string) (site.Device, error)) {
			t.Helper()
			_, err := act(ctx, d.ClientID, "anna", "why")
			h.must(err)
		}
		first := h.backup()
		act(h.opened.Site.Block)
		second := h.backup()
		act(h.opened.Site.Unblock)
		act(h.opened.Site.Block)
		for _, restore := range []func() *site.Site{second, first} {
			s := restore()
			if !slices.Contains(h.state().BlockedKeys, d.Key) {
				t.Fatal("the device is let in again")
			}
			if _, err := s.Unblock(ctx, d.ClientID, "anna", "found"); err != nil {
				t.Fatal(err)
			}
			h.must(h.opened.Close())
			s = h.open()
			if len(h.state().BlockedKeys) != 0 {
				t.Fatal("a person's unblocking is undone")
			}
			act(s.Block)
		}
	})
}

// Two management points keep what the other revokes, and one of them is enough after a restore, though the other stands still.
func TestTwoManagementPointsKeepRevocations(t *testing.T) {
	h := newHouse(t, true)
	ctx := t.Context()
	d, e := h.device(1), h.device(2)
	restore := h.backup()
	other := h.second()
	second := h.openWith(other)
	_, err := h.opened.Site.Block(ctx, d.ClientID, "anna", "stolen")
	h.must(err)
	h.must(second.Site.Refresh(ctx))
	_, err = second.Site.Block(ctx, e.ClientID, "anna", "stolen")
	h.must(err)
	h.must(second.Close())
	os.Remove(RevocationsFile(h.config)) // the first has lost its folder
	restore()
	if len(h.state().BlockedKeys) != 0 {
		t.Fatal("the first knows of nothing, and yet it applied something")
	}
	other.Store = h.config.Store
	second = h.openWith(other)
	if again := second.Site.AppliedAgain(); len(again) != 2 {
		t.Errorf("the second applied %+v", again)
	}
	h.must(h.opened.Site.Refresh(ctx))
	if got := h.state().BlockedKeys; len(got) != 2 {
		t.Errorf("blocked at the first: %v", got)
	}
	_, err = h.opened.Site.Unblock(ctx, d.ClientID, "anna", "found")
	h.must(err)
	h.must(second.Site.Refresh(ctx))
	h.must(second.Close())
	second = h.openWith(other)
	defer second.Close()
	if again := second.Site.AppliedAgain(); len(again) != 0 {
		t.Errorf("what was lifted at the first was revoked again by the second: %+v", again)
	}
}

// What became of the file is told, and what is authentic in it still counts.
func TestRevocationsFileThatWasTouched(t *testing.T) {
	lines := func(content []byte) []string {
		return strings.SplitAfter(strings.TrimSuffix(string(content), "\n"), "\n")
	}
	for _, test := range []struct {
		name   string
		touch  func(content []byte) []byte // nil takes the file away
		code   catalog.Code
		aside  bool
		healed bool // what was cut off is in the store, and is written again as it was
	}{
		{"as it was", func(c []byte) []byte { return c }, "", false, false},
		{"an entry edited", func(c []byte) []byte { return []byte(strings.Replace(string(c), `"kind":"mark"`, `"kind":"none"`, 1)) }, catalog.RevocationLogCut, true, false},
		{"an entry taken out", func(c []byte) []byte { l := lines(c); return []byte(strings.Join(slices.Delete(l, 1, 2), "")) }, catalog.RevocationLogCut, true, false},
		{"two entries exchanged", func(c []byte) []byte {
			l := lines(c)
			l[0], l[1] = l[1], l[0]
			return []byte(strings.Join(l, ""))
		}, catalog.RevocationLogCut, true, false},
		{"a byte of the disk turned", func(c []byte) []byte { c[len(c)/2] ^= 1; return c }, catalog.RevocationLogCut, true, false},
		{"torn by a crash", func(c []byte) []byte { return append(c, `{"kind":"device-key","id":"00`...) }, "", false, false},
		{"binary rubbish behind", func(c []byte) []byte { return append(c, "\x00\xff\x00\n"...) }, "", true, false},
		{"a line of a megabyte behind", func(c []byte) []byte { return append(c, strings.Repeat("x", 1<<20)+"\n"...) }, "", true, false},
		{"the last line without its end", func(c []byte) []byte { return c[:len(c)-1] }, "", false, false},
		{"cut off", func(c []byte) []byte { l := lines(c); return []byte(strings.Join(l[:len(l)-1], "")) }, catalog.RevocationLogCut, false, true},
		{"emptied", func([]byte) []byte { return nil }, catalog.RevocationLogCut, false, false},
		{"taken away", nil, catalog.RevocationLogCut, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHouse(t, false)
			ctx, file := t.Context(), RevocationsFile(h.config)
			h.bulk()
			first := h.device(1)
			_, err := h.opened.Site.Block(ctx, first.ClientID, "anna", "stolen")
			h.must(err)
			restore := h.backup()
			last := h.device(2)
			_, err = h.opened.Site.Block(ctx, last.ClientID, "anna", "stolen")
			h.must(err)
			h.must(h.opened.Close())
			content, err := os.ReadFile(file)
			h.must(err)
			if test.touch == nil {
				h.must(os.Remove(file))
			} else {
				h.must(os.WriteFile(file, test.touch(content), 0o600))
			}
			s := h.open()
			problems := s.RevocationProblems()
			if got := codes(problems); got != string(test.code) {
				t.Errorf("problems %v, want %q", problems, test.code)
			}
			health := Health{OK: true, Detail: map[string]any{}}
			revocationsHealth(&health, h.config, s)
			if aside := strings.Contains(strings.Join(health.Problem, "\n"), "set aside"); aside != test.aside || health.OK != (test.code == "" && !test.aside) {
				t.Errorf("health %+v", health)
			}
			if got := len(h.state().BlockedKeys); got != 2 {
				t.Errorf("%d keys are blocked", got)
			}
			if test.code != "" && !test.healed { // it stays until a person has said why
				h.must(h.opened.Close())
				s = h.open()
				if got := codes(s.RevocationProblems()); got != string(test.code) {
					t.Errorf("after another start: %s", got)
				}
				h.must(s.AcceptRevocationLog(ctx, "anna", "moved"))
				h.must(h.opened.Close())
				s = h.open()
				if got := codes(s.RevocationProblems()); got != "" {
					t.Errorf("accepted, and still %s", got)
				}
			}
			restore()
			if got := slices.Contains(h.state().BlockedKeys, last.Key); !got {
				t.Errorf("after a restore the last revocation is forgotten")
			}
		})
	}
}

func codes(problems []error) string {
	var all []string
	for _, p := range problems {
		all = append(all, string(catalog.CodeOf(p)))
	}
	return strings.Join(all, " ")
}

// A disk that takes nothing undoes no revocation; the caller and the health hear of it, and what is missing is written when it can be.
func TestRevocationsThatCannotBeWritten(t *testing.T) {
	h := newHouse(t, false)
	ctx, file := t.Context(), RevocationsFile(h.config)
	d := h.device(1)
	h.must(os.Rename(file, file+".away"))
	h.must(os.Mkdir(file, 0o700))
	_, err := h.opened.Site.Block(ctx, d.ClientID, "anna", "stolen")
	if code := catalog.CodeOf(err); code != catalog.RevocationLogWrite && code != catalog.RevocationLogDamaged {
		t.Errorf("got %v", err)
	}
	if !slices.Contains(h.state().BlockedKeys, d.Key) {
		t.Error("the block is not in force")
	}
	if got := codes(h.opened.Site.RevocationProblems()); got != string(catalog.RevocationLogWrite) {
		t.Errorf("problems %q", got)
	}
	h.must(os.Remove(file))
	h.must(os.Rename(file+".away", file))
	h.must(h.opened.Site.Refresh(ctx))
	if got := codes(h.opened.Site.RevocationProblems()); got != "" {
		t.Errorf("problems %q", got)
	}
	content, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(content), string(d.Key)) {
		t.Errorf("the file has no line of it: %v", err)
	}
}

// The checkpoint of a restore is signed by the root of now also when the backup knows an earlier one, that was declared compromised since.
func TestCheckpointOfARestoreToAnEarlierRoot(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx := t.Context()
		restore := h.backup()
		s := h.opened.Site
		_, err := s.Compromise(ctx, site.PurposeRoot, "laptop lost", "anna")
		h.must(err)
		newKeptRoots(h.config, s, slog.New(slog.DiscardHandler)).keep(ctx)
		root := s.RootPin()
		before, _, err := s.Checkpoint(ctx, token.Checkpoint{})
		h.must(err)
		s = restore()
		BringBackRoots(ctx, h.config, s)
		h.must(s.Restored(ctx, "anna"))
		after, mark, err := s.CheckpointAfterRestore(ctx)
		h.must(err)
		if s.RootPin() != root {
			t.Errorf("the root is %s, it was %s", s.RootPin(), root)
		}
		var seen []token.Checkpoint
		for _, raw := range []string{before, after} {
			c, err := s.OpenCheckpoint(ctx, raw)
			h.must(err)
			seen = append(seen, c)
		}
		report, err := s.Audit(ctx, seen)
		h.must(err)
		if err := report.Err(); err != nil || report.Superseded != 1 || report.Fitting != 1 {
			t.Errorf("%v: restored from %d on, got %+v", err, mark.Restored, report)
		}
	})
}

// An older store is told of once in its trust log, also while the file takes no line.
func TestOlderStoreIsToldOfOnce(t *testing.T) {
	h := newHouse(t, false)
	ctx, file := t.Context(), RevocationsFile(h.config)
	d := h.device(1)
	_, err := h.opened.Site.Block(ctx, d.ClientID, "anna", "stolen")
	h.must(err)
	db, err := sql.Open("sqlite", h.config.Store+"?_pragma=busy_timeout(5000)")
	h.must(err)
	defer db.Close()
	for _, statement := range []string{"drop trigger trust_log_no_delete", "delete from trust_log where sequence = (select max(sequence) from trust_log)"} {
		_, err := db.ExecContext(ctx, statement)
		h.must(err)
	}
	h.must(os.Rename(file+".lock", file+".away"))
	h.must(os.Mkdir(file+".lock", 0o700)) // so that nothing can be appended
	older := func() (n int) {
		h.must(h.opened.Site.Refresh(ctx))
		entries, err := h.opened.Site.TrustLog(ctx, 0, 1000)
		h.must(err)
		for _, e := range entries {
			if e.Action == "site.older" {
				n++
			}
		}
		return n
	}
	for range 3 {
		if n := older(); n != 1 {
			t.Fatalf("%d entries say so", n)
		}
	}
	if got := codes(h.opened.Site.RevocationProblems()); got != string(catalog.RevocationLogWrite) {
		t.Errorf("problems %q", got)
	}
	h.must(os.Remove(file + ".lock"))
	for range 2 {
		if n := older(); n != 1 || len(h.opened.Site.RevocationProblems()) != 0 {
			t.Fatalf("afterwards %d entries say so, problems %v", n, h.opened.Site.RevocationProblems())
		}
	}
}

// A key that was revoked since is revoked again and erased, and another one signs.
func TestRevokedSigningKeyOutlivesARestore(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx := t.Context()
		restore := h.backup()
		revoked := map[string]bool{}
		purposes := []string{"token:ccm", site.PurposeSiteSigning}
		for _, purpose := range purposes {
			keys, err := h.opened.Site.Compromise(ctx, strings.TrimPrefix(purpose, "token:"), "laptop lost", "anna")
			h.must(err)
			for _, k := range keys {
				revoked[k.ID] = true
			}
		}
		s := restore()
		keys, err := s.SigningKeys(ctx)
		h.must(err)
		active := map[string]int{}
		for _, k := range keys {
			if revoked[k.ID] && (k.State != token.KeyRevoked || len(k.Private) != 0 || k.Why == "") {
				t.Errorf("the key is %s, with %d bytes of its private half, why %q", k.State, len(k.Private), k.Why)
			}
			if k.State == token.KeyActive {
				active[k.Purpose]++
			}
		}
		for _, purpose := range purposes {
			if active[purpose] != 1 {
				t.Errorf("%d keys are active for %s", active[purpose], purpose)
			}
		}
		if len(revoked) != 2 || len(s.SigningCertificate()) == 0 {
			t.Errorf("revoked %v", revoked)
		}
	})
}

// A key whose place another took stays refused, whether its device got another key, another record replaced it, or the backup knows nothing of it.
func TestFormerKeysOutliveARestore(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx := t.Context()
		rekeyed, merged := h.device(1), h.device(2)
		restore := h.backup()
		s, young := h.opened.Site, h.device(3)
		h.bulk() // an entry of the trust log, as the acts make one
		h.must(h.opened.config.Store.Update(ctx, func(tx site.Tx) error {
			for n, d := range []site.Device{rekeyed, young} {
				h.must(tx.PutFormerKey(d.Key, d.ClientID, time.Now()))
				d.Key = proof.KeyThumbprint(fmt.Sprintf("%043d", 10+n))
				h.must(tx.PutDevice(d))
			}
			gone := merged
			gone.Obsolete = site.Obsolete{By: young.ClientID, At: time.Now(), Why: "proved by the same identity"}
			return tx.PutDevice(gone)
		}))
		h.must(s.Refresh(ctx))
		for n := range 2 {
			s = restore()
			for _, d := range []site.Device{rekeyed, merged, young} {
				if !slices.Contains(h.state().BlockedKeys, d.Key) {
					t.Errorf("gateways let the former key of %s in again", d.ClientID)
				}
				if err := s.Revoked(token.Claims{Key: d.Key}); catalog.CodeOf(err) != catalog.DeviceObsolete {
					t.Errorf("the former key of %s: %v", d.ClientID, err)
				}
			}
			for want, d := range map[ccm.ClientID]site.Device{rekeyed.ClientID: rekeyed, young.ClientID: merged} {
				if d, err := s.Device(ctx, d.ClientID); err != nil || catalog.CodeOf(d.Refused()) != catalog.DeviceObsolete || d.Obsolete.By != want {
					t.Errorf("got %+v, %v; want it replaced by %s", d.Obsolete, err, want)
				}
			}
			if again := s.AppliedAgain(); n == 0 && len(again) != 3 {
				t.Errorf("applied again: %+v", again)
			}
			if all := s.Revocations(); len(all) != 0 {
				t.Errorf("listed, though nobody can lift it: %+v", all)
			}
		}
		h.must(h.opened.Close())
		if again := h.open().AppliedAgain(); len(again) != 0 {
			t.Errorf("applied again without a restore: %+v", again)
		}
	})
}

// The checkpoints of what a restore took away are no alarm, also those of the entries in whose place the restore's own stand.
func TestCheckpointsOutliveARestore(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx, d := t.Context(), h.device(1)
		restore := h.backup()
		_, err := h.opened.Site.Block(ctx, d.ClientID, "anna", "stolen")
		h.must(err)
		_, before, err := h.opened.Site.Checkpoint(ctx, token.Checkpoint{})
		h.must(err)
		s := restore()
		h.must(s.Restored(ctx, "anna"))
		_, after, err := s.CheckpointAfterRestore(ctx)
		h.must(err)
		report, err := s.Audit(ctx, []token.Checkpoint{before, after})
		h.must(err)
		if err := report.Err(); err != nil || report.Superseded != 1 || report.Fitting != 1 || after.Restored != before.Sequence {
			t.Errorf("%v: got %+v, after %+v", err, report, before)
		}
	})
}

// What was revoked and has no record here is refused at the door as well.
func TestRevokedWithoutARecordStaysOut(t *testing.T) {
	h := newHouse(t, false)
	ctx := t.Context()
	restore := h.backup()
	pin := h.connector("dc1")
	h.must(h.opened.Site.BlockConnector(ctx, "dc1", true, "anna", "try it"))
	s := restore()
	if err := s.Revoked(token.Claims{Key: "x"}); err != nil {
		t.Errorf("a stranger's key: %v", err)
	}
	all := s.Revocations()
	if len(all) != 1 || all[0].ID != pin || all[0].Recorded || all[0].Subject != "dc1" || all[0].By != "anna" {
		t.Errorf("listed: %+v", all)
	}
	h.must(s.LiftRevocation(ctx, site.RevokedConnector, pin, "anna", "a mistake"))
	if got := h.state().BlockedCertificates; len(got) != 0 {
		t.Errorf("lifted, and blocked are %v", got)
	}
}

// Another process that hangs with the file in its hand is not waited for without end: the act is done, and the command says that it is not kept (P045).
func TestAFileThatAnotherProcessHolds(t *testing.T) {
	h := newHouse(t, false)
	kept := &revocationLog{path: RevocationsFile(h.config), patience: 20 * time.Millisecond, now: time.Now}
	kept.reset()
	other := flock.New(kept.path + ".lock")
	h.must(other.Lock())
	if err := kept.Append([]site.KeptRevocation{{Revoked: site.Revoked{Kind: site.RevokedBulkToken, ID: "x"}}}); catalog.CodeOf(err) != catalog.RevocationLogWrite {
		t.Errorf("got %v, want %s", err, catalog.RevocationLogWrite)
	}
	h.must(other.Unlock())
	unlock, err := kept.lock()
	h.must(err)
	unlock()
}
