package token

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"

	"postern/catalog"
)

// The types of signed documents, in the protected header, so that none passes as
// another nor as a token.
const (
	DocumentState = "postern-state+jws"
	DocumentBeat  = "postern-beat+jws"
	DocumentAck   = "postern-ack+jws"
	DocumentReply = "postern-reply+jws"
)

// Pin names a public key for a person to compare: lower-case hex of the SHA-256 of
// its SubjectPublicKeyInfo. It is empty for a key that cannot be encoded.
func Pin(pub crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ""
	}
	return PinOf(der)
}

// PinOf is [Pin] for a key that is at hand as SubjectPublicKeyInfo, DER.
func PinOf(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// Document returns the type of a signed document, "" when it is none of ours. It
// verifies nothing; it only says which function to call.
func Document(raw string) string {
	c, err := openCompact(raw, MaxDocument, codes{}, "typ", "alg", "jwk")
	if err != nil || !contains([]string{DocumentState, DocumentBeat, DocumentAck, DocumentReply}, c.header.Type) {
		return ""
	}
	return c.header.Type
}

func signDocument(key crypto.Signer, typ string, v any) (string, error) {
	signer, err := newSigner(key, typ, "", true)
	if err != nil {
		return "", fmt.Errorf("sign %s: %w", typ, err)
	}
	return signCompact(signer, v)
}

// openDocument verifies a document with the key in its header, after trusted has
// approved that key's pin, and reads it into v. It returns the pin.
func openDocument(raw string, limit int, typ string, c codes, trusted func(pin string) error, v any) (string, error) {
	document, err := openCompact(raw, limit, c, "typ", "alg", "jwk")
	if err != nil {
		return "", err
	}
	if document.header.Type != typ {
		return "", catalog.Errorf(c.malformed, "typ is not %s", typ)
	}
	pub, err := readJWK(document.header.JWK)
	if err != nil {
		return "", catalog.Wrap(c.malformed, err, "the header must hold the public key of the signer")
	}
	pin := Pin(pub)
	if err := trusted(pin); err != nil {
		return "", err
	}
	algorithm, err := algorithmOf(pub)
	if err != nil {
		return "", catalog.Wrap(c.algorithm, err, "the signer's key cannot sign this document")
	}
	return pin, document.verify(algorithm, pub, v)
}

func stateCodes() codes {
	return codes{
		malformed: catalog.StateMalformed, tooLarge: catalog.StateTooLarge, header: catalog.StateMalformed,
		algorithm: catalog.StateSignature, signature: catalog.StateSignature,
	}
}

// byRoot trusts the key with that pin, in any case, and no other.
func byRoot(rootPin string) func(string) error {
	return func(pin string) error {
		if rootPin == "" || pin == "" || !strings.EqualFold(pin, rootPin) {
			return catalog.Errorf(catalog.StateOtherRoot, "signed by the root %s", pin)
		}
		return nil
	}
}
