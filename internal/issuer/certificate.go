package issuer

import (
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
	"time"
)

// Roots returns the authority below which the stand-in's own certificate is.
func (i *Issuer) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(i.ca.Leaf)
	return pool
}

// RootPEM returns that authority's certificate for a file.
func (i *Issuer) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.ca.Leaf.Raw})
}

// certificate makes the server's certificate, below the given authority or one of its
// own.
func (i *Issuer) certificate() (tls.Certificate, error) {
	now := time.Now() // TLS is judged by the real clock
	if i.options.CA != nil {
		i.ca = *i.options.CA
	} else {
		ca, err := sign(&x509.Certificate{
			Subject: pkix.Name{CommonName: "Postern lab: authority of the stand-in for Entra"},
			IsCA:    true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}, nil, now)
		if err != nil {
			return tls.Certificate{}, err
		}
		i.ca = ca
	}
	if i.ca.Leaf == nil {
		leaf, err := x509.ParseCertificate(i.ca.Certificate[0])
		if err != nil {
			return tls.Certificate{}, fmt.Errorf("read the authority's certificate: %w", err)
		}
		i.ca.Leaf = leaf
	}
	host, _, err := net.SplitHostPort(i.host)
	if err != nil {
		return tls.Certificate{}, err
	}
	return sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "Postern lab: stand-in for Entra"},
		IPAddresses: []net.IP{net.ParseIP(host)}, DNSNames: []string{"localhost"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, &i.ca, now)
}

// sign makes a key and a certificate for it by the authority, or by itself when that
// is nil.
func sign(template *x509.Certificate, ca *tls.Certificate, now time.Time) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a serial number: %w", err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = serial, now.Add(-time.Hour), now.AddDate(0, 1, 0)
	parent, signer := template, any(key)
	if ca != nil {
		parent, signer = ca.Leaf, ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make the certificate %q: %w", template.Subject.CommonName, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the certificate %q: %w", template.Subject.CommonName, err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}
