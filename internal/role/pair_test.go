package role

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/internal/authority"
	"postern/keyfile"
)

// A certificate of the company that is renewed on disk is shown without a restart, by a gateway and by a management point in HTTPS mode. One whose key has not
// come yet is not, and health says so until it has.
func TestARenewedCertificateIsShown(t *testing.T) {
	company, err := authority.NewRoot("Corp Root", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := TLSFiles{Certificate: filepath.Join(dir, "tls.pem"), Key: filepath.Join(dir, "tls.key")}
	issue := func() *authority.Certificate {
		issued, err := company.Server([]string{"localhost"})
		if err != nil {
			t.Fatal(err)
		}
		return issued
	}
	write := func(path string, content []byte) {
		if err := keyfile.WriteFile(path, content); err != nil {
			t.Fatal(err)
		}
	}
	private := func(c *authority.Certificate) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(c.Key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	first, second := issue(), issue()
	write(files.Certificate, authority.PEM(first.Chain()...))
	write(files.Key, private(first))
	shows := func(p *pair, want *authority.Certificate) bool {
		got, err := p.get(&tls.ClientHelloInfo{})
		return err == nil && string(got.Certificate[0]) == string(want.Certificate.Raw)
	}
	wrong := func(p *pair) bool {
		h := Health{OK: true}
		p.health(&h)
		return !h.OK && strings.Contains(strings.Join(h.Problem, ""), files.Certificate)
	}

	p, err := openPair(files.Certificate, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	var told []tls.Certificate
	log, taken := slog.New(slog.DiscardHandler), func(c tls.Certificate) error { told = append(told, c); return nil }
	p.refresh(log, taken)
	if !shows(p, first) || len(told) != 0 || wrong(p) {
		t.Errorf("nothing was renewed: told %d", len(told))
	}
	write(files.Certificate, authority.PEM(second.Chain()...))
	p.refresh(log, taken)
	if !shows(p, first) || len(told) != 0 || !wrong(p) {
		t.Errorf("the key has not come: told %d", len(told))
	}
	write(files.Key, private(second))
	p.refresh(log, taken)
	if !shows(p, second) || len(told) != 1 || wrong(p) {
		t.Errorf("renewed: told %d", len(told))
	}
	if leaves := p.leaves(); len(leaves) != 2 || string(leaves[1]) != string(first.Certificate.Raw) {
		t.Errorf("an open connection may have seen one of %d", len(leaves))
	}
	if err := os.Remove(files.Key); err != nil {
		t.Fatal(err)
	}
	p.refresh(log, taken)
	if !shows(p, second) || !wrong(p) {
		t.Error("a key that is gone takes the certificate with it")
	}
}

// The files of its configuration are what a gateway shows, and it is told of renewed ones.
func TestAGatewayShowsItsCompanysCertificate(t *testing.T) {
	company, err := authority.NewRoot("Corp Root", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func() *authority.Certificate {
		issued, err := company.Server([]string{"localhost"})
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(issued.Key)
		if err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string][]byte{"tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), "tls.pem": authority.PEM(issued.Chain()...)} {
			if err := keyfile.WriteFile(filepath.Join(dir, name), content); err != nil {
				t.Fatal(err)
			}
		}
		return issued
	}
	first := write()
	made, err := InitGateway(NewGateway{Dir: filepath.Join(dir, "gateway"), Name: "localhost", SiteRoot: strings.Repeat("ab", 32), Listen: "127.0.0.1:0",
		TLS: TLSFiles{Certificate: filepath.Join(dir, "tls.pem"), Key: filepath.Join(dir, "tls.key")}}, Protection{})
	if err != nil {
		t.Fatal(err)
	}
	config, err := Load(made.Config)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Start(t.Context(), config, Environment{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Stop()
	shown := func() string {
		roots := x509.NewCertPool()
		roots.AddCert(company.Certificate)
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}}}
		response, err := client.Get("https://" + r.Addresses["https"] + "/")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		io.Copy(io.Discard, response.Body)
		return string(response.TLS.PeerCertificates[0].Raw)
	}
	if shown() != string(first.Certificate.Raw) {
		t.Error("another certificate is shown than the first")
	}
	second := write()
	for until := time.Now().Add(20 * time.Second); shown() != string(second.Certificate.Raw); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the renewed certificate is not shown")
		}
	}
}
