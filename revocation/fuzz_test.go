package revocation

import (
	"context"
	"crypto/x509"
	"net/http"
	"testing"

	"golang.org/x/crypto/ocsp"

	"postern/catalog"
)

// offline refuses every fetch.
type offline struct{}

func (offline) RoundTrip(*http.Request) (*http.Response, error) { return nil, http.ErrHandlerTimeout }

// FuzzList: whatever a server publishes is a list within the budget, or an error with a code.
func FuzzList(f *testing.F) {
	w := newFuzzWorld(f)
	for _, test := range listCases(f, w, w.root) {
		f.Add(test.list)
	}
	f.Add([]byte("-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n"))
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		read, err := readList(data, 100)
		if err != nil {
			if code := catalog.CodeOf(err); code != catalog.RevocationListMalformed && code != catalog.RevocationListUnsupported {
				t.Errorf("got %v", err)
			}
			return
		}
		if len(read.list.entries) > 100 {
			t.Errorf("%d entries", len(read.list.entries))
		}
		for _, e := range read.list.entries {
			if e.serial[0] != 0xff && int(e.serial[0]) > 20 {
				t.Errorf("a serial of %d bytes", e.serial[0])
			}
		}
		read.signedBy([]*x509.Certificate{w.between.Certificate})
		read.list.find(w.good.Certificate)
		read.list.answersFor(w.good.Certificate)
		agree(t, data, read.list)
	})
}

// agree compares with crypto/x509, which reads the whole list its own way.
func agree(t *testing.T, data []byte, l *list) {
	t.Helper()
	der, err := unwrapPEM(data)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := x509.ParseRevocationList(der)
	if err != nil {
		return // it refuses more, in entries that say nothing here
	}
	if len(whole.RevokedCertificateEntries) != len(l.entries) {
		t.Fatalf("got %d entries, crypto/x509 reads %d", len(l.entries), len(whole.RevokedCertificateEntries))
	}
	for _, e := range whole.RevokedCertificateEntries {
		if _, found := l.find(&x509.Certificate{SerialNumber: e.SerialNumber}); !found {
			t.Errorf("%x is not found", e.SerialNumber)
		}
	}
}

// FuzzChain: whatever chain is shown gets a verdict whose parts agree, and nothing but a chain to the root passes.
func FuzzChain(f *testing.F) {
	w := newFuzzWorld(f)
	for _, test := range chainCases(f, w) {
		var second []byte
		if len(test.chain) > 1 {
			second = test.chain[1].Raw
		}
		f.Add(test.chain[0].Raw, second, test.usage.Server, test.usage.Name)
	}
	c, err := New(Config{Roots: []*x509.Certificate{w.root.Certificate}, Policy: PolicyOff, Now: w.clock.Now, Client: &http.Client{Transport: offline{}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, first, second []byte, server bool, name string) {
		var chain []*x509.Certificate
		for _, der := range [][]byte{first, second} {
			certificate, err := ParseCertificate(der)
			if code := catalog.CodeOf(err); err != nil && code != catalog.CertificateUnreadable && code != catalog.CertificateNegativeSerial {
				t.Fatalf("got %v", err)
			}
			if err == nil {
				chain = append(chain, certificate)
			}
		}
		verdict, err := c.Check(context.Background(), chain, Usage{Server: server, Name: name})
		if verdict.OK != (err == nil) || verdict.OK != (verdict.Flags == 0) || (verdict.Code == "") != verdict.OK {
			t.Errorf("got %+v and %v", verdict, err)
		}
		if verdict.OK && !verdict.Chain[len(verdict.Chain)-1].Equal(w.root.Certificate) {
			t.Error("a chain passed that does not end in the root")
		}
		if explanation, ok := Explain(err); ok && explanation.Flags != verdict.Flags {
			t.Errorf("got %+v for %+v", explanation, verdict)
		}
	})
}

// FuzzAnswer: whatever a responder sends or a server staples is an answer or an error with a code, and only the answers of
// the table say that a certificate is good.
func FuzzAnswer(f *testing.F) {
	w := newFuzzWorld(f)
	for _, test := range answerCases(f, w) {
		f.Add(test.raw)
	}
	f.Add(w.answer(w.good, ocsp.Revoked, nil))
	c := w.checker()
	f.Fuzz(func(t *testing.T, raw []byte) {
		q := question{certificate: w.good.Certificate, issuer: w.between.Certificate, now: start()}
		a, err := c.readAnswer(raw, q, nil)
		if err == nil && (a == nil || a.state != StateGood && a.state != StateRevoked) {
			t.Errorf("got %+v", a)
		}
		if code := catalog.CodeOf(err); err != nil && code != catalog.RevocationAnswerRefused && code != catalog.RevocationAnswerNone {
			t.Errorf("got %v", err)
		}
	})
}
