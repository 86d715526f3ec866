// Package keyfile keeps private keys at rest: one small file, site.key, holds the key
// under which everything else that is secret lies sealed, in a file or in a database
// column.
//
// Start from [Open]. [Key.Seal] and [Key.Open] wrap a secret under a label, so that a
// sealed value cannot be moved to another place; [Key.WriteSealed] and
// [Key.ReadSealed] do the same for a whole file, owner-only and written atomically.
//
// What protects site.key itself is the file's mode, a passphrase, or a credential that
// systemd hands over; [Key.Protection] says which, in words for a status page.
//
// The package knows nothing of what the secrets are, and makes no keys but its own.
package keyfile
