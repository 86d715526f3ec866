package realms

import (
	"os/exec"
	"syscall"
)

// dieWithParent makes the kernel end the program when we end, also when we are killed.
func dieWithParent(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
}
