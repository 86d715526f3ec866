package role_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"postern/internal/role"
)

// TestHierarchyComesUp starts every role from files by the acts of a deployment.
func TestHierarchyComesUp(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	made, err := role.InitSite(ctx, role.NewSite{Dir: filepath.Join(dir, "site"), Code: "P01", HTTPS: "127.0.0.1:0", Actor: "test"}, role.Protection{}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	point := start(t, made.Config)
	gw, err := role.InitGateway(role.NewGateway{Dir: filepath.Join(dir, "gateway"), Name: "localhost", SiteRoot: made.SiteRoot, Listen: "127.0.0.1:0"}, role.Protection{})
	if err != nil {
		t.Fatal(err)
	}
	gateway := start(t, gw.Config)
	address := gateway.Addresses["https"]
	if _, err := point.Site.AddGateway(ctx, "https://"+address, gw.Pin, "test"); err != nil {
		t.Fatal(err)
	}
	code, err := point.Site.Invite(ctx, "dc1", "test")
	if err != nil {
		t.Fatal(err)
	}
	ask := role.NewConnector{Dir: filepath.Join(dir, "connector"), ManagementPoint: point.Site.ManagementPoints()[0].InternalURL, Code: code + "." + made.SiteRoot}
	joined, err := role.JoinConnector(ctx, ask, role.Protection{}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	start(t, joined.Config)
	deadline := time.After(20 * time.Second)
	for {
		s := gateway.Gateway.Status()
		if len(s.Connectors) > 0 && s.Epoch > 0 {
			break
		}
		select {
		case <-deadline:
			t.Fatalf("gateway has no site state: %+v", s)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func start(t *testing.T, path string) *role.Running {
	t.Helper()
	config, err := role.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := role.Start(context.Background(), config, role.Environment{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Stop() })
	return r
}
