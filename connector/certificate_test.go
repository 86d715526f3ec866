package connector

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/logfile"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// The machine of the documents (S4): seven certificates, none of which will do.
func TestSelectCertificateLinesOfTheDocuments(t *testing.T) {
	company, other := newAuthority(t), newAuthority(t)
	roots := x509.NewCertPool()
	roots.AddCert(company.certificate)
	named := func(name string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: name} }
	}
	server := x509.ExtKeyUsageServerAuth
	withoutKey := company.issue(t, "", "", server, named("without key"))
	withoutKey.PrivateKey = nil
	machine := []tls.Certificate{
		other.issue(t, "", "", server, named("foreign 1")), other.issue(t, "", "", server, named("foreign 2")), withoutKey,
		other.issue(t, "", "", server, named("foreign 3")), company.issue(t, "", "", server, named("server 1")),
		company.issue(t, "", "", server, named("server 2")), company.issue(t, "", "", server, named("server 3")),
	}
	dir := t.TempDir()
	file, err := logfile.Open(dir, logfile.File{Name: "SMS_CLOUD_PROXYCONNECTOR.log", Format: logfile.Server})
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	file.SetVerbose(true)
	if _, err := SelectCertificate(machine, roots, time.Now(), file); catalog.CodeOf(err) != catalog.ConnectorNoClientCertificate {
		t.Errorf("error = %v, want code %s", err, catalog.ConnectorNoClientCertificate)
	}
	content, err := os.ReadFile(filepath.Join(dir, "SMS_CLOUD_PROXYCONNECTOR.log"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(content)) {
		text, _, _ := strings.Cut(line, "~~")
		got = append(got, text)
	}
	want := []string{
		"Filtered cert count with digital signature: 7",
		"Not allowed cert: CN=foreign 1",
		"Not allowed cert: CN=foreign 2",
		"No private key cert: CN=without key",
		"Not allowed cert: CN=foreign 3",
		"Filtered cert count with allowed root CA: 3",
		"Filtered cert count with private key: 3",
		"Not client auth cert: CN=server 1",
		"Not client auth cert: CN=server 2",
		"Not client auth cert: CN=server 3",
		"Filtered cert count with client auth: 0",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("lines:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestSelectCertificateTakesTheOneValidLongest(t *testing.T) {
	company := newAuthority(t)
	roots := x509.NewCertPool()
	roots.AddCert(company.certificate)
	until := func(d time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.NotAfter = time.Now().Add(d) }
	}
	client := x509.ExtKeyUsageClientAuth
	want := company.issue(t, "", "", client, until(50*time.Minute))
	encipherOnly := company.issue(t, "", "", client, until(55*time.Minute), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })
	expired := company.issue(t, "", "", client, until(-time.Minute))
	machine := []tls.Certificate{{}, company.issue(t, "", "", client, until(10*time.Minute)), want, encipherOnly, expired}
	got, err := SelectCertificate(machine, roots, time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if pinOf(got) != pinOf(want) {
		t.Errorf("chose %s, want the one valid for 50 minutes", got.Leaf.NotAfter)
	}
}
