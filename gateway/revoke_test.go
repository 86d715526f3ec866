package gateway

import (
	"bufio"
	"context"
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
	"postern/proof"
	"postern/token"
)

// inForce is how long a revocation may take until it is in force, open connections included.
const inForce = 5 * time.Second

// download begins an answer that does not end by itself, and returns once its first bytes
// have come.
func (w *world) download(client *http.Client, d *device, raw string) *http.Response {
	w.t.Helper()
	response, err := client.Do(d.show(request(w.t, "GET", tokenPath("/SMS_MP_TokenAuth/.sms_pol?x"), nil), raw))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { response.Body.Close() })
	if response.StatusCode != 200 {
		w.t.Fatalf("status %s", response.Status)
	}
	if _, err := response.Body.Read(make([]byte, 1)); err != nil {
		w.t.Fatal(err)
	}
	return response
}

// endless answers a byte now and then until its request ends, and tells of the end.
func endless(ended chan<- struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			if _, err := io.WriteString(w, "x"); err != nil {
				ended <- struct{}{}
				return
			}
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				ended <- struct{}{}
				return
			case <-tick.C:
			}
		}
	}
}

// What is revoked ends while it is under way, on the wire and inside, and an answer that
// was cut never looks whole.
func TestRevocationEndsDownloadsUnderWay(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %t", http2), func(t *testing.T) {
			w := newWorld(t)
			ended := make(chan struct{}, 10)
			w.site.backend = endless(ended)
			w.connect()
			for name, revoke := range map[string]func(*token.SiteState, *device){
				"the device":      func(s *token.SiteState, d *device) { s.BlockedKeys = append(s.BlockedKeys, d.id) },
				"the token":       func(s *token.SiteState, _ *device) { s.BlockedTokens = append(s.BlockedTokens, "jti-of-it") },
				"the signing key": func(s *token.SiteState, _ *device) { s.Keys = nil },
			} {
				keys := w.site.state.Keys
				d := newDevice(t)
				response := w.download(w.client(http2), d, d.token(token.KindCCM, token.ScopeClient, "jti-of-it", time.Now()))
				began := time.Now()
				w.site.change(func(s *token.SiteState) { revoke(s, d) })
				if _, err := io.Copy(io.Discard, response.Body); err == nil {
					t.Errorf("%s: the answer looks whole", name)
				}
				await(t, ended)
				if took := time.Since(began); took > inForce {
					t.Errorf("%s: it took %s", name, took)
				}
				w.site.change(func(s *token.SiteState) { s.Keys, s.BlockedTokens = keys, nil })
				eventually(t, "the rest is as before", func() bool { state, _ := w.gateway.state.Current(); return state.Epoch == w.site.state.Epoch })
			}
		})
	}
}

// A body that trickles in goes no further, and its sender hears why.
func TestRevocationEndsUploadsUnderWay(t *testing.T) {
	w := newWorld(t)
	ended := make(chan error, 1)
	w.site.backend = func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		ended <- err
	}
	w.connect()
	d := newDevice(t)
	raw := d.ccmToken()
	path := tokenPath("/CCM_System_TokenAuth/request")
	conn := w.raw()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: DPoP %s\r\nDPoP: %s\r\nContent-Length: 1000000\r\n\r\nfirst", path, host, raw, d.proof("POST", "https://"+host+path, raw))
	eventually(t, "the upload is under way", func() bool { return w.gateway.hub.Connections()[0].InFlight > 1 })
	began := time.Now()
	w.site.change(func(s *token.SiteState) { s.BlockedKeys = []proof.KeyThumbprint{d.id} })
	if err := await(t, ended); err == nil {
		t.Error("inside, the body looks whole")
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	if response.StatusCode != 401 || !strings.Contains(string(body), string(catalog.KeyBlocked)) {
		t.Errorf("answered %s %s", response.Status, body)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is open: %v", err)
	}
	if took := time.Since(began); took > inForce {
		t.Errorf("it took %s", took)
	}
}

// A connection that waits for its next request ends too, and those of others do not.
func TestRevocationEndsIdleConnections(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %t", http2), func(t *testing.T) {
			w := newWorld(t)
			w.connect()
			stolen, other := newDevice(t), newDevice(t)
			closed := make(chan string, 10)
			use := func(name string, d *device) {
				client := w.client(http2)
				transport := client.Transport.(*http.Transport)
				dial := transport.DialContext
				transport.DialContext = telling(dial, func() { closed <- name })
				if got := do(t, client, d.show(request(t, "GET", tokenPath("/SMS_MP_TokenAuth/.sms_pol?x"), nil), d.ccmToken())); got.status != 200 {
					t.Fatalf("%s: %d %s", name, got.status, got.code)
				}
			}
			use("stolen", stolen)
			use("other", other)
			began := time.Now()
			w.site.change(func(s *token.SiteState) { s.BlockedKeys = []proof.KeyThumbprint{stolen.id} })
			if name := await(t, closed); name != "stolen" {
				t.Errorf("the connection of %s was closed", name)
			}
			if took := time.Since(began); took > inForce {
				t.Errorf("it took %s", took)
			}
			if status := w.gateway.Status(); status.CutConnections != 1 || status.CutRequests != 0 {
				t.Errorf("cut %d connections and %d requests", status.CutConnections, status.CutRequests)
			}
			select {
			case name := <-closed:
				t.Errorf("the connection of %s was closed too", name)
			default:
			}
		})
	}
}

// One device on a shared connection does not take the other's request with it.
func TestRevocationLeavesOthersOnTheConnection(t *testing.T) {
	w := newWorld(t)
	ended := make(chan struct{}, 10)
	w.site.backend = endless(ended)
	w.connect()
	client := w.client(true)
	stolen, other := newDevice(t), newDevice(t)
	cut, kept := w.download(client, stolen, stolen.ccmToken()), w.download(client, other, other.ccmToken())
	w.site.change(func(s *token.SiteState) { s.BlockedKeys = []proof.KeyThumbprint{stolen.id} })
	if _, err := io.Copy(io.Discard, cut.Body); err == nil {
		t.Error("the answer looks whole")
	}
	await(t, ended)
	if _, err := io.CopyN(io.Discard, kept.Body, 200); err != nil {
		t.Errorf("the other: %v", err)
	}
}

// A revocation between the proof and the request's begin is seen.
func TestRevokedBetweenProofAndBegin(t *testing.T) {
	w := newWorld(t)
	w.connect()
	d := newDevice(t)
	w.site.change(func(s *token.SiteState) { s.BlockedKeys = []proof.KeyThumbprint{d.id} })
	eventually(t, "the state is here", func() bool { state, _ := w.gateway.state.Current(); return len(state.BlockedKeys) > 0 })
	x := &exchange{proof: proof.Proof{Method: proof.CCMToken, Key: d.id}, path: ccm.Path{}}
	_, _, err := w.gateway.hold(nil, request(t, "GET", "/", nil), x)
	wantCode(t, err, catalog.KeyBlocked)
}

// The acknowledgement is sent when the revocation is in force, not before.
func TestAcknowledgementFollowsTheCut(t *testing.T) {
	w := newWorld(t)
	ended := make(chan struct{}, 10)
	w.site.backend = endless(ended)
	w.connect()
	d := newDevice(t)
	response := w.download(w.client(false), d, d.ccmToken())
	w.site.change(func(s *token.SiteState) { s.BlockedKeys = []proof.KeyThumbprint{d.id} })
	for await(t, w.site.acks).Epoch < w.site.state.Epoch {
	}
	if status := w.gateway.Status(); status.CutRequests != 1 {
		t.Errorf("acknowledged, and %d requests are cut", status.CutRequests)
	}
	if _, err := io.Copy(io.Discard, response.Body); err == nil {
		t.Error("the answer looks whole")
	}
}

type dialer = func(ctx context.Context, network, address string) (net.Conn, error)

// telling reports when the other side has closed a connection.
func telling(dial dialer, closed func()) dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &listening{Conn: c, closed: closed}, nil
	}
}

type listening struct {
	net.Conn
	closed func()
}

func (l *listening) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
		l.closed()
	}
	return n, err
}

// A device that has its key changed by the very request whose old key that revokes hears that it is done; what it asks after that is refused.
func TestTheAnswerToWhatRevokesComes(t *testing.T) {
	for _, body := range []string{"", "a registration"} {
		t.Run("body "+body, func(t *testing.T) {
			w := newWorld(t)
			d := newDevice(t)
			w.site.backend = func(rw http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				w.site.change(func(s *token.SiteState) { s.BlockedKeys = []proof.KeyThumbprint{d.id} })
				for await(t, w.site.acks).Epoch < w.site.state.Epoch { // it is in force
				}
				io.WriteString(rw, "done")
			}
			w.connect()
			raw, client := d.ccmToken(), w.client(false)
			ask := func() answered {
				return do(t, client, d.show(request(t, "CCM_POST", tokenPath("/CCM_System_TokenAuth/request"), strings.NewReader(body)), raw))
			}
			if got := ask(); got.status != 200 || got.body != "done" {
				t.Errorf("%d %s %q", got.status, got.code, got.body)
			}
			if got := ask(); got.status != 401 || got.code != catalog.KeyBlocked {
				t.Errorf("afterwards: %d %s", got.status, got.code)
			}
		})
	}
}

// One whose answer does not come ends all the same.
func TestRevocationEndsWhatAwaitsItsAnswer(t *testing.T) {
	w := newWorld(t)
	asked, ended := make(chan struct{}), make(chan struct{})
	w.site.backend = func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		close(asked)
		<-r.Context().Done()
		close(ended)
	}
	w.connect()
	d, client := newDevice(t), w.client(true)
	r := d.show(request(t, "CCM_POST", tokenPath("/CCM_System_TokenAuth/request"), strings.NewReader("x")), d.ccmToken())
	answer := make(chan error, 1)
	go func() {
		response, err := client.Do(r)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == 200 {
				err = errors.New("answered 200")
			}
		}
		answer <- err
	}()
	await(t, asked)
	began := time.Now()
	w.site.change(func(s *token.SiteState) { s.BlockedKeys = []proof.KeyThumbprint{d.id} })
	await(t, ended)
	if took := time.Since(began); took > inForce {
		t.Errorf("it took %s", took)
	}
	if err := await(t, answer); err != nil && strings.Contains(err.Error(), "answered 200") {
		t.Error(err)
	}
}
