//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// group is the processes of one run and the folder that they live in.
type group struct {
	dir     string
	running []*process
}

// process is one of them. What it prints goes to NAME.out in the folder.
type process struct {
	name string
	cmd  *exec.Cmd
	out  string
	done chan struct{}
}

func newGroup() (*group, error) {
	dir, err := os.MkdirTemp("", "bench-") // short: the path of an administration door has at most 100 bytes
	return &group{dir: dir}, err
}

func (g *group) start(name, program string, arguments ...string) (*process, error) {
	out, err := os.Create(filepath.Join(g.dir, name+".out"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &process{name: name, cmd: exec.Command(program, arguments...), out: out.Name(), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = out, out, g.dir
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.cmd.Wait()
		close(p.done)
	}()
	g.running = append(g.running, p)
	return p, nil
}

// stop ends every process in the reverse order of its start and removes the folder.
func (g *group) stop() {
	for i := len(g.running) - 1; i >= 0; i-- {
		g.running[i].stop()
	}
	os.RemoveAll(g.dir)
}

const stopWithin = 10 * time.Second

func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopWithin):
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
}

// alive returns an error with the end of what the process printed when it has ended.
func (p *process) alive() error {
	select {
	case <-p.done:
		printed, _ := os.ReadFile(p.out)
		return fmt.Errorf("%s has ended: %s", p.name, bytes.TrimSpace(printed[max(0, len(printed)-2000):]))
	default:
		return nil
	}
}

// await polls until ready says yes, the process ends, or time is up.
func (p *process) await(ready func() bool) error {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err := p.alive(); err != nil {
			return err
		}
		if ready() {
			return nil
		}
	}
	return fmt.Errorf("%s is not ready", p.name)
}

// awaitListener waits until somebody accepts connections there.
func (p *process) awaitListener(address string) error {
	return p.await(func() bool {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// freeAddress finds a loopback address on which nobody listens.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// usage is what processes have used of the machine.
type usage struct {
	cpu      float64 // user and system time, seconds
	resident float64 // MB; what processes share is counted for each
}

// usageOf sums the processes with those that they started.
func usageOf(processes ...*process) (usage, error) {
	children, err := processTree()
	if err != nil {
		return usage{}, err
	}
	var sum usage
	for _, p := range processes {
		if err := p.alive(); err != nil {
			return usage{}, err // a dead process would count as free
		}
		for pids := []int{p.cmd.Process.Pid}; len(pids) > 0; pids = pids[1:] {
			one, err := usageOfPID(pids[0])
			if err != nil {
				return usage{}, err
			}
			sum.cpu += one.cpu
			sum.resident += one.resident
			pids = append(pids, children[pids[0]]...)
		}
	}
	return sum, nil
}

func processTree() (map[int][]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, path := range stats {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if fields, err := readStat(pid); err == nil {
			parent, _ := strconv.Atoi(fields[1])
			children[parent] = append(children[parent], pid)
		}
	}
	return children, nil
}

// ticks is the unit of CPU times in /proc, which Linux shows as hundredths of a second everywhere.
const ticks = 100

func usageOfPID(pid int) (usage, error) {
	fields, err := readStat(pid)
	if err != nil {
		return usage{}, err
	}
	number := func(i int) float64 {
		n, _ := strconv.ParseFloat(fields[i], 64)
		return n
	}
	return usage{cpu: (number(11) + number(12)) / ticks, resident: number(21) * float64(os.Getpagesize()) / 1e6}, nil
}

// readStat returns the fields of /proc/PID/stat after the name, which may hold blanks: fields[0] is the state.
func readStat(pid int) ([]string, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
	if len(fields) < 22 {
		return nil, errors.New("/proc/PID/stat is shorter than expected")
	}
	return fields, nil
}
