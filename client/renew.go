package client

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"

	"postern/catalog"
	"postern/token"
)

// fresh returns a CCM token that lasts, or "" on a route without TLS, where messages go
// by their signature alone. refused is a token that the server has not taken.
func (a *Agent) fresh(ctx context.Context, c *conversation, refused string) (string, error) {
	if !c.tokens() {
		return "", nil
	}
	now := a.clock.corrected()
	if t := a.cached().CCM; t.Scope == token.ScopeClient && t.lasts(now, a.renewBefore(t)) && t.Token != refused {
		return t.Token, nil
	} else if t.Token != "" && t.Token != refused {
		a.logs.tokenEnds(c.log, t.Expires)
	}
	err := a.renewOnce(ctx, c, renewal{refused: refused})
	t := a.cached().CCM
	if err != nil && Transient(err) && t.Scope == token.ScopeClient && t.lasts(now, 0) && t.Token != refused {
		a.beQuiet(now)
		a.log.WarnContext(ctx, "the CCM token could not be renewed and is used until it ends", "error", err)
		return t.Token, nil
	}
	return t.Token, err
}

// withToken does an act with a CCM token that lasts, "" where there are none. When the server takes the token for ended, after an emergency rotation for
// example, or the device has another key by now, the act is done once more with a new one.
func (a *Agent) withToken(ctx context.Context, c *conversation, act func(token string) error) error {
	token, err := a.fresh(ctx, c, "")
	if err != nil {
		return err
	}
	if err = act(token); token == "" || !ended(err) && !a.rekeyed(err) {
		return err
	}
	if token, err = a.fresh(ctx, c, token); err != nil {
		return err
	}
	return act(token)
}

// ended reports whether a CCM token was refused and a new one does better.
func ended(err error) bool {
	switch catalog.CodeOf(err) {
	case catalog.TokenExpired, catalog.TokenUnknownKey, catalog.TokenKeyRevoked, catalog.TokenSignature, catalog.SymptomGatewayInvalidToken:
		return true
	}
	return false
}

// renewBefore is how long before its end a CCM token is renewed: ten minutes and up to two
// more, different for each token, so that devices that began together do not renew
// together. While the site or the provider is away it is used until it ends.
func (a *Agent) renewBefore(t cachedToken) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.clock.corrected().Before(a.quietUntil) {
		return 0
	}
	sum := sha256.Sum256([]byte(t.Token))
	return closeToExpiry + time.Duration(binary.BigEndian.Uint32(sum[:4]))%renewSpread
}

const (
	renewSpread = 2 * time.Minute
	quietTime   = time.Minute // between two tries to renew a token that lasts
)

func (a *Agent) beQuiet(now time.Time) {
	pause := a.jitter(quietTime)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.quietUntil = now.Add(pause)
}

// renewal says what is to be renewed besides what is due.
type renewal struct {
	refused string // this CCM token, if it is still the one
	ccm     bool   // the CCM token in any case
	both    bool   // and the self-prove token
}

func (n renewal) key() string {
	switch {
	case n.both:
		return "both"
	case n.ccm:
		return "ccm"
	case n.refused != "":
		return "refused " + token.Hash(n.refused)
	}
	return "due"
}

// renewTime bounds a renewal that several may wait for.
const renewTime = 3 * requestTime

// renewOnce renews in a single flight: whoever needs the same waits for the same exchange.
// It ends when ctx does, the exchange then goes on for the others.
func (a *Agent) renewOnce(ctx context.Context, c *conversation, n renewal) error {
	done := a.renewals.DoChan(n.key(), func() (any, error) {
		ctx, cancel := context.WithTimeout(contextOf(ctx), renewTime)
		defer cancel()
		return nil, a.exclusive(ctx, func() error { return a.renewLocked(ctx, c, n) })
	})
	select {
	case result := <-done:
		return result.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// renewLocked renews what is still due once the folder is ours: another process may have
// done it.
func (a *Agent) renewLocked(ctx context.Context, c *conversation, n renewal) error {
	err := a.renewTokens(ctx, c, n)
	return errors.Join(err, a.remember(err))
}

func (a *Agent) renewTokens(ctx context.Context, c *conversation, n renewal) error {
	if !a.current().State.registered() {
		return notEnrolled()
	}
	now, t := a.clock.corrected(), a.cached()
	due := t.CCM.Scope != token.ScopeClient || !t.CCM.lasts(now, a.renewBefore(t.CCM)) || t.CCM.Token == n.refused
	if due || n.ccm || n.both {
		got, err := a.obtain(ctx, c, token.KindCCM, "")
		if err != nil {
			return err
		}
		if got.Scope != token.ScopeClient {
			return catalog.Errorf(catalog.ClientNotEnrolled, "the site does not know this device any more; enrol again")
		}
	}
	if n.both || a.selfProveDue() {
		_, err := a.obtain(ctx, c, token.KindSelfProve, "")
		return a.spare(err)
	}
	return nil
}

func (a *Agent) selfProveDue() bool {
	now, t := a.clock.corrected(), a.cached().SelfProve
	return !t.lasts(now, 0) || !now.Before(t.renewAt(a.identity().thumbprint))
}

// Renew renews the CCM token when it is close to expiry and the self-prove token when it
// has the age that the site says, 30 days or a little less; with force both. Where a device has no tokens it asks for the site's gateways, when that is due.
func (a *Agent) Renew(ctx context.Context, force bool) error {
	return a.byAnyWay(ctx, func() error { return a.renew(ctx, renewal{both: force}) })
}

func (a *Agent) renew(ctx context.Context, n renewal) error {
	r := a.current()
	if !r.State.registered() {
		return notEnrolled()
	}
	if !r.tokens() {
		return a.renewGateways(ctx, r, n)
	}
	ctx, c := a.converse(ctx, r, a.logs.messaging, messageLine())
	return a.renewOnce(ctx, c, n)
}

// Waits of Run.
const (
	firstRetry = time.Minute
	lastRetry  = 30 * time.Minute
	idleWait   = 24 * time.Hour // on a route without tokens
)

// Run keeps the tokens fresh until ctx ends, and then returns nil. Renewals come at a time
// of their own for each device, between 60 and 90 hundredths of the CCM token's rest;
// failures are tried again, later each time. A device that is not enrolled, or whose
// tokens have all ended, is an error: waiting would not help.
func (a *Agent) Run(ctx context.Context) error {
	retry, network := firstRetry, a.network()
	err := a.byAnyWay(ctx, func() error { return a.renewOrMove(ctx, renewal{ccm: a.gatewaysDue(gatewaysAtStart)}) })
	for ctx.Err() == nil {
		pause := a.untilDue(a.jitter(a.rest() * 3 / 4))
		switch {
		case err == nil:
			retry = firstRetry
		case !Transient(err) && refusedForGood(err):
			return err
		default:
			pause = max(a.jitter(retry), a.jitter(asked(err)*5/4)) // not before the server asks for, and not all devices then
			retry = min(2*retry, lastRetry)
		}
		look := false
		if err == nil {
			pause, look = a.untilLook(pause, network)
		}
		a.planned(ctx, pause)
		elsewhere, stopped := a.pause(ctx, pause, network)
		if stopped != nil {
			break
		}
		due := renewal{ccm: !look}
		if elsewhere {
			network = a.network()
			a.onAnotherNetwork(ctx)
			due = renewal{ccm: a.gatewaysDue(gatewaysLast)}
		}
		err = a.byAnyWay(ctx, func() error { return a.renewOrMove(ctx, due) })
	}
	return nil
}

// renewOrMove renews; inside, when the management point fails, at another one.
func (a *Agent) renewOrMove(ctx context.Context, n renewal) error {
	err := a.renew(ctx, n)
	if r := a.current(); !Transient(err) || !r.Initial.inside() || r.Route.Internet || unreachable(r.Route, err) && len(r.Roaming.Gateways) > 0 {
		return err // to another way altogether: byAnyWay
	}
	if moved, failed := a.move(ctx); failed != nil || !moved {
		return err
	}
	return a.renew(ctx, n)
}

// rest is how long the CCM token lasts yet, at least a minute or so.
func (a *Agent) rest() time.Duration {
	if !a.current().tokens() {
		return idleWait
	}
	return max(a.cached().CCM.Expires.Sub(a.clock.corrected()), 2*time.Minute)
}

// refusedForGood are failures that only a person can end.
func refusedForGood(err error) bool {
	switch catalog.CodeOf(err) {
	case catalog.ClientNotEnrolled, catalog.ClientAwayTooLong, catalog.ClientTokenNeeded, catalog.ClientNoTrustAnchor, catalog.ClientKeysUnreadable, catalog.ClientOtherID:
		return true
	}
	return false
}

func asked(err error) time.Duration {
	if said, ok := errors.AsType[*ServerError](err); ok {
		return said.RetryAfter
	}
	return 0
}

// planned writes down when the next try is.
func (a *Agent) planned(ctx context.Context, pause time.Duration) {
	err := a.exclusive(ctx, func() error {
		return a.save(func(r *record) { r.NextTry = a.config.Now().Add(pause).UTC() })
	})
	if err != nil && ctx.Err() == nil {
		a.log.WarnContext(ctx, "the state cannot be written", "error", err)
	}
}

// remember keeps how the last act ended, for Status.
func (a *Agent) remember(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return a.save(func(r *record) {
		r.NextTry = time.Time{}
		r.LastError, r.ErrorText, r.WaitingFor = "", "", r.waiting(err)
		if err != nil {
			r.LastError, r.ErrorText = catalog.CodeOf(err), plain(err)
		}
	})
}

// waiting says for what, in words.
func (r record) waiting(err error) string {
	switch code := catalog.CodeOf(err); {
	case err == nil && r.State == StateReady && level(r.Approval) == level(0):
		return "approval by an administrator"
	case err == nil:
		return ""
	case code == catalog.EntraUnreachable:
		return "the provider of the tenant"
	case Transient(err):
		return "the network or the server"
	case code == catalog.ClientTokenNeeded || code == catalog.ClientAwayTooLong:
		return "a bulk registration token"
	case code == catalog.ReturnUnknown:
		return "a bulk registration token: the site does not know this device's key"
	case code == catalog.ClientKeyChangeOpen:
		return "the site, to say which of the device's two keys it knows"
	case code == catalog.ClientRegistrationWaits:
		return "the site to carry out the registration, and then the token again"
	}
	return "a person: see the last error"
}
