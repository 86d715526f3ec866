package site

import (
	"strings"
	"time"

	"postern/proof"
)

// outcome is what follows from two registrations that look like one computer.
type outcome string

// The outcomes (docs/decisions/0011-twins.md).
const (
	rotate     outcome = "rotate"     // the client id moves to the new key; the former key is refused for ever
	supersede  outcome = "supersede"  // the existing record is obsolete; the newcomer keeps its own client id and approval
	separate   outcome = "separate"   // both stay, each with what its own proof gave
	hold       outcome = "hold"       // the newcomer stays at level known until a person decides
	noted      outcome = "noted"      // nothing changes; it is remembered, so that the next time is seen
	quarantine outcome = "quarantine" // the device falls back to level known until a person decides
)

// twin is what the rules see of a newcomer and of the known device that it resembles.
type twin struct {
	kind     ConflictKind
	known    bool        // the newcomer was registered before
	weak     bool        // its key or signature is weak
	level    proof.Level // that its own proof gives
	refused  bool        // a person refused the existing device, and but for that the newcomer would be approved
	flaps    bool        // the newcomer's identity goes from key to key: see [maxReplaced]
	identity string      // see [Device.Proved], when its own proof says that it is this computer and nobody else; else ""
	realm    proof.Realm // of the account that it has proved
	hint     bool        // it brought a hint that verifies with the existing device's key
	existing Device
	manual   bool // conflict.resolution
}

// sameIdentity: the newcomer has proved to be what the existing device's key had proved to be.
func (t twin) sameIdentity() bool { return t.identity != "" && t.identity == t.existing.Proved }

// unproved: nothing but its own key stands behind the existing device, and it has both names that the newcomer's account proves: a NetBIOS name alone
// may be that of another computer in another realm. An Entra device and a certificate prove no name of a computer.
func (t twin) unproved() bool {
	e := t.existing
	if !accountIdentity(t.identity) || e.Approval.By != actorSite || e.Approval.Level > proof.LevelKnown && !e.Approval.unproved() || e.Record.FQDName == "" {
		return false
	}
	account, _, _ := strings.Cut(t.identity, "@")
	misfit, _ := accountFits(account, t.realm, e.Record.NetbiosName, e.Record.FQDName)
	return misfit == ""
}

// rotates: the hint says that the former key's holder wanted this, and the newcomer's own proof stands behind it. The hint alone moves nothing: it
// signs neither the new key nor a time, so whoever overheard it could send it.
func (t twin) rotates() bool {
	e := t.existing
	return t.hint && !t.known && t.level >= proof.LevelManaged && t.level >= e.Approval.Level && e.Approval.By == actorSite && e.Conflict == "" &&
		(e.Proved == "" || t.sameIdentity())
}

// twinRule is one line of the table for two keys: the first that matches decides.
type twinRule struct {
	name  string
	match func(twin) bool
	then  outcome
}

func twinRules() []twinRule {
	untouched := func(t twin) bool { return t.weak || t.existing.Blocked() || t.existing.Rejected() }
	return []twinRule{
		{ruleRefused, func(t twin) bool { return t.refused }, hold},
		{"a blocked or rejected device, or a weak key; a person decides", func(t twin) bool { return untouched(t) && t.manual && !t.known }, hold},
		{"a blocked or rejected device, or a weak key; nothing moves", untouched, separate},
		{"hint by the former key, and a proof as good as its own", twin.rotates, rotate},
		{ruleFlaps, func(t twin) bool { return t.flaps && t.sameIdentity() }, hold},
		{"proved by the same identity", twin.sameIdentity, supersede},
		{"proved, and the other is known by its name only", twin.unproved, supersede},
		{"a known device asks for another's place", func(t twin) bool { return t.known }, separate},
		{"no proof tells them apart; a person decides", func(t twin) bool { return t.manual }, hold},
		{"no proof tells them apart; each is a device of its own", func(twin) bool { return true }, separate},
	}
}

// Rules by which only a person lets the newcomer go on: until then it takes nobody's place, whatever it proves.
const (
	ruleRefused = "a person refused the device that this one may be; a person decides"
	ruleFlaps   = "one identity goes from key to key; a person decides"
)

// firm reports whether a rule leaves all to a person.
func firm(rule string) bool { return rule == ruleRefused || rule == ruleFlaps }

// An identity that others have replaced so often in so short a time is held by several computers at once: copies of one disk share an account.
const (
	maxReplaced    = 3
	replacedWithin = time.Hour
)

// decideTwin says what follows. It is pure: same evidence, same answer.
func decideTwin(t twin) twinRule {
	return first(twinRules(), t, func(r twinRule) func(twin) bool { return r.match })
}

// moved is what the rules see of a device whose key came with another hardware id.
type moved struct {
	same    bool // by the account that the key had proved before
	earlier bool // its hardware id had changed before
	flip    bool // the new hardware id is a former one
	settled bool // a person has said that both are one computer
	manual  bool
}

// moveRule is one line of the table for one key: the first that matches decides.
type moveRule struct {
	name  string
	match func(moved) bool
	then  outcome
}

func moveRules() []moveRule {
	return []moveRule{
		{"a person said that it is one computer", func(m moved) bool { return m.settled }, noted},
		{"the former hardware id again: the key is on two computers", func(m moved) bool { return m.flip }, quarantine},
		{"other hardware, proved by the same identity", func(m moved) bool { return m.same && !m.earlier }, noted},
		{"other hardware; a person decides", func(m moved) bool { return m.manual }, quarantine},
		{"other hardware", func(moved) bool { return true }, separate},
	}
}

// decideMove says what follows. It is pure: same evidence, same answer.
func decideMove(m moved) moveRule {
	return first(moveRules(), m, func(r moveRule) func(moved) bool { return r.match })
}

func first[Rule, Fact any](rules []Rule, fact Fact, match func(Rule) func(Fact) bool) Rule {
	for _, r := range rules {
		if match(r)(fact) {
			return r
		}
	}
	return rules[len(rules)-1] // the last matches everything
}

// likeness lists what two records have in common, apart from ids that many computers share.
func (s Settings) likeness(one, other Device) string {
	var same []string
	if one.Proved != "" && one.Proved == other.Proved {
		same = append(same, "proved identity")
	}
	a, b := one.Record, other.Record
	for _, field := range []struct{ name, a, b string }{
		{"hardware id", a.HardwareID1, b.HardwareID1}, {"SMBIOS id", a.SMBIOSID, b.SMBIOSID}, {"MAC address", a.MACAddress, b.MACAddress},
	} {
		if field.a != "" && plainID(field.a) == plainID(field.b) && !s.shared(field.a) {
			same = append(same, field.name)
		}
	}
	if sameName(a.NetbiosName, b.NetbiosName) {
		same = append(same, "NetBIOS name")
	}
	if sameName(a.FQDName, b.FQDName) {
		same = append(same, "FQDN")
	}
	return strings.Join(same, ", ")
}
