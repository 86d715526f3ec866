package site

import (
	"fmt"
	"strings"
	"testing"

	"postern/ccm"
	"postern/proof"
)

// approvals is what design decision 2 gives for each proof on a route without a ceiling, with a strong key and no blocked twin: status on the
// wire and level. A method that stands here no more, or a new one, fails the test.
const approvals = `
method                | trusted-domains | manual
anonymous             | 0 known         | 0 known
message-signature     | 0 known         | 0 known
bulk-token            | 1 managed       | 0 known
ccm-token             | 0 known         | 0 known
self-prove-token      | 0 known         | 0 known
assertion             | 0 known         | 0 known
pki-certificate       | 2 managed       | 2 managed
kerberos              | 0 known         | 0 known
entra                 | 3 managed       | 0 known
connector-certificate | 0 known         | 0 known
a method of tomorrow  | 0 known         | 0 known
`

func TestC36_DecideTable(t *testing.T) {
	modes := []ApprovalMode{ApproveTrustedDomains, ApproveManually}
	methods := map[proof.Method]bool{}
	for line := range strings.Lines(strings.TrimSpace(approvals)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		method := proof.Method(strings.TrimSpace(cells[0]))
		if method == "method" {
			continue
		}
		methods[method] = true
		for i, mode := range modes {
			decideEverywhere(t, method, mode, strings.TrimSpace(cells[i+1]))
		}
	}
	for _, method := range proof.Methods() {
		if !methods[method] {
			t.Errorf("method %s has no row", method)
		}
	}
}

// decideEverywhere checks one cell of the table with every ceiling, strong and weak keys, with and without a blocked twin.
func decideEverywhere(t *testing.T, method proof.Method, mode ApprovalMode, best string) {
	for _, ceiling := range []proof.Level{proof.LevelNone, proof.LevelKnown, proof.LevelManaged, proof.LevelSecrets} {
		for _, weak := range []bool{false, true} {
			for _, twin := range []ccm.ClientID{"", "GUID:5B3D8C44-3B5A-4D5D-9E0E-0B0C2B8C6B11"} {
				want := best
				switch {
				case ceiling == proof.LevelNone:
					want = "0 none"
				case ceiling == proof.LevelKnown, weak, twin != "":
					want = "0 known"
				}
				var refused *refusal
				if twin != "" {
					refused = &refusal{kind: ConflictHardware, device: Device{ClientID: twin}}
				}
				decided := decide(evidence{method: method, cloud: &proof.Cloud{}, certificate: &certificate{held: true}, bulkID: "b", weakKey: weak, refused: refused, ceiling: ceiling, approval: mode})
				status, level, rule := decided.status, decided.level, decided.name
				if got := fmt.Sprintf("%d %s", status, level); got != want {
					t.Errorf("%s, mode %s, ceiling %s, weak key %t, blocked twin %q: got %s by rule %q, want %s", method, mode, ceiling, weak, twin, got, rule, want)
				}
				if limited := strings.Contains(rule, "limited by the route"); limited != (level < proof.LevelKnown || best != "0 known" && !weak && twin == "" && ceiling < proof.LevelManaged) {
					t.Errorf("%s, ceiling %s: rule %q", method, ceiling, rule)
				}
			}
		}
	}
}

// TestNoProofWithoutItsEvidence: an edge that names a method and brings no evidence approves nobody.
func TestNoProofWithoutItsEvidence(t *testing.T) {
	for name, e := range map[string]evidence{
		"Entra without a token's claims":          {method: proof.Entra, certificate: &certificate{held: true}},
		"a certificate that is not there":         {method: proof.PKICertificate, cloud: &proof.Cloud{}},
		"a certificate whose holder was not here": {method: proof.PKICertificate, certificate: &certificate{}},
		"Kerberos without a ticket":               {method: proof.Kerberos, cloud: &proof.Cloud{}, certificate: &certificate{held: true}},
	} {
		e.ceiling = proof.LevelSecrets
		if got := decide(e); got.status != ccm.ApprovalNone || got.level != proof.LevelKnown {
			t.Errorf("%s: got %+v", name, got)
		}
		if identity, own := e.identity(); identity != "" || own {
			t.Errorf("%s: it is %q", name, identity)
		}
	}
}

func TestOnlyAStrongerProofReplacesADecisionAndNeverAPersons(t *testing.T) {
	levels := []proof.Level{proof.LevelNone, proof.LevelKnown, proof.LevelManaged, proof.LevelSecrets}
	for _, by := range []string{actorSite, "anna", ""} {
		for _, old := range levels {
			for _, fresh := range levels {
				want := by == actorSite && fresh > old
				if got := stronger(Approval{By: by, Level: old}, fresh); got != want {
					t.Errorf("decided by %q at %s, proof for %s: got %t, want %t", by, old, fresh, got, want)
				}
			}
		}
	}
}

func TestAProofReplacesEveryone(t *testing.T) {
	everyone := Approval{By: actorSite, Rule: ruleEveryone, Level: proof.LevelManaged}
	for name, test := range map[string]struct {
		old, fresh Approval
		want       bool
	}{
		"a proof as strong":             {everyone, Approval{Rule: "bulk registration token", Level: proof.LevelManaged, By: actorSite}, true},
		"a proof that is weaker":        {everyone, Approval{Rule: "self-signed key only", Level: proof.LevelKnown, By: actorSite}, false},
		"everyone again":                {everyone, everyone, false},
		"everyone after a proof":        {Approval{Rule: "bulk registration token", Level: proof.LevelManaged, By: actorSite}, everyone, false},
		"everyone after nothing":        {Approval{Rule: "self-signed key only", Level: proof.LevelKnown, By: actorSite}, everyone, true},
		"everyone after a person's no":  {Approval{Level: proof.LevelKnown, By: "anna"}, everyone, false},
		"a proof after a person's word": {Approval{Rule: ruleEveryone, Level: proof.LevelManaged, By: "anna"}, Approval{Rule: "Entra", Level: proof.LevelManaged, By: actorSite}, false},
	} {
		if got := replaces(test.old, test.fresh); got != test.want {
			t.Errorf("%s: got %t, want %t", name, got, test.want)
		}
	}
}
