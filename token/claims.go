package token

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// Kind is what a token is for. Each kind has its own keys, header type and audience.
type Kind string

// The kinds of token that the site makes.
const (
	KindBulk      Kind = "bulk"       // bulk registration token (S3)
	KindCCM       Kind = "ccm"        // CCM token (S2)
	KindSelfProve Kind = "self-prove" // self-prove token (S3)
)

// Kinds returns the three kinds.
func Kinds() []Kind { return []Kind{KindBulk, KindCCM, KindSelfProve} }

// Scopes of a CCM token. A token of ScopeRegister was got before registration and
// opens nothing but registration (design decision 11).
const (
	ScopeRegister = "register"
	ScopeClient   = "client"
)

// Token types as CCM_STS.log names them (S2, protocol.md 6.4). A token that came by an
// identity of the cloud has that identity's kind.
const (
	TypeDevice = proof.CloudDevice
	TypeUDA    = proof.CloudUser // user and device
)

// Lifetimes. The bulk figures are S3's (protocol.md 6.2), eight hours are S2's.
const (
	CCMLifetime         = 8 * time.Hour
	SelfProveLifetime   = 90 * 24 * time.Hour
	BulkLifetime        = 4320 * time.Minute
	BulkMaximumLifetime = 10080 * time.Minute
)

// Leeway is how far two clocks may differ. It is the one such constant of Postern.
const Leeway = 60 * time.Second

// Claims is what a token says. Sign takes it, Verify returns it.
type Claims struct {
	Kind                  Kind
	KeyID                 string              // the key that signed; set by Verify
	ID                    string              // jti; of a bulk token its UniqueId, lower case
	Client                ccm.ClientID        // the device; empty in a bulk token
	Key                   proof.KeyThumbprint // cnf.jkt: the device key that must prove itself
	CertificateThumbprint string              // cnf.x5t#S256: the client certificate, for mutual TLS
	Scope                 string              // CCM tokens: ScopeRegister or ScopeClient
	BulkID                string              // the bulk token by which the device came; of a bulk token itself its ID
	Hierarchy             string              // the hierarchy id, lower case; set by Verify
	TokenType             string              // TypeDevice or TypeUDA
	Cloud                 *proof.Cloud        // the Entra identity by which the device came, if any
	IssuedAt              time.Time           // zero in a bulk token
	NotBefore             time.Time
	Expires               time.Time
}

// ExpiredError is in the chain of a TokenExpired error. It has what the documented
// IDX10223 line of CCM_STS.log needs (S4).
type ExpiredError struct {
	ValidTo, Now time.Time
}

// Error is the documented text, with the times in UTC.
func (e *ExpiredError) Error() string {
	const layout = "01/02/2006 15:04:05"
	return fmt.Sprintf("IDX10223: Lifetime validation failed. The token is expired. ValidTo: '%s' Current time: '%s'.",
		e.ValidTo.UTC().Format(layout), e.Now.UTC().Format(layout))
}

// checkTimes judges the three times at now, with the one leeway: a token is good
// from NotBefore-Leeway until just before Expires+Leeway.
func (c Claims) checkTimes(now time.Time) error {
	if !now.Before(c.Expires.Add(Leeway)) {
		return catalog.Wrap(catalog.TokenExpired, &ExpiredError{ValidTo: c.Expires, Now: now},
			"valid until %s, the clock here says %s", stamp(c.Expires), stamp(now))
	}
	if now.Before(c.NotBefore.Add(-Leeway)) || now.Before(c.IssuedAt.Add(-Leeway)) {
		return catalog.Errorf(catalog.TokenNotYetValid, "valid from %s, the clock here says %s", stamp(c.NotBefore), stamp(now))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// profile is what distinguishes one kind of token from the others.
type profile struct {
	algorithm string // of its keys, unless the site asks for the other
	other     string // that its keys may have, too
	typ       string
	audience  string
	longest   time.Duration
}

// allows reports whether keys of the kind may have the algorithm.
func (p profile) allows(algorithm string) bool {
	return algorithm != "" && (algorithm == p.algorithm || algorithm == p.other)
}

func profileOf(kind Kind) (profile, bool) {
	switch kind {
	case KindBulk:
		return profile{algRS256, "", "JWT", "urn:sccm:service", BulkMaximumLifetime}, true
	case KindCCM:
		return profile{algES256, algRS256, "ccm+jwt", "urn:postern:token:ccm", CCMLifetime}, true
	case KindSelfProve:
		return profile{algES256, algRS256, "selfprove+jwt", "urn:postern:token:self-prove", SelfProveLifetime}, true
	}
	return profile{}, false
}

// bulkClaims are the claims of the documented bulk registration token, in its order
// (S3, protocol.md 6.3).
type bulkClaims struct {
	Category  string `json:"SCCMTokenCategory"`
	Authority string `json:"Authority"`
	License   string `json:"License"`
	Type      string `json:"Type"`
	TenantID  string `json:"TenantId"`
	UniqueID  string `json:"UniqueId"`
	Issuer    string `json:"iss"`
	Audience  string `json:"aud"`
	Expires   *date  `json:"exp"`
	NotBefore *date  `json:"nbf"`
}

func newBulkClaims(hierarchy string, c Claims) bulkClaims {
	return bulkClaims{
		Category: "SCCMPreAuthToken", Authority: "SCCM", License: "SCCM", Type: "BulkRegistration",
		TenantID: strings.ToUpper(hierarchy), UniqueID: strings.ToLower(c.ID),
		Issuer: bulkIssuer(hierarchy), Audience: "urn:sccm:service",
		Expires: newDate(c.Expires), NotBefore: newDate(c.NotBefore),
	}
}

func bulkIssuer(hierarchy string) string { return "urn:sccm:oauth2:" + strings.ToLower(hierarchy) }

func (b bulkClaims) claims(hierarchy string) (Claims, error) {
	switch {
	case b.Category != "SCCMPreAuthToken" || b.Authority != "SCCM" || b.License != "SCCM" || b.Type != "BulkRegistration":
		return Claims{}, catalog.Errorf(catalog.TokenWrongKind, "signed by the bulk key, but not a bulk registration token")
	case b.Issuer != bulkIssuer(hierarchy) || b.TenantID != strings.ToUpper(hierarchy):
		return Claims{}, catalog.Errorf(catalog.TokenIssuer, "made by another hierarchy")
	case b.Audience != "urn:sccm:service":
		return Claims{}, catalog.Errorf(catalog.TokenAudience, "made for another service")
	case b.Expires == nil:
		return Claims{}, catalog.Errorf(catalog.TokenNoExpiry, "no exp")
	case b.UniqueID == "" || b.NotBefore == nil:
		return Claims{}, catalog.Errorf(catalog.TokenClaims, "UniqueId and nbf are required")
	}
	return Claims{
		Kind: KindBulk, ID: b.UniqueID, BulkID: b.UniqueID, Hierarchy: strings.ToLower(hierarchy),
		NotBefore: b.NotBefore.Time, Expires: b.Expires.Time,
	}, nil
}

// deviceClaims are the claims of CCM and self-prove tokens, which only we read.
type deviceClaims struct {
	Issuer    string        `json:"iss"`
	Audience  string        `json:"aud"`
	Subject   string        `json:"sub"`
	ID        string        `json:"jti"`
	IssuedAt  *date         `json:"iat"`
	NotBefore *date         `json:"nbf"`
	Expires   *date         `json:"exp"`
	Scope     string        `json:"scope,omitempty"`
	Bulk      string        `json:"bulk,omitempty"`
	Confirm   *confirmation `json:"cnf"`
	TokenType string        `json:"token_type"`
	Entra     *proof.Cloud  `json:"entra,omitempty"`
}

// confirmation names the key that must prove itself (RFC 7800, RFC 8705, RFC 9449).
type confirmation struct {
	Key         proof.KeyThumbprint `json:"jkt,omitempty"`
	Certificate string              `json:"x5t#S256,omitempty"`
}

func newDeviceClaims(hierarchy, audience string, c Claims) deviceClaims {
	return deviceClaims{
		Issuer: deviceIssuer(hierarchy), Audience: audience, Subject: string(c.Client), ID: c.ID,
		IssuedAt: newDate(c.IssuedAt), NotBefore: newDate(c.NotBefore), Expires: newDate(c.Expires),
		Scope: c.Scope, Bulk: c.BulkID, TokenType: c.TokenType, Entra: c.Cloud,
		Confirm: &confirmation{Key: c.Key, Certificate: c.CertificateThumbprint},
	}
}

func deviceIssuer(hierarchy string) string {
	return "urn:postern:hierarchy:" + strings.ToLower(hierarchy)
}

func (d deviceClaims) claims(kind Kind, hierarchy, audience string) (Claims, error) {
	switch {
	case d.Issuer != deviceIssuer(hierarchy):
		return Claims{}, catalog.Errorf(catalog.TokenIssuer, "made by another hierarchy")
	case d.Audience != audience:
		return Claims{}, catalog.Errorf(catalog.TokenAudience, "made for another use")
	case d.Expires == nil:
		return Claims{}, catalog.Errorf(catalog.TokenNoExpiry, "no exp")
	case d.IssuedAt == nil || d.NotBefore == nil || d.ID == "":
		return Claims{}, catalog.Errorf(catalog.TokenClaims, "jti, iat and nbf are required")
	case d.Confirm == nil || d.Confirm.Key == "" && d.Confirm.Certificate == "":
		return Claims{}, catalog.Errorf(catalog.TokenClaims, "the token names no key (cnf)")
	}
	client, err := ccm.ParseClientID(d.Subject)
	if err != nil {
		return Claims{}, catalog.Wrap(catalog.TokenClaims, err, "sub is not a client id")
	}
	return Claims{
		Kind: kind, ID: d.ID, Client: client, Key: d.Confirm.Key, CertificateThumbprint: d.Confirm.Certificate,
		Scope: d.Scope, BulkID: d.Bulk, Hierarchy: strings.ToLower(hierarchy), TokenType: d.TokenType, Cloud: d.Entra,
		IssuedAt: d.IssuedAt.Time, NotBefore: d.NotBefore.Time, Expires: d.Expires.Time,
	}, nil
}

// date is a NumericDate of RFC 7519 in whole seconds, between 1970 and 9999.
type date struct{ time.Time }

func newDate(t time.Time) *date { return &date{t} }

// MarshalJSON writes the seconds since 1970.
func (d date) MarshalJSON() ([]byte, error) { return json.Marshal(d.Unix()) }

// UnmarshalJSON reads whole seconds; fractions, exponents and text are refused.
func (d *date) UnmarshalJSON(b []byte) error {
	var seconds int64
	if err := json.Unmarshal(b, &seconds); err != nil {
		return err
	}
	if seconds < 0 || seconds > 253402300799 {
		return fmt.Errorf("date %d is not between 1970 and 9999", seconds)
	}
	d.Time = time.Unix(seconds, 0).UTC()
	return nil
}
