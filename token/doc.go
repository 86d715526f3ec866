// Package token makes and checks what the site signs for others: the tokens of
// devices and the documents by which the roles trust each other.
//
// Start with [Ring], which holds the site's keys and signs, and [Verifier], which
// holds public keys and verifies. There are three kinds of token, each with a key,
// a header type and an audience of its own, so that none passes as another:
//
//   - bulk registration tokens, with exactly the header and claims that the documents
//     show (S3, protocol.md 6.3): RS256, found by x5t;
//   - CCM tokens, eight hours (S2), ES256, bound to the device key;
//   - self-prove tokens, ninety days (S3), ES256, bound to the device key.
//
// A token is used together with a proof of the device key: [SignProof] and
// [VerifyProof] (RFC 9449), or [SignAssertion] and [VerifyAssertion] (RFC 7523).
// The site's state, its heartbeat and a gateway's acknowledgement are signed
// documents as well: [SignState], [SignBeat], [SignAck].
//
// The package knows no HTTP, remembers nothing between two calls and reads no
// clock: reading a request, replay memory and revocation are in package auth. Which
// device gets which token is decided in package site.
package token
