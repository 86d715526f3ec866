package site

import (
	"context"
	"errors"

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

// FindDevice returns the one device that who names: a client id (with or without GUID:), a NetBIOS name or an FQDN.
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
	named, err := s.Devices(ctx, DeviceFilter{Name: who, Limit: 2})
	if err != nil {
		return Device{}, err
	}
	switch len(named) {
	case 0:
		return Device{}, catalog.Errorf(catalog.DeviceUnknown, "no device is called %q; `postern device list` shows them all", who)
	case 1:
		return named[0], nil
	default:
		return Device{}, catalog.Errorf(catalog.DeviceAmbiguous, "several devices are called %q; name one by its client id", who)
	}
}

// Approve sets a device's level by a person's decision: managed or secrets, approval status 1.
func (s *Site) Approve(ctx context.Context, id ccm.ClientID, level proof.Level, by, why string) (Device, error) {
	if level < proof.LevelManaged {
		return Device{}, catalog.Errorf(catalog.DeviceLevel, "level %s is not an approval; use managed or secrets, or reject the device", level)
	}
	return s.change(ctx, id, by, why, "device.approve", func(d *Device) {
		d.Approval = Approval{Status: ccm.ApprovalApproved, Level: level, Method: d.Approval.Method, Rule: "approved by a person", Evidence: d.Approval.Evidence, By: by, Why: why, At: s.time()}
	})
}

// Reject takes a device's approval away by a person's decision: status 0, level known.
func (s *Site) Reject(ctx context.Context, id ccm.ClientID, by, why string) (Device, error) {
	return s.change(ctx, id, by, why, "device.reject", func(d *Device) {
		d.Approval = Approval{Status: ccm.ApprovalNone, Level: proof.LevelKnown, Method: d.Approval.Method, Rule: "rejected by a person", Evidence: d.Approval.Evidence, By: by, Why: why, At: s.time()}
	})
}

// Block refuses a device everywhere; its key goes into the site state, so that every gateway refuses it too.
func (s *Site) Block(ctx context.Context, id ccm.ClientID, by, why string) (Device, error) {
	return s.change(ctx, id, by, why, "device.block", func(d *Device) { d.Block = Block{Blocked: true, By: by, Why: why, At: s.time()} })
}

// Unblock lets a blocked device in again, at the approval that it had.
func (s *Site) Unblock(ctx context.Context, id ccm.ClientID, by, why string) (Device, error) {
	return s.change(ctx, id, by, why, "device.unblock", func(d *Device) { d.Block = Block{By: by, Why: why, At: s.time()} })
}

// change edits one device and records who did it and why.
func (s *Site) change(ctx context.Context, id ccm.ClientID, by, why, action string, edit func(*Device)) (device Device, err error) {
	err = s.update(ctx, func(tx Tx) (moved bool, err error) {
		if device, err = tx.Device(id); err != nil {
			return false, err
		}
		wasBlocked := device.Blocked()
		edit(&device)
		device.Updated = s.time()
		if err := tx.PutDevice(device); err != nil {
			return false, err
		}
		detail := trustOf(device)
		detail["why"] = why
		return device.Blocked() != wasBlocked, s.trust(tx, by, action, string(id), detail)
	})
	if errors.Is(err, ErrNotFound) {
		return device, catalog.Errorf(catalog.DeviceUnknown, "no device has the client id %s", id)
	}
	return device, err
}
