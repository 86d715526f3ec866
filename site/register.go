package site

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// Registration is the answer to a registration or confirmation.
type Registration struct {
	Device Device
	// New is true when the device did not exist before.
	New bool
	// Changed is true when a record was written, so that a readable copy is due.
	Changed bool
}

// Register registers the device whose key signed the request (protocol.md 3). The same key is the same device: a repeated request is
// answered again and changes nothing. A GUID that another key owns is never given away; the newcomer gets its own.
//
// The request's signature is checked here, over the bytes as received. Errors carry catalogue codes; one that wraps
// [ErrUnavailable] means that nothing was decided and the inbox may keep the request.
func (s *Site) Register(ctx context.Context, caller Caller, request *ccm.RegistrationRequest) (Registration, error) {
	newcomer, err := s.newcomer(caller, request)
	if err != nil {
		return Registration{}, err
	}
	var out Registration
	var owner ccm.ClientID
	err = s.store.Update(ctx, func(tx Tx) (err error) {
		n := *newcomer // each try begins anew
		out, err = s.register(tx, caller, &n)
		owner = n.owner
		return err
	})
	if err != nil {
		return Registration{}, fmt.Errorf("register %s: %w", newcomer.key, err)
	}
	s.noteRegistration(caller, owner, out)
	return out, nil
}

// newcomer is a registration request whose signature and certificate have been checked.
type newcomer struct {
	key     proof.KeyThumbprint
	wanted  ccm.ClientID // "" when the management point is to choose
	weak    bool
	record  Record
	owner   ccm.ClientID // set in the transaction when wanted belongs to another key
	reserve *Reservation // set in the transaction when an id is promised to the key
}

const minKeyBits = 2048

func (s *Site) newcomer(caller Caller, request *ccm.RegistrationRequest) (*newcomer, error) {
	if request.Signing == nil {
		return nil, catalog.Errorf(catalog.RegistrationNoCertificate, "the registration has no signing certificate")
	}
	if err := request.Verify(nil); err != nil {
		return nil, catalog.Wrap(catalog.RegistrationSignature, err, "the registration's signature does not fit its own signing certificate")
	}
	now, settings := s.time(), s.Settings()
	if err := usable(request, now, settings.LegacyKeys); err != nil {
		return nil, err
	}
	key, err := proof.Thumbprint(request.Signing.PublicKey)
	if err != nil {
		return nil, catalog.Wrap(catalog.RegistrationNoCertificate, err, "the signing certificate's key has a kind that devices do not use")
	}
	if caller.Key != "" && caller.Key != key {
		return nil, catalog.Errorf(catalog.RegistrationOtherKey, "the request was signed with key %s but its token or certificate belongs to key %s", key, caller.Key)
	}
	record, err := recordOf(settings.SiteCode, caller, request)
	if err != nil {
		return nil, err
	}
	return &newcomer{key: key, wanted: request.SMSID, weak: weak(request), record: record}, nil
}

// usable refuses what no setting allows, and what only the legacy setting allows.
func usable(request *ccm.RegistrationRequest, now time.Time, legacy bool) error {
	c := request.Signing
	switch {
	case now.After(c.NotAfter.Add(tokenLeeway)):
		return catalog.Errorf(catalog.RegistrationCertificateExpired, "the signing certificate ended at %s; the time here is %s", c.NotAfter.UTC().Format(time.RFC3339), now.Format(time.RFC3339))
	case now.Before(c.NotBefore.Add(-tokenLeeway)):
		return catalog.Errorf(catalog.RegistrationCertificateExpired, "the signing certificate begins only at %s; the time here is %s", c.NotBefore.UTC().Format(time.RFC3339), now.Format(time.RFC3339))
	case weak(request) && !legacy:
		return catalog.Errorf(catalog.RegistrationWeakKey, "the keys have %s bits and the signature algorithm is %q; at least RSA %d with SHA-256 is needed", keyBits(request), request.HashAlgorithm, minKeyBits)
	}
	return nil
}

// weak reports keys and signatures of 2007 (protocol.md 2.4), of the encryption certificate too: a secret is sealed to it.
func weak(request *ccm.RegistrationRequest) bool {
	shortKey := func(c *ccm.Certificate) bool { return c != nil && c.PublicKey.N.BitLen() < minKeyBits }
	return !ccm.StrongHash(request.HashAlgorithm) || shortKey(request.Signing) || shortKey(request.Encryption)
}

func keyBits(request *ccm.RegistrationRequest) string {
	bits := strconv.Itoa(request.Signing.PublicKey.N.BitLen())
	if request.Encryption != nil {
		bits += " and " + strconv.Itoa(request.Encryption.PublicKey.N.BitLen())
	}
	return bits
}

// recordOf maps the message to the fields of spUpdateClientRegistration (protocol.md 3.7).
func recordOf(code ccm.SiteCode, caller Caller, request *ccm.RegistrationRequest) (Record, error) {
	integrated := caller.Method == proof.Kerberos
	internet, _ := strconv.Atoi(request.Property("InternetFlag"))
	record := Record{
		SiteCode:         code,
		Identity:         caller.Account,
		DeviceID:         request.Property("DeviceID"),
		Certificate:      request.Signing.DER,
		Thumbprint:       request.Signing.Thumbprint(),
		KeyType:          request.KeyType,
		PublicKey:        ccm.MarshalPublicKeyBlob(request.Signing.PublicKey),
		ValidFrom:        request.Signing.NotBefore.UTC(),
		ValidTo:          request.Signing.NotAfter.UTC(),
		AgentType:        request.Agent.Type,
		SMBIOSID:         request.Property("SMBIOSID"),
		MACAddress:       request.Property("MACAddress"),
		HardwareID1:      request.Property("HardwareID1"),
		ISVProxyID:       proxyID(request),
		AlwaysInternet:   internet == 2,
		InternetEnabled:  internet >= 1,
		IsIntegratedAuth: integrated,
		Version:          request.Agent.Version,
		NetbiosName:      request.Property("NetBIOS Name"),
		FQDName:          request.Property("FQ Name"),
	}
	if integrated {
		record.ApprovalMethod = 1
	}
	if request.Encryption != nil {
		record.EncKey, record.EncThumbprint = request.Encryption.DER, request.Encryption.Thumbprint()
	}
	return record, record.check()
}

// proxyID returns the id of an ISV proxy that signs for its client: on Signature, and other than the device's own (protocol.md 3.1).
func proxyID(request *ccm.RegistrationRequest) string {
	if request.Type == "Confirmation" || ccm.ClientID(request.SignatureSMSID) == request.SMSID {
		return ""
	}
	return request.SignatureSMSID
}

const maxAttribute = 256

// check refuses attributes that could lie to the person who reads a list (C68): too long, control, bidirectional or invisible characters.
func (r *Record) check() error {
	for name, value := range map[string]string{
		"NetBIOS Name": r.NetbiosName, "FQ Name": r.FQDName, "DeviceID": r.DeviceID, "SMBIOSID": r.SMBIOSID,
		"MACAddress": r.MACAddress, "HardwareID1": r.HardwareID1, "AgentVersion": r.Version, "Signature SMSID": r.ISVProxyID,
	} {
		if len(value) > maxAttribute {
			return catalog.Errorf(catalog.RegistrationAttribute, "%s has %d bytes; at most %d are allowed", name, len(value), maxAttribute)
		}
		if strings.ContainsFunc(value, unprintable) {
			return catalog.Errorf(catalog.RegistrationAttribute, "%s holds control or invisible characters: %+q", name, value)
		}
	}
	return nil
}

func unprintable(r rune) bool {
	return !unicode.IsPrint(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// register resolves who the newcomer is, decides on approval and writes; all inside one transaction.
func (s *Site) register(tx Tx, caller Caller, n *newcomer) (Registration, error) {
	known, err := tx.DeviceByKey(n.key)
	if err == nil {
		return s.registerAgain(tx, caller, n, known)
	}
	if !errors.Is(err, ErrNotFound) {
		return Registration{}, err
	}
	id, err := s.chooseID(tx, n)
	if err != nil {
		return Registration{}, err
	}
	now := s.time()
	device := Device{ClientID: id, Key: n.key, Record: n.record, Created: now, Updated: now, LastSeen: now}
	device.Record.SMSID = id
	if device.Approval, err = s.approve(tx, caller, n, now); err != nil {
		return Registration{}, err
	}
	if err := tx.PutDevice(device); err != nil {
		return Registration{}, err
	}
	if n.reserve != nil {
		if err := tx.DeleteReservation(n.key); err != nil {
			return Registration{}, err
		}
	}
	if err := s.trust(tx, actorSite, "device.register", string(id), trustOf(device)); err != nil {
		return Registration{}, err
	}
	return Registration{Device: device, New: true, Changed: true}, nil
}

// registerAgain answers a key that is a device already. It writes only when an attribute changed or the proof became stronger.
func (s *Site) registerAgain(tx Tx, caller Caller, n *newcomer, device Device) (Registration, error) {
	if device.Blocked() {
		return Registration{}, catalog.Errorf(catalog.DeviceBlocked, "device %s (%s) is blocked since %s", device.ClientID, device.Name(), device.Block.At.Format(time.RFC3339))
	}
	if err := n.meetOwner(tx, device.ClientID); err != nil {
		return Registration{}, err
	}
	now := s.time()
	approval, err := s.approve(tx, caller, n, now)
	if err != nil {
		return Registration{}, err
	}
	raised := stronger(device.Approval, approval.Level)
	if raised {
		device.Approval = approval
	}
	record := n.record
	record.SMSID = device.ClientID
	record.keepNewer(device.Record)
	if !raised && record.equal(device.Record) {
		return Registration{Device: device}, nil
	}
	device.Record, device.Updated, device.LastSeen = record, now, now
	if err := tx.PutDevice(device); err != nil {
		return Registration{}, err
	}
	return Registration{Device: device, Changed: true}, s.trust(tx, actorSite, "device.update", string(device.ClientID), trustOf(device))
}

// keepNewer keeps the registered certificates where the message's are missing or older: whoever recorded an earlier registration of the device must
// not be able to bring an old encryption certificate back by sending it again.
func (r *Record) keepNewer(old Record) {
	if r.ValidFrom.Before(old.ValidFrom) {
		r.Certificate, r.Thumbprint, r.ValidFrom, r.ValidTo = old.Certificate, old.Thumbprint, old.ValidFrom, old.ValidTo
	}
	if len(old.EncKey) > 0 && (r.EncKey == nil || begins(r.EncKey).Before(begins(old.EncKey))) {
		r.EncKey, r.EncThumbprint = old.EncKey, old.EncThumbprint
	}
}

// begins is when a certificate that was read before begins to be valid.
func begins(der []byte) time.Time {
	c, err := ccm.ParseCertificate(der)
	if err != nil {
		return time.Time{}
	}
	return c.NotBefore
}

// chooseID picks the client id of a key that is no device yet: the one reserved for it, the one it wants if nobody has it, else a new one.
func (s *Site) chooseID(tx Tx, n *newcomer) (ccm.ClientID, error) {
	reservation, err := tx.Reservation(n.key)
	if err == nil {
		n.reserve = &reservation
		return reservation.ClientID, n.meetOwner(tx, reservation.ClientID)
	}
	if !errors.Is(err, ErrNotFound) {
		return "", err
	}
	if err := n.meetOwner(tx, ""); err != nil {
		return "", err
	}
	if n.wanted == "" || n.owner != "" {
		return ccm.NewClientID(s.rand)
	}
	return n.wanted, nil
}

// meetOwner notes when the wanted id is neither the newcomer's own nor free.
func (n *newcomer) meetOwner(tx Tx, own ccm.ClientID) error {
	if n.wanted == "" || n.wanted == own {
		return nil
	}
	free, err := unclaimed(tx, n.wanted)
	if err == nil && !free {
		n.owner = n.wanted
	}
	return err
}

func unclaimed(tx Tx, id ccm.ClientID) (bool, error) {
	if _, err := tx.Device(id); !errors.Is(err, ErrNotFound) {
		return false, err
	}
	_, err := tx.ReservationByClient(id)
	if errors.Is(err, ErrNotFound) {
		return true, nil
	}
	return false, err
}

// approve gathers the evidence and decides.
func (s *Site) approve(tx Tx, caller Caller, n *newcomer, now time.Time) (Approval, error) {
	e := evidence{method: caller.Method, bulkID: caller.BulkID, weakKey: n.weak, ceiling: caller.Ceiling, approval: s.Settings().Approval}
	if caller.Method == proof.CCMToken && caller.BulkID != "" {
		e.method = proof.BulkToken // the register-scoped token stands for the bulk token that it was got with
	}
	if hardware := n.record.HardwareID1; hardware != "" {
		twin, err := tx.BlockedHardware(hardware)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return Approval{}, err
		}
		e.blocked = twin
	}
	status, level, name := decide(e)
	facts := map[string]string{"key": string(n.key)}
	for label, value := range map[string]string{
		"bulk-token": e.bulkID, "account": caller.Account, "realm": caller.Realm, "tenant": caller.Tenant, "entra-device": caller.Device,
		"address": caller.Address, "blocked-twin": string(e.blocked), "wanted-but-taken": string(n.owner),
	} {
		if value != "" {
			facts[label] = value
		}
	}
	return Approval{Status: status, Level: level, Method: e.method, Rule: name, Evidence: facts, By: actorSite, At: now}, nil
}

func trustOf(d Device) map[string]string {
	return map[string]string{
		"key": string(d.Key), "name": d.Name(), "approval": strconv.Itoa(int(d.Approval.Status)), "level": d.Approval.Level.String(),
		"method": string(d.Approval.Method), "rule": d.Approval.Rule, "bulk-token": d.Approval.Evidence["bulk-token"],
	}
}

func (s *Site) noteRegistration(caller Caller, owner ccm.ClientID, out Registration) {
	s.Seen(out.Device.ClientID)
	if owner != "" {
		s.Note(Event{
			Code: string(catalog.RegistrationIDTaken), Kind: "registration", Subject: string(out.Device.ClientID), Address: caller.Address, TraceID: caller.RequestID,
			Detail: fmt.Sprintf("asked for %s, which another key owns; is %s", owner, out.Device.ClientID),
		})
	}
	if out.New {
		s.Note(Event{Kind: "registration", Subject: string(out.Device.ClientID), Address: caller.Address, TraceID: caller.RequestID,
			Detail: fmt.Sprintf("registered, approval status %d, level %s, rule %s", out.Device.Approval.Status, out.Device.Approval.Level, out.Device.Approval.Rule)})
	}
}

// Confirm answers a confirmation: the device asks whether the id that it was given is final (protocol.md 3.5). It is signed with the registered key.
func (s *Site) Confirm(ctx context.Context, caller Caller, request *ccm.RegistrationRequest) (Registration, error) {
	if request.SMSID == "" {
		return Registration{}, catalog.Errorf(catalog.ConfirmationNoID, "a confirmation must name the client id that it confirms")
	}
	device, err := s.Device(ctx, request.SMSID)
	if errors.Is(err, ErrNotFound) {
		return Registration{}, catalog.Errorf(catalog.DeviceUnknown, "no device has the client id %s", request.SMSID)
	}
	if err != nil {
		return Registration{}, err
	}
	public, err := device.PublicKey()
	if err != nil {
		return Registration{}, err
	}
	if err := request.Verify(public); err != nil {
		return Registration{}, catalog.Wrap(catalog.RegistrationSignature, err, "the confirmation of %s is not signed with its registered key", request.SMSID)
	}
	switch {
	case !ccm.StrongHash(request.HashAlgorithm) && !s.Settings().LegacyKeys:
		return Registration{}, catalog.Errorf(catalog.RegistrationWeakKey, "the signature algorithm is %q; at least SHA-256 is needed", request.HashAlgorithm)
	case caller.Key != "" && caller.Key != device.Key:
		return Registration{}, catalog.Errorf(catalog.RegistrationOtherKey, "the confirmation was signed with key %s but its token or certificate belongs to key %s", device.Key, caller.Key)
	case device.Blocked():
		return Registration{}, catalog.Errorf(catalog.DeviceBlocked, "device %s is blocked", device.ClientID)
	}
	s.Seen(device.ClientID)
	return Registration{Device: device}, nil
}

// PublicKey returns the registered signing key.
func (d Device) PublicKey() (*rsa.PublicKey, error) {
	key, err := ccm.ParsePublicKeyBlob(d.Record.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("registered key of %s: %w", d.ClientID, err)
	}
	return key, nil
}

// equal compares records field by field; times by instant.
func (r Record) equal(o Record) bool {
	sameTimes := r.ValidFrom.Equal(o.ValidFrom) && r.ValidTo.Equal(o.ValidTo)
	sameBytes := slices.Equal(r.Certificate, o.Certificate) && slices.Equal(r.EncKey, o.EncKey) && slices.Equal(r.PublicKey, o.PublicKey)
	return sameTimes && sameBytes && r.plain() == o.plain()
}

// plain is the comparable rest of a record.
func (r Record) plain() string {
	return fmt.Sprintf("%q", []any{
		r.SiteCode, r.SMSID, r.CSMSID, r.Identity, r.DeviceID, r.KeyType, r.AgentType, r.SMBIOSID, r.MACAddress, r.HardwareID1, r.ISVProxyID,
		r.AlwaysInternet, r.InternetEnabled, r.Force, r.ApprovalMethod, r.ResolutionMethod, r.IsIntegratedAuth, r.Version, r.NetbiosName, r.FQDName, r.ManualConflictResolution,
	})
}
