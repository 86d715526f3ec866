package revocation

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"postern/catalog"
	"postern/internal/authority"
)

// listen accepts TLS connections on loopback until the test ends, with each answered by HTTP.
func listen(t *testing.T, config *tls.Config) string {
	t.Helper()
	return serve(t, func(connection net.Conn) {
		secured := tls.Server(connection, config)
		if _, err := http.ReadRequest(bufio.NewReader(secured)); err == nil {
			io.WriteString(secured, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
		}
	})
}

func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				connection.SetDeadline(time.Now().Add(5 * time.Second))
				handle(connection)
				io.Copy(io.Discard, io.LimitReader(connection, 1<<20))
			}()
		}
	}()
	return listener.Addr().String()
}

// connect makes a request as a client would, and returns the error of net/http.
func connect(t *testing.T, address string, config *tls.Config) error {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	response, err := client.Get("https://" + address + "/")
	if err == nil {
		response.Body.Close()
	}
	return err
}

// The flags, the number and the text of S4 and product.md E039 to E047, for handshakes that crypto/tls refuses by itself.
func TestExplainHandshakes(t *testing.T) {
	w := newWorld(t)
	now := func(c *tls.Config) *tls.Config { c.Time = w.clock.Now; return c }
	server := func(edits ...authority.Edit) tls.Certificate {
		return must[*authority.Certificate](t)(w.between.Server([]string{"cmg.contoso.com"}, edits...)).TLS()
	}
	withRoot := server()
	other := must[*authority.Authority](t)(authority.NewRoot("Other Root", start()))
	foreign := must[*authority.Certificate](t)(other.Server([]string{"cmg.contoso.com"})).TLS()
	foreign.Certificate = append(foreign.Certificate, other.Certificate.Raw)
	bare := server()
	bare.Certificate = bare.Certificate[:1]
	negative := server()
	negative.Certificate = [][]byte{negativeSerial(t, negative.Certificate[0])}
	garbled := server()
	garbled.Certificate = [][]byte{garbled.Certificate[0][:len(garbled.Certificate[0])-4]}
	with := func(certificate tls.Certificate) *tls.Config {
		return now(&tls.Config{Certificates: []tls.Certificate{certificate}})
	}
	asks := with(withRoot)
	asks.ClientAuth, asks.ClientCAs = tls.RequireAndVerifyClientCert, pool([]*x509.Certificate{w.root.Certificate})
	client := func(edit func(*tls.Config)) *tls.Config {
		c := now(&tls.Config{RootCAs: pool([]*x509.Certificate{w.root.Certificate}), ServerName: "cmg.contoso.com"})
		if edit != nil {
			edit(c)
		}
		return c
	}
	shows := func(certificate tls.Certificate) func(*tls.Config) {
		return func(c *tls.Config) {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
		}
	}
	const needed = ClientCertificateNeeded
	for _, test := range []struct {
		name    string
		address string
		client  *tls.Config
		flags   Flags
		number  int
		code    catalog.Code
		says    string
	}{
		{"another name", listen(t, with(withRoot)), client(func(c *tls.Config) { c.ServerName = "cmg.fabrikam.com" }), FlagName, SecureFailure, catalog.CertificateName, `called by the name "cmg.fabrikam.com"; its certificate is for "cmg.contoso.com"`},
		{"an unknown root", listen(t, with(foreign)), client(nil), FlagInvalidCA, SecureFailure, catalog.CertificateRootUnknown, `ends in "Other Root"`},
		{"intermediate missing", listen(t, with(bare)), client(nil), FlagInvalidCA, SecureFailure, catalog.CertificateIssuerMissing, "Test Issuing"},
		{"expired", listen(t, with(server(func(c *x509.Certificate) { c.NotAfter = start().Add(-time.Hour) }))), client(nil), FlagDate, SecureFailure, catalog.CertificateDate, "2026-11-20 11:00:00"},
		{"a client's certificate", listen(t, with(w.good.TLS())), client(func(c *tls.Config) { c.ServerName = "wk01.contoso.com" }), FlagWrongUsage, SecureFailure, catalog.CertificateUsage, "another use"},
		{"a negative serial", listen(t, with(negative)), client(nil), FlagInvalidCertificate, SecureFailure, catalog.CertificateNegativeSerial, "negative serial"},
		{"a damaged certificate", listen(t, with(garbled)), client(nil), FlagInvalidCertificate, SecureFailure, catalog.CertificateUnreadable, "damaged"},
		{"an old TLS version", listen(t, &tls.Config{Certificates: []tls.Certificate{withRoot}, MinVersion: tls.VersionTLS13}), client(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), FlagChannel, SecureFailure, catalog.TLSChannelFailed, "TLS versions"},
		{"an old server", listen(t, &tls.Config{Certificates: []tls.Certificate{withRoot}, MaxVersion: tls.VersionTLS12}), client(func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 }), FlagChannel, SecureFailure, catalog.TLSChannelFailed, "TLS versions"},
		{"no common cipher", listen(t, &tls.Config{Certificates: []tls.Certificate{withRoot}, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}), client(func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}
		}), FlagChannel, SecureFailure, catalog.TLSChannelFailed, "ciphers"},
		{"plain HTTP", serve(t, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }), client(nil), FlagChannel, SecureFailure, catalog.TLSChannelFailed, "plain HTTP"},
		{"another protocol", serve(t, func(c net.Conn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.9\r\n") }), client(nil), FlagChannel, SecureFailure, catalog.TLSChannelFailed, "does not speak TLS"},
		{"a client certificate is wanted", listen(t, asks), client(nil), 0, needed, catalog.TLSChannelFailed, "wants a client certificate"},
		{"the client's authority is not trusted", listen(t, asks), client(shows(foreign)), 0, needed, catalog.TLSChannelFailed, "does not trust the authority"},
		{"the client's certificate has expired", listen(t, asks), client(shows(must[*authority.Certificate](t)(w.between.Client("a", func(c *x509.Certificate) { c.NotAfter = start().Add(-time.Hour) })).TLS())), 0, needed, catalog.TLSChannelFailed, "has expired"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := connect(t, test.address, test.client)
			if err == nil {
				t.Fatal("connected")
			}
			got, ok := Explain(err)
			if !ok || got.Flags != test.flags || got.Number != test.number || got.Code != test.code || !strings.Contains(got.Sentence, test.says) {
				t.Errorf("got %v, %+v for %v; want %s, %d, %s, %q", ok, got, err, test.flags, test.number, test.code, test.says)
			}
			wantText := map[int]string{SecureFailure: "ERROR_WINHTTP_SECURE_FAILURE", needed: "ERROR_WINHTTP_CLIENT_AUTH_CERT_NEEDED"}[test.number]
			if got.Text != wantText {
				t.Errorf("got the text %s", got.Text)
			}
		})
	}
}

func negativeSerial(t *testing.T, der []byte) []byte {
	t.Helper()
	certificate := must[*x509.Certificate](t)(x509.ParseCertificate(der))
	changed := bytes.Clone(der)
	changed[bytes.Index(changed, certificate.SerialNumber.Bytes())] |= 0x80
	return changed
}

// With a Checker in the handshake, every flag is told at once, as in S4.
func TestExplainTheVerdictOfAChecker(t *testing.T) {
	w := newWorld(t)
	server := must[*authority.Certificate](t)(w.between.Server([]string{"cmg.contoso.com"}))
	revoked := must[*authority.Certificate](t)(w.between.Server([]string{"cmg.contoso.com"}))
	bare := server.TLS()
	bare.Certificate = bare.Certificate[:1]
	stapled := server.TLS()
	stapled.OCSPStaple = w.answer(server, ocsp.Revoked, nil)
	w.between.Revoke(revoked.Certificate, start(), 4)
	w.publish()
	nowhere := sources("http://127.0.0.1:1/a.crl")
	for _, test := range []struct {
		name        string
		certificate tls.Certificate
		called      string
		checker     *Checker
		flags       Flags
		code        catalog.Code
	}{
		{"good", server.TLS(), "cmg.contoso.com", w.checker(), 0, ""},
		{"another name", server.TLS(), "cmg.fabrikam.com", w.checker(), 0x10, catalog.CertificateName},
		{"a list that is not published", server.TLS(), "cmg.contoso.com", w.checker(nowhere), 0x1, catalog.RevocationUnreachable},
		{"the same with /nocrlcheck", server.TLS(), "cmg.contoso.com", w.checker(nowhere, policy(PolicyOff)), 0, ""},
		{"another name and no list", server.TLS(), "cmg.fabrikam.com", w.checker(nowhere), 0x11, catalog.CertificateName},
		{"/nocrlcheck leaves the name checked", server.TLS(), "cmg.fabrikam.com", w.checker(nowhere, policy(PolicyOff)), 0x10, catalog.CertificateName},
		{"the chain is cut", bare, "cmg.contoso.com", w.checker(), 0x9, catalog.CertificateIssuerMissing},
		{"S4's three lines", bare, "cmg.fabrikam.com", w.checker(), 0x19, catalog.CertificateIssuerMissing},
		{"revoked", revoked.TLS(), "cmg.contoso.com", w.checker(), 0x4, catalog.CertificateRevoked},
		{"revoked, says the stapled answer", stapled, "cmg.contoso.com", w.checker(), 0x4, catalog.CertificateRevoked},
	} {
		t.Run(test.name, func(t *testing.T) {
			address := listen(t, &tls.Config{Certificates: []tls.Certificate{test.certificate}})
			err := connect(t, address, &tls.Config{InsecureSkipVerify: true, ServerName: test.called, VerifyConnection: test.checker.VerifyServer(test.called)})
			if (err == nil) != (test.flags == 0) {
				t.Fatalf("got %v", err)
			}
			if got, ok := Explain(err); ok && (got.Flags != test.flags || got.Code != test.code || got.Number != SecureFailure) || ok != (err != nil) {
				t.Errorf("got %+v, want %s, %s", got, test.flags, test.code)
			}
		})
	}
}

func TestVerifyClient(t *testing.T) {
	w := newWorld(t)
	server := must[*authority.Certificate](t)(w.between.Server([]string{"cmg.contoso.com"})).TLS()
	c := w.checker()
	address := listen(t, &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert, VerifyConnection: c.VerifyClient()})
	for name, test := range map[string]struct {
		shown []tls.Certificate
		ok    bool
	}{
		"none":    {nil, true},
		"good":    {[]tls.Certificate{w.good.TLS()}, true},
		"revoked": {[]tls.Certificate{w.revoked.TLS()}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := connect(t, address, &tls.Config{InsecureSkipVerify: true, Certificates: test.shown})
			if (err == nil) != test.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestExplainErrorsWithoutAHandshake(t *testing.T) {
	for name, test := range map[string]struct {
		err   error
		flags Flags
		code  catalog.Code
	}{
		"weak":                  {&tls.CertificateVerificationError{Err: x509.InsecureAlgorithmError(x509.SHA1WithRSA)}, FlagInvalidCertificate, catalog.CertificateWeak},
		"a constraint":          {x509.CertificateInvalidError{Reason: x509.TooManyIntermediates}, FlagInvalidCertificate, catalog.CertificateConstraint},
		"a name out of bounds":  {x509.CertificateInvalidError{Reason: x509.CANotAuthorizedForThisName}, FlagInvalidCertificate, catalog.CertificateConstraint},
		"a reason to come":      {x509.CertificateInvalidError{Reason: 9999}, FlagInvalidCertificate, catalog.CertificateConstraint},
		"an extension":          {fmt.Errorf("get: %w", x509.UnhandledCriticalExtension{}), FlagInvalidCertificate, catalog.CertificateConstraint},
		"no roots":              {x509.SystemRootsError{}, FlagInvalidCA, catalog.CertificateRootUnknown},
		"an unknown root":       {x509.UnknownAuthorityError{}, FlagInvalidCA, catalog.CertificateRootUnknown},
		"an unknown root, bare": {&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, FlagInvalidCA, catalog.CertificateRootUnknown},
		"something else":        {&tls.CertificateVerificationError{Err: errors.New("x")}, FlagInvalidCertificate, catalog.CertificateConstraint},
		"one of our codes":      {fmt.Errorf("get: %w", catalog.Errorf(catalog.RevocationUnreachable, "x")), FlagRevocationFailed, catalog.RevocationUnreachable},
		"an alert to come":      {&net.OpError{Op: "remote error", Err: errors.New("tls: alert(250)")}, FlagChannel, catalog.TLSChannelFailed},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := Explain(test.err)
			if !ok || got.Flags != test.flags || got.Code != test.code || got.Sentence == "" {
				t.Errorf("got %v, %+v", ok, got)
			}
		})
	}
	for name, err := range map[string]error{
		"none": nil, "refused": &net.OpError{Op: "dial", Err: os.ErrPermission}, "not resolved": &net.DNSError{}, "time": context.DeadlineExceeded,
		"end": io.ErrUnexpectedEOF, "another code": catalog.Errorf(catalog.InternalError, "x"),
	} {
		if got, ok := Explain(err); ok {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

// The words of S4, lines 61 to 64, and of product.md E040 to E047.
func TestFlags(t *testing.T) {
	got := Flags(0x9 | 0x10).Names()
	want := []string{"WINHTTP_CALLBACK_STATUS_FLAG_CERT_REV_FAILED", "WINHTTP_CALLBACK_STATUS_FLAG_INVALID_CA", "WINHTTP_CALLBACK_STATUS_FLAG_CERT_CN_INVALID"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	all := Flags(0x8000007f)
	if got, want := all.String(), "CERT_REV_FAILED|INVALID_CERT|CERT_REVOKED|INVALID_CA|CERT_CN_INVALID|CERT_DATE_INVALID|CERT_WRONG_USAGE|SECURITY_CHANNEL_ERROR"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(all.Numbers()), "[12057 12169 12170 12045 12038 12037 12179 12157]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if Flags(0).String() != "none" || SecureFailure != 0x2f8f {
		t.Error("no flags, or the number of a secure failure")
	}
}

// Every code that a chain can be refused with has the flag that its entry names.
func TestEveryCodeHasItsFlag(t *testing.T) {
	for _, entry := range catalog.All() {
		if entry.Code < catalog.CertificateUnreadable || entry.Code > catalog.RevocationConfig || entry.Code[0] != 'P' {
			continue
		}
		for _, looks := range entry.Looks {
			name, found := strings.CutPrefix(looks, "WINHTTP_CALLBACK_STATUS_FLAG_")
			if found && name != FlagsOf(entry.Code).String()+" is set" {
				t.Errorf("%s: got %s, the entry says %s", entry.Code, FlagsOf(entry.Code), name)
			}
		}
	}
}
