package mp

import (
	"net/http"
	"net/url"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"postern/auth"
	"postern/catalog"
	"postern/token"
)

// fill takes every place of a gate.
func fill(t *testing.T, g *auth.Gate, places int) (free func()) {
	t.Helper()
	hold := make(chan struct{})
	var wait sync.WaitGroup
	for range places {
		wait.Go(func() { g.Do(t.Context(), func(func()) error { <-hold; return nil }) })
	}
	for now, _ := g.Load(); now < places; now, _ = g.Load() {
		runtime.Gosched()
	}
	return func() { close(hold); wait.Wait() }
}

// A full token service answers 503 with Retry-After before it has looked at anything, so that the same proof is good afterwards; what does not need it
// goes on.
func TestFullTokenService(t *testing.T) {
	var shed atomic.Int64
	f := newFixture(t, func(c *Config) { c.Hooks.Shed = func() { shed.Add(1) } })
	raw, _ := f.bulk(1)
	d := f.device(0)
	address := f.url(EnhancedHTTP, "/CCM_STS")
	body := []byte(url.Values{"grant_type": {grantExchange}, "requested_token_type": {tokenURN + "ccm"}}.Encode())
	headers := f.withToken(d.key, http.MethodPost, address, raw)
	_, most := f.mp.verifying.Load()
	free := fill(t, f.mp.verifying, most)

	g := f.send(f.client, http.MethodPost, address, form, body, headers...)
	if g.StatusCode != http.StatusServiceUnavailable || g.code() != string(catalog.TokenServiceBusy) || g.Header.Get("Retry-After") == "" || shed.Load() != 1 {
		t.Errorf("%s %s, Retry-After %q, %d shed; want 503 %s, Retry-After and 1", g.Status, g.body, g.Header.Get("Retry-After"), shed.Load(), catalog.TokenServiceBusy)
	}
	f.wantEvent(catalog.TokenServiceBusy)
	if status := f.register(d).Status; f.send(f.client, "GET", f.url(HTTP, "/SMS_MP/.sms_aut?MPLIST"), "", nil).StatusCode != http.StatusOK || d.id == "" {
		t.Errorf("registration status %d as %q: what needs no token stopped as well", status, d.id)
	}

	free()
	if g := f.send(f.client, http.MethodPost, address, form, body, headers...); g.StatusCode != http.StatusOK {
		t.Errorf("%s %s, want 200: the proof had not been used", g.Status, g.body)
	}
}

// Every way to a token waits for its turn before something is verified or signed for it.
func TestEveryExchangeTakesTurns(t *testing.T) {
	f := newFixture(t)
	d := f.device(0)
	raw, _ := f.bulk(1)
	f.tokenFrom(f.exchange(d, raw, url.Values{}))
	f.register(d)
	address := f.url(EnhancedHTTP, "/CCM_STS")
	assertion := func() string {
		text, err := token.SignAssertion(d.key, d.id, address, f.clock.now())
		f.must(err)
		return text
	}
	kept := f.tokenFrom(f.exchange(d, raw, url.Values{"requested_token_type": {tokenURN + "self-prove"}, "assertion": {assertion()}})).AccessToken
	for name, ask := range map[string]struct {
		raw    string
		values url.Values
	}{
		"bulk registration token":   {raw, url.Values{}},
		"self-prove token":          {kept, url.Values{}},
		"renewal":                   {kept, url.Values{"requested_token_type": {tokenURN + "self-prove"}, "assertion": {assertion()}}},
		"assertion without a token": {"", url.Values{"grant_type": {grantAssertion}, "assertion": {assertion()}}},
	} {
		t.Run(name, func(t *testing.T) {
			slots := auth.Processors()
			free := fill(t, f.mp.verifying, slots)
			answered := make(chan got, 1)
			go func() { answered <- f.exchange(d, ask.raw, ask.values) }()
			for now, _ := f.mp.verifying.Load(); now == slots && len(answered) == 0; now, _ = f.mp.verifying.Load() {
				runtime.Gosched()
			}
			select {
			case g := <-answered:
				t.Errorf("%s while all slots are taken", g.Status)
			default:
			}
			free()
			if g := <-answered; g.StatusCode != http.StatusOK {
				t.Errorf("%s %s, want 200", g.Status, g.body)
			}
			strangers, _ := f.mp.verifying.Load()
			if proved, _ := f.mp.signing.Load(); strangers != 0 || proved != 0 {
				t.Errorf("%d and %d places are kept", strangers, proved)
			}
		})
	}
}
