// Package entra gets tokens for a device that has joined a tenant of Microsoft Entra, or
// of another OpenID provider, with what the join has left on the device.
//
// Start from [New], which gives a [Broker] for a [JoinState]; the state comes from
// [PlatformJoinState] or [ReadJoinState]. What happens for one token (S2):
//
//	device   client credentials, proved by the workplace-join certificate's key
//	user     when that fails: silently with what an earlier sign-in left,
//	         else by a code that a person enters on another screen
//	neither  stops, and says what to do
//
// A token is kept, sealed, until it ends. It is renewed before that, by one exchange for
// all who wait, at a moment that differs between devices; while the provider is down the
// one at hand goes on.
//
// # The join state file
//
// Where the platform keeps no join state, a file says what there is to say. It belongs to
// its owner, nobody else may write to it, and it holds no secret:
//
//	{
//	  "join_type": "entra",              entra, hybrid, registered or none
//	  "tenant_id": "9aaf466a-...",
//	  "device_id": "8d2b4ff9-...",
//	  "provider":  "entra",              or openid: any other provider
//	  "authority": "https://...",        of an openid provider its issuer
//	  "ca_file":   "provider-ca.pem",    where the system does not know the provider's authority
//	  "workplace_join": {"certificate": "wpj.pem", "key": "wpj.key"},
//	  "device_sid": "S-1-5-21-...",      of a hybrid joined device
//	  "user": {"name": "meg@contoso.com", "object_id": "e8838041-...", "sid": "S-1-5-21-..."}
//	}
//
// The provider is the join's own, whatever a site names: a gateway must not say where a
// device takes its assertion, or a person a password.
//
// File names are taken from the folder of the join state file.
//
// # Libraries
//
// Entra is asked through Microsoft's own library. That library goes to the version 2.0
// endpoints whatever the authority, adds scopes that others refuse, and writes the device
// code grant in a way of its own, so that an openid provider is asked through
// golang.org/x/oauth2 (RFC 6749, 7523, 8628, 8707) instead. There a device's own token
// needs a client with private_key_jwt, and a person's sign-in a public one.
//
// Entra gives a token for a certificate that the application knows. Windows' own way to a
// device token, by the primary refresh token, belongs to its broker; it would go behind
// [Signer] and is not written: see EntraNeedsBroker.
//
// The package judges no token (that is auth/entra, on the servers) and writes none in a
// log or an error.
package entra
