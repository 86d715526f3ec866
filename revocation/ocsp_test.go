package revocation

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"postern/catalog"
	"postern/internal/authority"
)

// answerCase is one OCSP answer about the good client, with the code that it gives.
type answerCase struct {
	name string
	raw  []byte
	want catalog.Code
}

func answerCases(t testing.TB, w *world) []answerCase {
	t.Helper()
	certificate := must[*authority.Certificate](t)
	named := certificate(w.between.Responder("ocsp.contoso.com"))
	wrongUsage := certificate(w.between.Client("ocsp.contoso.com"))
	expired := certificate(w.between.Responder("ocsp.contoso.com", func(c *x509.Certificate) { c.NotAfter = start().Add(-time.Hour) }))
	impostor := must[*authority.Authority](t)(authority.NewRoot("Test Issuing", start()))
	selfMade := certificate(impostor.Responder("ocsp.contoso.com"))
	weak := certificate(w.between.ClientFor("ocsp.contoso.com", must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 1024)), func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	}))
	foreign := certificate(w.root.Responder("ocsp.contoso.com"))
	namesake := must[*authority.Authority](t)(authority.NewRootWithKey("Other Name", w.between.Key, start()))
	at := func(this, next time.Duration) func(*ocsp.Response) {
		return func(r *ocsp.Response) {
			r.ThisUpdate, r.NextUpdate = start().Add(this), start().Add(next)
		}
	}
	noNext := func(age time.Duration) func(*ocsp.Response) {
		return func(r *ocsp.Response) { r.ThisUpdate, r.NextUpdate = start().Add(-age), time.Time{} }
	}
	good := func(signer *authority.Certificate, edits ...func(*ocsp.Response)) []byte {
		return w.answer(w.good, ocsp.Good, signer, edits...)
	}
	garbled := bytes.Clone(good(nil))
	garbled[len(garbled)-3] ^= 1
	return []answerCase{
		{"good, by the authority", good(nil), ""},
		{"good, by the authority with its own certificate", good(nil, func(r *ocsp.Response) { r.Certificate = w.between.Certificate }), ""},
		{"good, by a responder", good(named), ""},
		{"revoked", w.answer(w.good, ocsp.Revoked, named), catalog.CertificateRevoked},
		{"unknown", w.answer(w.good, ocsp.Unknown, named), catalog.RevocationAnswerNone},
		{"try later", ocsp.TryLaterErrorResponse, catalog.RevocationAnswerNone},
		{"not allowed", ocsp.UnauthorizedErrorResponse, catalog.RevocationAnswerNone},
		{"by a client", good(wrongUsage), catalog.RevocationAnswerRefused},
		{"by a responder that signed itself", good(selfMade), catalog.RevocationAnswerRefused},
		{"by a responder with a weak key", good(weak), catalog.RevocationAnswerRefused},
		{"by an expired responder", good(expired), catalog.RevocationAnswerRefused},
		{"by another authority's responder", good(foreign), catalog.RevocationAnswerRefused},
		{"a broken signature", garbled, catalog.RevocationAnswerRefused},
		{"about another certificate", w.answer(w.revoked, ocsp.Good, named), catalog.RevocationAnswerRefused},
		{"about another authority of the same key", must[[]byte](t)(namesake.Answer(w.good.Certificate, ocsp.Good, start(), nil)), catalog.RevocationAnswerRefused},
		{"an old one, replayed", good(named, at(-72*time.Hour, -48*time.Hour)), catalog.RevocationAnswerRefused},
		{"from the future", good(named, at(time.Hour, 2*time.Hour)), catalog.RevocationAnswerRefused},
		{"without a next update, new", good(named, noNext(time.Minute)), ""},
		{"without a next update, old", good(named, noNext(2*time.Hour)), catalog.RevocationAnswerRefused},
		{"nothing", nil, catalog.RevocationAnswerRefused},
		{"a web page", []byte("<html>"), catalog.RevocationAnswerRefused},
	}
}

func TestAnswers(t *testing.T) {
	w := newWorld(t)
	for _, test := range answerCases(t, w) {
		t.Run(test.name, func(t *testing.T) {
			w.respond(func() ([]byte, error) { return test.raw, nil })
			c := w.checker(sources("ocsp:"+w.publisher.URL(responder)), func(c *Config) { c.Roots = append(c.Roots, w.between.Certificate) })
			verdict := ask(t, c, w.good.Chain(), ForClient(), test.want)
			if test.want == catalog.CertificateRevoked && (verdict.Flags != FlagRevoked || !strings.Contains(verdict.Sentence, "key compromise")) {
				t.Errorf("got %s, %s", verdict.Flags, verdict.Sentence)
			}
		})
	}
}

// A stapled answer is taken without asking anybody; a bad one is passed over.
func TestStaples(t *testing.T) {
	w := newWorld(t)
	for _, test := range answerCases(t, w) {
		t.Run(test.name, func(t *testing.T) {
			trusting := func(c *Config) { c.Roots = append(c.Roots, w.between.Certificate) }
			usage := Usage{Staple: test.raw}
			want := test.want
			if len(test.raw) == 0 {
				want = catalog.RevocationSourceMissing
			}
			ask(t, w.checker(sources(), trusting), w.good.Chain(), usage, want)
			if want != catalog.CertificateRevoked {
				want = ""
			}
			ask(t, w.checker(), w.good.Chain(), usage, want)
		})
	}
}

// The responder is asked before the lists; they are asked when it does not know or is away.
func TestListsMakeUpForAResponder(t *testing.T) {
	w := newWorld(t)
	both := sources("ocsp:"+w.publisher.URL(responder), w.publisher.URL(rootList), w.publisher.URL(betweenList))
	w.respond(func() ([]byte, error) { return w.answer(w.good, ocsp.Unknown, nil), nil })
	ask(t, w.checker(both), w.good.Chain(), ForClient(), "")
	ask(t, w.checker(both), w.revoked.Chain(), ForClient(), catalog.CertificateRevoked)
	away := sources("ocsp:http://127.0.0.1:1/", w.publisher.URL(rootList), w.publisher.URL(betweenList))
	ask(t, w.checker(away), w.revoked.Chain(), ForClient(), catalog.CertificateRevoked)
}

func TestAnswersAreKept(t *testing.T) {
	w := newWorld(t)
	asked := 0
	w.respond(func() ([]byte, error) { asked++; return w.answer(w.good, ocsp.Good, nil), nil })
	c := w.checker(sources("ocsp:"+w.publisher.URL(responder)), func(c *Config) { c.Roots = append(c.Roots, w.between.Certificate) })
	for range 5 {
		ask(t, c, w.good.Chain(), ForClient(), "")
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	w.publisher.Switch(authority.Down)
	w.clock.advance(12 * time.Hour) // to be renewed, and still good
	ask(t, c, w.good.Chain(), ForClient(), "")
	w.clock.advance(24 * time.Hour)
	ask(t, c, w.good.Chain(), ForClient(), catalog.RevocationListDate)
}

// A responder that is down is not waited for once for every certificate.
func TestAResponderThatIsDownIsAskedOnce(t *testing.T) {
	w := newWorld(t)
	w.publisher.Switch(authority.Failing)
	c := w.checker(sources("ocsp:" + w.publisher.URL(responder)))
	for range 5 {
		client := must[*authority.Certificate](t)(w.between.Client("a"))
		ask(t, c, client.Chain(), ForClient(), catalog.RevocationUnreachable)
	}
	total := 0
	for _, at := range c.Status() {
		if at.Code != catalog.RevocationUnreachable {
			t.Errorf("got %+v", at)
		}
		total++
	}
	if total != 1 {
		t.Errorf("%d sources", total)
	}
}

// Requests are as RFC 6960 has them: a GET that caches understand, or a POST with a nonce.
func TestRequests(t *testing.T) {
	w := newWorld(t)
	var method, content string
	var parsed *ocsp.Request
	w.publisher.Handle(responder, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		method, content = r.Method, r.Header.Get("Content-Type")
		body, _ := io.ReadAll(r.Body)
		if parsed == nil {
			parsed, _ = ocsp.ParseRequest(body) // nil for a GET; afterwards the first POST
		}
		rw.Write(w.answer(w.good, ocsp.Good, nil))
	}))
	trusting := func(c *Config) { c.Roots = append(c.Roots, w.between.Certificate) }
	from := sources("ocsp:" + w.publisher.URL(responder))
	ask(t, w.checker(from, trusting), w.good.Chain(), ForClient(), "")
	if method != http.MethodGet {
		t.Errorf("got %s", method)
	}
	// This responder does not repeat the nonce, as one that replays an old answer cannot.
	verdict := ask(t, w.checker(from, trusting, func(c *Config) { c.Nonce = true }), w.good.Chain(), ForClient(), catalog.RevocationAnswerRefused)
	if method != http.MethodPost || content != "application/ocsp-request" || !strings.Contains(verdict.Sentence, "does not repeat") {
		t.Errorf("got %s, %s, %s", method, content, verdict.Sentence)
	}
	if parsed == nil || parsed.SerialNumber.Cmp(w.good.Certificate.SerialNumber) != 0 {
		t.Errorf("got %+v", parsed)
	}
}
