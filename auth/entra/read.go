package entra

import (
	"encoding/base64"
	"strconv"
	"strings"
	"time"

	strictjson "github.com/go-jose/go-jose/v4/json" // refuses duplicate names and other case

	"postern/catalog"
	"postern/token"
)

// Budgets that hold before anything is decoded. A token has token.MaxToken bytes.
const (
	maxHeader      = 4 << 10 // base64url of the protected header
	maxHeaderDepth = 4
	maxClaimsDepth = 16
	maxClaims      = 256
	maxValue       = 1 << 10 // a claim that is read as text
	maxAudiences   = 16
	maxName        = 128 // kid, uti, jti, tid
)

// document is a token as it reads. Nothing of it has been verified.
type document struct {
	header header
	claims claims
}

type header struct {
	algorithm, keyID string
}

// claims are the claims that are judged; "" and the zero time say that a claim is not
// there. Names, mail addresses, groups and roles are not among them: they are no
// evidence.
type claims struct {
	issuer, tenant, version string
	subject, object, device string
	appID, authorizedParty  string // appid of version 1.0, azp of 2.0 and of OpenID Connect
	clientID                string // RFC 9068
	identityType, scope     string // idtyp, scp
	sid                     string // onprem_sid
	uti, jti                string
	audience                []string
	expires                 time.Time
	notBefore               time.Time
	issuedAt                time.Time
	actor                   bool
}

// read splits and decodes a token within the budgets. Codes: EntraTokenTooLarge,
// EntraTokenMalformed, EntraTokenBringsKey, EntraTokenCritical, EntraAlgorithm,
// EntraClaimType.
func read(raw string) (document, error) {
	if len(raw) > token.MaxToken {
		return document{}, catalog.Errorf(catalog.EntraTokenTooLarge, "%d bytes, the limit is %d", len(raw), token.MaxToken)
	}
	first, rest, _ := strings.Cut(raw, ".")
	second, third, _ := strings.Cut(rest, ".")
	if first == "" || second == "" || third == "" || strings.Contains(third, ".") {
		return document{}, catalog.Errorf(catalog.EntraTokenMalformed, "not three parts")
	}
	if len(first) > maxHeader {
		return document{}, catalog.Errorf(catalog.EntraTokenMalformed, "the header has %d characters, the limit is %d", len(first), maxHeader)
	}
	head, err := object(first, "header", maxHeaderDepth)
	if err != nil {
		return document{}, err
	}
	h, err := readHeader(head)
	if err != nil {
		return document{}, err
	}
	body, err := object(second, "content", maxClaimsDepth)
	if err != nil {
		return document{}, err
	}
	c, err := readClaims(body)
	if err != nil {
		return document{}, err
	}
	// Strict, so that one token has one text.
	if _, err := base64.RawURLEncoding.Strict().DecodeString(third); err != nil {
		return document{}, catalog.Wrap(catalog.EntraTokenMalformed, err, "the signature is not base64url")
	}
	return document{header: h, claims: c}, nil
}

type fields map[string]strictjson.RawMessage

func object(part, name string, depth int) (fields, error) {
	decoded, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return nil, catalog.Wrap(catalog.EntraTokenMalformed, err, "the %s is not base64url", name)
	}
	if !within(decoded, depth) {
		return nil, catalog.Errorf(catalog.EntraTokenMalformed, "the %s is nested deeper than %d", name, depth)
	}
	var f fields
	if err := strictjson.Unmarshal(decoded, &f); err != nil || f == nil {
		return nil, catalog.Wrap(catalog.EntraTokenMalformed, err, "the %s is not one JSON object with every name once", name)
	}
	if len(f) > maxClaims {
		return nil, catalog.Errorf(catalog.EntraTokenMalformed, "the %s has %d names, the limit is %d", name, len(f), maxClaims)
	}
	return f, nil
}

// within reports whether no array or object is nested deeper than limit.
func within(text []byte, limit int) bool {
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > limit {
				return false
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return true
}

// refusedHeader are the header fields by which a token would choose its own key or
// its own rules (RFC 8725 3.10, RFC 7515 4.1).
var refusedHeader = []struct {
	name string
	code catalog.Code
}{
	{"jwk", catalog.EntraTokenBringsKey},
	{"jku", catalog.EntraTokenBringsKey},
	{"x5u", catalog.EntraTokenBringsKey},
	{"x5c", catalog.EntraTokenBringsKey},
	{"crit", catalog.EntraTokenCritical},
	{"b64", catalog.EntraTokenCritical},
	{"zip", catalog.EntraTokenCritical},
}

func readHeader(f fields) (header, error) {
	for _, refused := range refusedHeader {
		if _, ok := f[refused.name]; ok {
			return header{}, catalog.Errorf(refused.code, "the header holds %s", refused.name)
		}
	}
	var h header
	var typ string
	for _, field := range []struct {
		name string
		into *string
	}{{"typ", &typ}, {"alg", &h.algorithm}, {"kid", &h.keyID}} {
		if value, ok := f[field.name]; ok && strictjson.Unmarshal(value, field.into) != nil {
			return header{}, catalog.Errorf(catalog.EntraTokenMalformed, "the header field %s is not a string", field.name)
		}
	}
	switch {
	case !accessToken(typ):
		return header{}, catalog.Errorf(catalog.EntraTokenMalformed, "typ is neither JWT nor at+jwt")
	case h.algorithm != algRS256 && h.algorithm != algES256:
		return header{}, catalog.Errorf(catalog.EntraAlgorithm, "want %s or %s", algRS256, algES256)
	case !visible(h.keyID):
		return header{}, catalog.Errorf(catalog.EntraTokenMalformed, "the header names no key (kid), or not in 1 to %d visible characters", maxName)
	}
	return h, nil
}

// accessToken allows the types that providers give access tokens; RFC 9068 2.1 has
// at+jwt. Other types are other conversations, such as a DPoP proof.
func accessToken(typ string) bool {
	typ = strings.TrimPrefix(strings.ToLower(typ), "application/")
	return typ == "" || typ == "jwt" || typ == "at+jwt"
}

// actorClaims say that somebody acts for somebody else: RFC 8693 4.1 and 4.4, and the
// names that Entra's own actor tokens have used.
var actorClaims = []string{"act", "may_act", "actor", "actort", "actortoken"}

func readClaims(f fields) (claims, error) {
	var c claims
	for _, field := range []struct {
		name  string
		into  *string
		check func(string) bool
		want  string
	}{
		{"iss", &c.issuer, nil, ""},
		{"tid", &c.tenant, visible, "1 to 128 visible characters"},
		{"ver", &c.version, nil, ""},
		{"sub", &c.subject, nil, ""},
		{"oid", &c.object, guid, "a GUID"},
		{"deviceid", &c.device, guid, "a GUID"},
		{"appid", &c.appID, nil, ""},
		{"azp", &c.authorizedParty, nil, ""},
		{"client_id", &c.clientID, nil, ""},
		{"idtyp", &c.identityType, nil, ""},
		{"scp", &c.scope, nil, ""},
		{"onprem_sid", &c.sid, securityID, "a security identifier"},
		{"uti", &c.uti, visible, "1 to 128 visible characters"},
		{"jti", &c.jti, visible, "1 to 128 visible characters"},
	} {
		value, ok := f[field.name]
		if !ok {
			continue
		}
		if err := text(value, field.name, field.into); err != nil {
			return claims{}, err
		}
		if field.check != nil && !field.check(*field.into) {
			return claims{}, catalog.Errorf(catalog.EntraClaimType, "the claim %s is not %s", field.name, field.want)
		}
	}
	for _, field := range []struct {
		name string
		into *time.Time
	}{{"exp", &c.expires}, {"nbf", &c.notBefore}, {"iat", &c.issuedAt}} {
		if err := moment(f, field.name, field.into); err != nil {
			return claims{}, err
		}
	}
	for _, name := range actorClaims {
		if _, ok := f[name]; ok {
			c.actor = true
		}
	}
	var err error
	c.audience, err = audience(f)
	return c, err
}

func text(value strictjson.RawMessage, name string, into *string) error {
	if len(value) == 0 || value[0] != '"' || strictjson.Unmarshal(value, into) != nil {
		return catalog.Errorf(catalog.EntraClaimType, "the claim %s is not a string", name)
	}
	if *into == "" || len(*into) > maxValue && name != "scp" {
		return catalog.Errorf(catalog.EntraClaimType, "the claim %s is empty or has more than %d bytes", name, maxValue)
	}
	return nil
}

// moment reads a NumericDate (RFC 7519 2). Fractions are cut off.
func moment(f fields, name string, into *time.Time) error {
	value, ok := f[name]
	if !ok {
		return nil
	}
	const lastYear9999 = 253402300799
	seconds, err := strconv.ParseFloat(string(value), 64)
	if err != nil || !(seconds > 0 && seconds <= lastYear9999) {
		return catalog.Errorf(catalog.EntraClaimType, "the claim %s is not a time in seconds", name)
	}
	*into = time.Unix(int64(seconds), 0).UTC()
	return nil
}

func audience(f fields) ([]string, error) {
	value, ok := f["aud"]
	if !ok {
		return nil, nil
	}
	var one string
	if len(value) > 0 && value[0] == '"' && text(value, "aud", &one) == nil {
		return []string{one}, nil
	}
	var several []strictjson.RawMessage
	if strictjson.Unmarshal(value, &several) != nil || len(several) == 0 || len(several) > maxAudiences {
		return nil, catalog.Errorf(catalog.EntraClaimType, "the claim aud is neither a string nor a list of 1 to %d strings", maxAudiences)
	}
	names := make([]string, len(several))
	for i, value := range several {
		if err := text(value, "aud", &names[i]); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// visible reports whether s has 1 to 128 characters, all visible ASCII.
func visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// guid reports whether s is a GUID as Entra writes it, in any case.
func guid(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case !('0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'):
			return false
		}
	}
	return true
}

// securityID reports whether s is a security identifier in text form, S-1-5-21-...
// ([MS-DTYP] 2.4.2.1).
func securityID(s string) bool {
	parts := strings.Split(s, "-")
	if len(s) > 184 || len(parts) < 4 || len(parts) > 18 || parts[0] != "S" || parts[1] != "1" {
		return false
	}
	for _, part := range parts[2:] {
		if _, err := strconv.ParseUint(part, 10, 48); err != nil || len(part) > 1 && part[0] == '0' {
			return false
		}
	}
	return true
}
