package issuer_test

import (
	"bufio"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	msal "github.com/AzureAD/microsoft-authentication-library-for-go/apps/confidential"
	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/public"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"go.uber.org/goleak"

	"postern/auth/entra"
	"postern/catalog"
	"postern/internal/issuer"
	"postern/proof"
	"postern/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, o issuer.Options) (*issuer.Issuer, *http.Client) {
	t.Helper()
	provider, err := issuer.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: provider.Roots()}}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		if err := provider.Close(); err != nil {
			t.Error(err)
		}
	})
	return provider, client
}

// workplaceJoin makes a key and the certificate that a join would have given it.
func workplaceJoin(t *testing.T) (*x509.Certificate, crypto.PrivateKey) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate, key
}

func validate(t *testing.T, provider *issuer.Issuer, raw string) proof.Cloud {
	t.Helper()
	v := entra.New(entra.Config{Tenants: func() []token.Tenant { return []token.Tenant{provider.Tenant()} }})
	cloud, _, err := v.Validate(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	return cloud
}

func TestItSaysThatItIsAStandIn(t *testing.T) {
	provider, client := start(t, issuer.Options{})
	for _, path := range []string{"/.well-known/openid-configuration", "/v2.0/.well-known/openid-configuration"} {
		var settings struct {
			Description, Issuer string
			Keys                string `json:"jwks_uri"`
		}
		body := get(t, client, provider.Authority()+path)
		if err := json.Unmarshal(body, &settings); err != nil {
			t.Fatal(err)
		}
		if settings.Description != issuer.Description || !strings.HasPrefix(string(body), `{"description":`) {
			t.Errorf("%s begins with %.80s", path, body)
		}
		if keys := get(t, client, settings.Keys); !strings.Contains(string(keys), `"kid"`) {
			t.Errorf("keys: %s", keys)
		}
	}
	root, err := url.Parse(provider.Authority())
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := bufio.NewReader(strings.NewReader(string(get(t, client, "https://"+root.Host+"/")))).ReadLine()
	if string(first) != issuer.Description {
		t.Errorf("the first line is %q", first)
	}
	if got, want := provider.Fetches(), (issuer.Fetches{Discovery: 2, Keys: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func get(t *testing.T, client *http.Client, address string) []byte {
	t.Helper()
	response, err := client.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", address, response.Status, err)
	}
	return body
}

// Microsoft's own library gets a device's token with the workplace join certificate,
// and the site takes it, in both versions.
func TestMSALGetsADeviceToken(t *testing.T) {
	for _, version := range []issuer.Version{issuer.V1, issuer.V2} {
		t.Run(string(version), func(t *testing.T) {
			provider, client := start(t, issuer.Options{Version: version})
			certificate, key := workplaceJoin(t)
			joined := provider.AddDevice(issuer.Device{Certificate: certificate})
			scopes := []string{provider.Tenant().Resource + "/.default"}
			app := confidential(t, provider, client, certificate, key)
			result, err := app.AcquireTokenByCredential(t.Context(), scopes)
			if err != nil {
				t.Fatal(err)
			}
			got := validate(t, provider, result.AccessToken)
			if got.Kind != proof.CloudDevice || got.Device != joined.ID || got.Tenant != provider.Tenant().ID || got.Issuer != provider.IssuerOf(version) {
				t.Errorf("got %+v", got)
			}
			if left := time.Until(result.ExpiresOn); left < 50*time.Minute || left > 61*time.Minute {
				t.Errorf("it ends in %v", left)
			}

			stranger, strangerKey := workplaceJoin(t)
			_, err = confidential(t, provider, client, stranger, strangerKey).AcquireTokenByCredential(t.Context(), scopes)
			if err == nil || !strings.Contains(err.Error(), "AADSTS700027") {
				t.Errorf("a certificate of no device: %v", err)
			}
			if answer := byAssertion(t, provider, client, certificate, strangerKey); !strings.Contains(answer, "AADSTS700027") {
				t.Errorf("a device's certificate with another key: %s", answer)
			}
			if answer := byAssertion(t, provider, client, certificate, key); !strings.Contains(answer, "access_token") {
				t.Errorf("the same with the right key: %s", answer)
			}
			_, err = confidential(t, provider, client, certificate, key).AcquireTokenByCredential(t.Context(), []string{"https://graph.microsoft.com/.default"})
			if err == nil || !strings.Contains(err.Error(), "AADSTS500011") {
				t.Errorf("another resource: %v", err)
			}
			provider.RemoveDevice(joined.ID)
			_, err = confidential(t, provider, client, certificate, key).AcquireTokenByCredential(t.Context(), scopes)
			if err == nil || !strings.Contains(err.Error(), "AADSTS700027") {
				t.Errorf("a device that has left: %v", err)
			}
		})
	}
}

// byAssertion does by hand what the library refuses to do with a wrong key.
func byAssertion(t *testing.T, provider *issuer.Issuer, client *http.Client, certificate *x509.Certificate, key crypto.PrivateKey) string {
	t.Helper()
	sum := sha256.Sum256(certificate.Raw)
	options := (&jose.SignerOptions{}).WithHeader("x5t#S256", base64.StdEncoding.EncodeToString(sum[:]))
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.PS256, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	app := provider.Tenant().ClientApp
	address := provider.Authority() + "/oauth2/v2.0/token"
	assertion, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: app, Subject: app, Audience: jwt.Audience{address}, Expiry: jwt.NewNumericDate(time.Now().Add(time.Minute)),
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.PostForm(address, url.Values{
		"grant_type": {"client_credentials"}, "client_id": {app}, "scope": {provider.Tenant().Resource + "/.default"},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {assertion},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func confidential(t *testing.T, provider *issuer.Issuer, client *http.Client, certificate *x509.Certificate, key crypto.PrivateKey) msal.Client {
	t.Helper()
	credential, err := msal.NewCredFromCert([]*x509.Certificate{certificate}, key)
	if err != nil {
		t.Fatal(err)
	}
	app, err := msal.New(provider.Authority(), provider.Tenant().ClientApp, credential, msal.WithHTTPClient(client), msal.WithInstanceDiscovery(false))
	if err != nil {
		t.Fatal(err)
	}
	return app
}

// A person signs in on another screen; later the library renews without one.
func TestMSALGetsAUserToken(t *testing.T) {
	clock := time.Now()
	provider, client := start(t, issuer.Options{Now: func() time.Time { return clock }, Lifetime: 10 * time.Minute})
	person := provider.AddUser(issuer.User{Name: "meg@contoso.com", OnPremSID: "S-1-5-21-1-2-3-1604", Device: "8d2b4ff9-0172-4998-9851-b5324303385f"})
	app, err := public.New(provider.Tenant().ClientApp, public.WithAuthority(provider.Authority()), public.WithHTTPClient(client), public.WithInstanceDiscovery(false))
	if err != nil {
		t.Fatal(err)
	}
	scopes := []string{provider.Tenant().Resource + "/.default"}
	waiting, err := app.AcquireTokenByDeviceCode(t.Context(), scopes)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(waiting.Result.Message, issuer.Description) {
		t.Errorf("the message begins with %.60s", waiting.Result.Message)
	}
	page, err := client.PostForm(waiting.Result.VerificationURL, url.Values{"user_code": {waiting.Result.UserCode}, "user": {person.ObjectID}})
	if err != nil {
		t.Fatal(err)
	}
	if page.Body.Close(); page.StatusCode != http.StatusOK {
		t.Fatal(page.Status)
	}
	result, err := waiting.AuthenticationResult(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := validate(t, provider, result.AccessToken)
	if got.Kind != proof.CloudUser || got.User != person.ObjectID || got.Device != person.Device || got.UserSID != person.OnPremSID {
		t.Errorf("got %+v", got)
	}
	if result.Account.PreferredUsername != person.Name {
		t.Errorf("the account is %+v", result.Account)
	}
	before := provider.Fetches().Token
	silent, err := app.AcquireTokenSilent(t.Context(), scopes, public.WithSilentAccount(result.Account), public.WithClaims(`{"access_token":{"x":null}}`))
	if err != nil {
		t.Fatal(err)
	}
	if silent.AccessToken == result.AccessToken || provider.Fetches().Token != before+1 {
		t.Error("the refresh token was not used")
	}
}

func TestSignInOnAnotherScreenThatFails(t *testing.T) {
	provider, client := start(t, issuer.Options{})
	app, err := public.New(provider.Tenant().ClientApp, public.WithAuthority(provider.Authority()), public.WithHTTPClient(client), public.WithInstanceDiscovery(false))
	if err != nil {
		t.Fatal(err)
	}
	waiting, err := app.AcquireTokenByDeviceCode(t.Context(), []string{provider.Tenant().Resource + "/.default"})
	if err != nil {
		t.Fatal(err)
	}
	if err := provider.SignIn("NOBODYS", issuer.User{}); err == nil {
		t.Error("a wrong code was taken")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Millisecond)
	defer cancel()
	if _, err := waiting.AuthenticationResult(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while nobody signs in: %v", err)
	}
	if err := provider.Deny(waiting.Result.UserCode); err != nil {
		t.Fatal(err)
	}
	if _, err := waiting.AuthenticationResult(t.Context()); err == nil || !strings.Contains(err.Error(), "authorization_declined") {
		t.Errorf("denied: %v", err)
	}
}

func TestDownAndRefusing(t *testing.T) {
	provider, client := start(t, issuer.Options{})
	certificate, key := workplaceJoin(t)
	provider.AddDevice(issuer.Device{Certificate: certificate})
	scopes := []string{provider.Tenant().Resource + "/.default"}
	ask := func() error {
		_, err := confidential(t, provider, client, certificate, key).AcquireTokenByCredential(t.Context(), scopes)
		return err
	}
	provider.Down()
	if err := ask(); err == nil {
		t.Error("it answers while it is down")
	}
	provider.Up()
	if err := ask(); err != nil {
		t.Error(err)
	}
	provider.Refuse(50076, "Due to a configuration change made by your administrator, you must use multi-factor authentication.")
	if err := ask(); err == nil || !strings.Contains(err.Error(), "AADSTS50076") {
		t.Errorf("got %v", err)
	}
	provider.Refuse(0, "")
	if err := ask(); err != nil {
		t.Error(err)
	}
}

func TestOtherTenantAndOptions(t *testing.T) {
	provider, client := start(t, issuer.Options{})
	response, err := client.Get(strings.Replace(provider.Authority(), provider.Tenant().ID, "contoso", 1) + "/.well-known/openid-configuration")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || !strings.Contains(string(body), "AADSTS90002") {
		t.Errorf("another tenant: %s, %v", body, err)
	}
	for name, o := range map[string]issuer.Options{"not on this machine": {Address: "0.0.0.0:0"}, "version 3": {Version: "3.0"}} {
		if _, err := issuer.Start(o); err == nil {
			t.Errorf("%s: it started", name)
		}
	}
}

// An authority that is given signs the stand-in's certificate.
func TestGivenAuthority(t *testing.T) {
	certificate, key := workplaceJoin(t) // any key pair will do, but it is no authority
	provider, err := issuer.Start(issuer.Options{CA: &tls.Certificate{Certificate: [][]byte{certificate.Raw}, PrivateKey: key}})
	if err != nil {
		t.Fatal(err)
	}
	defer provider.Close()
	if !strings.Contains(string(provider.RootPEM()), "BEGIN CERTIFICATE") || !provider.Roots().Equal(poolOf(certificate)) {
		t.Error("the given authority is not the one")
	}
}

func poolOf(certificate *x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	return pool
}

// A rotation as a site sees it: both keys for a while, then the new one.
func TestRotation(t *testing.T) {
	provider, _ := start(t, issuer.Options{})
	tenant := provider.Tenant()
	source := entra.NewSource(entra.SourceConfig{Tenants: func() []token.Tenant { return []token.Tenant{tenant} }, Roots: provider.Roots(), Floor: time.Nanosecond})
	v := entra.New(entra.Config{Tenants: func() []token.Tenant {
		now := tenant
		now.Keys = source.Keys(tenant.ID)
		return []token.Tenant{now}
	}})
	old, err := provider.DeviceToken(issuer.Device{}, issuer.V1)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name     string
		act      func() error
		old, new catalog.Code
	}{
		{"at first", func() error { return nil }, "", ""},
		{"rotated", provider.Rotate, "", ""},
		{"the old key is forgotten", func() error { provider.Forget(); return nil }, catalog.EntraKeyUnknown, ""},
	} {
		if err := step.act(); err != nil {
			t.Fatal(err)
		}
		if err := source.Refresh(t.Context(), tenant.ID); err != nil {
			t.Fatal(err)
		}
		fresh, err := provider.DeviceToken(issuer.Device{}, issuer.V1)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := v.Validate(t.Context(), old); catalog.CodeOf(err) != step.old {
			t.Errorf("%s, old token: %v", step.name, err)
		}
		if _, _, err := v.Validate(t.Context(), fresh); catalog.CodeOf(err) != step.new {
			t.Errorf("%s, new token: %v", step.name, err)
		}
	}
}
