package gateway

import (
	"net/http"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/token"
)

// A gateway whose clock is set back by 400 days, while it runs or before it starts anew, accepts nothing that has ended, goes on with what is good, and says
// that its clock is wrong (users-and-threats.md C54).
func TestTheClockIsSetBack(t *testing.T) {
	const year = 400 * 24 * time.Hour
	for name, restarts := range map[string]bool{"while it runs": false, "before it starts anew": true} {
		t.Run(name, func(t *testing.T) {
			var off atomic.Int64
			s, key, path := newSite(t), newKey(t), filepath.Join(t.TempDir(), "state")
			now := func() time.Time { return time.Now().Round(0).Add(time.Duration(off.Load())) }
			edit := func(c *Config) {
				c.Now, c.State, c.StateFile = now, auth.NewState(s.root.pin(), now), path
			}
			w := startWorld(t, s, key, edit)
			w.connect()
			off.Store(int64(-year))
			if restarts {
				w.stop()
				w = startWorld(t, s, key, edit)
				own := newKey(t)
				w.dial(own, s.root.issue(t, token.RoleConnector, "connector-1", &own.PublicKey))
				eventually(t, "a connector is there", func() bool { return len(w.gateway.hub.Connections()) > 0 })
			}
			d, client := newDevice(t), w.client(true)
			ask := func(raw string, at time.Time) answered {
				r := request(t, http.MethodGet, tokenPath("/SMS_MP_TokenAuth/.sms_pol?x"), nil)
				p, err := token.SignProof(d.key, r.Method, "https://"+host+r.URL.Path, raw, at, rnd{})
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Authorization", "DPoP "+raw)
				r.Header.Set("DPoP", p)
				return do(t, client, r)
			}
			ended := d.token(token.KindCCM, token.ScopeClient, "ended", time.Now().Add(-10*time.Hour))
			for which, at := range map[string]time.Time{"of now": time.Now(), "by the wrong clock": now()} {
				if got := ask(ended, at); got.status != http.StatusUnauthorized || got.code != catalog.TokenExpired {
					t.Errorf("a token that has ended, with a proof %s: %d %s", which, got.status, got.code)
				}
			}
			if got := ask(d.ccmToken(), time.Now()); got.status != http.StatusOK {
				t.Errorf("a good token: %d %s", got.status, got.code)
			}
			if got := w.gateway.Status().Problems; !slices.Contains(got, catalog.ClockBehind) {
				t.Errorf("the problems are %v", got)
			}
		})
	}
}

// What a returning device shows is checked in the line of the token exchanges: strangers, who can make keys without end, take no more of the machine than
// that.
func TestReturningDevicesStandInLine(t *testing.T) {
	w := newWorld(t)
	w.site.state.Return = true
	w.connect()
	free := fillLine(t, w)
	r := newDevice(t).returning("CCM_Proxy_ServerAuth")
	if got := do(t, w.client(false), r); got.status != http.StatusServiceUnavailable || got.code != catalog.TokenServiceBusy || got.header.Get("Retry-After") == "" {
		t.Errorf("%d %s, want 503 %s and Retry-After", got.status, got.code, catalog.TokenServiceBusy)
	}
	free()
	again := request(t, http.MethodPost, tokenPath("/CCM_STS"), nil)
	again.Header = r.Header
	if got := do(t, w.client(false), again); got.status != http.StatusOK {
		t.Errorf("the same proof afterwards: %d %s", got.status, got.code)
	}
}
