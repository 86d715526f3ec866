package mp

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strings"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
	"postern/token"
)

// Endpoint is one line of the table of message endpoints: what TargetEndpoint may name, and the proof that the message itself must carry
// (protocol.md 2.5).
type Endpoint struct {
	Name   string
	Signed bool // needs the signature of a registered key; else none is looked for
	Async  bool // answered NoReply before anything is done with it (protocol.md 2.7)
	handle func(*visit, *ccm.Message, site.Device) (reply string, err error)
}

// endpoints is the table. What has no handler is answered as the protocol asks, and dropped with a code.
func endpoints() []Endpoint {
	return []Endpoint{
		{Name: endpointRegistration, handle: (*visit).register},
		{Name: "MP_LocationManager", handle: (*visit).locate},
		{Name: "MP_PolicyManager", Signed: true, handle: (*visit).assignments},
		{Name: "MP_TokenManager", Signed: true},
		{Name: "MP_DdrEndpoint", Async: true},
		{Name: "MP_HinvEndpoint", Async: true},
		{Name: "MP_SinvEndpoint", Async: true},
		{Name: "MP_SinvCollFileEndpoint", Async: true},
		{Name: "MP_RelayEndpoint", Async: true},
		{Name: "StatusReceiver", Async: true},
		{Name: "MP_AppStateManager", Async: true},
		{Name: "MP_DriverManager", Async: true},
	}
}

const endpointRegistration = "MP_ClientRegistration"

// Endpoints returns the table of message endpoints.
func (m *ManagementPoint) Endpoints() []Endpoint { return slices.Clone(m.endpoints) }

func (m *ManagementPoint) endpointOf(name string) (Endpoint, error) {
	at := slices.IndexFunc(m.endpoints, func(e Endpoint) bool { return strings.EqualFold(e.Name, name) })
	if at < 0 {
		return Endpoint{}, catalog.Errorf(catalog.EndpointUnknown, "TargetEndpoint is %.64q", name)
	}
	return m.endpoints[at], nil
}

// message is one CCM_POST: read, route by TargetEndpoint, prove, answer. A repeated message is answered again; some clients keep one
// message id for ever (protocol.md 12).
func (v *visit) message() {
	m, err := v.readMessage()
	defer v.give()
	if revoked := v.revoked(); revoked != nil { // while it was on its way
		v.refuse(revoked)
		return
	}
	if err != nil {
		if spent := v.spend(); spent != nil {
			v.refuseSpent(spent)
			return
		}
		v.dropUnread(m, err)
		return
	}
	endpoint, reply, err := v.deliver(m)
	if spent := v.spend(); spent != nil { // of what was refused, and so noted no use: not to be answered twice either
		err = spent
	}
	if hook := v.mp.config.Hooks.Message; hook != nil {
		hook(endpoint.Name, err == nil)
	}
	switch async := endpoint.Async || asynchronous(m); {
	case catalog.CodeOf(err) == catalog.KerberosReplay:
		v.refuseSpent(err)
	case err != nil && ours(err):
		v.refuse(err)
	case err != nil:
		v.drop(m, endpoint, async, err)
	case async:
		v.noReply()
	default:
		v.answer(m, reply)
	}
}

// readMessage takes room for what the message can unpack to at most, once its bytes are there: slow senders take none. It keeps what the
// message does take until it is answered.
func (v *visit) readMessage() (m *ccm.Message, err error) {
	v.raw, err = v.arrive()
	switch {
	case catalog.CodeOf(err) != "":
		return nil, err
	case err != nil:
		return nil, catalog.Wrap(catalog.MessageTruncated, err, "the message broke off after %d bytes", len(v.raw))
	}
	room, limits := v.roomFor()
	if v.share, err = room.take(v.r.Context(), mostUnpacked(limits, len(v.raw))); err != nil {
		return nil, err
	}
	m, err = ccm.ReadMessage(v.r.Header.Get("Content-Type"), bytes.NewReader(v.raw), limits)
	if m != nil {
		v.share.keep(int64(len(m.Body)))
	}
	return m, err
}

// asynchronous reports whether the sender waits for no answer; one client writes ASync (protocol.md 12).
func asynchronous(m *ccm.Message) bool {
	mode := strings.ToLower(m.Header.ReplyMode)
	return mode == "async" || mode == "directasync"
}

// deliver finds the endpoint, checks what the message proves, and hands it over.
func (v *visit) deliver(m *ccm.Message) (endpoint Endpoint, reply string, err error) {
	if endpoint, err = v.mp.endpointOf(m.Header.TargetEndpoint); err != nil {
		return endpoint, "", err
	}
	if err := v.tokenSpeaksFor(m, endpoint); err != nil {
		return endpoint, "", err
	}
	if endpoint.Name != endpointRegistration {
		if err := v.spend(); err != nil {
			return endpoint, "", err
		}
	}
	var device site.Device
	if endpoint.Signed || endpoint.Async && m.Header.ClientAuth != nil {
		if device, err = v.signedBy(m); err != nil {
			return endpoint, "", err
		}
	}
	if endpoint.handle == nil {
		return endpoint, "", catalog.Errorf(catalog.EndpointNotHandled, "a message to %s", endpoint.Name)
	}
	reply, err = endpoint.handle(v, m, device)
	return endpoint, reply, err
}

// tokenSpeaksFor ties the message to the token that let it in: a token of scope register opens registration and nothing else, and no token
// opens a message of another device.
func (v *visit) tokenSpeaksFor(m *ccm.Message, endpoint Endpoint) error {
	if v.proof.Method != proof.CCMToken {
		return nil
	}
	if endpoint.Name == endpointRegistration {
		return nil // judged by the key that signed it: site.Register
	}
	if v.proof.Scope != token.ScopeClient {
		return catalog.Errorf(catalog.TokenScope, "a token for registering does not open %s", endpoint.Name)
	}
	if m.Header.SourceID != "" && !strings.EqualFold(m.Header.SourceID, string(v.proof.Client)) {
		return catalog.Errorf(catalog.MessageOtherDevice, "the token is for %s, the message is from %s", v.proof.Client, m.Header.SourceID)
	}
	return nil
}

// signedBy returns the device that the message is from, once its registered key has verified both signatures. The device's level is cut to
// what the route gives.
func (v *visit) signedBy(m *ccm.Message) (site.Device, error) {
	if m.Header.ClientAuth == nil && v.certified() {
		return v.certifiedBy(m)
	}
	id, err := ccm.ParseClientID(m.Header.SourceID)
	if err != nil {
		return site.Device{}, catalog.Wrap(catalog.SignatureMissing, err, "the message names no sender")
	}
	device, err := v.device(id)
	if err != nil {
		return site.Device{}, err
	}
	public, err := device.PublicKey()
	if err != nil {
		return site.Device{}, err
	}
	if err := m.Verify(public); err != nil {
		return site.Device{}, err
	}
	v.provedBy(device)
	return v.limited(device, !ccm.StrongHash(m.Header.ClientAuth.HashAlgorithm))
}

// device finds a device by its client id.
func (v *visit) device(id ccm.ClientID) (site.Device, error) {
	device, err := v.mp.site.Device(v.r.Context(), id)
	if isNotFound(err) {
		return device, catalog.Errorf(catalog.DeviceUnknown, "no device has the client id %s", id)
	}
	return device, err
}

// provedBy notes that the request is by this device's key, unless a token has said more already.
func (v *visit) provedBy(device site.Device) {
	if v.proof.Method == proof.Anonymous {
		v.proof.Method, v.proof.Key = proof.MessageSignature, device.Key
	}
	v.proof.Client = device.ClientID
}

// limited refuses a blocked device and, unless the site serves clients of 2007, a proof with SHA-1. One that is blocked from now on ends the request. It cuts
// the level to the ceiling of the route, and to known where the proof is weak.
func (v *visit) limited(device site.Device, weak bool) (site.Device, error) {
	if weak && !v.mp.site.Settings().LegacyKeys {
		return device, catalog.Errorf(catalog.RegistrationWeakKey, "signed with SHA-1; SHA-256 is needed")
	}
	if err := device.Refused(); err != nil {
		return device, err
	}
	if err := v.holdDevice(device); err != nil {
		return device, err
	}
	v.mp.site.Seen(device.ClientID)
	device.Approval.Level = min(device.Approval.Level, v.ceilingFor(device))
	if weak {
		device.Approval.Level = min(device.Approval.Level, proof.LevelKnown)
	}
	return device, nil
}

// answer sends the reply to a synchronous message.
func (v *visit) answer(m *ccm.Message, reply string) {
	header := ccm.Header{SourceHost: v.mp.config.FQDN, SentTime: v.began.UTC().Format("2006-01-02T15:04:05Z")}
	contentType, body, err := ccm.EncodeReply(m.Header, header, reply)
	if err != nil {
		v.refuse(err)
		return
	}
	v.reply(http.StatusOK, contentType, body)
}

// noReply answers an asynchronous message. An empty 200 would make some clients send it for ever (protocol.md 12).
func (v *visit) noReply() {
	contentType, body := ccm.NoReply()
	v.reply(http.StatusOK, contentType, body)
}

// drop answers a message that was refused: nothing on the wire says why (protocol.md 1.5), the log and the event do.
func (v *visit) drop(m *ccm.Message, endpoint Endpoint, async bool, err error) {
	v.remember(err, strings.ToLower(strings.TrimPrefix(endpoint.Name, "MP_")), subjectOf(m))
	if async {
		v.noReply()
		return
	}
	v.empty()
}

// dropUnread answers a body that is no message; of m there may be the header, which says how the sender waits. One that is too large gets a status,
// since it was not read to its end, and so does one for which there is no room.
func (v *visit) dropUnread(m *ccm.Message, err error) {
	var cut *http.MaxBytesError
	if errors.As(err, &cut) {
		err = catalog.Errorf(catalog.MessageTooLarge, "more than %d bytes", cut.Limit)
	}
	if catalog.CodeOf(err) == catalog.MessageTooLarge || ours(err) {
		v.refuse(err)
		return
	}
	v.remember(err, "message", "")
	if m != nil && v.mp.waitsForNothing(m) {
		v.noReply()
		return
	}
	v.empty()
}

// waitsForNothing reports whether a message whose endpoint was not asked for its opinion is answered NoReply.
func (m *ManagementPoint) waitsForNothing(message *ccm.Message) bool {
	endpoint, _ := m.endpointOf(message.Header.TargetEndpoint)
	return endpoint.Async || asynchronous(message)
}

func (v *visit) empty() {
	if err := v.sign(http.StatusOK, nil); err != nil {
		v.refuse(err)
		return
	}
	v.w.Header().Set("Content-Length", "0")
	v.w.Header().Set("Cache-Control", "no-store")
	v.w.WriteHeader(http.StatusOK)
}

// subjectOf is the sender that a message claims; it was checked to be an id.
func subjectOf(m *ccm.Message) string { return m.Header.SourceID }
