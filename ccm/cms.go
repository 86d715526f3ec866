package ccm

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	cryptorand "crypto/rand"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"postern/catalog"
)

// ContentAlgorithm is the cipher that covers a sealed policy's content.
type ContentAlgorithm int

// The two ciphers that clients read (protocol.md 4.5).
const (
	// TripleDES is des-ede3-cbc, the one that every client reads.
	TripleDES ContentAlgorithm = iota
	// AES256 is aes256-cbc, which the oldest clients cannot read.
	AES256
)

// maxSealedPolicy bounds what OpenPolicy reads: the 32 MB of the largest policy and some envelope.
const maxSealedPolicy = 33 << 20

var (
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidEnvelopedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}
	oidRSAEncryption = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidRSAESOAEP     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
)

// contentCipher is one row of the table of content ciphers.
type contentCipher struct {
	algorithm ContentAlgorithm
	oid       asn1.ObjectIdentifier
	keySize   int
	block     func(key []byte) (cipher.Block, error)
}

// contentCiphers lists the content ciphers of protocol.md 4.5.
func contentCiphers() []contentCipher {
	return []contentCipher{
		{TripleDES, asn1.ObjectIdentifier{1, 2, 840, 113549, 3, 7}, 24, des.NewTripleDESCipher},
		{AES256, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}, 32, aes.NewCipher},
	}
}

// contentInfo, envelopedData and their parts are RFC 5652, sections 3 and 6, as far as a policy needs them.
type contentInfo struct {
	ContentType asn1.ObjectIdentifier
	Content     asn1.RawValue
}

type envelopedData struct {
	Version              int
	RecipientInfos       []asn1.RawValue `asn1:"set"`
	EncryptedContentInfo encryptedContentInfo
}

type keyTransRecipientInfo struct {
	Version                int
	RecipientIdentifier    asn1.RawValue
	KeyEncryptionAlgorithm pkix.AlgorithmIdentifier
	EncryptedKey           []byte
}

type encryptedContentInfo struct {
	ContentType                asn1.ObjectIdentifier
	ContentEncryptionAlgorithm pkix.AlgorithmIdentifier
	EncryptedContent           []byte `asn1:"tag:0"`
}

type issuerAndSerialNumber struct {
	Issuer asn1.RawValue
	Serial asn1.RawValue
}

// SealPolicy returns body as a DER CMS ContentInfo with EnvelopedData for one recipient: key transport
// rsaEncryption (PKCS#1 v1.5), the recipient named by the raw issuer and the raw serial number of its certificate,
// definite lengths throughout, as strict and old clients need it (protocol.md 4.5).
//
// WARNING: EnvelopedData hides the content and does not protect it from change.
func SealPolicy(rand io.Reader, body []byte, recipient *Certificate, algorithm ContentAlgorithm) ([]byte, error) {
	if recipient == nil || recipient.PublicKey == nil {
		return nil, catalog.Errorf(catalog.PolicyRecipientUnusable, "the device has no encryption certificate")
	}
	der, err := sealPolicy(rand, body, recipient, algorithm)
	if err != nil {
		return nil, catalog.Wrap(catalog.PolicyRecipientUnusable, err, "certificate %s", recipient.Thumbprint())
	}
	return der, nil
}

func sealPolicy(rand io.Reader, body []byte, recipient *Certificate, algorithm ContentAlgorithm) ([]byte, error) {
	suite, err := cipherFor(algorithm)
	if err != nil {
		return nil, err
	}
	key, err := contentKey(rand, suite)
	if err != nil {
		return nil, fmt.Errorf("make content key: %w", err)
	}
	content, err := encryptContent(rand, suite, key, body)
	if err != nil {
		return nil, fmt.Errorf("encrypt content: %w", err)
	}
	info, err := recipientInfo(rand, key, recipient)
	if err != nil {
		return nil, err
	}
	enveloped, err := asn1.Marshal(envelopedData{RecipientInfos: []asn1.RawValue{{FullBytes: info}}, EncryptedContentInfo: content})
	if err != nil {
		return nil, fmt.Errorf("encode enveloped data: %w", err)
	}
	return asn1.Marshal(contentInfo{oidEnvelopedData, asn1.RawValue{
		Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: enveloped,
	}})
}

func cipherFor(algorithm ContentAlgorithm) (contentCipher, error) {
	for _, suite := range contentCiphers() {
		if suite.algorithm == algorithm {
			return suite, nil
		}
	}
	return contentCipher{}, fmt.Errorf("content algorithm %d is unknown", algorithm)
}

// contentKey makes a fresh key. Keys of 3DES get odd parity, which some providers check.
func contentKey(rand io.Reader, suite contentCipher) ([]byte, error) {
	key := make([]byte, suite.keySize)
	if _, err := io.ReadFull(rand, key); err != nil {
		return nil, err
	}
	if suite.algorithm == TripleDES {
		for i, b := range key {
			key[i] = b&^1 | byte(bits.OnesCount8(b>>1)+1)&1
		}
	}
	return key, nil
}

func encryptContent(rand io.Reader, suite contentCipher, key, body []byte) (encryptedContentInfo, error) {
	block, err := suite.block(key)
	if err != nil {
		return encryptedContentInfo{}, err
	}
	iv := make([]byte, block.BlockSize())
	if _, err := io.ReadFull(rand, iv); err != nil {
		return encryptedContentInfo{}, err
	}
	padding := block.BlockSize() - len(body)%block.BlockSize()
	content := append(bytes.Clone(body), bytes.Repeat([]byte{byte(padding)}, padding)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(content, content)
	return encryptedContentInfo{
		ContentType: oidData,
		ContentEncryptionAlgorithm: pkix.AlgorithmIdentifier{
			Algorithm:  suite.oid,
			Parameters: asn1.RawValue{Tag: asn1.TagOctetString, Bytes: iv},
		},
		EncryptedContent: content,
	}, nil
}

func recipientInfo(rand io.Reader, key []byte, recipient *Certificate) ([]byte, error) {
	identifier, err := issuerAndSerial(recipient.DER)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 every client of the protocol reads PKCS #1 v1.5 and only some read OAEP (protocol.md 4.5)
	encrypted, err := rsa.EncryptPKCS1v15(rand, recipient.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("encrypt content key: %w", err)
	}
	return asn1.Marshal(keyTransRecipientInfo{
		RecipientIdentifier:    asn1.RawValue{FullBytes: identifier},
		KeyEncryptionAlgorithm: pkix.AlgorithmIdentifier{Algorithm: oidRSAEncryption, Parameters: asn1.NullRawValue},
		EncryptedKey:           encrypted,
	})
}

// issuerAndSerial returns the DER IssuerAndSerialNumber with issuer and serial number exactly as the certificate has
// them, so that a negative or padded serial number still matches.
func issuerAndSerial(certificate []byte) ([]byte, error) {
	var outer struct {
		TBS       asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.RawValue
	}
	if _, err := asn1.Unmarshal(certificate, &outer); err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	var version, serial, algorithm, issuer asn1.RawValue
	rest, err := asn1.Unmarshal(outer.TBS.Bytes, &version)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	if version.Class != asn1.ClassContextSpecific { // version 1 has no version field
		rest = outer.TBS.Bytes
	}
	for _, field := range []*asn1.RawValue{&serial, &algorithm, &issuer} {
		if rest, err = asn1.Unmarshal(rest, field); err != nil {
			return nil, fmt.Errorf("read certificate: %w", err)
		}
	}
	return asn1.Marshal(issuerAndSerialNumber{issuer, serial})
}

// OpenPolicy returns the content of a sealed policy. It takes the forms that clients take: key transport with PKCS#1
// v1.5 or OAEP with SHA-1, content in 3DES-CBC or AES-256-CBC, the recipient by issuer and serial number or by subject
// key identifier. Every failure is one and the same error, so that it tells nothing about the key or the padding.
func OpenPolicy(der []byte, certificate *Certificate, key crypto.Decrypter) ([]byte, error) {
	body, err := openPolicy(der, certificate, key)
	if err != nil {
		return nil, catalog.Errorf(catalog.PolicyUnreadable, "the sealed policy cannot be opened with this certificate and key")
	}
	return body, nil
}

var errSealed = errors.New("sealed policy")

func openPolicy(der []byte, certificate *Certificate, key crypto.Decrypter) ([]byte, error) {
	if len(der) > maxSealedPolicy || certificate == nil || key == nil {
		return nil, errSealed
	}
	enveloped, err := parseEnvelopedData(der)
	if err != nil {
		return nil, err
	}
	suite, iv, err := parseContentAlgorithm(enveloped.EncryptedContentInfo.ContentEncryptionAlgorithm)
	if err != nil {
		return nil, err
	}
	recipient, err := findRecipient(enveloped.RecipientInfos, certificate)
	if err != nil {
		return nil, err
	}
	contentKey, err := decryptKey(recipient, key, suite.keySize)
	if err != nil {
		return nil, err
	}
	return decryptContent(suite, contentKey, iv, enveloped.EncryptedContentInfo.EncryptedContent)
}

func parseEnvelopedData(der []byte) (envelopedData, error) {
	var info contentInfo
	var enveloped envelopedData
	if rest, err := asn1.Unmarshal(der, &info); err != nil || len(rest) > 0 {
		return enveloped, errSealed
	}
	content := info.Content
	if !info.ContentType.Equal(oidEnvelopedData) || content.Class != asn1.ClassContextSpecific || content.Tag != 0 || !content.IsCompound {
		return enveloped, errSealed
	}
	if rest, err := asn1.Unmarshal(content.Bytes, &enveloped); err != nil || len(rest) > 0 {
		return enveloped, errSealed
	}
	return enveloped, nil
}

func parseContentAlgorithm(algorithm pkix.AlgorithmIdentifier) (contentCipher, []byte, error) {
	for _, suite := range contentCiphers() {
		if !suite.oid.Equal(algorithm.Algorithm) {
			continue
		}
		var iv []byte
		rest, err := asn1.Unmarshal(algorithm.Parameters.FullBytes, &iv)
		if err != nil || len(rest) > 0 {
			return suite, nil, errSealed
		}
		return suite, iv, nil
	}
	return contentCipher{}, nil, errSealed
}

// findRecipient returns the recipient entry that names the certificate.
func findRecipient(infos []asn1.RawValue, certificate *Certificate) (keyTransRecipientInfo, error) {
	identifier, err := issuerAndSerial(certificate.DER)
	if err != nil {
		return keyTransRecipientInfo{}, errSealed
	}
	for _, raw := range infos {
		var info keyTransRecipientInfo
		rest, err := asn1.Unmarshal(raw.FullBytes, &info)
		if err == nil && len(rest) == 0 && identifies(info.RecipientIdentifier, identifier, certificate.SubjectKeyID) {
			return info, nil
		}
	}
	return keyTransRecipientInfo{}, errSealed
}

func identifies(identifier asn1.RawValue, issuerSerial, subjectKeyID []byte) bool {
	if identifier.Class == asn1.ClassContextSpecific && identifier.Tag == 0 {
		return len(subjectKeyID) > 0 && bytes.Equal(identifier.Bytes, subjectKeyID)
	}
	return bytes.Equal(identifier.FullBytes, issuerSerial)
}

// decryptKey unwraps the content key. With PKCS#1 v1.5 a wrong padding gives a random key, not an error.
func decryptKey(recipient keyTransRecipientInfo, key crypto.Decrypter, size int) ([]byte, error) {
	var options crypto.DecrypterOpts
	switch algorithm := recipient.KeyEncryptionAlgorithm; {
	case algorithm.Algorithm.Equal(oidRSAEncryption):
		//lint:ignore SA1019 every client of the protocol reads PKCS #1 v1.5 and only some read OAEP (protocol.md 4.5)
		options = &rsa.PKCS1v15DecryptOptions{SessionKeyLen: size}
	case algorithm.Algorithm.Equal(oidRSAESOAEP) && defaultOAEP(algorithm.Parameters):
		options = &rsa.OAEPOptions{Hash: crypto.SHA1}
	default:
		return nil, errSealed
	}
	plain, err := key.Decrypt(cryptorand.Reader, recipient.EncryptedKey, options)
	if err != nil || len(plain) != size {
		return nil, errSealed
	}
	return plain, nil
}

// defaultOAEP reports whether the parameters leave everything at its default, SHA-1: the only form seen (protocol.md 4.5).
func defaultOAEP(parameters asn1.RawValue) bool {
	return len(parameters.FullBytes) == 0 || len(parameters.Bytes) == 0
}

func decryptContent(suite contentCipher, key, iv, encrypted []byte) ([]byte, error) {
	block, err := suite.block(key)
	if err != nil {
		return nil, errSealed
	}
	size := block.BlockSize()
	if len(iv) != size || len(encrypted) == 0 || len(encrypted)%size != 0 {
		return nil, errSealed
	}
	plain := make([]byte, len(encrypted))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, encrypted)
	padding := int(plain[len(plain)-1])
	if padding == 0 || padding > size {
		return nil, errSealed
	}
	body, tail := plain[:len(plain)-padding], plain[len(plain)-padding:]
	if !bytes.Equal(tail, bytes.Repeat([]byte{byte(padding)}, padding)) {
		return nil, errSealed
	}
	return body, nil
}
