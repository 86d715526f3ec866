// Package postgrestest starts a private PostgreSQL for tests, from the programs that Debian's package installs: on a unix socket in a
// temporary folder, without TCP and without syncing. One server serves a test binary; each [Start] gives a fresh database on it.
//
// It is for tests alone: the server trusts everybody who reaches its socket and loses its data on a crash.
package postgrestest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Install is the line that installs what Start needs on Debian.
const Install = "apt-get install postgresql"

// shared starts the server of this test binary. It ends with the binary.
var shared = sync.OnceValues(func() (*Server, error) { return New() })

// Start returns the address of a new and empty database. It fails the test, with the line that installs it, when PostgreSQL is missing.
// The first call starts a server, which serves all tests of the binary and ends with it, however that ends.
func Start(tb testing.TB) (dsn string) {
	tb.Helper()
	s, err := shared()
	if err != nil {
		tb.Fatal(err)
	}
	if dsn, err = s.Database(); err != nil {
		tb.Fatal(err)
	}
	return dsn
}

// Server is a private PostgreSQL. Most tests need only [Start]; one that stops the server under its users makes its own.
type Server struct {
	arguments []string
	bin       string
	folder    string
	account   *account // whose account the server runs under; nil means our own
	guard     *exec.Cmd
	life      *os.File // the guard ends the server when this closes, which our death does too
	databases atomic.Int64
}

// guardScript runs the server for as long as its standard input stays open. Then it ends the server as a crash would (SIGQUIT, which the
// server hands to its children) and removes the folder, unless it is to be started again.
const guardScript = `
folder=$1; shift
"$@" </dev/null &
server=$!
cat >/dev/null
kill -QUIT $server 2>/dev/null
wait $server
test -e "$folder/keep" || rm -rf "$folder"
`

// New starts a server of its own, with further arguments for postgres. Close stops it and removes its folder.
func New(arguments ...string) (*Server, error) {
	s := &Server{arguments: arguments}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, s.remove())
	}
	if err := s.Resume(); err != nil {
		return nil, errors.Join(err, s.remove())
	}
	return s, nil
}

// prepare finds the programs and makes the data folder.
func (s *Server) prepare() (err error) {
	if s.bin, err = programs(); err != nil {
		return err
	}
	if s.account, err = otherAccount(); err != nil {
		return err
	}
	if s.folder, err = os.MkdirTemp(base(), "postgrestest"); err != nil {
		return err
	}
	if s.account != nil {
		if err := os.Chown(s.folder, s.account.uid, s.account.gid); err != nil {
			return fmt.Errorf("give the folder to the server's account: %w", err)
		}
	}
	out, err := s.command(s.program("initdb"), "-A", "trust", "--no-sync", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D", s.data()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return nil
}

// base is where the folder goes. The name of a socket may have about a hundred bytes.
func base() string {
	if dir := os.TempDir(); len(dir) < 60 {
		return dir
	}
	return "/tmp"
}

func (s *Server) data() string               { return filepath.Join(s.folder, "data") }
func (s *Server) keep() string               { return filepath.Join(s.folder, "keep") }
func (s *Server) program(name string) string { return filepath.Join(s.bin, name) }

// Resume starts the server again after Stop.
func (s *Server) Resume() error {
	if err := os.Remove(s.keep()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	log, err := os.OpenFile(filepath.Join(s.folder, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	in, life, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	s.life = life
	s.guard = s.command("/bin/sh", append([]string{
		"-c", guardScript, "guard", s.folder,
		s.program("postgres"), "-D", s.data(), "-k", s.folder, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off",
		"-c", "max_connections=100", "-c", "shared_buffers=16MB", "-c", "autovacuum=off",
	}, s.arguments...)...)
	s.guard.Stdin, s.guard.Stdout, s.guard.Stderr = in, log, log
	if err := s.guard.Start(); err != nil {
		return fmt.Errorf("start postgres: %w", errors.Join(err, life.Close()))
	}
	return s.await()
}

// await waits until the server answers.
func (s *Server) await() error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		conn, err := pgx.Connect(context.Background(), s.address("postgres"))
		if err == nil {
			return conn.Close(context.Background())
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(s.folder, "log"))
			s.end()
			return fmt.Errorf("postgres does not answer: %w\n%s", err, log)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Database makes a new and empty database and returns its address.
func (s *Server) Database() (dsn string, err error) {
	name := fmt.Sprintf("test%d", s.databases.Add(1))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.address("postgres"))
	if err != nil {
		return "", fmt.Errorf("create database: %w", err)
	}
	defer conn.Close(ctx)
	if _, err = conn.Exec(ctx, "create database "+pgx.Identifier{name}.Sanitize()); err != nil {
		return "", fmt.Errorf("create database: %w", err)
	}
	return s.address(name), nil
}

// Stop ends the server at once, as a crash would. Resume starts it again.
func (s *Server) Stop() error {
	if err := os.WriteFile(s.keep(), nil, 0o600); err != nil {
		return err
	}
	s.end()
	return nil
}

// Close ends the server and removes its folder.
func (s *Server) Close() error {
	s.end()
	return s.remove()
}

func (s *Server) end() {
	if s.life != nil {
		_ = s.life.Close()
		_ = s.guard.Wait()
		s.life = nil
	}
}

func (s *Server) remove() error {
	if s.folder == "" {
		return nil
	}
	return os.RemoveAll(s.folder)
}

func (s *Server) address(database string) string {
	return "postgres:///" + database + "?" + url.Values{"host": {s.folder}, "user": {"postgres"}, "sslmode": {"disable"}}.Encode()
}

// programs finds the newest PostgreSQL of Debian's packages.
func programs() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return "", errors.New("this test needs PostgreSQL, which is not installed; run: " + Install)
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
}

// account is a user of this machine.
type account struct{ uid, gid int }

// otherAccount chooses whom the server runs as: PostgreSQL refuses to run as root.
func otherAccount() (*account, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.Atoi(u.Uid)
		gid, gidErr := strconv.Atoi(u.Gid)
		if uidErr == nil && gidErr == nil {
			return &account{uid, gid}, nil
		}
	}
	return nil, errors.New("PostgreSQL does not run as root, and this machine has neither the account postgres nor nobody")
}

// command returns a command that runs under the server's account, in its folder and in a process group of its own, so that Ctrl-C reaches
// the test alone.
func (s *Server) command(path string, args ...string) *exec.Cmd {
	c := exec.Command(path, args...)
	c.Dir = s.folder
	c.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	detach(c, s.account)
	return c
}
