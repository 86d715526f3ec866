// Package proof says what a caller has proved: by which method, with which key,
// as which device, account or user. It is plain data that the edges fill in and
// the site judges; start with [Proof]. It verifies nothing: tokens are verified in
// package token, requests in package auth.
package proof

import (
	"fmt"
	"time"

	"postern/ccm"
)

// Method is the way in which a caller proved who it is.
type Method string

// The methods, from nothing to a certificate that the site issued itself.
const (
	Anonymous            Method = "anonymous"
	MessageSignature     Method = "message-signature"     // signature over the message by the device's own key (protocol.md 2.4)
	BulkToken            Method = "bulk-token"            // bulk registration token with a proof of the new device key (S3)
	CCMToken             Method = "ccm-token"             // CCM token with a proof of the registered key (S2)
	SelfProveToken       Method = "self-prove-token"      // self-prove token with a proof of the registered key (S3)
	Assertion            Method = "assertion"             // RFC 7523 assertion by the registered key
	PKICertificate       Method = "pki-certificate"       // client certificate from the company's roots
	Kerberos             Method = "kerberos"              // Negotiate with a Kerberos ticket (S0)
	Entra                Method = "entra"                 // Entra token (S2)
	ConnectorCertificate Method = "connector-certificate" // role certificate that the site issued
)

// Methods returns every method, the weakest first.
func Methods() []Method {
	return []Method{Anonymous, MessageSignature, BulkToken, CCMToken, SelfProveToken, Assertion, PKICertificate, Kerberos, Entra, ConnectorCertificate}
}

// Level is how far the site trusts a device. Levels are ordered: a higher one
// includes the lower ones. Only LevelSecrets ever reads a secret.
type Level int

// The levels. The zero value is no trust at all.
const (
	LevelNone    Level = iota // not registered, or rejected
	LevelKnown                // registered with nothing but its own key
	LevelManaged              // approved: gets policy without secrets
	LevelSecrets              // approved for secrets by an administrator
)

var levelNames = [...]string{LevelNone: "none", LevelKnown: "known", LevelManaged: "managed", LevelSecrets: "secrets"}

// String returns the level's name as the command line writes it.
func (l Level) String() string {
	if l < 0 || int(l) >= len(levelNames) {
		return fmt.Sprintf("level(%d)", int(l))
	}
	return levelNames[l]
}

// ParseLevel returns the level with that exact name.
func ParseLevel(name string) (Level, error) {
	for level, known := range levelNames {
		if name == known {
			return Level(level), nil
		}
	}
	return LevelNone, fmt.Errorf("parse level %q: want none, known, managed or secrets", name)
}

// Proof is what one request has proved. Only the fields that its Method proves are
// set; an empty field means "not proved", never "any".
type Proof struct {
	Method      Method
	Key         KeyThumbprint // the key that the caller showed it holds
	Client      ccm.ClientID  // the device of the token or of the message
	TokenID     string        // the token's jti, or a bulk token's UniqueId
	BulkID      string        // the bulk token by which the device came
	Scope       string        // the token's scope
	Account     string        // Kerberos: the account as logs have it, e.g. CHILD\WK$
	Realm       string        // Kerberos: the realm of the account
	SID         string        // Kerberos or Entra: the account's security identifier
	Ticket      *Ticket       // Kerberos: the evidence; nil for every other method
	Cloud       *Cloud        // Entra: the evidence; nil for every other method
	Tenant      string        // Entra tenant
	Device      string        // Entra device
	User        string        // Entra user
	Certificate []byte        // DER of the certificate shown
	Address     string        // where the request came from; information, never evidence
	RequestID   string        // one id from client to management point
	At          time.Time     // when it was proved
	Issued      time.Time     // when the token was issued, of a proof by one of the site's tokens
	SigningKey  string        // the site's key that signed the token
}
