package site

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern/catalog"
	"postern/token"
)

// Consequences are what happens when a key is declared compromised, told before it is done.
type Consequences struct {
	Purpose    string      `json:"purpose"`
	Keys       []KeyRecord `json:"keys"`        // that are revoked
	BulkTokens int         `json:"bulk_tokens"` // that end
	Devices    int         `json:"devices"`     // that have to get something anew
	Roles      []string    `json:"roles"`       // gateways and connectors that take a new certificate
	Text       []string    `json:"text"`        // the same in sentences
}

// compromised finds the keys that are meant: all of a purpose, or the one with that id. The root and the site signing key of now stand for their purpose.
func compromised(records []KeyRecord, what string, now time.Time) (purpose string, keys []KeyRecord, err error) {
	what = strings.TrimSpace(what)
	kind, isKind := kindOf(what)
	for _, r := range records {
		gone := r.State == token.KeyRevoked || r.ended(now)
		switch {
		case r.ID == what && gone:
			return "", nil, catalog.Errorf(catalog.KeyUnknown, "key %s is revoked already, or long out of use", what)
		case r.ID == what:
			return r.Purpose, []KeyRecord{r}, nil
		case gone:
		case isKind && r.Purpose == purposeToken+string(kind):
			keys = append(keys, r)
		case r.Purpose == what && r.State == token.KeyActive:
			keys = append(keys, r)
		}
	}
	switch {
	case isKind:
		return purposeToken + string(kind), keys, nil
	case len(keys) > 0:
		return what, keys, nil
	}
	return "", nil, catalog.Errorf(catalog.KeyUnknown, "%.64q is none of %s and no key's id", what, strings.Join(Purposes(), ", "))
}

// Consequences tells what [Site.Compromise] would do. Code: KeyUnknown.
func (s *Site) Consequences(ctx context.Context, what string) (c Consequences, err error) {
	now := s.time()
	err = s.store.View(ctx, func(tx Tx) error {
		records, err := tx.SigningKeys()
		if err != nil {
			return err
		}
		if c.Purpose, c.Keys, err = compromised(records, what, now); err != nil {
			return err
		}
		for i := range c.Keys {
			c.Keys[i].Private = nil
		}
		bulk, err := tx.BulkTokens()
		if err != nil {
			return err
		}
		for _, t := range bulk {
			if !t.Blocked && now.Before(t.Expires) {
				c.BulkTokens++
			}
		}
		no := false
		devices, err := tx.Devices(DeviceFilter{Blocked: &no, Obsolete: &no})
		c.Devices = len(devices)
		return err
	})
	if err == nil {
		s.tell(&c)
	}
	return c, err
}

// tell puts the consequences into sentences, and leaves out the figures that have nothing to do with them.
func (s *Site) tell(c *Consequences) {
	c.Roles = []string{} // none is a list too
	settings, active := s.Settings(), slices.ContainsFunc(c.Keys, func(k KeyRecord) bool { return k.State == token.KeyActive })
	say := func(format string, arguments ...any) { c.Text = append(c.Text, fmt.Sprintf(format, arguments...)) }
	bulk := c.BulkTokens
	if c.BulkTokens = 0; len(c.Keys) == 0 {
		say("All keys of this purpose are revoked already; a new one is made.")
	}
	switch kind, _ := kindOf(c.Purpose); kind {
	case token.KindBulk:
		c.BulkTokens, c.Devices = bulk, 0
		say("Bulk registration tokens signed by these keys end at once, used or not: at most the %d that are good now. Make new ones with `postern token new`.", bulk)
		say("Devices that have registered with one keep their own tokens. Devices in the middle of enrolling need a new token.")
	case token.KindCCM:
		say("Every CCM token signed by these keys ends at once. Up to %d devices ask for another at their next request, by their self-prove token, by themselves.", c.Devices)
	case token.KindSelfProve:
		say("Every self-prove token signed by these keys ends at once: those of up to %d devices. CCM tokens go on to their end, at most eight hours.", c.Devices)
		say("A device inside gets another by its registered key, by itself.")
		if settings.Return {
			say("A device outside gets another by its registered key through the gateway, by itself (return.enabled is true).")
		} else {
			say("A device outside has no way back but a new bulk registration token, or a visit inside: return.enabled is false. Set it to true to let it return by its registered key.")
		}
	}
	switch {
	case c.Purpose == PurposeSiteSigning:
		c.Devices = 0
		say("SITESIGNCERT serves another certificate from now on. Clients that were given this one by hand (SMSSIGNCERT) have to be given the new one.")
	case c.Purpose == PurposeRoot && active:
		for _, g := range s.Gateways() {
			c.Roles = append(c.Roles, "gateway "+g.Name)
		}
		for _, r := range s.Connectors() {
			if !r.Blocked {
				c.Roles = append(c.Roles, "connector "+r.Name)
			}
		}
		say("Every certificate under this site root is refused at once. The %d gateways and connectors that are running take new ones by themselves, within seconds; requests under way may fail meanwhile.", len(c.Roles))
		say("Up to %d devices are led to the new root by the old one's last signature. So is whoever is off now, when it comes back.", c.Devices)
		say("Whoever has the stolen key can lead those who are off to a root of his own, if he stands between. Devices and roles that must not take that risk are to be given the new root by hand.")
		say("No backup from before this moment brings the new root back: make one right after, `postern backup FILE`.")
	case c.Purpose == PurposeRoot:
		c.Devices = 0
		say("Certificates under this replaced root are refused at once by gateways, connectors and management points. Devices that were led on from it trust them until thirty days after it was replaced.")
	}
}

// Compromise revokes the keys that what names: a purpose, or a key's id. Nothing that they signed is accepted any more; what takes their place is made in the
// same transaction and signs at once. Codes: KeyUnknown, KeyWhyNeeded, ReasonNeeded, KeyChanged.
func (s *Site) Compromise(ctx context.Context, what, why, by string) (revoked []KeyRecord, err error) {
	if strings.TrimSpace(why) == "" {
		return nil, catalog.Errorf(catalog.KeyWhyNeeded, "%s", what)
	}
	if err := signed(by, why); err != nil {
		return nil, err
	}
	var purpose string
	err = s.store.View(ctx, func(tx Tx) error {
		records, err := tx.SigningKeys()
		if err == nil {
			purpose, revoked, err = compromised(records, what, s.time())
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	active := slices.ContainsFunc(revoked, func(k KeyRecord) bool { return k.State == token.KeyActive })
	switch {
	case purpose == PurposeRoot && active:
		_, err = s.rotateRoot(ctx, by, why, true)
	case purpose == PurposeSiteSigning && active:
		_, err = s.rotateSiteSigning(ctx, by, why, true)
	default:
		revoked, err = s.revokeKeys(ctx, purpose, what, why, by)
	}
	for i := range revoked {
		revoked[i].Private, revoked[i].State, revoked[i].Why = nil, token.KeyRevoked, why
	}
	return revoked, err
}

// revokeKeys revokes what may be revoked without a successor at hand, and makes one for a token key when none is left to sign.
func (s *Site) revokeKeys(ctx context.Context, purpose, what, why, by string) (revoked []KeyRecord, err error) {
	kind, isToken := kindOf(purpose)
	var fresh KeyRecord
	if isToken {
		if fresh, err = s.newTokenKey(kind, s.Settings().TokenAlgorithm, s.time()); err != nil {
			return nil, err
		}
	}
	return revoked, s.update(ctx, func(tx Tx) (bool, error) {
		records, err := tx.SigningKeys()
		if err != nil {
			return false, err
		}
		if purpose, revoked, err = compromised(records, what, s.time()); err != nil {
			return false, err
		}
		for _, key := range revoked {
			if err := s.revokeKey(tx, key, why, by); err != nil {
				return false, err
			}
		}
		signing := slices.ContainsFunc(records, func(k KeyRecord) bool {
			return k.Purpose == purpose && k.State == token.KeyActive && !slices.ContainsFunc(revoked, func(r KeyRecord) bool { return r.ID == k.ID })
		})
		if !isToken || signing {
			return true, nil
		}
		return true, s.activate(tx, nil, &fresh, by)
	})
}

// revokeKey revokes one key and erases its private half. The active root and site signing key need a successor first.
func (s *Site) revokeKey(tx Tx, key KeyRecord, why, by string) error {
	key.State, key.Changed, key.Why, key.Private = token.KeyRevoked, s.time(), why, nil
	if err := tx.PutSigningKey(key); err != nil {
		return err
	}
	return s.trust(tx, by, "key.compromised", key.ID, map[string]string{"purpose": key.Purpose, "why": why})
}
