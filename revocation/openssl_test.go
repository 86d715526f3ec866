package revocation

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"postern/catalog"
	"postern/internal/authority"
)

// openSSL is OpenSSL's view of an authority, which make test installs.
func openSSL(t *testing.T, a *authority.Authority, issued ...authority.Issued) *authority.OpenSSL {
	t.Helper()
	program, err := authority.NewOpenSSL(t.TempDir(), a, issued...)
	if errors.Is(err, authority.ErrNoOpenSSL) {
		t.Fatal(err) // make test installs it
	}
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// now is a world whose clock is right: OpenSSL's programs have no other.
func present(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	now := time.Now()
	w.clock.now = now
	w.root = must[*authority.Authority](t)(authority.NewRoot("Present Root", now))
	w.good = must[*authority.Certificate](t)(w.root.Client("wk01.contoso.com"))
	w.revoked = must[*authority.Certificate](t)(w.root.Client("wk02.contoso.com"))
	return w
}

func TestAListMadeByOpenSSL(t *testing.T) {
	w := present(t)
	program := openSSL(t, w.root, authority.Issued{Certificate: w.good.Certificate},
		authority.Issued{Certificate: w.revoked.Certificate, RevokedAt: time.Now().Add(-time.Hour), Reason: "keyCompromise"})
	text := must[[]byte](t)(program.List())
	block, _ := pem.Decode(text)
	w.publisher.Put("/pem.crl", text)
	w.publisher.Put("/der.crl", block.Bytes)
	for _, path := range []string{"/pem.crl", "/der.crl"} {
		c := w.checker(sources(w.publisher.URL(path)))
		ask(t, c, w.good.Chain(), ForClient(), "")
		verdict := ask(t, c, w.revoked.Chain(), ForClient(), catalog.CertificateRevoked)
		if status := verdict.Certificates[0]; status.Reason != 1 || status.Source != w.publisher.URL(path) || status.NextUpdate.IsZero() {
			t.Errorf("got %+v", status)
		}
		for name, chain := range map[string][]*x509.Certificate{"good": w.good.Chain(), "revoked": w.revoked.Chain()} {
			err := program.Verify([]*x509.Certificate{w.root.Certificate}, chain, text, time.Now())
			verdict, _ := c.Check(t.Context(), chain, ForClient())
			if verdict.OK != (err == nil) {
				t.Errorf("%s: got OK %v, and openssl verify -crl_check says %v", name, verdict.OK, err)
			}
		}
	}
}

func TestOpenSSLsResponder(t *testing.T) {
	w := present(t)
	stranger := must[*authority.Certificate](t)(w.root.Client("wk03.contoso.com"))
	program := openSSL(t, w.root, authority.Issued{Certificate: w.good.Certificate},
		authority.Issued{Certificate: w.revoked.Certificate, RevokedAt: time.Now().Add(-time.Hour), Reason: "superseded"})
	delegated := must[*authority.Certificate](t)(w.root.Responder("ocsp.contoso.com"))
	undelegated := must[*authority.Certificate](t)(w.root.Client("ocsp2.contoso.com"))
	for _, test := range []struct {
		name    string
		signer  *authority.Certificate
		nonce   bool
		good    catalog.Code
		revoked catalog.Code
		unknown catalog.Code
	}{
		{"signed by the authority", nil, false, "", catalog.CertificateRevoked, catalog.RevocationAnswerNone},
		{"signed by a responder", delegated, true, "", catalog.CertificateRevoked, catalog.RevocationAnswerNone},
		{"signed by a client", undelegated, false, catalog.RevocationAnswerRefused, catalog.RevocationAnswerRefused, catalog.RevocationAnswerRefused},
	} {
		t.Run(test.name, func(t *testing.T) {
			running := must[*authority.Responder](t)(program.Respond(test.signer))
			defer running.Close()
			c := w.checker(sources("ocsp:"+running.URL), func(c *Config) { c.Nonce = test.nonce })
			ask(t, c, w.good.Chain(), ForClient(), test.good)
			ask(t, c, w.revoked.Chain(), ForClient(), test.revoked)
			ask(t, c, stranger.Chain(), ForClient(), test.unknown)
		})
	}
}

// The verdicts about lists are those of "openssl verify -crl_check".
func TestOpenSSLAgreesAboutLists(t *testing.T) {
	w := newWorld(t)
	program := openSSL(t, w.between)
	other := must[*authority.Authority](t)(authority.NewRootWithKey("Test Issuing", w.root.Key, start()))
	for _, test := range listCases(t, w, other) {
		t.Run(test.name, func(t *testing.T) {
			w.publisher.Put(betweenList, test.list)
			c := w.checker(func(c *Config) { c.Leeway = time.Nanosecond })
			for name, chain := range map[string][]*x509.Certificate{"good": w.good.Chain(), "revoked": w.revoked.Chain()} {
				list := test.list
				if block, _ := pem.Decode(list); block == nil {
					list = authority.ListPEM(list)
				}
				err := program.Verify([]*x509.Certificate{w.root.Certificate}, chain, list, start())
				verdict, _ := c.Check(t.Context(), chain, ForClient())
				if verdict.OK != (err == nil) {
					t.Errorf("%s: got OK %v (%s), and openssl verify -crl_check says %v", name, verdict.OK, verdict.Code, err)
				}
			}
		})
	}
}
