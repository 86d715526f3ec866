package mp

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf16"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/inbox"
	"postern/proof"
	"postern/site"
	"postern/token"
)

func readAll(f *fixture, response *http.Response) []byte {
	f.Helper()
	data, err := io.ReadAll(response.Body)
	f.must(err)
	return data
}

// asking is a form with a fresh assertion by the device's key.
func (f *fixture) asking(d *device, kind string) url.Values {
	f.Helper()
	if d.id == "" {
		f.Fatal("the device is not registered")
	}
	assertion, err := token.SignAssertion(d.key, d.id, f.url(EnhancedHTTP, "/CCM_STS"), f.clock.now())
	f.must(err)
	return url.Values{"grant_type": {grantAssertion}, "assertion": {assertion}, "requested_token_type": {tokenURN + kind}}
}

// TestEnrolment is the story of a device with a bulk registration token, directly at the management point.
func TestEnrolment(t *testing.T) {
	f := newFixture(t)
	d := f.device(0)
	bulk, kept := f.bulk(1)

	first := f.tokenFrom(f.exchange(d, bulk, url.Values{}))
	if first.Scope != token.ScopeRegister || first.ApprovalStatus != -1 || first.TokenType != "DPoP" || first.IssuedTokenType != "urn:postern:token:ccm" || first.ExpiresIn != 8*3600 {
		t.Errorf("first exchange %+v, want a CCM token of eight hours for registering", first)
	}
	system := f.url(EnhancedHTTP, "/ccm_system_tokenauth/request")
	post := func(raw, endpoint, body string, sign *device) got {
		contentType, data := f.message(endpoint, body, sign)
		return f.send(f.client, "CCM_POST", system, contentType, data, f.withToken(d.key, "CCM_POST", system, raw)...)
	}
	registered, err := ccm.ParseRegistrationResponse(f.text(post(first.AccessToken, "MP_ClientRegistration", f.registration(d), nil)))
	f.must(err)
	if registered.ApprovalStatus != ccm.ApprovalApproved || string(registered.SMSID) != first.ClientID {
		t.Errorf("registered %+v, want approved as %s", registered, first.ClientID)
	}
	d.id = registered.SMSID
	stored, err := f.site.Device(t.Context(), d.id)
	f.must(err)
	if stored.Approval.Level != proof.LevelManaged || stored.Approval.Evidence["bulk-token"] != kept.ID {
		t.Errorf("approval %+v, want managed by token %s", stored.Approval, kept.ID)
	}
	if g := post(first.AccessToken, "MP_LocationManager", `<SiteInformationRequest SchemaVersion="1.00"/>`, nil); len(g.body) != 0 {
		t.Errorf("a token for registering opened MP_LocationManager: %q", g.body)
	}
	f.wantEvent(catalog.TokenScope)

	full := f.tokenFrom(f.exchange(d, bulk, url.Values{}))
	if full.Scope != token.ScopeClient || full.ApprovalStatus != 1 {
		t.Errorf("second exchange %+v, want scope client", full)
	}
	reply, err := ccm.ParseAssignmentsReply(f.text(post(full.AccessToken, "MP_PolicyManager", f.assignments(d), d)))
	f.must(err)
	if reply.ClientID != d.id {
		t.Errorf("assignments for %s, want %s", reply.ClientID, d.id)
	}
	if g := post(full.AccessToken, "MP_PolicyManager", f.assignments(d), nil); len(g.body) != 0 {
		t.Errorf("an unsigned request for policy was answered: %q", g.body)
	}
	selfProve := f.tokenFrom(f.exchange(d, bulk, f.asking(d, "self-prove")))
	if selfProve.IssuedTokenType != "urn:postern:token:self-prove" || selfProve.ExpiresIn != 90*24*3600 {
		t.Errorf("self-prove %+v, want ninety days", selfProve)
	}
	if renewed := f.tokenFrom(f.exchange(d, selfProve.AccessToken, url.Values{})); renewed.Scope != token.ScopeClient {
		t.Errorf("renewed %+v, want scope client", renewed)
	}
	if alone := f.tokenFrom(f.exchange(d, "", f.asking(d, "ccm"))); alone.ClientID != string(d.id) {
		t.Errorf("by assertion alone %+v, want %s", alone, d.id)
	}
	f.wantLogged("CCM_STS.log", "ProcessRequest - Start", "Incoming request URL: https://"+testFQDN+"/CCM_STS",
		"Created SCCM token, token type: Device, hierarchyId: "+f.site.Hierarchy()+", userId: , deviceId: "+string(d.id), "Issued token", "Return token to client")
	for _, secret := range []string{bulk, full.AccessToken, selfProve.AccessToken} {
		for _, file := range []string{"CCM_STS.log", "u_ex.log", "MP_RegistrationManager.log"} {
			if strings.Contains(f.logged(file), secret[:20]) {
				t.Errorf("%s holds a token", file)
			}
		}
	}
}

func TestPolicyLocationFollowsTheDoor(t *testing.T) {
	f := newFixture(t)
	d := f.device(0)
	f.register(d)
	_, err := f.site.AddPolicy(t.Context(), site.NewPolicy{ID: "PS1", Body: []byte("<Policy/>"), All: true, By: "test"})
	f.must(err)
	contentType, body := f.message("MP_PolicyManager", f.assignments(d), d)
	for l, want := range map[Listener]string{HTTP: "http://<mp>/SMS_MP/.sms_pol?PS1.1_00", EnhancedHTTP: "https://<mp>/SMS_MP/.sms_pol?PS1.1_00"} {
		reply, err := ccm.ParseAssignmentsReply(f.text(f.send(f.client, "POST", f.url(l, "/ccm_system/request"), contentType, body)))
		f.must(err)
		if len(reply.Assignments) != 1 || reply.Assignments[0].Location != want {
			t.Errorf("%s: %+v, want location %s", l, reply.Assignments, want)
		}
	}
	full := f.tokenFrom(f.exchange(d, "", f.asking(d, "ccm"))).AccessToken
	system := f.url(EnhancedHTTP, "/ccm_system_tokenauth/request")
	reply, err := ccm.ParseAssignmentsReply(f.text(f.send(f.client, "CCM_POST", system, contentType, body, f.withToken(d.key, "CCM_POST", system, full)...)))
	f.must(err)
	location := reply.Assignments[0].Location
	if location != "https://<mp>/SMS_MP_TokenAuth/.sms_pol?PS1.1_00" {
		t.Errorf("with a token: %s", location)
	}
	address := strings.Replace(location, "<mp>", f.addr[EnhancedHTTP], 1)
	htu, _, _ := strings.Cut(address, "?")
	if g := f.send(f.client, "GET", address, "", nil, f.withToken(d.key, "GET", htu, full)...); ccm.DecodePolicyBody(g.body) != "<Policy/>" {
		t.Errorf("the location gave %s %q", g.Status, g.body)
	}
}

func TestSecretPolicy(t *testing.T) {
	f := newFixture(t)
	d := f.device(0)
	f.register(d)
	const secret = `<Policy><x secret="1">hush</x></Policy>`
	policy, err := f.site.AddPolicy(t.Context(), site.NewPolicy{Flags: ccm.PolicySecret | ccm.PolicyRequiresAuth, Body: []byte(secret), All: true, By: "test"})
	f.must(err)
	query := "?" + url.PathEscape(policy.ID) + ".1_00"
	download := func(endpoint string) got {
		header := http.Header{}
		f.must(ccm.SignPolicyAuth(header, d.id, d.key, f.clock.now()))
		return f.send(f.client, "GET", f.url(HTTP, "/"+endpoint+"/.sms_pol"+query), "", nil, "ClientToken", header.Get("ClientToken"), "ClientTokenSignature", header.Get("ClientTokenSignature"))
	}
	if g := download("SMS_MP"); string(g.body) != ccm.PolicyError {
		t.Errorf("level known got %q", g.body)
	}
	f.wantEvent(catalog.PolicyLevel)
	_, err = f.site.Approve(t.Context(), d.id, proof.LevelSecrets, "ann", "payroll")
	f.must(err)
	g := download("SMS_MP")
	plain, err := ccm.OpenPolicy(g.body, d.cert, d.key)
	f.must(err)
	if text := ccm.DecodePolicyBody(plain); text != secret {
		t.Errorf("opened %q", text)
	}
	if g := download("SMS_MP_AltAuth"); string(g.body) != ccm.PolicyError {
		t.Errorf("altauth, whose ceiling is known, gave %q", g.body)
	}
	_, err = f.site.Block(t.Context(), d.id, "ann", "lost")
	f.must(err)
	if g := download("SMS_MP"); string(g.body) != ccm.PolicyError {
		t.Errorf("a blocked device got %q", g.body)
	}
}

func TestBlockedDeviceIsTold(t *testing.T) {
	f := newFixture(t)
	d := f.device(0)
	f.register(d)
	_, err := f.site.Block(t.Context(), d.id, "ann", "stolen")
	f.must(err)
	if response := f.register(d); response.Status != ccm.RegistrationRejected {
		t.Errorf("answered %+v, want status 3", response)
	}
	f.wantEvent(catalog.DeviceBlocked)
	f.wantLogged("MP_RegistrationManager.log", "MP Reg: Registration failed.")
}

func TestConfirmationOfUnknownID(t *testing.T) {
	f := newFixture(t)
	d := f.device(0)
	body := f.registration(d, func(r *ccm.RegistrationRequest) {
		r.Type, r.SMSID = ccm.RegistrationTypeConfirmation, "GUID:00000000-1111-2222-3333-444444444444"
	})
	contentType, data := f.message("MP_ClientRegistration", body, nil, func(h *ccm.Header) { h.AllowRegistrationReset = true })
	response, err := ccm.ParseRegistrationResponse(f.text(f.send(f.client, "CCM_POST", f.url(HTTP, "/ccm_system/request"), contentType, data)))
	f.must(err)
	if response.Status != ccm.RegistrationReset {
		t.Errorf("answered %+v, want status 2", response)
	}
	contentType, data = f.message("MP_ClientRegistration", body, nil)
	if g := f.send(f.client, "CCM_POST", f.url(HTTP, "/ccm_system/request"), contentType, data); g.Header.Get("Content-Length") != "0" {
		t.Errorf("a client that knows no reset got %q", g.body)
	}
}

func TestTokenServiceRefusals(t *testing.T) {
	f := newFixture(t)
	d, other := f.device(0), f.device(1)
	bulk, kept := f.bulk(1)
	f.tokenFrom(f.exchange(d, bulk, url.Values{}))
	address := f.url(EnhancedHTTP, "/CCM_STS")
	good := url.Values{"grant_type": {grantExchange}, "requested_token_type": {tokenURN + "ccm"}}.Encode()
	post := func(contentType, body string, headers ...string) got {
		return f.send(f.client, "POST", address, contentType, []byte(body), headers...)
	}
	replayed := f.withToken(d.key, "POST", address, bulk)
	post(form, good, replayed...)
	for name, test := range map[string]struct {
		answer func() got
		status int
		code   catalog.Code
	}{
		"used up":          {func() got { return f.exchange(other, bulk, url.Values{}) }, 403, catalog.BulkTokenUsedUp},
		"proof used twice": {func() got { return post(form, good, replayed...) }, 401, catalog.ProofReplayed},
		"proof for another path": {func() got {
			return post(form, good, f.withToken(d.key, "POST", f.url(EnhancedHTTP, "/SMS_MP/.sms_aut"), bulk)...)
		}, 401, catalog.ProofOtherURL},
		"proof for another host": {func() got { return post(form, good, f.withToken(d.key, "POST", "https://elsewhere/CCM_STS", bulk)...) }, 401, catalog.ProofOtherURL},
		"proof for a gateway": {func() got {
			return post(form, good, f.withToken(d.key, "POST", fmt.Sprintf("https://%s/CCM_Proxy_ServerAuth/%d/CCM_STS", gatewayName, f.roleID), bulk)...)
		}, 401, catalog.ProofOtherURL},
		"proof for another method":   {func() got { return post(form, good, f.withToken(d.key, "GET", address, bulk)...) }, 401, catalog.ProofOtherMethod},
		"no token":                   {func() got { return post(form, good) }, 401, catalog.TokenMissing},
		"not a form":                 {func() got { return post("application/json", "{}", f.withToken(d.key, "POST", address, bulk)...) }, 400, catalog.RequestMalformed},
		"a field twice":              {func() got { return post(form, good+"&grant_type=x", f.withToken(d.key, "POST", address, bulk)...) }, 400, catalog.RequestMalformed},
		"unknown grant":              {func() got { return f.exchange(d, bulk, url.Values{"grant_type": {"password"}}) }, 400, catalog.TokenRequestInvalid},
		"unknown token type":         {func() got { return f.exchange(d, bulk, url.Values{"requested_token_type": {"urn:x"}}) }, 400, catalog.TokenRequestInvalid},
		"self-prove before register": {func() got { return f.exchange(d, bulk, url.Values{"requested_token_type": {tokenURN + "self-prove"}}) }, 400, catalog.TokenBeforeRegistration},
		"assertion of a stranger": {func() got {
			o := *other
			o.id = "GUID:00000000-1111-2222-3333-444444444444"
			return f.exchange(other, "", f.asking(&o, "ccm"))
		}, 404, catalog.DeviceUnknown},
		"form too large": {func() got { return post(form, strings.Repeat("a", maxTokens+1)) }, 413, catalog.RequestTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			g := test.answer()
			if g.StatusCode != test.status || g.code() != string(test.code) {
				t.Errorf("%s %s, want %d %s", g.Status, g.body, test.status, test.code)
			}
			if challenge := g.Header.Get("WWW-Authenticate"); g.StatusCode == 401 && !strings.HasPrefix(challenge, "DPoP") {
				t.Errorf("WWW-Authenticate %q, want DPoP", challenge)
			}
		})
	}
	_, err := f.site.BlockBulkToken(t.Context(), kept.ID, true, "ann", "try it")
	f.must(err)
	if g := f.exchange(d, bulk, url.Values{}); g.StatusCode != 401 || g.code() != string(catalog.TokenBlocked) || g.Header.Get("WWW-Authenticate")[:26] != `DPoP error="invalid_token"` {
		t.Errorf("blocked: %s %s %q", g.Status, g.code(), g.Header.Get("WWW-Authenticate"))
	}
}

func TestExpiredTokenLines(t *testing.T) {
	f := newFixture(t)
	bulk, _ := f.bulk(0)
	f.clock.advance(26*24*time.Hour + 15*time.Hour)
	if g := f.exchange(f.device(0), bulk, url.Values{}); g.StatusCode != 401 || g.code() != string(catalog.TokenExpired) {
		t.Errorf("%s %s, want 401 %s", g.Status, g.code(), catalog.TokenExpired)
	}
	text := strings.ReplaceAll(f.logged("CCM_STS.log"), "\r\n", "\n")
	want := "Return code: 401, Description: PreAuth token validation failed, System.IdentityModel.Tokens.SecurityTokenExpiredException:\n" +
		"IDX10223: Lifetime validation failed. The token is expired.\nValidTo: '11/24/2026 23:00:00'\nCurrent time: '12/18/2026 14:00:00'.\n" +
		"at System.IdentityModel.Tokens.Validators.ValidateLifetime...."
	if !strings.Contains(text, want) {
		t.Errorf("CCM_STS.log:\n%s\nwant\n%s", text, want)
	}
}

func TestThroughAGateway(t *testing.T) {
	f := newFixture(t)
	d := f.device(0)
	bulk, _ := f.bulk(0)
	connector := f.connector("C1")
	through := func(htu, body string) got {
		return f.send(connector, "POST", f.url(EnhancedHTTP, "/CCM_STS"), form, []byte(body), f.withToken(d.key, "POST", htu, bulk)...)
	}
	good := url.Values{"grant_type": {grantExchange}, "requested_token_type": {tokenURN + "ccm"}}.Encode()
	external := fmt.Sprintf("https://%s/CCM_Proxy_ServerAuth/%d/CCM_STS", gatewayName, f.roleID)
	if g := through(external, good); g.StatusCode != 200 {
		t.Errorf("by the gateway's address: %s %s", g.Status, g.body)
	}
	if g := through(strings.ToUpper(external[:8])+strings.ToUpper(gatewayName)+external[8+len(gatewayName):], good); g.StatusCode != 200 {
		t.Errorf("in upper case: %s %s", g.Status, g.body)
	}
	for name, htu := range map[string]string{
		"another role":         fmt.Sprintf("https://%s/CCM_Proxy_ServerAuth/%d/CCM_STS", gatewayName, f.roleID+1),
		"an unlisted gateway":  fmt.Sprintf("https://evil.example/CCM_Proxy_ServerAuth/%d/CCM_STS", f.roleID),
		"our own name":         "https://" + testFQDN + "/CCM_STS",
		"the gateway, no door": "https://" + gatewayName + "/CCM_STS",
	} {
		if g := through(htu, good); g.StatusCode != 401 || g.code() != string(catalog.ProofOtherURL) {
			t.Errorf("%s: %s %s, want 401 %s", name, g.Status, g.code(), catalog.ProofOtherURL)
		}
	}
	f.register(d)
	values := f.asking(d, "ccm")
	if g := f.send(connector, "POST", f.url(EnhancedHTTP, "/CCM_STS"), form, []byte(values.Encode())); g.StatusCode != 403 || g.code() != string(catalog.AssertionNotDirect) {
		t.Errorf("assertion alone: %s %s, want 403 %s", g.Status, g.code(), catalog.AssertionNotDirect)
	}
	assertion, err := token.SignAssertion(d.key, d.id, external, f.clock.now())
	f.must(err)
	values = url.Values{"grant_type": {grantAssertion}, "assertion": {assertion}, "requested_token_type": {tokenURN + "self-prove"}}
	if g := through(external, values.Encode()); g.StatusCode != 200 {
		t.Errorf("self-prove with assertion: %s %s", g.Status, g.body)
	}
}

func TestBulkTokenIsUsedExactlyAsOftenAsAllowed(t *testing.T) {
	f := newFixture(t)
	bulk, _ := f.bulk(1)
	var wait sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for n := range 3 {
		d := f.device(n)
		for range 4 {
			address := f.url(EnhancedHTTP, "/CCM_STS")
			headers := f.withToken(d.key, "POST", address, bulk)
			wait.Go(func() {
				r, _ := http.NewRequest("POST", address, strings.NewReader(url.Values{"grant_type": {grantExchange}, "requested_token_type": {tokenURN + "ccm"}}.Encode()))
				r.Header.Set("Content-Type", form)
				for i := 0; i < len(headers); i += 2 {
					r.Header.Set(headers[i], headers[i+1])
				}
				response, err := f.client.Do(r)
				if err != nil {
					return
				}
				response.Body.Close()
				mu.Lock()
				codes[response.StatusCode]++
				mu.Unlock()
			})
		}
	}
	wait.Wait()
	if codes[200] != 4 || codes[403] != 8 {
		t.Errorf("answers %v, want 4 for the one key and 8 refusals", codes)
	}
}

func TestStateStream(t *testing.T) {
	f := newFixture(t)
	f.mp.beat = 20 * time.Millisecond
	connector := f.connector("C1")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", f.url(EnhancedHTTP, "/postern/state"), nil)
	f.must(err)
	response, err := connector.Do(r)
	f.must(err)
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	state := auth.NewState(f.site.RootPin(), f.clock.now)
	next := func() string {
		if !lines.Scan() {
			t.Fatalf("the stream ended: %v", lines.Err())
		}
		return lines.Text()
	}
	if changed, err := state.Apply(next()); err != nil || !changed {
		t.Fatalf("first line: changed %v, %v", changed, err)
	}
	if changed, err := state.Apply(next()); err != nil || changed {
		t.Errorf("a beat: changed %v, %v", changed, err)
	}
	_, kept := f.bulk(0)
	_, err = f.site.BlockBulkToken(t.Context(), kept.ID, true, "ann", "try it")
	f.must(err)
	for range 100 {
		if changed, _ := state.Apply(next()); changed {
			break
		}
	}
	if current, _ := state.Current(); len(current.BlockedTokens) != 1 || current.BlockedTokens[0] != kept.ID {
		t.Errorf("the stream never told of the block: %v", current.BlockedTokens)
	}
	f.must(f.site.BlockConnector(t.Context(), "C1", true, "ann", "try it"))
	for lines.Scan() {
	}
	if ctx.Err() != nil {
		t.Error("a blocked connector kept its stream")
	}
}

func TestStreamsEndAtShutdown(t *testing.T) {
	f := newFixture(t)
	connector := f.connector("C1")
	response, err := connector.Get(f.url(EnhancedHTTP, "/postern/state"))
	f.must(err)
	f.mp.endStreams()
	io.Copy(io.Discard, response.Body)
	response.Body.Close()
}

func TestAcknowledgement(t *testing.T) {
	f := newFixture(t)
	connector := f.connector("C1")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	f.must(err)
	const name = "gw2.lab.example:8443"
	_, err = f.site.AddGateway(t.Context(), "https://"+name, token.Pin(key.Public()), "test")
	f.must(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	f.must(err)
	const line = "RequestUri: /CCM_PROXY_SERVERAUTH/1/CCM_STS  RequestCount: 1  RequestSize: 1974 Bytes  ResponseCount: 1  ResponseSize: 1566 Bytes  AverageElapsedTime: 218 ms"
	raw, err := token.SignAck(key, token.Ack{Gateway: name, Epoch: f.site.Epoch(), At: f.clock.now(), CSR: csr,
		Log: []byte(line + "~~  $$<CMGService><06-24-2020 15:31:46.376+00><thread=4992 (0x1380)>\r\n")})
	f.must(err)
	g := f.send(connector, "POST", f.url(EnhancedHTTP, "/postern/state"), "application/jose", []byte(raw))
	var reply ackReply
	f.must(json.Unmarshal(g.body, &reply))
	if g.StatusCode != 200 || reply.Epoch != f.site.Epoch() || len(reply.Chain) != 2 {
		t.Fatalf("%s %s, want a chain of two", g.Status, g.body)
	}
	var chain []*x509.Certificate
	for _, der := range reply.Chain {
		certificate, err := x509.ParseCertificate(der)
		f.must(err)
		chain = append(chain, certificate)
	}
	if _, _, err := auth.RoleCertificate(chain, f.site.RootPin(), token.RoleGateway, f.clock.now()); err != nil {
		t.Errorf("the chain is no gateway's: %v", err)
	}
	f.wantLogged("CMG-gw2.lab.example_8443-ProxyService_IN_0-CMGService.log", line)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	f.must(err)
	raw, err = token.SignAck(stranger, token.Ack{Gateway: name, At: f.clock.now()})
	f.must(err)
	if g := f.send(connector, "POST", f.url(EnhancedHTTP, "/postern/state"), "", []byte(raw)); g.StatusCode != 403 || g.code() != string(catalog.GatewayUnknown) {
		t.Errorf("a stranger's word: %s %s", g.Status, g.code())
	}
}

func TestJoin(t *testing.T) {
	f := newFixture(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	f.must(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	f.must(err)
	code, err := f.site.Invite(t.Context(), "C9", "ann")
	f.must(err)
	join := func(ask any) got {
		body, err := json.Marshal(ask)
		f.must(err)
		return f.send(f.client, "POST", f.url(EnhancedHTTP, "/postern/join"), "application/json", body)
	}
	g := join(joinRequest{Code: code, CSR: csr})
	var reply joinReply
	f.must(json.Unmarshal(g.body, &reply))
	if g.StatusCode != 200 || len(reply.Chain) != 2 || reply.SiteCode != "PRI" || reply.ManagementPoint != "https://"+testFQDN {
		t.Fatalf("%s %s", g.Status, g.body)
	}
	for name, test := range map[string]struct {
		ask  any
		code catalog.Code
	}{
		"a code twice":  {joinRequest{Code: code, CSR: csr}, catalog.InvitationInvalid},
		"another code":  {joinRequest{Code: "NO", CSR: csr}, catalog.InvitationInvalid},
		"no request":    {joinRequest{Code: code}, catalog.RequestMalformed},
		"a bad request": {joinRequest{Code: code, CSR: []byte("x")}, catalog.CertificateRequestInvalid},
		"another field": {map[string]string{"admin": "1"}, catalog.RequestMalformed},
	} {
		if g := join(test.ask); g.code() != string(test.code) {
			t.Errorf("%s: %s %s, want %s", name, g.Status, g.body, test.code)
		}
	}
	limited := false
	for range joinBurst {
		g := join(joinRequest{Code: "NO", CSR: csr})
		limited = limited || g.StatusCode == 429 && g.Header.Get("Retry-After") != ""
	}
	if !limited {
		t.Error("nobody limits the attempts")
	}
}

func TestSMSAut(t *testing.T) {
	f := newFixture(t)
	for query, want := range map[string]string{
		"SITESIGNCERT": "<X509Certificate>3082", "MPLIST": `<MP Name="MP1" FQDN="` + testFQDN + `">`, "MPLIST1&PRI": `SiteCode="PRI"`, "MPLIST2&PRI": `SiteCode="PRI"`,
		"MPLIST1&XYZ": "<MPList", "MPCERT": "<MPCertificate><Certificate>3082", "MPCERT2": "<MPCertificates><Certificate1>3082", "MPTRK": "<KEYDATA><TRUSTEDROOTKEY>3059",
		"MPKEYINFORMATION": "<SITECODE>PRI</SITECODE>", "MPKEYINFORMATIONEX": "<SITECODE>PRI</SITECODE>", "SMSTRC": "<SMSTRC>",
	} {
		g := f.send(f.client, "GET", f.url(HTTP, "/SMS_MP/.sms_aut?"+query), "", nil)
		if g.StatusCode != 200 || !strings.Contains(string(g.body), want) || g.body[0] != '<' {
			t.Errorf("%s: %s %.200s, want %s", query, g.Status, g.body, want)
		}
		if strings.Contains(query, "XYZ") && strings.Contains(string(g.body), "MP1") {
			t.Errorf("%s: lists this site for another", query)
		}
	}
	for _, query := range []string{"", "MPKEYINFORMATIONMEDIA", "MPLIST1&';DROP", "GETCLIENTAFFINITY"} {
		if g := f.send(f.client, "GET", f.url(HTTP, "/SMS_MP/.sms_aut?"+url.PathEscape(query)), "", nil); g.StatusCode != 400 {
			t.Errorf("%q: %s, want 400", query, g.Status)
		}
	}
}

func TestBadMessages(t *testing.T) {
	f := newFixture(t)
	d, other := f.device(0), f.device(1)
	f.register(d)
	f.register(other)
	contentType, good := f.message("MP_PolicyManager", f.assignments(d), d)
	impostor := *other
	impostor.id = d.id
	type wire struct {
		contentType string
		body        []byte
	}
	made := func(endpoint, body string, sign *device, edit ...func(*ccm.Header)) wire {
		contentType, data := f.message(endpoint, body, sign, edit...)
		return wire{contentType, data}
	}
	tampered := made("MP_PolicyManager", f.assignments(d), d, func(h *ccm.Header) { h.Compressed = false })
	tampered.body = bytes.Replace(tampered.body, []byte("d\x00e\x00v\x001"), []byte("d\x00e\x00v\x002"), -1)
	bomb := made("MP_ClientRegistration", "<a>"+strings.Repeat("x", 20<<20)+"</a>", nil)
	for name, test := range map[string]struct {
		wire wire
		code catalog.Code
	}{
		"no content type":               {wire{"", good}, catalog.MessageContentType},
		"not multipart":                 {wire{"text/plain", good}, catalog.MessageContentType},
		"another boundary":              {wire{`multipart/mixed; boundary="zzz"`, good}, catalog.MessageTruncated},
		"truncated":                     {wire{contentType, good[:len(good)/2]}, catalog.MessageTruncated},
		"empty":                         {wire{contentType, nil}, catalog.MessageTruncated},
		"payload changed":               {tampered, catalog.SignatureMismatch},
		"signed by another device":      {made("MP_PolicyManager", f.assignments(d), &impostor), catalog.SignatureMismatch},
		"not signed":                    {made("MP_PolicyManager", f.assignments(d), nil, func(h *ccm.Header) { h.SourceID = string(d.id) }), catalog.SignatureMissing},
		"no sender":                     {made("MP_PolicyManager", f.assignments(d), nil), catalog.SignatureMissing},
		"unknown sender":                {made("MP_PolicyManager", f.assignments(d), &device{key: d.key, id: "GUID:00000000-1111-2222-3333-444444444444"}), catalog.DeviceUnknown},
		"policy of another device":      {made("MP_PolicyManager", f.assignments(other), d), catalog.MessageOtherDevice},
		"sender is no GUID":             {made("MP_LocationManager", "<a/>", nil, func(h *ccm.Header) { h.SourceID = "GUID:' OR 1=1 --" }), catalog.ClientIDMalformed},
		"unknown endpoint":              {made("MP_Nothing", "<a/>", nil), catalog.EndpointUnknown},
		"token manager":                 {made("MP_TokenManager", "<a/>", d), catalog.EndpointNotHandled},
		"unknown location request":      {made("MP_LocationManager", "<a/>", nil), catalog.LocationRequestUnknown},
		"entity bomb":                   {made("MP_ClientRegistration", `<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>`, nil), catalog.RegistrationMalformed},
		"zlib bomb":                     {bomb, catalog.InflateBudget},
		"registration is not one":       {made("MP_ClientRegistration", "<a/>", nil), catalog.RegistrationMalformed},
		"registration over other bytes": {made("MP_ClientRegistration", strings.Replace(f.registration(d), "DEV1", "DEV2", 1), nil), catalog.RegistrationSignature},
		"registration by another's key": {made("MP_ClientRegistration", f.registration(&device{key: other.key, cert: d.cert}), nil), catalog.RegistrationSignature},
		"odd UTF-16 in the payload":     {made("MP_ClientRegistration", "<a>\U0001F600", nil), catalog.RegistrationMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(f.events())
			g := f.send(f.client, "CCM_POST", f.url(HTTP, "/ccm_system/request"), test.wire.contentType, test.wire.body)
			if g.StatusCode != 200 || g.Header.Get("Content-Length") != "0" || len(g.body) != 0 {
				t.Errorf("%s %q, want 200 and nothing", g.Status, g.body)
			}
			events, err := f.site.Events(t.Context(), site.EventFilter{Limit: 1})
			f.must(err)
			if len(f.events()) <= before && before < 50 || events[0].Code != string(test.code) {
				t.Errorf("event %+v, want %s", events[0], test.code)
			}
		})
	}
	for name, body := range map[string]io.Reader{"with its length": bytes.NewReader(make([]byte, maxMessage+1)), "in chunks": struct{ io.Reader }{bytes.NewReader(make([]byte, maxMessage+1))}} {
		r, err := http.NewRequest("CCM_POST", f.url(HTTP, "/ccm_system/request"), body)
		f.must(err)
		r.Header.Set("Content-Type", contentType)
		response, err := f.client.Do(r)
		f.must(err)
		response.Body.Close()
		if response.StatusCode != 413 {
			t.Errorf("oversized, %s: %s, want 413", name, response.Status)
		}
	}
	if g := f.send(f.client, "CCM_POST", f.url(HTTP, "/ccm_system/request"), contentType, good, "Content-Type", contentType); len(g.body) == 0 {
		t.Error("after all this a good message is not answered")
	}
}

func TestAsyncIsNeverAnsweredEmpty(t *testing.T) {
	f := newFixture(t)
	contentType, body := f.message("MP_Nothing", "<a/>", nil, func(h *ccm.Header) { h.ReplyMode = "ASync" })
	g := f.send(f.client, "CCM_POST", f.url(HTTP, "/ccm_system/request"), contentType, body)
	if len(g.body) == 0 {
		t.Error("an asynchronous message to an unknown endpoint was answered empty")
	}
}

func TestAnotherKeyNeverGetsTheGUID(t *testing.T) {
	f := newFixture(t)
	d, thief := f.device(0), f.device(1)
	f.register(d)
	contentType, body := f.message("MP_ClientRegistration", f.registration(thief, func(r *ccm.RegistrationRequest) { r.SMSID = d.id }), nil)
	response, err := ccm.ParseRegistrationResponse(f.text(f.send(f.client, "CCM_POST", f.url(HTTP, "/ccm_system/request"), contentType, body)))
	f.must(err)
	if response.SMSID == d.id || response.SMSID == "" {
		t.Errorf("another key was given %s", response.SMSID)
	}
	f.wantEvent(catalog.RegistrationIDTaken)
}

func TestDatabaseAway(t *testing.T) {
	f := newFixture(t)
	d := f.device(0)
	f.register(d)
	f.store.take(true)
	contentType, body := f.message("MP_PolicyManager", f.assignments(d), d)
	g := f.send(f.client, "CCM_POST", f.url(HTTP, "/ccm_system/request"), contentType, body)
	if g.StatusCode != 503 || g.code() != string(catalog.StoreUnavailable) || g.Header.Get("Retry-After") == "" {
		t.Errorf("policy: %s %s, want 503 %s", g.Status, g.code(), catalog.StoreUnavailable)
	}
	f.store.take(false)
}

// TestRegistrationWhileTheDatabaseIsAway: what is acknowledged is registered later, under the id that the device was told.
func TestRegistrationWhileTheDatabaseIsAway(t *testing.T) {
	var waiting *inbox.Inbox
	f := newFixture(t, func(c *Config) {
		var err error
		if waiting, err = inbox.Open(filepath.Join(t.TempDir(), "log"), inbox.Options{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { waiting.Close() })
		c.Inbox = waiting
	})
	d := f.device(0)
	confirm := func(id ccm.ClientID) ccm.RegistrationResponse {
		body := f.registration(d, func(r *ccm.RegistrationRequest) { r.Type, r.SMSID = ccm.RegistrationTypeConfirmation, id })
		contentType, data := f.message("MP_ClientRegistration", body, nil)
		response, err := ccm.ParseRegistrationResponse(f.text(f.send(f.client, "CCM_POST", f.url(HTTP, "/ccm_system/request"), contentType, data)))
		f.must(err)
		return response
	}
	f.store.take(true)
	first, again := f.register(d), f.register(d)
	if first.Status != ccm.RegistrationPending || first.SMSID == "" || again.SMSID != first.SMSID {
		t.Fatalf("answered %+v and %+v, want pending with one id", first, again)
	}
	if response := confirm(first.SMSID); response.Status != ccm.RegistrationPending || response.SMSID != first.SMSID {
		t.Errorf("confirmation while away %+v, want pending", response)
	}
	if err := f.mp.Replay(t.Context()); err == nil || waiting.Pending() != 2 {
		t.Errorf("replay while away: %v, %d waiting, want an error and both", err, waiting.Pending())
	}
	f.store.take(false)
	if response := confirm(first.SMSID); response.Status != ccm.RegistrationPending {
		t.Errorf("confirmation before the replay %+v, want pending", response)
	}
	f.must(f.mp.Replay(t.Context()))
	if waiting.Pending() != 0 {
		t.Errorf("%d registrations still wait", waiting.Pending())
	}
	if response := confirm(first.SMSID); response.Status != ccm.RegistrationDone || response.SMSID != first.SMSID {
		t.Errorf("confirmation %+v, want done with %s", response, first.SMSID)
	}
	device, err := f.site.Device(t.Context(), first.SMSID)
	f.must(err)
	if device.Approval.Level != proof.LevelKnown {
		t.Errorf("level %s, want known", device.Approval.Level)
	}
	f.wantLogged("MP_RegistrationManager.log", "MP Reg: DDR file written to ")
}

// TestProvisionalIDThatTurnsOutTaken: the device learns its final id when it confirms the provisional one.
func TestProvisionalIDThatTurnsOutTaken(t *testing.T) {
	f := newFixture(t)
	owner, d := f.device(0), f.device(1)
	f.register(owner)
	f.register(d)
	f.mp.renamed.put(owner.id, d.id) // d was told the owner's id while the database was away
	body := f.registration(d, func(r *ccm.RegistrationRequest) {
		r.Type, r.SMSID = ccm.RegistrationTypeConfirmation, "GUID:00000000-1111-2222-3333-444444444444"
	})
	f.mp.renamed.put("GUID:00000000-1111-2222-3333-444444444444", d.id)
	contentType, data := f.message("MP_ClientRegistration", body, nil)
	response, err := ccm.ParseRegistrationResponse(f.text(f.send(f.client, "CCM_POST", f.url(HTTP, "/ccm_system/request"), contentType, data)))
	f.must(err)
	if response.Status != ccm.RegistrationDone || response.SMSID != d.id {
		t.Errorf("answered %+v, want done as %s", response, d.id)
	}
}

func TestRegistrationWithoutInbox(t *testing.T) {
	f := newFixture(t)
	d := f.device(0)
	f.store.take(true)
	contentType, body := f.message("MP_ClientRegistration", f.registration(d), nil)
	if g := f.send(f.client, "CCM_POST", f.url(HTTP, "/ccm_system/request"), contentType, body); g.StatusCode != 503 || g.code() != string(catalog.StoreUnavailable) {
		t.Errorf("%s %s, want 503 %s: nothing was kept", g.Status, g.body, catalog.StoreUnavailable)
	}
	f.store.take(false)
}

func TestPanicIsAnswered(t *testing.T) {
	f := newFixture(t)
	for i := range f.mp.routes {
		if strings.HasSuffix(f.mp.routes[i].Path, ".sms_aut") {
			f.mp.routes[i].handle = func(*visit) { panic("secret detail") }
		}
	}
	g := f.send(f.client, "GET", f.url(HTTP, "/SMS_MP/.sms_aut?MPLIST"), "", nil)
	if g.StatusCode != 500 || g.code() != string(catalog.InternalError) || strings.Contains(string(g.body), "secret") {
		t.Errorf("%s %s, want 500 %s without the cause", g.Status, g.body, catalog.InternalError)
	}
}

func TestCopyThatCannotBeWrittenTakesNothingBack(t *testing.T) {
	f := newFixture(t)
	f.must(os.RemoveAll(filepath.Join(f.dir, "inboxes")))
	if response := f.register(f.device(0)); response.Status != ccm.RegistrationDone {
		t.Errorf("answered %+v", response)
	}
	f.wantEvent(catalog.RegistrationCopyFailed)
}

// TestSHA1NeedsTheLegacySetting: C75. A registered key with SHA-1 signatures is refused, and where the site serves clients of 2007 it is worth no more than known.
func TestSHA1NeedsTheLegacySetting(t *testing.T) {
	f := newFixture(t)
	d := f.device(0)
	f.register(d)
	_, err := f.site.Approve(t.Context(), d.id, proof.LevelSecrets, "ann", "test")
	f.must(err)
	open, err := f.site.AddPolicy(t.Context(), site.NewPolicy{Flags: ccm.PolicyRequiresAuth, Body: []byte("<Policy/>"), All: true, By: "test"})
	f.must(err)
	secret, err := f.site.AddPolicy(t.Context(), site.NewPolicy{Flags: ccm.PolicySecret, Body: []byte("<Policy/>"), All: true, By: "test"})
	f.must(err)
	download := func(p site.Policy) string {
		value := string(d.id) + ";" + f.clock.now().UTC().Format("2006-01-02T15:04:05Z") + ";1"
		digest := sha1.Sum(append(utf16LE(value), 0, 0))
		signature, err := rsa.SignPKCS1v15(nil, d.key, crypto.SHA1, digest[:])
		f.must(err)
		slices.Reverse(signature)
		return string(f.send(f.client, "GET", f.url(HTTP, "/SMS_MP/.sms_pol?"+url.PathEscape(p.ID)+".1_00"), "", nil,
			"ClientToken", value, "ClientTokenSignature", hex.EncodeToString(signature)).body)
	}
	if got := download(open); got != ccm.PolicyError {
		t.Errorf("without the setting got %q", got)
	}
	f.wantEvent(catalog.RegistrationWeakKey)
	f.must(f.site.Set(t.Context(), "registration.legacy-keys", "true", "ann"))
	if got := ccm.DecodePolicyBody([]byte(download(open))); got != "<Policy/>" {
		t.Errorf("with the setting got %q", got)
	}
	if got := download(secret); got != ccm.PolicyError {
		t.Errorf("a secret for a SHA-1 signature: %q", got)
	}
}

func utf16LE(text string) (out []byte) {
	for _, unit := range utf16.Encode([]rune(text)) {
		out = append(out, byte(unit), byte(unit>>8))
	}
	return out
}
