package site

import (
	"context"
	"errors"
	"strconv"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

// Quarantine is the state of a device that came back from the internet by nothing but its registered key, after its self-prove token had ended. It opens
// what level known opens; the approval stays on record and is in force again when the quarantine is lifted (users-and-threats.md C73).
type Quarantine struct {
	Since time.Time // zero when there is none
	Why   string    // what brought it about, in words
}

// Quarantined reports whether the device came back after a long absence and has not proved itself afresh since.
func (d Device) Quarantined() bool { return !d.Quarantine.Since.IsZero() }

// Level is what the device may have now: its approval's, or known at most while it is in quarantine.
func (d Device) Level() proof.Level {
	if d.Quarantined() {
		return min(d.Approval.Level, proof.LevelKnown)
	}
	return d.Approval.Level
}

// Status is the approval status that the device is told: its approval's, or unapproved while it is in quarantine.
func (d Device) Status() ccm.ApprovalStatus {
	if d.Quarantined() {
		return ccm.ApprovalNone
	}
	return d.Approval.Status
}

// Returns is the site's rule for devices that come back by their registered key alone.
type Returns string

// The rules: whether a device that proved itself afresh leaves quarantine by itself.
const (
	LiftAutomatically Returns = "automatic" // the default
	LiftManually      Returns = "manual"    // a person says so: `postern device approve` or `release`
)

// SelfProveLife is how long a self-prove token lives.
func (s Settings) SelfProveLife() time.Duration { return time.Duration(s.SelfProveDays) * day }

// SelfProveRenewAfter is the age at which clients renew their self-prove token.
func (s Settings) SelfProveRenewAfter() time.Duration {
	return time.Duration(s.SelfProveRenewDays) * day
}

const day = 24 * time.Hour

// The documents' limits, and the defaults of the settings: a self-prove token lives 90 days, and clients renew it once a month (S3).
const (
	maxSelfProveDays     = int(token.SelfProveLifetime / day)
	defaultSelfProveDays = maxSelfProveDays
	defaultRenewDays     = 30
)

// minSelfProveDays leaves a day to renew in.
const minSelfProveDays = 2

// canonicalDays reads a number of days.
func canonicalDays(name, value string, least, most int) (string, error) {
	days, err := strconv.Atoi(value)
	if err != nil || days < least || days > most {
		return "", catalog.Errorf(catalog.InvalidArgument, "%s is %q; give a number of days from %d to %d", name, value, least, most)
	}
	return strconv.Itoa(days), nil
}

// fit refuses settings that contradict each other.
func (s Settings) fit() error {
	if s.SelfProveRenewDays >= s.SelfProveDays {
		return catalog.Errorf(catalog.InvalidArgument, "%s is %d and %s is %d: a self-prove token must be renewed before it ends; change the other one first",
			settingRenew, s.SelfProveRenewDays, settingSelfProve, s.SelfProveDays)
	}
	return nil
}

// byKeyAlone reports whether the caller came through a gateway with nothing but a proof of its registered key.
func (c Caller) byKeyAlone() bool { return c.Method == proof.Assertion && !c.Direct }

// away reports whether the device has not been heard for as long as a self-prove token lives, so that it cannot have one that has not ended.
func (s *Site) away(d Device) bool {
	s.pending.Lock()
	heard, waiting := s.pending.seen[d.ClientID]
	s.pending.Unlock()
	if !waiting || heard.Before(d.LastSeen) {
		heard = d.LastSeen
	}
	return !s.time().Before(heard.Add(s.Settings().SelfProveLife()))
}

// comeBack judges a device that came by its registered key alone. A rejected device does not come back; one that was away longer than a self-prove token
// lives lands in quarantine before it is given anything. The proof of the key has been checked.
func (s *Site) comeBack(ctx context.Context, caller Caller, device Device) (Device, error) {
	if device.Rejected() {
		return device, catalog.Errorf(catalog.ReturnRejected, "%s has rejected device %s (%s) on %s", device.Approval.By, device.ClientID, device.Name(), device.Approval.At.Format(time.DateOnly))
	}
	if device.Quarantined() || !s.away(device) {
		return device, nil
	}
	fresh := false
	err := s.store.Update(ctx, func(tx Tx) (err error) {
		fresh = false
		if device, err = tx.Device(device.ClientID); err != nil {
			return err
		}
		switch {
		case device.Key != caller.Key:
			return catalog.Errorf(catalog.AssertionOtherDevice, "device %s has got another key", device.ClientID)
		case device.Blocked():
			return device.Refused()
		case device.Quarantined() || !s.away(device):
			return nil // another exchange came first
		}
		now := s.time()
		heard := device.LastSeen
		device.Quarantine = Quarantine{Since: now, Why: "not heard since " + heard.Format(time.RFC3339) + "; came back by its registered key alone"}
		device.Updated, device.LastSeen, fresh = now, now, true
		if err := tx.PutDevice(device); err != nil {
			return err
		}
		detail := trustOf(device)
		detail["last-heard"], detail["address"], detail["level"] = heard.Format(time.RFC3339), caller.Address, device.Level().String()
		return s.trust(tx, actorSite, "device.quarantine", string(device.ClientID), detail)
	})
	if errors.Is(err, ErrNotFound) {
		return device, catalog.Errorf(catalog.DeviceUnknown, "key %s is not registered", caller.Key)
	}
	if err == nil && fresh {
		s.Note(Event{Code: string(catalog.DeviceQuarantined), Kind: "token", Subject: string(device.ClientID), Address: caller.Address, TraceID: caller.RequestID, Detail: device.Quarantine.Why})
	}
	return device, err
}

// cameBy is the tenant on whose word alone the device is approved, or nil. What such a device gets by its key ends with that tenant, as what it gets by the
// tenant's tokens does.
func (d Device) cameBy() *proof.Cloud {
	facts := d.Approval.Evidence
	if d.Approval.Method != proof.Entra || d.Approval.By != actorSite || facts[factTenant] == "" {
		return nil
	}
	return &proof.Cloud{Tenant: facts[factTenant], Issuer: facts[factIssuer], Kind: facts[factKind]}
}

// afresh says by what a registration proves a device that came back anew, or "" when it does not: by more than the key, or by a message that the
// registered key signed and a token that was got after the return (C73). What a proof that is weak, or that the route limits to known, says is no news.
func (n *newcomer) afresh(caller Caller, since time.Time) string {
	if n.weak || caller.Ceiling < proof.LevelManaged || n.stale(since) {
		return ""
	}
	switch caller.Method {
	case proof.Kerberos, proof.Entra, proof.BulkToken:
		return string(caller.Method)
	case proof.PKICertificate:
		if n.shown != nil && n.shown.held {
			return string(caller.Method)
		}
	case proof.CCMToken:
		if caller.Key == n.key && !caller.Issued.Before(since.Truncate(time.Second)) {
			return "a registration message with a token got after the return"
		}
	}
	return ""
}

// lift ends the quarantine of a device that has proved itself afresh, where the site's rule says so. It returns by what, or "".
func (s *Site) lift(tx Tx, caller Caller, n *newcomer, device *Device) (by string, err error) {
	if !device.Quarantined() || s.Settings().ReturnLift != LiftAutomatically || device.Refused() != nil {
		return "", nil
	}
	if by = n.afresh(caller, device.Quarantine.Since); by == "" {
		return "", nil
	}
	since := device.Quarantine.Since
	device.Quarantine = Quarantine{}
	detail := trustOf(*device)
	detail["since"], detail["by"] = since.Format(time.RFC3339), by
	n.tell(catalog.QuarantineLifted, device.ClientID, "in quarantine since %s; proved afresh by %s; level %s again", since.Format(time.RFC3339), by, device.Approval.Level)
	return by, s.trust(tx, actorSite, "device.release", string(device.ClientID), detail)
}
