package site

import (
	"context"
	"errors"
	"fmt"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

// KeyChange asks that a device's key be changed.
type KeyChange struct {
	Caller    Caller                   // by a CCM token of scope client, with a proof by the registered key
	Request   *ccm.RegistrationRequest // signed by the new key, with its certificates
	Statement string                   // by the registered key, see [token.SignKeyChange]
	Audience  string                   // what it must name: the URL of the message as the client called it
}

// ChangeKey puts a new key in the place of a device's registered one. The new key has signed the request, the registered one the statement that names the
// new one, and the request came by a token and a proof of the registered one: nobody who lacks one of the two keys, or has a token only, changes anything.
// The device keeps its client id, its approval and its record; the former key is refused everywhere from then on. Errors have the codes KeyChangeInvalid,
// KeyChangeNotByDevice, KeyChangeTaken, KeyChangeNoReturn and those of a registration; one that wraps [ErrUnavailable] changed nothing.
func (s *Site) ChangeKey(ctx context.Context, ask KeyChange) (Registration, error) {
	caller := ask.Caller
	if caller.Method != proof.CCMToken || caller.Scope != token.ScopeClient || caller.Key == "" {
		return Registration{}, catalog.Errorf(catalog.KeyChangeNotByDevice, "it takes a CCM token of a registered device, with a proof by its key")
	}
	if !caller.Direct && !s.Settings().Return {
		return Registration{}, catalog.Errorf(catalog.KeyChangeNoReturn, "%s is false", settingReturn)
	}
	bare := caller
	bare.Key = "" // the token is bound to the former key, the request is signed by the new one
	n, err := s.newcomer(bare, ask.Request)
	if err != nil {
		return Registration{}, err
	}
	if n.weak {
		return Registration{}, catalog.Errorf(catalog.RegistrationWeakKey, "a key is not changed for a weak one")
	}
	device, err := s.Device(ctx, caller.Client)
	if errors.Is(err, ErrNotFound) {
		return Registration{}, catalog.Errorf(catalog.DeviceUnknown, "no device has the client id %s", caller.Client)
	}
	if err != nil {
		return Registration{}, err
	}
	if err := s.checkKeyChange(ctx, ask, n, device); err != nil {
		return Registration{}, err
	}
	err = s.update(ctx, func(tx Tx) (bool, error) {
		device, err = s.changeKey(tx, caller, n)
		return err == nil, err
	})
	if err != nil {
		return Registration{}, fmt.Errorf("change the key of %s: %w", caller.Client, err)
	}
	s.Note(Event{Kind: "registration", Subject: string(device.ClientID), Address: caller.Address, TraceID: caller.RequestID,
		Detail: fmt.Sprintf("the key %s named its successor %s", caller.Key, device.Key)})
	return Registration{Device: device, Changed: true}, nil
}

// checkKeyChange judges the statement by the key that is registered now.
func (s *Site) checkKeyChange(ctx context.Context, ask KeyChange, n *newcomer, device Device) error {
	switch {
	case device.Blocked():
		return device.Refused()
	case device.Key != ask.Caller.Key:
		return catalog.Errorf(catalog.KeyChangeNotByDevice, "the proof is by the key %s, and that is not the registered one", ask.Caller.Key)
	case n.wanted != "" && n.wanted != device.ClientID:
		return catalog.Errorf(catalog.KeyChangeNotByDevice, "the token is for %s, the registration for %s", device.ClientID, n.wanted)
	case n.key == device.Key:
		return catalog.Errorf(catalog.KeyChangeInvalid, "the new key is the registered one")
	}
	public, err := device.PublicKey()
	if err != nil {
		return err
	}
	statement, err := token.VerifyKeyChange(ask.Statement, public, ask.Audience, s.now())
	if err != nil {
		return err
	}
	if !statement.Names(device.ClientID, n.key) {
		return catalog.Errorf(catalog.KeyChangeInvalid, "the statement is for the key %s of %s, the registration by the key %s of %s", statement.Next, statement.Client, n.key, device.ClientID)
	}
	fresh, err := s.Fresh(ctx, "key-change:"+string(device.Key)+":"+statement.ID, statement.Expires.Add(tokenLeeway))
	if err == nil && !fresh {
		return catalog.Errorf(catalog.KeyChangeInvalid, "the statement was used before")
	}
	return err
}

// changeKey writes the change. What refuses it is looked at before anything is written.
func (s *Site) changeKey(tx Tx, caller Caller, n *newcomer) (Device, error) {
	device, err := tx.Device(caller.Client)
	switch {
	case err != nil:
		return device, err
	case device.Blocked():
		return device, device.Refused()
	case device.Key != caller.Key:
		return device, catalog.Errorf(catalog.KeyChangeNotByDevice, "the key %s is not the registered one any more", caller.Key)
	}
	if err := cloudStillAdmitted(tx, caller.Cloud); err != nil {
		return device, err
	}
	if err := s.keyFree(tx, n.key); err != nil {
		return device, err
	}
	now, former := s.time(), device.Key
	if err := tx.PutFormerKey(former, device.ClientID, now); err != nil {
		return device, err
	}
	next := n.record
	record := device.Record
	record.Certificate, record.Thumbprint, record.PublicKey, record.KeyType = next.Certificate, next.Thumbprint, next.PublicKey, next.KeyType
	record.ValidFrom, record.ValidTo, record.EncKey, record.EncThumbprint = next.ValidFrom, next.ValidTo, next.EncKey, next.EncThumbprint
	device.Key, device.Record, device.Updated, device.LastSeen = n.key, record, now, now
	if err := tx.PutDevice(device); err != nil {
		return device, err
	}
	return device, s.trust(tx, actorSite, "device.rekey", string(device.ClientID), map[string]string{
		"former-key": string(former), "key": string(device.Key), "rule": "the former key named its successor", "address": caller.Address,
	})
}

// keyFree reports whether a key belongs to nobody, and never did.
func (s *Site) keyFree(tx Tx, key proof.KeyThumbprint) error {
	taken := catalog.Errorf(catalog.KeyChangeTaken, "key %s", key)
	if s.current.Load().blockedKey[key] {
		return taken
	}
	for _, look := range []func() error{
		func() error { _, err := tx.DeviceByKey(key); return err },
		func() error { _, err := tx.FormerKey(key); return err },
		func() error { _, err := tx.Reservation(key); return err },
	} {
		if err := look(); err == nil {
			return taken
		} else if !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}
