package revocation

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/internal/authority"
)

// listCase is one list of the intermediate authority, with the codes that a good and a revoked client get.
type listCase struct {
	name          string
	list          []byte
	good, revoked catalog.Code
}

func extension(critical bool, value []byte, id ...int) func(*x509.RevocationList) {
	return func(l *x509.RevocationList) {
		l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: id, Critical: critical, Value: value})
	}
}

func listCases(t testing.TB, w *world, namesake *authority.Authority) []listCase {
	t.Helper()
	bytesOf := must[[]byte](t)
	hour := start().Add(-time.Hour)
	list := func(edits ...func(*x509.RevocationList)) []byte { return bytesOf(w.between.List(hour, edits...)) }
	garbled := list()
	garbled[len(garbled)-3] ^= 1
	both := func(name string, list []byte, code catalog.Code) listCase { return listCase{name, list, code, code} }
	return []listCase{
		{"DER", list(), "", catalog.CertificateRevoked},
		{"PEM", authority.ListPEM(list()), "", catalog.CertificateRevoked},
		{"for all authorities and users", list(extension(true, []byte{0x30, 0x00}, 2, 5, 29, 28)), "", catalog.CertificateRevoked},
		{"for users", list(extension(true, []byte{0x30, 0x03, 0x81, 0x01, 0xff}, 2, 5, 29, 28)), "", catalog.CertificateRevoked},
		both("for authorities", list(extension(true, []byte{0x30, 0x03, 0x82, 0x01, 0xff}, 2, 5, 29, 28)), catalog.RevocationSourceMissing),
		both("for attribute certificates", list(extension(true, []byte{0x30, 0x03, 0x85, 0x01, 0xff}, 2, 5, 29, 28)), catalog.RevocationListUnsupported),
		both("for some reasons", list(extension(true, []byte{0x30, 0x04, 0x83, 0x02, 0x06, 0x40}, 2, 5, 29, 28)), catalog.RevocationListUnsupported),
		both("for another distribution point", list(extension(true, append([]byte{0x30, 0x0e, 0xa0, 0x0c, 0xa0, 0x0a, 0x86, 0x08}, "http://x"...), 2, 5, 29, 28)), catalog.RevocationSourceMissing),
		both("a delta list", list(extension(true, []byte{2, 1, 1}, 2, 5, 29, 27)), catalog.RevocationListUnsupported),
		both("an unknown critical extension", list(extension(true, []byte{5, 0}, 1, 2, 3)), catalog.RevocationListUnsupported),
		{"an unknown extension", list(extension(false, []byte{5, 0}, 1, 2, 3)), "", catalog.CertificateRevoked},
		{"expired", list(func(l *x509.RevocationList) { l.NextUpdate = start().Add(-time.Minute) }), catalog.RevocationListDate, catalog.CertificateRevoked},
		both("from the future", list(func(l *x509.RevocationList) { l.ThisUpdate = start().Add(time.Hour) }), catalog.RevocationListDate),
		both("of another authority", bytesOf(w.root.List(hour)), catalog.RevocationListForeign),
		both("of an authority of the same name", bytesOf(namesake.List(hour)), catalog.RevocationListForeign),
		both("with a broken signature", garbled, catalog.RevocationListForeign),
	}
}

func TestLists(t *testing.T) {
	w := newWorld(t)
	namesake := must[*authority.Authority](t)(authority.NewRootWithKey("Test Issuing", w.root.Key, start()))
	cases := append(listCases(t, w, namesake),
		listCase{"indirect", must[[]byte](t)(w.between.List(start(), extension(true, []byte{0x30, 0x03, 0x84, 0x01, 0xff}, 2, 5, 29, 28))), catalog.RevocationListUnsupported, catalog.RevocationListUnsupported},
		listCase{"an entry of another issuer", must[[]byte](t)(w.between.List(start(), func(l *x509.RevocationList) {
			l.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 29}, Critical: true, Value: []byte{0x30, 0}}}
		})), catalog.RevocationListUnsupported, catalog.RevocationListUnsupported},
		listCase{"signed with SHA-1", must[[]byte](t)(w.between.List(start(), func(l *x509.RevocationList) { l.SignatureAlgorithm = x509.ECDSAWithSHA1 })), catalog.RevocationListUnsupported, catalog.RevocationListUnsupported},
		listCase{"nothing", nil, catalog.RevocationListMalformed, catalog.RevocationListMalformed},
		listCase{"a web page", []byte("<html>"), catalog.RevocationListMalformed, catalog.RevocationListMalformed},
		listCase{"a certificate", w.good.Certificate.Raw, catalog.RevocationListMalformed, catalog.RevocationListMalformed},
		listCase{"PEM of a certificate", authority.PEM(w.good.Certificate), catalog.RevocationListMalformed, catalog.RevocationListMalformed},
	)
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			w.publisher.Put("/one.crl", test.list)
			c := w.checker(sources(w.publisher.URL("/one.crl")), func(c *Config) {
				// The list of the root is not what is tried here.
				c.Roots = []*x509.Certificate{w.root.Certificate, w.between.Certificate}
				c.Leeway = time.Nanosecond
			})
			ask(t, c, w.good.Chain(), ForClient(), test.good)
			ask(t, c, w.revoked.Chain(), ForClient(), test.revoked)
		})
	}
}

// An authority that may not sign lists signs none (RFC 5280 6.3.3 f).
func TestAListOfAnAuthorityThatMayNotSignLists(t *testing.T) {
	w := newWorld(t)
	key := must[crypto.Signer](t)(authority.NewKey())
	silent := must[*authority.Authority](t)(w.root.IntermediateFor("Test Silent", key, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign }))
	// The same key under the same name with the usage, so that there is somebody to make the list.
	speaking := must[*authority.Authority](t)(w.root.IntermediateFor("Test Silent", key))
	w.publisher.Put(betweenList, must[[]byte](t)(speaking.List(start())))
	client := must[*authority.Certificate](t)(silent.Client("wk03.contoso.com"))
	c := w.checker(sources(w.publisher.URL(betweenList)), func(c *Config) { c.Roots = []*x509.Certificate{silent.Certificate} })
	ask(t, c, client.Chain(), ForClient(), catalog.RevocationListForeign)
}

// Two lists of one authority, as two web servers have them: the word of the one that knows
// of the revocation counts, in whichever order they are asked.
func TestOneOfTwoListsKnowsOfTheRevocation(t *testing.T) {
	w := newWorld(t)
	w.publisher.Put("/behind.crl", must[[]byte](t)(w.between.List(start().Add(-2*time.Hour), func(l *x509.RevocationList) { l.RevokedCertificateEntries = nil })))
	root, behind, current := w.publisher.URL(rootList), w.publisher.URL("/behind.crl"), w.publisher.URL(betweenList)
	for name, addresses := range map[string][]string{"last": {root, behind, current}, "first": {root, current, behind}} {
		t.Run(name, func(t *testing.T) {
			c := w.checker(sources(addresses...))
			c.Refresh(t.Context())
			ask(t, c, w.revoked.Chain(), ForClient(), catalog.CertificateRevoked)
			ask(t, c, w.good.Chain(), ForClient(), "")
		})
	}
}

// A list for one distribution point answers only for the certificates that name it (RFC 5280 6.3.3).
func TestAListForOneDistributionPoint(t *testing.T) {
	w := newWorld(t)
	const point = "http://x"
	naming := must[*authority.Certificate](t)(w.between.Client("a", func(c *x509.Certificate) {
		c.CRLDistributionPoints = []string{"ldap:///CN=CA", point}
	}))
	value := append([]byte{0x30, 0x0e, 0xa0, 0x0c, 0xa0, 0x0a, 0x86, 0x08}, point...)
	w.publish(extension(true, value, 2, 5, 29, 28))
	ask(t, w.checker(), naming.Chain(), ForClient(), "")
	ask(t, w.checker(), w.good.Chain(), ForClient(), catalog.RevocationSourceMissing)
}

// What our log keeps names every fault and its cause; what a person gets does not hold the cause.
func TestTheLogGetsTheCause(t *testing.T) {
	w := newWorld(t)
	w.publisher.Switch(authority.Down)
	_, err := w.checker().Check(t.Context(), w.good.Chain(), ForClient())
	if text := err.Error(); !strings.Contains(text, "CERT_REV_FAILED") || !strings.Contains(text, "EOF") {
		t.Errorf("got %s", text)
	}
	if text := catalog.Public(err); strings.Contains(text, "EOF") || !strings.Contains(text, w.publisher.URL("")) {
		t.Errorf("got %s", text)
	}
}

func TestRevoked(t *testing.T) {
	w := newWorld(t)
	verdict := ask(t, w.checker(), w.revoked.Chain(), ForClient(), catalog.CertificateRevoked)
	if verdict.Flags != FlagRevoked {
		t.Errorf("got the flags %s", verdict.Flags)
	}
	if want := `the certificate "wk02.contoso.com" was revoked on 2026-11-18 12:00:00 UTC (key compromise), says ` + w.publisher.URL(betweenList); verdict.Sentence != want {
		t.Errorf("got %s, want %s", verdict.Sentence, want)
	}
	if len(verdict.Certificates) != 2 || verdict.Certificates[0].State != StateRevoked || verdict.Certificates[1].State != StateGood {
		t.Errorf("got %+v", verdict.Certificates)
	}
}

func TestARevokedIntermediate(t *testing.T) {
	w := newWorld(t)
	w.root.Revoke(w.between.Certificate, start().Add(-time.Hour), 2)
	w.publish()
	ask(t, w.checker(), w.good.Chain(), ForClient(), catalog.CertificateRevoked)
}

// A certificate that two authorities of one key and name issued the way to is good when one way is.
func TestAnotherChainThatIsGood(t *testing.T) {
	w := newWorld(t)
	other := must[*authority.Authority](t)(authority.NewRoot("Second Root", start()))
	cross := *w.between.Certificate
	template := &x509.Certificate{
		SerialNumber: big.NewInt(77), Subject: cross.Subject, RawSubject: cross.RawSubject, NotBefore: cross.NotBefore, NotAfter: cross.NotAfter,
		KeyUsage: cross.KeyUsage, BasicConstraintsValid: true, IsCA: true, SubjectKeyId: cross.SubjectKeyId,
	}
	der := must[[]byte](t)(x509.CreateCertificate(nil, template, other.Certificate, cross.PublicKey, other.Key))
	crossed := must[*x509.Certificate](t)(x509.ParseCertificate(der))
	w.root.Revoke(w.between.Certificate, start().Add(-time.Hour), 2)
	w.publish()
	w.publisher.Put("/second.crl", must[[]byte](t)(other.List(start())))
	c := w.checker(func(c *Config) {
		c.Roots = append(c.Roots, other.Certificate)
		c.Sources = append(c.Sources, w.publisher.URL("/second.crl"))
	})
	ask(t, c, append(w.good.Chain(), crossed), ForClient(), "")
	ask(t, c, w.good.Chain(), ForClient(), catalog.CertificateRevoked)
}

func TestSerialNumbersOfEveryLength(t *testing.T) {
	w := newWorld(t)
	var entries []x509.RevocationListEntry
	var certificates []*x509.Certificate
	for _, bits := range []uint{0, 7, 8, 63, 64, 127, 151, 158, 159, 167, 200} {
		for offset := range int64(3) {
			serial := new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), bits), big.NewInt(offset))
			certificates = append(certificates, &x509.Certificate{SerialNumber: serial})
			if offset == 1 {
				entries = append(entries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: start()})
			}
		}
	}
	der := must[[]byte](t)(w.between.List(start(), func(l *x509.RevocationList) { l.RevokedCertificateEntries = entries }))
	read := must[unsignedList](t)(readList(der, 100))
	for _, certificate := range certificates {
		_, got := read.list.find(certificate)
		want := false
		for _, entry := range entries {
			want = want || entry.SerialNumber.Cmp(certificate.SerialNumber) == 0
		}
		if got != want {
			t.Errorf("%x: got %v, want %v", certificate.SerialNumber, got, want)
		}
	}
	if _, err := readList(der, len(entries)-1); catalog.CodeOf(err) != catalog.RevocationListMalformed {
		t.Errorf("got %v", err)
	}
}
