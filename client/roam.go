package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

// The two ways of a device to its site, as Status has them.
const (
	WayInside   = "inside"   // straight to a management point of the inner network
	WayInternet = "internet" // through a gateway, or to a management point on the internet
)

// When the device looks for its way.
const (
	lookAgain       = 15 * time.Minute // on a network where the management point was not found before
	lookAtMost      = time.Minute      // on a network that is new
	lookTime        = 10 * time.Second // for one management point
	gatewaysLast    = 25 * time.Hour   // the age at which the list of gateways is asked for anew (product.md 1.6)
	gatewaysAtStart = time.Hour        // the same when the program starts
	networkPoll     = 15 * time.Second // between two looks at this machine's own addresses
	networkSettles  = 5 * time.Second  // after they changed
	maxGateways     = 64
)

// alwaysInternet is the InternetFlag of CCMALWAYSINF=1 (protocol.md 3.1).
const alwaysInternet = 2

// roaming is what a device keeps to find its site from wherever it is.
type roaming struct {
	Since time.Time `json:"since,omitzero"` // on this way
	Why   string    `json:"why,omitempty"`

	Gateways []route   `json:"gateways,omitempty"`   // that the site has named: CMGFQDNs
	Heard    time.Time `json:"heard,omitzero"`       // when it named them
	HeardOn  string    `json:"heard_on,omitempty"`   // the network of that moment
	Home     route     `json:"home,omitzero"`        // the way inside, for a device that is outside
	Looked   time.Time `json:"looked,omitzero"`      // when it was last tried from outside
	LookedOn string    `json:"looked_on,omitempty"`  // the network of that moment
	Verdict  string    `json:"not_inside,omitempty"` // what came of it
	InsideOn string    `json:"inside_on,omitempty"`  // the network from which the management point was last used
}

func (m roaming) clone() roaming {
	m.Gateways = slices.Clone(m.Gateways)
	return m
}

// lasting is without what comes again by itself; see record.lasting.
func (m roaming) lasting() roaming {
	m.Heard, m.Looked, m.HeardOn, m.LookedOn, m.InsideOn, m.Verdict = time.Time{}, time.Time{}, "", "", "", ""
	return m
}

// hear takes over the gateways of a token answer. One without the field, of an older site, leaves the list as it is.
func (m *roaming) hear(named *[]string, now time.Time, network string) {
	if m.Heard, m.HeardOn = now.UTC(), network; named == nil {
		return
	}
	m.Gateways = nil
	for _, text := range *named {
		one := Setup{}
		if one.parseHostName(text) != nil || one.Gateway.Host == "" || len(m.Gateways) == maxGateways {
			continue
		}
		way := route{Scheme: "https", Host: one.withPort("https", one.Gateway.Host), RoleID: one.Gateway.RoleID, Internet: true}
		if !slices.Contains(m.Gateways, way) {
			m.Gateways = append(m.Gateways, way)
		}
	}
}

// stale reports whether the gateways are to be asked for: after 25 hours, and on another network.
func (m roaming) stale(now time.Time, network string, last time.Duration) bool {
	age := now.Sub(m.Heard)
	return age < 0 || age >= last || m.HeardOn != network && age >= lookAgain
}

// lookDue reports whether the management point is looked for from outside: at once on a network where it was not yet, otherwise now and then.
func (m roaming) lookDue(now time.Time, network string) bool {
	age := now.Sub(m.Looked)
	return age < 0 || age >= lookAgain || m.LookedOn != network && age >= lookAtMost
}

// home is where a device that is outside looks for its management point; the zero route when it does not.
func (r record) home() route {
	if r.Internet == alwaysInternet || !r.Route.Internet {
		return route{}
	}
	return r.Roaming.Home
}

// adoptRoaming fits the ways to a new command line. moved says that it leads elsewhere than the one before.
func (r *record) adoptRoaming(setup Setup, moved bool, now time.Time) {
	m := &r.Roaming
	if moved {
		*m = roaming{Gateways: m.Gateways, Heard: m.Heard, HeardOn: m.HeardOn, Since: now.UTC(), Why: r.firstWhy()}
	}
	if r.Route.Internet && r.Initial.Internet && r.Internet != alwaysInternet && setup.ManagementPoint != "" {
		if way, err := setup.pointRoute(setup.ManagementPoint, false); err == nil && way.secure() {
			m.Home = way
		}
	}
	if r.Internet != alwaysInternet { // the device stays where it is, whatever the line begins with
		r.Internet = map[bool]int{true: 1}[r.Route.Internet]
	}
	if ways := r.gateways(); r.Internet == alwaysInternet && r.Route.inside() && r.State.registered() && len(ways) > 0 {
		m.Home, r.Route, m.Since, m.Why = r.Route, ways[0], now.UTC(), whyAlways
	}
}

const whyAlways = "CCMALWAYSINF=1"

func (r record) firstWhy() string {
	switch {
	case r.Internet == alwaysInternet:
		return whyAlways
	case r.Route.RoleID != 0:
		return "CCMHOSTNAME names a gateway"
	case r.Route.Internet:
		return "CCMHOSTNAME names a management point on the internet"
	}
	return "the management point was given"
}

// gateways are the ways through them in this device's own order, which spreads devices.
func (r record) gateways() []route {
	list := slices.Clone(r.Roaming.Gateways)
	if r.Initial.RoleID != 0 && !slices.Contains(list, r.Initial) {
		list = append(list, r.Initial)
	}
	score := func(way route) []byte {
		sum := sha256.Sum256([]byte(string(r.Key) + "\x00" + way.name()))
		return sum[:]
	}
	slices.SortStableFunc(list, func(x, y route) int { return bytes.Compare(score(x), score(y)) })
	return list
}

// network tells this machine's networks apart: a hash of its addresses, without those that every machine has.
func (a *Agent) network() string {
	addresses, err := a.config.Addresses()
	if err != nil {
		a.log.Warn("the addresses of this machine cannot be read", "error", err)
	}
	var list []string
	for _, address := range addresses {
		ip, _, err := net.ParseCIDR(address.String())
		if err != nil || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
			continue
		}
		list = append(list, address.String())
	}
	slices.Sort(list)
	sum := sha256.Sum256([]byte(strings.Join(list, " ")))
	return hex.EncodeToString(sum[:8])
}

// anotherServer reports whether the address led to a server that is not the site's. Over TLS it was not recognised, and so nothing of the device was sent to
// it; on plain HTTP its answer gives it away: the sign-in page of a hotel signs nothing.
func anotherServer(way route, err error) bool {
	switch catalog.CodeOf(err) {
	case catalog.ClientReplyUnsigned, catalog.ClientRootKeyOther, catalog.ClientRedirected:
		return !way.secure()
	case catalog.ClientServerRoot, catalog.ClientServerUntrusted, catalog.ClientServerHost, catalog.ClientServerRole, catalog.ClientRootRefused, catalog.ClientTLSFailed:
		return true
	}
	return false
}

// unreachable reports whether an act failed because this way leads nowhere: there is no connection, or it leads to somebody else. What a server of the site
// answered, refusals and overload among them, is an answer and no reason to leave. Neither is a certificate that has ended: the way is right.
func unreachable(way route, err error) bool {
	switch catalog.CodeOf(err) {
	case catalog.ClientNameNotResolved, catalog.ClientCannotConnect, catalog.ClientTimeout, catalog.ClientConnectionLost:
		_, said := errors.AsType[*ServerError](err)
		return !said
	case catalog.ClientNoManagementPoint, catalog.ClientKeyChangeOpen: // they say more of the same
		outer, ok := errors.AsType[*catalog.Error](err)
		return ok && unreachable(way, outer.Err)
	}
	return anotherServer(way, err)
}

// byAnyWay does an act. Before, a device that is outside looks whether it is inside again, when that is due; when the act fails because this way leads
// nowhere, another is looked for and the act done once more.
func (a *Agent) byAnyWay(ctx context.Context, act func() error) error {
	a.lookInside(ctx)
	if r := a.current(); r.strangeHere(a.network()) {
		if err := a.lookHere(ctx, r); err != nil {
			return err
		}
	}
	way := a.current().Route
	err := act()
	if !unreachable(way, err) || ctx.Err() != nil {
		return err
	}
	if failed := a.reroute(ctx, way, err); failed != nil {
		return failed
	}
	return act()
}

// reroute looks for another way after failed came of one. It returns nil when there is one, and otherwise the error that stands: failed itself, the
// refusal of a gateway, or RoamNoWay.
func (a *Agent) reroute(ctx context.Context, from route, failed error) error {
	if !a.current().State.registered() {
		return failed
	}
	done := a.renewals.DoChan("way "+from.Scheme+from.name(), func() (any, error) { // once for all acts that failed alike
		ctx, cancel := context.WithTimeout(contextOf(ctx), renewTime)
		defer cancel()
		return nil, a.exclusive(ctx, func() error { return a.rerouteLocked(ctx, from, failed) })
	})
	select {
	case result := <-done:
		if catalog.CodeOf(result.Err) == catalog.ClientFolderInUse {
			return failed
		}
		return result.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *Agent) rerouteLocked(ctx context.Context, from route, failed error) error {
	r := a.current()
	if r.Route != from {
		return nil // somebody was faster
	}
	ctx, c := a.converse(ctx, r, a.logs.location, policyLine())
	if from.Internet {
		return a.rerouteOutside(ctx, c, failed)
	}
	return a.leave(ctx, c, failed)
}

// leave goes outside: the management point cannot be reached, and no other one can.
func (a *Agent) leave(ctx context.Context, c *conversation, failed error) error {
	r := a.current()
	if anotherServer(r.Route, failed) {
		a.otherServer(ctx, r.Route, failed)
	}
	if r.Initial.inside() && (r.Route != r.Initial || len(r.Points) > 0) {
		if way, why, err := a.choose(ctx, c, false); err == nil {
			a.logs.pointChosen(way, why)
			return a.save(func(r *record) { r.Route, r.Chosen = way, why })
		}
	}
	ways := r.gateways()
	if len(ways) == 0 || r.Anchor.empty() {
		a.logs.noGateway(r)
		return failed
	}
	return a.enterBy(ctx, c, ways, failed)
}

// rerouteOutside looks for another gateway, and for the management point: the device may be where only that can be reached.
func (a *Agent) rerouteOutside(ctx context.Context, c *conversation, failed error) error {
	r := a.current()
	if home := r.home(); home.Host != "" && a.lookAt(ctx, c, home) {
		return nil
	}
	ways := slices.DeleteFunc(r.gateways(), func(way route) bool { return way == r.Route })
	if len(ways) == 0 {
		return failed
	}
	return a.enterBy(ctx, c, ways, failed)
}

// enterBy enters the site by the first gateway that lets this device in: its own certificate's key and its self-prove token give it a CCM token there (S3).
// A gateway that refuses the device has answered; another would say the same.
func (a *Agent) enterBy(ctx context.Context, c *conversation, ways []route, failed error) error {
	texts := []string{hostName(c.route.Host) + ": " + plain(failed)}
	for _, way := range ways {
		err := a.step(ctx, way.hop(), "way in through "+way.name(), func() error { return a.enterThrough(ctx, c.at(way)) })
		if err == nil || judged(err) {
			return errors.Join(a.moveTo(way, c.route, "the "+c.route.hop()+" cannot be reached: "+plain(failed)), err)
		}
		texts = append(texts, way.Host+": "+plain(err))
		if ctx.Err() != nil {
			break // no time is left for the others; the next time begins with the same ones
		}
	}
	return catalog.Wrap(catalog.RoamNoWay, failed, "tried %d ways: %s", len(texts), strings.Join(texts[:min(len(texts), 8)], "; "))
}

// judged reports whether a server of the site has refused the device, and not only what was asked for.
func judged(err error) bool {
	said, ok := errors.AsType[*ServerError](err)
	return ok && (said.Status == http.StatusUnauthorized || said.Status == http.StatusForbidden)
}

func (a *Agent) enterThrough(ctx context.Context, c *conversation) error {
	if !c.tokens() {
		return a.probe(ctx, c)
	}
	got, err := a.obtain(ctx, c.to(a.logs.identity, messageLine()), token.KindCCM, "")
	if err == nil && got.Scope != token.ScopeClient {
		return catalog.Errorf(catalog.ClientNotEnrolled, "the site does not know this device any more; enrol again")
	}
	return err
}

// moveTo takes another way from here on.
func (a *Agent) moveTo(way, from route, why string) error {
	now, network := a.config.Now().UTC(), a.network()
	err := a.save(func(r *record) {
		m := &r.Roaming
		if from.inside() {
			m.Home, m.Looked, m.LookedOn, m.Verdict = from, now, network, why
			r.Chosen = cmp.Or(r.Chosen, "the one that was used")
		}
		r.Route, m.Why = way, why
		if from.Internet != way.Internet {
			m.Since = now
		}
		switch {
		case r.Internet == alwaysInternet:
		case way.Internet:
			r.Internet = 1
		default:
			r.Internet, m.Home, m.Verdict, m.InsideOn = 0, route{}, "", network
		}
	})
	if err == nil {
		a.logs.moved(a.current(), from)
	}
	return err
}

// lookInside looks for the management point from outside, when it is time, and goes inside when it is there.
func (a *Agent) lookInside(ctx context.Context) {
	due := func() bool {
		r := a.current()
		return r.home().Host != "" && r.State.registered() && r.Roaming.lookDue(a.config.Now(), a.network())
	}
	if !due() {
		return
	}
	err := a.exclusive(ctx, func() error {
		if due() {
			ctx, c := a.converse(ctx, a.current(), a.logs.location, policyLine())
			a.lookAt(ctx, c, a.current().home())
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		a.log.WarnContext(ctx, "it was not looked for the management point", "error", err)
	}
}

// lookAt asks the management point for a sign of life, which proves it and nothing of this device, and goes inside when it answers.
func (a *Agent) lookAt(ctx context.Context, c *conversation, home route) bool {
	now, network, from := a.config.Now().UTC(), a.network(), c.route
	looking, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	there := c.at(home)
	there.looking = true
	err := a.probe(looking, there)
	if ctx.Err() != nil {
		return false
	}
	if anotherServer(home, err) {
		a.otherServer(ctx, home, err)
	}
	if err == nil {
		err = a.moveTo(home, from, "the management point answers")
		if err == nil {
			return true
		}
	}
	text := plain(err)
	if err := a.save(func(r *record) { r.Roaming.Looked, r.Roaming.LookedOn, r.Roaming.Verdict = now, network, text }); err != nil {
		a.log.WarnContext(ctx, "the state cannot be written", "error", err)
	}
	return false
}

// otherServer says that somebody else answers at the management point's address.
func (a *Agent) otherServer(ctx context.Context, way route, err error) {
	sent := "nothing of this device was sent to it"
	if !way.secure() {
		sent = "what was sent to it over plain HTTP it can read"
	}
	told := catalog.Wrap(catalog.RoamOtherServer, err, "%s: %s; %s", way.Host, plain(err), sent)
	a.logs.location.Warningf("%s", plain(told))
	a.log.WarnContext(ctx, "another server answers at the management point's address", "code", string(told.Code), "host", way.Host, "error", err)
	a.config.Say(string(told.Code) + " " + told.Detail)
}

// onAnotherNetwork is what the device does when its addresses have changed: it looks where it is.
func (a *Agent) onAnotherNetwork(ctx context.Context) {
	r := a.current()
	a.logs.networkChanged()
	a.closeIdle()
	if !r.Route.inside() {
		a.lookInside(ctx)
		return
	}
	if err := a.lookHere(ctx, r); err != nil {
		a.log.WarnContext(ctx, "there is no way to the site from this network", "code", string(catalog.CodeOf(err)), "error", err)
	}
}

// strangeHere reports whether a device looks first who answers before it sends anything: on plain HTTP, where nobody is recognised before, on a network from
// which it has not yet used its management point.
func (r record) strangeHere(network string) bool {
	return r.Route.inside() && !r.Route.secure() && r.State.registered() && r.Roaming.InsideOn != network
}

// lookHere asks the management point for a sign of life, which tells nothing of the device, and looks for another way when there is none. The error says that
// there is no other either.
func (a *Agent) lookHere(ctx context.Context, r record) error {
	network := a.network()
	asking, c := a.converse(ctx, r, a.logs.location, policyLine())
	asking, cancel := context.WithTimeout(asking, lookTime)
	defer cancel()
	err := a.probe(asking, c)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case unreachable(r.Route, err):
		return a.reroute(ctx, r.Route, err)
	case err == nil && r.strangeHere(network):
		return a.save(func(r *record) { r.Roaming.InsideOn = network })
	}
	return nil
}

// closeIdle ends connections of a network that is gone.
func (a *Agent) closeIdle() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client != nil {
		a.client.CloseIdleConnections()
	}
}

// untilLook shortens a pause for a device that is outside although it is on the network from which it last reached the management point: that is away, not
// the device, and may be back soon.
func (a *Agent) untilLook(pause time.Duration, network string) (until time.Duration, look bool) {
	r := a.current()
	if next := a.jitter(lookAgain * 5 / 4); r.home().Host != "" && r.Roaming.InsideOn == network && next < pause {
		return next, true
	}
	return pause, false
}

// pause waits, and ends early, with changed, when this machine is on another network. A timer stands still while the machine sleeps, and its clock does not: a
// pause that is over by the clock ends with the next look at the network.
func (a *Agent) pause(ctx context.Context, d time.Duration, network string) (changed bool, err error) {
	until := a.config.Now().Add(d)
	over := func() bool { return !a.config.Now().Before(until) }
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	var noticed atomic.Bool
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if a.config.NetworkChange(waiting, func() bool { return over() || a.network() != network }) == nil {
			noticed.Store(true)
			cancel()
		}
	}()
	err = a.config.Wait(waiting, d)
	cancel()
	<-watched
	switch {
	case err == nil || ctx.Err() != nil || !noticed.Load():
		return false, err
	case a.network() == network:
		return false, nil
	}
	return true, a.config.Wait(ctx, a.jitter(networkSettles))
}

// pollNetwork is NetworkChange where nothing better was given.
func pollNetwork(ctx context.Context, changed func() bool) error {
	ticker := time.NewTicker(networkPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if changed() {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// gatewaysDue says whether the gateways are asked for although nothing else is due: a CCM token is then fetched, with which they come.
func (a *Agent) gatewaysDue(last time.Duration) bool {
	r := a.current()
	return r.State.registered() && r.Roaming.stale(a.config.Now(), a.network(), last)
}

// askGateways asks a management point for the site's gateways, for a device that gets no tokens on its way, and so none with them: one with a certificate of the
// company, or on plain HTTP. It takes them only where the answer cannot be changed on the way: over TLS, or signed by the site.
func (a *Agent) askGateways(ctx context.Context, c *conversation) error {
	if c.tokens() || !c.route.secure() && !a.current().Anchor.wantsSignature(c.route) {
		return nil
	}
	id, err := a.newMessageID()
	if err != nil {
		return err
	}
	body := ccm.LocationRequest{Kind: ccm.LocationEnumerateMP, SiteCode: a.current().SiteCode, RequestType: ccm.EnumerateInternet}.XML()
	got, err := a.deliver(ctx, c, message{id: id, endpoint: "MP_LocationManager", body: fixed(body)})
	if err != nil {
		return err
	}
	reply, err := ccm.ParseEnumerateMPReply(got.text)
	if err != nil {
		return err
	}
	names := []string{}
	for _, point := range reply.Records {
		if point.InternetName != "" {
			names = append(names, point.InternetName)
		}
	}
	now, network := a.config.Now(), a.network()
	return a.save(func(r *record) {
		if r.Roaming.hear(&names, now, network); c.route.inside() {
			r.Roaming.InsideOn = network
		}
	})
}

// renewGateways is the renewal of a device without tokens. It asks a server of the site for something, so that the device also notices when its way leads
// nowhere any more.
func (a *Agent) renewGateways(ctx context.Context, r record, n renewal) error {
	if !n.ccm && !n.both && !a.gatewaysDue(gatewaysLast) {
		return nil
	}
	ctx, c := a.converse(ctx, r, a.logs.location, policyLine())
	return a.exclusive(ctx, func() error {
		err := a.askGateways(ctx, c)
		return errors.Join(err, a.remember(err))
	})
}

// fillWay puts into a Status which way the device uses, and why.
func (r record) fillWay(s *Status) {
	m := r.Roaming
	if r.Route.Host == "" {
		return
	}
	s.Way, s.WaySince, s.WayWhy = WayInside, m.Since, cmp.Or(m.Why, r.firstWhy())
	if r.Route.Internet {
		s.Way = WayInternet
	}
	if home := r.home(); home.Host != "" {
		s.LooksFor, s.Looked, s.NotInside = home.Scheme+"://"+home.Host, m.Looked, m.Verdict
	}
	for _, way := range m.Gateways {
		s.Gateways = append(s.Gateways, way.name())
	}
	s.GatewaysHeard = m.Heard
}

// Lines about the way. ClientLocation.log has the one of the documents for a computer of a domain; the others have none there.

func (l logs) moved(r record, from route) {
	who, where := "Client", "on intranet"
	if r.Route.Internet {
		where = "on internet"
	}
	if strings.HasPrefix(r.Proof, "Kerberos") {
		who, where = "Domain joined client", map[bool]string{true: "in Internet", false: "in Intranet"}[r.Route.Internet]
	}
	l.place.Infof("%s is %s", who, where)
	l.place.Infof("Now talking with %s instead of %s: %s", r.Route.name(), from.name(), r.Roaming.Why)
	l.location.Infof("Now talking with %s instead of %s.", r.Route.name(), from.name())
}

func (l logs) noGateway(r record) {
	why := "the site has named no gateway to this device"
	if r.Anchor.empty() {
		why = "without --root-key or --ca-file no gateway can be recognised"
	}
	told := catalog.Errorf(catalog.RoamNoGateway, "%s", why)
	l.place.Warningf("%s", plain(told))
}

func (l logs) networkChanged() {
	l.place.Infof("The addresses of this machine have changed; looking where it is.")
}

// gatewaysOf reads the gateways of a token answer: nil when the answer says nothing of them.
func gatewaysOf(t tokenAnswer) *[]string {
	if t.Gateways == nil || t.Scope == token.ScopeRegister {
		return nil
	}
	list := (*t.Gateways)[:min(len(*t.Gateways), maxGateways)]
	return &list
}
