package mp

import (
	"context"
	"errors"

	"postern/catalog"
	"postern/ccm"
	"postern/site"
)

// keyChangeProperty is the discovery property of a registration that changes its device's key (ours): its value is the statement by which the registered
// key names its successor.
const keyChangeProperty = "Postern Key Change"

// changeKey answers a registration by a new key that the registered one has named. The message itself is signed by the registered key as well.
func (v *visit) changeKey(m *ccm.Message, request *ccm.RegistrationRequest, statement string) (string, error) {
	if m.Header.ClientAuth == nil {
		return v.registrationRefused(request, catalog.Errorf(catalog.KeyChangeNotByDevice, "the message is not signed by the registered key"))
	}
	device, err := v.signedBy(m)
	if err != nil {
		return v.registrationRefused(request, err)
	}
	if device.Key != v.proof.Key {
		return v.registrationRefused(request, catalog.Errorf(catalog.KeyChangeNotByDevice, "message and token are not of one device"))
	}
	ask := site.KeyChange{Caller: v.caller(), Request: request, Statement: statement, Audience: v.called}
	ctx := context.WithoutCancel(v.r.Context())
	v.let() // the change revokes the very key of this request, which is to be answered all the same
	v.release = nil
	out, err := v.mp.site.ChangeKey(ctx, ask)
	switch {
	case errors.Is(err, site.ErrUnavailable):
		return "", err // nothing was changed; it is no work for the inbox
	case err != nil:
		return v.registrationRefused(request, err)
	}
	v.did("changed the key of %s", out.Device.ClientID)
	v.mp.writeCopy(ctx, out.Device)
	return v.registration(request, ccm.RegistrationDone, out.Device.ClientID, out.Device.Status()), nil
}
