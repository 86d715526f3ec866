//go:build linux

// Command bench measures Postern beside other programs, in one run on one machine. README.md says how to run it and what came out.
//
// `bench path` sends requests through client TLS, gateway, tunnel and connector to a backend, and through other proxies to the same
// backend, in turn. `bench figures` measures the start of the lab, the binary, and memory. `bench saturate` measures forwarding beside a token
// service that has as much to do as it can. All start every process they need on loopback and stop it again. `bench backend`, `bench proxy` and
// `bench spin` are such processes.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
)

// longest is how long a run may take, whatever happens.
const longest = 6 * time.Minute

func main() {
	runtime.LockOSThread()                                                                                  // processes end with the thread that started them, and this one lives to the end
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGPIPE) // a closed pipe must not skip the end
	ctx, cancel := context.WithTimeout(ctx, longest)
	err := run(ctx, os.Args[1:])
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	acts := map[string]func(context.Context, []string) error{"path": path, "figures": figures, "saturate": saturate}
	servers := map[string]func(context.Context, []string) error{"backend": backend, "proxy": proxy, "spin": spin, "exchange": exchangeForever}
	var name string
	if len(arguments) > 0 {
		name, arguments = arguments[0], arguments[1:]
	}
	if serve, ok := servers[name]; ok {
		return serve(ctx, arguments)
	}
	act, ok := acts[name]
	if !ok {
		return fmt.Errorf("usage: bench path|figures|saturate [flags]; ./run.sh does the first two")
	}
	debug.SetGCPercent(400) // the driver shares the cores with what it measures
	return act(ctx, arguments)
}
