package mp

import (
	"crypto"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/token"
)

// TestADeviceReturnsThroughAGateway: what a gateway lets through without a token is judged again here, whatever the gateway has made of it.
func TestADeviceReturnsThroughAGateway(t *testing.T) {
	f := newFixture(t)
	d, stranger, blocked := f.device(0), f.device(1), f.device(2)
	f.register(d)
	f.register(blocked)
	_, err := f.site.Block(t.Context(), blocked.id, "anna", "stolen")
	f.must(err)
	f.site.Flush(t.Context())
	f.clock.advance(365 * 24 * time.Hour)
	connector := f.connector("C1")
	external := fmt.Sprintf("https://%s/CCM_Proxy_ServerAuth/%d/CCM_STS", gatewayName, f.roleID)
	proofBy := func(key crypto.Signer, htu string) []string {
		p, err := token.SignProof(key, "POST", htu, "", f.clock.now(), rand.Reader)
		f.must(err)
		return []string{"DPoP", p}
	}
	through := func(kind string, values url.Values, header ...string) got {
		if values.Get("requested_token_type") == "" {
			values.Set("requested_token_type", tokenURN+kind)
		}
		return f.send(connector, "POST", f.url(EnhancedHTTP, "/CCM_STS"), form, []byte(values.Encode()), header...)
	}
	assertion := func(by *device, about *device) url.Values {
		raw, err := token.SignAssertion(by.key, about.id, external, f.clock.now())
		f.must(err)
		return url.Values{"grant_type": {grantAssertion}, "assertion": {raw}}
	}
	stranger.id = d.id
	for name, test := range map[string]struct {
		answer func() got
		status int
		code   catalog.Code
	}{
		"an exchange without a token": {func() got {
			return through("ccm", url.Values{"grant_type": {grantExchange}}, proofBy(d.key, external)...)
		}, 401, catalog.ReturnGrant},
		"no assertion": {func() got {
			return through("ccm", url.Values{"grant_type": {grantAssertion}}, proofBy(d.key, external)...)
		}, 401, catalog.AssertionMissing},
		"a strange key":                    {func() got { return through("ccm", assertion(stranger, stranger), proofBy(stranger.key, external)...) }, 401, catalog.ReturnUnknown},
		"a strange key, another's word":    {func() got { return through("ccm", assertion(d, d), proofBy(stranger.key, external)...) }, 401, catalog.ReturnUnknown},
		"a strange key for a blocked one":  {func() got { return through("ccm", assertion(stranger, blocked), proofBy(stranger.key, external)...) }, 401, catalog.ReturnUnknown},
		"a stranger's word by a known key": {func() got { return through("ccm", assertion(stranger, d), proofBy(d.key, external)...) }, 401, catalog.AssertionSignature},
		"a blocked key":                    {func() got { return through("ccm", assertion(blocked, blocked), proofBy(blocked.key, external)...) }, 401, catalog.KeyBlocked},
		"a proof for another address":      {func() got { return through("ccm", assertion(d, d), proofBy(d.key, external+"x")...) }, 401, catalog.ProofOtherURL},
		"an assertion without a proof":     {func() got { return through("ccm", assertion(d, d)) }, 403, catalog.AssertionNotDirect},
	} {
		t.Run(name, func(t *testing.T) {
			if g := test.answer(); g.StatusCode != test.status || g.code() != string(test.code) {
				t.Errorf("%s %s, want %d %s", g.Status, g.body, test.status, test.code)
			}
		})
	}
	g := through("ccm", assertion(d, d), proofBy(d.key, external)...)
	var reply tokenReply
	f.must(json.Unmarshal([]byte(g.body), &reply))
	if g.StatusCode != 200 || reply.Quarantine != "automatic" || reply.ApprovalStatus != 0 || reply.Scope != token.ScopeClient {
		t.Errorf("got %s %+v", g.Status, reply)
	}
	g = through("self-prove", assertion(d, d), proofBy(d.key, external)...)
	f.must(json.Unmarshal([]byte(g.body), &reply))
	if g.StatusCode != 200 || reply.RenewAfter != 30*24*3600 || reply.ExpiresIn != 90*24*3600 {
		t.Errorf("got %s %+v", g.Status, reply)
	}
	f.must(f.site.Set(t.Context(), "return.enabled", "false", "anna"))
	if g := through("ccm", assertion(d, d), proofBy(d.key, external)...); g.StatusCode != 401 || g.code() != string(catalog.ReturnOff) {
		t.Errorf("switched off: %s %s", g.Status, g.body)
	}
	text := f.logged("CCM_STS.log")
	for _, want := range []string{"Return code: 401, Description: PreAuth token validation failed, P022", "Return code: 401, Description: PreAuth token validation failed, P025", "Issued token"} {
		if !strings.Contains(text, want) {
			t.Errorf("CCM_STS.log lacks %q:\n%s", want, text)
		}
	}
}
