package mp

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"postern/ccm"
	"postern/proof"
	"postern/token"
)

// provider stands for what is outside: a tenant whose tokens say this.
type provider proof.Cloud

func (p provider) Validate(context.Context, string) (proof.Cloud, time.Time, error) {
	return proof.Cloud(p), captured.Add(time.Hour), nil
}

// TestRegistrationByEntra holds the lines of both logs (S2 3.1, 3.4). A token that only inherited its tenant proves no device, and its
// registration is not written down as one by Entra.
func TestRegistrationByEntra(t *testing.T) {
	const tenant, issuer, id = "c8c82542-203c-4df9-9d86-cdd4dae67e0a", "https://sts.windows.net/c8c82542-203c-4df9-9d86-cdd4dae67e0a/", "8d2b4ff9-0172-4998-9851-b5324303385f"
	f := newFixture(t, func(c *Config) {
		c.Cloud = provider{Tenant: tenant, Issuer: issuer, Kind: proof.CloudDevice, Device: id}
	})
	_, err := f.site.AddTenant(t.Context(), token.Tenant{ID: tenant, Issuers: []string{issuer}}, "test")
	f.must(err)
	d := f.device(0)
	byEntra := func(values url.Values) tokenReply {
		address := f.url(EnhancedHTTP, "/CCM_STS")
		p, err := token.SignProof(d.key, http.MethodPost, address, "entra", f.clock.now(), rand.Reader)
		f.must(err)
		return f.tokenFrom(f.send(f.client, http.MethodPost, address, form, []byte(values.Encode()), "Authorization", "Bearer entra", "DPoP", p))
	}
	system := f.url(EnhancedHTTP, "/ccm_system_tokenauth/request")
	register := func(raw string) ccm.RegistrationResponse {
		contentType, body := f.message("MP_ClientRegistration", f.registration(d), nil)
		response, err := ccm.ParseRegistrationResponse(f.text(f.send(f.client, methodCCM, system, contentType, body, f.withToken(d.key, methodCCM, system, raw)...)))
		f.must(err)
		return response
	}
	exchange := url.Values{"grant_type": {grantExchange}, "requested_token_type": {tokenURN + "ccm"}}
	response := register(byEntra(exchange).AccessToken)
	if d.id = response.SMSID; response.ApprovalStatus != ccm.ApprovalEntra {
		t.Errorf("registered %+v, want approved by Entra", response)
	}
	line := "Registering device using AAD auth: DeviceId='" + id + " ', TenantId='" + tenant + "'"
	f.wantLogged("MP_RegistrationManager.log", line)
	f.wantLogged("CCM_STS.log", "Validated AAD token. TokenType: Device TenantId: "+tenant+" UserId:  DeviceId: "+id+" OnPrem_UserSid:  OnPrem_DeviceSid: ", "TokenType is Device")

	selfProve := byEntra(f.asking(d, "self-prove"))
	register(f.tokenFrom(f.exchange(d, selfProve.AccessToken, url.Values{})).AccessToken)
	if n := strings.Count(f.logged("MP_RegistrationManager.log"), "AAD auth"); n != 1 {
		t.Errorf("%d registrations by Entra in the log, want 1", n)
	}
}
