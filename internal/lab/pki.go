package lab

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"postern/catalog"
	"postern/client"
	"postern/internal/authority"
	"postern/logfile"
	"postern/site"
)

// company is the public key infrastructure of the story: an authority and its list of revoked certificates.
type company struct {
	root      *authority.Authority
	publisher *authority.Publisher
}

// listPath is where the company publishes its list.
const listPath = "/company.crl"

func startCompany(_ context.Context, options *Options) (stop func(), err error) {
	now := time.Now()
	root, err := authority.NewRoot("Company Root", now)
	if err != nil {
		return nil, err
	}
	publisher, err := authority.NewPublisher()
	if err != nil {
		return nil, err
	}
	options.company = &company{root, publisher}
	return publisher.Close, nil
}

func (c *company) publish(now time.Time) error {
	list, err := c.root.List(now)
	if err == nil {
		c.publisher.Put(listPath, list)
	}
	return err
}

// tellPKI: a device proves itself with a certificate of the company; another one's was revoked, and it is refused.
func tellPKI(ctx context.Context, l *Lab) error {
	const good, lost = "DESK42.corp.example", "LOST13.corp.example"
	for _, name := range []string{good, lost} {
		if err := l.company.issue(l.folder(name), name, name == lost); err != nil {
			return err
		}
	}
	err := l.trail.tell("administrator", func() (string, error) {
		if err := l.company.publish(time.Now()); err != nil {
			return "", err
		}
		rule := site.Revocation{Policy: "require", Sources: []string{l.company.publisher.URL(listPath)}}
		added, err := l.Site().AddAuthorities(ctx, authority.PEM(l.company.root.Certificate), rule, "lab")
		return fmt.Sprintf("uploaded %d authority of the company; its revocation list is required: postern authority add", len(added)), err
	})
	if err != nil {
		return err
	}
	if err := l.await(ctx, func() bool { return l.Gateway.Gateway.Status().Epoch == l.Site().Epoch() }); err != nil {
		return err
	}
	if err := l.enrolCertified(ctx, good); err != nil {
		return err
	}
	if err := l.tellApproval(ctx, good); err != nil {
		return err
	}
	return l.trail.tell("device "+lost, func() (string, error) {
		err := l.quietly(func() error { return l.enrolCertified(ctx, lost) })
		if code := catalog.CodeOf(err); code != catalog.CertificateRevoked {
			return "", catalog.Errorf(catalog.InternalError, "a device with a revoked certificate met %v, want %s", err, catalog.CertificateRevoked)
		}
		return fmt.Sprintf("has a certificate that the company revoked, and is refused (%s)", catalog.CertificateRevoked), nil
	})
}

// folder is where a device keeps what it has.
func (l *Lab) folder(device string) string { return filepath.Join(l.Dir, "device-"+device) }

func (l *Lab) enrolCertified(ctx context.Context, name string) error {
	dir := l.folder(name)
	logs := logfile.NewFolder(filepath.Join(dir, "logs"), logfile.Options{Now: l.now})
	agent, err := client.Open(client.Config{Dir: dir, Now: l.now, Logs: logs, Observe: l.trail.device(name)})
	if err != nil {
		return err
	}
	defer agent.Close()
	setup := l.Setup(name, "")
	setup.Certificate = client.CertificateChoice{Files: []client.CertificateFile{{Certificate: filepath.Join(dir, "device.pem"), Key: filepath.Join(dir, "device.key")}}}
	if err := agent.Enrol(ctx, setup); err != nil {
		return fmt.Errorf("enrol %s: %w", name, err)
	}
	return nil
}

// issue makes a client certificate, puts it where the device reads it, and may revoke it again.
func (c *company) issue(dir, name string, revoked bool) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	issued, err := c.root.ClientFor(name, key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if revoked {
		c.root.Revoke(issued.Chain()[0], time.Now(), 1)
	}
	var chain []byte
	for _, certificate := range issued.Chain() {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})...)
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, "device.pem"), chain, 0o600), writePEM(filepath.Join(dir, "device.key"), "PRIVATE KEY", private))
}

func (l *Lab) tellApproval(ctx context.Context, name string) error {
	return l.trail.tell("site", func() (string, error) {
		found, err := l.Site().FindDevice(ctx, name)
		if err != nil {
			return "", err
		}
		a := found.Approval
		if a.Status != 2 {
			return "", catalog.Errorf(catalog.InternalError, "the device has approval status %d: %s", a.Status, a.Rule)
		}
		return fmt.Sprintf("approval status 2, level %s, by rule %q; evidence: certificate %.16s...", a.Level, a.Rule, a.Evidence["certificate"]), nil
	})
}
