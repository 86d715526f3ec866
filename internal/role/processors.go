package role

import (
	"os"
	"runtime"
)

// UseProcessors lets one goroutine more run than Go would by itself, unless GOMAXPROCS says otherwise. A thread that waits for the disk in a
// commit keeps its place until the scheduler takes it away, and on a small machine that is half of it: registrations are a sixth
// faster for it on two cores. A management point's process calls it once, at its start.
func UseProcessors() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	}
}
