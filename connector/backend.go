package connector

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
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
		return nil, catalog.Errorf(catalog.BackendNotAllowed, "%q is not https://host[:port]", base)
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
		Protocols:              &http1,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        c.backendTLS(),
		TLSHandshakeTimeout:    10 * time.Second,
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

// backendTLS accepts a management point's role certificate under the site root, or a
// certificate for the host's name under the company's authorities where they are given.
func (c *Connector) backendTLS() *tls.Config {
	bySite := auth.ServerVerifier(c.cfg.RootPin, token.RoleManagementPoint, c.cfg.Now)
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection judges
		VerifyConnection: func(cs tls.ConnectionState) error {
			err := bySite(cs)
			if err != nil && c.cfg.BackendRoots != nil {
				err = verifyByName(cs, c.cfg.BackendRoots, c.cfg.Now())
			}
			if err != nil {
				return catalog.Wrap(catalog.BackendCertificate, err, "management point %s", cs.ServerName)
			}
			return nil
		},
		GetClientCertificate: c.clientCertificate,
	}
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
	case isNet && timeout.Timeout() && !isDial(err):
		code = catalog.BackendTimeout
	}
	return catalog.Wrap(code, err, "management point %s", host)
}

func isDial(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}
