package auth

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/proof"
	"postern/token"
)

// blocked are keys, with the shape of Revocation.
type blocked struct {
	mu   sync.Mutex
	keys map[proof.KeyThumbprint]bool
}

func (b *blocked) block(key proof.KeyThumbprint) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys[key] = true
}

func (b *blocked) Revoked(c token.Claims) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.keys[c.Key] {
		return catalog.Errorf(catalog.KeyBlocked, "key %s", c.Key)
	}
	return nil
}

// holding is a server whose handler proves, in turn, the keys that the header names, and waits until it is let go or cut.
func holding(t *testing.T, letGo <-chan struct{}) (f *InFlight, b *blocked, server *httptest.Server, causes chan error) {
	t.Helper()
	b, causes = &blocked{keys: map[proof.KeyThumbprint]bool{}}, make(chan error, 10)
	f = NewInFlight(InFlightConfig{Revocation: b})
	server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i, key := range r.Header.Values("Key") {
			under, end, err := f.Begin(w, r, Use{Claims: token.Claims{Key: proof.KeyThumbprint(key)}})
			if err != nil {
				causes <- err
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			if r = under; i == 0 {
				defer end()
			}
		}
		if r.Header.Get("Wait") != "" {
			select {
			case <-letGo:
			case <-r.Context().Done():
			}
			causes <- context.Cause(r.Context())
		}
	}))
	server.Config.ConnContext, server.Config.ConnState = f.ConnContext, f.ConnState
	server.Start()
	t.Cleanup(server.Close)
	return f, b, server, causes
}

func send(t *testing.T, client *http.Client, url string, header http.Header) error {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = header
	answer, err := client.Do(r)
	if err == nil {
		io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
	}
	return err
}

// A request that turns out to have proved more ends with any of it, and is forgotten once.
func TestARequestEndsWithAnyOfWhatItProved(t *testing.T) {
	for revoked, want := range map[proof.KeyThumbprint]int{"first": 0, "second": 1} { // what was proved last decides about the connection
		f, b, server, causes := holding(t, make(chan struct{}))
		done := make(chan error, 1)
		go func() {
			done <- send(t, server.Client(), server.URL, http.Header{"Key": {"first", "second"}, "Wait": {"1"}})
		}()
		for f.Requests() == 0 || len(f.usesOf()) < 2 {
			time.Sleep(time.Millisecond)
		}
		if requests, _ := f.Cut(); requests != 0 {
			t.Fatalf("%d cut while nothing is revoked", requests)
		}
		b.block(revoked)
		if requests, connections := f.Cut(); requests != 1 || connections != want {
			t.Errorf("%s is revoked: %d requests and %d connections are cut, want 1 and %d", revoked, requests, connections, want)
		}
		if cause := <-causes; catalog.CodeOf(cause) != catalog.KeyBlocked {
			t.Errorf("%s is revoked: the cause is %v", revoked, cause)
		}
		<-done
		if got := f.Requests(); got != 0 {
			t.Errorf("%d requests are kept", got)
		}
	}
}

// usesOf returns what all requests use.
func (f *InFlight) usesOf() (all []Use) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for q := range f.requests {
		all = append(all, q.uses...)
	}
	return all
}

// What is revoked between its proof and its begin is refused, at the first proof and at the second; nothing is kept.
func TestBeginRefusesWhatIsRevoked(t *testing.T) {
	for _, keys := range [][]string{{"bad"}, {"good", "bad"}} {
		f, b, server, causes := holding(t, nil)
		b.block("bad")
		if err := send(t, server.Client(), server.URL, http.Header{"Key": keys}); err != nil {
			t.Fatal(err)
		}
		if err := <-causes; catalog.CodeOf(err) != catalog.KeyBlocked {
			t.Errorf("%v: got %v", keys, err)
		}
		for end := time.Now().Add(10 * time.Second); f.Requests() > 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		if got := f.Requests(); got != 0 {
			t.Errorf("%v: %d requests are kept", keys, got)
		}
	}
}

// A device that has changed its key keeps its connection when it goes on with the new key on it; one that does not is hung up on.
func TestAConnectionIsSparedForWhatWasProvedSince(t *testing.T) {
	f, b, server, _ := holding(t, nil)
	ask := func(key string) {
		t.Helper()
		if err := send(t, server.Client(), server.URL, http.Header{"Key": {key}}); err != nil {
			t.Fatal(err)
		}
	}
	ask("old")
	b.block("old")
	_, doomed := f.condemn()
	if len(doomed) != 1 || len(f.stillDoomed(doomed)) != 1 {
		t.Fatalf("%d connections are doomed", len(doomed))
	}
	ask("new")
	if ending := f.stillDoomed(doomed); len(ending) != 0 {
		t.Errorf("%d connections are closed", len(ending))
	}
	b.block("new")
	if _, again := f.condemn(); len(again) != 1 {
		t.Errorf("with the new key revoked too: %d connections are doomed", len(again))
	}
}
