// Package gateway is the public edge: the one port that devices on the internet and
// connectors inside reach. It decides from a request's path and proofs alone whether
// the request goes on, and carries what goes on over a connector's connection.
//
// One request, in order: [ccm.ParsePath] reads the path; the one table of [Routes] says
// which proof it needs; package auth verifies the proof with the site's public keys; the
// site state says whether the role publishes the endpoint; [tunnel.Hub] carries the
// request, whose path and body nobody here changes. Start from [Gateway], made by [New].
//
// The gateway mints nothing and stores no device (design decision 4). All that it knows
// is the site state, a document signed by the site root, which it follows through every
// connector and which no connector can alter. What is checked here is checked again at
// the management point.
//
// It is not for rules about devices, which are the site's, nor for the rewriting of
// paths, which is the connector's.
package gateway
