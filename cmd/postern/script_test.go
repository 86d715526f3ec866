package main

import (
	"context"
	"crypto/rsa"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"postern/internal/role"
)

// TestMain lets the scripts run this very program as `postern`, each time as a process of its own.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"postern":                       func() { os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
		"BulkRegistrationTokenTool.exe": func() { os.Exit(Main(calledAs(os.Args[0], os.Args[1:]), os.Stdin, os.Stdout, os.Stderr)) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("GORACE", "atexit_sleep_ms=0") // a program with the race detector waits a second at its end
			for _, name := range []string{"MP_PORT", "HTTP_PORT", "GW_PORT"} {
				port, err := freePort()
				if err != nil {
					return err
				}
				env.Setenv(name, port)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"jsonenv":   jsonenv,
			"await":     await,
			"unhealthy": unhealthy,
			"planned":   planned,
			"replace":   replace,
			"sql":       sqlite,
			"appears":   appears,

			"status":      status,
			"withoutlast": withoutLast,
			"register":    (&agents{keys: map[string]*rsa.PrivateKey{}}).register,
		},
	})
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// jsonenv NAME PATH sets an environment variable from the JSON that the last command printed. PATH is fields and indexes with dots between.
func jsonenv(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: jsonenv NAME PATH")
	}
	var v any
	decoder := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	decoder.UseNumber()
	ts.Check(decoder.Decode(&v))
	for _, part := range strings.Split(args[1], ".") {
		switch container := v.(type) {
		case map[string]any:
			v = container[part]
		case []any:
			var i int
			_, err := fmt.Sscan(part, &i)
			ts.Check(err)
			v = container[i]
		default:
			ts.Fatalf("%s: nothing is called %q", args[1], part)
		}
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}

// await CONFIG waits until the role answers at its administration door; await CONFIG healthy until it also says that it is well.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: await CONFIG [healthy]")
	}
	var last string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		config, err := role.Load(ts.MkAbs(args[0]))
		if err != nil {
			last = err.Error()
			continue
		}
		door := role.Knock(config)
		if door == nil {
			last = "the door does not answer"
			continue
		}
		health, err := door.Health(context.Background())
		if err == nil && (len(args) == 1 || health.OK) {
			return
		}
		last = fmt.Sprint(err, health.Problem)
	}
	ts.Fatalf("%s: %s", args[0], last)
}

// unhealthy CONFIG waits, five seconds at most, until the role says that it is not well.
func unhealthy(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: unhealthy CONFIG")
	}
	config, err := role.Load(ts.MkAbs(args[0]))
	ts.Check(err)
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		health, err := role.Knock(config).Health(context.Background())
		ts.Check(err)
		if !health.OK {
			return
		}
	}
	ts.Fatalf("%s is still well", args[0])
}

// planned FOLDER waits, a minute at most, until the client of a state folder has planned its next renewal: the one before is done.
func planned(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: planned FOLDER")
	}
	var state struct {
		NextTry time.Time `json:"next_try"`
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(ts.MkAbs(args[0]), "state.json"))
		ts.Check(err)
		if json.Unmarshal(text, &state) == nil && !state.NextTry.IsZero() {
			return
		}
	}
	ts.Fatalf("%s has planned nothing", args[0])
}

// status N COMMAND... runs a command that must end with this exit status.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND...")
	}
	got := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%s: %v", args[1], err)
		}
		got = strconv.Itoa(exit.ExitCode())
	}
	if got != args[0] {
		ts.Fatalf("%s ends with %s, want %s", strings.Join(args[1:], " "), got, args[0])
	}
}

// replace FILE OLD NEW replaces text in a file; \n in NEW is a line end.
func replace(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: replace FILE OLD NEW")
	}
	content := ts.ReadFile(args[0])
	if !strings.Contains(content, args[1]) {
		ts.Fatalf("%s does not hold %q", args[0], args[1])
	}
	fresh := strings.ReplaceAll(content, args[1], strings.ReplaceAll(args[2], `\n`, "\n"))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(fresh), 0o600))
}

// sqlite FILE STATEMENT... changes a store behind the site's back, as whoever has the file can.
func sqlite(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: sql FILE STATEMENT...")
	}
	db, err := sql.Open("sqlite", ts.MkAbs(args[0])+"?_pragma=busy_timeout(5000)")
	ts.Check(err)
	defer db.Close()
	for _, statement := range args[1:] {
		_, err := db.Exec(statement)
		ts.Check(err)
	}
}

// appears FILE waits until a role has written the file.
func appears(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: appears FILE")
	}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if info, err := os.Stat(ts.MkAbs(args[0])); err == nil && info.Size() > 0 {
			return
		}
	}
	ts.Fatalf("%s does not appear", args[0])
}

// withoutLast FILE SHORT copies a file without its last line.
func withoutLast(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: withoutlast FILE SHORT")
	}
	content := strings.TrimSuffix(ts.ReadFile(args[0]), "\n")
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(content[:strings.LastIndexByte(content, '\n')+1]), 0o600))
}
