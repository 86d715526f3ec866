package kerberos

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"postern/catalog"
	"postern/diag"
)

// account is what the directory says of one that owns a service name.
type account struct {
	Name     string // sAMAccountName
	DN       string
	Computer bool
	Disabled bool
	Names    []string // servicePrincipalName
	Kinds    *int     // msDS-SupportedEncryptionTypes, nil when absent
	Unasked  bool     // Kinds was not asked: only the account's own domain has it
}

// trust is one trustedDomain object of a domain (MS-ADTS 6.1.6.7).
type trust struct {
	Partner    string // DNS name
	Kind       int    // trustType
	Attributes int    // trustAttributes
	Inwards    bool   // trustDirection: the partner's computers come here, and ours do not get there
}

// The values of the attributes that matter here (MS-ADTS 6.1.6.7.9, 6.1.6.7.12 and 6.1.6.7.15; MS-KILE 2.2.7).
const (
	trustMIT          = 3
	trustForest       = 0x8
	trustWithinForest = 0x20
	trustInbound      = 1 // the partner trusts this domain
	aesKinds          = 8 | 16
)

// what says in a word which kind of trust it is.
func (t trust) what() string {
	switch {
	case t.Kind == trustMIT:
		return "realm trust (not Windows)"
	case t.Attributes&trustWithinForest != 0:
		return "trust within the forest"
	case t.Attributes&trustForest != 0:
		return "forest trust"
	}
	return "external trust"
}

// judgeOwners says who owns the name that clients ask tickets for. Active Directory
// gives a ticket for HTTP/host from the account with that name, and from the one with
// HOST/host when there is none (S0).
func judgeOwners(host string, accounts []account, accepted *bool) []diag.Finding {
	exact := owners(accounts, "HTTP/"+host)
	if len(exact) == 0 {
		return judgeHostOwners(host, owners(accounts, "HOST/"+host))
	}
	if len(exact) > 1 {
		return []diag.Finding{diag.Found(diag.Fail, catalog.CheckNameDuplicate, "HTTP/%s is on\n%s", host, listAccounts(exact))}
	}
	owner := exact[0]
	findings := judgeOwner(host, owner, owners(accounts, "HOST/"+host), accepted)
	findings = append(findings, judgeCase("HTTP/"+host, owner)...)
	return append(findings, judgeKinds(owner)...)
}

// judgeHostOwners is the case without an HTTP name: the computer's HOST name serves.
func judgeHostOwners(host string, hosts []account) []diag.Finding {
	switch len(hosts) {
	case 0:
		return []diag.Finding{diag.Found(diag.Fail, catalog.CheckServiceUnknown, "the directory has neither HTTP/%s nor HOST/%s", host, host)}
	case 1:
		owner := hosts[0]
		good := diag.Good("one account owns the service name", "%s has HOST/%s, which serves for HTTP", owner.Name, host)
		return append([]diag.Finding{good}, judgeKinds(owner)...)
	}
	return []diag.Finding{diag.Found(diag.Fail, catalog.CheckNameDuplicate, "HOST/%s is on\n%s", host, listAccounts(hosts))}
}

// judgeOwner judges the one account that owns HTTP/host. One that is not the host's own
// computer is right for a service account and wrong for another web service; whether the
// server took our ticket tells which.
func judgeOwner(host string, owner account, hosts []account, accepted *bool) []diag.Finding {
	var findings []diag.Finding
	if owner.Disabled {
		findings = append(findings, diag.Found(diag.Fail, catalog.CheckAccountDisabled, "%s, which owns HTTP/%s, is disabled", owner.Name, host))
	}
	computers := slices.DeleteFunc(slices.Clone(hosts), func(a account) bool { return strings.EqualFold(a.DN, owner.DN) })
	words := fmt.Sprintf("HTTP/%s is on %s", host, describeAccount(owner))
	if len(computers) > 0 {
		words += fmt.Sprintf(", HOST/%s on %s", host, describeAccount(computers[0]))
	}
	refused := accepted != nil && !*accepted
	switch {
	case owner.Computer && len(computers) == 0 && !refused:
		return append(findings, diag.Good("one account owns the service name", "%s", words))
	case owner.Computer && len(computers) == 0: // its own key, and an old one, or another computer's
		return append(findings, diag.Found(diag.Warn, catalog.CheckNameOnUser, "%s; the server could not use a ticket for it", words))
	case accepted != nil && *accepted:
		return append(findings, diag.Good("one account owns the service name, and the server has its key", "%s", words))
	case refused:
		return append(findings, diag.Found(diag.Fail, catalog.CheckNameOnUser, "%s; the server could not use a ticket for it", words))
	}
	return append(findings, diag.Found(diag.Warn, catalog.CheckNameOnUser, "%s; whether the server has that account's key was not tried", words))
}

func judgeCase(name string, owner account) []diag.Finding {
	if slices.Contains(owner.Names, name) {
		return nil
	}
	for _, registered := range owner.Names {
		if strings.EqualFold(registered, name) {
			finding := diag.Found(diag.Pass, catalog.CheckNameCase, "%s has %s", owner.Name, registered)
			finding.Remedy = nil
			return []diag.Finding{finding}
		}
	}
	return nil
}

func judgeKinds(owner account) []diag.Finding {
	if owner.Unasked {
		return []diag.Finding{diag.NotLooked("whether %s says that it can read AES: ask a domain controller of %s, with --ldap", owner.Name, domainOf(owner.DN))}
	}
	if owner.Kinds != nil && *owner.Kinds&aesKinds != 0 {
		return nil
	}
	value := "no msDS-SupportedEncryptionTypes"
	if owner.Kinds != nil {
		value = fmt.Sprintf("msDS-SupportedEncryptionTypes %d", *owner.Kinds)
	}
	return []diag.Finding{diag.Found(diag.Warn, catalog.CheckAESMissing, "%s has %s", owner.Name, value)}
}

func owners(accounts []account, name string) (found []account) {
	for _, a := range accounts {
		if slices.ContainsFunc(a.Names, func(registered string) bool { return strings.EqualFold(registered, name) }) {
			found = append(found, a)
		}
	}
	slices.SortFunc(found, func(a, b account) int { return cmp.Compare(a.DN, b.DN) })
	return found
}

func describeAccount(a account) string {
	kind := "user account"
	if a.Computer {
		kind = "computer account"
	}
	return fmt.Sprintf("%s %s (%s)", kind, a.Name, a.DN)
}

func listAccounts(accounts []account) string {
	lines := make([]string, 0, len(accounts))
	for _, a := range accounts[:min(len(accounts), 20)] {
		lines = append(lines, describeAccount(a))
	}
	return strings.Join(lines, "\n")
}

// judgeTrusts says how the domain that was asked, own, and the domain of the management
// point's host are joined.
func judgeTrusts(own, host string, trusts []trust) []diag.Finding {
	if under(host, own) && !slices.ContainsFunc(trusts, func(t trust) bool { return longer(t.Partner, own) && under(host, t.Partner) }) {
		return nil // the same domain: no trust is needed
	}
	best := -1
	for i, t := range trusts {
		if under(host, t.Partner) && (best < 0 || len(t.Partner) > len(trusts[best].Partner)) {
			best = i
		}
	}
	if best < 0 {
		return judgeIndirect(own, host, trusts)
	}
	found := trusts[best]
	words := fmt.Sprintf("%s and %s are joined by: %s", own, found.Partner, found.what())
	if found.what() == "external trust" {
		return []diag.Finding{diag.Found(diag.Fail, catalog.CheckExternalTrust, "%s (trustAttributes %#x)", words, found.Attributes)}
	}
	if found.Inwards {
		return []diag.Finding{diag.Found(diag.Fail, catalog.CheckNoReferral, "%s, one way only: %s does not trust the computers of %s", words, found.Partner, own)}
	}
	return []diag.Finding{diag.Good("a trust that Kerberos follows leads to the management point's domain", "%s", words)}
}

// judgeIndirect is the case without a trust of its own to the host's domain: through
// the forest, or through a forest trust of its root, there may be a way all the same.
func judgeIndirect(own, host string, trusts []trust) []diag.Finding {
	var partners []string
	for _, t := range trusts {
		partners = append(partners, fmt.Sprintf("%s (%s)", t.Partner, t.what()))
	}
	slices.Sort(partners)
	list := cmp.Or(strings.Join(partners, ", "), "nobody")
	return []diag.Finding{diag.NotLooked("%s has no trust of its own to the domain of %s; it has with %s. The way may go through one of those: the check of the ticket shows it", own, host, list)}
}

func longer(a, b string) bool { return len(a) > len(b) }

// judgeQuota: a quota above 0 lets every user make a computer account (E015).
func judgeQuota(own string, quota *int) []diag.Finding {
	if quota == nil || *quota == 0 {
		return nil
	}
	return []diag.Finding{diag.Found(diag.Warn, catalog.CheckMachineQuota, "%s: ms-DS-MachineAccountQuota is %d", own, *quota)}
}
