package gateway

import (
	"context"
	"crypto/tls"
	"slices"

	"postern/catalog"
	"postern/token"
	"postern/tunnel"
)

// tlsConfig tells connectors from devices by ALPN on the one port (design decision 13).
func (g *Gateway) tlsConfig() *tls.Config {
	connectors, devices := g.connectorTLS(), g.deviceTLS()
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: devices.NextProtos,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if slices.Contains(hello.SupportedProtos, tunnel.ALPN) {
				return connectors, nil
			}
			if c, ok := hello.Conn.(*connection); ok && c.spare {
				g.turnedAway.add(1)
				return nil, catalog.Errorf(catalog.GatewayFull, "too many connections")
			}
			return devices, nil
		},
	}
}

// connectorTLS shows the pinned key and wants a connector's role certificate.
func (g *Gateway) connectorTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{tunnel.ALPN},
		Certificates:           []tls.Certificate{g.certificates.pinned},
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true, // every connection shows its certificate
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, _, err := g.connector(cs)
			if err != nil {
				g.quiet.Do(func() { g.log.Warn("connector refused", "code", catalog.CodeOf(err), "cause", err) })
			}
			return err
		},
	}
}

// What a device may show in its handshake. A chain of a company has three or four.
const (
	maxDeviceChain = 10
	maxDeviceBytes = 64 << 10
)

// deviceTLS shows the certificate for devices. A client certificate is asked for before
// the path is known and judged by the route.
func (g *Gateway) deviceTLS() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		ClientAuth:     tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return g.certificates.forDevices(), nil },
		VerifyConnection: func(cs tls.ConnectionState) error {
			bytes := 0
			for _, certificate := range cs.PeerCertificates {
				bytes += len(certificate.Raw)
			}
			if len(cs.PeerCertificates) > maxDeviceChain || bytes > maxDeviceBytes {
				return catalog.Errorf(catalog.CertificateUnreadable, "%d certificates of %d bytes; at most %d of %d are read", len(cs.PeerCertificates), bytes, maxDeviceChain, maxDeviceBytes)
			}
			return nil
		},
	}
}

// connector judges the certificate of the other side of a tunnel.
func (g *Gateway) connector(cs tls.ConnectionState) (name, pin string, err error) {
	name, pin, err = g.judgeConnector(cs.PeerCertificates)
	if err == nil {
		err = g.state.RevokedCertificate(pin)
	}
	return name, pin, err
}

// carry gives a connector's connection to the hub and returns when it has ended: at the
// latest with the connector's certificate.
func (g *Gateway) carry(ctx context.Context, c *tls.Conn) {
	cs := c.ConnectionState()
	name, pin, err := g.connector(cs)
	if err != nil {
		g.log.Warn("connector refused", "code", catalog.CodeOf(err), "cause", err)
		return
	}
	left := cs.PeerCertificates[0].NotAfter.Add(token.Leeway).Sub(g.judgeTime())
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	defer g.standing.add(rootOf(cs.PeerCertificates), cancel)()
	done, err := g.hub.Add(ctx, c, name, pin)
	if err != nil {
		g.log.Warn("connector refused", "connector", name, "code", catalog.CodeOf(err), "cause", err)
		return
	}
	g.dropBlocked() // it may have been blocked while it came in
	<-done
}

// dropBlocked ends the connections of connectors whose certificate the site has blocked, or
// is under a root that is trusted no more.
func (g *Gateway) dropBlocked() {
	g.standing.drop(g.state)
	g.hub.Drop(func(c tunnel.Connection) bool {
		err := g.state.RevokedCertificate(c.Pin)
		if err != nil {
			g.log.Warn("connector dropped", "connector", c.Name, "connection", c.ID, "code", catalog.CodeOf(err))
		}
		return err != nil
	})
}
