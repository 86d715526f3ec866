package kerberos

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"postern/auth"
	acceptor "postern/auth/kerberos"
	"postern/catalog"
	"postern/diag"
	"postern/internal/realms"
	"postern/proof"
)

// zone is what a DNS server on loopback answers: the text of records by question, e.g.
// "A mp.a2003.vm.local.".
type zone map[string][]string

// resolver starts a DNS server for the zone and returns a resolver that asks it alone.
func (z zone) resolver(t *testing.T) *net.Resolver {
	t.Helper()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	server := &dns.Server{PacketConn: packets, Handler: z, NotifyStartedFunc: func() { close(started) }}
	done := make(chan struct{})
	go func() { defer close(done); server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() { server.Shutdown(); <-done })
	address := packets.LocalAddr().String()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", address)
	}}
}

// ServeDNS answers a question with the zone's records, a CNAME with what it leads to.
func (z zone) ServeDNS(w dns.ResponseWriter, request *dns.Msg) {
	answer := new(dns.Msg)
	answer.SetReply(request)
	question := request.Question[0]
	name := strings.ToLower(question.Name)
	for _, alias := range z["CNAME "+name] {
		answer.Answer = append(answer.Answer, record(name, "CNAME", alias))
		name = alias
	}
	kind := dns.TypeToString[question.Qtype]
	for _, text := range z[kind+" "+name] {
		answer.Answer = append(answer.Answer, record(name, kind, text))
	}
	if len(answer.Answer) == 0 && !z.knows(name) {
		answer.Rcode = dns.RcodeNameError
	}
	w.WriteMsg(answer)
}

func (z zone) knows(name string) bool {
	for question := range z {
		if strings.HasSuffix(question, " "+name) {
			return true
		}
	}
	return false
}

func record(name, kind, text string) dns.RR {
	parsed, err := dns.NewRR(fmt.Sprintf("%s 60 IN %s %s", name, kind, text))
	if err != nil {
		panic(err)
	}
	return parsed
}

// names is a zone in which the hosts have the test servers' address.
func names(hosts ...string) zone {
	z := zone{"PTR 13.0.0.127.in-addr.arpa.": nil}
	for _, host := range hosts {
		z["A "+host+"."] = []string{"127.0.0.13"}
		z["PTR 13.0.0.127.in-addr.arpa."] = append(z["PTR 13.0.0.127.in-addr.arpa."], host+".")
	}
	return z
}

// windows is a management point's route for Windows authentication, as small as can be.
type windows struct {
	keytab  string
	realms  []string      // trusted beside the keytab's own
	ahead   time.Duration // of its clock
	rc4     bool
	binding acceptor.Binding
	silent  bool // says no reason, as IIS does
	tls     bool
}

// start serves at 127.0.0.13 and returns the URL's authority with the host's name.
func (s windows) start(t *testing.T, host string) string {
	t.Helper()
	keytab, err := acceptor.LoadKeytab(s.keytab)
	if err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return time.Now().Add(s.ahead) }
	trusted := func() (list []proof.Realm) {
		for _, name := range s.realms {
			list = append(list, proof.NewRealm(name))
		}
		return list
	}
	judge, err := acceptor.New(acceptor.Config{Keytab: keytab, Realms: trusted, Replay: auth.NewMemory(1000, now), Now: now, AllowRC4: s.rc4, Binding: s.binding})
	if err != nil {
		t.Fatal(err)
	}
	var server *httptest.Server
	server = serve(t, host, s.tls, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", now().UTC().Format(http.TimeFormat))
		channel := auth.Channel{TLS: r.TLS}
		if server.TLS != nil {
			channel.Certificates = [][]byte{server.Certificate().Raw}
		}
		s.answer(w, r, judge, channel)
	})
	return address(server, host)
}

func (s windows) answer(w http.ResponseWriter, r *http.Request, judge *acceptor.Acceptor, channel auth.Channel) {
	token, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.Header.Get("Authorization"), "Negotiate "))
	if err != nil || len(token) == 0 {
		w.Header().Set("WWW-Authenticate", "Negotiate")
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	_, reply, err := judge.Accept(r.Context(), token, channel)
	w.Header().Set("WWW-Authenticate", "Negotiate "+base64.StdEncoding.EncodeToString(reply))
	if err == nil {
		w.WriteHeader(http.StatusBadRequest) // the body is empty
		return
	}
	if s.silent {
		w.Header().Set("WWW-Authenticate", "Negotiate")
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(http.StatusUnauthorized)
	w.Write(catalog.Problem(err, ""))
}

// serve starts a server at the address that test names lead to.
func serve(t *testing.T, host string, withTLS bool, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.13:0")
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.Listener.Close()
	server.Listener = listener
	if withTLS {
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	return server
}

func address(server *httptest.Server, host string) string {
	scheme, _, _ := strings.Cut(server.URL, ":")
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	return scheme + "://" + net.JoinHostPort(host, port)
}

// fixed answers every request with a status and one WWW-Authenticate.
func fixed(t *testing.T, host string, status int, offer string) string {
	t.Helper()
	return address(serve(t, host, false, func(w http.ResponseWriter, _ *http.Request) {
		if offer != "" {
			w.Header().Set("WWW-Authenticate", offer)
		}
		w.WriteHeader(status)
	}), host)
}

// check runs a diagnosis and returns its findings, with a limit on its time.
func check(t *testing.T, options Options) []diag.Finding {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return diag.Run(ctx, New(options), nil)
}

// verdict writes the findings that are no pass as "check code", without those that only
// say that an earlier check failed and without the directory that test realms lack.
func verdict(findings []diag.Finding) string {
	var words []string
	for _, f := range findings {
		if f.State != diag.Pass && f.Code != "" && f.Code != catalog.CheckDirectoryNotAsked {
			words = append(words, fmt.Sprintf("%s %s %s", f.Check, f.State, f.Code))
		}
	}
	return strings.Join(words, "; ")
}

func (f findingList) String() string {
	var b strings.Builder
	for _, finding := range f {
		diag.Write(&b, finding)
	}
	return b.String()
}

type findingList []diag.Finding

// file writes a file of the test's own.
func file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// service makes HTTP/label in the parent's realm and returns its host and keytab.
func service(t *testing.T, r *realms.Realms, label string, p realms.Principal) (host, keytab string) {
	t.Helper()
	keytab = filepath.Join(t.TempDir(), label+".keytab")
	if err := errors.Join(r.AddPrincipal(r.Parent, r.Service(label), p), r.Keytab(r.Parent, keytab, r.Service(label))); err != nil {
		t.Fatal(err)
	}
	return r.Host(label), keytab
}

// computer makes a computer account in the child's realm and returns its keytab.
func computer(t *testing.T, r *realms.Realms, name string, p realms.Principal) (keytab string) {
	t.Helper()
	keytab = filepath.Join(t.TempDir(), "computer.keytab")
	if err := errors.Join(r.AddPrincipal(r.Child, name, p), r.Keytab(r.Child, keytab, name)); err != nil {
		t.Fatal(err)
	}
	return keytab
}
