package site_test

import (
	"bytes"
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/catalog"
	"postern/proof"
	"postern/site"
	"postern/store"
	"postern/token"
)

func bulkStories() []story {
	return []story{
		{"bulk tokens keep to their bounds", bulkBounds},
		{"a bulk token is the documented one and is listed without itself", bulkListed},
		{"C58 a bulk token is never stored, nor a part of it", bulkNeverStored},
		{"C46 a block holds at once and at another node after its notice", bulkBlocked},
		{"C46 a block reaches a node whose database was away", blockWhileAway},
		{"C46 a registration that waited while its token was blocked is refused", blockedWhileWaiting},
	}
}

func bulkBounds(t *testing.T, w *world) {
	refusedAsks := map[string]struct {
		ask  site.NewBulk
		want catalog.Code
	}{
		"a second less than a minute": {site.NewBulk{Lifetime: 59 * time.Second}, catalog.BulkLifetimeOutOfRange},
		"negative":                    {site.NewBulk{Lifetime: -time.Hour}, catalog.BulkLifetimeOutOfRange},
		"more than 10080 minutes":     {site.NewBulk{Lifetime: 10080*time.Minute + time.Second}, catalog.BulkLifetimeOutOfRange},
		"fewer than no uses":          {site.NewBulk{MaxUses: -1}, catalog.BulkUsesOutOfRange},
		"an endless label":            {site.NewBulk{Label: strings.Repeat("x", 201)}, catalog.BulkUsesOutOfRange},
	}
	entries := w.during(t, func() {
		for name, c := range refusedAsks {
			raw, _, err := w.NewBulkToken(t.Context(), c.ask)
			refused(t, name, err, c.want)
			if raw != "" {
				t.Errorf("%s: a token came with the error", name)
			}
		}
	})
	if len(entries) != 0 {
		t.Errorf("trust entries: %s", actions(entries))
	}
	for asked, want := range map[time.Duration]time.Duration{0: 4320 * time.Minute, time.Minute: time.Minute, 10080 * time.Minute: 10080 * time.Minute} {
		raw, kept, err := w.NewBulkToken(t.Context(), site.NewBulk{Lifetime: asked, Label: strings.Repeat("x", 200)})
		if err != nil {
			t.Fatal(err)
		}
		claims, err := w.Verifier().Verify(raw, w.clock.now(), token.KindBulk)
		if err != nil || kept.Expires.Sub(kept.NotBefore) != want || !claims.Expires.Equal(kept.Expires) || !claims.NotBefore.Equal(kept.NotBefore) {
			t.Errorf("asked for %s: got %+v, token says %+v, %v", asked, kept, claims, err)
		}
	}
}

func bulkListed(t *testing.T, w *world) {
	var raw string
	var kept site.BulkToken
	entries := w.during(t, func() {
		var err error
		if raw, kept, err = w.NewBulkToken(t.Context(), site.NewBulk{MaxUses: 3, Label: "autumn intake", By: "anna"}); err != nil {
			t.Fatal(err)
		}
	})
	if got := actions(entries); got != "token.new" || entries[0].Actor != "anna" || entries[0].Subject != kept.ID || !strings.Contains(entries[0].Detail, "autumn intake") {
		t.Errorf("trust entries: %+v", entries)
	}
	claims, err := w.Verifier().Verify(raw, w.clock.now(), token.KindBulk)
	if err != nil || claims.ID != kept.ID || claims.BulkID != kept.ID {
		t.Errorf("the token says %+v, %v; kept is %+v", claims, err, kept)
	}
	for _, other := range []token.Kind{token.KindCCM, token.KindSelfProve} {
		_, err := w.Verifier().Verify(raw, w.clock.now(), other)
		refused(t, "C47 as a token of kind "+string(other), err, catalog.TokenWrongKind)
	}
	list, err := w.BulkTokens(t.Context())
	if err != nil || len(list) != 1 || list[0].Label != "autumn intake" || list[0].MaxUses != 3 || list[0].Uses != 0 || list[0].CreatedBy != "anna" {
		t.Errorf("got %+v, %v", list, err)
	}
	exchange(t, w, kept, 1)
	if list, _ = w.BulkTokens(t.Context()); list[0].Uses != 1 || !list[0].LastUsed.Equal(truncated(begin)) {
		t.Errorf("after a use: %+v", list[0])
	}
}

func bulkNeverStored(t *testing.T, w *world) {
	raw, kept, err := w.NewBulkToken(t.Context(), site.NewBulk{Label: "autumn intake", By: "anna"})
	if err != nil {
		t.Fatal(err)
	}
	issued := exchange(t, w, kept, 1)
	w.registered(t, with(kept, device(1).thumbprint), device(1).request())
	second := exchange(t, w, kept, 1)
	w.Flush(t.Context())
	dump := w.dump(t)
	if !bytes.Contains(dump, []byte("autumn intake")) {
		t.Fatal("the search does not see what is there")
	}
	for _, secret := range []string{raw, issued.Token, second.Token} {
		parts := strings.Split(secret, ".")
		for _, part := range append(parts[1:], secret, parts[2][:16], parts[2][len(parts[2])-16:]) {
			if bytes.Contains(dump, []byte(part)) {
				t.Errorf("the database holds %d characters of a token", len(part))
			}
		}
	}
}

// run lets the site follow the database until the test ends.
func run(t *testing.T, s *site.Site) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// stumbling is a store whose views fail for a while, as those of a database that is away.
type stumbling struct {
	site.Store
	failures atomic.Int64
}

func (s *stumbling) View(ctx context.Context, read func(site.Tx) error) error {
	if s.failures.Add(-1) >= 0 {
		return site.ErrUnavailable
	}
	return s.Store.View(ctx, read)
}

func blockWhileAway(t *testing.T, w *world) {
	away := &stumbling{Store: w.open(t, store.Options{NoSync: true})}
	node, err := site.Open(t.Context(), w.config(away))
	if err != nil {
		t.Fatal(err)
	}
	bulk, moved := w.bulk(t, 0), node.Watch(t.Context())
	away.failures.Store(2)
	run(t, node)
	if _, err := w.BlockBulkToken(t.Context(), bulk.ID, true, "anna", "try it"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-moved:
	case <-time.After(10 * time.Second):
		t.Fatal("the node never tried again")
	}
	refused(t, "the blocked token", node.Revoked(token.Claims{ID: bulk.ID}), catalog.TokenBlocked)
}

// blockedWhileWaiting registers as an inbox does: long after the token was admitted, at a node that has not heard of the block.
func blockedWhileWaiting(t *testing.T, w *world) {
	node, bulk := w.node(t), w.bulk(t, 0)
	byToken := with(bulk, device(2).thumbprint)
	byToken.Method, byToken.TokenID = proof.CCMToken, "a token that was got with it"
	if _, err := w.BlockBulkToken(t.Context(), bulk.ID, true, "anna", "try it"); err != nil {
		t.Fatal(err)
	}
	for n, caller := range map[int]site.Caller{1: with(bulk, device(1).thumbprint), 2: byToken} {
		_, err := node.Register(t.Context(), caller, device(n).request())
		refused(t, string(caller.Method), err, catalog.TokenBlocked)
	}
	if devices, err := w.Devices(t.Context(), site.DeviceFilter{}); err != nil || len(devices) > 0 {
		t.Errorf("got %+v, %v", devices, err)
	}
	_, err := node.Register(t.Context(), with(site.BulkToken{ID: "6b0c9a5e-0000-4000-8000-000000000000"}, device(1).thumbprint), device(1).request())
	refused(t, "a token without a record", err, catalog.BulkTokenUnknown)
}

func bulkBlocked(t *testing.T, w *world) {
	node := w.node(t)
	run(t, node)
	moved := node.Watch(t.Context())
	bulk := w.bulk(t, 0)
	bulkClaims := token.Claims{Kind: token.KindBulk, ID: bulk.ID, BulkID: bulk.ID}
	got := w.verified(t, exchange(t, w, bulk, 1), token.KindCCM)
	for i, blocked := range []bool{true, false, true} {
		entries := w.during(t, func() {
			for range 2 { // the second time is none
				kept, err := w.BlockBulkToken(t.Context(), bulk.ID, blocked, "anna", "try it")
				if err != nil || kept.Blocked != blocked {
					t.Fatalf("got %+v, %v", kept, err)
				}
			}
		})
		if want := map[bool]string{true: "token.block", false: "token.unblock"}[blocked]; actions(entries) != want {
			t.Errorf("step %d: trust entries %q, want %q", i+1, actions(entries), want)
		}
		select {
		case <-moved:
		case <-time.After(10 * time.Second):
			t.Fatal("the other node did not hear of it")
		}
		for name, s := range map[string]*site.Site{"here": w.Site, "at the other node": node} {
			for what, claims := range map[string]token.Claims{"the bulk token": bulkClaims, "a token got with it": got} {
				want := catalog.Code("")
				if blocked {
					want = catalog.TokenBlocked
				}
				if err := s.Revoked(claims); catalog.CodeOf(err) != want {
					t.Errorf("step %d, %s, %s: got %v, want code %q", i+1, what, name, err, want)
				}
			}
		}
	}
	_, err := w.BlockBulkToken(t.Context(), "6b0c9a5e-0000-4000-8000-000000000000", true, "anna", "try it")
	refused(t, "an unknown token", err, catalog.BulkTokenUnknown)
}
