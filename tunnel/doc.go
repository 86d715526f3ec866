// Package tunnel carries HTTP backwards: the side that dialled serves, the side
// that accepted asks. So a machine that nobody can reach answers requests over the
// connections that it opened itself.
//
// The conversation on one connection, whose TLS handshake with [ALPN] is done:
//
//	connector  dials, calls [Serve] with an http.Handler
//	gateway    accepts, calls [Hub.Add]
//	gateway    HTTP/2 client preface, then one stream for each request
//	both       a ping when nothing arrives; a peer that is silent is dropped
//	connector  GOAWAY when it stops; requests in flight end, new ones go elsewhere
//
// Start from [Hub] on the accepting side, which is an http.RoundTripper over all
// live connections, and from [Serve] on the dialling side. The framing is HTTP/2 by
// net/http and may change behind these two.
//
// The package is not for authentication: who is at the other end is decided by TLS
// before a connection comes here. It knows nothing of the protocol that it carries.
package tunnel
