package gateway

import (
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/tunnel"
)

// Status is a gateway's account of itself, for its administration door.
type Status struct {
	Names          []string            `json:"names"`
	Pin            string              `json:"pin"`
	Healthy        bool                `json:"healthy"`
	Problems       []catalog.Code      `json:"problems,omitempty"` // what keeps it from being healthy, or soon will
	SiteCode       ccm.SiteCode        `json:"site_code,omitempty"`
	Epoch          uint64              `json:"epoch"`        // of the site state; 0 before the first
	Acknowledged   uint64              `json:"acknowledged"` // the epoch that the site knows this gateway to have
	AcknowledgedAt time.Time           `json:"acknowledged_at"`
	Stale          bool                `json:"stale"` // the site was not heard for 30 s
	LastHeard      time.Time           `json:"last_heard"`
	Connectors     []tunnel.Connection `json:"connectors"`
	Certificate    Certificate         `json:"certificate"` // what devices see
	Tenants        []Tenant            `json:"tenants,omitempty"`
	Requests       int64               `json:"requests"`    // since the start
	Refused        int64               `json:"refused"`     // of them, refused here or broken off
	TurnedAway     int64               `json:"turned_away"` // connections beyond the limits
	LostLines      uint64              `json:"lost_lines"`  // of CMGService.log

	CutRequests    int64 `json:"cut_requests"`    // ended while under way, since what they had proved was revoked
	CutConnections int64 `json:"cut_connections"` // closed for the same reason
}

// Certificate is what devices see of the gateway.
type Certificate struct {
	Source   string    `json:"source"` // CertificateCompany, CertificateSite or CertificateSelfSigned
	NotAfter time.Time `json:"not_after"`
}

// Tenant is an onboarded tenant as the gateway knows it.
type Tenant struct {
	ID       string `json:"id"`
	Keys     bool   `json:"keys"` // the provider's keys have come with the site state
	Disabled bool   `json:"disabled"`
}

// Status returns the gateway's account of itself.
func (g *Gateway) Status() Status {
	state, _ := g.state.Current()
	shown := g.certificates.current.Load()
	requests, refused := g.service.totals()
	acknowledged, at := g.acked.last()
	problems := g.problems()
	return Status{
		Names: g.names, Pin: g.pin, Healthy: g.healthy(), Problems: problems,
		SiteCode: state.SiteCode, Epoch: state.Epoch, Acknowledged: acknowledged, AcknowledgedAt: at,
		Stale: g.state.Stale(), LastHeard: g.state.LastHeard(), Connectors: g.hub.Connections(),
		Certificate: Certificate{Source: shown.source, NotAfter: shown.Leaf.NotAfter}, Tenants: g.tenants(),
		Requests: requests, Refused: refused, TurnedAway: g.turnedAway.load(), LostLines: g.service.log.Lost(),
		CutRequests: g.cutOff.requests.load(), CutConnections: g.cutOff.connections.load(),
	}
}

func (g *Gateway) tenants() (all []Tenant) {
	for _, t := range g.state.Tenants() {
		all = append(all, Tenant{t.ID, len(t.Keys) > 0, t.Disabled})
	}
	return all
}

// healthy reports whether a device's request can be judged by what the site says now,
// and carried.
func (g *Gateway) healthy() bool { return !g.state.Stale() && len(g.hub.Connections()) > 0 }

func (g *Gateway) problems() []catalog.Code {
	_, known := g.state.Current()
	shown := g.certificates.current.Load()
	g.kept.mu.Lock()
	keeping := g.kept.err
	g.kept.mu.Unlock()
	checks := []struct {
		wrong bool
		code  catalog.Code
	}{
		{len(g.hub.Connections()) == 0, catalog.NoConnector},
		{!known, catalog.StateMissing},
		{known && g.state.Stale(), catalog.StateStale},
		{g.state.Behind(g.now()) > 0, catalog.ClockBehind},
		{keeping != nil, catalog.GatewayStateFile},
		{shown.source == CertificateSelfSigned, catalog.GatewaySelfSigned},
		{g.now().After(shown.Leaf.NotAfter), catalog.GatewayCertificateExpired},
	}
	var codes []catalog.Code
	for _, check := range checks {
		if check.wrong {
			codes = append(codes, check.code)
		}
	}
	return codes
}
