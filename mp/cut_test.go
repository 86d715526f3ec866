package mp

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
)

// narrow is a listener whose connections take little at a time, so that a whole answer never lies in buffers between its writer and its reader.
type narrow struct{ net.Listener }

func (n narrow) Accept() (net.Conn, error) {
	c, err := n.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetWriteBuffer(64 << 10)
	}
	return c, err
}

// narrowly serves one kind of listener so, and returns its address.
func (f *fixture) narrowly(l Listener) string {
	f.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	f.must(err)
	server := f.mp.Server(l)
	served := make(chan error, 1)
	if l == HTTP {
		go func() { served <- server.Serve(narrow{inner}) }()
	} else {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		f.must(err)
		chain, err := f.site.IssueRole(site.RoleManagementPoint, "MP1", key.Public(), []string{testFQDN, "127.0.0.1"})
		f.must(err)
		server.TLSConfig.Certificates = []tls.Certificate{{Certificate: chain, PrivateKey: key}}
		go func() { served <- server.ServeTLS(narrow{inner}, "", "") }()
	}
	f.Cleanup(func() {
		server.Close()
		<-served
	})
	return inner.Addr().String()
}

// dialNarrow connects, and takes little at a time.
func (f *fixture) dialNarrow(address string, secure bool, certificates ...tls.Certificate) net.Conn {
	f.Helper()
	conn, err := net.Dial("tcp", address)
	f.must(err)
	conn.(*net.TCPConn).SetReadBuffer(128 << 10) // less than a segment of loopback would stall it
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	f.Cleanup(func() { conn.Close() })
	if !secure {
		return conn
	}
	return tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}, Certificates: certificates})
}

// bigPolicy is a policy for everybody whose body does not fit between a writer and a reader.
func (f *fixture) bigPolicy() site.Policy {
	f.Helper()
	policy, err := f.site.AddPolicy(f.Context(), site.NewPolicy{Flags: ccm.PolicyRequiresAuth, Body: []byte("<Policy>" + strings.Repeat("x", 8<<20) + "</Policy>"), All: true, By: "test"})
	f.must(err)
	return policy
}

// manyPolicies adds so many policies that their list is long.
func (f *fixture) manyPolicies(n int) {
	f.Helper()
	for i := range n {
		_, err := f.site.AddPolicy(f.Context(), site.NewPolicy{ID: fmt.Sprintf("%0128d", i), Body: []byte("<Policy/>"), All: true, By: "test"})
		f.must(err)
	}
}

// Long answers end with the revocation of their reader, whatever proved who that is, and never look whole.
func TestRevocationEndsDownloadsUnderWay(t *testing.T) {
	f := newFixture(t, func(c *Config) {
		c.Windows = verdict{proof: proof.Proof{Method: proof.Kerberos, Account: `CORP\WK1$`}}
	})
	f.follow()
	query := "?" + url.PathEscape(f.bigPolicy().ID) + ".1_00"
	f.manyPolicies(500)
	d := f.device(0)
	f.register(d)
	_, err := f.site.Approve(t.Context(), d.id, proof.LevelManaged, "ann", "hers")
	f.must(err)
	connector := f.connector("C1").Transport.(*http.Transport).TLSClientConfig.Certificates
	ask := func(method, path string, body []byte, headers ...string) []byte {
		var b bytes.Buffer
		fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n", method, path, len(body))
		for pair := range slices.Chunk(headers, 2) {
			fmt.Fprintf(&b, "%s: %s\r\n", pair[0], pair[1])
		}
		return append(append(b.Bytes(), "\r\n"...), body...)
	}
	message := func(path string, headers ...string) []byte {
		contentType, body := f.message("MP_PolicyManager", f.assignments(d), d, func(h *ccm.Header) { h.ReplyCompression = "none" })
		return ask(methodCCM, path, body, append(headers, "Content-Type", contentType)...)
	}
	signed := http.Header{}
	f.must(ccm.SignPolicyAuth(signed, d.id, d.key, f.clock.now()))
	byHeaders := []string{"ClientToken", signed.Get("ClientToken"), "ClientTokenSignature", signed.Get("ClientTokenSignature")}
	downloads := map[string]struct {
		listener Listener
		shown    []tls.Certificate
		request  []byte
		response *http.Response
	}{
		"a policy, by token":                                  {listener: EnhancedHTTP, request: ask("GET", "/SMS_MP_TokenAuth/.sms_pol"+query, nil, f.withToken(d.key, "GET", "https://127.0.0.1/SMS_MP_TokenAuth/.sms_pol", f.ccmToken(d))...)},
		"a policy, by signed headers":                         {listener: HTTP, request: ask("GET", "/SMS_MP/.sms_pol"+query, nil, byHeaders...)},
		"a policy, by signed headers through a connector":     {listener: EnhancedHTTP, shown: connector, request: ask("GET", "/SMS_MP_AltAuth/.sms_pol"+query, nil, byHeaders...)},
		"a list of policies, by message signature":            {listener: HTTP, request: message("/ccm_system/request")},
		"a list of policies, by ticket and message signature": {listener: EnhancedHTTP, request: message("/ccm_system_windowsauth/request", "Authorization", "Negotiate dGlja2V0")},
	}
	for name, one := range downloads {
		conn := f.dialNarrow(f.narrowly(one.listener), one.listener != HTTP, one.shown...)
		_, err = conn.Write(one.request)
		f.must(err)
		one.response, err = http.ReadResponse(bufio.NewReader(conn), nil)
		f.must(err)
		defer one.response.Body.Close()
		if _, err := one.response.Body.Read(make([]byte, 1)); err != nil || one.response.StatusCode != 200 || one.response.ContentLength < 700<<10 {
			t.Fatalf("%s: answered %s, %d bytes: %v", name, one.response.Status, one.response.ContentLength, err)
		}
		downloads[name] = one
	}
	if got := f.underWay(); got != len(downloads) {
		t.Fatalf("%d requests are held, want %d", got, len(downloads))
	}
	began := time.Now()
	_, err = f.site.Block(t.Context(), d.id, "ann", "stolen")
	f.must(err)
	for f.underWay() > 0 && time.Since(began) < 20*time.Second {
		time.Sleep(time.Millisecond)
	}
	if took := time.Since(began); took > inForce {
		t.Errorf("it took %s", took)
	}
	for name, one := range downloads {
		if n, err := io.Copy(io.Discard, one.response.Body); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %d more bytes of %d came, and the end is %v", name, n, one.response.ContentLength, err)
		}
	}
}

// A connection on which a device has proved itself by a ticket or a signature is closed when it is revoked, as one with a token is.
func TestRevocationEndsConnectionsWithoutTokens(t *testing.T) {
	f := newFixture(t, func(c *Config) {
		c.Windows = verdict{proof: proof.Proof{Method: proof.Kerberos, Account: `CORP\WK1$`}}
	})
	f.follow()
	d := f.device(0)
	f.register(d)
	conns := map[string]net.Conn{}
	for name, path := range map[string]string{"by signature": "/ccm_system/request", "by ticket": "/ccm_system_windowsauth/request"} {
		contentType, body := f.message("MP_PolicyManager", f.assignments(d), d)
		header := ""
		if name == "by ticket" {
			contentType, body = f.message("MP_ClientRegistration", f.registration(d), nil)
			header = "Authorization: Negotiate dGlja2V0\r\n"
		}
		conn, err := net.Dial("tcp", f.addr[HTTP])
		f.must(err)
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "CCM_POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%sContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", path, header, contentType, len(body), body)
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		f.must(err)
		if n, err := io.Copy(io.Discard, response.Body); err != nil || n == 0 || response.StatusCode != 200 {
			t.Fatalf("%s: answered %s with %d bytes: %v", name, response.Status, n, err)
		}
		conns[name] = conn
	}
	_, err := f.site.Block(t.Context(), d.id, "ann", "stolen")
	f.must(err)
	for name, conn := range conns {
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection is open: %v", name, err)
		}
	}
}

// One connector cannot fill the trust log with renewals, and takes none from another.
func TestRenewalsOfOneConnectorAreBounded(t *testing.T) {
	f := newFixture(t)
	renew := func(c *http.Client) got { return f.send(c, "POST", f.url(EnhancedHTTP, renewPath), "", nil) }
	greedy, other := f.connector("C1"), f.connector("C2")
	for range renewBurst {
		if g := renew(greedy); g.StatusCode != 200 {
			t.Fatalf("%s %s", g.Status, g.body)
		}
	}
	if g := renew(greedy); g.StatusCode != 429 || g.code() != string(catalog.RenewLimited) || g.Header.Get("Retry-After") == "" {
		t.Errorf("one more: %s %s", g.Status, g.body)
	}
	if g := renew(other); g.StatusCode != 200 {
		t.Errorf("another connector: %s %s", g.Status, g.body)
	}
	f.clock.advance(renewEvery)
	if g := renew(greedy); g.StatusCode != 200 {
		t.Errorf("a minute later: %s %s", g.Status, g.body)
	}
}
