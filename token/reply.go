package token

import (
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"time"

	"postern/catalog"
)

// Reply is a management point's word on one answer: that it gave this body to this
// question. What lies between, a gateway, a connector or a network without TLS, can
// then neither change an answer nor give one that belongs to another question.
type Reply struct {
	Nonce  string    `json:"nonce"`  // as the client sent it
	Path   string    `json:"path"`   // ccm.Path.Internal of the question: as the management point has it, without a gateway's door
	Status int       `json:"status"` // of the answer
	Sum    string    `json:"sum"`    // base64url of the SHA-256 of its body
	At     time.Time `json:"at"`
}

// MaxReply is the size of a signed reply at most; a nonce has 16 to 64 characters.
const (
	MaxReply = 4 << 10
	minNonce = 16
	maxNonce = 64
)

// ReplySum is [Reply.Sum] of a body.
func ReplySum(body []byte) string {
	sum := sha256.Sum256(body)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// CheckNonce refuses what a client may not ask to have signed. Code: ReplyNonce.
func CheckNonce(nonce string) error {
	if len(nonce) < minNonce || len(nonce) > maxNonce || !onlyBase64(nonce) {
		return catalog.Errorf(catalog.ReplyNonce, "it has %d characters", len(nonce))
	}
	return nil
}

// SignReply signs with the key of the management point's role certificate.
func SignReply(key crypto.Signer, reply Reply) (string, error) {
	return signDocument(key, DocumentReply, reply)
}

// OpenReply verifies a signed reply with the key inside it and returns that key's pin.
// It proves nothing until the caller has compared the pin with a role certificate
// under its site root, and the fields with its question and the answer. Codes:
// ReplyMalformed, ReplySignature.
func OpenReply(raw string) (Reply, string, error) {
	c := codes{
		malformed: catalog.ReplyMalformed, tooLarge: catalog.ReplyMalformed, header: catalog.ReplyMalformed,
		algorithm: catalog.ReplySignature, signature: catalog.ReplySignature,
	}
	var reply Reply
	pin, err := openDocument(raw, MaxReply, DocumentReply, c, func(string) error { return nil }, &reply)
	if err != nil {
		return Reply{}, "", err
	}
	return reply, pin, nil
}

// Answers reports what a signed reply does not say of the answer at hand, as an error;
// nil when it is the word on exactly that answer to that question. Code: ReplyOther.
func (r Reply) Answers(nonce, path string, status int, body []byte) error {
	switch {
	case r.Nonce != nonce:
		return catalog.Errorf(catalog.ReplyOther, "it answers another request")
	case r.Path != path:
		return catalog.Errorf(catalog.ReplyOther, "it is for another address")
	case r.Status != status:
		return catalog.Errorf(catalog.ReplyOther, "it is for status %d, the answer has %d", r.Status, status)
	case r.Sum != ReplySum(body):
		return catalog.Errorf(catalog.ReplyOther, "the body is not the one that was signed")
	}
	return nil
}
