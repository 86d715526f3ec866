package site

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"strconv"
	"time"

	"postern/catalog"
	"postern/ccm"
)

// ApprovalMode is the site setting for devices that prove more than their own key (product.md 2.7).
type ApprovalMode string

// The approval modes, as the field names them.
const (
	ApproveManually       ApprovalMode = "manual"
	ApproveTrustedDomains ApprovalMode = "trusted-domains" // the default
)

// Settings are the site's settings that devices feel. They lie in the store, so that every node has the same.
type Settings struct {
	SiteCode    ccm.SiteCode
	Approval    ApprovalMode
	LegacyKeys  bool // accept RSA below 2048 bits and SHA-1 signatures, at level known (C75)
	AES256      bool // EnvelopedData with AES-256-CBC instead of 3DES; oldest clients cannot read it
	BuildNumber string
}

// Names of the settings in the store.
const (
	settingSiteCode  = "site.code"
	settingHierarchy = "site.hierarchy"
	settingApproval  = "approval.mode"
	settingLegacy    = "registration.legacy-keys"
	settingAES256    = "policy.aes256"
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
	settings = Settings{SiteCode: ccm.SiteCode(code), Approval: ApproveTrustedDomains, BuildNumber: buildNumber}
	mode, err := optional(tx, settingApproval)
	if err != nil {
		return settings, "", err
	}
	if mode != "" {
		settings.Approval = ApprovalMode(mode)
	}
	if settings.LegacyKeys, err = optionalBool(tx, settingLegacy); err != nil {
		return settings, "", err
	}
	settings.AES256, err = optionalBool(tx, settingAES256)
	return settings, hierarchy, err
}

func optional(tx Tx, name string) (string, error) {
	value, err := tx.Setting(name)
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	return value, err
}

func optionalBool(tx Tx, name string) (bool, error) {
	value, err := optional(tx, name)
	if err != nil || value == "" {
		return false, err
	}
	return strconv.ParseBool(value)
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
		{settingApproval, "manual or trusted-domains (default): who is approved without a person"},
		{settingLegacy, "true or false (default): accept keys and signatures of 2007, at level known"},
		{settingAES256, "true or false (default): seal secrets with AES-256 instead of 3DES; the oldest clients cannot read that"},
	}
}

// Set changes a setting of the site.
func (s *Site) Set(ctx context.Context, name, value, by string) error {
	if err := checkSetting(name, value); err != nil {
		return err
	}
	err := s.store.Update(ctx, func(tx Tx) error {
		if err := tx.PutSetting(name, value); err != nil {
			return err
		}
		return s.trust(tx, by, "setting.set", name, map[string]string{"value": value})
	})
	if err != nil {
		return err
	}
	return s.Refresh(ctx) // the site state holds no settings, so its epoch stays
}

func checkSetting(name, value string) error {
	_, notBool := strconv.ParseBool(value)
	switch name {
	case settingApproval:
		if m := ApprovalMode(value); m != ApproveManually && m != ApproveTrustedDomains {
			return catalog.Errorf(catalog.InvalidArgument, "%s is %q; give %s or %s", name, value, ApproveManually, ApproveTrustedDomains)
		}
	case settingLegacy, settingAES256:
		if notBool != nil {
			return catalog.Errorf(catalog.InvalidArgument, "%s is %q; give true or false", name, value)
		}
	default:
		return catalog.Errorf(catalog.InvalidArgument, "there is no setting %q; `postern site set --help` lists them", name)
	}
	return nil
}
