package mp

// renewPath is where a connector renews its certificate.
const renewPath = "/postern/renew"

// renewal is the answer to a connector that asks for a new certificate: leaf first, site root last.
type renewal struct {
	Chain [][]byte `json:"chain"` // DER, base64 in JSON
}

// renew gives a connector a new certificate for the key with which it stands here. Nothing is in the body: the connection is the request.
func (v *visit) renew() {
	chain, err := v.mp.site.RenewConnector(v.r.Context(), v.hop.connector, v.r.TLS.PeerCertificates[0].PublicKey)
	if err != nil {
		v.refuse(err)
		return
	}
	v.did("renewed the certificate of connector %s", v.hop.connector)
	v.note("", "peer", v.hop.connector, "connector certificate renewed")
	v.replyJSON(renewal{Chain: chain})
}
