package auth

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"postern/catalog"
	"postern/token"
)

// issue makes a certificate for key, signed by the parent or by itself.
func issue(t testing.TB, key crypto.Signer, parent *x509.Certificate, template *x509.Certificate, parentKey crypto.Signer) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = serial
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = noon.Add(-time.Hour), noon.Add(time.Hour)
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func rootCertificate(t testing.TB, key crypto.Signer) *x509.Certificate {
	t.Helper()
	return issue(t, key, nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: "Postern Site Root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil)
}

func roleTemplate(role string, use x509.ExtKeyUsage) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: "one"}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{use}, URIs: []*url.URL{token.RoleURI(hierarchy, role, "one")},
	}
}

func TestRoleCertificate(t *testing.T) {
	root, foreign := rootCertificate(t, siteRoot()), rootCertificate(t, otherRoot())
	key := deviceKey()
	leaf := func(change func(*x509.Certificate)) *x509.Certificate {
		template := roleTemplate(token.RoleConnector, x509.ExtKeyUsageClientAuth)
		if change != nil {
			change(template)
		}
		return issue(t, key, root, template, siteRoot())
	}
	good := leaf(nil)
	chain := func(certificates ...*x509.Certificate) []*x509.Certificate { return certificates }
	between := issue(t, thiefKey(), root, &x509.Certificate{
		Subject: pkix.Name{CommonName: "between"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, siteRoot())
	byLeaf := issue(t, thiefKey(), good, roleTemplate(token.RoleConnector, x509.ExtKeyUsageClientAuth), key)

	tests := map[string]struct {
		chain []*x509.Certificate
		role  string
		now   time.Time
		want  catalog.Code
	}{
		"good":                            {chain(good, root), token.RoleConnector, noon, ""},
		"good through an authority":       {chain(issue(t, key, between, roleTemplate(token.RoleConnector, x509.ExtKeyUsageClientAuth), thiefKey()), between, root), token.RoleConnector, noon, ""},
		"no certificate":                  {nil, token.RoleConnector, noon, catalog.RoleCertificateMissing},
		"without its root":                {chain(good), token.RoleConnector, noon, catalog.RoleCertificateRoot},
		"the root alone":                  {chain(root), token.RoleConnector, noon, catalog.RoleCertificateRoot},
		"the root as its own leaf":        {chain(root, root), token.RoleConnector, noon, catalog.RoleCertificateUsage},
		"a foreign root":                  {chain(issue(t, key, foreign, roleTemplate(token.RoleConnector, x509.ExtKeyUsageClientAuth), otherRoot()), foreign), token.RoleConnector, noon, catalog.RoleCertificateRoot},
		"a foreign leaf before our root":  {chain(issue(t, key, foreign, roleTemplate(token.RoleConnector, x509.ExtKeyUsageClientAuth), otherRoot()), root), token.RoleConnector, noon, catalog.RoleCertificateRoot},
		"self-signed before our root":     {chain(issue(t, key, nil, roleTemplate(token.RoleConnector, x509.ExtKeyUsageClientAuth), nil), root), token.RoleConnector, noon, catalog.RoleCertificateRoot},
		"issued by another role":          {chain(byLeaf, good, root), token.RoleConnector, noon, catalog.RoleCertificateRoot},
		"a chain of five":                 {chain(good, root, root, root, root), token.RoleConnector, noon, catalog.RoleCertificateRoot},
		"expired":                         {chain(good, root), token.RoleConnector, noon.Add(2 * time.Hour), catalog.RoleCertificateExpired},
		"not yet valid":                   {chain(good, root), token.RoleConnector, noon.Add(-2 * time.Hour), catalog.RoleCertificateExpired},
		"another role with this use":      {chain(leaf(func(c *x509.Certificate) { c.URIs[0] = token.RoleURI(hierarchy, token.RoleGateway, "one") }), root), token.RoleConnector, noon, catalog.RoleCertificateRole},
		"a connector as management point": {chain(good, root), token.RoleManagementPoint, noon, catalog.RoleCertificateUsage},
		"server use for a connector":      {chain(leaf(func(c *x509.Certificate) { c.ExtKeyUsage[0] = x509.ExtKeyUsageServerAuth }), root), token.RoleConnector, noon, catalog.RoleCertificateUsage},
		"no role":                         {chain(leaf(func(c *x509.Certificate) { c.URIs = nil }), root), token.RoleConnector, noon, catalog.RoleCertificateRole},
		"two roles": {chain(leaf(func(c *x509.Certificate) {
			c.URIs = append(c.URIs, token.RoleURI(hierarchy, token.RoleConnector, "two"))
		}), root), token.RoleConnector, noon, catalog.RoleCertificateRole},
		"a leaf that is an authority":       {chain(leaf(func(c *x509.Certificate) { c.IsCA = true }), root), token.RoleConnector, noon, catalog.RoleCertificateUsage},
		"a URI that only looks like a role": {chain(leaf(func(c *x509.Certificate) { c.URIs[0].Scheme = "https" }), root), token.RoleConnector, noon, catalog.RoleCertificateRole},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			called, pin, err := RoleCertificate(test.chain, token.Pin(siteRoot().Public()), test.role, test.now)
			wantCode(t, err, test.want)
			if err == nil && (called != "one" || pin != token.Pin(key.Public())) {
				t.Errorf("got %q by %q", called, pin)
			}
		})
	}
	_, _, err := RoleCertificate(chain(good, root), "", token.RoleConnector, noon)
	wantCode(t, err, catalog.RoleCertificateRoot)
}

func TestVerifiersOfConnections(t *testing.T) {
	root, pin, now := rootCertificate(t, siteRoot()), token.Pin(siteRoot().Public()), func() time.Time { return noon }
	template := roleTemplate(token.RoleGateway, x509.ExtKeyUsageServerAuth)
	template.DNSNames = []string{"cmg.contoso.com"}
	server := []*x509.Certificate{issue(t, deviceKey(), root, template, siteRoot()), root}
	connector := []*x509.Certificate{issue(t, deviceKey(), root, roleTemplate(token.RoleConnector, x509.ExtKeyUsageClientAuth), siteRoot()), root}

	verify := ServerVerifier(pin, token.RoleGateway, now)
	wantCode(t, verify(tls.ConnectionState{PeerCertificates: server, ServerName: "cmg.contoso.com"}), "")
	wantCode(t, verify(tls.ConnectionState{PeerCertificates: server}), "")
	wantCode(t, verify(tls.ConnectionState{PeerCertificates: server, ServerName: "evil.example"}), catalog.RoleCertificateUsage)
	wantCode(t, verify(tls.ConnectionState{PeerCertificates: connector}), catalog.RoleCertificateUsage)
	wantCode(t, verify(tls.ConnectionState{}), catalog.RoleCertificateMissing)

	verify = ClientVerifier(pin, token.RoleConnector, now)
	wantCode(t, verify(tls.ConnectionState{PeerCertificates: connector}), "")
	wantCode(t, verify(tls.ConnectionState{PeerCertificates: server}), catalog.RoleCertificateUsage)
}
