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
//	keys-made        what proves the device is exchanged for a token at CCM_STS
//	token-exchanged  the registration message goes to ccm_system_tokenauth
//	pending          the site has taken it and has not decided: confirm until it has
//	registered       a full CCM token and the self-prove token, then policy
//	ready
//
// Each state is written down before the next act begins, so an agent that was stopped
// anywhere goes on from there with the same key: the site counts a bulk token once for a
// key, however often it is exchanged. The bulk token itself is kept in memory only.
//
// # What proves the device
//
// In this order (S2, product.md 2.1), and what is used is told as a step and in the log:
//
//	certificate   a valid one of the company ([CertificateChoice]): shown in TLS, and at a gateway proved
//	              by its key again, since the management point sees only what the gateway tells.
//	              No tokens. An RSA key signs the messages too, and is then what the site knows.
//	Entra         a token of the device's tenant, then of a user ([Entra]). The gateway says for which
//	              applications of the site. Renewed the same way; the self-prove token is for when the
//	              provider is away.
//	bulk token    and from then on the self-prove token
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
// Under an authority it is looked whether the server's certificate is revoked (package
// revocation). /NoCRLCheck leaves that out while enrolling, and covers neither the name nor
// the authority nor anything later. Under the site root there are no lists: its certificates
// last a year at most. What the site has blocked before, its own roles learn from the signed
// site state; a device does not, and follows a new site root when the old one is given up.
//
// Trust on first use is for the inside and must be asked for: the root key of the first
// management point that answers is pinned, and everybody hears of it.
//
// The package is not for servers, reads no server's files, and knows nothing of the
// site's rules: what a device may have is the site's business.
package client
