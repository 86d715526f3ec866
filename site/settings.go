package site

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// ApprovalMode is the site setting for devices that prove more than their own key (product.md 2.7).
type ApprovalMode string

// The approval modes, as the field names them.
const (
	ApproveManually       ApprovalMode = "manual"
	ApproveTrustedDomains ApprovalMode = "trusted-domains" // the default
	ApproveEveryone       ApprovalMode = "everyone"        // until [Settings.EveryoneUntil]
)

// ConflictResolution is the site setting for twins that no proof tells apart (product.md 2.9).
type ConflictResolution string

// The ways to resolve a conflict, as the field names them.
const (
	ResolveAutomatically ConflictResolution = "automatic" // the default: both stay, each with what its own proof gives
	ResolveManually      ConflictResolution = "manual"    // the newcomer waits for a person
)

// Settings are the site's settings that devices feel. They lie in the store, so that every node has the same.
type Settings struct {
	SiteCode       ccm.SiteCode
	Approval       ApprovalMode // as set; [Settings.ApprovalAt] is what is in force
	EveryoneUntil  time.Time    // with ApproveEveryone: its end
	Realms         []proof.Realm
	Conflicts      ConflictResolution
	SharedHardware []string // hardware and SMBIOS ids and MAC addresses that many computers have
	LegacyKeys     bool     // accept RSA below 2048 bits and SHA-1 signatures, at level known (C75)
	AES256         bool     // EnvelopedData with AES-256-CBC instead of 3DES; oldest clients cannot read it
	TokenAlgorithm string   // of new keys for CCM and self-prove tokens: RS256 or ES256
	DeviceTokens   bool     // devices enrol with a device's token of Entra only, never with a user's
	LoopbackHTTP   bool     // a tenant's issuer on this machine may be http, for tests
	BuildNumber    string

	SelfProveDays      int     // a self-prove token's life
	SelfProveRenewDays int     // its age at which clients renew it
	Return             bool    // a device whose tokens have ended comes back by its registered key alone
	ReturnLift         Returns // how it leaves quarantine
	ClockAccepted      string  // when a person last said that the clock is right, by that clock

	KeyRotation KeyRotation // when signing keys of tokens are replaced without a person
}

// ApprovalAt returns the mode in force: everyone ends by itself, and the default follows.
func (s Settings) ApprovalAt(now time.Time) ApprovalMode {
	if s.Approval == ApproveEveryone && !now.Before(s.EveryoneUntil) {
		return ApproveTrustedDomains
	}
	return s.Approval
}

// Realm returns what the site knows of a realm whose ticket was accepted: its entry in the list, or else what is usual.
func (s Settings) Realm(name string) proof.Realm {
	for _, r := range s.Realms {
		if r.Name == name {
			return r
		}
	}
	return proof.NewRealm(name)
}

// Value returns a setting as [Site.Set] would take it.
func (s Settings) Value(name string) string {
	if k, ok := settingNamed(name); ok {
		return k.write(s)
	}
	return ""
}

// Names of the settings in the store.
const (
	settingSiteCode  = "site.code"
	settingHierarchy = "site.hierarchy"
	settingApproval  = "approval.mode"
	settingRealms    = "approval.trusted-realms"
	settingConflicts = "conflict.resolution"
	settingShared    = "conflict.shared-hardware-ids"
	settingLegacy    = "registration.legacy-keys"
	settingAES256    = "policy.aes256"
	settingAlgorithm = "token.algorithm"
	settingDevices   = "tenant.device-tokens-only"
	settingLoopback  = "tenant.loopback-http"
	settingRotation  = "key.rotate-days"
	settingSelfProve = "token.self-prove-days"
	settingRenew     = "token.self-prove-renew-days"
	settingReturn    = "return.enabled"
	settingLift      = "return.lift"
	settingClock     = "clock.accepted"
)

// buildNumber is what location replies call the site's build: a current one, since clients compare it with their own.
const buildNumber = "9128"

func readSettings(tx Tx) (settings Settings, hierarchy string, err error) {
	code, err := tx.Setting(settingSiteCode)
	if err != nil {
		return settings, "", err
	}
	if hierarchy, err = tx.Setting(settingHierarchy); err != nil {
		return settings, "", err
	}
	settings = Settings{SiteCode: ccm.SiteCode(code), BuildNumber: buildNumber}
	for _, k := range settingKinds() {
		value, err := optional(tx, k.Name)
		if err != nil {
			return settings, "", err
		}
		if err := k.take(&settings, value); err != nil {
			return settings, "", fmt.Errorf("setting %s: %w", k.Name, err)
		}
	}
	return settings, hierarchy, nil
}

func optional(tx Tx, name string) (string, error) {
	value, err := tx.Setting(name)
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	return value, err
}

func defaults(c *Config) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
}

// SettingName is a setting that [Site.Set] takes.
type SettingName struct{ Name, Meaning string }

// SettingNames lists the settings that a person may change.
func SettingNames() (names []SettingName) {
	for _, k := range settingKinds() {
		names = append(names, k.SettingName)
	}
	return names
}

// Set changes a setting of the site. What is kept is the value's canonical form: see [Settings.Value].
func (s *Site) Set(ctx context.Context, name, value, by string) (err error) {
	k, ok := settingNamed(name)
	if !ok {
		return catalog.Errorf(catalog.InvalidArgument, "there is no setting %q; `postern site set --help` lists them", name)
	}
	if name == settingClock && value == clockNow {
		undo := s.clock.accept() // what follows is said by the clock that is right
		defer func() {
			if err != nil {
				undo()
			}
		}()
	}
	if value, err = k.canonical(value, s.time()); err != nil {
		return err
	}
	err = s.update(ctx, func(tx Tx) (moved bool, err error) {
		if err := tx.PutSetting(name, value); err != nil {
			return false, err
		}
		settings, _, err := readSettings(tx)
		if err != nil {
			return false, err
		}
		if err := settings.fit(); err != nil {
			return false, err
		}
		return name == settingReturn, s.trust(tx, by, "setting.set", name, map[string]string{"value": value}) // gateways need to know of that one only
	})
	if err != nil {
		return err
	}
	return s.Refresh(ctx)
}

// splitList splits at commas and drops what is empty.
func splitList(value string) (list []string) {
	for item := range strings.SplitSeq(value, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

const maxShared = 1000

// canonicalShared reads the list of shared ids: sorted, each once.
func canonicalShared(value string) (string, error) {
	list := splitList(value)
	for _, id := range list {
		if len(id) > maxAttribute || strings.ContainsFunc(id, unprintable) {
			return "", catalog.Errorf(catalog.InvalidArgument, "%s holds %+.40q, which is too long or cannot be shown", settingShared, id)
		}
	}
	slices.Sort(list)
	if list = slices.Compact(list); len(list) > maxShared {
		return "", catalog.Errorf(catalog.InvalidArgument, "%s has %d ids; at most %d are allowed", settingShared, len(list), maxShared)
	}
	return strings.Join(list, ","), nil
}

// shared reports whether an id is listed as one that many computers have; case and the separators of MAC addresses do not matter.
func (s Settings) shared(id string) bool {
	return id != "" && slices.ContainsFunc(s.SharedHardware, func(listed string) bool { return plainID(listed) == plainID(id) })
}

// sharedHardware reports whether nothing may be concluded from a record's hardware id: it is listed itself, or the SMBIOS id is, from which clients
// make it. A MAC address is never matched, so a listed one only counts as no likeness.
func (s Settings) sharedHardware(r Record) bool {
	return s.shared(r.HardwareID1) || s.shared(r.SMBIOSID)
}

// plainID is an id without what people and programs write differently.
func plainID(id string) string {
	return strings.ToUpper(strings.NewReplacer(":", "", "-", "", ".", "", "{", "", "}", "").Replace(id))
}
