// Package entra judges tokens of Microsoft Entra, and of any other OpenID provider
// that a site has onboarded as a tenant, and keeps the providers' keys.
//
// Start with [Validator]: it turns a token into what the token proves, a
// [postern/proof.Cloud]. Gateways and management points use the same one; all that it
// needs of a provider is in [postern/token.Tenant], so it dials nobody. [Source] is for
// the management point: it fetches the tenants' keys, from the issuers that an
// administrator configured and from nowhere else, and the site publishes them.
//
// The package reads no HTTP request and binds no key: a token proves its bearer only
// together with the proof of possession that package auth asks for. It gets no tokens
// either; that is the client's part.
package entra
