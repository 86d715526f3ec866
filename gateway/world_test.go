package gateway

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
	"postern/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	host      = "gateway.example"
	hierarchy = "8ed3174b-e814-41b5-b51c-fb368f0d4003"
	role      = 72057594037937981
)

// ring is the site's token keys; an RSA key is made once for all tests.
var ring = sync.OnceValue(func() *token.Ring {
	var keys []token.Key
	for _, kind := range token.Kinds() {
		key, err := token.NewKey(kind, time.Now().Add(-48*time.Hour), rand.Reader)
		if err != nil {
			panic(err)
		}
		keys = append(keys, key)
	}
	return token.NewRing(hierarchy, keys)
})

// authority is a site root that issues role certificates.
type authority struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t testing.TB) authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Postern Site Root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return authority{key, certify(t, template, template, &key.PublicKey, key)}
}

func certify(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func (a authority) pin() string { return token.Pin(&a.key.PublicKey) }

// issue returns the chain of a role certificate.
func (a authority) issue(t testing.TB, role, name string, public crypto.PublicKey, hosts ...string) [][]byte {
	t.Helper()
	use := x509.ExtKeyUsageServerAuth
	if role == token.RoleConnector {
		use = x509.ExtKeyUsageClientAuth
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use}, BasicConstraintsValid: true,
		DNSNames: hosts, URIs: []*url.URL{token.RoleURI(hierarchy, role, name)},
	}
	return [][]byte{certify(t, template, a.certificate, public, a.key).Raw, a.certificate.Raw}
}

func selfSigned(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	return certify(t, template, template, &key.PublicKey, key).Raw
}

// site stands for everything behind the connector: the management point's state door and
// a backend that the test writes.
type site struct {
	t       testing.TB
	root    authority
	backend http.HandlerFunc

	mu      sync.Mutex
	state   token.SiteState
	streams map[chan string]bool
	acks    chan token.Ack
	issue   bool // answer certificate requests
}

func newSite(t testing.TB) *site {
	t.Helper()
	keys, err := ring().PublicKeys()
	if err != nil {
		t.Fatal(err)
	}
	endpoints := []ccm.Endpoint{
		ccm.EndpointSTS, ccm.EndpointSystemTokenAuth, ccm.EndpointMPTokenAuth, ccm.EndpointClient, ccm.EndpointContent,
		ccm.EndpointSystem, ccm.EndpointMP, ccm.EndpointState,
	}
	return &site{
		t: t, root: newAuthority(t), streams: map[chan string]bool{}, acks: make(chan token.Ack, 100),
		backend: func(w http.ResponseWriter, r *http.Request) {
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "%s %s %d", r.Method, r.RequestURI, n)
		},
		state: token.SiteState{
			Epoch: 1, SiteCode: "MEM", Hierarchy: hierarchy, Keys: keys,
			Published: []token.Published{{RoleID: role, Name: "mp.example", InternalURL: "https://mp.example", Endpoints: endpoints}},
		},
	}
}

// signed returns the state as a line.
func (s *site) signed() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Issued = time.Now()
	line, err := token.SignState(s.state, s.root.key)
	if err != nil {
		s.t.Error(err)
	}
	return line
}

// change makes a new epoch and tells everybody.
func (s *site) change(edit func(*token.SiteState)) {
	s.mu.Lock()
	edit(&s.state)
	s.state.Epoch++
	s.mu.Unlock()
	s.say(s.signed())
}

// say sends a line to everybody who follows.
func (s *site) say(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for stream := range s.streams {
		select {
		case stream <- line:
		default:
		}
	}
}

// ServeHTTP is what the connector's handler does.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.RequestURI != statePath:
		s.backend(w, r)
	case r.Method == http.MethodGet:
		s.stream(w, r)
	default:
		s.acknowledge(w, r)
	}
}

func (s *site) stream(w http.ResponseWriter, r *http.Request) {
	lines := make(chan string, 100)
	s.mu.Lock()
	s.streams[lines] = true
	s.mu.Unlock()
	first := s.signed() // after that, so that no change falls between
	defer func() {
		s.mu.Lock()
		delete(s.streams, lines)
		s.mu.Unlock()
	}()
	for line := first; ; {
		io.WriteString(w, line+"\n")
		w.(http.Flusher).Flush()
		select {
		case line = <-lines:
		case <-r.Context().Done():
			return
		}
	}
}

func (s *site) acknowledge(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return // the gateway stops
	}
	ack, _, err := token.OpenAck(string(raw))
	if err != nil {
		s.t.Error(err)
	}
	reply := map[string]any{"epoch": ack.Epoch}
	if len(ack.CSR) > 0 && s.issue {
		request, err := x509.ParseCertificateRequest(ack.CSR)
		if err != nil || request.CheckSignature() != nil {
			s.t.Errorf("certificate request: %v", err)
			return
		}
		reply["chain"] = s.root.issue(s.t, token.RoleGateway, host, request.PublicKey, request.DNSNames...)
	}
	s.acks <- ack
	json.NewEncoder(w).Encode(reply)
}

// world is a gateway on loopback with its site.
type world struct {
	t       testing.TB
	site    *site
	key     *ecdsa.PrivateKey
	config  Config
	gateway *Gateway
	address string
	log     *journal
	seen    chan Exchange
	stop    func()
	clients []*http.Transport
}

// newWorld starts a gateway without connector. The test may change the configuration.
func newWorld(t testing.TB, edit ...func(*Config)) *world {
	t.Helper()
	return startWorld(t, newSite(t), newKey(t), edit...)
}

func startWorld(t testing.TB, s *site, key *ecdsa.PrivateKey, edit ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, site: s, key: key, log: &journal{}, seen: make(chan Exchange, 10_000)}
	w.config = Config{
		Names: []string{host}, RootPin: s.root.pin(), Key: key, Certificate: selfSigned(t, key),
		State: auth.NewState(s.root.pin(), time.Now), Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Limits: Limits{Anonymous: 1e6, AnonymousBurst: 1e6, Retry: time.Millisecond, Grace: 2 * time.Second},
		Observe: func(e Exchange) {
			select {
			case w.seen <- e:
			default:
			}
		},
	}
	for _, change := range edit {
		change(&w.config)
	}
	var err error
	if w.gateway, err = New(w.config); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- w.gateway.Serve(ctx, listener) }()
	w.stop = sync.OnceFunc(func() {
		for _, client := range w.clients {
			client.CloseIdleConnections()
		}
		cancel()
		if err := await(t, served); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() { w.stop() })
	return w
}

// journal keeps what was logged.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func await[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing for ten seconds")
	}
	return v
}

// eventually waits until the condition holds: the other side of a real connection acts
// when it acts.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after ten seconds still not: %s", what)
		}
	}
}

// link is a connector's connection.
type link struct {
	conn  *tls.Conn
	ended chan error
	stop  context.CancelFunc
}

// connect connects a connector under the site root and waits until the gateway has its
// first state through it.
func (w *world) connect() *link {
	w.t.Helper()
	key := newKey(w.t)
	return w.connectWith(key, w.site.root.issue(w.t, token.RoleConnector, "connector-1", &key.PublicKey))
}

func (w *world) connectWith(key *ecdsa.PrivateKey, chain [][]byte) *link {
	w.t.Helper()
	l := w.dial(key, chain)
	if l == nil {
		w.t.Fatal("the connector was refused")
	}
	eventually(w.t, "the gateway follows the site state", func() bool { return !w.gateway.state.Stale() && len(w.gateway.hub.Connections()) > 0 })
	return l
}

// dial returns nil when the gateway refuses the connector.
func (w *world) dial(key *ecdsa.PrivateKey, chain [][]byte) *link {
	w.t.Helper()
	conn, err := tls.Dial("tcp", w.address, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{tunnel.ALPN}, ServerName: host,
		Certificates:       []tls.Certificate{{Certificate: chain, PrivateKey: key}},
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if pin := token.Pin(cs.PeerCertificates[0].PublicKey); pin != w.gateway.Pin() {
				return fmt.Errorf("the gateway shows the pin %s", pin)
			}
			return nil
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &link{conn: conn, ended: make(chan error, 1), stop: stop}
	go func() {
		l.ended <- tunnel.Serve(ctx, conn, w.site, tunnel.ServeConfig{Grace: 100 * time.Millisecond})
	}()
	w.t.Cleanup(func() {
		stop()
		conn.NetConn().Close()
	})
	return l
}

// client returns a device's HTTP client. It trusts the site root and the self-signed
// certificate.
func (w *world) client(http2 bool) *http.Client {
	pool := x509.NewCertPool()
	pool.AddCert(w.site.root.certificate)
	own, _ := x509.ParseCertificate(w.config.Certificate)
	pool.AddCert(own)
	var protocols http.Protocols
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	transport := &http.Transport{
		Protocols: &protocols, TLSClientConfig: &tls.Config{RootCAs: pool},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, w.address)
		},
	}
	w.clients = append(w.clients, transport)
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// raw opens a TLS connection for HTTP/1.1 by hand.
func (w *world) raw() *tls.Conn {
	w.t.Helper()
	conn, err := tls.Dial("tcp", w.address, &tls.Config{InsecureSkipVerify: true, ServerName: host, NextProtos: []string{"http/1.1"}})
	if err != nil {
		w.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

// device is a device with its key and the tokens that the site gave it.
type device struct {
	t      testing.TB
	key    *ecdsa.PrivateKey
	id     proof.KeyThumbprint
	client ccm.ClientID
}

func newDevice(t testing.TB) *device {
	t.Helper()
	d := &device{t: t, key: newKey(t)}
	var err error
	if d.id, err = proof.Thumbprint(&d.key.PublicKey); err != nil {
		t.Fatal(err)
	}
	if d.client, err = ccm.NewClientID(rand.Reader); err != nil {
		t.Fatal(err)
	}
	return d
}

// token returns a token for this device; at is when the site made it.
func (d *device) token(kind token.Kind, scope, id string, at time.Time) string {
	d.t.Helper()
	claims := token.Claims{ID: id, Scope: scope}
	if kind != token.KindBulk {
		claims.Client, claims.Key, claims.TokenType = d.client, d.id, token.TypeDevice
	}
	raw, err := ring().Sign(kind, claims, at)
	if err != nil {
		d.t.Fatal(err)
	}
	return raw
}

func (d *device) ccmToken() string {
	return d.token(token.KindCCM, token.ScopeClient, rand.Text(), time.Now())
}

func (d *device) proof(method, url, raw string) string {
	d.t.Helper()
	p, err := token.SignProof(d.key, method, url, raw, time.Now(), rand.Reader)
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}

// show puts a token and its proof on a request.
func (d *device) show(r *http.Request, raw string) *http.Request {
	d.t.Helper()
	r.Header.Set("Authorization", "DPoP "+raw)
	r.Header.Set("DPoP", d.proof(r.Method, "https://"+host+r.URL.Path, raw))
	return r
}

func request(t testing.TB, method, path string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequest(method, "https://"+host+path, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// answered is an answer, read.
type answered struct {
	status  int
	reason  string
	code    catalog.Code
	header  http.Header
	body    string
	problem struct {
		Code     catalog.Code `json:"code"`
		Status   int          `json:"status"`
		Instance string       `json:"instance"`
	}
}

func do(t testing.TB, client *http.Client, r *http.Request) answered {
	t.Helper()
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answered{status: response.StatusCode, header: response.Header, body: string(body)}
	_, a.reason, _ = strings.Cut(response.Status, " ")
	if strings.HasPrefix(response.Header.Get("Content-Type"), "application/problem+json") {
		if err := json.Unmarshal(body, &a.problem); err != nil {
			t.Fatalf("problem %q: %v", body, err)
		}
		a.code = a.problem.Code
	}
	return a
}

func external(door ccm.Door, internal string) string { return ccm.ExternalPath(door, role, internal) }

func tokenPath(internal string) string { return external(ccm.DoorServerAuth, internal) }

func wantCode(t testing.TB, err error, want catalog.Code) {
	t.Helper()
	if got := catalog.CodeOf(err); got != want {
		t.Errorf("error %v has code %q, want %q", err, got, want)
	}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
