package analyze

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"postern/catalog"
	"postern/diag"
	"postern/internal/authority"
)

const host = "gw.contoso.example"

func must[T any](t testing.TB) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// zone is what a DNS server on loopback answers: the text of records by question, e.g.
// "A gw.contoso.example.". With the key "SERVFAIL" it answers nothing else.
type zone map[string][]string

// serve starts a DNS server for the zone and returns its address.
func (z zone) serve(t testing.TB) string {
	t.Helper()
	packets := must[net.PacketConn](t)(net.ListenPacket("udp", "127.0.0.1:0"))
	started, done := make(chan struct{}), make(chan struct{})
	server := &dns.Server{PacketConn: packets, Handler: z, NotifyStartedFunc: func() { close(started) }}
	go func() { defer close(done); server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() { server.Shutdown(); <-done })
	return packets.LocalAddr().String()
}

// ServeDNS answers a question with the zone's records, a CNAME with what it leads to.
func (z zone) ServeDNS(w dns.ResponseWriter, request *dns.Msg) {
	answer := new(dns.Msg)
	answer.SetReply(request)
	name := strings.ToLower(request.Question[0].Name)
	for range 10 {
		alias := z["CNAME "+name]
		if len(alias) == 0 {
			break
		}
		answer.Answer = append(answer.Answer, record(name, "CNAME", alias[0]))
		name = alias[0]
	}
	kind := dns.TypeToString[request.Question[0].Qtype]
	for _, text := range z[kind+" "+name] {
		answer.Answer = append(answer.Answer, record(name, kind, text))
	}
	_, broken := z["SERVFAIL"]
	switch {
	case broken:
		answer.Rcode, answer.Answer = dns.RcodeServerFailure, nil
	case len(answer.Answer) == 0 && z["A "+name] == nil:
		answer.Rcode = dns.RcodeNameError
	}
	w.WriteMsg(answer)
}

func record(name, kind, text string) dns.RR {
	parsed, err := dns.NewRR(fmt.Sprintf("%s 60 IN %s %s", name, kind, text))
	if err != nil {
		panic(err)
	}
	return parsed
}

// resolver asks one server alone.
func resolver(address string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", address)
	}}
}

// world is an authority with a list on the web, and a DNS server that leads the gateway's
// name to loopback.
type world struct {
	testing.TB
	root, between *authority.Authority
	lists         *authority.Publisher
	dns           string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t}
	w.root = must[*authority.Authority](t)(authority.NewRoot("Contoso Root", time.Now()))
	w.lists = must[*authority.Publisher](t)(authority.NewPublisher())
	t.Cleanup(w.lists.Close)
	w.between = must[*authority.Authority](t)(w.root.Intermediate("Contoso Issuing", w.listed("/root.crl")))
	w.lists.Put("/root.crl", must[[]byte](t)(w.root.List(time.Now().Add(-time.Hour))))
	w.lists.Put("/between.crl", must[[]byte](t)(w.between.List(time.Now().Add(-time.Hour))))
	w.dns = zone{"A " + host + ".": {"127.0.0.1"}}.serve(t)
	return w
}

func (w *world) listed(path string) authority.Edit {
	return func(c *x509.Certificate) { c.CRLDistributionPoints = []string{w.lists.URL(path)} }
}

func (w *world) server(names []string, edits ...authority.Edit) *authority.Certificate {
	w.Helper()
	return must[*authority.Certificate](w)(w.between.Server(names, append([]authority.Edit{w.listed("/between.crl")}, edits...)...))
}

// standIn is a small TLS server in the place of a gateway. It is not a gateway: it gives
// the answers that the documents show, and keeps what it was sent.
type standIn struct {
	URL  string
	port string
	mu   sync.Mutex
	seen []*http.Request
}

func (s *standIn) requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*http.Request(nil), s.seen...)
}

func (w *world) standIn(config *tls.Config, answers http.Handler) *standIn {
	w.Helper()
	s := &standIn{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r)
		s.mu.Unlock()
		answers.ServeHTTP(rw, r)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = config
	server.StartTLS()
	w.Cleanup(server.Close)
	_, s.port, _ = net.SplitHostPort(server.Listener.Addr().String())
	s.URL = "https://" + host + ":" + s.port
	return s
}

// status writes an answer with a reason phrase of its own, which net/http cannot.
func status(rw http.ResponseWriter, line, body string) {
	conn, out, err := rw.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	fmt.Fprintf(out, "HTTP/1.1 %s\r\nDate: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", line, time.Now().UTC().Format(http.TimeFormat), len(body), body)
	out.Flush()
}

const pointList = `<MPList><MP Name="MP1" FQDN="mp1.corp.contoso.example"><Version>9128</Version><Capabilities SchemaVersion="1.0"/></MP></MPList>`

// microsoft stands in for a Microsoft gateway: the paths, statuses and phrases of S2 and S4.
// What its two documents look like is not public (protocol.md 7.2).
func microsoft() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("/CCM_Proxy_MutualAuth/ServiceMetadata", func(rw http.ResponseWriter, _ *http.Request) {
		status(rw, "200 OK", `{"stand-in":"of a Microsoft gateway"}`)
	})
	m.HandleFunc("/CCM_Proxy_ServerAuth/AADAuthInfo", func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("TenantID") != "7b0c3806-d28c-4a45-adb2-fb9f94a462f8" {
			status(rw, "200 OK", "")
			return
		}
		status(rw, "200 OK", `{"stand-in":"applications of the tenant"}`)
	})
	m.HandleFunc("/CCM_Proxy_MutualAuth/72057594037937995/SMS_MP/.sms_aut", func(rw http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) == 0 {
			status(rw, "403 CMGConnector_Clientcertificaterequired", "")
			return
		}
		status(rw, "200 OK", pointList)
	})
	m.HandleFunc("/", func(rw http.ResponseWriter, _ *http.Request) { status(rw, "401 CMGService_Invalid_Token", "") })
	return m
}

// postern stands in for a gateway of ours where a test needs one that misbehaves; the real
// one is met in package cmd/postern.
func postern(healthy bool) http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("/CCM_Proxy_MutualAuth/ServiceMetadata", func(rw http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(rw, `{"service":"postern-gateway","healthy":%v}`, healthy)
	})
	m.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			return
		}
		status(rw, "401 CMGService_Invalid_Token", "")
	})
	return m
}

// options go to a stand-in, trusting the authority.
func (w *world) options(s *standIn, edits ...func(*Options)) Options {
	o := Options{Gateway: s.URL, Authorities: []*x509.Certificate{w.root.Certificate}, Resolver: resolver(w.dns), Nameserver: w.dns, Lists: &http.Client{}, Timeout: 3 * time.Second, Proxy: noProxy}
	for _, edit := range edits {
		edit(&o)
	}
	return o
}

func noProxy(*http.Request) (*url.URL, error) { return nil, nil }

func (w *world) run(o Options) findings {
	w.Helper()
	return diag.Run(w.Context(), New(o), nil)
}

type findings []diag.Finding

// of returns the findings of one check.
func (all findings) of(check string) (some findings) {
	for _, f := range all {
		if f.Check == check {
			some = append(some, f)
		}
	}
	return some
}

// String is each finding as "state code", which is what tests compare, then its detail.
func (all findings) String() string {
	var text []string
	for _, f := range all {
		text = append(text, strings.TrimSpace(string(f.State)+" "+string(f.Code))+": "+f.Title+"\n"+f.Detail)
	}
	return strings.Join(text, "\n")
}

// is compares the states and codes of a check's findings, in order, and looks for words.
func (all findings) is(t testing.TB, check, want string, words ...string) {
	t.Helper()
	var got []string
	for _, f := range all.of(check) {
		got = append(got, strings.TrimSpace(string(f.State)+" "+string(f.Code)))
		if _, known := catalog.Lookup(f.Code); f.State != diag.Pass && f.Code == "" && f.State != diag.Skipped || f.Code != "" && !known {
			t.Errorf("%s: %s has the code %q", check, f.Title, f.Code)
		}
		if f.Code != "" && f.State != diag.Skipped && len(f.Remedy) == 0 {
			t.Errorf("%s: %s has no remedy", check, f.Code)
		}
	}
	if strings.Join(got, ", ") != want {
		t.Errorf("%s: got %q, want %q\n%s", check, strings.Join(got, ", "), want, all.of(check))
	}
	for _, word := range words {
		if !strings.Contains(all.of(check).String(), word) {
			t.Errorf("%s does not say %q:\n%s", check, word, all.of(check))
		}
	}
}
