package lab_test

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/token"
)

// TestBulkTokenUsedUpConcurrently (C46): fifty devices at once with a token for seven. Exactly seven get through, the others are told why,
// and a device that asks again costs nothing.
func TestBulkTokenUsedUpConcurrently(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const devices, uses = 50, 7
	raw, kept := w.bulk(uses)
	all := make([]*device, devices)
	for i := range all {
		all[i] = newDevice(t, "racer")
	}
	client := w.http1()
	round := func() (admitted []*device) {
		var mu sync.Mutex
		var work sync.WaitGroup
		for _, d := range all {
			work.Go(func() {
				a := w.exchangeBy(client, d, raw, token.KindCCM)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case a.status == http.StatusOK:
					admitted = append(admitted, d)
				case a.status != 401 && a.status != 403 || a.problem() != catalog.BulkTokenUsedUp:
					t.Errorf("refused with %s, want %s", a, catalog.BulkTokenUsedUp)
				}
			})
		}
		work.Wait()
		return admitted
	}
	first := round()
	if len(first) != uses {
		t.Fatalf("%d devices got through, want exactly %d", len(first), uses)
	}
	again := map[*device]bool{}
	for _, d := range round() {
		again[d] = true
	}
	if len(again) != uses {
		t.Errorf("the second time %d devices got through, want the same %d", len(again), uses)
	}
	for _, d := range first {
		if !again[d] {
			t.Error("a device that had used the token was refused the second time")
		}
	}
	if used := w.state().uses[kept.ID]; used != uses {
		t.Errorf("%d uses are counted, want %d", used, uses)
	}
	w.event(catalog.BulkTokenUsedUp)
	if _, err := w.Site().VerifyTrustLog(t.Context()); err != nil {
		t.Error(err)
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
	_, err := w.Site().BlockBulkToken(t.Context(), kept.ID, true, "test")
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
	_, err = w.Site().BlockBulkToken(t.Context(), kept.ID, false, "test")
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
	_, err := w.Site().BlockBulkToken(t.Context(), kept.ID, true, "test")
	w.must(err)
	late := newDevice(t, "late") // refused, by whichever hop knows
	if a := w.exchange(late, raw, token.KindCCM); a.status == http.StatusOK || a.problem() != catalog.TokenBlocked {
		t.Errorf("after the block: %s", a)
	}
	work.Wait()
}
