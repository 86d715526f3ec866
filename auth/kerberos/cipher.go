package kerberos

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"slices"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/crypto/etype"
	"github.com/jcmturner/gokrb5/v8/crypto/rfc3961"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
)

// What a key is used for (RFC 4120 7.5.1, RFC 4121 2, MS-KILE 3.1.5.9).
const (
	usageTicket        uint32 = keyusage.KDC_REP_TICKET
	usageAuthenticator uint32 = keyusage.AP_REQ_AUTHENTICATOR
	usageReply         uint32 = keyusage.AP_REP_ENCPART
	usagePAC           uint32 = keyusage.KERB_NON_KERB_CKSUM_SALT
	usageClientMIC     uint32 = keyusage.GSSAPI_INITIATOR_SIGN
	usageServerMIC     uint32 = keyusage.GSSAPI_ACCEPTOR_SIGN
)

// The suffixes by which one use of a key becomes three keys (RFC 3961 5.3).
const (
	forEncryption byte = 0xAA
	forIntegrity  byte = 0x55
	forChecksum   byte = 0x99
)

// encryption is what we know of an encryption type.
type encryption struct {
	name string
	size int  // of a key, in bytes
	aes  bool // accepted always; RC4 by a setting, nothing else ever
}

var encryptions = map[int32]encryption{
	1: {"des-cbc-crc", 8, false}, 2: {"des-cbc-md4", 8, false}, 3: {"des-cbc-md5", 8, false},
	etypeID.DES3_CBC_SHA1_KD:           {"des3-cbc-sha1", 24, false},
	etypeID.AES128_CTS_HMAC_SHA1_96:    {"aes128-cts-hmac-sha1-96", 16, true},
	etypeID.AES256_CTS_HMAC_SHA1_96:    {"aes256-cts-hmac-sha1-96", 32, true},
	etypeID.AES128_CTS_HMAC_SHA256_128: {"aes128-cts-hmac-sha256-128", 16, true},
	etypeID.AES256_CTS_HMAC_SHA384_192: {"aes256-cts-hmac-sha384-192", 32, true},
	etypeID.RC4_HMAC:                   {"rc4-hmac", 16, false},
	24:                                 {"rc4-hmac-exp", 16, false},
}

func typeName(kind int32) string {
	if e, ok := encryptions[kind]; ok {
		return fmt.Sprintf("%s (%d)", e.name, kind)
	}
	return fmt.Sprintf("encryption type %d", kind)
}

// allowed says whether an encryption type is accepted: AES, and RC4 by a setting.
func allowed(kind int32, rc4 bool) bool {
	return encryptions[kind].aes || rc4 && kind == etypeID.RC4_HMAC
}

// folded are the constants from which RFC 3961 derives keys, stretched to a block. They
// are the same for every key, and folding is most of the work of deriving.
var folded = fold(usageTicket, usageAuthenticator, usageReply, usagePAC, usageClientMIC, usageServerMIC)

func fold(usages ...uint32) map[[5]byte][]byte {
	constants := map[[5]byte][]byte{}
	for _, usage := range usages {
		for _, purpose := range []byte{forEncryption, forIntegrity, forChecksum} {
			constant := usageConstant(usage, purpose)
			constants[constant] = rfc3961.Nfold(constant[:], 8*aes.BlockSize)
		}
	}
	return constants
}

func usageConstant(usage uint32, purpose byte) [5]byte {
	return [5]byte{byte(usage >> 24), byte(usage >> 16), byte(usage >> 8), byte(usage), purpose}
}

// secret is a key of a type that we may use.
type secret struct {
	kind  int32
	value []byte
	etype etype.EType
	// keys that were derived before, for keys that live long; nil otherwise
	derived map[[5]byte][]byte
}

// newSecret says no to types that are never accepted and to keys of a wrong length.
func newSecret(kind int32, value []byte) (secret, bool) {
	if !allowed(kind, true) || len(value) != encryptions[kind].size {
		return secret{}, false
	}
	e, err := crypto.GetEtype(kind)
	return secret{kind: kind, value: value, etype: e}, err == nil
}

// remember derives what a key of the service is used for, once.
func (s *secret) remember() {
	derived := map[[5]byte][]byte{}
	for _, c := range [][5]byte{usageConstant(usageTicket, forEncryption), usageConstant(usageTicket, forIntegrity), usageConstant(usagePAC, forChecksum)} {
		derived[c] = s.derive(c)
	}
	s.derived = derived
}

// derive returns the key for one purpose.
func (s *secret) derive(constant [5]byte) []byte {
	if key, ok := s.derived[constant]; ok {
		return key
	}
	switch s.kind {
	case etypeID.AES128_CTS_HMAC_SHA1_96, etypeID.AES256_CTS_HMAC_SHA1_96:
		return s.deriveBlocks(folded[constant])
	}
	key, err := s.etype.DeriveKey(s.value, constant[:])
	if err != nil {
		return nil // the length of the key was checked; an empty key opens nothing
	}
	return key
}

// deriveBlocks is DK of RFC 3961 5.1 for AES: the constant encrypted again and again.
func (s *secret) deriveBlocks(constant []byte) []byte {
	block, err := aes.NewCipher(s.value)
	if err != nil {
		return nil
	}
	key := make([]byte, len(s.value))
	for at, from := 0, constant; at < len(key); at += aes.BlockSize {
		block.Encrypt(key[at:], from)
		from = key[at : at+aes.BlockSize]
	}
	return key
}

// open decrypts and verifies; false when the key is another one or the data was altered.
func (s *secret) open(usage uint32, data []byte) ([]byte, bool) {
	if len(data) < s.etype.GetConfounderByteSize()+s.etype.GetHMACBitLength()/8 {
		return nil, false
	}
	if s.kind == etypeID.RC4_HMAC {
		plain, err := s.etype.DecryptMessage(s.value, data, usage)
		return plain, err == nil
	}
	return s.openAES(usage, data)
}

// openAES is decryption after RFC 3962 (the seal covers the plaintext) and RFC 8009 (it
// covers the ciphertext, so that nothing is decrypted with a wrong key).
func (s *secret) openAES(usage uint32, data []byte) ([]byte, bool) {
	cut := len(data) - s.etype.GetHMACBitLength()/8
	body, seal := data[:cut], data[cut:]
	if s.sealsCiphertext() && !hmac.Equal(s.sealOver(usage, body), seal) {
		return nil, false
	}
	plain, ok := decryptCTS(s.derive(usageConstant(usage, forEncryption)), body)
	if !ok || !s.sealsCiphertext() && !hmac.Equal(s.sealOver(usage, plain), seal) {
		return nil, false
	}
	return plain[aes.BlockSize:], true
}

func (s *secret) sealsCiphertext() bool {
	return s.kind == etypeID.AES128_CTS_HMAC_SHA256_128 || s.kind == etypeID.AES256_CTS_HMAC_SHA384_192
}

// sealOver is the seal of a message. RFC 8009 puts the first vector, zeros, before the
// ciphertext.
func (s *secret) sealOver(usage uint32, data []byte) []byte {
	mac := hmac.New(s.etype.GetHashFunc(), s.derive(usageConstant(usage, forIntegrity)))
	if s.sealsCiphertext() {
		mac.Write(make([]byte, aes.BlockSize))
	}
	mac.Write(data)
	return mac.Sum(nil)[:s.etype.GetHMACBitLength()/8]
}

// seal encrypts, with a confounder of its own.
func (s *secret) seal(usage uint32, plain []byte) ([]byte, error) {
	if s.kind == etypeID.RC4_HMAC {
		_, data, err := s.etype.EncryptMessage(s.value, plain, usage)
		return data, err
	}
	message := make([]byte, aes.BlockSize, aes.BlockSize+len(plain))
	rand.Read(message) // never fails
	message = append(message, plain...)
	_, body, err := s.etype.EncryptData(s.derive(usageConstant(usage, forEncryption)), message)
	if err != nil {
		return nil, err
	}
	if s.sealsCiphertext() {
		return append(body, s.sealOver(usage, body)...), nil
	}
	return append(body, s.sealOver(usage, message)...), nil
}

// checksum is the keyed checksum that belongs to the key's type.
func (s *secret) checksum(usage uint32, parts ...[]byte) []byte {
	if s.kind == etypeID.RC4_HMAC {
		sum, _ := s.etype.GetChecksumHash(s.value, slices.Concat(parts...), usage) // hashing does not fail
		return sum
	}
	mac := hmac.New(s.etype.GetHashFunc(), s.derive(usageConstant(usage, forChecksum)))
	for _, part := range parts {
		mac.Write(part)
	}
	return mac.Sum(nil)[:s.etype.GetHMACBitLength()/8]
}

// decryptCTS is AES-CBC with ciphertext stealing and a vector of zeros (RFC 3962 5): the
// last two blocks are swapped, and the second but last lends its end to the last.
func decryptCTS(key, data []byte) ([]byte, bool) {
	block, err := aes.NewCipher(key)
	if err != nil || len(data) < aes.BlockSize {
		return nil, false
	}
	plain := make([]byte, len(data))
	if len(data) == aes.BlockSize {
		block.Decrypt(plain, data)
		return plain, true
	}
	stealCTS(block, plain, data)
	return plain, true
}

// stealCTS decrypts what is longer than one block.
func stealCTS(block cipher.Block, plain, data []byte) {
	last := (len(data) - 1) / aes.BlockSize * aes.BlockSize // where the last block begins, whole or not
	before := last - aes.BlockSize
	vector := make([]byte, aes.BlockSize)
	if before > 0 {
		cipher.NewCBCDecrypter(block, vector).CryptBlocks(plain[:before], data[:before])
		copy(vector, data[before-aes.BlockSize:before])
	}
	var lent, stolen [aes.BlockSize]byte
	block.Decrypt(lent[:], data[before:last])
	tail := copy(stolen[:], data[last:])
	copy(stolen[tail:], lent[tail:])
	subtle.XORBytes(plain[last:], data[last:], lent[:tail])
	block.Decrypt(plain[before:last], stolen[:])
	subtle.XORBytes(plain[before:last], plain[before:last], vector)
}
