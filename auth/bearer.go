package auth

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"postern/catalog"
	"postern/proof"
	"postern/token"
)

// Replay remembers the ids of proofs. Fresh reports whether id was never given
// before, and remembers it at least until the given time; of concurrent calls with
// one id exactly one gets true. An error means that it cannot tell: the request is
// refused.
type Replay interface {
	Fresh(ctx context.Context, id string, until time.Time) (bool, error)
}

// Revocation says whether what a token claims has been withdrawn: nil, or a
// *catalog.Error such as TokenBlocked or KeyBlocked. It is asked at every request, so
// it answers from memory. For a bulk token, Key is the key that proved itself.
type Revocation interface {
	Revoked(c token.Claims) error
}

// Keys gives the verifier of this moment; it may be another after a rotation.
type Keys interface {
	Verifier() *token.Verifier
}

// KindEntra stands beside the site's own kinds of token in what a route accepts: a token
// of an onboarded tenant, sent with the scheme Bearer and a DPoP proof of the key that
// the site's own token shall be bound to.
const KindEntra token.Kind = "entra"

// Cloud judges tokens of onboarded tenants; package auth/entra has the one of Postern.
// It returns what the token proves and when it ends.
type Cloud interface {
	Validate(ctx context.Context, raw string) (proof.Cloud, time.Time, error)
}

// BearerConfig is what a Bearer needs.
type BearerConfig struct {
	Keys       Keys
	Revocation Revocation // nil: nothing is ever revoked
	Replay     Replay
	// URL compares the address in a proof, an absolute https URL without query, with
	// the request. nil error means the same; another error is answered as
	// ProofOtherURL. It must not be nil.
	URL func(r *http.Request, htu *url.URL) error
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// CacheSize is how many verified tokens are kept; 0 means 10000, negative none.
	CacheSize int
	// MutualTLS lets a token with cnf.x5t#S256 stand without a DPoP proof when the
	// connection's client certificate is the one it names. Only for a listener that
	// ends the device's own TLS: a management point, never a gateway.
	MutualTLS bool
	// Cloud judges tokens of tenants; nil means that none is onboarded.
	Cloud Cloud
	// Nonces are for proofs of devices whose clock is wrong; nil means that proofs are
	// judged by their own time alone.
	Nonces token.Nonces
}

// Bearer reads tokens of the site from requests. It is safe for concurrent use.
type Bearer struct {
	config BearerConfig
	cache  *Cache[token.Claims]
	keys   *token.ProofKeys
}

// NewBearer returns a Bearer.
func NewBearer(config BearerConfig) *Bearer {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.CacheSize == 0 {
		config.CacheSize = 10_000
	}
	return &Bearer{config: config, cache: NewCache[token.Claims](config.CacheSize), keys: token.NewProofKeys(max(config.CacheSize, 2))}
}

// credential is a token as it came, with the claims that it was found to have.
type credential struct {
	raw    string
	claims token.Claims
}

// Proof returns what the request proves by a token of one of the accepted kinds and
// a proof of its key (RFC 9449). No credential at all is TokenMissing; everything
// else that is not a good token with a good proof is an error with its own code, and
// [RefusedKey] says of it whose request was refused.
// Address is the connection's; an edge behind a connector puts the device's there.
func (b *Bearer) Proof(r *http.Request, accept ...token.Kind) (proof.Proof, error) {
	now := b.config.Now()
	scheme, raw, err := authorization(r)
	if err != nil {
		return proof.Proof{}, err
	}
	if scheme == schemeBearer && b.config.Cloud != nil && slices.Contains(accept, KindEntra) && len(r.Header.Values("DPoP")) > 0 {
		return b.withCloud(r, raw, now)
	}
	if scheme == schemeBearer {
		return b.withCertificate(r, raw, now, accept)
	}
	proofRaw, err := proofHeader(r)
	if err != nil {
		return proof.Proof{}, err
	}
	c, err := b.verified(raw, now, accept)
	if err != nil && !timely(err) {
		return proof.Proof{}, err
	}
	p, wrong := token.VerifyProofKnown(proofRaw, r.Method, raw, now, b.config.Nonces, b.keys)
	switch {
	case err != nil:
		return proof.Proof{}, refusedBy(p.Key, err)
	case wrong != nil:
		return proof.Proof{}, wrong
	}
	if err := b.bound(r, c, p); err != nil {
		return proof.Proof{}, err
	}
	return result(r, c.claims, p.Key, now), nil
}

// Possession checks a proof that comes without a token, for a request whose caller is
// known by the client certificate of that key: it is by the key, for this method and
// address, fresh, and used for the first time. The request must have the header DPoP.
func (b *Bearer) Possession(r *http.Request, key proof.KeyThumbprint) error {
	raw, err := proofHeader(r)
	if err != nil {
		return err
	}
	p, err := token.VerifyProofKnown(raw, r.Method, "", b.config.Now(), b.config.Nonces, b.keys)
	if err != nil {
		return err
	}
	return b.bound(r, credential{claims: token.Claims{Key: key}}, p)
}

// timely reports whether a token of the site was refused by the time alone. Its proof is
// looked at all the same, so that the refusal has a name.
func timely(err error) bool {
	code := catalog.CodeOf(err)
	return code == catalog.TokenExpired || code == catalog.TokenNotYetValid
}

// refusal is the refusal of a request whose caller had proved a key.
type refusal struct {
	key proof.KeyThumbprint
	err error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func refusedBy(key proof.KeyThumbprint, err error) error {
	if key == "" || err == nil {
		return err
	}
	return &refusal{key, err}
}

// RefusedKey returns the key whose good proof came with the request that was refused with
// err; "" when none did. It is for accounts of refusals and grants nothing: a proof that is
// sent a second time is refused, and comes from whoever has seen it.
func RefusedKey(err error) proof.KeyThumbprint {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.key
	}
	return ""
}

// verified checks the token, from the cache when it was checked before.
func (b *Bearer) verified(raw string, now time.Time, accept []token.Kind) (credential, error) {
	verifier := b.config.Keys.Verifier()
	sum := sha256.Sum256([]byte(raw))
	claims, known := b.cache.Get(sum)
	if !known {
		var err error
		if claims, err = verifier.Verify(raw, now, token.Kinds()...); err != nil {
			return credential{}, err
		}
		b.cache.Put(sum, claims, claims.Expires.Add(token.Leeway), now)
	}
	if err := verifier.Check(claims, now, accept...); err != nil {
		return credential{}, err
	}
	return credential{raw: raw, claims: claims}, nil
}

// bound ties the proof to the token, to the site's revocations, to the address and
// to this one use, in this order: a caller learns nothing about a token whose key it
// does not hold, and only good proofs take room in the replay memory.
func (b *Bearer) bound(r *http.Request, c credential, p token.ProofClaims) error {
	err := sameKey(c.claims, p.Key)
	if err == nil {
		err = b.revoked(c.claims, p.Key)
	}
	if err == nil {
		err = b.sameURL(r, p.URL)
	}
	if err == nil {
		err = b.fresh(r.Context(), p)
	}
	return refusedBy(p.Key, err)
}

// sameKey lets every key use a bulk token, which comes before the device has a
// registered key, and only the named key use another.
func sameKey(c token.Claims, key proof.KeyThumbprint) error {
	if c.Kind == token.KindBulk {
		return nil
	}
	if c.Key == "" {
		return catalog.Errorf(catalog.TokenOtherCertificate, "this token is bound to a client certificate, not to a key")
	}
	if subtle.ConstantTimeCompare([]byte(c.Key), []byte(key)) != 1 {
		return catalog.Errorf(catalog.ProofOtherKey, "the proof is by the key %s", key)
	}
	return nil
}

func (b *Bearer) revoked(c token.Claims, key proof.KeyThumbprint) error {
	if b.config.Revocation == nil {
		return nil
	}
	if c.Key == "" {
		c.Key = key
	}
	return b.config.Revocation.Revoked(c)
}

func (b *Bearer) sameURL(r *http.Request, raw string) error {
	htu, err := url.Parse(raw)
	if err != nil {
		return catalog.Errorf(catalog.ProofOtherURL, "htu is not a URL")
	}
	if htu.Scheme != "https" || htu.Host == "" || htu.User != nil || htu.Opaque != "" || htu.RawQuery != "" || htu.ForceQuery || htu.Fragment != "" {
		return catalog.Errorf(catalog.ProofOtherURL, "htu must be https, with a host, without user, query and fragment")
	}
	if err := b.config.URL(r, htu); err != nil {
		return catalog.Wrap(catalog.ProofOtherURL, err, "the proof is not for this server or not for this path")
	}
	return nil
}

// fresh asks about a hash of key and id, so that ids of one device never collide
// with another's and all have the same size.
func (b *Bearer) fresh(ctx context.Context, p token.ProofClaims) error {
	sum := sha256.Sum256([]byte(string(p.Key) + "." + p.ID))
	fresh, err := b.config.Replay.Fresh(ctx, base64.RawURLEncoding.EncodeToString(sum[:]), p.Until().Add(time.Second))
	switch {
	case err != nil && catalog.CodeOf(err) != "":
		return err
	case err != nil:
		return catalog.Wrap(catalog.ProofMemoryFailed, err, "try again with a new proof")
	case !fresh:
		return catalog.Errorf(catalog.ProofReplayed, "each request needs a proof of its own")
	}
	return nil
}

// withCertificate judges a token that came as a bearer token: it is refused, unless
// it is bound to the client certificate of this very connection (RFC 8705).
func (b *Bearer) withCertificate(r *http.Request, raw string, now time.Time, accept []token.Kind) (proof.Proof, error) {
	c, err := b.verified(raw, now, accept)
	shows := r.TLS != nil && len(r.TLS.PeerCertificates) > 0
	switch {
	case !b.config.MutualTLS, err == nil && c.claims.CertificateThumbprint == "", err != nil && !(shows && timely(err)):
		return proof.Proof{}, b.refuseBearer(err, accept)
	case err != nil:
		return proof.Proof{}, err
	case !shows:
		return proof.Proof{}, catalog.Errorf(catalog.TokenOtherCertificate, "the connection shows no certificate")
	}
	certificate := r.TLS.PeerCertificates[0]
	shown := CertificateThumbprint(certificate)
	if subtle.ConstantTimeCompare([]byte(shown), []byte(c.claims.CertificateThumbprint)) != 1 {
		return proof.Proof{}, catalog.Errorf(catalog.TokenOtherCertificate, "the connection shows the certificate %s", shown)
	}
	key, err := proof.Thumbprint(certificate.PublicKey)
	if err != nil {
		return proof.Proof{}, catalog.Wrap(catalog.TokenOtherCertificate, err, "the certificate's key is not supported")
	}
	if c.claims.Key != "" && c.claims.Key != key {
		return proof.Proof{}, catalog.Errorf(catalog.TokenOtherCertificate, "the token is bound to another key than the certificate's")
	}
	if err := b.revoked(c.claims, key); err != nil {
		return proof.Proof{}, err
	}
	p := result(r, c.claims, key, now)
	p.Certificate = certificate.Raw
	return p, nil
}

// CertificateThumbprint is how a token names a client certificate (RFC 8705 3.1).
func CertificateThumbprint(certificate *x509.Certificate) string {
	sum := sha256.Sum256(certificate.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// withCloud judges a token of a tenant. It is bound to no key of the device, so the proof
// only says which key the caller holds: the site binds what it gives to that one.
func (b *Bearer) withCloud(r *http.Request, raw string, now time.Time) (proof.Proof, error) {
	proofRaw, err := proofHeader(r)
	if err != nil {
		return proof.Proof{}, err
	}
	cloud, _, err := b.config.Cloud.Validate(r.Context(), raw)
	if err != nil {
		return proof.Proof{}, err
	}
	p, err := token.VerifyProofKnown(proofRaw, r.Method, raw, now, b.config.Nonces, b.keys)
	if err != nil {
		return proof.Proof{}, err
	}
	if err := b.bound(r, credential{raw: raw, claims: token.Claims{Kind: KindEntra, Key: p.Key}}, p); err != nil {
		return proof.Proof{}, err
	}
	return proof.Proof{
		Method: proof.Entra, Key: p.Key, Cloud: &cloud, Tenant: cloud.Tenant, Device: cloud.Device, User: cloud.User,
		SID: cmp.Or(cloud.DeviceSID, cloud.UserSID), TokenID: cloud.TokenID, Address: address(r), At: now,
	}, nil
}

// refuseBearer tells a token of ours, which lacks its proof, from a foreign one.
func (b *Bearer) refuseBearer(err error, accept []token.Kind) error {
	switch catalog.CodeOf(err) {
	case catalog.TokenMalformed, catalog.TokenTooLarge, catalog.TokenHeader, catalog.TokenUnknownKey, catalog.TokenKeyRevoked, catalog.TokenAlgorithm, catalog.TokenSignature:
		if b.config.Cloud != nil && slices.Contains(accept, KindEntra) {
			return catalog.Errorf(catalog.TokenScheme, "send a tenant's token with a proof in the header DPoP beside it, and a token of the site with the scheme DPoP")
		}
		return catalog.Errorf(catalog.TokenScheme, "send the token with the scheme DPoP")
	}
	return catalog.Errorf(catalog.TokenWithoutProof, "send the token with the scheme DPoP and a proof in the header DPoP")
}

func result(r *http.Request, c token.Claims, key proof.KeyThumbprint, now time.Time) proof.Proof {
	methods := map[token.Kind]proof.Method{
		token.KindBulk: proof.BulkToken, token.KindCCM: proof.CCMToken, token.KindSelfProve: proof.SelfProveToken,
	}
	p := proof.Proof{
		Method: methods[c.Kind], Key: key, Client: c.Client, TokenID: c.ID, BulkID: c.BulkID,
		Scope: c.Scope, Address: address(r), At: now, Issued: c.IssuedAt, SigningKey: c.KeyID,
	}
	if c.Cloud != nil {
		p.Cloud, p.Tenant, p.Device, p.User, p.SID = c.Cloud, c.Cloud.Tenant, c.Cloud.Device, c.Cloud.User, cmp.Or(c.Cloud.DeviceSID, c.Cloud.UserSID)
	}
	return p
}

func address(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

const (
	schemeDPoP   = "dpop"
	schemeBearer = "bearer"
)

// authorization returns the scheme, in lower case, and the token of the only
// Authorization header.
func authorization(r *http.Request) (scheme, raw string, err error) {
	if inQuery(r) {
		return "", "", catalog.Errorf(catalog.TokenInQuery, "an address must not hold a token")
	}
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return "", "", catalog.Errorf(catalog.TokenMissing, "send Authorization and DPoP")
	}
	if len(values) > 1 {
		return "", "", catalog.Errorf(catalog.TokenScheme, "%d Authorization headers", len(values))
	}
	scheme, raw, _ = strings.Cut(values[0], " ")
	scheme = strings.ToLower(scheme)
	if scheme != schemeDPoP && scheme != schemeBearer {
		return "", "", catalog.Errorf(catalog.TokenScheme, "send the token with the scheme DPoP")
	}
	return scheme, strings.TrimLeft(raw, " "), nil
}

// inQuery reports whether the query has a parameter that carries tokens elsewhere.
func inQuery(r *http.Request) bool {
	if r.URL == nil || r.URL.RawQuery == "" {
		return false
	}
	for pair := range strings.SplitSeq(r.URL.RawQuery, "&") {
		name, _, _ := strings.Cut(pair, "=")
		if strings.EqualFold(name, "access_token") {
			return true
		}
	}
	return false
}

func proofHeader(r *http.Request) (string, error) {
	values := r.Header.Values("DPoP")
	switch len(values) {
	case 0:
		return "", catalog.Errorf(catalog.TokenWithoutProof, "the header DPoP is missing")
	case 1:
		return values[0], nil
	}
	return "", catalog.Errorf(catalog.ProofMalformed, "%d DPoP headers", len(values))
}
