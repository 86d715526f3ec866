package token

import (
	"crypto"
	"crypto/sha256"
	"sync"

	"postern/catalog"
	"postern/proof"
)

// ProofKeys remembers what the headers of good proofs say, by their hash. All proofs of a device have one and the same header, which holds its key: reading that
// again for each request costs more than its signature. It holds no more than it was made for and is safe for concurrent use; nil remembers nothing.
type ProofKeys struct {
	half int

	mu            sync.Mutex
	recent, older map[[sha256.Size]byte]proofKey // what was not asked for goes with the older half
}

// proofKey is what the header of a proof says.
type proofKey struct {
	algorithm  string
	public     crypto.PublicKey
	thumbprint proof.KeyThumbprint
}

// NewProofKeys returns a memory for so many keys, at least two.
func NewProofKeys(size int) *ProofKeys {
	return &ProofKeys{half: max(1, size/2), recent: map[[sha256.Size]byte]proofKey{}}
}

func (k *ProofKeys) get(hash [sha256.Size]byte) (proofKey, bool) {
	if k == nil {
		return proofKey{}, false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if key, ok := k.recent[hash]; ok {
		return key, true
	}
	key, ok := k.older[hash]
	if ok {
		k.put(hash, key)
	}
	return key, ok
}

func (k *ProofKeys) remember(hash [sha256.Size]byte, key proofKey) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.put(hash, key)
}

func (k *ProofKeys) put(hash [sha256.Size]byte, key proofKey) {
	if len(k.recent) >= k.half {
		k.older, k.recent = k.recent, make(map[[sha256.Size]byte]proofKey, k.half)
	}
	k.recent[hash] = key
}

// readProofKey reads the header of a proof.
func readProofKey(part string) (proofKey, error) {
	head, err := readHeader(part, proofCodes(), []string{"typ", "alg", "jwk"})
	if err != nil {
		return proofKey{}, err
	}
	if head.Type != proofType {
		return proofKey{}, catalog.Errorf(catalog.ProofMalformed, "typ is not %s", proofType)
	}
	pub, err := readJWK(head.JWK)
	if err != nil {
		return proofKey{}, catalog.Wrap(catalog.ProofKey, err, "the proof must hold a public RSA or P-256 key")
	}
	algorithm, err := proofAlgorithm(pub, head.Algorithm)
	if err != nil {
		return proofKey{}, err
	}
	thumbprint, err := proof.Thumbprint(pub)
	if err != nil {
		return proofKey{}, catalog.Wrap(catalog.ProofKey, err, "the key has no thumbprint")
	}
	return proofKey{algorithm: algorithm, public: pub, thumbprint: thumbprint}, nil
}
