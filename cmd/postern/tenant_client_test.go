package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"postern/client"
	"postern/client/entra"
	"postern/internal/authority"
	"postern/internal/issuer"
	"postern/logfile"
	"postern/proof"
)

// The client's commands get tokens of the tenant with what the join state says, and keep
// them sealed in the state folder.
func TestTheClientGetsATokenOfItsTenant(t *testing.T) {
	provider, err := issuer.Start(issuer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer provider.Close()
	root, err := authority.NewRoot("Workplace Join", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	joined, err := root.ClientFor("8d2b4ff9-0172-4998-9851-b5324303385f", key)
	if err != nil {
		t.Fatal(err)
	}
	device := provider.AddDevice(issuer.Device{Certificate: joined.Certificate})
	dir := t.TempDir()
	state, err := json.Marshal(map[string]any{
		"join_type": "entra", "tenant_id": provider.Tenant().ID, "device_id": device.ID, "authority": provider.Authority(), "ca_file": "ca.pem",
		"workplace_join": map[string]string{"certificate": "wpj.pem", "key": "wpj.key"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"join-state.json": state, "ca.pem": provider.RootPEM(), "wpj.pem": authority.PEM(joined.Certificate),
		"wpj.key": pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	f := clientFlags{dir: filepath.Join(dir, "device"), joinState: filepath.Join(dir, "join-state.json")}
	s := &session{out: io.Discard, err: io.Discard}
	agent, err := f.open(s)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	logs := logfile.NewFolder(filepath.Join(dir, "logs"), logfile.Options{})
	defer logs.Close()
	by, err := f.tenant(s, agent, logs)
	if err != nil {
		t.Fatal(err)
	}
	if got := by.TenantID(); got != provider.Tenant().ID {
		t.Errorf("got the tenant %s", got)
	}
	got, err := by.Token(t.Context(), client.EntraWant{TenantID: by.TenantID(), ClientApp: provider.Tenant().ClientApp, Resource: provider.Tenant().Resource, Log: logs.Log(entra.LogFile())})
	if err != nil || got.Kind != proof.CloudDevice || got.Account != device.ID || got.Raw == "" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(f.dir, "entra.sealed")); err != nil {
		t.Errorf("the token is not kept: %v", err)
	}
}
