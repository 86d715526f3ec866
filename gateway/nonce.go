package gateway

import (
	"net/http"

	"postern/token"
)

// giveNonce puts a nonce of the site into the answer to a proof that was made by a wrong clock (RFC 9449 8). A gateway that has not heard the site for five
// minutes has none to give.
func (g *Gateway) giveNonce(header http.Header, err error) {
	if !token.AsksNonce(err) {
		return
	}
	if nonce := g.state.Nonce(); nonce != "" {
		header.Set("DPoP-Nonce", nonce)
		header.Set("WWW-Authenticate", `DPoP algs="RS256 PS256 ES256", error="use_dpop_nonce"`)
	}
}
