package client

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

// The words of the token exchange (RFC 8693, RFC 7523; design decision 11).
const (
	grantExchange  = "urn:ietf:params:oauth:grant-type:token-exchange"
	grantAssertion = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	tokenURN       = "urn:postern:token:"
)

// When tokens are renewed.
const (
	closeToExpiry  = 10 * time.Minute    // a message waits for a new CCM token
	selfProveRenew = 30 * 24 * time.Hour // "renews the token once a month" (S3), unless the site says otherwise
)

// tokenCache is the content of tokens.sealed: "cached encrypted" (S2). The bulk
// registration token is never in it.
type tokenCache struct {
	CCM       cachedToken `json:"ccm"`
	SelfProve cachedToken `json:"self_prove"`

	Key proof.KeyThumbprint `json:"key,omitempty"` // that they are bound to
}

type cachedToken struct {
	Token   string       `json:"token,omitempty"`
	Scope   string       `json:"scope,omitempty"`
	Client  ccm.ClientID `json:"client,omitempty"`
	Issued  time.Time    `json:"issued,omitzero"`
	Expires time.Time    `json:"expires,omitzero"`

	RenewAfter time.Duration `json:"renew_after,omitempty"` // age at which it is renewed, as the site says; 0 for the documents'
}

// lasts reports whether the token is good for that much longer.
func (t cachedToken) lasts(now time.Time, longer time.Duration) bool {
	return t.Token != "" && now.Add(longer).Before(t.Expires)
}

func (c tokenCache) status() []TokenStatus {
	var list []TokenStatus
	if c.CCM.Token != "" {
		list = append(list, TokenStatus{Kind: string(token.KindCCM), Scope: c.CCM.Scope, Issued: c.CCM.Issued, Expires: c.CCM.Expires})
	}
	if c.SelfProve.Token != "" {
		t := c.SelfProve
		list = append(list, TokenStatus{Kind: string(token.KindSelfProve), Scope: t.Scope, Issued: t.Issued, Expires: t.Expires, Renewal: t.renewAt(c.Key).Truncate(time.Second)})
	}
	return list
}

// credential is what lets the device in at the token service.
type credential struct {
	what   string // for steps
	token  string // "" for an assertion alone
	scheme string // of Authorization; "" is DPoP
	tenant bool   // the token is yet to be got from the tenant
}

// credentials are what the device has, the best first (product.md 2.1). A device that its
// tenant proves asks there each time (S2); its self-prove token is for when that fails.
func (a *Agent) credentials(r record, bulk Secret) []credential {
	var list []credential
	if a.usesEntra(r) {
		list = append(list, credential{what: "Entra token", tenant: true})
	}
	if t := a.cached().SelfProve; t.lasts(a.clock.corrected(), 0) {
		list = append(list, credential{what: "self-prove token", token: t.Token})
	}
	if bulk != "" {
		list = append(list, credential{what: "bulk registration token", token: string(bulk)})
	}
	if r.State.registered() && (r.Route.RoleID == 0 || !a.usesEntra(r)) { // inside as ever; through a gateway for a device whose tokens have ended and that has no tenant to ask
		list = append(list, credential{what: "assertion of the registered key"})
	}
	return list
}

// nothingToShow says why there is no credential.
func (a *Agent) nothingToShow() error {
	if t := a.cached().SelfProve; t.Token != "" {
		return catalog.Errorf(catalog.ClientAwayTooLong, "the self-prove token ended %s", stamp(t.Expires))
	}
	return catalog.Errorf(catalog.ClientTokenNeeded, "give --token-file with the token of `postern token new`")
}

// noReturn says of a site that lets no device come back by its key alone what that means here.
func (a *Agent) noReturn(err error) error {
	if catalog.CodeOf(err) != catalog.ReturnOff {
		return err
	}
	if t := a.cached().SelfProve; t.Token != "" {
		return catalog.Wrap(catalog.ClientAwayTooLong, err, "the self-prove token ended %s, and this site lets no device come back by its key alone", stamp(t.Expires))
	}
	return catalog.Wrap(catalog.ClientAwayTooLong, err, "no token is left, and this site lets no device come back by its key alone")
}

// obtainOnce gets a token with the best credential that the token service takes, and keeps it.
func (a *Agent) obtainOnce(ctx context.Context, c *conversation, kind token.Kind, bulk Secret) (exchanged, error) {
	list := a.credentials(a.current(), bulk)
	if len(list) == 0 {
		return exchanged{}, a.nothingToShow()
	}
	var got exchanged
	var err, away error
	for i, with := range list {
		if got, err = a.obtainWith(ctx, c, kind, with); err == nil || ctx.Err() != nil {
			break
		}
		if Transient(err) && with.tenant {
			away = err
		}
		if i+1 == len(list) || !with.tenant && !refusal(err) || list[i+1].token == "" && ofTheDevice(err) {
			break
		}
	}
	if err != nil && away != nil && ctx.Err() == nil {
		return got, away // waiting helps: the provider comes back
	}
	if err == nil && got.quarantine == quarantineAutomatic {
		a.proveAfresh(ctx, c)
	}
	return got, a.noReturn(err)
}

// ofTheDevice reports whether a refusal is of the device itself: its key alone does no better.
func ofTheDevice(err error) bool {
	switch catalog.CodeOf(err) {
	case catalog.DeviceUnknown, catalog.DeviceBlocked, catalog.DeviceObsolete, catalog.KeyBlocked:
		return true
	}
	return false
}

// obtainWith gets a token with one credential.
func (a *Agent) obtainWith(ctx context.Context, c *conversation, kind token.Kind, with credential) (exchanged, error) {
	tenant := with.tenant
	if tenant {
		var err error
		if with, err = a.entraToken(ctx, c); err != nil {
			return exchanged{}, err
		}
	}
	var got exchanged
	err := a.step(ctx, c.route.hop(), what(kind, with), func() (err error) {
		got, err = a.exchange(ctx, c, kind, with)
		if err != nil {
			return err
		}
		return a.keepToken(c, kind, got)
	})
	if err == nil && got.Scope == token.ScopeRegister {
		a.logs.means(c.log, with.what)
	}
	if err == nil && got.Scope == token.ScopeRegister && !tenant && a.current().Entra.Use {
		err = a.save(func(r *record) { r.Entra.Use = false }) // another credential has proved the device
	}
	return got, err
}

func what(kind token.Kind, with credential) string {
	if kind == token.KindSelfProve && with.token != "" {
		return "self-prove token by " + with.what + " and assertion of the registered key"
	}
	return map[token.Kind]string{token.KindCCM: "CCM token", token.KindSelfProve: "self-prove token"}[kind] + " by " + with.what
}

// refusal reports whether the server judged the credential; another may do better.
func refusal(err error) bool {
	said, ok := errors.AsType[*ServerError](err)
	return ok && said.Status >= 400 && said.Status < 500 && !busy(said.Status)
}

// exchanged is what the token service gave.
type exchanged struct {
	cachedToken
	approval   ccm.ApprovalStatus
	quarantine string // how the device leaves it; "" when it is in none

	gateways *[]string // as CCMHOSTNAME has them; nil when the answer says nothing of them
}

// exchange is one request to CCM_STS.
func (a *Agent) exchange(ctx context.Context, c *conversation, kind token.Kind, with credential) (exchanged, error) {
	if kind == token.KindCCM {
		a.logs.askingToken(c.log, c.route)
	}
	var got exchanged
	address := c.url(ccm.EndpointSTS, "")
	err := a.ask(ctx, c, func(now time.Time) (call, error) {
		form := url.Values{"grant_type": {grantExchange}, "requested_token_type": {tokenURN + string(kind)}}
		if kind == token.KindSelfProve || with.token == "" {
			assertion, err := token.SignAssertion(a.speaker(c).signing, a.current().ClientID, address, now)
			if err != nil {
				return call{}, err
			}
			form.Set("grant_type", grantAssertion)
			form.Set("assertion", assertion)
		}
		return call{
			method: http.MethodPost, url: address, contentType: "application/x-www-form-urlencoded", body: []byte(form.Encode()),
			token: with.token, scheme: with.scheme, preAuth: true, limit: maxTokenAnswer, keyAlone: with.token == "" && c.route.RoleID != 0,
		}, nil
	}, func(got2 answer) (err error) {
		got, err = parseTokenAnswer(kind, got2, a.clock.corrected())
		return err
	})
	return got, err
}

// tokenAnswer is the answer of the token service (RFC 8693 2.2.1).
type tokenAnswer struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"`
	Scope           string `json:"scope"`
	ClientID        string `json:"client_id"`
	ApprovalStatus  *int   `json:"approval_status"`
	RenewAfter      int64  `json:"renew_after"`
	Quarantine      string `json:"quarantine"`

	Gateways *[]string `json:"gateways"` // absent: the site says nothing of them
}

// maxTokenLife is more than any token lives.
const maxTokenLife = 366 * 24 * time.Hour

func parseTokenAnswer(kind token.Kind, got answer, now time.Time) (exchanged, error) {
	var t tokenAnswer
	if err := json.Unmarshal(got.body, &t); err != nil {
		return exchanged{}, catalog.Errorf(catalog.ClientAnswerUnreadable, "the token service's answer is not the JSON of RFC 8693")
	}
	id, err := ccm.ParseClientID(t.ClientID)
	life := time.Duration(min(max(t.ExpiresIn, 0), int64(maxTokenLife/time.Second))) * time.Second
	switch {
	case err != nil:
		return exchanged{}, catalog.Errorf(catalog.ClientAnswerUnreadable, "the token service's answer names no client id")
	case !tokenForm(t.AccessToken) || life == 0:
		return exchanged{}, catalog.Errorf(catalog.ClientAnswerUnreadable, "the token service's answer holds no token, or none that lasts")
	case !strings.EqualFold(t.TokenType, "DPoP") || t.IssuedTokenType != tokenURN+string(kind):
		return exchanged{}, catalog.Errorf(catalog.ClientAnswerUnreadable, "the token service's answer holds another token than was asked for")
	case kind == token.KindCCM && t.Scope != token.ScopeRegister && t.Scope != token.ScopeClient:
		return exchanged{}, catalog.Errorf(catalog.ClientAnswerUnreadable, "the token service's answer has the scope %.40q", clean(t.Scope, 40))
	}
	out := exchanged{cachedToken{Token: t.AccessToken, Scope: t.Scope, Client: id, Issued: now.UTC(), Expires: now.Add(life).UTC()}, ccm.ApprovalUnknown, t.Quarantine, gatewaysOf(t)}
	if kind == token.KindSelfProve && t.RenewAfter > 0 && t.RenewAfter < int64(life/time.Second) {
		out.RenewAfter = time.Duration(t.RenewAfter) * time.Second
	}
	if t.ApprovalStatus != nil {
		out.approval = ccm.ApprovalStatus(*t.ApprovalStatus)
	}
	return out, nil
}

// keepToken caches a token and what the answer says of the device.
func (a *Agent) keepToken(c *conversation, kind token.Kind, got exchanged) error {
	r := a.current()
	if r.State.registered() && got.Scope != token.ScopeRegister && got.Client != r.ClientID {
		return catalog.Errorf(catalog.ClientOtherID, "registered as %s, the token service says %s", r.ClientID, got.Client)
	}
	key := a.identity().thumbprint
	err := a.saveTokens(func(t *tokenCache) {
		t.Key = key
		if kind == token.KindSelfProve {
			t.SelfProve = got.cachedToken
		} else {
			t.CCM = got.cachedToken
		}
	})
	if err != nil {
		return err
	}
	if kind == token.KindSelfProve {
		a.logs.selfProveCached(c.log, got.Expires)
	} else {
		a.logs.tokenCached(c.log, got.Expires)
	}
	tokens, now, network := a.cached().status(), a.config.Now(), a.network()
	return a.save(func(r *record) {
		r.Tokens = tokens
		if got.Scope != token.ScopeRegister {
			if r.Roaming.hear(got.gateways, now, network); c.route.inside() {
				r.Roaming.InsideOn = network
			}
		}
		switch {
		case got.Scope == token.ScopeRegister && r.State != StatePending:
			r.State, r.ClientID = StateTokenExchanged, got.Client
		case got.Scope == token.ScopeClient && !r.State.registered():
			r.State, r.ClientID, r.Approval = StateRegistered, got.Client, got.approval
		case got.Scope == token.ScopeClient && got.approval != ccm.ApprovalUnknown:
			r.Approval = got.approval
		}
	})
}
