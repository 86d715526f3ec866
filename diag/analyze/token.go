package analyze

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/diag"
	"postern/token"
)

// maxToken bounds a token before it is read.
const maxToken = 64 << 10

// said is what is read of a token, unproved. Anything else in it is not shown.
type said struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	X5T       string `json:"x5t"`

	Category  string          `json:"SCCMTokenCategory"`
	Kind      string          `json:"Type"`
	Hierarchy string          `json:"TenantId"`
	UniqueID  string          `json:"UniqueId"`
	Issuer    string          `json:"iss"`
	Audience  json.RawMessage `json:"aud"`
	Subject   string          `json:"sub"`
	ID        string          `json:"jti"`
	Scope     string          `json:"scope"`
	Tenant    string          `json:"tid"`
	Version   string          `json:"ver"`
	App       string          `json:"appid"`
	AppV2     string          `json:"azp"`
	Device    string          `json:"deviceid"`
	Expires   float64         `json:"exp"`
	NotBefore float64         `json:"nbf"`
	Issued    float64         `json:"iat"`
	Confirm   struct {
		Key         string `json:"jkt"`
		Certificate string `json:"x5t#S256"`
	} `json:"cnf"`
}

// decode reads header and claims. Its errors quote nothing of the token.
func decode(raw string) (s said, err error) {
	if len(raw) > maxToken {
		return s, catalog.Errorf(catalog.TokenTooLarge, "%d bytes", len(raw))
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 || parts[2] == "" {
		return s, catalog.Errorf(catalog.TokenMalformed, "a token has three parts with dots between; this has %d. Was it cut, or is a line break in it?", len(parts))
	}
	for i, name := range []string{"header", "claims"} {
		content, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[i], "="))
		if err != nil {
			return s, catalog.Errorf(catalog.TokenMalformed, "the %s is not in base64url: the token was cut or changed when it was copied", name)
		}
		if json.Unmarshal(content, &s) != nil {
			return s, catalog.Errorf(catalog.TokenMalformed, "the %s is not JSON, or a value in it has another type than it should", name)
		}
	}
	return s, nil
}

// what names the token's kind, for a person.
func (s said) what() string {
	switch {
	case strings.EqualFold(s.Kind, "BulkRegistration"):
		return "a bulk registration token"
	case s.entra():
		return "a token of the Entra tenant " + short(s.Tenant, 64)
	case s.Category != "":
		return "a token of the category " + short(s.Category, 40)
	case s.Scope != "":
		return "a CCM token, scope " + short(s.Scope, 40)
	case s.Confirm.Key != "":
		return "a token of the site for one device"
	}
	return "a token of a kind that is not known here"
}

func (s said) entra() bool {
	return s.Tenant != "" && (strings.HasPrefix(s.Issuer, "https://sts.windows.net/") || strings.HasPrefix(s.Issuer, "https://login.microsoftonline."))
}

// lines are the facts of the token. No signature and no part of the raw text is among them.
func (s said) lines() string {
	lines := []string{s.what()}
	for _, fact := range []struct{ name, value string }{
		{"id", s.UniqueID}, {"id", s.ID}, {"issuer", s.Issuer}, {"audience", string(s.Audience)}, {"hierarchy", s.Hierarchy}, {"subject", s.Subject},
		{"application", s.App}, {"application", s.AppV2}, {"device", s.Device}, {"version", s.Version}, {"algorithm", s.Algorithm}, {"signed by key", s.KeyID}, {"signed by certificate", s.X5T},
	} {
		if fact.value != "" && fact.value != "null" {
			lines = append(lines, fact.name+": "+short(fact.value, 100))
		}
	}
	for _, moment := range []struct {
		name  string
		value float64
	}{{"made", s.Issued}, {"valid from", s.NotBefore}, {"valid until", s.Expires}} {
		if moment.value != 0 {
			lines = append(lines, moment.name+": "+at(moment.value).Format(time.DateTime)+" UTC")
		}
	}
	switch {
	case s.Confirm.Key != "":
		lines = append(lines, "bound to the key of one device: without that key it is worth nothing")
	case s.Confirm.Certificate != "":
		lines = append(lines, "bound to a client certificate")
	default:
		lines = append(lines, "bound to no key: whoever holds it can use it, so keep the file secret")
	}
	return strings.Join(lines, "\n")
}

// at keeps a number that is no date within what can be written.
func at(seconds float64) time.Time {
	return time.Unix(int64(min(max(seconds, 0), 253402300799)), 0).UTC()
}

// checkToken explains the token and, where that is safe and known, shows it to the gateway.
func (r *run) checkToken(ctx context.Context) []diag.Finding {
	if r.Token == "" {
		return []diag.Finding{diag.NotLooked("no --token-file was given")}
	}
	s, err := decode(strings.TrimSpace(r.Token))
	if err != nil {
		return []diag.Finding{diag.FromError(diag.Fail, err, catalog.TokenMalformed)}
	}
	now, ends := r.Now(), at(s.Expires)
	switch {
	case s.Expires == 0:
		return []diag.Finding{diag.Found(diag.Fail, catalog.TokenNoExpiry, "%s", s.lines())}
	case !now.Before(ends.Add(token.Leeway)):
		return []diag.Finding{diag.Found(diag.Fail, catalog.TokenExpired, "it ended %s ago\n%s", days(now.Sub(ends)), s.lines())}
	case s.NotBefore != 0 && now.Add(token.Leeway).Before(at(s.NotBefore)):
		return []diag.Finding{diag.Found(diag.Fail, catalog.TokenNotYetValid, "it begins in %s, by this machine's clock\n%s", days(at(s.NotBefore).Sub(now)), s.lines())}
	}
	read := diag.Good("the token is in date", "%s left\n%s", days(ends.Sub(now)), s.lines())
	return []diag.Finding{read, r.shown(ctx, s)}
}

// shown asks our gateway for ServiceMetadata with the token, which spends no use of it.
func (r *run) shown(ctx context.Context, s said) diag.Finding {
	switch {
	case r.kind != kindPostern:
		return diag.NotLooked("it is sent to gateways of ours only: how Microsoft's take it is not public, and a token is not tried on others")
	case !r.trusted:
		return diag.NotLooked("the gateway's certificate was not found good, so the token is not sent")
	case s.Confirm.Key != "" || s.Confirm.Certificate != "":
		return diag.NotLooked("only the device that holds its key can use it; give the device's folder with --state")
	}
	header, err := r.proved(s.entra())
	if err != nil {
		return diag.FromError(diag.Fail, err, catalog.InternalError)
	}
	got, err := r.get(ctx, external(ccm.DoorServerAuth, "ServiceMetadata"), header, true)
	if err != nil {
		return lost("the answer to the token", err)
	}
	if got.status == http.StatusOK {
		return diag.Good("the gateway takes the token", "%s (no use of it was spent)", got)
	}
	return refused(got, catalog.SymptomGatewayInvalidToken)
}

// proved are the headers of a request with the token: a proof of a key that is made for
// this one request goes along (RFC 9449).
func (r *run) proved(entra bool) (http.Header, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	raw, scheme := strings.TrimSpace(r.Token), "DPoP"
	if entra {
		scheme = "Bearer"
	}
	proof, err := token.SignProof(key, http.MethodGet, r.url(external(ccm.DoorServerAuth, "ServiceMetadata")), raw, r.corrected(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return http.Header{"Authorization": {scheme + " " + raw}, "Dpop": {proof}}, nil
}

// corrected is the gateway's time, so that a wrong clock here does not hide what else is
// wrong. It is asked of a trusted gateway only.
func (r *run) corrected() time.Time {
	if r.date == nil {
		return r.Now()
	}
	return r.Now().Add(r.date.theirs.Sub(r.date.ours))
}

// refused is an answer that is a refusal, with the code that it gives when that is one of
// the catalogue's.
func refused(got answer, other catalog.Code) diag.Finding {
	code := got.problem().Code
	if entry, known := catalog.Lookup(code); !known || entry.Status == 0 {
		code = other
	}
	detail := got.String()
	if id := got.header.Get(ccm.HeaderMessageID); id != "" {
		detail += "\nrequest " + short(id, 64) + " in the gateway's log"
	}
	return diag.Found(diag.Fail, code, "%s", fmt.Sprintf("%s\ntrace %s", detail, got.trace))
}

func random24() (bytes [24]byte) {
	rand.Read(bytes[:]) // it never fails (crypto/rand)
	return bytes
}
