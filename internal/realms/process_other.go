//go:build !linux

package realms

import "os/exec"

// dieWithParent does nothing: only Linux has it. A KDC then outlives a program that is killed.
func dieWithParent(*exec.Cmd) {}
