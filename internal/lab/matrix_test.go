package lab_test

import (
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/gateway"
	"postern/internal/issuer"
	"postern/mp"
	"postern/proof"
	"postern/token"
)

// shown is a token that a caller comes with, or none.
type shown struct {
	name   string
	raw    string          // "" for none
	kind   token.Kind      // auth.KindEntra for a tenant's
	scope  string          // of a CCM token
	method proof.Method    // what it proves
	key    *rsa.PrivateKey // that it is bound to, or that its holder has

	fault   catalog.Code // of the token itself: ended, of a stranger
	blocked catalog.Code // by the site
}

// bound reports whether no other key than its own may use the token.
func (s shown) bound() bool { return s.kind == token.KindCCM || s.kind == token.KindSelfProve }

// byKey reports whether it is the key that the site has blocked, and not the token.
func (s shown) byKey() bool { return s.blocked == catalog.KeyBlocked }

// possession is how the caller proves that he holds the key.
type possession string

const (
	noProof     possession = "without proof"
	ownKey      possession = "proof by its own key"
	otherKey    possession = "proof by another key"
	otherURL    possession = "proof for another URL"
	otherMethod possession = "proof for another method"
	otherToken  possession = "proof with the hash of another token"
	usedProof   possession = "proof that was used before"
	oldProof    possession = "proof of 400 days ago"
	oldNonced   possession = "proof of 400 days ago with a nonce"
	madeUpNonce possession = "proof with a nonce that is made up"
)

func possessions() []possession {
	return []possession{noProof, ownKey, otherKey, otherURL, otherMethod, otherToken, usedProof, oldProof, oldNonced, madeUpNonce}
}

// demand is what a row of a route table asks for.
type demand struct {
	anyone   bool // nothing; at a gateway what is shown all the same must be good
	tokens   []token.Kind
	scopes   []string     // of a CCM token; nil for any
	keyAlone bool         // a proof of a key without a token will do
	nothing  proof.Method // what a caller proves who shows nothing at all; "" when that is refused
	refused  catalog.Code // to whom shows anything, on a row that takes no token; "" elsewhere
}

// judge is the rule of all rows: what is proved, or the code of the refusal. The token is judged first, then the proof, then the site's blocks, then where the
// proof is for and whether it is new, and at last what the token may do.
func judge(q demand, s shown, p possession) (proof.Method, catalog.Code) {
	bare, takes := s.raw == "", slices.Contains(q.tokens, s.kind)
	proofFaults := map[possession]catalog.Code{
		otherMethod: catalog.ProofOtherMethod, otherToken: catalog.ProofOtherToken, oldProof: catalog.ProofNonceNeeded, madeUpNonce: catalog.ProofNonceUnknown,
	}
	useFaults := map[possession]catalog.Code{otherURL: catalog.ProofOtherURL, usedProof: catalog.ProofReplayed}
	switch {
	case bare && p == noProof && q.nothing != "":
		return q.nothing, ""
	case bare && p == noProof:
		return "", catalog.TokenMissing
	case q.refused != "":
		return "", q.refused
	case bare && !q.keyAlone:
		return "", catalog.TokenMissing
	case s.kind == auth.KindEntra && (!takes || p == noProof):
		return "", catalog.TokenScheme
	case !bare && p == noProof:
		return "", catalog.TokenWithoutProof
	case s.fault != "":
		return "", s.fault
	case !bare && !takes:
		return "", catalog.TokenWrongKind
	case proofFaults[p] != "":
		return "", proofFaults[p]
	case p == otherKey && s.bound():
		return "", catalog.ProofOtherKey
	case s.blocked != "" && (p != otherKey || !s.byKey()):
		return "", s.blocked
	case useFaults[p] != "":
		return "", useFaults[p]
	case s.scope != "" && q.scopes != nil && !slices.Contains(q.scopes, s.scope):
		return "", catalog.TokenScope
	}
	return s.method, ""
}

// askedByGateway reads a row of the gateway's table.
func askedByGateway(q gateway.Requirement) demand {
	d := demand{anyone: q.Anyone, tokens: q.Tokens, scopes: q.Scopes, keyAlone: q.Return}
	if q.Anyone {
		d.nothing, d.tokens = proof.Anonymous, append(token.Kinds(), auth.KindEntra)
	}
	return d
}

// askedByPoint reads a row of the management point's table.
func askedByPoint(row mp.Route) demand {
	d := demand{keyAlone: row.Accepts(proof.Assertion)}
	for method, kind := range map[proof.Method]token.Kind{
		proof.BulkToken: token.KindBulk, proof.CCMToken: token.KindCCM, proof.SelfProveToken: token.KindSelfProve, proof.Entra: auth.KindEntra,
	} {
		if row.Accepts(method) {
			d.tokens = append(d.tokens, kind)
		}
	}
	if row.Accepts(proof.Anonymous) || row.Accepts(proof.Assertion) {
		d.nothing = proof.Anonymous
	}
	if len(d.tokens) == 0 {
		d.refused = catalog.ProofNotAccepted
	}
	if !row.Register {
		d.scopes = []string{token.ScopeClient}
	}
	return d
}

// matrix is everything that a caller may come with.
type matrix struct {
	*cloud
	shown []shown
	other *rsa.PrivateKey
	nonce string
	from  *atomic.Int64 // addresses that were used up
}

func newMatrix(t testing.TB) *matrix {
	t.Helper()
	c := newCloud(t)
	m := &matrix{cloud: c, other: newDeviceKey(t), from: new(atomic.Int64)}
	ring, err := strangersRing(c)
	c.must(err)
	f := forger{c, c.signingKeys(), c.Site().Hierarchy()}
	bulk, _ := c.bulk(0)
	blockedBulk, kept := c.bulk(0)
	good, blocked := c.enrolled("matrix"), c.enrolled("blocked")
	entra := map[string]func(from *issuer.Issuer) map[string]any{
		"Entra device": func(from *issuer.Issuer) map[string]any {
			return from.DeviceClaims(from.AddDevice(issuer.Device{}), issuer.V1)
		},
		"Entra user": func(from *issuer.Issuer) map[string]any {
			return from.UserClaims(from.AddUser(issuer.User{Name: "meg@contoso.com"}), issuer.V1)
		},
	}
	add := func(s shown) { m.shown = append(m.shown, s) }
	add(shown{name: "no token", method: proof.Assertion, key: good.key})
	add(shown{name: "no token, of a blocked device", method: proof.Assertion, key: blocked.key, blocked: catalog.KeyBlocked})
	for _, one := range []struct {
		name, scope    string
		kind           token.Kind
		method         proof.Method
		raw, ofBlocked string
		blocked        catalog.Code
	}{
		{"bulk registration token", "", token.KindBulk, proof.BulkToken, bulk, blockedBulk, catalog.TokenBlocked},
		{"CCM token of scope register", token.ScopeRegister, token.KindCCM, proof.CCMToken, good.register, blocked.register, catalog.KeyBlocked},
		{"CCM token of scope client", token.ScopeClient, token.KindCCM, proof.CCMToken, good.ccm, blocked.ccm, catalog.KeyBlocked},
		{"self-prove token", "", token.KindSelfProve, proof.SelfProveToken, good.selfProve, blocked.selfProve, catalog.KeyBlocked},
	} {
		s := shown{name: one.name, raw: one.raw, kind: one.kind, scope: one.scope, method: one.method, key: good.key}
		add(s)
		ended, revoked, foreign := s, s, s
		ended.name, ended.fault = "ended "+s.name, catalog.TokenExpired
		now := time.Now().Unix()
		ended.raw = f.changed(one.kind, one.raw, both(set("claims", "exp", now-3600), set("claims", "nbf", now-7200)))
		add(ended)
		revoked.name, revoked.raw, revoked.key, revoked.blocked = "blocked "+s.name, one.ofBlocked, blocked.key, one.blocked
		add(revoked)
		claims := token.Claims{ID: "ea2fc510-a3be-4cef-90b0-2a0515c4e40c"}
		if one.kind != token.KindBulk {
			claims.Client, claims.Key, claims.Scope, claims.TokenType = good.id, good.thumbprint(t), one.scope, token.TypeDevice
		}
		foreign.name, foreign.fault = s.name+" of another site", catalog.TokenUnknownKey
		foreign.raw, err = ring.Sign(one.kind, claims, time.Now())
		c.must(err)
		add(foreign)
	}
	for name, claims := range entra {
		mint := func(from *issuer.Issuer, edit func(map[string]any)) string {
			all := claims(from)
			edit(all)
			raw, err := from.Mint(all, issuer.Header{})
			c.must(err)
			return raw
		}
		as := func(map[string]any) {}
		s := shown{name: name + " token", raw: mint(c.provider, as), kind: auth.KindEntra, method: proof.Entra, key: good.key}
		add(s)
		ended, revoked, foreign, disabled := s, s, s, s
		ended.name, ended.fault = "ended "+s.name, catalog.EntraExpired
		ended.raw = mint(c.provider, func(all map[string]any) {
			all["iat"], all["nbf"], all["exp"] = time.Now().Add(-3*time.Hour).Unix(), time.Now().Add(-3*time.Hour).Unix(), time.Now().Add(-2*time.Hour).Unix()
		})
		add(ended)
		revoked.name, revoked.key, revoked.blocked = s.name+" in the hands of a blocked device", blocked.key, catalog.KeyBlocked
		add(revoked)
		foreign.name, foreign.raw, foreign.fault = s.name+" of a tenant that nobody onboarded", mint(c.foreign, as), catalog.EntraTenantUnknown
		add(foreign)
		disabled.name, disabled.raw, disabled.fault = s.name+" of a tenant that is switched off", mint(c.disabled, as), catalog.EntraTenantDisabled
		add(disabled)
	}
	_, err = c.Site().BlockBulkToken(t.Context(), kept.ID, true, "test", "try it")
	c.must(err)
	_, err = c.Site().Block(t.Context(), blocked.id, "test", "lost")
	c.must(err)
	epoch := c.Site().Epoch()
	eventually(t, "the gateway knows what is blocked", func() bool { return c.Gateway.Gateway.Status().Epoch >= epoch })
	address := c.outside(ccm.DoorServerAuth, "/SMS_MP_TokenAuth/.sms_aut")
	m.nonce = c.send(c.http1(), http.MethodGet, address, "", nil, noncedAt(t, good, -time.Hour, "", http.MethodGet, address, good.ccm)).header.Get("DPoP-Nonce")
	if m.nonce == "" {
		t.Fatal("the gateway gives no nonce")
	}
	return m
}

// strangersRing is of another site that gives itself out for this one.
func strangersRing(c *cloud) (*token.Ring, error) {
	var keys []token.Key
	for _, kind := range token.Kinds() {
		key, err := token.NewKey(kind, time.Now().Add(-time.Hour), rand.Reader)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return token.NewRing(c.Site().Hierarchy(), keys), nil
}

// header is what is sent to an address.
func (m *matrix) header(t testing.TB, s shown, p possession, method, address string) http.Header {
	t.Helper()
	header := http.Header{}
	if s.raw != "" {
		header.Set("Authorization", map[bool]string{true: "Bearer ", false: "DPoP "}[s.kind == auth.KindEntra]+s.raw)
	}
	if p == noProof {
		return header
	}
	key, of, nonce, made := s.key, s.raw, "", time.Now()
	switch p {
	case otherKey:
		key = m.other
	case otherURL:
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		u.Host = "elsewhere.example"
		address = u.String()
	case otherMethod:
		method = "PATCH"
	case otherToken:
		of += "x"
	case oldProof:
		made = made.AddDate(0, 0, -400)
	case oldNonced:
		made, nonce = made.AddDate(0, 0, -400), m.nonce
	case madeUpNonce:
		nonce = "AAAAAAAAAAAAAAAAAAAAAA"
	}
	raw, err := token.SignProofNonce(key, method, address, of, nonce, made, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	header["Dpop"] = []string{raw}
	return header
}

// TestEveryTokenEveryRouteEveryProof: every kind of token in every state, on every row of both route tables, with every proof. What must come of it says
// [judge], from the row alone; a refusal has the right code, reaches nobody behind, and changes nothing at the site.
func TestEveryTokenEveryRouteEveryProof(t *testing.T) {
	t.Parallel()
	m := newMatrix(t)
	var count atomic.Int64
	m.unchanged(func() {
		t.Run("rows", func(t *testing.T) {
			for _, row := range gateway.Routes() {
				for _, path := range row.Paths() {
					path = strings.NewReplacer("<id>", fmt.Sprint(m.role), "<file>", "file.txt").Replace(path)
					t.Run("gateway "+row.Methods[0]+" "+path, func(t *testing.T) {
						t.Parallel()
						m.each(t, &count, func(w *world, s shown, p possession) {
							m.atGateway(w, row, path, s, p)
						})
					})
				}
			}
			for _, row := range mp.Routes() {
				if !slices.Contains(row.Listeners, mp.EnhancedHTTP) || row.Path == "/postern/join" {
					continue
				}
				t.Run("management point "+row.Methods[0]+" "+row.Path, func(t *testing.T) {
					t.Parallel()
					m.each(t, &count, func(w *world, s shown, p possession) { m.atPoint(w, row, s, p) })
				})
			}
		})
	})
	if n := count.Load(); n < 5000 {
		t.Errorf("only %d combinations", n)
	} else {
		t.Logf("%d combinations", n)
	}
}

func (m *matrix) each(t *testing.T, count *atomic.Int64, try func(*world, shown, possession)) {
	w := m.world.on(t)
	for _, s := range m.shown {
		for _, p := range possessions() {
			try(w, s, p)
			count.Add(1)
		}
	}
}

// twice sends a request, and a second time when its proof is to have been used.
func (m *matrix) twice(w *world, client *http.Client, s shown, p possession, method, address string) answer {
	w.Helper()
	header := m.header(w, s, p, method, address)
	if p == usedProof {
		w.send(client, method, address, "", nil, header.Clone())
	}
	return w.send(client, method, address, "", nil, header)
}

func (m *matrix) atGateway(w *world, row gateway.Route, path string, s shown, p possession) {
	w.Helper()
	client := w.http2(1)
	if row.Proof.Anyone || row.Proof.Return && s.raw == "" { // limited by address
		client = w.http2(int(2 + m.from.Add(1)/8))
	}
	method, address := row.Methods[0], "https://"+w.GatewayHost+path
	a := m.twice(w, client, s, p, method, address)
	e := w.gateway.of(w, a.id())
	admitted, code := judge(askedByGateway(row.Proof), s, p)
	reason, status := "CMGService_Invalid_Token", 401
	switch {
	case row.Proof.Certificate:
		admitted, code, reason, status = "", catalog.GatewayClientCertificate, "Client certificate required", 403
	case code == catalog.TokenScope:
		reason, status = "Forbidden", 403
	}
	if admitted != "" {
		if e.Proof.Method != admitted || a.status == 401 && a.reason == reason || a.status == 429 {
			w.Errorf("%s, %s: proved %q and answered %s, want it let in as %s", s.name, p, e.Proof.Method, a, admitted)
		}
		return
	}
	if e.Code() != code || a.status != status || a.reason != reason || method != http.MethodHead && a.problem() != code {
		w.Errorf("%s, %s: refused with %s and %s, want %d %s with %s", s.name, p, e.Code(), a, status, reason, code)
	}
	if _, ok := w.point.get(a.id()); ok {
		w.Errorf("%s, %s: the refused request reached the management point", s.name, p)
	}
}

func (m *matrix) atPoint(w *world, row mp.Route, s shown, p possession) {
	w.Helper()
	a := m.twice(w, w.http2(1), s, p, row.Methods[0], w.inside(row.Path))
	e := w.point.of(w, a.id())
	got := catalog.CodeOf(e.Err)
	admitted, code := judge(askedByPoint(row), s, p)
	codes, status := []catalog.Code{code}, 401
	switch {
	case row.Accepts(proof.Kerberos):
		admitted, codes = "", []catalog.Code{catalog.NegotiateRequired, catalog.ProofNotAccepted}
	case row.Accepts(proof.ConnectorCertificate) && code == catalog.TokenMissing:
		codes, status = []catalog.Code{catalog.ConnectorOnly}, 403
	case code == catalog.TokenScope:
		status = 403
	}
	if admitted != "" {
		if a.status == 401 || s.raw != "" && e.Proof.Method != admitted {
			w.Errorf("%s, %s: proved %q and answered %s, want it let in as %s", s.name, p, e.Proof.Method, a, admitted)
		}
		return
	}
	if !slices.Contains(codes, got) || a.status != status || a.problem() != got {
		w.Errorf("%s, %s: refused with %s and %s, want %d with one of %v", s.name, p, got, a, status, codes)
	}
}
