package ccm

import (
	"crypto/rsa"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"postern/catalog"
)

// The headers that sign a policy download (protocol.md 4.4).
const (
	HeaderClientToken                 = "ClientToken"
	HeaderClientTokenSignature        = "ClientTokenSignature"
	HeaderCCMClientID                 = "CCMClientID"
	HeaderCCMClientIDSignature        = "CCMClientIDSignature"
	HeaderCCMClientTimestamp          = "CCMClientTimestamp"
	HeaderCCMClientTimestampSignature = "CCMClientTimestampSignature"
)

// PolicyAuthFamily tells the two header families of a policy download apart (protocol.md 4.4).
type PolicyAuthFamily string

// The header families of protocol.md 4.4; A and A' differ only in the form of the value.
const (
	PolicyAuthClientToken PolicyAuthFamily = "ClientToken"
	PolicyAuthCCMClient   PolicyAuthFamily = "CCMClient"
)

// PolicyAuth is the proof that a client sends with the download of a policy body.
type PolicyAuth struct {
	ClientID ClientID
	Time     time.Time // when the client signed, by its own clock, which may be wrong by its time zone
	Family   PolicyAuthFamily
	signed   []signedText
	hashes   []string // the hashes that may have been used, by algorithm id
}

// signedText is a header value as it was sent and the signature over it.
type signedText struct {
	text      string
	signature []byte
}

// maxPolicyAuthHeader bounds each header: a signature of an 8192-bit key has 2048 digits.
const maxPolicyAuthHeader = 4096

// clientTokenForm is GUID:<uuid>;<time>, {<uuid>};<time> or <uuid>;<time>, with or without ;<header type>.
var clientTokenForm = regexp.MustCompile(`^(?i:GUID:)?(\{?[0-9A-Fa-f-]{36}\}?);([0-9TZ:-]{20})(?:;([12]))?$`)

// ParsePolicyAuth reads the headers that sign a policy download. ok is false when the request carries none of them; a
// request that carries some but not all, one of them twice, or both families, is an error. Errors have the code
// PolicyAuthMalformed. Nothing is proved before Verify, and how old Time may be is the caller's rule.
func ParsePolicyAuth(header http.Header) (auth PolicyAuth, ok bool, err error) {
	token, tokenErr := policyHeaders(header, HeaderClientToken, HeaderClientTokenSignature)
	client, clientErr := policyHeaders(header, HeaderCCMClientID, HeaderCCMClientIDSignature, HeaderCCMClientTimestamp, HeaderCCMClientTimestampSignature)
	switch {
	case tokenErr != nil:
		return PolicyAuth{}, true, tokenErr
	case clientErr != nil:
		return PolicyAuth{}, true, clientErr
	case token != nil && client != nil:
		return PolicyAuth{}, true, catalog.Errorf(catalog.PolicyAuthMalformed, "both header families are there")
	case token != nil:
		auth, err = parseClientToken(token)
		return auth, true, err
	case client != nil:
		auth, err = parseCCMClient(client)
		return auth, true, err
	}
	return PolicyAuth{}, false, nil
}

// policyHeaders returns the values of the named headers; nil when there is none of them.
func policyHeaders(header http.Header, names ...string) ([]string, error) {
	var values []string
	for _, name := range names {
		switch got := header.Values(name); {
		case len(got) > 1:
			return nil, catalog.Errorf(catalog.PolicyAuthMalformed, "the header %s is there twice", name)
		case len(got) == 1 && len(got[0]) > maxPolicyAuthHeader:
			return nil, catalog.Errorf(catalog.PolicyAuthMalformed, "the header %s is too long", name)
		case len(got) == 1:
			values = append(values, got[0])
		}
	}
	if len(values) > 0 && len(values) < len(names) {
		return nil, catalog.Errorf(catalog.PolicyAuthMalformed, "of %s one is missing", strings.Join(names, ", "))
	}
	return values, nil
}

// parseClientToken reads families A and A': ClientToken and its signature.
func parseClientToken(values []string) (PolicyAuth, error) {
	parts := clientTokenForm.FindStringSubmatch(values[0])
	if parts == nil {
		return PolicyAuth{}, catalog.Errorf(catalog.PolicyAuthMalformed, "ClientToken is not an id, a time and at most a type")
	}
	hashes := []string{hashSHA256WithRSA}
	if parts[3] == "1" { // the older header type, protocol.md 4.4
		hashes = []string{hashSHA1WithRSA}
	}
	return newPolicyAuth(PolicyAuthClientToken, parts[1], parts[2], hashes, values)
}

// parseCCMClient reads family B: id and time each with its signature. The header type is not among the signed headers,
// so both hashes are possible.
func parseCCMClient(values []string) (PolicyAuth, error) {
	id := values[0]
	if len(id) > 5 && strings.EqualFold(id[:5], "GUID:") {
		id = id[5:]
	}
	return newPolicyAuth(PolicyAuthCCMClient, id, values[2], []string{hashSHA256WithRSA, hashSHA1WithRSA}, values)
}

// newPolicyAuth takes the values as text and signature in turn.
func newPolicyAuth(family PolicyAuthFamily, id, at string, hashes, values []string) (PolicyAuth, error) {
	if strings.HasPrefix(id, "{") && strings.HasSuffix(id, "}") {
		id = id[1 : len(id)-1]
	}
	clientID, err := ParseClientID("GUID:" + id)
	if err != nil {
		return PolicyAuth{}, catalog.Wrap(catalog.PolicyAuthMalformed, err, "the client id is not one")
	}
	when, err := time.Parse(wireTime, at)
	if err != nil {
		return PolicyAuth{}, catalog.Wrap(catalog.PolicyAuthMalformed, err, "the time is not yyyy-MM-ddTHH:mm:ssZ")
	}
	auth := PolicyAuth{ClientID: clientID, Time: when, Family: family, hashes: hashes}
	for i := 0; i < len(values); i += 2 {
		signature, err := parseSignatureHex(values[i+1])
		if err != nil {
			return PolicyAuth{}, catalog.Wrap(catalog.PolicyAuthMalformed, err, "a signature is not hexadecimal")
		}
		auth.signed = append(auth.signed, signedText{values[i], signature})
	}
	return auth, nil
}

// Weak reports whether the proof needs SHA-1 to hold: only a site that still serves clients of 2007 takes it.
func (a PolicyAuth) Weak(key *rsa.PublicKey) bool {
	for _, hash := range a.hashes {
		if StrongHash(hash) && a.verifyWith(key, hash) == nil {
			return false
		}
	}
	return true
}

// Verify checks every signature with the client's registered key: over the header's text in UTF-16LE, with or without a
// final NUL, with or without DigestInfo (protocol.md 4.4, 12). Errors have the code PolicyAuthSignature.
func (a PolicyAuth) Verify(key *rsa.PublicKey) error {
	if len(a.signed) == 0 {
		return catalog.Errorf(catalog.PolicyAuthSignature, "nothing is signed")
	}
	for _, hash := range a.hashes {
		if a.verifyWith(key, hash) == nil {
			return nil
		}
	}
	return catalog.Errorf(catalog.PolicyAuthSignature, "the headers of %s are not signed with its registered key", a.ClientID)
}

func (a PolicyAuth) verifyWith(key *rsa.PublicKey, hash string) error {
	for _, s := range a.signed {
		if err := verifySignedText(key, hash, s.signature, s.text); err != nil {
			return err
		}
	}
	return nil
}

// SignPolicyAuth sets the headers of family A on a policy download: ClientToken with the id, the time and the type 2, and
// its signature (protocol.md 4.4).
func SignPolicyAuth(header http.Header, id ClientID, key *rsa.PrivateKey, now time.Time) error {
	token := string(id) + ";" + now.UTC().Format(wireTime) + ";2"
	signature, err := SignReversed(key, encodeUTF16Z(token))
	if err != nil {
		return fmt.Errorf("sign policy download of %s: %w", id, err)
	}
	header.Set(HeaderClientToken, token)
	header.Set(HeaderClientTokenSignature, signature)
	return nil
}
