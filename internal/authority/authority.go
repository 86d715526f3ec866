// Package authority is a certificate authority for tests and for the lab: real keys, certificates and revocation lists made
// with crypto/x509, each defect on request, a web server on loopback that publishes lists and can be switched to every way in
// which such a server fails, and OpenSSL's own responder and list maker as processes, so that not everything that is checked
// was made by the same hands.
//
// Begin at [NewRoot]; [Authority.Intermediate], [Authority.Server] and [Authority.Client] issue below it, [Authority.List] and
// [Authority.Answer] speak about what was issued, [NewPublisher] serves it.
//
// It is no authority to run: keys live in memory or in a test's folder, and everything is signed that is asked for.
package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"
)

// Edit changes a certificate before it is signed; that is how defects are made.
type Edit func(*x509.Certificate)

// Certificate is what was issued, with its key and the authorities above it, the root left out.
type Certificate struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
	Above       []*x509.Certificate
}

// Chain is the certificate and the authorities above it, as a peer shows them.
func (c *Certificate) Chain() []*x509.Certificate {
	return append([]*x509.Certificate{c.Certificate}, c.Above...)
}

// TLS is the certificate with its chain for a tls.Config.
func (c *Certificate) TLS() tls.Certificate {
	chain := tls.Certificate{PrivateKey: c.Key}
	for _, certificate := range c.Chain() {
		chain.Certificate = append(chain.Certificate, certificate.Raw)
	}
	return chain
}

// Authority issues certificates. It is safe for concurrent use.
type Authority struct {
	Certificate *x509.Certificate
	Key         crypto.Signer

	above   []*x509.Certificate // itself and those above, the root left out
	now     time.Time
	mu      sync.Mutex
	serial  int64
	number  int64
	revoked []x509.RevocationListEntry
}

// NewRoot makes an authority that signed itself, valid for ten years around now.
func NewRoot(name string, now time.Time, edits ...Edit) (*Authority, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	return NewRootWithKey(name, key, now, edits...)
}

// NewRootWithKey is [NewRoot] for a key that exists: a renewed root, or an impostor with the same name.
func NewRootWithKey(name string, key crypto.Signer, now time.Time, edits ...Edit) (*Authority, error) {
	template := authorityTemplate(name, 1, now)
	apply(template, edits)
	certificate, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &Authority{Certificate: certificate, Key: key, now: now, serial: 1}, nil
}

// NewKey makes a key on the curve P-256.
func NewKey() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func authorityTemplate(name string, serial int64, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          serialNumber(serial),
		Subject:               pkix.Name{CommonName: name, Organization: []string{"Postern tests"}},
		NotBefore:             now.AddDate(-5, 0, 0),
		NotAfter:              now.AddDate(5, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

// serialNumber is as long as real ones are, and tells the number at its end.
func serialNumber(n int64) *big.Int {
	base := new(big.Int).Lsh(big.NewInt(0x5e), 120)
	return base.Add(base, big.NewInt(n))
}

func apply(template *x509.Certificate, edits []Edit) {
	for _, edit := range edits {
		edit(template)
	}
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate %s: %w", template.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

// Intermediate issues an authority below this one.
func (a *Authority) Intermediate(name string, edits ...Edit) (*Authority, error) {
	return a.IntermediateFor(name, nil, edits...)
}

// IntermediateFor is [Authority.Intermediate] for a key that exists, or a new one when it is nil.
func (a *Authority) IntermediateFor(name string, key crypto.Signer, edits ...Edit) (*Authority, error) {
	template := authorityTemplate(name, a.next(), a.now)
	issued, err := a.issue(template, key, edits)
	if err != nil {
		return nil, err
	}
	return &Authority{Certificate: issued.Certificate, Key: issued.Key, above: issued.Chain(), now: a.now}, nil
}

// Server issues a server's certificate for DNS names, of which the first is the common name.
func (a *Authority) Server(names []string, edits ...Edit) (*Certificate, error) {
	template := a.leaf(names[0], x509.ExtKeyUsageServerAuth)
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return a.issue(template, nil, edits)
}

// Client issues a client's certificate with the computer's name as its only alternative name.
func (a *Authority) Client(name string, edits ...Edit) (*Certificate, error) {
	template := a.leaf(name, x509.ExtKeyUsageClientAuth)
	template.DNSNames = []string{name}
	return a.issue(template, nil, edits)
}

// Responder issues the certificate of an OCSP responder.
func (a *Authority) Responder(name string, edits ...Edit) (*Certificate, error) {
	return a.issue(a.leaf(name, x509.ExtKeyUsageOCSPSigning), nil, edits)
}

// ClientFor is [Authority.Client] for a key that exists: a weak one, or one to be renewed.
func (a *Authority) ClientFor(name string, key crypto.Signer, edits ...Edit) (*Certificate, error) {
	template := a.leaf(name, x509.ExtKeyUsageClientAuth)
	template.DNSNames = []string{name}
	return a.issue(template, key, edits)
}

func (a *Authority) leaf(name string, usage x509.ExtKeyUsage) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serialNumber(a.next()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    a.now.Add(-24 * time.Hour),
		NotAfter:     a.now.AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{usage},
	}
}

func (a *Authority) next() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.serial++
	return a.serial
}

func (a *Authority) issue(template *x509.Certificate, key crypto.Signer, edits []Edit) (*Certificate, error) {
	apply(template, edits)
	if key == nil {
		var err error
		if key, err = NewKey(); err != nil {
			return nil, err
		}
	}
	certificate, err := sign(template, a.Certificate, key.Public(), a.Key)
	if err != nil {
		return nil, err
	}
	return &Certificate{Certificate: certificate, Key: key, Above: a.above}, nil
}

// Revoke takes a certificate back; the next [Authority.List] has it.
func (a *Authority) Revoke(certificate *x509.Certificate, at time.Time, reason int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked = append(a.revoked, x509.RevocationListEntry{SerialNumber: certificate.SerialNumber, RevocationTime: at, ReasonCode: reason})
}

// List signs a revocation list in DER, made at a time and good for a week, with the next number.
func (a *Authority) List(at time.Time, edits ...func(*x509.RevocationList)) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.number++
	template := &x509.RevocationList{
		Number:                    big.NewInt(a.number),
		ThisUpdate:                at,
		NextUpdate:                at.AddDate(0, 0, 7),
		RevokedCertificateEntries: append([]x509.RevocationListEntry(nil), a.revoked...),
	}
	for _, edit := range edits {
		edit(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.Certificate, a.Key)
	if err != nil {
		return nil, fmt.Errorf("sign the list of %s: %w", a.Certificate.Subject.CommonName, err)
	}
	return der, nil
}

// Answer signs an OCSP response about a certificate of this authority, made at a time and good for a day. The signer is a
// responder, or nil for the authority itself.
func (a *Authority) Answer(about *x509.Certificate, status int, at time.Time, signer *Certificate, edits ...func(*ocsp.Response)) ([]byte, error) {
	template := ocsp.Response{Status: status, SerialNumber: about.SerialNumber, ThisUpdate: at, NextUpdate: at.Add(24 * time.Hour)}
	if status == ocsp.Revoked {
		template.RevokedAt, template.RevocationReason = at.Add(-time.Hour), ocsp.KeyCompromise
	}
	by, key := a.Certificate, a.Key
	if signer != nil {
		by, key = signer.Certificate, signer.Key
		template.Certificate = signer.Certificate
	}
	for _, edit := range edits {
		edit(&template)
	}
	der, err := ocsp.CreateResponse(a.Certificate, by, template, key)
	if err != nil {
		return nil, fmt.Errorf("sign the answer about %s: %w", about.Subject.CommonName, err)
	}
	return der, nil
}

// PEM is certificates as files hold them.
func PEM(certificates ...*x509.Certificate) (text []byte) {
	for _, certificate := range certificates {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})...)
	}
	return text
}

// ListPEM is a list as some authorities publish it.
func ListPEM(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}) }
