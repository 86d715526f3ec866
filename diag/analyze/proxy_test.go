package analyze

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/authority"
)

// tunnelling is a proxy on loopback that leads every CONNECT to one address.
type tunnelling struct {
	to       string
	refusal  int // instead; 0: none
	asked    atomic.Int32
	login    atomic.Value // the last Proxy-Authorization
	wantHost string
	t        *testing.T
}

func (p *tunnelling) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.asked.Add(1)
	p.login.Store(r.Header.Get("Proxy-Authorization"))
	if r.Method != http.MethodConnect || !strings.HasPrefix(r.Host, p.wantHost) {
		p.t.Errorf("the proxy was asked %s %s", r.Method, r.Host)
	}
	if p.refusal != 0 {
		w.Header().Set("Proxy-Authenticate", "Negotiate")
		w.WriteHeader(p.refusal)
		return
	}
	out, err := net.Dial("tcp", p.to)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	in, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		out.Close()
		return
	}
	fmt.Fprint(in, "HTTP/1.1 200 Connection established\r\n\r\n")
	go func() { defer out.Close(); defer in.Close(); io.Copy(out, in) }()
	go func() { defer out.Close(); defer in.Close(); io.Copy(in, out) }()
}

func (p *tunnelling) serve(t *testing.T, w *world) func(*Options) {
	p.t, p.wantHost = t, host+":"
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	address := must[*url.URL](w)(url.Parse(server.URL))
	address.User = url.UserPassword("svc", "canary-of-the-proxy")
	return func(o *Options) {
		o.Proxy = func(*http.Request) (*url.URL, error) { return address, nil }
	}
}

// TestProxy: a client of this machine goes through the proxy, and so does the analyzer; the
// straight way is looked at beside it.
func TestProxy(t *testing.T) {
	w := newWorld(t)
	gateway := w.standIn(&tls.Config{Certificates: []tls.Certificate{w.server([]string{host}).TLS()}}, postern(true))
	here := "127.0.0.1:" + gateway.port
	inspecting := must[*authority.Authority](t)(authority.NewRoot("Contoso Inspection", time.Now()))
	inspector := w.standIn(&tls.Config{Certificates: []tls.Certificate{must[*authority.Certificate](t)(inspecting.Server([]string{host})).TLS()}}, postern(true))
	closed := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	closed.Close()
	_, nobody, _ := net.SplitHostPort(closed.Addr().String())
	nowhere := zone{}.serve(t)
	for _, test := range []struct {
		name       string
		proxy      *tunnelling
		edit       func(*Options)
		connection string
		want       string
		service    string
		says       string
	}{
		{"it leads there, and TLS passes as it is", &tunnelling{to: here}, nil, "pass", "pass", "pass", "what follows goes through it"},
		{"the straight way is closed", &tunnelling{to: here}, func(o *Options) { o.Gateway = "https://" + host + ":" + nobody }, "warn P558", "pass", "pass", "no straight way to compare with"},
		{"the name is known to the proxy alone", &tunnelling{to: here}, func(o *Options) { o.Resolver, o.Nameserver = resolver(nowhere), nowhere }, "skipped", "pass", "pass", "clients of this machine go through a proxy"},
		{"it opens TLS", &tunnelling{to: "127.0.0.1:" + inspector.port}, nil, "pass", "fail P089", "pass", "Contoso Inspection"},
		{"it wants a login", &tunnelling{refusal: http.StatusProxyAuthRequired}, nil, "pass", "fail P088", "pass", "wants a login"},
		{"it refuses the name", &tunnelling{refusal: http.StatusForbidden}, nil, "pass", "fail P088", "pass", "403"},
		{"it does not reach the gateway", &tunnelling{to: closed.Addr().String()}, nil, "pass", "fail P088", "pass", "502"},
	} {
		t.Run(test.name, func(t *testing.T) {
			edits := []func(*Options){test.proxy.serve(t, w)}
			if test.edit != nil {
				edits = append(edits, test.edit)
			}
			got := w.run(w.options(gateway, edits...))
			got.is(t, "connection", test.connection)
			got.is(t, "proxy", test.want)
			got.is(t, "service", test.service)
			if !strings.Contains(got.String(), test.says) {
				t.Errorf("nothing says %q:\n%s", test.says, got)
			}
			if strings.Contains(got.String(), "canary") || strings.Contains(got.String(), "svc") {
				t.Errorf("the proxy's login is told:\n%s", got)
			}
			if test.proxy.login.Load() != "Basic c3ZjOmNhbmFyeS1vZi10aGUtcHJveHk=" {
				t.Errorf("the proxy was given the login %q", test.proxy.login.Load())
			}
			if through := test.proxy.asked.Load(); (test.want == "fail P088") != (through == 1) {
				t.Errorf("%d connections went through the proxy", through)
			}
		})
	}
}

// TestProxyThatCannotBeUsed: an address that is none is not passed over, and none is no failure.
func TestProxyThatCannotBeUsed(t *testing.T) {
	w := newWorld(t)
	s := w.standIn(&tls.Config{Certificates: []tls.Certificate{w.server([]string{host}).TLS()}}, microsoft())
	got := w.run(w.options(s, func(o *Options) {
		o.Proxy = func(*http.Request) (*url.URL, error) {
			return nil, errors.New(`invalid proxy address "http://svc:canary@"`)
		}
	}))
	got.is(t, "proxy", "fail P088", "HTTPS_PROXY")
	if strings.Contains(got.String(), "canary") {
		t.Errorf("the login is told:\n%s", got)
	}
	closed := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	closed.Close()
	w.run(w.options(s, func(o *Options) {
		o.Proxy = http.ProxyURL(must[*url.URL](t)(url.Parse("http://" + closed.Addr().String())))
	})).is(t, "proxy", "fail P088", "refused")
	w.run(w.options(s)).is(t, "proxy", "skipped", "no proxy is set here")
}

// TestNoLoginForAProxyThatIsNotRecognised: the certificate of a proxy of https:// is judged before its login is sent.
func TestNoLoginForAProxyThatIsNotRecognised(t *testing.T) {
	w := newWorld(t)
	s := w.standIn(&tls.Config{Certificates: []tls.Certificate{w.server([]string{host}).TLS()}}, microsoft())
	var asked atomic.Int32
	proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	proxy.Config.ErrorLog = log.New(io.Discard, "", 0)
	proxy.StartTLS()
	t.Cleanup(proxy.Close)
	address := must[*url.URL](t)(url.Parse(proxy.URL))
	address.User = url.UserPassword("svc", "canary")
	got := w.run(w.options(s, func(o *Options) { o.Proxy = http.ProxyURL(address) }))
	got.is(t, "proxy", "fail P088", "certificate", "what follows goes straight")
	got.is(t, "service", "pass")
	if asked.Load() != 0 || strings.Contains(got.String(), "canary") {
		t.Errorf("the proxy was asked %d times:\n%s", asked.Load(), got)
	}
}

// TestNoTokenForAProxyThatOpensTLS: what the proxy shows is judged like any server's certificate.
func TestNoTokenForAProxyThatOpensTLS(t *testing.T) {
	w := newWorld(t)
	gateway := w.standIn(&tls.Config{Certificates: []tls.Certificate{w.server([]string{host}).TLS()}}, postern(true))
	inspecting := must[*authority.Authority](t)(authority.NewRoot("Contoso Inspection", time.Now()))
	inspector := w.standIn(&tls.Config{Certificates: []tls.Certificate{must[*authority.Certificate](t)(inspecting.Server([]string{host})).TLS()}, ClientAuth: tls.RequestClientCert}, postern(true))
	proxy := &tunnelling{to: "127.0.0.1:" + inspector.port}
	pair := must[*authority.Certificate](t)(w.between.Client("wk01.contoso.example")).TLS()
	got := w.run(w.options(gateway, proxy.serve(t, w), func(o *Options) {
		o.Token, o.Certificate, o.RoleID = bulk(time.Now().Add(-time.Hour), time.Now().Add(time.Hour)), &pair, 1
	}))
	got.is(t, "certificate", "fail P972", "Contoso Inspection")
	for _, r := range inspector.requests() {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Dpop") != "" || len(r.TLS.PeerCertificates) > 0 {
			t.Errorf("%s carried a credential:\n%s", r.URL, got)
		}
	}
	if len(inspector.requests()) == 0 {
		t.Error("nothing was asked through the proxy")
	}
}
