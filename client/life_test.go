package client

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

const testDay = 24 * time.Hour

func TestADeviceComesBackByItsKeyAlone(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, s *testSite, a *testAgent){
		"after a year":    func(_ *testing.T, s *testSite, _ *testAgent) { s.clock.add(365 * testDay) },
		"token file lost": func(t *testing.T, _ *testSite, a *testAgent) { succeed(t, os.Remove(filepath.Join(a.dir, fileTokens))) },
		"token file cut off": func(t *testing.T, _ *testSite, a *testAgent) {
			succeed(t, os.Truncate(filepath.Join(a.dir, fileTokens), 20))
		},
		"token file of another device": anotherTokenFile,
		"site keys rotated in an emergency": func(t *testing.T, s *testSite, a *testAgent) {
			s.clock.add(token.CCMLifetime)
			s.refuse = func(string) error { // once: the self-prove token is not taken any more
				s.refuse = nil
				return catalog.Errorf(catalog.TokenUnknownKey, "revoked")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			site := newTestSite(t)
			agent := site.newAgent()
			agent.enrol(t, site.setup())
			id, registrations := agent.Status().ClientID, len(site.devices)
			lose(t, site, agent)
			again := site.agentIn(filepath.Dir(agent.dir), agent.made, site.clock)
			if err := again.Renew(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			got := again.Status()
			if got.ClientID != id || got.State != StateReady || len(got.Tokens) != 2 || *again.made != 1 || len(site.devices) != registrations {
				t.Errorf("got %+v, %d keys made", got, *again.made)
			}
			if text := readLog(t, again, "ClientIDManagerStartup.log"); strings.Contains(text, string(catalog.ClientTokensDropped)) != (name == "token file cut off" || name == "token file of another device") {
				t.Errorf("ClientIDManagerStartup.log says\n%s", text)
			}
			if now := site.clock.now(); !again.cached().CCM.lasts(now, time.Hour) || !again.cached().SelfProve.lasts(now, time.Hour) {
				t.Errorf("the tokens are %+v at %s", got.Tokens, now)
			}
		})
	}
}

func succeed(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// anotherTokenFile puts the tokens of another device of the same machine key into the folder: they are bound to a key that is not there.
func anotherTokenFile(t *testing.T, _ *testSite, a *testAgent) {
	t.Helper()
	succeed(t, a.saveTokens(func(c *tokenCache) { c.Key = "another" }))
}

func TestADeviceInQuarantineRegistersAgain(t *testing.T) {
	for name, test := range map[string]struct {
		how  string
		want int
	}{"automatic": {quarantineAutomatic, 1}, "a person lifts it": {"manual", 0}} {
		t.Run(name, func(t *testing.T) {
			site := newTestSite(t)
			agent := site.newAgent()
			agent.enrol(t, site.setup())
			site.clock.add(120 * testDay)
			site.approval, site.quarantine = ccm.ApprovalNone, test.how
			before := site.count("ccm_system_tokenauth")
			if err := agent.Renew(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			if got := site.count("ccm_system_tokenauth") - before; got != test.want {
				t.Errorf("got %d messages, want %d", got, test.want)
			}
			if got := agent.Status(); got.State != StateReady {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestTheSiteSaysWhenToRenew(t *testing.T) {
	site := newTestSite(t)
	site.renewAfter = 5 * testDay
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	before := agent.cached().SelfProve
	site.clock.add(4 * testDay)
	succeed(t, agent.Renew(t.Context(), false))
	if got := agent.cached().SelfProve; got.Token != before.Token {
		t.Error("renewed after 4 days of 5")
	}
	site.clock.add(testDay)
	succeed(t, agent.Renew(t.Context(), false))
	if got := agent.cached().SelfProve; got.Token == before.Token {
		t.Error("not renewed after 5 days")
	}
}

// TestTheTimerRenewsTheSelfProveToken: a program that runs for months renews by its timer, at the device's own time, and never later than the site says.
func TestTheTimerRenewsTheSelfProveToken(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	last, renewed := agent.cached().SelfProve, 0
	agent.onWait = func(time.Duration) error {
		now, t2 := site.clock.now(), agent.cached().SelfProve
		if t2.Token != last.Token {
			renewed++
			if age, due := t2.Issued.Sub(last.Issued), last.renewAt(agent.identity().thumbprint).Sub(last.Issued); age > selfProveRenew || age < due || age > due+token.CCMLifetime {
				t.Errorf("renewed at the age of %s, due %s", age, due)
			}
			last = t2
		}
		if now.After(begin().Add(100 * testDay)) {
			cancel()
		}
		return ctx.Err()
	}
	if err := agent.Run(ctx); err != nil {
		t.Error(err)
	}
	if renewed != 3 {
		t.Errorf("renewed %d times in 100 days, want 3", renewed)
	}
}

// TestRenewalsAreSpreadOverTheFleet: of 10,000 devices that enrolled in one minute no hour of the three days before the limit has more than twice its share,
// none is late, and each keeps its place.
func TestRenewalsAreSpreadOverTheFleet(t *testing.T) {
	const devices, hours = 10_000, 72
	at := begin()
	var hour [87]int // 30 days less a tenth and a fiftieth
	first := at.Add(selfProveRenew - 87*time.Hour)
	for n := range devices {
		key := proof.KeyThumbprint(fmt.Sprintf("device %d", n))
		one := cachedToken{Token: fmt.Sprintf("token %d", n), Issued: at}
		due := one.renewAt(key)
		if due.After(at.Add(selfProveRenew)) || due.Before(first) {
			t.Fatalf("device %d is due at %s", n, due)
		}
		hour[int(due.Sub(first)/time.Hour)]++
		other := cachedToken{Token: fmt.Sprintf("next token %d", n), Issued: at}
		if off := other.renewAt(key).Sub(due).Abs(); off > selfProveRenew/tokenSpread {
			t.Errorf("device %d moves by %s with its next token", n, off)
		}
	}
	for h, n := range hour {
		if n > 2*devices/hours {
			t.Errorf("hour %d has %d renewals, want at most %d", h, n, 2*devices/hours)
		}
	}
}

func TestADamagedStateFileIsReplacedByItsCopy(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"cut off":       func(path string) error { return os.Truncate(path, 100) },
		"empty":         func(path string) error { return os.Truncate(path, 0) },
		"zeros":         func(path string) error { return os.WriteFile(path, make([]byte, 900), 0o600) },
		"other JSON":    func(path string) error { return os.WriteFile(path, []byte(`[1]`), 0o600) },
		"no such state": func(path string) error { return os.WriteFile(path, []byte(`{"state":"odd"}`), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			site := newTestSite(t)
			agent := site.newAgent()
			agent.enrol(t, site.setup())
			id := agent.Status().ClientID
			path := filepath.Join(agent.dir, fileState)
			succeed(t, damage(path))
			var said []string
			again, err := Open(Config{Dir: agent.dir, Now: site.clock.now, Dial: site.dial, Say: func(s string) { said = append(said, s) }})
			succeed(t, err)
			defer again.Close()
			if got := again.Status(); got.ClientID != id || got.State != StateReady {
				t.Errorf("got %+v, want %s ready", got, id)
			}
			if len(said) != 1 || !strings.Contains(said[0], string(catalog.ClientStateRecovered)) {
				t.Errorf("said %q", said)
			}
			if _, err := os.Stat(path + ".damaged"); err != nil {
				t.Error(err)
			}
			succeed(t, again.Renew(t.Context(), true))
		})
	}
}

// TestWithoutACopyTheKeyIsKept: the error says what to do, and doing it makes the same device of the same key.
func TestWithoutACopyTheKeyIsKept(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	id := agent.Status().ClientID
	for _, name := range []string{fileState, fileStateCopy} {
		succeed(t, os.WriteFile(filepath.Join(agent.dir, name), []byte("{"), 0o600))
	}
	_, err := Open(Config{Dir: agent.dir, Now: site.clock.now, Dial: site.dial})
	if catalog.CodeOf(err) != catalog.ClientStateDamaged {
		t.Fatalf("got %v, want %s", err, catalog.ClientStateDamaged)
	}
	succeed(t, os.Remove(filepath.Join(agent.dir, fileState)))
	again := site.agentIn(filepath.Dir(agent.dir), agent.made, site.clock)
	again.enrol(t, site.setup())
	if got := again.Status(); got.ClientID != id || *again.made != 1 {
		t.Errorf("got %s and %d keys made, want %s", got.ClientID, *again.made, id)
	}
}

// TestAbsenceOfTenantAndCertificate drives the rows of docs/operations.md for devices that a tenant or a certificate proves: the absence changes nothing.
func TestAbsenceOfTenantAndCertificate(t *testing.T) {
	for _, days := range []int{1, 29, 30, 31, 89, 90, 91, 365} {
		t.Run(fmt.Sprint("Entra ", days), func(t *testing.T) {
			site := newTenantSite(t)
			agent := site.newAgent()
			agent.enrol(t, site.byTenant())
			site.clock.add(time.Duration(days) * testDay)
			site.show(certificateFor{from: site.clock.now().Add(-testDay), to: site.clock.now().AddDate(1, 0, 0)})
			before := len(stepsOf(agent))
			succeed(t, agent.Renew(t.Context(), true))
			if got := strings.Join(stepsOf(agent)[before:], "; "); !strings.Contains(got, "CCM token by Entra device token") || strings.Contains(got, "CCM token by assertion") {
				t.Errorf("got %s", got)
			}
			if got := agent.Status(); got.ApprovalStatus != ccm.ApprovalEntra || len(got.Tokens) != 2 {
				t.Errorf("got %+v", got)
			}
		})
		t.Run(fmt.Sprint("PKI certificate ", days), func(t *testing.T) {
			site := newTestSite(t)
			setup := site.setup()
			setup.Token = ""
			setup.Certificate.Files = []CertificateFile{issue(t, site.newCompany(), t.TempDir(), "wk02-020-51w.child.test", testRSA(), func(c *x509.Certificate) { c.NotAfter = begin().AddDate(2, 0, 0) })}
			agent := site.newAgent()
			agent.enrol(t, setup)
			site.clock.add(time.Duration(days) * testDay)
			site.show(certificateFor{from: site.clock.now().Add(-testDay), to: site.clock.now().AddDate(1, 0, 0)})
			if got, err := agent.Send(t.Context(), "MP_Echo", "<A/>"); got != "<Echo>MP_Echo</Echo>" || err != nil || site.count("ccm_sts") != 0 {
				t.Errorf("got %q, %v, %d requests for tokens", got, err, site.count("ccm_sts"))
			}
			if got := agent.Status(); got.ApprovalStatus != ccm.ApprovalNotApplicable {
				t.Errorf("got %+v", got)
			}
		})
	}
}
