package lab_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/gateway"
	"postern/mp"
	"postern/proof"
	"postern/token"
)

// credential is one way to come to an address: with nothing, with a good token, or with something that is wrong in one way only (C44-C52).
type credential struct {
	name   string
	kind   token.Kind   // of the token, "" for none
	scope  string       // of a good CCM token
	method proof.Method // what a good one proves; "" for a bad one
	code   catalog.Code // of a bad one
	// header makes what is sent with a request to that address.
	header func(t testing.TB, method, htu string) http.Header
}

func (c credential) good() bool { return c.method != "" }

// forger makes tokens with the site's own keys.
type forger struct {
	t         testing.TB
	keys      map[string]crypto.Signer
	hierarchy string
}

// parts of a JWT.
type parts struct{ header, claims map[string]any }

func (f forger) read(raw string) parts {
	f.t.Helper()
	var p parts
	pieces := strings.Split(raw, ".")
	for i, into := range []*map[string]any{&p.header, &p.claims} {
		data, err := base64.RawURLEncoding.DecodeString(pieces[i])
		if err == nil {
			err = json.Unmarshal(data, into)
		}
		if err != nil {
			f.t.Fatal(err)
		}
	}
	return p
}

// changed signs a token again, with the key of its kind, after an edit.
func (f forger) changed(kind token.Kind, raw string, edit func(parts)) string {
	f.t.Helper()
	p := f.read(raw)
	edit(p)
	input := segment(f.t, p.header) + "." + segment(f.t, p.claims)
	return input + "." + base64.RawURLEncoding.EncodeToString(f.sign(kind, p.header["alg"], input))
}

func segment(t testing.TB, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(data)
}

func (f forger) sign(kind token.Kind, alg any, input string) []byte {
	f.t.Helper()
	key := f.keys["token:"+string(kind)]
	sum := sha256.Sum256([]byte(input))
	var signature []byte
	var err error
	switch alg {
	case "none":
		return []byte("none")
	case "HS256": // with the public key as the secret, as the classic attack has it
		public, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			f.t.Fatal(err)
		}
		mac := hmac.New(sha256.New, public)
		mac.Write([]byte(input))
		return mac.Sum(nil)
	case "PS256":
		if rsaKey, ok := key.(*rsa.PrivateKey); ok {
			signature, err = rsa.SignPSS(rand.Reader, rsaKey, crypto.SHA256, sum[:], nil)
			break
		}
		return []byte("no RSA key")
	default:
		switch key := key.(type) {
		case *rsa.PrivateKey:
			signature, err = rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
		case *ecdsa.PrivateKey:
			r, s, failed := ecdsa.Sign(rand.Reader, key, sum[:])
			err, signature = failed, append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		}
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return signature
}

// set is an edit of claims and header.
func set(where, name string, value any) func(parts) {
	return func(p parts) {
		into := p.claims
		if where == "header" {
			into = p.header
		}
		if value == nil {
			delete(into, name)
			return
		}
		into[name] = value
	}
}

func both(edits ...func(parts)) func(parts) {
	return func(p parts) {
		for _, e := range edits {
			e(p)
		}
	}
}

// credentials returns everything that a caller may come with.
func (w *world) credentials() []credential {
	w.Helper()
	raw, _ := w.bulk(0)
	d, stranger := w.enrolled("matrix"), newDevice(w, "stranger")
	f := forger{w, w.signingKeys(), w.Site().Hierarchy()}
	with := func(key crypto.Signer, raw string) func(testing.TB, string, string) http.Header {
		return func(t testing.TB, method, htu string) http.Header { return proofOf(t, key, method, htu, raw) }
	}
	tokens := map[token.Kind]string{token.KindBulk: raw, token.KindCCM: d.ccm, token.KindSelfProve: d.selfProve}
	methods := map[token.Kind]proof.Method{token.KindBulk: proof.BulkToken, token.KindCCM: proof.CCMToken, token.KindSelfProve: proof.SelfProveToken}
	list := []credential{
		{name: "nothing", header: func(testing.TB, string, string) http.Header { return http.Header{} }},
		{name: "good ccm token of scope register", kind: token.KindCCM, scope: token.ScopeRegister, method: proof.CCMToken, header: with(d.key, d.register)},
		{name: "basic password", code: catalog.TokenScheme, header: func(testing.TB, string, string) http.Header {
			return http.Header{"Authorization": {"Basic dXNlcjpwYXNz"}}
		}},
		{name: "negotiate", code: catalog.TokenScheme, header: func(testing.TB, string, string) http.Header {
			return http.Header{"Authorization": {"Negotiate TlRMTVNTUAABAAAA"}}
		}},
	}
	const hour = 3600
	now := time.Now().Unix()
	for _, kind := range token.Kinds() {
		good := tokens[kind]
		ok := credential{name: fmt.Sprintf("good %s token", kind), kind: kind, method: methods[kind], header: with(d.key, good)}
		if kind == token.KindCCM {
			ok.scope = token.ScopeClient
		}
		list = append(list, ok)
		bad := func(name string, code catalog.Code, header func(testing.TB, string, string) http.Header) {
			list = append(list, credential{name: fmt.Sprintf("%s token, %s", kind, name), kind: kind, code: code, header: header})
		}
		forged := func(name string, code catalog.Code, edit func(parts)) {
			bad(name, code, with(d.key, f.changed(kind, good, edit)))
		}
		forged("expired", catalog.TokenExpired, both(set("claims", "exp", now-hour), set("claims", "nbf", now-2*hour)))
		forged("not yet valid", catalog.TokenNotYetValid, both(set("claims", "nbf", now+hour), set("claims", "exp", now+2*hour)))
		forged("without an end", catalog.TokenNoExpiry, set("claims", "exp", nil))
		forged("wrong audience", catalog.TokenAudience, set("claims", "aud", "urn:other:service"))
		forged("another hierarchy", catalog.TokenIssuer, set("claims", "iss", "urn:sccm:oauth2:00000000-0000-4000-8000-000000000000"))
		forged("alg none", catalog.TokenAlgorithm, set("header", "alg", "none"))
		forged("alg HS256 over the public key", catalog.TokenAlgorithm, set("header", "alg", "HS256"))
		forged("alg PS256", catalog.TokenAlgorithm, set("header", "alg", "PS256"))
		forged("jku to a listener", catalog.TokenHeader, set("header", "jku", "https://127.0.0.1/keys"))
		unknown := "kid"
		if kind == token.KindBulk {
			unknown = "x5t"
		}
		forged("unknown "+unknown, catalog.TokenUnknownKey, set("header", unknown, "AAAAAAAAAAAAAAAAAAAAAAAAAAA"))
		forged("a path as "+unknown, catalog.TokenUnknownKey, set("header", unknown, "../../etc/passwd"))
		bad("alg none without a signature", catalog.TokenMalformed, with(d.key, func() string {
			p := f.read(good)
			p.header["alg"] = "none"
			return segment(w, p.header) + "." + segment(w, p.claims) + "."
		}()))
		bad("signature of other claims", catalog.TokenSignature, with(d.key, func() string {
			p := f.read(good)
			p.claims["nbf"] = now - hour
			pieces := strings.Split(good, ".")
			return pieces[0] + "." + segment(w, p.claims) + "." + pieces[2]
		}()))
		bad("too large", catalog.TokenTooLarge, with(d.key, good+strings.Repeat("A", token.MaxToken)))
		bad("without proof", catalog.TokenWithoutProof, func(testing.TB, string, string) http.Header {
			return http.Header{"Authorization": {"DPoP " + good}}
		})
		bad("as a bearer token", catalog.TokenWithoutProof, func(testing.TB, string, string) http.Header {
			return http.Header{"Authorization": {"Bearer " + good}}
		})
		if kind != token.KindBulk { // any new key may use a bulk token: that is what it is for
			bad("another key's proof", catalog.ProofOtherKey, with(stranger.key, good))
		}
		bad("a proof for another URL", catalog.ProofOtherURL, func(t testing.TB, method, htu string) http.Header {
			return proofOf(t, d.key, method, htu+"/other", good)
		})
		bad("a proof for another host", catalog.ProofOtherURL, func(t testing.TB, method, htu string) http.Header {
			u, _ := url.Parse(htu)
			u.Host = "elsewhere.example"
			return proofOf(t, d.key, method, u.String(), good)
		})
		bad("a proof for another method", catalog.ProofOtherMethod, func(t testing.TB, method, htu string) http.Header {
			return proofOf(t, d.key, "PATCH", htu, good)
		})
		bad("a proof with another token", catalog.ProofOtherToken, func(t testing.TB, method, htu string) http.Header {
			h := proofOf(t, d.key, method, htu, good+"x")
			h.Set("Authorization", "DPoP "+good)
			return h
		})
		bad("an old proof", catalog.ProofNonceNeeded, func(t testing.TB, method, htu string) http.Header {
			p, err := token.SignProof(d.key, method, htu, good, time.Now().Add(-time.Hour), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			return http.Header{"Authorization": {"DPoP " + good}, "Dpop": {p}}
		})
		bad("two tokens", catalog.TokenScheme, func(t testing.TB, method, htu string) http.Header {
			h := proofOf(t, d.key, method, htu, good)
			h.Add("Authorization", "DPoP "+d.ccm)
			return h
		})
	}
	return list
}

// atGateway says how the gateway must judge a credential, from what the table says and nothing else.
func atGateway(q gateway.Requirement, c credential) (admitted proof.Method, want refusal, others []catalog.Code) {
	invalid := func(code catalog.Code) refusal {
		return refusal{status: 401, reason: "CMGService_Invalid_Token", code: code}
	}
	takes := q.Anyone || slices.Contains(q.Tokens, c.kind)
	switch {
	case q.Certificate:
		return "", refusal{status: 403, reason: "Client certificate required", code: catalog.GatewayClientCertificate}, nil
	case c.name == "nothing" && q.Anyone:
		return proof.Anonymous, refusal{}, nil
	case c.name == "nothing":
		return "", invalid(catalog.TokenMissing), nil
	case c.good() && !takes:
		return "", invalid(catalog.TokenWrongKind), nil
	case c.good() && c.scope != "" && q.Scopes != nil && !slices.Contains(q.Scopes, c.scope):
		return "", refusal{status: 403, code: catalog.TokenScope}, nil
	case c.good():
		return c.method, refusal{}, nil
	case takes:
		return "", invalid(c.code), nil
	}
	return "", invalid(c.code), []catalog.Code{catalog.TokenWrongKind} // wrong in two ways: either is said
}

// TestEveryCredentialOnEveryRouteOfTheGateway (C47, C48): every row of the gateway's table, by each of its doors and paths, with everything
// that a caller may come with. Only what the row names is let in; nothing falls through to a weaker proof or to none.
func TestEveryCredentialOnEveryRouteOfTheGateway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	credentials := w.credentials()
	requests, unproved := 0, 0
	for _, row := range gateway.Routes() {
		for _, path := range row.Paths() {
			path = strings.NewReplacer("<id>", fmt.Sprint(w.role), "<file>", "file.txt").Replace(path)
			method := row.Methods[0]
			t.Run(method+" "+path, func(t *testing.T) {
				w := w.on(t)
				w.unchanged(func() {
					for _, c := range credentials {
						if row.Proof.Anyone {
							unproved++
						}
						w.tryAtGateway(row.Proof, method, path, c, unproved/15) // an address may ask 20 times without proof at once
						requests++
					}
				})
			})
		}
	}
	if requests < 1000 {
		t.Errorf("only %d combinations", requests)
	}
}

func (w *world) tryAtGateway(q gateway.Requirement, method, path string, c credential, from int) {
	w.Helper()
	address := "https://" + w.GatewayHost + path
	a := w.send(w.http2(1+from), method, address, "", nil, c.header(w, method, address))
	admitted, want, others := atGateway(q, c)
	e := w.gateway.of(w, a.id())
	if admitted != "" {
		if e.Proof.Method != admitted || a.status == 401 || a.status == 429 {
			w.Errorf("%s: proved %q and answered %s, want it let in as %s", c.name, e.Proof.Method, a, admitted)
		}
		return
	}
	if e.Proof.Method != "" && want.code != catalog.TokenScope && e.Proof.Method != proof.Anonymous {
		w.Errorf("%s: counted as %s", c.name, e.Proof.Method)
	}
	if got := e.Code(); got != want.code && !slices.Contains(others, got) {
		w.Errorf("%s: refused with %s, want %s", c.name, got, want.code)
	} else {
		want.code = got
	}
	if reason := a.reason; a.status != want.status || want.reason != "" && reason != want.reason {
		w.Errorf("%s: answered %s, want %d %s", c.name, a, want.status, want.reason)
	}
	if method != http.MethodHead && a.problem() != want.code {
		w.Errorf("%s: the answer says %s, want %s", c.name, a.problem(), want.code)
	}
	if _, ok := w.point.get(a.id()); ok {
		w.Errorf("%s: the refused request reached the management point", c.name)
	}
}

// TestInvalidTokenIsSaidInTheReasonPhrase: on HTTP/1.1 the phrase of the documents stands in the status line (protocol.md 7.4).
func TestInvalidTokenIsSaidInTheReasonPhrase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, row := range gateway.Routes() {
		if row.Proof.Tokens == nil {
			continue
		}
		path := strings.NewReplacer("<id>", fmt.Sprint(w.role), "<file>", "file.txt").Replace(row.Paths()[0])
		address := "https://" + w.GatewayHost + path
		w.refuses(refusal{status: 401, reason: "CMGService_Invalid_Token", code: catalog.TokenScheme}, func() answer {
			return w.send(w.http1(), row.Methods[0], address, "", nil, http.Header{"Authorization": {"Bearer junk"}})
		})
	}
}

// TestProofUsedTwice (C45): each request needs a proof of its own, at the gateway and at the management point.
func TestProofUsedTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.enrolled("replayed")
	for name, address := range map[string]string{
		"at the gateway":          w.outside(ccm.DoorServerAuth, "/SMS_MP_TokenAuth/.sms_aut"),
		"at the management point": w.inside("/SMS_MP_TokenAuth/.sms_aut"),
	} {
		t.Run(name, func(t *testing.T) {
			w := w.on(t)
			header := proofOf(t, d.key, http.MethodGet, address, d.ccm)
			if a := w.send(w.http1(), http.MethodGet, address+"?MPLIST", "", nil, header); a.status != 200 {
				t.Fatalf("the first time: %s", a)
			}
			want := refusal{status: 401, code: catalog.ProofReplayed}
			if strings.Contains(address, w.GatewayHost) {
				want.reason = "CMGService_Invalid_Token"
			}
			for range 2 {
				w.refuses(want, func() answer { return w.send(w.http1(), http.MethodGet, address+"?MPLIST", "", nil, header) })
			}
		})
	}
}

// TestTokenInTheAddressIsRefused (C58).
func TestTokenInTheAddressIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.enrolled("query")
	address := w.outside(ccm.DoorServerAuth, "/SMS_MP_TokenAuth/.sms_aut")
	w.refuses(refusal{status: 400, code: catalog.TokenInQuery}, func() answer {
		return w.send(w.http1(), http.MethodGet, address+"?access_token="+d.ccm, "", nil, nil)
	})
}

// TestEveryCredentialOnEveryRouteOfTheManagementPoint: the management point judges again, whoever carries the request. A stolen connector
// certificate opens nothing.
func TestEveryCredentialOnEveryRouteOfTheManagementPoint(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	credentials := w.credentials()
	connector := w.certified("connector", w.connectorCertificate("stolen"))
	requests := 0
	for _, row := range mp.Routes() {
		if !slices.Contains(row.Listeners, mp.EnhancedHTTP) || row.Path == "/postern/join" {
			continue
		}
		method := row.Methods[0]
		for name, via := range map[string]struct {
			client *http.Client
			htu    string
		}{
			"direct":             {w.http2(1), w.inside(row.Path)},
			"with a certificate": {connector, w.outside(ccm.DoorServerAuth, row.Path)},
		} {
			relayed := name != "direct"
			if relayed && row.Path == "/postern/state" && method == http.MethodGet {
				continue // a connector may have the state, and its stream has no end
			}
			if relayed && row.Path == "/postern/renew" {
				continue // a connector may renew its own certificate, which the trust log shows: internal/role
			}
			t.Run(method+" "+row.Path+" "+name, func(t *testing.T) {
				w := w.on(t)
				w.unchanged(func() {
					for _, c := range credentials {
						if relayed && strings.Contains(c.name, "another URL") {
							continue // our prefix would be no path of a gateway at all
						}
						a := w.send(via.client, method, w.inside(row.Path), "", nil, c.header(t, method, via.htu))
						w.judgedAtPoint(row, c, a, relayed)
						requests++
					}
				})
			})
		}
	}
	if requests < 1000 {
		t.Errorf("only %d combinations", requests)
	}
}

// atPoint says how the management point must judge a credential, from what its table says.
func atPoint(row mp.Route, c credential, relayed bool) (admitted bool, status int, codes []catalog.Code) {
	kinds := map[proof.Method]token.Kind{proof.BulkToken: token.KindBulk, proof.CCMToken: token.KindCCM, proof.SelfProveToken: token.KindSelfProve}
	var takes []token.Kind
	for method, kind := range kinds {
		if row.Accepts(method) {
			takes = append(takes, kind)
		}
	}
	nothing := c.name == "nothing"
	switch {
	case row.Accepts(proof.Kerberos) && relayed:
		return false, 401, []catalog.Code{catalog.ProofNotAccepted}
	case row.Accepts(proof.Kerberos) && nothing:
		return false, 401, []catalog.Code{catalog.NegotiateRequired}
	case row.Accepts(proof.Kerberos):
		return false, 401, []catalog.Code{catalog.ProofNotAccepted, catalog.NTLMRefused, catalog.NegotiateRequired}
	case row.Accepts(proof.ConnectorCertificate) && !nothing:
		return false, 401, []catalog.Code{catalog.ProofNotAccepted}
	case row.Accepts(proof.ConnectorCertificate):
		return relayed, 403, []catalog.Code{catalog.ConnectorOnly}
	case nothing && (row.Accepts(proof.Anonymous) || row.Accepts(proof.Assertion)):
		return true, 0, nil
	case nothing:
		return false, 401, []catalog.Code{catalog.TokenMissing}
	case len(takes) == 0:
		return false, 401, []catalog.Code{catalog.ProofNotAccepted}
	case c.good() && !slices.Contains(takes, c.kind):
		return false, 401, []catalog.Code{catalog.TokenWrongKind}
	case c.good() && c.scope == token.ScopeRegister && !row.Register:
		return false, 403, []catalog.Code{catalog.TokenScope}
	case c.good():
		return true, 0, nil
	case slices.Contains(takes, c.kind) || c.kind == "":
		return false, 401, []catalog.Code{c.code}
	}
	return false, 401, []catalog.Code{c.code, catalog.TokenWrongKind}
}

func (w *world) judgedAtPoint(row mp.Route, c credential, a answer, relayed bool) {
	w.Helper()
	admitted, status, codes := atPoint(row, c, relayed)
	e := w.point.of(w, a.id())
	got := catalog.CodeOf(e.Err)
	if admitted {
		if a.status == 401 || c.good() && e.Proof.Method != c.method {
			w.Errorf("%s: proved %q, answered %s, want it let in", c.name, e.Proof.Method, a)
		}
		return
	}
	if a.status != status || !slices.Contains(codes, got) || a.problem() != got {
		w.Errorf("%s: answered %s with code %s, want %d and one of %v", c.name, a, got, status, codes)
	}
}

// TestTokensOnPlainHTTP: no address of the plain listener takes a token, not even a good one.
func TestTokensOnPlainHTTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.enrolled("plain")
	for _, row := range mp.Routes() {
		address := "https://localhost" + row.Path
		want := refusal{status: 401, code: catalog.ProofNotAccepted}
		switch {
		case !slices.Contains(row.Listeners, mp.HTTP) && slices.ContainsFunc(mp.Routes(), func(r mp.Route) bool {
			return r.Path == row.Path && slices.Contains(r.Listeners, mp.HTTP)
		}):
			continue
		case !slices.Contains(row.Listeners, mp.HTTP):
			want = refusal{status: 404, code: catalog.RouteNotOnListener}
		}
		w.refuses(want, func() answer {
			return w.send(w.http1(), row.Methods[0], w.plain(row.Path), "", nil, proofOf(t, d.key, row.Methods[0], address, d.ccm))
		})
	}
}

// TestScopeRegisterOpensRegistrationOnly (design decision 11): a token that was got before registration opens no other message.
func TestScopeRegisterOpensRegistrationOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.enrolled("early")
	bodies := map[string]string{"MP_PolicyManager": d.assignments(), "MP_LocationManager": `<SiteInformationRequest SchemaVersion="1.00"/>`, "MP_DdrEndpoint": "<Report/>", "MP_TokenManager": "<Token/>"}
	for _, endpoint := range slices.Sorted(maps.Keys(bodies)) {
		t.Run(endpoint, func(t *testing.T) {
			w := w.on(t)
			w.refuses(refusal{status: 200, code: catalog.TokenScope, silent: endpoint != "MP_DdrEndpoint"}, func() answer {
				a := w.message(d, d.register, endpoint, bodies[endpoint], true)
				if endpoint == "MP_DdrEndpoint" { // answered NoReply whatever becomes of it
					a.body = []byte(fmt.Sprintf(`{"code":%q}`, catalog.TokenScope))
				}
				return a
			})
		})
	}
}
