package realms

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// process is a program that runs until end, or until this process ends (on Linux).
type process struct {
	command *exec.Cmd
	ended   chan struct{}
}

// begin starts a program whose output goes to a new file.
func begin(command *exec.Cmd, output string) (*process, error) {
	log, err := os.OpenFile(output, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	command.Stdout, command.Stderr = log, log
	dieWithParent(command)
	p := &process{command: command, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The death signal is sent when the thread that started the program ends, so that thread has to stay for as long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer log.Close()
		err := command.Start()
		started <- err
		if err == nil {
			command.Wait()
		}
		close(p.ended)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", command.Path, err)
	}
	return p, nil
}

func (p *process) id() int { return p.command.Process.Pid }

// end ends the program and waits for it. A process that never began has ended.
func (p *process) end() {
	if p == nil {
		return
	}
	p.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(5 * time.Second):
		p.command.Process.Kill()
		<-p.ended
	}
}

// keeper removes the folder when this process ends without having done so.
type keeper struct {
	command *exec.Cmd
	life    *os.File // closes when we die
}

// keepScript waits for the end of its standard input. Signals of the terminal are for us, not for it. A program that is ending may still write.
const keepScript = `trap "" INT HUP TERM
cat >/dev/null
for try in 1 2 3 4 5; do rm -rf -- "$1" 2>/dev/null && exit; sleep 1; done`

func keep(folder string) (*keeper, error) {
	in, life, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	c := exec.Command("/bin/sh", "-c", keepScript, "keeper", folder)
	c.Stdin, c.Dir = in, "/"
	if err := c.Start(); err != nil {
		life.Close()
		return nil, fmt.Errorf("start the folder's keeper: %w", err)
	}
	return &keeper{c, life}, nil
}

func (k *keeper) release() {
	k.life.Close()
	k.command.Wait()
}
