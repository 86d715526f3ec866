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
	var seen newcomerEvents
	err = s.update(ctx, func(tx Tx) (moved bool, err error) {
		n := *newcomer // each try begins anew
		out, err = s.register(tx, caller, &n)
		seen = newcomerEvents{n.owner, n.events}
		return n.moved, err
	})
	if err != nil {
		return Registration{}, fmt.Errorf("register %s: %w", newcomer.key, err)
	}
	s.noteRegistration(caller, seen, out)
	return out, nil
}

// newcomer is a registration request whose signature and certificate have been checked.
type newcomer struct {
	request *ccm.RegistrationRequest
	key     proof.KeyThumbprint
	wanted  ccm.ClientID // "" when the management point is to choose
	weak    bool
	record  Record
	shown   *certificate // the company's, nil without one

	// Found out in the transaction.
	owner    ccm.ClientID // when wanted belongs to another key
	reserve  *Reservation // when an id is promised to the key
	realm    proof.Realm  // of the caller's ticket
	refusal  *refusal     // a device that a person refused and that this one may be
	bare     Approval     // that its own proof gives, were it not for the refusal
	identity string       // that the caller has proved, see [Device.Proved]
	own      bool         // that is this computer and nobody else
	code     catalog.Code // why a proof was not enough for approval
	misfit   string       // the same in words
	events   []Event
	moved    bool // the site state moves
	rotated  bool // the key took a former one's place
}

// newcomerEvents is what there is to tell when a registration is kept.
type newcomerEvents struct {
	owner  ccm.ClientID
	events []Event
}

const minKeyBits = 2048

// keyTypePKI is Signing/@KeyType of a key with a certificate of the company (protocol.md 3.1).
const keyTypePKI = 2

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
	shown, own, err := s.readCertificate(caller, key)
	if err != nil {
		return nil, err
	}
	if own {
		record.KeyType = keyTypePKI
	}
	return &newcomer{request: request, key: key, wanted: request.SMSID, weak: weak(request), record: record, shown: shown}, nil
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
	internet, _ := strconv.Atoi(request.Property("internetflag")) // names in lower case are found without a copy
	record := Record{
		SiteCode:         code,
		Identity:         caller.Account,
		DeviceID:         request.Property("deviceid"),
		Certificate:      request.Signing.DER,
		Thumbprint:       request.Signing.Thumbprint(),
		KeyType:          request.KeyType,
		PublicKey:        ccm.MarshalPublicKeyBlob(request.Signing.PublicKey),
		ValidFrom:        request.Signing.NotBefore.UTC(),
		ValidTo:          request.Signing.NotAfter.UTC(),
		AgentType:        request.Agent.Type,
		SMBIOSID:         request.Property("smbiosid"),
		MACAddress:       request.Property("macaddress"),
		HardwareID1:      request.Property("hardwareid1"),
		ISVProxyID:       proxyID(request),
		AlwaysInternet:   internet == 2,
		InternetEnabled:  internet >= 1,
		IsIntegratedAuth: integrated,
		Version:          request.Agent.Version,
		NetbiosName:      request.Property("netbios name"),
		FQDName:          request.Property("fq name"),
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
	for _, attribute := range [...]struct{ name, value string }{
		{"NetBIOS Name", r.NetbiosName}, {"FQ Name", r.FQDName}, {"DeviceID", r.DeviceID}, {"SMBIOSID", r.SMBIOSID},
		{"MACAddress", r.MACAddress}, {"HardwareID1", r.HardwareID1}, {"AgentVersion", r.Version}, {"Signature SMSID", r.ISVProxyID},
	} {
		if len(attribute.value) > maxAttribute {
			return catalog.Errorf(catalog.RegistrationAttribute, "%s has %d bytes; at most %d are allowed", attribute.name, len(attribute.value), maxAttribute)
		}
		if strings.ContainsFunc(attribute.value, unprintable) {
			return catalog.Errorf(catalog.RegistrationAttribute, "%s holds control or invisible characters: %+q", attribute.name, attribute.value)
		}
	}
	return nil
}

func unprintable(r rune) bool {
	if ' ' <= r && r <= '~' {
		return false
	}
	return !unicode.IsPrint(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// register resolves who the newcomer is, decides on approval and writes; all inside one transaction. What refuses a request is looked at before anything
// is written, so that a refusal disturbs nobody who shares the commit.
func (s *Site) register(tx Tx, caller Caller, n *newcomer) (Registration, error) {
	if err := cloudStillAdmitted(tx, caller.Cloud); err != nil {
		return Registration{}, err
	}
	if err := bulkStillAdmitted(tx, caller.BulkID, n.record); err != nil {
		return Registration{}, err
	}
	known, err := tx.DeviceByKey(n.key)
	switch {
	case err == nil:
		return s.registerAgain(tx, caller, n, known)
	case !errors.Is(err, ErrNotFound):
		return Registration{}, err
	}
	return s.registerNew(tx, caller, n)
}

func (s *Site) registerNew(tx Tx, caller Caller, n *newcomer) (Registration, error) {
	if by, err := tx.FormerKey(n.key); err == nil {
		return Registration{}, obsoleteError(by)
	} else if !errors.Is(err, ErrNotFound) {
		return Registration{}, err
	}
	if s.current.Load().blockedKey[n.key] { // without a record: what was revoked before a restore
		return Registration{}, catalog.Errorf(catalog.KeyBlocked, "the key %s is blocked", n.key)
	}
	id, err := s.chooseID(tx, n)
	if err != nil {
		return Registration{}, err
	}
	now := s.time()
	device := Device{ClientID: id, Key: n.key, Record: n.record, Created: now, Updated: now, LastSeen: now}
	if device.Approval, err = s.approve(tx, caller, n, nil, now); err != nil {
		return Registration{}, err
	}
	device.Proved = n.identity
	twins, err := s.twins(tx, n, device, nil, true)
	if err != nil {
		return Registration{}, err
	}
	if err := noteTicket(tx, caller); err != nil {
		return Registration{}, err
	}
	if err := s.settle(tx, caller, n, &device, twins); err != nil {
		return Registration{}, err
	}
	device.Record.SMSID = device.ClientID
	if err := tx.PutDevice(device); err != nil {
		return Registration{}, err
	}
	if n.reserve != nil {
		if err := tx.DeleteReservation(n.key); err != nil {
			return Registration{}, err
		}
	}
	if err := s.trust(tx, actorSite, "device.register", string(device.ClientID), trustOf(device)); err != nil {
		return Registration{}, err
	}
	n.tell(n.code, device.ClientID, "the account %s was proved; the computer calls itself %q and %q: %s", n.identity, n.record.NetbiosName, n.record.FQDName, n.misfit)
	return Registration{Device: device, New: !n.rotated, Changed: true}, nil
}

// noteTicket makes sure that an authenticator serves one registration, on one node (C78). It comes before all writes: a replay then undoes nothing.
func noteTicket(tx Tx, caller Caller) error {
	if caller.Ticket == nil || caller.Ticket.Use == "" {
		return nil
	}
	err := tx.NoteUse(caller.Ticket.Use, caller.Ticket.UseUntil)
	if errors.Is(err, ErrExists) {
		return catalog.Errorf(catalog.KerberosReplay, "the authenticator of %s was used for a registration before", caller.Ticket.LogName())
	}
	return err
}

// registerAgain answers a key that is a device already. It writes only when an attribute changed or the proof became stronger.
func (s *Site) registerAgain(tx Tx, caller Caller, n *newcomer, device Device) (Registration, error) {
	if err := device.Refused(); err != nil {
		return Registration{}, err
	}
	if cloud := caller.cloud(); cloud != nil {
		if err := device.sameEntra(*cloud); err != nil {
			return Registration{}, err
		}
	}
	if err := n.meetOwner(tx, device.ClientID); err != nil {
		return Registration{}, err
	}
	before, now := device, s.time()
	approval, err := s.approve(tx, caller, n, &before, now)
	if err != nil {
		return Registration{}, err
	}
	device.take(n, s.Settings())
	raised := device.Conflict == "" && replaces(device.Approval, approval)
	if raised {
		device.Approval = approval
	}
	var twins []finding
	changed := raised || n.owner != "" || device.Record.HardwareID1 != before.Record.HardwareID1 || device.Proved != before.Proved
	if changed || n.own || n.refusal != nil {
		if twins, err = s.twins(tx, n, device, &before, changed); err != nil {
			return Registration{}, err
		}
	}
	if err := noteTicket(tx, caller); err != nil {
		return Registration{}, err
	}
	raisedHeld, err := s.raiseHeld(tx, &device, n.bare)
	if err != nil {
		return Registration{}, err
	}
	if err := s.judgeMove(tx, caller, n, before, &device); err != nil {
		return Registration{}, err
	}
	if err := s.settle(tx, caller, n, &device, twins); err != nil {
		return Registration{}, err
	}
	lifted, err := s.lift(tx, caller, n, &device)
	if err != nil {
		return Registration{}, err
	}
	if lifted == "" && !raised && !raisedHeld && device.Proved == before.Proved && device.Conflict == before.Conflict && device.Record.equal(before.Record) {
		return Registration{Device: device}, nil
	}
	device.Updated, device.LastSeen = now, now
	if err := tx.PutDevice(device); err != nil {
		return Registration{}, err
	}
	n.tell(n.code, device.ClientID, "the account %s was proved; the computer calls itself %q and %q: %s", n.identity, n.record.NetbiosName, n.record.FQDName, n.misfit)
	return Registration{Device: device, Changed: true}, s.trust(tx, actorSite, "device.update", string(device.ClientID), trustOf(device))
}

// take brings the record up to date with what the device says now, and keeps the stronger evidence: who the key has proved to be, and that this
// was by integrated authentication (S1), is not lost when the device comes without it. Its first identity stays, but that a computer may be renamed:
// its account then takes the place of its former account.
func (d *Device) take(n *newcomer, settings Settings) {
	old, record := d.Record, n.record
	record.SMSID = d.ClientID
	record.keepNewer(old)
	if record.HardwareID1 == "" || n.stale(d.Updated) {
		record.HardwareID1 = old.HardwareID1
	}
	switch {
	case n.identity != "" && (d.Proved == "" || d.Proved == n.identity || n.own && accountIdentity(n.identity) && accountIdentity(d.Proved)):
		d.Proved = n.identity
	case old.IsIntegratedAuth:
		record.Identity, record.IsIntegratedAuth, record.ApprovalMethod = old.Identity, true, old.ApprovalMethod
	}
	d.Record = record
}

// staleAfter is how much older than the last change a message must say it is, to be a copy: some clients send local time as UTC (protocol.md 3.1).
const staleAfter = 24 * time.Hour

// stale reports whether the request is an old one sent again, by its own signed time. Whoever recorded it must not be able to bring back a former
// hardware id, which would look like a key on two computers.
func (n *newcomer) stale(changed time.Time) bool {
	sent, err := time.Parse(time.RFC3339, n.request.TimeStamp)
	return err == nil && sent.Add(staleAfter).Before(changed)
}

// tell adds an event that is noted when the registration is kept; without a code there is none.
func (n *newcomer) tell(code catalog.Code, subject ccm.ClientID, format string, arguments ...any) {
	if code != "" {
		n.events = append(n.events, Event{Code: string(code), Subject: string(subject), Detail: fmt.Sprintf(format, arguments...)})
	}
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
		return ccm.NextClientID(s.time(), s.rand)
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

// approve gathers the evidence and decides; known is the record of the key, nil for a new one.
func (s *Site) approve(tx Tx, caller Caller, n *newcomer, known *Device, now time.Time) (Approval, error) {
	settings := s.Settings()
	e := evidence{method: caller.Method, bulkID: caller.BulkID, weakKey: n.weak, ceiling: caller.Ceiling, approval: settings.ApprovalAt(now),
		netbios: n.record.NetbiosName, fqdn: n.record.FQDName, cloud: caller.cloud(), certificate: n.shown}
	switch { // a CCM token stands for what it was got with
	case caller.Method == proof.CCMToken && e.cloud != nil:
		e.method = proof.Entra
	case caller.Method == proof.CCMToken && caller.BulkID != "":
		e.method = proof.BulkToken
	}
	if caller.Method == proof.Kerberos && caller.Ticket != nil {
		e.ticket, e.realm = caller.Ticket, settings.Realm(caller.Ticket.Realm)
		_, n.misfit = accountFits(caller.Ticket.Account, e.realm, e.netbios, e.fqdn)
	}
	n.identity, n.own = e.identity()
	n.realm = e.realm
	bare := decide(e)
	decided := bare
	n.code = bare.code
	var err error
	if n.refusal, err = s.refusalOf(tx, n, e, known); err != nil {
		return Approval{}, err
	}
	if e.refused = n.refusal; e.refused != nil {
		decided = decide(e)
		decided.name = strings.Replace(decided.name, ruleRefusedDevice, e.refused.String(), 1)
	}
	facts := map[string]string{"key": string(n.key)}
	for _, fact := range [...]struct{ label, value string }{
		{"bulk-token", e.bulkID}, {"account", caller.Account}, {"realm", caller.Realm},
		{"address", caller.Address}, {"wanted-but-taken", string(n.owner)},
	} {
		if fact.value != "" {
			facts[fact.label] = fact.value
		}
	}
	if r := e.refused; r != nil {
		facts[map[bool]string{true: "blocked-twin", false: "rejected-twin"}[r.device.Block.Blocked]] = string(r.device.ClientID)
	}
	if e.ticket != nil {
		addTicket(facts, e)
	}
	if e.cloud != nil {
		addCloud(facts, *e.cloud)
	}
	if e.certificate != nil {
		addCertificate(facts, e.certificate)
	}
	if decided.name == ruleEveryone {
		facts["everyone-until"] = settings.EveryoneUntil.Format(time.RFC3339)
	}
	approval := Approval{Status: decided.status, Level: decided.level, Method: e.method, Rule: decided.name, Evidence: facts, By: actorSite, At: now}
	n.bare = approval
	n.bare.Status, n.bare.Level, n.bare.Rule = bare.status, bare.level, bare.name
	return approval, nil
}

// addTicket keeps what a ticket proved.
func addTicket(facts map[string]string, e evidence) {
	t := e.ticket
	yesNo := map[bool]string{true: "yes", false: "no"}
	add(facts, map[string]string{
		"account": t.Account, "realm": t.Realm, "domain": t.Domain, "sid": t.SID, "service": t.Service, "key-version": strconv.Itoa(t.KeyVersion),
		"encryption-type": strconv.Itoa(t.EncryptionType), "pac": yesNo[t.PAC], "transited": strings.Join(t.Transited, " "),
		"own-computer-account": yesNo[e.account() == ""],
	})
}

func trustOf(d Device) map[string]string {
	return map[string]string{
		"key": string(d.Key), "name": d.Name(), "approval": strconv.Itoa(int(d.Approval.Status)), "level": d.Approval.Level.String(),
		"method": string(d.Approval.Method), "rule": d.Approval.Rule, "bulk-token": d.Approval.Evidence["bulk-token"],
	}
}

func (s *Site) noteRegistration(caller Caller, seen newcomerEvents, out Registration) {
	s.Seen(out.Device.ClientID)
	if seen.owner != "" && out.Device.ClientID != seen.owner {
		seen.events = append(seen.events, Event{Code: string(catalog.RegistrationIDTaken), Subject: string(out.Device.ClientID),
			Detail: fmt.Sprintf("asked for %s, which another key owns; is %s", seen.owner, out.Device.ClientID)})
	}
	if out.New {
		a := &out.Device.Approval
		seen.events = append(seen.events, Event{Subject: string(out.Device.ClientID),
			Detail: "registered, approval status " + strconv.Itoa(int(a.Status)) + ", level " + a.Level.String() + ", rule " + a.Rule})
	}
	for _, e := range seen.events {
		e.Kind, e.Address, e.TraceID = "registration", caller.Address, caller.RequestID
		s.Note(e)
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
		return Registration{}, device.Refused()
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
