package site

import (
	"context"
	"crypto/rsa"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

const (
	// heardLately is how far back a gateway must have been heard for a rotation to wait for it.
	heardLately = 5 * time.Minute
	// longestPreparation is when a prepared key signs although a gateway has not confirmed it.
	longestPreparation = time.Minute
	// betweenNodes is what other management points need to read a new key from the database, many times over.
	betweenNodes = 2 * time.Second
	// tendEvery is how often prepared keys and those that are due are looked at.
	tendEvery = time.Second
	// replaceBefore is how long before it would be too late a key is replaced, whatever the setting says.
	replaceBefore = 30 * 24 * time.Hour
	// showEnded is how long after its end a key is still told to those who verify.
	showEnded = 24 * time.Hour
)

// Purposes are what the site's keys are for, as `postern key` names them.
func Purposes() []string {
	return []string{string(token.KindBulk), string(token.KindCCM), string(token.KindSelfProve), PurposeSiteSigning, PurposeRoot}
}

// longestToken is how long a token of that kind may live.
func longestToken(kind token.Kind) time.Duration {
	return map[token.Kind]time.Duration{token.KindBulk: token.BulkMaximumLifetime, token.KindCCM: token.CCMLifetime, token.KindSelfProve: token.SelfProveLifetime}[kind]
}

// kindOf is the kind of token that a purpose is for; ok is false for the other keys.
func kindOf(purpose string) (kind token.Kind, ok bool) {
	for _, kind := range token.Kinds() {
		if purpose == string(kind) || purpose == purposeToken+string(kind) {
			return kind, true
		}
	}
	return "", false
}

// Rotate makes a new key for one of the [Purposes] and retires the one before it. A token key is first prepared: see [Site.RotateKey]. Nothing that the old
// key has signed ends earlier by it. Codes: KeyUnknown, KeyChanged.
func (s *Site) Rotate(ctx context.Context, purpose, by string) (KeyRecord, error) {
	kind, ok := kindOf(purpose)
	switch {
	case ok:
		return s.RotateKey(ctx, kind, by)
	case purpose == PurposeRoot:
		return s.rotateRoot(ctx, by, "", false)
	case purpose == PurposeSiteSigning:
		return s.rotateSiteSigning(ctx, by, "", false)
	}
	return KeyRecord{}, catalog.Errorf(catalog.KeyUnknown, "%.64q is none of %v", purpose, Purposes())
}

// RotateKey makes a new key for one kind of token. It is prepared at first, told to all who verify: it signs from when each gateway that was heard within five
// minutes has confirmed it, at the latest after a minute, so that no gateway sees a token that it cannot verify. Then the keys before it are retired:
// they sign no more, and verify until the longest token that they signed has ended. Where nobody has to be waited for, it signs at once. While one is
// prepared it is returned and none is made. The new key's algorithm is that of the setting token.algorithm.
func (s *Site) RotateKey(ctx context.Context, kind token.Kind, by string) (KeyRecord, error) {
	if !slices.Contains(token.Kinds(), kind) {
		return KeyRecord{}, catalog.Errorf(catalog.InvalidArgument, "no tokens of kind %q exist; use bulk, ccm or self-prove", kind)
	}
	fresh, err := s.newTokenKey(kind, s.Settings().TokenAlgorithm, s.time())
	if err != nil {
		return KeyRecord{}, err
	}
	var result KeyRecord
	err = s.store.Update(ctx, func(tx Tx) error {
		records, err := tx.SigningKeys()
		if err != nil {
			return err
		}
		for _, r := range records {
			if r.Purpose == fresh.Purpose && r.State == token.KeyPrepared {
				result = r
				return nil
			}
		}
		result = fresh
		if result.Epoch, err = tx.NextEpoch(s.epochNow()); err != nil {
			return err
		}
		if waiting, err := s.waitsFor(tx, result); err != nil {
			return err
		} else if waiting == nil {
			return s.activate(tx, records, &result, by)
		}
		result.State = token.KeyPrepared
		if err := tx.PutSigningKey(result); err != nil {
			return err
		}
		return s.trust(tx, by, "key.prepare", result.ID, map[string]string{"purpose": result.Purpose, "algorithm": result.Algorithm})
	})
	if err != nil {
		return KeyRecord{}, err
	}
	return result, s.Refresh(ctx)
}

// waitsFor returns for whom a key, prepared with its epoch, has to wait; nil when it may sign.
func (s *Site) waitsFor(tx Tx, key KeyRecord) (names []string, err error) {
	now := s.time()
	if !now.Before(key.Created.Add(longestPreparation)) {
		return nil, nil
	}
	points, err := tx.ManagementPoints()
	if err != nil {
		return nil, err
	}
	if len(points) > 1 && now.Before(key.Created.Add(betweenNodes)) {
		names = append(names, "the other management points")
	}
	gateways, err := tx.Gateways()
	if err != nil {
		return nil, err
	}
	for _, g := range gateways {
		if g.Acknowledged < key.Epoch && now.Sub(g.Heard) < heardLately {
			names = append(names, "gateway "+g.Name)
		}
	}
	return names, nil
}

// WaitsFor returns for whom a prepared key waits before it signs; none when it needs nobody but a running management point.
func (s *Site) WaitsFor(ctx context.Context, key KeyRecord) (names []string, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		names, err = s.waitsFor(tx, key)
		return err
	})
	return names, err
}

// activate lets a key sign and retires those before it.
func (s *Site) activate(tx Tx, records []KeyRecord, key *KeyRecord, by string) error {
	now := s.time()
	kind, _ := kindOf(key.Purpose)
	for _, old := range records {
		if old.Purpose != key.Purpose || old.State != token.KeyActive {
			continue
		}
		old.State, old.Changed = token.KeyRetired, now
		if end := now.Add(longestToken(kind)); end.Before(old.NotAfter) {
			old.NotAfter = end
		}
		if err := tx.PutSigningKey(old); err != nil {
			return err
		}
	}
	key.State, key.Changed = token.KeyActive, now
	key.NotBefore = now.Add(-tokenLeeway)
	if err := tx.PutSigningKey(*key); err != nil {
		return err
	}
	return s.trust(tx, by, "key.rotate", key.ID, map[string]string{"purpose": key.Purpose, "algorithm": key.Algorithm})
}

// Tend lets prepared keys sign when their time has come, and replaces those that are due; Run calls it every second. Every node does it; the database decides who was first.
func (s *Site) Tend(ctx context.Context) {
	here := s.current.Load()
	for _, r := range here.records {
		if r.State != token.KeyPrepared {
			continue
		}
		if err := s.activatePrepared(ctx, r.ID); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "let a prepared key sign", "key", r.ID, "error", err)
		}
	}
	for _, kind := range token.Kinds() {
		if !here.due(kind, s.time()) {
			continue
		}
		if fresh, err := s.RotateKey(ctx, kind, actorSite); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "replace a signing key", "kind", string(kind), "error", err)
		} else if err == nil {
			s.log.InfoContext(ctx, "signing key replaced", "kind", string(kind), "key", fresh.ID, "state", fresh.State)
		}
	}
}

func (s *Site) activatePrepared(ctx context.Context, id string) error {
	return s.update(ctx, func(tx Tx) (bool, error) {
		records, err := tx.SigningKeys()
		if err != nil {
			return false, err
		}
		at := slices.IndexFunc(records, func(r KeyRecord) bool { return r.ID == id && r.State == token.KeyPrepared })
		if at < 0 {
			return false, nil // another node was first
		}
		if waiting, err := s.waitsFor(tx, records[at]); err != nil || waiting != nil {
			return false, err
		}
		return true, s.activate(tx, records, &records[at], actorSite)
	})
}

// due reports whether the keys of a kind are to be replaced without a person: by the setting, or because the active one could soon sign nothing any more.
func (now *snapshot) due(kind token.Kind, at time.Time) bool {
	var newest KeyRecord
	for _, r := range now.records {
		if r.Purpose != purposeToken+string(kind) || r.State != token.KeyActive && r.State != token.KeyPrepared {
			continue
		}
		if r.Created.After(newest.Created) {
			newest = r
		}
	}
	if newest.ID == "" || newest.State == token.KeyPrepared {
		return false
	}
	if days := now.settings.KeyRotation.days(kind); days > 0 && !at.Before(newest.Created.AddDate(0, 0, days)) {
		return true
	}
	return at.Add(longestToken(kind) + replaceBefore).After(newest.NotAfter)
}

// takeRecord keeps what is public of a key.
func (next *snapshot) takeRecord(record KeyRecord) {
	record.Private = nil
	next.records = append(next.records, record)
}

// ended reports whether a key can verify nothing any more, for so long that nobody has to be told of it.
func (k KeyRecord) ended(now time.Time) bool { return now.After(k.NotAfter.Add(showEnded)) }

// newSiteSigning makes a site signing key with its certificate.
func (s *Site) newSiteSigning(code ccm.SiteCode, now time.Time) (record KeyRecord, err error) {
	key, err := rsa.GenerateKey(s.rand, minKeyBits)
	if err != nil {
		return record, err
	}
	record = KeyRecord{Purpose: PurposeSiteSigning, Algorithm: token.AlgorithmRS256, State: token.KeyActive, NotBefore: now, NotAfter: now.Add(siteSigningLife), Created: now}
	if record.Certificate, err = s.selfSigned(siteSigningTemplate(code, now), key); err != nil {
		return record, err
	}
	return record, s.seal(&record, key)
}

// KeyRotation says after how many days the keys of each kind of token are replaced; 0 is never.
type KeyRotation struct{ Bulk, CCM, SelfProve int }

// maxRotateDays keeps a key from being replaced later than it could sign.
const maxRotateDays = 600

func (k *KeyRotation) of(kind token.Kind) *int {
	return map[token.Kind]*int{token.KindBulk: &k.Bulk, token.KindCCM: &k.CCM, token.KindSelfProve: &k.SelfProve}[kind]
}

func (k KeyRotation) days(kind token.Kind) int { return *k.of(kind) }

// String is the value as [ParseKeyRotation] reads it.
func (k KeyRotation) String() string {
	var parts []string
	for _, kind := range token.Kinds() {
		parts = append(parts, fmt.Sprintf("%s=%d", kind, k.days(kind)))
	}
	return strings.Join(parts, ",")
}

// ParseKeyRotation reads KIND=DAYS with commas between; a kind that is left out has its default.
func ParseKeyRotation(text string) (KeyRotation, error) {
	rotation := KeyRotation{CCM: 30, SelfProve: 90}
	for _, part := range splitList(text) {
		name, value, _ := strings.Cut(part, "=")
		days, err := strconv.Atoi(strings.TrimSpace(value))
		at := rotation.of(token.Kind(strings.ToLower(strings.TrimSpace(name))))
		if at == nil || err != nil || days < 0 || days > maxRotateDays {
			return KeyRotation{}, catalog.Errorf(catalog.InvalidArgument, "%s has %.40q; give bulk, ccm or self-prove with the days, 0 to %d, as in ccm=30", settingRotation, part, maxRotateDays)
		}
		*at = days
	}
	return rotation, nil
}
