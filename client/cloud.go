package client

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/logfile"
	"postern/token"
)

// Entra gets tokens of the tenant that this device has joined. Package entra below has the
// one for Microsoft Entra and other OpenID providers.
type Entra interface {
	// TenantID is the tenant of the join.
	TenantID() string
	// Token returns a token for a site's application: the device's own, or a user's when that
	// fails (S2). It keeps tokens until they end and ends within a bounded time, unless a
	// person is asked. Errors carry the codes of the catalogue's area entraclient.
	Token(ctx context.Context, want EntraWant) (EntraToken, error)
}

// EntraWant says for what a token is wanted.
type EntraWant struct {
	TenantID, ClientApp, Resource, Authority string
	Log                                      *logfile.Log // takes the lines of S2; nil is the Entra's own log
}

// EntraToken is a token of the tenant.
type EntraToken struct {
	Raw     Secret
	Kind    string // "Device" or "UDA", as CCM_STS.log says (S2)
	Account string // id of the device or of the user
	Expires time.Time
}

// cloud is what the device knows of its way through a tenant. It holds no secret.
type cloud struct {
	Use       bool   `json:"use,omitempty"` // the device proves itself by the tenant
	TenantID  string `json:"tenant_id,omitempty"`
	ClientApp string `json:"client_app,omitempty"`
	Resource  string `json:"resource,omitempty"`
	Authority string `json:"authority,omitempty"`
	Kind      string `json:"kind,omitempty"` // of the last token
	Account   string `json:"account,omitempty"`
}

func (t cloud) complete() bool { return t.TenantID != "" && t.ClientApp != "" && t.Resource != "" }

// token names the tenant's token in steps and logs.
func (t cloud) token() string {
	if t.Kind == kindUser {
		return "Entra user token"
	}
	return "Entra device token"
}

const kindUser = "UDA"

// String says by whom the device is proved.
func (t cloud) String() string { return t.token() + " of " + t.Account + ", tenant " + t.TenantID }

// prepareEntra finds out whether the device can prove itself by its tenant, and for which
// application of the site. What is in the way is kept in e.noEntra: another credential may
// do, and without one it is the reason to stop.
func (e *enrolment) prepareEntra(ctx context.Context) error {
	r, given := e.a.current(), e.cloud
	asked := given.ClientApp != "" || given.Resource != "" || given.TenantID != ""
	switch {
	case e.a.config.Entra == nil || !e.c.tokens():
		return nil
	case r.State.registered() && !r.Entra.Use && !asked:
		return nil // it has proved itself otherwise, and goes on so
	case e.c.route.RoleID == 0 && !asked:
		return nil // a management point tells nobody its applications
	}
	found, err := e.tenantOf(ctx, given)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch {
	case err != nil && r.Entra.Use && r.Entra.complete() && !asked:
		e.a.logs.withoutEntra(e.c.log, err)
		return nil // what was learned before may still do
	case err != nil:
		e.withoutEntra(err, asked)
		return nil
	}
	return e.a.save(func(r *record) {
		if found.Kind, found.Account = r.Entra.Kind, r.Entra.Account; !strings.EqualFold(found.TenantID, r.Entra.TenantID) {
			found.Kind, found.Account = "", ""
		}
		r.Entra = found
	})
}

// tenantOf completes what the command line says, by the join and by the gateway.
func (e *enrolment) tenantOf(ctx context.Context, given cloud) (cloud, error) {
	by, err := e.a.config.Entra()
	if err != nil {
		return cloud{}, err
	}
	given.TenantID, given.Use = cmp.Or(given.TenantID, by.TenantID()), true
	switch {
	case given.TenantID == "":
		return cloud{}, catalog.Errorf(catalog.ClientTenantUnknown, "neither AADTENANTID nor the join state names a tenant")
	case given.complete():
		return given, nil
	case e.c.route.RoleID == 0:
		return cloud{}, catalog.Errorf(catalog.ClientTenantUnknown, "without a gateway nobody tells the site's applications; give AADCLIENTAPPID and AADRESOURCEURI")
	}
	var learned cloud
	err = e.a.step(ctx, "gateway", "Entra applications of the tenant "+given.TenantID, func() (err error) {
		learned, err = e.a.tenantInfo(ctx, e.c, given.TenantID)
		return err
	})
	if err != nil {
		return cloud{}, err
	}
	given.ClientApp, given.Resource = cmp.Or(given.ClientApp, learned.ClientApp), cmp.Or(given.Resource, learned.Resource)
	given.Authority = learned.Authority
	return given, nil
}

// withoutEntra keeps why the device does not prove itself by its tenant. A device that has
// joined none is told so only when somebody asked for it.
func (e *enrolment) withoutEntra(err error, asked bool) {
	if catalog.CodeOf(err) == catalog.EntraNotJoined && !asked {
		e.a.logs.notJoined(e.c.log, err)
		return
	}
	e.noEntra = err
	e.a.logs.withoutEntra(e.c.log, err)
	if len(e.a.credentials(e.a.current(), e.bulk)) > 0 {
		e.a.config.Say("Entra does not prove this device: " + plain(err) + ". Going on with what else there is.")
	}
	e.a.log.Warn("Entra does not prove this device", "code", string(catalog.CodeOf(err)), "error", err)
}

// maxTenantInfo bounds the answer of AADAuthInfo.
const maxTenantInfo = 16 << 10

// tenantInfo asks the gateway for the applications of a tenant (S2). The gateway answers
// that itself, so the answer carries no management point's signature.
func (a *Agent) tenantInfo(ctx context.Context, c *conversation, tenantID string) (cloud, error) {
	c = c.to(a.logs.setup, tenantLine())
	a.logs.askingTenant(c.log, c.route)
	var body []byte
	err := a.ask(ctx, c, func(time.Time) (call, error) {
		address := c.route.Scheme + "://" + c.route.Host + "/" + string(ccm.DoorServerAuth) + "/AADAuthInfo"
		return call{method: http.MethodGet, url: address, query: "TenantID=" + url.QueryEscape(tenantID), limit: maxTenantInfo, ofGateway: true}, nil
	}, func(got answer) error {
		body = got.body
		return nil
	})
	if refusal(err) {
		return cloud{}, catalog.Wrap(catalog.ClientTenantUnknown, err, "%s gives nothing for the tenant %s", c.route.Host, tenantID)
	}
	if err != nil {
		return cloud{}, err
	}
	return parseTenantInfo(body, c.route.Host, tenantID)
}

func parseTenantInfo(body []byte, host, tenantID string) (cloud, error) {
	var t struct {
		TenantID    string `json:"TenantId"`
		ClientAppID string `json:"ClientAppId"`
		ResourceURI string `json:"ResourceUri"`
		Authority   string `json:"Authority"`
	}
	if err := json.Unmarshal(body, &t); err != nil {
		return cloud{}, catalog.Errorf(catalog.ClientAnswerUnreadable, "the answer to AADAuthInfo is not JSON")
	}
	for _, text := range []string{t.ClientAppID, t.ResourceURI, t.Authority} {
		if len(text) > 1024 || clean(text, 1024) != text || strings.ContainsAny(text, " \"'<>\\") {
			return cloud{}, catalog.Errorf(catalog.ClientAnswerUnreadable, "the answer to AADAuthInfo has a value that is none")
		}
	}
	switch {
	case t.ClientAppID == "" || t.ResourceURI == "" || !strings.EqualFold(t.TenantID, tenantID):
		return cloud{}, catalog.Errorf(catalog.ClientTenantUnknown, "%s gives nothing for the tenant %s", host, tenantID)
	case foreignResource(t.ResourceURI):
		return cloud{}, catalog.Errorf(catalog.ClientResourceForeign, "%s names %.200q", host, t.ResourceURI)
	}
	return cloud{TenantID: tenantID, ClientApp: t.ClientAppID, Resource: t.ResourceURI, Authority: signInAt(t.Authority)}, nil
}

// signInAt is the address of a provider by its issuer. The issuer of Entra's tokens of
// version 1 is a name where nobody signs in: there the join's own address counts.
func signInAt(issuer string) string {
	if u, err := url.Parse(issuer); err == nil && strings.EqualFold(u.Hostname(), "sts.windows.net") {
		return ""
	}
	return issuer
}

// foreignResource reports whether a resource is one of the provider's own services. A
// gateway that named one would be handed a token that opens the user's mail, for example.
func foreignResource(resource string) bool {
	name := strings.ToLower(resource)
	if u, err := url.Parse(name); err == nil && u.Hostname() != "" {
		name = u.Hostname()
	}
	if strings.HasSuffix(name, "-0000-0000-c000-000000000000") {
		return true // Microsoft's own applications
	}
	return slices.ContainsFunc(providersOwn(), func(own string) bool { return name == own || strings.HasSuffix(name, "."+own) })
}

func providersOwn() []string {
	return []string{
		"microsoft.com", "microsoftonline.com", "microsoft.us", "windows.net", "azure.com", "azure.net", "azure.cn", "azure.us", "windowsazure.com", "office.com",
		"office365.com", "office.net", "outlook.com", "sharepoint.com", "onenote.com", "powerbi.com", "dynamics.com", "visualstudio.com", "googleapis.com",
	}
}

// entraToken gets the tenant's token for an exchange, and remembers whose it is.
func (a *Agent) entraToken(ctx context.Context, c *conversation) (credential, error) {
	r := a.current()
	var got EntraToken
	err := a.step(ctx, "provider", "Entra token of the tenant "+r.Entra.TenantID, func() error {
		by, err := a.config.Entra()
		if err != nil {
			return err
		}
		want := EntraWant{TenantID: r.Entra.TenantID, ClientApp: r.Entra.ClientApp, Resource: r.Entra.Resource, Authority: r.Entra.Authority}
		if c.log == a.logs.setup {
			want.Log = c.log
		}
		got, err = by.Token(ctx, want)
		return err
	})
	if err != nil {
		return credential{}, err
	}
	if got.Kind != r.Entra.Kind || got.Account != r.Entra.Account {
		err = a.save(func(r *record) { r.Entra.Kind, r.Entra.Account = clean(got.Kind, 16), clean(got.Account, 128) })
	}
	return credential{what: cloud{Kind: got.Kind}.token(), token: string(got.Raw), scheme: schemeBearer}, err
}

// usesEntra reports whether the tenant's token is a credential of this device.
func (a *Agent) usesEntra(r record) bool { return r.Entra.Use && a.config.Entra != nil }

// provedByEntra reports whether a CCM token of scope register was got by the tenant.
func (e *enrolment) provedByEntra() bool {
	return e.a.current().Entra.Use && e.token() != "" && e.a.cached().CCM.Scope == token.ScopeRegister
}
