package mp

import (
	"crypto"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"postern/catalog"
)

// A gateway that keeps quiet about revocations, or was taken, lets through what it should refuse: the management point refuses it all the same.
func TestAGatewayThatDoesNotRevoke(t *testing.T) {
	f := newFixture(t)
	d, waiting := f.device(0), f.device(1)
	f.register(d)
	kept := f.ccmToken(d)
	bulk, made := f.bulk(0)
	early := f.tokenFrom(f.exchange(waiting, bulk, url.Values{})).AccessToken
	connector := f.connector("C1")
	through := func(key crypto.Signer, method, path, contentType, raw string, body []byte) got {
		htu := fmt.Sprintf("https://%s/CCM_Proxy_ServerAuth/%d%s", gatewayName, f.roleID, path)
		return f.send(connector, method, f.url(EnhancedHTTP, path), contentType, body, f.withToken(key, method, htu, raw)...)
	}
	policy := func() got { return through(d.key, "GET", "/SMS_MP_TokenAuth/.sms_aut", "", kept, nil) }
	exchange := func() got {
		return through(waiting.key, "POST", "/CCM_STS", form, bulk, []byte(url.Values{"grant_type": {grantExchange}, "requested_token_type": {tokenURN + "ccm"}}.Encode()))
	}
	register := func() got {
		contentType, body := f.message("MP_ClientRegistration", f.registration(waiting), nil)
		return through(waiting.key, methodCCM, "/CCM_System_TokenAuth/request", contentType, early, body)
	}
	for name, ask := range map[string]func() got{"a device's token": policy, "a bulk registration token": exchange} {
		if g := ask(); g.StatusCode >= 500 || catalog.Code(g.code()) == catalog.KeyBlocked {
			t.Fatalf("%s before: %s %s", name, g.Status, g.body)
		}
	}
	_, err := f.site.Block(t.Context(), d.id, "ann", "stolen")
	f.must(err)
	_, err = f.site.BlockBulkToken(t.Context(), made.ID, true, "ann", "leaked")
	f.must(err)
	for name, test := range map[string]struct {
		ask  func() got
		code catalog.Code
	}{
		"a device's token":                     {policy, catalog.KeyBlocked},
		"a bulk registration token":            {exchange, catalog.TokenBlocked},
		"what was got with it before it ended": {register, catalog.TokenBlocked},
	} {
		if g := test.ask(); g.StatusCode != http.StatusUnauthorized || g.code() != string(test.code) {
			t.Errorf("%s: %s %s, want 401 %s", name, g.Status, g.body, test.code)
		}
	}
}

// The clock of the management point is set back by 400 days: nothing that has ended is good again, what is good stays so, and the alarm is raised.
func TestTheClockIsSetBack(t *testing.T) {
	const year = 400 * 24 * time.Hour
	f := newFixture(t)
	d := f.device(0)
	f.register(d)
	ended := f.ccmToken(d)
	f.clock.advance(10 * time.Hour)
	good := f.ccmToken(d)
	address := f.url(EnhancedHTTP, "/SMS_MP_TokenAuth/.sms_aut")
	rightly := func(raw string) []string { return f.withToken(d.key, "GET", address, raw) }
	ask := func(headers []string) got { return f.send(f.client, "GET", address+"?MPLIST", "", nil, headers...) }
	endedRightly, goodRightly := rightly(ended), rightly(good) // proofs of the time that it really is
	f.clock.advance(-year)
	for name, headers := range map[string][]string{"with a proof of now": endedRightly, "with a proof by the wrong clock": rightly(ended)} {
		if g := ask(headers); g.StatusCode != 401 || g.code() != string(catalog.TokenExpired) {
			t.Errorf("a token that has ended, %s: %s %s", name, g.Status, g.code())
		}
	}
	if g := ask(goodRightly); g.StatusCode != 200 {
		t.Errorf("a good token: %s %s", g.Status, g.body)
	}
	if err := f.site.ClockBehind(); catalog.CodeOf(err) != catalog.ClockBehind {
		t.Errorf("the alarm: %v", err)
	}
}
