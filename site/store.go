package site

import (
	"context"
	"errors"
	"time"

	"postern/ccm"
	"postern/proof"
)

// Errors that a [Store] returns and callers choose by.
var (
	// ErrNotFound: no record has that id.
	ErrNotFound = errors.New("not found")
	// ErrExists: the record's id, or another value that must be unique (a device's key), belongs to another record.
	ErrExists = errors.New("already exists")
	// ErrUnavailable: the database did not take the change; nothing of it was kept. The inbox takes over (design decision 8).
	ErrUnavailable = errors.New("store unavailable")
)

// Store keeps a site's records. Every implementation passes storetest.
type Store interface {
	// View runs read in a transaction that changes nothing and sees one state of the database.
	View(ctx context.Context, read func(Tx) error) error

	// Update runs change in a transaction and returns when its commit is durable. Concurrent updates may share one commit.
	// An error from change rolls its own writes back and is returned as it is; it never undoes another caller's change.
	// change may run more than once, so it assigns its results and keeps no other state. When the database fails
	// (closed, full, away) the error wraps [ErrUnavailable] and nothing was kept.
	Update(ctx context.Context, change func(Tx) error) error

	// Remember records id until the given time and reports whether it was new. Nodes that share a database share the memory.
	// It need not survive a restart of a database that only one process uses. A change writes to the same memory with [Uses.NoteUse].
	Remember(ctx context.Context, id string, until time.Time) (fresh bool, err error)

	// Changes returns a channel that receives after commits of this or any other process on the same database. Bursts may
	// arrive as one. The channel is closed when ctx ends.
	Changes(ctx context.Context) <-chan struct{}

	// Close ends the store; updates under way finish first.
	Close() error
}

// Tx is one transaction, a sum of small topics.
type Tx interface {
	Devices
	Reservations
	BulkTokens
	Policies
	Keys
	Peers
	Journal
	Conflicts
	Uses
	Tenants
	Authorities
	Revocations
}

// Devices keeps registered devices. Client id and key are each unique.
type Devices interface {
	Device(id ccm.ClientID) (Device, error)                                    // ErrNotFound
	DeviceByKey(key proof.KeyThumbprint) (Device, error)                       // ErrNotFound
	Devices(filter DeviceFilter) ([]Device, error)                             // by creation time, then client id
	DevicesByHardware(hardwareID string, limit int) ([]Device, error)          // the oldest with that HardwareID1 that are not obsolete; none for ""
	DevicesByIdentity(identity string, limit int) ([]Device, error)            // those that have proved it and are not obsolete, the highest level and then the newest first; none for ""
	RefusedHardware(hardwareID string, limit int) ([]ccm.ClientID, error)      // the devices with that HardwareID1 that are blocked, then those that are [Device.Rejected] and not obsolete, each by client id; none for ""
	RefusedIdentity(identity string, limit int) ([]ccm.ClientID, error)        // the same of devices that have proved the identity
	IdentityReplaced(identity string, since time.Time) (int, error)            // how many devices have replaced others that had proved the identity, since then
	BlockedKeys() ([]proof.KeyThumbprint, error)                               // keys of all blocked devices, sorted
	ReplacedKeys() (map[proof.KeyThumbprint]Replaced, error)                   // keys of obsolete devices and former keys
	FormerKey(key proof.KeyThumbprint) (ccm.ClientID, error)                   // the device that had the key before it got another, or ErrNotFound
	PutFormerKey(key proof.KeyThumbprint, id ccm.ClientID, at time.Time) error // no error when it is there
	PutDevice(d Device) error                                                  // insert or replace by client id; ErrExists when another client id has the key
	DeleteDevice(id ccm.ClientID) error                                        // and what targets it alone; no error when absent
	TouchDevice(id ccm.ClientID, seen time.Time) error                         // moves LastSeen forward only; no error when absent
}

// DeviceFilter narrows [Devices.Devices]. Zero values narrow nothing.
type DeviceFilter struct {
	Name       string // NetBIOS name or FQDN, case-insensitive, exact
	NameLike   string // NetBIOS name or FQDN, case-insensitive; * stands for any text, ? for any character
	Domain     string // DNS domain of the FQDN, on label boundary, case-insensitive
	Realm      string // of the identity that it has proved, case-insensitive
	Method     proof.Method
	Status     *ccm.ApprovalStatus
	Level      *proof.Level
	Blocked    *bool // by a person
	Obsolete   *bool
	Held       *bool        // by a waiting conflict
	Since      time.Time    // registered then or later
	Before     time.Time    // registered before
	SeenBefore time.Time    // last seen before
	After      ccm.ClientID // continue after this one
	Limit      int          // 0 = no limit

	Quarantined *bool // came back after a long absence and has not proved itself afresh
}

// Reservations keeps the client ids promised to keys that have not registered yet. Key and client id are each unique.
type Reservations interface {
	Reservation(key proof.KeyThumbprint) (Reservation, error)      // ErrNotFound
	ReservationByClient(id ccm.ClientID) (Reservation, error)      // ErrNotFound
	PutReservation(r Reservation) error                            // ErrExists when key or client id is taken
	DeleteReservation(key proof.KeyThumbprint) error               // no error when absent
	DeleteReservationsBefore(expires time.Time) (n int, err error) // drops those that expired before
}

// BulkTokens keeps bulk registration tokens (never the token itself) and the keys that each was used by.
type BulkTokens interface {
	BulkToken(id string) (BulkToken, error) // ErrNotFound
	BulkTokens() ([]BulkToken, error)       // by creation time
	PutBulkToken(t BulkToken) error         // insert or replace by id
	TokenUsed(id string, key proof.KeyThumbprint) (bool, error)
	UseToken(id string, use TokenUse) error             // adds one use and raises Uses; ErrExists when that key has used it already
	TokenUses(id string, limit int) ([]TokenUse, error) // newest first
}

// Policies keeps policy documents and their targets.
type Policies interface {
	Policy(id, version string) (Policy, error)     // ErrNotFound; version "" means the newest
	Policies() ([]Policy, error)                   // by id; Body left empty
	PoliciesFor(id ccm.ClientID) ([]Policy, error) // the newest version of each, where that targets all or this client, by id; Body left empty
	PutPolicy(p Policy) error                      // insert or replace by id and version, targets included
	DeletePolicy(id string) error                  // all versions; ErrNotFound
}

// Keys keeps the site's keys, sealed.
type Keys interface {
	SigningKeys() ([]KeyRecord, error) // by creation time
	PutSigningKey(k KeyRecord) error   // insert or replace by id
}

// Peers keeps the other roles: management points, gateways, connectors, and invitations to connectors.
type Peers interface {
	ManagementPoints() ([]ManagementPoint, error) // by role id
	PutManagementPoint(m ManagementPoint) error   // insert or replace by role id
	Gateways() ([]Gateway, error)                 // by name
	PutGateway(g Gateway) error                   // insert or replace by name
	DeleteGateway(name string) error              // ErrNotFound
	Connectors() ([]Connector, error)             // by name, then time
	PutConnector(c Connector) error               // insert or replace by pin
	Invitation(codeHash string) (Invitation, error)
	PutInvitation(i Invitation) error // insert or replace by code hash
}

// Journal keeps settings, the site-state epoch, the trust log and events.
type Journal interface {
	Setting(name string) (string, error) // ErrNotFound
	PutSetting(name, value string) error

	Epoch() (uint64, error)
	// NextEpoch raises the epoch by one, or to least when that is more, and returns it.
	NextEpoch(least uint64) (uint64, error)

	// TrustHead returns the newest trust log entry (zero when empty). Inside Update it also keeps other nodes from appending until the commit.
	TrustHead() (TrustEntry, error)
	AppendTrust(e TrustEntry) error // ErrExists when the sequence number is taken
	TrustEntries(after uint64, limit int) ([]TrustEntry, error)

	AddEvents(events []Event) error
	Events(filter EventFilter) ([]Event, error)                  // newest first
	DeleteEventsBefore(t time.Time, keep int) (n int, err error) // keeps at most the newest keep
}

// Conflicts keeps what looked like one computer with two records, or one key on two computers.
type Conflicts interface {
	Conflict(id string) (Conflict, error)                                              // ErrNotFound
	LastConflict(kind ConflictKind, newcomer, existing ccm.ClientID) (Conflict, error) // the newest of that pair, or ErrNotFound
	Conflicts(filter ConflictFilter) ([]Conflict, error)                               // the newest first, then by id
	PutConflict(c Conflict) error                                                      // insert or replace by id
}

// ConflictFilter narrows [Conflicts.Conflicts]. Zero values narrow nothing.
type ConflictFilter struct {
	Kind   ConflictKind
	State  ConflictState
	Device ccm.ClientID // newcomer or existing
	After  string       // continue after the conflict with this id
	Limit  int          // 0 = no limit
}

// Tenants keeps the onboarded tenants with their keys.
type Tenants interface {
	Tenants() ([]Tenant, error)       // by id
	Tenant(id string) (Tenant, error) // ErrNotFound
	PutTenant(t Tenant) error         // insert or replace by id
	DeleteTenant(id string) error     // ErrNotFound
}

// Authorities keeps the company's authorities for client certificates.
type Authorities interface {
	Authorities() ([]Authority, error)        // by fingerprint
	PutAuthority(a Authority) error           // insert or replace by fingerprint
	DeleteAuthority(fingerprint string) error // ErrNotFound
}

// Uses keeps what may be used once: it is the memory of [Store.Remember], written by a change.
type Uses interface {
	// NoteUse notes id until the given time, or returns ErrExists when it has been noted or remembered and that time is not over. A change that is
	// undone leaves no note. Notes survive a restart.
	NoteUse(id string, until time.Time) error
}

// Revocations keeps those revocations whose subject the store does not know, since a backup older than it was restored.
type Revocations interface {
	KeptRevocations() ([]Revoked, error)                    // by kind, then id
	PutKeptRevocation(r Revoked) error                      // insert or replace by kind and id
	DeleteKeptRevocation(kind RevokedKind, id string) error // ErrNotFound
}
