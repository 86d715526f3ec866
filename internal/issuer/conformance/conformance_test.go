package conformance

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"postern/auth/entra"
	"postern/catalog"
	"postern/proof"
	"postern/token"
)

const (
	tenantID = "7b0c3806-d28c-4a45-adb2-fb9f94a462f8"
	deviceID = "8d2b4ff9-0172-4998-9851-b5324303385f"
	objectID = "19efeb42-90cf-46d0-807c-ec75c252208b"
)

// certified is the provider's process.
type certified struct {
	issuer, secret string
}

// run starts the provider and ends it with the test. What is missing for it fails the
// test: a conformance test that skips itself shows nothing.
func run(t *testing.T) *certified {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal("Node.js is missing; install it with: apt-get install -y --no-install-recommends nodejs npm")
	}
	if _, err := os.Stat("testdata/node_modules/oidc-provider"); err != nil {
		t.Fatal("the provider is missing; fetch it with: npm ci --prefix internal/issuer/conformance/testdata --ignore-scripts --no-audit --no-fund")
	}
	claims, err := json.Marshal(map[string]string{"tid": tenantID, "oid": objectID, "deviceid": deviceID, "idtyp": "device"})
	if err != nil {
		t.Fatal(err)
	}
	provider := &certified{secret: rand.Text()}
	command := exec.Command(node, "provider.js")
	command.Dir = "testdata"
	command.Env = append(os.Environ(), "POSTERN_SECRET="+provider.secret, "POSTERN_CLAIMS="+string(claims))
	var complaints strings.Builder
	command.Stderr = &complaints
	input, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(60*time.Second, func() { _ = command.Process.Kill() })
	t.Cleanup(func() {
		input.Close() // it ends with its input
		if err := command.Wait(); err != nil {
			t.Errorf("the provider: %v\n%s", err, complaints.String())
		}
		late.Stop()
	})
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatalf("the provider does not start: %v\n%s", err, complaints.String())
	}
	provider.issuer = strings.TrimSpace(line)
	return provider
}

// token asks the provider's token endpoint with client credentials (RFC 6749 4.4) for a
// resource (RFC 8707).
func (c *certified) token(t *testing.T, client, resource string) string {
	t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "resource": {resource}, "scope": {"register"}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.issuer+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.SetBasicAuth(client, c.secret)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var reply struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &reply); err != nil || reply.Token == "" {
		t.Fatalf("%s: %s", response.Status, body)
	}
	return reply.Token
}

func TestCertifiedProviderIsATenant(t *testing.T) {
	provider := run(t)
	tenant := token.Tenant{
		ID: tenantID, Issuers: []string{provider.issuer}, ClientApp: "device",
		Audiences: []string{"urn:postern:rs256", "urn:postern:es256", "urn:postern:ps256"},
	}
	source := entra.NewSource(entra.SourceConfig{Tenants: func() []token.Tenant { return []token.Tenant{tenant} }, LoopbackHTTP: true})
	if err := source.Refresh(t.Context(), tenantID); err != nil {
		t.Fatal(err)
	}
	tenant.Keys = source.Keys(tenantID)
	if status := source.Status()[0]; status.Keys != 2 || status.Skipped != 1 {
		t.Errorf("keys: %+v, want RS256 and ES256 without PS256", status)
	}
	validate := func(tenant token.Tenant, raw string) (proof.Cloud, time.Time, error) {
		return entra.New(entra.Config{Tenants: func() []token.Tenant { return []token.Tenant{tenant} }}).Validate(t.Context(), raw)
	}
	for _, resource := range []string{"urn:postern:rs256", "urn:postern:es256"} {
		cloud, until, err := validate(tenant, provider.token(t, "device", resource))
		if err != nil {
			t.Fatalf("%s: %v", resource, err)
		}
		want := proof.Cloud{Tenant: tenantID, Issuer: provider.issuer, Kind: proof.CloudDevice, Device: deviceID, TokenID: cloud.TokenID}
		if cloud != want || cloud.TokenID == "" {
			t.Errorf("%s: got %+v, want %+v", resource, cloud, want)
		}
		if left := time.Until(until); left < 9*time.Minute || left > 11*time.Minute {
			t.Errorf("%s: it ends in %v", resource, left)
		}
	}

	good := provider.token(t, "device", "urn:postern:rs256")
	with := func(change func(*token.Tenant)) token.Tenant {
		other := tenant
		change(&other)
		return other
	}
	for _, test := range []struct {
		name   string
		tenant token.Tenant
		raw    string
		want   catalog.Code
	}{
		{"algorithm that is not accepted", tenant, provider.token(t, "device", "urn:postern:ps256"), catalog.EntraAlgorithm},
		{"another client of the provider", tenant, provider.token(t, "service", "urn:postern:rs256"), catalog.EntraClientApp},
		{"a service's own token", with(func(t *token.Tenant) { t.ClientApp = "" }), provider.token(t, "service", "urn:postern:rs256"), catalog.EntraKind},
		{"another resource", with(func(t *token.Tenant) { t.Audiences = []string{"urn:other"} }), good, catalog.EntraAudience},
		{"another issuer", with(func(t *token.Tenant) { t.Issuers = []string{"https://keycloak.example"} }), good, catalog.EntraIssuer},
		{"another tenant", with(func(t *token.Tenant) { t.ID = objectID }), good, catalog.EntraTenantMismatch},
		{"keys of nobody", with(func(t *token.Tenant) { t.Keys = nil }), good, catalog.EntraKeysMissing},
		{"changed on the way", tenant, good[:len(good)-8] + "AAAAAAAA", catalog.EntraTokenMalformed},
	} {
		if _, _, err := validate(test.tenant, test.raw); catalog.CodeOf(err) != test.want && !(test.name == "changed on the way" && catalog.CodeOf(err) == catalog.EntraSignature) {
			t.Errorf("%s: got %v, want %s", test.name, err, test.want)
		}
	}
}
