package ccm

import (
	"crypto/rsa"
	"encoding/binary"
	"math/big"
	"slices"

	"postern/catalog"
)

// The sizes and exponents of RSA keys that are accepted: 1024 bits for the clients of
// 2007 (protocol.md 2.4), and a bound above because a key's owner chooses what its
// verification costs us.
const (
	minKeyBits  = 1024
	maxKeyBits  = 8192
	minExponent = 3
	maxExponent = 65537
)

const (
	blobHeader  = 20         // PUBLICKEYSTRUC and RSAPUBKEY
	blobMagic   = 0x31415352 // "RSA1"
	blobVersion = 0x0206     // PUBLICKEYBLOB, version 2
	algRSASign  = 0x2400     // CALG_RSA_SIGN, as in S0
	algRSAKeyX  = 0xA400     // CALG_RSA_KEYX, as today's clients send
)

// ParsePublicKeyBlob reads a CryptoAPI PUBLICKEYBLOB (protocol.md 2.6): header, "RSA1",
// bit length, exponent and the modulus in little-endian order. Both algorithm ids are
// accepted; nothing may follow the modulus. Errors are [catalog.KeyMalformed] and
// [catalog.KeyUnsuitable].
func ParsePublicKeyBlob(blob []byte) (*rsa.PublicKey, error) {
	if len(blob) <= blobHeader || len(blob) > blobHeader+maxKeyBits/8 {
		return nil, catalog.Errorf(catalog.KeyMalformed, "a public key blob of %d bytes", len(blob))
	}
	little := binary.LittleEndian
	algorithm := little.Uint32(blob[4:])
	if little.Uint32(blob) != blobVersion || algorithm != algRSASign && algorithm != algRSAKeyX || little.Uint32(blob[8:]) != blobMagic {
		return nil, catalog.Errorf(catalog.KeyMalformed, "not the header of an RSA public key blob")
	}
	if bits := little.Uint32(blob[12:]); bits != uint32(8*(len(blob)-blobHeader)) {
		return nil, catalog.Errorf(catalog.KeyMalformed, "the blob says %d bits and holds %d", bits, 8*(len(blob)-blobHeader))
	}
	exponent := little.Uint32(blob[16:])
	if exponent > maxExponent {
		return nil, catalog.Errorf(catalog.KeyUnsuitable, "an exponent above %d", maxExponent)
	}
	modulus := slices.Clone(blob[blobHeader:])
	slices.Reverse(modulus)
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(exponent)}
	return key, checkKey(key)
}

// MarshalPublicKeyBlob writes key as a CryptoAPI PUBLICKEYBLOB with the algorithm id
// that today's clients send. Compare keys with Equal, not by their blobs.
func MarshalPublicKeyBlob(key *rsa.PublicKey) []byte {
	blob := make([]byte, blobHeader+(key.N.BitLen()+7)/8)
	modulus := blob[blobHeader:]
	for i, value := range []uint32{blobVersion, algRSAKeyX, blobMagic, uint32(8 * len(modulus)), uint32(key.E)} {
		binary.LittleEndian.PutUint32(blob[4*i:], value)
	}
	slices.Reverse(key.N.FillBytes(modulus))
	return blob
}

// checkKey refuses keys outside the accepted sizes and exponents.
func checkKey(key *rsa.PublicKey) error {
	bits := key.N.BitLen()
	switch {
	case bits < minKeyBits || bits > maxKeyBits:
		return catalog.Errorf(catalog.KeyUnsuitable, "an RSA key of %d bits", bits)
	case key.N.Bit(0) == 0:
		return catalog.Errorf(catalog.KeyUnsuitable, "an even modulus")
	case key.E < minExponent || key.E > maxExponent || key.E%2 == 0:
		return catalog.Errorf(catalog.KeyUnsuitable, "the exponent %d", key.E)
	}
	return nil
}
