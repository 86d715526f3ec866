package site_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
	"postern/token"
)

// shortCertificate is a client certificate for that time.
func shortCertificate(t *testing.T, key *rsa.PrivateKey, from, to time.Time) *ccm.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "short"}, NotBefore: from.Truncate(time.Second), NotAfter: to.Truncate(time.Second)}
	return must(ccm.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))))
}

func issueStories() []story {
	return []story{
		{"the exchange reserves an id and the same key again costs nothing", exchangeReserves},
		{"C46 a token for N devices lets exactly N of 200 through on two nodes", exactlyN},
		{"C46 blocked, unknown and expired bulk tokens give nothing", badBulkTokens},
		{"C46 an expired bulk token ends at the leeway", bulkLeeway},
		{"after registration the scope is client", scopeClient},
		{"another bulk token counts a registered device once", secondBulkToken},
		{"a self-prove token needs an assertion by the registered key", selfProve},
		{"C45 assertions are refused for every wrong reason", wrongAssertions},
		{"a caller inside may come with an assertion alone", assertionOnly},
		{"signatures are checked and made in the caller's turn", inTurns},
		{"a blocked device gets no token", blockedGetsNone},
		{"a reservation is prolonged and expires", prolonged},
		{"only CCM and self-prove tokens can be asked for", onlyTwoKinds},
		{"C60 an unknown key learns nothing", unknownKey},
	}
}

const audience = "https://gw.example.com/CCM_Proxy_ServerAuth/72057594037927937/CCM_STS"

// synthetic is a key thumbprint without a key.
func synthetic(n int) proof.KeyThumbprint {
	return proof.KeyThumbprint(fmt.Sprintf("synthetic-%033d", n))
}

func (w *world) ask(t testing.TB, ask site.Exchange) (site.Issued, error) {
	t.Helper()
	if ask.Want == "" {
		ask.Want = token.KindCCM
	}
	return w.IssueToken(t.Context(), ask)
}

// verified checks the token as a gateway does and compares it with what the site said of it.
func (w *world) verified(t testing.TB, issued site.Issued, kind token.Kind) token.Claims {
	t.Helper()
	claims, err := w.Verifier().Verify(issued.Token, w.clock.now(), kind)
	if err != nil {
		t.Fatal(err)
	}
	said := issued.Claims
	if claims.ID != said.ID || claims.Client != said.Client || claims.Key != said.Key || claims.Scope != said.Scope || claims.BulkID != said.BulkID || claims.Expires.Unix() != said.Expires.Unix() {
		t.Errorf("the token says %+v, the site %+v", claims, said)
	}
	if err := w.Revoked(claims); err != nil {
		t.Error(err)
	}
	return claims
}

func exchangeReserves(t *testing.T, w *world) {
	bulk := w.bulk(t, 1)
	caller := with(bulk, synthetic(1))
	var first site.Issued
	entries := w.during(t, func() {
		var err error
		if first, err = w.ask(t, site.Exchange{Caller: caller}); err != nil {
			t.Fatal(err)
		}
	})
	claims := w.verified(t, first, token.KindCCM)
	if !first.First || first.Approval != ccm.ApprovalUnknown || claims.Scope != token.ScopeRegister || claims.BulkID != bulk.ID || claims.Key != synthetic(1) || claims.Client == "" {
		t.Errorf("got %+v", first)
	}
	if life := claims.Expires.Sub(claims.NotBefore); life != token.CCMLifetime {
		t.Errorf("the token lives %s", life)
	}
	if got := actions(entries); got != "token.use" || entries[0].Subject != bulk.ID || !strings.Contains(entries[0].Detail, string(claims.Client)) {
		t.Errorf("trust entries: %+v", entries)
	}
	again := w.during(t, func() {
		for range 20 {
			second, err := w.ask(t, site.Exchange{Caller: caller})
			if err != nil || second.First || second.Claims.Client != first.Claims.Client || second.Claims.ID == first.Claims.ID {
				t.Fatalf("got %+v, %v", second, err)
			}
		}
	})
	if len(again) != 0 {
		t.Errorf("asking again left %s", actions(again))
	}
	uses, err := w.TokenUses(t.Context(), bulk.ID, 10)
	if err != nil || len(uses) != 1 || uses[0].Key != synthetic(1) || uses[0].ClientID != claims.Client || uses[0].Address != "192.0.2.7" {
		t.Errorf("uses: %+v, %v", uses, err)
	}
	_, err = w.ask(t, site.Exchange{Caller: with(bulk, synthetic(2))})
	refused(t, "the second key", err, catalog.BulkTokenUsedUp)
}

func exactlyN(t *testing.T, w *world) {
	const n, callers = 7, 200
	bulk := w.bulk(t, n)
	nodes := []*site.Site{w.Site, w.node(t)}
	var won, lost atomic.Int64
	var ids sync.Map
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			issued, err := nodes[i%2].IssueToken(t.Context(), site.Exchange{Caller: with(bulk, synthetic(i)), Want: token.KindCCM})
			switch {
			case err == nil:
				won.Add(1)
				ids.Store(issued.Claims.Client, true)
			case catalog.CodeOf(err) == catalog.BulkTokenUsedUp:
				lost.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	all.Wait()
	if won.Load() != n || lost.Load() != callers-n {
		t.Errorf("%d got a token and %d not, want %d and %d", won.Load(), lost.Load(), n, callers-n)
	}
	distinct := 0
	ids.Range(func(any, any) bool { distinct++; return true })
	kept, err := w.BulkTokens(t.Context())
	if err != nil || distinct != n || kept[0].Uses != n {
		t.Errorf("%d ids, %d uses, %v, want %d", distinct, kept[0].Uses, err, n)
	}
	if _, err := w.VerifyTrustLog(t.Context()); err != nil {
		t.Error(err)
	}
}

func badBulkTokens(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	_, err := w.ask(t, site.Exchange{Caller: with(site.BulkToken{ID: "6b0c9a5e-0000-4000-8000-000000000000"}, synthetic(1))})
	refused(t, "unknown", err, catalog.BulkTokenUnknown)
	_, err = w.ask(t, site.Exchange{Caller: with(site.BulkToken{}, synthetic(1))})
	refused(t, "without an id", err, catalog.BulkTokenUnknown)
	exchange(t, w, bulk, 1)
	if _, err := w.BlockBulkToken(t.Context(), bulk.ID, true, "anna", "try it"); err != nil {
		t.Fatal(err)
	}
	entries := w.during(t, func() {
		_, err = w.ask(t, site.Exchange{Caller: with(bulk, synthetic(1))})
		refused(t, "blocked, new key", err, catalog.TokenBlocked)
		_, err = w.ask(t, site.Exchange{Caller: with(bulk, device(1).thumbprint)})
		refused(t, "blocked, key that used it", err, catalog.TokenBlocked)
	})
	if len(entries) != 0 || w.reserved(t, synthetic(1)) {
		t.Errorf("a refused exchange left %s", actions(entries))
	}
}

func bulkLeeway(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	w.clock.set(bulk.Expires.Add(token.Leeway - time.Second))
	if _, err := w.ask(t, site.Exchange{Caller: with(bulk, synthetic(1))}); err != nil {
		t.Error(err)
	}
	w.clock.set(bulk.Expires.Add(token.Leeway))
	_, err := w.ask(t, site.Exchange{Caller: with(bulk, synthetic(2))})
	refused(t, "expired", err, catalog.TokenExpired)
	_, err = w.ask(t, site.Exchange{Caller: with(bulk, synthetic(1))})
	refused(t, "expired, key that used it", err, catalog.TokenExpired)
}

func scopeClient(t *testing.T, w *world) {
	bulk := w.bulk(t, 1)
	reserved := exchange(t, w, bulk, 1).Claims.Client
	w.registered(t, with(bulk, device(1).thumbprint), device(1).request())
	entries := w.during(t, func() {
		issued, err := w.ask(t, site.Exchange{Caller: with(bulk, device(1).thumbprint)})
		if err != nil {
			t.Fatal(err)
		}
		claims := w.verified(t, issued, token.KindCCM)
		if claims.Scope != token.ScopeClient || claims.Client != reserved || claims.BulkID != "" || issued.First || issued.Approval != ccm.ApprovalApproved || claims.TokenType != token.TypeDevice {
			t.Errorf("got %+v", issued)
		}
	})
	if len(entries) != 0 {
		t.Errorf("trust entries: %s", actions(entries))
	}
	w.clock.advance(time.Hour)
	if _, err := w.ask(t, site.Exchange{Caller: withMethod(proof.SelfProveToken, 1)}); err != nil {
		t.Error(err)
	}
	w.Flush(t.Context())
	if d, _ := w.Device(t.Context(), reserved); !d.LastSeen.Equal(truncated(w.clock.now())) {
		t.Errorf("last seen %s, want %s", d.LastSeen, w.clock.now())
	}
}

func secondBulkToken(t *testing.T, w *world) {
	w.registered(t, signed(), device(1).request())
	bulk := w.bulk(t, 1)
	entries := w.during(t, func() {
		for range 3 {
			if _, err := w.ask(t, site.Exchange{Caller: with(bulk, device(1).thumbprint)}); err != nil {
				t.Fatal(err)
			}
		}
	})
	if got := actions(entries); got != "token.use" {
		t.Errorf("trust entries: %q", got)
	}
	w.registered(t, signed(), device(2).request())
	_, err := w.ask(t, site.Exchange{Caller: with(bulk, device(2).thumbprint)})
	refused(t, "the second device", err, catalog.BulkTokenUsedUp)
}

func selfProve(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	caller := with(bulk, device(1).thumbprint)
	_, err := w.ask(t, site.Exchange{Caller: caller, Want: token.KindSelfProve})
	refused(t, "before registration", err, catalog.TokenBeforeRegistration)
	id := w.registered(t, caller, device(1).request()).Device.ClientID
	_, err = w.ask(t, site.Exchange{Caller: caller, Want: token.KindSelfProve})
	refused(t, "without an assertion", err, catalog.AssertionMissing)
	_, err = w.ask(t, site.Exchange{Caller: withMethod(proof.SelfProveToken, 1), Want: token.KindSelfProve})
	refused(t, "renewal without an assertion", err, catalog.AssertionMissing)
	for _, by := range []site.Caller{caller, withMethod(proof.SelfProveToken, 1)} {
		issued, err := w.ask(t, site.Exchange{Caller: by, Want: token.KindSelfProve, Assertion: w.assertion(1, id, audience), Audience: audience})
		if err != nil {
			t.Fatal(err)
		}
		claims := w.verified(t, issued, token.KindSelfProve)
		if claims.Scope != "" || claims.Client != id || claims.Key != device(1).thumbprint || claims.Expires.Sub(claims.NotBefore) != token.SelfProveLifetime {
			t.Errorf("got %+v", claims)
		}
	}
}

// assertion is one by the n-th device's key.
func (w *world) assertion(n int, id ccm.ClientID, audience string) string {
	return must(token.SignAssertion(device(n).key, id, audience, w.clock.now()))
}

func wrongAssertions(t *testing.T, w *world) {
	id := w.registered(t, signed(), device(1).request()).Device.ClientID
	other := w.registered(t, signed(), device(2).request()).Device.ClientID
	good := func() string { return w.assertion(1, id, audience) }
	used := good()
	if _, err := w.ask(t, site.Exchange{Caller: withMethod(proof.SelfProveToken, 1), Want: token.KindSelfProve, Assertion: used, Audience: audience}); err != nil {
		t.Fatal(err)
	}
	late := good()
	w.clock.advance(299 * time.Second)
	_, err := w.ask(t, site.Exchange{Caller: withMethod(proof.SelfProveToken, 1), Want: token.KindSelfProve, Assertion: used, Audience: audience})
	refused(t, "replayed after 299 s", err, catalog.AssertionReplayed)
	if w.onPostgreSQL() {
		_, err := w.node(t).IssueToken(t.Context(), site.Exchange{Caller: withMethod(proof.SelfProveToken, 1), Want: token.KindSelfProve, Assertion: used, Audience: audience})
		refused(t, "replayed at another node", err, catalog.AssertionReplayed)
	}
	w.clock.advance(61 * time.Second)
	wrong := map[string]struct {
		assertion string
		want      catalog.Code
	}{
		"replayed after its end": {used, catalog.AssertionExpired},
		"expired":                {late, catalog.AssertionExpired},
		"from the future":        {must(token.SignAssertion(device(1).key, id, audience, w.clock.now().Add(time.Hour))), catalog.AssertionExpired},
		"for another device":     {w.assertion(1, other, audience), catalog.AssertionOtherDevice},
		"for another service":    {w.assertion(1, id, "https://evil.example.com/CCM_STS"), catalog.AssertionAudience},
		"for no service":         {w.assertion(1, id, ""), catalog.AssertionAudience},
		"by another key":         {w.assertion(2, id, audience), catalog.AssertionSignature},
		"by another device":      {w.assertion(2, other, audience), catalog.AssertionSignature},
		"not an assertion":       {"e30.e30.e30", catalog.AssertionMalformed},
		"cut off":                {good()[:100], catalog.AssertionMalformed},
	}
	for name, c := range wrong {
		for _, want := range []token.Kind{token.KindSelfProve, token.KindCCM} { // one that is not needed must hold too
			issued, err := w.ask(t, site.Exchange{Caller: withMethod(proof.SelfProveToken, 1), Want: want, Assertion: c.assertion, Audience: audience})
			refused(t, name+" for a token of kind "+string(want), err, c.want)
			if issued.Token != "" {
				t.Errorf("%s: a token came with the error", name)
			}
		}
	}
}

func assertionOnly(t *testing.T, w *world) {
	id := w.registered(t, signed(), device(1).request()).Device.ClientID
	inside := site.Caller{Proof: proof.Proof{Method: proof.Assertion}, Direct: true, Ceiling: proof.LevelManaged}
	assertion := w.assertion(1, id, audience)
	issued, err := w.ask(t, site.Exchange{Caller: inside, Assertion: assertion, Audience: audience})
	if err != nil {
		t.Fatal(err)
	}
	if claims := w.verified(t, issued, token.KindCCM); claims.Client != id || claims.Scope != token.ScopeClient || claims.Key != device(1).thumbprint {
		t.Errorf("got %+v", claims)
	}
	_, err = w.ask(t, site.Exchange{Caller: inside, Assertion: assertion, Audience: audience})
	refused(t, "again", err, catalog.AssertionReplayed)
	_, err = w.ask(t, site.Exchange{Caller: inside, Audience: audience})
	refused(t, "nothing at all", err, catalog.AssertionMissing)
	_, err = w.ask(t, site.Exchange{Caller: inside, Assertion: w.assertion(2, id, audience), Audience: audience})
	refused(t, "by another key", err, catalog.DeviceUnknown)
	_, err = w.ask(t, site.Exchange{Caller: inside, Assertion: w.assertion(1, clientID(404), audience), Audience: audience})
	refused(t, "for a device that is not registered", err, catalog.DeviceUnknown)
	if _, err := w.ask(t, site.Exchange{Caller: inside, Want: token.KindSelfProve, Assertion: w.assertion(1, id, audience), Audience: audience}); err != nil {
		t.Error(err)
	}
}

// inTurns asks in every way for a token: each signature waits for its turn, and what has none gets no token and has used nothing up but the assertion.
func inTurns(t *testing.T, w *world) {
	bulk := w.bulk(t, 1)
	caller := with(bulk, device(1).thumbprint)
	turns, full := 0, 0
	turn := func(work func() error) error {
		if turns++; turns == full {
			return catalog.Errorf(catalog.TokenServiceBusy, "full")
		}
		return work()
	}
	ask := func(what string, atFull, want int, e site.Exchange) {
		t.Helper()
		turns, full, e.Turn = 0, atFull, turn
		issued, err := w.ask(t, e)
		if full > 0 {
			refused(t, what+" when full", err, catalog.TokenServiceBusy)
		} else if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if turns != want || full > 0 && issued.Token != "" {
			t.Errorf("%s: %d turns, want %d; token %t", what, turns, want, issued.Token != "")
		}
	}
	ask("registration", 1, 1, site.Exchange{Caller: caller})
	ask("registration", 0, 1, site.Exchange{Caller: caller})
	id := w.registered(t, caller, device(1).request()).Device.ClientID
	assertion := w.assertion(1, id, audience)
	selfProve := site.Exchange{Caller: caller, Want: token.KindSelfProve, Assertion: assertion, Audience: audience}
	ask("self-prove token", 1, 1, selfProve)
	ask("self-prove token with the same assertion, which nobody has looked at", 0, 2, selfProve)
	ask("CCM token", 0, 1, site.Exchange{Caller: withMethod(proof.SelfProveToken, 1)})
	inside := site.Exchange{Caller: site.Caller{Proof: proof.Proof{Method: proof.Assertion}, Direct: true, Ceiling: proof.LevelManaged}, Assertion: w.assertion(1, id, audience), Audience: audience}
	ask("an assertion alone", 1, 1, inside)
	ask("an assertion alone", 0, 2, inside)
}

func blockedGetsNone(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	id := w.registered(t, signed(), device(1).request()).Device.ClientID
	if _, err := w.Block(t.Context(), id, "anna", "stolen"); err != nil {
		t.Fatal(err)
	}
	entries := w.during(t, func() {
		for _, caller := range []site.Caller{with(bulk, device(1).thumbprint), withMethod(proof.SelfProveToken, 1), {Proof: proof.Proof{Method: proof.Assertion}}} {
			for _, want := range []token.Kind{token.KindCCM, token.KindSelfProve} {
				_, err := w.ask(t, site.Exchange{Caller: caller, Want: want, Assertion: w.assertion(1, id, audience), Audience: audience})
				refused(t, string(caller.Method), err, catalog.DeviceBlocked)
			}
		}
	})
	if len(entries) != 0 {
		t.Errorf("trust entries: %s", actions(entries))
	}
}

func prolonged(t *testing.T, w *world) {
	_, bulk, err := w.NewBulkToken(t.Context(), site.NewBulk{MaxUses: 1, Lifetime: site.BulkMaxLifetime, By: "anna"})
	if err != nil {
		t.Fatal(err)
	}
	first := exchange(t, w, bulk, 1)
	for hour := 6; hour <= 96; hour += 6 { // the reservation lives 32 hours when nobody asks
		w.clock.set(begin.Add(time.Duration(hour) * time.Hour))
		if n := w.dropReservations(t); n != 0 {
			t.Fatalf("after %d h the reservation had expired", hour)
		}
		again := exchange(t, w, bulk, 1)
		if again.First || again.Claims.Client != first.Claims.Client {
			t.Fatalf("after %d h: got %+v", hour, again)
		}
	}
	w.clock.advance(33 * time.Hour)
	if n := w.dropReservations(t); n != 1 {
		t.Errorf("%d reservations expired, want 1", n)
	}
	later := exchange(t, w, bulk, 1)
	if !later.First || later.Claims.Client == first.Claims.Client {
		t.Errorf("after its end: got %+v", later)
	}
	if kept, _ := w.BulkTokens(t.Context()); !slices.ContainsFunc(kept, func(b site.BulkToken) bool { return b.ID == bulk.ID && b.Uses == 1 }) {
		t.Errorf("uses: %+v", kept)
	}
}

// dropReservations drops the expired ones, as a flush does now and then.
func (w *world) dropReservations(t *testing.T) (n int) {
	t.Helper()
	err := w.store.Update(t.Context(), func(tx site.Tx) (err error) {
		n, err = tx.DeleteReservationsBefore(w.clock.now())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func onlyTwoKinds(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	for _, kind := range []token.Kind{token.KindBulk, "user", "CCM"} {
		_, err := w.ask(t, site.Exchange{Caller: with(bulk, synthetic(1)), Want: kind})
		refused(t, string(kind), err, catalog.TokenRequestInvalid)
	}
	_, err := w.IssueToken(t.Context(), site.Exchange{Caller: with(bulk, synthetic(1))})
	refused(t, "nothing", err, catalog.TokenRequestInvalid)
}

func unknownKey(t *testing.T, w *world) {
	for _, method := range []proof.Method{proof.Anonymous, proof.CCMToken, proof.SelfProveToken, proof.PKICertificate, proof.Kerberos, proof.Entra, proof.ConnectorCertificate} {
		_, err := w.ask(t, site.Exchange{Caller: site.Caller{Proof: proof.Proof{Method: method, Key: synthetic(1)}}})
		refused(t, string(method), err, catalog.DeviceUnknown)
	}
}
