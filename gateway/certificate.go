package gateway

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/token"
)

// Sources of the certificate that devices see.
const (
	CertificateCompany    = "company"     // given in the configuration
	CertificateSite       = "site"        // issued by the site
	CertificateSelfSigned = "self-signed" // no other has come yet
)

// presented is a certificate with where it is from.
type presented struct {
	tls.Certificate
	source string
}

// certificates are what the gateway shows: the pinned one to connectors, another to
// devices, which may change while the gateway runs.
type certificates struct {
	pinned  tls.Certificate
	key     crypto.Signer
	names   []string
	state   *auth.State
	now     func() time.Time
	keep    func([][]byte) error
	current atomic.Pointer[presented]
	refused atomic.Pointer[refusedChain] // nil: the last chain of the site was used
}

// refusedChain says when a chain of the site was refused, and in which epoch.
type refusedChain struct {
	at    time.Time
	epoch uint64
}

// askAgain is how long the site is not asked for a certificate after one of its was
// refused. It would give the same again, and note each in its trust log.
const askAgain = time.Hour

func newCertificates(config Config, now func() time.Time) (*certificates, error) {
	leaf, err := x509.ParseCertificate(config.Certificate)
	if err != nil {
		return nil, catalog.Wrap(catalog.GatewayConfiguration, err, "the certificate of `postern gateway init` cannot be read")
	}
	if token.Pin(leaf.PublicKey) != token.Pin(config.Key.Public()) {
		return nil, catalog.Errorf(catalog.GatewayConfiguration, "the certificate of `postern gateway init` is not for its key")
	}
	c := &certificates{
		pinned: tls.Certificate{Certificate: [][]byte{config.Certificate}, PrivateKey: config.Key, Leaf: leaf},
		key:    config.Key, names: config.Names, state: config.State, now: now, keep: config.KeepCertificate,
	}
	c.current.Store(&presented{c.pinned, CertificateSelfSigned})
	if config.ClientCertificate != nil {
		return c, c.useCompany(*config.ClientCertificate)
	}
	if len(config.IssuedCertificate) > 0 {
		if err := c.use(config.IssuedCertificate); err != nil {
			config.Log.Warn("kept certificate not used", "code", catalog.CodeOf(err), "cause", err)
		}
	}
	return c, nil
}

func (c *certificates) forDevices() *tls.Certificate { return &c.current.Load().Certificate }

func (c *certificates) useCompany(certificate tls.Certificate) error {
	if certificate.Leaf == nil && len(certificate.Certificate) > 0 {
		certificate.Leaf, _ = x509.ParseCertificate(certificate.Certificate[0])
	}
	if certificate.Leaf == nil || certificate.PrivateKey == nil {
		return catalog.Errorf(catalog.GatewayConfiguration, "the certificate for devices cannot be read")
	}
	c.current.Store(&presented{certificate, CertificateCompany})
	return nil
}

// use shows devices a chain that the site issued, when it is what was asked for.
func (c *certificates) use(chain [][]byte) error {
	parsed := make([]*x509.Certificate, len(chain))
	for i, der := range chain {
		var err error
		if parsed[i], err = x509.ParseCertificate(der); err != nil {
			return catalog.Wrap(catalog.GatewayCertificateRefused, err, "certificate %d of the chain cannot be read", i+1)
		}
	}
	_, pin, err := auth.RoleCertificateUnder(parsed, c.state, token.RoleGateway, c.now())
	if err != nil {
		return catalog.Wrap(catalog.GatewayCertificateRefused, err, "the site's certificate for this gateway does not hold")
	}
	if pin != token.Pin(c.key.Public()) {
		return catalog.Errorf(catalog.GatewayCertificateRefused, "the site's certificate is for another key")
	}
	if !slices.ContainsFunc(c.names, func(name string) bool { return parsed[0].VerifyHostname(name) == nil }) {
		return catalog.Errorf(catalog.GatewayCertificateRefused, "the site's certificate is not for %s", c.names[0])
	}
	c.current.Store(&presented{tls.Certificate{Certificate: chain, PrivateKey: c.key, Leaf: parsed[0]}, CertificateSite})
	return nil
}

// receive takes a chain from the site in an epoch of its state: used at once, kept for the
// next start.
func (c *certificates) receive(chain [][]byte, epoch uint64) error {
	if err := c.use(chain); err != nil {
		c.refused.Store(&refusedChain{c.now(), epoch})
		return err
	}
	c.refused.Store(nil)
	if c.keep == nil {
		return nil
	}
	if err := c.keep(chain); err != nil {
		return fmt.Errorf("keep certificate: %w", err)
	}
	return nil
}

// wanted reports whether the site should be asked for a certificate in an epoch of its
// state: there is none, it is past two thirds of its life, or under a root that was
// replaced. After a refused one it is not, unless the site has changed since.
func (c *certificates) wanted(epoch uint64) bool {
	if r := c.refused.Load(); r != nil && r.epoch == epoch && c.now().Sub(r.at).Abs() < askAgain {
		return false
	}
	shown := c.current.Load()
	if shown.source != CertificateSite {
		return shown.source == CertificateSelfSigned
	}
	if c.underOldRoot() {
		return true
	}
	life := shown.Leaf.NotAfter.Sub(shown.Leaf.NotBefore)
	return c.now().After(shown.Leaf.NotBefore.Add(life / 3 * 2))
}

// UseCertificate shows devices another certificate of the company from now on, for a
// renewal without restart.
func (g *Gateway) UseCertificate(certificate tls.Certificate) error {
	return g.certificates.useCompany(certificate)
}

// request returns a certificate request for the gateway's names, signed with the pinned
// key: the site certifies no other.
func (g *Gateway) request() ([]byte, error) {
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: g.names[0]}}
	for _, name := range g.names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
			continue
		}
		template.DNSNames = append(template.DNSNames, name)
	}
	csr, err := x509.CreateCertificateRequest(g.rand, template, g.key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return csr, nil
}
