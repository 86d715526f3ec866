package storetest

import (
	"testing"
	"time"

	"postern/ccm"
	"postern/proof"
	"postern/site"
)

func policy(id, version string, all bool, targets ...ccm.ClientID) site.Policy {
	return site.Policy{
		ID: id, Version: version, Category: "NAAConfig", Type: "Machine", Flags: ccm.PolicyFlags(1<<31 | 6), Level: proof.LevelManaged, Body: []byte("<Policy id='" + id + version + "'/>"),
		Sealed: true, Hash: "SHA256:AB", All: all, Targets: targets, Created: start, By: "anna",
	}
}

func policies(t *testing.T, s site.Store) {
	everyone := policy("{B}", "1.00", true)
	old := policy("{A}", "9.00", false, clientID(1))
	young := policy("{A}", "10.00", false, clientID(1), clientID(2))
	young.Created = start.Add(-time.Hour) // the version number decides, not the date
	other := policy("{C}", "1.00", false, clientID(2), clientID(3))
	for _, p := range []site.Policy{everyone, old, young, other} {
		update(t, s, func(tx site.Tx) error { return tx.PutPolicy(p) })
	}
	get := func(id, version string) func(site.Tx) (site.Policy, error) {
		return func(tx site.Tx) (site.Policy, error) { return tx.Policy(id, version) }
	}
	same(t, "one version", read(t, s, get("{A}", "9.00")), old)
	same(t, "the newest version", read(t, s, get("{A}", "")), young)
	same(t, "a policy for everyone", read(t, s, get("{B}", "")), everyone)
	missing(t, s, "an unknown policy", get("{X}", ""))
	missing(t, s, "an unknown version", get("{A}", "3.00"))

	name := func(p site.Policy) string { return p.ID + p.Version }
	for n, want := range map[int]string{1: "{A}10.00 {B}1.00", 2: "{A}10.00 {B}1.00 {C}1.00", 3: "{B}1.00 {C}1.00", 4: "{B}1.00"} {
		found := read(t, s, func(tx site.Tx) ([]site.Policy, error) { return tx.PoliciesFor(clientID(n)) })
		same(t, "policies for "+string(clientID(n)), list(found, name), want)
		for _, p := range found {
			if p.Body != nil {
				t.Errorf("%s is listed with its body", name(p))
			}
			if p.ID == "{C}" {
				same(t, "targets in a list", p.Targets, other.Targets)
			}
		}
	}
	all := read(t, s, func(tx site.Tx) ([]site.Policy, error) { return tx.Policies() })
	same(t, "all policies", list(all, name), "{A}10.00 {A}9.00 {B}1.00 {C}1.00")
	young.Body = nil
	same(t, "a listed policy", all[0], young)

	update(t, s, func(tx site.Tx) error { return tx.PutPolicy(policy("{C}", "2.00", false, clientID(3))) })
	found := read(t, s, func(tx site.Tx) ([]site.Policy, error) { return tx.PoliciesFor(clientID(2)) })
	same(t, "policies of a device that the newest version leaves out", list(found, name), "{A}10.00 {B}1.00")

	narrowed := policy("{C}", "1.00", false, clientID(3))
	narrowed.Body = nil
	update(t, s, func(tx site.Tx) error { return tx.PutPolicy(narrowed) })
	same(t, "a replaced policy", read(t, s, get("{C}", "1.00")), narrowed)

	update(t, s, func(tx site.Tx) error { return tx.DeletePolicy("{A}") })
	missing(t, s, "a deleted policy", get("{A}", ""))
	refused(t, s, "deleting it again", site.ErrNotFound, func(tx site.Tx) error { return tx.DeletePolicy("{A}") })
	left := read(t, s, func(tx site.Tx) ([]site.Policy, error) { return tx.PoliciesFor(clientID(1)) })
	same(t, "policies after deleting", list(left, name), "{B}1.00")
	update(t, s, func(tx site.Tx) error { return tx.PutPolicy(policy("{A}", "1.00", false)) })
	same(t, "targets of a policy made anew", read(t, s, get("{A}", "")).Targets, nil)
}
