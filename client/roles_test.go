package client_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/client"
	"postern/client/entra"
	"postern/internal/authority"
	"postern/internal/issuer"
	"postern/internal/lab"
	"postern/logfile"
	"postern/site"
)

// hierarchy is the real one, with an onboarded tenant and an authority of the company.
type hierarchy struct {
	*testing.T
	*lab.Lab
	provider *issuer.Issuer
	company  *authority.Authority
	joined   *authority.Authority
}

func newHierarchy(t *testing.T) *hierarchy {
	t.Helper()
	l, err := lab.Start(t.Context(), lab.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	h := &hierarchy{T: t, Lab: l}
	t.Cleanup(func() { h.must(l.Stop()) })
	h.provider, err = issuer.Start(issuer.Options{})
	h.must(err)
	t.Cleanup(func() { h.provider.Close() })
	h.company, err = authority.NewRoot("Corp Root", time.Now())
	h.must(err)
	h.joined, err = authority.NewRoot("Workplace Join", time.Now())
	h.must(err)

	tenant := h.provider.Tenant()
	_, err = l.Site().AddTenant(t.Context(), tenant, "test")
	h.must(err)
	h.must(l.Site().SetTenantKeys(t.Context(), tenant.ID, tenant.Keys, time.Now()))
	_, err = l.Site().AddAuthorities(t.Context(), authority.PEM(h.company.Certificate), site.Revocation{Policy: "off"}, "test")
	h.must(err)
	for l.Gateway.Gateway.Status().Epoch < l.Site().Epoch() {
		select {
		case <-t.Context().Done():
			t.Fatal("the gateway does not hear of the tenant")
		case <-time.After(5 * time.Millisecond):
		}
	}
	return h
}

func (h *hierarchy) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// issued writes a certificate of an authority, with an RSA key, into a folder.
func (h *hierarchy) issued(from *authority.Authority, name string) (file client.CertificateFile, leaf *x509.Certificate) {
	h.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	h.must(err)
	got, err := from.ClientFor(name, key)
	h.must(err)
	folder := h.TempDir()
	file = client.CertificateFile{Certificate: filepath.Join(folder, "device.pem"), Key: filepath.Join(folder, "device.key")}
	h.must(os.WriteFile(file.Certificate, authority.PEM(got.Certificate), 0o600))
	h.must(os.WriteFile(file.Key, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600))
	return file, got.Certificate
}

// broker is an [entra.Broker] as the client knows it.
type broker struct{ *entra.Broker }

func (b broker) TenantID() string { return b.Join().TenantID }

func (b broker) Token(ctx context.Context, want client.EntraWant) (client.EntraToken, error) {
	got, err := b.Broker.Token(ctx, entra.Want{TenantID: want.TenantID, ClientApp: want.ClientApp, Resource: want.Resource, Authority: want.Authority, Log: want.Log})
	return client.EntraToken{Raw: got.Raw, Kind: got.Kind, Account: got.Account, Expires: got.Expires}, err
}

// device is a device that has joined the tenant.
func (h *hierarchy) device(name string) (agent *client.Agent, dir string) {
	h.Helper()
	file, leaf := h.issued(h.joined, name)
	joined := h.provider.AddDevice(issuer.Device{Certificate: leaf})
	by, err := entra.New(entra.Config{Roots: h.provider.Roots(), Join: entra.JoinState{
		JoinType: entra.JoinEntra, TenantID: h.provider.Tenant().ID, DeviceID: joined.ID, Authority: h.provider.Authority(), Source: "test",
		WorkplaceJoin: entra.WorkplaceJoin{Certificate: file.Certificate, Key: file.Key},
	}})
	h.must(err)
	h.Cleanup(func() { by.Close() })
	dir = h.TempDir()
	logs := logfile.NewFolder(filepath.Join(dir, "logs"), logfile.Options{})
	agent, err = client.Open(client.Config{Dir: filepath.Join(dir, "state"), Logs: logs, Entra: func() (client.Entra, error) { return broker{by}, nil }})
	h.must(err)
	h.Cleanup(func() { agent.Close(); logs.Close() })
	return agent, dir
}

// With the real roles: a gateway, a connector and a management point, and Microsoft's own
// library at a provider that speaks its protocol.
func TestADeviceEnrolsByTenantAndByCertificateAtTheRealRoles(t *testing.T) {
	h := newHierarchy(t)
	agent, dir := h.device("LAPTOP-1")
	if err := agent.Enrol(t.Context(), h.Setup("LAPTOP-1", "")); err != nil {
		t.Fatal(err)
	}
	status := agent.Status()
	if status.State != client.StateReady || status.ApprovalStatus != ccm.ApprovalEntra || !strings.HasPrefix(status.Proof, "Entra: Entra device token") || len(status.Tokens) != 2 {
		t.Errorf("got %+v", status)
	}
	if err := agent.Renew(t.Context(), true); err != nil {
		t.Errorf("renew: %v", err)
	}
	setup, err := os.ReadFile(filepath.Join(dir, "logs", "ccmsetup.log"))
	h.must(err)
	at := 0
	for _, line := range []string{
		"[Getting AAD info from CMG '" + h.GatewayHost + "']", "/CCM_Proxy_ServerAuth/AADAuthInfo?TenantID=" + h.provider.Tenant().ID + ", Port=",
		"[Created connection on port", "[Getting AAD (device) token with: ClientId = " + h.provider.Tenant().ClientApp, "[Getting CCM Token from STS server '",
	} {
		found := strings.Index(string(setup[at:]), line)
		if found < 0 {
			t.Errorf("ccmsetup.log lacks %q, or has it too early:\n%s", line, setup)
			continue
		}
		at += found
	}
	h.provider.Down()
	if err := agent.Renew(t.Context(), true); err != nil {
		t.Errorf("renew while the provider is down: %v", err)
	}
	other, _ := h.device("LAPTOP-2")
	if err := other.Enrol(t.Context(), h.Setup("LAPTOP-2", "")); catalog.CodeOf(err) != catalog.EntraUnreachable && catalog.CodeOf(err) != catalog.EntraNoToken {
		t.Errorf("enrol while the provider is down: got %v", err)
	}

	byCertificate := h.Setup("LAPTOP-3.corp.test", "")
	file, _ := h.issued(h.company, "laptop-3.corp.test")
	byCertificate.Certificate.Files = []client.CertificateFile{file}
	third, _ := h.device("LAPTOP-3")
	if err := third.Enrol(t.Context(), byCertificate); err != nil {
		t.Fatal(err)
	}
	if got := third.Status(); got.State != client.StateReady || got.ApprovalStatus != ccm.ApprovalNotApplicable || len(got.Tokens) != 0 {
		t.Errorf("by a certificate: got %+v", got)
	}
	if _, err := third.Send(t.Context(), "MP_LocationManager", `<SiteInformationRequest SchemaVersion="1.00"><SiteCode Name="LAB"/></SiteInformationRequest>`); err != nil {
		t.Errorf("send by a certificate: %v", err)
	}
}
