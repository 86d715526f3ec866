package client

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
)

const endpointRegistration = "MP_ClientRegistration"

// agentIdentity and agentVersion name this program in registrations.
const (
	agentIdentity = "Postern"
	agentVersion  = "5.00.9122.1000"
)

// Waits for a registration that is pending (SDK07: 30 seconds to 5 minutes).
const (
	firstConfirm = 2 * time.Second
	lastConfirm  = time.Minute
	maxConfirm   = 5 * time.Minute
)

// maxRegistrations is how often one Enrol sends the registration when the site asks for
// it again.
const maxRegistrations = 3

// register makes the site know the device (protocol.md 3). The record says registered
// afterwards.
func (e *enrolment) register(ctx context.Context) error {
	r := e.a.current()
	if r.State.registered() && r.Approval != ccm.ApprovalNone {
		return nil
	}
	e.prepareKerberos()
	if r.State.registered() {
		return e.askAgain(ctx)
	}
	for attempt := 1; attempt <= maxRegistrations; attempt++ {
		again, err := e.registerOnce(ctx, attempt)
		if err != nil || !again {
			return err
		}
	}
	return catalog.Errorf(catalog.ClientRegistrationReset, "registered %d times", maxRegistrations)
}

// prepareKerberos gets the machine's credential where it can serve: inside, for a device
// that has neither certificate nor token to register with, or is registered and not
// approved.
func (e *enrolment) prepareKerberos() {
	if e.a.config.Negotiator == nil || !e.c.route.inside() || e.c.certificate() && !e.a.current().State.registered() || e.token() != "" && !e.a.current().State.registered() {
		return
	}
	by, err := e.a.config.Negotiator()
	if err != nil {
		e.withoutKerberos(err)
		return
	}
	e.windows = by
}

// withoutKerberos says aloud, in the log and in the record that the device goes on without
// Kerberos, and why.
func (e *enrolment) withoutKerberos(err error) {
	e.windows, e.proof = nil, ""
	e.a.logs.withoutKerberos(err)
	e.a.config.Say("Kerberos did not prove this device: " + plain(err) + ". Going on without it: an administrator has to approve the device.")
	e.a.log.Warn("Kerberos did not prove this device; going on without it", "code", string(catalog.CodeOf(err)), "error", err)
	if err := e.a.save(func(r *record) { r.NoKerberos = plain(err) }); err != nil {
		e.a.log.Warn("the state cannot be written", "error", err)
	}
}

// askAgain is for a registered device that waits for approval: it proves itself when it can
// by now, and else asks, where no token answers that, how things stand.
func (e *enrolment) askAgain(ctx context.Context) error {
	if e.windows == nil && e.c.tokens() {
		return nil
	}
	if err := e.prepareRegistration(); err != nil {
		return err
	}
	if e.windows == nil {
		e.proof = e.a.current().Proof
	}
	kind, what := ccm.RegistrationTypeConfirmation, "approval status"
	if e.windows != nil {
		kind, what = ccm.RegistrationTypeRegistration, "registration message"
		e.a.logs.registrationStarts(1)
	}
	var response ccm.RegistrationResponse
	err := e.a.step(ctx, e.c.route.hop(), what, func() (err error) {
		response, err = e.sendRegistration(ctx, kind)
		return err
	})
	_, failed := errors.AsType[*unproven](err)
	switch {
	case failed:
		return e.askAgain(ctx) // e.windows is gone
	case err != nil:
		return err
	case response.Status == ccm.RegistrationDone && response.SMSID == e.a.current().ClientID:
		return e.registered(ctx, response)
	case response.Status == ccm.RegistrationReset:
		return e.a.save(func(r *record) { r.State, r.Message = StateKeysMade, "" })
	}
	return nil
}

// registerOnce sends a registration, or the confirmation of one that was pending, and
// reports whether it is to be sent again.
func (e *enrolment) registerOnce(ctx context.Context, attempt int) (again bool, err error) {
	if err := e.prepareRegistration(); err != nil {
		return false, err
	}
	if attempt == 1 && e.provedByEntra() {
		e.a.logs.notRegisteredYet()
	}
	e.a.logs.registrationStarts(attempt)
	var response ccm.RegistrationResponse
	if e.a.current().State != StatePending {
		err := e.a.step(ctx, e.c.route.hop(), "registration message", func() (err error) {
			response, err = e.sendRegistration(ctx, ccm.RegistrationTypeRegistration)
			return err
		})
		if err != nil {
			return e.dated(err)
		}
	} else {
		response.Status, response.SMSID = ccm.RegistrationPending, e.a.current().ClientID
	}
	if response.Status == ccm.RegistrationPending {
		if response, err = e.confirm(ctx, response); err != nil {
			return false, err
		}
	}
	return e.concluded(ctx, response)
}

// prepareRegistration fixes the message id and, for a device without a reserved id, one
// that it proposes.
func (e *enrolment) prepareRegistration() error {
	r := e.a.current()
	if r.Message == "" || r.ClientID == "" {
		id, err := e.a.newMessageID()
		if err != nil {
			return err
		}
		proposed := e.a.cached().CCM.Client
		if proposed == "" {
			if proposed, err = ccm.NewClientID(e.a.config.Rand); err != nil {
				return err
			}
		}
		err = e.a.save(func(r *record) {
			r.Message = id
			if r.ClientID == "" {
				r.ClientID = proposed
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// sendRegistration sends a registration or a confirmation; both have one message id, as
// the messaging SDK does it (protocol.md 12).
func (e *enrolment) sendRegistration(ctx context.Context, kind string) (ccm.RegistrationResponse, error) {
	r := e.a.current()
	if kind == ccm.RegistrationTypeRegistration {
		e.a.logs.registrationSent(r.ClientID)
		if e.provedByEntra() {
			e.a.logs.registeringByTenant()
		}
	}
	m := message{id: r.Message, endpoint: endpointRegistration, token: e.token(), body: func(now time.Time) (string, error) { return e.registration(kind, now) }}
	got, err := e.deliverProved(ctx, m)
	if e.siteTime = got.date; err != nil {
		return ccm.RegistrationResponse{}, err
	}
	response, err := ccm.ParseRegistrationResponse(got.text)
	switch {
	case err != nil:
		return response, err
	case response.Type != "" && !strings.EqualFold(response.Type, kind):
		return response, catalog.Errorf(catalog.ClientReplyOther, "asked for a %s, answered %.40q", kind, clean(response.Type, 40))
	case response.Status <= ccm.RegistrationPending && response.SMSID == "":
		return response, catalog.Errorf(catalog.ClientAnswerUnreadable, "the registration's answer names no client id")
	}
	return response, nil
}

// deliverProved sends a registration with the machine's ticket, where there is one. When
// that does not succeed it goes out without, and everybody hears of it; unless a server took
// the ticket and could not prove itself: such a one is told nothing more.
func (e *enrolment) deliverProved(ctx context.Context, m message) (reply, error) {
	c := e.c.to(e.a.logs.messaging, messageLine())
	if e.windows == nil {
		e.proof = cmp.Or(e.proof, e.provedBy(m))
		return e.a.deliver(ctx, c, m)
	}
	proof := &windowsProof{by: e.windows}
	m.windows, m.token = proof, ""
	var got reply
	var sent error
	_ = e.a.step(ctx, c.route.hop(), "Windows authentication by Kerberos", func() error {
		if got, sent = e.a.deliver(ctx, c, m); proof.proved.Client != "" {
			return nil // the ticket has done its work; what the registration came to is the next step's business
		}
		return sent
	})
	if _, failed := errors.AsType[*unproven](sent); failed {
		e.withoutKerberos(sent)
		if e.a.current().State.registered() {
			return reply{}, sent
		}
		m.windows = nil
		return e.deliverProved(ctx, m)
	}
	if n := proof.proved; n.Client != "" {
		e.proof = "Kerberos: " + n.Client + " to " + n.Service + ", which proved itself too"
		e.a.logs.withKerberos(n)
		sent = errors.Join(sent, e.a.save(func(r *record) { r.NoKerberos = "" }))
	}
	return got, sent
}

func (e *enrolment) provedBy(m message) string {
	r := e.a.current()
	switch {
	case e.c.certificate():
		return "PKI certificate: " + r.Certificate.String()
	case e.provedByEntra():
		return "Entra: " + r.Entra.String()
	case m.token != "":
		return "the token that it enrolled with"
	}
	return "its own key alone"
}

// registration writes the body.
func (e *enrolment) registration(kind string, now time.Time) (string, error) {
	if !e.a.identity().validAt(now) {
		if err := e.a.recertify(now); err != nil {
			return "", err
		}
	}
	r, keys := e.a.current(), e.a.identity()
	request := ccm.RegistrationRequest{
		Type: kind, SMSID: r.ClientID, TimeStamp: wireTime(now), Agent: ccm.Agent{Identity: agentIdentity, Version: agentVersion}, KeyType: e.keyType(),
		Signing: keys.signingCert, Encryption: keys.encryptionCert,
		Properties: map[string]string{
			"netbios name": netBIOSName(r.Name), "fq name": r.Name, "internetflag": string(rune('0' + r.Internet)), "agent edition": "0",
		},
	}
	if kind == ccm.RegistrationTypeConfirmation {
		request.SignatureSMSID = string(r.ClientID)
	}
	return ccm.BuildRegistration(request, keys.signing)
}

// keyType says who issued the signing certificate: 1 itself, 2 the company.
func (e *enrolment) keyType() int {
	if company, err := e.a.certificateInUse(); err == nil && company != nil && company.signs != nil {
		return 2
	}
	return 1
}

// netBIOSName is a host's short name.
func netBIOSName(name string) string {
	short, _, _ := strings.Cut(name, ".")
	short = strings.ToUpper(short)
	return short[:min(len(short), 15)]
}

// dated looks whether a refusal without a word has to do with the certificates' dates: a
// device whose clock was days ahead has made certificates that the site takes for not
// begun. The site's time is used for that only, so it may come over plain HTTP.
func (e *enrolment) dated(err error) (again bool, _ error) {
	if catalog.CodeOf(err) != catalog.ReplyEmpty || e.recertified || e.siteTime.IsZero() || e.a.identity().validAt(e.siteTime) {
		return false, err
	}
	e.recertified = true
	return true, e.a.recertify(e.siteTime)
}

// confirm asks until the site has decided, a few minutes long. The token stays in memory
// meanwhile.
func (e *enrolment) confirm(ctx context.Context, response ccm.RegistrationResponse) (ccm.RegistrationResponse, error) {
	a, until := e.a, e.a.config.Now().Add(maxConfirm)
	for pause := firstConfirm; response.Status == ccm.RegistrationPending; pause = min(2*pause, lastConfirm) {
		this := a.jitter(pause)
		err := a.save(func(r *record) {
			r.State, r.ClientID = StatePending, response.SMSID
			r.WaitingFor, r.NextTry = "the site to carry out the registration", a.config.Now().Add(this).UTC()
		})
		if err != nil {
			return response, err
		}
		if !a.config.Now().Add(this).Before(until) {
			return response, catalog.Errorf(catalog.ClientRegistrationWaits, "the site keeps the registration of %s", response.SMSID)
		}
		a.logs.registrationPending(response.SMSID, this)
		if err := a.config.Wait(ctx, this); err != nil {
			return response, err
		}
		err = a.step(ctx, e.c.route.hop(), "registration confirmation", func() (err error) {
			response, err = e.sendRegistration(ctx, ccm.RegistrationTypeConfirmation)
			return err
		})
		if err != nil {
			return response, err
		}
	}
	return response, nil
}

// concluded acts on a decision (protocol.md 3.4).
func (e *enrolment) concluded(ctx context.Context, response ccm.RegistrationResponse) (again bool, err error) {
	switch response.Status {
	case ccm.RegistrationDone:
		return false, e.registered(ctx, response)
	case ccm.RegistrationRejected:
		if again, err := e.dated(catalog.Errorf(catalog.ReplyEmpty, "rejected")); again {
			return again, err
		}
		e.a.logs.registrationRejected(response.Status)
		return false, catalog.Errorf(catalog.ClientRegistrationRejected, "status %d for %s", response.Status, e.a.identity().thumbprint)
	case ccm.RegistrationCertificateReset:
		if err := e.a.recertify(e.a.clock.corrected()); err != nil {
			return false, err
		}
	}
	return true, e.a.save(func(r *record) { r.State, r.Message = StateKeysMade, "" })
}

func (e *enrolment) registered(ctx context.Context, response ccm.RegistrationResponse) error {
	return e.a.step(ctx, "client", "registered as "+string(response.SMSID)+", approval status "+response.ApprovalStatus.String(), func() error {
		e.a.logs.registered(response.SMSID, response.ApprovalStatus)
		return e.a.save(func(r *record) {
			r.State, r.ClientID, r.Approval, r.Message, r.Proof = StateRegistered, response.SMSID, response.ApprovalStatus, "", e.proof
			r.WaitingFor, r.NextTry = "", time.Time{}
		})
	})
}
