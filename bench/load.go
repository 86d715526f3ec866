//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// scenario is one kind of load.
type scenario struct {
	name        string
	about       string
	method      string
	internal    string // path behind the gateway's prefix
	body        int
	connections int
	seconds     float64
	rate        float64 // requests a second over all connections, sent whether answered or not; 0: each connection sends when it is answered
}

func scenarios(seconds float64) []scenario {
	const message, file = "/ccm_system_tokenauth/request", "/CCM_Client/bench"
	return []scenario{
		{"post2k", "2 KB up, 1.5 KB down, 32 connections, as fast as it goes", "CCM_POST", message, postBytes, 32, seconds, 0},
		{"post2k-300", "2 KB up, 1.5 KB down, 32 connections, 300 requests a second", "CCM_POST", message, postBytes, 32, seconds, 300},
		{"get64k", "64 KB down, 16 connections, as fast as it goes", "GET", file, 0, 16, seconds * 2 / 3, 0},
	}
}

// target is what is measured.
type target struct {
	name      string
	about     string
	address   string
	processes []*process
	proofs    map[string]*proofs // of each scenario, where every request needs one of its own; nil where nobody looks
	anyProof  string             // where nobody looks
	last      map[string]float64 // requests a second in the last round of each scenario
}

// result is one round.
type result struct {
	Target     string  `json:"target"`
	Scenario   string  `json:"scenario"`
	Round      int     `json:"round"`
	Requests   int     `json:"requests"`
	Errors     int     `json:"errors"`
	FirstError string  `json:"first_error,omitempty"`
	Seconds    float64 `json:"seconds"`
	PerSecond  float64 `json:"requests_per_second"`
	P50        float64 `json:"p50_ms"`
	P99        float64 `json:"p99_ms"`
	CPU        float64 `json:"cpu_seconds_per_1000"`
	Resident   float64 `json:"rss_mb"`
}

// request is a request as bytes, with a gap for the proof.
type request struct{ head, tail []byte }

// newRequest writes the same request for every target, token and proof included: proxies that do not look at them still carry them.
func newRequest(s scenario, host, path, token string) request {
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: ConfigMgr Messaging HTTP Sender\r\nAccept: */*\r\nAuthorization: DPoP %s\r\nDPoP: ", s.method, path, host, token)
	tail := "\r\n"
	if s.body > 0 {
		tail += fmt.Sprintf("Content-Type: application/octet-stream\r\nContent-Length: %d\r\n", s.body)
	}
	return request{[]byte(head), []byte(tail + "\r\n" + strings.Repeat("x", s.body))}
}

// connection is one keep-alive connection of a device.
type connection struct {
	net.Conn
	in       *bufio.Reader
	out, rub []byte // buffers
}

// dial connects from a loopback address of its own when from is not empty.
func dial(ctx context.Context, address, from string) (*connection, error) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	if from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", NextProtos: []string{"http/1.1"}}) // who answers is not the question here
	c.SetDeadline(time.Now().Add(longest))
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return &connection{Conn: c, in: bufio.NewReaderSize(c, 64<<10), rub: make([]byte, 64<<10)}, nil
}

// cut closes without a word: to say it to a server that has closed already would be a SIGPIPE, which ends a run.
func (c *connection) cut() {
	if over, ok := c.Conn.(*tls.Conn); ok {
		over.NetConn().Close()
	}
}

// statusError is an answer other than 200.
type statusError struct{ line []byte }

func (e *statusError) Error() string { return fmt.Sprintf("answered %q", e.line) }

// do sends the request with a proof and reads the answer to its end.
func (c *connection) do(r request, proof string) error {
	c.out = append(append(append(c.out[:0], r.head...), proof...), r.tail...)
	if _, err := c.Write(c.out); err != nil {
		return err
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if len(line) < 12 || string(line[9:12]) != "200" {
		return &statusError{bytes.Clone(bytes.TrimSpace(line))}
	}
	length, err := c.header()
	if err != nil {
		return err
	}
	if length < 0 {
		return c.discardChunks()
	}
	return c.discard(length)
}

var errClosed = errors.New("the answer says Connection: close")

// header reads the header lines and returns the length of the body, -1 when it comes in chunks.
func (c *connection) header() (length int, err error) {
	length = -1
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		name, value, found := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
		if !found {
			return length, nil
		}
		switch value = bytes.TrimSpace(value); {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(value)); err != nil {
				return 0, err
			}
		case bytes.EqualFold(name, []byte("Connection")) && bytes.EqualFold(value, []byte("close")):
			return 0, errClosed
		}
	}
}

func (c *connection) discardChunks() error {
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 32)
		if err != nil {
			return err
		}
		if err := c.discard(int(size) + 2); err != nil || size == 0 {
			return err
		}
	}
}

func (c *connection) discard(n int) error {
	for n > 0 {
		read, err := c.in.Read(c.rub[:min(n, len(c.rub))])
		if n -= read; err != nil {
			return err
		}
	}
	return nil
}

// load runs one round of a scenario against a target.
func load(ctx context.Context, t *target, s scenario, r request) (result, error) {
	out := result{Target: t.name, Scenario: s.name}
	take := func() (string, bool) { return t.anyProof, true }
	if pool := t.proofs[s.name]; pool != nil {
		if err := pool.fill(ctx, t.wanted(s)); err != nil {
			return out, err
		}
		take = pool.take
	}
	open, err := connect(ctx, t, s, r, take)
	if err != nil {
		return out, fmt.Errorf("%s: %s: %w", t.name, s.name, err)
	}
	runtime.GC()
	before, err := usageOf(t.processes...)
	if err != nil {
		return out, err
	}
	senders := make([]sender, len(open))
	begun := time.Now()
	var work sync.WaitGroup
	for i, c := range open {
		senders[i] = sender{connection: c, request: r, take: take, pace: newPace(s, i, begun), end: begun.Add(time.Duration(s.seconds * float64(time.Second)))}
		work.Go(func() { senders[i].run(ctx) })
	}
	work.Wait()
	out.Seconds = time.Since(begun).Seconds()
	after, err := usageOf(t.processes...)
	if err != nil {
		return out, err
	}
	out.sum(senders, after.cpu-before.cpu, after.resident)
	t.last[s.name] = out.PerSecond
	return out, ctx.Err()
}

// wanted is how many proofs a round will need, from what the last one took.
func (t *target) wanted(s scenario) int {
	perSecond := t.last[s.name] * 1.25
	switch {
	case s.rate > 0:
		perSecond = s.rate * 1.05
	case perSecond == 0:
		perSecond = 2500
	}
	return int(perSecond*s.seconds) + 2*s.connections
}

// connect opens the connections and sends one request on each, which is not counted.
func connect(ctx context.Context, t *target, s scenario, r request, take func() (string, bool)) ([]*connection, error) {
	open := make([]*connection, s.connections)
	for i := range open {
		c, err := dial(ctx, t.address, "")
		if err != nil {
			return nil, err
		}
		proof, _ := take()
		if err := c.do(r, proof); err != nil {
			return nil, err
		}
		open[i] = c
	}
	return open, nil
}

// pace says when the next request is due. The zero value says: at once.
type pace struct {
	next  time.Time
	every time.Duration
}

func newPace(s scenario, i int, begun time.Time) pace {
	if s.rate == 0 {
		return pace{}
	}
	every := time.Duration(float64(time.Second) * float64(s.connections) / s.rate)
	return pace{next: begun.Add(every * time.Duration(i) / time.Duration(s.connections)), every: every}
}

// wait sleeps until the next request is due and returns when it was, not when it could be sent: latency includes having to wait. It returns
// false when that is after the end.
func (p *pace) wait(end time.Time) (due time.Time, ok bool) {
	if p.every == 0 {
		due = time.Now()
		return due, due.Before(end)
	}
	due = p.next
	p.next = due.Add(p.every)
	if !due.Before(end) {
		return due, false
	}
	time.Sleep(time.Until(due))
	return due, true
}

// sender sends on one connection until the round ends or proofs run out.
type sender struct {
	*connection
	request request
	take    func() (string, bool)
	pace    pace
	end     time.Time

	latencies []time.Duration
	err       error
}

func (s *sender) run(ctx context.Context) {
	defer s.Close()
	for ctx.Err() == nil {
		due, ok := s.pace.wait(s.end)
		if !ok {
			return
		}
		proof, ok := s.take()
		if !ok {
			return
		}
		if s.err = s.do(s.request, proof); s.err != nil {
			return
		}
		s.latencies = append(s.latencies, time.Since(due))
	}
}

func (r *result) sum(senders []sender, cpu, resident float64) {
	var all []time.Duration
	for _, s := range senders {
		all = append(all, s.latencies...)
		if s.err == nil {
			continue
		}
		if r.Errors++; r.Errors == 1 {
			r.FirstError = s.err.Error()
		}
	}
	slices.Sort(all)
	r.Requests, r.Resident = len(all), resident
	if len(all) == 0 {
		return
	}
	at := func(q float64) float64 { return float64(all[int(q*float64(len(all)-1))].Microseconds()) / 1000 }
	r.P50, r.P99 = at(0.5), at(0.99)
	r.PerSecond = float64(len(all)) / r.Seconds
	r.CPU = cpu / float64(len(all)) * 1000
}
