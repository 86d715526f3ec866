package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"postern/internal/role"
	"postern/token"
)

const (
	exchangeCallers = 16   // keep-alive connections at once
	exchangeDevices = 32   // each with an RSA-2048 key of its own, as devices have
	exchangeRound   = 1500 // exchanges of a round
	exchangeRounds  = 3
)

// TestMain lets the test program be the server that it measures: a management point in a process of its own, so that what the driver uses
// does not count.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "serve-mp" {
		if err := serveManagementPoint(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serveManagementPoint(file string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	config, err := role.Load(file)
	if err != nil {
		return err
	}
	role.UseProcessors()
	running, err := role.StartManagementPoint(ctx, config, role.Environment{})
	if err != nil {
		return err
	}
	return running.Wait(ctx)
}

// BenchmarkExchange exchanges self-prove tokens for CCM tokens over keep-alive TLS at a management point: each exchange with a proof of its own by
// an RSA-2048 key, verified, and a CCM token signed with ES256; beside it the same handler with token.algorithm rs256, and `openssl speed rsa2048`.
// "new" comes with a self-prove token that the server has not seen, "again" with one that it has verified before. The server is a process of its own and its CPU alone is
// counted; what the clients sign, they have signed before. With EXCHANGE_PROFILE=FILE it
// only writes a CPU profile of the ES256 server to FILE.
func BenchmarkExchange(b *testing.B) {
	if file := os.Getenv("EXCHANGE_PROFILE"); file != "" {
		newExchangeServer(b, "es256").profile(b, file)
		return
	}
	for b.Loop() {
		servers := []*exchangeServer{newExchangeServer(b, "es256"), newExchangeServer(b, "rs256")}
		found := map[string][]float64{}
		for round := range exchangeRounds {
			found["openssl-sign/s"] = append(found["openssl-sign/s"], opensslSigns(b))
			for i := range servers {
				s := servers[(i+round)%len(servers)]
				for _, way := range []string{"new", "again"} {
					exchanges := s.prepare(b, way == "new")
					cpu := s.cpu(b)
					began := time.Now()
					s.exchangeAll(b, exchanges)
					took, cost := time.Since(began), s.cpu(b)-cpu
					n := float64(len(exchanges))
					for name, value := range map[string]float64{"/s": n / took.Seconds(), "/s/core": n / cost, "-cpu-us": cost / n * 1e6} {
						found[s.algorithm+"-"+way+name] = append(found[s.algorithm+"-"+way+name], value)
					}
				}
			}
		}
		for name, values := range found {
			b.ReportMetric(median(values), name)
		}
		b.ReportMetric(0, "ns/op")
	}
}

// opensslSigns is what one core of this machine signs with RSA-2048 in a second, by openssl.
func opensslSigns(b *testing.B) float64 {
	b.Helper()
	text, err := exec.CommandContext(b.Context(), "openssl", "speed", "-seconds", "3", "rsa2048").Output()
	if err != nil {
		b.Fatal(err)
	}
	found := regexp.MustCompile(`rsa +2048 bits +\S+s +\S+s +([0-9.]+)`).FindSubmatch(text)
	if found == nil {
		b.Fatalf("openssl speed printed %s", text)
	}
	signs, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return signs
}

// exchangeServer is a management point and devices that have enrolled at it.
type exchangeServer struct {
	algorithm string
	process   *process
	config    role.Config
	url       string
	devices   []device
}

func newExchangeServer(b *testing.B, algorithm string) *exchangeServer {
	b.Helper()
	g, err := newGroup()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(g.stop)
	s := &exchangeServer{algorithm: algorithm}
	address, err := freeAddress()
	if err != nil {
		b.Fatal(err)
	}
	s.url = "https://" + address + "/CCM_STS"
	made, err := role.InitSite(b.Context(), role.NewSite{Dir: filepath.Join(g.dir, "site"), Code: "BEN", HTTPS: address, Actor: actor}, role.Protection{}, time.Now)
	if err != nil {
		b.Fatal(err)
	}
	if s.config, err = role.Load(made.Config); err != nil {
		b.Fatal(err)
	}
	if err := s.populate(b); err != nil {
		b.Fatal(err)
	}
	if s.process, err = g.start("mp", os.Args[0], "serve-mp", made.Config); err != nil {
		b.Fatal(err)
	}
	if err := s.process.awaitListener(address); err != nil {
		b.Fatal(err)
	}
	return s
}

// populate sets the algorithm and enrols the devices, before the server runs.
func (s *exchangeServer) populate(b *testing.B) error {
	opened, err := role.OpenSite(b.Context(), s.config, role.Protection{}, time.Now, nil)
	if err != nil {
		return err
	}
	defer opened.Close()
	if s.algorithm != "es256" {
		if err := opened.Site.Set(b.Context(), "token.algorithm", s.algorithm, actor); err != nil {
			return err
		}
		for _, kind := range []token.Kind{token.KindCCM, token.KindSelfProve} {
			if _, err := opened.Site.RotateKey(b.Context(), kind, actor); err != nil {
				return err
			}
		}
	}
	for n := range exchangeDevices {
		d, err := enrolAs(b.Context(), opened.Site, fmt.Sprintf("BENCH%d", n))
		if err != nil {
			return err
		}
		s.devices = append(s.devices, d)
	}
	return nil
}

// exchange is a request as bytes, with a proof and nothing left to sign.
type exchange struct {
	request request
	proof   string
}

// prepare signs the proofs of a round. New self-prove tokens are made by the site's own act in another process than the server's.
func (s *exchangeServer) prepare(b *testing.B, fresh bool) []exchange {
	b.Helper()
	opened, err := role.OpenSite(b.Context(), s.config, role.Protection{}, time.Now, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer opened.Close()
	all := make([]exchange, exchangeRound)
	var next atomic.Int64
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(all); i = int(next.Add(1)) - 1 {
				d := &s.devices[i%len(s.devices)]
				raw := d.selfProve
				if fresh {
					if raw, err = d.newSelfProve(b.Context(), opened.Site); err != nil {
						b.Error(err)
						return
					}
				}
				p, err := token.SignProof(d.key, http.MethodPost, s.url, raw, time.Now(), rand.Reader)
				if err != nil {
					b.Error(err)
					return
				}
				all[i] = exchange{exchangeRequest(s.config.Listen.HTTPS, "/CCM_STS", raw), p}
			}
		})
	}
	wait.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return all
}

func (s *exchangeServer) exchangeAll(b *testing.B, all []exchange) {
	b.Helper()
	var next atomic.Int64
	var wait sync.WaitGroup
	for range exchangeCallers {
		c, err := dial(b.Context(), s.config.Listen.HTTPS, "")
		if err != nil {
			b.Fatal(err)
		}
		wait.Go(func() {
			defer c.Close()
			for i := int(next.Add(1)) - 1; i < len(all); i = int(next.Add(1)) - 1 {
				if err := c.do(all[i].request, all[i].proof); err != nil {
					b.Errorf("exchange %d: %v", i, err)
					return
				}
			}
		})
	}
	wait.Wait()
	if b.Failed() {
		b.FailNow()
	}
}

// cpu is what the server has used, in seconds.
func (s *exchangeServer) cpu(b *testing.B) float64 {
	b.Helper()
	used, err := usageOf(s.process)
	if err != nil {
		b.Fatal(err)
	}
	return used.cpu
}

func (s *exchangeServer) profile(b *testing.B, file string) {
	b.Helper()
	rounds := [][]exchange{s.prepare(b, true), s.prepare(b, false)}
	taken := make(chan error, 1)
	go func() { taken <- takeProfile(b.Context(), s.config, 4, file) }()
	time.Sleep(300 * time.Millisecond) // until it is taken
	for _, all := range rounds {
		s.exchangeAll(b, all)
	}
	if err := <-taken; err != nil {
		b.Fatal(err)
	}
}
