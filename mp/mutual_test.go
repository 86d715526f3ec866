package mp

import (
	"crypto/rand"
	"crypto/tls"
	"net/http"
	"net/url"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
)

// A token that a device asks for over a connection with a certificate of its key stands with that certificate, directly at a management point, and nowhere
// else (RFC 8705, design decision 6).
func TestMutualTLSStandsForAProof(t *testing.T) {
	f := newFixture(t)
	d, other := f.device(0), f.device(1)
	f.register(d)
	shows := func(d *device) tls.Certificate {
		return tls.Certificate{Certificate: [][]byte{d.cert.DER}, PrivateKey: d.key}
	}
	again, err := ccm.NewClientCertificate(d.key, "another of the same key", ccm.UsageSigning|ccm.UsageEncryption, f.clock.now(), rand.Reader)
	f.must(err)
	mine, thief, renewed := f.clientWith(shows(d)), f.clientWith(shows(other)), f.clientWith(tls.Certificate{Certificate: [][]byte{again.DER}, PrivateKey: d.key})
	bulk, _ := f.bulk(0)
	ask := func(client *http.Client) string {
		address := f.url(EnhancedHTTP, "/CCM_STS")
		form := url.Values{"grant_type": {grantExchange}, "requested_token_type": {tokenURN + "ccm"}}.Encode()
		return f.tokenFrom(f.send(client, "POST", address, "application/x-www-form-urlencoded", []byte(form), f.withToken(d.key, "POST", address, bulk)...)).AccessToken
	}
	bound, unbound, others := ask(mine), ask(f.client), ask(thief)
	address := f.url(EnhancedHTTP, "/SMS_MP_TokenAuth/.sms_aut")
	bearer := func(client *http.Client, raw string) got {
		return f.send(client, "GET", address+"?MPLIST", "", nil, "Authorization", "Bearer "+raw)
	}
	for _, test := range []struct {
		name string
		ask  func() got
		code catalog.Code // "" for an answer
	}{
		{"with its certificate", func() got { return bearer(mine, bound) }, ""},
		{"with a proof all the same", func() got {
			return f.send(f.client, "GET", address+"?MPLIST", "", nil, f.withToken(d.key, "GET", address, bound)...)
		}, ""},
		{"on a connection without a certificate", func() got { return bearer(f.client, bound) }, catalog.TokenOtherCertificate},
		{"stolen, with the thief's certificate", func() got { return bearer(thief, bound) }, catalog.TokenOtherCertificate},
		{"another certificate of the same key", func() got { return bearer(renewed, bound) }, catalog.TokenOtherCertificate},
		{"brought by a connector", func() got { return bearer(f.connector("C1"), bound) }, catalog.TokenOtherCertificate},
		{"got without a certificate", func() got { return bearer(mine, unbound) }, catalog.TokenWithoutProof},
		{"got with a certificate of another key", func() got { return bearer(thief, others) }, catalog.TokenWithoutProof},
		{"as DPoP without a proof", func() got {
			return f.send(mine, "GET", address+"?MPLIST", "", nil, "Authorization", "DPoP "+bound)
		}, catalog.TokenWithoutProof},
		{"at the token service", func() got {
			return f.send(mine, "POST", f.url(EnhancedHTTP, "/CCM_STS"), form, nil, "Authorization", "Bearer "+bound)
		}, catalog.TokenWithoutProof},
	} {
		t.Run(test.name, func(t *testing.T) {
			if g := test.ask(); g.code() != string(test.code) || (g.StatusCode == 200) != (test.code == "") {
				t.Errorf("%s %s, want %s", g.Status, g.body, test.code)
			}
		})
	}
	_, err = f.site.Block(t.Context(), d.id, "ann", "stolen")
	f.must(err)
	if g := bearer(mine, bound); g.StatusCode != 401 || g.code() != string(catalog.KeyBlocked) {
		t.Errorf("blocked: %s %s", g.Status, g.body)
	}
	f.clock.advance(9 * time.Hour)
	if g := bearer(mine, bound); g.StatusCode != 401 || g.code() != string(catalog.TokenExpired) {
		t.Errorf("ended: %s %s", g.Status, g.body)
	}
}
