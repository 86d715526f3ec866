package lab_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/connector"
	"postern/internal/role"
	"postern/site"
	"postern/token"
	"postern/tunnel"
)

// dialTunnel dials the gateway as a connector with that certificate. The error is the gateway's refusal.
func (w *world) dialTunnel(certificate tls.Certificate) (*tls.Conn, error) {
	w.Helper()
	conn, err := tls.Dial("tcp", w.Gateway.Addresses["https"], &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{tunnel.ALPN}, InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil },
	})
	if err != nil {
		return nil, err
	}
	w.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err != nil { // TLS 1.3 tells of a refusal after the handshake; otherwise the tunnel begins to speak
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// logged waits until a role's log of events has a line with the code.
func logged(t testing.TB, path string, code catalog.Code) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s tells of %s", filepath.Base(path), code), func() bool {
		text, err := os.ReadFile(path)
		return err == nil && bytes.Contains(text, []byte(`"code":"`+code+`"`))
	})
}

func (w *world) gatewayLog() string { return filepath.Join(w.Dir, "gateway", "logs", "gateway.json") }

// TestConnectorWithAForeignCertificate (C12): the gateway lets in role certificates of its own site's connectors and nothing else, and a
// refused one never carries a request.
func TestConnectorWithAForeignCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	connectors := func() int { return len(w.Gateway.Gateway.Status().Connectors) }
	before := connectors()
	for name, c := range map[string]struct {
		certificate tls.Certificate
		code        catalog.Code
	}{
		"of another site":      {foreignCertificate(t), catalog.RoleCertificateRoot},
		"for a gateway":        {issueRole(t, w.Site(), site.RoleGateway, "localhost", "localhost"), catalog.RoleCertificateUsage},
		"for another role":     {issueRole(t, w.Site(), site.RoleManagementPoint, "localhost", "localhost"), catalog.RoleCertificateUsage},
		"made by itself":       {selfMade(t), catalog.RoleCertificateRoot},
		"of the site's leaf":   {underLeaf(t, issueRole(t, w.Site(), site.RoleConnector, "lab1"), w.Site().Hierarchy()), catalog.RoleCertificateRoot},
		"with somebody's root": {withRoot(selfMade(t), w.Site().RootCertificate()), catalog.RoleCertificateRoot},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.on(t)
			w.unchanged(func() {
				if _, err := w.dialTunnel(c.certificate); err == nil {
					t.Error("the gateway let it in")
				}
				logged(t, w.gatewayLog(), c.code)
			})
			if got := connectors(); got != before {
				t.Errorf("%d connections, want %d", got, before)
			}
		})
	}
	t.Run("none at all", func(t *testing.T) {
		if _, err := w.on(t).dialTunnel(tls.Certificate{}); err == nil {
			t.Error("the gateway let it in")
		}
	})
}

// selfMade looks like a connector's certificate and is signed by its own key.
func selfMade(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{certificate(t, key, key, nil, "00000000-0000-4000-8000-000000000000")}, PrivateKey: key}
}

// certificate makes a connector's certificate by any key.
func certificate(t testing.TB, key, signer *ecdsa.PrivateKey, parent *x509.Certificate, hierarchy string) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: newSerial(t), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{token.RoleURI(hierarchy, token.RoleConnector, "lab1")}, BasicConstraintsValid: true,
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// underLeaf is issued by a certificate that may issue nothing.
func underLeaf(t testing.TB, leaf tls.Certificate, hierarchy string) tls.Certificate {
	t.Helper()
	parent, err := x509.ParseCertificate(leaf.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := certificate(t, key, leaf.PrivateKey.(*ecdsa.PrivateKey), parent, hierarchy)
	return tls.Certificate{Certificate: append([][]byte{der}, leaf.Certificate...), PrivateKey: key}
}

func withRoot(c tls.Certificate, root []byte) tls.Certificate {
	c.Certificate = append(slices.Clone(c.Certificate), root)
	return c
}

// TestRevokedConnector: its connections end when the state reaches the gateway, it does not come back, and the management point does not talk
// to it.
func TestRevokedConnector(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	second := w.connectorCertificate("lab2")
	client := w.certified("lab2", second)
	if _, err := w.dialTunnel(second); err != nil {
		t.Fatalf("before it is blocked: %v", err)
	}
	w.must(w.Site().BlockConnector(t.Context(), "lab2", true, "test", "try it"))
	eventually(t, "the gateway has dropped lab2", func() bool {
		return !slices.ContainsFunc(w.Gateway.Gateway.Status().Connectors, func(c tunnel.Connection) bool { return c.Name == "lab2" })
	})
	w.unchanged(func() {
		if _, err := w.dialTunnel(second); err == nil {
			t.Error("the gateway let it in again")
		}
	})
	logged(t, w.gatewayLog(), catalog.RoleCertificateBlocked)
	for _, path := range []string{"/postern/state", "/SMS_MP/.sms_aut?MPLIST"} {
		w.refuses(refusal{status: 403, code: catalog.ConnectorBlocked}, func() answer {
			return w.send(client, http.MethodGet, w.inside(path), "", nil, nil)
		})
	}
	if w.enrolled("laptop").ccm == "" { // the other connector goes on
		t.Error("nobody can enrol any more")
	}
}

// TestBlockedLastConnector: devices get a clear 503 with a code and a time to wait.
func TestBlockedLastConnector(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.enrolled("laptop")
	w.must(w.Site().BlockConnector(t.Context(), "lab1", true, "test", "try it"))
	eventually(t, "the gateway has no connector", func() bool { return len(w.Gateway.Gateway.Status().Connectors) == 0 })
	w.refuses(refusal{status: 503, code: catalog.NoConnector}, func() answer {
		a := w.message(d, d.ccm, "MP_PolicyManager", d.assignments(), true)
		if a.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		return a
	})
}

// TestGatewayWithTheWrongPin (C71): a connector speaks to no server but the listed key; its certificate does not even leave.
func TestGatewayWithTheWrongPin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	impostor := selfMade(t)
	shown := make(chan int, 100)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{impostor}, NextProtos: []string{tunnel.ALPN}, ClientAuth: tls.RequestClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error { shown <- len(cs.PeerCertificates); return nil },
	})
	w.must(err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	code, err := w.Site().Invite(t.Context(), "lab2", "test")
	w.must(err)
	made, err := role.JoinConnector(t.Context(), role.NewConnector{Dir: filepath.Join(w.Dir, "connector2"), ManagementPoint: w.ManagementPointURL(), Code: code + "." + w.SiteRoot}, role.Protection{}, time.Now)
	w.must(err)
	config, err := role.Load(made.Config)
	w.must(err)
	config.Gateways = []role.Listed{{URL: "https://127.0.0.1:" + port, Pin: w.Gateway.Pin}}
	running, err := role.StartConnector(t.Context(), config, role.Environment{})
	w.must(err)
	defer running.Stop()
	eventually(t, "the connector refuses the impostor", func() bool {
		return slices.ContainsFunc(running.Connector.Status().Gateways, func(g connector.GatewayStatus) bool {
			return g.Connected == 0 && slices.ContainsFunc(g.Connections, func(c connector.ConnectionStatus) bool { return c.Code == catalog.GatewayPinMismatch })
		})
	})
	select {
	case n := <-shown:
		t.Errorf("the handshake went on; the connector showed %d certificates", n)
	default:
	}
	if running.Connector.Status().Healthy() {
		t.Error("the connector says that it is healthy")
	}
}

// evil is a connector that has gone over to the enemy: its certificate is good, what it relays is not.
type evil string

func (e evil) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		http.Error(w, "", http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, string(e)+"\n")
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

// TestTamperedSiteState (design decision 4): a connector relays the state and cannot alter it. What is not the root's word, or not newer, is
// refused with its reason, and the state in force stays.
func TestTamperedSiteState(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw, kept := w.bulk(0)
	d := w.enrolled("laptop")
	old, _, err := w.Site().State()
	w.must(err)
	_, err = w.Site().BlockBulkToken(t.Context(), kept.ID, true, "test", "try it")
	w.must(err)
	w.settled()
	current, _, err := w.Site().State()
	w.must(err)
	root := w.signingKeys()[site.PurposeRoot]
	opened, err := token.OpenState(current, w.SiteRoot)
	w.must(err)
	otherRoot, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)

	opened.Epoch += 1000
	unblocked := opened
	unblocked.BlockedTokens = nil
	otherSigned, err := token.SignState(unblocked, otherRoot)
	w.must(err)
	shown := unblocked // claims our root, signed by another
	shown.Root, err = x509.MarshalPKIXPublicKey(root.Public())
	w.must(err)
	impostor, err := token.SignState(shown, otherRoot)
	w.must(err)
	foreignBeat, err := token.SignBeat(opened.Epoch, time.Now(), otherRoot)
	w.must(err)

	certificate := w.connectorCertificate("evil")
	for _, c := range []struct {
		name, line string
		codes      []catalog.Code
	}{
		{"blocked tokens taken out", edited(t, current, func(claims map[string]any) { delete(claims, "blocked_tokens"); claims["epoch"] = opened.Epoch }), []catalog.Code{catalog.StateSignature}},
		{"signed by another root", otherSigned, []catalog.Code{catalog.StateOtherRoot, catalog.StateSignature}},
		{"the root's name under another's signature", impostor, []catalog.Code{catalog.StateOtherRoot, catalog.StateSignature}},
		{"a heartbeat of another root", foreignBeat, []catalog.Code{catalog.StateOtherRoot, catalog.StateSignature}},
		{"an older state", old, []catalog.Code{catalog.StateOlderEpoch}},
		{"noise", "not a state", []catalog.Code{catalog.StateMalformed}},
		{"a token instead of a state", d.ccm, []catalog.Code{catalog.StateMalformed, catalog.StateSignature, catalog.StateOtherRoot}},
		{"too large", strings.Repeat("A", token.MaxDocument+1), []catalog.Code{catalog.StateTooLarge, catalog.GatewayStateStream}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w.on(t)
			mark := len(readFile(t, w.gatewayLog()))
			stop := w.evilConnector(certificate, evil(c.line))
			defer stop()
			eventually(t, fmt.Sprint("the gateway tells of one of ", c.codes), func() bool {
				text := readFile(t, w.gatewayLog())[mark:]
				return slices.ContainsFunc(c.codes, func(code catalog.Code) bool { return bytes.Contains(text, []byte(`"code":"`+code+`"`)) })
			})
			if got := w.Gateway.Gateway.Status().Epoch; got != w.Site().Epoch() {
				t.Errorf("the gateway holds epoch %d, want %d", got, w.Site().Epoch())
			}
			w.refuses(refusal{status: 401, reason: "CMGService_Invalid_Token", code: catalog.TokenBlocked}, func() answer { return w.exchange(newDevice(t, "late"), raw, token.KindCCM) })
		})
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// edited changes the payload of a signed document and keeps its signature.
func edited(t testing.TB, raw string, edit func(map[string]any)) string {
	t.Helper()
	pieces := strings.Split(raw, ".")
	payload, err := base64.RawURLEncoding.DecodeString(pieces[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	edit(claims)
	pieces[1] = segment(t, claims)
	return strings.Join(pieces, ".")
}

// evilConnector connects with a connector's certificate and lets a handler of the test answer.
func (w *world) evilConnector(certificate tls.Certificate, h http.Handler) (stop func()) {
	w.Helper()
	conn, err := tls.Dial("tcp", w.Gateway.Addresses["https"], &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{tunnel.ALPN}, InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil },
	})
	w.must(err)
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tunnel.Serve(ctx, conn, h, tunnel.ServeConfig{Grace: 100 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	}()
	return func() {
		cancel()
		conn.NetConn().Close()
		<-done
	}
}

// TestTamperedStateFile: the state that a gateway kept before a restart is believed as far as its signature goes.
func TestTamperedStateFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path := filepath.Join(w.Dir, "gateway", "site-state.jws")
	good := readFile(t, path)
	config, err := role.Load(filepath.Join(w.Dir, "gateway", "gateway.yaml"))
	w.must(err)
	w.must(w.Connector.Stop())
	w.Connector = nil
	for name, c := range map[string]struct {
		content []byte
		epoch   bool
	}{
		"as it was":  {good, true},
		"changed":    {[]byte(edited(t, strings.TrimSpace(string(good)), func(c map[string]any) { c["epoch"] = 1e6 })), false},
		"noise":      {[]byte("noise"), false},
		"nothing":    {nil, false},
		"much noise": {bytes.Repeat([]byte("A"), token.MaxDocument+10), false},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.on(t)
			w.must(w.Gateway.Stop())
			w.must(os.WriteFile(path, c.content, 0o600))
			running, err := role.StartGateway(t.Context(), config, role.Environment{ObserveGateway: w.gateway.add})
			w.must(err)
			w.clients.closeIdle()
			defer running.Stop()
			if got := running.Gateway.Status().Epoch > 0; got != c.epoch {
				t.Errorf("the gateway holds a state: %v, want %v", got, c.epoch)
			}
			if c.epoch {
				return
			}
			logged(t, w.gatewayLog(), catalog.GatewayStateFile)
			w.check(w.exchange(newDevice(t, "early"), "x.y.z", token.KindCCM), refusal{status: 503, code: catalog.StateMissing})
		})
	}
}

func newSerial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
