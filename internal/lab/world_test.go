package lab_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern/catalog"
	"postern/ccm"
	"postern/connector"
	"postern/gateway"
	"postern/internal/lab"
	"postern/internal/role"
	"postern/keyfile"
	"postern/mp"
	"postern/proof"
	"postern/site"
	"postern/token"
)

// TestMain fails when anything that a test started still runs at the end.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.Cleanup(cleanUp)) }

// world is a lab with what a test needs to attack it: devices that speak the wire themselves, and every hop's account of every request.
type world struct {
	testing.TB
	*lab.Lab
	role    uint64
	gateway *exchanges[gateway.Exchange]
	middle  *exchanges[connector.Exchange]
	point   *exchanges[mp.Exchange]
	clients *clients
}

// newWorld starts a lab, which the test's end stops.
func newWorld(t testing.TB, edit ...func(*lab.Options)) *world {
	t.Helper()
	w := &world{
		TB: t, clients: &clients{byName: map[string]*http.Client{}},
		gateway: newExchanges(func(e gateway.Exchange) string { return e.MessageID }),
		middle:  newExchanges(func(e connector.Exchange) string { return e.MessageID }),
		point:   newExchanges(func(e mp.Exchange) string { return e.MessageID }),
	}
	options := lab.Options{Dir: t.TempDir(), HTTP: true, Observe: lab.Observers{Gateway: w.gateway.add, Connector: w.middle.add, ManagementPoint: w.point.add}}
	for _, e := range edit {
		e(&options)
	}
	l, err := lab.Start(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	w.Lab, w.role = l, l.Site().ManagementPoints()[0].RoleID
	t.Cleanup(func() {
		w.clients.closeIdle()
		if err := l.Stop(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// on returns the same world for a subtest.
func (w *world) on(t testing.TB) *world {
	other := *w
	other.TB = t
	return &other
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// exchanges keeps what a hop told of each request, by message id.
type exchanges[E any] struct {
	id   func(E) string
	mu   sync.Mutex
	told map[string]E
	news chan struct{}
}

func newExchanges[E any](id func(E) string) *exchanges[E] {
	return &exchanges[E]{id: id, told: map[string]E{}, news: make(chan struct{})}
}

func (x *exchanges[E]) add(e E) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.told[x.id(e)] = e
	close(x.news)
	x.news = make(chan struct{})
}

func (x *exchanges[E]) all() []E {
	x.mu.Lock()
	defer x.mu.Unlock()
	var all []E
	for _, e := range x.told {
		all = append(all, e)
	}
	return all
}

func (x *exchanges[E]) look(match func(E) bool) (found E, ok bool, news chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.told {
		if match(e) {
			return e, true, x.news
		}
	}
	return found, false, x.news
}

// get returns the account of one request, if there is one already.
func (x *exchanges[E]) get(id string) (E, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e, ok := x.told[id]
	return e, ok
}

// find waits for a request that matches.
func (x *exchanges[E]) find(t testing.TB, what string, match func(E) bool) E {
	t.Helper()
	return x.wait(t, what, func() (E, bool, chan struct{}) { return x.look(match) })
}

// of waits for the account of one request, which comes when the request has ended there.
func (x *exchanges[E]) of(t testing.TB, id string) E {
	t.Helper()
	return x.wait(t, "message "+id, func() (E, bool, chan struct{}) {
		x.mu.Lock()
		defer x.mu.Unlock()
		e, ok := x.told[id]
		return e, ok, x.news
	})
}

func (x *exchanges[E]) wait(t testing.TB, what string, look func() (E, bool, chan struct{})) E {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		e, ok, news := look()
		if ok {
			return e
		}
		select {
		case <-news:
		case <-limit:
			t.Fatalf("no hop told of %s", what)
		}
	}
}

// eventually waits for what another process or goroutine does in its own time.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after twenty seconds still not: %s", what)
		}
	}
}

// primes make device keys quickly: every pair of them is a key, and a new prime is made only when the pairs are used up.
var primes struct {
	sync.Mutex
	list         []*big.Int
	first, count int
}

// newDeviceKey returns an RSA-2048 key that nobody has had before. It shares its primes with others, which only a test may do.
func newDeviceKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	primes.Lock()
	defer primes.Unlock()
	if primes.first++; primes.first >= len(primes.list)-1 {
		primes.first = 0
		for n := len(primes.list) + 1; len(primes.list) < max(n, 2); {
			p, err := rand.Prime(rand.Reader, 1024)
			if err != nil {
				t.Fatal(err)
			}
			if new(big.Int).Mod(new(big.Int).Sub(p, big.NewInt(1)), big.NewInt(65537)).Sign() != 0 {
				primes.list = append(primes.list, p)
			}
		}
	}
	p, q := primes.list[primes.first], primes.list[len(primes.list)-1]
	one := big.NewInt(1)
	phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537}, D: new(big.Int).ModInverse(big.NewInt(65537), phi), Primes: []*big.Int{p, q}}
	key.Precompute()
	return key
}

// device is a device that speaks the wire itself.
type device struct {
	name      string
	key       *rsa.PrivateKey
	cert      *ccm.Certificate
	id        ccm.ClientID
	register  string // CCM token of scope register
	ccm       string // CCM token of scope client
	selfProve string
}

// newDevice returns a device that has nothing but its key.
func newDevice(t testing.TB, name string) *device {
	t.Helper()
	return deviceOf(t, name, newDeviceKey(t))
}

func deviceOf(t testing.TB, name string, key *rsa.PrivateKey) *device {
	t.Helper()
	cert, err := ccm.NewClientCertificate(key, "ConfigMgr Client Messaging", ccm.UsageSigning|ccm.UsageEncryption, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &device{name: name, key: key, cert: cert}
}

// enrolled returns a device that has enrolled through the gateway, with all its tokens.
func (w *world) enrolled(name string) *device {
	w.Helper()
	d := newDevice(w, name)
	raw, _ := w.bulk(1)
	d.register = w.token(w.exchange(d, raw, token.KindCCM)).AccessToken
	answer := w.message(d, d.register, "MP_ClientRegistration", d.registration(w), false)
	response, err := ccm.ParseRegistrationResponse(w.text(answer))
	w.must(err)
	d.id = response.SMSID
	d.ccm = w.token(w.exchange(d, raw, token.KindCCM)).AccessToken
	d.selfProve = w.token(w.exchange(d, raw, token.KindSelfProve)).AccessToken
	return d
}

// registration is the body of the device's registration message.
func (d *device) registration(t testing.TB, edit ...func(*ccm.RegistrationRequest)) string {
	t.Helper()
	request := ccm.RegistrationRequest{
		Type: ccm.RegistrationTypeRegistration, TimeStamp: time.Now().UTC().Format(time.RFC3339), Agent: ccm.Agent{Identity: "test", Version: "5.00.9128.1000"},
		Signing: d.cert, Encryption: d.cert, KeyType: 1, Properties: map[string]string{"NetBIOS Name": d.name, "FQ Name": d.name + ".lab.example"},
	}
	for _, e := range edit {
		e(&request)
	}
	xml, err := ccm.BuildRegistration(request, d.key)
	if err != nil {
		t.Fatal(err)
	}
	return xml
}

func (d *device) confirmation(t testing.TB, id ccm.ClientID) string {
	t.Helper()
	return d.registration(t, func(r *ccm.RegistrationRequest) {
		r.Type, r.SMSID, r.SignatureSMSID = ccm.RegistrationTypeConfirmation, id, string(id)
	})
}

func (d *device) assignments() string {
	return ccm.BuildAssignmentsRequest(ccm.AssignmentsRequest{ClientID: d.id, FQDN: d.name + ".lab.example", NetBIOSName: d.name, PolicySource: "SMS:" + lab.SiteCode})
}

// encode writes a message to an endpoint; a signed one names the device as its sender.
func (d *device) encode(t testing.TB, endpoint, body string, signed bool, edit ...func(*ccm.Header)) (contentType string, data []byte) {
	t.Helper()
	h := ccm.Header{TargetEndpoint: endpoint, SourceHost: d.name, ReplyTo: "direct:" + d.name + ":SccmMessaging", ReplyMode: "Sync", Compressed: true, ReplyCompression: "zlib"}
	var key *rsa.PrivateKey
	if signed {
		h.SourceID, key = string(d.id), d.key
	}
	for _, e := range edit {
		e(&h)
	}
	contentType, data, err := ccm.EncodeRequest(h, body, key)
	if err != nil {
		t.Fatal(err)
	}
	return contentType, data
}

// message sends a message through the gateway with a CCM token.
func (w *world) message(d *device, raw, endpoint, body string, signed bool) answer {
	w.Helper()
	contentType, data := d.encode(w, endpoint, body, signed)
	return w.post(d, raw, contentType, data)
}

// post sends bytes to ccm_system_tokenauth through the gateway.
func (w *world) post(d *device, raw, contentType string, body []byte) answer {
	w.Helper()
	address := w.outside(ccm.DoorServerAuth, "/CCM_System_TokenAuth/request")
	return w.send(w.http1(), "CCM_POST", address, contentType, body, proofOf(w, d.key, "CCM_POST", address, raw))
}

// bulk makes a bulk registration token.
func (w *world) bulk(uses int) (string, site.BulkToken) {
	w.Helper()
	raw, kept, err := w.Site().NewBulkToken(w.Context(), site.NewBulk{MaxUses: uses, Label: "test", By: "test"})
	w.must(err)
	return raw, kept
}

const form = "application/x-www-form-urlencoded"

// exchange asks CCM_STS through the gateway.
func (w *world) exchange(d *device, raw string, want token.Kind) answer {
	w.Helper()
	return w.exchangeBy(w.http1(), d, raw, want)
}

func (w *world) exchangeBy(client *http.Client, d *device, raw string, want token.Kind) answer {
	w.Helper()
	address := w.outside(ccm.DoorServerAuth, "/CCM_STS")
	return w.send(client, http.MethodPost, address, form, []byte(d.grant(w, address, want)), proofOf(w, d.key, http.MethodPost, address, raw))
}

// grant is the form of a token exchange; a self-prove token needs an assertion by the registered key.
func (d *device) grant(t testing.TB, address string, want token.Kind) string {
	t.Helper()
	values := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "requested_token_type": {"urn:postern:token:" + string(want)}}
	if want == token.KindSelfProve {
		assertion, err := token.SignAssertion(d.key, d.id, address, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		values.Set("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
		values.Set("assertion", assertion)
	}
	return values.Encode()
}

type tokenReply struct {
	AccessToken string       `json:"access_token"`
	Scope       string       `json:"scope"`
	ClientID    ccm.ClientID `json:"client_id"`
}

func (w *world) token(a answer) (reply tokenReply) {
	w.Helper()
	if a.status != http.StatusOK {
		w.Fatalf("token service: %d %s %s", a.status, a.reason, a.body)
	}
	w.must(json.Unmarshal(a.body, &reply))
	return reply
}

// text decodes the reply of a message.
func (w *world) text(a answer) string {
	w.Helper()
	if a.status != http.StatusOK || len(a.body) == 0 {
		w.Fatalf("message: %d %s %q", a.status, a.reason, a.body)
	}
	m, err := ccm.DecodeReply(a.header.Get("Content-Type"), bytes.NewReader(a.body), ccm.DefaultLimits())
	w.must(err)
	return m.Text()
}

// proofOf returns the headers that carry a token with a proof by key.
func proofOf(t testing.TB, key crypto.Signer, method, htu, raw string) http.Header {
	t.Helper()
	p, err := token.SignProof(key, method, htu, raw, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return http.Header{"Authorization": {"DPoP " + raw}, "Dpop": {p}}
}

// outside is the address of an internal path at the gateway.
func (w *world) outside(door ccm.Door, internal string) string {
	return "https://" + w.GatewayHost + ccm.ExternalPath(door, w.role, internal)
}

// inside is the address of a path at the management point.
func (w *world) inside(path string) string { return w.ManagementPointURL() + path }

// plain is the same at its plain listener.
func (w *world) plain(path string) string {
	return "http://" + w.ManagementPoint.Addresses["http"] + path
}

func (w *world) trust(serverRole string) *tls.Config {
	return role.PinnedTLS(w.SiteRoot, serverRole, time.Now)
}

// clients are the HTTP clients of a world, made when they are first used.
type clients struct {
	mu     sync.Mutex
	byName map[string]*http.Client
}

func (c *clients) get(name string, make func() *http.Transport) *http.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.byName[name]; known != nil {
		return known
	}
	fresh := &http.Client{Transport: make(), Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	c.byName[name] = fresh
	return fresh
}

// closeIdle ends connections that may lead to a server that is gone.
func (c *clients) closeIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range c.byName {
		one.CloseIdleConnections()
	}
}

// anyServer trusts both roles; the tests tell them apart by address.
func (w *world) anyServer() *tls.Config {
	config := w.trust(token.RoleGateway)
	asGateway, asPoint := config.VerifyConnection, w.trust(token.RoleManagementPoint).VerifyConnection
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		if asGateway(cs) == nil {
			return nil
		}
		return asPoint(cs)
	}
	return config
}

func protocols(http2 bool) *http.Protocols {
	var p http.Protocols
	p.SetHTTP1(!http2)
	p.SetHTTP2(http2)
	return &p
}

// http1 speaks HTTP/1.1, whose reason phrases the documents speak of.
func (w *world) http1() *http.Client {
	return w.clients.get("http1", func() *http.Transport {
		return &http.Transport{TLSClientConfig: w.anyServer(), Protocols: protocols(false), MaxIdleConnsPerHost: 100, DisableCompression: true}
	})
}

// http2 speaks HTTP/2 from one of this machine's loopback addresses: requests without proof are limited by address.
func (w *world) http2(from int) *http.Client {
	local := &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(from))}
	return w.clients.get(fmt.Sprint("http2 ", from), func() *http.Transport {
		dial := func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(address)
			return (&net.Dialer{LocalAddr: local}).DialContext(ctx, "tcp4", "127.0.0.1:"+port)
		}
		return &http.Transport{TLSClientConfig: w.anyServer(), Protocols: protocols(true), DialContext: dial, DisableCompression: true}
	})
}

// certified shows a client certificate.
func (w *world) certified(name string, certificate tls.Certificate) *http.Client {
	return w.clients.get("certified "+name, func() *http.Transport {
		config := w.anyServer()
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
		return &http.Transport{TLSClientConfig: config, Protocols: protocols(true), DisableCompression: true}
	})
}

// answer is an answer, read whole.
type answer struct {
	status int
	reason string
	header http.Header
	body   []byte
}

// id is the message id, the same at every hop.
func (a answer) id() string { return a.header.Get(ccm.HeaderMessageID) }

// problem is the code in the problem document.
func (a answer) problem() catalog.Code {
	var p struct {
		Code catalog.Code `json:"code"`
	}
	json.Unmarshal(a.body, &p)
	return p.Code
}

func (a answer) String() string {
	return fmt.Sprintf("%d %s %.300q", a.status, a.reason, a.body)
}

func answerOf(r *http.Response) (answer, error) {
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	a := answer{status: r.StatusCode, header: r.Header, body: body, reason: r.Header.Get(ccm.HeaderStatus)}
	if _, phrase, ok := strings.Cut(r.Status, " "); ok && a.reason == "" {
		a.reason = phrase
	}
	return a, err
}

func (w *world) send(client *http.Client, method, address, contentType string, body []byte, header http.Header) answer {
	w.Helper()
	a, err := w.try(client, method, address, contentType, body, header)
	w.must(err)
	return a
}

func (w *world) try(client *http.Client, method, address, contentType string, body []byte, header http.Header) (answer, error) {
	r, err := http.NewRequestWithContext(w.Context(), method, address, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for name, values := range header {
		r.Header[name] = values
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	response, err := client.Do(r)
	if err != nil {
		return answer{}, err
	}
	return answerOf(response)
}

// dial opens a connection for bytes that no HTTP client would send; address is a URL of the gateway or the management point.
func (w *world) dial(address string) net.Conn {
	w.Helper()
	u, err := url.Parse(address)
	w.must(err)
	conn, err := net.Dial("tcp", u.Host)
	w.must(err)
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	w.Cleanup(func() { conn.Close() })
	if u.Scheme == "http" {
		return conn
	}
	config := w.anyServer()
	config.NextProtos, config.ServerName = []string{"http/1.1"}, u.Hostname()
	secure := tls.Client(conn, config)
	w.must(secure.Handshake())
	return secure
}

// raw sends bytes as they are and reads one answer.
func (w *world) raw(address, request string) answer {
	w.Helper()
	conn := w.dial(address)
	defer conn.Close()
	go io.WriteString(conn, request) // a server may answer before it has read all
	return w.read(conn)
}

func (w *world) read(conn net.Conn) answer {
	w.Helper()
	response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodPost})
	w.must(err)
	a, err := answerOf(response)
	w.must(err)
	return a
}

// state is what no refusal may change.
type state struct {
	devices []site.Device
	trust   int
	uses    map[string]int
	epoch   uint64
}

func (w *world) state() state {
	w.Helper()
	s := w.Site()
	devices, err := s.Devices(w.Context(), site.DeviceFilter{})
	w.must(err)
	for i := range devices {
		devices[i].LastSeen = time.Time{} // to be heard of is no change
	}
	entries, err := s.TrustLog(w.Context(), 0, 0)
	w.must(err)
	tokens, err := s.BulkTokens(w.Context())
	w.must(err)
	uses := map[string]int{}
	for _, t := range tokens {
		uses[t.ID] = t.Uses
	}
	return state{devices, len(entries), uses, s.Epoch()}
}

// unchanged fails when act changes the site.
func (w *world) unchanged(act func()) {
	w.Helper()
	before := w.state()
	act()
	if got, want := fmt.Sprint(w.state()), fmt.Sprint(before); got != want {
		w.Errorf("the site has changed:\ngot  %s\nwant %s", got, want)
		entries, err := w.Site().TrustLog(w.Context(), 0, 0)
		w.must(err)
		for _, e := range entries {
			w.Logf("%d %s: %s %s", e.At.UnixMilli(), e.Actor, e.Action, e.Subject) // epochs are milliseconds of the clock too
		}
	}
}

// refusal is how a request must be answered.
type refusal struct {
	status int
	reason string       // "" for the usual text of the status
	code   catalog.Code // in the problem document, at the gateway or at the management point
	silent bool         // an empty body: only log and event say the code
}

// check compares an answer with what was refused, at the hop that refused it.
func (w *world) check(a answer, want refusal) {
	w.Helper()
	reason := want.reason
	if reason == "" {
		reason = http.StatusText(want.status)
	}
	if a.status != want.status || a.reason != reason {
		w.Errorf("answered %s, want %d %s", a, want.status, reason)
	}
	switch {
	case want.silent && len(a.body) != 0:
		w.Errorf("a body of %d bytes, want none", len(a.body))
	case !want.silent && a.problem() != want.code:
		w.Errorf("answered code %q (%s), want %s", a.problem(), a, want.code)
	}
	if want.code == "" {
		return
	}
	if got := w.codes(a.id()); !slices.Contains(got, want.code) {
		w.Errorf("the hops told of %v, want %s", got, want.code)
	}
}

// codes are the codes that the hops gave for one request.
func (w *world) codes(id string) []catalog.Code {
	w.Helper()
	wanted := func() (codes []catalog.Code, heard bool) {
		if e, ok := w.gateway.get(id); ok {
			codes, heard = append(codes, e.Code()), true
		}
		if e, ok := w.point.get(id); ok {
			codes, heard = append(codes, catalog.CodeOf(e.Err)), true
		}
		return codes, heard
	}
	var codes []catalog.Code
	eventually(w, "a hop tells of message "+id, func() (heard bool) {
		codes, heard = wanted()
		return heard
	})
	return codes
}

// refuses sends something bad, compares the answer and makes sure that the site is as before.
func (w *world) refuses(want refusal, act func() answer) {
	w.Helper()
	w.unchanged(func() { w.check(act(), want) })
}

// event waits until an event with the code is written down.
func (w *world) event(code catalog.Code) site.Event {
	w.Helper()
	var found site.Event
	eventually(w, "an event with code "+string(code), func() bool {
		w.Site().Flush(w.Context())
		events, err := w.Site().Events(w.Context(), site.EventFilter{Code: string(code), Limit: 1})
		w.must(err)
		if len(events) > 0 {
			found = events[0]
		}
		return len(events) > 0
	})
	return found
}

// connectorCertificate joins a connector and returns its certificate.
func (w *world) connectorCertificate(name string) tls.Certificate {
	w.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	w.must(err)
	code, err := w.Site().Invite(w.Context(), name, "test")
	w.must(err)
	chain, _, err := w.Site().Join(w.Context(), code, csr)
	w.must(err)
	return tls.Certificate{Certificate: chain, PrivateKey: key}
}

// signingKeys opens the site's own keys, as only the holder of site.key can, to make tokens that are wrong in one way only.
func (w *world) signingKeys() map[string]crypto.Signer {
	w.Helper()
	sealer, err := keyfile.Open(filepath.Join(w.Dir, "site"), keyfile.Options{})
	w.must(err)
	records, err := w.Site().SigningKeys(w.Context())
	w.must(err)
	keys := map[string]crypto.Signer{}
	for _, r := range records {
		der, err := sealer.Open("signing-key:"+r.ID, r.Private)
		w.must(err)
		key, err := x509.ParsePKCS8PrivateKey(der)
		w.must(err)
		keys[r.Purpose] = key.(crypto.Signer)
	}
	return keys
}

// thumbprint is the name of a device's key.
func (d *device) thumbprint(t testing.TB) proof.KeyThumbprint {
	t.Helper()
	key, err := proof.Thumbprint(&d.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
