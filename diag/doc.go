// Package diag says why something does not work, and what to do about it.
//
// Start with [Check] and [Run]: a diagnosis is a list of checks run in order, each of
// which returns findings; a finding that is not a pass has a code of the catalogue,
// from which its title and remedy come. The checks themselves live below: package
// diag/kerberos looks at Windows authentication from a client's or a server's seat,
// diag/analyze at a gateway from outside or a role from the site's seat, and
// diag/preflight at what must be true before a gateway is deployed. Package
// diag/explain reads logs instead, and diag/scrub takes secrets out of what leaves.
//
// The package is not for what a running role says of its own health, and it changes
// nothing anywhere.
package diag
