package site_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
	"postern/token"
)

// company is a small public key infrastructure: a root, an issuing authority and one of another company.
type company struct {
	root, issuing, foreign *x509.Certificate
	issuingKey, foreignKey crypto.Signer
}

var theCompany = sync.OnceValue(func() *company {
	c := &company{}
	var rootKey crypto.Signer
	c.root, rootKey = authorityOf("Company Root", nil, nil)
	c.issuing, c.issuingKey = authorityOf("Company Issuing", c.root, rootKey)
	c.foreign, c.foreignKey = authorityOf("Company Issuing", nil, nil)
	return c
})

func authorityOf(name string, above *x509.Certificate, aboveKey crypto.Signer, edits ...func(*x509.Certificate)) (*x509.Certificate, crypto.Signer) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name}, NotBefore: begin.Add(-time.Hour), NotAfter: begin.AddDate(5, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	for _, edit := range edits {
		edit(template)
	}
	if above == nil {
		above, aboveKey = template, key
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, above, key.Public(), aboveKey)))), key
}

func companyPin() string { return token.PinOf(theCompany().issuing.RawSubjectPublicKeyInfo) }

// clientCertificate is a certificate of the key for these names.
func clientCertificate(issuer *x509.Certificate, issuerKey crypto.Signer, key *rsa.PrivateKey, names ...string) []byte {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0xBEEF), Subject: pkix.Name{CommonName: "a computer"}, NotBefore: begin.Add(-time.Hour), NotAfter: begin.AddDate(1, 0, 0),
		DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	return must(x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, issuerKey))
}

func certificateOf(key *rsa.PrivateKey, names ...string) []byte {
	return clientCertificate(theCompany().issuing, theCompany().issuingKey, key, names...)
}

func certificateFor(n int, names ...string) []byte { return certificateOf(device(n).key, names...) }

// company uploads the company's authorities.
func (w *world) company(t interface{ Fatal(...any) }) {
	encoded := slices.Concat(inPEM(theCompany().root), inPEM(theCompany().issuing))
	if _, err := w.AddAuthorities(context.Background(), encoded, site.Revocation{}, "anna"); err != nil {
		t.Fatal(err)
	}
}

func inPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func authorityStories() []story {
	return []story{
		{"authorities are uploaded, told apart and removed", authoritiesUploaded},
		{"how revocation is judged", revocationRule},
		{"no message repeats a password", quotedAddresses},
		{"what is no authority is refused", authoritiesRefused},
		{"a certificate approves and leaves its evidence", certificateEvidence},
		{"a certificate that only a gateway saw gives known", certificateThroughGateway},
		{"the same computer with a new certificate takes its own place", certificateSupersedes},
	}
}

func authoritiesUploaded(t *testing.T, w *world) {
	c := theCompany()
	if w.Authorities() != nil || w.opened(t).Authorities != nil {
		t.Error("there are authorities before the first")
	}
	if _, err := w.AddAuthorities(t.Context(), c.issuing.Raw, site.Revocation{}, "anna"); err != nil {
		t.Fatal(err)
	}
	if w.Authorities() != nil {
		t.Error("published without a root")
	}
	epoch := w.Epoch()
	entries := w.during(t, func() {
		for range 2 {
			added, err := w.AddAuthorities(t.Context(), slices.Concat([]byte("Company\n"), inPEM(c.root), inPEM(c.issuing)), site.Revocation{Policy: "prefer", Sources: []string{"http://crl.corp.example/a.crl"}}, "anna")
			if err != nil || len(added) != 2 || !added[0].Root || added[1].Root || added[0].Subject != "CN=Company Root" || !added[0].NotAfter.Equal(c.root.NotAfter) {
				t.Fatalf("got %+v, %v", added, err)
			}
		}
	})
	if got := actions(entries); got != "authority.revocation authority.add" || w.Epoch() <= epoch {
		t.Errorf("trust entries %s", got)
	}
	for name, got := range map[string]*token.Authorities{"in memory": w.Authorities(), "in the state": w.opened(t).Authorities, "at another node": w.node(t).Authorities()} {
		if got == nil || len(got.Roots) != 1 || !bytes.Equal(got.Roots[0], c.root.Raw) || len(got.Intermediates) != 1 || got.Revocation != "prefer" || !slices.Equal(got.Sources, []string{"http://crl.corp.example/a.crl"}) {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	var root site.Authority
	for _, a := range w.UploadedAuthorities() {
		if a.Root {
			root = a
		}
	}
	for _, wrong := range []string{"", root.Fingerprint[:7], strings.Repeat("0", 64), "xyzxyzxyz"} {
		_, err := w.RemoveAuthority(t.Context(), wrong, "anna", "retired")
		refused(t, "removing "+wrong, err, catalog.NotFound)
	}
	spelled := "SHA256:" + strings.ToUpper(root.Fingerprint[:2]) + ":" + root.Fingerprint[2:10]
	if got, err := w.RemoveAuthority(t.Context(), spelled, "anna", "retired"); err != nil || got.Fingerprint != root.Fingerprint {
		t.Fatalf("got %+v, %v", got, err)
	}
	if w.Authorities() != nil || len(w.UploadedAuthorities()) != 1 {
		t.Errorf("after removing: %+v", w.UploadedAuthorities())
	}
}

func revocationRule(t *testing.T, w *world) {
	w.company(t)
	if got := w.Authorities(); got.Revocation != "require" || len(got.Sources) != 0 {
		t.Errorf("at first: %+v", got)
	}
	for i, step := range []struct {
		set     site.Revocation
		policy  string
		sources string
	}{
		{site.Revocation{Policy: " Off "}, "off", ""},
		{site.Revocation{Sources: []string{"http://a.example/x.crl", " ocsp:https://b.example/ "}}, "off", "http://a.example/x.crl ocsp:https://b.example/"},
		{site.Revocation{Policy: "require"}, "require", "http://a.example/x.crl ocsp:https://b.example/"},
		{site.Revocation{Sources: []string{""}}, "require", ""},
	} {
		if err := w.SetRevocation(t.Context(), step.set, "anna"); err != nil {
			t.Fatal(err)
		}
		if got := w.Authorities(); got.Revocation != step.policy || strings.Join(got.Sources, " ") != step.sources {
			t.Errorf("step %d: got %+v", i, got)
		}
	}
	if wrote := actions(w.during(t, func() { w.SetRevocation(t.Context(), site.Revocation{Policy: "require"}, "anna") })); wrote != "" {
		t.Errorf("no change wrote %s", wrote)
	}
	for name, rule := range map[string]site.Revocation{
		"another policy":  {Policy: "soft"},
		"a file":          {Sources: []string{"file:///etc/passwd"}},
		"ldap":            {Sources: []string{"ldap://dc/"}},
		"a password":      {Sources: []string{"http://a:b@c.example/"}},
		"no host":         {Sources: []string{"http:///x"}},
		"a line end":      {Sources: []string{"http://a.example/\nhttp://b.example/"}},
		"a long address":  {Sources: []string{"http://a.example/" + strings.Repeat("x", 2048)}},
		"65 of them":      {Sources: slices.Repeat([]string{"http://a.example/"}, 65)},
		"ocsp of nothing": {Sources: []string{"ocsp:"}},
	} {
		refused(t, name, w.SetRevocation(t.Context(), rule, "anna"), catalog.RevocationConfig)
		_, err := w.AddAuthorities(t.Context(), theCompany().foreign.Raw, rule, "anna")
		refused(t, name+" with an authority", err, catalog.RevocationConfig)
	}
	if len(w.UploadedAuthorities()) != 2 {
		t.Error("a refused upload left something")
	}
}

func quotedAddresses(t *testing.T, w *world) {
	const secret = "pa55word"
	for _, address := range []string{
		"http://anna:" + secret + "@crl.corp.example/a.crl", "https://anna:" + secret + "@crl.corp.example/", "ocsp:http://anna:" + secret + "@ocsp.corp.example/", "ldap://anna:" + secret + "@corp.example/a",
		"https://anna:" + secret + "?x@corp.example/", "https://anna:" + secret + "/x@corp.example/", "anna:" + secret + "@corp.example", "https://corp.example/?key=" + secret + " x", "ftp://corp.example/#" + secret,
		"https://anna:" + secret + " x@corp.example/", "https://anna:" + secret + "\n@corp.example/", "https://anna:" + secret + "@%zz/",
	} {
		_, gateway := w.AddGateway(t.Context(), address, strings.Repeat("0", 64), "anna")
		_, issuer := w.AddTenant(t.Context(), token.Tenant{ID: "corp", Issuers: []string{address}}, "anna")
		for what, err := range map[string]error{"source": w.SetRevocation(t.Context(), site.Revocation{Sources: []string{address}}, "anna"), "gateway": gateway, "issuer": issuer} {
			if err == nil || strings.Contains(fmt.Sprintf("%+v", err), secret) || strings.Contains(catalog.Public(err), secret) {
				t.Errorf("%s %q: got %v", what, address, err)
			}
		}
	}
}

func authoritiesRefused(t *testing.T, w *world) {
	noSigner, _ := authorityOf("no signer", nil, nil, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })
	impostor := bytes.Clone(theCompany().root.Raw)
	impostor[len(impostor)-1] ^= 1
	small := must(rsa.GenerateKey(rand.Reader, 1024))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "small"}, NotBefore: begin, NotAfter: begin.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true}
	weak := must(x509.CreateCertificate(rand.Reader, template, template, &small.PublicKey, small))
	for name, encoded := range map[string][]byte{
		"nothing":                         nil,
		"text":                            []byte("hello"),
		"a private key":                   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}),
		"a computer's certificate":        certificateFor(1, "wk1.corp.example"),
		"one that may not sign":           noSigner.Raw,
		"one that did not sign itself":    impostor,
		"a short key":                     weak,
		"a good one and a bad one":        slices.Concat(inPEM(theCompany().root), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{0x30}})),
		"a megabyte":                      make([]byte, 1<<20+1),
		"a certificate of 17 KiB":         make([]byte, 17<<10),
		"DER with something after it":     append(bytes.Clone(theCompany().root.Raw), 0),
		"PEM that begins and never ends ": []byte("-----BEGIN CERTIFICATE-----\nAAAA"),
	} {
		_, err := w.AddAuthorities(t.Context(), encoded, site.Revocation{}, "anna")
		refused(t, name, err, catalog.AuthorityInvalid)
	}
	if len(w.UploadedAuthorities()) != 0 {
		t.Errorf("got %+v", w.UploadedAuthorities())
	}
	var many []byte
	for i := range 65 {
		c, _ := authorityOf(fmt.Sprint("CA ", i), nil, nil)
		many = append(many, inPEM(c)...)
	}
	_, err := w.AddAuthorities(t.Context(), many, site.Revocation{}, "anna")
	refused(t, "65 authorities", err, catalog.AuthorityInvalid)
}

func certificateEvidence(t *testing.T, w *world) {
	w.company(t)
	der := certificateFor(1, "wk1.corp.example")
	caller := withMethod(proof.PKICertificate, 1)
	caller.Certificate = der
	d := w.registered(t, caller, device(1).request(named(1))).Device
	a := d.Approval
	if a.Status != ccm.ApprovalNotApplicable || a.Level != proof.LevelManaged || a.Rule != "PKI certificate" || d.Record.KeyType != 2 {
		t.Errorf("got key type %d, %+v", d.Record.KeyType, a)
	}
	for fact, want := range map[string]string{
		"certificate-subject": "CN=a computer", "certificate-names": "wk1.corp.example", "certificate-issuer": "CN=Company Issuing", "certificate-serial": "beef", "certificate-ends": "2027-11-21T20:49:08Z",
	} {
		if got := a.Evidence[fact]; got != want {
			t.Errorf("evidence %s: got %q, want %q", fact, got, want)
		}
	}
	if len(a.Evidence["certificate"]) != 64 || d.Proved != "certificate:wk1.corp.example@"+companyPin() {
		t.Errorf("got %q, %q", a.Evidence["certificate"], d.Proved)
	}
	// The certificate in TLS has another key than the one that registers.
	caller = withMethod(proof.PKICertificate, 3)
	caller.Key, caller.Direct = "", true
	if d := w.registered(t, caller, device(2).request()).Device; d.Approval.Status != ccm.ApprovalNotApplicable || d.Record.KeyType != 1 || d.Key != device(2).thumbprint {
		t.Errorf("another key: %+v", d)
	}
	caller.Certificate = []byte("hello")
	_, err := w.Register(t.Context(), caller, device(4).request())
	refused(t, "no certificate", err, catalog.CertificateUnreadable)
	c := theCompany()
	for name, test := range map[string]struct {
		n   int
		der []byte
	}{
		"two names":                     {10, certificateFor(10, "wk1.corp.example", "wk9.corp.example")},
		"no name":                       {11, certificateFor(11)},
		"a wildcard":                    {12, certificateFor(12, "*.corp.example")},
		"another computer's name":       {13, certificateFor(13, "wk2.corp.example")},
		"the name in another domain":    {14, certificateFor(14, "wk1.evilcorp.example")},
		"an authority of the same name": {15, clientCertificate(c.foreign, c.foreignKey, device(15).key, "wk1.corp.example")},
	} {
		caller := withMethod(proof.PKICertificate, test.n)
		caller.Certificate = test.der
		if d := w.registered(t, caller, device(test.n).request(named(1))).Device; d.Proved != "" || d.Approval.Status != ccm.ApprovalNotApplicable {
			t.Errorf("%s: proved %q, %+v", name, d.Proved, d.Approval)
		}
	}
}

func certificateThroughGateway(t *testing.T, w *world) {
	w.company(t)
	victim := withMethod(proof.PKICertificate, 1)
	victim.Certificate = certificateFor(1, "wk1.corp.example")
	old := w.registered(t, victim, device(1).request(named(1), hardware("2:AA"))).Device
	for name, change := range map[string]func(*site.Caller){
		"seen by the gateway only":                       func(c *site.Caller) { c.Key, c.Ceiling = "", proof.LevelKnown },
		"the route forgot its ceiling":                   func(c *site.Caller) { c.Key = "" },
		"the victim's proof, the gateway's registration": func(c *site.Caller) { c.Key = device(2).thumbprint },
	} {
		caller := victim
		change(&caller)
		d := w.registered(t, caller, device(2).request(named(1), hardware("2:AA"))).Device
		if d.Approval.Status != ccm.ApprovalNone || d.Approval.Level != proof.LevelKnown || d.Proved != "" {
			t.Errorf("%s: got %+v", name, d)
		}
		if kept, err := w.Device(t.Context(), old.ClientID); err != nil || kept.Superseded() {
			t.Errorf("%s: the victim is %+v, %v", name, kept, err)
		}
	}
}

func certificateSupersedes(t *testing.T, w *world) {
	w.company(t)
	by := func(n int, names ...string) site.Caller {
		c := withMethod(proof.PKICertificate, n)
		c.Certificate = certificateFor(n, names...)
		return c
	}
	old := w.registered(t, by(1, "wk1.corp.example"), device(1).request(named(1), hardware("2:AA"))).Device
	w.registered(t, by(3, "wk3.corp.example"), device(3).request(named(3), hardware("2:AA")))
	foreign := by(4)
	foreign.Certificate = clientCertificate(theCompany().foreign, theCompany().foreignKey, device(4).key, "wk1.corp.example")
	w.registered(t, foreign, device(4).request(named(1), hardware("2:AA")))
	if kept, err := w.Device(t.Context(), old.ClientID); err != nil || kept.Superseded() {
		t.Errorf("another's certificate took the place: %+v, %v", kept, err)
	}
	fresh := w.registered(t, by(2, "WK1.corp.example"), device(2).request(named(1), hardware("2:AA"))).Device
	if kept, err := w.Device(t.Context(), old.ClientID); err != nil || kept.Obsolete.By != fresh.ClientID {
		t.Errorf("got %+v, %v", kept, err)
	}
}
