package site

import (
	"fmt"
	"testing"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// TestC61_TwinTable walks every combination of what the rules see and checks what must never happen, whatever the order of the table's lines.
func TestC61_TwinTable(t *testing.T) {
	bools := []bool{false, true}
	levels := []proof.Level{proof.LevelNone, proof.LevelKnown, proof.LevelManaged, proof.LevelSecrets}
	n := 0
	for _, kind := range []ConflictKind{ConflictHardware, ConflictClientID, ConflictIdentity} {
		for _, known := range bools {
			for _, weak := range bools {
				for _, manual := range bools {
					for _, hint := range bools {
						for _, level := range levels[1:3] {
							for _, identity := range []string{"", "WK1$@CORP", "WK2$@CORP", "entra:a@t", "certificate:wk1.corp@ff"} {
								for _, existing := range existingDevices(levels) {
									x := twin{kind: kind, known: known, weak: weak, level: level, identity: identity, realm: proof.Realm{Name: "CORP", Suffixes: []string{"corp"}}, hint: hint, existing: existing, manual: manual}
									checkTwin(t, x)
									checkFirm(t, x)
									n++
								}
							}
						}
					}
				}
			}
		}
	}
	if n < 10000 {
		t.Errorf("only %d combinations", n)
	}
}

func existingDevices(levels []proof.Level) (list []Device) {
	for _, level := range levels {
		for _, proved := range []string{"", "WK1$@CORP", "WK9$@CORP", "entra:a@t", "certificate:wk1.corp@ff"} {
			for _, name := range []string{"wk1", "WK9"} {
				for _, by := range []string{actorSite, "anna"} {
					for _, mark := range []string{"", "blocked", "held", "obsolete"} {
						d := Device{ClientID: "GUID:X", Key: "k", Proved: proved, Record: Record{NetbiosName: name, FQDName: name + ".corp"}, Approval: Approval{Level: level, By: by}}
						switch mark {
						case "blocked":
							d.Block.Blocked = true
						case "held":
							d.Conflict = "c"
						case "obsolete":
							d.Obsolete.By = "GUID:Y"
						}
						list = append(list, d)
					}
				}
			}
		}
	}
	return list
}

func checkTwin(t *testing.T, x twin) {
	got := decideTwin(x)
	wrong := func(format string, arguments ...any) {
		t.Errorf("%+v: %s by %q: %s", x, got.then, got.name, fmt.Sprintf(format, arguments...))
	}
	moves := got.then == supersede || got.then == rotate
	e := x.existing
	if moves && (x.weak || e.Block.Blocked || e.Superseded() || e.Rejected()) {
		wrong("a weak key, or a blocked, obsolete or rejected device")
	}
	if got.then == supersede && x.identity == "" {
		wrong("without a proved account")
	}
	if got.then == supersede && x.identity != e.Proved && (e.Approval.Level > proof.LevelKnown || e.Record.FQDName != "wk1.corp" || e.Approval.By != actorSite) {
		wrong("another account's device, or one that is approved")
	}
	if got.then == supersede && !accountIdentity(x.identity) && x.identity != e.Proved {
		wrong("an Entra device or a certificate takes the place of another")
	}
	if got.then == rotate && (!x.hint || x.known || x.level < proof.LevelManaged || x.level < e.Approval.Level || e.Approval.By != actorSite || e.Proved != "" && e.Proved != x.identity) {
		wrong("the newcomer's own proof is not as good")
	}
	if x.known && got.then == hold {
		wrong("a known device is held for asking")
	}
	if !moves && !x.known && (got.then == hold) != x.manual {
		wrong("manual is %t", x.manual)
	}
	if x.hint && !x.weak && !x.known && !e.Blocked() && e.Conflict == "" && x.identity == "WK1$@CORP" && e.Proved == x.identity && x.level == proof.LevelManaged &&
		e.Approval.Level <= proof.LevelManaged && e.Approval.By == actorSite && got.then != rotate {
		wrong("an honest rotation is refused")
	}
}

// checkFirm: what a person refused, and an identity that goes from key to key, is left to a person, whoever the newcomer is.
func checkFirm(t *testing.T, x twin) {
	before := decideTwin(x)
	x.refused = true
	if got := decideTwin(x); got.then != hold || !firm(got.name) {
		t.Errorf("%+v: %s by %q", x, got.then, got.name)
	}
	x.refused, x.flaps = false, true
	if got := decideTwin(x); before.then == supersede && x.sameIdentity() && (got.then != hold || !firm(got.name)) {
		t.Errorf("%+v: %s by %q", x, got.then, got.name)
	}
}

func TestUnprovedComparesBothNames(t *testing.T) {
	corp := proof.Realm{Name: "CORP.EXAMPLE", Suffixes: []string{"corp.example", "branch.example"}}
	child := proof.Realm{Name: "CHILD.CORP.EXAMPLE", Suffixes: []string{"child.corp.example"}}
	for _, test := range []struct {
		name, identity string
		realm          proof.Realm
		netbios, fqdn  string
		want           outcome
	}{
		{"both names", "WK1$@CORP.EXAMPLE", corp, "wk1", "wk1.corp.example", supersede},
		{"another suffix of the realm", "WK1$@CORP.EXAMPLE", corp, "WK1", "wk1.branch.example.", supersede},
		{"the same account name in another realm", "WK1$@CHILD.CORP.EXAMPLE", child, "WK1", "wk1.corp.example", separate},
		{"another host of the domain", "WK1$@CORP.EXAMPLE", corp, "WK1", "wk2.corp.example", separate},
		{"a NetBIOS name only", "WK1$@CORP.EXAMPLE", corp, "WK1", "", separate},
		{"another NetBIOS name", "WK1$@CORP.EXAMPLE", corp, "WK2", "wk1.corp.example", separate},
		{"a realm that is not known", "WK1$@CORP.EXAMPLE", proof.Realm{}, "WK1", "wk1.corp.example", separate},
		{"a long name", "LONGCOMPUTERNAM$@CORP.EXAMPLE", corp, "LONGCOMPUTERNAM", "longcomputername-01.corp.example", supersede},
	} {
		x := twin{kind: ConflictHardware, level: proof.LevelManaged, identity: test.identity, realm: test.realm,
			existing: Device{Record: Record{NetbiosName: test.netbios, FQDName: test.fqdn}, Approval: Approval{Level: proof.LevelKnown, By: actorSite}}}
		if got := decideTwin(x); got.then != test.want {
			t.Errorf("%s: got %s by %q, want %s", test.name, got.then, got.name, test.want)
		}
	}
}

func TestMoveTable(t *testing.T) {
	for _, test := range []struct {
		name string
		m    moved
		want outcome
	}{
		{"first change by the same account", moved{same: true}, noted},
		{"first change by the same account, manual", moved{same: true, manual: true}, noted},
		{"first change without proof", moved{}, separate},
		{"first change without proof, manual", moved{manual: true}, quarantine},
		{"the former hardware again", moved{earlier: true, flip: true}, quarantine},
		{"the former hardware again, proved", moved{same: true, earlier: true, flip: true}, quarantine},
		{"a third hardware", moved{same: true, earlier: true}, separate},
		{"settled by a person", moved{earlier: true, flip: true, settled: true, manual: true}, noted},
	} {
		if got := decideMove(test.m); got.then != test.want {
			t.Errorf("%s: got %s by %q, want %s", test.name, got.then, got.name, test.want)
		}
	}
}

// TestC69_TheAccountIsThisComputer has the names that a registration may claim beside a ticket.
func TestC69_TheAccountIsThisComputer(t *testing.T) {
	corp := proof.Realm{Name: "CORP.EXAMPLE", Domain: "CORP", Suffixes: []string{"corp.example", "branch.example"}}
	const own = catalog.Code("")
	for _, test := range []struct {
		name, account, netbios, fqdn string
		want                         catalog.Code
	}{
		{"its own", "WK1$", "WK1", "wk1.corp.example", own},
		{"another case", "wk1$", "Wk1", "WK1.CORP.Example", own},
		{"a trailing dot", "WK1$", "WK1", "wk1.corp.example.", own},
		{"two trailing dots", "WK1$", "WK1", "wk1.corp.example..", catalog.RegistrationOutsideRealm},
		{"no FQDN", "WK1$", "WK1", "", own},
		{"the second suffix", "WK1$", "WK1", "wk1.branch.example", own},
		{"a user", "bob", "bob", "bob.corp.example", catalog.RegistrationUserAccount},
		{"a service", "HTTP/mp.corp.example", "WK1", "", catalog.RegistrationUserAccount},
		{"a dollar only", "$", "", "", catalog.RegistrationUserAccount},
		{"no account", "", "WK1", "", catalog.RegistrationUserAccount},
		{"another computer", "WK2$", "WK1", "wk1.corp.example", catalog.RegistrationOtherComputer},
		{"a name that begins alike", "WK1$", "WK11", "", catalog.RegistrationOtherComputer},
		{"no NetBIOS name", "WK1$", "", "wk1.corp.example", catalog.RegistrationOtherComputer},
		{"a dollar in the middle", "W$K1$", "WK1", "", catalog.RegistrationOtherComputer},
		{"Cyrillic К", "WК1$", "WK1", "", catalog.RegistrationOtherComputer},
		{"the Kelvin sign, which folds to k", "WK1$", "W\u212a1", "", catalog.RegistrationOtherComputer},
		{"the long s, which folds to s", "SRV$", "\u017fRV", "", catalog.RegistrationOtherComputer},
		{"an evil suffix", "WK1$", "WK1", "wk1.evilcorp.example", catalog.RegistrationOutsideRealm},
		{"a domain below", "WK1$", "WK1", "wk1.sub.corp.example", catalog.RegistrationOutsideRealm},
		{"a domain above", "WK1$", "WK1", "wk1.example", catalog.RegistrationOutsideRealm},
		{"the realm as part of a longer name", "WK1$", "WK1", "wk1.corp.example.evil.test", catalog.RegistrationOutsideRealm},
		{"another host", "WK1$", "WK1", "wk2.corp.example", catalog.RegistrationOutsideRealm},
		{"a bare host", "WK1$", "WK1", "wk1", catalog.RegistrationOutsideRealm},
		{"the domain itself", "WK1$", "WK1", "corp.example", catalog.RegistrationOutsideRealm},
		{"punycode", "WK1$", "WK1", "wk1.xn--crp-5cd.example", catalog.RegistrationOutsideRealm},
		{"a long name", "LONGCOMPUTERNAM$", "LONGCOMPUTERNAM", "longcomputername-01.corp.example", own},
		{"a long name in another case", "longcomputernam$", "LongComputerNam", "LONGCOMPUTERNAME-01.Corp.Example", own},
		{"a name of 15 characters", "LONGCOMPUTERNAM$", "LONGCOMPUTERNAM", "longcomputernam.corp.example", own},
		{"a long name that begins otherwise", "LONGCOMPUTERNAM$", "LONGCOMPUTERNAM", "longcomputer-name-01.corp.example", catalog.RegistrationOutsideRealm},
		{"a host shorter than the account", "LONGCOMPUTERNAM$", "LONGCOMPUTERNAM", "longcomputerna.corp.example", catalog.RegistrationOutsideRealm},
		{"a longer host, but the account is short of 15", "LONGCOMPUTERNA$", "LONGCOMPUTERNA", "longcomputername-01.corp.example", catalog.RegistrationOutsideRealm},
		{"a longer host, but the account is over 15", "LONGCOMPUTERNAME$", "LONGCOMPUTERNAME", "longcomputername-01.corp.example", catalog.RegistrationOutsideRealm},
		{"a long name outside the realm", "LONGCOMPUTERNAM$", "LONGCOMPUTERNAM", "longcomputername-01.evilcorp.example", catalog.RegistrationOutsideRealm},
		{"a long NetBIOS name, which is none", "LONGCOMPUTERNAM$", "LONGCOMPUTERNAME-01", "longcomputername-01.corp.example", catalog.RegistrationOtherComputer},
		{"a long name of another alphabet", "LONGCOMPUTERNAM$", "LONGCOMPUTERNAM", "longcomputernam\u0435-01.evil.example", catalog.RegistrationOutsideRealm},
		{"a fullwidth dot", "WK1$", "WK1", "wk1\uff0ecorp.example", catalog.RegistrationOutsideRealm},
	} {
		e := evidence{method: proof.Kerberos, ceiling: proof.LevelManaged, approval: ApproveTrustedDomains, ticket: &proof.Ticket{Account: test.account, Realm: corp.Name}, realm: corp,
			netbios: test.netbios, fqdn: test.fqdn}
		if got := e.account(); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
		got, wantStatus := decide(e), ccm.ApprovalNone
		if test.want == own {
			wantStatus = ccm.ApprovalApproved
		}
		if got.status != wantStatus || got.code != test.want || (got.level == proof.LevelManaged) != (test.want == own) {
			t.Errorf("%s: got %+v", test.name, got)
		}
		e.approval = ApproveManually
		if got := decide(e); got.status != ccm.ApprovalNone {
			t.Errorf("%s, manual: got %+v", test.name, got)
		}
	}
}

func TestEveryoneLiftsNeitherBlockNorWeaknessNorCeiling(t *testing.T) {
	base := evidence{method: proof.MessageSignature, ceiling: proof.LevelSecrets, approval: ApproveEveryone}
	if got := decide(base); got.status != ccm.ApprovalApproved || got.level != proof.LevelManaged {
		t.Errorf("everyone: got %+v", got)
	}
	for name, change := range map[string]func(*evidence){
		"blocked hardware":    func(e *evidence) { e.refused = &refusal{} },
		"weak key":            func(e *evidence) { e.weakKey = true },
		"ceiling":             func(e *evidence) { e.ceiling = proof.LevelKnown },
		"no ceiling":          func(e *evidence) { e.ceiling = proof.LevelNone },
		"a connector":         func(e *evidence) { e.method = proof.ConnectorCertificate },
		"a method unheard of": func(e *evidence) { e.method = "tomorrow" },
	} {
		e := base
		change(&e)
		if got := decide(e); got.status != ccm.ApprovalNone || got.level > proof.LevelKnown {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	for method, want := range map[proof.Method]ccm.ApprovalStatus{proof.PKICertificate: 2, proof.Entra: 3, proof.BulkToken: 1, proof.Anonymous: 1} {
		e := base
		e.method, e.cloud, e.certificate = method, &proof.Cloud{}, &certificate{held: true}
		if got := decide(e); got.status != want {
			t.Errorf("%s: got %+v, want status %d", method, got, want)
		}
	}
}
