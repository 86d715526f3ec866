package auth

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/internal/authority"
	"postern/proof"
	"postern/token"
)

// company is an authority with an intermediate one, which publishes its lists, and what
// the site says of it.
type company struct {
	testing.TB
	mu        sync.Mutex
	time      time.Time
	uploaded  *token.Authorities
	blocked   map[proof.KeyThumbprint]bool
	root      *authority.Authority
	between   *authority.Authority
	publisher *authority.Publisher
	judge     *Certificates
}

const rootList, betweenList = "/root.crl", "/between.crl"

func newCompany(t testing.TB, policy string) *company {
	t.Helper()
	c := &company{TB: t, time: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC), blocked: map[proof.KeyThumbprint]bool{}}
	var err error
	c.root, err = authority.NewRoot("Company Root", c.time)
	c.must(err)
	c.between, err = c.root.Intermediate("Company Issuing")
	c.must(err)
	c.publisher, err = authority.NewPublisher()
	c.must(err)
	t.Cleanup(c.publisher.Close)
	c.publish()
	c.uploaded = &token.Authorities{
		Roots: [][]byte{c.root.Certificate.Raw}, Intermediates: [][]byte{c.between.Certificate.Raw}, Revocation: policy,
		Sources: []string{c.publisher.URL(rootList), c.publisher.URL(betweenList)},
	}
	c.judge = NewCertificates(CertificatesConfig{Authorities: c.authorities, Revocation: c, Now: c.now})
	t.Cleanup(c.judge.Close)
	return c
}

func (c *company) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func (c *company) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.time
}

func (c *company) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.time = c.time.Add(d)
}

func (c *company) authorities() *token.Authorities {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.uploaded
}

// upload changes what the site says.
func (c *company) upload(edit func(*token.Authorities)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := *c.uploaded
	edit(&next)
	c.uploaded = &next
}

func (c *company) Revoked(claims token.Claims) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blocked[claims.Key] {
		return catalog.Errorf(catalog.KeyBlocked, "key %s", claims.Key)
	}
	return nil
}

// publish makes both authorities' lists anew.
func (c *company) publish(edits ...func(*x509.RevocationList)) {
	c.Helper()
	for path, by := range map[string]*authority.Authority{rootList: c.root, betweenList: c.between} {
		list, err := by.List(c.now(), edits...)
		c.must(err)
		c.publisher.Put(path, list)
	}
}

func (c *company) client(edits ...authority.Edit) []*x509.Certificate {
	c.Helper()
	issued, err := c.between.Client("wk1.corp.example", edits...)
	c.must(err)
	return issued.Chain()
}

func (c *company) check(chain []*x509.Certificate) error {
	_, err := c.judge.Check(c.Context(), chain)
	return err
}

func TestCertificateProvesItsKey(t *testing.T) {
	c := newCompany(t, "require")
	chain := c.client()
	p, err := c.judge.Check(t.Context(), chain)
	c.must(err)
	key, err := proof.Thumbprint(chain[0].PublicKey)
	c.must(err)
	if p.Method != proof.PKICertificate || p.Key != key || string(p.Certificate) != string(chain[0].Raw) || !p.At.Equal(c.now()) || p.Address != "" {
		t.Errorf("proved %+v", p)
	}
	if s := c.judge.Status(); !s.Uploaded || s.Roots != 1 || s.Intermediates != 1 || s.Policy != "require" || len(s.Sources) != 2 || s.Sources[0].Fetched.IsZero() || s.Err != nil {
		t.Errorf("status %+v", s)
	}
}

func TestCertificatesThatAreNoProof(t *testing.T) {
	c := newCompany(t, "require")
	stranger, err := authority.NewRoot("Company Root", c.now()) // the same name, another key
	c.must(err)
	foreign, err := stranger.Client("wk1.corp.example")
	c.must(err)
	deeper, err := c.between.Intermediate("Company Devices")
	c.must(err)
	below, err := deeper.Client("wk1.corp.example")
	c.must(err)
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	c.must(err)
	odd, err := c.between.ClientFor("wk1.corp.example", edwards)
	c.must(err)
	server, err := c.between.Server([]string{"www.corp.example"})
	c.must(err)
	revoked := c.client()
	c.between.Revoke(revoked[0], c.now().Add(-time.Hour), 1)
	c.publish()
	role := func(kind string) authority.Edit {
		return func(template *x509.Certificate) {
			template.URIs = []*url.URL{token.RoleURI("8ed3174b-e814-41b5-b51c-fb368f0d4003", kind, "c1")}
		}
	}
	long := make([]*x509.Certificate, 11)
	for i := range long {
		long[i] = below.Certificate
	}
	for name, test := range map[string]struct {
		chain []*x509.Certificate
		code  catalog.Code
	}{
		"none":                        {nil, catalog.CertificateUnreadable},
		"an empty one":                {[]*x509.Certificate{nil}, catalog.CertificateUnreadable},
		"another root of that name":   {foreign.Chain(), catalog.CertificateIssuerMissing},
		"intermediate missing":        {below.Chain()[:1], catalog.CertificateIssuerMissing},
		"eleven certificates":         {long, catalog.CertificateUnreadable},
		"for servers":                 {server.Chain(), catalog.CertificateUsage},
		"for any use":                 {c.client(func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), catalog.CertificateUsage},
		"expired":                     {c.client(func(x *x509.Certificate) { x.NotAfter = c.time.Add(-time.Minute) }), catalog.CertificateDate},
		"not yet valid":               {c.client(func(x *x509.Certificate) { x.NotBefore = c.time.Add(time.Minute) }), catalog.CertificateDate},
		"a wildcard":                  {c.client(func(x *x509.Certificate) { x.DNSNames = []string{"*.corp.example"} }), catalog.CertificateName},
		"revoked":                     {revoked, catalog.CertificateRevoked},
		"a key of another kind":       {odd.Chain(), catalog.ClientCertificateNotTrusted},
		"a connector's":               {c.client(role(token.RoleConnector)), catalog.ClientCertificateNotTrusted},
		"a management point's":        {c.client(role(token.RoleManagementPoint)), catalog.ClientCertificateNotTrusted},
		"a role of an unknown future": {c.client(role("console")), catalog.ClientCertificateNotTrusted},
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, c.check(test.chain), test.code) })
	}
	good := c.client()
	c.must(c.check(good))
	c.upload(func(a *token.Authorities) { a.Intermediates = nil })
	c.must(c.check(good))
	wantCode(t, c.check(good[:1]), catalog.CertificateIssuerMissing)
	c.must(c.check(good))
	if err := c.check(below.Chain()); catalog.CodeOf(err) != catalog.RevocationSourceMissing {
		t.Errorf("below an authority without a list: %v", err)
	}
}

func TestNothingUploadedNothingAccepted(t *testing.T) {
	c := newCompany(t, "off")
	chain := c.client()
	c.must(c.check(chain))
	kept := c.authorities()
	for name, uploaded := range map[string]*token.Authorities{"nothing": nil, "no roots": {Intermediates: kept.Intermediates, Revocation: "off"}} {
		t.Run(name, func(t *testing.T) {
			c.mu.Lock()
			c.uploaded = uploaded
			c.mu.Unlock()
			wantCode(t, c.check(chain), catalog.GatewayCertificateRoots)
			if s := c.judge.Status(); s.Uploaded {
				t.Errorf("status %+v", s)
			}
			c.judge.Refresh(t.Context())
		})
	}
	c.mu.Lock()
	c.uploaded = &token.Authorities{Roots: [][]byte{{1, 2, 3}}, Revocation: "off"}
	c.mu.Unlock()
	wantCode(t, c.check(chain), catalog.RevocationConfig)
	c.mu.Lock()
	c.uploaded = kept
	c.mu.Unlock()
	c.must(c.check(chain))
}

// What the lists say, under each policy.
func TestPoliciesAndBadLists(t *testing.T) {
	listOf := func(name string) func(*company, *x509.Certificate) {
		return func(c *company, _ *x509.Certificate) {
			other, err := authority.NewRoot(name, c.now())
			c.must(err)
			list, err := other.List(c.now())
			c.must(err)
			c.publisher.Put(betweenList, list)
		}
	}
	for name, test := range map[string]struct {
		spoil            func(*company, *x509.Certificate)
		require, lenient catalog.Code // prefer; off never asks
	}{
		"good lists": {func(*company, *x509.Certificate) {}, "", ""},
		"expired list": {func(c *company, _ *x509.Certificate) {
			c.publish(func(l *x509.RevocationList) {
				l.ThisUpdate, l.NextUpdate = c.time.Add(-48*time.Hour), c.time.Add(-24*time.Hour)
			})
		}, catalog.RevocationListDate, ""},
		"list of another issuer":       {listOf("Somebody Else"), catalog.RevocationSourceMissing, ""},
		"list of an issuer's namesake": {listOf("Company Issuing"), catalog.RevocationListForeign, ""},
		"source down":                  {func(c *company, _ *x509.Certificate) { c.publisher.Switch(authority.Down) }, catalog.RevocationUnreachable, ""},
		"a sign-in page":               {func(c *company, _ *x509.Certificate) { c.publisher.Switch(authority.Garbage) }, catalog.RevocationListMalformed, ""},
		"no source":                    {func(c *company, _ *x509.Certificate) { c.upload(func(a *token.Authorities) { a.Sources = nil }) }, catalog.RevocationSourceMissing, ""},
		"on the list": {func(c *company, leaf *x509.Certificate) {
			c.between.Revoke(leaf, c.now().Add(-time.Minute), 0)
			c.publish()
		}, catalog.CertificateRevoked, catalog.CertificateRevoked},
	} {
		for policy, want := range map[string]catalog.Code{"require": test.require, "prefer": test.lenient, "off": ""} {
			t.Run(name+" "+policy, func(t *testing.T) {
				c := newCompany(t, policy)
				chain := c.client()
				test.spoil(c, chain[0])
				wantCode(t, c.check(chain), want)
			})
		}
	}
}

// A connection that stays open shows the same certificate at every request.
func TestRevokedWhileTheConnectionIsOpen(t *testing.T) {
	c := newCompany(t, "require")
	chain := c.client()
	c.must(c.check(chain))
	asked, _ := c.publisher.Requests(betweenList)
	for range 100 {
		c.must(c.check(chain))
	}
	if again, _ := c.publisher.Requests(betweenList); again != asked {
		t.Errorf("the list was asked for %d times in one burst", again-asked)
	}
	c.between.Revoke(chain[0], c.now(), 1)
	c.advance(25 * time.Hour)
	c.publish()
	c.judge.Refresh(t.Context())
	wantCode(t, c.check(chain), catalog.CertificateRevoked)
}

// What was found good ends at once when a list says something new, however fresh it is.
func TestANewListEndsWhatWasFoundGood(t *testing.T) {
	c := newCompany(t, "require")
	first, second := c.client(), c.client()
	c.judge.Refresh(t.Context())
	c.advance(25 * time.Hour) // the lists are due
	c.between.Revoke(first[0], c.now(), 1)
	c.publish()
	c.publisher.Switch(authority.Failing)
	c.must(c.check(first)) // by the list at hand
	c.must(c.check(second))
	c.publisher.Switch(authority.Healthy)
	c.advance(61 * time.Second) // the source has rested
	c.judge.Refresh(t.Context())
	wantCode(t, c.check(first), catalog.CertificateRevoked)
	c.must(c.check(second))
}

func TestBlockedKeyIsRefusedAtOnce(t *testing.T) {
	c := newCompany(t, "require")
	chain := c.client()
	p, err := c.judge.Check(t.Context(), chain)
	c.must(err)
	c.mu.Lock()
	c.blocked[p.Key] = true
	c.mu.Unlock()
	wantCode(t, c.check(chain), catalog.KeyBlocked)
	c.mu.Lock()
	delete(c.blocked, p.Key)
	c.mu.Unlock()
	c.must(c.check(chain))
}

func TestOtherAuthoritiesAreInForceAtOnce(t *testing.T) {
	c := newCompany(t, "require")
	chain := c.client()
	c.must(c.check(chain))
	before := c.judge.current             // nobody else uses it now
	c.upload(func(*token.Authorities) {}) // the same, as each new state brings it
	c.must(c.check(chain))
	if c.judge.current != before {
		t.Error("the same authorities in another state are judged anew")
	}
	next, err := authority.NewRoot("Company Root 2", c.now())
	c.must(err)
	c.upload(func(a *token.Authorities) { a.Roots = [][]byte{next.Certificate.Raw} })
	wantCode(t, c.check(chain), catalog.CertificateIssuerMissing)
	c.upload(func(a *token.Authorities) { a.Roots = append(a.Roots, c.root.Certificate.Raw) })
	c.must(c.check(chain))
	c.publisher.Switch(authority.Down)
	c.upload(func(a *token.Authorities) { a.Revocation = "off" })
	c.must(c.check(chain))
}

// A check that runs while its authority is withdrawn ends with a refusal.
func TestWithdrawnWhileItIsJudged(t *testing.T) {
	c := newCompany(t, "prefer")
	chain := c.client()
	c.publisher.Switch(authority.Slow)
	done := make(chan error, 1)
	go func() { done <- c.check(chain) }()
	for asked := 0; asked == 0; time.Sleep(time.Millisecond) {
		asked, _ = c.publisher.Requests(betweenList)
	}
	c.upload(func(a *token.Authorities) { *a = token.Authorities{} })
	c.publisher.Switch(authority.Healthy)
	wantCode(t, <-done, catalog.GatewayCertificateRoots)
}

func TestManyChecksAndManyChanges(t *testing.T) {
	c := newCompany(t, "require")
	chain := c.client()
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for range 50 {
				if err := c.check(chain); err != nil && catalog.CodeOf(err) != catalog.RevocationConfig {
					t.Error(err)
				}
			}
		})
	}
	work.Go(func() {
		for i := range 10 {
			c.upload(func(a *token.Authorities) { a.Revocation = []string{"require", "off"}[i%2] })
			c.judge.Refresh(t.Context())
		}
	})
	work.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.judge.Run(ctx); err != nil {
		t.Error(err)
	}
	c.judge.Close()
	wantCode(t, c.check(chain), catalog.GatewayCertificateRoots)
	c.judge.Close()
}

// OpenSSL's responder answers for what its index says.
func TestOpenSSLResponder(t *testing.T) {
	c := newCompany(t, "require")
	good, bad := c.client(), c.client()
	program, err := authority.NewOpenSSL(t.TempDir(), c.between, authority.Issued{Certificate: good[0]},
		authority.Issued{Certificate: bad[0], RevokedAt: time.Now().Add(-time.Hour), Reason: "keyCompromise"})
	if errors.Is(err, authority.ErrNoOpenSSL) {
		t.Fatal(err) // make test installs it
	}
	c.must(err)
	responder, err := program.Respond(nil)
	c.must(err)
	t.Cleanup(responder.Close)
	c.mu.Lock()
	c.time = time.Now().UTC()
	c.mu.Unlock()
	c.publish()
	c.upload(func(a *token.Authorities) { a.Sources = []string{c.publisher.URL(rootList), "ocsp:" + responder.URL} })
	c.must(c.check(good))
	wantCode(t, c.check(bad), catalog.CertificateRevoked)
}

func newDeviceKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := authority.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// A proof that comes without a token, beside a certificate.
func TestPossession(t *testing.T) {
	key, other := newDeviceKey(t), newDeviceKey(t)
	thumbprint, err := proof.Thumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	now := func() time.Time { return at }
	const address = "https://gw.example/CCM_Proxy_MutualAuth/1/SMS_MP/.sms_aut"
	blocked := &company{TB: t, blocked: map[proof.KeyThumbprint]bool{}}
	bearer := NewBearer(BearerConfig{
		Revocation: blocked, Replay: NewMemory(10, now), Now: now,
		URL: func(_ *http.Request, htu *url.URL) error {
			if htu.String() != address {
				return errors.New("another")
			}
			return nil
		},
	})
	sign := func(by crypto.Signer, method, htu, accessToken string, made time.Time) string {
		raw, err := token.SignProof(by, method, htu, accessToken, made, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	good := sign(key, "GET", address, "", at)
	ask := func(proofs ...string) error {
		r := httptest.NewRequest("GET", address, nil)
		r.Header["Dpop"] = proofs
		return bearer.Possession(r, thumbprint)
	}
	for _, test := range []struct {
		name   string
		proofs []string
		code   catalog.Code
	}{
		{"none", nil, catalog.TokenWithoutProof},
		{"two", []string{good, good}, catalog.ProofMalformed},
		{"garbage", []string{"x.y.z"}, catalog.ProofMalformed},
		{"by another key", []string{sign(other, "GET", address, "", at)}, catalog.ProofOtherKey},
		{"for another method", []string{sign(key, "POST", address, "", at)}, catalog.ProofOtherMethod},
		{"for another path", []string{sign(key, "GET", address+"x", "", at)}, catalog.ProofOtherURL},
		{"made for a token", []string{sign(key, "GET", address, "a.b.c", at)}, catalog.ProofOtherToken},
		{"old", []string{sign(key, "GET", address, "", at.Add(-6*time.Minute))}, catalog.ProofStale},
		{"good", []string{good}, ""},
		{"replayed", []string{good}, catalog.ProofReplayed},
	} {
		t.Run(test.name, func(t *testing.T) { wantCode(t, ask(test.proofs...), test.code) })
	}
	blocked.blocked[thumbprint] = true
	wantCode(t, ask(sign(key, "GET", address, "", at)), catalog.KeyBlocked)
}

// A chain that does not hold costs its judgement once, however often it is shown; when
// other authorities are uploaded, under which it may hold, it is judged at once.
func TestAChainThatDoesNotHoldIsJudgedOnce(t *testing.T) {
	c := newCompany(t, "off")
	stranger, err := authority.NewRoot("Other Root", c.now())
	c.must(err)
	issued, err := stranger.Client("wk1.corp.example")
	c.must(err)
	chain := issued.Chain()
	refused := func(when string) (until time.Time) {
		t.Helper()
		if err := c.check(chain); catalog.CodeOf(err) != catalog.CertificateIssuerMissing {
			t.Errorf("%s: got %v", when, err)
		}
		return c.judge.current.bad[sumOf(chain)].until
	}
	first := refused("at first")
	c.advance(refusedFor / 2)
	if again := refused("soon after"); first.IsZero() || !again.Equal(first) {
		t.Error("it was judged again")
	}
	c.advance(refusedFor)
	if again := refused("later"); again.Equal(first) {
		t.Error("it is refused for ever without a judgement")
	}
	c.upload(func(a *token.Authorities) { a.Roots = append(slices.Clone(a.Roots), stranger.Certificate.Raw) })
	c.must(c.check(chain))

	for i := range maxRefused + 2 {
		c.check([]*x509.Certificate{{Raw: []byte{byte(i), byte(i >> 8)}}})
	}
	if got := len(c.judge.current.bad); got > maxRefused {
		t.Errorf("%d chains are remembered, the limit is %d", got, maxRefused)
	}
}

// TestStrangersGetNoLongExplanations: whoever shows another chain that nobody vouches for each time learns a few times what is wrong with it. Devices
// of the company notice nothing of that, whatever shape their chain has.
func TestStrangersGetNoLongExplanations(t *testing.T) {
	c := newCompany(t, "off")
	stranger, err := authority.NewRoot("Company Root", c.time)
	c.must(err)
	between, err := stranger.Intermediate("Company Issuing")
	c.must(err)
	refused := func() catalog.Code {
		issued, err := between.Client("wk1.corp.example")
		c.must(err)
		_, err = c.judge.Check(t.Context(), append(issued.Chain(), c.between.Certificate, stranger.Certificate))
		return catalog.CodeOf(err)
	}
	for n := range explainedBurst {
		if got := refused(); got == "" || got == catalog.ClientCertificateNotTrusted {
			t.Fatalf("chain %d: %q, want what is wrong with it", n, got)
		}
	}
	if got := refused(); got != catalog.ClientCertificateNotTrusted {
		t.Errorf("one more: %s, want %s", got, catalog.ClientCertificateNotTrusted)
	}
	deeper, err := c.between.Intermediate("Company Branch")
	c.must(err)
	branch, err := deeper.Client("wk2.corp.example")
	c.must(err)
	leaf := c.client()
	for name, chain := range map[string][]*x509.Certificate{
		"leaf alone, the rest is uploaded":   leaf[:1],
		"with its authority":                 leaf,
		"with the root":                      {leaf[0], c.between.Certificate, c.root.Certificate},
		"over an authority not uploaded":     {branch.Chain()[0], deeper.Certificate},
		"upside down, with strangers within": {branch.Chain()[0], stranger.Certificate, c.root.Certificate, between.Certificate, c.between.Certificate, deeper.Certificate},
	} {
		if _, err := c.judge.Check(t.Context(), chain); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.upload(func(a *token.Authorities) { a.Intermediates = nil })
	if _, err := c.judge.Check(t.Context(), []*x509.Certificate{leaf[0], c.between.Certificate}); err != nil {
		t.Errorf("the root alone is uploaded: %v", err)
	}
	if got := refused(); got != catalog.ClientCertificateNotTrusted {
		t.Errorf("one more after other authorities: %s, want %s", got, catalog.ClientCertificateNotTrusted)
	}
	c.advance(2 * time.Second)
	if got := refused(); got == catalog.ClientCertificateNotTrusted {
		t.Errorf("later: %s, want what is wrong with it", got)
	}
}
