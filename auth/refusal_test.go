package auth

import (
	"net/http"
	"testing"
	"time"

	"postern/catalog"
	"postern/proof"
	"postern/token"
)

// A refusal names the key whose good proof came with it, and no other.
func TestARefusalNamesTheKeyThatWasProved(t *testing.T) {
	mine, thief := thumbprint(t, deviceKey()), thumbprint(t, thiefKey())
	raw := signed(t, token.KindCCM, nil)
	other := signed(t, token.KindCCM, func(c *token.Claims) { c.Key = thief })
	for _, test := range []struct {
		name   string
		change func(f *fixture, r *http.Request)
		code   catalog.Code
		key    proof.KeyThumbprint
	}{
		{"the token has ended", func(f *fixture, r *http.Request) {
			f.now = noon.Add(token.CCMLifetime + 2*token.Leeway)
			r.Header.Set("DPoP", f.proof(t, deviceKey(), "CCM_POST", stsURL, raw))
		}, catalog.TokenExpired, mine},
		{"the token has ended, and the proof is old", func(f *fixture, _ *http.Request) { f.now = noon.Add(token.CCMLifetime + 2*token.Leeway) }, catalog.TokenExpired, ""},
		{"the key is blocked", func(f *fixture, _ *http.Request) { f.revoked = catalog.Errorf(catalog.KeyBlocked, "x") }, catalog.KeyBlocked, mine},
		{"another's token", func(f *fixture, r *http.Request) {
			r.Header.Set("Authorization", "DPoP "+other)
			r.Header.Set("DPoP", f.proof(t, deviceKey(), "CCM_POST", stsURL, other))
		}, catalog.ProofOtherKey, mine},
		{"another address", func(_ *fixture, r *http.Request) { r.URL.Path = "/elsewhere" }, catalog.ProofOtherURL, mine},
		{"a token that nobody signed", func(_ *fixture, r *http.Request) { r.Header.Set("Authorization", "DPoP "+tampered(raw)) }, catalog.TokenSignature, ""},
		{"a proof that nobody signed", func(_ *fixture, r *http.Request) { r.Header.Set("DPoP", tampered(r.Header.Get("DPoP"))) }, catalog.ProofSignature, ""},
		{"no proof", func(_ *fixture, r *http.Request) { r.Header.Del("DPoP") }, catalog.TokenWithoutProof, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(nil)
			r := f.request(t, raw)
			test.change(f, r)
			p, err := f.bearer.Proof(r, token.KindCCM)
			wantCode(t, err, test.code)
			if got := RefusedKey(err); got != test.key || p.Key != "" || p.Method != "" {
				t.Errorf("names %q with %+v, want %q and nothing proved", got, p, test.key)
			}
		})
	}
}

// The time of the site holds where the clock of this machine was set back, also when all that is known of the site was kept from before a restart.
func TestAClockThatWasSetBack(t *testing.T) {
	const year = 400 * 24 * time.Hour
	for name, heard := range map[string]bool{"while it runs": true, "before it started": false} {
		t.Run(name, func(t *testing.T) {
			now := noon
			if !heard {
				now = noon.Add(-year)
			}
			s := newState(&now)
			if _, err := s.Apply(stateLine(t, siteRoot(), 1, noon, nil)); err != nil {
				t.Fatal(err)
			}
			now = noon.Add(-year)
			if got := s.NotBefore(now); !got.Equal(noon) {
				t.Errorf("tokens are judged at %s, want %s: what has ended is good again", got, noon)
			}
			if got := s.Behind(now); got != year {
				t.Errorf("the clock is %s behind, want %s", got, year)
			}
			now = noon.Add(time.Hour)
			if got := s.NotBefore(now); !got.Equal(now) || s.Behind(now) != 0 {
				t.Errorf("a right clock is not believed: %s, %s behind", got, s.Behind(now))
			}
		})
	}
}
