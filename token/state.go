package token

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// SiteState is all that a gateway knows of the site (design decision 4). The site
// root signs it; a connector relays it and cannot alter it.
type SiteState struct {
	Epoch               uint64                `json:"epoch"`  // rises by every change; an older one is never accepted
	Issued              time.Time             `json:"issued"` // when this copy was signed
	SiteCode            ccm.SiteCode          `json:"site_code"`
	Hierarchy           string                `json:"hierarchy"`
	Root                []byte                `json:"root"` // SPKI DER of the site root; SignState fills it in
	Keys                []PublicKey           `json:"keys,omitempty"`
	Published           []Published           `json:"published,omitempty"`
	BlockedTokens       []string              `json:"blocked_tokens,omitempty"`       // jti, or UniqueId of a bulk token
	BlockedKeys         []proof.KeyThumbprint `json:"blocked_keys,omitempty"`         // of devices
	BlockedCertificates []string              `json:"blocked_certificates,omitempty"` // pins of role certificates' keys
	Gateways            []Gateway             `json:"gateways,omitempty"`
	Tenants             []Tenant              `json:"tenants,omitempty"`
	Authorities         *Authorities          `json:"authorities,omitempty"`
	Return              bool                  `json:"return,omitempty"`        // a device may come back by its registered key alone
	Roots               []string              `json:"roots,omitempty"`         // links of all changes of the site root, see [FollowRoots]
	RevokedRoots        []string              `json:"revoked_roots,omitempty"` // pins of roots that vouch for nothing any more
	Nonce               string                `json:"nonce,omitempty"`         // for proofs, see [Nonces]; it changes without the state
}

// PublicKey is a key by which tokens are verified.
type PublicKey struct {
	ID        string    `json:"id"` // kid or x5t
	Kind      Kind      `json:"kind"`
	Algorithm string    `json:"alg"`
	SPKI      []byte    `json:"spki"` // DER
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	State     string    `json:"state"`
}

// Published is one role at the site that gateways publish, and what of it.
type Published struct {
	RoleID      uint64         `json:"role_id"` // the number in the external path (protocol.md 7.1)
	Name        string         `json:"name"`
	InternalURL string         `json:"internal_url"`
	Endpoints   []ccm.Endpoint `json:"endpoints"`
}

// Tenant is one onboarded Entra tenant, or one realm of another OpenID provider.
type Tenant struct {
	ID        string          `json:"id"`        // tid of its tokens, lower case
	Issuers   []string        `json:"issuers"`   // iss of its tokens, exact: v1 and v2 forms
	Audiences []string        `json:"audiences"` // aud of tokens for this site, any of them
	ClientApp string          `json:"client_app"`
	Resource  string          `json:"resource"`
	Disabled  bool            `json:"disabled,omitempty"` // onboarded, but not for sign-in
	Keys      json.RawMessage `json:"keys,omitempty"`     // the provider's JWKS as last fetched
}

// Authorities are those of the company under which client certificates are accepted,
// and how their revocation is judged.
type Authorities struct {
	Roots         [][]byte `json:"roots"` // DER
	Intermediates [][]byte `json:"intermediates,omitempty"`
	Revocation    string   `json:"revocation"`        // require, prefer or off
	Sources       []string `json:"sources,omitempty"` // of lists and answers: the only addresses that are asked
}

// Authority is where a client begins to ask for a token: the first issuer.
func (t Tenant) Authority() string {
	if len(t.Issuers) == 0 {
		return ""
	}
	return t.Issuers[0]
}

// Gateway is one gateway of the site.
type Gateway struct {
	Name string `json:"name"`
	URL  string `json:"url"`
	Pin  string `json:"pin"` // of its key
}

// PublicKey returns the key without its secret part.
func (k Key) PublicKey() (PublicKey, error) {
	der, err := x509.MarshalPKIXPublicKey(k.Public)
	if err != nil {
		return PublicKey{}, fmt.Errorf("encode key %s: %w", k.ID, err)
	}
	return PublicKey{ID: k.ID, Kind: k.Kind, Algorithm: k.Algorithm, SPKI: der, NotBefore: k.NotBefore, NotAfter: k.NotAfter, State: k.State}, nil
}

// Key returns the key as a verifier takes it.
func (p PublicKey) Key() (Key, error) {
	pub, err := x509.ParsePKIXPublicKey(p.SPKI)
	if err != nil {
		return Key{}, fmt.Errorf("decode key %s: %w", p.ID, err)
	}
	return Key{ID: p.ID, Kind: p.Kind, Algorithm: p.Algorithm, Public: pub, NotBefore: p.NotBefore, NotAfter: p.NotAfter, State: p.State}, nil
}

// Verifier returns a verifier for the state's keys. A key that cannot be decoded is
// an error: a state that is half understood is not used.
func (s SiteState) Verifier() (*Verifier, error) {
	keys := make([]Key, 0, len(s.Keys))
	for _, public := range s.Keys {
		key, err := public.Key()
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return NewVerifier(s.Hierarchy, keys), nil
}

// SignState signs a state with the site root.
func SignState(state SiteState, root crypto.Signer) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(root.Public())
	if err != nil {
		return "", fmt.Errorf("encode site root: %w", err)
	}
	state.Root = der
	raw, err := signDocument(root, DocumentState, state)
	if err == nil && len(raw) > MaxDocument {
		return "", catalog.Errorf(catalog.StateTooLarge, "%d bytes, the limit is %d", len(raw), MaxDocument)
	}
	return raw, err
}

// OpenState verifies a state that must be signed by the root with that pin. Codes:
// StateTooLarge, StateMalformed, StateOtherRoot, StateSignature. Whether it is newer
// than the one at hand is for the caller to judge.
func OpenState(raw, rootPin string) (SiteState, error) {
	var state SiteState
	if _, err := openDocument(raw, MaxDocument, DocumentState, stateCodes(), byRoot(rootPin), &state); err != nil {
		return SiteState{}, err
	}
	root, err := x509.ParsePKIXPublicKey(state.Root)
	if err != nil || byRoot(rootPin)(Pin(root)) != nil {
		return SiteState{}, catalog.Errorf(catalog.StateMalformed, "the state names another root than the one that signed it")
	}
	return state, nil
}

// Beat is the site's sign of life between two states.
type Beat struct {
	Epoch uint64    `json:"epoch"`
	At    time.Time `json:"at"`
	Nonce string    `json:"nonce,omitempty"` // for proofs, see [Nonces]
}

// SignBeat signs a heartbeat for the state with that epoch.
func SignBeat(epoch uint64, now time.Time, root crypto.Signer) (string, error) {
	return SignBeatOf(Beat{Epoch: epoch, At: now}, root)
}

// SignBeatOf is [SignBeat] with all that a heartbeat says.
func SignBeatOf(beat Beat, root crypto.Signer) (string, error) {
	beat.At = beat.At.UTC()
	return signDocument(root, DocumentBeat, beat)
}

// OpenBeat verifies a heartbeat; codes as [OpenState].
func OpenBeat(raw, rootPin string) (Beat, error) {
	var beat Beat
	_, err := openDocument(raw, MaxToken, DocumentBeat, stateCodes(), byRoot(rootPin), &beat)
	if err != nil {
		return Beat{}, err
	}
	return beat, nil
}

// Equal reports whether two states say the same; when they were signed, and the nonce of
// that moment, do not matter.
func (s SiteState) Equal(other SiteState) bool {
	s.Issued, other.Issued = time.Time{}, time.Time{}
	s.Nonce, other.Nonce = "", ""
	a, errA := json.Marshal(s)
	b, errB := json.Marshal(other)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}
