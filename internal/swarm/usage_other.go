//go:build !unix

package swarm

import "time"

// spent is the processor time of this process so far; it is told on Unix only.
func spent() time.Duration { return 0 }

// resident is the memory of this process, in bytes; it is told on Linux only.
func resident() int64 { return 0 }
