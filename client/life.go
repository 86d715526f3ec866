package client

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// How renewals of self-prove tokens are spread, so that devices that enrolled together do not renew together for ever: each device has a place of its own
// in the last tenth before the age that the site says, and each token a little more. Nobody is later than that age.
const (
	stableSpread = 10 // the share of the age that the device's own place is in
	tokenSpread  = 50 // the share that differs with each token
)

// renewAt is when a self-prove token is renewed by the device with that key.
func (t cachedToken) renewAt(key proof.KeyThumbprint) time.Time {
	age := t.RenewAfter
	if age <= 0 {
		age = selfProveRenew
	}
	return t.Issued.Add(age - part(age/stableSpread, string(key)) - part(age/tokenSpread, t.Token))
}

// part is a share of d that depends on the text alone, evenly over all texts.
func part(d time.Duration, text string) time.Duration {
	sum := sha256.Sum256([]byte(text))
	return time.Duration(float64(d) * float64(binary.BigEndian.Uint32(sum[:4])) / (1 << 32))
}

// untilDue shortens a pause so that it ends when the self-prove token is to be renewed: that has a time of its own, whenever the program was started.
func (a *Agent) untilDue(pause time.Duration) time.Duration {
	t := a.cached().SelfProve
	keys := a.identity()
	if t.Token == "" || keys == nil || !a.current().tokens() {
		return pause
	}
	if due := t.renewAt(keys.thumbprint).Sub(a.clock.corrected()); due > 0 && due < pause {
		return due
	}
	return pause
}

// quarantineAutomatic is the token service's word for a device that leaves quarantine by proving itself afresh.
const quarantineAutomatic = "automatic"

// proveAfresh registers a device again that came back by its key alone: with the token that it has got, so that the site lifts its quarantine. When that
// does not succeed the device goes on at what quarantine leaves it, and tries again with its next token.
func (a *Agent) proveAfresh(ctx context.Context, c *conversation) {
	if !a.current().State.registered() {
		return
	}
	e := &enrolment{a: a, c: c}
	err := a.step(ctx, c.route.hop(), "registration message, to prove the device afresh after its return", func() error { return e.registerAgain(ctx) })
	if err != nil && ctx.Err() == nil {
		a.log.WarnContext(ctx, "the device stays in quarantine for now", "code", string(catalog.CodeOf(err)), "error", err)
	}
}

// registerAgain sends the registration of a registered device once more.
func (e *enrolment) registerAgain(ctx context.Context) error {
	before := e.a.current()
	if err := e.prepareRegistration(); err != nil {
		return err
	}
	response, err := e.sendRegistration(ctx, ccm.RegistrationTypeRegistration)
	switch {
	case err != nil:
		return err
	case response.Status == ccm.RegistrationDone && response.SMSID != before.ClientID:
		return catalog.Errorf(catalog.ClientOtherID, "registered as %s, the registration's answer says %s", before.ClientID, response.SMSID)
	case response.Status != ccm.RegistrationDone:
		return catalog.Errorf(catalog.ClientRegistrationRejected, "status %d for %s", response.Status, e.a.identity().thumbprint)
	}
	e.a.logs.registered(response.SMSID, response.ApprovalStatus)
	return e.a.save(func(r *record) { r.Message, r.Approval = "", response.ApprovalStatus })
}
