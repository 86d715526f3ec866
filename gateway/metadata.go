package gateway

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"postern/catalog"
	"postern/ccm"
)

// metadata answers ServiceMetadata, with which people and clients probe the certificate
// and the way (S4). The field names are ours (protocol.md 7.2). It reveals neither
// version nor site nor names (C19).
func (g *Gateway) metadata(w http.ResponseWriter, r *http.Request, x *exchange) error {
	return g.answerJSON(w, r, x, struct {
		Service string `json:"service"`
		Healthy bool   `json:"healthy"`
	}{"postern-gateway", g.healthy()})
}

// answerJSON answers with one of the gateway's own documents.
func (g *Gateway) answerJSON(w http.ResponseWriter, r *http.Request, x *exchange, document any) error {
	body, err := json.Marshal(document)
	if err != nil {
		return err
	}
	return g.answerBytes(w, r, x, body)
}

// answerBytes is answerJSON for what is JSON already.
func (g *Gateway) answerBytes(w http.ResponseWriter, r *http.Request, x *exchange, body []byte) error {
	x.status, x.started, x.sent = ccm.StatusOf(http.StatusOK), true, int64(len(body))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set(ccm.HeaderMessageID, x.id)
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		w.Write(body)
	}
	return nil
}

// tenantInfo is the body of AADAuthInfo: what a device needs to ask its tenant for a
// token for this site, and nothing else. The field names are ours (protocol.md 7.2).
type tenantInfo struct {
	TenantID    string `json:"TenantId"`
	ClientAppID string `json:"ClientAppId"`
	ResourceURI string `json:"ResourceUri"`
	Authority   string `json:"Authority"` // issuer of the tenant's tokens, where discovery begins
}

// tenant answers AADAuthInfo?TenantID=. Every tenant that is not onboarded for sign-in
// gets one and the same answer (S2, product.md 1.1 row 11).
func (g *Gateway) tenant(w http.ResponseWriter, r *http.Request, x *exchange) error {
	asked, err := tenantAsked(x.path.Query)
	if err != nil {
		return err
	}
	for _, t := range g.state.Tenants() {
		if !t.Disabled && strings.EqualFold(t.ID, asked) {
			return g.answerJSON(w, r, x, tenantInfo{t.ID, t.ClientApp, t.Resource, t.Authority()})
		}
	}
	return catalog.Errorf(catalog.GatewayTenantUnknown, "no such tenant is onboarded")
}

// maxTenantQuery bounds the query before it is read; a tenant's id has 36 characters.
const maxTenantQuery = 256

func tenantAsked(query string) (string, error) {
	if len(query) <= maxTenantQuery {
		for pair := range strings.SplitSeq(query, "&") {
			if name, value, _ := strings.Cut(pair, "="); strings.EqualFold(name, "TenantID") && value != "" {
				return value, nil
			}
		}
	}
	return "", catalog.Errorf(catalog.GatewayTenantUnknown, "the query names no TenantID")
}
