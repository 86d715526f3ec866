package lab_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/site"
	"postern/token"
)

// TestBulkTokenUsedUpConcurrently (C46): two hundred devices at once with a token that has a few uses left. Exactly so many get through, each with a client
// id of its own, the others are told why, and a device that asks again costs nothing.
func TestBulkTokenUsedUpConcurrently(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const devices = 600 / slowness // two hundred; fewer under the race detector, where a connector gives up on a management point that takes ten times as long
	all := make([]*device, devices)
	for i := range all {
		all[i] = newDevice(t, "racer")
	}
	for _, c := range []struct{ uses, spent int }{{1, 0}, {20, 13}} {
		t.Run(fmt.Sprintf("%d uses left of %d", c.uses-c.spent, c.uses), func(t *testing.T) {
			w := w.on(t)
			raw, kept := w.bulk(c.uses)
			for range c.spent {
				w.token(w.exchange(newDevice(t, "early"), raw, token.KindCCM))
			}
			first := w.race(all, raw)
			if left := c.uses - c.spent; len(first) != left {
				t.Fatalf("%d devices got through, want exactly %d", len(first), left)
			}
			again := w.race(all, raw)
			if len(again) != len(first) {
				t.Errorf("the second time %d devices got through, want the same %d", len(again), len(first))
			}
			ids := map[ccm.ClientID]bool{}
			for d, id := range first {
				if again[d] != id || ids[id] {
					t.Errorf("a device that was %s is %s the second time", id, again[d])
				}
				ids[id] = true
			}
			if used := w.state().uses[kept.ID]; used != c.uses {
				t.Errorf("%d uses are counted, want %d", used, c.uses)
			}
			listed, err := w.Site().TokenUses(t.Context(), kept.ID, 0)
			w.must(err)
			entries, err := w.Site().TrustLog(t.Context(), 0, 0)
			w.must(err)
			entries = slices.DeleteFunc(entries, func(e site.TrustEntry) bool { return e.Action != "token.use" || e.Subject != kept.ID })
			if len(listed) != c.uses || len(entries) != c.uses {
				t.Errorf("%d uses are listed and %d in the trust log, want %d", len(listed), len(entries), c.uses)
			}
		})
	}
	w.event(catalog.BulkTokenUsedUp)
	if _, err := w.Site().VerifyTrustLog(t.Context()); err != nil {
		t.Error(err)
	}
}

// race lets all these devices exchange a bulk token at once, and returns those that got through with their client ids.
func (w *world) race(all []*device, raw string) map[*device]ccm.ClientID {
	w.Helper()
	client := w.http1()
	admitted := map[*device]ccm.ClientID{}
	var mu sync.Mutex
	var work sync.WaitGroup
	for _, d := range all {
		work.Go(func() {
			a := w.exchangeBy(client, d, raw, token.KindCCM)
			mu.Lock()
			defer mu.Unlock()
			var reply tokenReply
			switch {
			case a.status == http.StatusOK && json.Unmarshal(a.body, &reply) == nil && reply.ClientID != "":
				admitted[d] = reply.ClientID
			case a.status != 401 && a.status != 403 || a.problem() != catalog.BulkTokenUsedUp:
				w.Errorf("refused with %s, want %s", a, catalog.BulkTokenUsedUp)
			}
		})
	}
	work.Wait()
	return admitted
}

// limited makes a bulk registration token with limits.
func (w *world) limited(ask site.NewBulk) (string, site.BulkToken) {
	w.Helper()
	ask.By = "test"
	raw, kept, err := w.Site().NewBulkToken(w.Context(), ask)
	w.must(err)
	return raw, kept
}

// TestBulkTokenInItsNetworks (C46): the address that counts is the one that the gateway sees, or the management point without one, whatever the device says.
func TestBulkTokenInItsNetworks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw, kept := w.limited(site.NewBulk{Networks: []string{"127.0.1.0/24"}})
	outside := refusal{status: http.StatusForbidden, reason: "CMGConnector_Forbidden", code: catalog.BulkOutsideNetwork}
	w.refuses(outside, func() answer { return w.exchange(newDevice(t, "thief"), raw, token.KindCCM) })
	if e := w.event(catalog.BulkOutsideNetwork); e.Address != "127.0.0.1" || !strings.Contains(e.Detail, kept.ID) {
		t.Errorf("the event is %+v", e)
	}
	lying := func(d *device, address string) answer {
		header := proofOf(t, d.key, http.MethodPost, address, raw)
		for _, name := range []string{ccm.HeaderClientAddress, "X-Forwarded-For", "X-Real-Ip", "Forwarded"} {
			header.Set(name, "127.0.1.7")
		}
		return w.send(w.http1(), http.MethodPost, address, form, []byte(d.grant(t, address, token.KindCCM)), header)
	}
	for _, door := range []ccm.Door{ccm.DoorServerAuth, ccm.DoorMutualAuth} {
		w.refuses(outside, func() answer { return lying(newDevice(t, "liar"), w.outside(door, "/CCM_STS")) })
	}
	w.unchanged(func() {
		if a := lying(newDevice(t, "liar"), w.inside("/CCM_STS")); a.status != http.StatusForbidden || a.problem() != catalog.BulkOutsideNetwork {
			t.Errorf("at the management point itself: %s", a)
		}
	})
	d := newDevice(t, "branch")
	w.token(w.exchangeBy(w.http2(7), d, raw, token.KindCCM))
	w.refuses(outside, func() answer { return w.exchange(d, raw, token.KindCCM) }) // the same device, at home
	uses, err := w.Site().TokenUses(t.Context(), kept.ID, 0)
	w.must(err)
	if len(uses) != 1 || uses[0].Address != "127.0.1.7" {
		t.Errorf("uses: %+v", uses)
	}
}

// TestBulkTokenForItsNames (C46): a device that calls itself otherwise than the token allows is told that it is rejected, and is nowhere.
func TestBulkTokenForItsNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw, kept := w.limited(site.NewBulk{NamePattern: "WK*"})
	d := newDevice(t, "wk1")
	d.register = w.token(w.exchange(d, raw, token.KindCCM)).AccessToken
	named := func(netbios, fqdn string) ccm.RegistrationResponse {
		body := d.registration(t, func(r *ccm.RegistrationRequest) {
			r.Properties["NetBIOS Name"], r.Properties["FQ Name"] = netbios, fqdn
		})
		response, err := ccm.ParseRegistrationResponse(w.text(w.message(d, d.register, "MP_ClientRegistration", body, false)))
		w.must(err)
		return response
	}
	for _, names := range [][2]string{{"SRV1", "srv1.lab.example"}, {"WK1", "srv1.lab.example"}, {"SRV1", "wk1.lab.example"}, {"", ""}} {
		w.unchanged(func() {
			if got := named(names[0], names[1]); got.Status != ccm.RegistrationRejected || got.SMSID != "" {
				t.Errorf("%q: answered %+v", names, got)
			}
		})
	}
	if e := w.event(catalog.BulkNameOutsidePattern); !strings.Contains(e.Detail, kept.ID) || strings.Contains(e.Detail, kept.NamePattern) {
		t.Errorf("the event is %+v", e)
	}
	if got := named("WK1", "wk1.lab.example"); got.Status != ccm.RegistrationDone || got.SMSID == "" {
		t.Errorf("a name that fits: %+v", got)
	}
}

// TestBulkTokenBlocked: refused by the site at once, by the gateway as soon as it has the state, within five seconds (C46); what was got with
// it before opens nothing either.
func TestBulkTokenBlocked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw, kept := w.bulk(0)
	early := newDevice(t, "early")
	early.register = w.token(w.exchange(early, raw, token.KindCCM)).AccessToken
	began := time.Now()
	_, err := w.Site().BlockBulkToken(t.Context(), kept.ID, true, "test", "try it")
	w.must(err)
	w.settled()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the gateway knew after %s", took)
	}
	invalid := refusal{status: 401, reason: "CMGService_Invalid_Token", code: catalog.TokenBlocked}
	w.refuses(invalid, func() answer { return w.exchange(newDevice(t, "late"), raw, token.KindCCM) })
	w.refuses(invalid, func() answer {
		return w.message(early, early.register, "MP_ClientRegistration", early.registration(t), false)
	})
	_, err = w.Site().BlockBulkToken(t.Context(), kept.ID, false, "test", "try it")
	w.must(err)
	w.settled()
	w.token(w.exchange(newDevice(t, "later"), raw, token.KindCCM))
}

// TestBulkTokenBlockedWhileItIsUsed: of many exchanges that race with the block, none succeeds after the site has said so.
func TestBulkTokenBlockedWhileItIsUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw, kept := w.bulk(0)
	client := w.http1()
	var work sync.WaitGroup
	for range 20 {
		d := newDevice(t, "racer")
		work.Go(func() {
			a := w.exchangeBy(client, d, raw, token.KindCCM)
			if a.status != http.StatusOK && a.problem() != catalog.TokenBlocked {
				t.Errorf("answered %s, want a token or %s", a, catalog.TokenBlocked)
			}
		})
	}
	_, err := w.Site().BlockBulkToken(t.Context(), kept.ID, true, "test", "try it")
	w.must(err)
	late := newDevice(t, "late") // refused, by whichever hop knows
	if a := w.exchange(late, raw, token.KindCCM); a.status == http.StatusOK || a.problem() != catalog.TokenBlocked {
		t.Errorf("after the block: %s", a)
	}
	work.Wait()
}
