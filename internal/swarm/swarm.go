package swarm

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"postern/catalog"
)

// Options say how large the fleet is and how its servers are started.
type Options struct {
	Devices  int // 10 to 50000
	Sleepers int // of them, sleep a year and come back; 0: a twentieth
	// Servers is the command that runs [Serve]: a program and its arguments.
	Servers []string
	// Progress is told now and then how far the act under way has come; may be nil.
	Progress func(act string, done, all int)

	firstRetry time.Duration // what a test waits instead of package client's minute
}

// Report is what a run measured.
type Report struct {
	Devices int     `json:"devices"`
	Seconds float64 `json:"seconds"` // the whole run
	Acts    []Act   `json:"acts"`
	// Storm counts the devices that were back after the restart of the gateway, in slices of StormSlice seconds from the moment it went away.
	Storm      []int   `json:"storm"`
	StormSlice float64 `json:"storm_slice_seconds"`
	AllBack    float64 `json:"all_back_seconds"` // from the gateway's end to the last device's answer
	Away       float64 `json:"away_seconds"`     // of them, the gateway was not there

	Quarantined int `json:"quarantined"` // of the sleepers, when they had shown their key alone
	Lifted      int `json:"lifted"`      // of them, approved again after their fresh registration
}

// Act is one act of the whole fleet.
type Act struct {
	Name      string  `json:"name"`
	Devices   int     `json:"devices"`
	Requests  int64   `json:"requests"`
	Retries   int64   `json:"retries"` // of them, again after a refusal for the moment
	Failed    int     `json:"failed"`  // devices that did not get through
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"devices_per_second"`
	P50       float64 `json:"p50_ms"` // of a device's act
	P99       float64 `json:"p99_ms"`
	ServerCPU float64 `json:"server_cpu_ms"` // of all servers, for each device
	ServerMB  float64 `json:"server_mb"`     // of all servers, when it ended
	Error     string  `json:"error,omitempty"`
}

// The size of a fleet.
const (
	MinDevices = 10
	MaxDevices = 50_000
)

// fleet is a run under way.
type fleet struct {
	options  Options
	world    world
	offset   atomic.Int64
	bulk     string
	devices  []*device
	servers  *process
	report   Report
	requests atomic.Int64
	retries  atomic.Int64
}

// callers is how many devices are busy at a time in acts that are as fast as the servers are.
const callers = 48

// Run tells the life of a fleet and measures it. What a device could not do is counted in the report; an error means that the run itself failed.
func Run(ctx context.Context, options Options) (_ Report, err error) {
	if options.Devices < MinDevices || options.Devices > MaxDevices {
		return Report{}, catalog.Errorf(catalog.SwarmSize, "%d devices were asked for; %d to %d are possible", options.Devices, MinDevices, MaxDevices)
	}
	if options.Progress == nil {
		options.Progress = func(string, int, int) {}
	}
	if options.Sleepers == 0 {
		options.Sleepers = max(1, options.Devices/20)
	}
	if options.Sleepers > options.Devices {
		return Report{}, catalog.Errorf(catalog.SwarmSize, "%d of %d devices cannot sleep", options.Sleepers, options.Devices)
	}
	options.firstRetry = cmp.Or(options.firstRetry, firstRetry)
	begun := time.Now()
	f := &fleet{options: options}
	f.world.now = func() time.Time { return time.Now().Add(time.Duration(f.offset.Load())) }
	if err := f.prepare(ctx); err != nil {
		return f.report, err
	}
	defer func() { err = errors.Join(err, f.servers.stop()) }()
	for _, act := range []func(context.Context) error{f.enrolAll, f.renewAll, f.roamAll, f.storm, f.sleep} {
		if err := act(ctx); err != nil {
			return f.report, err
		}
		if ctx.Err() != nil {
			return f.report, ctx.Err()
		}
	}
	f.report.Devices, f.report.Seconds = options.Devices, time.Since(begun).Seconds()
	return f.report, nil
}

func (f *fleet) prepare(ctx context.Context) error {
	f.options.Progress("making keys", 0, f.options.Devices)
	pool, err := newKeys(ctx, f.options.Devices)
	if err != nil {
		return err
	}
	for n := range f.options.Devices {
		key, err := pool.key(n)
		if err != nil {
			return err
		}
		f.devices = append(f.devices, &device{number: n, key: key})
	}
	f.options.Progress("starting servers", 0, 1)
	started, first, err := startServers(ctx, f.options.Servers)
	if err != nil {
		return err
	}
	f.servers = started
	roots, err := trustOf(first.Root)
	if err != nil {
		return errors.Join(err, started.stop())
	}
	f.world.gateway, f.world.inside, f.bulk = first.Gateway, first.Inside, first.Bulk
	f.world.trust = &tls.Config{RootCAs: roots, Time: f.world.now, MinVersion: tls.VersionTLS12}
	return nil
}

func (f *fleet) enrolAll(ctx context.Context) error {
	return f.act(ctx, "enrol", f.devices, func(ctx context.Context, s *session) error { return s.enrol(ctx, f.bulk) })
}

func (f *fleet) renewAll(ctx context.Context) error {
	return f.act(ctx, "renew both tokens", f.devices, func(ctx context.Context, s *session) error {
		return errors.Join(s.renew(ctx, f.world.gateway), s.prolong(ctx, f.world.gateway))
	})
}

func (f *fleet) roamAll(ctx context.Context) error {
	return f.act(ctx, "roam: inside and out again", f.devices, func(ctx context.Context, s *session) error {
		return errors.Join(s.renew(ctx, f.world.inside), s.policy(ctx, f.world.gateway))
	})
}

// act has every device do something, as fast as the servers let it, and measures it.
func (f *fleet) act(ctx context.Context, name string, who []*device, what func(context.Context, *session) error) error {
	before, err := f.servers.ask(order{Do: orderUsage})
	if err != nil {
		return err
	}
	requests, retries := f.requests.Load(), f.retries.Load()
	all := &tally{}
	queue := make(chan *device)
	var work sync.WaitGroup
	begun := time.Now()
	for range callers {
		work.Go(func() {
			for d := range queue {
				s := d.session(&f.world)
				started := time.Now()
				err := f.insist(ctx, s, what)
				all.add(time.Since(started), err)
				s.close()
				f.options.Progress(name, all.count(), len(who))
			}
		})
	}
	for _, d := range who {
		if ctx.Err() != nil {
			break
		}
		queue <- d
	}
	close(queue)
	work.Wait()
	return f.note(name, len(who), all, before, requests, retries, time.Since(begun))
}

func (f *fleet) note(name string, count int, all *tally, before report, requests, retries int64, took time.Duration) error {
	after, err := f.servers.ask(order{Do: orderUsage})
	if err != nil {
		return err
	}
	p50, p99 := all.percentiles()
	f.report.Acts = append(f.report.Acts, Act{
		Name: name, Devices: count, Requests: f.requests.Load() - requests, Retries: f.retries.Load() - retries, Failed: all.failed, Error: all.first,
		Seconds: took.Seconds(), PerSecond: float64(count-all.failed) / took.Seconds(), P50: p50, P99: p99,
		ServerCPU: float64((after.Spent - before.Spent).Microseconds()) / 1000 / float64(count), ServerMB: float64(after.Resident) / (1 << 20),
	})
	return nil
}

// maxTries bounds how often a device tries one act again.
const maxTries = 30

// insist tries again, after what the server asks or a second or so, while trying again may help.
func (f *fleet) insist(ctx context.Context, s *session, what func(context.Context, *session) error) (err error) {
	s.sent = &f.requests
	for range maxTries {
		if err = what(ctx, s); !transient(err) || ctx.Err() != nil {
			return err
		}
		f.retries.Add(1)
		pause(ctx, max(after(err), time.Second/2)/2+rand.N(time.Second))
	}
	return err
}

func after(err error) time.Duration {
	if said, ok := errors.AsType[*refusal](err); ok {
		return said.after
	}
	return 0
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// The waits of package client after a failure that may pass: a minute and then twice as long, a fifth more or less, each device for itself.
const (
	firstRetry = time.Minute
	spread     = 5
	stormSlice = 2 * time.Second
	away       = 3 * time.Second // how long the gateway is not there, at least
)

func jitter(d time.Duration) time.Duration { return d - d/spread + rand.N(2*d/spread) }

// storm restarts the gateway in a moment in which every device was waiting for an answer. Each comes back when the rule of package client says so.
func (f *fleet) storm(ctx context.Context) error {
	before, err := f.servers.ask(order{Do: orderUsage})
	if err != nil {
		return err
	}
	requests, retries := f.requests.Load(), f.retries.Load()
	begun := time.Now()
	if _, err := f.servers.ask(order{Do: orderStop}); err != nil {
		return err
	}
	all := &tally{}
	patience := 3 * f.options.firstRetry
	back := make([]atomic.Int64, int((patience+requestTime)/stormSlice)+1)
	var last atomic.Int64
	var work sync.WaitGroup
	for _, d := range f.devices {
		work.Go(func() {
			wait := f.options.firstRetry
			for {
				pause(ctx, jitter(wait))
				tried := time.Now()
				s := d.session(&f.world)
				s.sent = &f.requests
				err := s.renew(ctx, f.world.gateway)
				s.close()
				if transient(err) && ctx.Err() == nil && time.Since(begun) < patience {
					f.retries.Add(1)
					wait = max(2*wait, after(err))
					continue
				}
				all.add(time.Since(tried), err)
				if err == nil {
					since := time.Since(begun)
					back[min(int(since/stormSlice), len(back)-1)].Add(1)
					for old := last.Load(); int64(since) > old && !last.CompareAndSwap(old, int64(since)); old = last.Load() {
					}
				}
				f.options.Progress("storm after a restart of the gateway", all.count(), len(f.devices))
				return
			}
		})
	}
	pause(ctx, away)
	if _, err := f.servers.ask(order{Do: orderStart}); err != nil {
		work.Wait()
		return err
	}
	f.report.Away = time.Since(begun).Seconds()
	work.Wait()
	f.report.AllBack, f.report.StormSlice = time.Duration(last.Load()).Seconds(), stormSlice.Seconds()
	for i := range back {
		f.report.Storm = append(f.report.Storm, int(back[i].Load()))
	}
	for n := len(f.report.Storm); n > 0 && f.report.Storm[n-1] == 0; n-- {
		f.report.Storm = f.report.Storm[:n-1]
	}
	return f.note("storm after a restart of the gateway", len(f.devices), all, before, requests, retries, time.Since(begun))
}

const year = 365 * 24 * time.Hour

// sleep turns the clock of servers and devices on by a year. Some come back, with nothing but their key.
func (f *fleet) sleep(ctx context.Context) error {
	f.options.Progress("a year passes", 0, 1)
	if _, err := f.servers.ask(order{Do: orderAdvance, Sleep: year}); err != nil {
		return err
	}
	f.offset.Store(int64(year))
	sleepers := f.devices[:f.options.Sleepers]
	if err := f.act(ctx, "come back after a year, by the key alone", sleepers, func(ctx context.Context, s *session) error {
		return s.showKey(ctx)
	}); err != nil {
		return err
	}
	counted, err := f.servers.ask(order{Do: orderCount})
	if err != nil {
		return err
	}
	f.report.Quarantined = counted.Devices.Quarantined
	if err := f.act(ctx, "register afresh, and leave quarantine", sleepers, func(ctx context.Context, s *session) error {
		return s.settle(ctx)
	}); err != nil {
		return err
	}
	if counted, err = f.servers.ask(order{Do: orderCount}); err != nil {
		return err
	}
	f.report.Lifted = f.report.Quarantined - counted.Devices.Quarantined
	return nil
}

// tally collects how long each device's act took.
type tally struct {
	mu     sync.Mutex
	took   []time.Duration
	failed int
	first  string // of the errors
}

func (t *tally) add(took time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.failed++
		if t.first == "" {
			t.first = err.Error()
		}
		return
	}
	t.took = append(t.took, took)
}

func (t *tally) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.took) + t.failed
}

// percentiles returns the median and the 99th in a hundred, in milliseconds.
func (t *tally) percentiles() (p50, p99 float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.took) == 0 {
		return 0, 0
	}
	slices.Sort(t.took)
	at := func(part float64) float64 {
		return float64(t.took[min(len(t.took)-1, int(part*float64(len(t.took))))].Microseconds()) / 1000
	}
	return at(0.50), at(0.99)
}

// process is the servers' process.
type process struct {
	cmd    *exec.Cmd
	orders io.WriteCloser
	said   *bufio.Reader
	mu     sync.Mutex
}

func startServers(ctx context.Context, command []string) (*process, report, error) {
	p := &process{cmd: exec.CommandContext(ctx, command[0], command[1:]...)}
	p.cmd.Stderr = os.Stderr
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(os.Interrupt) }
	p.cmd.WaitDelay = 20 * time.Second
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, report{}, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, report{}, err
	}
	p.orders, p.said = in, bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		return nil, report{}, fmt.Errorf("start the servers: %w", err)
	}
	first, err := p.answer()
	if err != nil {
		return nil, first, errors.Join(err, p.stop())
	}
	return p, first, nil
}

func (p *process) ask(o order) (report, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := json.NewEncoder(p.orders).Encode(o); err != nil {
		return report{}, catalog.Wrap(catalog.SwarmServers, err, "the servers take no orders")
	}
	return p.answer()
}

func (p *process) answer() (r report, err error) {
	line, err := p.said.ReadBytes('\n')
	if err != nil {
		return r, catalog.Wrap(catalog.SwarmServers, err, "the servers have ended")
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, catalog.Wrap(catalog.SwarmServers, err, "the servers said what nobody understands")
	}
	if r.Error != "" {
		return r, catalog.Errorf(catalog.SwarmServers, "%s", r.Error)
	}
	return r, nil
}

func (p *process) stop() error {
	_ = json.NewEncoder(p.orders).Encode(order{Do: orderEnd}) // one that has ended already is told nothing
	p.orders.Close()
	return p.cmd.Wait()
}
