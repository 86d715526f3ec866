//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"postern/internal/role"
)

// figure is one row: what was measured, and what was aimed for.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Below float64 `json:"aim_below,omitempty"`
	Error string  `json:"error,omitempty"`
}

// figures measures the start of the lab, the size of the program, and the memory and time that the roles need.
func figures(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("figures", flag.ContinueOnError)
	postern := flags.String("postern", "postern", "the program to measure, built as it is released")
	idle := flags.Int("connections", 2000, "idle connections")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	date, here := time.Now().UTC(), thisMachine()
	all, err := programFigures(ctx, *postern)
	if err != nil {
		return err
	}
	running, err := runningFigures(ctx, *postern, *idle)
	all = append(all, running...)
	printFigures(os.Stdout, date, here, all)
	content, jsonErr := json.Marshal(map[string]any{"date": date, "machine": here, "figures": all})
	fmt.Printf("\n%s\n", content)
	return errors.Join(err, jsonErr)
}

func printFigures(w io.Writer, date time.Time, here machine, all []figure) {
	fmt.Fprintf(w, "%s, %d cores, %s, load before %s, %s\n\n", here.CPU, here.Cores, here.Go, here.Load, date.Format(time.RFC3339))
	fmt.Fprintln(w, "| figure | value | aim |\n| --- | ---: | ---: |")
	for _, f := range all {
		aim, value := "", fmt.Sprintf("%.3g %s", f.Value, f.Unit)
		if f.Below > 0 {
			aim = fmt.Sprintf("< %g %s", f.Below, f.Unit)
		}
		if f.Error != "" {
			value = f.Error
		}
		fmt.Fprintf(w, "| %s | %s | %s |\n", f.Name, value, aim)
	}
}

const labRuns = 3

// programFigures needs no hierarchy of ours: the lab brings its own.
func programFigures(ctx context.Context, postern string) ([]figure, error) {
	file, err := program(postern)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	lab := figure{Name: "`postern lab --once --json`, whole, median of 3", Unit: "s", Below: 3}
	var runs []float64
	for range labRuns {
		seconds, err := timeLab(ctx, file)
		if err != nil {
			lab.Error = strings.ReplaceAll(err.Error(), "\n", ": ")
			break
		}
		runs = append(runs, seconds)
	}
	lab.Value = median(runs)
	return []figure{{Name: "binary, stripped", Value: float64(info.Size()) / 1e6, Unit: "MB", Below: 40}, lab}, nil
}

// timeLab runs the lab once, from the start of the process to its end.
func timeLab(ctx context.Context, postern string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	begun := time.Now()
	out, err := exec.CommandContext(ctx, postern, "lab", "--once", "--json").Output()
	took := time.Since(begun).Seconds()
	var report struct {
		OK    bool
		Steps []struct {
			Hop, Error string
			OK         bool
		}
	}
	if jsonErr := json.Unmarshal(out, &report); jsonErr != nil {
		return 0, fmt.Errorf("the lab did not print its report: %w", errors.Join(err, jsonErr))
	}
	for _, step := range report.Steps {
		if !step.OK {
			return 0, fmt.Errorf("the lab failed at %s: %s", step.Hop, step.Error)
		}
	}
	return took, err
}

// settle is how long processes are left alone before their memory is read.
const settle = 4 * time.Second

func runningFigures(ctx context.Context, postern string, idle int) (all []figure, err error) {
	g, err := newGroup()
	if err != nil {
		return nil, err
	}
	defer g.stop()
	h, err := startHierarchy(ctx, g, postern)
	if err != nil {
		return nil, err
	}
	targets, err := startTargets(h)
	if err != nil {
		return nil, err
	}
	nginx, own := targets[0], targets[len(targets)-1]
	pause(ctx, settle)
	for _, p := range []*process{h.managementPoint, h.gateway, h.connector} {
		used, err := usageOf(p)
		if err != nil {
			return all, err
		}
		all = append(all, figure{Name: p.name + ", idle, RSS", Value: used.resident, Unit: "MB", Below: 40})
	}
	for _, measure := range []func() ([]figure, error){
		func() ([]figure, error) {
			return h.idleFigures(ctx, idle, map[string]*target{"gateway": own, "nginx": nginx})
		},
		func() ([]figure, error) { return h.requestFigures(ctx, own) },
	} {
		more, err := measure()
		all = append(all, more...)
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// idleFigures opens connections that do one request each and then nothing, and divides what the memory grew by.
func (h *hierarchy) idleFigures(ctx context.Context, count int, of map[string]*target) (all []figure, err error) {
	for _, name := range []string{"gateway", "nginx"} {
		t, counted := of[name], h.gateway
		if name != "gateway" {
			counted = t.processes[0]
		}
		before, err := usageOf(counted)
		if err != nil {
			return all, err
		}
		open, err := h.openIdle(ctx, t, count)
		if err == nil {
			pause(ctx, settle)
		}
		after, usageErr := usageOf(counted)
		for _, c := range open {
			c.Close()
		}
		if err = errors.Join(err, usageErr, ctx.Err()); err != nil {
			return all, fmt.Errorf("%d idle connections to %s: %w", count, name, err)
		}
		f := figure{Name: fmt.Sprintf("%s, each of %d idle TLS connections", name, count), Value: (after.resident - before.resident) * 1000 / float64(count), Unit: "KB"}
		all = append(all, f)
	}
	return all, nil
}

// perSource is how many connections come from one address: a gateway takes 512.
const perSource = 400

// openIdle opens connections from addresses of 127.0.0.0/8, sends one request on each, and keeps them.
func (h *hierarchy) openIdle(ctx context.Context, t *target, count int) ([]*connection, error) {
	s := scenarios(1)[0]
	r, pool := h.request(s), t.proofs[s.name]
	if pool != nil {
		if err := pool.fill(ctx, count); err != nil {
			return nil, err
		}
	}
	open, failed := make([]*connection, count), make([]error, count)
	var work sync.WaitGroup
	room := make(chan struct{}, 8)
	for i := range count {
		room <- struct{}{}
		work.Go(func() {
			defer func() { <-room }()
			proof := t.anyProof
			if pool != nil {
				proof, _ = pool.take()
			}
			c, err := dial(ctx, t.address, fmt.Sprintf("127.0.0.%d", 2+i/perSource))
			if err == nil {
				open[i], err = c, c.do(r, proof)
			}
			failed[i] = err
		})
	}
	work.Wait()
	kept := make([]*connection, 0, count)
	for _, c := range open {
		if c != nil {
			c.in, c.out, c.rub = nil, nil, nil // the driver needs memory too
			kept = append(kept, c)
		}
	}
	return kept, errors.Join(failed...)
}

// requestFigures says what one small request costs each of the two processes, and what they hold after many.
func (h *hierarchy) requestFigures(ctx context.Context, own *target) (all []figure, err error) {
	s := scenarios(3)[0]
	processes := []*process{h.gateway, h.connector}
	type reading struct{ cpu, resident, allocated float64 }
	read := func() (readings []reading, err error) {
		for _, p := range processes {
			used, err := usageOf(p)
			if err != nil {
				return nil, err
			}
			allocated, err := h.allocated(ctx, p)
			if err != nil {
				return nil, err
			}
			readings = append(readings, reading{used.cpu, used.resident, allocated})
		}
		return readings, nil
	}
	if err := own.proofs[s.name].fill(ctx, own.wanted(s)); err != nil {
		return nil, err
	}
	before, err := read()
	if err != nil {
		return nil, err
	}
	done, err := load(ctx, own, s, h.request(s))
	if err == nil && done.Errors > 0 {
		err = errors.New(done.FirstError)
	}
	if err != nil {
		return nil, err
	}
	after, err := read()
	if err != nil {
		return nil, err
	}
	requests := float64(done.Requests + s.connections)
	for i, p := range processes {
		all = append(all,
			figure{Name: p.name + ", CPU for a post2k request", Value: (after[i].cpu - before[i].cpu) / requests * 1e6, Unit: "us"},
			figure{Name: p.name + ", memory allocated for a post2k request", Value: (after[i].allocated - before[i].allocated) / requests / 1000, Unit: "KB"},
			figure{Name: fmt.Sprintf("%s, RSS after %.0f post2k requests", p.name, requests), Value: after[i].resident, Unit: "MB"})
	}
	return all, nil
}

// allocated reads how many bytes a role has allocated since its start, from its metrics.
func (h *hierarchy) allocated(ctx context.Context, p *process) (float64, error) {
	door := role.Knock(h.configs[p])
	if door == nil {
		return 0, p.alive()
	}
	var text bytes.Buffer
	if err := door.Metrics(ctx, &text); err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(&text)
	for lines.Scan() {
		if value, found := strings.CutPrefix(lines.Text(), "go_memstats_alloc_bytes_total "); found {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, errors.New("the metrics do not say what was allocated")
}
