package site

import (
	"net/netip"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// Device is a registered device. Its identity is its key; everything else is an attribute (design decision 1).
type Device struct {
	ClientID ccm.ClientID
	Key      proof.KeyThumbprint // of the signing certificate's key
	Record   Record
	Approval Approval
	Block    Block
	Obsolete Obsolete
	Proved   string    // the identity that its key has proved: WK1$@CORP.EXAMPLE, entra:DEVICE@TENANT or certificate:NAME@AUTHORITY; "" without one
	Conflict string    // id of the waiting conflict that holds the device at level known; "" mostly
	Created  time.Time // UTC, microseconds
	Updated  time.Time
	LastSeen time.Time

	Quarantine Quarantine // of a device that came back after a long absence; see [Device.Level]
}

// Blocked reports whether the device is refused everywhere: a person blocked it, or another record replaced it. See [Device.Refused].
func (d Device) Blocked() bool { return d.Block.Blocked || d.Superseded() }

// Superseded reports whether another record of the same computer replaced this one.
func (d Device) Superseded() bool { return d.Obsolete.By != "" }

// Rejected reports whether a person has said that the device is not approved.
func (d Device) Rejected() bool {
	return d.Approval.By != "" && d.Approval.By != actorSite && d.Approval.Level <= proof.LevelKnown
}

// Refused returns why the device is refused everywhere, with the code DeviceBlocked or DeviceObsolete, or nil.
func (d Device) Refused() error {
	switch {
	case d.Block.Blocked:
		return catalog.Errorf(catalog.DeviceBlocked, "device %s (%s) is blocked since %s", d.ClientID, d.Name(), d.Block.At.Format(time.RFC3339))
	case d.Superseded():
		return obsoleteError(d.Obsolete.By)
	}
	return nil
}

func obsoleteError(by ccm.ClientID) error {
	return catalog.Errorf(catalog.DeviceObsolete, "the key was replaced: the computer is device %s now", by)
}

// Name returns what a person calls the device: its FQDN, else its NetBIOS name, else its client id.
func (d Device) Name() string {
	for _, name := range []string{d.Record.FQDName, d.Record.NetbiosName} {
		if name != "" {
			return name
		}
	}
	return string(d.ClientID)
}

// Record holds the fields of the seed's spUpdateClientRegistration, one for one (S0; protocol.md 3.7). Fields that the procedure
// had as NULL are empty here.
type Record struct {
	SiteCode                 ccm.SiteCode
	SMSID                    ccm.ClientID
	CSMSID                   string
	Identity                 string // account of a Kerberos registration
	DeviceID                 string
	Certificate              []byte // DER, signing
	Thumbprint               string // SHA-1 of Certificate, upper-case hex
	EncKey                   []byte // DER, encryption certificate, in spite of the name
	EncThumbprint            string
	KeyType                  int    // 1 self-signed, 2 PKI
	PublicKey                []byte // CAPI blob of the signing key
	ValidFrom                time.Time
	ValidTo                  time.Time
	AgentType                int
	SMBIOSID                 string
	MACAddress               string
	HardwareID1              string
	ISVProxyID               string
	AlwaysInternet           bool
	InternetEnabled          bool
	Force                    bool
	ApprovalMethod           int // 1 when integrated authentication succeeded, else 0 (S1)
	ResolutionMethod         int
	IsIntegratedAuth         bool
	Version                  string
	NetbiosName              string
	FQDName                  string
	ManualConflictResolution bool
}

// Approval is a fact with evidence: by which proof, rule and person, and when (design decision 2).
type Approval struct {
	Status   ccm.ApprovalStatus // the number on the wire
	Level    proof.Level
	Method   proof.Method
	Rule     string            // name of the rule that decided
	Evidence map[string]string // what the rule saw: token id, realm, account, ...
	By       string            // "site" or the person
	Why      string            // the person's reason
	At       time.Time
}

// Block says that a device is refused, by whom and why.
type Block struct {
	Blocked bool
	By      string
	Why     string
	At      time.Time
}

// Obsolete says that another record of the same computer took the device's place.
type Obsolete struct {
	By  ccm.ClientID // the record that replaced it; "" while it is current
	At  time.Time
	Why string
}

// Replaced says of a key which device took its place, and when.
type Replaced struct {
	By ccm.ClientID
	At time.Time
}

// Reservation is a client id promised to a key that proved itself with a bulk or Entra token but has not registered yet.
type Reservation struct {
	Key      proof.KeyThumbprint
	ClientID ccm.ClientID
	BulkID   string // tracked id of the bulk token, when that was the proof
	Created  time.Time
	Expires  time.Time
}

// BulkToken is what the site keeps of a bulk registration token: never the token (S3; product.md 2.3).
type BulkToken struct {
	ID        string    `json:"id"` // UniqueId claim, lower case
	Label     string    `json:"label"`
	MaxUses   int       `json:"max_uses"` // 0 = unlimited; one use = one new key
	Uses      int       `json:"uses"`
	NotBefore time.Time `json:"not_before,omitzero"`
	Expires   time.Time `json:"expires,omitzero"`
	Blocked   bool      `json:"blocked"`
	CreatedBy string    `json:"created_by"`
	Created   time.Time `json:"created,omitzero"`
	LastUsed  time.Time `json:"last_used,omitzero"`

	Networks    []netip.Prefix `json:"networks,omitempty"`     // where it may be exchanged; none for anywhere
	NamePattern string         `json:"name_pattern,omitempty"` // of the computers that may register by it, see [BulkToken.admitsName]; "" for all
}

// TokenUse is the first use of a bulk token by one key.
type TokenUse struct {
	Key      proof.KeyThumbprint `json:"key"`
	ClientID ccm.ClientID        `json:"client_id"`
	Address  string              `json:"address"`
	At       time.Time           `json:"at,omitzero"`
}

// Policy is a document for devices.
type Policy struct {
	ID       string // braces GUID or the field's package-style id
	Version  string // major.minor on paper, "1_00" in locations
	Category string // e.g. NAAConfig
	Type     string // Machine
	Flags    ccm.PolicyFlags
	Level    proof.Level // least level that gets it; never below what Flags demand
	Body     []byte      // UTF-8 XML; sealed with the site's key when Sealed
	Sealed   bool
	Hash     string // "SHA256:" + hex of Body
	All      bool   // targets every device
	Targets  []ccm.ClientID
	Created  time.Time
	By       string
}

// KeyRecord is one of the site's keys. Private is sealed with the site's key file, never plain.
type KeyRecord struct {
	ID          string    `json:"id"`
	Purpose     string    `json:"purpose"`     // see the Purpose constants
	Algorithm   string    `json:"algorithm"`   // RS256 or ES256
	Certificate []byte    `json:"certificate"` // DER, may be empty
	Public      []byte    `json:"public"`      // SPKI DER
	Private     []byte    `json:"-"`           // sealed PKCS #8
	State       string    `json:"state"`       // prepared, active, retired, revoked
	NotBefore   time.Time `json:"not_before,omitzero"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	Created     time.Time `json:"created,omitzero"`

	Changed time.Time `json:"changed,omitzero"`       // when it came into its state, after Created
	Epoch   uint64    `json:"epoch,omitempty,string"` // of the site state that first told of it, when it was prepared or is a root: roots follow one another by it
	Why     string    `json:"why,omitempty"`          // of a revoked key
	Link    string    `json:"-"`                      // of a root: by what the one before leads to it, see token.SignRoot
}

// ManagementPoint is a management point of the site.
type ManagementPoint struct {
	RoleID      uint64    `json:"role_id,string"` // the decimal id in gateway paths
	Name        string    `json:"name"`           // NetBIOS-style name
	FQDN        string    `json:"fqdn"`
	InternalURL string    `json:"internal_url"` // https://host:port where connectors reach it
	HTTP        bool      `json:"http"`         // also listens in mixed mode
	Names       []string  `json:"names"`        // further host names it answers to
	Created     time.Time `json:"created,omitzero"`
}

// Gateway is a listed gateway: clients know its URL, connectors accept its pin.
type Gateway struct {
	Name         string    `json:"name"`         // host name
	URL          string    `json:"url"`          // https://host[:port]
	Pin          string    `json:"pin"`          // SHA-256 of the SPKI of its own key, lower-case hex
	Acknowledged uint64    `json:"acknowledged"` // newest site-state epoch it confirmed
	Heard        time.Time `json:"heard,omitzero"`
	Created      time.Time `json:"created,omitzero"`
	By           string    `json:"by"`

	AcknowledgedAt time.Time `json:"acknowledged_at,omitzero"` // when it first confirmed that epoch
	Certified      time.Time `json:"certified,omitzero"`       // when it was last given a certificate
	Certificate    []byte    `json:"-"`                        // that chain, DER, leaf first
}

// Connector is a connector with its role certificate.
type Connector struct {
	Name    string    `json:"name"`
	Pin     string    `json:"pin"`    // SHA-256 of the SPKI, lower-case hex
	Serial  string    `json:"serial"` // of the certificate, hex
	Expires time.Time `json:"expires,omitzero"`
	Blocked bool      `json:"blocked"`
	Created time.Time `json:"created,omitzero"`
}

// Invitation lets one connector join once.
type Invitation struct {
	CodeHash string // SHA-256 of the code, hex; the code is never kept
	Name     string
	Expires  time.Time
	Used     time.Time // zero until used
	By       string
}

// TrustEntry is one link of the trust log.
type TrustEntry struct {
	Sequence uint64
	At       time.Time
	Actor    string
	Action   string // e.g. device.register
	Subject  string // e.g. a client id
	Detail   string // JSON object with sorted keys
	Previous string // hash of the entry before, hex; empty for the first
	Hash     string // see [TrustEntry.Sum]
}

// Event is something that happened to a device or a role: above all every refusal, with its catalogue code.
type Event struct {
	ID      int64     `json:"id"`
	At      time.Time `json:"at,omitzero"`
	Code    string    `json:"code"`    // catalogue code; empty for plain facts
	Kind    string    `json:"kind"`    // e.g. registration, token, policy
	Subject string    `json:"subject"` // client id, token id, gateway name
	Address string    `json:"address"`
	TraceID string    `json:"trace_id"`
	Detail  string    `json:"detail"`
}

// EventFilter narrows [Journal.Events]. Zero values narrow nothing.
type EventFilter struct {
	Subject string
	Code    string
	After   time.Time
	Limit   int
}
