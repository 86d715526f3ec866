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
				status, level, rule := decide(evidence{method: method, bulkID: "b", weakKey: weak, blocked: twin, ceiling: ceiling, approval: mode})
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
