// Package lab runs the whole hierarchy on loopback: site, management point, gateway and connector with real TLS and real listeners, and devices
// that live in it. `postern lab` shows it to people; tests drive it.
//
// [Start] brings the hierarchy up from nothing in a folder, by the same acts that a deployment takes. A [Story] is a table of steps told on it.
// It is no test double: every role is the real one, started by internal/role.
package lab
