// Package client is the agent on a device: it makes the device's keys, enrols it,
// keeps its tokens fresh, and talks to the management point for it, directly or
// through a gateway.
//
// Start from [Open], which gives the [Agent] of a state folder, and [Agent.Enrol], whose
// [Setup] comes from [ParseCommandLine]: ccmsetup's documented parameters and properties.
//
// # What Enrol does
//
//	new              keys and certificates are made here and never leave
//	keys-made        the bulk registration token is exchanged at CCM_STS
//	token-exchanged  the registration message goes to ccm_system_tokenauth
//	pending          the site has taken it and has not decided: confirm until it has
//	registered       a full CCM token and the self-prove token, then policy
//	ready
//
// Each state is written down before the next act begins, so an agent that was stopped
// anywhere goes on from there with the same key: the site counts a bulk token once for a
// key, however often it is exchanged. The bulk token itself is kept in memory only.
//
// # Inside
//
// The management point that is given is only the first to be asked (SMSMP, SMSMPLIST, /mp).
// It says which others the site has (.sms_aut?MPLIST); the device takes one of them, https
// before http, in an order of its own so that devices spread, and the next when one fails.
//
// Without a token the registration goes to ccm_system_windowsauth with the machine's
// Kerberos ticket, when there is a [Negotiator]: the server proves itself too before its
// answer counts. When that fails the device says so, in the log, in the record and to
// whoever listens, and registers at ccm_system by its key alone; then an administrator has
// to approve it. Enrolling again proves it later, or learns of the approval. The tokens
// come by an assertion of the registered key.
//
// # Whom it trusts
//
// A server shows a certificate for its role under the site root whose hash a person gave
// (design decision 15), or one under an authority that a person gave. On plain HTTP a
// management point signs each answer with that certificate's key instead; what the device
// sends there can be read on the way, and what it gets cannot be changed. Without one of
// the two nothing goes out on the internet path nor on plain HTTP.
//
// Trust on first use is for the inside and must be asked for: the root key of the first
// management point that answers is pinned, and everybody hears of it.
//
// The package is not for servers, reads no server's files, and knows nothing of the
// site's rules: what a device may have is the site's business.
package client
