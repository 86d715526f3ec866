// Package postern is the root of the module and holds only the tests that watch over
// the whole: who may import whom, and that every failure has its code. The program is
// cmd/postern; start reading at docs/architecture.md.
//
// Postern is the self-hosted cloud management gateway: devices on the internet prove
// who they are and reach their management point, and no firewall port is opened
// inwards.
package postern
