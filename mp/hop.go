package mp

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"net/netip"
	"strings"
	"sync"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/logfile"
	"postern/revocation"
	"postern/token"
)

// hop is where a request comes from.
type hop struct {
	connector string // its name, when a connector relays; else the caller stands here itself
	pin       string
	address   string // of the device: as the connector says, or of the connection
	err       error  // why the certificate that was shown is no connector's
	forged    bool   // the caller is no connector and spoke as one

	certificates   []*x509.Certificate // that the gateway saw, leaf first, when a connector relays; the management point judges them itself
	certificateErr error               // why what the gateway sent as such cannot be read
}

func (h hop) direct() bool { return h.connector == "" }

// relay finds out who sends the request. Only the role certificate of an admitted connector makes the hop headers count; from everyone
// else they are dropped. A connector that the site has blocked is refused outright.
func (v *visit) relay() error {
	v.hop.address = hostOnly(v.r.RemoteAddr)
	v.setTrace(v.mp.newTrace())
	if !v.showsCertificate() {
		v.dropHopHeaders()
		return nil
	}
	now := v.mp.now()
	name, pin, err := v.mp.connectors.check(v, now)
	if catalog.CodeOf(err) == catalog.RootRetired && strings.EqualFold(v.r.URL.Path, renewPath) {
		// The site knows the key by its pin, whatever root vouched for it; all that it gets is a certificate under the present one.
		name, pin, err = auth.RoleCertificateUnder(v.r.TLS.PeerCertificates, v.mp.site.OnceRoots(), token.RoleConnector, now)
	}
	if err != nil {
		v.hop.err = err
		v.dropHopHeaders()
		return nil
	}
	if err := v.mp.site.ConnectorAdmitted(pin); err != nil {
		v.hop.err = err
		v.dropHopHeaders()
		return err
	}
	v.hop.connector, v.hop.pin = name, pin
	v.takeHopHeaders()
	return nil
}

func (v *visit) showsCertificate() bool { return v.r.TLS != nil && len(v.r.TLS.PeerCertificates) > 0 }

// dropHopHeaders removes what only a hop may say, and keeps the attempt.
func (v *visit) dropHopHeaders() {
	for _, name := range ccm.HopHeaders() {
		if v.r.Header.Values(name) != nil {
			v.hop.forged = true
			v.remember(catalog.Errorf(catalog.HopHeadersForged, "the header %s was dropped", name), "request", "")
			break
		}
	}
	ccm.StripHop(v.r.Header)
}

// takeHopHeaders believes a connector. What is malformed is left out, never passed on.
func (v *visit) takeHopHeaders() {
	header := v.r.Header
	if address, err := netip.ParseAddr(header.Get(ccm.HeaderClientAddress)); err == nil {
		v.hop.address = address.String()
	}
	trace := v.trace
	if t, ok := logfile.ParseTraceparent(header.Get("Traceparent")); ok {
		trace.ID, trace.Span = t.ID, t.Span
	}
	if id := header.Get(ccm.HeaderMessageID); validMessageID(id) {
		trace.Message = id
	}
	v.setTrace(trace)
	v.hop.certificates, v.hop.certificateErr = readCertificates(header.Values(ccm.HeaderClientCertificate))
}

// The budgets of the chain that a gateway passes on.
const (
	maxCertificateHeader = 48 << 10
	maxPassedOn          = 10
)

// readCertificates reads the certificates that a gateway saw: DER in base64, leaf first, comma between.
func readCertificates(values []string) ([]*x509.Certificate, error) {
	if len(values) == 0 {
		return nil, nil
	}
	texts := strings.Split(values[0], ",")
	if len(values) > 1 || len(values[0]) > maxCertificateHeader || len(texts) > maxPassedOn {
		return nil, catalog.Errorf(catalog.CertificateUnreadable, "%d headers, the first with %d certificates of %d bytes", len(values), len(texts), len(values[0]))
	}
	chain := make([]*x509.Certificate, len(texts))
	for i, text := range texts {
		der, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, catalog.Wrap(catalog.CertificateUnreadable, err, "certificate %d is not base64", i+1)
		}
		if chain[i], err = revocation.ParseCertificate(der); err != nil {
			return nil, err
		}
	}
	return chain, nil
}

// setTrace puts the request's ids where log lines, events and the answer take them from.
func (v *visit) setTrace(t logfile.Trace) {
	v.trace = t
	v.r = v.r.WithContext(logfile.WithTrace(v.r.Context(), t))
	v.w.Header().Set(ccm.HeaderMessageID, t.Message)
}

func validMessageID(id string) bool {
	return id != "" && len(id) <= 64 && strings.Trim(id, "0123456789abcdefABCDEFGHIJKLMNOPQRSTUVWXYZghijklmnopqrstuvwxyz-_") == ""
}

// connectorCache remembers connectors' certificates that were found good, so that a connection's many requests cost one chain check.
// What is remembered is about the certificate alone; whether the connector is admitted is asked at every request.
type connectorCache struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]knownConnector
}

type knownConnector struct {
	name, pin, root string
	until           time.Time
}

// maxConnectors bounds the memory; a site has a handful.
const maxConnectors = 256

func newConnectorCache() *connectorCache {
	return &connectorCache{known: map[[sha256.Size]byte]knownConnector{}}
}

func (c *connectorCache) check(v *visit, now time.Time) (name, pin string, err error) {
	chain := v.r.TLS.PeerCertificates
	sum := sha256.Sum256(chain[0].Raw)
	c.mu.Lock()
	known, ok := c.known[sum]
	c.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.name, known.pin, v.mp.site.TrustsRoot(known.root)
	}
	if name, pin, err = auth.RoleCertificateUnder(chain, v.mp.site, token.RoleConnector, now); err != nil {
		return "", "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= maxConnectors {
		clear(c.known)
	}
	c.known[sum] = knownConnector{name: name, pin: pin, root: token.Pin(chain[len(chain)-1].PublicKey), until: chain[0].NotAfter}
	return name, pin, nil
}
