// Package site is the domain: who is a device, is it approved, what may it have, which token does it get.
//
// Start at [Site]. Its methods are the acts of a site: [Site.Register] and [Site.Confirm] a device, [Site.IssueToken],
// [Site.Assignments] and [Site.PolicyBody], [Site.Approve] and [Site.Block], [Site.DecideConflict], [Site.NewBulkToken], [Site.State]. Every act that changes
// trust appends its hash-chained entry to the trust log in the same transaction (design decision 18).
//
// The rules themselves (who is approved, who is whose twin, who may read a policy) are pure functions over plain data; [Store] keeps the records. The package
// knows no HTTP, no SQL and no file: edges turn bytes into calls on it, package store keeps what it decides.
package site
