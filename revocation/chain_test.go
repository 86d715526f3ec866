package revocation

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/internal/authority"
)

// chainCase is one chain with the code and flags that it must give when nobody is asked about revocation.
type chainCase struct {
	name    string
	chain   []*x509.Certificate
	usage   Usage
	code    catalog.Code
	flags   Flags
	openssl bool // what "openssl verify" says about it
	options []string
}

// chainCases is the table that crypto/x509, this package and OpenSSL are compared on.
func chainCases(t testing.TB, w *world) []chainCase {
	t.Helper()
	leaf, ca := must[*authority.Certificate](t), must[*authority.Authority](t)
	other := ca(authority.NewRoot("Other Root", start()))
	impostor := ca(authority.NewRoot("Test Root", start()))
	zero := ca(w.root.Intermediate("No Authorities Below", func(c *x509.Certificate) { c.MaxPathLenZero = true }))
	belowZero := ca(zero.Intermediate("Too Deep"))
	expired := ca(w.root.Intermediate("Expired Issuing", func(c *x509.Certificate) { c.NotAfter = start().Add(-time.Hour) }))
	servers := ca(w.root.Intermediate("Servers Only", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }))
	contoso := ca(w.root.Intermediate("Contoso Only", func(c *x509.Certificate) {
		c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"contoso.com"}, true
	}))
	noIssuer := ca(w.root.Intermediate("No Authority", func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature
	}))
	weakRSA := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 1024))
	weakCurve := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	server := func(names ...string) []*x509.Certificate { return leaf(w.between.Server(names)).Chain() }
	client := func(edits ...authority.Edit) []*x509.Certificate {
		return leaf(w.between.Client("wk03.contoso.com", edits...)).Chain()
	}
	forServer, forClient := []string{"-purpose", "sslserver"}, []string{"-purpose", "sslclient"}
	named := func(name string) []string { return append(slices.Clone(forServer), "-verify_hostname", name) }
	return []chainCase{
		{"a client", w.good.Chain(), ForClient(), "", 0, true, forClient},
		{"a server called by its name", server("cmg.contoso.com"), ForServer("cmg.contoso.com"), "", 0, true, named("cmg.contoso.com")},
		{"a server called in capitals", server("cmg.contoso.com"), ForServer("CMG.CONTOSO.COM"), "", 0, true, named("CMG.CONTOSO.COM")},
		{"the second of its names", server("a.contoso.com", "b.contoso.com"), ForServer("b.contoso.com"), "", 0, true, named("b.contoso.com")},
		{"another name", server("cmg.contoso.com"), ForServer("cmg.fabrikam.com"), catalog.CertificateName, FlagName, false, named("cmg.fabrikam.com")},
		{"a wildcard for one label", server("*.contoso.com"), ForServer("cmg.contoso.com"), "", 0, true, named("cmg.contoso.com")},
		{"a wildcard for two labels", server("*.contoso.com"), ForServer("a.cmg.contoso.com"), catalog.CertificateName, FlagName, false, named("a.cmg.contoso.com")},
		{"a wildcard for no label", server("*.contoso.com"), ForServer("contoso.com"), catalog.CertificateName, FlagName, false, named("contoso.com")},
		{"a wildcard within a label", server("c*.contoso.com"), ForServer("cmg.contoso.com"), catalog.CertificateName, FlagName, true, named("cmg.contoso.com")},
		{"a client with a wildcard", leaf(w.between.Client("*.contoso.com")).Chain(), ForClient(), catalog.CertificateName, FlagName, true, forClient},
		{"expired", client(func(c *x509.Certificate) { c.NotAfter = start().Add(-time.Second) }), ForClient(), catalog.CertificateDate, FlagDate, false, forClient},
		{"not yet valid", client(func(c *x509.Certificate) { c.NotBefore = start().Add(time.Hour) }), ForClient(), catalog.CertificateDate, FlagDate, false, forClient},
		{"an expired authority", leaf(expired.Client("a")).Chain(), ForClient(), catalog.CertificateDate, FlagDate, false, forClient},
		{"a server's certificate shown by a client", server("cmg.contoso.com"), ForClient(), catalog.CertificateUsage, FlagWrongUsage, false, forClient},
		{"a client's certificate shown by a server", w.good.Chain(), ForServer("wk01.contoso.com"), catalog.CertificateUsage, FlagWrongUsage, false, forServer},
		{"an authority for servers only", leaf(servers.Client("a")).Chain(), ForClient(), catalog.CertificateUsage, FlagWrongUsage, false, forClient},
		{"no usage at all", client(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), ForClient(), catalog.CertificateUsage, FlagWrongUsage, true, forClient},
		{"any usage", client(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), ForClient(), catalog.CertificateUsage, FlagWrongUsage, true, nil},
		{"intermediate missing", w.good.Chain()[:1], ForClient(), catalog.CertificateIssuerMissing, FlagInvalidCA, false, forClient},
		{"another root", leaf(other.Client("a")).Chain(), ForClient(), catalog.CertificateIssuerMissing, FlagInvalidCA, false, forClient},
		{"another root that is shown", append(leaf(other.Client("a")).Chain(), other.Certificate), ForClient(), catalog.CertificateRootUnknown, FlagInvalidCA, false, forClient},
		{"a root of the same name", append(leaf(impostor.Client("a")).Chain(), impostor.Certificate), ForClient(), catalog.CertificateRootUnknown, FlagInvalidCA, false, forClient},
		{"self-signed", []*x509.Certificate{selfSigned(t)}, ForClient(), catalog.CertificateRootUnknown, FlagInvalidCA, false, forClient},
		{"too many authorities", leaf(belowZero.Client("a")).Chain(), ForClient(), catalog.CertificateConstraint, FlagInvalidCertificate, false, forClient},
		{"issued by no authority", leaf(noIssuer.Client("a")).Chain(), ForClient(), catalog.CertificateConstraint, FlagInvalidCertificate, false, forClient},
		{"a name that the authority may give", leaf(contoso.Server([]string{"a.contoso.com"})).Chain(), ForServer("a.contoso.com"), "", 0, true, forServer},
		{"a name that the authority may not give", leaf(contoso.Server([]string{"a.fabrikam.com"})).Chain(), ForServer("a.fabrikam.com"), catalog.CertificateConstraint, FlagInvalidCertificate, false, forServer},
		{"an unknown critical extension", client(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}), ForClient(), catalog.CertificateConstraint, FlagInvalidCertificate, false, forClient},
		{"RSA of 1024 bits", leaf(w.between.ClientFor("a", weakRSA)).Chain(), ForClient(), catalog.CertificateWeak, FlagInvalidCertificate, false, append(slices.Clone(forClient), "-auth_level", "2")},
		{"a curve of 224 bits", leaf(w.between.ClientFor("a", weakCurve)).Chain(), ForClient(), catalog.CertificateWeak, FlagInvalidCertificate, false, append(slices.Clone(forClient), "-auth_level", "3")},
		{"signed with SHA-1", client(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }), ForClient(), catalog.CertificateWeak, FlagInvalidCertificate, false, append(slices.Clone(forClient), "-auth_level", "2")},
		{"a broken signature", broken(t, w.good.Chain()), ForClient(), catalog.CertificateIssuerMissing, FlagInvalidCA, false, forClient},
		{"expired and another name", leaf(w.between.Server([]string{"a.contoso.com"}, func(c *x509.Certificate) { c.NotAfter = start().Add(-time.Hour) })).Chain(),
			ForServer("b.contoso.com"), catalog.CertificateDate, FlagDate | FlagName, false, named("b.contoso.com")},
	}
}

func selfSigned(t testing.TB) *x509.Certificate {
	t.Helper()
	root := must[*authority.Authority](t)(authority.NewRoot("wk09", start(), func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage = false, x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}))
	return root.Certificate
}

// broken is a chain whose first certificate says something else than was signed.
func broken(t testing.TB, chain []*x509.Certificate) []*x509.Certificate {
	t.Helper()
	der := bytes.Replace(chain[0].Raw, []byte("wk01"), []byte("wk99"), 1)
	return append([]*x509.Certificate{must[*x509.Certificate](t)(x509.ParseCertificate(der))}, chain[1:]...)
}

func TestChains(t *testing.T) {
	w := newWorld(t)
	c := w.checker(policy(PolicyOff))
	for _, test := range chainCases(t, w) {
		t.Run(test.name, func(t *testing.T) {
			verdict := ask(t, c, test.chain, test.usage, test.code)
			if verdict.Flags != test.flags {
				t.Errorf("got the flags %s, want %s", verdict.Flags, test.flags)
			}
			if verdict.OK && (verdict.Chain[0] != test.chain[0] || !verdict.Chain[len(verdict.Chain)-1].Equal(w.root.Certificate)) {
				t.Error("the verified chain does not go from the certificate to the root")
			}
		})
	}
}

// Where OpenSSL is more lenient, this package is strict on purpose: the usage stands in the certificate, a wildcard is a
// whole label, a client has none.
func TestOpenSSLAgreesAboutChains(t *testing.T) {
	w := newWorld(t)
	c, program := w.checker(), openSSL(t, w.between)
	c.config.Policy = PolicyOff
	stricter := map[string]bool{"no usage at all": true, "any usage": true, "a client with a wildcard": true, "a wildcard within a label": true}
	for _, test := range chainCases(t, w) {
		t.Run(test.name, func(t *testing.T) {
			err := program.Verify([]*x509.Certificate{w.root.Certificate}, test.chain, nil, start(), test.options...)
			verdict, _ := c.Check(t.Context(), test.chain, test.usage)
			if (err == nil) != test.openssl {
				t.Errorf("openssl verify: got %v, want OK %v", err, test.openssl)
			}
			if verdict.OK != (err == nil) && !stricter[test.name] {
				t.Errorf("got OK %v, and openssl verify says %v", verdict.OK, err)
			}
		})
	}
}

func TestSentencesNameTheCertificate(t *testing.T) {
	w := newWorld(t)
	c := w.checker(policy(PolicyOff))
	verdict, err := c.Check(t.Context(), w.good.Chain()[:1], ForClient())
	if want := `the certificate "wk01.contoso.com" was issued by "CN=Test Issuing,O=Postern tests", which is neither a trusted root nor a known intermediate authority`; verdict.Sentence != want {
		t.Errorf("got %s, want %s", verdict.Sentence, want)
	}
	if public := catalog.Public(err); !strings.Contains(public, "P972") || !strings.Contains(public, "Test Issuing") || strings.Contains(public, "x509:") {
		t.Errorf("got %s", public)
	}
}

// An uploaded intermediate authority makes up for what a client does not show (product.md E037).
func TestUploadedIntermediates(t *testing.T) {
	w := newWorld(t)
	c := w.checker(func(c *Config) { c.Intermediates = []*x509.Certificate{w.between.Certificate} })
	ask(t, c, w.good.Chain()[:1], ForClient(), "")
	ask(t, c, w.revoked.Chain()[:1], ForClient(), catalog.CertificateRevoked)
}

// S4 shows 0x9 for a root that is missing: nobody can be asked about its certificates. With /nocrlcheck it is 0x8.
func TestAnUnknownRootIsAlsoARevocationFailure(t *testing.T) {
	w := newWorld(t)
	chain := w.good.Chain()[:1]
	for policyName, want := range map[Policy]Flags{PolicyRequire: 0x9, PolicyPrefer: 0x8, PolicyOff: 0x8} {
		verdict := ask(t, w.checker(policy(policyName)), chain, ForClient(), catalog.CertificateIssuerMissing)
		if verdict.Flags != want {
			t.Errorf("%s: got 0x%x, want 0x%x", policyName, uint32(verdict.Flags), uint32(want))
		}
	}
}

func TestBudgetsOfAChain(t *testing.T) {
	w := newWorld(t)
	c := w.checker(policy(PolicyOff))
	leaf := w.good.Certificate
	for name, chain := range map[string][]*x509.Certificate{
		"none": nil, "nothing in it": {nil}, "an empty one": {{}}, "eleven": slices.Repeat([]*x509.Certificate{leaf}, 11),
		"nothing behind it": {leaf, nil},
		"one of 100 KiB": must[*authority.Certificate](t)(w.between.Client("a", func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, 100<<10)}}
		})).Chain(),
	} {
		t.Run(name, func(t *testing.T) { ask(t, c, chain, ForClient(), catalog.CertificateUnreadable) })
	}
}

func TestParseCertificate(t *testing.T) {
	w := newWorld(t)
	der := w.good.Certificate.Raw
	negative := bytes.Clone(der)
	at := bytes.Index(negative, w.good.Certificate.SerialNumber.Bytes())
	negative[at] |= 0x80
	for name, test := range map[string]struct {
		der  []byte
		want catalog.Code
	}{
		"good":              {der, ""},
		"a negative serial": {negative, catalog.CertificateNegativeSerial},
		"cut":               {der[:len(der)-1], catalog.CertificateUnreadable},
		"nothing":           {nil, catalog.CertificateUnreadable},
		"100 KiB":           {make([]byte, 100<<10), catalog.CertificateUnreadable},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseCertificate(test.der); catalog.CodeOf(err) != test.want {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestConfig(t *testing.T) {
	w := newWorld(t)
	roots := []*x509.Certificate{w.root.Certificate}
	for name, config := range map[string]Config{
		"no root":         {},
		"unknown policy":  {Roots: roots, Policy: "maybe"},
		"a file":          {Roots: roots, Sources: []string{"file:///etc/passwd"}},
		"LDAP":            {Roots: roots, Sources: []string{"ldap:///CN=CA"}},
		"a password":      {Roots: roots, Sources: []string{"http://user:secret@pki/ca.crl"}},
		"no address":      {Roots: roots, Sources: []string{"http://user:se cret@secret pki/ca.crl"}},
		"no host":         {Roots: roots, Sources: []string{"http:///ca.crl"}},
		"too many":        {Roots: roots, Sources: slices.Repeat([]string{"http://pki/ca.crl"}, 65)},
		"a responder too": {Roots: roots, Sources: []string{"ocsp:ftp://pki/"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(config)
			if catalog.CodeOf(err) != catalog.RevocationConfig || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v", err)
			}
		})
	}
	for text, want := range map[string]Policy{"require": PolicyRequire, " Prefer ": PolicyPrefer, "OFF": PolicyOff} {
		if got, err := ParsePolicy(text); got != want || err != nil {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
}

// The roots of the operating system are not used unless they are asked for.
func TestSystemRoots(t *testing.T) {
	w := newWorld(t)
	c := w.checker(policy(PolicyOff), func(c *Config) { c.SystemRoots = true })
	ask(t, c, w.good.Chain(), ForClient(), "")
	ask(t, c, w.good.Chain()[:1], ForClient(), catalog.CertificateIssuerMissing)
	if _, err := New(Config{SystemRoots: true}); err != nil {
		t.Error(err)
	}
}
