package site

import (
	"slices"
	"strings"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// Caller is who registers or asks for a token, as the edge has proved it.
type Caller struct {
	proof.Proof
	// Ceiling is the highest level that the route gives, whatever the proof: LevelKnown on ccm_system_altauth (C36).
	// The zero value gives nothing, so a route that forgets it is a route that approves nobody.
	Ceiling proof.Level
	// Direct is true when no gateway and connector stand between.
	Direct bool
}

// evidence is what the approval rules see of a registration.
type evidence struct {
	method      proof.Method
	bulkID      string
	weakKey     bool     // RSA below 2048 bits or a SHA-1 signature
	refused     *refusal // a blocked or rejected device that this one may be
	ceiling     proof.Level
	approval    ApprovalMode // in force now
	ticket      *proof.Ticket
	realm       proof.Realm // of the ticket
	netbios     string
	fqdn        string
	cloud       *proof.Cloud // of an Entra token
	certificate *certificate
}

// rule is one line of the approval table: the first that matches decides.
type rule struct {
	name   string
	match  func(evidence) bool
	status ccm.ApprovalStatus
	level  proof.Level
	code   catalog.Code // of the event, where a proof was there and did not suffice
}

// rules is design decision 2 as a table. A rule may only give what its proof supports; the ceiling of the route is applied after.
func rules() []rule {
	method := func(m proof.Method) func(evidence) bool { return func(e evidence) bool { return e.method == m } }
	kerberos := func(finding catalog.Code) func(evidence) bool {
		return func(e evidence) bool { return e.method == proof.Kerberos && e.ticket != nil && e.account() == finding }
	}
	return []rule{
		{ruleRefusedDevice, func(e evidence) bool { return e.refused != nil }, ccm.ApprovalNone, proof.LevelKnown, ""},
		{"weak key", func(e evidence) bool { return e.weakKey }, ccm.ApprovalNone, proof.LevelKnown, ""},
		{"manual approval", func(e evidence) bool { return e.approval == ApproveManually && e.method != proof.PKICertificate }, ccm.ApprovalNone, proof.LevelKnown, ""},
		{"bulk registration token", method(proof.BulkToken), ccm.ApprovalApproved, proof.LevelManaged, ""},
		{"PKI certificate", func(e evidence) bool {
			return e.method == proof.PKICertificate && e.certificate != nil && e.certificate.held
		}, ccm.ApprovalNotApplicable, proof.LevelManaged, ""},
		{"Entra", func(e evidence) bool { return e.method == proof.Entra && e.cloud != nil }, ccm.ApprovalEntra, proof.LevelManaged, ""},
		{"Kerberos, trusted realm, own computer account", kerberos(""), ccm.ApprovalApproved, proof.LevelManaged, ""},
		{ruleEveryone, func(e evidence) bool { return e.approval == ApproveEveryone && forEveryone(e.method) }, ccm.ApprovalApproved, proof.LevelManaged, ""},
		{"Kerberos, but a user's account", kerberos(catalog.RegistrationUserAccount), ccm.ApprovalNone, proof.LevelKnown, catalog.RegistrationUserAccount},
		{"Kerberos, but the account of another computer", kerberos(catalog.RegistrationOtherComputer), ccm.ApprovalNone, proof.LevelKnown, catalog.RegistrationOtherComputer},
		{"Kerberos, but a DNS name outside the realm", kerberos(catalog.RegistrationOutsideRealm), ccm.ApprovalNone, proof.LevelKnown, catalog.RegistrationOutsideRealm},
		{"PKI certificate, but only a gateway saw its key", method(proof.PKICertificate), ccm.ApprovalNone, proof.LevelKnown, ""},
		{"self-signed key only", func(evidence) bool { return true }, ccm.ApprovalNone, proof.LevelKnown, ""},
	}
}

// ruleRefusedDevice stands in the table for what [refusal.String] says.
const ruleRefusedDevice = "a device that a person refused"

// ruleEveryone approves without a proof.
const ruleEveryone = "everyone, for a time"

// unproved reports whether no proof stands behind the approval.
func (a Approval) unproved() bool { return a.By == actorSite && a.Rule == ruleEveryone }

// forEveryone reports whether a method is one that devices register with.
func forEveryone(m proof.Method) bool {
	return m != proof.ConnectorCertificate && slices.Contains(proof.Methods(), m)
}

// account judges whether the ticket's account is that of the computer that registers: "" when it is, else the code that says why not.
func (e evidence) account() catalog.Code {
	code, _ := accountFits(e.ticket.Account, e.realm, e.netbios, e.fqdn)
	return code
}

// accountFits judges whether an account is that of the computer with these names: "" when it is, else the code and what does not fit. The principal of
// a ticket is the evidence, never a name that a computer claims (C69): the claimed names must fit it, label by label, in ASCII.
func accountFits(account string, realm proof.Realm, netbios, fqdn string) (misfit catalog.Code, why string) {
	name, computer := strings.CutSuffix(account, "$")
	if !computer || name == "" {
		return catalog.RegistrationUserAccount, "the account is no computer's"
	}
	if !sameName(name, netbios) {
		return catalog.RegistrationOtherComputer, "the NetBIOS name is not the account's"
	}
	if fqdn == "" {
		return "", ""
	}
	host, domain, _ := strings.Cut(strings.TrimSuffix(fqdn, "."), ".")
	if !shortens(name, host) {
		return catalog.RegistrationOutsideRealm, "the first label of the DNS name is not the account's name, and does not begin with it as a longer host name would"
	}
	if !slices.ContainsFunc(realm.Suffixes, func(suffix string) bool { return sameName(suffix, domain) }) {
		return catalog.RegistrationOutsideRealm, "the domain of the DNS name does not belong to the realm " + realm.Name
	}
	return "", ""
}

// netbiosLength is where Windows cuts a host name off to make of it the NetBIOS name and the name of the account.
const netbiosLength = 15

// shortens reports whether name is the NetBIOS name of a host: its whole label, or the first 15 characters of a longer one.
func shortens(name, host string) bool {
	if len(name) == netbiosLength && len(host) > netbiosLength {
		host = host[:netbiosLength]
	}
	return sameName(name, host)
}

// sameName compares names without regard to the case of ASCII letters. Anything else must be equal, so that no letter of another alphabet passes for one.
func sameName(a, b string) bool { return a != "" && upperASCII(a) == upperASCII(b) }

func upperASCII(name string) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' {
			return r - ('a' - 'A')
		}
		return r
	}, name)
}

// identity names what a caller has proved to be, apart from its key: an account, an Entra device, or the one computer that a certificate is for. own is
// true when that is this computer and nobody else. A user is no computer, so a user's token gives no identity; a route that gives known at most gives
// none by token or certificate either.
func (e evidence) identity() (name string, own bool) {
	switch {
	case e.method == proof.Kerberos && e.ticket != nil:
		return accountName(e.ticket), e.account() == ""
	case e.ceiling < proof.LevelManaged:
		return "", false
	case e.method == proof.Entra && e.cloud != nil && e.cloud.Kind == proof.CloudDevice && e.cloud.Device != "":
		return identityEntra + e.cloud.Device + "@" + e.cloud.Tenant, true
	case e.method == proof.PKICertificate && e.certificate != nil && e.certificate.held && e.certificate.issuer != "" && e.certificate.of(e.netbios, e.fqdn):
		return identityCertificate + e.certificate.name() + "@" + e.certificate.issuer, true
	}
	return "", false
}

func accountName(t *proof.Ticket) string { return upperASCII(t.Account) + "@" + t.Realm }

// computer is the computer that a caller's proof names, whatever the caller calls itself: a person's no to that computer holds for whoever proves to be
// it. The name of a device in a user's token counts here too. "" when the proof names none.
func (e evidence) computer() string {
	switch {
	case e.method == proof.Kerberos && e.ticket != nil && strings.HasSuffix(e.ticket.Account, "$"):
		return accountName(e.ticket)
	case e.method == proof.Entra && e.cloud != nil && e.cloud.Device != "":
		return identityEntra + e.cloud.Device + "@" + e.cloud.Tenant
	case e.method == proof.PKICertificate && e.certificate != nil && e.certificate.issuer != "" && e.certificate.name() != "":
		return identityCertificate + e.certificate.name() + "@" + e.certificate.issuer
	}
	return ""
}

// decide returns the approval that the evidence supports. It is pure: same evidence, same answer.
func decide(e evidence) rule {
	for _, r := range rules() {
		if !r.match(e) {
			continue
		}
		if r.level > e.ceiling {
			r.status, r.level, r.name = ccm.ApprovalNone, min(e.ceiling, proof.LevelKnown), r.name+", limited by the route"
		}
		return r
	}
	return rule{name: "no rule"}
}

// stronger reports whether a fresh decision should replace an approval: never to lower one, never over a person's decision.
func stronger(old Approval, level proof.Level) bool {
	return old.By == actorSite && level > old.Level
}

// replaces reports whether a fresh decision takes the place of an approval: when it is stronger, or as strong and by a proof where there was none.
func replaces(old, fresh Approval) bool {
	return stronger(old, fresh.Level) || old.unproved() && !fresh.unproved() && fresh.Level >= old.Level
}

// actorSite is who decides when no person does.
const actorSite = "site"
