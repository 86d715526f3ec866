package lab_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"postern/internal/role"
)

// built is the program that people run, built once for all tests.
var built struct {
	once sync.Once
	dir  string
	err  error
}

// program returns the path of the built program.
func program(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "postern-test-"); built.err != nil {
			return
		}
		out, err := exec.Command("go", "build", "-o", filepath.Join(built.dir, "postern"), "postern/cmd/postern").CombinedOutput()
		if built.err = err; err != nil {
			t.Logf("%s", out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "postern")
}

func cleanUp(code int) {
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// run runs the program to its end.
func run(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	path := program(t) // building it takes its own time
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, path, args...)
	var out, err bytes.Buffer
	c.Stdout, c.Stderr = &out, &err
	if failed := c.Run(); failed != nil && c.ProcessState == nil {
		t.Fatal(failed)
	}
	return out.String(), err.String(), c.ProcessState.ExitCode()
}

// process is a role as a process of its own.
type process struct {
	*exec.Cmd
	config role.Config
	output *bytes.Buffer
	ended  chan struct{}
}

// serve starts `postern serve ROLE --config F` and waits until its administration door answers.
func serve(t testing.TB, name, config string, edit ...func(*exec.Cmd)) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(program(t), "serve", name, "--config", config), output: &bytes.Buffer{}, ended: make(chan struct{})}
	p.Stdout, p.Stderr = p.output, p.output
	for _, e := range edit {
		e(p.Cmd)
	}
	var err error
	if p.config, err = role.Load(config); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		p.Wait()
	}()
	t.Cleanup(p.kill)
	eventually(t, name+" answers at its door", func() bool {
		select {
		case <-p.ended:
			t.Fatalf("%s ended: %s", name, p.output)
		default:
		}
		door := role.Knock(p.config)
		if door == nil {
			return false
		}
		_, err := door.Health(t.Context())
		return err == nil
	})
	return p
}

// kill ends the process as kill -9 does.
func (p *process) kill() {
	p.Process.Kill()
	<-p.ended
}
