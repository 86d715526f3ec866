package site

import (
	"context"
	"errors"
	"fmt"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

// tokenLeeway is the one clock leeway of the system (design decision 10).
const tokenLeeway = token.Leeway

// Exchange asks the token service for a token (design decision 11).
type Exchange struct {
	Caller    Caller
	Want      token.Kind // KindCCM or KindSelfProve
	Assertion string     // RFC 7523, signed by the registered key; needed for a self-prove token and for a caller without a token
	Audience  string     // what the assertion must name: the URL of the token service as the client called it

	// Certificate names the client certificate (x5t#S256) that the caller has shown in its own handshake and that is for the key that it proved; "" for
	// none. A CCM token may then stand with that certificate instead of a proof, directly at a management point (design decision 6).
	Certificate string

	Turn func(work func() error) error // runs what signs and verifies, when there is room; nil runs it at once. Its errors are the answer
}

// inTurn runs work at once, or when the caller has room for it.
func (ask Exchange) inTurn(work func() error) error {
	if ask.Turn == nil {
		return work()
	}
	return ask.Turn(work)
}

// Issued is the answer of the token service.
type Issued struct {
	Token    string
	Claims   token.Claims
	Approval ccm.ApprovalStatus // of the registered device; ApprovalUnknown before registration
	First    bool               // this exchange reserved the client id

	RenewAfter time.Duration // of a self-prove token: its age at which clients renew it
	Quarantine Returns       // how the device leaves quarantine; "" when it is in none
}

// IssueToken exchanges what the caller proved for a token of the site.
//
// A bulk registration token of a key that has not registered gives a CCM token with scope register and reserves the client id: that is one use
// of the token, and asking again with the same key costs nothing. An Entra token does the same (S2), without being used up. A registered key gets scope
// client, by an Entra token only when that is not of another Entra device. Every token names the key it is bound to.
func (s *Site) IssueToken(ctx context.Context, ask Exchange) (Issued, error) {
	if ask.Want != token.KindCCM && ask.Want != token.KindSelfProve {
		return Issued{}, catalog.Errorf(catalog.TokenRequestInvalid, "a token of kind %q cannot be asked for", ask.Want)
	}
	if by, replaced := s.current.Load().replaced[ask.Caller.Key]; replaced {
		return Issued{}, obsoleteError(by.By)
	}
	if err := s.current.Load().cloudAdmitted(ask.Caller.Cloud); err != nil {
		return Issued{}, err
	}
	if cloud := ask.Caller.Cloud; cloud != nil && ask.Caller.Method == proof.Entra && cloud.Kind != proof.CloudDevice && s.Settings().DeviceTokens {
		return Issued{}, catalog.Errorf(catalog.EntraUserToken, "a token of the type %s; the setting %s asks for a device's", cloud.Kind, settingDevices)
	}
	if ask.Caller.byKeyAlone() && !s.Settings().Return {
		return Issued{}, catalog.Errorf(catalog.ReturnOff, "%s is false", settingReturn)
	}
	device, err := s.registered(ctx, ask)
	if err == nil {
		return s.issueToDevice(ctx, ask, device)
	}
	if !errors.Is(err, ErrNotFound) {
		return Issued{}, err
	}
	if ask.Caller.byKeyAlone() {
		return Issued{}, catalog.Errorf(catalog.ReturnUnknown, "key %s is not registered", ask.Caller.Key)
	}
	byEntra := ask.Caller.Method == proof.Entra && ask.Caller.cloud() != nil
	if ask.Caller.Method != proof.BulkToken && !byEntra {
		return Issued{}, catalog.Errorf(catalog.DeviceUnknown, "key %s is not registered", ask.Caller.Key)
	}
	if ask.Want != token.KindCCM {
		return Issued{}, catalog.Errorf(catalog.TokenBeforeRegistration, "a self-prove token is for registered devices; register first")
	}
	return s.issueForRegistration(ctx, ask)
}

// registered finds the caller's device: by the key that it proved, or by the client id that its assertion names.
func (s *Site) registered(ctx context.Context, ask Exchange) (Device, error) {
	if ask.Caller.Key != "" {
		return s.DeviceByKey(ctx, ask.Caller.Key)
	}
	if ask.Assertion == "" {
		return Device{}, catalog.Errorf(catalog.AssertionMissing, "the caller has neither a token nor an assertion")
	}
	id, err := token.AssertionSubject(ask.Assertion)
	if err != nil {
		return Device{}, err
	}
	device, err := s.Device(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return Device{}, unproved()
	}
	return device, err
}

// unproved is the answer to an assertion that names no device and to one that the named device's key has not signed: they are alike, so that nobody
// learns which client ids there are (C60).
func unproved() error {
	return catalog.Errorf(catalog.DeviceUnknown, "the assertion is by no registered device's key")
}

func (s *Site) issueToDevice(ctx context.Context, ask Exchange, device Device) (Issued, error) {
	if ask.Caller.Method == proof.Assertion { // before anything is said of the device
		if err := s.checkAssertion(ctx, ask, device); err != nil && catalog.CodeOf(err) == catalog.AssertionSignature && ask.Caller.Key == "" {
			return Issued{}, unproved()
		} else if err != nil {
			return Issued{}, err
		}
	}
	if device.Blocked() {
		return Issued{}, device.Refused()
	}
	if ask.Caller.Method == proof.Assertion {
		ask.Caller.Cloud = device.cameBy()
		if err := s.current.Load().cloudAdmitted(ask.Caller.Cloud); err != nil {
			return Issued{}, err
		}
	}
	if cloud := ask.Caller.cloud(); cloud != nil {
		if err := device.sameEntra(*cloud); err != nil {
			return Issued{}, err
		}
	}
	if ask.Caller.Method != proof.Assertion {
		if err := s.checkAssertion(ctx, ask, device); err != nil {
			return Issued{}, err
		}
	}
	if ask.Caller.byKeyAlone() {
		var err error
		if device, err = s.comeBack(ctx, ask.Caller, device); err != nil {
			return Issued{}, err
		}
	}
	if ask.Caller.Method == proof.BulkToken {
		if err := s.spend(ctx, ask.Caller, device.ClientID, nil); err != nil {
			return Issued{}, err
		}
	}
	s.Seen(device.ClientID)
	claims := token.Claims{Client: device.ClientID, Key: device.Key, Scope: token.ScopeClient, TokenType: token.TypeDevice}
	carry(&claims, ask)
	if ask.Want == token.KindSelfProve {
		claims.Scope = ""
	} else {
		claims.CertificateThumbprint = ask.Certificate
	}
	issued, err := s.issue(ask, ask.Want, claims, device.Status())
	if device.Quarantined() {
		issued.Quarantine = s.Settings().ReturnLift
	}
	return issued, err
}

// checkAssertion asks for a fresh signature of the registered key where the token alone is not enough (design decision 11). An assertion that
// is there must hold, needed or not (decision 3).
func (s *Site) checkAssertion(ctx context.Context, ask Exchange, device Device) error {
	if ask.Assertion == "" && ask.Want == token.KindCCM && ask.Caller.Method != proof.Assertion {
		return nil // the caller's proof of possession was by this very key
	}
	if ask.Assertion == "" {
		return catalog.Errorf(catalog.AssertionMissing, "a self-prove token needs an assertion signed with the registered key")
	}
	public, err := device.PublicKey()
	if err != nil {
		return err
	}
	var claims token.AssertionClaims
	err = ask.inTurn(func() (err error) {
		claims, err = token.VerifyAssertion(ask.Assertion, public, ask.Audience, s.now())
		return err
	})
	if err != nil {
		return err
	}
	if claims.Client != device.ClientID {
		return catalog.Errorf(catalog.AssertionOtherDevice, "the assertion speaks for %s but the key belongs to %s", claims.Client, device.ClientID)
	}
	fresh, err := s.Fresh(ctx, "assertion:"+string(device.Key)+":"+claims.ID, claims.Expires.Add(tokenLeeway))
	if err != nil {
		return err
	}
	if !fresh {
		return catalog.Errorf(catalog.AssertionReplayed, "the assertion was used before; sign a new one")
	}
	return nil
}

// reservationLife is how long a client id stays promised after the token was exchanged: as long as the CCM token that names it, and a day more.
const reservationLife = token.CCMLifetime + 24*time.Hour

func (s *Site) issueForRegistration(ctx context.Context, ask Exchange) (Issued, error) {
	id, err := ccm.NextClientID(s.time(), s.rand)
	if err != nil {
		return Issued{}, err
	}
	now := s.time()
	reservation := Reservation{Key: ask.Caller.Key, ClientID: id, BulkID: ask.Caller.BulkID, Created: now, Expires: now.Add(reservationLife)}
	if ask.Caller.Method == proof.BulkToken {
		err = s.spend(ctx, ask.Caller, id, &reservation)
	} else {
		err = s.reserveFor(ctx, ask.Caller.Cloud, &reservation)
	}
	if err != nil {
		return Issued{}, err
	}
	claims := token.Claims{Client: reservation.ClientID, Key: ask.Caller.Key, Scope: token.ScopeRegister, BulkID: ask.Caller.BulkID, TokenType: token.TypeDevice}
	carry(&claims, ask)
	issued, err := s.issue(ask, token.KindCCM, claims, ccm.ApprovalUnknown)
	issued.First = reservation.ClientID == id
	return issued, err
}

// reserveFor reserves a client id for a key that an Entra token came with. Nothing is used up, and until the key registers nothing is trusted.
func (s *Site) reserveFor(ctx context.Context, cloud *proof.Cloud, reserve *Reservation) error {
	var inForce Reservation
	err := s.store.Update(ctx, func(tx Tx) (err error) {
		if err := cloudStillAdmitted(tx, cloud); err != nil {
			return err
		}
		inForce, err = reserveID(tx, *reserve)
		return err
	})
	if err != nil {
		return fmt.Errorf("reserve a client id: %w", err)
	}
	*reserve = inForce
	return nil
}

// spend counts the first use of a bulk token by a key and, for a key without a device, reserves its client id; both in one transaction, so that
// exactly MaxUses keys get through however many ask at once (C46). reserve is updated to the reservation in force.
func (s *Site) spend(ctx context.Context, caller Caller, id ccm.ClientID, reserve *Reservation) error {
	var inForce Reservation
	err := s.store.Update(ctx, func(tx Tx) error {
		bulk, err := tx.BulkToken(caller.BulkID)
		if errors.Is(err, ErrNotFound) {
			return catalog.Errorf(catalog.BulkTokenUnknown, "the site has no record of bulk registration token %s", caller.BulkID)
		}
		if err != nil {
			return err
		}
		used, err := tx.TokenUsed(bulk.ID, caller.Key)
		if err != nil {
			return err
		}
		now := s.time()
		switch {
		case !now.Before(bulk.Expires.Add(tokenLeeway)):
			return catalog.Errorf(catalog.TokenExpired, "bulk registration token %s ended at %s; the time here is %s", bulk.ID, bulk.Expires.Format(time.RFC3339), now.Format(time.RFC3339))
		case bulk.Blocked:
			return catalog.Errorf(catalog.TokenBlocked, "bulk registration token %s is blocked", bulk.ID)
		case !used && bulk.MaxUses > 0 && bulk.Uses >= bulk.MaxUses:
			return catalog.Errorf(catalog.BulkTokenUsedUp, "bulk registration token %s has been used by all the %d devices it was made for", bulk.ID, bulk.MaxUses)
		}
		if err := bulk.admitsAddress(caller.Address); err != nil {
			return err
		}
		if reserve != nil {
			if inForce, err = reserveID(tx, *reserve); err != nil {
				return err
			}
			id = inForce.ClientID
		}
		if used {
			return nil
		}
		if err := tx.UseToken(bulk.ID, TokenUse{Key: caller.Key, ClientID: id, Address: caller.Address, At: now}); err != nil {
			return err
		}
		return s.trust(tx, actorSite, "token.use", bulk.ID, map[string]string{"key": string(caller.Key), "client": string(id)})
	})
	if err != nil {
		return fmt.Errorf("use bulk registration token: %w", err)
	}
	if reserve != nil {
		*reserve = inForce
	}
	return nil
}

// reserveID keeps the reservation that the key has, prolonged, or makes the new one.
func reserveID(tx Tx, fresh Reservation) (Reservation, error) {
	old, err := tx.Reservation(fresh.Key)
	if errors.Is(err, ErrNotFound) {
		return fresh, tx.PutReservation(fresh)
	}
	if err != nil {
		return fresh, err
	}
	if old.Expires.After(fresh.Created.Add(token.CCMLifetime)) {
		return old, nil
	}
	if err := tx.DeleteReservation(old.Key); err != nil {
		return old, err
	}
	old.Expires, old.BulkID = fresh.Expires, fresh.BulkID
	return old, tx.PutReservation(old)
}

// issue signs the token; lifetimes are the documents' (protocol.md 6.2).
func (s *Site) issue(ask Exchange, kind token.Kind, claims token.Claims, approval ccm.ApprovalStatus) (Issued, error) {
	now := s.time()
	id, err := newUUID(s.rand)
	if err != nil {
		return Issued{}, err
	}
	life := token.CCMLifetime
	if kind == token.KindSelfProve {
		life = s.Settings().SelfProveLife()
	}
	claims.Kind, claims.ID, claims.Hierarchy = kind, id, s.Hierarchy()
	claims.IssuedAt, claims.NotBefore, claims.Expires = now, now, now.Add(life)
	var raw string
	err = ask.inTurn(func() (err error) {
		raw, err = s.current.Load().ring.Sign(kind, claims, now)
		return err
	})
	if err != nil {
		return Issued{}, fmt.Errorf("sign %s token: %w", kind, err)
	}
	issued := Issued{Token: raw, Claims: claims, Approval: approval}
	if kind == token.KindSelfProve {
		issued.RenewAfter = s.Settings().SelfProveRenewAfter()
	}
	return issued, nil
}
