package mp

import (
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/proof"
	"postern/site"
	"postern/token"
)

// The words of the token exchange (RFC 8693, RFC 7523; design decision 11). The token that is exchanged travels in Authorization, so that a
// gateway can admit it without reading the body.
const (
	grantExchange  = "urn:ietf:params:oauth:grant-type:token-exchange"
	grantAssertion = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	tokenURN       = "urn:postern:token:"
)

// tokenReply is the answer of the token service (RFC 8693 2.2.1), with the client id and what the device is approved for.
type tokenReply struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"`
	Scope           string `json:"scope,omitempty"`
	ClientID        string `json:"client_id"`
	ApprovalStatus  int    `json:"approval_status"`
	RenewAfter      int64  `json:"renew_after,omitempty"` // of a self-prove token: its age in seconds at which it is to be renewed
	Quarantine      string `json:"quarantine,omitempty"`  // automatic or manual: how the device leaves it; absent when it is in none

	Gateways []string `json:"gateways,omitzero"` // of a registered device: its ways in from the internet, as CCMHOSTNAME has them; an empty list means there are none
}

// tokens is CCM_STS: it exchanges what the caller proved for a token of the site.
func (v *visit) tokens() {
	issued, err := v.exchange()
	if err != nil {
		v.refuse(err)
		return
	}
	v.proof.Client = issued.Claims.Client
	v.mp.logs.tokenIssued(issued)
	v.did("issued a %s token for %s", issued.Claims.Kind, issued.Claims.Client)
	if hook := v.mp.config.Hooks.Token; hook != nil {
		hook(string(issued.Claims.Kind))
	}
	var gateways []string
	if issued.Claims.Scope != token.ScopeRegister {
		gateways = v.mp.gatewayNames()
	}
	body, err := json.Marshal(tokenReply{
		AccessToken: issued.Token, IssuedTokenType: tokenURN + string(issued.Claims.Kind), TokenType: "DPoP",
		ExpiresIn: int64(issued.Claims.Expires.Sub(v.mp.now()) / time.Second), Scope: issued.Claims.Scope,
		ClientID: string(issued.Claims.Client), ApprovalStatus: int(issued.Approval),
		RenewAfter: int64(issued.RenewAfter / time.Second), Quarantine: string(issued.Quarantine),
		Gateways: gateways,
	})
	if err != nil {
		v.refuse(err)
		return
	}
	v.reply(http.StatusOK, "application/json", body)
}

func (v *visit) exchange() (site.Issued, error) {
	form, err := v.form()
	if err != nil {
		return site.Issued{}, err
	}
	ask, err := v.exchangeOf(form)
	if err != nil {
		return site.Issued{}, err
	}
	if cloud := ask.Caller.Cloud; cloud != nil && ask.Caller.Method == proof.Entra {
		v.mp.logs.cloudValidated(*cloud)
	}
	ask.Turn = func(work func() error) error { return v.turn(v.signing(), work) }
	return v.mp.site.IssueToken(v.r.Context(), ask)
}

// exchangeOf reads what is asked for, and by whom. The assertion names the address that the client called: the one in its DPoP proof, or,
// for a client inside that has no token, the one of the request itself.
func (v *visit) exchangeOf(form url.Values) (site.Exchange, error) {
	ask := site.Exchange{Caller: v.caller(), Assertion: form.Get("assertion"), Audience: v.called, Certificate: v.ownCertificate()}
	kinds := map[string]token.Kind{tokenURN + "ccm": token.KindCCM, tokenURN + "self-prove": token.KindSelfProve}
	kind, known := kinds[form.Get("requested_token_type")]
	if !known {
		return ask, catalog.Errorf(catalog.TokenRequestInvalid, "requested_token_type is neither %sccm nor %sself-prove", tokenURN, tokenURN)
	}
	ask.Want = kind
	switch grant := form.Get("grant_type"); {
	case grant != grantAssertion && v.proof.Method == proof.Assertion:
		return ask, catalog.Errorf(catalog.ReturnGrant, "grant_type is %.64q", grant)
	case grant == grantExchange && v.proof.Method == proof.Anonymous:
		return ask, catalog.Errorf(catalog.TokenMissing, "a token exchange needs a token in Authorization and a proof in DPoP")
	case grant == grantAssertion && ask.Assertion == "":
		return ask, catalog.Errorf(catalog.AssertionMissing, "the form has no assertion")
	case grant != grantExchange && grant != grantAssertion:
		return ask, catalog.Errorf(catalog.TokenRequestInvalid, "grant_type is neither token-exchange nor jwt-bearer")
	case v.proof.Method != proof.Anonymous:
		return ask, nil
	case !v.hop.direct():
		return ask, catalog.Errorf(catalog.AssertionNotDirect, "send a self-prove token in Authorization")
	case !v.mp.site.OwnName(hostOnly(v.r.Host)):
		return ask, catalog.Errorf(catalog.AssertionAudience, "the request is not for a name of this management point")
	}
	ask.Caller.Method = proof.Assertion
	ask.Audience = "https://" + v.r.Host + v.r.URL.Path
	return ask, nil
}

// ownCertificate names the client certificate that the caller has shown here itself, if it is for the key that it proved; "" otherwise.
func (v *visit) ownCertificate() string {
	if !v.hop.direct() || !v.showsCertificate() || v.proof.Key == "" {
		return ""
	}
	certificate := v.r.TLS.PeerCertificates[0]
	if key, err := proof.Thumbprint(certificate.PublicKey); err != nil || key != v.proof.Key {
		return ""
	}
	return auth.CertificateThumbprint(certificate)
}

// form reads the body. A field twice is refused: two readers could take different ones.
func (v *visit) form() (url.Values, error) {
	mediaType, _, err := mime.ParseMediaType(v.r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/x-www-form-urlencoded" {
		return nil, catalog.Errorf(catalog.RequestMalformed, "send application/x-www-form-urlencoded")
	}
	data, err := v.body()
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(data))
	if err != nil {
		return nil, catalog.Errorf(catalog.RequestMalformed, "the form is wrongly encoded")
	}
	for name, values := range form {
		if len(values) > 1 {
			return nil, catalog.Errorf(catalog.RequestMalformed, "the field %.32q is there %d times", name, len(values))
		}
	}
	return form, nil
}
