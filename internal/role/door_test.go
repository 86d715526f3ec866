package role

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"postern/catalog"
	"postern/site"
)

// socketFolder is a folder with a short path: that of a socket may have about 100 bytes.
func socketFolder(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "door")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	return folder
}

// A role that hangs has its socket, and the system takes connections to it.
func TestADoorThatDoesNotAnswerIsNotWaitedForWithoutEnd(t *testing.T) {
	c := Config{State: socketFolder(t)}
	silent, err := net.Listen("unix", DoorPath(c))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	door := Knock(c)
	if door == nil {
		t.Fatal("nothing takes connections")
	}
	if door.patience != doorPatience {
		t.Errorf("patience %s, want %s", door.patience, doorPatience)
	}
	c.Role = ManagementPoint
	if _, err := StartManagementPoint(t.Context(), c, Environment{}); catalog.CodeOf(err) != catalog.StateInUse {
		t.Errorf("a second management point on its folder: %v, want %s", err, catalog.StateInUse)
	}
	door.patience = 10 * time.Millisecond
	asks := map[string]func() error{
		"health":  func() error { _, err := door.Health(t.Context()); return err },
		"verbose": func() error { return door.SetVerbose(t.Context(), true) },
		"metrics": func() error { return door.Metrics(t.Context(), t.Output()) },
	}
	for name, ask := range asks {
		if err := ask(); catalog.CodeOf(err) != catalog.AdminDoorClosed {
			t.Errorf("%s: %v, want %s", name, err, catalog.AdminDoorClosed)
		}
	}
}

// What a role opened before it found that it cannot start is closed again.
func TestARoleThatDoesNotStartLeavesItsAddress(t *testing.T) {
	dir := socketFolder(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	made, err := InitSite(t.Context(), NewSite{Dir: filepath.Join(dir, "site"), Code: "P01", HTTPS: address, Actor: "test"}, Protection{}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Load(made.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Kerberos.Keytab = filepath.Join(dir, "none.keytab")
	if _, err := StartManagementPoint(t.Context(), c, Environment{}); err == nil {
		t.Fatal("it started without its keytab")
	}
	again, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatalf("the address is still taken: %v", err)
	}
	again.Close()
}

// Whoever waits behind the door, as with --wait, does not use up the time that devices' requests have when the role stops.
func TestAStopEndsWhoWaitsBehindTheDoor(t *testing.T) {
	made, err := InitSite(t.Context(), NewSite{Dir: filepath.Join(socketFolder(t), "site"), Code: "P01", HTTPS: "127.0.0.1:0", Actor: "test"}, Protection{}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Load(made.Config)
	if err != nil {
		t.Fatal(err)
	}
	began, ended := make(chan struct{}), make(chan struct{})
	wait := func(*site.Site, func(context.Context, string) error) RunVerb {
		return func(ctx context.Context, _ Verb) VerbResult {
			close(began)
			<-ctx.Done()
			close(ended)
			return VerbResult{Exit: 4}
		}
	}
	r, err := StartManagementPoint(t.Context(), c, Environment{Verbs: wait})
	if err != nil {
		t.Fatal(err)
	}
	answer := make(chan VerbResult, 1)
	go func() {
		result, _ := Knock(c).Run(context.Background(), Verb{})
		answer <- result
	}()
	<-began
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	default:
		t.Fatal("the role has stopped and the command waits still")
	}
	if got := <-answer; got.Exit != 4 {
		t.Errorf("whoever waited was told %+v", got)
	}
}
