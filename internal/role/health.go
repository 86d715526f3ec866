package role

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/connector"
	"postern/gateway"
	"postern/inbox"
	"postern/token"
)

// parts are those of a management point that have something to say.
type parts struct {
	windows      *windows
	tenants      *tenants
	certificates *auth.Certificates
}

// certificatesHealth adds what a person should know of the company's authorities, once some are uploaded.
func certificatesHealth(h *Health, c *auth.Certificates) {
	status := c.Status()
	if !status.Uploaded {
		return
	}
	h.Detail["client_certificates"] = map[string]any{"roots": status.Roots, "intermediates": status.Intermediates, "revocation": status.Policy, "sources": status.Sources}
	if status.Err != nil {
		h.problem("client certificates: %s", catalog.Public(status.Err))
	}
}

func managementPointHealth(c Config, opened *OpenedSite, waiting *inbox.Inbox, p parts, now func() time.Time) Health {
	h := Health{Role: c.Role, Name: c.Name, OK: true, Detail: map[string]any{
		"site_code": opened.Site.SiteCode(), "epoch": opened.Site.Epoch(), "inbox_waiting": waiting.Pending(), "keys": opened.Protection,
	}}
	if err := opened.Site.ClockBehind(); err != nil {
		h.problem("%s (%s)", catalog.Public(err), catalog.ClockBehind)
	}
	p.windows.health(&h)
	p.tenants.health(&h)
	leewayHealth(&h, c, len(opened.Site.Tenants()))
	certificatesHealth(&h, p.certificates)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := opened.Site.Refresh(ctx); err != nil {
		h.problem("the store does not answer: %v", err)
	}
	for _, g := range opened.Site.Gateways() {
		if g.Heard.IsZero() || now().Sub(g.Heard) > 2*time.Minute {
			h.Problem = append(h.Problem, fmt.Sprintf("gateway %s has not acknowledged the site state for a while", g.Name))
		}
	}
	return h
}

// leewayHealth tells what a person has to set alike on both that judge tenants' tokens.
func leewayHealth(h *Health, c Config, tenants int) {
	if tenants > 0 {
		h.Detail["entra_leeway"] = cmp.Or(c.Entra.Leeway, token.Leeway).String()
	}
}

func gatewayHealth(c Config, g *gateway.Gateway, protectedBy string) Health {
	status := g.Status()
	h := Health{Role: c.Role, Name: c.Name, OK: true, Detail: map[string]any{"status": status, "keys": protectedBy}}
	leewayHealth(&h, c, len(status.Tenants))
	if status.Stale {
		h.problem("the site has not been heard for 30 seconds: what was blocked since is not known here")
	}
	if len(status.Connectors) == 0 {
		h.problem("no connector is connected: devices get 503")
	}
	for _, code := range status.Problems {
		switch code {
		case catalog.ClockBehind, catalog.GatewayStateFile, catalog.GatewayCertificateExpired:
			entry, _ := catalog.Lookup(code)
			h.problem("%s (%s)", entry.Title, code)
		}
	}
	return h
}

func connectorHealth(c Config, out *connector.Connector, certificate tls.Certificate, protectedBy string) Health {
	status := out.Status()
	h := Health{Role: c.Role, Name: c.Name, OK: true, Detail: map[string]any{"status": status, "keys": protectedBy}}
	if !status.Healthy() {
		h.problem("not every connection stands; see status")
	}
	if leaf, err := x509.ParseCertificate(certificate.Certificate[0]); err == nil {
		h.Detail["certificate_ends"] = leaf.NotAfter
	}
	return h
}

func (h *Health) problem(format string, arguments ...any) {
	h.OK = false
	h.Problem = append(h.Problem, fmt.Sprintf(format, arguments...))
}
