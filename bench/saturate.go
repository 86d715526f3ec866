//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"postern/ccm"
	"postern/internal/role"
	"postern/site"
)

// saturation is one way to keep the token service busy beside the forwarding that is measured.
type saturation struct {
	name            string
	about           string
	direct, through int  // connections that exchange tokens as fast as they are answered, at the management point and through the gateway
	spin            bool // instead, a process of no interest keeps one processor busy
}

func saturations(connections int) []saturation {
	return []saturation{
		{name: "alone", about: "no exchanges"},
		{name: "spin", about: "no exchanges, another program keeps one processor busy", spin: true},
		{name: "direct", about: "exchanges at the management point", direct: connections},
		{name: "gateway", about: "exchanges through the gateway", through: connections},
		{name: "both", about: "half of them there, half through the gateway", direct: connections / 2, through: connections / 2},
		{name: "flood", about: "more at the management point than may wait", direct: 1200},
	}
}

// saturated is one round.
type saturated struct {
	Forwarding result  `json:"forwarding"`
	Exchanges  float64 `json:"exchanges_per_second"`
	Shed       int     `json:"shed"` // answered 503; the connection that heard it sends nothing more, as a device would not for five seconds
	CPU        float64 `json:"management_point_cores"`
	Edge       float64 `json:"gateway_and_connector_cores"`
}

// saturate measures forwarding at 300 requests a second with and without a token service that has as much to do as it can. The devices that exchange are a
// process of the lowest priority: on a site they do not run on the servers' processors.
func saturate(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("saturate", flag.ContinueOnError)
	postern := flags.String("postern", "postern", "the program to measure")
	rounds := flags.Int("rounds", 3, "rounds")
	seconds := flags.Float64("seconds", 3, "length of a round")
	connections := flags.Int("connections", 64, "connections that exchange tokens")
	jsonFile := flags.String("json", "", "also write every round to this file")
	if err := flags.Parse(arguments); err != nil {
		return err
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
	service, err := newTokenService(ctx, h)
	if err != nil {
		return err
	}
	forward := scenarios(*seconds)[1]
	edge := &target{name: "postern", address: h.address, processes: []*process{h.gateway, h.connector}, proofs: map[string]*proofs{forward.name: h.proofsFor(forward)}, last: map[string]float64{}}
	ways, found := saturations(*connections), map[string][]saturated{}
	before := thisMachine()
	for round := range *rounds {
		for i := range ways {
			way := ways[(i+round)%len(ways)]
			one, err := service.round(ctx, edge, forward, way)
			if err != nil {
				return fmt.Errorf("%s: %w", way.name, err)
			}
			found[way.name] = append(found[way.name], one)
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, *rounds)
	}
	fmt.Printf("%s, %d cores, %s, load before %s, after %s\n\n", before.CPU, before.Cores, before.Go, before.Load, thisMachine().Load)
	printSaturated(os.Stdout, ways, found)
	if *jsonFile != "" {
		return writeJSON(*jsonFile, found)
	}
	return nil
}

func printSaturated(w io.Writer, ways []saturation, found map[string][]saturated) {
	fmt.Fprintln(w, "| token service | exchanges/s | shed | its cores | gateway and connector, cores | forwarded/s | p50 ms | p99 ms | x | x, least to most | least p99 ms |")
	fmt.Fprintln(w, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, way := range ways {
		of := func(what func(saturated) float64) (values []float64) {
			for _, one := range found[way.name] {
				values = append(values, what(one))
			}
			return values
		}
		ratios := of(func(s saturated) float64 { return s.Forwarding.P99 })
		for i := range ratios {
			ratios[i] /= found["alone"][i].Forwarding.P99
		}
		fmt.Fprintf(w, "| %s: %s | %.0f | %.0f | %.2f | %.2f | %.0f | %.2f | %.2f | %.2f | %.2f to %.2f | %.2f |\n", way.name, way.about,
			median(of(func(s saturated) float64 { return s.Exchanges })), median(of(func(s saturated) float64 { return float64(s.Shed) })),
			median(of(func(s saturated) float64 { return s.CPU })), median(of(func(s saturated) float64 { return s.Edge })),
			median(of(func(s saturated) float64 { return s.Forwarding.PerSecond })), median(of(func(s saturated) float64 { return s.Forwarding.P50 })),
			median(of(func(s saturated) float64 { return s.Forwarding.P99 })), median(ratios), slices.Min(ratios), slices.Max(ratios),
			slices.Min(of(func(s saturated) float64 { return s.Forwarding.P99 })))
	}
}

func (h *hierarchy) startSpinner() (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return h.start("spin", self, "spin")
}

// spin keeps one processor busy until it is told to end.
func spin(ctx context.Context, _ []string) error {
	for ctx.Err() == nil {
	}
	return nil
}

// tokenService is the management point's, as one device reaches it by both ways.
type tokenService struct {
	hierarchy       *hierarchy
	direct, through exchangeWay
}

// exchangeWay is one of them.
type exchangeWay struct {
	address string
	request request
	proofs  *proofs
	last    float64 // exchanges a second in the last round
}

func newTokenService(ctx context.Context, h *hierarchy) (*tokenService, error) {
	config := h.configs[h.managementPoint]
	opened, err := role.OpenSite(ctx, config, role.Protection{}, time.Now, nil)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	points := opened.Site.ManagementPoints()
	own := slices.IndexFunc(points, func(p site.ManagementPoint) bool { return p.RoleID != h.roleID })
	if own < 0 {
		return nil, errors.New("the management point is not listed")
	}
	d := h.device
	d.token = d.selfProve // what the proofs are bound to
	way := func(address, host, path string) exchangeWay {
		return exchangeWay{address: address, request: exchangeRequest(host, path, d.token), proofs: &proofs{device: d, method: "POST", url: "https://" + host + path}}
	}
	return &tokenService{
		hierarchy: h, direct: way(config.Listen.HTTPS, config.Listen.HTTPS, "/CCM_STS"),
		through: way(h.address, h.host, ccm.ExternalPath(ccm.DoorServerAuth, points[own].RoleID, "/CCM_STS")),
	}, nil
}

// round runs the scenario while the token service is kept busy.
func (t *tokenService) round(ctx context.Context, edge *target, s scenario, way saturation) (out saturated, err error) {
	if err := edge.proofs[s.name].fill(ctx, edge.wanted(s)); err != nil {
		return out, err
	}
	var busy []*exchanger
	defer func() {
		for _, e := range busy {
			e.stop()
		}
	}()
	for _, one := range []struct {
		way         *exchangeWay
		connections int
	}{{&t.direct, way.direct}, {&t.through, way.through}} {
		if one.connections == 0 {
			continue
		}
		if err := one.way.fill(ctx, one.connections, s.seconds); err != nil {
			return out, err
		}
		e, err := startExchanger(one.way, one.connections)
		if err != nil {
			return out, err
		}
		busy = append(busy, e)
	}
	for _, e := range busy {
		if err := e.begin(); err != nil {
			return out, err
		}
	}
	if way.spin {
		spinner, err := t.hierarchy.startSpinner()
		if err != nil {
			return out, err
		}
		defer spinner.stop()
	}
	before, err := usageOf(t.hierarchy.managementPoint)
	if err != nil {
		return out, err
	}
	begun := time.Now()
	for _, e := range busy {
		if err := e.count(); err != nil {
			return out, err
		}
	}
	if out.Forwarding, err = load(ctx, edge, s, t.hierarchy.request(s)); err != nil {
		return out, err
	}
	took := time.Since(begun).Seconds()
	after, err := usageOf(t.hierarchy.managementPoint)
	if err != nil {
		return out, err
	}
	out.CPU, out.Edge = (after.cpu-before.cpu)/took, out.Forwarding.CPU*out.Forwarding.PerSecond/1000
	for _, e := range busy {
		told, err := e.result()
		if err != nil {
			return out, err
		}
		if told.Used {
			fmt.Fprintf(os.Stderr, "%s: all proofs were used up; the token service was not busy to the end\n", way.name)
		}
		e.way.last = float64(told.Done) / took
		out.Exchanges += e.way.last
		out.Shed += told.Shed
	}
	if out.Forwarding.Errors > 0 {
		return out, errors.New(out.Forwarding.FirstError)
	}
	return out, nil
}

// exchangeForm asks for a CCM token for the token in Authorization.
const exchangeForm = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&requested_token_type=urn%3Apostern%3Atoken%3Accm"

func exchangeRequest(host, path, raw string) request {
	return request{
		head: fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: ConfigMgr Messaging HTTP Sender\r\nAccept: */*\r\nAuthorization: DPoP %s\r\nDPoP: ", path, host, raw),
		tail: fmt.Appendf(nil, "\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", len(exchangeForm), exchangeForm),
	}
}

// fill signs what a round may need.
func (w *exchangeWay) fill(ctx context.Context, connections int, seconds float64) error {
	perSecond := w.last * 1.4
	if perSecond == 0 {
		perSecond = 2500
	}
	return w.proofs.fill(ctx, int(perSecond*(seconds+1.5+float64(connections)/120))+2*connections)
}
