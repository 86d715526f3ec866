// Package preflight says before anything is deployed whether a gateway can be: the name by
// the rules of S3, DNS, the certificate, the machine, and whether a connector would reach
// both of its ends (product.md 3.1).
//
// Start with [New]. Nothing is changed anywhere: a port is opened and closed again, names
// are looked up, certificates are read, the network is asked with what a browser would ask.
//
// The package is not for a gateway that runs: that is package diag/analyze.
package preflight
