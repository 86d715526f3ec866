package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/catalog"
	"postern/client"
	"postern/gateway"
	"postern/internal/role"
	"postern/logfile"
	"postern/proof"
	"postern/site"
)

// movedClock is the lab's clock: the machine's, and what the story has moved it by.
type movedClock struct {
	mu sync.Mutex
	by time.Duration
}

func (c *movedClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.by)
}

func (c *movedClock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by += d
}

// Ahead is what a story has moved the lab's clock by.
func (l *Lab) Ahead() time.Duration {
	if l.clock == nil {
		return 0
	}
	l.clock.mu.Lock()
	defer l.clock.mu.Unlock()
	return l.clock.by
}

// moveClock gives the lab a clock that the story moves.
func moveClock(_ context.Context, options *Options) (stop func(), err error) {
	options.clock = &movedClock{}
	options.Now = options.clock.now
	return func() {}, nil
}

// traveller is the device of the story: outside it cannot reach the management point.
type traveller struct {
	l     *Lab
	name  string
	agent *client.Agent
	point string // the management point's address as the device knows it

	mu      sync.Mutex
	outside bool
}

const (
	lifeDevice = "laptop1"
	dayLong    = 24 * time.Hour
	asleep     = 365 * dayLong
)

// tellLife is S3's device from its first day on: inside, outside, renewal, block, a year asleep, return, and home again.
func tellLife(ctx context.Context, l *Lab) error {
	d, err := l.newTraveller(lifeDevice)
	if err != nil {
		return err
	}
	defer d.agent.Close()
	for _, tell := range []func(context.Context) error{d.tellInside, d.tellApproval, d.tellOutside, d.tellRenewal, d.tellBlock, d.tellYear, d.tellReturn, d.tellHome} {
		if err := tell(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) newTraveller(name string) (*traveller, error) {
	d := &traveller{l: l, name: name, point: strings.TrimPrefix(l.ManagementPointURL(), "https://")}
	dir := filepath.Join(l.Dir, "device-"+name)
	logs := logfile.NewFolder(filepath.Join(dir, "logs"), logfile.Options{Now: l.now})
	var err error
	d.agent, err = client.Open(client.Config{Dir: dir, Now: l.now, Logs: logs, Observe: d.told, Dial: d.dial})
	return d, err
}

// dial is the device's network: the management point is there inside only, wherever it listens by now.
func (d *traveller) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d.mu.Lock()
	outside := d.outside
	d.mu.Unlock()
	if address == d.point {
		if outside {
			return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("no route to host: this device is outside")}
		}
		address = d.l.ManagementPoint.Addresses["https"]
	}
	return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, address)
}

// told adds an act of the agent to the story. That the management point cannot be reached from outside is no failure there.
func (d *traveller) told(step client.Step) {
	d.mu.Lock()
	outside := d.outside
	d.mu.Unlock()
	if outside && step.Code == string(catalog.ClientCannotConnect) {
		step.OK, step.What, step.Code, step.Error = true, step.What+": the management point cannot be reached ("+step.Code+"); looks for another way", "", ""
	}
	d.l.trail.device(d.name)(step)
}

// walk takes the device outside, or home. Its connections do not survive that.
func (d *traveller) walk(outside bool) {
	d.mu.Lock()
	d.outside = outside
	d.mu.Unlock()
	d.agent.Close()
}

// say adds a sentence about the device to the story.
func (d *traveller) say(format string, args ...any) {
	d.l.trail.add(Step{Hop: "device " + d.name, OK: true, What: fmt.Sprintf(format, args...)})
}

// way is a sentence about which way the device uses.
func (d *traveller) way(want string) error {
	s := d.agent.Status()
	if s.Way != want {
		return catalog.Errorf(catalog.InternalError, "the device's way is %s (%s), wanted %s", s.Way, s.WayWhy, want)
	}
	d.say("postern client status: way %s: %s", s.Way, s.WayWhy)
	return nil
}

func (d *traveller) tellInside(ctx context.Context) error {
	err := d.l.trail.tell("administrator", func() (string, error) {
		p, err := d.l.Site().AddPolicy(ctx, site.NewPolicy{ID: "{00000000-0000-4000-8000-000000000001}", Category: "Welcome", Body: []byte(welcomePolicy), All: true, Level: proof.LevelManaged, By: "lab"})
		return fmt.Sprintf("added policy %s for every managed device", p.ID), err
	})
	if err != nil {
		return err
	}
	d.say("is inside the network: it reaches the management point itself")
	err = d.agent.Enrol(ctx, client.Setup{ManagementPoint: "https://" + d.point, SiteCode: SiteCode, RootKey: d.l.SiteRoot, Name: d.name})
	if err != nil && catalog.CodeOf(err) != catalog.ClientWaitsForApproval {
		return fmt.Errorf("enrol %s: %w", d.name, err)
	}
	s := d.agent.Status()
	if len(s.Gateways) == 0 {
		return catalog.Errorf(catalog.InternalError, "the device has learned no gateway")
	}
	d.say("has learned its way in from the internet with its tokens: %s", strings.Join(s.Gateways, ", "))
	return d.way(client.WayInside)
}

func (d *traveller) tellApproval(ctx context.Context) error {
	err := d.l.trail.tell("administrator", func() (string, error) {
		_, err := d.l.Site().Approve(ctx, d.agent.Status().ClientID, proof.LevelManaged, "lab", "our new laptop")
		return "approved it: postern device approve " + d.name + " --why 'our new laptop'", err
	})
	if err != nil {
		return err
	}
	return d.policies(ctx)
}

// policies asks for policy, which a managed device gets.
func (d *traveller) policies(ctx context.Context) error {
	list, err := d.agent.Policies(ctx)
	if err != nil {
		return err
	}
	if len(list) != 1 || list[0].Bytes == 0 {
		return catalog.Errorf(catalog.InternalError, "the device has the policies %+v, wanted the one for managed devices", list)
	}
	return nil
}

func (d *traveller) tellOutside(ctx context.Context) error {
	d.walk(true)
	d.say("leaves: the management point cannot be reached from here")
	if err := d.policies(ctx); err != nil {
		return err
	}
	return d.way(client.WayInternet)
}

func (d *traveller) tellRenewal(ctx context.Context) error {
	d.l.clock.move(30 * dayLong)
	d.say("30 days later, still outside: the tokens are due")
	if err := d.agent.Renew(ctx, false); err != nil {
		return err
	}
	for _, t := range d.agent.Status().Tokens {
		d.say("has a %s token until %s", t.Kind, t.Expires.Format(time.DateOnly))
	}
	return nil
}

// tellBlock blocks the device, and measures until the first hop refuses it.
func (d *traveller) tellBlock(ctx context.Context) error {
	id := d.agent.Status().ClientID
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	err := d.l.trail.tell("administrator", func() (string, error) {
		_, err := d.l.Site().Block(ctx, id, "lab", "left in a taxi")
		return "blocked it: postern device block " + d.name + " --why 'left in a taxi'", err
	})
	if err != nil {
		return err
	}
	began := time.Now()
	refused, err := d.until(ctx, func(err error) bool {
		return catalog.CodeOf(err) == catalog.KeyBlocked || catalog.CodeOf(err) == catalog.DeviceBlocked
	})
	if err != nil {
		return err
	}
	d.l.trail.add(Step{Hop: "gateway", OK: true, MS: milliseconds(time.Since(began)), What: fmt.Sprintf("refuses it %.3f s after the block, with a CCM token that has not ended: %s", time.Since(began).Seconds(), catalog.CodeOf(refused))})
	err = d.l.trail.tell("administrator", func() (string, error) {
		_, err := d.l.Site().Unblock(ctx, id, "lab", "found again")
		return "unblocked it: postern device unblock " + d.name + " --why 'found again'", err
	})
	if err != nil {
		return err
	}
	if _, err := d.until(ctx, func(err error) bool { return err == nil }); err != nil {
		return err
	}
	d.say("is let in again")
	return nil
}

// until lets the device ask, in silence, until the answer is the wanted one.
func (d *traveller) until(ctx context.Context, wanted func(error) bool) (error, error) {
	d.l.trail.mute(true)
	defer d.l.trail.mute(false)
	for {
		_, err := d.agent.Policies(ctx)
		if wanted(err) {
			return err, nil
		}
		select {
		case <-ctx.Done():
			return err, catalog.Wrap(catalog.InternalError, err, "the answer did not change within %s", readyWithin)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// tellYear lets a year pass. The servers, whose certificates last a year, have had new ones meanwhile.
func (d *traveller) tellYear(ctx context.Context) error {
	d.say("sleeps in a drawer for %d days; every token that it holds ends", int(asleep/dayLong))
	d.agent.Close()
	d.l.Site().Flush(ctx)
	return d.l.trail.tell("site", func() (string, error) {
		d.l.clock.move(asleep)
		return "a year passes; management point, gateway and connector have new certificates", d.l.renewRoles(ctx)
	})
}

// renewRoles starts every role anew.
func (l *Lab) renewRoles(ctx context.Context) error {
	options := l.options
	if err := errors.Join(l.Connector.Stop(), l.Gateway.Stop(), l.ManagementPoint.Stop()); err != nil {
		return err
	}
	l.Connector, l.Gateway, l.ManagementPoint = nil, nil, nil
	if _, err := l.startManagementPoint(ctx, options); err != nil {
		return err
	}
	config, err := role.Load(filepath.Join(l.Dir, "gateway", "gateway.yaml"))
	if err != nil {
		return err
	}
	config.Verbose = true
	if l.Gateway, err = role.StartGateway(ctx, config, role.Environment{Now: l.now, ObserveGateway: both(l.trail.gateway, options.Observe.Gateway)}); err != nil {
		return err
	}
	if _, err := l.startConnectorAs(ctx, options, "lab2", "connector2"); err != nil {
		return err
	}
	return l.awaitGateway(ctx, func(s gateway.Status) bool { return ready(s) && s.Certificate.NotAfter.After(l.now()) })
}

func (d *traveller) tellReturn(ctx context.Context) error {
	d.say("wakes up, outside, and still holds its key")
	if err := d.agent.Renew(ctx, true); err != nil {
		return err
	}
	entries, err := d.l.Site().TrustLog(ctx, 0, 0)
	if err != nil {
		return err
	}
	id := string(d.agent.Status().ClientID)
	for _, action := range []string{"device.quarantine", "device.release"} {
		at := slices.IndexFunc(entries, func(e site.TrustEntry) bool { return e.Subject == id && e.Action == action })
		if at < 0 {
			return catalog.Errorf(catalog.InternalError, "the trust log has no %s for %s", action, id)
		}
	}
	d.l.trail.add(Step{Hop: "site", OK: true, What: "trust log: device.quarantine, since it came back by its key alone; device.release, since it has proved itself afresh with a token got after that"})
	return d.policies(ctx)
}

func (d *traveller) tellHome(ctx context.Context) error {
	d.walk(false)
	d.l.clock.move(time.Hour)
	d.say("comes home; it looks for the management point and finds it")
	if err := d.policies(ctx); err != nil {
		return err
	}
	return d.way(client.WayInside)
}
