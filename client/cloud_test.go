package client

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/auth"
	"postern/auth/entra"
	"postern/catalog"
	"postern/ccm"
	"postern/internal/issuer"
	"postern/proof"
	"postern/token"
)

const kindEntra = auth.KindEntra

// testTenant is the device's way to its tenant: tokens that the stand-in for Entra really
// signed. How they are got is the business of package entra below, which may not be
// imported here.
type testTenant struct {
	site    *testSite
	device  issuer.Device
	user    issuer.User
	missing error // no join

	mu       sync.Mutex
	down     bool
	noDevice bool // the device's own token is refused
	wants    []EntraWant
}

func (e *testTenant) TenantID() string { return e.site.provider.Tenant().ID }

func (e *testTenant) Token(_ context.Context, want EntraWant) (EntraToken, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.wants = append(e.wants, want)
	if e.down {
		return EntraToken{}, catalog.Errorf(catalog.EntraUnreachable, "login.test: no answer in time")
	}
	if e.noDevice {
		raw, err := e.site.provider.UserToken(e.user, issuer.V2)
		return EntraToken{Raw: Secret(raw), Kind: proof.CloudUser, Account: e.user.ObjectID, Expires: e.site.clock.now().Add(time.Hour)}, err
	}
	raw, err := e.site.provider.DeviceToken(e.device, issuer.V1)
	return EntraToken{Raw: Secret(raw), Kind: proof.CloudDevice, Account: e.device.ID, Expires: e.site.clock.now().Add(time.Hour)}, err
}

func (e *testTenant) set(change func(*testTenant)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(e)
}

func (e *testTenant) asked() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.wants)
}

// newTenantSite is a site with an onboarded tenant, and a device that has joined it.
func newTenantSite(t *testing.T) *testSite {
	t.Helper()
	s := newTestSite(t)
	provider, err := issuer.Start(issuer.Options{Now: s.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { provider.Close() })
	s.provider, s.onboarded = provider, true
	s.validator = entra.New(entra.Config{Tenants: func() []token.Tenant { return []token.Tenant{provider.Tenant()} }, Now: s.clock.now})
	device := provider.AddDevice(issuer.Device{})
	s.tenant = &testTenant{site: s, device: device, user: provider.AddUser(issuer.User{Name: "meg@contoso.com", Device: device.ID})}
	return s
}

// authInfo is AADAuthInfo, as a gateway answers it.
func (s *testSite) authInfo(w http.ResponseWriter, r *http.Request) error {
	if s.provider == nil || !s.onboarded || r.URL.Query().Get("TenantID") != s.provider.Tenant().ID {
		return catalog.Errorf(catalog.GatewayTenantUnknown, "no such tenant is onboarded")
	}
	tenant := s.provider.Tenant()
	if s.resource != "" {
		tenant.Resource = s.resource
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(map[string]string{"TenantId": tenant.ID, "ClientAppId": tenant.ClientApp, "ResourceUri": tenant.Resource, "Authority": tenant.Authority()})
}

// ofTenant judges a tenant's token with the proof of the device's key.
func (s *testSite) ofTenant(r *http.Request, raw string) (token.Claims, proof.KeyThumbprint, error) {
	cloud, _, err := s.validator.Validate(r.Context(), raw)
	if err != nil {
		return token.Claims{}, "", err
	}
	p, err := token.VerifyProofNonce(r.Header.Get("DPoP"), r.Method, raw, s.clock.now(), s.nonces)
	if err != nil {
		return token.Claims{}, "", err
	}
	if want := "https://" + r.Host + strings.Split(r.RequestURI, "?")[0]; p.URL != want {
		return token.Claims{}, "", catalog.Errorf(catalog.ProofOtherURL, "%s is not %s", p.URL, want)
	}
	return token.Claims{Kind: kindEntra, Key: p.Key, Cloud: &cloud}, p.Key, nil
}

// byTenant is the enrol line of S2: where, and nothing by which.
func (s *testSite) byTenant() Setup {
	setup := s.setup()
	setup.Token = ""
	return setup
}

func stepsOf(a *testAgent) (said []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.steps {
		mark := ""
		if !s.OK {
			mark = "FAIL "
		}
		said = append(said, mark+s.Hop+": "+strings.SplitN(s.What, " GUID", 2)[0])
	}
	return said
}

func TestADeviceEnrolsByItsTenant(t *testing.T) {
	for name, test := range map[string]struct {
		noDevice bool
		what     string
	}{"its own token": {false, "Entra device token"}, "a user's, when its own fails": {true, "Entra user token"}} {
		t.Run(name, func(t *testing.T) {
			site := newTenantSite(t)
			site.tenant.noDevice = test.noDevice
			tenant := site.provider.Tenant()
			agent := site.newAgent()
			agent.enrol(t, site.byTenant())

			want := []string{
				"client: keys and certificates made on the device", "gateway: Entra applications of the tenant " + tenant.ID,
				"provider: Entra token of the tenant " + tenant.ID, "gateway: CCM token by " + test.what, "gateway: registration message", "client: registered as",
				"provider: Entra token of the tenant " + tenant.ID, "gateway: CCM token by " + test.what, "provider: Entra token of the tenant " + tenant.ID,
				"gateway: self-prove token by " + test.what + " and assertion of the registered key", "gateway: policy assignments",
			}
			if got := stepsOf(agent); !slices.Equal(got, want) {
				t.Errorf("got the steps\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			status := agent.Status()
			if status.State != StateReady || status.ApprovalStatus != ccm.ApprovalEntra || !strings.HasPrefix(status.Proof, "Entra: "+test.what+" of ") || !strings.HasPrefix(status.Entra, test.what) {
				t.Errorf("got %+v", status)
			}
			for _, asked := range site.tenant.wants {
				if asked.ClientApp != tenant.ClientApp || asked.Resource != tenant.Resource || asked.TenantID != tenant.ID {
					t.Errorf("asked for %+v", asked)
				}
			}
			if site.tenant.wants[0].Log != agent.logs.setup || site.tenant.wants[1].Log != nil {
				t.Error("the lines of S2 go to ccmsetup.log during installation, and to the broker's own afterwards")
			}
			checkTenantLines(t, agent, tenant.ID)
		})
	}
}

// checkTenantLines looks for the lines of S2, word for word.
func checkTenantLines(t *testing.T, agent *testAgent, tenantID string) {
	t.Helper()
	id := string(agent.Status().ClientID)
	for file, lines := range map[string][]string{
		"ccmsetup.log": {
			"Getting AAD info from CMG 'gateway.test'",
			"SMS CCM 5.0: Host=gateway.test, Path=/CCM_Proxy_ServerAuth/AADAuthInfo?TenantID=" + tenantID + ", Port=443, Protocol=https, CcmTokenAuth=0, Flags=0x1304, Options=0xe0",
			"Created connection on port 443",
			"Getting CCM Token from STS server 'gateway.test/CCM_Proxy_MutualAuth/72057594037937981'",
		},
		"ClientIDManagerStartup.log": {
			"AADJoinStatusTask: Client hasn't been registered yet.",
			"[RegTask] - Starting registration, attempt 1.",
			"[RegTask] - Client is not registered. Sending registration request for " + id + " ...",
			"Registering client using AAD auth.",
			"[RegTask] - Client is registered. Server assigned ClientID is " + id + ". Approval status 3",
			"Getting CCM Token from https://gateway.test/CCM_Proxy_ServerAuth/72057594037937981/CCM_STS",
			"Cached encrypted token for 'S-1-5-18'. Will expire at '03/02/2026 16:00:00'",
		},
	} {
		text, at := readLog(t, agent, file), 0
		for _, line := range lines {
			found := strings.Index(text[at:], "<![LOG["+line+"]LOG]!>")
			if found < 0 {
				t.Errorf("%s lacks %q, or has it too early:\n%s", file, line, text)
				continue
			}
			at += found
		}
	}
	if text := readLog(t, agent, "ClientIDManagerStartup.log"); !strings.Contains(text, "Certificate validation: ") {
		t.Error("certificate validation did not run (S2)")
	}
}

func TestTheTenantIsPreferredOverTheToken(t *testing.T) {
	site := newTenantSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	if got := agent.Status(); got.ApprovalStatus != ccm.ApprovalEntra || len(site.uses) != 0 {
		t.Errorf("got %+v, and %d uses of the token", got, len(site.uses))
	}
	if got := site.count("aadauthinfo"); got != 1 {
		t.Errorf("asked %d times for the applications, want once", got)
	}
}

func TestWhatIsInTheWayOfTheTenantIsSaid(t *testing.T) {
	notJoined := catalog.Errorf(catalog.EntraNotJoined, "there is no join state file")
	tests := []struct {
		name    string
		prepare func(*testSite)
		setup   func(*Setup)
		code    catalog.Code // without a token; with one the device enrols by that
		asked   int          // how often the tenant was
	}{
		{"provider away", func(s *testSite) { s.tenant.down = true }, nil, catalog.EntraUnreachable, 1},
		{"tenant not onboarded", func(s *testSite) { s.onboarded = false }, nil, catalog.ClientTenantUnknown, 0},
		{"not joined", func(s *testSite) { s.tenant.missing = notJoined }, nil, catalog.ClientTokenNeeded, 0},
		{"not joined, and asked for", func(s *testSite) { s.tenant.missing = notJoined }, func(s *Setup) { s.TenantID = "x" }, catalog.EntraNotJoined, 0},
		{"another tenant on the command line", func(*testSite) {}, func(s *Setup) { s.TenantID = "9aaf466a-3f40-4468-b3cd-f0010f21f05a" }, catalog.ClientTenantUnknown, 0},
		{"the gateway names another service", func(s *testSite) { s.resource = "https://graph.microsoft.com" }, nil, catalog.ClientResourceForeign, 0},
		{"the site does not take the token", func(s *testSite) {
			s.validator = entra.New(entra.Config{Tenants: func() []token.Tenant { return nil }})
		}, nil, catalog.EntraTenantUnknown, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			site := newTenantSite(t)
			test.prepare(site)
			setup := site.byTenant()
			if test.setup != nil {
				test.setup(&setup)
			}
			agent := site.newAgent()
			err := agent.Enrol(t.Context(), setup)
			if catalog.CodeOf(err) != test.code {
				t.Fatalf("got %v, want %s", err, test.code)
			}
			if got := site.tenant.asked(); got != test.asked {
				t.Errorf("asked the tenant %d times, want %d", got, test.asked)
			}
			if got := agent.Status(); got.LastError != test.code || got.State.registered() {
				t.Errorf("got %+v", got)
			}
			setup.Token = site.bulk
			agent.enrol(t, setup)
			if got := agent.Status(); got.ApprovalStatus != ccm.ApprovalApproved || got.Entra != "" {
				t.Errorf("with a token: got %+v", got)
			}
		})
	}
}

func TestTheCommandLineNamesTheApplications(t *testing.T) {
	site := newTenantSite(t)
	site.onboarded = false // nobody tells them
	setup := site.byTenant()
	setup.ClientApp, setup.Resource = site.provider.Tenant().ClientApp, site.provider.Tenant().Resource
	agent := site.newAgent()
	agent.enrol(t, setup)
	if got := site.count("aadauthinfo"); got != 0 || agent.Status().ApprovalStatus != ccm.ApprovalEntra {
		t.Errorf("asked the gateway %d times, got %+v", got, agent.Status())
	}

	inside := site.inside("https")
	inside.ClientApp, inside.Resource = setup.ClientApp, setup.Resource
	other := site.newAgent()
	other.enrol(t, inside)
	if got := other.Status(); got.ApprovalStatus != ccm.ApprovalEntra {
		t.Errorf("inside: got %+v", got)
	}
}

func TestTheClockOfADeviceOfTheTenantMayBeWrong(t *testing.T) {
	for _, wrong := range []time.Duration{-time.Hour, time.Hour} {
		site := newTenantSite(t)
		agent := site.agentIn(t.TempDir(), new(int), &testClock{at: site.clock.now().Add(wrong)})
		agent.enrol(t, site.byTenant())
		if got := agent.Status(); got.ApprovalStatus != ccm.ApprovalEntra || got.ClockOffset != -wrong {
			t.Errorf("%v: got %+v", wrong, got)
		}
	}
}

// renewals of a device of the tenant: S2, "CCM token renewal".
func TestADeviceOfTheTenantRenewsByIt(t *testing.T) {
	site := newTenantSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.byTenant())
	site.clock.add(token.CCMLifetime - time.Minute)
	asked, exchanged := site.tenant.asked(), site.count("ccm_sts")
	failed := make(chan error)
	for range 8 {
		go func() {
			_, err := agent.Send(context.WithoutCancel(t.Context()), "MP_Echo", "<A/>")
			failed <- err
		}()
	}
	for range 8 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	if got := site.count("ccm_sts") - exchanged; got != 1 || site.tenant.asked()-asked != 1 {
		t.Errorf("%d exchanges and %d questions to the tenant for 8 messages, want one each", got, site.tenant.asked()-asked)
	}
	text := readLog(t, agent, "CcmMessaging.log")
	ends := strings.Index(text, "CCM Token for 'S-1-5-18' (03/02/2026 16:00:00) is already expired or close to expire")
	if got := strings.LastIndex(text, "Getting CCM Token from https://gateway.test"); ends < 0 || got < ends {
		t.Errorf("CcmMessaging.log:\n%s", text)
	}
}

func TestTheProviderIsAwayWhenItIsTimeToRenew(t *testing.T) {
	site := newTenantSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.byTenant())
	send := func() error {
		_, err := agent.Send(t.Context(), "MP_Echo", "<A/>")
		return err
	}
	site.tenant.set(func(e *testTenant) { e.down = true })
	site.clock.add(token.CCMLifetime - time.Minute)
	if err := send(); err != nil {
		t.Errorf("with the self-prove token: %v", err)
	}
	if got := stepsOf(agent); got[len(got)-1] != "gateway: CCM token by self-prove token" {
		t.Errorf("got the steps %q", got)
	}

	// Without it the token at hand is used to its end, and the provider is not asked for each message.
	if err := agent.saveTokens(func(c *tokenCache) { c.SelfProve = cachedToken{} }); err != nil {
		t.Fatal(err)
	}
	site.clock.add(token.CCMLifetime - 5*time.Minute)
	asked := site.tenant.asked()
	for range 3 {
		if err := send(); err != nil {
			t.Errorf("the token has not ended: %v", err)
		}
	}
	if got := site.tenant.asked() - asked; got != 1 {
		t.Errorf("asked the provider %d times for three messages, want once", got)
	}
	site.clock.add(5 * time.Minute)
	if err := send(); catalog.CodeOf(err) != catalog.EntraUnreachable || !Transient(err) {
		t.Errorf("the token has ended: got %v", err)
	}
	if got := agent.Status(); got.WaitingFor != "the provider of the tenant" {
		t.Errorf("waits for %q", got.WaitingFor)
	}
	site.tenant.set(func(e *testTenant) { e.down = false })
	if err := send(); err != nil {
		t.Errorf("the provider is back: %v", err)
	}
}

func TestNoTokenOfTheTenantIsKept(t *testing.T) {
	site := newTenantSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.byTenant())
	raw, err := site.provider.DeviceToken(site.tenant.device, issuer.V1)
	if err != nil {
		t.Fatal(err)
	}
	head := strings.Join(strings.Split(raw, ".")[:1], ".")
	scan(t, agent.dir, map[string]string{"tenant's token": head})
	scan(t, agent.logDir, map[string]string{"tenant's token": head})
}

func TestAnswersAboutTheTenant(t *testing.T) {
	good := `{"TenantId":"T","ClientAppId":"app","ResourceUri":"api://site","Authority":"https://login.test/T"}`
	tests := []struct {
		name, body string
		code       catalog.Code
	}{
		{"good", good, ""},
		{"another tenant", strings.Replace(good, `"T"`, `"U"`, 1), catalog.ClientTenantUnknown},
		{"no application", strings.Replace(good, "app", "", 1), catalog.ClientTenantUnknown},
		{"empty object", `{}`, catalog.ClientTenantUnknown},
		{"a page", `<html>`, catalog.ClientAnswerUnreadable},
		{"wrong type", `{"TenantId":1}`, catalog.ClientAnswerUnreadable},
		{"control characters", strings.Replace(good, "app", `a\nb`, 1), catalog.ClientAnswerUnreadable},
		{"a long value", strings.Replace(good, "app", strings.Repeat("a", 2000), 1), catalog.ClientAnswerUnreadable},
		{"mail", strings.Replace(good, "api://site", "https://outlook.office365.com/", 1), catalog.ClientResourceForeign},
		{"the directory by its id", strings.Replace(good, "api://site", "00000003-0000-0000-c000-000000000000", 1), catalog.ClientResourceForeign},
		{"management", strings.Replace(good, "api://site", "https://management.core.windows.net", 1), catalog.ClientResourceForeign},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseTenantInfo([]byte(test.body), "gateway.test", "T")
			if catalog.CodeOf(err) != test.code || (err == nil) != (got.ClientApp == "app") {
				t.Errorf("got %+v, %v, want %q", got, err, test.code)
			}
		})
	}
}

func TestWhereToSignIn(t *testing.T) {
	for issuer, want := range map[string]string{
		"https://sts.windows.net/9aaf466a-3f40-4468-b3cd-f0010f21f05a/":               "", // a name; nobody signs in there
		"https://login.microsoftonline.com/9aaf466a-3f40-4468-b3cd-f0010f21f05a/v2.0": "https://login.microsoftonline.com/9aaf466a-3f40-4468-b3cd-f0010f21f05a/v2.0",
		"https://keycloak.corp.test/realms/devices":                                   "https://keycloak.corp.test/realms/devices",
	} {
		if got := signInAt(issuer); got != want {
			t.Errorf("%s: got %q, want %q", issuer, got, want)
		}
	}
}

func FuzzTenantInfo(f *testing.F) {
	f.Add([]byte(`{"TenantId":"T","ClientAppId":"app","ResourceUri":"api://site"}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := parseTenantInfo(body, "gateway.test", "T")
		if err == nil && (!got.complete() || foreignResource(got.Resource)) {
			t.Errorf("got %+v", got)
		}
		if err != nil && errors.Unwrap(err) == nil && catalog.CodeOf(err) == "" {
			t.Errorf("%v has no code", err)
		}
	})
}
