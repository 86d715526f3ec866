package site

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

// Role is what a site-issued certificate is for: one certificate, one role (C12).
type Role string

// The roles that hold a certificate of the site.
const (
	RoleManagementPoint Role = token.RoleManagementPoint
	RoleConnector       Role = token.RoleConnector
	RoleGateway         Role = token.RoleGateway
)

// roleLife is the life of a role certificate; gateways renew at two thirds of it, management points take a fresh one at each start and every thirty days.
const roleLife = 365 * 24 * time.Hour

// backdate lets a certificate begin before the clock of a slow peer.
const backdate = time.Hour

func rootTemplate(code ccm.SiteCode, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: "Postern Site Root " + string(code)},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(rootLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
}

func siteSigningTemplate(code ccm.SiteCode, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: "Site Server Signing " + string(code)},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(siteSigningLife),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

func (s *Site) selfSigned(template *x509.Certificate, key crypto.Signer) ([]byte, error) {
	if err := s.number(template); err != nil {
		return nil, err
	}
	return x509.CreateCertificate(s.rand, template, template, key.Public(), key)
}

// number gives the certificate a random positive serial of 127 bits.
func (s *Site) number(template *x509.Certificate) (err error) {
	template.SerialNumber, err = rand.Int(s.rand, new(big.Int).Lsh(big.NewInt(1), 127))
	return err
}

// IssueRole issues a role certificate for a key that stays where it was made. Names are host names or addresses for servers, none for a
// connector. The chain is leaf, then site root.
func (s *Site) IssueRole(role Role, name string, public crypto.PublicKey, names []string) (chain [][]byte, err error) {
	usage := map[Role]x509.ExtKeyUsage{
		RoleManagementPoint: x509.ExtKeyUsageServerAuth, RoleGateway: x509.ExtKeyUsageServerAuth, RoleConnector: x509.ExtKeyUsageClientAuth,
	}
	eku, known := usage[role]
	if !known {
		return nil, fmt.Errorf("issue certificate: unknown role %q", role)
	}
	now, here := s.time(), s.current.Load()
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name, OrganizationalUnit: []string{"SMS Role SSL Certificate"}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(roleLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{eku}, BasicConstraintsValid: true,
		URIs: []*url.URL{token.RoleURI(here.hierarchy, string(role), name)},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
			continue
		}
		template.DNSNames = append(template.DNSNames, n)
	}
	if role == RoleConnector && len(here.state.Roots) > 0 { // gateways hear of a new root through connectors alone
		extension, err := token.CarryLinks(here.state.Roots)
		if err != nil {
			return nil, err
		}
		template.ExtraExtensions = append(template.ExtraExtensions, extension)
	}
	if err := s.number(template); err != nil {
		return nil, err
	}
	leaf, err := x509.CreateCertificate(s.rand, template, here.rootCert, public, here.root)
	if err != nil {
		return nil, fmt.Errorf("issue %s certificate for %s: %w", role, name, err)
	}
	return [][]byte{leaf, here.rootCert.Raw}, nil
}

// RootPin returns the trusted root key: the SHA-256 of the site root's public key, lower-case hex.
func (s *Site) RootPin() string {
	return token.PinOf(s.current.Load().rootCert.RawSubjectPublicKeyInfo)
}

// RootCertificate returns the site root certificate, DER.
func (s *Site) RootCertificate() []byte { return s.current.Load().rootCert.Raw }

// SigningCertificate returns the certificate that SITESIGNCERT serves, DER.
func (s *Site) SigningCertificate() []byte { return s.current.Load().signing }

// requestKey checks a certificate request's own signature and returns its key.
func requestKey(csr []byte) (*x509.CertificateRequest, error) {
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, catalog.Wrap(catalog.CertificateRequestInvalid, err, "the certificate request cannot be read")
	}
	if err := request.CheckSignature(); err != nil {
		return nil, catalog.Wrap(catalog.CertificateRequestInvalid, err, "the certificate request is not signed with its own key")
	}
	return request, nil
}
