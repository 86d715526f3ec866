package client

import (
	"context"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func writePEM(t testing.TB, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFiftyMessagesRenewOneToken(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	before := site.count("ccm_sts")
	site.clock.add(token.CCMLifetime - closeToExpiry/2)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if got, err := agent.Send(t.Context(), "MP_Echo", "<A/>"); got != "<Echo>MP_Echo</Echo>" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	all.Wait()
	if got := site.count("ccm_sts") - before; got != 1 {
		t.Errorf("got %d exchanges, want 1", got)
	}
	if text := readLog(t, agent, "CcmMessaging.log"); !strings.Contains(text, "CCM Token for 'S-1-5-18' (03/02/2026 16:00:00) is already expired or close to expire") {
		t.Errorf("CcmMessaging.log does not say that the token ends:\n%s", text)
	}
}

// S2, "CCM token renewal": the message first, then the token for it, then the request.
func TestARenewalHasTheLinesOfTheDocumentsInTheirOrder(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	before := len(records(readLog(t, agent, "CcmMessaging.log")))
	site.clock.add(token.CCMLifetime - closeToExpiry/2)
	if _, err := agent.Send(t.Context(), "MP_Echo", "<A/>"); err != nil {
		t.Fatal(err)
	}
	const gateway, role = "gateway.test", "/72057594037937981"
	lines := records(readLog(t, agent, "CcmMessaging.log"))[before:]
	rest := lines
	for _, want := range []string{
		"Sending remote sync message '{", "CCM Token for 'S-1-5-18' (03/02/2026 16:00:00) is already expired or close to expire",
		"Getting CCM Token from https://" + gateway + "/CCM_Proxy_ServerAuth" + role + "/CCM_STS", "Cached encrypted token for 'S-1-5-18'. Will expire at '",
		"ccmhttp: Host=" + gateway + ", Path=/CCM_Proxy_ServerAuth" + role + "/ccm_system_tokenauth/request, Port=443, Protocol=https, CcmTokenAuth=1, Flags=0x4200, Options=0x1e0",
		"Target URL scheme is HTTPS: https://" + gateway + "/CCM_Proxy_ServerAuth" + role + "/ccm_system_tokenauth/request", "Appending CCM Token to the header.", "Message '{",
	} {
		at := slices.IndexFunc(rest, func(line string) bool { return strings.HasPrefix(line, want) })
		if at < 0 {
			t.Fatalf("no %q there in\n%s", want, strings.Join(lines, "\n"))
		}
		rest = rest[at+1:]
	}
	if sent := strings.Count(strings.Join(lines, "\n"), "Sending remote sync message"); sent != 1 {
		t.Errorf("the log says %d times that one message is sent", sent)
	}
}

func TestTwoProcessesRenewOneToken(t *testing.T) {
	site := newTestSite(t)
	first := site.newAgent()
	first.enrol(t, site.setup())
	second := site.agentIn(filepath.Dir(first.dir), first.made, site.clock)
	before := site.count("ccm_sts")
	site.clock.add(token.CCMLifetime)
	for _, agent := range []*testAgent{first, second} {
		if _, err := agent.Send(t.Context(), "MP_Echo", "<A/>"); err != nil {
			t.Fatal(err)
		}
	}
	if got := site.count("ccm_sts") - before; got != 1 {
		t.Errorf("got %d exchanges, want 1", got)
	}
}

func TestATokenThatTheServerRefusesIsRenewedOnce(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	before, refused := site.count("ccm_sts"), 0
	site.refuse = func(endpoint string) error {
		if endpoint != "ccm_system_tokenauth" {
			return nil
		}
		if refused++; refused > 1 {
			return nil
		}
		return catalog.Errorf(catalog.TokenUnknownKey, "the key was revoked")
	}
	if got, err := agent.Send(t.Context(), "MP_Echo", "<A/>"); got == "" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got := site.count("ccm_sts") - before; got != 1 {
		t.Errorf("got %d exchanges, want 1", got)
	}
	site.refuse = func(string) error { return catalog.Errorf(catalog.KeyBlocked, "blocked") }
	before = site.count("ccm_sts")
	if _, err := agent.Send(t.Context(), "MP_Echo", "<A/>"); catalog.CodeOf(err) != catalog.KeyBlocked || site.count("ccm_sts") != before {
		t.Errorf("a blocked key: got %v and %d exchanges", err, site.count("ccm_sts")-before)
	}
}

func TestATokenThatStillLastsIsUsedWhenTheServiceIsBusy(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	site.clock.add(token.CCMLifetime - closeToExpiry/2)
	site.refuse = func(endpoint string) error {
		if endpoint == "ccm_sts" {
			return catalog.Errorf(catalog.StoreUnavailable, "away")
		}
		return nil
	}
	if got, err := agent.Send(t.Context(), "MP_Echo", "<A/>"); got == "" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	site.clock.add(closeToExpiry)
	if _, err := agent.Send(t.Context(), "MP_Echo", "<A/>"); catalog.CodeOf(err) != catalog.StoreUnavailable {
		t.Errorf("got %v, want %s", err, catalog.StoreUnavailable)
	}
}

func TestAnAsynchronousMessageHasNoAnswer(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	if got, err := agent.Send(t.Context(), "MP_DdrEndpoint", "<A/>"); got != "" || err != nil {
		t.Errorf("got %q, %v, want an empty answer", got, err)
	}
}

func TestRenewalOfTheSelfProveToken(t *testing.T) {
	day := 24 * time.Hour
	tests := []struct {
		name  string
		after time.Duration
		force bool
		want  bool // the self-prove token is another one
		code  catalog.Code
	}{
		{"day 1", day, false, false, ""},
		{"day 26", 26 * day, false, false, ""},
		{"day 30", 30 * day, false, true, ""},
		{"day 89", 89 * day, false, true, ""},
		{"day 91", 91 * day, false, false, catalog.ClientAwayTooLong},
		{"day 365", 365 * day, false, false, catalog.ClientAwayTooLong},
		{"forced on day 1", day, true, true, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			site := newTestSite(t)
			site.noReturn = true
			agent := site.newAgent()
			agent.enrol(t, site.setup())
			before := agent.cached().SelfProve.Issued
			site.clock.add(test.after)
			err := agent.Renew(t.Context(), test.force)
			if catalog.CodeOf(err) != test.code {
				t.Errorf("got %v, want %q", err, test.code)
			}
			if got := !agent.cached().SelfProve.Issued.Equal(before); got != test.want {
				t.Errorf("renewed: got %v, want %v", got, test.want)
			}
		})
	}
}

func TestADeviceThatWasAwayTooLongComesBackWithANewToken(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	id := agent.Status().ClientID
	site.clock.add(120 * 24 * time.Hour)
	site.bulk = site.newBulk(token.BulkLifetime)
	agent.enrol(t, site.setup())
	if got := agent.Status(); got.ClientID != id || got.State != StateReady || *agent.made != 1 {
		t.Errorf("got %+v, want %s ready", got, id)
	}
}

func TestInsideAnAssertionIsEnough(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.inside("https"))
	site.clock.add(120 * 24 * time.Hour)
	if err := agent.Renew(t.Context(), false); err != nil {
		t.Error(err)
	}
}

func TestRunKeepsTokensFresh(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	busy := true
	site.refuse = func(endpoint string) error {
		if busy {
			return catalog.Errorf(catalog.StoreUnavailable, "away")
		}
		return nil
	}
	site.clock.add(token.CCMLifetime)
	agent.waits = nil
	agent.onWait = func(time.Duration) error {
		site.do(func() { busy = len(agent.waits) < 3 })
		if len(agent.waits) == 100 {
			cancel()
		}
		return ctx.Err()
	}
	if err := agent.Run(ctx); err != nil {
		t.Errorf("got %v, want nil at the end of the context", err)
	}
	if w := agent.waits; w[0] > 2*time.Minute || w[1] <= w[0]*3/4 || w[3] < 4*time.Hour || w[3] > token.CCMLifetime*9/10 {
		t.Errorf("got the waits %v", w[:5])
	}
	if now := site.clock.now(); !agent.cached().CCM.lasts(now, 0) || !agent.cached().SelfProve.lasts(now, 59*24*time.Hour) {
		t.Errorf("after %s the tokens are %+v", now.Sub(begin()), agent.Status().Tokens)
	}
}

func TestRunEndsWhenWaitingWouldNotHelp(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	if err := agent.Run(t.Context()); catalog.CodeOf(err) != catalog.ClientNotEnrolled {
		t.Errorf("got %v, want %s", err, catalog.ClientNotEnrolled)
	}
	agent.enrol(t, site.setup())
	site.clock.add(91 * 24 * time.Hour)
	site.noReturn = true
	if err := agent.Run(t.Context()); catalog.CodeOf(err) != catalog.ClientAwayTooLong {
		t.Errorf("got %v, want %s", err, catalog.ClientAwayTooLong)
	}
}

func TestPoliciesFollowTheSite(t *testing.T) {
	site := newTestSite(t)
	site.policies = []testPolicy{
		{id: "{11111111-1111-4111-8111-111111111111}", text: "<Policy>1</Policy>"},
		{id: "{22222222-2222-4222-8222-222222222222}", text: "<Policy>2</Policy>"},
	}
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	fetched := site.count("sms_mp_tokenauth")
	site.do(func() {
		site.policies = []testPolicy{site.policies[0], {id: "PS120003-PS100009-6F6BCC28", text: "<Policy>3</Policy>"}}
	})
	list, err := agent.Policies(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatalf("got %v, %v", list, err)
	}
	if got := site.count("sms_mp_tokenauth") - fetched; got != 1 {
		t.Errorf("got %d downloads, want only the new one", got)
	}
	if files, _ := filepath.Glob(filepath.Join(agent.dir, folderBody, "*")); len(files) != 2 {
		t.Errorf("got the files %v, want two", files)
	}
	if _, err := agent.Policy("{22222222-2222-4222-8222-222222222222}"); catalog.CodeOf(err) != catalog.NotFound {
		t.Errorf("got %v, want %s", err, catalog.NotFound)
	}
}

func TestBodiesThatCannotBeHadHaveTheirReason(t *testing.T) {
	const id = "{11111111-1111-4111-8111-111111111111}"
	tests := []struct {
		name   string
		policy testPolicy
		code   catalog.Code
	}{
		{"error page", testPolicy{body: []byte(ccm.PolicyError)}, catalog.ClientPolicyRefused},
		{"sealed for another", testPolicy{body: []byte{derSequence, 0x80, 1, 2}}, catalog.ClientPolicyUnreadable},
		{"empty", testPolicy{body: []byte{}}, catalog.ClientPolicyUnreadable},
		{"another body", testPolicy{text: "<Policy/>", body: ccm.PolicyBody("<Policy>changed</Policy>")}, catalog.ClientPolicyUnreadable},
		{"huge", testPolicy{body: make([]byte, maxPolicyBody+1)}, catalog.ClientAnswerTooLarge},
		{"for the inner network", testPolicy{text: "<Policy/>", flags: ccm.PolicyIntranetOnly}, catalog.ClientPolicyRefused},
		{"another policy's address", testPolicy{location: "http://<mp>/SMS_MP/.sms_pol?{22222222-2222-4222-8222-222222222222}.1_00"}, catalog.ClientPolicyLocation},
		{"another endpoint", testPolicy{location: "http://<mp>/CCM_STS?" + id + ".1_00"}, catalog.ClientPolicyLocation},
		{"no address", testPolicy{location: "nowhere"}, catalog.ClientPolicyLocation},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			site := newTestSite(t)
			test.policy.id = id
			site.policies = []testPolicy{test.policy}
			agent := site.newAgent()
			agent.enrol(t, site.setup())
			got := agent.Status().Policies[0]
			if got.Code != test.code || got.Bytes != 0 {
				t.Errorf("got %+v, want %s", got, test.code)
			}
		})
	}
}

func TestALocationDoesNotLeadElsewhere(t *testing.T) {
	site := newTestSite(t)
	site.policies = []testPolicy{{id: "{11111111-1111-4111-8111-111111111111}", text: "<Policy/>", location: "https://evil.test:80/SMS_MP_TokenAuth/.sms_pol?{11111111-1111-4111-8111-111111111111}.1_00"}}
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	if got := agent.Status().Policies[0]; got.Bytes == 0 || site.count("sms_mp_tokenauth") != 1 {
		t.Errorf("got %+v, want the body from the gateway", got)
	}
}

func TestFoldersThatAreOpenToOthersAreRefused(t *testing.T) {
	for name, mode := range map[string]os.FileMode{"group may read": 0o750, "world may enter": 0o701} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, mode); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(Config{Dir: dir}); catalog.CodeOf(err) != catalog.ClientFolderOpen {
				t.Errorf("got %v, want %s", err, catalog.ClientFolderOpen)
			}
		})
	}
}

func TestDamagedFolders(t *testing.T) {
	tests := []struct {
		name   string
		damage func(dir string) error
		code   catalog.Code
	}{
		{"state is no JSON, replaced by the copy", func(dir string) error { return os.WriteFile(dir+"/state.json", []byte("{"), 0o600) }, ""},
		{"unknown state, replaced by the copy", func(dir string) error { return os.WriteFile(dir+"/state.json", []byte(`{"state":"odd"}`), 0o600) }, ""},
		{"foreign client id, replaced by the copy", func(dir string) error {
			return os.WriteFile(dir+"/state.json", []byte(`{"state":"ready","client_id":"x"}`), 0o600)
		}, ""},
		{"state is open to others", func(dir string) error { return os.Chmod(dir+"/state.json", 0o644) }, catalog.ClientFolderOpen},
		{"keys are gone", func(dir string) error { return os.Remove(dir + "/keys.sealed") }, catalog.ClientKeysUnreadable},
		{"keys are open to others", func(dir string) error { return os.Chmod(dir+"/keys.sealed", 0o644) }, catalog.ClientFolderOpen},
		{"keys are damaged", func(dir string) error { return os.WriteFile(dir+"/keys.sealed", []byte("x"), 0o600) }, catalog.ClientKeysUnreadable},
		{"key file is gone", func(dir string) error { return os.Remove(dir + "/state.key") }, catalog.ClientKeysUnreadable},
		{"key file is open to others", func(dir string) error { return os.Chmod(dir+"/state.key", 0o644) }, catalog.ClientFolderOpen},
		{"tokens are damaged: they can be had again", func(dir string) error { return os.WriteFile(dir+"/tokens.sealed", []byte("x"), 0o600) }, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			site := newTestSite(t)
			agent := site.newAgent()
			agent.enrol(t, site.setup())
			if err := test.damage(agent.dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(Config{Dir: agent.dir}); catalog.CodeOf(err) != test.code {
				t.Errorf("got %v, want %q", err, test.code)
			}
		})
	}
}

func TestARemovedStateFileKeepsTheKey(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	id := agent.Status().ClientID
	if err := os.Remove(agent.dir + "/state.json"); err != nil {
		t.Fatal(err)
	}
	again := site.agentIn(filepath.Dir(agent.dir), agent.made, site.clock)
	again.enrol(t, site.setup())
	if got := again.Status(); got.ClientID != id || *agent.made != 1 {
		t.Errorf("got %+v with %d keys, want %s", got, *agent.made, id)
	}
}

func TestNothingIsSentBeforeEnrolment(t *testing.T) {
	agent := newTestSite(t).newAgent()
	_, sent := agent.Send(t.Context(), "MP_Echo", "<A/>")
	_, asked := agent.Policies(t.Context())
	for what, err := range map[string]error{"send": sent, "policies": asked, "renew": agent.Renew(t.Context(), true)} {
		if catalog.CodeOf(err) != catalog.ClientNotEnrolled {
			t.Errorf("%s: got %v, want %s", what, err, catalog.ClientNotEnrolled)
		}
	}
}

// TestEveryActGetsANewTokenAfterAnEmergencyRotation: the token lasts by the device's own account, and the site takes it no more.
func TestEveryActGetsANewTokenAfterAnEmergencyRotation(t *testing.T) {
	for name, act := range map[string]func(t *testing.T, a *testAgent) error{
		"send":                      func(t *testing.T, a *testAgent) error { _, err := a.Send(t.Context(), "MP_Echo", "<A/>"); return err },
		"policies":                  func(t *testing.T, a *testAgent) error { _, err := a.Policies(t.Context()); return err },
		"list of management points": func(t *testing.T, a *testAgent) error { _, err := a.ManagementPoints(t.Context()); return err },
		"the enrol line again": func(t *testing.T, a *testAgent) error {
			line := a.site.setup()
			line.Token = ""
			return a.Enrol(t.Context(), line)
		},
	} {
		t.Run(name, func(t *testing.T) {
			site := newTestSite(t)
			agent := site.newAgent()
			agent.enrol(t, site.setup())
			before := site.count("ccm_sts")
			site.refuse = func(endpoint string) error {
				if endpoint == "ccm_sts" || site.counts["ccm_sts"] > before {
					return nil
				}
				return catalog.Errorf(catalog.TokenKeyRevoked, "compromised")
			}
			succeed(t, act(t, agent))
			if got := site.count("ccm_sts") - before; got != 1 {
				t.Errorf("%d exchanges, want 1", got)
			}
		})
	}
}
