package site

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

// KeptRevocation is one line of a [RevocationLog]: something was revoked, or admitted, and this store's trust log says so up to an entry.
type KeptRevocation struct {
	Revoked
	Admitted bool   `json:"admitted,omitempty"` // lifted again; of what is listed, such as a gateway: it is on the list
	Trust    uint64 `json:"trust"`              // the newest entry of the trust log then
	Hash     string `json:"trust_hash"`         // its hash: a store without that entry is an older copy, or another one
}

// revokedMark is the kind of a line that only says how far the trust log has come.
const revokedMark RevokedKind = "mark"

// RevocationLog keeps, outside of the store, what was revoked, so that a store that is replaced by an older copy forgets nothing (C119). Each management
// point has its own. Its methods are safe for concurrent use.
type RevocationLog interface {
	// Kept returns the newest line of each thing, by kind, then id. The caller does not change the list.
	Kept() []KeptRevocation
	// Newest returns the newest line of all, zero when there is none.
	Newest() KeptRevocation
	// Append adds lines and returns when the disk has them.
	Append(lines []KeptRevocation) error
	// Anchor names the log, and its end in a form that [RevocationLog.Has] recognises later.
	Anchor() (name, end string)
	// Has reports whether the log went through an end that Anchor gave before.
	Has(end string) bool
}

// revokedLog is a site's log with what became of it. The mutex of refreshes guards all but the problems.
type revokedLog struct {
	log     RevocationLog // nil: none is kept
	checked bool          // the log's end was compared with what the store knows of it
	problem problems
}

// thing is what a line is about.
type thing struct {
	kind RevokedKind
	id   string
}

func (k KeptRevocation) thing() thing { return thing{k.Kind, k.ID} }

// listedKinds are those that are admitted by a list: what is taken off it is revoked.
func listedKinds() []RevokedKind {
	return []RevokedKind{RevokedGateway, RevokedAuthority, RevokedTenant}
}

func (t thing) listed() bool { return slices.Contains(listedKinds(), t.kind) }

// things returns what the snapshot says: what is revoked, of the kinds that are not listed, and what is admitted of those that are, with what a person
// calls it where that is known without asking.
func (now *snapshot) things() (revoked map[thing]bool, admitted map[thing]string) {
	revoked, admitted = map[thing]bool{}, map[thing]string{}
	for key := range now.blockedKey {
		revoked[thing{RevokedDevice, string(key)}] = true
	}
	for id := range now.blockedBy {
		revoked[thing{RevokedBulkToken, id}] = true
	}
	for _, c := range now.connectors {
		if c.Blocked {
			revoked[thing{RevokedConnector, c.Pin}] = true
		}
	}
	for key := range now.replaced {
		revoked[thing{RevokedFormerKey, string(key)}] = true
	}
	for _, k := range now.kept {
		revoked[thing{k.Kind, k.ID}] = true
	}
	for _, k := range now.records {
		if k.State == token.KeyRevoked {
			revoked[thing{RevokedSigningKey, k.ID}] = true
		}
	}
	for _, g := range now.gateways {
		admitted[thing{RevokedGateway, g.Pin}] = g.Name
	}
	for _, a := range now.authorities {
		admitted[thing{RevokedAuthority, a.Fingerprint}] = a.Subject
	}
	for _, t := range now.tenants {
		if !t.Disabled {
			admitted[thing{RevokedTenant, t.ID}] = t.ID
		}
	}
	return revoked, admitted
}

// compared is what came of comparing the log with the store.
type compared struct {
	lines     []KeptRevocation // to append
	forgotten []KeptRevocation // by the store: to be applied again
	older     bool             // the store lacks an entry of the trust log that the log has seen
}

// compare finds what the log does not know yet and what the store has forgotten. It tells the two apart by the trust log: a revocation whose entry this
// store has, and which is not in force, was lifted; one whose entry it has not was forgotten.
func (s *Site) compareRevocations(tx Tx, now *snapshot) (c compared, err error) {
	head, err := tx.TrustHead()
	if err != nil {
		return c, err
	}
	has := history(tx, head)
	newest := s.revoked.log.Newest()
	if c.older, err = has.lacks(newest); err != nil {
		return c, err
	}
	revoked, admitted := now.things()
	known := map[thing]bool{}
	line := func(r Revoked, admitted bool) {
		c.lines = append(c.lines, KeptRevocation{Revoked: r, Admitted: admitted, Trust: head.Sequence, Hash: head.Hash})
	}
	for _, k := range s.revoked.log.Kept() {
		what := k.thing()
		if what.kind == revokedMark {
			continue
		}
		known[what] = true
		name, onList := admitted[what]
		in := !revoked[what] // whether it is admitted now
		if what.listed() {
			in = onList
		}
		if in == k.Admitted && !c.older {
			continue // as the log says: nearly always
		}
		missing, err := has.lacks(k)
		switch {
		case err != nil:
			return c, err
		case in == k.Admitted && missing: // as before, but this store says so by another entry
			line(k.Revoked, k.Admitted)
		case in == k.Admitted:
		case k.Admitted && what.listed() && missing: // not yet on the list of this older store
		case !k.Admitted && missing:
			c.forgotten = append(c.forgotten, k)
		case in:
			line(Revoked{Kind: k.Kind, ID: k.ID, Subject: cmp.Or(name, k.Subject), At: s.time()}, true)
		default:
			r, err := s.describe(tx, what, k.Subject)
			if err != nil {
				return c, err
			}
			line(r, false)
		}
	}
	for what, name := range admitted {
		if !known[what] {
			line(Revoked{Kind: what.kind, ID: what.id, Subject: name, At: s.time()}, true)
		}
	}
	for what := range revoked {
		if known[what] {
			continue
		}
		r, err := s.describe(tx, what, "")
		if err != nil {
			return c, err
		}
		line(r, false)
	}
	if c.older || newest.Kind == "" {
		line(Revoked{Kind: revokedMark, At: s.time()}, true)
	}
	return c, nil
}

// past asks the trust log whether it has an entry.
type past struct {
	tx   Tx
	head TrustEntry
	seen map[uint64]string
}

func history(tx Tx, head TrustEntry) *past {
	return &past{tx: tx, head: head, seen: map[uint64]string{head.Sequence: head.Hash}}
}

// lacks reports whether the store's trust log lacks the entry that a line names.
func (p *past) lacks(k KeptRevocation) (bool, error) {
	if k.Kind == "" || k.Trust == 0 {
		return false, nil
	}
	if k.Trust > p.head.Sequence {
		return true, nil
	}
	hash, ok := p.seen[k.Trust]
	if !ok {
		there, err := entryAt(p.tx, k.Trust)
		if err != nil {
			return false, err
		}
		hash = there.Hash
		p.seen[k.Trust] = hash
	}
	return hash != k.Hash, nil
}

// describe finds who revoked something and why, as far as the store says. subject is what it was called before.
func (s *Site) describe(tx Tx, what thing, subject string) (Revoked, error) {
	r := Revoked{Kind: what.kind, ID: what.id, Subject: subject, At: s.time()}
	switch what.kind {
	case RevokedDevice:
		d, err := tx.DeviceByKey(proof.KeyThumbprint(what.id))
		if errors.Is(err, ErrNotFound) {
			return r, nil
		}
		if err != nil {
			return r, err
		}
		r.Subject, r.By, r.Why = string(d.ClientID), d.Block.By, d.Block.Why
		if !d.Block.At.IsZero() {
			r.At = d.Block.At
		}
	case RevokedFormerKey:
		return describeFormer(tx, r)
	case RevokedBulkToken:
		t, err := tx.BulkToken(what.id)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return r, err
		}
		r.Subject = t.Label
	case RevokedConnector:
		connectors, err := tx.Connectors()
		if err != nil {
			return r, err
		}
		for _, c := range connectors {
			if c.Pin == what.id {
				r.Subject = c.Name
			}
		}
	}
	if r.By == "" {
		return r, actorOf(tx, &r)
	}
	return r, nil
}

// describeFormer finds what took a key's place.
func describeFormer(tx Tx, r Revoked) (Revoked, error) {
	r.By, r.Why = actorSite, "the device has another key"
	by, err := tx.FormerKey(proof.KeyThumbprint(r.ID))
	if err == nil {
		r.Subject = string(by)
	}
	if !errors.Is(err, ErrNotFound) {
		return r, err
	}
	d, err := tx.DeviceByKey(proof.KeyThumbprint(r.ID))
	if err == nil && d.Superseded() {
		r.Subject, r.Why, r.At = string(d.Obsolete.By), d.Obsolete.Why, d.Obsolete.At
	}
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return r, err
}

// recentEntries is how many entries of the trust log are searched for who did something just now.
const recentEntries = 100

// actorOf takes who, why and when from the newest entry of the trust log about a thing.
func actorOf(tx Tx, r *Revoked) error {
	head, err := tx.TrustHead()
	if err != nil {
		return err
	}
	entries, err := tx.TrustEntries(max(head.Sequence, recentEntries)-recentEntries, recentEntries)
	if err != nil {
		return err
	}
	for _, e := range slices.Backward(entries) {
		if e.Subject != r.ID && (r.Subject == "" || e.Subject != r.Subject) {
			continue
		}
		detail := map[string]string{}
		if json.Unmarshal([]byte(e.Detail), &detail) == nil {
			r.Why = detail["why"]
		}
		r.By, r.At = e.Actor, e.At
		return nil
	}
	return nil
}

// keepRevocations brings the log and the store together. It is called with every snapshot before that is in force; again says that something was applied to
// the store, so that it must be read again; that is done in the first try only. A failure to write the log is kept for the caller of an act and for the
// health, and undoes nothing.
func (s *Site) keepRevocations(ctx context.Context, now *snapshot, first bool) (again bool, err error) {
	if s.revoked.log == nil {
		return false, nil
	}
	var c compared
	if err := s.checkAnchor(ctx); err != nil {
		return false, err
	}
	err = s.store.View(ctx, func(tx Tx) (err error) {
		c, err = s.compareRevocations(tx, now)
		return err
	})
	if err != nil {
		return false, err
	}
	// An older store is told of once: as long as the log does not take the line that says so, it would be found older again and again.
	if told := s.revoked.problem.has(catalog.RevocationLogWrite); first && (c.older && !told || len(c.forgotten) > 0) {
		s.log.Error("the store is older than what this management point has seen", "code", string(catalog.StoreOlder), "forgotten", len(c.forgotten))
		return true, s.applyAgain(ctx, now, c.forgotten)
	}
	return false, s.appendRevocations(ctx, c.lines)
}

// appendRevocations adds lines to the log, and its new end to the store.
func (s *Site) appendRevocations(ctx context.Context, lines []KeptRevocation) error {
	if len(lines) == 0 {
		s.revoked.problem.set(catalog.RevocationLogWrite, nil)
		return nil
	}
	slices.SortFunc(lines, func(a, b KeptRevocation) int {
		return strings.Compare(string(a.Kind)+" "+a.ID, string(b.Kind)+" "+b.ID)
	})
	err := s.revoked.log.Append(lines)
	s.revoked.problem.set(catalog.RevocationLogWrite, err)
	if err != nil {
		s.log.Error("keep revocations", "error", err)
		return nil // it is in force all the same; see [Site.update]
	}
	if s.revoked.problem.has(catalog.RevocationLogCut) {
		return nil // what the store knew of the log's end is evidence until a person has said that it is explained
	}
	return s.putAnchor(ctx)
}

const settingRevocations = "revocations."

func (s *Site) putAnchor(ctx context.Context) error {
	name, end := s.revoked.log.Anchor()
	return s.store.Update(ctx, func(tx Tx) error { return tx.PutSetting(settingRevocations+name, end) })
}

// checkAnchor compares, once, the log with what the store knows of its end.
func (s *Site) checkAnchor(ctx context.Context) error {
	if s.revoked.checked {
		return nil
	}
	name, _ := s.revoked.log.Anchor()
	var end string
	err := s.store.View(ctx, func(tx Tx) (err error) {
		end, err = tx.Setting(settingRevocations + name)
		return err
	})
	switch {
	case errors.Is(err, ErrNotFound):
		err = nil
	case err != nil:
		return err
	case !s.revoked.log.Has(end):
		err = catalog.Errorf(catalog.RevocationLogCut, "the store knows an end of the log of %s that the log does not have", name)
		s.log.Error("revocations", "code", string(catalog.RevocationLogCut), "error", err)
	}
	s.revoked.problem.set(catalog.RevocationLogCut, err)
	s.revoked.checked = true
	return nil
}

// AcceptRevocationLog says, by a person, that it is explained why the log lacks its end.
func (s *Site) AcceptRevocationLog(ctx context.Context, by, why string) error {
	if err := signed(by, why); err != nil {
		return err
	}
	if s.revoked.log == nil {
		return nil
	}
	name, end := s.revoked.log.Anchor()
	err := s.store.Update(ctx, func(tx Tx) error {
		if err := tx.PutSetting(settingRevocations+name, end); err != nil {
			return err
		}
		return s.trust(tx, by, "revocation.accept", name, map[string]string{"why": why})
	})
	if err == nil {
		s.revoked.problem.set(catalog.RevocationLogCut, nil)
	}
	return err
}

// applyAgain puts into the store what it has forgotten, and raises the epoch: what gateways have is newer than this store.
func (s *Site) applyAgain(ctx context.Context, now *snapshot, forgotten []KeptRevocation) error {
	var applied []Revoked
	err := s.store.Update(ctx, func(tx Tx) error {
		applied = nil
		head, err := tx.TrustHead()
		if err != nil {
			return err
		}
		detail := map[string]string{"trust-head": strconv.FormatUint(head.Sequence, 10), "forgotten": strconv.Itoa(len(forgotten))}
		if err := s.trust(tx, actorSite, actionOlder, string(now.settings.SiteCode), detail); err != nil {
			return err
		}
		for _, k := range forgotten {
			done, err := s.applyOne(tx, k.Revoked)
			if err != nil {
				return fmt.Errorf("apply the revocation of %s %s again: %w", k.Kind, k.ID, err)
			}
			if !done {
				continue
			}
			applied = append(applied, k.Revoked)
			if err := s.trust(tx, actorSite, actionKept, cmp.Or(k.Subject, k.ID), map[string]string{
				"kind": string(k.Kind), "id": k.ID, "by": k.By, "why": k.Why, "at": k.At.UTC().Format(time.RFC3339),
			}); err != nil {
				return err
			}
		}
		_, err = tx.NextEpoch(s.epochNow())
		return err
	})
	if err != nil {
		return err
	}
	for _, r := range applied {
		s.log.Warn("revocation applied again", "code", string(catalog.RevocationKept), "kind", r.Kind, "id", r.ID, "subject", r.Subject)
	}
	s.revoked.problem.apply(applied)
	return nil
}

// applyOne revokes one thing again and reports whether something was to be done. What the store does not know is kept as such.
func (s *Site) applyOne(tx Tx, r Revoked) (bool, error) {
	apply := map[RevokedKind]func(Tx, Revoked) (found, changed bool, err error){
		RevokedDevice: s.blockAgain, RevokedBulkToken: bulkAgain, RevokedConnector: connectorAgain, RevokedSigningKey: s.keyAgain,
		RevokedTenant: tenantAgain, RevokedGateway: gatewayAgain, RevokedAuthority: authorityAgain, RevokedFormerKey: s.replaceAgain,
	}[r.Kind]
	if apply == nil {
		return false, nil
	}
	found, changed, err := apply(tx, r)
	if err != nil || found {
		return changed, err
	}
	return true, tx.PutKeptRevocation(r)
}

func (s *Site) blockAgain(tx Tx, r Revoked) (found, changed bool, err error) {
	byKey, err := tx.DeviceByKey(proof.KeyThumbprint(r.ID))
	if err != nil && !errors.Is(err, ErrNotFound) {
		return false, false, err
	}
	found = err == nil
	devices := []Device{byKey}
	if !found { // its key was changed since: the record that is here is the same device
		byID, err := tx.Device(ccm.ClientID(r.Subject))
		if errors.Is(err, ErrNotFound) {
			return false, false, nil
		}
		if err != nil {
			return false, false, err
		}
		devices[0] = byID
	}
	for _, d := range devices {
		if d.Block.Blocked {
			continue
		}
		d.Block = Block{Blocked: true, By: cmp.Or(r.By, actorSite), Why: cmp.Or(r.Why, "blocked before the backup was restored"), At: s.time()}
		d.Updated, changed = d.Block.At, true
		if err := tx.PutDevice(d); err != nil {
			return found, false, err
		}
	}
	return found, changed, nil
}

// replaceAgain refuses a key again whose place another took. What took it came after the backup, so that the record that has the key there is obsolete: its
// computer registers anew, with the key that it has now.
func (s *Site) replaceAgain(tx Tx, r Revoked) (found, changed bool, err error) {
	key, by := proof.KeyThumbprint(r.ID), ccm.ClientID(r.Subject)
	switch d, err := tx.DeviceByKey(key); {
	case err == nil && !d.Superseded():
		by = cmp.Or(by, d.ClientID)
		d.Obsolete = Obsolete{By: by, At: s.time(), Why: cmp.Or(r.Why, "replaced before the backup was restored")}
		d.Updated = d.Obsolete.At
		if err := tx.PutDevice(d); err != nil {
			return true, false, err
		}
	case err != nil && !errors.Is(err, ErrNotFound):
		return false, false, err
	}
	return true, true, tx.PutFormerKey(key, by, s.time())
}

func bulkAgain(tx Tx, r Revoked) (found, changed bool, err error) {
	t, err := tx.BulkToken(r.ID)
	if errors.Is(err, ErrNotFound) {
		return false, false, nil
	}
	if err != nil || t.Blocked {
		return true, false, err
	}
	t.Blocked = true
	return true, true, tx.PutBulkToken(t)
}

func connectorAgain(tx Tx, r Revoked) (found, changed bool, err error) {
	connectors, err := tx.Connectors()
	if err != nil {
		return false, false, err
	}
	for _, c := range connectors {
		if c.Pin != r.ID {
			continue
		}
		if found = true; c.Blocked {
			continue
		}
		c.Blocked, changed = true, true
		if err := tx.PutConnector(c); err != nil {
			return true, false, err
		}
	}
	return found, changed, nil
}

// keyAgain revokes a key of the site again and erases it. When it is in use there, a new one takes its place. A key that the store does not know verifies
// nothing; an active root cannot be replaced here: what was found out is kept and printed, and [Site.RestoreRoots] brings back the root that followed.
func (s *Site) keyAgain(tx Tx, r Revoked) (found, changed bool, err error) {
	records, err := tx.SigningKeys()
	if err != nil {
		return false, false, err
	}
	at := slices.IndexFunc(records, func(k KeyRecord) bool { return k.ID == r.ID })
	if at < 0 {
		return false, false, nil
	}
	k := records[at]
	switch {
	case k.State == token.KeyRevoked:
		return true, false, nil
	case k.State == token.KeyActive && k.Purpose == PurposeRoot:
		return false, false, nil
	case k.State == token.KeyActive:
		fresh, err := s.successor(tx, k)
		if err != nil {
			return true, false, err
		}
		if err := tx.PutSigningKey(fresh); err != nil {
			return true, false, err
		}
	}
	k.State, k.Changed, k.Why, k.Private = token.KeyRevoked, s.time(), r.Why, nil
	return true, true, tx.PutSigningKey(k)
}

// successor makes the key that takes the place of a token key or the site signing key.
func (s *Site) successor(tx Tx, k KeyRecord) (KeyRecord, error) {
	if kind, isToken := kindOf(k.Purpose); isToken {
		return s.newTokenKey(kind, k.Algorithm, s.time())
	}
	settings, _, err := readSettings(tx)
	if err != nil {
		return KeyRecord{}, err
	}
	return s.newSiteSigning(settings.SiteCode, s.time())
}

func tenantAgain(tx Tx, r Revoked) (found, changed bool, err error) {
	t, err := tx.Tenant(r.ID)
	if errors.Is(err, ErrNotFound) || err == nil && t.Disabled {
		return true, false, nil
	}
	if err != nil {
		return true, false, err
	}
	t.Disabled = true
	return true, true, tx.PutTenant(t)
}

func gatewayAgain(tx Tx, r Revoked) (found, changed bool, err error) {
	gateways, err := tx.Gateways()
	if err != nil {
		return true, false, err
	}
	for _, g := range gateways {
		if g.Pin == r.ID {
			return true, true, tx.DeleteGateway(g.Name)
		}
	}
	return true, false, nil
}

func authorityAgain(tx Tx, r Revoked) (found, changed bool, err error) {
	err = tx.DeleteAuthority(r.ID)
	if errors.Is(err, ErrNotFound) {
		return true, false, nil
	}
	return true, err == nil, err
}

// Revocations lists what is revoked now, by kind, then id, but for former keys, which nobody lets in again; without a log only what the store has no record of. Recorded says of each whether the store has a
// record of its subject, by which it is lifted; others are lifted with [Site.LiftRevocation].
func (s *Site) Revocations() (all []RevocationState) {
	now := s.current.Load()
	loose := map[thing]bool{}
	for _, k := range now.kept {
		loose[thing{k.Kind, k.ID}] = true
	}
	if s.revoked.log == nil {
		for _, k := range now.kept {
			all = append(all, RevocationState{Revoked: k})
		}
		return all
	}
	for _, k := range s.revoked.log.Kept() {
		if !k.Admitted && k.Kind != revokedMark && k.Kind != RevokedFormerKey {
			all = append(all, RevocationState{Revoked: k.Revoked, Recorded: !loose[k.thing()]})
		}
	}
	return all
}

// RevocationState is one revocation in force.
type RevocationState struct {
	Revoked
	Recorded bool `json:"recorded"`
}

// LiftRevocation takes back, by a person's decision, a revocation whose subject the store does not know. Code: NoRevocation.
func (s *Site) LiftRevocation(ctx context.Context, kind RevokedKind, id, by, why string) error {
	if err := signed(by, why); err != nil {
		return err
	}
	return s.update(ctx, func(tx Tx) (bool, error) {
		err := tx.DeleteKeptRevocation(kind, id)
		if errors.Is(err, ErrNotFound) {
			return false, catalog.Errorf(catalog.NoRevocation, "%s %s", kind, id)
		}
		if err != nil {
			return false, err
		}
		return true, s.trust(tx, by, "revocation.lift", id, map[string]string{"kind": string(kind), "why": why})
	})
}

// RevocationProblems are what is wrong with the log of revocations, by code; empty mostly.
func (s *Site) RevocationProblems() []error { return s.revoked.problem.all() }

// AppliedAgain are the revocations that the store had forgotten and that were applied again since the site was opened.
func (s *Site) AppliedAgain() []Revoked { return s.revoked.problem.appliedAgain() }

// keepKept puts what the store has no record of into the snapshot.
func (now *snapshot) keepKept(kept []Revoked) {
	now.kept = kept
	for _, k := range kept {
		switch k.Kind {
		case RevokedDevice:
			now.blockedKey[proof.KeyThumbprint(k.ID)] = true
		case RevokedBulkToken:
			now.blockedBy[k.ID] = true
		}
	}
}

// keptPins are the keys of connectors that are revoked and that the store has no record of.
func (now *snapshot) keptPins() (pins []string) {
	for _, k := range now.kept {
		if k.Kind == RevokedConnector {
			pins = append(pins, k.ID)
		}
	}
	return pins
}

// notKept refuses what is revoked and has no record here.
func notKept(tx Tx, kind RevokedKind, id string, refuse func(Revoked) error) error {
	kept, err := tx.KeptRevocations()
	if err != nil {
		return err
	}
	for _, k := range kept {
		if k.Kind == kind && k.ID == id {
			return refuse(k)
		}
	}
	return nil
}

// sortedProblems are the codes of problems in order.
func sortedProblems(by map[catalog.Code]error) (all []error) {
	for _, code := range slices.Sorted(maps.Keys(by)) {
		all = append(all, by[code])
	}
	return all
}
