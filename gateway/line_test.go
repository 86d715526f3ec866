package gateway

import (
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/token"
)

// When too many token exchanges wait to be checked, one more is answered 503 with Retry-After and its proof is not used; messages are forwarded all the while.
func TestTokenExchangesStandInLine(t *testing.T) {
	w := newWorld(t)
	w.connect()
	d := newDevice(t)
	exchange, path := d.token(token.KindSelfProve, "", "id", time.Now()), tokenPath("/CCM_STS")
	ask := d.show(request(t, http.MethodPost, path, strings.NewReader("grant_type=x")), exchange)

	free := fillLine(t, w)
	if got := do(t, w.client(false), ask); got.status != http.StatusServiceUnavailable || got.code != catalog.TokenServiceBusy || got.header.Get("Retry-After") == "" {
		t.Errorf("%s %s, Retry-After %q; want 503 %s and Retry-After", got.reason, got.code, got.header.Get("Retry-After"), catalog.TokenServiceBusy)
	}
	if got := do(t, w.client(false), d.show(request(t, "CCM_POST", tokenPath("/CCM_System_TokenAuth/request"), strings.NewReader("x")), d.ccmToken())); got.status != http.StatusOK {
		t.Errorf("a message got %s %s", got.reason, got.code)
	}
	free()
	again := request(t, http.MethodPost, path, strings.NewReader("grant_type=x"))
	again.Header = ask.Header.Clone()
	if got := do(t, w.client(false), again); got.status != http.StatusOK {
		t.Errorf("the same proof afterwards got %s %s", got.reason, got.code)
	}
}

// fillLine takes every place in the line of the token exchanges.
func fillLine(t *testing.T, w *world) (free func()) {
	t.Helper()
	hold := make(chan struct{})
	_, most := w.gateway.exchanges.Load()
	var wait sync.WaitGroup
	for range most {
		wait.Go(func() { w.gateway.exchanges.Do(t.Context(), func(func()) error { <-hold; return nil }) })
	}
	for now, _ := w.gateway.exchanges.Load(); now < most; now, _ = w.gateway.exchanges.Load() {
		runtime.Gosched()
	}
	return func() { close(hold); wait.Wait() }
}
