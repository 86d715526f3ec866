package client

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"
	"unicode"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

// enrolment is one walk from wherever the device is to ready.
type enrolment struct {
	a    *Agent
	c    *conversation
	bulk Secret // in memory only

	learn bool // trust on first use was asked for

	windows Negotiator // inside, where the machine has a credential
	proof   string     // by what the registration was proved

	siteTime    time.Time // from the last answer to a registration
	recertified bool
}

// Enrol brings the device to the state ready: see the package comment. It goes on from
// where an earlier call was stopped, never makes a second key, and does nothing that is
// done already but ask for policy. Given Retry, it tries again when the network fails.
//
// Errors that a person must act on: ClientNoTrustAnchor, ClientAnchorChanged, the
// ClientServer codes of a server that was not recognised, ClientTokenNeeded,
// ClientRegistrationWaits (run it again with the token), ClientRegistrationRejected, and
// the codes of the server.
func (a *Agent) Enrol(ctx context.Context, setup Setup) error {
	if err := setup.check(); err != nil {
		return err
	}
	if err := setup.ReadToken(nil); err != nil {
		return err
	}
	if setup.Verbose && a.logs.folder != nil {
		a.logs.folder.Verbose("", true)
	}
	until := a.config.Now().Add(orDay(setup.DownloadTimeout))
	for {
		err := a.exclusive(ctx, func() error {
			err := a.enrolOnce(ctx, setup)
			return errors.Join(err, a.remember(err), a.forgetPoint(err))
		})
		next := a.config.Now().Add(setup.Retry)
		if err == nil || setup.Retry == 0 || !Transient(err) || !next.Before(until) {
			return err
		}
		a.planned(ctx, setup.Retry)
		if stopped := a.config.Wait(ctx, setup.Retry); stopped != nil {
			return stopped
		}
	}
}

func orDay(d time.Duration) time.Duration {
	if d == 0 {
		return 24 * time.Hour // ccmsetup's /downloadtimeout (product.md 7.1)
	}
	return d
}

// enrolOnce walks the states; each act is a no-op when its state is behind.
func (a *Agent) enrolOnce(ctx context.Context, setup Setup) error {
	if err := a.adopt(setup); err != nil {
		return err
	}
	ctx, c := a.converse(ctx, a.current(), a.logs.setup, setupLine())
	e := &enrolment{a: a, c: c, bulk: setup.Token, learn: setup.TrustFirstUse}
	for _, act := range []func(context.Context) error{e.makeKeys, e.locate, e.enter, e.register, e.settle, e.policy, e.ready} {
		if err := act(ctx); err != nil {
			return err
		}
	}
	return nil
}

// adopt takes over what the Setup says; what it does not say stays.
func (a *Agent) adopt(setup Setup) error {
	r := a.current()
	way, err := setup.route()
	if err != nil {
		return err
	}
	if way.Host == "" {
		way = r.Initial
	}
	if way.Host == "" {
		way = r.Route
	}
	if way.Host == "" {
		return catalog.Errorf(catalog.ClientCommandConflict, "say where to enrol: CCMHOSTNAME=HOST/CCM_Proxy_MutualAuth/<id>, or SMSMP=https://HOST inside")
	}
	trust, err := a.trustFor(setup, r)
	if err != nil {
		return err
	}
	switch {
	case way.Internet && trust.empty():
		return catalog.Errorf(catalog.ClientNoTrustAnchor, "give --root-key or --ca-file for %s", way.Host)
	case !way.secure() && trust.empty() && !setup.TrustFirstUse:
		return noAnchorInside(way)
	}
	further, err := setup.points()
	if err != nil {
		return err
	}
	name, err := deviceName(setup.Name, r.Name)
	if err != nil {
		return err
	}
	moved := way != r.Initial || !trust.same(r.Anchor) || way.inside() && (r.Chosen == "" || !r.State.registered())
	return a.save(func(r *record) {
		r.Anchor, r.Name, r.Internet = trust, name, internetFlag(way, setup)
		if moved {
			r.Route, r.Initial, r.Chosen, r.Verified, r.Signed = way, way, "", nil, false
		}
		if setup.ManagementPoint != "" {
			r.Points, r.Ports = further, ports{setup.HTTPPort, setup.HTTPSPort}
		}
		if setup.SiteCode != "" {
			r.SiteCode = setup.SiteCode
		}
	})
}

// trustFor returns the anchor to use. A registered device does not change it by accident.
func (a *Agent) trustFor(setup Setup, r record) (anchor, error) {
	given, err := anchorOf(setup)
	switch {
	case err != nil:
		return anchor{}, err
	case given.empty() && setup.TrustFirstUse && setup.ResetKeyInformation:
		return anchor{}, nil // learned anew
	case given.empty():
		return r.Anchor, nil
	case !given.same(r.Anchor) && !r.Anchor.empty() && r.State.registered() && !setup.ResetKeyInformation:
		return anchor{}, catalog.Errorf(catalog.ClientAnchorChanged, "enrolled under the %s, given the %s", r.Anchor, given)
	}
	return given, nil
}

// internetFlag is the discovery property of that name (protocol.md 3.1).
func internetFlag(r route, setup Setup) int {
	switch {
	case setup.AlwaysInternet:
		return 2
	case r.Internet:
		return 1
	}
	return 0
}

// deviceName is what the device calls itself: as given, as before, or as the system does.
func deviceName(given, before string) (string, error) {
	name := given
	if name == "" {
		name = before
	}
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return "", catalog.Wrap(catalog.ClientCommandValue, err, "the system does not say its name; give --name")
		}
	}
	if len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r > unicode.MaxASCII || r <= ' ' || strings.ContainsRune(`<>&"':;`, r) }) {
		return "", catalog.Errorf(catalog.ClientCommandValue, "%.80q cannot be a host name; give --name", name)
	}
	return name, nil
}

// makeKeys makes the device's keys unless it has them. They are on disk before anything
// is sent.
func (e *enrolment) makeKeys(ctx context.Context) error {
	if e.a.identity() == nil {
		if err := e.a.step(ctx, "client", "keys and certificates made on the device", e.a.makeIdentity); err != nil {
			return err
		}
	}
	if e.a.current().State != StateNew {
		return nil
	}
	key := e.a.identity().thumbprint
	return e.a.save(func(r *record) { r.State, r.Key = StateKeysMade, key })
}

// enter gets a CCM token when the route has tokens and the device has something to get it
// with. From the internet it is needed; inside, a device without one registers by its key.
func (e *enrolment) enter(ctx context.Context) error {
	r := e.a.current()
	waits := r.State.registered() && r.Approval == ccm.ApprovalNone // an answer says whether it still does
	lasts := e.a.cached().CCM.lasts(e.a.clock.corrected(), closeToExpiry)
	if !e.c.route.secure() || lasts && !waits {
		return nil
	}
	if len(e.a.credentials(e.a.current(), e.bulk)) == 0 && !e.c.route.Internet {
		return nil
	}
	_, err := e.a.obtain(ctx, e.identityLog(), token.KindCCM, e.bulk)
	if err != nil && lasts && Transient(err) {
		return nil
	}
	if catalog.CodeOf(err) == catalog.DeviceUnknown && !e.c.route.Internet {
		return e.a.save(func(r *record) { r.State = StateKeysMade }) // the site has forgotten the device: register again
	}
	return err
}

// identityLog is the log in which tokens of registered devices are (S2).
func (e *enrolment) identityLog() *conversation {
	if e.a.current().State.registered() {
		return e.c.to(e.a.logs.identity, messageLine())
	}
	return e.c
}

// token is what lets a registration message in: the CCM token, of whatever scope.
func (e *enrolment) token() string {
	if t := e.a.cached().CCM; e.c.route.secure() && t.lasts(e.a.clock.corrected(), 0) {
		return t.Token
	}
	return ""
}

// settle gets the tokens of a registered device: a CCM token of scope client and the
// self-prove token.
func (e *enrolment) settle(ctx context.Context) error {
	if !e.c.route.secure() {
		return nil
	}
	e.c = e.c.to(e.a.logs.identity, messageLine())
	if t := e.a.cached().CCM; t.Scope != token.ScopeClient || !t.lasts(e.a.clock.corrected(), closeToExpiry) {
		got, err := e.a.obtain(ctx, e.c, token.KindCCM, e.bulk)
		if err != nil {
			return err
		}
		if got.Scope != token.ScopeClient {
			return catalog.Errorf(catalog.ClientOtherID, "the token service does not know the device that was just registered")
		}
	}
	if !e.a.selfProveDue() {
		return nil
	}
	_, err := e.a.obtain(ctx, e.c, token.KindSelfProve, e.bulk)
	return err
}

func (e *enrolment) policy(ctx context.Context) error {
	return e.a.updatePolicies(ctx, e.c.to(e.a.logs.messaging, messageLine()), e.token())
}

func (e *enrolment) ready(context.Context) error {
	return e.a.save(func(r *record) { r.State = StateReady })
}
