package mp

import (
	"context"
	"net/http"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/site"
	"postern/token"
)

// followRevocations ends, until ctx ends, the requests and connections of what the site revokes.
func (m *ManagementPoint) followRevocations(ctx context.Context) {
	moved := m.site.Watch(ctx)
	for {
		m.cut()
		select {
		case <-ctx.Done():
			return
		case <-moved:
		}
	}
}

func (m *ManagementPoint) cut() {
	if requests, connections := m.inflight.Cut(); requests+connections > 0 {
		m.log.Info("cut off what was revoked", "requests", requests, "connections", connections)
	}
}

// hold keeps an admitted request where a revocation finds it. One that has proved nothing cannot be revoked. A stream of the site state ends by itself,
// after the line that revokes its connector.
func (v *visit) hold() error {
	if v.route.endpoint == ccm.EndpointState && v.r.Method == http.MethodGet {
		return nil
	}
	return v.holdBy(auth.ClaimsOf(v.proof))
}

// holdDevice keeps a request where the revocation of its device finds it, once a signature inside the message or in the headers has said whose it is.
func (v *visit) holdDevice(device site.Device) error {
	if v.held == device.Key {
		return nil // by its token
	}
	return v.holdBy(token.Claims{Key: device.Key})
}

func (v *visit) holdBy(claims token.Claims) error {
	use := auth.Use{Claims: claims, Connector: v.hop.pin}
	if use == (auth.Use{}) {
		return nil
	}
	under, end, err := v.mp.inflight.Begin(v.w, v.r, use)
	if err != nil {
		return err
	}
	v.r, v.release, v.held = under, end, claims.Key
	return nil
}

// let ends what hold began.
func (v *visit) let() {
	if v.release != nil {
		v.release()
	}
}

// revoked is why the request was ended while it was under way, or nil.
func (v *visit) revoked() error {
	if cause := context.Cause(v.r.Context()); v.release != nil && catalog.CodeOf(cause) != "" {
		return cause
	}
	return nil
}
