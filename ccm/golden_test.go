package ccm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// seedBytes returns one of the values that S0 shows in hexadecimal.
func seedBytes(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "seed", name))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCertificatesOfS0(t *testing.T) {
	tests := []struct {
		file, thumbprint, sha256, serial, usage string
		length                                  int
		from                                    time.Time
	}{
		{"signing.hex", "E824658E489FDBB6481ED7788E74877FB9DBCF0B", "81567aa6ca16cd158f17daf94ffab8e27cfd895e6563a4c5332827405c43ca47",
			"-81926732655991622701039206921432927314", "1.3.6.1.4.1.311.101", 484, time.Date(2009, 5, 19, 19, 34, 47, 0, time.UTC)},
		{"encryption.hex", "6B186E7BC2B86B059FAE5E431C6C6CE40A943F3C", "1d4b0fea7f5e068bed9398ba9760c762117b11a35d7f4dd6d47f48c502d90fb8",
			"138774330556260252276067383633241893222", "1.3.6.1.4.1.311.101.2", 485, time.Date(2009, 5, 19, 19, 34, 48, 0, time.UTC)},
	}
	for _, test := range tests {
		t.Run(test.file, func(t *testing.T) {
			der := seedBytes(t, test.file)
			c, err := ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(c.DER); got != test.length {
				t.Errorf("length %d, want %d", got, test.length)
			}
			if got := c.Thumbprint(); got != test.thumbprint {
				t.Errorf("thumbprint %s, want %s", got, test.thumbprint)
			}
			sum := sha256.Sum256(c.DER)
			if got := hex.EncodeToString(sum[:]); got != test.sha256 {
				t.Errorf("SHA-256 %s, want %s", got, test.sha256)
			}
			if got := c.Serial.String(); test.file == "signing.hex" && got != test.serial {
				t.Errorf("serial %s, want %s", got, test.serial)
			}
			if want := []string{"WK02-020-51W", "SMS"}; !slices.Equal(c.CommonNames, want) {
				t.Errorf("common names %q, want %q", c.CommonNames, want)
			}
			if len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0].String() != test.usage {
				t.Errorf("usage %v, want %s", c.ExtKeyUsage, test.usage)
			}
			if !c.NotBefore.Equal(test.from) || !c.NotAfter.Equal(test.from.AddDate(0, 0, 36501)) {
				t.Errorf("valid %v to %v, want 36501 days from %v", c.NotBefore, c.NotAfter, test.from)
			}
			if c.PublicKey.N.BitLen() != 1024 || c.PublicKey.E != 65537 {
				t.Errorf("key of %d bits and exponent %d", c.PublicKey.N.BitLen(), c.PublicKey.E)
			}
			if !c.SelfSigned {
				t.Error("the self-signature does not verify")
			}
		})
	}
}

func TestPublicKeyBlobOfS0(t *testing.T) {
	blob := seedBytes(t, "publickey.hex")
	key, err := ParsePublicKeyBlob(blob)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseCertificate(seedBytes(t, "signing.hex"))
	if err != nil {
		t.Fatal(err)
	}
	if !key.Equal(c.PublicKey) {
		t.Error("the blob is not the signing certificate's key")
	}
	want := slices.Clone(blob)
	want[5] = 0xA4 // CALG_RSA_KEYX where the client of 2007 had CALG_RSA_SIGN
	if got := MarshalPublicKeyBlob(key); !bytes.Equal(got, want) {
		t.Errorf("marshalled %x, want %x", got, want)
	}
}

func TestParseCertificateRefuses(t *testing.T) {
	good := seedBytes(t, "signing.hex")
	tests := []struct {
		name string
		der  []byte
	}{
		{"nothing", nil},
		{"something after it", append(slices.Clone(good), 0)},
		{"cut off", good[:len(good)-1]},
		{"too long", append(slices.Clone(good), make([]byte, maxCertificate)...)},
		{"text", []byte("-----BEGIN CERTIFICATE-----")},
		{"another outer length", append([]byte{0x30, 0x82, 0xFF, 0xFF}, good[4:]...)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if c, err := ParseCertificate(test.der); err == nil {
				t.Errorf("accepted %+v", c)
			}
		})
	}
}

func TestTamperedCertificateIsNotSelfSigned(t *testing.T) {
	der := seedBytes(t, "signing.hex")
	der[len(der)-1] ^= 1
	c, err := ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if c.SelfSigned {
		t.Error("a tampered signature counts as a self-signature")
	}
}

func TestParseCertificateKeepsItsOwnCopy(t *testing.T) {
	der := seedBytes(t, "signing.hex")
	c, err := ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	want := c.Thumbprint()
	clear(der)
	again, err := ParseCertificate(c.DER)
	if err != nil || again.Thumbprint() != want {
		t.Errorf("the certificate changed with the caller's bytes: %v", err)
	}
}

func TestNewClientCertificate(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	key := testKey()
	c, err := NewClientCertificate(key, "WK1", UsageSigning|UsageEncryption, now, zeroReader{})
	if err != nil {
		t.Fatal(err)
	}
	if !c.SelfSigned || !c.PublicKey.Equal(&key.PublicKey) || c.Serial.Sign() <= 0 || len(c.SubjectKeyID) != 20 {
		t.Errorf("got %+v", c)
	}
	if len(c.ExtKeyUsage) != 2 || !c.ExtKeyUsage[0].Equal(oidSigning) || !c.ExtKeyUsage[1].Equal(oidEncryption) {
		t.Errorf("usages %v", c.ExtKeyUsage)
	}
	if got, want := c.NotBefore, now.Add(-24*time.Hour); !got.Equal(want) {
		t.Errorf("not before %v, want %v", got, want)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestParsePublicKeyBlobRefuses(t *testing.T) {
	good := seedBytes(t, "publickey.hex")
	change := func(at int, to ...byte) []byte {
		b := slices.Clone(good)
		copy(b[at:], to)
		return b
	}
	tests := []struct {
		name string
		blob []byte
	}{
		{"nothing", nil},
		{"only a header", good[:20]},
		{"a private key blob", change(0, 7)},
		{"another algorithm", change(4, 0, 0x66)},
		{"RSA2, a private key", change(8, 'R', 'S', 'A', '2')},
		{"more bits promised than held", change(12, 0, 8)},
		{"four thousand million bits", change(12, 0xFF, 0xFF, 0xFF, 0xFF)},
		{"exponent 1", change(16, 1, 0, 0)},
		{"exponent 0", change(16, 0, 0, 0)},
		{"an even exponent", change(16, 4, 0, 0)},
		{"a huge exponent", change(16, 1, 0, 0, 0x80)},
		{"an even modulus", change(20, 0)},
		{"a modulus of zeros", append(slices.Clone(good[:20]), make([]byte, 128)...)},
		{"something after it", append(slices.Clone(good), 1)},
		{"a key of 512 bits", append(change(12, 0, 2)[:20], good[len(good)-64:]...)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if key, err := ParsePublicKeyBlob(test.blob); err == nil {
				t.Errorf("accepted %+v", key)
			}
		})
	}
}
