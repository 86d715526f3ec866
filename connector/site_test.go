package connector

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/token"
	"postern/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience  = 10 * time.Second
	hierarchy = "8ed3174b-e814-41b5-b51c-fb368f0d4003"
	role      = 72186325152220500 // S2
)

// authority is a site root.
type authority struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
	pin         string
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root " + token.Pin(&key.PublicKey)[:8]}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, certificate, token.Pin(&key.PublicKey)}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue makes a certificate; change may alter it first.
func (a *authority) issue(t testing.TB, roleName, name string, usage x509.ExtKeyUsage, change ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	if roleName != "" {
		template.URIs = append(template.URIs, token.RoleURI(hierarchy, roleName, name))
	}
	for _, f := range change {
		f(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, a.certificate.Raw}, PrivateKey: key}
}

func pinOf(c tls.Certificate) string { return token.Pin(c.PrivateKey.(*ecdsa.PrivateKey).Public()) }

// site is a whole site around one connector: root, management point, gateways.
type site struct {
	t        testing.TB
	root     *authority
	mp       *httptest.Server
	gateways []*gateway

	requests atomic.Int32     // at the management point, but for the state's
	handler  http.HandlerFunc // answers them
	streams  atomic.Int32     // of the state that were opened
	sent     chan string      // posted to /postern/state

	mu      sync.Mutex
	state   token.SiteState
	changed chan struct{}
}

func newSite(t testing.TB) *site {
	t.Helper()
	if t, ok := t.(*testing.T); ok {
		t.Parallel() // a drain takes a second
	}
	s := &site{t: t, root: newAuthority(t), sent: make(chan string, 10), changed: make(chan struct{})}
	s.handler = func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }
	s.mp = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.mp.TLS = &tls.Config{
		Certificates: []tls.Certificate{s.root.issue(t, token.RoleManagementPoint, "mp1", x509.ExtKeyUsageServerAuth)},
		ClientAuth:   tls.RequireAnyClientCert, VerifyConnection: auth.ClientVerifier(s.root.pin, token.RoleConnector, time.Now),
	}
	s.mp.Config.ErrorLog = quiet()
	s.mp.StartTLS()
	t.Cleanup(s.mp.Close)
	s.state = token.SiteState{
		Epoch: 1, SiteCode: "MEM", Hierarchy: hierarchy,
		Published: []token.Published{{RoleID: role, Name: "mp1", InternalURL: s.mp.URL, Endpoints: []ccm.Endpoint{
			ccm.EndpointSTS, ccm.EndpointMP, ccm.EndpointSystem, ccm.EndpointSystemTokenAuth, ccm.EndpointClient,
		}}},
	}
	return s
}

// change makes a new epoch of the state.
func (s *site) change(f func(*token.SiteState)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.state)
	s.state.Epoch++
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != statePath {
		s.requests.Add(1)
		s.handler(w, r)
		return
	}
	if r.Method == http.MethodPost {
		body, _ := io.ReadAll(r.Body)
		s.sent <- string(body)
		fmt.Fprint(w, "thank you")
		return
	}
	s.streams.Add(1)
	for {
		s.mu.Lock()
		state, changed := s.state, s.changed
		s.mu.Unlock()
		state.Issued = time.Now()
		line, err := token.SignState(state, s.root.key)
		if err != nil {
			s.t.Error(err)
			return
		}
		fmt.Fprintln(w, line)
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// gateway accepts connectors as a gateway does.
type gateway struct {
	Gateway
	hub      *tunnel.Hub
	listener net.Listener
	arrived  chan struct{}
}

// gateway starts one and lists it in the state; rootPin is the root that it trusts.
func (s *site) gateway(name, rootPin string) *gateway {
	s.t.Helper()
	certificate := s.root.issue(s.t, token.RoleGateway, name, x509.ExtKeyUsageServerAuth)
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	g := &gateway{
		Gateway: Gateway{Name: name, Address: raw.Addr().String(), Pin: pinOf(certificate)},
		arrived: make(chan struct{}, 100),
	}
	g.hub = tunnel.NewHub(tunnel.HubConfig{})
	g.listener = tls.NewListener(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}, NextProtos: []string{tunnel.ALPN, "http/1.1"},
		ClientAuth: tls.RequireAnyClientCert, VerifyConnection: auth.ClientVerifier(rootPin, token.RoleConnector, time.Now),
	})
	var accepting sync.WaitGroup
	accepting.Go(func() { g.accept(&accepting) })
	s.t.Cleanup(func() {
		g.listener.Close()
		g.hub.Close()
		accepting.Wait()
	})
	s.gateways = append(s.gateways, g)
	s.change(func(state *token.SiteState) {
		state.Gateways = append(state.Gateways, token.Gateway{Name: name, URL: "https://" + g.Address, Pin: g.Pin})
	})
	return g
}

func (g *gateway) accept(handshakes *sync.WaitGroup) {
	for {
		conn, err := g.listener.Accept()
		if err != nil {
			return
		}
		handshakes.Go(func() {
			if conn.(*tls.Conn).Handshake() != nil || conn.(*tls.Conn).ConnectionState().NegotiatedProtocol != tunnel.ALPN {
				conn.Close()
				return
			}
			if _, err := g.hub.Add(context.Background(), conn, "connector", "pin"); err == nil {
				g.arrived <- struct{}{}
			}
		})
	}
}

// connector starts one and stops it at the end of the test. It tries again at once.
func (s *site) connector(change ...func(*Config)) *Connector {
	s.t.Helper()
	cfg := Config{
		Name: "connector1", RootPin: s.root.pin, ManagementPoint: s.mp.URL,
		Certificate: s.root.issue(s.t, token.RoleConnector, "connector1", x509.ExtKeyUsageClientAuth),
		Random:      func() float64 { return 0 },
	}
	for _, f := range change {
		f(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	s.t.Cleanup(func() {
		for _, g := range s.gateways {
			g.hub.Close() // a drain would take a second; TestStopDrains has it
		}
		cancel()
		if err := await(s.t, done); err != nil {
			s.t.Error(err)
		}
	})
	return c
}

// connected is a site with one gateway, to which a connector is connected.
func connected(t testing.TB, change ...func(*Config)) (*site, *gateway, *Connector) {
	t.Helper()
	s := newSite(t)
	g := s.gateway("gateway1", s.root.pin)
	c := s.connector(change...)
	await(t, g.arrived)
	await(t, g.arrived)
	eventually(t, func() bool { return c.Status().Healthy() })
	return s, g, c
}

func await[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing happened")
		panic("unreachable")
	}
}

// eventually waits for what another goroutine does over a real network.
func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come to that")
		}
	}
}

// target is a path at the gateway in front of a path at the management point.
func target(internal string) string {
	return fmt.Sprint("/CCM_Proxy_ServerAuth/", uint64(role), internal)
}

func newRequest(t testing.TB, method, target string, body io.Reader) *http.Request {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, "http://gateway.example/", body)
	if err != nil {
		t.Fatal(err)
	}
	req.URL = &url.URL{Scheme: "http", Host: "gateway.example", Opaque: target}
	if !strings.HasPrefix(target, "http") && !strings.HasPrefix(target, "//") {
		path, query, _ := strings.Cut(target, "?")
		req.URL = &url.URL{Scheme: "http", Host: "gateway.example", Opaque: path, RawQuery: query}
	}
	req.Header.Set(ccm.HeaderExternalHost, "cmg.example")
	req.Header.Set(ccm.HeaderMessageID, "3087bd34-b82c-4950-b972-e82bb0fb8385")
	return req
}

type answer struct {
	status int
	header http.Header
	body   string
}

func send(t testing.TB, rt http.RoundTripper, req *http.Request) answer {
	t.Helper()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: body: %v", req.Method, req.URL, err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

func wantRefusal(t testing.TB, got answer, status int, phrase string, code catalog.Code) {
	t.Helper()
	if got.status != status || phrase != "" && got.header.Get(ccm.HeaderStatus) != phrase || !strings.Contains(got.body, `"code":"`+string(code)+`"`) {
		t.Errorf("got %d %q %s, want %d %q %s", got.status, got.header.Get(ccm.HeaderStatus), got.body, status, phrase, code)
	}
}
