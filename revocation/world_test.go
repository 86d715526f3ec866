package revocation

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"postern/catalog"
	"postern/internal/authority"
)

// world is a root, an intermediate authority below it that publishes its list, and a clock.
type world struct {
	t         testing.TB
	clock     *clock
	root      *authority.Authority
	between   *authority.Authority
	publisher *authority.Publisher
	good      *authority.Certificate // a client
	revoked   *authority.Certificate // a client, on the list
}

const (
	rootList    = "/root.crl"
	betweenList = "/between.crl"
	responder   = "/ocsp"
)

func must[T any](t testing.TB) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func start() time.Time { return time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC) }

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newWorld(t testing.TB) *world {
	t.Helper()
	key := must[crypto.Signer](t)
	return newWorldWithKeys(t, key(authority.NewKey()), key(authority.NewKey()))
}

// newFuzzWorld has the same keys in every process, so that what one signed is good in another.
func newFuzzWorld(t testing.TB) *world {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)
	return newWorldWithKeys(t,
		key(ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{1}, 32))),
		key(ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{2}, 32))))
}

func newWorldWithKeys(t testing.TB, root, between crypto.Signer) *world {
	t.Helper()
	w := &world{t: t, clock: &clock{now: start()}}
	w.root = must[*authority.Authority](t)(authority.NewRootWithKey("Test Root", root, start()))
	w.between = must[*authority.Authority](t)(w.root.IntermediateFor("Test Issuing", between))
	w.publisher = must[*authority.Publisher](t)(authority.NewPublisher())
	t.Cleanup(w.publisher.Close)
	w.good = must[*authority.Certificate](t)(w.between.Client("wk01.contoso.com"))
	w.revoked = must[*authority.Certificate](t)(w.between.Client("wk02.contoso.com"))
	w.between.Revoke(w.revoked.Certificate, start().Add(-48*time.Hour), 1)
	w.publish()
	return w
}

// publish puts current lists on the web server.
func (w *world) publish(edits ...func(*x509.RevocationList)) {
	w.t.Helper()
	w.publisher.Put(rootList, must[[]byte](w.t)(w.root.List(w.clock.Now().Add(-time.Hour))))
	w.publisher.Put(betweenList, must[[]byte](w.t)(w.between.List(w.clock.Now().Add(-time.Hour), edits...)))
}

// checker trusts the root and asks both lists, unless edits say otherwise.
func (w *world) checker(edits ...func(*Config)) *Checker {
	w.t.Helper()
	config := Config{
		Roots:   []*x509.Certificate{w.root.Certificate},
		Sources: []string{w.publisher.URL(rootList), w.publisher.URL(betweenList)},
		Now:     w.clock.Now,
		Client:  &http.Client{Transport: &http.Transport{}},
	}
	for _, edit := range edits {
		edit(&config)
	}
	c := must[*Checker](w.t)(New(config))
	w.t.Cleanup(c.Close)
	return c
}

func policy(p Policy) func(*Config)             { return func(c *Config) { c.Policy = p } }
func sources(addresses ...string) func(*Config) { return func(c *Config) { c.Sources = addresses } }

// respond serves an OCSP answer about whatever certificate of the intermediate authority is given, made by make.
func (w *world) respond(answer func() ([]byte, error)) {
	w.publisher.Handle(responder, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		body, err := answer()
		if err != nil {
			w.t.Error(err)
		}
		rw.Header().Set("Content-Type", "application/ocsp-response")
		rw.Write(body)
	}))
}

func (w *world) answer(about *authority.Certificate, status int, signer *authority.Certificate, edits ...func(*ocsp.Response)) []byte {
	w.t.Helper()
	return must[[]byte](w.t)(w.between.Answer(about.Certificate, status, w.clock.Now().Add(-time.Minute), signer, edits...))
}

// ask checks a chain and compares its code, "" for OK without a warning.
func ask(t testing.TB, c *Checker, chain []*x509.Certificate, usage Usage, want catalog.Code) Verdict {
	t.Helper()
	verdict, err := c.Check(t.Context(), chain, usage)
	if (err == nil) != verdict.OK || catalog.CodeOf(err) != verdict.Code && err != nil {
		t.Errorf("the verdict %+v and the error %v differ", verdict, err)
	}
	if refused, ok := errors.AsType[*Refused](err); err != nil && (!ok || refused.Verdict.Flags != verdict.Flags) {
		t.Errorf("the error %v does not hold the verdict", err)
	}
	if verdict.Code != want {
		t.Errorf("got %q (%v), want %q", verdict.Code, err, want)
	}
	if verdict.Code != "" && verdict.Sentence == "" {
		t.Errorf("%s has no sentence", verdict.Code)
	}
	return verdict
}
