package connector

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"time"

	"postern/catalog"
	"postern/logfile"
)

// SelectCertificate chooses, among the certificates of a machine, the one with which a
// connector meets a management point that uses company certificates. The filters and
// their order are those of the documents (product.md 1.2 row 8, S4): digital signature,
// an allowed root, a private key, client authentication. Each count and each rejection
// is a verbose line in log, which may be nil. Among several that are left the one that
// is valid longest is taken. Code: ConnectorNoClientCertificate.
func SelectCertificate(candidates []tls.Certificate, allowed *x509.CertPool, now time.Time, log *logfile.Log) (tls.Certificate, error) {
	left := slices.DeleteFunc(withLeaf(candidates), func(c tls.Certificate) bool {
		return c.Leaf.KeyUsage != 0 && c.Leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0
	})
	log.Verbosef(filteredSignature, len(left))
	left = slices.DeleteFunc(left, func(c tls.Certificate) bool {
		switch {
		case c.PrivateKey == nil:
			log.Verbosef(noPrivateKey, c.Leaf.Subject)
		case !chains(c, allowed, now):
			log.Verbosef(notAllowed, c.Leaf.Subject)
		default:
			return false
		}
		return true
	})
	log.Verbosef(filteredRoot, len(left))
	log.Verbosef(filteredPrivateKey, len(left))
	left = slices.DeleteFunc(left, func(c tls.Certificate) bool {
		if clientAuth(c.Leaf) {
			return false
		}
		log.Verbosef(notClientAuth, c.Leaf.Subject)
		return true
	})
	log.Verbosef(filteredClientAuth, len(left))
	if len(left) == 0 {
		return tls.Certificate{}, catalog.Errorf(catalog.ConnectorNoClientCertificate, "%d certificates were looked at", len(candidates))
	}
	return slices.MaxFunc(left, func(a, b tls.Certificate) int { return a.Leaf.NotAfter.Compare(b.Leaf.NotAfter) }), nil
}

// withLeaf returns those that can be read, with Leaf set.
func withLeaf(candidates []tls.Certificate) []tls.Certificate {
	var readable []tls.Certificate
	for _, c := range candidates {
		if c.Leaf == nil && len(c.Certificate) > 0 {
			c.Leaf, _ = x509.ParseCertificate(c.Certificate[0])
		}
		if c.Leaf != nil {
			readable = append(readable, c)
		}
	}
	return readable
}

func chains(c tls.Certificate, roots *x509.CertPool, now time.Time) bool {
	between := x509.NewCertPool()
	for _, der := range c.Certificate[min(1, len(c.Certificate)):] {
		if certificate, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(certificate)
		}
	}
	_, err := c.Leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err == nil
}

func clientAuth(c *x509.Certificate) bool {
	return slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}
