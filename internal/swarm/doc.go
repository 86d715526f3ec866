// Package swarm runs a fleet of simulated devices against real servers on loopback: they enrol with a bulk registration token, renew, change between
// the two ways, lose their gateway, sleep a year and come back. It measures what that costs and how evenly a fleet comes back.
//
// Start at [Run]. The servers are the real roles (package role) in a process of their own ([Serve]), so that their time and memory are told apart from
// the fleet's. The devices speak the real protocol with keys of their own and verify the gateway's certificate, but they are not package client: ten
// thousand state folders would measure the disk. Their keys share primes, which makes ten thousand of them in seconds and would make none of them safe.
package swarm
