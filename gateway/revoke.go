package gateway

import (
	"context"
	"net"
	"net/http"

	"postern/auth"
	"postern/catalog"
	"postern/token"
)

// cutOff counts what revocations have ended while it was under way.
type cutOff struct{ requests, connections counter }

// connContext is for http.Server.ConnContext.
func (g *Gateway) connContext(ctx context.Context, c net.Conn) context.Context {
	return g.inflight.ConnContext(withConnection(ctx, c), c)
}

// hold keeps an admitted request where a revocation finds it, until end is called. One that
// has proved nothing cannot be revoked.
func (g *Gateway) hold(w http.ResponseWriter, r *http.Request, x *exchange) (under *http.Request, end func(), err error) {
	claims := auth.ClaimsOf(x.proof)
	if claims == (token.Claims{}) {
		return r, func() {}, nil
	}
	return g.inflight.Begin(w, r, auth.Use{Claims: claims})
}

// cut ends the requests and connections of what the state revokes.
func (g *Gateway) cut() {
	requests, connections := g.inflight.Cut()
	g.cutOff.requests.add(int64(requests))
	g.cutOff.connections.add(int64(connections))
	if requests+connections > 0 {
		g.log.Info("cut off what was revoked", "requests", requests, "connections", connections)
	}
}

// revoked reports whether a request was refused because what it proved is revoked: its
// connection has no further use.
func revoked(err error) bool {
	switch catalog.CodeOf(err) {
	case catalog.KeyBlocked, catalog.TokenBlocked, catalog.EntraTenantDisabled:
		return true
	}
	return false
}
