package kerberos

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"math/big"
	"testing"

	"github.com/jcmturner/gokrb5/v8/types"

	"postern/auth"
	"postern/catalog"
)

func selfSigned(t *testing.T, key crypto.Signer, algorithm x509.SignatureAlgorithm) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: noon, NotAfter: noon.AddDate(1, 0, 0), SignatureAlgorithm: algorithm}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func ellipticKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestBindingMatrix(t *testing.T) {
	keys := wellKeys(t, 18)
	reader := reread(t, keys)
	now, before, other := selfSigned(t, ellipticKey(t), 0), selfSigned(t, ellipticKey(t), 0), selfSigned(t, ellipticKey(t), 0)
	bound := func(certificate []byte) []byte {
		sum := channelBinding(EndPoint(certificate))
		return sum[:]
	}
	plain, secured := auth.Channel{}, auth.Channel{TLS: overTLS.TLS, Certificates: [][]byte{now, before}}
	bare := overTLS
	tests := []struct {
		name     string
		binding  []byte
		promised bool
		channel  auth.Channel
		whenSent catalog.Code
		required catalog.Code
	}{
		{"none, plain", nil, false, plain, "", catalog.KerberosBindingMissing},
		{"none, TLS", nil, false, secured, "", catalog.KerberosBindingMissing},
		{"right, TLS", bound(now), false, secured, "", ""},
		{"certificate before the present one, TLS", bound(before), false, secured, "", ""},
		{"right and promised, TLS", bound(now), true, secured, "", ""},
		{"of another server, TLS", bound(other), false, secured, catalog.KerberosBindingMismatch, catalog.KerberosBindingMismatch},
		{"of no certificate known, TLS", bound(now), false, bare, catalog.KerberosBindingMismatch, catalog.KerberosBindingMismatch},
		{"one bit, TLS", []byte{1}, false, secured, catalog.KerberosBindingMismatch, catalog.KerberosBindingMismatch},
		{"right, plain", bound(now), false, plain, catalog.KerberosBindingPlain, catalog.KerberosBindingPlain},
		{"of another server, plain", bound(other), false, plain, catalog.KerberosBindingPlain, catalog.KerberosBindingPlain},
		{"none though promised, TLS", nil, true, secured, catalog.KerberosBindingMissing, catalog.KerberosBindingMissing},
		{"none though promised, plain", nil, true, plain, "", catalog.KerberosBindingMissing},
	}
	for _, test := range tests {
		for binding, want := range map[Binding]catalog.Code{WhenSent: test.whenSent, Required: test.required} {
			t.Run(test.name, func(t *testing.T) {
				f := newForge(keys)
				f.checksum.Checksum = gss(test.binding, 2)
				if test.promised {
					f.clientAuthorization = types.AuthorizationData{relevant(t, types.AuthorizationDataEntry{ADType: 141, ADData: []byte{0}}, types.AuthorizationDataEntry{ADType: 143, ADData: []byte{0, 0x40, 0, 0}})}
				}
				a := newAcceptor(t, reader, func(c *Config) { c.Binding = binding })
				if _, _, err := a.Accept(t.Context(), f.token(t), test.channel); catalog.CodeOf(err) != want {
					t.Errorf("binding %d: got %v, want %q", binding, err, want)
				}
			})
		}
	}
}

// RFC 5929 4.1: the hash is that of the signature, and SHA-256 for the weak ones.
func TestEndPointFollowsTheSignature(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	sum256 := func(b []byte) []byte { s := sha256.Sum256(b); return s[:] }
	sum384 := func(b []byte) []byte { s := sha512.Sum384(b); return s[:] }
	sum512 := func(b []byte) []byte { s := sha512.Sum512(b); return s[:] }
	tests := []struct {
		name        string
		certificate []byte
		hash        func([]byte) []byte
	}{
		{"ECDSA with SHA-256", selfSigned(t, ellipticKey(t), x509.ECDSAWithSHA256), sum256},
		{"ECDSA with SHA-384", selfSigned(t, ellipticKey(t), x509.ECDSAWithSHA384), sum384},
		{"RSA with SHA-512", selfSigned(t, rsaKey, x509.SHA512WithRSA), sum512},
		{"RSA-PSS with SHA-384", selfSigned(t, rsaKey, x509.SHA384WithRSAPSS), sum384},
		{"Ed25519, which names no hash", selfSigned(t, ed, x509.PureEd25519), sum256},
		{"no certificate at all", []byte("noise"), sum256},
	}
	for _, test := range tests {
		want := append([]byte("tls-server-end-point:"), test.hash(test.certificate)...)
		if got := EndPoint(test.certificate); !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, want %x", test.name, got, want)
		}
	}
}

func TestTheMemoryOfCertificatesIsBounded(t *testing.T) {
	var h certificateHashes
	for i := range 10 * maxHashes {
		h.binding(big.NewInt(int64(i)).Bytes())
	}
	if len(h.known) > maxHashes {
		t.Errorf("%d certificates remembered", len(h.known))
	}
}
