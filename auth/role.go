package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"postern/catalog"
	"postern/token"
)

// maxChain is the longest chain of a role certificate: leaf, two authorities, root.
const maxChain = 4

// RoleCertificate checks the certificates that the other side of a TLS connection
// showed: leaf first, the site root last. The last one's key must have the pinned
// hash, everything in between must be issued by it, and the leaf must be for that
// role, for its use, and valid at now. It returns the role's name and the pin of its
// key, for the caller to compare with what is listed or revoked. Codes:
// RoleCertificateMissing, RoleCertificateRoot, RoleCertificateRole,
// RoleCertificateExpired, RoleCertificateUsage.
func RoleCertificate(chain []*x509.Certificate, rootPin, role string, now time.Time) (name, pin string, err error) {
	return RoleCertificateUnder(chain, RootPin(rootPin), role, now)
}

// RoleCertificateUnder is [RoleCertificate] where several site roots may vouch for the
// certificate; further code: RootRetired.
func RoleCertificateUnder(chain []*x509.Certificate, roots Roots, role string, now time.Time) (name, pin string, err error) {
	if len(chain) == 0 {
		return "", "", catalog.Errorf(catalog.RoleCertificateMissing, "no certificate")
	}
	leaf, root := chain[0], chain[len(chain)-1]
	if len(chain) < 2 || len(chain) > maxChain {
		return "", "", catalog.Errorf(catalog.RoleCertificateRoot, "%d certificates, want the role's first and the site root last", len(chain))
	}
	if err := roots.TrustsRoot(token.Pin(root.PublicKey)); err != nil {
		return "", "", err
	}
	if err := verifyChain(chain, usage(role), now); err != nil {
		return "", "", err
	}
	name, err = roleName(leaf, role)
	if err != nil {
		return "", "", err
	}
	return name, token.Pin(leaf.PublicKey), nil
}

// usage is what a role's certificate is for: connectors call, the others answer.
func usage(role string) x509.ExtKeyUsage {
	if role == token.RoleConnector {
		return x509.ExtKeyUsageClientAuth
	}
	return x509.ExtKeyUsageServerAuth
}

func verifyChain(chain []*x509.Certificate, use x509.ExtKeyUsage, now time.Time) error {
	leaf := chain[0]
	if leaf.IsCA {
		return catalog.Errorf(catalog.RoleCertificateUsage, "the certificate is an authority's")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(chain[len(chain)-1])
	for _, certificate := range chain[1 : len(chain)-1] {
		between.AddCert(certificate)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use}})
	return chainError(err)
}

func chainError(err error) error {
	if err == nil {
		return nil
	}
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) {
		switch invalid.Reason {
		case x509.Expired:
			return catalog.Wrap(catalog.RoleCertificateExpired, err, "valid from %s to %s",
				invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
		case x509.IncompatibleUsage:
			return catalog.Wrap(catalog.RoleCertificateUsage, err, "the certificate is not for this side of a connection")
		}
	}
	return catalog.Wrap(catalog.RoleCertificateRoot, err, "the chain does not hold")
}

// roleName reads the one postern:// name of a certificate.
func roleName(leaf *x509.Certificate, role string) (string, error) {
	found, name := 0, ""
	for _, uri := range leaf.URIs {
		_, its, called, ok := token.ParseRoleURI(uri)
		if !ok {
			continue
		}
		if found++; its != role {
			return "", catalog.Errorf(catalog.RoleCertificateRole, "the certificate is for the role %s, wanted %s", its, role)
		}
		name = called
	}
	if found != 1 {
		return "", catalog.Errorf(catalog.RoleCertificateRole, "the certificate names %d roles, want one", found)
	}
	return name, nil
}

// ServerVerifier returns the check of a server's role certificate for
// tls.Config.VerifyConnection, used with InsecureSkipVerify. A certificate with host
// names must also be for the host that was asked for.
func ServerVerifier(rootPin, role string, now func() time.Time) func(tls.ConnectionState) error {
	return ServerVerifierUnder(RootPin(rootPin), role, now)
}

// ServerVerifierUnder is [ServerVerifier] where several site roots may vouch for the
// certificate.
func ServerVerifierUnder(roots Roots, role string, now func() time.Time) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if _, _, err := RoleCertificateUnder(cs.PeerCertificates, roots, role, now()); err != nil {
			return err
		}
		leaf := cs.PeerCertificates[0]
		if cs.ServerName == "" || len(leaf.DNSNames) == 0 {
			return nil
		}
		if err := leaf.VerifyHostname(cs.ServerName); err != nil {
			return catalog.Wrap(catalog.RoleCertificateUsage, err, "the certificate is for another host than %s", cs.ServerName)
		}
		return nil
	}
}

// ClientVerifier returns the check of a client's role certificate for
// tls.Config.VerifyConnection, used with RequireAnyClientCert.
func ClientVerifier(rootPin, role string, now func() time.Time) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		_, _, err := RoleCertificate(cs.PeerCertificates, rootPin, role, now())
		return err
	}
}
