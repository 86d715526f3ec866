//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
)

// exchanger is `bench exchange`, devices that exchange tokens as fast as they are answered, as a process of the lowest priority. It is told on its standard
// input what to do: an [exchangeOrder], then a line to count anew, and the end. It says "busy", and at the end an [exchanged].
type exchanger struct {
	way   *exchangeWay
	cmd   *exec.Cmd
	order *json.Encoder
	in    io.WriteCloser
	out   *bufio.Reader
}

type exchangeOrder struct {
	Address     string   `json:"address"`
	Connections int      `json:"connections"`
	Head        []byte   `json:"head"`
	Tail        []byte   `json:"tail"`
	Proofs      []string `json:"proofs"`
}

type exchanged struct {
	Done   int64  `json:"done"`
	Shed   int    `json:"shed"` // answered 503
	Used   bool   `json:"used"` // all proofs, before the end
	Failed string `json:"failed,omitempty"`
}

func startExchanger(way *exchangeWay, connections int) (*exchanger, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	e := &exchanger{way: way, cmd: exec.Command("nice", "-n", "19", self, "exchange")}
	e.cmd.Stderr = os.Stderr
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if e.in, err = e.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := e.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	e.out, e.order = bufio.NewReader(out), json.NewEncoder(e.in)
	if err := e.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start exchanges: %w", err)
	}
	order := exchangeOrder{Address: way.address, Connections: connections, Head: way.request.head, Tail: way.request.tail}
	for {
		proof, ok := way.proofs.take()
		if !ok {
			break
		}
		order.Proofs = append(order.Proofs, proof)
	}
	if err := e.order.Encode(order); err != nil {
		e.stop()
		return nil, fmt.Errorf("order exchanges: %w", err)
	}
	return e, nil
}

// begin waits until every connection has had its first answer.
func (e *exchanger) begin() error {
	line, err := e.out.ReadString('\n')
	if err != nil || line != "busy\n" {
		return fmt.Errorf("exchanges do not begin: %q, %w", line, err)
	}
	return nil
}

// count lets the exchanges from now on count.
func (e *exchanger) count() error {
	_, err := io.WriteString(e.in, "\n")
	return err
}

// result lets what is under way come to its end, and returns what was done.
func (e *exchanger) result() (out exchanged, err error) {
	e.in.Close()
	if err := json.NewDecoder(e.out).Decode(&out); err != nil {
		return out, fmt.Errorf("what exchanges have done: %w", err)
	}
	if out.Failed != "" {
		return out, errors.New(out.Failed)
	}
	return out, nil
}

func (e *exchanger) stop() {
	e.in.Close()
	e.cmd.Process.Signal(syscall.SIGTERM)
	e.cmd.Wait()
}

// exchanging is what goes on in the process.
type exchanging struct {
	request request
	proofs  chan string

	work       sync.WaitGroup
	ended      atomic.Bool
	used       atomic.Bool
	done, shed atomic.Int64

	mu     sync.Mutex
	failed error
}

// exchangeForever is the process of an [exchanger].
func exchangeForever(ctx context.Context, _ []string) error {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var order exchangeOrder
	if err := json.Unmarshal(line, &order); err != nil {
		return err
	}
	e := &exchanging{request: request{order.Head, order.Tail}, proofs: make(chan string, len(order.Proofs))}
	for _, proof := range order.Proofs {
		e.proofs <- proof
	}
	close(e.proofs)
	if err := e.start(ctx, order); err != nil {
		return err
	}
	fmt.Println("busy")
	for ctx.Err() == nil {
		if _, err := in.ReadBytes('\n'); err != nil {
			break
		}
		e.done.Store(0)
	}
	e.ended.Store(true)
	e.work.Wait()
	out := exchanged{Done: e.done.Load(), Shed: int(e.shed.Load()), Used: e.used.Load()}
	if e.failed != nil {
		out.Failed = e.failed.Error()
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// start connects; each connection exchanges at once, because a server soon closes one that says nothing.
func (e *exchanging) start(ctx context.Context, order exchangeOrder) error {
	for range order.Connections {
		c, err := dial(ctx, order.Address, "")
		if err != nil {
			return err
		}
		e.work.Go(func() {
			defer c.cut()
			for ctx.Err() == nil && !e.ended.Load() {
				if !e.one(c) {
					return
				}
			}
		})
	}
	return nil
}

// one exchanges once and reports whether the connection goes on. One that heard 503 sends nothing more, as a device would not for five seconds.
func (e *exchanging) one(c *connection) bool {
	proof, ok := <-e.proofs
	if !ok {
		e.used.Store(true)
		return false
	}
	err := c.do(e.request, proof)
	var answered *statusError
	switch {
	case err == nil:
		e.done.Add(1)
		return true
	case errors.As(err, &answered) && bytes.HasPrefix(answered.line, []byte("HTTP/1.1 503")):
		e.shed.Add(1)
	case !e.ended.Load():
		e.fail(err)
	}
	return false
}

func (e *exchanging) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.failed == nil {
		e.failed = err
	}
}
