package auth

import (
	"testing"

	"postern/token"
)

// Whatever the two headers hold: only the good pair proves anything.
func FuzzHeaders(f *testing.F) {
	x := newFixture(nil)
	raw := signed(f, token.KindCCM, nil)
	good := x.request(f, raw)
	authorization, dpop := good.Header.Get("Authorization"), good.Header.Get("DPoP")
	f.Add(authorization, dpop)
	f.Add("Bearer "+raw, dpop)
	f.Add(authorization, raw)
	f.Fuzz(func(t *testing.T, authorization, dpop string) {
		r := newRequest("CCM_POST", stsURL)
		r.Header.Set("Authorization", authorization)
		r.Header.Set("DPoP", dpop)
		p, err := x.bearer.Proof(r, token.KindCCM)
		if err == nil && (p.Client != client || p.Key != thumbprint(t, deviceKey())) {
			t.Errorf("got %+v", p)
		}
		if err != nil && p.Method != "" {
			t.Error("an error proves something")
		}
	})
}
