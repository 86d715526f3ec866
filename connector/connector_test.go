package connector

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/logfile"
	"postern/token"
	"postern/tunnel"
)

func TestRewritesByTheTable(t *testing.T) {
	s, g, _ := connected(t)
	var got *http.Request
	s.handler = func(w http.ResponseWriter, r *http.Request) {
		got = r.Clone(context.Background())
		io.Copy(w, r.Body)
	}
	tests := []struct {
		name, method, path, want string
	}{
		{"token service", "POST", "/CCM_STS", "/CCM_STS"},
		{"case of the documents", "POST", "/ccm_sts", "/CCM_STS"},
		{"messages", "CCM_POST", "/ccm_system_tokenauth/request", "/CCM_System_TokenAuth/request"},
		{"query is kept", "GET", "/SMS_MP/.sms_aut?MPLIST2&CM1", "/SMS_MP/.sms_aut?MPLIST2&CM1"},
		{"file names keep their case", "GET", "/CCM_Client/CcmSetup.cab", "/CCM_Client/CcmSetup.cab"},
		{"webdav", "PROPFIND", "/CCM_Client/x", "/CCM_Client/x"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			body := "body of " + test.name
			if a := send(t, g.hub, newRequest(t, test.method, target(test.path), strings.NewReader(body))); a.status != 200 || a.body != body {
				t.Errorf("answer %d %q", a.status, a.body)
			}
			if got.Method != test.method || got.RequestURI != test.want {
				t.Errorf("management point got %s %s, want %s %s", got.Method, got.RequestURI, test.method, test.want)
			}
			if want := strings.TrimPrefix(s.mp.URL, "https://"); got.Host != want {
				t.Errorf("host = %s, want %s", got.Host, want)
			}
		})
	}
}

func TestRefusesWhatTheTableDoesNotName(t *testing.T) {
	s, g, _ := connected(t)
	tests := []struct {
		name, method, target string
		status               int
		code                 catalog.Code
	}{
		{"another role", "GET", "/CCM_Proxy_ServerAuth/1/SMS_MP/.sms_aut", 404, catalog.ConnectorEndpointUnknown},
		{"an endpoint that is not published", "CCM_POST", target("/ccm_system_windowsauth/request"), 404, catalog.ConnectorEndpointUnknown},
		{"no door", "GET", "/SMS_MP/.sms_aut", 404, catalog.ConnectorEndpointUnknown},
		{"no endpoint of the protocol", "GET", target("/AdminService/v1.0"), 404, catalog.PathUnknown},
		{"the state behind a role", "GET", target("/postern/state"), 404, catalog.PathUnknown},
		{"the state with a query", "GET", "/postern/state?x", 404, catalog.ConnectorEndpointUnknown},
		{"dots", "GET", target("/SMS_MP/../AdminService"), 400, catalog.PathMalformed},
		{"encoded dots", "GET", target("/SMS_MP/%2e%2e/AdminService"), 400, catalog.PathMalformed},
		{"twice encoded dots", "GET", target("/SMS_MP/%252e%252e/AdminService"), 400, catalog.PathMalformed},
		{"encoded slash", "GET", target("/SMS_MP%2f.sms_aut"), 400, catalog.PathMalformed},
		{"backslash", "GET", target("/SMS_MP/%5c..%5cAdminService"), 400, catalog.PathMalformed},
		{"empty segment", "GET", target("//evil.example/"), 400, catalog.PathMalformed},
		{"parameter", "GET", target("/SMS_MP;x=y/.sms_aut"), 400, catalog.PathMalformed},
		{"overlong slash", "GET", target("/SMS_MP%c0%af.sms_aut"), 400, catalog.PathMalformed},
		{"metadata address as a role", "GET", "/CCM_Proxy_ServerAuth/169.254.169.254/latest", 404, catalog.PathUnknown},
		{"host in the query", "GET", "/CCM_Proxy_ServerAuth/2/SMS_MP/.sms_aut?@evil.example", 404, catalog.ConnectorEndpointUnknown},
		{"method of nobody", "DELETE", target("/SMS_MP/.sms_aut"), 405, catalog.ConnectorMethodRefused},
		{"trace", "TRACE", target("/SMS_MP/.sms_aut"), 405, catalog.ConnectorMethodRefused},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			wantRefusal(t, send(t, g.hub, newRequest(t, test.method, test.target, nil)), test.status, "", test.code)
		})
	}
	if n := s.requests.Load(); n != 0 {
		t.Errorf("%d requests reached the management point", n)
	}
}

// A request target that is no path comes as such only from a gateway that is not ours.
func TestRefusesTargetsThatAreNoPath(t *testing.T) {
	s, _, c := connected(t)
	for _, target := range []string{"http://evil.example/", "https://169.254.169.254/latest", "//evil.example/SMS_MP", "*", "evil.example:443", "", "/CCM_STS#"} {
		w := newRecorder()
		r := &http.Request{Method: "GET", RequestURI: target, URL: new(url.URL), Header: http.Header{}, ProtoMajor: 2, Body: http.NoBody}
		(&forwarder{Connector: c, gateway: Gateway{Name: "rogue"}}).ServeHTTP(w, r)
		if w.status < 400 {
			t.Errorf("%q was answered %d", target, w.status)
		}
	}
	if n := s.requests.Load(); n != 0 {
		t.Errorf("%d requests reached the management point", n)
	}
}

// recorder is a ResponseWriter of nobody.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func newRecorder() *recorder                        { return &recorder{header: http.Header{}} }
func (w *recorder) Header() http.Header             { return w.header }
func (w *recorder) WriteHeader(status int)          { w.status = status }
func (w *recorder) Write(p []byte) (n int, _ error) { return w.body.Write(p) }

func TestHeadersByList(t *testing.T) {
	s, g, _ := connected(t)
	var got http.Header
	s.handler = func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		for name, value := range map[string]string{
			"Location": "https://internal.example/", "Keep-Alive": "timeout=5", ccm.HeaderStatus: "CMGService_Forged",
			"Content-Type": "multipart/mixed", "WWW-Authenticate": "DPoP", ccm.HeaderClientAddress: "1.2.3.4",
		} {
			w.Header().Set(name, value)
		}
	}
	req := newRequest(t, "GET", target("/SMS_MP/.sms_aut"), nil)
	passes := map[string]string{
		"Authorization": "DPoP abc", "Dpop": "proof", "User-Agent": "SMS CCM 5.0", "Clienttoken": "GUID:1", "Range": "bytes=0-1",
		"Ccmclientidsignature": "00", "Traceparent": "00-1", ccm.HeaderClientAddress: "192.0.2.1",
		ccm.HeaderExternalHost: "cmg.example", ccm.HeaderMessageID: "3087bd34-b82c-4950-b972-e82bb0fb8385",
	}
	stays := []string{"Cookie", "X-Forwarded-For", "X-Arr-Clientcert", "Forwarded", "Ssl-Client-Cert", "Proxy-Authorization", "Host-Header", "Postern-Status", "Postern-Other", "Expect"}
	for name, value := range passes {
		req.Header.Set(name, value)
	}
	for _, name := range stays {
		req.Header.Set(name, "forged")
	}
	a := send(t, g.hub, req)
	for name, want := range passes {
		if v := got.Get(name); v != want {
			t.Errorf("%s = %q, want %q", name, v, want)
		}
		got.Del(name)
	}
	if len(got) != 0 {
		t.Errorf("the management point also saw %v", got)
	}
	for _, name := range []string{"Location", "Keep-Alive", ccm.HeaderStatus, ccm.HeaderClientAddress} {
		if v := a.header.Get(name); v != "" {
			t.Errorf("the answer has %s: %s", name, v)
		}
	}
	if a.header.Get("Content-Type") != "multipart/mixed" || a.header.Get("WWW-Authenticate") != "DPoP" {
		t.Errorf("answer's header = %v", a.header)
	}
}

func TestOneRequestHasOneMessageID(t *testing.T) {
	ids := make(chan string, 3)
	s, g, _ := connected(t, func(c *Config) { c.OnRequest = func(x Exchange) { ids <- x.MessageID } })
	s.handler = func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get(ccm.HeaderMessageID)) }
	for name, id := range map[string]string{"a good one": "3087bd34-b82c-4950-b972-e82bb0fb8385", "too long": strings.Repeat("a", 65), "none": ""} {
		req := newRequest(t, "GET", target("/SMS_MP/.sms_aut"), nil)
		if id != "" {
			req.Header.Set(ccm.HeaderMessageID, id)
		}
		a := send(t, g.hub, req)
		if ours := await(t, ids); a.body != ours || ours == "" || len(id) == 36 && ours != id {
			t.Errorf("%s: the management point has %q, our log %q", name, a.body, ours)
		}
	}
}

func TestNoCredentialOfItsOwnAndNoUserAgent(t *testing.T) {
	s, g, _ := connected(t)
	var got http.Header
	s.handler = func(w http.ResponseWriter, r *http.Request) { got = r.Header.Clone() }
	req := newRequest(t, "GET", target("/SMS_MP/.sms_aut"), nil)
	req.Header = http.Header{}
	send(t, g.hub, req)
	if id := got.Get(ccm.HeaderMessageID); len(id) != 36 {
		t.Errorf("message id = %q, want one of the connector's", id)
	}
	got.Del(ccm.HeaderMessageID)
	if len(got) != 0 {
		t.Errorf("headers that nobody sent: %v", got)
	}
}

func TestStatusTexts(t *testing.T) {
	s, g, _ := connected(t)
	tests := []struct {
		name string
		says ccm.Status
		want string
	}{
		{"certificate required (S4)", ccm.StatusClientCertificateRequired, "CMGConnector_Clientcertificaterequired"},
		{"forbidden (S4)", ccm.StatusOf(403), "CMGConnector_Forbidden"},
		{"unauthorized", ccm.StatusOf(401), "CMGConnector_Unauthorized"},
		{"internal error", ccm.StatusOf(500), "CMGConnector_InternalServerError"},
		{"a token refusal keeps its own", ccm.StatusInvalidToken, "CMGService_Invalid_Token"},
		{"others have no text", ccm.StatusOf(404), ""},
		{"unavailable", ccm.StatusOf(503), ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s.handler = func(w http.ResponseWriter, r *http.Request) {
				ccm.WriteStatus(w, r, test.says, http.Header{"Content-Type": {"application/problem+json"}}, []byte(`{"code":"P210"}`))
			}
			a := send(t, g.hub, newRequest(t, "CCM_POST", target("/CCM_STS"), strings.NewReader("x")))
			if a.status != test.says.Code || a.header.Get(ccm.HeaderStatus) != test.want {
				t.Errorf("got %d %q, want %d %q", a.status, a.header.Get(ccm.HeaderStatus), test.says.Code, test.want)
			}
			if a.body != `{"code":"P210"}` || a.header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("body %q of %q is not the management point's", a.body, a.header.Get("Content-Type"))
			}
		})
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	s, g, _ := connected(t)
	s.handler = func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, s.mp.URL+"/CCM_STS", http.StatusFound)
	}
	wantRefusal(t, send(t, g.hub, newRequest(t, "GET", target("/CCM_STS"), nil)), 502, "", catalog.BackendRedirect)
	if n := s.requests.Load(); n != 1 {
		t.Errorf("the management point saw %d requests, want 1", n)
	}
	s.handler = func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotModified) }
	if a := send(t, g.hub, newRequest(t, "GET", target("/CCM_Client/x.cab"), nil)); a.status != http.StatusNotModified {
		t.Errorf("status = %d, want 304", a.status)
	}
}

func TestLargeBodiesStream(t *testing.T) {
	s, g, c := connected(t)
	s.handler = func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // HTTP/1.1 of net/http is not full duplex
		w.Write(body)
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 4<<16)
	a := send(t, g.hub, newRequest(t, "CCM_POST", target("/ccm_system/request"), io.MultiReader(bytes.NewReader(sent))))
	if sha256.Sum256([]byte(a.body)) != sha256.Sum256(sent) {
		t.Errorf("%d bytes came back, not the %d that were sent", len(a.body), len(sent))
	}
	eventually(t, func() bool { return len(c.snapshot().Endpoints) == 1 && c.snapshot().Endpoints[0].Requests == 1 })
	row := c.snapshot().Endpoints[0]
	if row.RequestBytes != int64(len(sent)) || row.ResponseBytes != int64(len(sent)) {
		t.Errorf("counted %d and %d bytes, want %d", row.RequestBytes, row.ResponseBytes, len(sent))
	}
}

func TestManagementPointDown(t *testing.T) {
	s, g, c := connected(t)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	tests := []struct {
		name, url string
		code      catalog.Code
	}{
		{"nobody listens", "https://" + dead.Addr().String(), catalog.BackendUnreachable},
		{"name unknown", "https://mp.invalid", catalog.BackendUnreachable},
		{"plain HTTP in the table", "http://" + dead.Addr().String(), catalog.BackendNotAllowed},
		{"link-local address", "https://169.254.169.254", catalog.BackendNotAllowed},
		{"user in the table", "https://user@mp.example", catalog.BackendNotAllowed},
		{"path in the table", "https://mp.example/path", catalog.BackendNotAllowed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s.change(func(state *token.SiteState) {
				state.Published = slices.Clone(state.Published)
				state.Published[0].InternalURL = test.url
			})
			eventually(t, func() bool { url, _ := c.State().Published(role, ccm.EndpointSTS); return url == test.url })
			a := send(t, g.hub, newRequest(t, "CCM_POST", target("/CCM_STS"), strings.NewReader("x")))
			wantRefusal(t, a, 500, "CMGConnector_InternalServerError", test.code)
		})
	}
}

// A management point with TLS 1.3 judges the connector's certificate when the connector's handshake is over: its alert comes with the answer.
// A connection that is kept alive would show the old certificate beyond its end.
func TestARenewedCertificateIsShownFromTheNextRequestOn(t *testing.T) {
	s, g, c := connected(t)
	under, finish := make(chan struct{}), make(chan struct{})
	s.handler = func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/slow") {
			close(under)
			<-finish
		}
		fmt.Fprint(w, token.Pin(r.TLS.PeerCertificates[0].PublicKey))
	}
	ask := func(file string) string {
		return send(t, g.hub, newRequest(t, "GET", target("/CCM_Client"+file), nil)).body
	}
	old := pinOf(c.cfg.Certificate)
	if got := ask("/a"); got != old {
		t.Fatalf("at first %s, want %s", got, old)
	}
	slow := make(chan string, 1)
	go func() { slow <- ask("/slow") }()
	await(t, under)
	fresh := s.root.issue(t, token.RoleConnector, "connector1", x509.ExtKeyUsageClientAuth)
	c.SetCertificate(fresh)
	for range 3 {
		if got, want := ask("/b"), pinOf(fresh); got != want {
			t.Errorf("renewed: %s, want %s", got, want)
		}
	}
	close(finish)
	if got := await(t, slow); got != old {
		t.Errorf("what was under way ended with %s, want %s", got, old)
	}
	if got, want := ask("/c"), pinOf(fresh); got != want {
		t.Errorf("after it: %s, want %s", got, want)
	}
}

func TestManagementPointRefusesTheCertificate(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			s, g, c := connected(t)
			listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
				MinVersion: version, MaxVersion: version,
				Certificates: []tls.Certificate{s.root.issue(t, token.RoleManagementPoint, "mp2", x509.ExtKeyUsageServerAuth)},
				ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool(),
			})
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{ErrorLog: quiet()}
			go server.Serve(listener)
			t.Cleanup(func() { server.Close() })
			internal := "https://" + listener.Addr().String()
			s.change(func(state *token.SiteState) { state.Published[0].InternalURL = internal })
			eventually(t, func() bool { url, _ := c.State().Published(role, ccm.EndpointMP); return url == internal })
			a := send(t, g.hub, newRequest(t, "GET", target("/SMS_MP/.sms_aut?MPLIST"), nil))
			wantRefusal(t, a, 500, "CMGConnector_InternalServerError", catalog.BackendRefusedConnector)
		})
	}
}

func TestManagementPointTooSlow(t *testing.T) {
	s, g, _ := connected(t, func(c *Config) { c.BackendTimeout = 30 * time.Millisecond })
	s.handler = func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}
	a := send(t, g.hub, newRequest(t, "CCM_POST", target("/CCM_STS"), strings.NewReader("x")))
	wantRefusal(t, a, 500, "CMGConnector_InternalServerError", catalog.BackendTimeout)
}

func TestManagementPointKilledMidAnswer(t *testing.T) {
	s, g, _ := connected(t)
	s.handler = func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "half of")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	resp, err := g.hub.RoundTrip(newRequest(t, "CCM_POST", target("/CCM_STS"), strings.NewReader("x")))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err = io.ReadAll(resp.Body); catalog.CodeOf(err) != catalog.TunnelAborted {
		t.Errorf("error = %v, want code %s", err, catalog.TunnelAborted)
	}
}

func TestManagementPointKilledBeforeAnswer(t *testing.T) {
	s, g, _ := connected(t)
	s.handler = func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }
	a := send(t, g.hub, newRequest(t, "CCM_POST", target("/CCM_STS"), strings.NewReader("x")))
	wantRefusal(t, a, 500, "CMGConnector_InternalServerError", catalog.BackendUnreachable)
}

func TestDeviceGoesAway(t *testing.T) {
	over := make(chan Exchange, 1)
	s, g, _ := connected(t, func(c *Config) { c.OnRequest = func(x Exchange) { over <- x } })
	started, noticed := make(chan struct{}), make(chan struct{})
	s.handler = func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // net/http notices the end of a connection only behind the body
		close(started)
		<-r.Context().Done()
		close(noticed)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-started
		cancel()
	}()
	_, err := g.hub.RoundTrip(newRequest(t, "CCM_POST", target("/CCM_STS"), strings.NewReader("x")).WithContext(ctx))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want context.Canceled", err)
	}
	await(t, noticed)
	if x := await(t, over); x.Status != 0 {
		t.Errorf("exchange = %+v, want no status", x)
	}
}

func TestManagementPointOfAnotherSite(t *testing.T) {
	s := newSite(t)
	other := newAuthority(t)
	c := s.connector(func(c *Config) {
		c.RootPin = other.pin
		c.Gateways = func() []Gateway { return nil }
	})
	eventually(t, func() bool { return c.Status().ManagementPoint.Code == catalog.BackendCertificate })
	if c.Status().Healthy() || c.Status().Epoch != 0 {
		t.Errorf("status = %+v", c.Status())
	}
	w := newRecorder()
	r := &http.Request{Method: "GET", RequestURI: target("/CCM_STS"), URL: new(url.URL), Header: http.Header{}, ProtoMajor: 2, Body: http.NoBody}
	(&forwarder{Connector: c}).ServeHTTP(w, r)
	wantRefusal(t, answer{w.status, w.header, w.body.String()}, 503, "", catalog.ConnectorStateMissing)
	if w.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

func TestBackendWithCompanyCertificate(t *testing.T) {
	company := newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(company.certificate)
	tests := []struct {
		name  string
		names []string
		roots *x509.CertPool
		want  int
	}{
		{"listed authority and right name", []string{"localhost"}, pool, 200},
		{"another name", []string{"other.example"}, pool, 500},
		{"authority not listed", []string{"localhost"}, nil, 500},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, g, c := connected(t, func(c *Config) { c.BackendRoots = test.roots })
			listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{
				company.issue(t, "", "", x509.ExtKeyUsageServerAuth, func(c *x509.Certificate) { c.DNSNames = test.names }),
			}})
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), ErrorLog: quiet()}
			go server.Serve(listener)
			t.Cleanup(func() { server.Close() })
			_, port, _ := net.SplitHostPort(listener.Addr().String())
			internal := "https://localhost:" + port
			s.change(func(state *token.SiteState) { state.Published[0].InternalURL = internal })
			eventually(t, func() bool { url, _ := c.State().Published(role, ccm.EndpointSTS); return url == internal })
			a := send(t, g.hub, newRequest(t, "GET", target("/CCM_STS"), nil))
			if a.status != test.want {
				t.Errorf("status = %d %s, want %d", a.status, a.body, test.want)
			}
			if test.want == 500 {
				wantRefusal(t, a, 500, "CMGConnector_InternalServerError", catalog.BackendCertificate)
			}
		})
	}
}

func TestGatewaysThatAreNotAccepted(t *testing.T) {
	tests := []struct {
		name    string
		change  func(s *site, g *gateway, c *Config)
		gateway func(s *site) string // the root that the gateway trusts
		want    catalog.Code
	}{
		{
			name: "another key than the listed one",
			change: func(s *site, g *gateway, c *Config) {
				list(c, Gateway{"gateway1", g.Address, strings.Repeat("ab", 32)})
			},
			want: catalog.GatewayPinMismatch,
		}, {
			name:   "no pin listed",
			change: func(s *site, g *gateway, c *Config) { list(c, Gateway{"gateway1", g.Address, ""}) },
			want:   catalog.GatewayPinMismatch,
		}, {
			name: "a server that is no gateway",
			change: func(s *site, g *gateway, c *Config) {
				list(c, Gateway{"gateway1", s.mp.Listener.Addr().String(), g.Pin})
			},
			want: catalog.GatewaySpeaksNoTunnel,
		}, {
			name: "the gateway's key without the tunnel",
			change: func(s *site, g *gateway, c *Config) {
				list(c, Gateway{"gateway1", s.mp.Listener.Addr().String(), pinOf(s.mp.TLS.Certificates[0])})
			},
			want: catalog.GatewaySpeaksNoTunnel,
		}, {
			name: "no TLS at all",
			change: func(s *site, g *gateway, c *Config) {
				list(c, Gateway{"gateway1", talker(s.t, "HTTP/1.1 400 Bad Request\r\n\r\n"), g.Pin})
			},
			want: catalog.GatewaySpeaksNoTunnel,
		}, {
			name:    "the gateway trusts another root",
			gateway: func(s *site) string { return newAuthority(s.t).pin },
			change:  func(s *site, g *gateway, c *Config) { list(c, g.Gateway) },
			want:    catalog.GatewayRefusedConnector,
		}, {
			name:   "nobody there",
			change: func(s *site, g *gateway, c *Config) { g.listener.Close(); list(c, g.Gateway) },
			want:   catalog.GatewayUnreachable,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t)
			trusted := s.root.pin
			if test.gateway != nil {
				trusted = test.gateway(s)
			}
			g := s.gateway("gateway1", trusted)
			c := s.connector(func(c *Config) { test.change(s, g, c) })
			eventually(t, func() bool {
				status := c.Status().Gateways
				return len(status) == 1 && status[0].Connections[0].Code != ""
			})
			status := c.Status()
			if got := status.Gateways[0].Connections[0]; got.Code != test.want || got.Error == "" {
				t.Errorf("connection = %+v, want code %s", got, test.want)
			}
			if status.Healthy() || status.Gateways[0].Connected != 0 || len(g.hub.Connections()) != 0 {
				t.Errorf("status = %+v with %d connections at the gateway", status, len(g.hub.Connections()))
			}
		})
	}
}

func list(c *Config, gateways ...Gateway) { c.Gateways = func() []Gateway { return gateways } }

// talker answers each connection with some bytes.
func talker(t testing.TB, says string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			io.ReadFull(conn, make([]byte, 1))
			io.WriteString(conn, says)
			conn.Close()
		}
	}()
	return listener.Addr().String()
}

// proxy is a small CONNECT proxy that wants a login.
func proxy(t testing.TB, login string, refuse int) (address string, connects *atomic.Int32) {
	t.Helper()
	connects = new(atomic.Int32)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		want := "Basic " + base64.StdEncoding.EncodeToString([]byte(login))
		switch {
		case r.Method != http.MethodConnect:
			w.WriteHeader(http.StatusBadRequest)
		case login != "" && r.Header.Get("Proxy-Authorization") != want:
			w.Header().Set("Proxy-Authenticate", "Basic")
			w.WriteHeader(http.StatusProxyAuthRequired)
		case refuse != 0:
			w.WriteHeader(refuse)
		default:
			connects.Add(1)
			relay(w, r.Host)
		}
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return listener.Addr().String(), connects
}

func relay(w http.ResponseWriter, address string) {
	far, err := net.Dial("tcp", address)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	near, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		far.Close()
		return
	}
	io.WriteString(near, "HTTP/1.1 200 Connection established\r\n\r\n")
	go func() { io.Copy(far, near); far.Close() }()
	go func() { io.Copy(near, far); near.Close() }()
}

func TestThroughTheCompanysProxy(t *testing.T) {
	tests := []struct {
		name   string
		user   *url.Userinfo
		refuse int
		broken bool
		want   catalog.Code
	}{
		{"with the right login", url.UserPassword("svc", "p:w"), 0, false, ""},
		{"with a wrong login", url.UserPassword("svc", "x"), 0, false, catalog.OutboundProxyAuthentication},
		{"without a login", nil, 0, false, catalog.OutboundProxyAuthentication},
		{"the gateway is not allowed", url.UserPassword("svc", "p:w"), 403, false, catalog.OutboundProxyRefused},
		{"something else answers", nil, 0, true, catalog.OutboundProxyUnreachable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			address, connects := proxy(t, "svc:p:w", test.refuse)
			if test.broken {
				address = talker(t, "SSH-2.0-OpenSSH\r\n\r\n")
			}
			s := newSite(t)
			g := s.gateway("gateway1", s.root.pin)
			c := s.connector(func(c *Config) {
				c.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: address, User: test.user})
			})
			if test.want != "" {
				eventually(t, func() bool {
					all := c.Status().Gateways
					return len(all) == 1 && all[0].Connections[0].Code == test.want
				})
				if strings.Contains(c.Status().Gateways[0].Connections[0].Error, "p:w") {
					t.Error("the status shows the password")
				}
				return
			}
			await(t, g.arrived)
			if a := send(t, g.hub, newRequest(t, "CCM_POST", target("/CCM_STS"), strings.NewReader("x"))); a.body != "x" {
				t.Errorf("answer = %+v", a)
			}
			if connects.Load() == 0 {
				t.Error("the proxy was not asked")
			}
		})
	}
}

func TestProxyOfTheEnvironment(t *testing.T) {
	const gateway = "https://gw.example:443"
	for _, test := range []struct {
		name, proxy, without string
		want                 string // the proxy
		named                string // in the error
	}{
		{"none", "", "", "", ""},
		{"an address", "http://svc:pw@proxy.example:8080", "", "proxy.example:8080", ""},
		{"host and port alone", "proxy.example:8080", "", "proxy.example:8080", ""},
		{"not for this gateway", "http://proxy.example:8080", "gw.example", "", ""},
		{"a password that is not escaped", "http://svc:p%zz@proxy.example:8080", "", "", "proxy.example:8080"},
		{"half an address", "http://svc:p@ss@[::1", "", "", "[::1"},
		{"one that is not needed", "http://svc:p%zz@proxy.example:8080", ".example", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			to, err := url.Parse(gateway)
			if err != nil {
				t.Fatal(err)
			}
			proxy, err := environmentProxy(&httpproxy.Config{HTTPSProxy: test.proxy, NoProxy: test.without})(&http.Request{URL: to})
			got := ""
			if proxy != nil {
				got = proxy.Host
			}
			if got != test.want || (err != nil) != (test.named != "") {
				t.Fatalf("got %q, %v; want %q", got, err, test.want)
			}
			if err != nil && (catalog.CodeOf(err) != catalog.OutboundProxyUnreachable || !strings.Contains(err.Error(), test.named) || strings.Contains(err.Error(), "svc")) {
				t.Errorf("%v does not name %q alone", err, test.named)
			}
		})
	}
}

func TestReconnects(t *testing.T) {
	pauses := make(chan time.Duration, 100)
	release := make(chan time.Time)
	_, g, c := connected(t, func(c *Config) {
		c.ConnectionsPerGateway = 2
		c.Random = func() float64 { return 0.5 }
		c.After = func(d time.Duration) <-chan time.Time {
			if d > time.Minute || d == maintainEvery || d == auth.StaleAfter {
				return nil
			}
			pauses <- d
			return release
		}
	})
	g.hub.Drop(func(tunnel.Connection) bool { return true })
	for range 2 {
		if got, want := await(t, pauses), firstPause/2; got != want {
			t.Errorf("pause = %v, want %v", got, want)
		}
	}
	for _, connection := range c.Status().Gateways[0].Connections {
		if connection.State != Waiting || connection.Code != catalog.TunnelLost || connection.NextTry.IsZero() {
			t.Errorf("connection = %+v, want waiting with code %s", connection, catalog.TunnelLost)
		}
	}
	for range 2 {
		release <- time.Time{}
		await(t, g.arrived)
	}
	eventually(t, func() bool { return c.Status().Healthy() && c.Status().Gateways[0].Connected == 2 })
	if code := c.Status().Gateways[0].Connections[0].Code; code != "" {
		t.Errorf("code after the repair = %s", code)
	}
}

func TestBackoffSpreads(t *testing.T) {
	tests := []struct {
		name   string
		random float64
		want   []time.Duration
	}{
		{"full", 1, []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute, time.Minute}},
		{"a random part also at the cap", 0.5, []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second}},
		{"never none at all", 0, []time.Duration{leastPause, leastPause}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := newBackoff(func() float64 { return test.random })
			for i, want := range test.want {
				if got := b.next(); got != want {
					t.Errorf("pause %d = %v, want %v", i, got, want)
				}
			}
			b.reset()
			if got, want := b.next(), test.want[0]; got != want {
				t.Errorf("after a reset %v, want %v", got, want)
			}
		})
	}
}

func TestGatewayListFollowsTheState(t *testing.T) {
	s, first, c := connected(t)
	second := s.gateway("gateway2", s.root.pin)
	await(t, second.arrived)
	s.change(func(state *token.SiteState) { state.Gateways = state.Gateways[1:] })
	eventually(t, func() bool { return len(first.hub.Connections()) == 0 })
	eventually(t, func() bool {
		all := c.Status().Gateways
		return len(all) == 1 && all[0].Name == "gateway2" && all[0].Connected == 2
	})
	if a := send(t, second.hub, newRequest(t, "CCM_POST", target("/CCM_STS"), strings.NewReader("x"))); a.body != "x" {
		t.Errorf("answer = %+v", a)
	}
}

func TestStopDrains(t *testing.T) {
	s := newSite(t)
	g := s.gateway("gateway1", s.root.pin)
	started, finish := make(chan struct{}), make(chan struct{})
	s.handler = func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		close(started)
		<-finish
		fmt.Fprint(w, "finished")
	}
	c, err := New(Config{
		Name: "connector1", RootPin: s.root.pin, ManagementPoint: s.mp.URL,
		Certificate: s.root.issue(t, token.RoleConnector, "connector1", x509.ExtKeyUsageClientAuth),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- c.Run(ctx) }()
	await(t, g.arrived)
	answered := make(chan answer, 1)
	go func() {
		answered <- send(t, g.hub, newRequest(t, "CCM_POST", target("/CCM_STS"), strings.NewReader("x")))
	}()
	await(t, started)
	cancel()
	eventually(t, func() bool {
		return !slices.ContainsFunc(g.hub.Connections(), func(c tunnel.Connection) bool { return !c.Draining })
	})
	close(finish)
	if a := await(t, answered); a.body != "finished" {
		t.Errorf("answer = %+v", a)
	}
	if err := await(t, stopped); err != nil {
		t.Error(err)
	}
	if n := len(g.hub.Connections()); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

func TestStateIsRelayedAsItComes(t *testing.T) {
	s, g, c := connected(t)
	through := g.hub.Through(g.hub.Connections()[0].ID)
	resp, err := through.RoundTrip(newRequest(t, "GET", statePath, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for range 3 {
		line := readLine(t, resp.Body)
		state, err := token.OpenState(line, s.root.pin)
		if err != nil {
			t.Fatal(err)
		}
		if want, _ := c.State().Current(); state.Epoch < want.Epoch {
			t.Errorf("epoch %d, want at least %d", state.Epoch, want.Epoch)
		}
		s.change(func(*token.SiteState) {})
	}
	if a := send(t, through, newRequest(t, "POST", statePath, strings.NewReader("signed acknowledgement"))); a.body != "thank you" {
		t.Errorf("answer = %+v", a)
	}
	if got := await(t, s.sent); got != "signed acknowledgement" {
		t.Errorf("the management point got %q", got)
	}
	wantRefusal(t, send(t, through, newRequest(t, "PUT", statePath, nil)), 405, "", catalog.ConnectorMethodRefused)
}

// A gateway that was taken opens streams without end; each would be a connection to the
// management point.
func TestAGatewayHasAFewStreamsOfTheStateOnly(t *testing.T) {
	s, g, _ := connected(t)
	all := g.hub.Connections()
	through := g.hub.Through(all[0].ID)
	open := func() (*http.Response, context.CancelFunc) {
		request := newRequest(t, "GET", statePath, nil)
		ctx, cancel := context.WithCancel(request.Context())
		response, err := through.RoundTrip(request.WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { response.Body.Close() })
		return response, cancel
	}
	before := s.streams.Load()
	var last context.CancelFunc
	for i := range maxRelayed {
		var response *http.Response
		if response, last = open(); response.StatusCode != 200 {
			t.Fatalf("stream %d: %s", i+1, response.Status)
		}
	}
	wantRefusal(t, send(t, through, newRequest(t, "GET", statePath, nil)), 503, "", catalog.ConnectorStateBusy)
	wantRefusal(t, send(t, through, newRequest(t, "POST", statePath, strings.NewReader("x"))), 503, "", catalog.ConnectorStateBusy)
	if got := s.streams.Load() - before; got != maxRelayed {
		t.Errorf("the management point has %d streams, want %d", got, maxRelayed)
	}
	if a := send(t, g.hub.Through(all[1].ID), newRequest(t, "POST", statePath, strings.NewReader("x"))); a.status != 200 {
		t.Errorf("over the other connection: %+v", a)
	}
	last()
	eventually(t, func() bool { response, _ := open(); return response.StatusCode == 200 })
}

func readLine(t testing.TB, r io.Reader) string {
	t.Helper()
	var line []byte
	for b := make([]byte, 1); ; line = append(line, b[0]) {
		if _, err := r.Read(b); err != nil {
			t.Fatal(err)
		}
		if b[0] == '\n' {
			return string(line)
		}
	}
}

func TestForgedStateIsNotUsed(t *testing.T) {
	_, _, c := connected(t)
	other := newAuthority(t)
	line, err := token.SignState(token.SiteState{Epoch: 99, Issued: time.Now(), SiteCode: "MEM", Hierarchy: hierarchy}, other.key)
	if err != nil {
		t.Fatal(err)
	}
	if c.apply(line) || c.apply("") || c.apply("not a state") {
		t.Error("a line that the site root did not sign was used")
	}
	if state, _ := c.State().Current(); state.Epoch == 99 {
		t.Error("the forged state is in force")
	}
}

func TestSilentStreamIsGivenUp(t *testing.T) {
	silence := make(chan time.Time)
	s, _, c := connected(t, func(c *Config) {
		c.After = func(d time.Duration) <-chan time.Time {
			switch {
			case d == auth.StaleAfter:
				return silence
			case d >= maintainEvery:
				return nil
			}
			return time.After(0)
		}
	})
	before := s.streams.Load()
	silence <- time.Time{}
	eventually(t, func() bool { return s.streams.Load() > before && c.Status().ManagementPoint.State == Connected })
	if !c.Status().Healthy() {
		t.Errorf("status = %+v", c.Status())
	}
}

func TestLogLinesWordForWord(t *testing.T) {
	dir := t.TempDir()
	log, err := logfile.Open(dir, logfile.File{Name: "SMS_CLOUD_PROXYCONNECTOR.log", Format: logfile.Server})
	if err != nil {
		t.Fatal(err)
	}
	log.SetVerbose(true)
	defer log.Close()
	over := make(chan Exchange, 10)
	s, g, _ := connected(t, func(c *Config) { c.Log, c.OnRequest = log, func(x Exchange) { over <- x } })
	send(t, g.hub, newRequest(t, "GET", target("/CCM_STS"), nil))
	await(t, over)
	s.handler = func(w http.ResponseWriter, r *http.Request) {
		ccm.WriteStatus(w, r, ccm.StatusClientCertificateRequired, nil, nil)
	}
	send(t, g.hub, newRequest(t, "GET", target("/SMS_MP/.sms_aut?MPLIST2&CM1"), nil))
	await(t, over)

	content, err := os.ReadFile(filepath.Join(dir, "SMS_CLOUD_PROXYCONNECTOR.log"))
	if err != nil {
		t.Fatal(err)
	}
	const id = "3087bd34-b82c-4950-b972-e82bb0fb8385"
	external := "https://cmg.example" + target("/CCM_STS")
	for _, want := range []string{
		"Maintaining connections...~~  $$<SMS_CLOUD_PROXYCONNECTOR><",
		"Switched to internal URL. Replaced '" + external + "' in   '" + external + "' with '" + s.mp.URL + "/CCM_STS' and got '" + s.mp.URL + "/CCM_STS~~  $$<",
		"Forwarding proxy message " + id + " to URL: " + s.mp.URL + "/CCM_STS~~",
		"MessageID: " + id + " RequestURI: " + s.mp.URL + "/CCM_STS EndpointName: CCM_STS ResponseHeader: HTTP/1.1 200 OK ~~ ResponseBodySize: 0 ElapsedTime: ",
		"Web exception for message " + id + ": System.Net.WebException: The remote server returned an error: (403) Forbidden.~~",
		"Received response " + s.mp.URL + "/SMS_MP/.sms_aut?MPLIST2&CM1 for message " + id + ": HTTP/1.1 403 CMGConnector_Clientcertificaterequired~~",
	} {
		if !bytes.Contains(content, []byte(want)) {
			t.Errorf("no line with %q in\n%s", want, content)
		}
	}
}

// snapshot is the traffic of the five minutes that have begun.
func (c *Connector) snapshot() TrafficReport {
	c.traffic.mu.Lock()
	defer c.traffic.mu.Unlock()
	return c.traffic.report(c.cfg.Now())
}

func TestTrafficReport(t *testing.T) {
	var traffic = newTraffic("connector1", time.Unix(0, 0))
	a := traffic.begin("gateway1", ccm.EndpointSTS, "mp")
	b := traffic.begin("gateway1", ccm.EndpointSTS, "mp")
	a.received.Store(10)
	traffic.end(a, true, 5, false)
	traffic.end(b, false, 7, true)
	running := traffic.begin("gateway2", ccm.EndpointMP, "mp")

	got := traffic.next(time.Unix(300, 0))
	if got.Server != "connector1" || got.HighestConcurrent != 2 || got.End.Sub(got.Start) != trafficEvery || len(got.Endpoints) != 2 {
		t.Fatalf("report = %+v", got)
	}
	want := EndpointTraffic{
		Endpoint: ccm.EndpointSTS, ProxyServer: "gateway1", TargetHost: "mp", Requests: 2, BearerRequests: 1,
		HighestConcurrent: 2, RequestBytes: 10, ResponseBytes: 12, Failed: 1,
	}
	if got.Endpoints[0] != want {
		t.Errorf("row = %+v, want %+v", got.Endpoints[0], want)
	}
	traffic.end(running, false, 1, false)
	got = traffic.next(time.Unix(600, 0))
	if len(got.Endpoints) != 1 || got.Endpoints[0].Requests != 1 || got.Endpoints[0].HighestConcurrent != 1 || got.HighestConcurrent != 1 {
		t.Errorf("second report = %+v", got)
	}
}

func TestConcurrentRequestsKeepTheirAnswers(t *testing.T) {
	_, g, c := connected(t)
	var wg sync.WaitGroup
	for n := range 200 {
		wg.Go(func() {
			want := fmt.Sprint("message ", n)
			if a := send(t, g.hub, newRequest(t, "CCM_POST", target("/ccm_system/request"), strings.NewReader(want))); a.body != want {
				t.Errorf("got %q, want %q", a.body, want)
			}
		})
	}
	wg.Wait()
	eventually(t, func() bool { all := c.snapshot().Endpoints; return len(all) == 1 && all[0].Requests == 200 })
}

func TestNewRefuses(t *testing.T) {
	root := newAuthority(t)
	certificate := root.issue(t, token.RoleConnector, "c", x509.ExtKeyUsageClientAuth)
	tests := []struct {
		name string
		cfg  Config
		want catalog.Code
	}{
		{"no certificate", Config{ManagementPoint: "https://mp.example"}, catalog.ConnectorCertificateMissing},
		{"no management point", Config{Certificate: certificate}, catalog.BackendNotAllowed},
		{"plain HTTP", Config{Certificate: certificate, ManagementPoint: "http://mp.example"}, catalog.BackendNotAllowed},
		{"a login", Config{Certificate: certificate, ManagementPoint: "https://user:secret@mp.example"}, catalog.BackendNotAllowed},
		{"no address", Config{Certificate: certificate, ManagementPoint: "https://user:secret@mp example"}, catalog.BackendNotAllowed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := New(test.cfg)
			if catalog.CodeOf(err) != test.want || strings.Contains(err.Error(), "secret") {
				t.Errorf("error = %v, want code %s", err, test.want)
			}
		})
	}
}

func TestAddressAllowed(t *testing.T) {
	inside := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	tests := []struct {
		address  string
		networks []netip.Prefix
		want     bool
	}{
		{"10.1.2.3", nil, true},
		{"127.0.0.1", nil, true},
		{"169.254.169.254", nil, false},
		{"::ffff:169.254.169.254", nil, false},
		{"fe80::1", nil, false},
		{"0.0.0.0", nil, false},
		{"::", nil, false},
		{"224.0.0.1", nil, false},
		{"255.255.255.255", nil, false},
		{"10.1.2.3", inside, true},
		{"::ffff:10.1.2.3", inside, true},
		{"127.0.0.1", inside, false},
		{"192.0.2.1", inside, false},
	}
	for _, test := range tests {
		if got := addressAllowed(netip.MustParseAddr(test.address).Unmap(), test.networks); got != test.want {
			t.Errorf("%s within %v: %v, want %v", test.address, test.networks, got, test.want)
		}
	}
}

func TestHostPort(t *testing.T) {
	for address, want := range map[string]string{
		"https://cmg.example": "cmg.example:443", "https://cmg.example:8443/": "cmg.example:8443",
		"cmg.example:8443": "cmg.example:8443", "cmg.example": "cmg.example:443", "https://[2001:db8::1]": "[2001:db8::1]:443",
	} {
		if got := hostPort(address); got != want {
			t.Errorf("hostPort(%q) = %q, want %q", address, got, want)
		}
	}
}
