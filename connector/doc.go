// Package connector is the site's outbound arm: it stands inside, opens connections to
// each gateway, and passes on what comes over them to the management points that the
// site publishes.
//
// Start from [New] and [Connector.Run]. The walk of one request is in forward.go: the
// path is understood by ccm, looked up in the table of the signed site state (exact
// endpoint to exact backend), and sent there as a fresh request with listed headers.
// keep.go holds the connections to gateways, dial.go and proxy.go open one, state.go
// follows the site state and relays it to gateways.
//
// The connector believes the site root alone. A gateway can ask only for what the
// state publishes, cannot name a host, and gets no credential of the connector's.
//
// Towards management points it shows the role certificate that the site gave it: that is
// what makes a Postern management point believe what it says of its devices. Management
// points of another make know company certificates only; for those certificate.go chooses
// one of the machine's by the filters of the documents (S4).
//
// The package is not for deciding who a device is: gateway and management point both
// do that. It never looks inside a body.
package connector
