// Package kerberos judges the Kerberos tokens of Windows authentication: an [Acceptor]
// has the keys of a keytab and says what a ticket proves (auth.Negotiator). Start with
// [LoadKeytab] and [New].
//
// It is built on the primitives of gokrb5 (ciphers, checksums, key derivation), not on
// that library's handler, which takes the client's realm from what the client wrote,
// notes replays under two locks and never proves the server to the client.
//
// A token is judged in this order; the first thing that is wrong ends it:
//
//  1. size, then the frame: SPNEGO (RFC 4178) or a GSS krb5 token by itself (RFC 4121)
//  2. the mechanism: Kerberos first in the list and its ticket with it; never NTLM, NegoEx
//  3. the request as a whole (RFC 4120 5.5.1), the service: never the KDC's own
//  4. the encryption type of the ticket, then a key: realm, type and version first, then
//     every key of that realm and type, because one account has many names
//  5. the times and flags of the ticket
//  6. the authenticator, with the key from the ticket
//  7. name and realm beside those that the KDC sealed: equal
//  8. the clock of the authenticator, with the difference in seconds
//  9. the realm, and every realm on the way, in the list; the form of the name
//  10. the GSS checksum and the channel binding (RFC 4121 4.1.1, RFC 5929)
//  11. the MIC over the list of mechanisms, when there is one
//  12. the PAC, when there is one: signature, client, time (MS-PAC)
//  13. that this authenticator was not used before; noted last, so that a token that is
//     refused for another reason takes no room in the memory
//
// Realms are compared byte for byte: Kerberos realm names are case-sensitive (RFC 4120 6.1).
// Addresses in tickets are not looked at, since they do not survive address translation
// and no KDC of today writes them.
//
// The package does not speak HTTP, does not decide about devices, and gets no tickets;
// the last is in client/kerberos.
package kerberos
