package entra

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	judge "postern/auth/entra"
	"postern/catalog"
	"postern/client"
	"postern/internal/issuer"
	"postern/keyfile"
	"postern/logfile"
	"postern/proof"
	"postern/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	deviceID = "8d2b4ff9-0172-4998-9851-b5324303385f"          // S2
	userID   = "e8838041-db7a-42d5-b9ae-78813910e4cc"          // S2
	userSID  = "S-1-5-21-1527250992-855612568-2252598708-1604" // S2
)

func meg() issuer.User {
	return issuer.User{ObjectID: userID, Name: "meg@contoso.com", OnPremSID: userSID, Device: deviceID}
}

// joinKey is the workplace-join key of every device here.
var joinKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// wpj makes a certificate as a workplace join leaves it, with its key.
func wpj(t testing.TB, from, until time.Time) (*x509.Certificate, *rsa.PrivateKey) {
	t.Helper()
	key, err := joinKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: deviceID}, NotBefore: from, NotAfter: until}
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

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// bench is a device with a provider.
type bench struct {
	t        testing.TB
	dir      string
	provider *issuer.Issuer
	tenant   token.Tenant
	join     JoinState
	key      *keyfile.Key
	logs     *logfile.Folder
	ahead    time.Duration // how far the device's clock has moved on
	signIn   func(Prompt)
}

func newBench(t testing.TB, o issuer.Options) *bench {
	t.Helper()
	provider, err := issuer.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := provider.Close(); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	key, err := keyfile.Open(dir, keyfile.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: dir, provider: provider, tenant: provider.Tenant(), key: key, logs: logfile.NewFolder(filepath.Join(dir, "logs"), logfile.Options{})}
	t.Cleanup(func() { b.logs.Close() })
	certificate, private := wpj(t, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
	b.install(certificate, private)
	provider.AddDevice(issuer.Device{ID: deviceID, Certificate: certificate})
	b.join = JoinState{
		JoinType: JoinEntra, TenantID: b.tenant.ID, DeviceID: deviceID, Authority: provider.Authority(), Source: "join-state.json",
		WorkplaceJoin: WorkplaceJoin{Certificate: filepath.Join(dir, "wpj.pem"), Key: filepath.Join(dir, "wpj.key")},
		User:          User{Name: "meg@contoso.com", ObjectID: userID, SID: userSID},
	}
	return b
}

func (b *bench) install(certificate *x509.Certificate, key *rsa.PrivateKey) {
	b.t.Helper()
	writePEM(b.t, filepath.Join(b.dir, "wpj.pem"), "CERTIFICATE", certificate.Raw)
	writePEM(b.t, filepath.Join(b.dir, "wpj.key"), "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
}

func (b *bench) cacheFile() string { return filepath.Join(b.dir, "entra.sealed") }

func (b *bench) broker() *Broker {
	b.t.Helper()
	broker, err := New(Config{
		Join: b.join, Key: b.key, File: b.cacheFile(), Log: b.logs.Log(LogFile()), SignIn: b.signIn,
		Roots: b.provider.Roots(), Now: func() time.Time { return time.Now().Add(b.ahead) },
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { broker.Close() })
	return broker
}

func (b *bench) want() Want {
	return Want{TenantID: strings.ToUpper(b.tenant.ID), ClientApp: b.tenant.ClientApp, Resource: b.tenant.Resource, Authority: b.tenant.Authority()}
}

// judged is what the site's validator makes of a token.
func (b *bench) judged(got Token) proof.Cloud {
	b.t.Helper()
	b.tenant.Keys = b.provider.Tenant().Keys
	v := judge.New(judge.Config{Tenants: func() []token.Tenant { return []token.Tenant{b.tenant} }})
	cloud, _, err := v.Validate(context.Background(), string(got.Raw))
	if err != nil {
		b.t.Fatal(err)
	}
	return cloud
}

// log returns the messages of ADALOperationProvider.log.
func (b *bench) log() []string {
	b.t.Helper()
	file, err := os.Open(filepath.Join(b.dir, "logs", "ADALOperationProvider.log"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer file.Close()
	var messages []string
	for record, err := range logfile.Read(file, logfile.DefaultReadLimits()) {
		if err != nil {
			b.t.Fatal(err)
		}
		messages = append(messages, record.Message)
	}
	return messages
}

// inOrder checks that the lines stand in the log in this order; others may stand between.
func (b *bench) inOrder(want ...string) {
	b.t.Helper()
	got := b.log()
	rest := got
	for _, line := range want {
		at := -1
		for i, message := range rest {
			if message == line {
				at = i
				break
			}
		}
		if at < 0 {
			b.t.Fatalf("the log has no %q there; it is\n%s", line, strings.Join(got, "\n"))
		}
		rest = rest[at+1:]
	}
}

func signs(t testing.TB, provider *issuer.Issuer, u issuer.User) func(Prompt) {
	return func(p Prompt) {
		if err := provider.SignIn(p.Code, u); err != nil {
			t.Error(err)
		}
	}
}

func TestDeviceTokenIsAcceptedByTheSite(t *testing.T) {
	for _, test := range []struct {
		name    string
		dialect Dialect
		version issuer.Version
	}{
		{"through Microsoft's library", DialectEntra, issuer.V1},
		{"through Microsoft's library, version 2 tokens", DialectEntra, issuer.V2},
		{"of another OpenID provider", DialectOpenID, issuer.V1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, issuer.Options{Version: test.version})
			if b.join.Provider = test.dialect; test.dialect == DialectOpenID {
				b.join.Authority = b.provider.IssuerOf(issuer.V1)
			}
			broker := b.broker()
			got, err := broker.Token(t.Context(), b.want())
			if err != nil {
				t.Fatal(err)
			}
			if cloud := b.judged(got); got.Kind != KindDevice || got.Account != deviceID || cloud.Kind != KindDevice || cloud.Device != deviceID {
				t.Errorf("got %s %s, judged %+v", got.Kind, got.Account, cloud)
			}
			again, err := broker.Token(t.Context(), b.want())
			if err != nil || again != got || b.provider.Fetches().Token != 1 {
				t.Errorf("a second time: got another token or error %v after %d exchanges", err, b.provider.Fetches().Token)
			}
			getting := fmt.Sprintf("Getting AAD (device) token with: ClientId = %s, ResourceUrl = %s, AccountId = %s/oauth2/token", b.tenant.ClientApp, b.tenant.Resource, b.provider.Authority())
			retrieved := "Retrieved AAD token for AAD device '" + deviceID + "'"
			if lines := b.log(); !slices.Equal(lines, []string{getting, retrieved, getting, retrieved}) {
				t.Errorf("the log has not the lines of S2 for each time:\n%s", strings.Join(lines, "\n"))
			}
		})
	}
}

func TestUserTokenIsTheFallback(t *testing.T) {
	for _, dialect := range []Dialect{DialectEntra, DialectOpenID} {
		t.Run(string(dialect), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, issuer.Options{})
			if b.join.Provider = dialect; dialect == DialectOpenID {
				b.join.Authority = b.provider.IssuerOf(issuer.V1)
			}
			b.provider.RemoveDevice(deviceID)
			b.signIn = signs(t, b.provider, meg())
			got, err := b.broker().Token(t.Context(), b.want())
			if err != nil {
				t.Fatal(err)
			}
			if cloud := b.judged(got); got.Kind != KindUser || cloud.Kind != KindUser || cloud.User != userID || cloud.UserSID != userSID || cloud.Device != deviceID {
				t.Errorf("got %s, judged %+v", got.Kind, cloud)
			}
			app := "ClientId = " + b.tenant.ClientApp + ", ResourceUrl = " + b.tenant.Resource
			b.inOrder(
				"Getting AAD (device) token with: "+app+", AccountId = "+b.provider.Authority()+"/oauth2/token",
				"Failed to get AAD token..",
				"Falling back to get user '"+userSID+"' token for system...",
				"Getting AAD (user) token with: "+app+", AccountId = "+userID,
				"Retrieved AAD token for AAD user '"+userID+"'",
			)
			for _, line := range b.log() {
				if strings.Contains(line, "eyJ") || strings.Contains(line, string(got.Raw)) {
					t.Errorf("the log shows a token: %s", line)
				}
			}
		})
	}
}

func TestAUsersTokenIsRenewedInSilence(t *testing.T) {
	for _, dialect := range []Dialect{DialectEntra, DialectOpenID} {
		t.Run(string(dialect), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, issuer.Options{})
			if b.join.Provider = dialect; dialect == DialectOpenID {
				b.join.Authority = b.provider.IssuerOf(issuer.V1)
			}
			b.signIn = signs(t, b.provider, meg())
			want := b.want()
			want.User = true
			first, err := b.broker().Token(t.Context(), want)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(b.cacheFile())
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Fatalf("the cache file: %v, %v", info, err)
			}
			content, err := os.ReadFile(b.cacheFile())
			if err != nil || strings.Contains(string(content), string(first.Raw)) || strings.Contains(string(content), "refresh") {
				t.Fatalf("the cache file is not sealed, or: %v", err)
			}
			b.signIn, b.ahead = nil, 56*time.Minute
			second, err := b.broker().Token(t.Context(), want) // another process, with nobody at it
			if err != nil {
				t.Fatal(err)
			}
			if second.Raw == first.Raw || second.Account != userID {
				t.Errorf("got the same token, or that of %s", second.Account)
			}
			b.judged(second)
		})
	}
}

func TestATokenGoesOnWhileTheProviderIsDown(t *testing.T) {
	t.Parallel()
	b := newBench(t, issuer.Options{})
	broker := b.broker()
	first, err := broker.Token(t.Context(), b.want())
	if err != nil {
		t.Fatal(err)
	}
	b.provider.Down()
	b.ahead = 57 * time.Minute
	for range 2 { // the second time the provider is left in peace
		got, err := broker.Token(t.Context(), b.want())
		if err != nil || got != first {
			t.Fatalf("got another token, or %v", err)
		}
	}
	b.inOrder("Going on with the one at hand. Will expire at '" + first.Expires.Format("01/02/2006 15:04:05") + "'")
	if failed := strings.Count(strings.Join(b.log(), "\n"), "Failed to get AAD token.."); failed != 1 {
		t.Errorf("asked a provider that is down %d times within a minute, want 1", failed)
	}
	b.ahead = 61 * time.Minute
	if _, err := broker.Token(t.Context(), b.want()); catalog.CodeOf(err) != catalog.EntraUnreachable || !client.Transient(err) {
		t.Errorf("after its end: got %v, want what a device waits for", err)
	}
	b.provider.Up()
	b.ahead = 63 * time.Minute // the provider's clock has not moved, and its tokens end after an hour
	if _, err := broker.Token(t.Context(), b.want()); err == nil {
		t.Error("got a token that has ended by the device's clock")
	}
	b.ahead = 0
	if _, err := broker.Token(t.Context(), b.want()); err != nil {
		t.Errorf("when the provider is back: %v", err)
	}
}

func TestAUsersTokenIsEnoughWhileTheProviderIsDown(t *testing.T) {
	t.Parallel()
	b := newBench(t, issuer.Options{})
	b.provider.RemoveDevice(deviceID)
	b.signIn = signs(t, b.provider, meg())
	broker := b.broker()
	first, err := broker.Token(t.Context(), b.want())
	if err != nil {
		t.Fatal(err)
	}
	b.provider.Down()
	for range 3 {
		if got, err := broker.Token(t.Context(), b.want()); err != nil || got != first {
			t.Fatalf("got another token, or %v", err)
		}
	}
	if asked := strings.Count(strings.Join(b.log(), "\n"), "Getting AAD (device) token"); asked != 2 {
		t.Errorf("asked for the device's token %d times, want 2: once before, once while the provider is down", asked)
	}
}

// Each case stops with a code, and says why.
func TestWhyThereIsNoToken(t *testing.T) {
	clockAhead := func() time.Time { return time.Now().Add(20 * time.Minute) }
	for _, test := range []struct {
		name    string
		options issuer.Options
		arrange func(b *bench, w *Want)
		code    catalog.Code // of the device's or the user's failure
		says    string
	}{
		{"the certificate is of no device of the tenant", issuer.Options{}, func(b *bench, _ *Want) {
			b.install(wpj(b.t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)))
		}, catalog.EntraRefused, "AADSTS700027: the certificate is none that the provider knows"},
		{"the certificate has expired", issuer.Options{}, func(b *bench, _ *Want) {
			b.install(wpj(b.t, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)))
		}, catalog.EntraCertificateMissing, "the certificate expired at"},
		{"the certificate is of tomorrow", issuer.Options{}, func(b *bench, _ *Want) {
			b.install(wpj(b.t, time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)))
		}, catalog.EntraCertificateMissing, "the certificate begins at"},
		{"the key is another certificate's", issuer.Options{}, func(b *bench, _ *Want) {
			key, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				b.t.Fatal(err)
			}
			writePEM(b.t, b.join.WorkplaceJoin.Key, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
		}, catalog.EntraCertificateMissing, "the key is another certificate's"},
		{"there is no certificate", issuer.Options{}, func(b *bench, _ *Want) { os.Remove(b.join.WorkplaceJoin.Certificate) },
			catalog.EntraCertificateMissing, "there is no file"},
		{"others can read the key", issuer.Options{}, func(b *bench, _ *Want) { os.Chmod(b.join.WorkplaceJoin.Key, 0o640) },
			catalog.EntraCertificateMissing, "others than its owner may use it"},
		{"the provider's clock is twenty minutes ahead", issuer.Options{Now: clockAhead}, func(*bench, *Want) {},
			catalog.EntraClock, "AADSTS700024: the assertion is not within its valid time range"},
		{"conditional access", issuer.Options{}, func(b *bench, _ *Want) {
			b.provider.Refuse(53003, "Access has been blocked by Conditional Access policies.")
		}, catalog.EntraRefused, "AADSTS53003: Conditional Access blocks the token; exclude the site's server application"},
		{"the secret has expired", issuer.Options{}, func(b *bench, _ *Want) { b.provider.Refuse(7000222, "expired") },
			catalog.EntraRefused, "AADSTS7000222: the application's secret or certificate has expired"},
		{"the provider is busy", issuer.Options{}, func(b *bench, _ *Want) { b.provider.Refuse(90033, "transient") },
			catalog.EntraUnreachable, "AADSTS90033: the provider is busy for the moment"},
		{"a number that nobody knows", issuer.Options{}, func(b *bench, _ *Want) { b.provider.Refuse(99999, "something new") },
			catalog.EntraRefused, "AADSTS99999: the provider's words: AADSTS99999: something new"},
		{"another tenant's application", issuer.Options{}, func(_ *bench, w *Want) { w.ClientApp = userID },
			catalog.EntraRefused, "AADSTS700016: the application is not known"},
		{"another resource", issuer.Options{}, func(_ *bench, w *Want) { w.Resource = "https://other" },
			catalog.EntraRefused, "AADSTS500011: the resource is not known"},
		{"a tenant that the provider does not know", issuer.Options{}, func(b *bench, _ *Want) {
			b.join.Authority = strings.TrimSuffix(b.join.Authority, b.tenant.ID) + userID
		}, catalog.EntraRefused, "AADSTS90002: the tenant is not known"},
		{"the provider is down", issuer.Options{}, func(b *bench, _ *Want) { b.provider.Down() },
			catalog.EntraUnreachable, "the connection could not be made, or broke off"},
		{"a workplace-registered device has no token of its own", issuer.Options{}, func(b *bench, _ *Want) { b.join.JoinType = JoinRegistered },
			catalog.EntraNotJoined, "the device is not the tenant's"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, test.options)
			want := b.want()
			test.arrange(b, &want)
			_, err := b.broker().Token(t.Context(), want)
			stops := catalog.EntraNoToken
			if test.code == catalog.EntraUnreachable {
				stops = test.code // waiting may help
			}
			if catalog.CodeOf(err) != stops {
				t.Fatalf("got %v, want %s", err, stops)
			}
			public := catalog.Public(err)
			if !strings.Contains(public, string(test.code)) || !strings.Contains(public, test.says) {
				t.Errorf("got %q, want %s and %q in it", public, test.code, test.says)
			}
			if !strings.Contains(public, string(catalog.EntraSignInNeeded)) && !strings.Contains(public, "user: "+string(test.code)) {
				t.Errorf("got %q, want why there is no user's token too", public)
			}
			if strings.Contains(err.Error(), "eyJ") {
				t.Errorf("the error shows a token: %v", err)
			}
		})
	}
}

func TestWhatEndsBeforeAnythingIsAsked(t *testing.T) {
	for _, test := range []struct {
		name    string
		arrange func(b *bench, w *Want)
		code    catalog.Code
	}{
		{"not joined", func(b *bench, _ *Want) { b.join = JoinState{JoinType: JoinNone} }, catalog.EntraNotJoined},
		{"joined to another tenant", func(_ *bench, w *Want) { w.TenantID = userID }, catalog.EntraNotJoined},
		{"the site names another provider", func(_ *bench, w *Want) { w.Authority = "https://login.example/" + userID }, catalog.EntraNotJoined},
		{"the site names a provider without TLS", func(b *bench, w *Want) { w.Authority = strings.Replace(b.join.Authority, "https", "http", 1) }, catalog.EntraNotJoined},
		{"no application", func(_ *bench, w *Want) { w.ClientApp = "" }, catalog.EntraRefused},
		{"no resource", func(_ *bench, w *Want) { w.Resource = "" }, catalog.EntraRefused},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, issuer.Options{})
			want := b.want()
			test.arrange(b, &want)
			_, err := b.broker().Token(t.Context(), want)
			if got := catalog.CodeOf(err); got != test.code {
				t.Errorf("got %v, want %s", err, test.code)
			}
			if fetched := b.provider.Fetches(); fetched != (issuer.Fetches{}) {
				t.Errorf("the provider was asked: %+v", fetched)
			}
		})
	}
}

func TestSignInsThatDoNotHappen(t *testing.T) {
	for _, test := range []struct {
		name    string
		dialect Dialect
		says    string
		deny    bool
	}{
		{"declined", DialectEntra, "the sign-in was declined", true},
		{"declined at another provider", DialectOpenID, "the sign-in was declined", true},
		{"expired", DialectEntra, "the code was not entered in time", false},
		{"expired at another provider", DialectOpenID, "the code was not entered in time", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var late sync.Once
			var ahead time.Duration
			var mu sync.Mutex
			b := newBench(t, issuer.Options{Now: func() time.Time {
				mu.Lock()
				defer mu.Unlock()
				return time.Now().Add(ahead)
			}})
			if b.join.Provider = test.dialect; test.dialect == DialectOpenID {
				b.join.Authority = b.provider.IssuerOf(issuer.V1)
			}
			b.signIn = func(p Prompt) {
				if test.deny {
					if err := b.provider.Deny(p.Code); err != nil {
						t.Error(err)
					}
					return
				}
				late.Do(func() {
					mu.Lock()
					defer mu.Unlock()
					ahead = time.Hour
				})
			}
			want := b.want()
			want.User = true
			_, err := b.broker().Token(t.Context(), want)
			if catalog.CodeOf(err) != catalog.EntraSignInNeeded || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %q", err, test.says)
			}
		})
	}
}

func TestASignInEndsWithItsContext(t *testing.T) {
	for _, test := range []struct {
		name    string
		context func(context.Context) (context.Context, context.CancelFunc)
		want    error
	}{
		{"canceled", context.WithCancel, context.Canceled},
		{"over", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 300*time.Millisecond)
		}, context.DeadlineExceeded},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, issuer.Options{})
			ctx, cancel := test.context(t.Context())
			defer cancel()
			b.signIn = func(Prompt) {
				if test.want == context.Canceled {
					cancel()
				}
			}
			want := b.want()
			want.User = true
			if _, err := b.broker().Token(ctx, want); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestACacheThatWasTamperedWithIsDropped(t *testing.T) {
	for _, test := range []struct {
		name   string
		tamper func(path string, content []byte) error
	}{
		{"a changed byte", func(path string, content []byte) error {
			content[len(content)/2] ^= 1
			return os.WriteFile(path, content, 0o600)
		}},
		{"cut", func(path string, content []byte) error { return os.WriteFile(path, content[:10], 0o600) }},
		{"open to others", func(path string, _ []byte) error { return os.Chmod(path, 0o644) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, issuer.Options{})
			if _, err := b.broker().Token(t.Context(), b.want()); err != nil {
				t.Fatal(err)
			}
			content, err := os.ReadFile(b.cacheFile())
			if err != nil {
				t.Fatal(err)
			}
			if err := test.tamper(b.cacheFile(), content); err != nil {
				t.Fatal(err)
			}
			if _, err := b.broker().Token(t.Context(), b.want()); err != nil {
				t.Fatal(err)
			}
			if got := b.provider.Fetches().Token; got != 2 {
				t.Errorf("asked %d times, want 2", got)
			}
			if !strings.Contains(strings.Join(b.log(), "\n"), "The cached AAD tokens cannot be used and are dropped") {
				t.Error("the log does not say so")
			}
			if _, err := b.broker().Token(t.Context(), b.want()); err != nil || b.provider.Fetches().Token != 2 {
				t.Errorf("the new cache is not used: %v", err)
			}
		})
	}
}

func TestOneExchangeForAllWhoWait(t *testing.T) {
	t.Parallel()
	b := newBench(t, issuer.Options{})
	broker := b.broker()
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if _, err := broker.Token(t.Context(), b.want()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if got := b.provider.Fetches().Token; got != 1 {
		t.Errorf("asked %d times, want 1", got)
	}
}

func TestProvidersThatMisbehave(t *testing.T) {
	secret := "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
	discovery := func(w http.ResponseWriter, r *http.Request, token string) {
		fmt.Fprintf(w, `{"issuer":"https://%[1]s/%[2]s","authorization_endpoint":"https://%[1]s/a","token_endpoint":%[3]q,"jwks_uri":"https://%[1]s/k"}`, r.Host, userID, token)
	}
	for _, test := range []struct {
		name   string
		handle http.HandlerFunc
		says   string
	}{
		{"no discovery", http.NotFound, "answered with status 404"},
		{"an answer without an end", func(w http.ResponseWriter, r *http.Request) {
			for range 40 {
				w.Write(make([]byte, 64<<10))
			}
		}, "the answer is longer than"},
		{"sends elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://127.0.0.1:1/", http.StatusTemporaryRedirect)
		}, "sends the device elsewhere (status 307)"},
		{"a token endpoint without TLS", func(w http.ResponseWriter, r *http.Request) { discovery(w, r, "http://127.0.0.1:1/token") },
			"names an address that is not https"},
		{"a token where none belongs", func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				fmt.Fprintf(w, `{"access_token":["%s"]}`, secret)
				return
			}
			discovery(w, r, "https://"+r.Host+"/token")
		}, "something that no token can be taken from"},
		{"an error that repeats what was sent", func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				w.WriteHeader(http.StatusUnauthorized)
				fmt.Fprintf(w, `{"error":"invalid_client","error_description":"AADSTS1234567: assertion %s\r\nTrace ID: 1"}`, secret+r.FormValue("client_assertion"))
				return
			}
			discovery(w, r, "https://"+r.Host+"/token")
		}, "AADSTS1234567: the provider's words: AADSTS1234567: assertion [removed]"},
		{"out of order", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "down", http.StatusBadGateway) },
			"answered with status 502"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewTLSServer(test.handle)
			t.Cleanup(server.Close)
			b := newBench(t, issuer.Options{})
			b.join.Authority = server.URL + "/" + userID
			roots := x509.NewCertPool()
			roots.AddCert(server.Certificate())
			broker, err := New(Config{Join: b.join, Roots: roots})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { broker.Close() })
			_, err = broker.Token(t.Context(), Want{ClientApp: b.tenant.ClientApp, Resource: b.tenant.Resource})
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %q in it", err, test.says)
			}
			if err != nil && strings.Contains(err.Error(), "eyJ") {
				t.Errorf("the error shows a token: %v", err)
			}
		})
	}
}

func TestAProviderUnderAnAuthorityThatNobodyKnows(t *testing.T) {
	t.Parallel()
	b := newBench(t, issuer.Options{})
	for _, test := range []struct {
		name, file string
		content    []byte
		code       catalog.Code
	}{
		{"without a ca_file", "", nil, catalog.EntraUnreachable},
		{"with the ca_file", "ca.pem", b.provider.RootPEM(), ""},
		{"with a ca_file that has none", "none.pem", []byte("none"), catalog.EntraJoinState},
	} {
		join := b.join
		if test.file != "" {
			join.CAFile = filepath.Join(b.dir, test.file)
			if err := os.WriteFile(join.CAFile, test.content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		broker, err := New(Config{Join: join})
		if err == nil {
			_, err = broker.Token(t.Context(), b.want())
			broker.Close()
		}
		if got := catalog.CodeOf(err); got != test.code {
			t.Errorf("%s: got %v, want %q", test.name, err, test.code)
		}
		if test.code == catalog.EntraUnreachable && !strings.Contains(err.Error(), "under no authority that this device trusts") {
			t.Errorf("%s: got %v", test.name, err)
		}
	}
}
