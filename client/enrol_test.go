package client

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

func TestADeviceEnrolsThroughAGateway(t *testing.T) {
	for _, protocols := range [][]string{{"h2", "http/1.1"}, {"http/1.1"}} {
		t.Run(protocols[0], func(t *testing.T) {
			site := newTestSite(t)
			site.protocols = protocols
			site.policies = []testPolicy{
				{id: "{11111111-1111-4111-8111-111111111111}", text: "<Policy>plain</Policy>"},
				{id: "{22222222-2222-4222-8222-222222222222}", text: "<Policy>sealed secret</Policy>", sealed: true, flags: ccm.PolicySecret | ccm.PolicyRequiresAuth},
			}
			agent := site.newAgent()
			agent.enrol(t, site.setup())

			checkEnrolled(t, agent)
			checkOneTrace(t, site, agent)
			if got := site.count("ccm_system"); got != 0 {
				t.Errorf("got %d messages on the anonymous endpoint, want none", got)
			}
		})
	}
}

func checkEnrolled(t *testing.T, agent *testAgent) {
	t.Helper()
	status := agent.Status()
	if status.State != StateReady || status.ApprovalStatus != ccm.ApprovalApproved || status.LastError != "" || status.WaitingFor != "" {
		t.Errorf("got %+v, want ready and approved", status)
	}
	if want := gatewayHost + "/CCM_Proxy_MutualAuth/72057594037937981"; status.Gateway != want {
		t.Errorf("gateway: got %q, want %q", status.Gateway, want)
	}
	var kinds []string
	for _, known := range status.Tokens {
		kinds = append(kinds, known.Kind+" "+known.Scope)
	}
	if want := []string{"ccm client", "self-prove "}; !slices.Equal(kinds, want) {
		t.Errorf("tokens: got %q, want %q", kinds, want)
	}
	for i, want := range []string{"<Policy>plain</Policy>", "<Policy>sealed secret</Policy>"} {
		if got, err := agent.Policy(status.Policies[i].PolicyID); got != want || err != nil {
			t.Errorf("policy %d: got %q, %v, want %q", i, got, err, want)
		}
		if got := status.Policies[i].Sealed; got != (i == 1) {
			t.Errorf("policy %d sealed: got %v", i, got)
		}
	}
}

func checkOneTrace(t *testing.T, site *testSite, agent *testAgent) {
	t.Helper()
	var said []string
	for _, s := range agent.steps {
		said = append(said, s.Hop+": "+strings.SplitN(s.What, " GUID", 2)[0])
		if !s.OK || !site.traces[s.Trace] {
			t.Errorf("step %+v failed or has no trace that the servers saw", s)
		}
	}
	want := []string{
		"client: keys and certificates made on the device", "gateway: CCM token by bulk registration token", "gateway: registration message",
		"client: registered as", "gateway: CCM token by bulk registration token",
		"gateway: self-prove token by bulk registration token and assertion of the registered key", "gateway: policy assignments",
		"gateway: policy body {11111111-1111-4111-8111-111111111111}", "gateway: policy body {22222222-2222-4222-8222-222222222222}",
	}
	if !slices.Equal(said, want) {
		t.Errorf("got the steps\n%s\nwant\n%s", strings.Join(said, "\n"), strings.Join(want, "\n"))
	}
	if len(site.traces) != 1 {
		t.Errorf("got %d traces, want one for the conversation", len(site.traces))
	}
}

func TestEnrolWritesTheLinesThatAdministratorsKnow(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	id := string(agent.Status().ClientID)
	want := map[string][]string{
		"ccmsetup.log": {
			"Getting CCM Token from STS server 'gateway.test/CCM_Proxy_MutualAuth/72057594037937981'",
			"Getting CCM Token from https://gateway.test/CCM_Proxy_ServerAuth/72057594037937981/CCM_STS",
			"ccmsetup: Host=gateway.test, Path=/CCM_Proxy_ServerAuth/72057594037937981/CCM_STS, Port=443, Protocol=https, CcmTokenAuth=0, Flags=0x4100, Options=0xe0",
			"Cached encrypted token for 'S-1-5-18'. Will expire at '03/02/2026 16:00:00'",
		},
		"ClientIDManagerStartup.log": {
			"[RegTask] - Starting registration, attempt 1.",
			"[RegTask] - Client is not registered. Sending registration request for " + id + " ...",
			"[RegTask] - Client is registered. Server assigned ClientID is " + id + ". Approval status 1",
			"Cached encrypted token for 'S-1-5-18'. Will expire at '03/02/2026 16:00:00'",
		},
		"CcmMessaging.log": {
			"' to host 'gateway.test/CCM_Proxy_MutualAuth/72057594037937981' endpoint 'MP_PolicyManager'. Flags 0x280, sender account S-1-5-18",
			"Target URL scheme is HTTPS: https://gateway.test/CCM_Proxy_ServerAuth/72057594037937981/ccm_system_tokenauth/request",
			"ccmhttp: Host=gateway.test, Path=/CCM_Proxy_ServerAuth/72057594037937981/ccm_system_tokenauth/request, Port=443, Protocol=https, CcmTokenAuth=1, Flags=0x4200, Options=0x1e0",
			"Appending CCM Token to the header.",
			"' to endpoint 'dummy'",
		},
	}
	for file, lines := range want {
		text := readLog(t, agent, file)
		for _, line := range lines {
			if !strings.Contains(text, line) {
				t.Errorf("%s lacks %q:\n%s", file, line, text)
			}
		}
	}
}

func readLog(t testing.TB, agent *testAgent, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(agent.logDir, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(content)
}

func TestNothingSecretLiesOpenOnDisk(t *testing.T) {
	site := newTestSite(t)
	site.policies = []testPolicy{{id: "{22222222-2222-4222-8222-222222222222}", text: "<Policy>canary-5150</Policy>", sealed: true}}
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	secrets := map[string]string{
		"bulk token": string(site.bulk), "CCM token": agent.cached().CCM.Token, "self-prove token": agent.cached().SelfProve.Token,
		"policy": "canary-5150", "policy in UTF-16": string(ccm.PolicyBody("canary-5150")[2:]), "private key": string(agent.keys.signing.D.Bytes()),
	}
	for _, dir := range []string{agent.dir, agent.logDir} {
		scan(t, dir, secrets)
	}
}

func scan(t *testing.T, dir string, secrets map[string]string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		for name, secret := range secrets {
			if strings.Contains(string(content), secret) {
				t.Errorf("%s holds the %s", path, name)
			}
		}
		info, _ := entry.Info()
		if strings.HasSuffix(dir, "state") && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has the mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// errKilled stands for the end of the process.
type errKilled struct{}

// enrolKilled runs Enrol until die says so at a step, and reports whether it died.
func enrolKilled(t *testing.T, agent *testAgent, setup Setup, die func(Step) bool) (died bool) {
	t.Helper()
	agent.onStep = func(s Step) {
		if die(s) {
			panic(errKilled{})
		}
	}
	defer func() {
		if fault := recover(); fault != nil {
			if _, ok := fault.(errKilled); !ok {
				panic(fault)
			}
			died = true
		}
	}()
	agent.enrol(t, setup)
	return false
}

func TestEnrolGoesOnAfterBeingKilledAtAnyStep(t *testing.T) {
	for at := 1; at <= 9; at++ {
		site := newTestSite(t)
		site.pending = 1
		site.policies = []testPolicy{{id: "{11111111-1111-4111-8111-111111111111}", text: "<Policy/>"}}
		dir, made, n := t.TempDir(), 0, 0
		first := site.agentIn(dir, &made, site.clock)
		died := enrolKilled(t, first, site.setup(), func(Step) bool { n++; return n == at })
		if !died {
			t.Fatalf("only %d steps", n)
		}
		second := site.agentIn(dir, &made, site.clock)
		second.enrol(t, site.setup())
		if second.Status().State != StateReady {
			t.Errorf("killed at step %d: got %+v, want ready", at, second.Status())
		}
		if made != 1 || len(site.uses) != 1 || len(site.devices) != 1 {
			t.Errorf("killed at step %d: got %d keys made, %d uses of the token, %d devices, want one of each", at, made, len(site.uses), len(site.devices))
		}
	}
}

func TestEnrolGoesOnAfterALostAnswer(t *testing.T) {
	for _, endpoint := range []string{"ccm_sts", "ccm_system_tokenauth", "sms_mp_tokenauth"} {
		t.Run(endpoint, func(t *testing.T) {
			site := newTestSite(t)
			site.policies = []testPolicy{{id: "{11111111-1111-4111-8111-111111111111}", text: "<Policy/>"}}
			agent := site.newAgent()
			site.lose[endpoint] = true
			err := agent.Enrol(t.Context(), site.setup())
			if endpoint != "sms_mp_tokenauth" && (catalog.CodeOf(err) != catalog.ClientConnectionLost || !Transient(err)) {
				t.Errorf("got %v, want %s", err, catalog.ClientConnectionLost)
			}
			agent.enrol(t, site.setup())
			if status := agent.Status(); status.State != StateReady || len(site.uses) != 1 || len(site.devices) != 1 || *agent.made != 1 || status.Policies[0].Bytes == 0 {
				t.Errorf("got %+v, %d uses, %d devices", status, len(site.uses), len(site.devices))
			}
		})
	}
}

func TestARegisteredDeviceNeedsNoTokenToGoOn(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	enrolKilled(t, agent, site.setup(), func(s Step) bool { return strings.HasPrefix(s.What, "self-prove token") })
	again := site.agentIn(filepath.Dir(agent.dir), agent.made, site.clock)
	setup := site.setup()
	setup.Token = ""
	again.enrol(t, setup)
	if again.Status().State != StateReady {
		t.Errorf("got %+v, want ready", again.Status())
	}
}

func TestAStoppedEnrolmentNeedsTheTokenAgain(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	enrolKilled(t, agent, site.setup(), func(s Step) bool { return strings.HasPrefix(s.What, "keys") })
	again := site.agentIn(filepath.Dir(agent.dir), agent.made, site.clock)
	setup := site.setup()
	setup.Token = ""
	if err := again.Enrol(t.Context(), setup); catalog.CodeOf(err) != catalog.ClientTokenNeeded {
		t.Errorf("got %v, want %s", err, catalog.ClientTokenNeeded)
	}
	if got := again.Status(); got.WaitingFor != "a bulk registration token" || got.LastError != catalog.ClientTokenNeeded {
		t.Errorf("got %+v, want it to wait for a token", got)
	}
}

func TestEnrolAgainChangesNothing(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	before, exchanges := agent.Status(), site.count("ccm_sts")
	agent.enrol(t, site.setup())
	agent.enrol(t, Setup{})
	after := agent.Status()
	if after.ClientID != before.ClientID || after.Key != before.Key || after.State != StateReady || site.count("ccm_sts") != exchanges {
		t.Errorf("got %+v after %+v, and %d exchanges after %d", after, before, site.count("ccm_sts"), exchanges)
	}
}

func TestADeviceThatTheSiteForgotRegistersAgain(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	site.do(func() { clear(site.devices); clear(site.reservations) })
	site.clock.add(token.CCMLifetime)
	if err := agent.Renew(t.Context(), false); catalog.CodeOf(err) != catalog.DeviceUnknown {
		t.Errorf("got %v, want %s", err, catalog.DeviceUnknown)
	}
	agent.enrol(t, site.setup())
	if *agent.made != 1 || len(site.devices) != 1 || agent.Status().State != StateReady {
		t.Errorf("got %d keys, %d devices, %+v", *agent.made, len(site.devices), agent.Status())
	}
}

func TestServersThatAreNotRecognised(t *testing.T) {
	_, foreignRoot := newRoot(t)
	tests := []struct {
		name   string
		change func(*testSite, *Setup)
		code   catalog.Code
		line   string
	}{
		{"another site's root", func(_ *testSite, s *Setup) { s.RootKey = token.Pin(foreignRoot.PublicKey) }, catalog.ClientServerRoot, "FLAG_INVALID_CA is set"},
		{"the root is not shown", func(s *testSite, _ *Setup) { s.show(certificateFor{withoutCA: true}) }, catalog.ClientServerRoot, "Code=12175, Text=ERROR_WINHTTP_SECURE_FAILURE"},
		{"another host", func(s *testSite, _ *Setup) { s.show(certificateFor{names: []string{"other.test"}}) }, catalog.ClientServerHost, "FLAG_CERT_CN_INVALID is set"},
		{"no host at all", func(s *testSite, _ *Setup) { s.show(certificateFor{names: []string{}}) }, catalog.ClientServerHost, "lpvStatusInformation is 0x10"},
		{"ended", func(s *testSite, _ *Setup) {
			s.show(certificateFor{from: begin().AddDate(0, 0, -9), to: begin().AddDate(0, 0, -1)})
		}, catalog.ClientServerExpired, "FLAG_CERT_DATE_INVALID is set"},
		{"ended before it began", func(s *testSite, _ *Setup) {
			s.show(certificateFor{from: begin().AddDate(0, 0, 9), to: begin().AddDate(0, 0, 1)})
		}, catalog.ClientServerExpired, "AsyncCallback(): WINHTTP_CALLBACK_STATUS_SECURE_FAILURE Encountered"},
		{"a connector's certificate", func(s *testSite, _ *Setup) { s.show(certificateFor{role: token.RoleConnector}) }, catalog.ClientServerRole, "CERT_WRONG_USAGE"},
		{"a management point in the gateway's place", func(s *testSite, _ *Setup) { s.show(certificateFor{role: token.RoleManagementPoint}) }, catalog.ClientServerRole, ""},
		{"not for servers", func(s *testSite, _ *Setup) { s.show(certificateFor{clientOnly: true}) }, catalog.ClientServerRole, ""},
		{"no anchor", func(_ *testSite, s *Setup) { s.RootKey = "" }, catalog.ClientNoTrustAnchor, ""},
		{"no anchor for a management point on the internet", func(_ *testSite, s *Setup) {
			*s = Setup{InternetPoint: "https://" + pointHost, Token: s.Token, Name: "WK"}
		}, catalog.ClientNoTrustAnchor, ""},
		{"plain HTTP on the internet", func(_ *testSite, s *Setup) {
			*s = Setup{ManagementPoint: "http://" + pointHost, AlwaysInternet: true, RootKey: s.RootKey, Name: "WK"}
		}, catalog.ClientPlainInternet, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			site := newTestSite(t)
			agent, setup := site.newAgent(), site.setup()
			test.change(site, &setup)
			err := agent.Enrol(t.Context(), setup)
			if catalog.CodeOf(err) != test.code {
				t.Errorf("got %v, want %s", err, test.code)
			}
			if got := site.count("ccm_sts"); got != 0 {
				t.Errorf("got %d requests, want none", got)
			}
			if text := readLog(t, agent, "LocationServices.log"); !strings.Contains(text, test.line) {
				t.Errorf("LocationServices.log lacks %q:\n%s", test.line, text)
			}
		})
	}
}

func TestAnAuthorityIsAnAnchorToo(t *testing.T) {
	site := newTestSite(t)
	setup := site.setup()
	setup.RootKey, setup.CAFile, setup.NoCRLCheck = "", writePEM(t, site.rootCA.Raw), true
	agent := site.newAgent()
	agent.enrol(t, setup)
	_, foreign := newRoot(t)
	other := site.newAgent()
	setup.CAFile = writePEM(t, foreign.Raw)
	if err := other.Enrol(t.Context(), setup); catalog.CodeOf(err) != catalog.ClientServerUntrusted {
		t.Errorf("got %v, want %s", err, catalog.ClientServerUntrusted)
	}
	site.show(certificateFor{names: []string{"other.test"}})
	third := site.newAgent()
	setup.CAFile = writePEM(t, site.rootCA.Raw)
	if err := third.Enrol(t.Context(), setup); catalog.CodeOf(err) != catalog.ClientServerHost {
		t.Errorf("got %v, want %s", err, catalog.ClientServerHost)
	}
}

func TestTheAnchorIsNotExchangedByAccident(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	_, foreign := newRoot(t)
	setup := site.setup()
	setup.RootKey = token.Pin(foreign.PublicKey)
	if err := agent.Enrol(t.Context(), setup); catalog.CodeOf(err) != catalog.ClientAnchorChanged {
		t.Errorf("got %v, want %s", err, catalog.ClientAnchorChanged)
	}
	setup.ResetKeyInformation = true
	agent.Close()
	if err := agent.Enrol(t.Context(), setup); catalog.CodeOf(err) != catalog.ClientServerRoot {
		t.Errorf("got %v, want %s", err, catalog.ClientServerRoot)
	}
}

func TestRefusalsOfTheServerKeepTheirCode(t *testing.T) {
	tests := []struct {
		name    string
		refusal error
		code    catalog.Code
		text    string
	}{
		{"blocked token", catalog.Errorf(catalog.TokenBlocked, "bulk registration token 4711 is blocked"), catalog.TokenBlocked, "StatusCode=401 StatusText=CMGService_Invalid_Token"},
		{"used up", catalog.Errorf(catalog.BulkTokenUsedUp, "used by all"), catalog.BulkTokenUsedUp, "Text=CCM_E_BAD_HTTP_STATUS_CODE"},
		{"ended", catalog.Errorf(catalog.TokenExpired, "ended"), catalog.TokenExpired, "Options=224, Code=0"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			site := newTestSite(t)
			site.refuse = func(string) error { return test.refusal }
			agent := site.newAgent()
			err := agent.Enrol(t.Context(), site.setup())
			if catalog.CodeOf(err) != test.code {
				t.Fatalf("got %v, want %s", err, test.code)
			}
			if said, ok := errors.AsType[*ServerError](err); !ok || said.Status < 400 || said.Phrase == "" {
				t.Errorf("got %+v, want status and phrase", said)
			}
			entry, _ := catalog.Lookup(test.code)
			if text := readLog(t, agent, "ccmsetup.log"); !strings.Contains(text, test.text) || !strings.Contains(text, "<![LOG["+string(test.code)+" "+entry.Title+": ") {
				t.Errorf("ccmsetup.log lacks %q, or the code with a sentence:\n%s", test.text, text)
			}
			last := agent.steps[len(agent.steps)-1]
			if last.OK || last.Code != string(test.code) || strings.Contains(last.Error, string(site.bulk)) {
				t.Errorf("got the step %+v", last)
			}
			if got := agent.Status(); got.LastError != test.code || got.State != StateKeysMade {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestAPendingRegistrationIsConfirmed(t *testing.T) {
	site := newTestSite(t)
	site.pending = 4
	agent := site.newAgent()
	var during []Status
	agent.onWait = func(time.Duration) error { during = append(during, agent.Status()); return nil }
	agent.enrol(t, site.setup())
	if got := agent.Status(); got.State != StateReady || len(agent.waits) != 4 {
		t.Errorf("got %+v after %d waits, want ready after 4", got, len(agent.waits))
	}
	for i := 1; i < len(agent.waits); i++ {
		if agent.waits[i] <= agent.waits[i-1] {
			t.Errorf("waits do not grow: %v", agent.waits)
		}
	}
	if got := during[0]; got.State != StatePending || got.WaitingFor == "" || got.NextTry.IsZero() {
		t.Errorf("got %+v while it waited", got)
	}
}

func TestARegistrationThatStaysPendingEndsWithACode(t *testing.T) {
	site := newTestSite(t)
	site.pending = 1000
	agent := site.newAgent()
	err := agent.Enrol(t.Context(), site.setup())
	if catalog.CodeOf(err) != catalog.ClientRegistrationWaits {
		t.Fatalf("got %v, want %s", err, catalog.ClientRegistrationWaits)
	}
	var total time.Duration
	for _, d := range agent.waits {
		total += d
	}
	if total > maxConfirm {
		t.Errorf("waited %s, want at most %s", total, maxConfirm)
	}
	site.do(func() { site.pending = 0 })
	again := site.agentIn(filepath.Dir(agent.dir), agent.made, site.clock)
	again.enrol(t, site.setup())
	if again.Status().State != StateReady || len(site.devices) != 1 {
		t.Errorf("got %+v", again.Status())
	}
}

func TestAnswersToARegistration(t *testing.T) {
	tests := []struct {
		name     string
		statuses []int
		code     catalog.Code
	}{
		{"reset once", []int{ccm.RegistrationReset}, ""},
		{"certificates reset once", []int{ccm.RegistrationCertificateReset}, ""},
		{"reset for ever", []int{2, 2, 2, 2}, catalog.ClientRegistrationReset},
		{"rejected", []int{ccm.RegistrationRejected}, catalog.ClientRegistrationRejected},
		{"pending, then rejected", []int{ccm.RegistrationPending, ccm.RegistrationRejected}, catalog.ClientRegistrationRejected},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			site := newTestSite(t)
			site.statuses = test.statuses
			agent := site.newAgent()
			err := agent.Enrol(t.Context(), site.setup())
			if catalog.CodeOf(err) != test.code {
				t.Errorf("got %v, want %q", err, test.code)
			}
			if *agent.made != 1 {
				t.Errorf("made %d keys", *agent.made)
			}
			rejected := strings.Contains(readLog(t, agent, "ClientIDManagerStartup.log"), "[RegTask] - Server rejected registration 3")
			if rejected != (test.code == catalog.ClientRegistrationRejected) {
				t.Errorf("the line of a rejection: got %v", rejected)
			}
		})
	}
}

func TestAnswersOfAnotherAreRefused(t *testing.T) {
	site := newTestSite(t)
	site.otherMessage = true
	if err := site.newAgent().Enrol(t.Context(), site.setup()); catalog.CodeOf(err) != catalog.ClientReplyOther {
		t.Errorf("answer to another message: got %v, want %s", err, catalog.ClientReplyOther)
	}
	site = newTestSite(t)
	site.otherID = true
	if err := site.newAgent().Enrol(t.Context(), site.setup()); catalog.CodeOf(err) != catalog.ClientOtherID {
		t.Errorf("another device's id: got %v, want %s", err, catalog.ClientOtherID)
	}
}

func TestInsideWithoutAToken(t *testing.T) {
	for _, scheme := range []string{"https", "http"} {
		t.Run(scheme, func(t *testing.T) {
			site := newTestSite(t)
			site.approval = ccm.ApprovalNone
			site.policies = []testPolicy{{id: "{11111111-1111-4111-8111-111111111111}", text: "<Policy/>"}}
			agent := site.newAgent()
			agent.enrol(t, site.inside(scheme))
			status := agent.Status()
			if status.State != StateReady || status.WaitingFor != "approval by an administrator" || status.Policies[0].Bytes == 0 {
				t.Errorf("got %+v", status)
			}
			wantTokens := map[string]int{"https": 2, "http": 0}[scheme]
			if len(status.Tokens) != wantTokens || site.count("ccm_system") == 0 {
				t.Errorf("got %d tokens and %d anonymous messages", len(status.Tokens), site.count("ccm_system"))
			}
			if got, err := agent.Send(t.Context(), "MP_Echo", "<A/>"); got != "<Echo>MP_Echo</Echo>" || err != nil {
				t.Errorf("send: got %q, %v", got, err)
			}
		})
	}
}

func TestInsideWithATokenGoesTheTokensWay(t *testing.T) {
	site := newTestSite(t)
	setup := site.inside("https")
	setup.Token = site.bulk
	agent := site.newAgent()
	agent.enrol(t, setup)
	if len(site.uses) != 1 || site.count("ccm_system") != 0 || agent.Status().State != StateReady {
		t.Errorf("got %d uses, %d anonymous messages, %+v", len(site.uses), site.count("ccm_system"), agent.Status())
	}
}

func TestARunawayClockIsCorrectedOnce(t *testing.T) {
	for name, skew := range map[string]time.Duration{"behind": -3 * time.Hour, "ahead": 72 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			site := newTestSite(t)
			wrong := &testClock{at: begin().Add(skew)}
			if skew < 0 {
				site.show(certificateFor{from: begin().AddDate(0, 0, -2), to: begin().AddDate(1, 0, 0)})
			}
			agent := site.agentIn(t.TempDir(), new(int), wrong)
			agent.enrol(t, site.setup())
			if got, want := agent.Status().ClockOffset, -skew; got != want {
				t.Errorf("offset: got %s, want %s", got, want)
			}
			if got := site.count("ccm_sts"); got != 4 {
				t.Errorf("got %d exchanges, want 3 and one repeated", got)
			}
			if text := readLog(t, agent, "ccmsetup.log"); strings.Count(text, "The clock of this device is") != 1 {
				t.Errorf("ccmsetup.log does not say once that the clock is wrong:\n%s", text)
			}
			for _, known := range agent.Status().Tokens {
				if known.Kind == "ccm" && !known.Expires.Equal(begin().Add(token.CCMLifetime)) {
					t.Errorf("the token's end is %s by the site's clock, want %s", known.Expires, begin().Add(token.CCMLifetime))
				}
			}
		})
	}
}

func TestCertificatesThatHaveNotBegunAreMadeAnewInside(t *testing.T) {
	site := newTestSite(t)
	agent := site.agentIn(t.TempDir(), new(int), &testClock{at: begin().Add(72 * time.Hour)})
	agent.enrol(t, site.inside("http"))
	if agent.Status().State != StateReady || *agent.made != 1 {
		t.Errorf("got %+v, %d keys", agent.Status(), *agent.made)
	}
}

func TestAWrongClockIsNotLearnedFromARefusalOfAnotherKind(t *testing.T) {
	site := newTestSite(t)
	site.refuse = func(string) error { return catalog.Errorf(catalog.TokenBlocked, "blocked") }
	agent := site.agentIn(t.TempDir(), new(int), &testClock{at: begin().Add(time.Hour)})
	if err := agent.Enrol(t.Context(), site.setup()); catalog.CodeOf(err) != catalog.TokenBlocked || site.count("ccm_sts") != 1 {
		t.Errorf("got %v after %d tries", err, site.count("ccm_sts"))
	}
}

func TestRetryGoesOnWhileTheNetworkFails(t *testing.T) {
	site := newTestSite(t)
	agent, setup := site.newAgent(), site.setup()
	setup.Retry = 10 * time.Minute
	tries := 0
	site.refuse = func(string) error {
		if tries++; tries < 3 {
			return catalog.Errorf(catalog.StoreUnavailable, "away")
		}
		return nil
	}
	agent.enrol(t, setup)
	if want := []time.Duration{setup.Retry, setup.Retry}; !slices.Equal(agent.waits, want) {
		t.Errorf("got the waits %v, want %v", agent.waits, want)
	}
}

func TestHostileAnswers(t *testing.T) {
	respond := func(status int, contentType, body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", contentType)
			w.WriteHeader(status)
			w.Write([]byte(body))
		}
	}
	good := map[string]any{"access_token": "eyJhbGciOiJFUzI1NiJ9.e30.c2ln", "issued_token_type": tokenURN + "ccm", "token_type": "DPoP", "expires_in": 600, "scope": "register", "client_id": "GUID:00000000-0000-4000-8000-000000000001"}
	with := func(field string, value any) string {
		changed := map[string]any{}
		for k, v := range good {
			changed[k] = v
		}
		changed[field] = value
		text, err := json.Marshal(changed)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	tests := []struct {
		name     string
		endpoint string
		answer   func(http.ResponseWriter)
		code     catalog.Code
	}{
		{"huge token answer", "ccm_sts", respond(200, "application/json", strings.Repeat(" ", maxTokenAnswer+1)), catalog.ClientAnswerTooLarge},
		{"no JSON", "ccm_sts", respond(200, "text/html", "<html>log in</html>"), catalog.ClientAnswerUnreadable},
		{"wrong types", "ccm_sts", respond(200, "application/json", with("expires_in", "soon")), catalog.ClientAnswerUnreadable},
		{"deep JSON", "ccm_sts", respond(200, "application/json", strings.Repeat("[", 60000)), catalog.ClientAnswerUnreadable},
		{"a bearer token", "ccm_sts", respond(200, "application/json", with("token_type", "Bearer")), catalog.ClientAnswerUnreadable},
		{"another kind of token", "ccm_sts", respond(200, "application/json", with("issued_token_type", tokenURN+"self-prove")), catalog.ClientAnswerUnreadable},
		{"a token with a line end", "ccm_sts", respond(200, "application/json", with("access_token", "a.b.c\r\nX: y")), catalog.ClientAnswerUnreadable},
		{"a token for ever", "ccm_sts", respond(200, "application/json", with("expires_in", -5)), catalog.ClientAnswerUnreadable},
		{"a client id that is a path", "ccm_sts", respond(200, "application/json", with("client_id", "../../x")), catalog.ClientAnswerUnreadable},
		{"an unknown scope", "ccm_sts", respond(200, "application/json", with("scope", "admin")), catalog.ClientAnswerUnreadable},
		{"a redirect", "ccm_sts", func(w http.ResponseWriter) { w.Header().Set("Location", "https://evil.test/"); w.WriteHeader(302) }, catalog.ClientRedirected},
		{"an unknown code", "ccm_sts", respond(400, "application/problem+json", `{"code":"P999","detail":"no"}`), catalog.ClientRefused},
		{"a code of the client's own", "ccm_sts", respond(400, "application/problem+json", `{"code":"P576"}`), catalog.ClientRefused},
		{"a busy balancer", "ccm_sts", respond(502, "text/html", "<html>"), catalog.ClientServerBusy},
		{"a huge refusal", "ccm_sts", respond(403, "application/problem+json", strings.Repeat("x", 10<<20)), catalog.ClientRefused},
		{"a page instead of a message", "ccm_system_tokenauth", respond(200, "text/html", "<html>"), catalog.MessageContentType},
		{"an empty answer", "ccm_system_tokenauth", respond(200, "", ""), catalog.ReplyEmpty},
		{"a bomb", "ccm_system_tokenauth", bomb(t), catalog.InflateBudget},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			site := newTestSite(t)
			site.unsigned = true
			site.raw = func(endpoint string, w http.ResponseWriter) bool {
				if endpoint == test.endpoint {
					test.answer(w)
				}
				return endpoint == test.endpoint
			}
			agent := site.newAgent()
			err := agent.Enrol(t.Context(), site.setup())
			if catalog.CodeOf(err) != test.code {
				t.Errorf("got %v, want %s", err, test.code)
			}
			if agent.Status().State.registered() {
				t.Errorf("got %+v", agent.Status())
			}
		})
	}
}

// bomb answers with a message that inflates without end.
func bomb(t *testing.T) func(http.ResponseWriter) {
	t.Helper()
	contentType, body, err := ccm.EncodeReply(ccm.Header{ID: "{1}"}, ccm.Header{}, "<A>"+strings.Repeat(" ", 20<<20)+"</A>")
	if err != nil {
		t.Fatal(err)
	}
	return func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", contentType)
		w.Write(body)
	}
}

func TestEnrolEndsWithItsContext(t *testing.T) {
	site := newTestSite(t)
	site.pending = 1000
	agent := site.newAgent()
	ctx, cancel := context.WithCancel(t.Context())
	agent.onWait = func(time.Duration) error { cancel(); return ctx.Err() }
	if err := agent.Enrol(ctx, site.setup()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want it cancelled", err)
	}
}
