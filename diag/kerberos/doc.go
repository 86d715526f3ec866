// Package kerberos looks at Windows authentication step by step, from a client's or a
// server's seat, and names what keeps a computer from proving its account.
//
// Start with [New]: it takes what a person said ([Options]) and returns the checks in
// the order in which a real client comes by them. From a client's seat those are the
// name, the KDC, the clocks, the login, the ticket with the way of referrals, and the
// request itself. From a server's seat they are the keytab, the name, the KDC, the
// clocks, and whether the KDC's present key is in the keytab. Both end with the
// directory: who owns the service name, what kind of trust there is.
//
// The checks talk to the server that was named, to the KDCs of the realms on the way,
// and to the directory server that was named or that DNS gives for the realm; to nobody
// else. They are a client's own steps, so nothing changes anywhere; KDC and server log
// them as they log a client. A wrong clock is reported and then corrected for, so that
// the checks after it can still find what else is wrong.
//
// The package is not the client's Kerberos (client/kerberos) nor the server's
// (auth/kerberos): it takes each step apart to say which one fails.
package kerberos
