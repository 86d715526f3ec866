package role

import (
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/connector"
	"postern/internal/authority"
	"postern/logfile"
)

// The folder of a machine, from its files to the lines of the documents (S4): a certificate whose key is not there is counted and rejected like any other.
func TestAMachinesFolderGivesTheLinesOfTheDocuments(t *testing.T) {
	company, err := authority.NewRoot("Corp Root", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, content []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bare, err := company.Client("bare.corp.example")
	if err != nil {
		t.Fatal(err)
	}
	server, err := company.Server([]string{"server.corp.example"})
	if err != nil {
		t.Fatal(err)
	}
	for name, issued := range map[string]*authority.Certificate{"a-bare": bare, "b-server": server} {
		write(name+".pem", authority.PEM(issued.Chain()...))
	}
	key, err := x509.MarshalPKCS8PrivateKey(server.Key)
	if err != nil {
		t.Fatal(err)
	}
	write("b-server.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	write("c-junk.pem", []byte("junk"))
	write("d-torn.pem", authority.PEM(bare.Chain()...))
	write("d-torn.key", []byte("junk"))

	var told strings.Builder
	found := companyCertificates(dir, slog.New(slog.NewTextHandler(&told, nil)))()
	if len(found) != 2 || found[0].PrivateKey != nil || found[1].PrivateKey == nil {
		t.Fatalf("found %d certificates, want the one without and the one with a key", len(found))
	}
	for _, name := range []string{"c-junk.pem", "d-torn.pem"} {
		if !strings.Contains(told.String(), name) {
			t.Errorf("the log does not name %s:\n%s", name, told.String())
		}
	}

	log, err := logfile.Open(dir, logfile.File{Name: "SMS_CLOUD_PROXYCONNECTOR.log", Format: logfile.Server})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	log.SetVerbose(true)
	roots := x509.NewCertPool()
	roots.AddCert(company.Certificate)
	if _, err := connector.SelectCertificate(found, roots, time.Now(), log); catalog.CodeOf(err) != catalog.ConnectorNoClientCertificate {
		t.Errorf("got %v", err)
	}
	content, err := os.ReadFile(filepath.Join(dir, "SMS_CLOUD_PROXYCONNECTOR.log"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(content)) {
		text, _, _ := strings.Cut(line, "~~")
		text, _, _ = strings.Cut(text, "CN=")
		lines = append(lines, text)
	}
	want := []string{
		"Filtered cert count with digital signature: 2", "No private key cert: ", "Filtered cert count with allowed root CA: 1",
		"Filtered cert count with private key: 1", "Not client auth cert: ", "Filtered cert count with client auth: 0",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("lines:\n%s\nwant:\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}
