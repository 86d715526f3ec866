package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/logfile"
	"postern/token"
)

const testGateway = gatewayHost + "/CCM_Proxy_MutualAuth/72057594037937981"

// twoNetworks are a site with a management point and a gateway of its own, and the networks between which a device moves.
type twoNetworks struct {
	*testSite
	gateway  *httptest.Server
	stranger *httptest.Server // what answers for the management point in a hotel

	mu      sync.Mutex
	inside  bool
	hotel   bool // every name leads to the stranger's, but the gateway's
	closed  bool // the gateway cannot be reached
	dialled map[string]int
	asked   int // by the stranger
}

func newTwoNetworks(t *testing.T) *twoNetworks {
	n := &twoNetworks{testSite: newTestSite(t), inside: true, dialled: map[string]int{}}
	n.gateways = []string{testGateway}
	start := func(certificate tls.Certificate, handler http.HandlerFunc) *httptest.Server {
		server := httptest.NewUnstartedServer(handler)
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequestClientCert}
		server.StartTLS()
		t.Cleanup(server.Close)
		return server
	}
	n.gateway = start(n.certificate(certificateFor{}), n.serve)
	elsewhere := &testSite{t: t}
	elsewhere.root, elsewhere.rootCA = newRoot(t)
	n.stranger = start(elsewhere.certificate(certificateFor{names: []string{pointHost}, role: token.RoleManagementPoint}), func(_ http.ResponseWriter, r *http.Request) {
		if len(r.Header["Authorization"])+len(r.Header["Dpop"]) > 0 || r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/roots") {
			n.mu.Lock()
			n.asked++
			n.mu.Unlock()
		}
	})
	return n
}

func (n *twoNetworks) dial(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	host := hostName(address)
	n.dialled[host]++
	to := ""
	switch {
	case host == gatewayHost && !n.closed:
		to = n.gateway.Listener.Addr().String()
	case host == pointHost && n.hotel:
		to = n.stranger.Listener.Addr().String()
	case host == pointHost && n.inside && strings.HasSuffix(address, ":80"):
		to = n.plain.Listener.Addr().String()
	case host == pointHost && n.inside:
		to = n.server.Listener.Addr().String()
	}
	n.mu.Unlock()
	if to == "" {
		return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("no route to host")}
	}
	return (&net.Dialer{}).DialContext(ctx, network, to)
}

func (n *twoNetworks) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

func (n *twoNetworks) tried(host string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dialled[host]
}

// traveller is a device of the two networks.
type traveller struct {
	*testAgent
	at       string // its address
	said     []string
	onChange func(ctx context.Context, changed func() bool) error
}

func (n *twoNetworks) traveller(t *testing.T) *traveller {
	t.Helper()
	return n.travellerOf(t, n.testSite.inside("https"))
}

// bothWays is the line of S3: CCMHOSTNAME and SMSMP.
func (n *twoNetworks) bothWays() Setup {
	both := n.testSite.inside("https")
	outside := n.setup()
	both.Gateway, both.Token = outside.Gateway, outside.Token
	return both
}

func (n *twoNetworks) travellerOf(t *testing.T, setup Setup) *traveller {
	t.Helper()
	a := &traveller{testAgent: &testAgent{site: n.testSite, dir: t.TempDir() + "/state", logDir: t.TempDir() + "/logs", clock: n.clock, made: new(int)}, at: "10.1.1.7/24"}
	folder := logfile.NewFolder(a.logDir, logfile.Options{Now: n.clock.now})
	opened, err := Open(Config{
		Dir: a.dir, Now: n.clock.now, Dial: n.dial, Logs: folder, Observe: a.observe, Wait: a.wait, Say: func(text string) { a.said = append(a.said, text) },
		Proxy:     func(*http.Request) (*url.URL, error) { return nil, nil },
		Addresses: func() ([]net.Addr, error) { return []net.Addr{address("127.0.0.1/8"), address(a.at)}, nil },
		NetworkChange: func(ctx context.Context, changed func() bool) error {
			if a.onChange != nil {
				return a.onChange(ctx, changed)
			}
			<-ctx.Done()
			return ctx.Err()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	opened.makeKeys = func(io.Reader) (signing, encryption *rsaKey, err error) { return testKeys()[0], testKeys()[1], nil }
	a.Agent = opened
	t.Cleanup(func() { opened.Close(); folder.Close() })
	a.enrol(t, setup)
	return a
}

type address string

func (address) Network() string  { return "ip+net" }
func (a address) String() string { return string(a) }

// ask sends a message, as programs on the device do.
func (a *traveller) ask(t *testing.T) error {
	t.Helper()
	_, err := a.Send(t.Context(), "MP_PolicyManager", ccm.BuildAssignmentsRequest(ccm.AssignmentsRequest{ClientID: a.Status().ClientID, RequestType: ccm.AssignmentsAlways}))
	return err
}

func (a *traveller) wantWay(t *testing.T, way, why string) {
	t.Helper()
	if s := a.Status(); s.Way != way || !strings.Contains(s.WayWhy, why) || s.WaySince.IsZero() {
		t.Fatalf("way %q since %s because %q, want %q because of %q", s.Way, s.WaySince, s.WayWhy, way, why)
	}
}

// TestADeviceLeavesAndComesBack is S3: inside it learns the gateway; outside it goes on by its self-prove token; it is inside again when it finds its
// management point.
func TestADeviceLeavesAndComesBack(t *testing.T) {
	n := newTwoNetworks(t)
	a := n.traveller(t)
	a.wantWay(t, WayInside, "")
	if s := a.Status(); !slices.Equal(s.Gateways, []string{testGateway}) || !s.GatewaysHeard.Equal(n.clock.now()) || s.LooksFor != "" {
		t.Fatalf("inside the device knows %q, heard %s", s.Gateways, s.GatewaysHeard)
	}
	before := a.Status()

	n.set(func() { n.inside = false })
	a.Close() // the connection that stands
	a.steps = nil
	if err := a.ask(t); err != nil {
		t.Fatal(err)
	}
	a.wantWay(t, WayInternet, string(catalog.ClientCannotConnect))
	s := a.Status()
	if s.ClientID != before.ClientID || s.Key != before.Key || *a.made != 0 || s.Gateway != testGateway || s.LooksFor != "https://"+pointHost {
		t.Errorf("outside it is %+v", s)
	}
	if !slices.ContainsFunc(a.steps, func(s Step) bool { return s.What == "CCM token by self-prove token" && s.Hop == "gateway" && s.OK }) {
		t.Errorf("steps %+v, want a CCM token by the self-prove token through the gateway", a.steps)
	}

	for range 3 { // no look within a quarter of an hour on the same network
		n.clock.add(4 * time.Minute)
		if err := a.ask(t); err != nil {
			t.Fatal(err)
		}
	}
	looks := n.tried(pointHost)
	n.clock.add(4 * time.Minute)
	if err := a.ask(t); err != nil {
		t.Fatal(err)
	}
	if got := n.tried(pointHost) - looks; got != 1 {
		t.Errorf("%d looks for the management point after 16 minutes, want 1", got)
	}
	a.wantWay(t, WayInternet, "")
	if text := readLog(t, a.testAgent, "LocationServices.log"); !strings.Contains(text, "is not to be reached from here") || strings.Contains(text, `type="3"`) {
		t.Errorf("a look that finds nothing is told as an error:\n%s", text)
	}

	n.set(func() { n.inside = true })
	a.at = "10.1.1.8/24" // another network: at once
	n.clock.add(2 * time.Minute)
	if err := a.ask(t); err != nil {
		t.Fatal(err)
	}
	a.wantWay(t, WayInside, "answers")
	if s := a.Status(); s.ManagementPoint != "https://"+pointHost || s.LooksFor != "" || s.Gateway != "" {
		t.Errorf("back inside it is %+v", s)
	}
	through := n.tried(gatewayHost)
	if err := a.Renew(t.Context(), true); err != nil || n.tried(gatewayHost) != through {
		t.Errorf("inside it renews with %v, %d connections to the gateway", err, n.tried(gatewayHost)-through)
	}
	text := readLog(t, a.testAgent, "ClientLocation.log")
	for _, want := range []string{"Client is on internet", "Client is on intranet", "Now talking with " + testGateway} {
		if !strings.Contains(text, want) {
			t.Errorf("ClientLocation.log lacks %q:\n%s", want, text)
		}
	}
}

// TestWhatIsNoReasonToLeave: an answer of the site is an answer.
func TestWhatIsNoReasonToLeave(t *testing.T) {
	for name, test := range map[string]struct {
		happens func(n *twoNetworks)
		want    catalog.Code
	}{
		"blocked": {func(n *twoNetworks) { n.refuse = refuses(catalog.KeyBlocked) }, catalog.KeyBlocked},
		"busy":    {func(n *twoNetworks) { n.refuse = refuses(catalog.StoreUnavailable) }, catalog.StoreUnavailable},
		"certificate expired": {func(n *twoNetworks) {
			n.show(certificateFor{names: []string{pointHost}, role: token.RoleManagementPoint, from: begin().AddDate(-1, 0, 0), to: begin().AddDate(0, 0, -1)})
		}, catalog.ClientServerExpired},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTwoNetworks(t)
			a := n.traveller(t)
			a.Close() // the connection that stands
			test.happens(n)
			if err := a.Renew(t.Context(), true); catalog.CodeOf(err) != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
			if a.wantWay(t, WayInside, ""); n.tried(gatewayHost) != 0 {
				t.Errorf("%d connections to the gateway", n.tried(gatewayHost))
			}
		})
	}
}

func refuses(code catalog.Code) func(string) error {
	return func(string) error { return catalog.Errorf(code, "for the test") }
}

// TestAnotherServerIsOutside: in a hotel the management point's name leads to somebody else, who is told nothing.
func TestAnotherServerIsOutside(t *testing.T) {
	n := newTwoNetworks(t)
	a := n.traveller(t)
	a.Close()
	n.set(func() { n.hotel = true })
	if err := a.Renew(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	a.wantWay(t, WayInternet, string(catalog.ClientServerRoot))
	n.clock.add(time.Hour)
	if err := a.ask(t); err != nil {
		t.Fatal(err)
	}
	a.wantWay(t, WayInternet, "")
	if n.set(func() {}); n.asked != 0 {
		t.Errorf("the other server was asked %d times for more than the account of roots", n.asked)
	}
	if !slices.ContainsFunc(a.said, func(text string) bool { return strings.HasPrefix(text, string(catalog.RoamOtherServer)) }) || !strings.Contains(readLog(t, a.testAgent, "LocationServices.log"), string(catalog.RoamOtherServer)) {
		t.Errorf("nobody is told; said %q", a.said)
	}
	if !strings.Contains(a.Status().NotInside, string(catalog.ClientServerRoot)) {
		t.Errorf("status says of the look %q", a.Status().NotInside)
	}
}

func TestNoWayAtAll(t *testing.T) {
	n := newTwoNetworks(t)
	a := n.traveller(t)
	a.Close()
	n.set(func() { n.inside, n.closed = false, true })
	err := a.Renew(t.Context(), true)
	if catalog.CodeOf(err) != catalog.RoamNoWay || !Transient(err) || !strings.Contains(err.Error(), gatewayHost) || !strings.Contains(err.Error(), pointHost) {
		t.Errorf("got %v, want %s with both ways", err, catalog.RoamNoWay)
	}
	a.wantWay(t, WayInside, "")
	n.set(func() { n.closed = false })
	if err := a.Renew(t.Context(), true); err != nil {
		t.Error(err)
	}
	a.wantWay(t, WayInternet, "")
	n.set(func() { n.inside, n.closed = true, true }) // inside nobody reaches the gateway: no need to wait for the next look
	a.Close()
	if err := a.Renew(t.Context(), true); err != nil {
		t.Error(err)
	}
	a.wantWay(t, WayInside, "answers")
}

func TestWithoutAGatewayTheFailureStands(t *testing.T) {
	n := newTwoNetworks(t)
	n.gateways = []string{}
	a := n.traveller(t)
	a.Close()
	n.set(func() { n.inside = false })
	if err := a.Renew(t.Context(), true); catalog.CodeOf(err) != catalog.ClientCannotConnect {
		t.Errorf("got %v, want %s", err, catalog.ClientCannotConnect)
	}
	if text := readLog(t, a.testAgent, "ClientLocation.log"); !strings.Contains(text, string(catalog.RoamNoGateway)) {
		t.Errorf("ClientLocation.log says %q", text)
	}
}

// TestABlockedDeviceIsRefusedOutsideToo: the gateway's refusal is the answer.
func TestABlockedDeviceIsRefusedOutsideToo(t *testing.T) {
	n := newTwoNetworks(t)
	a := n.traveller(t)
	a.Close()
	n.set(func() { n.inside = false })
	n.do(func() { n.refuse = refuses(catalog.KeyBlocked) })
	if err := a.ask(t); catalog.CodeOf(err) != catalog.KeyBlocked {
		t.Errorf("got %v, want %s", err, catalog.KeyBlocked)
	}
	a.wantWay(t, WayInternet, "")
}

// TestAlwaysInternet: CCMALWAYSINF=1 keeps a device outside that is inside (product.md 7.1).
func TestAlwaysInternet(t *testing.T) {
	n := newTwoNetworks(t)
	a := n.traveller(t)
	a.enrol(t, Setup{AlwaysInternet: true})
	a.wantWay(t, WayInternet, "CCMALWAYSINF=1")
	looks := n.tried(pointHost)
	n.clock.add(time.Hour)
	a.at = "192.0.2.7/24"
	if err := a.Renew(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if a.wantWay(t, WayInternet, "CCMALWAYSINF=1"); n.tried(pointHost) != looks {
		t.Error("the management point was looked for")
	}
	a.enrol(t, n.testSite.inside("https"))
	if err := a.ask(t); err != nil {
		t.Fatal(err)
	}
	if n.clock.add(time.Hour); a.ask(t) != nil {
		t.Fatal("the second message failed")
	}
	a.wantWay(t, WayInside, "")
}

// TestRunNoticesANewNetwork: nothing is due for hours, and the device moves at once.
func TestRunNoticesANewNetwork(t *testing.T) {
	n := newTwoNetworks(t)
	a := n.traveller(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var ways []string
	turns := 0
	a.onChange = func(ctx context.Context, changed func() bool) error {
		ways = append(ways, a.Status().Way)
		switch turns++; turns {
		case 1:
			n.set(func() { n.inside = false })
			a.at = "192.0.2.7/24"
		case 2:
			n.set(func() { n.inside = true })
			a.at = "10.1.1.7/24"
		default:
			cancel()
		}
		a.Close()
		n.clock.add(2 * time.Minute)
		if !changed() && ctx.Err() == nil {
			t.Error("the change of addresses is not noticed")
		}
		return ctx.Err()
	}
	blocking := make(chan struct{})
	a.Agent.config.Wait = func(ctx context.Context, d time.Duration) error {
		if d < time.Minute {
			return ctx.Err() // the network settles
		}
		select {
		case <-blocking:
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	if err := a.Run(ctx); err != nil {
		t.Error(err)
	}
	if want := []string{WayInside, WayInternet, WayInside}; !slices.Equal(ways, want) {
		t.Errorf("ways %q, want %q", ways, want)
	}
}

func TestGatewaysAreAskedForAnew(t *testing.T) {
	now := begin()
	heard := roaming{Heard: now, HeardOn: "home"}
	for name, test := range map[string]struct {
		at   time.Duration
		on   string
		last time.Duration
		want bool
	}{
		"just heard":                       {time.Minute, "home", gatewaysLast, false},
		"a day":                            {24 * time.Hour, "home", gatewaysLast, false},
		"25 hours (product.md 1.6)":        {25 * time.Hour, "home", gatewaysLast, true},
		"at start":                         {time.Hour, "home", gatewaysAtStart, true},
		"started twice":                    {time.Minute, "home", gatewaysAtStart, false},
		"another network":                  {16 * time.Minute, "hotel", gatewaysLast, true},
		"another network, and at once one": {time.Minute, "hotel", gatewaysLast, false},
		"clock set back":                   {-time.Hour, "home", gatewaysLast, true},
	} {
		if got := heard.stale(now.Add(test.at), test.on, test.last); got != test.want {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
}

func TestGatewaysOfAnAnswer(t *testing.T) {
	many := make([]string, 200)
	for i := range many {
		many[i] = fmt.Sprintf("g%d.test/CCM_Proxy_MutualAuth/%d", i, i+1)
	}
	for name, test := range map[string]struct {
		named *[]string
		want  int
	}{
		"not said: the list stays": {nil, 1},
		"none":                     {&[]string{}, 0},
		"the form of CCMHOSTNAME":  {&[]string{testGateway, "other.test:8443/CCM_Proxy_MutualAuth/7"}, 2},
		"twice":                    {&[]string{testGateway, testGateway}, 1},
		"no role, a path, a user, a port of none, a control character": {&[]string{"h", "h/x", "u@h/CCM_Proxy_MutualAuth/1", "h:99999/CCM_Proxy_MutualAuth/1", "h\n/CCM_Proxy_MutualAuth/1", ""}, 0},
		"too many": {&many, maxGateways},
	} {
		m := roaming{Gateways: []route{{Scheme: "https", Host: "before.test", RoleID: 1, Internet: true}}}
		if m.hear(test.named, begin(), "home"); len(m.Gateways) != test.want || !m.Heard.Equal(begin()) {
			t.Errorf("%s: got %+v, want %d", name, m.Gateways, test.want)
		}
	}
}

// TestADeviceFromTheInternetGoesInside: CCMHOSTNAME and SMSMP together, as S3 has them.
func TestADeviceFromTheInternetGoesInside(t *testing.T) {
	n := newTwoNetworks(t)
	n.set(func() { n.inside = false })
	a := n.travellerOf(t, n.bothWays())
	a.wantWay(t, WayInternet, "CCMHOSTNAME")
	n.set(func() { n.inside = true })
	n.clock.add(time.Hour)
	if err := a.Renew(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	a.wantWay(t, WayInside, "answers")
	both := n.bothWays()
	both.Token = ""
	a.enrol(t, both) // the same line inside moves nothing
	if a.wantWay(t, WayInside, "answers"); a.current().Internet != 0 {
		t.Errorf("InternetFlag %d inside", a.current().Internet)
	}
	n.set(func() { n.inside = false })
	a.Close()
	succeed(t, a.Renew(t.Context(), true))
	if a.wantWay(t, WayInternet, "cannot be reached"); a.current().Internet != 1 {
		t.Errorf("InternetFlag %d outside", a.current().Internet)
	}
}

// TestAManagementPointThatWasAwayIsFoundAgain: the device has not moved, so it looks every quarter of an hour, and renews nothing for that.
func TestAManagementPointThatWasAwayIsFoundAgain(t *testing.T) {
	n := newTwoNetworks(t)
	a := n.traveller(t)
	a.Close()
	n.set(func() { n.inside = false })
	if err := a.ask(t); err != nil {
		t.Fatal(err)
	}
	a.wantWay(t, WayInternet, "")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a.waits = nil
	a.onWait = func(d time.Duration) error {
		switch len(a.waits) {
		case 2:
			n.set(func() { n.inside = true })
		case 4:
			cancel()
		}
		return ctx.Err()
	}
	exchanges := n.count("ccm_sts")
	if err := a.Run(ctx); err != nil {
		t.Error(err)
	}
	for _, d := range a.waits[:2] {
		if d < lookAgain || d > 2*lookAgain {
			t.Errorf("waits %v, want a quarter of an hour or a little more at first", a.waits)
		}
	}
	if a.wantWay(t, WayInside, "answers"); a.waits[2] < time.Hour || n.count("ccm_sts") > exchanges+1 {
		t.Errorf("waits %v, %d exchanges; inside again nothing hurries", a.waits, n.count("ccm_sts")-exchanges)
	}
}

// TestFiftyMessagesLookForAWayOnce: whoever needs one waits for the same.
func TestFiftyMessagesLookForAWayOnce(t *testing.T) {
	n := newTwoNetworks(t)
	a := n.traveller(t)
	a.Close()
	n.set(func() { n.inside = false })
	exchanges := n.count("ccm_sts")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := a.ask(t); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if a.wantWay(t, WayInternet, ""); n.count("ccm_sts") != exchanges+1 {
		t.Errorf("%d exchanges, want 1", n.count("ccm_sts")-exchanges)
	}
}

// TestTheLineOfADomainComputer is word for word that of the documents.
func TestTheLineOfADomainComputer(t *testing.T) {
	n := newTwoNetworks(t)
	a := n.traveller(t)
	succeed(t, a.save(func(r *record) { r.Proof = "Kerberos: WK02$@CHILD.TEST to HTTP/mp.test, which proved itself too" }))
	a.Close()
	n.set(func() { n.inside = false })
	succeed(t, a.Renew(t.Context(), true))
	if text := readLog(t, a.testAgent, "ClientLocation.log"); !strings.Contains(text, "[Domain joined client is in Internet]") {
		t.Errorf("ClientLocation.log says %s", text)
	}
}

// TestTheEnrolLineOutside: the same line again, where its management point cannot be reached, makes no new device and ends well.
func TestTheEnrolLineOutside(t *testing.T) {
	n := newTwoNetworks(t)
	a := n.traveller(t)
	line := n.testSite.inside("https")
	id := a.Status().ClientID
	n.set(func() { n.inside = false })
	for range 2 {
		a.Close()
		succeed(t, a.Enrol(t.Context(), line))
		if a.wantWay(t, WayInternet, ""); a.Status().ClientID != id || a.Status().LastError != "" {
			t.Errorf("outside it is %+v", a.Status())
		}
	}
	n.set(func() { n.inside, n.closed = true, true })
	a.Close()
	succeed(t, a.Enrol(t.Context(), line))
	a.wantWay(t, WayInside, "answers")

	fresh := n.newAgent() // one that never registered is not helped by a gateway
	fresh.Agent.config.Dial = func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: errors.New("no route")}
	}
	if err := fresh.Enrol(t.Context(), line); catalog.CodeOf(err) != catalog.ClientCannotConnect {
		t.Errorf("a new device: got %v, want %s", err, catalog.ClientCannotConnect)
	}
}

// TestGatewaysThatDoNotServeArePassedOver: one that does not know the management point, one that is not there; then the one that is used fails.
func TestGatewaysThatDoNotServeArePassedOver(t *testing.T) {
	n := newTwoNetworks(t)
	n.gateways = []string{"gone.test/CCM_Proxy_MutualAuth/1", testGateway, gatewayHost + "/CCM_Proxy_MutualAuth/7"}
	a := n.traveller(t)
	a.Close()
	n.set(func() { n.inside = false })
	succeed(t, a.ask(t))
	if a.wantWay(t, WayInternet, "the management point cannot be reached"); a.Status().Gateway != testGateway {
		t.Errorf("through %s", a.Status().Gateway)
	}
	since := a.Status().WaySince
	n.clock.add(time.Minute)
	succeed(t, a.save(func(r *record) { r.Route = r.Roaming.Gateways[0] })) // as if it had used the one that is gone
	succeed(t, a.ask(t))
	if a.wantWay(t, WayInternet, "the gateway cannot be reached"); a.Status().Gateway != testGateway || !a.Status().WaySince.Equal(since) {
		t.Errorf("through %s since %s", a.Status().Gateway, a.Status().WaySince)
	}
}

// TestRunRefreshesTheGateways at its start, and not again when it starts twice.
func TestRunRefreshesTheGateways(t *testing.T) {
	n := newTwoNetworks(t)
	a := n.traveller(t)
	n.clock.add(2 * time.Hour)
	n.do(func() { n.gateways = []string{"new.test/CCM_Proxy_MutualAuth/9"} })
	exchanges := n.count("ccm_sts")
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		a.onWait = func(time.Duration) error { cancel(); return ctx.Err() }
		a.clock = &testClock{} // waiting costs no time
		succeed(t, a.Run(ctx))
	}
	if got := a.Status().Gateways; !slices.Equal(got, n.gateways) || n.count("ccm_sts") != exchanges+1 {
		t.Errorf("knows %q after %d exchanges, want %q after 1", got, n.count("ccm_sts")-exchanges, n.gateways)
	}
}

// TestDevicesWithoutTokensRoamToo: one with a certificate of the company, and one on plain HTTP, get no tokens inside. They ask for the gateways, and leave and
// come back like the others.
func TestDevicesWithoutTokensRoamToo(t *testing.T) {
	for name, test := range map[string]struct {
		setup  func(t *testing.T, n *twoNetworks) Setup
		inside string // where it is
		enters string // by what it goes on outside
	}{
		"certificate of the company": {func(t *testing.T, n *twoNetworks) Setup {
			setup := n.testSite.inside("https")
			setup.Certificate.Files = []CertificateFile{issue(t, n.newCompany(), t.TempDir(), "wk02", testRSA())}
			return setup
		}, "https://" + pointHost, ""},
		"plain HTTP": {func(_ *testing.T, n *twoNetworks) Setup { return n.testSite.inside("http") }, "http://" + pointHost, "CCM token by assertion of the registered key"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTwoNetworks(t)
			a := n.travellerOf(t, test.setup(t, n))
			a.wantWay(t, WayInside, "")
			if s := a.Status(); !slices.Equal(s.Gateways, []string{testGateway}) || s.ManagementPoint != test.inside || !s.GatewaysHeard.Equal(n.clock.now()) {
				t.Fatalf("inside at %s it knows %q, heard %s", s.ManagementPoint, s.Gateways, s.GatewaysHeard)
			}
			id := a.Status().ClientID

			n.set(func() { n.inside = false })
			a.Close()
			a.steps = nil
			succeed(t, a.ask(t))
			if a.wantWay(t, WayInternet, string(catalog.ClientCannotConnect)); a.Status().Gateway != testGateway || a.Status().ClientID != id {
				t.Errorf("outside it is %+v", a.Status())
			}
			if steps := strings.Join(stepsOf(a.testAgent), "; "); !strings.Contains(steps, test.enters) {
				t.Errorf("steps %s, want %q", steps, test.enters)
			}

			n.set(func() { n.inside = true })
			n.clock.add(time.Hour)
			succeed(t, a.ask(t))
			if a.wantWay(t, WayInside, "answers"); a.Status().ManagementPoint != test.inside {
				t.Errorf("back inside it is %+v", a.Status())
			}
			n.do(func() { n.gateways = []string{"new.test/CCM_Proxy_MutualAuth/9"} })
			succeed(t, a.Renew(t.Context(), false))
			if got := a.Status().Gateways; !slices.Equal(got, []string{testGateway}) {
				t.Errorf("after an hour it has asked again: %q", got)
			}
			n.clock.add(gatewaysLast)
			succeed(t, a.Renew(t.Context(), false))
			if got := a.Status().Gateways; !slices.Equal(got, n.gateways) {
				t.Errorf("after 25 hours it knows %q, want %q", got, n.gateways)
			}
		})
	}
}

// TestRunOfADeviceWithoutTokensNotices: its timer asks the site for something, and so finds out that it has left.
func TestRunOfADeviceWithoutTokensNotices(t *testing.T) {
	n := newTwoNetworks(t)
	setup := n.testSite.inside("https")
	setup.Certificate.Files = []CertificateFile{issue(t, n.newCompany(), t.TempDir(), "wk02", testRSA())}
	a := n.travellerOf(t, setup)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a.waits = nil
	a.onWait = func(time.Duration) error {
		if len(a.waits) > 1 {
			cancel()
			return ctx.Err()
		}
		n.set(func() { n.inside = false })
		a.Close()
		return nil
	}
	succeed(t, a.Run(ctx))
	a.wantWay(t, WayInternet, "cannot be reached")
}

// TestGatewaysAreNotTakenFromWhoeverIsOnTheWay: on plain HTTP an answer that the site has not signed names nothing, and without a site root none is asked for.
func TestGatewaysAreNotTakenFromWhoeverIsOnTheWay(t *testing.T) {
	n := newTwoNetworks(t)
	n.gateways = []string{}
	a := n.travellerOf(t, n.testSite.inside("http"))
	n.do(func() { n.gateways, n.forge = []string{"evil.test/CCM_Proxy_MutualAuth/9"}, true })
	if err := a.Renew(t.Context(), true); catalog.CodeOf(err) != catalog.ReplyOther {
		t.Errorf("got %v, want %s", err, catalog.ReplyOther)
	}
	asked := n.count("ccm_system")
	succeed(t, a.save(func(r *record) { r.Anchor = anchor{CA: "an authority"} }))
	succeed(t, a.Renew(t.Context(), true))
	if got := a.Status().Gateways; len(got) > 0 || n.count("ccm_system") != asked {
		t.Errorf("it knows %q after %d questions", got, n.count("ccm_system")-asked)
	}
}

// TestAMessageWhoseAnswerIsLost goes again by another way, with the same id, so that whoever has it twice can see that.
func TestAMessageWhoseAnswerIsLost(t *testing.T) {
	n := newTwoNetworks(t)
	a := n.traveller(t)
	n.do(func() { n.messages, n.lose["ccm_system_tokenauth"] = nil, true })
	if got, err := a.Send(t.Context(), "MP_Echo", "<A/>"); got != "<Echo>MP_Echo</Echo>" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if len(n.messages) != 2 || n.messages[0] != n.messages[1] || n.messages[0] == "" {
		t.Errorf("messages %q came, want one twice", n.messages)
	}
}

// TestTheKeyIsChangedByAnyWay: outside, where the last way was inside, and when the answer is lost on the way.
func TestTheKeyIsChangedByAnyWay(t *testing.T) {
	for name, happens := range map[string]func(n *twoNetworks){
		"the device has left":     func(n *twoNetworks) { n.set(func() { n.inside = false }) },
		"the answer is lost":      func(n *twoNetworks) { n.do(func() { n.lose["ccm_system_tokenauth"] = true }) },
		"the next token is lost":  func(n *twoNetworks) { n.do(func() { n.lose["ccm_sts"] = true }) },
		"nothing happens":         func(*twoNetworks) {},
		"another server answers":  func(n *twoNetworks) { n.set(func() { n.hotel = true }) },
		"both, one after another": func(n *twoNetworks) { n.set(func() { n.inside = false }); n.do(func() { n.lose["ccm_sts"] = true }) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newTwoNetworks(t)
			a := n.traveller(t)
			before := a.Status()
			made := 0
			a.makeKeys = func(io.Reader) (signing, encryption *rsaKey, err error) {
				made++
				return testKeys()[2], testKeys()[3], nil
			}
			a.Close()
			happens(n)
			err := a.RotateKey(t.Context())
			for range 3 {
				if err == nil {
					break
				}
				if code := catalog.CodeOf(err); code != catalog.ClientKeyChangeOpen && code != catalog.RoamNoWay {
					t.Fatalf("got %v", err)
				}
				err = a.RotateKey(t.Context())
			}
			succeed(t, err)
			after := a.Status()
			if after.ClientID != before.ClientID || after.Key == before.Key || made != 1 || after.LastError != "" {
				t.Errorf("%d keys made; before %+v, after %+v", made, before, after)
			}
			succeed(t, a.ask(t))
		})
	}
}

// TestTimersGoOnWhileTheMachineSleeps: a timer stands still then. What is due by the clock is done at the next look, and that is no change of network.
func TestTimersGoOnWhileTheMachineSleeps(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	asleep := func(ctx context.Context, _ time.Duration) error { <-ctx.Done(); return ctx.Err() }
	for name, test := range map[string]struct {
		sleeps time.Duration
		want   bool // the pause is over
	}{"an hour of six": {time.Hour, false}, "the night": {9 * time.Hour, true}} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			agent.Agent.config.Wait = asleep
			agent.Agent.config.NetworkChange = func(_ context.Context, changed func() bool) error {
				site.clock.add(test.sleeps)
				if changed() {
					return nil
				}
				cancel()
				return context.Canceled
			}
			moved, err := agent.pause(ctx, 6*time.Hour, agent.network())
			if moved || (err == nil) != test.want {
				t.Errorf("moved %v, %v", moved, err)
			}
		})
	}
}

// TestGatewaysThatTakeAllTheTime: what was tried is said, and not only that the time is over.
func TestGatewaysThatTakeAllTheTime(t *testing.T) {
	n := newTwoNetworks(t)
	n.gateways = []string{testGateway, "second.test/CCM_Proxy_MutualAuth/7"}
	a := n.traveller(t)
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	ctx, c := a.converse(ctx, a.current(), a.logs.location, policyLine())
	err := a.enterBy(ctx, c, a.current().gateways(), catalog.Errorf(catalog.ClientCannotConnect, "for the test"))
	if catalog.CodeOf(err) != catalog.RoamNoWay || !Transient(err) || !strings.Contains(err.Error(), pointHost) {
		t.Errorf("got %v, want %s", err, catalog.RoamNoWay)
	}
}

// TestAPlainDeviceInAHotel: on plain HTTP nobody is recognised before he answers. On a network that is new the device asks for a sign of life first, so the
// sign-in page that answers for every name learns neither its name nor its messages.
func TestAPlainDeviceInAHotel(t *testing.T) {
	for name, answer := range map[string]func(w http.ResponseWriter){
		"a page": func(w http.ResponseWriter) { io.WriteString(w, "<html>Room number?</html>") },
		"a redirect": func(w http.ResponseWriter) {
			w.Header().Set("Location", "http://login.test/")
			w.WriteHeader(http.StatusFound)
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTwoNetworks(t)
			a := n.travellerOf(t, n.testSite.inside("http"))
			var told []string
			portal := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if name := a.Status().Name; r.Method != http.MethodGet || len(body) > 0 || strings.Contains(fmt.Sprint(r.URL, r.Header), name) {
					told = append(told, r.Method+" "+r.URL.String())
				}
				answer(w)
			}))
			defer portal.Close()
			a.Agent.config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				if a.at != "10.1.1.7/24" && hostName(address) == pointHost {
					address = portal.Listener.Addr().String()
					return (&net.Dialer{}).DialContext(ctx, network, address)
				}
				return n.dial(ctx, network, address)
			}
			a.Close()
			a.at = "192.168.7.7/24"
			succeed(t, a.ask(t))
			if a.wantWay(t, WayInternet, "cannot be reached"); len(told) > 0 {
				t.Errorf("the sign-in page was told %q", told)
			}
			if !slices.ContainsFunc(a.said, func(text string) bool { return strings.HasPrefix(text, string(catalog.RoamOtherServer)) }) {
				t.Errorf("said %q", a.said)
			}
			a.Close()
			a.at = "10.1.1.7/24"
			n.clock.add(time.Hour)
			succeed(t, a.ask(t))
			if a.wantWay(t, WayInside, "answers"); len(told) > 0 {
				t.Errorf("the sign-in page was told %q", told)
			}
		})
	}
}
