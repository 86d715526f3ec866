package mp

import "postern/auth"

// How many requests to the token service may wait for their turn. A turn takes well under a millisecond, so that a full line is through within a
// second; what comes beyond is shed (users-and-threats.md R7). Those whose proofs have been checked stand in a line of their own, so that strangers
// do not push out what is nearly done.
const (
	maxVerifying = 1024
	maxSigning   = 1024
)

// turn runs what takes the processor for the token service when it is the request's turn.
func (v *visit) turn(g *auth.Gate, work func() error) error {
	return g.Do(v.r.Context(), func(leave func()) error {
		v.leave = leave
		defer func() { v.leave = nil }()
		return work()
	})
}

// endTurn gives the request's turn to another, if it has one.
func (v *visit) endTurn() {
	if v != nil && v.leave != nil {
		v.leave()
	}
}

// signing is the gate for what follows the check of the proof: strangers, who have proved nothing yet, stay in their own line.
func (v *visit) signing() *auth.Gate {
	if v.proof.Key == "" {
		return v.mp.verifying
	}
	return v.mp.signing
}
