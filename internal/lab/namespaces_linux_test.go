package lab_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/client"
	"postern/internal/role"
)

// The addresses of the two networks, each within its namespaces: nothing leaves the machine.
const (
	pointName, pointAddress     = "mp.corp.test", "10.77.1.1"
	gatewayName, gatewayAddress = "gw.example.test", "10.77.2.1"
	rolePort                    = "8444"
)

// network is a network namespace with what its DNS would say.
type network struct {
	name  string
	hosts string // in place of /etc/hosts
}

// ip runs iproute2.
func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// forbidden reports whether a command failed for want of rights: root, or CAP_SYS_ADMIN and CAP_NET_ADMIN.
func forbidden(err error) bool {
	return slices.ContainsFunc([]string{"not permitted", "denied", "Read-only file system"}, func(s string) bool { return strings.Contains(err.Error(), s) })
}

// newNetworks makes three namespaces: the servers', which is on both networks, and one on each of them for the device. The test is left out only where the
// right to make them is missing; the tools come with `make test`.
func newNetworks(t *testing.T) (servers, inside, outside network) {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Fatal("iproute2 is missing; install it with: apt-get install -y --no-install-recommends iproute2")
	}
	make := func(name, hosts string) network {
		n := network{name: fmt.Sprintf("postern-%d-%s", os.Getpid(), name), hosts: filepath.Join(t.TempDir(), "hosts")}
		if err := os.WriteFile(n.hosts, []byte("127.0.0.1 localhost\n"+hosts), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := ip("netns", "add", n.name); err != nil && forbidden(err) {
			t.Skipf("network namespaces need root, or the rights CAP_SYS_ADMIN and CAP_NET_ADMIN: %v", err)
		} else if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := ip("netns", "del", n.name); err != nil {
				t.Error(err)
			}
		})
		return n
	}
	point, gateway := pointAddress+" "+pointName+"\n", gatewayAddress+" "+gatewayName+"\n"
	servers, inside, outside = make("servers", point+gateway), make("inside", point+gateway), make("outside", gateway)
	for i, n := range []network{inside, outside} {
		link := fmt.Sprintf("net%d", i+1)
		for _, args := range [][]string{
			{"-n", servers.name, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", n.name},
			{"-n", servers.name, "address", "add", fmt.Sprintf("10.77.%d.1/24", i+1), "dev", link}, {"-n", n.name, "address", "add", fmt.Sprintf("10.77.%d.7/24", i+1), "dev", "eth0"},
			{"-n", servers.name, "link", "set", link, "up"}, {"-n", n.name, "link", "set", "eth0", "up"}, {"-n", n.name, "link", "set", "lo", "up"}, {"-n", servers.name, "link", "set", "lo", "up"},
		} {
			if err := ip(args...); err != nil && forbidden(err) {
				t.Skipf("links between network namespaces cannot be made: %v", err)
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	return servers, inside, outside
}

// in lets a command run in the namespace.
func (n network) in(c *exec.Cmd) {
	path, err := exec.LookPath("ip")
	if err != nil {
		c.Err = err
		return
	}
	c.Args = append([]string{path, "netns", "exec", n.name, "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, n.hosts}, c.Args...)
	c.Path = path
}

// run runs the program in the namespace to its end.
func (n network) run(t *testing.T, args ...string) (out, errors string, code int) {
	t.Helper()
	path := program(t) // building it takes its own time
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, path, args...)
	n.in(c)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if failed := c.Run(); failed != nil && c.ProcessState == nil {
		t.Fatal(failed)
	}
	return stdout.String(), stderr.String(), c.ProcessState.ExitCode()
}

func (n network) must(t *testing.T, args ...string) string {
	t.Helper()
	out, errors, code := n.run(t, args...)
	if code != 0 {
		t.Fatalf("postern %s: exit status %d\n%s%s", strings.Join(args, " "), code, out, errors)
	}
	return errors
}

// TestTwoNetworks is S3's device with real processes on two real networks: registered inside, it is taken outside, where only the gateway is to be seen, to a
// hotel, where the management point's name leads to somebody else, and home again.
func TestTwoNetworks(t *testing.T) {
	servers, inside, outside := newNetworks(t)
	d := newSiteOnTwoNetworks(t, servers)
	dir := filepath.Join(t.TempDir(), "device")
	status := func() (s client.Status) {
		t.Helper()
		out, errors, code := inside.run(t, "client", "status", "--dir", dir, "--json")
		if err := json.Unmarshal([]byte(out), &s); err != nil || code != 0 {
			t.Fatalf("status: %v: %s%s", err, out, errors)
		}
		return s
	}
	want := func(way, gateway, why string) {
		t.Helper()
		if s := status(); s.Way != way || s.Gateway != gateway || !strings.Contains(s.WayWhy, why) || s.WaySince.IsZero() || s.State != client.StateReady {
			t.Fatalf("the device is %s, on the way %s since %s by %q because %q; want %s by %q because %q", s.State, s.Way, s.WaySince, s.Gateway, s.WayWhy, way, gateway, why)
		}
	}

	inside.must(t, "client", "enrol", "--dir", dir, "--name", "laptop1", "--no-kerberos", "--no-entra", "/mp:https://"+pointName+":"+rolePort, "SMSSITECODE=PRC", "--root-key", d.SiteRoot)
	inside.must(t, "device", "approve", "laptop1", "--why", "ours", "--config", d.Config)
	want(client.WayInside, "", "")
	first := status()
	if len(first.Gateways) != 1 || !strings.HasPrefix(first.Gateways[0], gatewayName+":"+rolePort+"/CCM_Proxy_MutualAuth/") {
		t.Fatalf("inside the device has learned the gateways %q", first.Gateways)
	}

	outside.must(t, "client", "renew", "--dir", dir, "--force")
	want(client.WayInternet, first.Gateways[0], string(catalog.ClientNameNotResolved))
	if s := status(); s.ClientID != first.ClientID || s.Key != first.Key || s.LooksFor != "https://"+pointName+":"+rolePort {
		t.Errorf("outside the device is %+v", s)
	}
	send(t, outside, dir)

	// Home, where the gateway's network is not to be reached.
	send(t, inside, dir)
	want(client.WayInside, "", "answers")

	// In a hotel the name leads to another server: here the gateway's own, which is no management point.
	if err := os.WriteFile(outside.hosts, []byte(gatewayAddress+" "+gatewayName+" "+pointName+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	said := outside.must(t, "client", "renew", "--dir", dir, "--force")
	want(client.WayInternet, first.Gateways[0], "P5")
	if !strings.Contains(said, string(catalog.RoamOtherServer)) {
		t.Errorf("nobody is told of the other server:\n%s", said)
	}
	log, err := os.ReadFile(filepath.Join(dir, "logs", "ClientLocation.log"))
	if err != nil || strings.Count(string(log), "Client is on internet") != 2 || strings.Count(string(log), "Client is on intranet") != 1 {
		t.Errorf("ClientLocation.log, %v:\n%s", err, log)
	}
}

// send asks for policy, as programs on the device do.
func send(t *testing.T, from network, dir string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "message")
	if err := os.WriteFile(file, []byte(`<SiteInformationRequest SchemaVersion="1.00"><SiteCode Name="PRC"/></SiteInformationRequest>`), 0o600); err != nil {
		t.Fatal(err)
	}
	from.must(t, "client", "send", "MP_LocationManager", file, "--dir", dir)
}

// newSiteOnTwoNetworks starts a management point on the inner network, a gateway on the other, and a connector between them.
func newSiteOnTwoNetworks(t *testing.T, servers network) role.MadeSite {
	t.Helper()
	dir := t.TempDir()
	made := newSite(t, dir, role.NewSite{Name: pointName, HTTPS: pointAddress + ":" + rolePort})
	serve(t, "mp", made.Config, servers.in)
	listen := gatewayAddress + ":" + rolePort
	gateway, err := role.InitGateway(role.NewGateway{Dir: filepath.Join(dir, "gateway"), Name: gatewayName, SiteRoot: made.SiteRoot, Listen: listen}, role.Protection{})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, "gateway", gateway.Config, servers.in)
	servers.must(t, "site", "gateway", "add", gateway.URL, gateway.Pin, "--config", made.Config)
	out, errors, code := servers.run(t, "site", "connector", "invite", "dc1", "--json", "--config", made.Config)
	var invited struct{ Code string }
	if err := json.Unmarshal([]byte(out), &invited); err != nil || code != 0 {
		t.Fatalf("invite: %v: %s%s", err, out, errors)
	}
	servers.must(t, "connector", "join", "--mp", "https://"+pointName+":"+rolePort, "--code", invited.Code, "--dir", filepath.Join(dir, "connector"))
	serve(t, "connector", filepath.Join(dir, "connector", "connector.yaml"), servers.in)
	door := role.Knock(mustLoad(t, gateway.Config))
	eventually(t, "the gateway is healthy", func() bool {
		health, err := door.Health(t.Context())
		return err == nil && health.OK
	})
	return made
}

func mustLoad(t *testing.T, path string) role.Config {
	t.Helper()
	config, err := role.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return config
}
