package site

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/catalog"
	"postern/token"
)

// settingKind is how a setting is written by a person, kept in the store and read from there.
type settingKind struct {
	SettingName
	canonical func(value string, now time.Time) (string, error) // what is kept of what a person wrote
	take      func(s *Settings, kept string) error              // "" is the default
	write     func(s Settings) string                           // as canonical would take it
}

// settingKinds is every setting that a person may change, in the order in which they are listed.
func settingKinds() []settingKind {
	return []settingKind{
		{SettingName{settingApproval, "manual, trusted-domains (default), or everyone with its end, as everyone:8h or everyone:2026-12-01T18:00:00Z: who is approved without a person"},
			canonicalMode, takeMode, writeMode},
		{SettingName{settingRealms, "REALM[=DOMAIN][;dns-suffix...],...: Kerberos realms, besides those of the keytab, whose computers are trusted"},
			timeless(func(value string) (string, error) { realms, err := ParseRealms(value); return writeRealms(realms), err }),
			func(s *Settings, kept string) (err error) { s.Realms, err = ParseRealms(kept); return err },
			func(s Settings) string { return writeRealms(s.Realms) }},
		choice(settingConflicts, "automatic (default) or manual: whether a device that may be a twin waits for a person",
			func(s *Settings) *ConflictResolution { return &s.Conflicts }, ResolveAutomatically, ResolveManually),
		{SettingName{settingShared, "ID,ID,...: hardware ids, SMBIOS ids and MAC addresses that many computers have, never taken for one computer"},
			timeless(canonicalShared),
			func(s *Settings, kept string) error { s.SharedHardware = splitList(kept); return nil },
			func(s Settings) string { return strings.Join(s.SharedHardware, ",") }},
		yesNo(settingLegacy, "true or false (default): accept keys and signatures of 2007, at level known", func(s *Settings) *bool { return &s.LegacyKeys }, false),
		yesNo(settingAES256, "true or false (default): seal secrets with AES-256 instead of 3DES; the oldest clients cannot read that", func(s *Settings) *bool { return &s.AES256 }, false),
		{SettingName{settingAlgorithm, "es256 (default) or rs256: signature of CCM and self-prove tokens by keys made from now on; `postern key rotate ccm` makes one"},
			timeless(func(value string) (string, error) {
				return oneOf(settingAlgorithm, strings.ToLower(value), strings.ToLower(token.AlgorithmES256), strings.ToLower(token.AlgorithmRS256))
			}),
			func(s *Settings, kept string) error {
				s.TokenAlgorithm = strings.ToUpper(cmp.Or(kept, token.AlgorithmES256))
				return nil
			},
			func(s Settings) string { return strings.ToLower(s.TokenAlgorithm) }},
		{SettingName{settingRotation, "bulk=DAYS,ccm=DAYS,self-prove=DAYS (default bulk=0,ccm=30,self-prove=90): after how many days a token key is replaced by itself; 0 is never, until shortly before its end"},
			timeless(func(value string) (string, error) {
				rotation, err := ParseKeyRotation(value)
				return rotation.String(), err
			}),
			func(s *Settings, kept string) (err error) { s.KeyRotation, err = ParseKeyRotation(kept); return err },
			func(s Settings) string { return s.KeyRotation.String() }},
		yesNo(settingDevices, "true or false (default): a device enrols with a device's token of its tenant only; S2's fallback to a user's token is refused (P961)",
			func(s *Settings) *bool { return &s.DeviceTokens }, false),
		yesNo(settingLoopback, "true or false (default): a tenant's issuer may be http on a loopback address, for tests", func(s *Settings) *bool { return &s.LoopbackHTTP }, false),
		days(settingSelfProve, "2 to 90 (default 90): days that a self-prove token lives; a device away for longer comes back by its registered key alone",
			func(s *Settings) *int { return &s.SelfProveDays }, defaultSelfProveDays, minSelfProveDays, maxSelfProveDays),
		days(settingRenew, "1 and up, less than the life (default 30): age in days at which clients renew their self-prove token",
			func(s *Settings) *int { return &s.SelfProveRenewDays }, defaultRenewDays, 1, maxSelfProveDays-1),
		{SettingName{settingClock, "now: the clock of this machine is right although it says less than before (P030); see docs/operations.md, Absence"},
			canonicalClock,
			func(s *Settings, kept string) error { s.ClockAccepted = kept; return nil },
			func(s Settings) string { return s.ClockAccepted }},
		yesNo(settingReturn, "true (default) or false: a device whose tokens have ended comes back from the internet by its registered key alone", func(s *Settings) *bool { return &s.Return }, true),
		choice(settingLift, "automatic (default) or manual: whether a device that came back after a long absence leaves quarantine by proving itself afresh, or by a person",
			func(s *Settings) *Returns { return &s.ReturnLift }, LiftAutomatically, LiftManually),
	}
}

func settingNamed(name string) (settingKind, bool) {
	all := settingKinds()
	at := slices.IndexFunc(all, func(k settingKind) bool { return k.Name == name })
	if at < 0 {
		return settingKind{}, false
	}
	return all[at], true
}

func timeless(canonical func(value string) (string, error)) func(string, time.Time) (string, error) {
	return func(value string, _ time.Time) (string, error) { return canonical(value) }
}

// yesNo is a setting that is true or false.
func yesNo(name, meaning string, of func(*Settings) *bool, otherwise bool) settingKind {
	return settingKind{SettingName{name, meaning},
		timeless(func(value string) (string, error) {
			on, err := strconv.ParseBool(value)
			if err != nil {
				return "", catalog.Errorf(catalog.InvalidArgument, "%s is %q; give true or false", name, value)
			}
			return strconv.FormatBool(on), nil
		}),
		func(s *Settings, kept string) (err error) {
			*of(s), err = strconv.ParseBool(cmp.Or(kept, strconv.FormatBool(otherwise)))
			return err
		},
		func(s Settings) string { return strconv.FormatBool(*of(&s)) },
	}
}

// choice is a setting with few values, the first of which is the default.
func choice[T ~string](name, meaning string, of func(*Settings) *T, values ...T) settingKind {
	allowed := make([]string, 0, len(values))
	for _, v := range values {
		allowed = append(allowed, string(v))
	}
	return settingKind{SettingName{name, meaning},
		timeless(func(value string) (string, error) { return oneOf(name, value, allowed...) }),
		func(s *Settings, kept string) error { *of(s) = T(cmp.Or(kept, allowed[0])); return nil },
		func(s Settings) string { return string(*of(&s)) },
	}
}

// days is a setting that is a number of days.
func days(name, meaning string, of func(*Settings) *int, otherwise, least, most int) settingKind {
	return settingKind{SettingName{name, meaning},
		timeless(func(value string) (string, error) { return canonicalDays(name, value, least, most) }),
		func(s *Settings, kept string) (err error) {
			*of(s), err = strconv.Atoi(cmp.Or(kept, strconv.Itoa(otherwise)))
			return err
		},
		func(s Settings) string { return strconv.Itoa(*of(&s)) },
	}
}

func oneOf(name, value string, allowed ...string) (string, error) {
	if slices.Contains(allowed, value) {
		return value, nil
	}
	return "", catalog.Errorf(catalog.InvalidArgument, "%s is %q; give %s", name, value, strings.Join(allowed, " or "))
}

func takeMode(s *Settings, kept string) (err error) {
	mode, until, _ := strings.Cut(kept, ":")
	s.Approval = ApprovalMode(cmp.Or(mode, string(ApproveTrustedDomains)))
	if s.Approval == ApproveEveryone {
		s.EveryoneUntil, err = time.Parse(time.RFC3339, until)
	}
	return err
}

func writeMode(s Settings) string {
	if s.Approval == ApproveEveryone {
		return string(s.Approval) + ":" + s.EveryoneUntil.Format(time.RFC3339)
	}
	return string(s.Approval)
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
