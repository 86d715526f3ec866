package entra

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"postern/auth"
	"postern/catalog"
	"postern/proof"
	"postern/token"
)

// Config is what a Validator needs.
type Config struct {
	// Tenants gives the onboarded tenants of this moment, with their keys. It is asked
	// at every token, so it answers from memory. It must not be nil.
	Tenants func() []token.Tenant
	// Leeway is how far the clocks may differ; 0 means token.Leeway. An error about a
	// time names it.
	Leeway time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// CacheSize is how many verified tokens are kept; 0 means 10000, negative none.
	CacheSize int
	// OnUnknownKey hears of every token that is signed by a key its tenant does not
	// list; nil means nobody. It must not block: [Source.Unknown] is made for it.
	OnUnknownKey func(TenantKey)
}

// TenantKey names a key of a tenant that the site has not published.
type TenantKey struct {
	Tenant string `json:"tenant"`
	KeyID  string `json:"kid"`
}

// maxUnknown is how many unknown keys are remembered between two calls of Unknown.
const maxUnknown = 64

// Validator judges tokens of the onboarded tenants. It is safe for concurrent use.
type Validator struct {
	config Config
	cache  *auth.Cache[verified]

	mu      sync.Mutex
	sets    map[string]keySet      // by tenant, as last read
	unknown map[TenantKey]struct{} // at most maxUnknown
}

// verified is what a token said, and the key that it was found to be signed by. Whether
// that key still counts is asked at every use.
type verified struct {
	document document
	key      proof.KeyThumbprint
}

// keySet is a tenant's key set, read; raw says from what.
type keySet struct {
	raw  json.RawMessage
	byID map[string]key
	err  error
}

// New returns a Validator.
func New(config Config) *Validator {
	if config.Leeway == 0 {
		config.Leeway = token.Leeway
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.CacheSize == 0 {
		config.CacheSize = 10_000
	}
	return &Validator{config: config, cache: auth.NewCache[verified](config.CacheSize), sets: map[string]keySet{}, unknown: map[TenantKey]struct{}{}}
}

// Validate returns what the token proves and when it ends. The error is a
// *catalog.Error: EntraTokenTooLarge, EntraTokenMalformed, EntraTokenBringsKey,
// EntraTokenCritical, EntraAlgorithm or EntraClaimType when the token cannot be read;
// EntraTenantUnknown, EntraTenantMismatch, EntraIssuer or EntraTenantDisabled when it
// is of nobody we know; EntraKeysMissing, EntraKeyUnknown or EntraSignature when the
// tenant did not sign it; and for what it says EntraActor, EntraVersion, EntraAudience,
// EntraClientApp, EntraExpired, EntraNotYetValid, EntraClaimMissing and EntraKind.
//
// Tenant, keys, audience and times are judged at every call; only the signature of a
// token that was seen before is not verified again.
func (v *Validator) Validate(ctx context.Context, raw string) (proof.Cloud, time.Time, error) {
	if len(raw) > token.MaxToken {
		_, err := read(raw)
		return proof.Cloud{}, time.Time{}, err
	}
	now := v.config.Now()
	hash := sha256.Sum256([]byte(raw))
	entry, known := v.cache.Get(hash)
	if !known {
		d, err := read(raw)
		if err != nil {
			return proof.Cloud{}, time.Time{}, err
		}
		entry = verified{document: d}
	}
	cloud, err := v.judge(ctx, raw, &entry, now)
	if err != nil {
		return proof.Cloud{}, time.Time{}, err
	}
	if !known {
		v.cache.Put(hash, entry, entry.document.claims.expires.Add(v.config.Leeway), now)
	}
	return cloud, entry.document.claims.expires, nil
}

// judge goes from the tenant to the key to the signature to what the token says. It
// writes into the entry by which key the signature was found good.
func (v *Validator) judge(ctx context.Context, raw string, entry *verified, now time.Time) (proof.Cloud, error) {
	c := entry.document.claims
	tenant, err := chooseTenant(v.config.Tenants(), c)
	if err != nil {
		return proof.Cloud{}, err
	}
	k, err := v.key(tenant, entry.document.header)
	if err != nil {
		return proof.Cloud{}, err
	}
	if k.thumbprint != entry.key {
		if err := verify(ctx, raw, c.issuer, k); err != nil {
			return proof.Cloud{}, err
		}
	}
	entry.key = k.thumbprint
	if err := permitted(tenant, c, now, v.config.Leeway); err != nil {
		return proof.Cloud{}, err
	}
	return evidence(tenant, c)
}

// chooseTenant finds the tenant by what the token says of itself. That decides only
// whose rules and whose keys it is judged by.
func chooseTenant(tenants []token.Tenant, c claims) (token.Tenant, error) {
	if c.issuer == "" {
		return token.Tenant{}, catalog.Errorf(catalog.EntraClaimMissing, "the claim iss is missing")
	}
	var ofIssuer, ofID bool
	for _, tenant := range tenants {
		issuer, id := slices.Contains(tenant.Issuers, c.issuer), strings.EqualFold(tenant.ID, c.tenant)
		ofIssuer, ofID = ofIssuer || issuer, ofID || id
		if !issuer || !id && (c.tenant != "" || formOf(tenant, c.issuer) != formOther) {
			continue
		}
		if tenant.Disabled {
			return token.Tenant{}, catalog.Errorf(catalog.EntraTenantDisabled, "the tenant %s", tenant.ID)
		}
		return tenant, nil
	}
	switch {
	case ofIssuer && c.tenant == "":
		return token.Tenant{}, catalog.Errorf(catalog.EntraClaimMissing, "the claim tid is missing")
	case ofIssuer:
		return token.Tenant{}, catalog.Errorf(catalog.EntraTenantMismatch, "the issuer %s is of another tenant than %s", quote(c.issuer), quote(c.tenant))
	case ofID:
		return token.Tenant{}, catalog.Errorf(catalog.EntraIssuer, "the tenant %s has no issuer %s", quote(c.tenant), quote(c.issuer))
	}
	return token.Tenant{}, catalog.Errorf(catalog.EntraTenantUnknown, "tenant %s, issuer %s", quote(c.tenant), quote(c.issuer))
}

// quote makes a value from an unverified token fit for a line of text.
func quote(value string) string {
	const longest = 120
	if len(value) > longest {
		return fmt.Sprintf("%+q...", value[:longest])
	}
	return fmt.Sprintf("%+q", value)
}

// key returns the tenant's key that the token names, if it is for the algorithm that
// the token names.
func (v *Validator) key(tenant token.Tenant, h header) (key, error) {
	if len(tenant.Keys) == 0 {
		return key{}, catalog.Errorf(catalog.EntraKeysMissing, "the tenant %s", tenant.ID)
	}
	set := v.set(tenant)
	if set.err != nil {
		return key{}, catalog.Wrap(catalog.EntraKeysMissing, set.err, "the tenant %s", tenant.ID)
	}
	k, ok := set.byID[h.keyID]
	if !ok {
		v.miss(TenantKey{Tenant: tenant.ID, KeyID: h.keyID})
		return key{}, catalog.Errorf(catalog.EntraKeyUnknown, "the tenant %s, the key %s", tenant.ID, quote(h.keyID))
	}
	if k.algorithm != h.algorithm {
		return key{}, catalog.Errorf(catalog.EntraAlgorithm, "the key signs with %s", k.algorithm)
	}
	return k, nil
}

// set reads the tenant's keys once for each time that they change.
func (v *Validator) set(tenant token.Tenant) keySet {
	v.mu.Lock()
	set, ok := v.sets[tenant.ID]
	v.mu.Unlock()
	if ok && bytes.Equal(set.raw, tenant.Keys) {
		return set
	}
	keys, _, err := parseKeys(tenant.Keys, tenant.ID)
	set = keySet{raw: tenant.Keys, byID: make(map[string]key, len(keys)), err: err}
	for _, k := range keys {
		set.byID[k.id] = k
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.sets[tenant.ID] = set; len(v.sets) > 2*len(v.config.Tenants())+16 {
		v.sets = map[string]keySet{tenant.ID: set} // of tenants that were removed
	}
	return set
}

// miss notes an unknown key. Key ids come from whoever sends tokens, so only so many
// are kept.
func (v *Validator) miss(key TenantKey) {
	v.mu.Lock()
	if len(v.unknown) < maxUnknown {
		v.unknown[key] = struct{}{}
	}
	v.mu.Unlock()
	if v.config.OnUnknownKey != nil {
		v.config.OnUnknownKey(key)
	}
}

// Unknown returns the unknown keys that were met since the last call, at most 64 of
// them, and forgets them: a gateway tells the site in its acknowledgement.
func (v *Validator) Unknown() []TenantKey {
	v.mu.Lock()
	defer v.mu.Unlock()
	keys := make([]TenantKey, 0, len(v.unknown))
	for key := range v.unknown {
		keys = append(keys, key)
	}
	clear(v.unknown)
	return keys
}

// signedBy is a key set of one key for go-oidc.
type signedBy struct{ key key }

var errSignature = errors.New("the signature does not fit the key")

// VerifySignature implements oidc.KeySet.
func (s signedBy) VerifySignature(_ context.Context, raw string) ([]byte, error) {
	signed, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(s.key.algorithm)})
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	payload, err := signed.Verify(s.key.public)
	if err != nil {
		return nil, errSignature
	}
	return payload, nil
}

// verify checks signature and issuer with the OpenID Connect library. Audience and
// times are ours: a tenant has several audiences, and the library has a leeway of its
// own.
func verify(ctx context.Context, raw, issuer string, k key) error {
	verifier := oidc.NewVerifier(issuer, signedBy{k}, &oidc.Config{
		SupportedSigningAlgs: []string{k.algorithm}, SkipClientIDCheck: true, SkipExpiryCheck: true,
	})
	_, err := verifier.Verify(ctx, raw)
	switch {
	case err == nil:
		return nil
	case strings.Contains(err.Error(), errSignature.Error()): // go-oidc does not wrap it
		return catalog.Errorf(catalog.EntraSignature, "the key %s did not sign this token", quote(k.id))
	}
	return catalog.Wrap(catalog.EntraTokenMalformed, err, "not an access token in the form of OpenID Connect")
}
