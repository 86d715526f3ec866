package kerberos_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/client"
	"postern/client/kerberos"
	"postern/internal/realms"
	"postern/internal/realms/realmstest"
	"postern/internal/role"
	"postern/logfile"
	"postern/mp"
	"postern/proof"
)

// network is the inner network of S0: a parent and a child domain, and a management point
// of the parent with its keytab.
type network struct {
	*realms.Realms
	*role.Running
	root, name string

	mu   sync.Mutex
	seen []mp.Exchange
}

// newNetwork starts one. Plain HTTP is on; https is off when without is "https",
// and tickets without channel binding are refused when it is "unbound tickets".
func newNetwork(t *testing.T, keytab func(*realms.Realms) string, without string) *network {
	t.Helper()
	r := realmstest.Start(t, realms.Options{})
	dir := t.TempDir()
	made, err := role.InitSite(t.Context(), role.NewSite{Dir: dir, Code: "PRC", Name: r.Host("mp"), HTTPS: freeAddress(t), HTTP: freeAddress(t), Actor: "test"}, role.Protection{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := role.Load(made.Config)
	if err != nil {
		t.Fatal(err)
	}
	config.Kerberos.Keytab = keytab(r)
	if without == "unbound tickets" {
		config.Kerberos.ChannelBinding = "required"
	}
	if without == "https" {
		config.Listen.HTTPS = ""
	}
	n := &network{Realms: r, root: made.SiteRoot, name: r.Host("mp")}
	n.Running, err = role.StartManagementPoint(t.Context(), config, role.Environment{ObserveManagementPoint: n.observe})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Running.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := n.Site.Set(t.Context(), "approval.trusted-realms", r.Child, "test"); err != nil {
		t.Fatal(err)
	}
	return n
}

func freeAddress(t *testing.T) string { return closedPort(t) }

func (n *network) observe(e mp.Exchange) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = append(n.seen, e)
}

// windows returns the status and sub-status of each answer of Windows authentication.
func (n *network) windows() (list []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.seen {
		if strings.Contains(strings.ToLower(e.Route), "windowsauth") {
			list = append(list, fmt.Sprintf("%d %d %s", e.Status.Code, e.Status.SubStatus, e.Proof.Method))
		}
	}
	return list
}

// point is the management point's address.
func (n *network) point(scheme string) string {
	_, port, _ := net.SplitHostPort(n.Addresses[scheme])
	return scheme + "://" + net.JoinHostPort(n.name, port)
}

func (n *network) setup(scheme string) client.Setup {
	return client.Setup{ManagementPoint: n.point(scheme), RootKey: n.root, SiteCode: "PRC", Name: "WK02-020-51W.child.a2003.vm.local"}
}

// device is a client agent on the network.
type device struct {
	*client.Agent
	dir   string
	said  []string
	steps []string
}

func (n *network) device(t *testing.T, dir string, change func(*kerberos.Config)) *device {
	t.Helper()
	d := &device{dir: dir}
	logs := logfile.NewFolder(filepath.Join(dir, "logs"), logfile.Options{})
	machine := kerberos.Config{Keytab: n.ComputerKeytab(realms.Child), Config: n.ClientConfig()}
	if change != nil {
		change(&machine)
	}
	var err error
	d.Agent, err = client.Open(client.Config{
		Dir: filepath.Join(dir, "state"), Logs: logs, Say: func(text string) { d.said = append(d.said, text) },
		Observe: func(s client.Step) {
			d.steps = append(d.steps, strings.TrimSpace(fmt.Sprint(s.OK, " ", s.What, " ", s.Code)))
		},
		Negotiator: func() (client.Negotiator, error) {
			m, err := kerberos.New(machine)
			if err != nil {
				return nil, err
			}
			return m, nil
		},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			host, port, _ := net.SplitHostPort(address)
			if host != n.name {
				return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
			}
			return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+port)
		},
		Wait:  func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
		Proxy: func(*http.Request) (*url.URL, error) { return nil, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close(); logs.Close() })
	return d
}

func (d *device) enrol(t *testing.T, setup client.Setup) client.Status {
	t.Helper()
	if err := d.Enrol(t.Context(), setup); err != nil {
		t.Fatalf("enrol: %v\n%s", err, strings.Join(d.steps, "\n"))
	}
	return d.Status()
}

func (d *device) log(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(d.dir, "logs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// TestAComputerOfTheChildDomainIsApprovedByItself is S0: referral, one 401, then 200, and
// approval status 1, whatever the management point listens on.
func TestAComputerOfTheChildDomainIsApprovedByItself(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ initial, without, uses string }{
		"https":                            {"https", "", "https"},
		"https, and tickets must be bound": {"https", "unbound tickets", "https"},
		"http, and https is found":         {"http", "", "https"},
		"http, and there is nothing else":  {"http", "https", "http"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t, (*realms.Realms).MPKeytab, test.without)
			d := n.device(t, t.TempDir(), nil)
			status := d.enrol(t, n.setup(test.initial))

			if status.State != client.StateReady || status.ApprovalStatus != ccm.ApprovalApproved || status.NoKerberos != "" || len(d.said) > 0 {
				t.Errorf("got %+v, said %q", status, d.said)
			}
			if want := "Kerberos: " + realms.Computer + "@" + realms.Child + " to HTTP/" + n.name + "@" + realms.Parent; !strings.HasPrefix(status.Proof, want) {
				t.Errorf("proof: got %q, want %q", status.Proof, want)
			}
			if want := n.point(test.uses); status.ManagementPoint != want || status.Chosen == "" {
				t.Errorf("management point: got %s (%s), want %s", status.ManagementPoint, status.Chosen, want)
			}
			if got, want := n.windows(), []string{"401 2 ", "200 0 " + string(proof.Kerberos)}; !slices.Equal(got, want) {
				t.Errorf("Windows authentication: got %q, want %q", got, want)
			}
			kept, err := n.Site.Device(t.Context(), status.ClientID)
			if err != nil || kept.Approval.Method != proof.Kerberos || kept.Approval.Evidence["realm"] != realms.Child {
				t.Errorf("the site keeps %+v, %v", kept.Approval, err)
			}
			text := d.log(t, "ClientIDManagerStartup.log")
			for _, want := range []string{
				"[RegTask] - Starting registration, attempt 1.",
				"[RegTask] - Client is registered. Server assigned ClientID is " + string(status.ClientID) + ". Approval status 1",
			} {
				if !strings.Contains(text, want) {
					t.Errorf("ClientIDManagerStartup.log lacks %q:\n%s", want, text)
				}
			}
			t.Logf("%s\n%s", strings.Join(d.steps, "\n"), strings.Join(status.Verified, "\n"))
		})
	}
}

// TestKerberosThatFailsIsSaidAndTheDeviceWaits: never silently, and approval by hand or a
// repaired credential ends the waiting.
func TestKerberosThatFailsIsSaidAndTheDeviceWaits(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		keytab func(*realms.Realms) string
		change func(n *network, c *kerberos.Config)
		code   catalog.Code
		repair bool
	}{
		"no machine credential":               {(*realms.Realms).MPKeytab, func(_ *network, c *kerberos.Config) { c.Keytab = "/nonexistent/keytab" }, catalog.ClientKerberosCredential, true},
		"a server with another account's key": {(*realms.Realms).WrongKeytab, nil, "", false},
		"a server without a keytab":           {func(*realms.Realms) string { return "" }, nil, catalog.KerberosNotAvailable, false},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t, test.keytab, "")
			dir := t.TempDir()
			d := n.device(t, dir, func(c *kerberos.Config) {
				if test.change != nil {
					test.change(n, c)
				}
			})
			status := d.enrol(t, n.setup("https"))
			if status.ApprovalStatus != ccm.ApprovalNone || status.Proof != "its own key alone" || status.WaitingFor != "approval by an administrator" {
				t.Errorf("got %+v", status)
			}
			if len(d.said) != 1 || !strings.Contains(d.said[0], string(test.code)) || !strings.HasPrefix(status.NoKerberos, string(test.code)) || status.NoKerberos == "" {
				t.Errorf("said %q, kept %q, want %s", d.said, status.NoKerberos, test.code)
			}
			if text := d.log(t, "ClientIDManagerStartup.log"); !strings.Contains(text, "Kerberos did not prove this device: "+string(test.code)) {
				t.Errorf("ClientIDManagerStartup.log says nothing of it:\n%s", text)
			}
			t.Logf("%s\n%s", strings.Join(d.steps, "\n"), status.NoKerberos)

			if !test.repair {
				if _, err := n.Site.Approve(t.Context(), status.ClientID, proof.LevelManaged, "admin", "known"); err != nil {
					t.Fatal(err)
				}
				d = n.device(t, dir, nil)
			} else {
				d = n.device(t, dir, nil)
			}
			again := d.enrol(t, client.Setup{})
			if again.ClientID != status.ClientID || again.ApprovalStatus != ccm.ApprovalApproved || again.WaitingFor != "" {
				t.Errorf("afterwards: got %+v", again)
			}
			if test.repair && !strings.HasPrefix(again.Proof, "Kerberos: ") {
				t.Errorf("afterwards proved by %q", again.Proof)
			}
		})
	}
}

func TestApprovalByHandIsLearnedOverPlainHTTP(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, (*realms.Realms).MPKeytab, "https")
	dir := t.TempDir()
	none := func(c *kerberos.Config) { c.Keytab = "/nonexistent/keytab" }
	status := n.device(t, dir, none).enrol(t, n.setup("http"))
	if _, err := n.Site.Approve(t.Context(), status.ClientID, proof.LevelManaged, "admin", "known"); err != nil {
		t.Fatal(err)
	}
	if again := n.device(t, dir, none).enrol(t, client.Setup{}); again.ApprovalStatus != ccm.ApprovalApproved || again.Proof != status.Proof {
		t.Errorf("got %+v", again)
	}
}

func TestTrustOnFirstUseOfARealManagementPoint(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, (*realms.Realms).MPKeytab, "")
	for _, scheme := range []string{"https", "http"} {
		setup := n.setup(scheme)
		setup.RootKey = ""
		if scheme == "http" {
			if err := n.device(t, t.TempDir(), nil).Enrol(t.Context(), setup); catalog.CodeOf(err) != catalog.ClientNoTrustAnchor {
				t.Errorf("without an anchor: got %v, want %s", err, catalog.ClientNoTrustAnchor)
			}
		}
		setup.TrustFirstUse = true
		d := n.device(t, t.TempDir(), nil)
		status := d.enrol(t, setup)
		if len(d.said) != 1 || !strings.Contains(d.said[0], n.root) || !strings.Contains(status.Trust, "learned on first use at ") || status.Anchor != "site root "+n.root {
			t.Errorf("%s: said %q, trust %q, anchor %q", scheme, d.said, status.Trust, status.Anchor)
		}
	}
}

func TestAManagementPointUnderAnotherRootIsRefused(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, (*realms.Realms).MPKeytab, "")
	for scheme, code := range map[string]catalog.Code{"https": catalog.ClientServerRoot, "http": catalog.ClientReplyUnsigned} {
		setup := n.setup(scheme)
		setup.RootKey = strings.Repeat("ab", 32)
		d := n.device(t, t.TempDir(), nil)
		if err := d.Enrol(t.Context(), setup); catalog.CodeOf(err) != code {
			t.Errorf("%s: got %v, want %s", scheme, err, code)
		}
		if len(n.windows()) > 0 {
			t.Errorf("%s: a ticket was sent to it", scheme)
		}
	}
}
