package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/logfile"
	"postern/token"
)

func TestStateIsFollowedAndAcknowledged(t *testing.T) {
	w := newWorld(t)
	w.connect()
	if got := w.gateway.Status(); got.Epoch != 1 || got.Stale || got.SiteCode != "MEM" || len(got.Connectors) != 1 {
		t.Errorf("status %+v", got)
	}
	w.site.change(func(s *token.SiteState) { s.BlockedTokens = []string{"x"} })
	for {
		ack := await(t, w.site.acks)
		if ack.Gateway != host || time.Since(ack.At).Abs() > time.Minute {
			t.Fatalf("acknowledgement %+v", ack)
		}
		if ack.Epoch == 2 {
			break
		}
	}
	eventually(t, "the acknowledgement is in the status", func() bool { return w.gateway.Status().Acknowledged == 2 })
}

func TestBadLinesChangeNothing(t *testing.T) {
	w := newWorld(t)
	w.connect()
	d := newDevice(t)
	other := newSite(t)
	other.state.Epoch = 9
	tampered := func() string {
		line := w.site.signed()
		parts := strings.Split(line, ".")
		return parts[0] + "." + parts[1][:len(parts[1])-4] + "AAAA" + "." + parts[2]
	}
	older := w.site.signed()
	w.site.change(func(s *token.SiteState) { s.BlockedTokens = []string{"x"} })
	eventually(t, "epoch 2", func() bool { return w.gateway.Status().Epoch == 2 })
	tests := []struct {
		name, line string
		want       catalog.Code
	}{
		{"another root", other.signed(), catalog.StateOtherRoot},
		{"tampered", tampered(), catalog.StateSignature},
		{"older", older, catalog.StateOlderEpoch},
		{"no document", "hello", catalog.StateMalformed},
		{"a token", d.ccmToken(), catalog.StateMalformed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			eventually(t, "the refusal is logged", func() bool {
				w.site.say(test.line) // a stream that has just ended hears nothing
				return strings.Contains(w.log.String(), string(test.want))
			})
			if got := w.gateway.Status(); got.Epoch != 2 {
				t.Errorf("epoch %d", got.Epoch)
			}
		})
	}
	w.site.change(func(*token.SiteState) {})
	eventually(t, "epoch 3", func() bool { return w.gateway.Status().Epoch == 3 })
}

func TestOverlongLineEndsTheStream(t *testing.T) {
	w := newWorld(t)
	w.connect()
	go w.site.say(strings.Repeat("a", token.MaxDocument+10))
	eventually(t, "the stream ended", func() bool { return strings.Contains(w.log.String(), string(catalog.GatewayStateStream)) })
	if got := w.gateway.Status().Epoch; got != 1 {
		t.Errorf("epoch %d", got)
	}
}

func TestBlockedConnectorIsDroppedAndStaysOut(t *testing.T) {
	w := newWorld(t)
	key := newKey(t)
	chain := w.site.root.issue(t, token.RoleConnector, "connector-1", &key.PublicKey)
	blocked := w.connectWith(key, chain)
	w.connect()
	w.site.change(func(s *token.SiteState) { s.BlockedCertificates = []string{token.Pin(&key.PublicKey)} })
	await(t, blocked.ended)
	eventually(t, "one connector is left", func() bool { return len(w.gateway.Status().Connectors) == 1 })
	again := w.dial(key, chain)
	if err := await(t, again.ended); err == nil {
		t.Error("the blocked connector came in again")
	}
	eventually(t, "the reason is logged", func() bool { return strings.Contains(w.log.String(), string(catalog.RoleCertificateBlocked)) })
	if got := len(w.gateway.Status().Connectors); got != 1 {
		t.Errorf("%d connectors", got)
	}
}

func TestForeignConnectorsAreRefused(t *testing.T) {
	w := newWorld(t)
	key := newKey(t)
	foreign := newAuthority(t)
	expired := func() [][]byte {
		template := &x509.Certificate{
			SerialNumber: w.site.root.certificate.SerialNumber, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		template.URIs = append(template.URIs, token.RoleURI(hierarchy, token.RoleConnector, "late"))
		return [][]byte{certify(t, template, w.site.root.certificate, &key.PublicKey, w.site.root.key).Raw, w.site.root.certificate.Raw}
	}
	mixed := foreign.issue(t, token.RoleConnector, "mixed", &key.PublicKey)
	mixed[1] = w.site.root.certificate.Raw
	tests := []struct {
		name  string
		chain [][]byte
		want  catalog.Code
	}{
		{"another root", foreign.issue(t, token.RoleConnector, "foreign", &key.PublicKey), catalog.RoleCertificateRoot},
		{"our root behind another's leaf", mixed, catalog.RoleCertificateRoot},
		{"self-signed", [][]byte{selfSigned(t, key)}, catalog.RoleCertificateRoot},
		{"another role", w.site.root.issue(t, token.RoleGateway, "gateway", &key.PublicKey), catalog.RoleCertificateUsage},
		{"no longer valid", expired(), catalog.RoleCertificateExpired},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			link := w.dial(key, test.chain)
			if err := await(t, link.ended); err == nil {
				t.Error("taken")
			}
			eventually(t, "the reason is logged", func() bool { return strings.Contains(w.log.String(), string(test.want)) })
		})
	}
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"postern-tunnel/1"}}
	if conn, err := tls.Dial("tcp", w.address, config); err == nil {
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("taken without a certificate")
		}
		conn.Close()
	}
	config.MaxVersion = tls.VersionTLS12
	if conn, err := tls.Dial("tcp", w.address, config); err == nil {
		conn.Close()
		t.Error("the tunnel is spoken with TLS 1.2")
	}
	if got := len(w.gateway.Status().Connectors); got != 0 {
		t.Errorf("%d connectors", got)
	}
}

func TestStateSurvivesARestart(t *testing.T) {
	const blocked = "0f8fad5b-d9cb-469f-a165-70867728950e"
	path := filepath.Join(t.TempDir(), "state")
	keep := func(c *Config) { c.StateFile = path }
	key, s, d := newKey(t), newSite(t), newDevice(t)
	w := startWorld(t, s, key, keep)
	w.connect()
	s.change(func(s *token.SiteState) { s.BlockedTokens = []string{blocked} })
	eventually(t, "epoch 2", func() bool { return w.gateway.Status().Epoch == 2 })
	w.stop()

	w = startWorld(t, s, key, keep)
	if got := w.gateway.Status(); got.Epoch != 2 || got.Healthy {
		t.Errorf("status after the restart: %+v", got)
	}
	client := w.client(true)
	ask := func(raw string) answered {
		return do(t, client, d.show(request(t, "GET", "/CCM_Proxy_ServerAuth/ServiceMetadata", nil), raw))
	}
	if got := ask(d.token(token.KindCCM, token.ScopeClient, blocked, time.Now())); got.code != catalog.TokenBlocked {
		t.Errorf("blocked token: %s", got.code)
	}
	if got := ask(d.ccmToken()); got.status != 200 {
		t.Errorf("good token: %d", got.status)
	}
}

func TestKeptStateThatDoesNotHoldIsLeftAside(t *testing.T) {
	other := newSite(t)
	tests := []struct{ name, content string }{
		{"empty", ""},
		{"cut off", other.signed()[:100]},
		{"another root", other.signed()},
		{"something else", strings.Repeat("x", 5<<20)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			if err := os.WriteFile(path, []byte(test.content), 0o600); err != nil {
				t.Fatal(err)
			}
			w := newWorld(t, func(c *Config) { c.StateFile = path })
			if !strings.Contains(w.log.String(), string(catalog.GatewayStateFile)) {
				t.Errorf("log: %s", w.log)
			}
			w.connect()
			eventually(t, "the good state is kept over it", func() bool { return token.Document(readFile(t, path)) == token.DocumentState })
		})
	}
}

func TestStateThatCannotBeKeptIsUsedAllTheSame(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.StateFile = filepath.Join(t.TempDir(), "none", "state") })
	w.connect()
	got := w.gateway.Status()
	if got.Epoch != 1 || !strings.Contains(w.log.String(), string(catalog.GatewayStateFile)) || len(got.Problems) == 0 || got.Problems[0] != catalog.GatewayStateFile {
		t.Errorf("status %+v", got)
	}
}

func TestStaleGatewaySaysSoAndServes(t *testing.T) {
	offset := make(chan time.Duration, 1)
	offset <- 0
	now := func() time.Time {
		d := <-offset
		offset <- d
		return time.Now().Add(d)
	}
	w := newWorld(t, func(c *Config) {
		c.Now, c.State = now, auth.NewState(c.RootPin, now)
	})
	w.connect()
	if !w.gateway.Status().Healthy {
		t.Fatal("not healthy at first")
	}
	<-offset
	offset <- 31 * time.Second
	got := w.gateway.Status()
	if !got.Stale || got.Healthy || len(got.Problems) == 0 || got.Problems[0] != catalog.StateStale {
		t.Errorf("status %+v", got)
	}
	d := newDevice(t)
	if got := do(t, w.client(true), d.show(request(t, "GET", tokenPath("/CCM_Client/a"), nil), d.ccmToken())); got.status != 200 {
		t.Errorf("a stale gateway answers %d %s", got.status, got.body)
	}
}

func TestCertificateOfTheSiteIsUsedAtOnceAndKept(t *testing.T) {
	kept := make(chan [][]byte, 1)
	s := newSite(t)
	s.issue = true
	key := newKey(t)
	w := startWorld(t, s, key, func(c *Config) {
		c.KeepCertificate = func(chain [][]byte) error { kept <- chain; return nil }
	})
	shown := func() *x509.Certificate {
		conn := w.raw()
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0]
	}
	if got := shown(); got.Issuer.CommonName != host {
		t.Errorf("at first %s", got.Issuer)
	}
	if got := w.gateway.Status(); got.Certificate.Source != CertificateSelfSigned {
		t.Errorf("at first %+v", got.Certificate)
	}
	w.connect()
	chain := await(t, kept)
	eventually(t, "devices see the certificate", func() bool { return shown().Issuer.CommonName == s.root.certificate.Subject.CommonName })
	if got := w.gateway.Status(); got.Certificate.Source != CertificateSite {
		t.Errorf("then %+v", got.Certificate)
	}
	w.connect() // connectors still see the pinned key
	for len(s.acks) > 0 {
		<-s.acks
	}
	s.change(func(*token.SiteState) {})
	if ack := await(t, s.acks); len(ack.CSR) != 0 {
		t.Error("asks again although the certificate is young")
	}
	w.stop()

	w = startWorld(t, s, key, func(c *Config) { c.IssuedCertificate = chain })
	if got := w.gateway.Status(); got.Certificate.Source != CertificateSite {
		t.Errorf("after a restart %+v", got.Certificate)
	}
}

func TestCertificateThatIsNotOursIsRefused(t *testing.T) {
	w := newWorld(t)
	own := newKey(t)
	tests := []struct {
		name  string
		chain [][]byte
	}{
		{"another root", newAuthority(t).issue(t, token.RoleGateway, host, &w.key.PublicKey, host)},
		{"another key", w.site.root.issue(t, token.RoleGateway, host, &own.PublicKey, host)},
		{"another name", w.site.root.issue(t, token.RoleGateway, host, &w.key.PublicKey, "other.example")},
		{"another role", w.site.root.issue(t, token.RoleConnector, host, &w.key.PublicKey, host)},
		{"no certificate", [][]byte{{1, 2, 3}}},
		{"nothing", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			wantCode(t, w.gateway.certificates.receive(test.chain, 1), catalog.GatewayCertificateRefused)
			if got := w.gateway.Status().Certificate.Source; got != CertificateSelfSigned {
				t.Errorf("devices see %s", got)
			}
		})
	}
}

func TestCertificateIsRenewedPastTwoThirds(t *testing.T) {
	offset := time.Duration(0)
	w := newWorld(t, func(c *Config) { c.Now = func() time.Time { return time.Now() } })
	c := w.gateway.certificates
	c.now = func() time.Time { return time.Now().Add(offset) }
	if !c.wanted(1) {
		t.Error("none is there, and none is wanted")
	}
	wantCode(t, c.receive(w.site.root.issue(t, token.RoleGateway, "other", &w.key.PublicKey, "other.example"), 1), catalog.GatewayCertificateRefused)
	for _, test := range []struct {
		name   string
		offset time.Duration
		epoch  uint64
		want   bool
	}{{"at once", 0, 1, false}, {"a little later", 59 * time.Minute, 1, false}, {"much later", time.Hour, 1, true}, {"when the site has changed", 0, 2, true}} {
		if offset = test.offset; c.wanted(test.epoch) != test.want {
			t.Errorf("one was refused: wanted %s is %v", test.name, !test.want)
		}
	}
	offset = 0
	if err := c.receive(w.site.root.issue(t, token.RoleGateway, host, &w.key.PublicKey, host), 1); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		offset time.Duration
		want   bool
	}{{0, false}, {19 * time.Minute, false}, {21 * time.Minute, true}} { // its life is two hours, of which one is over
		if offset = test.offset; c.wanted(1) != test.want {
			t.Errorf("in %s wanted is %v", test.offset, !test.want)
		}
	}
	if err := w.gateway.UseCertificate(tls.Certificate{Certificate: [][]byte{selfSigned(t, w.key)}, PrivateKey: w.key}); err != nil || c.wanted(1) {
		t.Errorf("with a company certificate: %v", err)
	}
	wantCode(t, w.gateway.UseCertificate(tls.Certificate{}), catalog.GatewayConfiguration)
}

func TestConfigurationThatCannotWork(t *testing.T) {
	w := newWorld(t)
	tests := []struct {
		name string
		edit func(*Config)
	}{
		{"no name", func(c *Config) { c.Names = nil }},
		{"no root", func(c *Config) { c.RootPin = "" }},
		{"no key", func(c *Config) { c.Key = nil }},
		{"no certificate", func(c *Config) { c.Certificate = nil }},
		{"a broken certificate", func(c *Config) { c.Certificate = []byte{1} }},
		{"another key's certificate", func(c *Config) { c.Certificate = selfSigned(t, newKey(t)) }},
		{"no state", func(c *Config) { c.State = nil }},
		{"an empty company certificate", func(c *Config) { c.ClientCertificate = &tls.Certificate{} }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			config := w.config
			test.edit(&config)
			_, err := New(config)
			wantCode(t, err, catalog.GatewayConfiguration)
		})
	}
}

func TestNewLogLinesGoWithAnAcknowledgement(t *testing.T) {
	dir := t.TempDir()
	logs := logfile.NewFolder(dir, logfile.Options{})
	defer logs.Close()
	w := newWorld(t, func(c *Config) {
		c.Logs = logs
		c.Limits.Statistics, c.Limits.LogSync, c.Limits.Acknowledgements = 20*time.Millisecond, 50*time.Millisecond, 30*time.Millisecond
	})
	w.connect()
	d := newDevice(t)
	do(t, w.client(true), d.show(request(t, "POST", tokenPath("/CCM_STS"), strings.NewReader("grant")), d.token(token.KindBulk, "", "0f8fad5b-d9cb-469f-a165-70867728950e", time.Now())))
	var lines []byte
	for len(lines) == 0 {
		lines = await(t, w.site.acks).Log
	}
	file := readFile(t, filepath.Join(dir, serviceFile))
	if !strings.HasPrefix(file, string(lines)) || !strings.Contains(string(lines), "RequestUri: /CCM_PROXY_SERVERAUTH/72057594037937981/CCM_STS  RequestCount: 1  RequestSize: 5 Bytes  ResponseCount: 1  ") {
		t.Errorf("sent %q, the file is %q", lines, file)
	}
	for range 3 {
		if ack := await(t, w.site.acks); len(ack.Log) > 0 {
			t.Errorf("sent again: %q", ack.Log)
		}
	}
}

func FuzzParseReply(f *testing.F) {
	for _, seed := range []string{`{"epoch":1}`, `{"epoch":1,"chain":["AQID","AQ=="]}`, `{"chain":[[]]}`, `[]`, ``} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		chain, err := parseReply(body)
		if err != nil && catalog.CodeOf(err) == "" {
			t.Errorf("error without code: %v", err)
		}
		if len(chain) > maxChain {
			t.Errorf("%d certificates", len(chain))
		}
	})
}
