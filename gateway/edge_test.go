package gateway

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/logfile"
	"postern/token"
)

func TestOnePortForAll(t *testing.T) {
	w := newWorld(t)
	w.connect()
	for _, test := range []struct {
		name    string
		offer   []string
		want    string
		version uint16
	}{
		{"a browser", []string{"h2", "http/1.1"}, "h2", 0},
		{"an old client", []string{"http/1.1"}, "http/1.1", tls.VersionTLS12},
		{"a client without ALPN", nil, "", 0},
	} {
		conn, err := tls.Dial("tcp", w.address, &tls.Config{InsecureSkipVerify: true, ServerName: host, NextProtos: test.offer, MaxVersion: test.version})
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got := conn.ConnectionState().NegotiatedProtocol; got != test.want {
			t.Errorf("%s speaks %q, want %q", test.name, got, test.want)
		}
		conn.Close()
	}
	if conn, err := tls.Dial("tcp", w.address, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}); err == nil {
		conn.Close()
		t.Error("TLS 1.1 is spoken")
	}
	plain, err := net.Dial("tcp", w.address)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	fmt.Fprintf(plain, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
	if answer, _ := io.ReadAll(plain); !strings.HasPrefix(string(answer), "HTTP/1.0 400 ") {
		t.Errorf("plain HTTP: %q", answer)
	}
}

func TestConnectionLimitsKeepPlacesForConnectors(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Limits.Connections, c.Limits.Connectors = 2, 2 })
	for range 2 {
		w.raw()
	}
	if conn, err := tls.Dial("tcp", w.address, &tls.Config{InsecureSkipVerify: true}); err == nil {
		conn.Close()
		t.Error("a third device got in")
	}
	w.connect()
	if got := w.gateway.Status().TurnedAway; got != 1 {
		t.Errorf("turned away %d, want 1", got)
	}
}

func TestOneAddressCannotTakeAllPlaces(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Limits.PerAddress = 2 })
	first := w.raw()
	w.raw()
	refused := func() bool {
		conn, err := tls.Dial("tcp", w.address, &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			conn.Close()
		}
		return err != nil
	}
	if !refused() {
		t.Error("a third connection got in")
	}
	first.Close()
	eventually(t, "the place is free again", func() bool { return !refused() })
}

func TestSlowHandshakeAndSlowHeadersEnd(t *testing.T) {
	const limit = 100 * time.Millisecond
	w := newWorld(t, func(c *Config) { c.Limits.Header = limit })
	silent, err := net.Dial("tcp", w.address)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	slow := w.raw()
	fmt.Fprintf(slow, "GET / HTTP/1.1\r\nHost: ")
	began := time.Now()
	for _, conn := range []net.Conn{silent, slow} {
		conn.SetDeadline(began.Add(5 * time.Second))
		if _, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("still open")
		}
	}
	if took := time.Since(began); took < limit {
		t.Errorf("ended after %s", took)
	}
}

func TestStopLetsRequestsEnd(t *testing.T) {
	w := newWorld(t)
	asked, finish := make(chan struct{}), make(chan struct{})
	w.site.backend = func(rw http.ResponseWriter, _ *http.Request) {
		close(asked)
		<-finish
		fmt.Fprint(rw, "finished")
	}
	w.connect()
	d := newDevice(t)
	answer := make(chan answered, 1)
	r := d.show(request(t, "CCM_POST", tokenPath("/ccm_system_tokenauth/request"), strings.NewReader("x")), d.ccmToken())
	client := w.client(true)
	go func() { answer <- do(t, client, r) }()
	await(t, asked)
	stopped := make(chan struct{})
	go func() { w.stop(); close(stopped) }()
	eventually(t, "the port is closed", func() bool {
		conn, err := net.Dial("tcp", w.address)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	close(finish)
	if got := await(t, answer); got.status != 200 || got.body != "finished" {
		t.Errorf("got %d %q", got.status, got.body)
	}
	await(t, stopped)
}

func TestServiceLogWordForWord(t *testing.T) {
	dir := t.TempDir()
	logs := logfile.NewFolder(dir, logfile.Options{})
	defer logs.Close()
	now := time.Date(2020, 6, 24, 15, 31, 46, 376e6, time.UTC)
	s := newServiceLog(logs, func() time.Time { return now })
	sts := Exchange{
		Path: ccm.Path{Door: ccm.DoorServerAuth, RoleID: role, Endpoint: ccm.EndpointSTS}, Status: ccm.StatusOf(200),
		RequestBytes: 1974, ResponseBytes: 1566, Duration: 218*time.Millisecond + 900*time.Microsecond,
	}
	s.count(true, sts)
	refusal := Exchange{Path: sts.Path, Status: ccm.StatusInvalidToken, Err: catalog.Errorf(catalog.TokenExpired, "x"), RequestBytes: 1}
	unknown := Exchange{Path: ccm.Path{Door: ccm.DoorServerAuth, RoleID: 5, Endpoint: ccm.EndpointSTS}, Status: ccm.StatusOf(404), Err: notPublished()}
	for range 3 {
		s.count(true, refusal)
		s.count(false, unknown)
	}
	s.flush()
	s.flush() // nothing happened since
	want := "RequestUri: /CCM_PROXY_SERVERAUTH/72057594037937981/CCM_STS  RequestCount: 4  RequestSize: 1977 Bytes  ResponseCount: 1  ResponseSize: 1566 Bytes  AverageElapsedTime: 218 ms" + end() +
		"RequestUri: (not published)  RequestCount: 3  StatusCode: 404  StatusText: Not Found  Code: P400" + end() +
		"RequestUri: /CCM_PROXY_SERVERAUTH/72057594037937981/CCM_STS  RequestCount: 3  StatusCode: 401  StatusText: CMGService_Invalid_Token  Code: P210" + end()
	logs.Close()
	if got := readFile(t, dir+"/"+serviceFile); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func end() string {
	thread := logfile.Thread(serviceComponent)
	return fmt.Sprintf("~~  $$<CMGService><06-24-2020 15:31:46.376+00><thread=%d (0x%04X)>\r\n", thread, thread)
}

// Whatever strangers ask for, the counters stay as few as the site publishes.
func TestCountersAreBounded(t *testing.T) {
	w := newWorld(t)
	w.connect()
	d := newDevice(t)
	client := w.client(true)
	for i := range 50 {
		do(t, client, request(t, "POST", fmt.Sprintf("/CCM_Proxy_ServerAuth/%d/CCM_STS", i+1), nil))
		do(t, client, request(t, "GET", fmt.Sprintf("/CCM_Proxy_ServerAuth/%d/CCM_Client/%d", i+1, i), nil))
		do(t, client, request(t, "GET", fmt.Sprintf("/nothing/%d", i), nil))
		do(t, client, d.show(request(t, "GET", tokenPath(fmt.Sprintf("/CCM_Client/%d", i)), nil), d.ccmToken()))
	}
	w.gateway.service.mu.Lock()
	defer w.gateway.service.mu.Unlock()
	if tallies, refusals := len(w.gateway.service.tallies), len(w.gateway.service.refusals); tallies != 1 || refusals != 2 {
		t.Errorf("%d counters and %d refusals kept: %v", tallies, refusals, w.gateway.service.refusals)
	}
}

func TestUndeliveredLinesAreBounded(t *testing.T) {
	s := newServiceLog(nil, time.Now)
	for range 1000 {
		s.write(strings.Repeat("x", 1000))
	}
	text, upTo := s.portion(0)
	if len(text) > token.MaxAckLog || len(text) < token.MaxAckLog-2000 || upTo != 1000 {
		t.Errorf("%d bytes up to %d", len(text), upTo)
	}
	s.write("later")
	s.delivered(upTo)
	if text, _ := s.portion(0); !strings.HasPrefix(string(text), "later~~") {
		t.Errorf("left is %q", text)
	}
}

func TestLimiterIsBoundedAndForgetsTheQuiet(t *testing.T) {
	l := newLimiter(1e9, 1) // full again at once
	for i := range 3 * maxLimited {
		l.allow(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))
	}
	if got := len(l.by); got > maxLimited {
		t.Errorf("%d addresses are kept", got)
	}
	l = newLimiter(0.0001, 1)
	for i := range 2 * maxLimited {
		l.allow(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))
	}
	if got := len(l.by); got != maxLimited {
		t.Errorf("%d addresses are kept", got)
	}
	if l.allow("192.0.2.1") {
		t.Error("a flood of addresses is not limited")
	}
}

func TestOneAddressIsOnePrefix(t *testing.T) {
	tests := []struct{ a, b string }{
		{"192.0.2.1:5", "192.0.2.1:6"},
		{"[2001:db8::1]:5", "[2001:db8::ffff]:6"},
		{"[::ffff:192.0.2.1]:5", "192.0.2.1"},
	}
	for _, test := range tests {
		if a, b := prefix(test.a), prefix(test.b); a != b {
			t.Errorf("%s is %s and %s is %s", test.a, a, test.b, b)
		}
	}
	if prefix("192.0.2.1") == prefix("192.0.2.2") {
		t.Error("two addresses are one")
	}
}
