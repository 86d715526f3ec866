package ccm

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"strings"
	"testing"

	"postern/catalog"
)

func TestVerifyReversed(t *testing.T) {
	key := testKey()
	data := []byte("what was signed")
	for _, oid := range []struct {
		oid  string
		hash crypto.Hash
	}{
		{"1.2.840.113549.1.1.5", crypto.SHA1}, {"", crypto.SHA1}, {"1.3.14.3.2.29", crypto.SHA1},
		{"1.2.840.113549.1.1.11", crypto.SHA256}, {"2.16.840.1.101.3.4.2.1", crypto.SHA256},
		{"1.2.840.113549.1.1.12", crypto.SHA384}, {"2.16.840.1.101.3.4.2.2", crypto.SHA384},
		{"1.2.840.113549.1.1.13", crypto.SHA512}, {"2.16.840.1.101.3.4.2.3", crypto.SHA512},
	} {
		for _, digestInfo := range []bool{true, false} {
			signature, err := signReversed(key, oid.hash, data, digestInfo)
			if err != nil {
				t.Fatal(err)
			}
			if err := VerifyReversed(&key.PublicKey, oid.oid, data, signature); err != nil {
				t.Errorf("%s, DigestInfo %v: %v", oid.oid, digestInfo, err)
			}
			if err := VerifyReversed(&key.PublicKey, oid.oid, data[1:], signature); catalog.CodeOf(err) != catalog.SignatureMismatch {
				t.Errorf("%s over other bytes: got %v", oid.oid, err)
			}
		}
	}
}

func TestVerifyReversedRefuses(t *testing.T) {
	key := testKey()
	data := []byte("what was signed")
	signature, err := signReversed(key, crypto.SHA256, data, true)
	if err != nil {
		t.Fatal(err)
	}
	forward := make([]byte, len(signature))
	for i, b := range signature {
		forward[len(forward)-1-i] = b
	}
	small := &rsa.PublicKey{N: key.N, E: 1}
	tests := []struct {
		name      string
		key       *rsa.PublicKey
		oid       string
		signature []byte
		want      catalog.Code
	}{
		{"the order of bytes is not reversed", &key.PublicKey, hashSHA256WithRSA, forward, catalog.SignatureMismatch},
		{"another hash", &key.PublicKey, "1.2.840.113549.1.1.12", signature, catalog.SignatureMismatch},
		{"MD5", &key.PublicKey, "1.2.840.113549.1.1.4", signature, catalog.HashUnsupported},
		{"MD5 without RSA", &key.PublicKey, "1.2.840.113549.2.5", signature, catalog.HashUnsupported},
		{"an unknown hash", &key.PublicKey, "1.2.3", signature, catalog.HashUnsupported},
		{"no signature", &key.PublicKey, hashSHA256WithRSA, nil, catalog.SignatureMismatch},
		{"a byte too many", &key.PublicKey, hashSHA256WithRSA, append([]byte{0}, signature...), catalog.SignatureMismatch},
		{"no key", nil, hashSHA256WithRSA, signature, catalog.SignatureMismatch},
		{"a key with exponent 1", small, hashSHA256WithRSA, signature, catalog.KeyUnsuitable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := VerifyReversed(test.key, test.oid, data, test.signature)
			if got := catalog.CodeOf(err); got != test.want {
				t.Errorf("got %v, want code %s", err, test.want)
			}
		})
	}
}

func TestSignReversedIsUpperHex(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	text, err := SignReversed(key, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if text != strings.ToUpper(text) || len(text) != 256 {
		t.Errorf("got %q", text)
	}
	signature, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := VerifyReversed(&key.PublicKey, hashSHA256WithRSA, []byte("x"), signature); err != nil {
		t.Error(err)
	}
}

func TestSignedTextWithAndWithoutNUL(t *testing.T) {
	key := testKey()
	for _, data := range [][]byte{encodeUTF16Z("GUID:AB"), encodeUTF16("GUID:AB")} {
		signature, err := signReversed(key, crypto.SHA256, data, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := verifySignedText(&key.PublicKey, hashSHA256WithRSA, signature, "GUID:AB", "guid:ab"); err != nil {
			t.Errorf("over %d bytes: %v", len(data), err)
		}
	}
}
