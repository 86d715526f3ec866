package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

// returning is a request at the token service that shows a proof of the device's key and no token.
func (d *device) returning(door ccm.Door) *http.Request {
	d.t.Helper()
	path := external(door, "/CCM_STS")
	r := request(d.t, http.MethodPost, path, strings.NewReader("grant_type=x"))
	r.Header.Set("DPoP", d.proof(http.MethodPost, "https://"+host+path, ""))
	return r
}

func letReturn(w *world) { w.site.change(func(s *token.SiteState) { s.Return = true }) }

func TestTheReturnLane(t *testing.T) {
	w := newWorld(t)
	w.site.state.Return = true
	w.connect()
	blocked := newDevice(t)
	w.site.change(func(s *token.SiteState) { s.BlockedKeys = []proof.KeyThumbprint{blocked.id} })
	eventually(t, "the gateway knows what is blocked", func() bool { s, _ := w.gateway.state.Current(); return len(s.BlockedKeys) == 1 })
	path := tokenPath("/CCM_STS")
	replayed := newDevice(t).returning(ccm.DoorServerAuth)
	edited := func(edit func(d *device, r *http.Request)) *http.Request {
		d := newDevice(t)
		r := d.returning(ccm.DoorServerAuth)
		edit(d, r)
		return r
	}
	stale, err := token.SignProof(newDevice(t).key, http.MethodPost, "https://"+host+path, "", time.Now().Add(-time.Hour), rnd{})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		r      *http.Request
		status int
		code   catalog.Code
	}{
		{"a key alone", replayed, 200, ""},
		{"at the other door", newDevice(t).returning(ccm.DoorMutualAuth), 200, ""},
		{"the same proof again", func() *http.Request { r := request(t, "POST", path, nil); r.Header = replayed.Header; return r }(), 401, catalog.ProofReplayed},
		{"a blocked key", blocked.returning(ccm.DoorServerAuth), 401, catalog.KeyBlocked},
		{"a proof for another path", edited(func(d *device, r *http.Request) {
			r.Header.Set("DPoP", d.proof("POST", "https://"+host+tokenPath("/CCM_System_TokenAuth/request"), ""))
		}), 401, catalog.ProofOtherURL},
		{"a proof for another method", edited(func(d *device, r *http.Request) { r.Header.Set("DPoP", d.proof("GET", "https://"+host+path, "")) }), 401, catalog.ProofOtherMethod},
		{"a proof of a token", edited(func(d *device, r *http.Request) {
			r.Header.Set("DPoP", d.proof("POST", "https://"+host+path, d.ccmToken()))
		}), 401, catalog.ProofOtherToken},
		{"an old proof", edited(func(_ *device, r *http.Request) { r.Header.Set("DPoP", stale) }), 401, catalog.ProofStale},
		{"no proof", edited(func(_ *device, r *http.Request) { r.Header.Del("DPoP") }), 401, catalog.TokenMissing},
		{"two proofs", edited(func(_ *device, r *http.Request) { r.Header.Add("DPoP", "x") }), 401, catalog.ProofMalformed},
		{"a token with a proof without its hash", edited(func(d *device, r *http.Request) {
			r.Header.Set("Authorization", "DPoP "+d.token(token.KindSelfProve, "", "id", time.Now()))
		}), 401, catalog.ProofOtherToken},
		{"at another address", func() *http.Request {
			d := newDevice(t)
			other := tokenPath("/CCM_System_TokenAuth/request")
			r := request(t, "POST", other, nil)
			r.Header.Set("DPoP", d.proof("POST", "https://"+host+other, ""))
			return r
		}(), 401, catalog.TokenMissing},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := do(t, w.client(false), test.r)
			if got.status != test.status || got.code != test.code {
				t.Errorf("got %d %s %s, want %d %s", got.status, got.reason, got.code, test.status, test.code)
			}
			if got.status == 401 && got.reason != "CMGService_Invalid_Token" {
				t.Errorf("got the reason %q", got.reason)
			}
		})
	}
}

type rnd struct{}

func (rnd) Read(p []byte) (int, error) {
	return copy(p, strings.Repeat("0123456789abcdef", 1+len(p)/16)), nil
}

func TestNoReturnWhereTheSiteDoesNotAllowIt(t *testing.T) {
	w := newWorld(t)
	reached := atomic.Int32{}
	w.site.backend = func(http.ResponseWriter, *http.Request) { reached.Add(1) }
	w.connect()
	got := do(t, w.client(false), newDevice(t).returning(ccm.DoorServerAuth))
	if got.status != 401 || got.reason != "CMGService_Invalid_Token" || got.code != catalog.ReturnOff || reached.Load() != 0 {
		t.Errorf("got %d %s %s, and the management point was asked %d times", got.status, got.reason, got.code, reached.Load())
	}
	letReturn(w)
	eventually(t, "the gateway hears of it", func() bool { s, _ := w.gateway.state.Current(); return s.Return })
	if got := do(t, w.client(false), newDevice(t).returning(ccm.DoorServerAuth)); got.status != 200 {
		t.Errorf("got %d %s", got.status, got.code)
	}
}

// TestAFloodOfKeys: 3,000 keys that nobody knows come from one address. The management point sees what the limits let through, and a device with a token
// is answered as if there were no flood.
func TestAFloodOfKeys(t *testing.T) {
	for name, limits := range map[string]Limits{
		"limited by address": {Return: 1e-6, ReturnBurst: 20, ReturnAll: 1e6},
		"limited in all":     {Return: 1e6, ReturnBurst: 1e6, ReturnAll: 10},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *Config) {
				c.Limits.Return, c.Limits.ReturnBurst, c.Limits.ReturnAll = limits.Return, limits.ReturnBurst, limits.ReturnAll
			})
			w.site.state.Return = true
			var bare, others atomic.Int32
			w.site.backend = func(_ http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				if r.Header.Get("Authorization") == "" {
					bare.Add(1)
				} else {
					others.Add(1)
				}
			}
			w.connect()
			client, known := w.client(true), newDevice(t)
			began := time.Now()
			refused := map[catalog.Code]int{}
			for n := range 3000 {
				got := do(t, client, newDevice(t).returning(ccm.DoorServerAuth))
				if refused[got.code]++; got.code != "" && (got.status != 429 || got.header.Get("Retry-After") == "") {
					t.Fatalf("got %d %s", got.status, got.code)
				}
				if n%500 == 0 {
					raw := known.token(token.KindSelfProve, "", fmt.Sprint(n), time.Now())
					if got := do(t, client, known.show(request(t, http.MethodPost, tokenPath("/CCM_STS"), nil), raw)); got.status != 200 {
						t.Errorf("a device with a token: got %d %s", got.status, got.code)
					}
				}
			}
			most := int32(20)
			if limits.ReturnAll == 10 {
				most = 20 + int32(10*time.Since(began).Seconds()) + 1
			}
			if got := bare.Load(); got == 0 || got > most || others.Load() != 6 {
				t.Errorf("the management point saw %d strangers, want at most %d, and %d others: %v", got, most, others.Load(), refused)
			}
			if got := refused[catalog.ReturnTooMany]; got < 3000-int(most) {
				t.Errorf("refused %v", refused)
			}
			if got := w.gateway.returns.bearer; got == w.gateway.bearer {
				t.Error("strangers' proofs share the memory of those with tokens")
			}
		})
	}
}
