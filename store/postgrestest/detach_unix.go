//go:build unix

package postgrestest

import (
	"os/exec"
	"syscall"
)

func detach(c *exec.Cmd, a *account) {
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if a != nil {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
}
