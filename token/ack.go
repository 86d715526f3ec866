package token

import (
	"crypto"
	"time"

	"postern/catalog"
	"postern/proof"
)

// MaxAckLog is how much of its log a gateway sends with one acknowledgement at most.
const MaxAckLog = 256 << 10

// MaxAck is the size of an acknowledgement at most; it may hold a request for a
// certificate, MaxUnknownKeys and MaxRefusals of the worst kind and, in base64 twice,
// MaxAckLog of log.
const MaxAck = 1 << 20

// Ack is a gateway's word, signed by the key that the site has pinned, that it has
// the state with this epoch.
type Ack struct {
	Gateway string    `json:"gateway"`
	Epoch   uint64    `json:"epoch"`
	At      time.Time `json:"at"`
	CSR     []byte    `json:"csr,omitempty"` // DER: the gateway asks for a server certificate
	Log     []byte    `json:"log,omitempty"` // what CMGService.log grew by: the documented log synchronisation (S2)

	// UnknownKeys are the keys of tenants by which the gateway met tokens and which its
	// state does not have, so that the site asks their providers; at most MaxUnknownKeys.
	UnknownKeys []UnknownKey `json:"unknown_keys,omitempty"`

	// Refusals are requests that the gateway refused by itself since it was heard last, so
	// that the site can say why a device does not get through; at most MaxRefusals.
	Refusals []Refusal `json:"refusals,omitempty"`
}

// UnknownKey names a key of a tenant. Whoever met it has it from a token that nobody has
// verified: it is a reason to look, and nothing else.
type UnknownKey struct {
	Tenant string `json:"tenant"`
	KeyID  string `json:"kid"`
}

// What an acknowledgement says of unknown keys at most.
const (
	MaxUnknownKeys    = 64
	maxUnknownKeyName = 256
)

// Fits reports whether an acknowledgement may say this.
func (k UnknownKey) Fits() bool {
	return k.Tenant != "" && len(k.Tenant) <= maxUnknownKeyName && len(k.KeyID) <= maxUnknownKeyName
}

// Refusal is what a gateway refused by itself. It is for the account of a device, and
// decides nothing.
type Refusal struct {
	At       time.Time           `json:"at"`    // of the newest, by the gateway's clock
	Times    int                 `json:"times"` // how often the same happened
	Code     catalog.Code        `json:"code"`
	Endpoint string              `json:"endpoint"`      // that was asked for
	Key      proof.KeyThumbprint `json:"key,omitempty"` // that the request proved; "" when none was
	Address  string              `json:"address"`
	TraceID  string              `json:"trace,omitempty"`
	Detail   string              `json:"detail,omitempty"` // for people, without what the device sent
}

// What an acknowledgement says of refusals at most.
const (
	MaxRefusals      = 32
	MaxRefusalDetail = 256 // bytes
	maxRefusalField  = 64
)

// Fits reports whether an acknowledgement may say this.
func (r Refusal) Fits() bool {
	return r.Times > 0 && r.Code != "" && max(len(r.Code), len(r.Endpoint), len(r.Key), len(r.Address), len(r.TraceID)) <= maxRefusalField && len(r.Detail) <= MaxRefusalDetail
}

// SignAck signs an acknowledgement with the gateway's own key.
func SignAck(key crypto.Signer, ack Ack) (string, error) { return signDocument(key, DocumentAck, ack) }

// OpenAck verifies an acknowledgement with the key inside it and returns that key's
// pin. It proves nothing until the caller has compared the pin with the one recorded
// for ack.Gateway and judged ack.At. Codes: AckMalformed, AckSignature.
func OpenAck(raw string) (Ack, string, error) {
	c := codes{
		malformed: catalog.AckMalformed, tooLarge: catalog.AckMalformed, header: catalog.AckMalformed,
		algorithm: catalog.AckSignature, signature: catalog.AckSignature,
	}
	var ack Ack
	pin, err := openDocument(raw, MaxAck, DocumentAck, c, func(string) error { return nil }, &ack)
	if err != nil {
		return Ack{}, "", err
	}
	if len(ack.UnknownKeys) > MaxUnknownKeys {
		return Ack{}, "", catalog.Errorf(catalog.AckMalformed, "%d unknown keys; the limit is %d", len(ack.UnknownKeys), MaxUnknownKeys)
	}
	for _, key := range ack.UnknownKeys {
		if !key.Fits() {
			return Ack{}, "", catalog.Errorf(catalog.AckMalformed, "the name of an unknown key is empty or longer than %d bytes", maxUnknownKeyName)
		}
	}
	if len(ack.Refusals) > MaxRefusals {
		return Ack{}, "", catalog.Errorf(catalog.AckMalformed, "%d refusals; the limit is %d", len(ack.Refusals), MaxRefusals)
	}
	for _, refusal := range ack.Refusals {
		if !refusal.Fits() {
			return Ack{}, "", catalog.Errorf(catalog.AckMalformed, "a refusal lacks its code or count, or is longer than the limits")
		}
	}
	return ack, pin, nil
}
