package ccm

import (
	"cmp"
	cryptorand "crypto/rand"
	"crypto/rsa"
	"fmt"
	"io"
	"strings"

	"postern/catalog"
)

const noReply = "NoReply"

// EncodeRequest writes a message as clients send it (protocol.md 2.1). Compressed
// chooses the form of the payload; an empty ReplyCompression, SchemaVersion, BodyType,
// Payload, Protocol, ReplyMode or CorrelationID takes what clients send, an empty ID a
// random one; attachments are not written. With a key the message carries the clientauth
// hook for SourceID, which must be set then.
func EncodeRequest(h Header, bodyXML string, sign *rsa.PrivateKey) (contentType string, body []byte, err error) {
	content := encodeUTF16Z(bodyXML)
	h.BodyOffset, h.BodyLength = 0, int64(len(content))
	payload := append(content, '\r', '\n')
	if h.Compressed {
		payload = deflate(payload)
	}
	if h, err = h.withDefaults("Sync", h.compression()); err != nil {
		return "", nil, err
	}
	if h.ClientAuth = nil; sign != nil {
		if h.ClientAuth, err = newClientAuth(h, payload, sign); err != nil {
			return "", nil, fmt.Errorf("sign message: %w", err)
		}
	}
	return multipartType, joinParts("", headerPart(h), payload), nil
}

// EncodeReply writes the answer to a request in the one form that every known client
// reads (protocol.md 2.7, 12): the constant boundary, one header line for each part,
// UTF-16LE with exactly one final NUL, compressed unless the request says "none", and
// no 0D 0A inside the compressed payload. Fields of replyHeader that are empty are
// derived from the request; give it ID, SentTime and SourceHost. In a "none" payload
// the characters whose bytes would make 0D 0A are written as references.
//
// When the request's HTTP header says "Connection: close", the caller must say so too.
// The error is [catalog.ReplyUnencodable].
func EncodeReply(request Header, replyHeader Header, bodyXML string) (contentType string, body []byte, err error) {
	if !validChars(bodyXML) {
		return "", nil, catalog.Errorf(catalog.ReplyUnencodable, "the reply holds a character that XML forbids")
	}
	h := replyHeader.answering(request)
	if h, err = h.withDefaults("Reply", ""); err != nil {
		return "", nil, err
	}
	payload, length, err := replyPayload(bodyXML, h.Compressed)
	if err != nil {
		return "", nil, err
	}
	h.BodyOffset, h.BodyLength = 0, length
	return multipartType, joinParts("\r\n", headerPart(h), payload), nil
}

// NoReply returns the answer to an asynchronous message: a single part. An empty 200
// would make some clients send the message for ever (protocol.md 12).
func NoReply() (contentType string, body []byte) {
	return multipartType, joinParts("\r\n", append([]byte{0xFF, 0xFE}, encodeUTF16(noReply)...), nil)
}

// DecodeReply reads the answer of a management point. An empty one, with which it
// refuses messages without saying why, is [catalog.ReplyEmpty]. For an answer that is
// NoReply, [Message.NoReply] is true and nothing else is set. The header of a reply is
// read as leniently as clients do, its signature not at all.
func DecodeReply(contentType string, body io.Reader, lim Limits) (*Message, error) {
	lim = lim.withDefaults()
	first := make([]byte, 1)
	n, err := io.ReadFull(body, first)
	if n == 0 && err == io.EOF {
		return nil, catalog.Errorf(catalog.ReplyEmpty, "an answer without a body")
	}
	parts, err := readParts(contentType, io.MultiReader(strings.NewReader(string(first[:n])), body), lim)
	if err != nil {
		return nil, err
	}
	if len(parts) == 1 {
		return decodeSinglePart(parts[0])
	}
	h, err := parseHeader(parts[0], lim)
	if err != nil {
		return nil, err
	}
	return newMessage(h, parts[1], h.Compressed || looksDeflated(parts[1]), lim)
}

// NoReply reports whether the message is the answer to an asynchronous one.
func (m *Message) NoReply() bool { return m.Header.ID == "" && m.Payload == nil && m.Text() == noReply }

func decodeSinglePart(part []byte) (*Message, error) {
	m := &Message{Body: part}
	if !m.NoReply() {
		return nil, catalog.Errorf(catalog.MessageParts, "a single part that is not %s", noReply)
	}
	return m, nil
}

// answering fills what a reply takes from its request.
func (h Header) answering(request Header) Header {
	h.Compressed = !strings.EqualFold(request.ReplyCompression, "none")
	h.CorrelationID = cmp.Or(h.CorrelationID, request.ID)
	h.TargetAddress = cmp.Or(h.TargetAddress, request.ReplyTo)
	h.TargetEndpoint = cmp.Or(h.TargetEndpoint, request.ReplyTo[strings.LastIndexByte(request.ReplyTo, ':')+1:])
	h.TargetHost = cmp.Or(h.TargetHost, request.SourceHost)
	h.ClientAuth = nil
	return h
}

// withDefaults fills what every message has.
func (h Header) withDefaults(mode, compression string) (Header, error) {
	if h.ID == "" {
		uuid, err := newUUID(cryptorand.Reader)
		if err != nil {
			return h, fmt.Errorf("make message id: %w", err)
		}
		h.ID = "{" + uuid + "}"
	}
	h.ReplyMode = cmp.Or(h.ReplyMode, mode)
	h.ReplyCompression = cmp.Or(h.ReplyCompression, compression)
	h.CorrelationID = cmp.Or(h.CorrelationID, "{00000000-0000-0000-0000-000000000000}")
	h.SchemaVersion = cmp.Or(h.SchemaVersion, "1.1")
	h.BodyType = cmp.Or(h.BodyType, "ByteRange")
	h.Payload = cmp.Or(h.Payload, "inline")
	h.Protocol = cmp.Or(h.Protocol, "http")
	if h.Timeout == 0 {
		h.Timeout = 60000
	}
	return h, nil
}

func (h Header) compression() string {
	if h.Compressed {
		return "zlib"
	}
	return "none"
}

// newClientAuth signs the sender's id and the payload.
func newClientAuth(h Header, payload []byte, key *rsa.PrivateKey) (*ClientAuth, error) {
	id, err := ParseClientID(h.SourceID)
	if err != nil {
		return nil, err
	}
	auth := &ClientAuth{SenderMachine: h.SourceHost, PublicKey: &key.PublicKey, HashAlgorithm: hashSHA256WithRSA}
	hash, err := hashOf(auth.HashAlgorithm)
	if err != nil {
		return nil, err
	}
	if auth.ClientIDSignature, err = signReversed(key, hash, encodeUTF16Z(string(id)), true); err != nil {
		return nil, err
	}
	auth.PayloadSignature, err = signReversed(key, hash, payload, true)
	return auth, err
}

// maxPadding is how many spaces may be put behind the XML to change its compressed form.
const maxPadding = 32

// replyPayload returns the second part of a reply and the length of its body unpacked.
func replyPayload(bodyXML string, compressed bool) ([]byte, int64, error) {
	if !compressed {
		content := encodeUTF16Z(withoutLineEnds(bodyXML))
		return content, int64(len(content)), nil
	}
	for range maxPadding {
		content := encodeUTF16Z(bodyXML)
		if payload, ok := deflateClean(content); ok {
			return payload, int64(len(content)), nil
		}
		bodyXML += " "
	}
	return nil, 0, catalog.Errorf(catalog.ReplyUnencodable, "no compressed form without a line end")
}

// withoutLineEnds writes characters as references that would put 0D 0A into UTF-16LE: U+0A0D by itself, and those of U+0Dxx, after
// which 0A may follow. Replies hold such characters only where a client's own names are repeated: in text and attribute values.
func withoutLineEnds(bodyXML string) string {
	endsLine := func(r rune) bool { return r == 0x0A0D || r>>8 == 0x0D }
	if strings.IndexFunc(bodyXML, endsLine) < 0 {
		return bodyXML
	}
	var b strings.Builder
	for _, r := range bodyXML {
		if endsLine(r) {
			fmt.Fprintf(&b, "&#x%X;", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func headerPart(h Header) []byte { return append([]byte{0xFF, 0xFE}, encodeUTF16(h.xml())...) }

// looksDeflated reports whether b begins a zlib stream. A server may compress without
// saying so; UTF-16 never looks like one.
func looksDeflated(b []byte) bool {
	return len(b) > 2 && b[0] == 0x78 && b[1] != 0 && (int(b[0])<<8|int(b[1]))%31 == 0
}
