package mp

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"postern/catalog"
)

// renewPath is where a connector renews its certificate.
const renewPath = "/postern/renew"

// How often one connector may renew. Each renewal is an entry of the trust log; a connector asks once in nine months, and when the root was replaced.
const (
	renewEvery = time.Minute
	renewBurst = 10
)

// renewals limits the rate at which each connector renews. Only connectors that have joined take room in it.
type renewals struct {
	mu sync.Mutex
	by map[string]*rate.Limiter // by the connector's pin
}

// take answers RenewLimited when the connector with that pin has renewed too often.
func (r *renewals) take(pin string, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil {
		r.by = map[string]*rate.Limiter{}
	}
	if r.by[pin] == nil {
		r.by[pin] = rate.NewLimiter(rate.Every(renewEvery), renewBurst)
	}
	if !r.by[pin].AllowN(now, 1) {
		return catalog.Errorf(catalog.RenewLimited, "more than %d at once, or one in %s", renewBurst, renewEvery)
	}
	return nil
}

// renewal is the answer to a connector that asks for a new certificate: leaf first, site root last.
type renewal struct {
	Chain [][]byte `json:"chain"` // DER, base64 in JSON
}

// renew gives a connector a new certificate for the key with which it stands here. Nothing is in the body: the connection is the request.
func (v *visit) renew() {
	if err := v.mp.renewals.take(v.hop.pin, v.mp.now()); err != nil {
		v.refuse(err)
		return
	}
	chain, err := v.mp.site.RenewConnector(v.r.Context(), v.hop.connector, v.r.TLS.PeerCertificates[0].PublicKey)
	if err != nil {
		v.refuse(err)
		return
	}
	v.did("renewed the certificate of connector %s", v.hop.connector)
	v.note("", "peer", v.hop.connector, "connector certificate renewed")
	v.replyJSON(renewal{Chain: chain})
}
