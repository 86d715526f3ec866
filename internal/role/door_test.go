package role

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"postern/catalog"
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
