package role

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/site"
	"postern/token"
)

// fleet is a management point with gateways and connectors on loopback, each started as in a deployment.
type fleet struct {
	t          *testing.T
	made       MadeSite
	config     Config
	point      *Running
	devices    []site.Device
	gateways   []*Running
	connectors []*Running
	configs    []Config     // of the gateways
	joined     []string     // configurations of the connectors
	ahead      atomic.Int64 // of the gateways' clocks
}

func newFleet(t *testing.T, devices, gateways, connectors int) *fleet {
	t.Helper()
	f := &fleet{t: t}
	dir := t.TempDir()
	var err error
	f.made, err = InitSite(t.Context(), NewSite{Dir: filepath.Join(dir, "site"), Code: "P01", HTTPS: "127.0.0.1:0", Actor: "test"}, Protection{}, time.Now)
	f.must(err)
	f.config, err = Load(f.made.Config)
	f.must(err)
	h := &house{t: t, config: f.config}
	h.open()
	for i := range devices {
		f.devices = append(f.devices, h.device(i+1))
	}
	f.must(h.opened.Close())
	f.point = f.start(f.made.Config, Environment{})
	for i := range gateways {
		made, err := InitGateway(NewGateway{Dir: filepath.Join(dir, fmt.Sprint("gateway", i)), Name: "localhost", SiteRoot: f.made.SiteRoot, Listen: "127.0.0.1:0"}, Protection{})
		f.must(err)
		running := f.start(made.Config, Environment{Now: func() time.Time { return time.Now().Add(time.Duration(f.ahead.Load())) }})
		config, err := Load(made.Config)
		f.must(err)
		f.gateways, f.configs = append(f.gateways, running), append(f.configs, config)
		_, err = f.point.Site.AddGateway(t.Context(), "https://"+running.Addresses["https"], made.Pin, "test")
		f.must(err)
	}
	for i := range connectors {
		code, err := f.point.Site.Invite(t.Context(), fmt.Sprint("dc", i), "test")
		f.must(err)
		joined, err := JoinConnector(t.Context(), NewConnector{
			Dir: filepath.Join(dir, fmt.Sprint("connector", i)), ManagementPoint: f.point.Site.ManagementPoints()[0].InternalURL, Code: code + "." + f.made.SiteRoot,
		}, Protection{}, time.Now)
		f.must(err)
		f.joined = append(f.joined, joined.Config)
		f.connectors = append(f.connectors, f.start(joined.Config, Environment{}))
	}
	f.eventually("every gateway has the state through every connector", func() bool {
		return !slices.ContainsFunc(f.gateways, func(g *Running) bool {
			s := g.Gateway.Status()
			return s.Epoch < f.point.Site.Epoch() || len(s.Connectors) < 2*connectors
		})
	})
	return f
}

func (f *fleet) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) start(path string, e Environment) *Running {
	f.t.Helper()
	config, err := Load(path)
	f.must(err)
	r, err := Start(context.Background(), config, e)
	f.must(err)
	f.t.Cleanup(func() { r.Stop() })
	return r
}

// eventually waits for what real connections bring about.
func (f *fleet) eventually(what string, condition func() bool) {
	f.t.Helper()
	for end := time.Now().Add(30 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("after thirty seconds still not: %s", what)
		}
	}
}

// A revocation of any kind is in force at each of three gateways, with two connectors, within five seconds for 99 of 100. The figures are those of
// bench/README.md.
func TestRevocationReachesEveryGateway(t *testing.T) {
	const blocks, bound = 100, 5 * time.Second
	f := newFleet(t, blocks, 3, 2)
	ctx, s := t.Context(), f.point.Site
	var tokens []string
	for range blocks {
		_, kept, err := s.NewBulkToken(ctx, site.NewBulk{By: "anna"})
		f.must(err)
		tokens = append(tokens, kept.ID)
	}
	_, err := s.AddTenant(ctx, token.Tenant{ID: "corp", Issuers: []string{"https://id.corp.example/"}, Audiences: []string{"https://ConfigMgrService"}}, "anna")
	f.must(err)
	acts := []struct {
		name string
		act  func(i int) error
	}{
		{"device", func(i int) error { _, err := s.Block(ctx, f.devices[i].ClientID, "anna", "stolen"); return err }},
		{"bulk token", func(i int) error { _, err := s.BlockBulkToken(ctx, tokens[i], true, "anna", "try it"); return err }},
		{"tenant", func(i int) error { return s.EnableTenant(ctx, "corp", i/4%2 == 1, "anna", "test") }},
		{"device", func(i int) error { _, err := s.Block(ctx, f.devices[i].ClientID, "anna", "stolen"); return err }},
	}
	applied, confirmed := make([]time.Duration, 0, 3*blocks), make([]time.Duration, 0, 3*blocks)
	for i := range blocks {
		act := acts[i%len(acts)]
		began := time.Now()
		f.must(act.act(i))
		epoch := s.Epoch()
		waiting := slices.Clone(f.gateways)
		for len(waiting) > 0 {
			waiting = slices.DeleteFunc(waiting, func(g *Running) bool {
				if g.Gateway.Status().Epoch < epoch {
					return false
				}
				applied = append(applied, time.Since(began))
				return true
			})
			if time.Since(began) > 10*time.Second {
				t.Fatalf("%s: %d gateways have not heard of it in ten seconds", act.name, len(waiting))
			}
			time.Sleep(500 * time.Microsecond)
		}
		all, err := s.AwaitConfirmations(ctx, epoch, 30*time.Second)
		f.must(err)
		for _, c := range all {
			if !c.Confirmed {
				t.Fatalf("%s: gateway %s has not confirmed in thirty seconds", act.name, c.Gateway)
			}
			confirmed = append(confirmed, c.At.Sub(began))
		}
	}
	for _, figure := range []struct {
		name  string
		times []time.Duration
	}{{"in force", applied}, {"confirmed", confirmed}} {
		slices.Sort(figure.times)
		at := func(q float64) time.Duration { return figure.times[int(q*float64(len(figure.times)-1))] }
		t.Logf("%-9s  p50 %s  p99 %s  most %s  (%d blocks, %d gateways, %d connectors)", figure.name, at(0.5).Round(100*time.Microsecond), at(0.99).Round(100*time.Microsecond), at(1).Round(100*time.Microsecond), blocks, len(f.gateways), len(f.connectors))
		if p99 := at(0.99); p99 > bound {
			t.Errorf("%s: p99 is %s, want at most %s", figure.name, p99, bound)
		}
	}
}

// A connector that is blocked is dropped by every gateway, and the others go on.
func TestBlockedConnectorIsDroppedEverywhere(t *testing.T) {
	f := newFleet(t, 0, 2, 2)
	f.must(f.point.Site.BlockConnector(t.Context(), "dc0", true, "anna", "try it"))
	all, err := f.point.Site.AwaitConfirmations(t.Context(), f.point.Site.Epoch(), 30*time.Second)
	f.must(err)
	for i, g := range f.gateways {
		if !all[i].Confirmed {
			t.Errorf("%+v", all[i])
		}
		f.eventually("only the other is there", func() bool {
			return len(g.Gateway.Status().Connectors) == 2 && g.Gateway.Status().Connectors[0].Name == "dc1"
		})
	}
}

// A gateway that is cut off from its site for thirty seconds says so in its health and its metrics, is named by who waits for it, and catches up with
// what was revoked meanwhile as soon as it hears again.
func TestGatewayThatIsCutOff(t *testing.T) {
	f := newFleet(t, 1, 1, 1)
	ctx, s, g := t.Context(), f.point.Site, f.gateways[0]
	look := func() (stale bool, metrics string) {
		door := Knock(f.configs[0])
		health, err := door.Health(ctx)
		f.must(err)
		var text bytes.Buffer
		f.must(door.Metrics(ctx, &text))
		return strings.Contains(strings.Join(health.Problem, "\n"), "not been heard for 30 seconds"), text.String()
	}
	if stale, metrics := look(); stale || !strings.Contains(metrics, "postern_gateway_stale 0") || !strings.Contains(metrics, "postern_gateway_connections 2") {
		t.Errorf("connected: stale %t, %s", stale, metrics)
	}
	f.must(f.connectors[0].Stop())
	_, err := s.Block(ctx, f.devices[0].ClientID, "anna", "stolen")
	f.must(err)
	epoch := s.Epoch()
	all, err := s.AwaitConfirmations(ctx, epoch, time.Millisecond)
	f.must(err)
	if len(all) != 1 || all[0].Confirmed || all[0].Epoch >= epoch || !all[0].At.IsZero() {
		t.Errorf("confirmations %+v", all)
	}
	f.ahead.Store(int64(31 * time.Second))
	if stale, metrics := look(); !stale || !strings.Contains(metrics, "postern_gateway_stale 1") {
		t.Errorf("cut off: stale %t, %s", stale, metrics)
	}
	f.start(f.joined[0], Environment{})
	f.eventually("the gateway has caught up", func() bool { status := g.Gateway.Status(); return status.Epoch >= epoch && !status.Stale })
	if stale, metrics := look(); stale || !strings.Contains(metrics, "postern_gateway_stale 0") {
		t.Errorf("after that: stale %t, %s", stale, metrics)
	}
	if all, err := s.AwaitConfirmations(ctx, epoch, 30*time.Second); err != nil || !all[0].Confirmed {
		t.Errorf("confirmations %+v, %v", all, err)
	}
}
