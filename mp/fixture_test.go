package mp

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/keyfile"
	"postern/logfile"
	"postern/proof"
	"postern/site"
	"postern/store"
	"postern/token"
)

// captured is a moment shortly after the captures were made, so that their times are fresh.
var captured = time.Date(2026, 11, 21, 23, 0, 0, 0, time.UTC)

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// template is a site that was made once: keys are slow to make, a file is quick to copy.
var template = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "postern-mp"); err != nil {
		return "", err
	}
	key, err := keyfile.Open(dir, keyfile.Options{Create: true})
	if err != nil {
		return "", err
	}
	now := func() time.Time { return captured }
	st, err := store.OpenSQLite(context.Background(), filepath.Join(dir, "site.db"), store.Options{Now: now})
	if err != nil {
		return "", err
	}
	defer st.Close()
	_, err = site.Init(context.Background(), site.Config{Store: st, Sealer: key, Now: now}, site.InitOptions{SiteCode: "PRI", By: "test"})
	return dir, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := template(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

const (
	testFQDN    = "mp1.lab.local"
	gatewayName = "gw.lab.example"
	gatewayPin  = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
)

// fixture is a management point with real listeners on loopback, over a real store.
type fixture struct {
	testing.TB
	clock  *clock
	dir    string
	store  *breakable
	site   *site.Site
	mp     *ManagementPoint
	roleID uint64
	addr   map[Listener]string
	client *http.Client // HTTP/1.1, no client certificate

	company *company // nil without withCompany
}

// breakable is a real store that can be taken away: the outside world failing, not a mock of ours.
type breakable struct {
	site.Store
	mu   sync.Mutex
	away bool
}

func (b *breakable) take(away bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = away
}

func (b *breakable) gone() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away {
		return site.ErrUnavailable
	}
	return nil
}

func (b *breakable) Update(ctx context.Context, change func(site.Tx) error) error {
	if err := b.gone(); err != nil {
		return err
	}
	return b.Store.Update(ctx, change)
}

func (b *breakable) View(ctx context.Context, read func(site.Tx) error) error {
	if err := b.gone(); err != nil {
		return err
	}
	return b.Store.View(ctx, read)
}

func newFixture(t testing.TB, edit ...func(*Config)) *fixture {
	t.Helper()
	from, err := template()
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{TB: t, clock: &clock{t: captured}, dir: t.TempDir(), addr: map[Listener]string{}}
	for _, name := range []string{"site.db", "site.key"} {
		data, err := os.ReadFile(filepath.Join(from, name))
		f.must(err)
		f.must(os.WriteFile(filepath.Join(f.dir, name), data, 0o600))
	}
	key, err := keyfile.Open(f.dir, keyfile.Options{})
	f.must(err)
	st, err := store.OpenSQLite(t.Context(), filepath.Join(f.dir, "site.db"), store.Options{Now: f.clock.now})
	f.must(err)
	t.Cleanup(func() { st.Close() })
	f.store = &breakable{Store: st}
	f.site, err = site.Open(t.Context(), site.Config{Store: f.store, Sealer: key, Now: f.clock.now})
	f.must(err)
	point, err := f.site.Enlist(t.Context(), site.ManagementPoint{Name: "MP1", FQDN: testFQDN, InternalURL: "https://" + testFQDN, HTTP: true, Names: []string{"127.0.0.1"}})
	f.must(err)
	_, err = f.site.AddGateway(t.Context(), "https://"+gatewayName, gatewayPin, "test")
	f.must(err)
	f.roleID = point.RoleID
	logs := logfile.NewFolder(filepath.Join(f.dir, "logs"), logfile.Options{Now: f.clock.now})
	config := Config{
		Site: f.site, InboxDir: filepath.Join(f.dir, "inboxes"), Logs: logs, AccessLog: logs.Access("u_ex.log"), Now: f.clock.now,
		RoleID: f.roleID, FQDN: testFQDN,
	}
	for _, e := range edit {
		e(&config)
	}
	if c, ok := config.Certificates.(*company); ok {
		f.company = c
		c.clock = f.clock
	}
	f.mp, err = New(config)
	f.must(err)
	f.listen()
	f.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	return f
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) listen() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	f.must(err)
	chain, err := f.site.IssueRole(site.RoleManagementPoint, "MP1", key.Public(), []string{testFQDN, "127.0.0.1"})
	f.must(err)
	for _, l := range Listeners() {
		server := f.mp.Server(l)
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		f.must(err)
		f.addr[l] = listener.Addr().String()
		if l == HTTP {
			go server.Serve(listener)
		} else {
			server.TLSConfig.Certificates = []tls.Certificate{{Certificate: chain, PrivateKey: key}}
			go server.ServeTLS(listener, "", "")
		}
		f.Cleanup(func() { f.mp.endStreams(); server.Close() })
	}
}

// url is an address on a listener.
func (f *fixture) url(l Listener, path string) string {
	scheme := "https://"
	if l == HTTP {
		scheme = "http://"
	}
	return scheme + f.addr[l] + path
}

// got is an answer, read whole.
type got struct {
	*http.Response
	body []byte
}

func (g got) code() string {
	var p struct {
		Code string `json:"code"`
	}
	json.Unmarshal(g.body, &p)
	return p.Code
}

// send makes a request with headers given as name, value pairs.
func (f *fixture) send(client *http.Client, method, address, contentType string, body []byte, headers ...string) got {
	f.Helper()
	r, err := http.NewRequestWithContext(f.Context(), method, address, bytes.NewReader(body))
	f.must(err)
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := client.Do(r)
	f.must(err)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	f.must(err)
	return got{response, data}
}

// raw sends bytes as they are to the plain listener and reads one answer.
func (f *fixture) raw(request []byte) got {
	f.Helper()
	conn, err := net.Dial("tcp", f.addr[HTTP])
	f.must(err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = conn.Write(request)
	f.must(err)
	response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodPost})
	f.must(err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	f.must(err)
	return got{response, body}
}

// capture returns a captured request, byte for byte.
func (f *fixture) capture(name string) []byte {
	f.Helper()
	data, err := os.ReadFile(filepath.Join("..", "ccm", "testdata", "captures", name+".request.http"))
	f.must(err)
	return data
}

func (f *fixture) captured(name string) *ccm.Message {
	f.Helper()
	request, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(f.capture(name))))
	f.must(err)
	m, err := ccm.ReadMessage(request.Header.Get("Content-Type"), request.Body, ccm.DefaultLimits())
	f.must(err)
	return m
}

// text decodes the reply of a message.
func (f *fixture) text(g got) string {
	f.Helper()
	m, err := ccm.DecodeReply(g.Header.Get("Content-Type"), bytes.NewReader(g.body), ccm.DefaultLimits())
	if err != nil {
		f.Fatalf("reply %s %q: %v", g.Status, g.body, err)
	}
	return m.Text()
}

// device is a client's key and certificate, and its id once it has one.
type device struct {
	key  *rsa.PrivateKey
	cert *ccm.Certificate
	id   ccm.ClientID
}

var keys = []func() *rsa.PrivateKey{newKey(), newKey(), newKey()}

func newKey() func() *rsa.PrivateKey {
	return sync.OnceValue(func() *rsa.PrivateKey {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		return key
	})
}

func (f *fixture) device(n int) *device {
	f.Helper()
	key := keys[n]()
	cert, err := ccm.NewClientCertificate(key, "ConfigMgr Client Messaging", ccm.UsageSigning|ccm.UsageEncryption, f.clock.now(), rand.Reader)
	f.must(err)
	return &device{key: key, cert: cert}
}

func (f *fixture) registration(d *device, edit ...func(*ccm.RegistrationRequest)) string {
	f.Helper()
	request := ccm.RegistrationRequest{
		Type: ccm.RegistrationTypeRegistration, TimeStamp: f.clock.now().Format(time.RFC3339), Agent: ccm.Agent{Identity: "test", Version: "5.00.9128.1000"},
		Signing: d.cert, Encryption: d.cert, KeyType: 1,
		Properties: map[string]string{"NetBIOS Name": "DEV1", "FQ Name": "dev1.lab.local"},
	}
	for _, e := range edit {
		e(&request)
	}
	xml, err := ccm.BuildRegistration(request, d.key)
	f.must(err)
	return xml
}

func (f *fixture) message(endpoint, body string, sign *device, edit ...func(*ccm.Header)) (string, []byte) {
	f.Helper()
	h := ccm.Header{TargetEndpoint: endpoint, SourceHost: "DEV1", ReplyTo: "direct:dev1:SccmMessaging", ReplyMode: "Sync", Compressed: true, ReplyCompression: "zlib"}
	var key *rsa.PrivateKey
	if sign != nil {
		h.SourceID, key = string(sign.id), sign.key
	}
	for _, e := range edit {
		e(&h)
	}
	contentType, data, err := ccm.EncodeRequest(h, body, key)
	f.must(err)
	return contentType, data
}

// register registers a device at ccm_system and keeps its id.
func (f *fixture) register(d *device) ccm.RegistrationResponse {
	f.Helper()
	contentType, body := f.message("MP_ClientRegistration", f.registration(d), nil)
	g := f.send(f.client, "CCM_POST", f.url(HTTP, "/ccm_system/request"), contentType, body)
	response, err := ccm.ParseRegistrationResponse(f.text(g))
	f.must(err)
	d.id = response.SMSID
	return response
}

// assignments asks for policy assignments.
func (f *fixture) assignments(d *device) string {
	return ccm.BuildAssignmentsRequest(ccm.AssignmentsRequest{ClientID: d.id, FQDN: "dev1.lab.local", NetBIOSName: "DEV1", PolicySource: "SMS:PRI"})
}

// withToken returns the headers that carry a token with its proof.
func (f *fixture) withToken(key crypto.Signer, method, htu, raw string) []string {
	f.Helper()
	p, err := token.SignProof(key, method, htu, raw, f.clock.now(), rand.Reader)
	f.must(err)
	return []string{"Authorization", "DPoP " + raw, "DPoP", p}
}

func (f *fixture) bulk(uses int) (string, site.BulkToken) {
	f.Helper()
	raw, kept, err := f.site.NewBulkToken(f.Context(), site.NewBulk{MaxUses: uses, By: "test"})
	f.must(err)
	return raw, kept
}

const form = "application/x-www-form-urlencoded"

// exchange calls CCM_STS.
func (f *fixture) exchange(d *device, raw string, values url.Values) got {
	f.Helper()
	address := f.url(EnhancedHTTP, "/CCM_STS")
	if values.Get("grant_type") == "" {
		values.Set("grant_type", grantExchange)
	}
	if values.Get("requested_token_type") == "" {
		values.Set("requested_token_type", tokenURN+"ccm")
	}
	var headers []string
	if raw != "" {
		headers = f.withToken(d.key, http.MethodPost, address, raw)
	}
	return f.send(f.client, http.MethodPost, address, form, []byte(values.Encode()), headers...)
}

func (f *fixture) tokenFrom(g got) tokenReply {
	f.Helper()
	var reply tokenReply
	if g.StatusCode != http.StatusOK {
		f.Fatalf("token service: %s %s", g.Status, g.body)
	}
	f.must(json.Unmarshal(g.body, &reply))
	return reply
}

// connector returns an HTTP client with a connector's certificate, and its pin.
func (f *fixture) connector(name string) *http.Client {
	f.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	f.must(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	f.must(err)
	code, err := f.site.Invite(f.Context(), name, "test")
	f.must(err)
	chain, _, err := f.site.Join(f.Context(), code, csr)
	f.must(err)
	return f.clientWith(tls.Certificate{Certificate: chain, PrivateKey: key})
}

func (f *fixture) clientWith(certificate tls.Certificate) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate}}}
	f.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// selfSignedClient returns an HTTP client with a certificate that nobody issued.
func (f *fixture) selfSignedClient() *http.Client {
	f.Helper()
	d := f.device(2)
	return f.clientWith(tls.Certificate{Certificate: [][]byte{d.cert.DER}, PrivateKey: d.key})
}

// events returns the codes of the events so far, newest first.
func (f *fixture) events() []string {
	f.Helper()
	events, err := f.site.Events(f.Context(), site.EventFilter{Limit: 50})
	f.must(err)
	var codes []string
	for _, e := range events {
		codes = append(codes, e.Code)
	}
	return codes
}

// wantEvent fails when no event has that code.
func (f *fixture) wantEvent(code catalog.Code) {
	f.Helper()
	codes := f.events()
	for _, c := range codes {
		if c == string(code) {
			return
		}
	}
	f.Errorf("events %v, want one with %s", codes, code)
}

// logged returns the text of a log file.
func (f *fixture) logged(name string) string {
	f.Helper()
	data, err := os.ReadFile(filepath.Join(f.dir, "logs", name))
	f.must(err)
	return string(data)
}

func (f *fixture) wantLogged(name string, lines ...string) {
	f.Helper()
	text := f.logged(name)
	for _, line := range lines {
		if !strings.Contains(text, line) {
			f.Errorf("%s has no %q:\n%s", name, line, text)
		}
	}
}

// put writes a device into the store as it is.
func (f *fixture) put(id ccm.ClientID, cert *ccm.Certificate, level proof.Level) {
	f.Helper()
	key, err := proof.Thumbprint(cert.PublicKey)
	f.must(err)
	now := f.clock.now()
	f.must(f.store.Update(f.Context(), func(tx site.Tx) error {
		return tx.PutDevice(site.Device{
			ClientID: id, Key: key, Created: now, Updated: now, LastSeen: now,
			Record: site.Record{
				SiteCode: "PRI", SMSID: id, Certificate: cert.DER, Thumbprint: cert.Thumbprint(), EncKey: cert.DER, EncThumbprint: cert.Thumbprint(),
				KeyType: 1, PublicKey: ccm.MarshalPublicKeyBlob(cert.PublicKey), ValidFrom: cert.NotBefore, ValidTo: cert.NotAfter, NetbiosName: "SDK1",
			},
			Approval: site.Approval{Status: ccm.ApprovalApproved, Level: level, Method: proof.MessageSignature, By: "test", At: now},
		})
	}))
}
