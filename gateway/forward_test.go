package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
)

func TestRequestGoesInsideAsItCame(t *testing.T) {
	w := newWorld(t)
	seen := make(chan *http.Request, 1)
	w.site.backend = func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		seen <- r
		rw.Header().Set("Content-Type", "multipart/mixed")
		rw.Header().Set("Server", "internal/1.0")
		rw.Header().Set("Location", "https://mp.internal/")
		rw.Header().Set("Set-Cookie", "a=b")
		rw.Header().Set("X-Internal-Host", "mp.internal")
		fmt.Fprint(rw, "answer")
	}
	w.connect()
	d := newDevice(t)
	for _, http2 := range []bool{false, true} {
		path := external(ccm.DoorMutualAuth, "/CCM_System_TOKENAUTH/request?a=B%20c")
		r := d.show(request(t, "CCM_POST", path, strings.NewReader("message")), d.ccmToken())
		r.Header.Set("Content-Type", `multipart/mixed; boundary="x"`)
		r.Header.Set("User-Agent", "ccmhttp")
		r.Header.Set("CCMClientID", "GUID:X")
		for name, value := range forged() {
			r.Header[name] = []string{value}
		}
		answer := do(t, w.client(http2), r)
		if answer.status != 200 || answer.body != "answer" || answer.header.Get("Content-Type") != "multipart/mixed" {
			t.Fatalf("answer: %+v", answer)
		}
		for _, name := range []string{"Server", "Location", "Set-Cookie", "X-Internal-Host"} {
			if got := answer.header.Get(name); got != "" {
				t.Errorf("answer has %s: %s", name, got)
			}
		}
		in := await(t, seen)
		body, _ := io.ReadAll(in.Body)
		if in.Method != "CCM_POST" || in.RequestURI != path || in.Host != host || string(body) != "message" {
			t.Errorf("inside: %s %s for %s with %q", in.Method, in.RequestURI, in.Host, body)
		}
		if got := in.Header.Get(ccm.HeaderClientAddress); got != "127.0.0.1" {
			t.Errorf("client address %q", got)
		}
		if got := in.Header.Get(ccm.HeaderExternalHost); got != host {
			t.Errorf("external host %q", got)
		}
		id := in.Header.Get(ccm.HeaderMessageID)
		if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(id) || answer.header.Get(ccm.HeaderMessageID) != id {
			t.Errorf("message id inside %q, at the device %q", id, answer.header.Get(ccm.HeaderMessageID))
		}
		if e := await(t, w.seen); e.MessageID != id || e.Status.Code != 200 || e.RequestBytes != 7 || e.ResponseBytes != 6 || e.Proof.Client != d.client {
			t.Errorf("observed %+v", e)
		}
		wanted := map[string]bool{
			"Authorization": true, "Dpop": true, "Content-Type": true, "User-Agent": true, "Ccmclientid": true, "Content-Length": true, "Traceparent": true,
			"Accept-Encoding": true, "Postern-Client-Address": true, "Postern-Message-Id": true, "Postern-External-Host": true,
		}
		for name := range in.Header {
			if !wanted[name] {
				t.Errorf("inside there is %s: %s", name, in.Header.Get(name))
			}
		}
	}
}

// forged are headers with which a device pretends to be somebody else.
func forged() map[string]string {
	headers := map[string]string{}
	for _, name := range ccm.HopHeaders() {
		headers[name] = "forged"
		headers[strings.ToLower(name)] = "forged"
		headers[strings.ReplaceAll(name, "-", "_")] = "forged"
	}
	for _, name := range []string{
		"X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "X-ARR-ClientCert", "X-SSL-Client-Cert", "SMS_MP_User", "Cookie", "Via", "X-Original-URL",
		"X-Http-Method-Override", "Postern-Status", "Postern-Anything", "Proxy-Authorization", "True-Client-IP", "Tracestate",
	} {
		headers[http.CanonicalHeaderKey(name)] = "forged"
	}
	return headers
}

func TestTraceOfTheDeviceGoesOn(t *testing.T) {
	w := newWorld(t)
	seen := make(chan string, 1)
	w.site.backend = func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header.Get("Traceparent") }
	w.connect()
	d := newDevice(t)
	r := d.show(request(t, "CCM_POST", tokenPath("/ccm_system_tokenauth/request"), nil), d.ccmToken())
	r.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	do(t, w.client(true), r)
	got := await(t, seen)
	if !strings.HasPrefix(got, "00-4bf92f3577b34da6a3ce929d0e0e4736-") || strings.Contains(got, "00f067aa0ba902b7") {
		t.Errorf("inside: %q", got)
	}
}

// statusLine sends a request by hand and returns the status line and the rest.
func statusLine(t *testing.T, w *world, head string) (line string, response *http.Response, body string) {
	t.Helper()
	conn := w.raw()
	if _, err := io.WriteString(conn, head); err != nil {
		t.Fatal(err)
	}
	var copied bytes.Buffer
	reader := bufio.NewReader(io.TeeReader(conn, &copied))
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatalf("%v after %q", err, copied.String())
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ = strings.Cut(copied.String(), "\r\n")
	return line, response, string(content)
}

func TestReasonPhrasesOnTheWire(t *testing.T) {
	w := newWorld(t)
	w.site.backend = func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		switch {
		case strings.Contains(r.RequestURI, "forbidden"):
			rw.Header().Set(ccm.HeaderStatus, "CMGConnector_Clientcertificaterequired")
			rw.WriteHeader(403)
			io.WriteString(rw, "why")
		case strings.Contains(r.RequestURI, "error"):
			rw.Header().Set(ccm.HeaderStatus, "CMGConnector_InternalServerError")
			rw.WriteHeader(500)
		case strings.Contains(r.RequestURI, "evil"):
			rw.Header().Set(ccm.HeaderStatus, "OK\tSet-Cookie: a")
			rw.WriteHeader(403)
		case strings.Contains(r.RequestURI, "missing"):
			rw.WriteHeader(404)
		}
	}
	w.connect()
	d := newDevice(t)
	get := func(file string) string {
		r := d.show(request(t, "GET", tokenPath("/CCM_Client/"+file), nil), d.ccmToken())
		return fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: %s\r\nDPoP: %s\r\n\r\n", r.URL.Path, host, r.Header.Get("Authorization"), r.Header.Get("DPoP"))
	}
	tests := []struct{ name, head, want, body string }{
		{"no token", "POST " + tokenPath("/CCM_STS") + " HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 5\r\n\r\nabcde", "HTTP/1.1 401 CMGService_Invalid_Token", `"code":"P200"`},
		{"a bad token where none is asked", "GET /CCM_Proxy_MutualAuth/ServiceMetadata HTTP/1.1\r\nHost: " + host + "\r\nAuthorization: DPoP x\r\nDPoP: y\r\n\r\n", "HTTP/1.1 401 CMGService_Invalid_Token", "P2"},
		{"no client certificate", "GET " + external(ccm.DoorMutualAuth, "/SMS_MP/.sms_aut?MPLIST") + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n", "HTTP/1.1 403 Client certificate required", `"code":"P403"`},
		{"a message without certificate", "CCM_POST " + external(ccm.DoorMutualAuth, "/ccm_system/request") + " HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 403 Client certificate required", `"code":"P403"`},
		{"HTTP/1.0", "POST " + tokenPath("/CCM_STS") + " HTTP/1.0\r\nHost: " + host + "\r\n\r\n", "HTTP/1.0 401 CMGService_Invalid_Token", "P200"},
		{"the connector's word", get("forbidden"), "HTTP/1.1 403 CMGConnector_Clientcertificaterequired", "why"},
		{"the connector's other word", get("error"), "HTTP/1.1 500 CMGConnector_InternalServerError", ""},
		{"a phrase that is none", get("evil"), "HTTP/1.1 403 Forbidden", ""},
		{"the usual phrase", get("missing"), "HTTP/1.1 404 Not Found", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			line, response, body := statusLine(t, w, test.head)
			if line != test.want || !strings.Contains(body, test.body) {
				t.Errorf("got %q with %q, want %q with %q", line, body, test.want, test.body)
			}
			if response.Header.Get("Date") == "" {
				t.Error("no Date, by which clients correct their clock")
			}
		})
	}
}

func TestMalformedRequests(t *testing.T) {
	w := newWorld(t)
	w.site.backend = func(_ http.ResponseWriter, r *http.Request) { t.Errorf("inside came %s %s", r.Method, r.RequestURI) }
	w.connect()
	mutual := external(ccm.DoorMutualAuth, "")
	tests := []struct{ name, target, want string }{
		{"parent folders", mutual + "/CCM_Client/../ccm_system/request", "400"},
		{"encoded parent folders", mutual + "/CCM_Client/%2e%2e/postern/state", "400"},
		{"encoded twice", mutual + "/CCM_Client/%252e%252e/postern/state", "400"},
		{"encoded slash", mutual + "/CCM_Client%2f..%2fpostern/state", "400"},
		{"encoded slash in the door", "/CCM_Proxy_ServerAuth%2f72057594037937981/CCM_STS", "400"},
		{"backslash", mutual + `/CCM_Client\..\postern`, "400"},
		{"two slashes", "/" + mutual + "/CCM_STS", "400"},
		{"empty segment", mutual + "//CCM_STS", "400"},
		{"absolute form", "https://" + host + mutual + "/CCM_STS", "400"},
		{"absolute form for another", "http://mp.internal/CCM_STS", "400"},
		{"authority form", "mp.internal:443", "400"},
		{"a star", "*", "400"},
		{"overlong dot", mutual + "/CCM_Client/%c0%ae%c0%ae/x", "400"},
		{"a NUL", mutual + "/CCM_Client/a%00b", "400"},
		{"a semicolon", mutual + "/CCM_STS;x=1", "400"},
		{"a role that is no number", "/CCM_Proxy_ServerAuth/72057594037937981x/CCM_STS", "404"},
		{"a role beyond 64 bits", "/CCM_Proxy_ServerAuth/99999999999999999999999/CCM_STS", "400"},
		{"a door behind a door", mutual + "/CCM_Proxy_ServerAuth/1/CCM_STS", "404"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			line, _, _ := statusLine(t, w, "GET "+test.target+" HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
			if got := strings.Fields(line)[1]; got != test.want {
				t.Errorf("got %q, want %s", line, test.want)
			}
		})
	}
	heads := []struct{ name, head string }{
		{"two lengths", "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"},
		{"length and chunks", "Content-Length: 3\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"},
		{"a blank before the colon", "Content-Length : 3\r\n\r\nabc"},
		{"a folded line", "A: b\r\n c\r\n: d\r\n\r\n"},
		{"two hosts", "Host: other.example\r\n\r\n"},
	}
	for _, test := range heads {
		t.Run(test.name, func(t *testing.T) {
			line, _, _ := statusLine(t, w, "POST "+tokenPath("/CCM_STS")+" HTTP/1.1\r\nHost: "+host+"\r\n"+test.head)
			if code := strings.Fields(line)[1]; code != "400" && code != "501" {
				t.Errorf("got %q", line)
			}
		})
	}
}

func TestTenMegabytesOfHeaders(t *testing.T) {
	w := newWorld(t)
	w.connect()
	conn := w.raw()
	go func() {
		io.WriteString(conn, "GET "+tokenPath("/CCM_STS")+" HTTP/1.1\r\nHost: "+host+"\r\n")
		filler := "X-Filler: " + strings.Repeat("x", 1000) + "\r\n"
		for range 10_000 {
			if _, err := io.WriteString(conn, filler); err != nil {
				return
			}
		}
	}()
	answer, _ := io.ReadAll(conn)
	if len(answer) > 0 && !strings.HasPrefix(string(answer), "HTTP/1.1 431 ") {
		t.Errorf("got %.60q", answer)
	}
	r := request(t, "GET", "/CCM_Proxy_MutualAuth/ServiceMetadata", nil)
	r.Header.Set("X-Filler", strings.Repeat("x", 10<<20))
	if response, err := w.client(true).Do(r); err == nil {
		response.Body.Close()
		if response.StatusCode != 431 {
			t.Errorf("HTTP/2: status %d", response.StatusCode)
		}
	}
	if got := do(t, w.client(true), request(t, "GET", "/CCM_Proxy_MutualAuth/ServiceMetadata", nil)); got.status != 200 {
		t.Errorf("afterwards: %d", got.status)
	}
}

func TestHugeBody(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Limits.MessageBytes = 1 << 20 })
	w.connect()
	d := newDevice(t)
	for _, http2 := range []bool{false, true} {
		for _, test := range []struct {
			name string
			path string
			body io.Reader
		}{
			{"announced", tokenPath("/ccm_system_tokenauth/request"), bytes.NewReader(make([]byte, 1<<20+1))},
			{"not announced", tokenPath("/ccm_system_tokenauth/request"), io.LimitReader(zeros{}, 1<<20+300<<10)},
			{"where none is taken", tokenPath("/CCM_Client/a"), io.LimitReader(zeros{}, 100)},
		} {
			t.Run(fmt.Sprint(test.name, " HTTP/2 ", http2), func(t *testing.T) {
				method := "CCM_POST"
				if strings.Contains(test.path, "CCM_Client") {
					method = "GET"
				}
				got := do(t, w.client(http2), d.show(request(t, method, test.path, test.body), d.ccmToken()))
				if got.status != 413 || got.code != catalog.GatewayBodyTooLarge {
					t.Errorf("got %d %s", got.status, got.body)
				}
			})
		}
	}
	got := do(t, w.client(true), d.show(request(t, "CCM_POST", tokenPath("/ccm_system_tokenauth/request"), bytes.NewReader(make([]byte, 1<<20))), d.ccmToken()))
	if got.status != 200 {
		t.Errorf("a body of the limit: %d %s", got.status, got.body)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Both ways at once, piece by piece: nothing is held back.
func TestStreamsBothWays(t *testing.T) {
	w := newWorld(t)
	w.site.backend = func(rw http.ResponseWriter, r *http.Request) {
		rw.WriteHeader(200)
		rw.(http.Flusher).Flush()
		buffer := make([]byte, 64)
		for {
			n, err := r.Body.Read(buffer)
			rw.Write(bytes.ToUpper(buffer[:n]))
			rw.(http.Flusher).Flush()
			if err != nil {
				return
			}
		}
	}
	w.connect()
	d := newDevice(t)
	for _, http2 := range []bool{false, true} {
		reader, writer := io.Pipe()
		r := d.show(request(t, "CCM_POST", tokenPath("/ccm_system_tokenauth/request"), reader), d.ccmToken())
		response, err := w.client(http2).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 64)
		for _, piece := range []string{"one", "two", "three"} {
			io.WriteString(writer, piece)
			n, err := response.Body.Read(buffer)
			if got, want := string(buffer[:n]), strings.ToUpper(piece); err != nil || got != want {
				t.Fatalf("HTTP/2 %v: got %q, %v, want %q", http2, got, err, want)
			}
		}
		writer.Close()
		if _, err := response.Body.Read(buffer); err != io.EOF {
			t.Errorf("the end: %v", err)
		}
		response.Body.Close()
	}
}

// A body larger than what the process may hold more of goes through.
func TestLargeAnswerIsNotKept(t *testing.T) {
	const size = 96 << 20
	if testing.Short() {
		t.Skip("large")
	}
	w := newWorld(t)
	w.site.backend = func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(rw, io.LimitReader(zeros{}, size))
	}
	w.connect()
	d := newDevice(t)
	response, err := w.client(true).Do(d.show(request(t, "GET", tokenPath("/CCM_Client/large"), nil), d.ccmToken()))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	live := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before, total, most := live(), int64(0), int64(0)
	for err == nil {
		var n int64
		n, err = io.CopyN(io.Discard, response.Body, size/4)
		if total += n; n > 0 {
			most = max(most, live())
		}
	}
	if total != size {
		t.Fatalf("%d bytes, want %d: %v", total, size, err)
	}
	if grown := most - before; grown > size/4 {
		t.Errorf("the heap grew by %d MiB for a body of %d MiB", grown>>20, size>>20)
	}
}

func TestLargeUploadArrivesWhole(t *testing.T) {
	w := newWorld(t)
	w.site.backend = func(rw http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		io.Copy(sum, r.Body)
		fmt.Fprintf(rw, "%x", sum.Sum(nil))
	}
	w.connect()
	d := newDevice(t)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 15<<16)
	for _, http2 := range []bool{false, true} {
		client := w.client(http2)
		for range 3 { // on one connection
			got := do(t, client, d.show(request(t, "CCM_POST", tokenPath("/ccm_system_tokenauth/request"), bytes.NewReader(sent)), d.ccmToken()))
			if want := fmt.Sprintf("%x", sha256.Sum256(sent)); got.body != want {
				t.Errorf("HTTP/2 %v: %d %q, want %s", http2, got.status, got.body, want)
			}
		}
	}
}

func TestNoConnector(t *testing.T) {
	w := newWorld(t)
	link := w.connect()
	d := newDevice(t)
	link.conn.NetConn().Close()
	eventually(t, "no connector", func() bool { return len(w.gateway.Status().Connectors) == 0 })
	got := do(t, w.client(true), d.show(request(t, "CCM_POST", tokenPath("/ccm_system_tokenauth/request"), strings.NewReader("x")), d.ccmToken()))
	if got.status != 503 || got.code != catalog.NoConnector || got.header.Get("Retry-After") == "" {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

func TestConnectorKilledMidRequest(t *testing.T) {
	w := newWorld(t)
	var link *link
	asked := make(chan struct{}, 1)
	w.site.backend = func(rw http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}
	link = w.connect()
	d := newDevice(t)
	go func() {
		<-asked
		link.conn.NetConn().Close()
	}()
	got := do(t, w.client(true), d.show(request(t, "CCM_POST", tokenPath("/ccm_system_tokenauth/request"), strings.NewReader("message")), d.ccmToken()))
	if got.status != 502 || got.code != catalog.TunnelLost {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

func TestConnectorKilledMidAnswerBreaksTheAnswerOff(t *testing.T) {
	w := newWorld(t)
	half := make(chan struct{}, 1)
	w.site.backend = func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Length", "100000")
		rw.Write(make([]byte, 50000))
		rw.(http.Flusher).Flush()
		half <- struct{}{}
		<-r.Context().Done()
	}
	d := newDevice(t)
	for _, http2 := range []bool{false, true} {
		link := w.connect()
		go func() {
			<-half
			link.conn.NetConn().Close()
		}()
		response, err := w.client(http2).Do(d.show(request(t, "GET", tokenPath("/CCM_Client/a"), nil), d.ccmToken()))
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, response.Body)
		if err == nil {
			t.Errorf("HTTP/2 %v: %d bytes taken for the whole", http2, n)
		}
		response.Body.Close()
		e := await(t, w.seen)
		if e.Code() != catalog.TunnelLost {
			t.Errorf("observed %s: %v", e.Code(), e.Err)
		}
		eventually(t, "no connector", func() bool { return len(w.gateway.Status().Connectors) == 0 })
	}
}

func TestSilenceInsideIsNotForEver(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Limits.Answer = 50 * time.Millisecond })
	w.site.backend = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	w.connect()
	d := newDevice(t)
	got := do(t, w.client(true), d.show(request(t, "CCM_POST", tokenPath("/ccm_system_tokenauth/request"), strings.NewReader("x")), d.ccmToken()))
	if got.status != 504 || got.code != catalog.GatewayAnswerSlow {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

func TestDeviceThatStallsIsCutOff(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Limits.Stall = 100 * time.Millisecond })
	w.connect()
	d := newDevice(t)
	for _, http2 := range []bool{false, true} {
		reader, writer := io.Pipe()
		response, err := w.client(http2).Do(d.show(request(t, "CCM_POST", tokenPath("/ccm_system_tokenauth/request"), reader), d.ccmToken()))
		if err == nil {
			if response.StatusCode != 408 {
				t.Errorf("HTTP/2 %v: %d", http2, response.StatusCode)
			}
			response.Body.Close()
		}
		writer.Close()
		if e := await(t, w.seen); e.Code() != catalog.GatewayDeviceSlow {
			t.Errorf("HTTP/2 %v: observed %v", http2, e.Err)
		}
	}
}

func TestDeviceThatGoesAwayEndsTheRequestInside(t *testing.T) {
	w := newWorld(t)
	asked, ended := make(chan struct{}, 1), make(chan struct{}, 1)
	w.site.backend = func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
		ended <- struct{}{}
	}
	w.connect()
	d := newDevice(t)
	for _, http2 := range []bool{false, true} {
		client := w.client(http2)
		r := d.show(request(t, "GET", tokenPath("/CCM_Client/a"), nil), d.ccmToken())
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-asked; cancel() }()
		if _, err := client.Do(r.WithContext(ctx)); err == nil {
			t.Fatal("answered")
		}
		await(t, ended)
		if e := await(t, w.seen); !errors.Is(e.Err, errClientGone) || e.Status.Code != 0 {
			t.Errorf("observed %+v", e)
		}
	}
}

func TestPhraseWithALongBodyIsRefused(t *testing.T) {
	w := newWorld(t)
	w.site.backend = func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set(ccm.HeaderStatus, "CMGConnector_Forbidden")
		rw.WriteHeader(403)
		io.Copy(rw, io.LimitReader(zeros{}, maxPhrased+1))
	}
	w.connect()
	d := newDevice(t)
	got := do(t, w.client(true), d.show(request(t, "GET", tokenPath("/CCM_Client/a"), nil), d.ccmToken()))
	if got.status != 502 || got.code != catalog.GatewayAnswerInvalid {
		t.Errorf("got %d %s", got.status, got.code)
	}
}

func TestManyAtOnceKeepTheirAnswers(t *testing.T) {
	w := newWorld(t)
	w.site.backend = func(rw http.ResponseWriter, r *http.Request) { io.Copy(rw, r.Body) }
	w.connect()
	d := newDevice(t)
	client := w.client(true)
	failures := make(chan string, 200)
	for i := range 200 {
		r := d.show(request(t, "CCM_POST", tokenPath("/ccm_system_tokenauth/request"), strings.NewReader(fmt.Sprint("message ", i))), d.ccmToken())
		go func() {
			response, err := client.Do(r)
			if err != nil {
				failures <- err.Error()
				return
			}
			defer response.Body.Close()
			if body, _ := io.ReadAll(response.Body); string(body) != fmt.Sprint("message ", i) {
				failures <- fmt.Sprintf("%d got %q", i, body)
				return
			}
			failures <- ""
		}()
	}
	for range 200 {
		if failure := await(t, failures); failure != "" {
			t.Error(failure)
		}
	}
}

// The rest of a body that nobody read must never be taken for a request.
func TestRestOfABodyIsNoRequest(t *testing.T) {
	w := newWorld(t)
	w.site.backend = func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(200) } // reads nothing
	w.connect()
	d := newDevice(t)
	r := d.show(request(t, "CCM_POST", tokenPath("/ccm_system_tokenauth/request"), nil), d.ccmToken())
	hidden := "GET /CCM_Proxy_MutualAuth/ServiceMetadata HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	conn := w.raw()
	fmt.Fprintf(conn, "CCM_POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: %s\r\nDPoP: %s\r\nContent-Length: %d\r\n\r\n",
		r.URL.Path, host, r.Header.Get("Authorization"), r.Header.Get("DPoP"), 1<<20)
	for range 10_000 {
		if _, err := io.WriteString(conn, hidden); err != nil {
			break
		}
	}
	answer, _ := io.ReadAll(conn)
	if got := strings.Count(string(answer), "HTTP/1.1 "); got != 1 {
		t.Errorf("%d answers, want 1: %q", got, answer)
	}
	if e := await(t, w.seen); e.Status.Code != 200 {
		t.Errorf("observed %+v", e)
	}
	select {
	case e := <-w.seen:
		t.Errorf("a second request: %+v", e)
	default:
	}
}
