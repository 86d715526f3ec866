// Package inbox keeps registrations on disk while the site's database is away, so that nothing acknowledged is lost (design decision 8).
//
// [Inbox.Append] returns when the record is durable; appends that wait at the same time share one sync. [Inbox.Replay] hands the records, in
// order, to the site once the database answers again, and removes what was applied. A record may be applied twice when the process dies in
// between, so applying must be idempotent; registering a device is.
//
// The readable *.RDR files that administrators know (protocol.md 3.7) are something else: copies written after the fact by [RDRFolder], never
// read again. The package does not judge messages: that is package site.
package inbox
