package site

import (
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
	method   proof.Method
	bulkID   string
	weakKey  bool         // RSA below 2048 bits or a SHA-1 signature
	blocked  ccm.ClientID // a blocked device with the same hardware id
	ceiling  proof.Level
	approval ApprovalMode
}

// rule is one line of the approval table: the first that matches decides.
type rule struct {
	name   string
	match  func(evidence) bool
	status ccm.ApprovalStatus
	level  proof.Level
}

// rules is design decision 2 as a table. A rule may only give what its proof supports; the ceiling of the route is applied after.
func rules() []rule {
	method := func(m proof.Method) func(evidence) bool { return func(e evidence) bool { return e.method == m } }
	return []rule{
		{"hardware id of a blocked device", func(e evidence) bool { return e.blocked != "" }, ccm.ApprovalNone, proof.LevelKnown},
		{"weak key", func(e evidence) bool { return e.weakKey }, ccm.ApprovalNone, proof.LevelKnown},
		{"manual approval", func(e evidence) bool { return e.approval == ApproveManually && e.method != proof.PKICertificate }, ccm.ApprovalNone, proof.LevelKnown},
		{"bulk registration token", method(proof.BulkToken), ccm.ApprovalApproved, proof.LevelManaged},
		{"PKI certificate", method(proof.PKICertificate), ccm.ApprovalNotApplicable, proof.LevelManaged},
		{"Entra", method(proof.Entra), ccm.ApprovalEntra, proof.LevelManaged},
		{"self-signed key only", func(evidence) bool { return true }, ccm.ApprovalNone, proof.LevelKnown},
	}
}

// decide returns the approval that the evidence supports. It is pure: same evidence, same answer.
func decide(e evidence) (status ccm.ApprovalStatus, level proof.Level, name string) {
	for _, r := range rules() {
		if !r.match(e) {
			continue
		}
		if r.level > e.ceiling {
			return ccm.ApprovalNone, min(e.ceiling, proof.LevelKnown), r.name + ", limited by the route"
		}
		return r.status, r.level, r.name
	}
	return ccm.ApprovalNone, proof.LevelNone, "no rule"
}

// stronger reports whether a fresh decision should replace an approval: never to lower one, never over a person's decision.
func stronger(old Approval, level proof.Level) bool {
	return old.By == actorSite && level > old.Level
}

// actorSite is who decides when no person does.
const actorSite = "site"
