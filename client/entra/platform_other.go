//go:build !windows

package entra

func platformJoinState() (JoinState, error) { return ReadJoinState(joinStateFile) }

// system returns the platform's own way to a device token; there is none here.
func system() Signer { return nil }
