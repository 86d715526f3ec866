// Package auth turns what an HTTP request or a TLS connection shows into what it
// proves.
//
// Start with [Bearer], which reads the site's own tokens together with their proof
// of possession; it is the same code at gateways and at management points, with
// other keys, replay memory and revocation behind three small interfaces. [State] is
// what a gateway or connector knows of the site; it is such keys and such revocation.
// [Memory] is a replay memory for one node. [Certificates] judges the company's
// certificates that devices show. [ClientVerifier] and [ServerVerifier]
// judge the role certificates by which gateway, connector and management point know
// each other.
//
// A wrong credential is always an error: nothing here falls through to a weaker proof
// or to anonymous. Which route accepts what is said by the edges in their route
// tables; what a proof is worth is decided in package site.
package auth
