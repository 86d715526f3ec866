package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"postern/internal/swarm"
)

func newSwarm(s *session) *cobra.Command {
	var options swarm.Options
	c := &cobra.Command{
		Use:   "swarm",
		Short: "Simulate a fleet of devices on loopback and measure what it costs",
		Long: `Starts a management point, a gateway and a connector in a process of their own, and a fleet of devices in this one. They enrol with a bulk
registration token, renew both tokens, go inside and out again, lose their gateway all at once, sleep a year, and some come back by their key alone.
The protocol, the listeners and TLS are the real ones; the devices are simulated. Nothing listens beyond this machine, and nothing is kept.

What it costs on a machine of two cores: about five minutes, 1 GB of memory and 1 GB of disk in the temporary folder for 10000 devices.`,
		Example: `  postern swarm                        # 10000 devices
  postern swarm --devices 500          # a small one: less than two minutes, as the storm has its own time
  postern swarm --json > swarm.json    # the same as one JSON document`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return s.swarm(c.Context(), options) },
	}
	c.Flags().IntVar(&options.Devices, "devices", 10_000, fmt.Sprintf("how many, from %d to %d", swarm.MinDevices, swarm.MaxDevices))
	c.Flags().IntVar(&options.Sleepers, "sleepers", 0, "how many of them come back after a year (default: a twentieth)")
	c.Flags().BoolVar(&s.asJSON, "json", false, "print one JSON document and nothing else")
	c.AddCommand(newSwarmServers(s))
	return c
}

// newSwarmServers is what the command above runs beside itself.
func newSwarmServers(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "servers DIR", Short: "The servers of a simulated fleet; `postern swarm` starts them", Hidden: true, Args: cobra.ExactArgs(1),
		Example: "  postern swarm servers /tmp/fleet",
		RunE: func(c *cobra.Command, arguments []string) error {
			return swarm.Serve(c.Context(), arguments[0], os.Stdin, s.out)
		},
	}
}

func (s *session) swarm(ctx context.Context, options swarm.Options) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "swarm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	options.Servers = []string{program, "swarm", "servers", dir}
	line := &progressLine{w: s.err}
	if file, ok := s.err.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		options.Progress = line.show
	}
	report, err := swarm.Run(ctx, options)
	line.clear()
	if err != nil {
		return err
	}
	if s.asJSON {
		encoder := json.NewEncoder(s.out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report)
	} else {
		writeSwarm(s.out, report)
	}
	if err == nil && swarmFailed(report) > 0 {
		return exitError{exitFailed}
	}
	return err
}

func swarmFailed(r swarm.Report) (n int) {
	for _, act := range r.Acts {
		n += act.Failed
	}
	return n
}

// progressLine is one line of a terminal, written over and over.
type progressLine struct {
	w     io.Writer
	mu    sync.Mutex
	last  time.Time
	width int
}

func (p *progressLine) show(act string, done, all int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.last) < 100*time.Millisecond && done < all {
		return
	}
	p.last = time.Now()
	text := fmt.Sprintf("%s: %d of %d", act, done, all)
	fmt.Fprintf(p.w, "\r%-*s", p.width, text)
	p.width = len(text)
}

func (p *progressLine) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.width > 0 {
		fmt.Fprintf(p.w, "\r%*s\r", p.width, "")
	}
}

func writeSwarm(w io.Writer, r swarm.Report) {
	fmt.Fprintf(w, "A fleet of %d devices, %.0f s.\n\n", r.Devices, r.Seconds)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "act\tdevices\trequests\tretries\tfailed\tseconds\tdevices/s\tp50 ms\tp99 ms\tserver CPU ms/device\tserver MB\t")
	for _, a := range r.Acts {
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%.1f\t%.0f\t%.1f\t%.1f\t%.2f\t%.0f\t\n", a.Name, a.Devices, a.Requests, a.Retries, a.Failed, a.Seconds, a.PerSecond, a.P50, a.P99, a.ServerCPU, a.ServerMB)
	}
	table.Flush()
	for _, a := range r.Acts {
		if a.Error != "" {
			fmt.Fprintf(w, "\n%s: the first of %d that failed: %s", a.Name, a.Failed, a.Error)
		}
	}
	fmt.Fprintf(w, "\nThe gateway was away for %.1f s while every device waited for an answer. The last device was back %.1f s after it went:\n\n", r.Away, r.AllBack)
	writeHistogram(w, r.Storm, r.StormSlice)
	fmt.Fprintf(w, "\n%d came back after a year by their key alone and were held at level known; %d were approved again after a fresh registration.\n", r.Quarantined, r.Lifted)
}

const histogramWidth = 60

// writeHistogram draws a bar for each slice of time from the first that has something.
func writeHistogram(w io.Writer, counts []int, slice float64) {
	most, first := 0, -1
	for i, n := range counts {
		most = max(most, n)
		if first < 0 && n > 0 {
			first = i
		}
	}
	if most == 0 {
		return
	}
	for i := first; i < len(counts); i++ {
		fmt.Fprintf(w, "%6.0f s %6d %s\n", float64(i)*slice, counts[i], strings.Repeat("#", (counts[i]*histogramWidth+most-1)/most))
	}
}
