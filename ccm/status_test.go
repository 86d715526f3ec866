package ccm

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"postern/catalog"
)

// answering serves one status to every request.
func answering(s Status) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Earlier", "kept")
		WriteStatus(w, r, s, http.Header{"X-Answer": {"yes"}, "X-Bad": {"a\r\nX-Forged: b"}, "Content-Length": {"7"}}, []byte("the body"))
	}
}

func TestWriteStatusOnHTTP1(t *testing.T) {
	tests := []struct {
		name   string
		status Status
		line   string
		closes bool
	}{
		{"a phrase of the protocol", StatusClientCertificateRequired, "403 Client certificate required", true},
		{"the gateway's phrase", StatusInvalidToken, "401 CMGService_Invalid_Token", true},
		{"the usual phrase keeps the connection", StatusUnauthorizedNegotiate, "401 Unauthorized", false},
		{"a phrase with a line end", Status{Code: 403, Reason: "x\r\nX-Forged: b"}, "403 Forbidden", false},
		{"a phrase that is not ASCII", Status{Code: 403, Reason: "vérité"}, "403 Forbidden", false},
		{"no code", Status{}, "500 Internal Server Error", false},
	}
	for _, useTLS := range []bool{false, true} {
		for _, test := range tests {
			t.Run(fmt.Sprintf("%s, TLS %v", test.name, useTLS), func(t *testing.T) {
				server := httptest.NewUnstartedServer(answering(test.status))
				start := server.Start
				if useTLS {
					start = server.StartTLS
				}
				start()
				defer server.Close()
				request, err := http.NewRequest("CCM_POST", server.URL+"/x", bytes.NewReader(make([]byte, 100_000)))
				if err != nil {
					t.Fatal(err)
				}
				response, err := server.Client().Do(request)
				if err != nil {
					t.Fatal(err)
				}
				defer response.Body.Close()
				body, err := io.ReadAll(response.Body)
				if err != nil || string(body) != "the body" {
					t.Errorf("body %q, %v", body, err)
				}
				if response.Status != test.line {
					t.Errorf("status %q, want %q", response.Status, test.line)
				}
				if response.Close != test.closes {
					t.Errorf("closes %v, want %v", response.Close, test.closes)
				}
				if response.Header.Get("X-Earlier") != "kept" || response.Header.Get("X-Answer") != "yes" || response.Header.Get("Date") == "" {
					t.Errorf("headers %v", response.Header)
				}
				if response.Header.Get("X-Forged") != "" || response.Header.Get("X-Bad") != "" || response.Header.Get(HeaderStatus) != "" {
					t.Errorf("headers that should not be there: %v", response.Header)
				}
			})
		}
	}
}

// A client that goes on sending a body longer than we drain must still see the status.
func TestWriteStatusToAClientThatIsStillSending(t *testing.T) {
	server := httptest.NewServer(answering(StatusInvalidToken))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const length = 100 << 20
	fmt.Fprintf(conn, "CCM_POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", length)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		conn.Write(make([]byte, drainBytes+64<<10))
	}()
	<-sent
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if response.Status != "401 CMGService_Invalid_Token" {
		t.Errorf("status %q", response.Status)
	}
}

func TestWriteStatusDoesNotAskForABodyThatIsHeldBack(t *testing.T) {
	server := httptest.NewServer(answering(StatusInvalidToken))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "CCM_POST /x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || line != "HTTP/1.1 401 CMGService_Invalid_Token\r\n" {
		t.Errorf("got %q, %v", line, err)
	}
}

func TestWriteStatusToHEADSendsNoBody(t *testing.T) {
	server := httptest.NewServer(answering(StatusInvalidToken))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "HEAD /x HTTP/1.0\r\n\r\n")
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.0 401 CMGService_Invalid_Token\r\n") || !strings.HasSuffix(string(answer), "\r\n\r\n") {
		t.Errorf("got %q, %v", answer, err)
	}
}

func TestWriteStatusOnHTTP2(t *testing.T) {
	server := httptest.NewUnstartedServer(answering(StatusClientCertificateRequired))
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{}
	server.StartTLS()
	defer server.Close()
	response, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.ProtoMajor != 2 || response.StatusCode != 403 {
		t.Errorf("got %s %s", response.Proto, response.Status)
	}
	if got, want := StatusFrom(response.StatusCode, response.Header).Phrase(), "403 Client certificate required"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWriteStatusWithoutConnection(t *testing.T) {
	recorder := httptest.NewRecorder()
	answering(StatusInvalidToken)(recorder, httptest.NewRequest("CCM_POST", "/x", strings.NewReader("body")))
	if recorder.Code != 401 || recorder.Header().Get(HeaderStatus) != "CMGService_Invalid_Token" || recorder.Body.String() != "the body" {
		t.Errorf("got %d %v %q", recorder.Code, recorder.Header(), recorder.Body)
	}
}

func TestWriteError(t *testing.T) {
	recorder := httptest.NewRecorder()
	request := httptest.NewRequest("GET", "/x", nil)
	WriteError(recorder, request, Status{}, fmt.Errorf("parse: %w", catalog.Wrap(catalog.PathUnknown, io.ErrUnexpectedEOF, "nothing here")))
	if recorder.Code != 404 || recorder.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("got %d %v", recorder.Code, recorder.Header())
	}
	var problem struct{ Code, Detail string }
	if err := json.Unmarshal(recorder.Body.Bytes(), &problem); err != nil || problem.Code != string(catalog.PathUnknown) || problem.Detail != "nothing here" {
		t.Errorf("got %s, %v", recorder.Body, err)
	}
}

func TestConnectorStatus(t *testing.T) {
	tests := []struct {
		code       int
		mp, reason string
	}{
		{403, "Client certificate required", "CMGConnector_Clientcertificaterequired"},
		{403, "Forbidden", "CMGConnector_Forbidden"},
		{401, "Unauthorized", "CMGConnector_Unauthorized"},
		{500, "Internal Server Error", "CMGConnector_InternalServerError"},
		{500, "", "CMGConnector_InternalServerError"},
	}
	for _, test := range tests {
		if got := ConnectorStatus(test.code, test.mp); got.Code != test.code || got.Reason != test.reason {
			t.Errorf("%d %q: got %+v, want %q", test.code, test.mp, got, test.reason)
		}
	}
}

func TestStripHop(t *testing.T) {
	header := http.Header{}
	for _, name := range HopHeaders() {
		header[name] = []string{"forged"}
		header[strings.ToLower(name)] = []string{"forged"}
		header[strings.ReplaceAll(name, "-", "_")] = []string{"forged"}
	}
	for _, name := range []string{"X-Forwarded-For", "x_forwarded_proto", "X-ARR-ClientCert", "Forwarded", "X-Real-IP", "Postern-Anything", HeaderStatus} {
		header[name] = []string{"forged"}
	}
	header.Set("Authorization", "DPoP x")
	header.Set("CCMClientID", "GUID:x")
	header.Set("Traceparent", "00-x")
	StripHop(header)
	if len(header) != 3 {
		t.Errorf("left: %v", header)
	}
}
