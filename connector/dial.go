package connector

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"postern/catalog"
	"postern/token"
	"postern/tunnel"
)

// dialTimeout bounds the whole way to a gateway: connect, proxy, TLS.
const dialTimeout = 15 * time.Second

// remoteError is how crypto/tls marks an alert that the other side sent.
const remoteError = "remote error"

// dial opens a connection to a gateway: directly or through the proxy, TLS 1.3, the
// tunnel's protocol, the listed key. Codes: GatewayUnreachable, GatewayPinMismatch,
// GatewayRefusedConnector, GatewaySpeaksNoTunnel, OutboundProxy*.
func (c *Connector) dial(ctx context.Context, gateway Gateway) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := c.wayOut(ctx, gateway)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, c.gatewayTLS(gateway))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, handshakeError(gateway, err)
	}
	if conn.ConnectionState().NegotiatedProtocol != tunnel.ALPN {
		conn.Close()
		return nil, catalog.Errorf(catalog.GatewaySpeaksNoTunnel, "gateway %s at %s", gateway.Name, gateway.Address)
	}
	return conn, nil
}

func (c *Connector) wayOut(ctx context.Context, gateway Gateway) (net.Conn, error) {
	proxy, err := c.cfg.Proxy(&http.Request{URL: &url.URL{Scheme: "https", Host: gateway.Address}})
	switch {
	case catalog.CodeOf(err) != "":
		return nil, err
	case err != nil:
		return nil, catalog.Wrap(catalog.OutboundProxyUnreachable, err, "the proxy's address cannot be used")
	}
	if proxy != nil {
		return c.throughProxy(ctx, proxy, gateway.Address)
	}
	conn, err := c.cfg.Dial(ctx, "tcp", gateway.Address)
	if err != nil {
		return nil, catalog.Wrap(catalog.GatewayUnreachable, err, "gateway %s at %s", gateway.Name, gateway.Address)
	}
	return conn, nil
}

// gatewayTLS trusts one key and no authority. The connector's certificate leaves only
// after the gateway's key was checked, as TLS 1.3 orders it.
func (c *Connector) gatewayTLS(gateway Gateway) *tls.Config {
	host, _, _ := net.SplitHostPort(gateway.Address)
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         host,
		NextProtos:         []string{tunnel.ALPN},
		InsecureSkipVerify: true, // VerifyConnection compares the key with the listed pin
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) > 0 && gateway.Pin != "" && strings.EqualFold(token.Pin(cs.PeerCertificates[0].PublicKey), gateway.Pin) {
				return nil
			}
			return catalog.Errorf(catalog.GatewayPinMismatch, "gateway %s at %s, listed pin %s", gateway.Name, gateway.Address, gateway.Pin)
		},
		GetClientCertificate: c.clientCertificate,
	}
}

func (c *Connector) clientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return c.certificate.Load(), nil
}

func handshakeError(gateway Gateway, err error) error {
	code := catalog.GatewayUnreachable
	_, notTLS := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case catalog.CodeOf(err) != "":
		return err
	case notTLS, strings.Contains(err.Error(), "no application protocol"):
		code = catalog.GatewaySpeaksNoTunnel
	case isAlert(err):
		code = catalog.GatewayRefusedConnector
	}
	return catalog.Wrap(code, err, "gateway %s at %s", gateway.Name, gateway.Address)
}
