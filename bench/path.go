//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"postern/ccm"
	"postern/internal/role"
	"postern/token"
)

// pathReport is what `bench path` found.
type pathReport struct {
	Date      time.Time `json:"date"`
	Machine   machine   `json:"machine"`
	Rounds    int       `json:"rounds"`
	Scenarios []string  `json:"scenarios"`
	Targets   []string  `json:"targets"` // the first is what the others are compared with
	Results   []result  `json:"results"`
}

// machine is where it was measured, and how busy the machine was with other work.
type machine struct {
	CPU   string `json:"cpu"`
	Cores int    `json:"cores"`
	Load  string `json:"load_before"` // of 1, 5 and 15 minutes
	Go    string `json:"go"`
}

func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version()}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load = strings.Join(strings.Fields(string(load))[:3], " ")
	}
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	return m
}

// path measures the way of a request, beside other proxies.
func path(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("path", flag.ContinueOnError)
	postern := flags.String("postern", "postern", "the program to measure")
	rounds := flags.Int("rounds", 5, "rounds of each scenario for each target")
	seconds := flags.Float64("seconds", 2.5, "length of a round; get64k takes two thirds of it")
	only := flags.String("scenario", "", "only this scenario")
	profiles := flags.String("profile", "", "after the rounds, write CPU profiles of gateway and connector under post2k to this folder")
	jsonFile := flags.String("json", "", "also write every round to this file")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	chosen := slices.DeleteFunc(scenarios(*seconds), func(s scenario) bool { return *only != "" && s.name != *only })
	if len(chosen) == 0 {
		return fmt.Errorf("there is no scenario %q", *only)
	}
	g, err := newGroup()
	if err != nil {
		return err
	}
	defer g.stop()
	h, err := startHierarchy(ctx, g, *postern)
	if err != nil {
		return err
	}
	targets, err := startTargets(h)
	if err != nil {
		return err
	}
	report := pathReport{Date: time.Now().UTC(), Machine: thisMachine(), Rounds: *rounds}
	for _, t := range targets {
		report.Targets = append(report.Targets, t.name)
	}
	for _, s := range chosen {
		report.Scenarios = append(report.Scenarios, s.name)
	}
	failed := report.measure(ctx, h, targets, chosen)
	report.print(os.Stdout, targets, chosen)
	if *jsonFile != "" {
		failed = errors.Join(failed, writeJSON(*jsonFile, report))
	}
	if *profiles != "" && failed == nil {
		failed = profile(ctx, h, targets[len(targets)-1], chosen[0], *profiles)
	}
	return errors.Join(failed, report.errors())
}

// startTargets starts the proxies to compare with. Postern is the last target, nginx the first.
func startTargets(h *hierarchy) ([]*target, error) {
	web, err := startNginx(h.group, h.plain, h.secure)
	if err != nil {
		return nil, err
	}
	reverse, reverseAddress, err := startProxy(h.group, h.plain)
	if err != nil {
		return nil, err
	}
	anyProof, err := token.SignProof(h.device.key, http.MethodGet, "https://"+h.host+"/", h.device.token, time.Now(), rand.Reader)
	if err != nil {
		return nil, err
	}
	pools := map[string]*proofs{}
	messages := h.proofsFor(scenarios(1)[0])
	for _, s := range scenarios(1) {
		if pools[s.name] = messages; s.method != messages.method {
			pools[s.name] = h.proofsFor(s)
		}
	}
	targets := []*target{
		{name: "nginx", about: "one hop, plain HTTP to the backend", address: web.plain, processes: []*process{web.process}, anyProof: anyProof},
		{name: "nginx, TLS", about: "one hop, TLS to the backend as a connector speaks", address: web.secure, processes: []*process{web.process}, anyProof: anyProof},
		{name: "Go ReverseProxy", about: "one hop, plain HTTP to the backend", address: reverseAddress, processes: []*process{reverse}, anyProof: anyProof},
		{name: "postern", about: "gateway, tunnel and connector, with admission", address: h.address, processes: []*process{h.gateway, h.connector}, proofs: pools},
	}
	for _, t := range targets {
		t.last = map[string]float64{}
	}
	return targets, nil
}

func (h *hierarchy) path(s scenario) string {
	return ccm.ExternalPath(ccm.DoorServerAuth, h.roleID, s.internal)
}

func (h *hierarchy) proofsFor(s scenario) *proofs {
	return &proofs{device: h.device, method: s.method, url: "https://" + h.host + h.path(s)}
}

func (h *hierarchy) request(s scenario) request {
	return newRequest(s, h.host, h.path(s), h.device.token)
}

// measure runs all rounds: in each, every scenario for every target, in an order that rotates, so that other work on the machine meets
// all of them. When time is up, the rounds that are complete count.
func (r *pathReport) measure(ctx context.Context, h *hierarchy, targets []*target, chosen []scenario) error {
	for round := range r.Rounds {
		for _, s := range chosen {
			for i := range targets {
				one, err := load(ctx, targets[(i+round)%len(targets)], s, h.request(s))
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil {
					return err
				}
				one.Round = round
				r.Results = append(r.Results, one)
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, r.Rounds)
	}
	return nil
}

func (r *pathReport) errors() error {
	var errs []error
	for _, one := range r.Results {
		if one.Errors > 0 {
			errs = append(errs, fmt.Errorf("%s, %s, round %d: %d errors, the first: %s", one.Target, one.Scenario, one.Round, one.Errors, one.FirstError))
		}
	}
	return errors.Join(errs...)
}

func (r *pathReport) print(w io.Writer, targets []*target, chosen []scenario) {
	fmt.Fprintf(w, "%s, %d cores, %s, load before %s, %s\n\n", r.Machine.CPU, r.Machine.Cores, r.Machine.Go, r.Machine.Load, r.Date.Format(time.RFC3339))
	for _, t := range targets {
		fmt.Fprintf(w, "- %s: %s\n", t.name, t.about)
	}
	for _, s := range chosen {
		fmt.Fprintf(w, "\n%s: %s\n\n", s.name, s.about)
		fmt.Fprintln(w, "| target | requests/s | x | p50 ms | p99 ms | CPU-s/1000 | x | x, least to most | RSS MB |")
		fmt.Fprintln(w, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
		for _, t := range targets {
			fmt.Fprintln(w, r.row(t.name, s.name))
		}
	}
}

// row is the line of a target: medians of its rounds, and medians of each round's ratio to the first target in the same round.
func (r *pathReport) row(name, scenario string) string {
	of := func(target string, what func(result) float64) (values []float64) {
		for _, one := range r.Results {
			if one.Target == target && one.Scenario == scenario {
				values = append(values, what(one))
			}
		}
		return values
	}
	perSecond, cpu := func(one result) float64 { return one.PerSecond }, func(one result) float64 { return one.CPU }
	ratios := func(what func(result) float64) []float64 {
		own, base := of(name, what), of(r.Targets[0], what)
		for i := range min(len(own), len(base)) {
			own[i] /= base[i]
		}
		return own[:min(len(own), len(base))]
	}
	costs := ratios(cpu)
	if len(costs) == 0 {
		return "| " + name + " | no complete round |"
	}
	return fmt.Sprintf("| %s | %.0f | %.2f | %.2f | %.2f | %.3f | %.2f | %.2f to %.2f | %.0f |", name,
		median(of(name, perSecond)), median(ratios(perSecond)),
		median(of(name, func(one result) float64 { return one.P50 })), median(of(name, func(one result) float64 { return one.P99 })),
		median(of(name, cpu)), median(costs), slices.Min(costs), slices.Max(costs),
		median(of(name, func(one result) float64 { return one.Resident })))
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	values = slices.Sorted(slices.Values(values))
	middle := len(values) / 2
	if len(values)%2 == 0 {
		return (values[middle-1] + values[middle]) / 2
	}
	return values[middle]
}

func writeJSON(file string, v any) error {
	content, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(content, '\n'), 0o644)
}

// profile takes CPU profiles from the administration doors while the scenario runs.
func profile(ctx context.Context, h *hierarchy, t *target, s scenario, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	const seconds = 5
	s.seconds = seconds + 1.5
	if err := t.proofs[s.name].fill(ctx, t.wanted(s)); err != nil {
		return err
	}
	taken := make(chan error, 2)
	for _, p := range []*process{h.gateway, h.connector} {
		go func() {
			time.Sleep(500 * time.Millisecond) // until the round runs
			taken <- takeProfile(ctx, h.configs[p], seconds, filepath.Join(dir, p.name+".pprof"))
		}()
	}
	_, err := load(ctx, t, s, h.request(s))
	return errors.Join(err, <-taken, <-taken)
}

func takeProfile(ctx context.Context, config role.Config, seconds int, file string) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", role.DoorPath(config))
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://door/debug/pprof/profile?seconds=%d", seconds), nil)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return fmt.Errorf("profile of %s: %s: %w", config.Role, response.Status, err)
	}
	return os.WriteFile(file, content, 0o644)
}
