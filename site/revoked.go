package site

import "time"

// RevokedKind says what was revoked.
type RevokedKind string

// The kinds of revocations that outlive a restore.
const (
	RevokedDevice     RevokedKind = "device-key"  // by key thumbprint
	RevokedBulkToken  RevokedKind = "bulk-token"  // by tracked id
	RevokedConnector  RevokedKind = "connector"   // by the pin of its key
	RevokedSigningKey RevokedKind = "signing-key" // by key id
	RevokedTenant     RevokedKind = "tenant"      // by id: disabled or removed
	RevokedGateway    RevokedKind = "gateway"     // by pin: taken off the list
	RevokedAuthority  RevokedKind = "authority"   // by fingerprint: taken off the list

	RevokedFormerKey RevokedKind = "former-key" // by key thumbprint: another key, or another record of the computer, took its place; Subject is the device now
)

// Revoked is one revocation.
type Revoked struct {
	Kind    RevokedKind `json:"kind"`
	ID      string      `json:"id"`
	Subject string      `json:"subject,omitempty"` // what a person calls it: a client id, a label, a name
	By      string      `json:"by,omitempty"`
	Why     string      `json:"why,omitempty"`
	At      time.Time   `json:"at,omitzero"`
}
