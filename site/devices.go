package site

import (
	"context"
	"errors"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// Device returns the device with that client id, or an error that wraps [ErrNotFound].
func (s *Site) Device(ctx context.Context, id ccm.ClientID) (device Device, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		device, err = tx.Device(id)
		return err
	})
	return device, err
}

// DeviceByKey returns the device with that key, or an error that wraps [ErrNotFound].
func (s *Site) DeviceByKey(ctx context.Context, key proof.KeyThumbprint) (device Device, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		device, err = tx.DeviceByKey(key)
		return err
	})
	return device, err
}

// Devices lists devices by creation time.
func (s *Site) Devices(ctx context.Context, filter DeviceFilter) (devices []Device, err error) {
	s.Flush(ctx)
	err = s.store.View(ctx, func(tx Tx) (err error) {
		devices, err = tx.Devices(filter)
		return err
	})
	return devices, err
}

// FindDevice returns the one device that who names: a client id (with or without GUID:), a NetBIOS name or an FQDN. Of
// those with one name an obsolete one counts only when there is no other.
func (s *Site) FindDevice(ctx context.Context, who string) (Device, error) {
	if who == "" {
		return Device{}, catalog.Errorf(catalog.DeviceUnknown, "no device is named; `postern device list` shows them all")
	}
	for _, form := range []string{who, "GUID:" + who} {
		id, err := ccm.ParseClientID(form)
		if err != nil {
			continue
		}
		device, err := s.Device(ctx, id)
		if errors.Is(err, ErrNotFound) {
			return Device{}, catalog.Errorf(catalog.DeviceUnknown, "no device has the client id %s", id)
		}
		return device, err
	}
	const told = 5
	current := false
	named, err := s.Devices(ctx, DeviceFilter{Name: who, Limit: told + 1, Obsolete: &current})
	if err == nil && len(named) == 0 {
		named, err = s.Devices(ctx, DeviceFilter{Name: who, Limit: told + 1})
	}
	if err != nil {
		return Device{}, err
	}
	switch len(named) {
	case 0:
		return Device{}, catalog.Errorf(catalog.DeviceUnknown, "no device is called %q; `postern device list` shows them all", who)
	case 1:
		return named[0], nil
	default:
		var ids []string
		for _, d := range named[:min(len(named), told)] {
			ids = append(ids, string(d.ClientID))
		}
		return Device{}, catalog.Errorf(catalog.DeviceAmbiguous, "several devices are called %q; name one by its client id: %s%s", who, strings.Join(ids, ", "), map[bool]string{true: " and others"}[len(named) > told])
	}
}

// maxReason bounds a person's reason: it stands in lists, and in the trust log for ever.
const maxReason = 512

// CheckReason refuses a reason that says nothing, and one that a list cannot show on its line. Code: ReasonNeeded.
func CheckReason(why string) error {
	switch {
	case strings.TrimSpace(why) == "":
		return catalog.Errorf(catalog.ReasonNeeded, "no reason was given")
	case len(why) > maxReason:
		return catalog.Errorf(catalog.ReasonNeeded, "the reason has %d bytes; at most %d are kept", len(why), maxReason)
	case strings.ContainsFunc(why, unprintable):
		return catalog.Errorf(catalog.ReasonNeeded, "the reason holds control or invisible characters: %+.80q", why)
	}
	return nil
}

// signed refuses an act that nobody, or the site itself, would stand for, and one without a reason.
func signed(by, why string) error {
	if by == "" || by == actorSite {
		return catalog.Errorf(catalog.InvalidArgument, "%q is no person who decides", by)
	}
	return CheckReason(why)
}

// Approve sets a device's level by a person's decision: managed or secrets, approval status 1.
func (s *Site) Approve(ctx context.Context, id ccm.ClientID, level proof.Level, by, why string) (Device, error) {
	return s.actOne(ctx, id, Act{Verb: ActApprove, Level: level}, by, why)
}

// Reject takes a device's approval away by a person's decision: status 0, level known.
func (s *Site) Reject(ctx context.Context, id ccm.ClientID, by, why string) (Device, error) {
	return s.actOne(ctx, id, Act{Verb: ActReject}, by, why)
}

// Block refuses a device everywhere; its key goes into the site state, so that every gateway refuses it too.
func (s *Site) Block(ctx context.Context, id ccm.ClientID, by, why string) (Device, error) {
	return s.actOne(ctx, id, Act{Verb: ActBlock}, by, why)
}

// Unblock lets a blocked device in again, at the approval that it had.
func (s *Site) Unblock(ctx context.Context, id ccm.ClientID, by, why string) (Device, error) {
	return s.actOne(ctx, id, Act{Verb: ActUnblock}, by, why)
}

// What a person does to devices.
const (
	ActApprove = "approve"
	ActReject  = "reject"
	ActBlock   = "block"
	ActUnblock = "unblock"
	ActRelease = "release" // from quarantine
)

// Act is a person's act on devices.
type Act struct {
	Verb  string      // one of the Act constants
	Level proof.Level // ActApprove: managed or secrets
}

func (s *Site) actOne(ctx context.Context, id ccm.ClientID, act Act, by, why string) (Device, error) {
	devices, err := s.Act(ctx, []ccm.ClientID{id}, act, by, why)
	if err != nil {
		return Device{}, err
	}
	return devices[0], nil
}

// Act does the same to all these devices in one transaction, each with its entry in the trust log: who and why. When one of them cannot be
// changed, none is; the code says why: DeviceUnknown, DeviceLevel, DeviceObsolete, DeviceNotQuarantined, or DeviceHeld for a device that waits for the decision on a conflict.
// Without a reason nothing is done: see [CheckReason].
func (s *Site) Act(ctx context.Context, ids []ccm.ClientID, act Act, by, why string) (devices []Device, err error) {
	if err := signed(by, why); err != nil {
		return nil, err
	}
	if act.Verb == ActApprove && act.Level < proof.LevelManaged {
		return nil, catalog.Errorf(catalog.DeviceLevel, "level %s is not an approval; use managed or secrets, or reject the device", act.Level)
	}
	err = s.update(ctx, func(tx Tx) (moved bool, err error) {
		devices, err = readAll(tx, ids)
		if err != nil {
			return false, err
		}
		for i := range devices {
			d := &devices[i]
			if act.Verb == ActApprove && d.Superseded() {
				return false, obsoleteError(d.Obsolete.By)
			}
			if act.Verb == ActApprove && d.Conflict != "" {
				return false, catalog.Errorf(catalog.DeviceHeld, "conflict %s waits for %s (%s)", d.Conflict, d.ClientID, d.Name())
			}
			if act.Verb == ActRelease && !d.Quarantined() {
				return false, catalog.Errorf(catalog.DeviceNotQuarantined, "%s (%s)", d.ClientID, d.Name())
			}
		}
		for i := range devices {
			d := &devices[i]
			wasBlocked := d.Block.Blocked
			act.change(d, by, why, s.time())
			if err := tx.PutDevice(*d); err != nil {
				return false, err
			}
			detail := trustOf(*d)
			detail["why"] = why
			if err := s.trust(tx, by, "device."+act.Verb, string(d.ClientID), detail); err != nil {
				return false, err
			}
			moved = moved || d.Block.Blocked != wasBlocked
		}
		return moved, nil
	})
	return devices, err
}

func readAll(tx Tx, ids []ccm.ClientID) ([]Device, error) {
	devices := make([]Device, 0, len(ids))
	for _, id := range ids {
		d, err := tx.Device(id)
		if errors.Is(err, ErrNotFound) {
			return nil, catalog.Errorf(catalog.DeviceUnknown, "no device has the client id %s", id)
		}
		if err != nil {
			return nil, err
		}
		devices = append(devices, d)
	}
	return devices, nil
}

func (act Act) change(d *Device, by, why string, now time.Time) {
	decided := Approval{Method: d.Approval.Method, Evidence: d.Approval.Evidence, By: by, Why: why, At: now}
	switch act.Verb {
	case ActApprove:
		decided.Status, decided.Level, decided.Rule = ccm.ApprovalApproved, act.Level, "approved by a person"
		d.Approval, d.Quarantine = decided, Quarantine{}
	case ActReject:
		decided.Status, decided.Level, decided.Rule = ccm.ApprovalNone, proof.LevelKnown, "rejected by a person"
		d.Approval = decided
	case ActBlock, ActUnblock:
		d.Block = Block{Blocked: act.Verb == ActBlock, By: by, Why: why, At: now}
	case ActRelease:
		d.Quarantine = Quarantine{}
	}
	d.Updated = now
}

// obsoleteLife is how long an obsolete record is kept after its device was last seen (product.md 2.9).
const obsoleteLife = 90 * 24 * time.Hour

// sweepBatch is how many records one transaction removes.
const sweepBatch = 500

// Sweep removes the records of obsolete devices that have not been seen for 90 days, and returns how many. A blocked one stays: a person's no ends only
// when a person takes it back. Run does it now and then.
func (s *Site) Sweep(ctx context.Context) (removed int, err error) {
	obsolete, blocked := true, false
	for {
		n := 0
		err := s.update(ctx, func(tx Tx) (bool, error) {
			now := s.time()
			old, err := tx.Devices(DeviceFilter{Obsolete: &obsolete, Blocked: &blocked, SeenBefore: now.Add(-obsoleteLife), Limit: sweepBatch})
			if err != nil {
				return false, err
			}
			for _, d := range old {
				if err := tx.DeleteDevice(d.ClientID); err != nil {
					return false, err
				}
				if err := s.trust(tx, actorSite, "device.remove", string(d.ClientID), map[string]string{"key": string(d.Key), "name": d.Name(), "replaced-by": string(d.Obsolete.By)}); err != nil {
					return false, err
				}
			}
			n = len(old)
			return n > 0, nil
		})
		removed += n
		if err != nil || n < sweepBatch {
			return removed, err
		}
	}
}
