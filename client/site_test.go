package client

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/auth/entra"
	"postern/catalog"
	"postern/ccm"
	"postern/internal/authority"
	"postern/internal/issuer"
	"postern/logfile"
	"postern/proof"
	"postern/token"
)

const (
	testHierarchy = "7b0c3806-d28c-4a45-adb2-fb9f94a462f8"
	testRole      = 72057594037937981
	gatewayHost   = "gateway.test"
	pointHost     = "mp.test"
)

func begin() time.Time { return time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC) }

// testClock is a clock that moves when it is told to.
type testClock struct {
	mu sync.Mutex
	at time.Time
}

func (c *testClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *testClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// testSite is a gateway and a management point in one handler. It judges what the agent
// sends with the primitives of ccm and token, as the real ones do; those live in packages
// that this one may not import, and internal/lab tells the story with them.
type testSite struct {
	t      testing.TB
	clock  *testClock
	root   *ecdsa.PrivateKey
	rootCA *x509.Certificate
	server *httptest.Server
	plain  *httptest.Server // the same without TLS, for port 80
	ring   *token.Ring
	bulk   Secret

	mu           sync.Mutex
	shown        tls.Certificate
	protocols    []string
	devices      map[proof.KeyThumbprint]*testDevice
	reservations map[proof.KeyThumbprint]ccm.ClientID
	uses         map[proof.KeyThumbprint]bool
	seen         map[string]bool
	counts       map[string]int
	traces       map[string]bool
	pending      int             // confirmations answered "pending"
	statuses     []int           // forced statuses of the next registrations
	policies     []testPolicy    // assigned to everyone
	lose         map[string]bool // endpoints whose next answer is lost after the act
	refuse       func(endpoint string) error
	raw          func(endpoint string, w http.ResponseWriter) bool // answers instead of the site
	approval     ccm.ApprovalStatus
	otherID      bool // the registration's answer names another device
	otherMessage bool // answers belong to another message

	information func(query string) (string, bool) // answers .sms_aut instead of the site
	points      []ccm.ManagementPoint             // of the list
	httpsPort   int                               // as the site says
	windows     func(w http.ResponseWriter, r *http.Request) (proved string, ok bool)
	proved      []string // who registered by Windows authentication
	unsigned    bool     // answers are not signed
	forge       bool     // signatures are over another answer

	provider  *issuer.Issuer // of the tenant
	validator *entra.Validator
	tenant    *testTenant // the device's way to it
	onboarded bool        // AADAuthInfo knows the tenant
	resource  string      // that AADAuthInfo names instead of the site's
	company   *authority.Authority
	lists     *http.Client // for revocation lists

	nonces     token.Nonces  // nil: proofs are judged by the clock alone
	noReturn   bool          // no device comes back by its key alone
	quarantine string        // said with tokens until a device registers
	renewAfter time.Duration // said with self-prove tokens
	gateways   []string      // said with tokens of registered devices; nil: nothing is said
	shownBy    []string      // subjects of client certificates that came
	messages   []string      // ids of messages to MP_Echo that came
	called     string        // the address of the last message
}

type testDevice struct {
	id      ccm.ClientID
	request *ccm.RegistrationRequest

	approval ccm.ApprovalStatus // 0: the site's
}

type testPolicy struct {
	id, text string
	flags    ccm.PolicyFlags
	sealed   bool
	location string
	hash     string
	body     []byte
}

// testKeys are made once: RSA keys take a while.
var testKeys = sync.OnceValue(func() [4]*rsaKey {
	var keys [4]*rsaKey
	for i := 0; i < len(keys); i += 2 {
		var err error
		if keys[i], keys[i+1], err = generateKeys(rand.Reader); err != nil {
			panic(err)
		}
	}
	return keys
})

var testRing = sync.OnceValue(func() *token.Ring {
	var keys []token.Key
	for _, kind := range token.Kinds() {
		key, err := token.NewKey(kind, begin().Add(-48*time.Hour), rand.Reader)
		if err != nil {
			panic(err)
		}
		keys = append(keys, key)
	}
	return token.NewRing(testHierarchy, keys)
})

func newTestSite(t testing.TB) *testSite {
	t.Helper()
	s := &testSite{
		t: t, clock: &testClock{at: begin()}, ring: testRing(), approval: ccm.ApprovalApproved,
		devices: map[proof.KeyThumbprint]*testDevice{}, reservations: map[proof.KeyThumbprint]ccm.ClientID{}, uses: map[proof.KeyThumbprint]bool{},
		seen: map[string]bool{}, counts: map[string]int{}, traces: map[string]bool{}, lose: map[string]bool{},
		protocols: []string{"h2", "http/1.1"},
	}
	s.root, s.rootCA = newRoot(t)
	s.bulk = s.newBulk(token.BulkLifetime)
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.server.EnableHTTP2 = true
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.shown = s.certificate(certificateFor{})
	s.server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return &tls.Config{Certificates: []tls.Certificate{s.shown}, NextProtos: s.protocols, ClientAuth: tls.RequestClientCert}, nil
	}}
	s.server.StartTLS()
	s.plain = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.server.Close)
	t.Cleanup(s.plain.Close)
	return s
}

func (s *testSite) newBulk(life time.Duration) Secret {
	s.t.Helper()
	raw, err := s.ring.Sign(token.KindBulk, token.Claims{ID: "ea2fc510-a3be-4cef-90b0-2a0515c4e40c", NotBefore: s.clock.now(), Expires: s.clock.now().Add(life)}, s.clock.now())
	if err != nil {
		s.t.Fatal(err)
	}
	return Secret(raw)
}

func newRoot(t testing.TB) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Site root"}, NotBefore: begin().AddDate(-1, 0, 0), NotAfter: begin().AddDate(20, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, certificate
}

// certificateFor says how a server's certificate differs from a good one.
type certificateFor struct {
	names      []string
	role       string
	from, to   time.Time
	withoutCA  bool
	clientOnly bool
}

func (s *testSite) certificate(want certificateFor) tls.Certificate {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "role"}, NotBefore: begin().AddDate(0, 0, -1), NotAfter: begin().AddDate(1, 0, 0),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{gatewayHost}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if want.names != nil {
		template.DNSNames, template.IPAddresses = want.names, nil
	}
	if !want.to.IsZero() {
		template.NotBefore, template.NotAfter = want.from, want.to
	}
	if want.clientOnly {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	role := token.RoleGateway
	if want.role != "" {
		role = want.role
	}
	template.URIs = []*url.URL{token.RoleURI(testHierarchy, role, "one")}
	der, err := x509.CreateCertificate(rand.Reader, template, s.rootCA, key.Public(), s.root)
	if err != nil {
		s.t.Fatal(err)
	}
	chain := [][]byte{der, s.rootCA.Raw}
	if want.withoutCA {
		chain = chain[:1]
	}
	return tls.Certificate{Certificate: chain, PrivateKey: key}
}

// setup is the enrol line for this site.
func (s *testSite) setup() Setup {
	return Setup{Gateway: Gateway{Host: gatewayHost, RoleID: testRole}, RootKey: token.Pin(s.root.Public()), SiteCode: "GER", Token: s.bulk, Name: "WK02-020-51W.child.test"}
}

// inside is the line for a device on the inner network.
func (s *testSite) inside(scheme string) Setup {
	s.show(certificateFor{names: []string{pointHost}, role: token.RoleManagementPoint})
	return Setup{ManagementPoint: scheme + "://" + pointHost, RootKey: token.Pin(s.root.Public()), SiteCode: "GER", Name: "WK02"}
}

// show changes the server's certificate.
func (s *testSite) show(want certificateFor) {
	s.do(func() { s.shown = s.certificate(want) })
}

// dial leads every name to the site.
func (s *testSite) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if strings.HasSuffix(address, ":80") {
		return (&net.Dialer{}).DialContext(ctx, network, s.plain.Listener.Addr().String())
	}
	return (&net.Dialer{}).DialContext(ctx, network, s.server.Listener.Addr().String())
}

func (s *testSite) count(endpoint string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[endpoint]
}

// do changes the site between requests.
func (s *testSite) do(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *testSite) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Date", s.clock.now().UTC().Format(http.TimeFormat))
	if s.nonces != nil {
		w.Header().Set("DPoP-Nonce", s.nonces.Nonce())
		w.Header()["Date"] = nil // somebody on the way leaves it out
	}
	path, err := ccm.ParsePath(r.RequestURI)
	if err != nil {
		ccm.WriteError(w, r, ccm.Status{}, err)
		return
	}
	name := string(path.Endpoint)
	s.counts[name]++
	if trace, ok := logfile.ParseTraceparent(r.Header.Get("Traceparent")); ok {
		s.traces[trace.ID] = true
	}
	if s.raw != nil && s.raw(name, w) {
		return
	}
	out := httptest.NewRecorder()
	if s.refuse != nil {
		err = s.refuse(name)
	}
	if err == nil {
		err = s.route(out, r, path)
	}
	if s.lose[name] {
		s.lose[name] = false
		panic(http.ErrAbortHandler)
	}
	if err != nil {
		ccm.WriteError(w, r, statusFor(path, err), err)
		return
	}
	s.sign(w.Header(), r, path, out)
	for field, values := range out.Header() {
		w.Header()[field] = values
	}
	w.WriteHeader(out.Code)
	w.Write(out.Body.Bytes())
}

// sign signs an answer as the management point does, when it is one.
func (s *testSite) sign(header http.Header, r *http.Request, path ccm.Path, out *httptest.ResponseRecorder) {
	key, _ := s.shown.PrivateKey.(*ecdsa.PrivateKey)
	nonce, ok := strings.CutPrefix(r.Header.Get(ccm.HeaderSignedReply), "chain ")
	if !ok || s.unsigned || path.Endpoint == ccm.EndpointAADAuthInfo {
		return
	}
	shown := s.shown
	if path.Door != ccm.DoorDirect {
		shown = s.certificate(certificateFor{role: token.RoleManagementPoint})
		key, _ = shown.PrivateKey.(*ecdsa.PrivateKey)
	}
	sum := token.ReplySum(out.Body.Bytes())
	if s.forge {
		sum = token.ReplySum([]byte("another answer"))
	}
	raw, err := token.SignReply(key, token.Reply{Nonce: nonce, Path: path.Internal(), Status: out.Code, Sum: sum, At: s.clock.now()})
	if err != nil {
		s.t.Error(err)
	}
	header.Set(ccm.HeaderSignedReply, raw)
	var chain []string
	for _, der := range shown.Certificate {
		chain = append(chain, base64.StdEncoding.EncodeToString(der))
	}
	header.Set(ccm.HeaderSignedReplyChain, strings.Join(chain, ","))
}

// statusFor is the gateway's text for a refused token.
func statusFor(path ccm.Path, err error) ccm.Status {
	entry, _ := catalog.Lookup(catalog.CodeOf(err))
	if path.Door != ccm.DoorDirect && entry.Status == http.StatusUnauthorized {
		return ccm.StatusInvalidToken
	}
	return ccm.Status{}
}

func (s *testSite) route(w http.ResponseWriter, r *http.Request, path ccm.Path) error {
	switch {
	case path.Endpoint == ccm.EndpointAADAuthInfo:
		return s.authInfo(w, r)
	case path.Door == ccm.DoorMutualAuth && path.RoleID == testRole || path.Door == ccm.DoorDirect && s.company != nil && r.TLS != nil:
		return s.byCertificate(w, r, path)
	case path.Door == ccm.DoorMutualAuth || path.Door == ccm.DoorServerAuth && path.RoleID != testRole:
		return catalog.Errorf(catalog.PathUnknown, "no such role")
	}
	switch path.Endpoint {
	case ccm.EndpointSTS:
		return s.exchange(w, r)
	case ccm.EndpointSystemTokenAuth, ccm.EndpointSystem:
		claims, err := s.claims(r, path.Endpoint == ccm.EndpointSystemTokenAuth)
		if err != nil {
			return err
		}
		return s.message(w, r, claims)
	case ccm.EndpointSystemWindowsAuth:
		if s.windows == nil {
			return catalog.Errorf(catalog.PathUnknown, "no such endpoint")
		}
		proved, ok := s.windows(w, r)
		if !ok {
			return nil
		}
		s.proved = append(s.proved, proved)
		return s.message(w, r, token.Claims{})
	case ccm.EndpointMPTokenAuth, ccm.EndpointMP:
		if path.Rest == "/.sms_aut" {
			return s.aut(w, path.Query)
		}
		claims, err := s.claims(r, path.Endpoint == ccm.EndpointMPTokenAuth)
		if err != nil {
			return err
		}
		return s.body(w, r, path, claims)
	}
	return catalog.Errorf(catalog.PathUnknown, "no such endpoint")
}

// claims verifies the CCM token of a request.
func (s *testSite) claims(r *http.Request, needed bool) (token.Claims, error) {
	if !needed {
		if r.Header.Get("Authorization") != "" || r.Header.Get("DPoP") != "" {
			return token.Claims{}, catalog.Errorf(catalog.TokenWrongKind, "no token here")
		}
		return token.Claims{}, nil
	}
	claims, _, err := s.bearer(r, token.KindCCM)
	return claims, err
}

func (s *testSite) bearer(r *http.Request, kinds ...token.Kind) (token.Claims, proof.KeyThumbprint, error) {
	if raw, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok && slices.Contains(kinds, kindEntra) && s.validator != nil {
		return s.ofTenant(r, raw)
	}
	raw, ok := strings.CutPrefix(r.Header.Get("Authorization"), "DPoP ")
	if !ok {
		return token.Claims{}, "", catalog.Errorf(catalog.TokenMissing, "")
	}
	now := s.clock.now()
	claims, err := s.ring.Verifier().Verify(raw, now, kinds...)
	if err != nil {
		return claims, "", err
	}
	p, err := token.VerifyProofNonce(r.Header.Get("DPoP"), r.Method, raw, now, s.nonces)
	if err != nil {
		return claims, "", err
	}
	scheme := "https://" + r.Host + strings.Split(r.RequestURI, "?")[0]
	switch {
	case claims.Kind != token.KindBulk && claims.Key != p.Key:
		return claims, "", catalog.Errorf(catalog.ProofOtherKey, "")
	case p.URL != scheme:
		return claims, "", catalog.Errorf(catalog.ProofOtherURL, "%s is not %s", p.URL, scheme)
	case s.seen[p.ID]:
		return claims, "", catalog.Errorf(catalog.ProofReplayed, "")
	}
	s.seen[p.ID] = true
	return claims, p.Key, nil
}

// aut is .sms_aut.
func (s *testSite) aut(w http.ResponseWriter, query string) error {
	if s.information != nil {
		if text, ok := s.information(query); ok {
			io.WriteString(w, text)
			return nil
		}
	}
	method, _, err := ccm.ParseAuthQuery(query)
	if err != nil {
		return err
	}
	trk := ccm.MPTRK{Key: s.rootCA.RawSubjectPublicKeyInfo}
	io.WriteString(w, map[ccm.AuthMethod]string{
		ccm.AuthMPTRK: trk.XML(), ccm.AuthMPList1: ccm.MPList{ManagementPoints: s.points}.XML(), ccm.AuthMPList: ccm.MPList{ManagementPoints: s.points}.XML(),
		ccm.AuthSiteSignCert:       ccm.SiteSignCert{Certificate: s.rootCA.Raw}.XML(),
		ccm.AuthMPKeyInformationEx: ccm.MPKeyInformation{SiteCode: "GER", Certificate: ccm.SignedCertificate{Certificate: s.shown.Certificate[0]}, TrustedRootKey: trk}.XML(),
		ccm.AuthSMSTRC:             ccm.SMSTRC,
	}[method])
	return nil
}

// exchange is CCM_STS.
func (s *testSite) exchange(w http.ResponseWriter, r *http.Request) error {
	if err := r.ParseForm(); err != nil {
		return err
	}
	var key proof.KeyThumbprint
	var claims token.Claims
	audience := "https://" + r.Host + r.URL.Path
	if r.Header.Get("Authorization") == "" && strings.HasPrefix(r.URL.Path, "/CCM_Proxy_") {
		if s.noReturn {
			return catalog.Errorf(catalog.ReturnOff, "")
		}
		p, err := token.VerifyProofNonce(r.Header.Get("DPoP"), r.Method, "", s.clock.now(), s.nonces)
		if err != nil {
			return err
		}
		if key = p.Key; s.devices[key] == nil || p.URL != audience || s.seen[p.ID] {
			return catalog.Errorf(catalog.ReturnUnknown, "")
		}
		s.seen[p.ID] = true
	} else if r.Header.Get("Authorization") == "" {
		subject, err := token.AssertionSubject(r.PostForm.Get("assertion"))
		if err != nil {
			return err
		}
		for k, device := range s.devices {
			if device.id == subject {
				key = k
			}
		}
		if key == "" {
			return catalog.Errorf(catalog.DeviceUnknown, "no such device")
		}
	} else {
		var err error
		if claims, key, err = s.bearer(r, token.KindBulk, token.KindSelfProve, kindEntra); err != nil {
			return err
		}
	}
	if claims.Kind == token.KindBulk {
		s.uses[key] = true
	}
	kind := token.Kind(strings.TrimPrefix(r.PostForm.Get("requested_token_type"), tokenURN))
	device := s.devices[key]
	out := token.Claims{Kind: kind, ID: "id", Key: key, TokenType: token.TypeDevice}
	switch {
	case device == nil && (kind != token.KindCCM || claims.Kind != token.KindBulk && claims.Kind != kindEntra):
		return catalog.Errorf(catalog.DeviceUnknown, "no such device")
	case device == nil:
		if s.reservations[key] == "" {
			id, err := ccm.NewClientID(rand.Reader)
			if err != nil {
				return err
			}
			s.reservations[key] = id
		}
		out.Client, out.Scope, out.BulkID, out.Cloud = s.reservations[key], token.ScopeRegister, claims.ID, claims.Cloud
	default:
		out.Client = device.id
		if kind == token.KindCCM {
			out.Scope = token.ScopeClient
		}
	}
	if kind == token.KindSelfProve || claims.Kind == "" {
		if r.PostForm.Get("grant_type") != grantAssertion {
			return catalog.Errorf(catalog.AssertionMissing, "")
		}
		a, err := token.VerifyAssertion(r.PostForm.Get("assertion"), device.request.Signing.PublicKey, audience, s.clock.now())
		if err != nil {
			return err
		}
		if a.Client != device.id {
			return catalog.Errorf(catalog.AssertionOtherDevice, "")
		}
	}
	return s.issue(w, out)
}

func (s *testSite) issue(w http.ResponseWriter, claims token.Claims) error {
	now := s.clock.now()
	raw, err := s.ring.Sign(claims.Kind, claims, now)
	if err != nil {
		return err
	}
	life := map[token.Kind]time.Duration{token.KindCCM: token.CCMLifetime, token.KindSelfProve: token.SelfProveLifetime}[claims.Kind]
	approval := s.approval
	if device := s.devices[claims.Key]; device != nil && device.approval != 0 {
		approval = device.approval
	}
	if claims.Scope == token.ScopeRegister {
		approval = ccm.ApprovalUnknown
	}
	w.Header().Set("Content-Type", "application/json")
	var gateways any
	if claims.Scope != token.ScopeRegister && s.gateways != nil {
		gateways = s.gateways
	}
	return json.NewEncoder(w).Encode(map[string]any{
		"gateways": gateways, "access_token": raw, "issued_token_type": tokenURN + string(claims.Kind), "token_type": "DPoP", "expires_in": int(life.Seconds()),
		"scope": claims.Scope, "client_id": claims.Client, "approval_status": approval, "quarantine": s.quarantine, "renew_after": int(s.renewAfter.Seconds()),
	})
}

// message is ccm_system and ccm_system_tokenauth. What fails is answered with nothing.
func (s *testSite) message(w http.ResponseWriter, r *http.Request, claims token.Claims) error {
	m, err := ccm.ReadMessage(r.Header.Get("Content-Type"), r.Body, ccm.DefaultLimits())
	if err != nil {
		s.t.Errorf("message of the agent: %v", err)
		return nil
	}
	if r.Method != methodCCM {
		s.t.Errorf("message of the agent: method %s", r.Method)
	}
	var reply string
	s.called = "https://" + r.Host + r.URL.Path
	switch m.Header.TargetEndpoint {
	case endpointRegistration:
		reply, err = s.register(m, claims)
	case "MP_DdrEndpoint":
		contentType, body := ccm.NoReply()
		w.Header().Set("Content-Type", contentType)
		w.Write(body)
		return nil
	case "MP_LocationManager":
		if ask, failed := ccm.ParseLocationRequest(m.Text()); failed == nil && ask.Kind == ccm.LocationEnumerateMP && ask.RequestType == ccm.EnumerateInternet {
			points := ccm.EnumerateMPReply{MPSite: ccm.MPSite{SiteCode: "GER"}}
			for _, name := range s.gateways {
				points.Records = append(points.Records, ccm.MPRecord{InternetName: name, IntranetName: pointHost})
			}
			reply = points.XML()
			break
		}
		reply = ccm.SiteInfoReply{Sites: []ccm.SiteRecord{{SiteCode: "GER", HTTPSPort: s.httpsPort}}}.XML()
	default:
		reply, err = s.signed(m, claims)
	}
	if err != nil {
		s.t.Logf("refused message: %v", err)
		return nil
	}
	if s.otherMessage {
		m.Header.ID = "{11111111-2222-3333-4444-555555555555}"
	}
	contentType, body, err := ccm.EncodeReply(m.Header, ccm.Header{}, reply)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", contentType)
	w.Write(body)
	return nil
}

func (s *testSite) register(m *ccm.Message, claims token.Claims) (string, error) {
	request, err := ccm.ParseRegistration(m)
	if err != nil {
		return "", err
	}
	response := ccm.RegistrationResponse{Type: request.Type, TimeStamp: s.clock.now(), ApprovalStatus: s.approval}
	var key proof.KeyThumbprint
	if request.Type == ccm.RegistrationTypeConfirmation {
		for k, device := range s.devices {
			if device.id == request.SMSID {
				key = k
			}
		}
		if s.devices[key] == nil {
			return "", catalog.Errorf(catalog.DeviceUnknown, "%s", request.SMSID)
		}
		if err := request.Verify(s.devices[key].request.Signing.PublicKey); err != nil {
			return "", err
		}
	} else if key, err = s.add(request, claims); err != nil {
		return "", err
	}
	if len(s.statuses) > 0 {
		response.Status, s.statuses = s.statuses[0], s.statuses[1:]
		if response.Status > ccm.RegistrationPending {
			delete(s.devices, key)
			return response.XML(), nil
		}
	}
	if s.pending > 0 {
		s.pending--
		response.Status = ccm.RegistrationPending
	}
	switch {
	case claims.Cloud != nil:
		s.devices[key].approval = ccm.ApprovalEntra
	case claims.Kind == kindPKI:
		s.devices[key].approval = ccm.ApprovalNotApplicable
	}
	response.ApprovalStatus = cmp.Or(s.devices[key].approval, s.approval)
	s.quarantine = ""
	response.SMSID = s.devices[key].id
	if s.otherID {
		response.SMSID = "GUID:00000000-0000-4000-8000-000000000001"
	}
	return response.XML(), nil
}

// add verifies a registration and keeps the device.
func (s *testSite) add(request *ccm.RegistrationRequest, claims token.Claims) (proof.KeyThumbprint, error) {
	if err := request.Verify(nil); err != nil {
		return "", err
	}
	key, err := proof.Thumbprint(request.Signing.PublicKey)
	if err != nil {
		return "", err
	}
	now := s.clock.now()
	if statement := request.Property(keyChangeProperty); statement != "" {
		former := s.devices[claims.Key]
		if former == nil {
			return "", catalog.Errorf(catalog.KeyChangeNotByDevice, "")
		}
		change, err := token.VerifyKeyChange(statement, former.request.Signing.PublicKey, s.called, now)
		if err != nil || !change.Names(former.id, key) {
			return "", catalog.Wrap(catalog.KeyChangeInvalid, err, "")
		}
		delete(s.devices, claims.Key)
		s.devices[key] = &testDevice{id: former.id, request: request}
		return key, nil
	}
	switch {
	case claims.Kind != "" && claims.Kind != kindPKI && claims.Key != key:
		return "", catalog.Errorf(catalog.RegistrationOtherKey, "")
	case now.Before(request.Signing.NotBefore.Add(-token.Leeway)) || now.After(request.Signing.NotAfter):
		return "", catalog.Errorf(catalog.RegistrationCertificateExpired, "")
	}
	if s.devices[key] == nil {
		id := request.SMSID
		if s.reservations[key] != "" {
			id = s.reservations[key]
		}
		for _, other := range s.devices {
			if other.id == id { // another key's: a new one (product.md 2.8)
				if id, err = ccm.NewClientID(rand.Reader); err != nil {
					return "", err
				}
			}
		}
		s.devices[key] = &testDevice{id: id}
	}
	s.devices[key].request = request
	return key, nil
}

// signed is every other endpoint.
func (s *testSite) signed(m *ccm.Message, claims token.Claims) (string, error) {
	var device *testDevice
	for _, d := range s.devices {
		if string(d.id) == m.Header.SourceID {
			device = d
		}
	}
	if device == nil {
		return "", catalog.Errorf(catalog.DeviceUnknown, "%s", m.Header.SourceID)
	}
	if err := m.Verify(device.request.Signing.PublicKey); err != nil {
		return "", err
	}
	if claims.Kind != "" && claims.Kind != kindPKI && (claims.Scope != token.ScopeClient || claims.Client != device.id) {
		return "", catalog.Errorf(catalog.TokenScope, "")
	}
	if m.Header.TargetEndpoint != "MP_PolicyManager" {
		s.messages = append(s.messages, m.Header.ID)
		return "<Echo>" + m.Header.TargetEndpoint + "</Echo>", nil
	}
	ask, err := ccm.ParseAssignmentsRequest(m.Text())
	if err != nil {
		return "", err
	}
	reply := ccm.AssignmentsReply{SiteCode: "GER", ClientID: ask.ClientID}
	for _, p := range s.policies {
		location := p.location
		if location == "" {
			location = ccm.PolicyLocation(p.id, "")
		}
		hash := p.hash
		if hash == "" {
			hash = ccm.PolicyHash([]byte(p.text))
		}
		reply.Assignments = append(reply.Assignments, ccm.PolicyAssignment{ID: "{A-" + p.id + "}", PolicyID: p.id, Version: "1.00", Type: "Machine", Category: "Test", Flags: p.flags, Location: location, Hash: hash})
	}
	return reply.XML(), nil
}

// body is .sms_pol.
func (s *testSite) body(w http.ResponseWriter, r *http.Request, path ccm.Path, claims token.Claims) error {
	id, _, err := ccm.ParsePolicyQuery(path.Query)
	if err != nil {
		return err
	}
	auth, signed, err := ccm.ParsePolicyAuth(r.Header)
	if err != nil {
		return err
	}
	var device *testDevice
	for _, d := range s.devices {
		if signed && d.id == auth.ClientID {
			device = d
		}
	}
	if device == nil || auth.Verify(device.request.Signing.PublicKey) != nil || claims.Kind != "" && claims.Kind != kindPKI && claims.Client != device.id {
		io.WriteString(w, ccm.PolicyError)
		return nil
	}
	at := slices.IndexFunc(s.policies, func(p testPolicy) bool { return p.id == id })
	switch {
	case at < 0:
		io.WriteString(w, ccm.PolicyError)
	case s.policies[at].body != nil:
		w.Write(s.policies[at].body)
	case s.policies[at].sealed:
		der, err := ccm.SealPolicy(rand.Reader, ccm.PolicyBody(s.policies[at].text), device.request.Encryption, ccm.TripleDES)
		if err != nil {
			return err
		}
		w.Write(der)
	default:
		w.Write(ccm.PolicyBody(s.policies[at].text))
	}
	return nil
}

// testAgent is an agent with what a test sees of it.
type testAgent struct {
	*Agent
	site   *testSite
	dir    string
	logDir string
	clock  *testClock
	steps  []Step
	waits  []time.Duration
	made   *int
	mu     sync.Mutex

	onStep func(Step)
	onWait func(time.Duration) error
}

// newAgent returns an agent on a fresh folder. Its clock is the site's.
func (s *testSite) newAgent() *testAgent {
	s.t.Helper()
	return s.agentIn(s.t.TempDir(), new(int), s.clock)
}

// agentIn opens an agent on a folder, as a process that starts.
func (s *testSite) agentIn(dir string, made *int, clock *testClock) *testAgent {
	s.t.Helper()
	a := &testAgent{site: s, dir: dir + "/state", logDir: dir + "/logs", clock: clock, made: made}
	folder := logfile.NewFolder(a.logDir, logfile.Options{Now: clock.now})
	var tenant func() (Entra, error)
	if s.tenant != nil {
		tenant = func() (Entra, error) { return s.tenant, s.tenant.missing }
	}
	opened, err := Open(Config{
		Entra: tenant, Lists: s.lists,
		Dir: a.dir, Now: clock.now, Dial: s.dial, Logs: folder, Observe: a.observe, Wait: a.wait,
		Proxy: func(*http.Request) (*url.URL, error) { return nil, nil },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	opened.makeKeys = func(io.Reader) (signing, encryption *rsaKey, err error) {
		*made++
		at := (*made - 1) % 2 * 2
		return testKeys()[at], testKeys()[at+1], nil
	}
	a.Agent = opened
	s.t.Cleanup(func() { opened.Close(); folder.Close() })
	return a
}

func (a *testAgent) observe(s Step) {
	a.mu.Lock()
	a.steps = append(a.steps, s)
	hook := a.onStep
	a.mu.Unlock()
	if hook != nil {
		hook(s)
	}
}

func (a *testAgent) wait(ctx context.Context, d time.Duration) error {
	a.mu.Lock()
	a.waits = append(a.waits, d)
	hook := a.onWait
	a.mu.Unlock()
	a.clock.add(d)
	if hook != nil {
		return hook(d)
	}
	return ctx.Err()
}

func (a *testAgent) enrol(t testing.TB, setup Setup) {
	t.Helper()
	if err := a.Enrol(t.Context(), setup); err != nil {
		t.Fatalf("enrol: %v", err)
	}
}
