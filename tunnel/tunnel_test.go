package tunnel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern/catalog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests; none of them waits so long when it passes.
const patience = 10 * time.Second

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// pair returns the two ends of one TLS connection over loopback.
func pair(t testing.TB) (dialled, accepted net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	got := make(chan net.Conn, 1)
	go func() {
		raw, err := listener.Accept()
		if err != nil {
			return
		}
		server := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{certificate()}, NextProtos: []string{ALPN}})
		if err := server.Handshake(); err == nil {
			got <- server
		}
	}()
	client, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPN}})
	if err != nil {
		t.Fatal(err)
	}
	return client, <-got
}

// far is one connector at the far end of a hub's connection.
type far struct {
	conn  net.Conn
	done  <-chan struct{} // the hub has noticed the end
	drain context.CancelFunc
	ended chan error // what Serve returned
}

// connect adds a connection to the hub that is served by the handler.
func connect(t testing.TB, hub *Hub, name string, handler http.HandlerFunc, cfg ServeConfig) *far {
	t.Helper()
	dialled, accepted := pair(t)
	ctx, cancel := context.WithCancel(context.Background())
	f := &far{conn: dialled, drain: cancel, ended: make(chan error, 1)}
	go func() { f.ended <- Serve(ctx, dialled, handler, cfg) }()
	done, err := hub.Add(context.Background(), accepted, name, "pin-of-"+name)
	if err != nil {
		t.Fatal(err)
	}
	f.done = done
	t.Cleanup(func() {
		cancel()
		f.kill()
		await(t, done)
	})
	return f
}

// kill cuts the connection as a power failure would.
func (f *far) kill() { f.conn.(*tls.Conn).NetConn().Close() }

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

func newRequest(t testing.TB, method, path string, body io.Reader) *http.Request {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, "http://gateway.example"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func send(t testing.TB, rt http.RoundTripper, req *http.Request) (status int, body string) {
	t.Helper()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: body: %v", req.Method, req.URL, err)
	}
	return resp.StatusCode, string(all)
}

func wantCode(t testing.TB, err error, want catalog.Code) {
	t.Helper()
	if got := catalog.CodeOf(err); got != want {
		t.Fatalf("code = %q (%v), want %q", got, err, want)
	}
	if _, ok := catalog.Lookup(want); !ok {
		t.Errorf("code %s is not in the catalogue", want)
	}
}

func echo(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }

func TestCarriesRequestAsItIs(t *testing.T) {
	hub := NewHub(HubConfig{})
	var got http.Request
	connect(t, hub, "one", func(w http.ResponseWriter, r *http.Request) {
		got = *r.Clone(context.Background())
		w.Header().Set("Postern-Status", "CMGConnector_Forbidden")
		w.WriteHeader(http.StatusForbidden)
		io.Copy(w, r.Body)
	}, ServeConfig{})

	req := newRequest(t, "CCM_POST", "/CCM_Proxy_MutualAuth/72186325152220500/SMS_MP/.sms_aut?MPLIST", strings.NewReader("message"))
	req.Header.Set("Ccmclientid", "GUID:1")
	resp, err := hub.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)

	if got, want := resp.StatusCode, http.StatusForbidden; got != want {
		t.Errorf("status = %d, want %d", got, want)
	}
	if got, want := resp.Header.Get("Postern-Status"), "CMGConnector_Forbidden"; got != want {
		t.Errorf("Postern-Status = %q, want %q", got, want)
	}
	if got, want := string(body), "message"; got != want {
		t.Errorf("body = %q, want %q", got, want)
	}
	if got.Method != "CCM_POST" || got.RequestURI != req.URL.RequestURI() || got.Host != "gateway.example" {
		t.Errorf("got %s %s at %s", got.Method, got.RequestURI, got.Host)
	}
	delete(got.Header, "Ccmclientid")
	delete(got.Header, "Content-Length")
	if len(got.Header) != 0 {
		t.Errorf("headers that nobody sent: %v", got.Header)
	}
}

func TestHopByHopHeadersDoNotEndTheTunnel(t *testing.T) {
	hub := NewHub(HubConfig{})
	connect(t, hub, "one", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		w.Header().Set("Keep-Alive", "timeout=5")
		fmt.Fprint(w, r.Header["Connection"], r.Header["Upgrade"])
	}, ServeConfig{})
	id := hub.Connections()[0].ID
	for range 3 {
		req := newRequest(t, "GET", "/", nil)
		req.Close = true
		req.Header = http.Header{"Connection": {"close, upgrade"}, "Upgrade": {"h2c"}, "Te": {"gzip"}}
		if _, got := send(t, hub, req); got != "[] []" {
			t.Fatalf("the far side saw %s", got)
		}
		if len(req.Header) != 3 || !req.Close {
			t.Fatal("the caller's request was changed")
		}
	}
	if got := hub.Connections(); len(got) != 1 || got[0].ID != id || got[0].Draining {
		t.Errorf("connections = %+v, want the first one alone", got)
	}
}

func TestNoConnection(t *testing.T) {
	_, err := NewHub(HubConfig{}).RoundTrip(newRequest(t, "GET", "/", nil))
	wantCode(t, err, catalog.NoConnector)
}

func TestLargeBodiesBothWays(t *testing.T) {
	const size = 8 << 20
	hub := NewHub(HubConfig{})
	connect(t, hub, "one", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		io.Copy(io.MultiWriter(w, sum), r.Body)
		w.Header().Set(http.TrailerPrefix+"Sum", fmt.Sprintf("%x", sum.Sum(nil)))
	}, ServeConfig{})
	sent := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	resp, err := hub.RoundTrip(newRequest(t, "CCM_POST", "/", bytes.NewReader(sent)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back, not the %d that were sent", len(got), len(sent))
	}
	if got, want := resp.Trailer.Get("Sum"), fmt.Sprintf("%x", sha256.Sum256(sent)); got != want {
		t.Errorf("sum at the far side = %s, want %s", got, want)
	}
}

func TestStreamsBothWaysAtOnce(t *testing.T) {
	hub := NewHub(HubConfig{})
	connect(t, hub, "one", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		http.NewResponseController(w).Flush()
		buffer := make([]byte, 16)
		for {
			n, err := r.Body.Read(buffer)
			w.Write(buffer[:n])
			w.(http.Flusher).Flush()
			if err != nil {
				return
			}
		}
	}, ServeConfig{})
	reader, writer := io.Pipe()
	resp, err := hub.RoundTrip(newRequest(t, "CCM_POST", "/", reader))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	buffer := make([]byte, 16)
	for _, want := range []string{"one", "two", "three"} {
		io.WriteString(writer, want)
		n, err := resp.Body.Read(buffer)
		if got := string(buffer[:n]); err != nil || got != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	writer.Close()
	if _, err := resp.Body.Read(buffer); err != io.EOF {
		t.Errorf("end of the answer: %v, want EOF", err)
	}
}

func Test200AtOnceOverTwoConnections(t *testing.T) {
	hub := NewHub(HubConfig{})
	var here [2]atomic.Int32
	everyone := make(chan struct{})
	var waiting atomic.Int32
	for i := range here {
		connect(t, hub, fmt.Sprint("connector", i), func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				return
			}
			here[i].Add(1)
			if waiting.Add(1) == 200 {
				close(everyone)
			}
			<-everyone
			echo(w, r)
		}, ServeConfig{})
	}
	settled(t, hub)
	var wg sync.WaitGroup
	for n := range 200 {
		wg.Go(func() {
			want := fmt.Sprint("request ", n)
			if _, got := send(t, hub, newRequest(t, "CCM_POST", "/", strings.NewReader(want))); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
	wg.Wait()
	if a, b := here[0].Load(), here[1].Load(); a < 90 || b < 90 {
		t.Errorf("requests on the connections: %d and %d, want about the same", a, b)
	}
}

// settled waits until the peers have said how many requests they take, and all links are idle.
func settled(t testing.TB, hub *Hub) {
	t.Helper()
	for _, c := range hub.Connections() {
		send(t, hub.Through(c.ID), newRequest(t, "HEAD", "/settle", http.NoBody))
	}
}

func TestCancelReachesTheHandler(t *testing.T) {
	hub := NewHub(HubConfig{})
	started, cancelled := make(chan struct{}), make(chan error, 1)
	connect(t, hub, "one", func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
		cancelled <- r.Context().Err()
	}, ServeConfig{})
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() {
		_, err := hub.RoundTrip(newRequest(t, "CCM_POST", "/", strings.NewReader("x")).WithContext(ctx))
		failed <- err
	}()
	await(t, started)
	cancel()
	if err := await(t, failed); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want context.Canceled", err)
	}
	await(t, cancelled)
}

func TestConnectorKilledMidRequest(t *testing.T) {
	tests := []struct {
		name   string
		method string
		body   string
		want   catalog.Code // "" when another connection answers
	}{
		{"a message may have been acted upon", "CCM_POST", "message", catalog.TunnelLost},
		{"a post without a body neither", "CCM_POST", "", catalog.TunnelLost},
		{"a get is harmless and goes elsewhere", "GET", "", ""},
		{"a get with a body does not", "GET", "body", catalog.TunnelLost},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			hub := NewHub(HubConfig{})
			started := make(chan struct{})
			first := connect(t, hub, "first", func(w http.ResponseWriter, r *http.Request) {
				close(started)
				<-r.Context().Done()
			}, ServeConfig{})
			go func() {
				<-started
				connect(t, hub, "second", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "second") }, ServeConfig{})
				first.kill()
			}()
			var body io.Reader
			if test.body != "" {
				body = strings.NewReader(test.body)
			}
			resp, err := hub.RoundTrip(newRequest(t, test.method, "/", body))
			if test.want != "" {
				wantCode(t, err, test.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			wantCode(t, await(t, first.ended), catalog.TunnelLost)
		})
	}
}

func TestConnectorKilledMidAnswer(t *testing.T) {
	hub := NewHub(HubConfig{})
	first := connect(t, hub, "first", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "half of")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}, ServeConfig{})
	resp, err := hub.RoundTrip(newRequest(t, "GET", "/", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	half := make([]byte, 7)
	if _, err := io.ReadFull(resp.Body, half); err != nil || string(half) != "half of" {
		t.Fatalf("got %q, %v", half, err)
	}
	first.kill()
	_, err = io.ReadAll(resp.Body)
	wantCode(t, err, catalog.TunnelLost)
}

func TestPanicEndsOneRequestOnly(t *testing.T) {
	hub := NewHub(HubConfig{})
	connect(t, hub, "one", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/panic" {
			panic("boom")
		}
		echo(w, r)
	}, ServeConfig{})
	_, err := hub.RoundTrip(newRequest(t, "GET", "/panic", nil))
	wantCode(t, err, catalog.TunnelAborted)
	if _, got := send(t, hub, newRequest(t, "POST", "/", strings.NewReader("still here"))); got != "still here" {
		t.Errorf("got %q", got)
	}
}

func TestDrainFinishesWhatIsUnderWay(t *testing.T) {
	hub := NewHub(HubConfig{})
	started, finish := make(chan struct{}), make(chan struct{})
	one := connect(t, hub, "one", func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-finish
		echo(w, r)
	}, ServeConfig{})
	answered := make(chan string, 1)
	go func() {
		_, body := send(t, hub, newRequest(t, "CCM_POST", "/", strings.NewReader("finished")))
		answered <- body
	}()
	await(t, started)
	one.drain()
	for !hub.Connections()[0].Draining {
		time.Sleep(time.Millisecond) // a real network, no clock to move
	}
	_, err := hub.RoundTrip(newRequest(t, "GET", "/", nil))
	wantCode(t, err, catalog.NoConnector)
	close(finish)
	if got := await(t, answered); got != "finished" {
		t.Errorf("answer = %q", got)
	}
	await(t, one.done)
	if err := await(t, one.ended); err != nil {
		t.Errorf("Serve after a drain: %v", err)
	}
}

func TestDrainEndsWithTheGraceTime(t *testing.T) {
	hub := NewHub(HubConfig{})
	started := make(chan struct{})
	one := connect(t, hub, "one", func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
	}, ServeConfig{Grace: 20 * time.Millisecond})
	failed := make(chan error, 1)
	go func() {
		_, err := hub.RoundTrip(newRequest(t, "CCM_POST", "/", strings.NewReader("x")))
		failed <- err
	}()
	await(t, started)
	one.drain()
	wantCode(t, await(t, failed), catalog.TunnelLost)
	if err := await(t, one.ended); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// A rolling restart must lose nothing: requests that race a drain go elsewhere.
func TestNoRequestIsLostWhenOneOfTwoDrains(t *testing.T) {
	hub := NewHub(HubConfig{})
	leaving := connect(t, hub, "leaving", echo, ServeConfig{})
	connect(t, hub, "staying", echo, ServeConfig{})
	settled(t, hub)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for n := range 100 {
				if worker == 0 && n == 20 {
					leaving.drain()
				}
				want := fmt.Sprint(worker, n, strings.Repeat("x", 2000))
				if _, got := send(t, hub, newRequest(t, "CCM_POST", "/", strings.NewReader(want))); got != want {
					t.Errorf("got %d bytes, want %d", len(got), len(want))
				}
			}
		})
	}
	wg.Wait()
	await(t, leaving.done)
}

// stalled is a connection on which, once stalled, nothing arrives and nothing leaves.
type stalled struct {
	net.Conn
	stall chan struct{}
	ended chan struct{}
	once  sync.Once
}

func (s *stalled) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	select {
	case <-s.stall:
		<-s.ended
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (s *stalled) Write(p []byte) (int, error) {
	select {
	case <-s.stall:
		return len(p), nil
	default:
		return s.Conn.Write(p)
	}
}

func (s *stalled) Close() error {
	s.once.Do(func() { close(s.ended) })
	return s.Conn.Close()
}

func TestBlackHoleIsNoticedOnBothSides(t *testing.T) {
	if total := defaultPingAfter + defaultPingTimeout; total >= 10*time.Second {
		t.Errorf("by default a black hole is noticed after %v, want under 10 s", total)
	}
	const fast = 50 * time.Millisecond
	hub := NewHub(HubConfig{PingAfter: fast, PingTimeout: fast})
	dialled, accepted := pair(t)
	stall := make(chan struct{})
	served := make(chan error, 1)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			<-r.Context().Done()
		}
	})
	go func() {
		c := &stalled{Conn: dialled, stall: stall, ended: make(chan struct{})}
		served <- Serve(context.Background(), c, handler, ServeConfig{PingAfter: fast, PingTimeout: fast})
	}()
	done, err := hub.Add(context.Background(), &stalled{Conn: accepted, stall: stall, ended: make(chan struct{})}, "one", "pin")
	if err != nil {
		t.Fatal(err)
	}
	settled(t, hub)
	failed := make(chan error, 1)
	go func() {
		_, err := hub.RoundTrip(newRequest(t, "CCM_POST", "/wait", strings.NewReader("x")))
		failed <- err
	}()
	for hub.Connections()[0].InFlight == 0 {
		time.Sleep(time.Millisecond)
	}
	close(stall)
	wantCode(t, await(t, failed), catalog.TunnelLost)
	await(t, done)
	wantCode(t, await(t, served), catalog.TunnelLost)
}

func TestTooManyAtOnce(t *testing.T) {
	hub := NewHub(HubConfig{})
	started, finish := make(chan struct{}), make(chan struct{})
	connect(t, hub, "one", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			started <- struct{}{}
			<-finish
		}
	}, ServeConfig{MaxStreams: 2})
	settled(t, hub)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { send(t, hub, newRequest(t, "GET", "/wait", nil)) })
		await(t, started)
	}
	_, err := hub.RoundTrip(newRequest(t, "GET", "/", nil))
	wantCode(t, err, catalog.TunnelBusy)
	_, err = hub.Through(hub.Connections()[0].ID).RoundTrip(newRequest(t, "GET", "/", nil))
	wantCode(t, err, catalog.TunnelBusy) // it lives: whoever wants this one asks again
	close(finish)
	wg.Wait()
}

func TestHeaderBudget(t *testing.T) {
	hub := NewHub(HubConfig{HeaderBytes: 4 << 10})
	connect(t, hub, "one", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/big" {
			w.Header().Set("Big", strings.Repeat("x", 64<<10))
		}
	}, ServeConfig{HeaderBytes: 8 << 10})
	settled(t, hub)
	big := newRequest(t, "GET", "/", nil)
	big.Header.Set("Big", strings.Repeat("x", 64<<10))
	_, err := hub.RoundTrip(big)
	wantCode(t, err, catalog.TunnelHeaderTooLarge)
	_, err = hub.RoundTrip(newRequest(t, "GET", "/big", nil))
	wantCode(t, err, catalog.TunnelAborted)
	if status, _ := send(t, hub, newRequest(t, "GET", "/", nil)); status != 200 {
		t.Errorf("status afterwards = %d", status)
	}
}

func TestHubRefusesConnectionsBeyondItsLimits(t *testing.T) {
	changes := make(chan struct{}, 10)
	hub := NewHub(HubConfig{MaxConnections: 3, MaxPerName: 2, OnChange: func() { changes <- struct{}{} }})
	connect(t, hub, "one", echo, ServeConfig{})
	connect(t, hub, "one", echo, ServeConfig{})
	_, third := pair(t)
	_, err := hub.Add(context.Background(), third, "one", "pin")
	wantCode(t, err, catalog.TunnelFull)
	connect(t, hub, "two", echo, ServeConfig{})
	_, fifth := pair(t)
	_, err = hub.Add(context.Background(), fifth, "three", "pin")
	wantCode(t, err, catalog.TunnelFull)
	if got := len(changes); got != 3 {
		t.Errorf("OnChange was called %d times, want 3", got)
	}

	hub.Drop(func(c Connection) bool { return c.Pin == "pin-of-one" })
	for range 2 {
		await(t, changes)
	}
	for len(hub.Connections()) != 1 {
		await(t, changes)
	}
	if got, want := hub.Connections()[0].Name, "two"; got != want {
		t.Errorf("left is %s, want %s", got, want)
	}
	hub.Close()
	_, after := pair(t)
	_, err = hub.Add(context.Background(), after, "two", "pin")
	wantCode(t, err, catalog.TunnelClosed)
	_, err = hub.RoundTrip(newRequest(t, "GET", "/", nil))
	wantCode(t, err, catalog.TunnelClosed)
}

func TestThroughOneConnection(t *testing.T) {
	hub := NewHub(HubConfig{})
	for _, name := range []string{"one", "two"} {
		connect(t, hub, name, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, name) }, ServeConfig{})
	}
	for _, c := range hub.Connections() {
		for range 3 {
			if _, got := send(t, hub.Through(c.ID), newRequest(t, "GET", "/", nil)); got != c.Name {
				t.Errorf("through %s answered %s", c.Name, got)
			}
		}
	}
	_, err := hub.Through("gone").RoundTrip(newRequest(t, "GET", "/", nil))
	wantCode(t, err, catalog.TunnelGone)
}

func TestEndOfContextEndsTheConnection(t *testing.T) {
	hub := NewHub(HubConfig{})
	dialled, accepted := pair(t)
	served := make(chan error, 1)
	go func() { served <- Serve(context.Background(), dialled, http.HandlerFunc(echo), ServeConfig{}) }()
	ctx, cancel := context.WithCancel(context.Background())
	done, err := hub.Add(ctx, accepted, "one", "pin")
	if err != nil {
		t.Fatal(err)
	}
	settled(t, hub)
	cancel()
	await(t, done)
	wantCode(t, await(t, served), catalog.TunnelLost)
}

func TestServeOnSomethingElse(t *testing.T) {
	tests := []struct {
		name string
		says string
	}{
		{"the peer closes at once", ""},
		{"a web server answers", "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"},
		{"half a preface", "PRI * HTTP/2.0\r\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dialled, accepted := pair(t)
			io.WriteString(accepted, test.says)
			accepted.Close()
			err := Serve(context.Background(), dialled, http.HandlerFunc(echo), ServeConfig{})
			wantCode(t, err, catalog.TunnelHandshake)
		})
	}
}

func TestAddOnSomethingElse(t *testing.T) {
	hub := NewHub(HubConfig{})
	dialled, accepted := pair(t)
	done, err := hub.Add(context.Background(), accepted, "one", "pin")
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, dialled)
	io.WriteString(dialled, "GET / HTTP/1.1\r\n\r\n")
	await(t, done)
	dialled.Close()
}

func TestDrainOfAConnectionThatWasNeverUsed(t *testing.T) {
	hub := NewHub(HubConfig{})
	ready := make(chan struct{})
	one := connect(t, hub, "one", echo, ServeConfig{OnReady: func() { close(ready) }})
	await(t, ready)
	one.drain()
	if err := await(t, one.ended); err != nil {
		t.Errorf("Serve after a drain: %v", err)
	}
}

func TestIdleDrainSendsGoAwayBeforeItCloses(t *testing.T) {
	hub := NewHub(HubConfig{})
	one := connect(t, hub, "one", echo, ServeConfig{})
	settled(t, hub)
	one.drain()
	for {
		all := hub.Connections()
		if len(all) == 0 {
			t.Fatal("the connection ended without a GOAWAY")
		}
		if all[0].Draining {
			break
		}
		time.Sleep(time.Millisecond)
	}
	await(t, one.done)
}

func TestNoCauseIsGivenForAnEndOfOurOwn(t *testing.T) {
	dialled, accepted := pair(t)
	defer accepted.Close()
	c := newConn(dialled)
	c.Close()
	c.Read(make([]byte, 1))
	c.Write([]byte("x"))
	if cause := c.cause(); cause != nil {
		t.Errorf("got %v, want none", cause)
	}
}

// stubborn is a connection whose Close returns only when all have begun to close.
type stubborn struct {
	net.Conn
	closing *sync.WaitGroup
	failed  *atomic.Bool
	once    sync.Once
}

func (s *stubborn) Close() error {
	s.once.Do(func() {
		s.closing.Done()
		all := make(chan struct{})
		go func() { s.closing.Wait(); close(all) }()
		select {
		case <-all:
		case <-time.After(patience / 10):
			s.failed.Store(true)
		}
	})
	return s.Conn.Close()
}

func TestAPeerThatDoesNotLetGoDoesNotKeepTheOthers(t *testing.T) {
	hub := NewHub(HubConfig{})
	var closing sync.WaitGroup
	var failed atomic.Bool
	var ended []<-chan struct{}
	for range 3 {
		dialled, accepted := pair(t)
		t.Cleanup(func() { dialled.Close() })
		closing.Add(1)
		done, err := hub.Add(context.Background(), &stubborn{Conn: accepted, closing: &closing, failed: &failed}, "one", "pin")
		if err != nil {
			t.Fatal(err)
		}
		ended = append(ended, done)
	}
	hub.Drop(func(c Connection) bool { return c.Pin == "pin" })
	for _, done := range ended {
		await(t, done)
	}
	if failed.Load() {
		t.Error("a connection was closed only after another had ended")
	}
}

func benchmark(b *testing.B, connections, up, down int) {
	hub := NewHub(HubConfig{})
	answer := bytes.Repeat([]byte("a"), down)
	for range connections {
		connect(b, hub, "one", func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Write(answer)
		}, ServeConfig{})
	}
	sent := bytes.Repeat([]byte("q"), up)
	b.SetBytes(int64(up + down))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			req, _ := http.NewRequest("CCM_POST", "http://gateway.example/ccm_system/request", bytes.NewReader(sent))
			resp, err := hub.RoundTrip(req)
			if err != nil {
				b.Error(err)
				return
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
}

func BenchmarkSmallRequest(b *testing.B) { benchmark(b, 2, 2<<10, 1536) }

func BenchmarkDownload64K(b *testing.B) { benchmark(b, 2, 0, 64<<10) }
