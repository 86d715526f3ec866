package mp

import (
	"bytes"
	"encoding/json"

	"postern/catalog"
)

// The rate at which connectors may join, for the whole management point: a code has 120 bits, so this protects the database, not the code.
const (
	joinsPerSecond = 2
	joinBurst      = 10
)

// joinRequest is what `postern connector join` sends (design decision 15).
type joinRequest struct {
	Code string `json:"code"`
	CSR  []byte `json:"csr"` // DER, base64 in JSON
}

// joinReply is its answer: the role certificate, leaf first, site root last.
type joinReply struct {
	Chain           [][]byte `json:"chain"` // DER, base64 in JSON
	SiteCode        string   `json:"site_code"`
	ManagementPoint string   `json:"management_point"` // where connectors reach it
}

// join redeems a connector's one-time code.
func (v *visit) join() {
	if !v.mp.joins.AllowN(v.mp.now(), 1) {
		v.refuse(catalog.Errorf(catalog.JoinLimited, "more than %d attempts a second", joinsPerSecond))
		return
	}
	ask, err := v.joinRequest()
	if err != nil {
		v.refuse(err)
		return
	}
	chain, name, err := v.mp.site.Join(v.r.Context(), ask.Code, ask.CSR)
	if err != nil {
		v.refuse(err)
		return
	}
	v.mp.log.InfoContext(v.r.Context(), "connector joined", "connector", name, "address", v.hop.address)
	v.note("", "peer", name, "connector joined")
	v.replyJSON(joinReply{Chain: chain, SiteCode: string(v.mp.site.SiteCode()), ManagementPoint: v.mp.internalURL()})
}

func (v *visit) joinRequest() (joinRequest, error) {
	var ask joinRequest
	body, err := v.body()
	if err != nil {
		return ask, err
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&ask); err != nil || decoder.More() {
		return ask, catalog.Errorf(catalog.RequestMalformed, "send one JSON object with code and csr") // the decoder's error may quote the code
	}
	if len(ask.Code) == 0 || len(ask.Code) > 64 || len(ask.CSR) == 0 {
		return ask, catalog.Errorf(catalog.RequestMalformed, "code and csr are needed")
	}
	return ask, nil
}

// internalURL is where connectors reach this management point.
func (m *ManagementPoint) internalURL() string {
	for _, point := range m.site.ManagementPoints() {
		if point.RoleID == m.config.RoleID {
			return point.InternalURL
		}
	}
	return "https://" + m.config.FQDN
}
