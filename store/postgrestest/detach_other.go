//go:build !unix

package postgrestest

import "os/exec"

// detach does nothing: Debian's programs are not here, so that prepare has given up before.
func detach(*exec.Cmd, *account) {}
