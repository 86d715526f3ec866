package ccm

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"postern/catalog"
)

// negativeSerial returns the certificate with the sign bit of its serial number set, as old clients have it (protocol.md
// 9.1). Its own signature does not fit any more, which sealing does not care about.
func negativeSerial(t testing.TB, certificate *Certificate) *Certificate {
	t.Helper()
	number := certificate.Serial.Bytes()
	at := bytes.Index(certificate.DER, number)
	if at < 0 || number[0] > 0x7F || number[0] == 0 {
		t.Fatalf("the serial number % x cannot be made negative in place", number)
	}
	der := bytes.Clone(certificate.DER)
	der[at] = der[at]&0x3F | 0x80 // and never FF, behind which a set bit would be an encoding too long
	negative, err := ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if negative.Serial.Sign() >= 0 {
		t.Fatalf("serial number %s", negative.Serial)
	}
	return negative
}

func sealTests(t testing.TB) map[string]struct {
	certificate *Certificate
	algorithm   ContentAlgorithm
	body        []byte
} {
	certificate := testCertificate(t, testKey())
	policy := PolicyBody(`<?xml version="1.0"?><Policy PolicyID="{a}"/>`)
	type test = struct {
		certificate *Certificate
		algorithm   ContentAlgorithm
		body        []byte
	}
	return map[string]test{
		"3DES":                   {certificate, TripleDES, policy},
		"AES-256":                {certificate, AES256, policy},
		"negative serial number": {negativeSerial(t, certificate), TripleDES, policy},
		"a whole last block":     {certificate, TripleDES, PolicyBody("abc")},
		"empty":                  {certificate, AES256, nil},
		"a megabyte":             {certificate, TripleDES, bytes.Repeat([]byte{'x', 0}, 1<<19)},
	}
}

func TestSealPolicyRoundTrip(t *testing.T) {
	for name, test := range sealTests(t) {
		t.Run(name, func(t *testing.T) {
			der, err := SealPolicy(rand.Reader, test.body, test.certificate, test.algorithm)
			if err != nil {
				t.Fatal(err)
			}
			got, err := OpenPolicy(der, test.certificate, testKey())
			if err != nil || !bytes.Equal(got, test.body) {
				t.Errorf("got %d bytes, want %d: %v", len(got), len(test.body), err)
			}
		})
	}
}

func TestOpenSSLReadsSealedPolicy(t *testing.T) {
	for name, test := range sealTests(t) {
		t.Run(name, func(t *testing.T) {
			der, err := SealPolicy(rand.Reader, test.body, test.certificate, test.algorithm)
			if err != nil {
				t.Fatal(err)
			}
			folder := t.TempDir()
			sealed, out := filepath.Join(folder, "sealed"), filepath.Join(folder, "plain")
			writeFile(t, sealed, der)
			certificate, key := writePair(t, folder, test.certificate, testKey())
			openssl(t, "cms", "-decrypt", "-binary", "-inform", "DER", "-in", sealed, "-recip", certificate, "-inkey", key, "-out", out)
			got, err := os.ReadFile(out)
			if err != nil || !bytes.Equal(got, test.body) {
				t.Errorf("got %d bytes, want %d: %v", len(got), len(test.body), err)
			}
		})
	}
}

func TestOpenPolicyOfOpenSSL(t *testing.T) {
	certificate := testCertificate(t, testKey())
	body := PolicyBody("<Policy/>")
	tests := map[string][]string{
		"3DES":                                {"-des3"},
		"AES-256":                             {"-aes256"},
		"recipient by subject key identifier": {"-aes256", "-keyid"},
		"OAEP":                                {"-aes256", "-keyopt", "rsa_padding_mode:oaep"},
	}
	for name, options := range tests {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			plain, sealed := filepath.Join(folder, "plain"), filepath.Join(folder, "sealed")
			writeFile(t, plain, body)
			path, _ := writePair(t, folder, certificate, testKey())
			arguments := []string{"cms", "-encrypt", "-binary", "-outform", "DER", "-in", plain, "-out", sealed, options[0], "-recip", path}
			openssl(t, append(arguments, options[1:]...)...)
			der, err := os.ReadFile(sealed)
			if err != nil {
				t.Fatal(err)
			}
			got, err := OpenPolicy(der, certificate, testKey())
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("got %q: %v", got, err)
			}
		})
	}
}

func openssl(t *testing.T, arguments ...string) {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("this test needs the openssl command: apt-get install openssl")
	}
	if out, err := exec.Command(path, arguments...).CombinedOutput(); err != nil {
		t.Fatalf("openssl %v: %v\n%s", arguments, err, out)
	}
}

func writeFile(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func writePair(t testing.TB, folder string, c *Certificate, key *rsa.PrivateKey) (certificate, private string) {
	t.Helper()
	certificate, private = filepath.Join(folder, "certificate.pem"), filepath.Join(folder, "key.pem")
	writeFile(t, certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.DER}))
	writeFile(t, private, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
	return certificate, private
}

// Every failure looks the same, so that none tells about key or padding.
func TestOpenPolicyHasOneError(t *testing.T) {
	certificate := testCertificate(t, testKey())
	der, err := SealPolicy(rand.Reader, PolicyBody("<Policy/>"), certificate, TripleDES)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(at int, by byte) []byte {
		out := bytes.Clone(der)
		out[at] ^= by
		return out
	}
	tests := map[string]struct {
		der         []byte
		certificate *Certificate
		key         *rsa.PrivateKey
	}{
		"empty":                        {nil, certificate, testKey()},
		"not DER":                      {[]byte("<HTML>"), certificate, testKey()},
		"cut short":                    {der[:len(der)-8], certificate, testKey()},
		"something follows":            {append(bytes.Clone(der), 0), certificate, testKey()},
		"another key":                  {der, certificate, otherKey()},
		"another certificate":          {der, testCertificate(t, otherKey()), testKey()},
		"no certificate":               {der, nil, testKey()},
		"block before the last":        {changed(len(der)-9, 0x80), certificate, testKey()},
		"encrypted content key":        {changed(bytes.Index(der, issuerOf(t, certificate))+len(issuerOf(t, certificate))+60, 1), certificate, testKey()},
		"content type is no envelope":  {changed(14, 1), certificate, testKey()},
		"length beyond the last block": {changed(3, 1), certificate, testKey()},
	}
	want := catalog.Errorf(catalog.PolicyUnreadable, "the sealed policy cannot be opened with this certificate and key").Error()
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var body []byte
			var err error
			for range 8 { // a wrong key gives a random one each time, and one of 256 leaves what looks like padding
				if body, err = OpenPolicy(test.der, test.certificate, test.key); err != nil {
					break
				}
			}
			if err == nil {
				t.Fatalf("opened: %q", body)
			}
			if got := err.Error(); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
	if _, err := OpenPolicy(der, certificate, nil); err == nil || err.Error() != want {
		t.Errorf("no key: %v", err)
	}
}

func issuerOf(t testing.TB, c *Certificate) []byte {
	t.Helper()
	identifier, err := issuerAndSerial(c.DER)
	if err != nil {
		t.Fatal(err)
	}
	return identifier
}

func TestSealPolicyRefuses(t *testing.T) {
	certificate := testCertificate(t, testKey())
	tests := map[string]struct {
		certificate *Certificate
		algorithm   ContentAlgorithm
	}{
		"no certificate":     {nil, TripleDES},
		"certificate no key": {&Certificate{DER: certificate.DER}, TripleDES},
		"unknown algorithm":  {certificate, 7},
		"no DER":             {&Certificate{PublicKey: certificate.PublicKey}, TripleDES},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := SealPolicy(rand.Reader, nil, test.certificate, test.algorithm); catalog.CodeOf(err) != catalog.PolicyRecipientUnusable {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzOpenPolicy(f *testing.F) {
	certificate := testCertificate(f, testKey())
	for _, algorithm := range []ContentAlgorithm{TripleDES, AES256} {
		der, err := SealPolicy(rand.Reader, PolicyBody("<Policy/>"), certificate, algorithm)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		_, err := OpenPolicy(der, certificate, testKey())
		if err != nil && catalog.CodeOf(err) != catalog.PolicyUnreadable {
			t.Fatal(err)
		}
	})
}
