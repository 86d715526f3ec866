// Package kerberos proves a device to a management point with the machine's own Kerberos
// credential: the client's half of Windows authentication (RFC 4559, RFC 4178, RFC 4121).
//
// Start from [New], which gives a [Machine] from the machine's keytab or from a credential
// cache; it is a client.Negotiator. What happens for one proof:
//
//	AS exchange    keytab → ticket-granting ticket of the machine's realm (skipped with a cache)
//	TGS exchange   HTTP/<host> is asked of the machine's realm and followed through referrals
//	AP-REQ         in SPNEGO, mutual authentication asked for, bound to the TLS channel
//	AP-REP         the server's half; without it nothing that the server says is believed
//
// The name that is asked for is the host as the device was told it: it is never looked up
// backwards. Referrals come from the realms' own servers; the device guesses no realm.
//
// The package holds no key longer than its Machine lives and writes no credential cache.
// It is not the server's side (auth/kerberos), and not for Windows, where the system's own
// security support provider holds the machine's credential: one for it goes behind the
// same interface and is not written.
package kerberos
