package gateway

import (
	"encoding/json"
	"net/http"
	"strconv"

	"postern/catalog"
	"postern/ccm"
)

// metadata answers ServiceMetadata, with which people and clients probe the certificate
// and the way (S4). The field names are ours (protocol.md 7.2). It reveals neither
// version nor site nor names (C19).
func (g *Gateway) metadata(w http.ResponseWriter, r *http.Request, x *exchange) error {
	body, _ := json.Marshal(struct { // two simple fields always marshal
		Service string `json:"service"`
		Healthy bool   `json:"healthy"`
	}{"postern-gateway", g.healthy()})
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

// tenant answers AADAuthInfo: no tenant is onboarded, and every one gets the same
// answer (S2, product.md 1.1 row 11).
func (g *Gateway) tenant() error {
	return catalog.Errorf(catalog.GatewayTenantUnknown, "no such tenant is onboarded")
}
