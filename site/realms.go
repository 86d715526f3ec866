package site

import (
	"strings"

	"postern/catalog"
	"postern/proof"
)

// Budgets of the list of trusted realms.
const (
	maxRealms    = 100
	maxSuffixes  = 100
	maxRealmName = 253
)

// ParseRealms reads the setting approval.trusted-realms: REALM[=DOMAIN][;dns-suffix...] with commas between. What is left out is what is usual
// ([proof.NewRealm]). Names are ASCII labels, so that no two of them look alike (C68). Errors have the code TrustedRealmName.
func ParseRealms(text string) ([]proof.Realm, error) {
	var realms []proof.Realm
	for _, item := range splitList(text) {
		realm, err := parseRealm(item)
		if err != nil {
			return nil, err
		}
		for _, other := range realms {
			if strings.EqualFold(other.Name, realm.Name) {
				return nil, catalog.Errorf(catalog.TrustedRealmName, "%s is there twice", realm.Name)
			}
		}
		realms = append(realms, realm)
	}
	if len(realms) > maxRealms {
		return nil, catalog.Errorf(catalog.TrustedRealmName, "%d realms; at most %d are allowed", len(realms), maxRealms)
	}
	return realms, nil
}

func parseRealm(item string) (proof.Realm, error) {
	parts := strings.Split(item, ";")
	name, domain, given := strings.Cut(strings.TrimSpace(parts[0]), "=")
	if !dnsLabels(name) {
		return proof.Realm{}, catalog.Errorf(catalog.TrustedRealmName, "%+.60q is not the name of a realm", name)
	}
	realm := proof.NewRealm(name)
	if given {
		if !dnsLabels(domain) || strings.Contains(domain, ".") {
			return realm, catalog.Errorf(catalog.TrustedRealmName, "%+.60q is not the short name of %s", domain, name)
		}
		realm.Domain = strings.ToUpper(domain)
	}
	if len(parts) == 1 {
		return realm, nil
	}
	if len(parts) > maxSuffixes {
		return realm, catalog.Errorf(catalog.TrustedRealmName, "%s has more than %d DNS suffixes", name, maxSuffixes)
	}
	realm.Suffixes = nil
	for _, suffix := range parts[1:] {
		suffix = strings.ToLower(strings.Trim(strings.TrimSpace(suffix), "."))
		if !dnsLabels(suffix) {
			return realm, catalog.Errorf(catalog.TrustedRealmName, "%+.60q is not a DNS suffix of %s", suffix, name)
		}
		realm.Suffixes = append(realm.Suffixes, suffix)
	}
	return realm, nil
}

// dnsLabels reports whether a name is labels of ASCII letters, digits and hyphens with dots between.
func dnsLabels(name string) bool {
	if name == "" || len(name) > maxRealmName {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, func(r rune) bool { return !labelRune(r) }) {
			return false
		}
	}
	return true
}

func labelRune(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-'
}

// writeRealms writes realms as [ParseRealms] reads them, without what is usual.
func writeRealms(realms []proof.Realm) string {
	items := make([]string, 0, len(realms))
	for _, realm := range realms {
		usual, item := proof.NewRealm(realm.Name), realm.Name
		if realm.Domain != usual.Domain {
			item += "=" + realm.Domain
		}
		if len(realm.Suffixes) != 1 || realm.Suffixes[0] != usual.Suffixes[0] {
			item += ";" + strings.Join(realm.Suffixes, ";")
		}
		items = append(items, item)
	}
	return strings.Join(items, ",")
}
