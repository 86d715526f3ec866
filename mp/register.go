package mp

import (
	"errors"
	"slices"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
)

// register answers a registration or a confirmation (protocol.md 3). The answer follows a durable act: the commit of the database, or, while
// that is away, a synced record in the inbox (design decision 8).
func (v *visit) register(m *ccm.Message, _ site.Device) (string, error) {
	request, err := ccm.ParseRegistration(m)
	if err != nil {
		v.mp.logs.registrationInvalid()
		return "", err
	}
	if c := v.proof.Cloud; c != nil && c.Device+c.User != "" { // a token of a registered device names its tenant alone
		v.mp.logs.registrationByCloud(*c)
	}
	v.mp.logs.registrationBegins(request.SMSID)
	if v.proof.Method == proof.Anonymous {
		v.proof.Method = proof.MessageSignature // site.Register checks it against the request's own certificate
	}
	bindCertificate(&v.proof, request)
	if !v.hop.direct() && v.proof.Method == proof.PKICertificate && v.proof.Key == "" {
		v.capped = true // a proof covers no body: a gateway that was taken could put its own registration behind it
	}
	if request.Type == ccm.RegistrationTypeConfirmation {
		return v.confirm(m, request)
	}
	if statement := request.Property(keyChangeProperty); statement != "" {
		return v.changeKey(m, request, statement)
	}
	out, err := v.mp.site.Register(v.r.Context(), v.caller(), request)
	v.spent = err == nil || catalog.CodeOf(err) == catalog.KerberosReplay
	switch {
	case errors.Is(err, site.ErrUnavailable):
		return v.registerLater(m, request, err)
	case err != nil:
		return v.registrationRefused(request, err)
	}
	v.proof.Client = out.Device.ClientID
	v.did("registered %s, approval status %d, level %s (%s)", out.Device.ClientID, out.Device.Status(), out.Device.Level(), out.Device.Approval.Rule)
	if out.Changed {
		v.mp.writeCopy(v.r.Context(), out.Device)
	}
	if err := v.holdDevice(out.Device); err != nil {
		return "", err
	}
	return v.registration(request, ccm.RegistrationDone, out.Device.ClientID, out.Device.Status()), nil
}

// registration writes the answer.
func (v *visit) registration(request *ccm.RegistrationRequest, status int, id ccm.ClientID, approval ccm.ApprovalStatus) string {
	if hook := v.mp.config.Hooks.Registration; hook != nil {
		hook(status)
	}
	return ccm.RegistrationResponse{Type: request.Type, TimeStamp: v.began, Status: status, SMSID: id, ApprovalStatus: approval}.XML()
}

// rejections are refusals of a request that was signed and understood: the client is told (status 3), and need not guess. What fails
// verification is answered with nothing.
func rejections() []catalog.Code {
	return []catalog.Code{catalog.DeviceBlocked, catalog.DeviceObsolete, catalog.RegistrationWeakKey, catalog.RegistrationCertificateExpired, catalog.RegistrationAttribute, catalog.BulkNameOutsidePattern, catalog.KeyChangeNoReturn, catalog.KeyChangeTaken}
}

func (v *visit) registrationRefused(request *ccm.RegistrationRequest, err error) (string, error) {
	v.mp.logs.registrationFailed()
	if !slices.Contains(rejections(), catalog.CodeOf(err)) {
		return "", err
	}
	v.remember(err, "registration", string(request.SMSID))
	return v.registration(request, ccm.RegistrationRejected, "", ccm.ApprovalNone), nil
}

// registerLater keeps the request in the inbox and answers pending. The request's own signature has been checked by site.Register, which
// looks at the database last. The id is final at confirmation.
func (v *visit) registerLater(m *ccm.Message, request *ccm.RegistrationRequest, cause error) (string, error) {
	id, err := v.mp.provisionalID(v.proof, request)
	if err != nil {
		return "", err
	}
	if err := v.keep(m, id); err != nil {
		return "", errors.Join(cause, err)
	}
	v.spent = true // by the registration, once the inbox applies it; noted before, it would refuse its own
	v.mp.log.WarnContext(v.r.Context(), "registration waits in the inbox", "client", string(id), "error", cause)
	return v.registration(request, ccm.RegistrationPending, id, ccm.ApprovalNone), nil
}

// confirm answers whether the id that a device was given is final.
func (v *visit) confirm(m *ccm.Message, request *ccm.RegistrationRequest) (string, error) {
	if err := v.spend(); err != nil {
		return "", err
	}
	waiting := v.mp.waiting() // asked first: a registration that leaves the inbox after this is in the database
	out, err := v.mp.site.Confirm(v.r.Context(), v.caller(), request)
	if catalog.CodeOf(err) == catalog.DeviceUnknown {
		if final, ok := v.mp.renamed.final(request.SMSID); ok {
			again := *request
			again.SMSID = final
			out, err = v.mp.site.Confirm(v.r.Context(), v.caller(), &again)
		}
	}
	switch {
	case err == nil:
		v.proof.Client = out.Device.ClientID
		return v.registration(request, ccm.RegistrationDone, out.Device.ClientID, out.Device.Status()), nil
	case errors.Is(err, site.ErrUnavailable), catalog.CodeOf(err) == catalog.DeviceUnknown && waiting:
		return v.registration(request, ccm.RegistrationPending, request.SMSID, ccm.ApprovalNone), nil
	case catalog.CodeOf(err) == catalog.DeviceUnknown && m.Header.AllowRegistrationReset:
		v.mp.logs.registrationFailed()
		v.remember(err, "registration", string(request.SMSID))
		return v.registration(request, ccm.RegistrationReset, "", ccm.ApprovalNone), nil
	}
	return v.registrationRefused(request, err)
}
