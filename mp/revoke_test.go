package mp

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"postern/catalog"
)

// inForce is how long a revocation may take until it is in force, open connections included.
const inForce = 5 * time.Second

func (f *fixture) follow() {
	ctx, cancel := context.WithCancel(f.Context())
	done := make(chan struct{})
	go func() { defer close(done); f.mp.followRevocations(ctx) }()
	f.Cleanup(func() { cancel(); <-done })
}

// ccmToken returns the token of a registered device.
func (f *fixture) ccmToken(d *device) string {
	f.Helper()
	raw, _ := f.bulk(0)
	return f.tokenFrom(f.exchange(d, raw, url.Values{})).AccessToken
}

// trickle begins a request whose body does not end, on a connection of its own.
func (f *fixture) trickle(d *device, raw string, certificates ...tls.Certificate) net.Conn {
	f.Helper()
	conn, err := tls.Dial("tcp", f.addr[EnhancedHTTP], &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}, Certificates: certificates})
	f.must(err)
	f.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	htu := "https://127.0.0.1/CCM_System_TokenAuth/request"
	if len(certificates) > 0 {
		htu = fmt.Sprintf("https://%s/CCM_Proxy_ServerAuth/%d/CCM_System_TokenAuth/request", gatewayName, f.roleID)
	}
	head := f.withToken(d.key, "CCM_POST", htu, raw)
	fmt.Fprintf(conn, "CCM_POST /CCM_System_TokenAuth/request HTTP/1.1\r\nHost: 127.0.0.1\r\n%s: %s\r\n%s: %s\r\nContent-Type: multipart/mixed; boundary=x\r\nContent-Length: 100000\r\n\r\n--x\r\n", head[0], head[1], head[2], head[3])
	for end := time.Now().Add(10 * time.Second); f.underWay() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			f.Fatal("the request is not under way")
		}
	}
	return conn
}

func (f *fixture) underWay() int { return f.mp.inflight.Requests() }

// A body that trickles in ends with the revocation of what it was sent by, directly and through a connector, and its sender hears why.
func TestRevocationEndsUploadsUnderWay(t *testing.T) {
	f := newFixture(t)
	f.follow()
	connector := f.connector("C1").Transport.(*http.Transport).TLSClientConfig.Certificates[0]
	for i, test := range []struct {
		name   string
		revoke func(d *device) error
		shown  []tls.Certificate
		code   catalog.Code
	}{
		{"the device, directly", func(d *device) error { _, err := f.site.Block(t.Context(), d.id, "ann", "stolen"); return err }, nil, catalog.KeyBlocked},
		{"the device, through a connector", func(d *device) error { _, err := f.site.Block(t.Context(), d.id, "ann", "stolen"); return err }, []tls.Certificate{connector}, catalog.KeyBlocked},
		{"the connector", func(*device) error { return f.site.BlockConnector(t.Context(), "C1", true, "ann", "try it") }, []tls.Certificate{connector}, catalog.ConnectorBlocked},
	} {
		d := f.device(i)
		f.register(d)
		conn := f.trickle(d, f.ccmToken(d), test.shown...)
		began := time.Now()
		f.must(test.revoke(d))
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		if !strings.Contains(string(body), string(test.code)) {
			t.Errorf("%s: answered %s %s", test.name, response.Status, body)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection is open: %v", test.name, err)
		}
		if took := time.Since(began); took > inForce {
			t.Errorf("%s: it took %s", test.name, took)
		}
	}
}

// A connection that a revoked device leaves open is closed.
func TestRevocationEndsIdleConnections(t *testing.T) {
	f := newFixture(t)
	f.follow()
	d := f.device(0)
	f.register(d)
	raw := f.ccmToken(d)
	conn, err := tls.Dial("tcp", f.addr[EnhancedHTTP], &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	f.must(err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	head := f.withToken(d.key, "GET", "https://127.0.0.1/SMS_MP_TokenAuth/.sms_aut", raw)
	fmt.Fprintf(conn, "GET /SMS_MP_TokenAuth/.sms_aut?MPLIST HTTP/1.1\r\nHost: 127.0.0.1\r\n%s: %s\r\n%s: %s\r\n\r\n", head[0], head[1], head[2], head[3])
	lines := bufio.NewReader(conn)
	response, err := http.ReadResponse(lines, nil)
	f.must(err)
	io.Copy(io.Discard, response.Body)
	if response.StatusCode != 200 {
		t.Fatal(response.Status)
	}
	began := time.Now()
	_, err = f.site.Block(t.Context(), d.id, "ann", "stolen")
	f.must(err)
	if _, err := lines.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is open: %v", err)
	}
	if took := time.Since(began); took > inForce {
		t.Errorf("it took %s", took)
	}
}

// One connector cannot take all streams, and what it gives back can be taken again.
func TestStreamsOfOneConnectorAreBounded(t *testing.T) {
	var s streams
	for range maxStreams {
		if err := s.take("a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.take("a"); catalog.CodeOf(err) != catalog.StateStreamsFull {
		t.Errorf("one more: %v", err)
	}
	if err := s.take("b"); err != nil {
		t.Errorf("another connector: %v", err)
	}
	s.give("a")
	if err := s.take("a"); err != nil {
		t.Errorf("after one was given back: %v", err)
	}
}
