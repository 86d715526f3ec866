package entra

import (
	"net/url"
	"strings"
	"time"

	"postern/catalog"
	"postern/proof"
	"postern/token"
)

// form is the shape of an issuer, from which the shape of its tokens follows.
type form int

const (
	formOther form = iota // an OpenID provider that is not Entra
	formV1                // https://sts.windows.net/<tid>/
	formV2                // https://login.microsoftonline.com/<tid>/v2.0
)

// formOf judges by the path, so that it holds in every national cloud: Entra's issuers
// are the tenant's GUID alone, or followed by v2.0.
func formOf(tenant token.Tenant, issuer string) form {
	u, err := url.Parse(issuer)
	if err != nil || !guid(tenant.ID) {
		return formOther
	}
	switch strings.ToLower(u.Path) {
	case "/" + strings.ToLower(tenant.ID) + "/":
		return formV1
	case "/" + strings.ToLower(tenant.ID) + "/v2.0":
		return formV2
	}
	return formOther
}

// permitted says whether a token of this tenant is for us, and now.
func permitted(tenant token.Tenant, c claims, now time.Time, leeway time.Duration) error {
	form := formOf(tenant, c.issuer)
	for _, rule := range []func() error{
		func() error { return noActor(c) },
		func() error { return versionFits(form, c) },
		func() error { return forUs(tenant, form, c) },
		func() error { return fromApp(tenant, form, c) },
		func() error { return ofNow(c, now, leeway) },
	} {
		if err := rule(); err != nil {
			return err
		}
	}
	return nil
}

func noActor(c claims) error {
	if c.actor {
		return catalog.Errorf(catalog.EntraActor, "one of %s", strings.Join(actorClaims, ", "))
	}
	return nil
}

// versionFits: "if the token issued is a v2.0 token, the URI ends in /v2.0" (Entra
// access token claims reference). Other providers have no ver.
func versionFits(f form, c claims) error {
	want, ok := map[form]string{formV1: "1.0", formV2: "2.0"}[f]
	if ok && c.version != want {
		return catalog.Errorf(catalog.EntraVersion, "the issuer %s mints version %s, the claim ver is %s", quote(c.issuer), want, quote(c.version))
	}
	return nil
}

// forUs compares the audience. A version 1.0 token may have the App ID URI with or
// without a slash at the end (Entra optional claims reference, aud).
func forUs(tenant token.Tenant, form form, c claims) error {
	if len(c.audience) == 0 {
		return catalog.Errorf(catalog.EntraClaimMissing, "the claim aud is missing")
	}
	for _, name := range c.audience {
		for _, want := range tenant.Audiences {
			if want != "" && (name == want || form == formV1 && strings.TrimSuffix(name, "/") == strings.TrimSuffix(want, "/")) {
				return nil
			}
		}
	}
	return catalog.Errorf(catalog.EntraAudience, "the token is for %s", quote(strings.Join(c.audience, " ")))
}

// fromApp compares the application that asked for the token. Version 1.0 says it in
// appid, version 2.0 and OpenID Connect in azp, RFC 9068 in client_id. A token that
// Entra gives a device for itself names no application.
func fromApp(tenant token.Tenant, form form, c claims) error {
	if tenant.ClientApp == "" {
		return nil
	}
	app := c.authorizedParty
	switch {
	case form == formV1:
		app = c.appID
	case form == formOther && app == "":
		app = c.clientID
	}
	if form != formOther && c.appID == "" && c.authorizedParty == "" {
		if kind, err := kindOf(form, c); err == nil && kind == proof.CloudDevice {
			return nil
		}
	}
	if !strings.EqualFold(app, tenant.ClientApp) {
		return catalog.Errorf(catalog.EntraClientApp, "asked for by %s", quote(app))
	}
	return nil
}

func ofNow(c claims, now time.Time, leeway time.Duration) error {
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case c.expires.IsZero():
		return catalog.Errorf(catalog.EntraClaimMissing, "the claim exp is missing")
	case c.issuedAt.IsZero():
		return catalog.Errorf(catalog.EntraClaimMissing, "the claim iat is missing")
	case !now.Before(c.expires.Add(leeway)):
		return catalog.Errorf(catalog.EntraExpired, "ended at %s, the clock here says %s, the leeway is %s", stamp(c.expires), stamp(now), leeway)
	case now.Add(leeway).Before(c.notBefore):
		return catalog.Errorf(catalog.EntraNotYetValid, "begins at %s, the clock here says %s, the leeway is %s", stamp(c.notBefore), stamp(now), leeway)
	case now.Add(leeway).Before(c.issuedAt):
		return catalog.Errorf(catalog.EntraNotYetValid, "issued at %s, the clock here says %s, the leeway is %s", stamp(c.issuedAt), stamp(now), leeway)
	}
	return nil
}

// evidence says whom the token proves. A device and a user are told apart by claims
// that the provider alone sets; see [kindOf].
func evidence(tenant token.Tenant, c claims) (proof.Cloud, error) {
	form := formOf(tenant, c.issuer)
	kind, err := kindOf(form, c)
	if err != nil {
		return proof.Cloud{}, err
	}
	cloud := proof.Cloud{
		Tenant: strings.ToLower(tenant.ID), Issuer: c.issuer, Kind: kind,
		Device: strings.ToLower(c.device), TokenID: c.uti,
	}
	if cloud.TokenID == "" {
		cloud.TokenID = c.jti
	}
	if kind == proof.CloudDevice {
		if c.device == "" {
			return proof.Cloud{}, catalog.Errorf(catalog.EntraClaimMissing, "the claim deviceid is missing")
		}
		cloud.DeviceSID = c.sid
		return cloud, nil
	}
	user := c.object
	if user == "" && form == formOther && guid(c.subject) {
		user = c.subject // OpenID Connect has no oid; sub is as immutable
	}
	if user == "" {
		return proof.Cloud{}, catalog.Errorf(catalog.EntraClaimMissing, "the claim oid is missing")
	}
	cloud.User, cloud.UserSID = strings.ToLower(user), c.sid
	return cloud, nil
}

// kindOf tells a device's token from a user's. idtyp says it when it is there (Entra
// optional claims reference: app, user, device). Without it, a token about the device
// itself has the device's id as subject and no scope, and a user's token has a scope:
// "only included for user tokens". What is left is an application's own token, which
// is nobody.
func kindOf(form form, c claims) (string, error) {
	switch c.identityType {
	case "device":
		return proof.CloudDevice, nil
	case "user":
		return proof.CloudUser, nil
	case "":
	default:
		return "", catalog.Errorf(catalog.EntraKind, "idtyp is %s", quote(c.identityType))
	}
	own := c.subject == "" || c.subject == c.clientID || c.subject == c.authorizedParty // RFC 9068 2.2, client credentials
	switch {
	case c.device != "" && c.scope == "" && strings.EqualFold(c.device, c.subject):
		return proof.CloudDevice, nil
	case form == formOther && !own, form != formOther && c.scope != "":
		return proof.CloudUser, nil
	}
	return "", catalog.Errorf(catalog.EntraKind, "no idtyp, and neither a device nor a scope")
}
