// Package mp is the management point: the server that devices register with and get tokens, locations and policy from.
//
// Start with [New] and [ManagementPoint.Handler], one handler for each kind of [Listener]. [ManagementPoint.Routes] is the one table of
// addresses: dispatch reads it, `postern routes` prints it, and a proof that it does not name is refused. One request is a visit: where it
// comes from (hop.go), which route it takes (routes.go), what it proves (admit.go, certificate.go, windowsauth.go), then one conversation, each in a file of its own:
// messages to MP_ClientRegistration, MP_LocationManager and MP_PolicyManager (messages.go, register.go, location.go, policy.go), the token
// service (sts.go), .sms_aut (smsaut.go), the stream of the site state (state.go) and the joining of connectors (join.go).
//
// The package turns bytes into calls on package site and decides nothing about devices itself. It opens no port and no file but the
// readable copies of registrations; package role of the command wires it.
package mp
