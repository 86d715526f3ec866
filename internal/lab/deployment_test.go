package lab_test

import (
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/client"
	"postern/connector"
	"postern/gateway"
	"postern/internal/lab"
	"postern/internal/role"
	"postern/mp"
	"postern/token"
)

// deployment is a world whose management point, and perhaps connector, are processes of their own, so that they can be killed.
type deployment struct {
	*world
	site      role.MadeSite
	point     *process
	connector *process
	joined    role.MadeConnector
}

// deployPoint makes a site and starts its management point as a process.
func deployPoint(t testing.TB, ask role.NewSite, edit ...func(*exec.Cmd)) *deployment {
	t.Helper()
	dir := ask.Dir
	if dir == "" {
		dir = t.TempDir()
	}
	ask.HTTPS, ask.HTTP = freeAddress(t), freeAddress(t)
	made := newSite(t, dir, ask)
	d := &deployment{site: made, point: serve(t, "mp", made.Config, edit...)}
	site := openSite(t, made.Config)
	d.world = &world{
		TB: t, clients: &clients{byName: map[string]*http.Client{}},
		Lab:     &lab.Lab{Dir: dir, SiteRoot: made.SiteRoot, ManagementPoint: &role.Running{Site: site, Addresses: map[string]string{"https": ask.HTTPS, "http": ask.HTTP}}},
		gateway: newExchanges(func(e gateway.Exchange) string { return e.MessageID }),
		middle:  newExchanges(func(e connector.Exchange) string { return e.MessageID }),
		point:   newExchanges(func(e mp.Exchange) string { return e.MessageID }),
	}
	d.role = site.ManagementPoints()[0].RoleID
	t.Cleanup(d.clients.closeIdle)
	return d
}

// deploy adds a gateway, and a connector as a process.
func deploy(t testing.TB) *deployment {
	t.Helper()
	d := deployPoint(t, role.NewSite{})
	made, err := role.InitGateway(role.NewGateway{Dir: filepath.Join(d.Dir, "gateway"), Name: "localhost", SiteRoot: d.SiteRoot, Listen: freeAddress(t)}, role.Protection{})
	d.must(err)
	config, err := role.Load(made.Config)
	d.must(err)
	_, err = d.Site().AddGateway(t.Context(), made.URL, made.Pin, "test")
	d.must(err)
	d.Gateway, err = role.StartGateway(t.Context(), config, role.Environment{ObserveGateway: d.world.gateway.add})
	d.must(err)
	t.Cleanup(func() { d.Gateway.Stop() })
	_, port, _ := net.SplitHostPort(d.Gateway.Addresses["https"])
	d.GatewayHost = net.JoinHostPort("localhost", port)

	code, err := d.Site().Invite(t.Context(), "lab1", "test")
	d.must(err)
	d.joined, err = role.JoinConnector(t.Context(), role.NewConnector{Dir: filepath.Join(d.Dir, "connector"), ManagementPoint: d.ManagementPointURL(), Code: code + "." + d.SiteRoot}, role.Protection{}, time.Now)
	d.must(err)
	d.connector = serve(t, "connector", d.joined.Config)
	d.awaitTunnel()
	return d
}

func (d *deployment) awaitTunnel() {
	d.Helper()
	eventually(d, "the gateway is ready", func() bool {
		s := d.Gateway.Gateway.Status()
		return s.Healthy && s.Certificate.Source == gateway.CertificateSite
	})
}

// restartPoint starts the management point again.
func (d *deployment) restartPoint(edit ...func(*exec.Cmd)) {
	d.Helper()
	d.point = serve(d, "mp", d.site.Config, edit...)
	d.clients.closeIdle()
}

// half sends a request and half of its body through the gateway, waits until the connector has it, and returns what sends the rest and reads the answer.
func (d *deployment) half(by *device) (rest func() answer) {
	d.Helper()
	address := d.outside(ccm.DoorServerAuth, "/CCM_System_TokenAuth/request")
	contentType, body := by.encode(d, "MP_PolicyManager", by.assignments(), true)
	conn := d.dial("https://" + d.GatewayHost)
	fmt.Fprintf(conn, "CCM_POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n", ccm.ExternalPath(ccm.DoorServerAuth, d.role, "/CCM_System_TokenAuth/request"), contentType, len(body))
	proofOf(d, by.key, "CCM_POST", address, by.ccm).Write(conn)
	conn.Write([]byte("\r\n"))
	conn.Write(body[:len(body)/2])
	eventually(d, "the request is in the tunnel", func() bool {
		inFlight := 0
		for _, c := range d.Gateway.Gateway.Status().Connectors {
			inFlight += c.InFlight
		}
		return inFlight > streamsOfState(d)
	})
	return func() answer {
		conn.Write(body[len(body)/2:])
		return d.read(conn)
	}
}

// streamsOfState is how many requests of the gateway's own are always under way: one stream of the site state through each connection.
func streamsOfState(d *deployment) int { return len(d.Gateway.Gateway.Status().Connectors) }

// TestConnectorKilledMidRequest: the device is told with a code, and a retry succeeds when the connector is back.
func TestConnectorKilledMidRequest(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	laptop := d.enrolled("laptop")
	d.unchanged(func() {
		rest := d.half(laptop)
		d.connector.kill()
		a := rest()
		if a.status != 502 && a.status != 503 || !contains([]catalog.Code{catalog.TunnelLost, catalog.TunnelAborted, catalog.TunnelGone, catalog.NoConnector}, a.problem()) {
			t.Errorf("answered %s, want 502 or 503 and a code of the tunnel", a)
		}
		if got := d.world.gateway.of(t, a.id()).Code(); got != a.problem() {
			t.Errorf("the gateway tells of %s, the answer of %s", got, a.problem())
		}
	})
	eventually(t, "the gateway knows that it has no connector", func() bool { return len(d.Gateway.Gateway.Status().Connectors) == 0 })
	d.refuses(refusal{status: 503, code: catalog.NoConnector}, func() answer { return d.message(laptop, laptop.ccm, "MP_PolicyManager", laptop.assignments(), true) })

	// A client that retries gets through as soon as a connector is there.
	raw, _ := d.bulk(1)
	enrolled := d.enrolInBackground(raw)
	d.connector = serve(t, "connector", d.joined.Config)
	if err := <-enrolled; err != nil {
		t.Errorf("enrol while the connector was away: %v", err)
	}
	d.awaitTunnel()
	d.text(d.message(laptop, laptop.ccm, "MP_PolicyManager", laptop.assignments(), true))
}

// enrolInBackground enrols an agent that tries again.
func (d *deployment) enrolInBackground(raw string) <-chan error {
	done := make(chan error, 1)
	setup := client.Setup{Gateway: client.Gateway{Host: d.GatewayHost, RoleID: d.role}, RootKey: d.SiteRoot, Token: client.Secret(raw), Name: "patient", Retry: 50 * time.Millisecond, DownloadTimeout: time.Minute}
	agent, err := client.Open(client.Config{Dir: filepath.Join(d.TB.(*testing.T).TempDir(), "device")})
	d.must(err)
	go func() {
		defer agent.Close()
		done <- agent.Enrol(d.Context(), setup)
	}()
	return done
}

// TestManagementPointKilledMidRequest: the connector answers in its own name, with the phrase of the documents (protocol.md 7.4) and a code;
// afterwards everything goes on.
func TestManagementPointKilledMidRequest(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	laptop := d.enrolled("laptop")
	rest := d.half(laptop)
	d.point.kill()
	a := rest()
	entry, _ := catalog.Lookup(a.problem())
	if a.status < 500 || a.problem() == "" || entry.Status != a.status {
		t.Errorf("answered %s, want a failure on our side with its code", a)
	}
	later := d.message(laptop, laptop.ccm, "MP_PolicyManager", laptop.assignments(), true)
	if later.status != 500 || later.reason != "CMGConnector_InternalServerError" || later.problem() != catalog.BackendUnreachable {
		t.Errorf("while it is away: %s, want 500 CMGConnector_InternalServerError and %s", later, catalog.BackendUnreachable)
	}
	d.restartPoint()
	d.text(d.message(laptop, laptop.ccm, "MP_PolicyManager", laptop.assignments(), true))
	if known, err := d.Site().Device(t.Context(), laptop.id); err != nil || known.Key != laptop.thumbprint(t) {
		t.Errorf("the device is %+v, %v", known, err)
	}
	d.token(d.exchange(laptop, laptop.selfProve, token.KindCCM))
}
