package site

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// ConflictKind says what two registrations have in common (product.md 2.9).
type ConflictKind string

// The kinds of conflicts.
const (
	ConflictHardware ConflictKind = "hardware-id" // another key with the hardware id of a known device
	ConflictClientID ConflictKind = "client-id"   // another key that asks for the client id of a known device
	ConflictIdentity ConflictKind = "identity"    // another key with the identity that a known device has proved
	ConflictKey      ConflictKind = "key"         // one key with two hardware ids; newcomer and existing are the same device
)

// ConflictState says how far a conflict has come.
type ConflictState string

// The states of a conflict.
const (
	ConflictWaiting  ConflictState = "waiting"  // for a person; the newcomer is held at level known
	ConflictMerged   ConflictState = "merged"   // one computer: the existing record is obsolete
	ConflictNew      ConflictState = "new"      // two computers
	ConflictBlocked  ConflictState = "blocked"  // the newcomer is blocked
	ConflictResolved ConflictState = "resolved" // by proof, silently
)

// Conflict is one suspicion that two registrations are one computer, or that one key is on two computers: what was seen, and what was decided.
type Conflict struct {
	ID       string
	Kind     ConflictKind
	Newcomer ccm.ClientID
	Existing ccm.ClientID
	Hardware string            // of the newcomer
	Hint     bool              // the newcomer brought a hint that verified (protocol.md 3.1)
	Evidence map[string]string // what the rule saw; "would-be-..." is what the newcomer's own proof gives
	State    ConflictState
	Rule     string // name of the rule that decided first
	By       string // "site" or the person
	Why      string // the person's reason
	Created  time.Time
	Decided  time.Time // zero while it waits
}

// finding is one known device that a registration resembles, and what follows.
type finding struct {
	twin
	rule twinRule
	past *Conflict // what was recorded of the pair before
	skip bool      // nothing follows
}

// maxTwins is how many devices with one hardware id a registration is compared with, the oldest first: what comes later hides none of them. Of those
// with one proved identity there is mostly one.
const (
	maxTwins      = 8
	maxIdentities = 64
)

// twins finds the known devices that the device resembles; before is its record until now, nil for a new key, and without all it is only compared with
// those that have its identity. Of those that no proof tells apart, one is enough to remember. Where a person must decide, nobody is moved.
func (s *Site) twins(tx Tx, n *newcomer, device Device, before *Device, all bool) ([]finding, error) {
	if before != nil {
		if held, err := heldFirmly(tx, *before); held || err != nil {
			return nil, err
		}
	}
	candidates, err := s.candidates(tx, n, device, all)
	if err != nil {
		return nil, err
	}
	var findings []finding
	open := 0
	for _, c := range candidates {
		f, err := s.compare(tx, n, device, before, c)
		if err != nil {
			return nil, err
		}
		lasting := f.rule.then == separate || f.rule.then == hold
		switch past := f.past; {
		case f.skip:
			continue
		case past == nil:
		case past.By != actorSite && past.State != ConflictWaiting:
			continue // a person has decided on the two
		case firm(f.rule.name) && past.State == ConflictWaiting && past.Newcomer == device.ClientID:
			return nil, nil // waits for that already
		case lasting && (!firm(f.rule.name) || past.State == ConflictWaiting):
			continue // known already
		}
		if firm(f.rule.name) {
			return []finding{f}, nil
		}
		if lasting {
			open++
		}
		if lasting && open > 1 {
			continue
		}
		findings = append(findings, f)
	}
	return findings, nil
}

// compare judges one candidate.
func (s *Site) compare(tx Tx, n *newcomer, device Device, before *Device, c candidate) (f finding, err error) {
	t := twin{kind: c.kind, known: before != nil, weak: n.weak, level: device.Approval.Level, realm: n.realm, hint: c.hint, existing: c.device,
		manual: s.Settings().Conflicts == ResolveManually, refused: c.refused && n.heldBack(c.kind, before)}
	if n.own {
		t.identity = n.identity
	}
	if device.Approval.unproved() {
		t.level = proof.LevelKnown
	}
	f = finding{twin: t, rule: decideTwin(t)}
	if before != nil {
		if f.past, err = between(tx, device.ClientID, c.device.ClientID); err != nil {
			return f, err
		}
	}
	if f.rule.then != supersede || !t.sameIdentity() {
		return f, nil
	}
	waits, err := heldFirmly(tx, c.device)
	if err != nil {
		return f, err
	}
	approved := before != nil && before.Approval.Level >= proof.LevelManaged
	if f.skip = waits && approved; f.skip {
		return f, nil // it waits for a person, which is no reason to hold this one
	}
	replaced, err := tx.IdentityReplaced(t.identity, s.time().Add(-replacedWithin))
	if f.flaps = waits || replaced >= maxReplaced; err != nil || !f.flaps {
		return f, err
	}
	f.rule = decideTwin(f.twin)
	f.skip = approved && before.Approval.By != actorSite
	return f, nil
}

// heldBack reports whether a person's no to another device keeps the newcomer from what its own proof gives, or has given: a key that was approved before
// it turned out to be the refused computer's is not approved any more. What a person has said of this device itself stands.
func (n *newcomer) heldBack(kind ConflictKind, before *Device) bool {
	switch {
	case before == nil:
		return n.bare.Level >= proof.LevelManaged
	case before.Approval.By != actorSite:
		return false
	case before.Approval.Level >= proof.LevelManaged:
		return kind == ConflictIdentity
	}
	return n.bare.Level >= proof.LevelManaged
}

// heldFirmly reports whether a device waits for a person and for nothing else.
func heldFirmly(tx Tx, d Device) (bool, error) {
	if d.Conflict == "" {
		return false, nil
	}
	c, err := tx.Conflict(d.Conflict)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return firm(c.Rule), err
}

// candidate is a known device that a registration may resemble.
type candidate struct {
	kind    ConflictKind
	device  Device
	hint    bool
	refused bool // by a person: see [refusal]
}

// candidates finds the known devices to compare with, each once.
func (s *Site) candidates(tx Tx, n *newcomer, device Device, all bool) (list []candidate, err error) {
	add := func(c candidate) {
		if c.device.ClientID != device.ClientID && !slices.ContainsFunc(list, func(o candidate) bool { return o.device.ClientID == c.device.ClientID }) {
			list = append(list, c)
		}
	}
	if n.refusal != nil {
		add(candidate{kind: n.refusal.kind, device: n.refusal.device, refused: true})
	}
	if all {
		owner, err := ownerOf(tx, n, device)
		if err != nil {
			return nil, err
		}
		if owner != nil {
			add(*owner)
		}
	}
	if all && !s.Settings().sharedHardware(n.record) {
		same, err := tx.DevicesByHardware(device.Record.HardwareID1, maxTwins)
		if err != nil {
			return nil, err
		}
		for _, other := range same {
			add(candidate{kind: ConflictHardware, device: other})
		}
	}
	if !n.own {
		return list, nil
	}
	same, err := tx.DevicesByIdentity(n.identity, maxIdentities)
	for _, other := range same {
		if all || other.Approval.Level >= proof.LevelManaged {
			add(candidate{kind: ConflictIdentity, device: other})
		}
	}
	return list, err
}

// ownerOf is the device whose client id the newcomer wants, or nil.
func ownerOf(tx Tx, n *newcomer, device Device) (*candidate, error) {
	wanted := n.owner
	if wanted == "" && n.wanted == "" {
		wanted = n.request.HintClientID
	}
	if wanted == "" || wanted == device.ClientID {
		return nil, nil
	}
	owner, err := current(tx, wanted)
	switch {
	case errors.Is(err, ErrNotFound) && n.owner != "":
		return &candidate{kind: ConflictClientID, device: Device{ClientID: wanted}}, nil // promised to a key that has not registered yet
	case errors.Is(err, ErrNotFound):
		return nil, nil
	}
	return &candidate{kind: ConflictClientID, device: owner, hint: n.hinted(owner)}, err
}

// refusal is a device that a person blocked or rejected, and that a registration with another key may be.
type refusal struct {
	kind   ConflictKind // what they have in common: ConflictIdentity or ConflictHardware
	device Device
}

// String says what they have in common, and names the device.
func (r refusal) String() string {
	what, how := "hardware id", "rejected"
	if r.kind == ConflictIdentity {
		what = "proved identity"
	}
	if r.device.Block.Blocked {
		how = "blocked"
	}
	return fmt.Sprintf("%s of the %s device %s", what, how, r.device.ClientID)
}

// refusalOf finds what a person has refused of the computer that registers: by what its proof names, and by its hardware id. known is its record, nil for
// a new key. What a person has said of just these two devices takes the refusal away.
func (s *Site) refusalOf(tx Tx, n *newcomer, e evidence, known *Device) (*refusal, error) {
	hardware := n.record.HardwareID1
	if s.Settings().sharedHardware(n.record) {
		hardware = ""
	}
	for _, look := range [...]struct {
		kind ConflictKind
		by   string
		find func(string, int) ([]ccm.ClientID, error)
	}{{ConflictIdentity, e.computer(), tx.RefusedIdentity}, {ConflictHardware, hardware, tx.RefusedHardware}} {
		if look.by == "" {
			continue
		}
		ids, err := look.find(look.by, maxRefused)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			settled, err := settledWith(tx, known, id)
			if err != nil {
				return nil, err
			}
			if settled {
				continue
			}
			device, err := tx.Device(id)
			return &refusal{look.kind, device}, err
		}
	}
	return nil, nil
}

// maxRefused is how many refused devices that have something in common are looked at. Each was refused by a person.
const maxRefused = 64

// settledWith reports whether a refused device is the known one itself, or a person has decided on the two.
func settledWith(tx Tx, known *Device, id ccm.ClientID) (bool, error) {
	if known == nil || known.ClientID == id {
		return known != nil, nil
	}
	past, err := between(tx, known.ClientID, id)
	return past != nil && past.State != ConflictWaiting && past.By != actorSite, err
}

// hinted reports whether the request's hint was signed by the key that owns the client id now (protocol.md 3.1).
func (n *newcomer) hinted(owner Device) bool {
	if len(n.request.Hint) == 0 || n.request.HintClientID != owner.ClientID {
		return false
	}
	public, err := owner.PublicKey()
	return err == nil && n.request.VerifyHint(public) == nil
}

// current follows what replaced a device to the record that is in use.
func current(tx Tx, id ccm.ClientID) (device Device, err error) {
	for range maxTwins {
		if device, err = tx.Device(id); err != nil || !device.Superseded() {
			return device, err
		}
		id = device.Obsolete.By
	}
	return device, err
}

// between returns the newest conflict of two devices, or nil.
func between(tx Tx, a, b ccm.ClientID) (newest *Conflict, err error) {
	for _, kind := range []ConflictKind{ConflictClientID, ConflictHardware, ConflictIdentity} {
		for _, pair := range [][2]ccm.ClientID{{a, b}, {b, a}} {
			c, err := tx.LastConflict(kind, pair[0], pair[1])
			switch {
			case errors.Is(err, ErrNotFound):
			case err != nil:
				return nil, err
			case newest == nil || c.Created.After(newest.Created):
				newest = &c
			}
		}
	}
	return newest, nil
}

// settle does what follows from the findings: it writes the conflicts and the records of the others, and changes device, which its caller writes.
func (s *Site) settle(tx Tx, caller Caller, n *newcomer, device *Device, findings []finding) error {
	for _, f := range findings {
		if err := s.settleOne(tx, caller, n, device, f); err != nil {
			return err
		}
	}
	return nil
}

func (s *Site) settleOne(tx Tx, caller Caller, n *newcomer, device *Device, f finding) error {
	c, err := s.newConflict(caller, n, *device, f)
	if err != nil {
		return err
	}
	switch f.rule.then {
	case rotate:
		err = s.rotateKey(tx, n, device, f)
		c.State, c.Newcomer = ConflictResolved, device.ClientID
	case supersede:
		err = s.replace(tx, n, device, f)
		c.State = ConflictResolved
		c.add(map[string]string{"obsolete": string(f.existing.ClientID)})
		if err == nil && device.Conflict == c.ID {
			err = s.release(tx, device, c)
		}
	case hold:
		c.State, c.By, c.Decided = ConflictWaiting, "", time.Time{}
		if c.keep(device.Approval); n.bare.Level > device.Approval.Level {
			c.keep(n.bare)
		}
		device.hold(c, f.because(n))
	default:
		c.State = ConflictNew
	}
	if err != nil {
		return err
	}
	if code := f.code(); code != "" && (f.rule.then == hold || f.rule.then == separate) {
		n.tell(code, device.ClientID, "has the %s of %s (%s); conflict %s: %s", f.shared(), f.existing.ClientID, f.existing.Name(), c.ID, f.rule.name)
	}
	if len(n.request.Hint) > 0 && f.kind == ConflictClientID && f.rule.then != rotate && !f.known {
		n.tell(catalog.RegistrationHintRefused, device.ClientID, "asked for %s with a hint that is %s; conflict %s", f.existing.ClientID, c.Evidence["hint"], c.ID)
	}
	return tx.PutConflict(c)
}

// code is that of the event which tells of what two devices have in common.
func (f finding) code() catalog.Code {
	return map[ConflictKind]catalog.Code{ConflictHardware: catalog.TwinHardware, ConflictIdentity: catalog.TwinIdentity}[f.kind]
}

func (f finding) shared() string {
	if f.kind == ConflictIdentity {
		return "proved identity"
	}
	return "hardware id"
}

// because says why only a person lets the device go on, "" when the conflict says enough.
func (f finding) because(n *newcomer) string {
	switch {
	case f.refused && n.refusal != nil:
		return n.refusal.String()
	case f.flaps:
		return ruleFlaps
	}
	return ""
}

// newConflict describes a finding, or brings up to date what was recorded of the pair.
func (s *Site) newConflict(caller Caller, n *newcomer, device Device, f finding) (Conflict, error) {
	now := s.time()
	c := Conflict{Kind: f.kind, Newcomer: device.ClientID, Existing: f.existing.ClientID, Hardware: device.Record.HardwareID1, Created: now}
	if f.past != nil {
		c = *f.past
	} else {
		var err error
		if c.ID, err = s.conflictID(); err != nil {
			return c, err
		}
	}
	c.Hint, c.Rule, c.By, c.Decided = f.hint, f.rule.name, actorSite, now
	e := map[string]string{
		"same": s.Settings().likeness(device, f.existing), "newcomer-name": device.Name(), "newcomer-proof": string(device.Approval.Method),
		"newcomer-proved": device.Proved, "newcomer-key": string(device.Key), "existing-proved": f.existing.Proved, "address": caller.Address,
	}
	if f.existing.Key != "" {
		e["existing-name"], e["existing-key"], e["existing-level"] = f.existing.Name(), string(f.existing.Key), f.existing.Approval.Level.String()
	}
	if f.refused {
		e["refused"] = f.because(n)
	}
	if len(n.request.Hint) > 0 {
		e["hint"] = map[bool]string{true: "verified", false: "not verified"}[f.hint]
	}
	c.Evidence = maps.Clone(c.Evidence)
	c.add(e)
	return c, nil
}

// add puts facts into the evidence, but for empty ones.
func (c *Conflict) add(facts map[string]string) {
	if c.Evidence == nil {
		c.Evidence = map[string]string{}
	}
	for name, value := range facts {
		if value != "" {
			c.Evidence[name] = value
		}
	}
}

// conflictID is short enough to be typed.
func (s *Site) conflictID() (string, error) {
	var b [8]byte
	if _, err := io.ReadFull(s.rand, b[:]); err != nil {
		return "", fmt.Errorf("read randomness: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// rotateKey gives the existing device's place to the newcomer's key, with the approval that the newcomer's own proof gives. The former key is
// refused from now on.
func (s *Site) rotateKey(tx Tx, n *newcomer, device *Device, f finding) error {
	old := f.existing
	if err := tx.PutFormerKey(old.Key, old.ClientID, s.time()); err != nil {
		return err
	}
	device.ClientID, device.Created = old.ClientID, old.Created
	n.moved, n.rotated = true, true
	if n.owner == old.ClientID {
		n.owner = ""
		delete(device.Approval.Evidence, "wanted-but-taken")
	}
	device.Approval.Evidence["hint-by-former-key"] = string(old.Key)
	return s.trust(tx, actorSite, "device.rekey", string(old.ClientID), map[string]string{"former-key": string(old.Key), "key": string(device.Key), "rule": f.rule.name})
}

// replace makes the existing record obsolete.
func (s *Site) replace(tx Tx, n *newcomer, device *Device, f finding) error {
	n.moved = true
	n.events = append(n.events, Event{Subject: string(device.ClientID), Detail: fmt.Sprintf("replaces %s (%s): %s", f.existing.ClientID, f.existing.Name(), f.rule.name)})
	return s.obsolete(tx, f.existing, device.ClientID, actorSite, f.rule.name)
}

// obsolete writes that a record has been replaced.
func (s *Site) obsolete(tx Tx, device Device, by ccm.ClientID, actor, why string) error {
	now := s.time()
	device.Obsolete, device.Updated = Obsolete{By: by, At: now, Why: why}, now
	if err := tx.PutDevice(device); err != nil {
		return err
	}
	return s.trust(tx, actor, "device.obsolete", string(device.ClientID), map[string]string{"by": string(by), "key": string(device.Key), "name": device.Name(), "why": why})
}

// hold keeps a device at level known while the conflict waits. A device that a person has rejected stays that.
func (d *Device) hold(c Conflict, because string) {
	d.Conflict = c.ID
	if d.Rejected() {
		return
	}
	rule := "held: conflict " + c.ID
	if because != "" {
		rule += ": " + because
	}
	d.Approval = Approval{Status: ccm.ApprovalNone, Level: proof.LevelKnown, Method: d.Approval.Method, Rule: rule, Evidence: d.Approval.Evidence, By: actorSite, At: c.Created}
}

const wouldBe = "would-be-"

// keep notes the approval that the device would have without the conflict.
func (c *Conflict) keep(a Approval) {
	c.add(map[string]string{
		wouldBe + "status": strconv.Itoa(int(a.Status)), wouldBe + "level": a.Level.String(), wouldBe + "method": string(a.Method), wouldBe + "rule": a.Rule,
		wouldBe + "by": a.By, wouldBe + "why": a.Why, wouldBe + "at": a.At.Format(time.RFC3339Nano),
	})
}

// kept returns the approval that keep noted; its evidence stays with the device.
func (c Conflict) kept() (Approval, error) {
	e := func(name string) string { return c.Evidence[wouldBe+name] }
	status, err := strconv.Atoi(e("status"))
	if err != nil {
		return Approval{}, fmt.Errorf("conflict %s: %w", c.ID, err)
	}
	level, err := proof.ParseLevel(e("level"))
	if err != nil {
		return Approval{}, fmt.Errorf("conflict %s: %w", c.ID, err)
	}
	at, err := time.Parse(time.RFC3339Nano, e("at"))
	if err != nil {
		return Approval{}, fmt.Errorf("conflict %s: %w", c.ID, err)
	}
	return Approval{Status: ccm.ApprovalStatus(status), Level: level, Method: proof.Method(e("method")), Rule: e("rule"), By: e("by"), Why: e("why"), At: at}, nil
}

// release gives a held device what its own proof gave, unless another conflict waits for it or a person has decided on it meanwhile.
func (s *Site) release(tx Tx, device *Device, c Conflict) error {
	other, err := otherConflict(tx, device.ClientID, c.ID)
	if err != nil {
		return err
	}
	if device.Conflict = other; other != "" {
		return nil
	}
	if device.Approval.By != actorSite {
		return nil
	}
	approval, err := c.kept()
	approval.Evidence = device.Approval.Evidence
	device.Approval = approval
	return err
}

// otherConflict returns the newest waiting conflict but one that holds the device, or "". Those that others have with the device are passed over, however
// many there are: a crowd of twins must not hide what holds it.
func otherConflict(tx Tx, id ccm.ClientID, but string) (string, error) {
	filter := ConflictFilter{State: ConflictWaiting, Device: id, Limit: conflictPage}
	for {
		page, err := tx.Conflicts(filter)
		if err != nil {
			return "", err
		}
		for _, c := range page {
			if c.ID != but && c.Newcomer == id {
				return c.ID, nil
			}
		}
		if len(page) < filter.Limit {
			return "", nil
		}
		filter.After = page[len(page)-1].ID
	}
}

const conflictPage = 64

// raiseHeld notes a stronger proof of a device that is held, so that it has what it proved once the conflict is decided.
func (s *Site) raiseHeld(tx Tx, device *Device, fresh Approval) (raised bool, err error) {
	if device.Conflict == "" {
		return false, nil
	}
	c, err := tx.Conflict(device.Conflict)
	if err != nil {
		return false, err
	}
	kept, err := c.kept()
	if err != nil || !stronger(kept, fresh.Level) || !stronger(device.Approval, fresh.Level) {
		return false, err
	}
	c.keep(fresh)
	device.Approval.Method, device.Approval.Evidence = fresh.Method, fresh.Evidence
	return true, tx.PutConflict(c)
}

// maxMoves is how many earlier changes of its hardware id a device is compared with.
const maxMoves = 32

// judgeMove looks at a known key that comes with another hardware id: a new mainboard, a clone, a restored snapshot, or a stolen key.
func (s *Site) judgeMove(tx Tx, caller Caller, n *newcomer, before Device, device *Device) error {
	old, fresh := before.Record.HardwareID1, device.Record.HardwareID1
	settings := s.Settings()
	if old == "" || plainID(old) == plainID(fresh) || device.Conflict != "" || settings.sharedHardware(before.Record) || settings.sharedHardware(device.Record) {
		return nil
	}
	past, err := tx.Conflicts(ConflictFilter{Kind: ConflictKey, Device: device.ClientID, Limit: maxMoves})
	if err != nil {
		return err
	}
	m := moved{same: n.own && n.identity == before.Proved, earlier: len(past) > 0, manual: settings.Conflicts == ResolveManually}
	for _, c := range past {
		a, b := plainID(c.Evidence["former-hardware"]), plainID(c.Hardware)
		m.flip = m.flip || a == plainID(fresh)
		m.settled = m.settled || c.State == ConflictMerged && (a == plainID(fresh) && b == plainID(old) || a == plainID(old) && b == plainID(fresh))
	}
	rule := decideMove(m)
	if m.settled {
		return nil
	}
	now := s.time()
	c := Conflict{Kind: ConflictKey, Newcomer: device.ClientID, Existing: device.ClientID, Hardware: fresh, State: ConflictResolved, Rule: rule.name, By: actorSite, Created: now, Decided: now}
	if c.ID, err = s.conflictID(); err != nil {
		return err
	}
	c.add(map[string]string{"former-hardware": old, "newcomer-name": device.Name(), "newcomer-proof": string(caller.Method), "newcomer-proved": n.identity, "address": caller.Address})
	if rule.then == quarantine {
		c.State, c.By, c.Decided = ConflictWaiting, "", time.Time{}
		c.keep(device.Approval)
		device.hold(c, "")
	}
	if rule.then != noted {
		n.tell(catalog.TwinKey, device.ClientID, "hardware id %s, before %s; conflict %s: %s", fresh, old, c.ID, rule.name)
	}
	return tx.PutConflict(c)
}

// Conflicts lists conflicts, the newest first.
func (s *Site) Conflicts(ctx context.Context, filter ConflictFilter) (list []Conflict, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		list, err = tx.Conflicts(filter)
		return err
	})
	return list, err
}

// Conflict returns the conflict with that id; code ConflictUnknown when there is none.
func (s *Site) Conflict(ctx context.Context, id string) (c Conflict, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		c, err = tx.Conflict(id)
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return c, catalog.Errorf(catalog.ConflictUnknown, "no conflict has the id %q", id)
	}
	return c, err
}

// DecideConflict is a person's decision: ConflictMerged, ConflictNew or ConflictBlocked. The same decision again changes nothing; another one has the
// code ConflictDecided, but for what the site itself has left as two devices. Without a reason nothing is decided: see [CheckReason].
func (s *Site) DecideConflict(ctx context.Context, id string, verdict ConflictState, by, why string) (c Conflict, err error) {
	if err := signed(by, why); err != nil {
		return c, err
	}
	act, known := map[ConflictState]string{ConflictMerged: "conflict.merge", ConflictNew: "conflict.new", ConflictBlocked: "conflict.block"}[verdict]
	if !known {
		return c, catalog.Errorf(catalog.InvalidArgument, "%q is no verdict on a conflict", verdict)
	}
	err = s.update(ctx, func(tx Tx) (moved bool, err error) {
		if c, err = tx.Conflict(id); err != nil {
			return false, err
		}
		switch {
		case c.State == verdict && c.By != actorSite:
			return false, nil
		case c.State != ConflictWaiting && (c.State != ConflictNew || c.By != actorSite):
			return false, catalog.Errorf(catalog.ConflictDecided, "conflict %s was decided by %s at %s: %s", id, c.By, c.Decided.Format(time.RFC3339), c.State)
		case c.Kind == ConflictKey && verdict == ConflictNew:
			return false, catalog.Errorf(catalog.ConflictVerdict, "one key cannot be two devices: merge or block %s, and let the copy make a key of its own", c.Newcomer)
		}
		if moved, err = s.execute(tx, c, verdict, by, why); err != nil {
			return false, err
		}
		c.State, c.By, c.Why, c.Decided = verdict, by, why, s.time()
		if err := tx.PutConflict(c); err != nil {
			return false, err
		}
		return moved, s.trust(tx, by, act, id, map[string]string{"kind": string(c.Kind), "newcomer": string(c.Newcomer), "existing": string(c.Existing), "why": why})
	})
	if errors.Is(err, ErrNotFound) {
		return c, catalog.Errorf(catalog.ConflictUnknown, "no conflict has the id %q", id)
	}
	return c, err
}

// execute changes the devices as the verdict says.
func (s *Site) execute(tx Tx, c Conflict, verdict ConflictState, by, why string) (moved bool, err error) {
	newcomer, err := tx.Device(c.Newcomer)
	if errors.Is(err, ErrNotFound) && verdict != ConflictMerged {
		return false, nil // it is gone: nothing to release or block
	}
	gone := errors.Is(err, ErrNotFound) || newcomer.Superseded()
	if err != nil && !errors.Is(err, ErrNotFound) {
		return false, err
	}
	switch {
	case verdict == ConflictMerged && gone:
		return false, catalog.Errorf(catalog.ConflictVerdict, "%s is gone or obsolete", c.Newcomer)
	case verdict == ConflictMerged && c.Kind != ConflictKey:
		existing, err := tx.Device(c.Existing)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return false, err
		}
		if err != nil || existing.Superseded() {
			return false, catalog.Errorf(catalog.ConflictVerdict, "%s is gone or obsolete", c.Existing)
		}
		if err := s.obsolete(tx, existing, newcomer.ClientID, by, why); err != nil {
			return false, err
		}
		moved = true
	case verdict == ConflictBlocked:
		moved = !newcomer.Block.Blocked
		newcomer.Block = Block{Blocked: true, By: by, Why: why, At: s.time()}
	}
	if newcomer.Conflict == c.ID {
		if err := s.end(tx, &newcomer, c, verdict); err != nil {
			return false, err
		}
	}
	newcomer.Updated = s.time()
	if err := tx.PutDevice(newcomer); err != nil {
		return false, err
	}
	detail := trustOf(newcomer)
	detail["conflict"], detail["why"] = c.ID, why
	return moved, s.trust(tx, by, "device.conflict", string(newcomer.ClientID), detail)
}

// end takes the conflict off a device that it held. Who is blocked for it gets nothing for that: when it is unblocked it stands where it stood.
func (s *Site) end(tx Tx, device *Device, c Conflict, verdict ConflictState) (err error) {
	if verdict == ConflictBlocked {
		device.Conflict, err = otherConflict(tx, device.ClientID, c.ID)
		return err
	}
	return s.release(tx, device, c)
}
