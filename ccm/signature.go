package ccm

import (
	"crypto"
	"crypto/rsa"
	_ "crypto/sha1" // clients of 2007 (protocol.md 2.4)
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"postern/catalog"
)

// The hash algorithm names that we write ourselves.
const (
	hashSHA1WithRSA   = "1.2.840.113549.1.1.5"
	hashSHA256WithRSA = "1.2.840.113549.1.1.11"
)

// hashOf reads the algorithm ids that messages name (protocol.md 2.4, 12). A message
// without one is from 2007 and means SHA-1.
func hashOf(oid string) (crypto.Hash, error) {
	switch strings.TrimSpace(oid) {
	case hashSHA256WithRSA, "2.16.840.1.101.3.4.2.1":
		return crypto.SHA256, nil
	case "1.2.840.113549.1.1.12", "2.16.840.1.101.3.4.2.2":
		return crypto.SHA384, nil
	case "1.2.840.113549.1.1.13", "2.16.840.1.101.3.4.2.3":
		return crypto.SHA512, nil
	case "", hashSHA1WithRSA, "1.3.14.3.2.26", "1.3.14.3.2.29":
		return crypto.SHA1, nil
	case "1.2.840.113549.1.1.4", "1.2.840.113549.2.5":
		return 0, catalog.Errorf(catalog.HashUnsupported, "MD5 proves nothing")
	}
	return 0, catalog.Errorf(catalog.HashUnsupported, "an unknown hash algorithm")
}

// SignReversed signs data with RSA PKCS#1 v1.5 and SHA-256 and returns the signature as
// messages carry it: bytes in reversed order, upper-case hexadecimal (protocol.md 2.4).
func SignReversed(key *rsa.PrivateKey, data []byte) (hexUpper string, err error) {
	signature, err := signReversed(key, crypto.SHA256, data, true)
	if err != nil {
		return "", err
	}
	return upperHex(signature), nil
}

// signReversed signs as SignReversed does, with any hash, and without the DigestInfo
// around it when digestInfo is false (the CRYPT_NOHASHOID of protocol.md 2.4).
func signReversed(key *rsa.PrivateKey, hash crypto.Hash, data []byte, digestInfo bool) ([]byte, error) {
	sum := digest(hash, data)
	if !digestInfo {
		hash = 0
	}
	signature, err := rsa.SignPKCS1v15(nil, key, hash, sum)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	slices.Reverse(signature)
	return signature, nil
}

// VerifyReversed checks a signature in reversed byte order over data, made with the
// hash that the OID names ("" is SHA-1), with or without DigestInfo: both are sent for
// the same values (protocol.md 2.4). Errors are [catalog.SignatureMismatch],
// [catalog.HashUnsupported] and [catalog.KeyUnsuitable].
func VerifyReversed(pub *rsa.PublicKey, hashOID string, data, signature []byte) error {
	return verifyReversed(pub, hashOID, signature, data)
}

// verifyReversed checks the signature against each of the candidates for the signed
// bytes and is satisfied with one.
func verifyReversed(pub *rsa.PublicKey, hashOID string, signature []byte, candidates ...[]byte) error {
	if pub == nil {
		return catalog.Errorf(catalog.SignatureMismatch, "no key is known for the signer")
	}
	if err := checkKey(pub); err != nil {
		return err
	}
	hash, err := hashOf(hashOID)
	if err != nil {
		return err
	}
	if len(signature) != pub.Size() {
		return catalog.Errorf(catalog.SignatureMismatch, "a signature of %d bytes for a key of %d", len(signature), pub.Size())
	}
	standard := slices.Clone(signature)
	slices.Reverse(standard)
	for _, data := range candidates {
		sum := digest(hash, data)
		if rsa.VerifyPKCS1v15(pub, hash, sum, standard) == nil || rsa.VerifyPKCS1v15(pub, 0, sum, standard) == nil {
			return nil
		}
	}
	return catalog.Errorf(catalog.SignatureMismatch, "the signature is not this key's over these bytes")
}

// verifySignedText checks a signature over a string, which clients sign as UTF-16 with or
// without its final NUL.
func verifySignedText(pub *rsa.PublicKey, hashOID string, signature []byte, texts ...string) error {
	var candidates [][]byte
	for i, text := range texts {
		if slices.Contains(texts[:i], text) {
			continue
		}
		terminated := encodeUTF16Z(text)
		candidates = append(candidates, terminated, terminated[:len(terminated)-2])
	}
	return verifyReversed(pub, hashOID, signature, candidates...)
}

// parseSignatureHex reads the hexadecimal text of a signature in either case; white space
// inside is ignored.
func parseSignatureHex(text string) ([]byte, error) {
	signature, err := parseHex(text)
	if err != nil || len(signature) == 0 || len(signature) > maxKeyBits/8 {
		return nil, catalog.Errorf(catalog.SignatureMalformed, "a signature of %d characters", len(text))
	}
	return signature, nil
}

// parseHex reads hexadecimal digits in either case; white space between is ignored.
func parseHex(text string) ([]byte, error) {
	if strings.ContainsAny(text, " \t\r\n") {
		text = strings.Join(strings.Fields(text), "")
	}
	return hex.DecodeString(text)
}

func upperHex(b []byte) string {
	text := hex.AppendEncode(make([]byte, 0, 2*len(b)), b)
	for i, c := range text {
		if c >= 'a' {
			text[i] = c - ('a' - 'A')
		}
	}
	return string(text)
}

func digest(hash crypto.Hash, data []byte) []byte {
	h := hash.New()
	h.Write(data)
	return h.Sum(nil)
}

// StrongHash reports whether an algorithm id of a message names SHA-2. SHA-1 has several ids, and none at all means it too (protocol.md 2.4).
func StrongHash(oid string) bool {
	hash, err := hashOf(oid)
	return err == nil && hash != crypto.SHA1
}
