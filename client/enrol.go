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

	choice  CertificateChoice
	cloud   cloud // of the command line
	noEntra error // why Entra does not prove the device

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
	a.setupUnchecked.Store(setup.NoCRLCheck)
	defer a.setupUnchecked.Store(false)
	until := a.config.Now().Add(orDay(setup.DownloadTimeout))
	elsewhere := false
	for {
		err := a.exclusive(ctx, func() error {
			err := a.enrolOnce(ctx, setup)
			a.logs.enrolmentEnded(err)
			return errors.Join(err, a.remember(err), a.forgetPoint(err))
		})
		if !elsewhere && unreachable(a.current().Route, err) && ctx.Err() == nil && len(a.current().gateways()) > 0 {
			if elsewhere = true; a.reroute(ctx, a.current().Route, err) == nil {
				continue // a registered device that is outside goes on from there
			}
		}
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
	e := &enrolment{a: a, c: c, bulk: setup.Token, learn: setup.TrustFirstUse, choice: setup.Certificate}
	e.cloud = cloud{TenantID: setup.TenantID, ClientApp: setup.ClientApp, Resource: setup.Resource}
	for _, act := range []func(context.Context) error{e.makeKeys, e.certificate, e.locate, e.enter, e.register, e.settle, e.policy, e.gateways, e.ready} {
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
		return catalog.Errorf(catalog.ClientPlaceMissing, "neither CCMHOSTNAME nor SMSMP is given, and the folder knows no server")
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
		if setup.CRLCheck != "" {
			r.Revocation.Policy = setup.CRLCheck
		}
		if len(setup.CRLSources) > 0 {
			r.Revocation.Sources = setup.CRLSources
		}
		r.adoptRoaming(setup, moved, a.config.Now())
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
	case given.same(r.Anchor):
		given.Former = r.Anchor.Former
		return given, nil
	case r.Anchor.knew(given) && !setup.ResetKeyInformation:
		return r.Anchor, nil // to which the site has led from there
	case !r.Anchor.empty() && r.State.registered() && !setup.ResetKeyInformation:
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

// certificate selects the company's certificate, whatever else proves the device (S2). A
// device whose signing key becomes another one is registered again.
func (e *enrolment) certificate(ctx context.Context) error {
	r := e.a.current()
	if !e.choice.wanted() && r.Certificate.Certificate != "" {
		e.choice.Files = []CertificateFile{r.Certificate.CertificateFile}
	}
	var found *companyCertificate
	if e.choice.wanted() {
		err := e.a.step(ctx, "client", "client certificate of the company", func() (err error) {
			found, err = e.choose(r.Name)
			return err
		})
		if err != nil && catalog.CodeOf(err) != catalog.ClientCertificateUnusable {
			return err
		}
	} else {
		e.a.logs.noCertificate(nil)
	}
	if err := e.a.useCertificate(found); err != nil {
		return err
	}
	e.c.company = found != nil
	return nil
}

// choose selects the certificate and tells of it. That there is none is told and stops
// nothing: Entra or a token may do.
func (e *enrolment) choose(name string) (*companyCertificate, error) {
	found, left, err := e.choice.pick(name, e.a.config.Now())
	switch {
	case err != nil:
		return nil, err
	case found == nil:
		e.a.logs.noCertificate(left)
		if len(left) == 0 {
			left = []string{"the store holds none"}
		}
		e.a.config.Say("No client certificate is used: " + strings.Join(left[:min(len(left), 4)], "; "))
		return nil, catalog.Errorf(catalog.ClientCertificateUnusable, "none is left; going on without")
	}
	e.a.logs.certificateUsed(found)
	return found, nil
}

// useCertificate puts a certificate to use, or none.
func (a *Agent) useCertificate(found *companyCertificate) error {
	a.mu.Lock()
	a.company, a.companyErr = found, nil
	a.mu.Unlock()
	key := a.identity().thumbprint
	err := a.save(func(r *record) {
		r.Certificate = chosen{}
		if found != nil {
			r.Certificate = found.chosen()
		}
		if r.Key != key && r.State != StateNew {
			r.Key, r.State, r.Message, r.Tokens = key, StateKeysMade, "", nil
		}
	})
	if err != nil || a.cached() == (tokenCache{}) || a.cached().Key == "" || a.cached().Key == key {
		return err
	}
	return a.saveTokens(func(t *tokenCache) { *t = tokenCache{} })
}

// enter gets a CCM token when the route has tokens and the device has something to get it
// with. From the internet it is needed; inside, a device without one registers by its key.
func (e *enrolment) enter(ctx context.Context) error {
	r := e.a.current()
	waits := r.State.registered() && r.Approval == ccm.ApprovalNone // an answer says whether it still does
	lasts := e.a.cached().CCM.lasts(e.a.clock.corrected(), closeToExpiry)
	if e.c.tokens() && lasts && r.State == StateReady && e.a.cached().CCM.Scope == token.ScopeRegister {
		return e.forget()
	}
	if !e.c.tokens() || lasts && !waits {
		return nil
	}
	if err := e.prepareEntra(ctx); err != nil {
		return err
	}
	if e.noEntra != nil && len(e.a.credentials(e.a.current(), e.bulk)) == 0 && (e.c.route.Internet || e.cloud != cloud{}) {
		return e.noEntra
	}
	if len(e.a.credentials(e.a.current(), e.bulk)) == 0 && !e.c.route.Internet {
		return nil
	}
	got, err := e.a.obtain(ctx, e.identityLog(), token.KindCCM, e.bulk)
	switch {
	case err != nil && lasts && Transient(err):
		return nil
	case catalog.CodeOf(err) == catalog.DeviceUnknown && !e.c.route.Internet,
		err == nil && r.State.registered() && got.Scope == token.ScopeRegister:
		return e.forget()
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
	if t := e.a.cached().CCM; e.c.tokens() && t.lasts(e.a.clock.corrected(), 0) {
		return t.Token
	}
	return ""
}

// settle gets the tokens of a registered device: a CCM token of scope client and the
// self-prove token.
func (e *enrolment) settle(ctx context.Context) error {
	if !e.c.tokens() {
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
	return e.a.spare(err)
}

// spare lets a device whose tenant proves it do without the self-prove token: that is for
// when the tenant's provider is away.
func (a *Agent) spare(err error) error {
	if err == nil || !a.usesEntra(a.current()) || !refusal(err) && !Transient(err) {
		return err
	}
	a.log.Warn("no self-prove token; the device goes on with its tenant alone", "code", string(catalog.CodeOf(err)), "error", err)
	return nil
}

func (e *enrolment) policy(ctx context.Context) error {
	act := func() error { return e.a.updatePolicies(ctx, e.c.to(e.a.logs.messaging, messageLine()), e.token()) }
	err := act()
	if e.token() == "" || !ended(err) {
		return err
	}
	got, err := e.a.obtain(ctx, e.identityLog(), token.KindCCM, e.bulk)
	if err != nil {
		return err
	}
	if got.Scope == token.ScopeRegister {
		if err := e.anew(ctx); err != nil {
			return err
		}
	}
	return act()
}

// forget takes up that the site knows this registered device no more, because it was restored to a time before: it gives the device a token to register with.
func (e *enrolment) forget() error {
	return e.a.save(func(r *record) { r.State = StateKeysMade })
}

// anew registers a device that the site has forgotten, with the key that it has.
func (e *enrolment) anew(ctx context.Context) error {
	if err := e.forget(); err != nil {
		return err
	}
	if err := e.register(ctx); err != nil {
		return err
	}
	return e.settle(ctx)
}

// gateways lets a device that got none with its tokens learn its ways in from the internet. It is enrolled without them as well.
func (e *enrolment) gateways(ctx context.Context) error {
	err := e.a.askGateways(ctx, e.c.to(e.a.logs.location, policyLine()))
	if err != nil && ctx.Err() == nil {
		e.a.log.WarnContext(ctx, "the site's gateways are not known yet", "code", string(catalog.CodeOf(err)), "error", err)
	}
	return ctx.Err()
}

func (e *enrolment) ready(context.Context) error {
	return e.a.save(func(r *record) { r.State = StateReady })
}
