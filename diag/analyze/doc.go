// Package analyze is the connection analyzer (product.md 3.8): it goes the way of a device
// to a gateway step by step, ours or Microsoft's, and names the step that fails.
//
// Start with [New]: it takes what a person said ([Options]) and returns the checks in the
// order in which a device comes by them: the name, the connection, the proxy where there is
// one, TLS, the certificate and its revocation, the gateway's own documents, the clocks, then
// the credentials that were given, and at last one request through every hop. [NewSite] does
// the same from the site's seat: what the roles say of themselves, and whether each gateway
// has confirmed what the site says.
//
// The checks are a client's own steps. A token leaves this machine only over a connection
// whose certificate was found good, and only to a gateway of ours; no finding holds any
// part of one but the facts that it states. Nothing is changed at the gateway; a device's
// state folder may get a renewed token, as by any other request.
//
// The package is not the client: it takes apart what package client does in one go, to say
// which part fails.
package analyze
