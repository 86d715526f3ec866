package connector

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/token"
)

// backendURL returns a path at a backend. The base comes from the signed table or from
// our own configuration and is https, a host, and nothing else; the path has no say in
// the host.
func backendURL(base, path string) (*url.URL, error) {
	b, err := url.Parse(base)
	if err != nil || b.Scheme != "https" || b.Hostname() == "" || b.User != nil || strings.Trim(b.Path, "/") != "" || b.RawQuery != "" || b.Fragment != "" {
		return nil, catalog.Errorf(catalog.BackendNotAllowed, "%q is not https://host[:port]", withoutLogin(base))
	}
	p, err := url.ParseRequestURI(path)
	if err != nil || strings.Contains(path, "#") || p.Scheme != "" || p.Host != "" || p.User != nil || !strings.HasPrefix(p.Path, "/") || strings.HasPrefix(p.Path, "//") {
		return nil, catalog.Errorf(catalog.ConnectorEndpointUnknown, "not a path")
	}
	return &url.URL{Scheme: b.Scheme, Host: b.Host, Path: p.Path, RawPath: p.RawPath, RawQuery: p.RawQuery}, nil
}

// backendTransport is the one way to management points: HTTP/1.1 with connections kept
// alive, our certificate, no proxy, nobody's redirects.
func (c *Connector) backendTransport() *http.Transport {
	var http1 http.Protocols
	http1.SetHTTP1(true)
	dialer := &net.Dialer{Timeout: 10 * time.Second, Control: allowed(c.cfg.AllowedNetworks)}
	return &http.Transport{
		Protocols: &http1,
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return c.dialBackend(ctx, dialer, network, address)
		},
		ResponseHeaderTimeout:  c.cfg.BackendTimeout,
		MaxIdleConns:           1024,
		MaxIdleConnsPerHost:    512,
		IdleConnTimeout:        55 * time.Second, // sooner than the other side, which loses a message when it closes first
		MaxResponseHeaderBytes: 32 << 10,
		DisableCompression:     true,
		ReadBufferSize:         16 << 10,
		WriteBufferSize:        16 << 10,
	}
}

// backendHandshake bounds the TLS handshake with a management point.
const backendHandshake = 10 * time.Second

// dialBackend connects to a management point. Each connection has a configuration of its
// own, because what is shown depends on what the other side has shown.
func (c *Connector) dialBackend(ctx context.Context, dialer *net.Dialer, network, address string) (net.Conn, error) {
	known := c.state.Anchors().Newest()
	conn, err := handshake(ctx, dialer, network, address, c.backendTLS(address))
	if catalog.CodeOf(rootError(err)) != catalog.RoleCertificateRoot {
		return conn, err
	}
	if c.followRoots(ctx, dialer, network, address) || c.state.Anchors().Newest() != known { // another request may have been led there first
		return handshake(ctx, dialer, network, address, c.backendTLS(address))
	}
	return conn, err
}

func handshake(ctx context.Context, dialer *net.Dialer, network, address string, config *tls.Config) (net.Conn, error) {
	raw, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, backendHandshake)
	defer cancel()
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// backendTLS accepts a management point's role certificate under the site root, or a
// certificate for the host's name under the company's authorities where they are given.
func (c *Connector) backendTLS(address string) *tls.Config {
	bySite := auth.ServerVerifierUnder(c.state, token.RoleManagementPoint, c.cfg.Now)
	host, _, _ := net.SplitHostPort(address)
	ours := false // known before a certificate is asked for: TLS orders it so
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         host,
		InsecureSkipVerify: true, // VerifyConnection judges
		VerifyConnection: func(cs tls.ConnectionState) error {
			err := bySite(cs)
			ours = err == nil
			if err != nil && c.cfg.BackendRoots != nil {
				err = verifyByName(cs, c.cfg.BackendRoots, c.cfg.Now())
			}
			if err != nil {
				return catalog.Wrap(catalog.BackendCertificate, err, "management point %s", cs.ServerName)
			}
			return nil
		},
		GetClientCertificate: func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if ours || !c.wantsCompany(address, asked) {
				return c.certificate.Load(), nil
			}
			return c.companyCertificate(address), nil
		},
	}
}

// wantsCompany reports whether a management point wants a certificate of the company from
// the connector: it is listed, or it names the authorities that it accepts and the site's
// is not among them. All others get the role certificate. A Postern management point
// honours what a connector says of its devices from that alone; were it shown a company
// certificate instead, the connector would pass for a device.
func (c *Connector) wantsCompany(address string, asked *tls.CertificateRequestInfo) bool {
	if c.cfg.ClientCertificates == nil || address == c.ownAddress() {
		return false
	}
	host, _, _ := net.SplitHostPort(address)
	listed := func(name string) bool { return strings.EqualFold(name, host) || strings.EqualFold(name, address) }
	return slices.ContainsFunc(c.cfg.CompanyHosts, listed) || len(asked.AcceptableCAs) > 0 && asked.SupportsCertificate(c.certificate.Load()) != nil
}

// ownAddress is the management point that tells the site state, which is Postern's.
func (c *Connector) ownAddress() string {
	return net.JoinHostPort(c.managementPoint.Hostname(), cmp.Or(c.managementPoint.Port(), "443"))
}

// companyCertificate chooses among the machine's certificates. When none fits, none is
// shown, and the management point says what it makes of that (S4).
func (c *Connector) companyCertificate(address string) *tls.Certificate {
	chosen, err := SelectCertificate(c.cfg.ClientCertificates(), c.allowedRoots(), c.cfg.Now(), c.cfg.Log)
	if err != nil {
		c.cfg.Events.Warn("no company certificate to show", "backend", address, "code", catalog.CodeOf(err), "error", err)
		return &tls.Certificate{}
	}
	return &chosen
}

// allowedRoots are the authorities whose certificates count: those of the backends, and
// those that were uploaded to the site.
func (c *Connector) allowedRoots() *x509.CertPool {
	pool := x509.NewCertPool()
	if c.cfg.BackendRoots != nil {
		pool = c.cfg.BackendRoots.Clone()
	}
	if uploaded := c.state.Authorities(); uploaded != nil {
		for _, der := range uploaded.Roots {
			if root, err := x509.ParseCertificate(der); err == nil {
				pool.AddCert(root)
			}
		}
	}
	return pool
}

func verifyByName(cs tls.ConnectionState, roots *x509.CertPool, now time.Time) error {
	if len(cs.PeerCertificates) == 0 || cs.ServerName == "" {
		return errors.New("a company certificate needs a host name")
	}
	between := x509.NewCertPool()
	for _, certificate := range cs.PeerCertificates[1:] {
		between.AddCert(certificate)
	}
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, DNSName: cs.ServerName, CurrentTime: now,
	})
	return err
}

// allowed refuses to connect to resolved addresses where no backend can be.
func allowed(networks []netip.Prefix) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil || !addressAllowed(at.Addr().Unmap(), networks) {
			return catalog.Errorf(catalog.BackendNotAllowed, "address %s", address)
		}
		return nil
	}
}

func addressAllowed(a netip.Addr, networks []netip.Prefix) bool {
	if a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return false
	}
	for _, network := range networks {
		if network.Contains(a) {
			return true
		}
	}
	return len(networks) == 0
}

// backendError gives a failed request to a backend its code.
func backendError(host string, err error) error {
	if catalog.CodeOf(err) != "" {
		return err // our own checks while dialling
	}
	code := catalog.BackendUnreachable
	timeout, isNet := errors.AsType[net.Error](err)
	_, notTLS := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case notTLS:
		code = catalog.BackendCertificate
	case isAlert(err):
		code = catalog.BackendRefusedConnector
	case isNet && timeout.Timeout() && !isDial(err):
		code = catalog.BackendTimeout
	}
	return catalog.Wrap(code, err, "management point %s", host)
}

// isAlert reports whether the other side ended TLS with an alert. With TLS 1.3 it judges our certificate after our
// handshake is over, so that the alert comes with the first answer.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == remoteError
}

func isDial(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}
