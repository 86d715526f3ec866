package preflight

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"postern/catalog"
	"postern/diag"
	"postern/internal/authority"
)

func must[T any](t testing.TB) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// zone is a DNS server on loopback: addresses by name, everything else does not exist.
type zone map[string]string

func (z zone) serve(t testing.TB) string {
	t.Helper()
	packets := must[net.PacketConn](t)(net.ListenPacket("udp", "127.0.0.1:0"))
	started, done := make(chan struct{}), make(chan struct{})
	server := &dns.Server{PacketConn: packets, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, request *dns.Msg) {
		answer := new(dns.Msg)
		answer.SetReply(request)
		question := request.Question[0]
		address, ok := z[strings.ToLower(question.Name)]
		if !ok {
			answer.Rcode = dns.RcodeNameError
		} else if question.Qtype == dns.TypeA {
			record, _ := dns.NewRR(fmt.Sprintf("%s 60 IN A %s", question.Name, address))
			answer.Answer = []dns.RR{record}
		}
		w.WriteMsg(answer)
	})}
	go func() { defer close(done); server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() { server.Shutdown(); <-done })
	return packets.LocalAddr().String()
}

// look runs the one check and compares the states and codes of its findings, in order.
func look(t *testing.T, o Options, check, want string, words ...string) {
	t.Helper()
	if o.Name == "" {
		o.Name, o.Domain = "gw1", "contoso.example"
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Second
	}
	var got, text []string
	for _, f := range runCheck(t.Context(), o, check) {
		got = append(got, strings.TrimSpace(string(f.State)+" "+string(f.Code)))
		text = append(text, f.Title, f.Detail)
		if _, known := catalog.Lookup(f.Code); f.Code != "" && !known {
			t.Errorf("%s has no entry", f.Code)
		}
	}
	if strings.Join(got, ", ") != want {
		t.Errorf("%s: got %q, want %q\n%s", check, strings.Join(got, ", "), want, strings.Join(text, "\n"))
	}
	for _, word := range words {
		if !strings.Contains(strings.Join(text, "\n"), word) {
			t.Errorf("%s does not say %q:\n%s", check, word, strings.Join(text, "\n"))
		}
	}
}

func runCheck(ctx context.Context, o Options, name string) []diag.Finding {
	for _, check := range New(o) {
		if check.Name == name {
			return diag.Run(ctx, []diag.Check{check}, nil)
		}
	}
	return nil
}

// TestNames are the rules of S3 (product.md 3.1 P1, P2).
func TestNames(t *testing.T) {
	for _, test := range []struct {
		name, domain string
		azure        bool
		want         string
	}{
		{"gw1", "contoso.example", false, "pass"},
		{"GraniteFalls", "contoso.example", true, "pass"},
		{"123", "contoso.example", false, "pass"},
		{"gw", "contoso.example", false, "fail P096"},
		{strings.Repeat("a", 24), "contoso.example", false, "pass"},
		{strings.Repeat("a", 25), "contoso.example", false, "fail P096"},
		{strings.Repeat("a", 25), "contoso.example", true, "fail E125"},
		{"my-gateway", "contoso.example", false, "warn P096"},
		{"my-gateway", "contoso.example", true, "fail E125"},
		{"my--gateway", "contoso.example", false, "fail P096"},
		{"-gateway", "contoso.example", false, "fail P096"},
		{"my_gateway", "contoso.example", false, "fail P096"},
		{"gw1\x1b[31m", "contoso.example", false, "fail P096"},
		{"gätew", "contoso.example", false, "fail P096"},
		{"gw1", "example", false, "fail P096"},
		{"gw1", "contoso..example", false, "fail P096"},
		{"gw1", "cloudapp.net", false, "warn P097"},
	} {
		t.Run(test.name+"."+test.domain, func(t *testing.T) {
			look(t, Options{Name: test.name, Domain: test.domain, Azure: test.azure}, "name", test.want)
		})
	}
}

// TestAzureNames: storage account and key vault, only where Azure is the target.
func TestAzureNames(t *testing.T) {
	server := zone{"taken.blob.core.windows.net.": "203.0.113.9", "taken.westeurope.cloudapp.azure.com.": "203.0.113.9"}.serve(t)
	look(t, Options{}, "Azure", "skipped", "only where Azure is the target")
	look(t, Options{Name: "Free1", Domain: "contoso.example", Azure: true, Nameserver: server}, "Azure", "pass, pass, skipped")
	look(t, Options{Name: "Taken", Domain: "contoso.example", Azure: true, Region: "WestEurope", Nameserver: server}, "Azure", "fail E126, pass, fail E124, skipped", "taken.blob.core.windows.net")
}

func TestWhereTheNameLeads(t *testing.T) {
	right, wrong, nothing := zone{"gw1.contoso.example.": "203.0.113.7"}.serve(t), zone{"gw1.contoso.example.": "10.0.0.7"}.serve(t), zone{}.serve(t)
	look(t, Options{Nameserver: right, Address: "203.0.113.7", Resolvers: []string{right}}, "DNS", "pass, pass")
	look(t, Options{Nameserver: wrong, Address: "203.0.113.7", Resolvers: []string{right}}, "DNS", "fail P090, pass", "wanted 203.0.113.7")
	look(t, Options{Nameserver: nothing}, "DNS", "warn P557", "leads nowhere yet", "split DNS")
	look(t, Options{Nameserver: right, Address: "gw1"}, "DNS", "fail P760")
	look(t, Options{Nameserver: nothing, Address: "gw1"}, "DNS", "fail P760")
}

// TestCertificates: what a person brings for the gateway.
func TestCertificates(t *testing.T) {
	root := must[*authority.Authority](t)(authority.NewRoot("Contoso Root", time.Now()))
	issuing := must[*authority.Authority](t)(root.Intermediate("Contoso Issuing"))
	own := []*x509.Certificate{root.Certificate}
	issue := func(name string, edits ...authority.Edit) *authority.Certificate {
		return must[*authority.Certificate](t)(issuing.Server([]string{name}, edits...))
	}
	until := func(d time.Duration) authority.Edit {
		return func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-400*24*time.Hour), time.Now().Add(d)
		}
	}
	good, other := issue("gw1.contoso.example"), issue("gw1.contoso.example")
	sealed := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("sealed")})
	for _, test := range []struct {
		name  string
		chain []byte
		key   []byte
		roots []*x509.Certificate
		want  string
		says  string
	}{
		{"good, own authority", authority.PEM(good.Chain()...), keyPEM(t, good), own, "pass, pass, warn P097", "names no place"},
		{"the authority is not given", authority.PEM(good.Chain()...), keyPEM(t, good), nil, "fail P972, pass", "--ca-file"},
		{"intermediate missing", authority.PEM(good.Chain()[0]), keyPEM(t, good), own, "fail P972, pass, warn P097", ""},
		{"another key", authority.PEM(good.Chain()...), keyPEM(t, other), own, "pass, fail P099, warn P097", ""},
		{"a sealed key", authority.PEM(good.Chain()...), sealed, own, "pass, fail P099, warn P097", "password"},
		{"no key", authority.PEM(good.Chain()...), nil, own, "pass, skipped, warn P097", ""},
		{"a wildcard", authority.PEM(issue("*.contoso.example").Chain()...), nil, own, "pass, skipped, warn P097, warn P097", "replace the * by the service name"},
		{"another name", authority.PEM(issue("gw2.contoso.example").Chain()...), nil, own, "fail P974, skipped, warn P097", ""},
		{"expired", authority.PEM(issue("gw1.contoso.example", until(-time.Hour)).Chain()...), nil, own, "fail P975, skipped, warn P097", ""},
		{"ends soon", authority.PEM(issue("gw1.contoso.example", until(5*24*time.Hour)).Chain()...), nil, own, "pass, skipped, warn P095, warn P097", ""},
		{"not for servers", authority.PEM(issue("gw1.contoso.example", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }).Chain()...), nil, own, "fail P976, skipped, warn P097", ""},
		{"no certificate at all", []byte("hello"), nil, own, "fail P970", "openssl pkcs12"},
		{"none given", nil, nil, nil, "skipped", "--root-key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			look(t, Options{Certificate: test.chain, Key: test.key, Authorities: test.roots}, "certificate", test.want, test.says)
		})
	}
}

func keyPEM(t *testing.T, c *authority.Certificate) []byte {
	t.Helper()
	der := must[[]byte](t)(x509.MarshalECPrivateKey(c.Key.(*ecdsa.PrivateKey)))
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

func TestPort(t *testing.T) {
	taken := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	address := taken.Addr().String()
	look(t, Options{Listen: address}, "port", "fail P762", "another program listens there")
	taken.Close()
	look(t, Options{Listen: address}, "port", "pass", "closed again")
	must[net.Listener](t)(net.Listen("tcp", address)).Close() // it is closed again
	look(t, Options{Listen: "127.0.0.1:no"}, "port", "fail P762")
}

// TestWaysOfAConnector: the management point and the gateway answer, refuse, or are away.
func TestWaysOfAConnector(t *testing.T) {
	answers := http.NewServeMux()
	answers.HandleFunc("/SMS_MP/.sms_aut", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<MPList/>") })
	answers.HandleFunc("/CCM_Proxy_MutualAuth/ServiceMetadata", func(http.ResponseWriter, *http.Request) {})
	server := httptest.NewTLSServer(answers)
	defer server.Close()
	wants := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	defer wants.Close()
	look(t, Options{ManagementPoint: server.URL}, "MP", "pass")
	look(t, Options{ManagementPoint: wants.URL}, "MP", "pass", "wants a certificate of the company")
	look(t, Options{Gateway: server.URL}, "gateway", "pass", "pin on the site's list")
	closed := httptest.NewTLSServer(answers)
	closed.Close()
	look(t, Options{ManagementPoint: closed.URL}, "MP", "fail P453", "refused")
	look(t, Options{Gateway: closed.URL}, "gateway", "fail P458", "refused")
	// What is no https address is none for a connector, and is not asked.
	look(t, Options{ManagementPoint: "mp.corp.example"}, "MP", "fail P453", "not an address")
	plain := httptest.NewServer(answers)
	defer plain.Close()
	look(t, Options{ManagementPoint: plain.URL}, "MP", "fail P453", "not an address")
	look(t, Options{Gateway: plain.URL}, "gateway", "fail P458", "not an address")
	// Somebody else has the address.
	portal := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>Welcome") }))
	defer portal.Close()
	look(t, Options{ManagementPoint: portal.URL}, "MP", "fail P453", "a portal of the network")
	web := httptest.NewTLSServer(http.NotFoundHandler())
	defer web.Close()
	look(t, Options{Gateway: web.URL}, "gateway", "fail P092", "404")
	look(t, Options{}, "MP", "skipped")
	// A connector goes to gateways through the company's proxy, and straight to the management point.
	away := http.ProxyURL(must[*url.URL](t)(url.Parse(strings.Replace(closed.URL, "https://", "http://svc:canary@", 1))))
	look(t, Options{ManagementPoint: server.URL, Proxy: away}, "MP", "pass")
	look(t, Options{Gateway: server.URL, Proxy: away}, "gateway", "fail P458", "refused", "through the proxy 127.0.0.1")
	var told atomic.Bool // a proxy of https:// that nobody knows gets no login
	unknown := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { told.Store(true) }))
	defer unknown.Close()
	look(t, Options{Gateway: server.URL, Proxy: http.ProxyURL(must[*url.URL](t)(url.Parse(strings.Replace(unknown.URL, "//", "//svc:canary@", 1))))}, "gateway", "fail P458", "certificate")
	if told.Load() {
		t.Error("a proxy whose certificate is not known was asked")
	}
	broken := func(*http.Request) (*url.URL, error) { return nil, errors.New("invalid proxy address svc:canary") }
	for _, f := range runCheck(t.Context(), Options{Gateway: server.URL, Proxy: broken, Timeout: time.Second}, "gateway") {
		if f.Code != catalog.GatewayUnreachable || strings.Contains(f.Detail, "canary") || !strings.Contains(f.Detail, "HTTPS_PROXY") {
			t.Errorf("a proxy that cannot be used: %s %s", f.Code, f.Detail)
		}
	}
}

// TestClock: by the Date of a URL and by NTP, a server that does not know the time among them.
func TestClock(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	at := func(d time.Duration) func() time.Time { return func() time.Time { return time.Now().Add(d) } }
	look(t, Options{TimeSource: server.URL}, "clock", "pass")
	look(t, Options{TimeSource: server.URL, Now: at(2 * time.Minute)}, "clock", "warn P582")
	look(t, Options{TimeSource: server.URL, Now: at(-time.Hour)}, "clock", "fail P582", "behind")
	look(t, Options{TimeSource: ntp(t, 2)}, "clock", "pass")
	look(t, Options{TimeSource: ntp(t, 2), Now: at(time.Hour)}, "clock", "fail P582")
	look(t, Options{TimeSource: ntp(t, 16)}, "clock", "skipped", "does not know the time")
	look(t, Options{}, "clock", "skipped")
}

// ntp is a time server on loopback of a stratum; 16 says that it does not know the time.
func ntp(t *testing.T, stratum byte) string {
	t.Helper()
	conn := must[net.PacketConn](t)(net.ListenPacket("udp", "127.0.0.1:0"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		question := make([]byte, 64)
		for {
			_, from, err := conn.ReadFrom(question)
			if err != nil {
				return
			}
			answer := make([]byte, 48)
			answer[0], answer[1] = 4<<3|4, stratum
			binary.BigEndian.PutUint32(answer[40:], uint32(time.Now().Unix()+2_208_988_800))
			conn.WriteTo(answer, from)
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return conn.LocalAddr().String()
}

// TestNothingIsMade: the folder that will hold the state does not exist afterwards either.
func TestNothingIsMade(t *testing.T) {
	folder := t.TempDir()
	state := filepath.Join(folder, "not", "yet", "there")
	diag.Run(t.Context(), New(Options{Name: "gw1", Domain: "contoso.example", State: state, Listen: "127.0.0.1:0", Nameserver: zone{}.serve(t), Timeout: time.Second}), nil)
	left := must[[]os.DirEntry](t)(os.ReadDir(folder))
	if len(left) > 0 {
		t.Errorf("the preflight made %s", left[0].Name())
	}
	for _, f := range runCheck(t.Context(), Options{State: state}, "disk") {
		if f.State != diag.Pass && f.Code != catalog.MachineTooSmall && f.Code != catalog.DiskFull {
			t.Errorf("disk: %s %s %s", f.State, f.Code, f.Detail)
		}
	}
}
