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
// Inside, without a token, registration goes to ccm_system, and the tokens come by an
// assertion of the registered key.
//
// # Whom it trusts
//
// A server shows a certificate for its role under the site root whose hash a person gave
// (design decision 15), or one under an authority that a person gave. Nothing is trusted
// on first use, and on the internet path nothing goes out without one of the two.
//
// The package is not for servers, reads no server's files, and knows nothing of the
// site's rules: what a device may have is the site's business.
package client
