package entra

import (
	"cmp"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// openID asks any other OpenID provider.
type openID struct {
	want Want
	http *http.Client
	now  func() time.Time
}

const (
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	assertionLife = 5 * time.Minute
)

// discover reads the provider's document; the issuer in it must be the authority.
func (o *openID) discover(ctx context.Context) (*oidc.Provider, context.Context, error) {
	ctx = oidc.ClientContext(ctx, o.http) // it is x/oauth2's client too
	p, err := oidc.NewProvider(ctx, o.want.Authority)
	return p, ctx, err
}

func (o *openID) device(ctx context.Context, c credential) (entry, error) {
	p, ctx, err := o.discover(ctx)
	if err != nil {
		return entry{}, err
	}
	var document struct {
		Issuer string `json:"issuer"`
	}
	if err := p.Claims(&document); err != nil {
		return entry{}, err
	}
	assertion, err := o.assertion(c, document.Issuer)
	if err != nil {
		return entry{}, err
	}
	config := clientcredentials.Config{
		ClientID: o.want.ClientApp, TokenURL: p.Endpoint().TokenURL, AuthStyle: oauth2.AuthStyleInParams,
		EndpointParams: url.Values{"client_assertion_type": {assertionType}, "client_assertion": {assertion}, "resource": {o.want.Resource}},
	}
	token, err := config.Token(ctx)
	return o.entry(token, ""), err
}

// assertion proves the client by the certificate's key (RFC 7523, private_key_jwt). Its
// audience is the issuer, so that it is of no use anywhere else.
func (o *openID) assertion(c credential, audience string) (string, error) {
	algorithm := jose.ES256
	if _, ok := c.key.(*rsa.PrivateKey); ok {
		algorithm = jose.RS256
	}
	sum := sha256.Sum256(c.certificate.Raw)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: c.key},
		(&jose.SignerOptions{}).WithType("JWT").WithHeader("x5t#S256", base64.RawURLEncoding.EncodeToString(sum[:])))
	if err != nil {
		return "", fmt.Errorf("sign the assertion: %w", err)
	}
	now := o.now()
	return jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: o.want.ClientApp, Subject: o.want.ClientApp, Audience: jwt.Audience{audience}, ID: oauth2.GenerateVerifier(),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(assertionLife)),
	}).Serialize()
}

func (o *openID) config(p *oidc.Provider) *oauth2.Config {
	endpoint := p.Endpoint()
	endpoint.AuthStyle = oauth2.AuthStyleInParams
	return &oauth2.Config{ClientID: o.want.ClientApp, Endpoint: endpoint, Scopes: []string{oidc.ScopeOpenID, oidc.ScopeOfflineAccess}}
}

func (o *openID) again(ctx context.Context, old entry) (entry, error) {
	if old.Refresh == "" {
		return entry{}, errNobody
	}
	p, ctx, err := o.discover(ctx)
	if err != nil {
		return entry{}, err
	}
	token, err := o.config(p).TokenSource(ctx, &oauth2.Token{RefreshToken: old.Refresh}).Token()
	got := o.entry(token, old.Account)
	got.Refresh = cmp.Or(got.Refresh, old.Refresh)
	return got, err
}

func (o *openID) signIn(ctx context.Context) (Prompt, func(context.Context) (entry, error), error) {
	p, ctx, err := o.discover(ctx)
	if err != nil {
		return Prompt{}, nil, err
	}
	config, resource := o.config(p), oauth2.SetAuthURLParam("resource", o.want.Resource)
	if config.Endpoint.DeviceAuthURL == "" {
		return Prompt{}, nil, errors.New("the provider has no device_authorization_endpoint")
	}
	code, err := config.DeviceAuth(ctx, resource)
	if err != nil {
		return Prompt{}, nil, err
	}
	wait := func(ctx context.Context) (entry, error) {
		ctx = oidc.ClientContext(ctx, o.http)
		token, err := config.DeviceAccessToken(ctx, code, resource)
		if err != nil {
			return entry{}, err
		}
		account, err := o.account(ctx, p, token)
		return o.entry(token, account), err
	}
	return Prompt{Address: code.VerificationURI, Code: code.UserCode, Expires: code.Expiry}, wait, nil
}

// account is who has signed in, for the log.
func (o *openID) account(ctx context.Context, p *oidc.Provider, token *oauth2.Token) (string, error) {
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return "", nil
	}
	// The id token comes straight from the token endpoint and is no evidence here: its
	// times are not asked, so that a wrong clock is not mistaken for a wrong provider.
	id, err := p.Verifier(&oidc.Config{ClientID: o.want.ClientApp, SkipExpiryCheck: true, SkipIssuerCheck: true}).Verify(ctx, raw)
	if err != nil {
		return "", err
	}
	return harmless(id.Subject, 40), nil
}

func (o *openID) entry(token *oauth2.Token, account string) entry {
	if token == nil || !strings.EqualFold(token.Type(), "Bearer") {
		return entry{}
	}
	return entry{Token: token.AccessToken, Account: account, Expires: token.Expiry, Refresh: token.RefreshToken}
}
