package site

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
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
	switch name {
	case settingApproval:
		if s.Approval == ApproveEveryone {
			return string(s.Approval) + ":" + s.EveryoneUntil.Format(time.RFC3339)
		}
		return string(s.Approval)
	case settingRealms:
		return writeRealms(s.Realms)
	case settingConflicts:
		return string(s.Conflicts)
	case settingShared:
		return strings.Join(s.SharedHardware, ",")
	case settingLegacy:
		return strconv.FormatBool(s.LegacyKeys)
	case settingAES256:
		return strconv.FormatBool(s.AES256)
	case settingAlgorithm:
		return strings.ToLower(s.TokenAlgorithm)
	case settingDevices:
		return strconv.FormatBool(s.DeviceTokens)
	case settingLoopback:
		return strconv.FormatBool(s.LoopbackHTTP)
	case settingRotation:
		return s.KeyRotation.String()
	case settingSelfProve:
		return strconv.Itoa(s.SelfProveDays)
	case settingRenew:
		return strconv.Itoa(s.SelfProveRenewDays)
	case settingReturn:
		return strconv.FormatBool(s.Return)
	case settingLift:
		return string(s.ReturnLift)
	case settingClock:
		return s.ClockAccepted
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
	for _, name := range []string{settingApproval, settingRealms, settingConflicts, settingShared, settingLegacy, settingAES256, settingAlgorithm, settingRotation, settingDevices, settingLoopback, settingSelfProve, settingRenew, settingReturn, settingLift, settingClock} {
		value, err := optional(tx, name)
		if err != nil {
			return settings, "", err
		}
		if err := settings.take(name, value); err != nil {
			return settings, "", fmt.Errorf("setting %s: %w", name, err)
		}
	}
	return settings, hierarchy, nil
}

// take reads the stored value of a setting; "" is its default.
func (s *Settings) take(name, value string) (err error) {
	switch name {
	case settingApproval:
		mode, until, _ := strings.Cut(value, ":")
		s.Approval = ApprovalMode(or(mode, string(ApproveTrustedDomains)))
		if s.Approval == ApproveEveryone {
			s.EveryoneUntil, err = time.Parse(time.RFC3339, until)
		}
	case settingRealms:
		s.Realms, err = ParseRealms(value)
	case settingConflicts:
		s.Conflicts = ConflictResolution(or(value, string(ResolveAutomatically)))
	case settingShared:
		s.SharedHardware = splitList(value)
	case settingLegacy:
		s.LegacyKeys, err = strconv.ParseBool(or(value, "false"))
	case settingAES256:
		s.AES256, err = strconv.ParseBool(or(value, "false"))
	case settingAlgorithm:
		s.TokenAlgorithm = strings.ToUpper(or(value, token.AlgorithmES256))
	case settingDevices:
		s.DeviceTokens, err = strconv.ParseBool(or(value, "false"))
	case settingRotation:
		s.KeyRotation, err = ParseKeyRotation(value)
	case settingLoopback:
		s.LoopbackHTTP, err = strconv.ParseBool(or(value, "false"))
	case settingSelfProve:
		s.SelfProveDays, err = strconv.Atoi(or(value, strconv.Itoa(defaultSelfProveDays)))
	case settingRenew:
		s.SelfProveRenewDays, err = strconv.Atoi(or(value, strconv.Itoa(defaultRenewDays)))
	case settingReturn:
		s.Return, err = strconv.ParseBool(or(value, "true"))
	case settingClock:
		s.ClockAccepted = value
	case settingLift:
		s.ReturnLift = Returns(or(value, string(LiftAutomatically)))
	}
	return err
}

func or(value, fallback string) string {
	if value == "" {
		return fallback
	}
	return value
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
func SettingNames() []SettingName {
	return []SettingName{
		{settingApproval, "manual, trusted-domains (default), or everyone with its end, as everyone:8h or everyone:2026-12-01T18:00:00Z: who is approved without a person"},
		{settingRealms, "REALM[=DOMAIN][;dns-suffix...],...: Kerberos realms, besides those of the keytab, whose computers are trusted"},
		{settingConflicts, "automatic (default) or manual: whether a device that may be a twin waits for a person"},
		{settingShared, "ID,ID,...: hardware ids, SMBIOS ids and MAC addresses that many computers have, never taken for one computer"},
		{settingLegacy, "true or false (default): accept keys and signatures of 2007, at level known"},
		{settingAES256, "true or false (default): seal secrets with AES-256 instead of 3DES; the oldest clients cannot read that"},
		{settingAlgorithm, "es256 (default) or rs256: signature of CCM and self-prove tokens by keys made from now on; `postern key rotate ccm` makes one"},
		{settingRotation, "bulk=DAYS,ccm=DAYS,self-prove=DAYS (default bulk=0,ccm=30,self-prove=90): after how many days a token key is replaced by itself; 0 is never, until shortly before its end"},
		{settingDevices, "true or false (default): a device enrols with a device's token of its tenant only; S2's fallback to a user's token is refused (P961)"},
		{settingLoopback, "true or false (default): a tenant's issuer may be http on a loopback address, for tests"},
		{settingSelfProve, "2 to 90 (default 90): days that a self-prove token lives; a device away for longer comes back by its registered key alone"},
		{settingRenew, "1 and up, less than the life (default 30): age in days at which clients renew their self-prove token"},
		{settingClock, "now: the clock of this machine is right although it says less than before (P030); see docs/operations.md, Absence"},
		{settingReturn, "true (default) or false: a device whose tokens have ended comes back from the internet by its registered key alone"},
		{settingLift, "automatic (default) or manual: whether a device that came back after a long absence leaves quarantine by proving itself afresh, or by a person"},
	}
}

// Set changes a setting of the site. What is kept is the value's canonical form: see [Settings.Value].
func (s *Site) Set(ctx context.Context, name, value, by string) error {
	if name == settingClock {
		s.clock.accept()
	}
	value, err := canonicalSetting(name, value, s.time())
	if err != nil {
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

// canonicalSetting checks a value and returns it as it is kept.
func canonicalSetting(name, value string, now time.Time) (string, error) {
	switch name {
	case settingClock:
		return canonicalClock(value, now)
	case settingApproval:
		return canonicalMode(value, now)
	case settingRealms:
		realms, err := ParseRealms(value)
		return writeRealms(realms), err
	case settingConflicts:
		return oneOf(name, value, string(ResolveAutomatically), string(ResolveManually))
	case settingShared:
		return canonicalShared(value)
	case settingRotation:
		rotation, err := ParseKeyRotation(value)
		return rotation.String(), err
	case settingAlgorithm:
		return oneOf(name, strings.ToLower(value), strings.ToLower(token.AlgorithmES256), strings.ToLower(token.AlgorithmRS256))
	case settingSelfProve:
		return canonicalDays(name, value, minSelfProveDays, maxSelfProveDays)
	case settingRenew:
		return canonicalDays(name, value, 1, maxSelfProveDays-1)
	case settingLift:
		return oneOf(name, value, string(LiftAutomatically), string(LiftManually))
	case settingLegacy, settingAES256, settingDevices, settingLoopback, settingReturn:
		on, err := strconv.ParseBool(value)
		if err != nil {
			return "", catalog.Errorf(catalog.InvalidArgument, "%s is %q; give true or false", name, value)
		}
		return strconv.FormatBool(on), nil
	}
	return "", catalog.Errorf(catalog.InvalidArgument, "there is no setting %q; `postern site set --help` lists them", name)
}

func oneOf(name, value string, allowed ...string) (string, error) {
	if slices.Contains(allowed, value) {
		return value, nil
	}
	return "", catalog.Errorf(catalog.InvalidArgument, "%s is %q; give %s", name, value, strings.Join(allowed, " or "))
}

// canonicalMode reads an approval mode. Everyone needs an end, as a time or as a duration from now.
func canonicalMode(value string, now time.Time) (string, error) {
	mode, end, _ := strings.Cut(value, ":")
	if ApprovalMode(mode) != ApproveEveryone {
		return oneOf(settingApproval, value, string(ApproveManually), string(ApproveTrustedDomains), string(ApproveEveryone)+":END")
	}
	until, err := time.Parse(time.RFC3339, end)
	if span, notSpan := time.ParseDuration(end); notSpan == nil {
		until, err = now.Add(span), nil
	}
	switch {
	case end == "":
		return "", catalog.Errorf(catalog.EveryoneWithoutEnd, "approval.mode everyone lets anybody in; say when it ends: everyone:8h, or everyone:%s", now.Add(8*time.Hour).Format(time.RFC3339))
	case err != nil:
		return "", catalog.Errorf(catalog.EveryoneWithoutEnd, "%q is neither a time like %s nor a duration like 8h", end, now.Add(8*time.Hour).Format(time.RFC3339))
	case !until.After(now):
		return "", catalog.Errorf(catalog.EveryoneWithoutEnd, "%s is not in the future; the time here is %s", until.UTC().Format(time.RFC3339), now.Format(time.RFC3339))
	}
	return mode + ":" + until.UTC().Format(time.RFC3339), nil
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
