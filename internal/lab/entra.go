package lab

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"postern/catalog"
	"postern/client"
	"postern/client/entra"
	"postern/internal/issuer"
	"postern/logfile"
)

// startIssuer starts the stand-in for Entra; the management point trusts its certificate.
func startIssuer(_ context.Context, options *Options) (stop func(), err error) {
	provider, err := issuer.Start(issuer.Options{Now: options.Now})
	if err != nil {
		return nil, err
	}
	options.Provider = provider
	return func() { provider.Close() }, nil
}

// tellEntra is seed S2: a device of an onboarded tenant enrols from the internet with its cloud identity.
func tellEntra(ctx context.Context, l *Lab) error {
	for _, tell := range []func(context.Context) error{l.tellTenant, l.tellJoined, l.tellSTS, l.tellCloudEvidence, l.tellStranger, l.tellDisabled} {
		if err := tell(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) tellTenant(ctx context.Context) error {
	l.trail.add(Step{Hop: "provider", OK: true, What: issuer.Description})
	tenant := l.provider.Tenant()
	err := l.trail.tell("administrator", func() (string, error) {
		tenant.Keys = nil
		_, err := l.Site().AddTenant(ctx, tenant, "lab")
		return fmt.Sprintf("onboarded tenant %s with %d issuers: postern tenant add", tenant.ID, len(tenant.Issuers)), err
	})
	if err != nil {
		return err
	}
	return l.trail.tell("gateway", func() (string, error) {
		return "has the tenant's keys in the signed site state; it asks no provider itself", l.await(ctx, func() bool {
			known := l.Gateway.Gateway.Status().Tenants
			return len(known) == 1 && known[0].Keys
		})
	})
}

// await waits for something that the roles tell each other.
func (l *Lab) await(ctx context.Context, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			return catalog.Errorf(catalog.InternalError, "it did not happen within %s", readyWithin)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// tellJoined enrols a joined device without any token of the site.
func (l *Lab) tellJoined(ctx context.Context) error {
	join, err := l.join("WIN11-7")
	if err != nil {
		return err
	}
	l.trail.add(Step{Hop: "device WIN11-7", OK: true, What: fmt.Sprintf("is joined to tenant %s as device %s; has no token of the site", join.TenantID, join.DeviceID)})
	return l.enrolJoined(ctx, "WIN11-7", join)
}

// join makes a device of the tenant with its workplace-join certificate.
func (l *Lab) join(name string) (entra.JoinState, error) {
	dir := filepath.Join(l.Dir, "device-"+name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return entra.JoinState{}, err
	}
	certificate, err := workplaceJoin(dir, l.now())
	if err != nil {
		return entra.JoinState{}, err
	}
	device := l.provider.AddDevice(issuer.Device{Certificate: certificate})
	return entra.JoinState{
		JoinType: entra.JoinEntra, TenantID: l.provider.Tenant().ID, Authority: l.provider.Authority(), CAFile: filepath.Join(l.Dir, providerFile), DeviceID: device.ID,
		WorkplaceJoin: entra.WorkplaceJoin{Certificate: filepath.Join(dir, "join.pem"), Key: filepath.Join(dir, "join.key"), NotAfter: certificate.NotAfter},
	}, nil
}

// providerFile holds the authority of the stand-in's certificate.
const providerFile = "provider.pem"

// workplaceJoin makes the certificate that a device gets when it joins. A real one is signed by the tenant; providers compare its hash.
func workplaceJoin(dir string, now time.Time) (*x509.Certificate, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "workplace join"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	err = errors.Join(writePEM(filepath.Join(dir, "join.pem"), "CERTIFICATE", der), writePEM(filepath.Join(dir, "join.key"), "PRIVATE KEY", private))
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func (l *Lab) enrolJoined(ctx context.Context, name string, join entra.JoinState) error {
	dir := filepath.Join(l.Dir, "device-"+name)
	logs := logfile.NewFolder(filepath.Join(dir, "logs"), logfile.Options{Now: l.now})
	broker, err := entra.New(entra.Config{Join: join, Log: logs.Log(entra.LogFile()), Now: l.now})
	if err != nil {
		return err
	}
	defer broker.Close()
	agent, err := client.Open(client.Config{Dir: dir, Now: l.now, Logs: logs, Observe: l.trail.device(name), Entra: func() (client.Entra, error) { return broker.ForClient(), nil }})
	if err != nil {
		return err
	}
	defer agent.Close()
	setup := l.Setup(name, "")
	if err := agent.Enrol(ctx, setup); err != nil {
		return fmt.Errorf("enrol %s: %w", name, err)
	}
	return nil
}

// tellSTS shows what CCM_STS.log says of it (S2 3.4).
func (l *Lab) tellSTS(context.Context) error {
	return l.trail.tell("CCM_STS.log", func() (string, error) {
		content, err := os.ReadFile(filepath.Join(l.pointLogs, "CCM_STS.log"))
		for line := range strings.Lines(string(content)) {
			if _, text, found := strings.Cut(line, "<![LOG["); found && strings.HasPrefix(text, "Validated AAD token.") {
				text, _, _ = strings.Cut(text, "]LOG]!>")
				return text, nil
			}
		}
		return "", errors.Join(err, catalog.Errorf(catalog.InternalError, "the log has no line about the token"))
	})
}

func (l *Lab) tellCloudEvidence(ctx context.Context) error {
	return l.trail.tell("site", func() (string, error) {
		found, err := l.Site().FindDevice(ctx, "WIN11-7")
		if err != nil {
			return "", err
		}
		a := found.Approval
		if a.Status != 3 {
			return "", catalog.Errorf(catalog.InternalError, "the device has approval status %d: %s", a.Status, a.Rule)
		}
		return fmt.Sprintf("approval status 3, level %s, by rule %q; evidence: tenant %s, device %s", a.Level, a.Rule, a.Evidence["tenant"], a.Evidence["entra-device"]), nil
	})
}

// tellStranger: a device of a tenant that nobody onboarded learns nothing.
func (l *Lab) tellStranger(ctx context.Context) error {
	return l.trail.tell("device STRANGER", func() (string, error) {
		join, err := l.join("STRANGER")
		if err != nil {
			return "", err
		}
		join.TenantID = "00000000-0000-4000-8000-00000000dead"
		err = l.quietly(func() error { return l.enrolJoined(ctx, "STRANGER", join) })
		if code := catalog.CodeOf(err); code != catalog.ClientTenantUnknown {
			return "", catalog.Errorf(catalog.InternalError, "a device of a tenant that is not onboarded met %v, want %s", err, catalog.ClientTenantUnknown)
		}
		return fmt.Sprintf("of another tenant is refused (%s): AADAuthInfo tells nothing of tenants that are not onboarded", catalog.ClientTenantUnknown), nil
	})
}

// quietly runs an act whose failing steps are meant.
func (l *Lab) quietly(act func() error) error {
	l.trail.mute(true)
	defer l.trail.mute(false)
	return act()
}

// tellDisabled: a tenant is switched off, and the gateway refuses its devices within moments.
func (l *Lab) tellDisabled(ctx context.Context) error {
	id := l.provider.Tenant().ID
	return l.trail.tell("administrator", func() (string, error) {
		if err := l.Site().EnableTenant(ctx, id, false, "lab", "the story of the lab"); err != nil {
			return "", err
		}
		began := time.Now()
		err := l.await(ctx, func() bool { known := l.Gateway.Gateway.Status().Tenants; return len(known) == 1 && known[0].Disabled })
		return fmt.Sprintf("disabled the tenant: the gateway refuses its tokens after %d ms", time.Since(began).Milliseconds()), err
	})
}
