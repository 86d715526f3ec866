package issuer

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/go-jose/go-jose/v4"
)

// Header says how Mint makes a token's header and signature; the zero value is what
// Entra would do.
type Header struct {
	Algorithm string          // "" means RS256; also RS384, PS256, HS256 (keyed by the public key) and none
	KeyID     string          // "" means that of the key
	Key       *rsa.PrivateKey // nil means the stand-in's own
	Fields    map[string]any  // further fields, or others in place of the usual ones; nil leaves a field out
}

// DeviceClaims returns the claims of a device's token, with the names that Entra uses.
// The device itself asks for it: there is no application in it.
func (i *Issuer) DeviceClaims(d Device, v Version) map[string]any {
	d.ID, d.ObjectID = orGUID(d.ID), orGUID(d.ObjectID)
	claims := i.claims(v)
	maps.Copy(claims, map[string]any{"idtyp": "device", "deviceid": d.ID, "oid": d.ObjectID, "sub": d.ID, "xms_idrel": "9 22"})
	if v == V1 {
		claims["amr"] = []string{"rsa"}
	}
	if d.OnPremSID != "" {
		claims["onprem_sid"] = d.OnPremSID
	}
	return claims
}

// UserClaims returns the claims of a user's token, with the names that Entra uses.
func (i *Issuer) UserClaims(u User, v Version) map[string]any {
	u.ObjectID = orGUID(u.ObjectID)
	claims := i.claims(v)
	pairwise := sha256.Sum256([]byte(u.ObjectID + i.options.ServerApp))
	maps.Copy(claims, map[string]any{
		"oid": u.ObjectID, "sub": base64.RawURLEncoding.EncodeToString(pairwise[:]), "scp": "user_impersonation", "name": u.Name,
	})
	maps.Copy(claims, map[Version]map[string]any{
		V1: {"appid": i.options.ClientApp, "appidacr": "0", "acr": "1", "amr": []string{"pwd", "mfa"}, "upn": u.Name, "unique_name": u.Name},
		V2: {"azp": i.options.ClientApp, "azpacr": "0", "preferred_username": u.Name},
	}[v])
	if u.Device != "" {
		claims["deviceid"] = u.Device
	}
	if u.OnPremSID != "" {
		claims["onprem_sid"] = u.OnPremSID
	}
	return claims
}

// claims are what every token has.
func (i *Issuer) claims(v Version) map[string]any {
	now := i.options.Now()
	audience := i.options.Resource
	if v == V2 {
		audience = i.options.ServerApp
	}
	return map[string]any{
		"aud": audience, "iss": i.IssuerOf(v), "tid": i.options.Tenant, "ver": string(v),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(i.options.Lifetime).Unix(),
		"uti": random(16), "rh": "1." + random(24), "aio": random(32), "ipaddr": "192.0.2.10",
	}
}

// DeviceToken returns a token as the device would get it.
func (i *Issuer) DeviceToken(d Device, v Version) (string, error) {
	return i.Mint(i.DeviceClaims(d, v), Header{})
}

// UserToken returns a token as the user would get it.
func (i *Issuer) UserToken(u User, v Version) (string, error) {
	return i.Mint(i.UserClaims(u, v), Header{})
}

// Mint signs any claims, also those that no provider would. A claim that is nil is left
// out.
func (i *Issuer) Mint(claims map[string]any, h Header) (string, error) {
	own := i.signing()
	fields := map[string]any{"typ": "JWT", "alg": "RS256", "kid": own.id, "x5t": own.id}
	if claims["ver"] == string(V2) {
		delete(fields, "x5t") // "emitted only in v1.0 access tokens"
	}
	if h.Algorithm != "" {
		fields["alg"] = h.Algorithm
	}
	if h.KeyID != "" {
		fields["kid"] = h.KeyID
	}
	maps.Copy(fields, h.Fields)
	if h.Key == nil {
		h.Key = own.key
	}
	head, err := encode(fields)
	if err != nil {
		return "", err
	}
	body, err := encode(claims)
	if err != nil {
		return "", err
	}
	signature, err := signature(h.Algorithm, h.Key, []byte(head+"."+body))
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	return head + "." + body + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

func encode(fields map[string]any) (string, error) {
	fields = maps.Clone(fields)
	maps.DeleteFunc(fields, func(_ string, value any) bool { return value == nil })
	raw, err := json.Marshal(fields)
	if err != nil {
		return "", fmt.Errorf("encode a token: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(raw), nil
}

func signature(algorithm string, key *rsa.PrivateKey, input []byte) ([]byte, error) {
	sum := sha256.Sum256(input)
	switch algorithm {
	case "", "RS256":
		return rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	case "RS384":
		hash := crypto.SHA384.New()
		hash.Write(input)
		return rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA384, hash.Sum(nil))
	case "PS256":
		return rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	}
	// HS256 keyed by what everybody knows is the attack; none, and names that nobody
	// knows, get bytes too, because an empty part is refused for another reason.
	mac := hmac.New(sha256.New, key.N.Bytes())
	mac.Write(input)
	return mac.Sum(nil), nil
}

func (i *Issuer) signing() signingKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[len(i.keys)-1]
}

// jwks returns the published keys.
func (i *Issuer) jwks() json.RawMessage {
	i.mu.Lock()
	defer i.mu.Unlock()
	var set jose.JSONWebKeySet
	for _, k := range i.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: &k.key.PublicKey, KeyID: k.id, Use: "sig"})
	}
	raw, err := json.Marshal(set)
	if err != nil {
		return nil // RSA keys can be encoded
	}
	return raw
}

func random(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // it never fails
	return base64.RawURLEncoding.EncodeToString(b)
}
