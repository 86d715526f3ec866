package ccm

import (
	"bytes"
	"crypto/rsa"
	"io"
	"strings"

	"postern/catalog"
)

// Limits bound what is read of one message. A zero field takes its default.
type Limits struct {
	Body       int64 // bytes of the request or reply
	Inflated   int64 // bytes of the payload once unpacked
	Ratio      int   // unpacked to packed, once unpacked it has more than 64 KiB
	Depth      int   // levels of XML
	Elements   int   // elements of one document
	Attributes int   // attributes of one element
	Text       int64 // bytes of character data, attributes and comments of one document
}

// DefaultLimits returns the limits for messages of devices: the largest inventories
// pass, bombs do not.
func DefaultLimits() Limits {
	return Limits{
		Body:       8 << 20,
		Inflated:   32 << 20,
		Ratio:      100,
		Depth:      64,
		Elements:   100_000,
		Attributes: 256,
		Text:       4 << 20,
	}
}

// Message is one message as it was received (protocol.md 2.1).
type Message struct {
	Header  Header
	Payload []byte // the second part as sent: what PayloadSignature covers
	Body    []byte // the body inside the unpacked payload, UTF-16LE as sent
}

// ReadMessage reads a request from its Content-Type and body. The body is read to the
// end, or as far as lim.Body allows.
//
// It is lenient where clients differ (protocol.md 2.1, 12): any boundary, extra part
// headers, a missing or extra line end after the last boundary, UTF-16 with or without
// byte order mark, an odd tail, and a Body/@Length that is wrong: then the end of the
// body's XML counts. It refuses what no client sends: more or fewer than two parts, a
// Msg with an element twice, a SourceID that is no GUID, hooks it cannot undo, bombs,
// half a surrogate pair. Nothing is verified; see [Message.Verify]. Errors have codes of the wire. When nothing
// but the payload is wrong the message comes with the error, without a Body, so that the
// sender can be answered as it waits for it.
func ReadMessage(contentType string, body io.Reader, lim Limits) (*Message, error) {
	lim = lim.withDefaults()
	parts, err := readParts(contentType, body, lim)
	if err != nil {
		return nil, err
	}
	if len(parts) != 2 {
		return nil, catalog.Errorf(catalog.MessageParts, "%d parts instead of 2", len(parts))
	}
	header, err := parseHeader(parts[0], lim)
	if err != nil {
		return nil, err
	}
	if !validSource(header.SourceID) {
		return nil, catalog.Errorf(catalog.ClientIDMalformed, "the message's SourceID is not a client id")
	}
	return newMessage(header, parts[1], header.Compressed, lim)
}

// Text returns the body as UTF-8, without byte order mark and without the NULs and
// line ends that senders leave behind it.
func (m *Message) Text() string { return trimText(decodeUTF16(m.Body)) }

// Verify checks the clientauth hook (protocol.md 2.3, 2.4): ClientIDSignature over the
// SourceID, as upper-case and as sent, and PayloadSignature over the payload as sent.
// The key is the one that the site has registered for the SourceID; the key inside the
// message proves nothing. Errors are [catalog.SignatureMissing],
// [catalog.SignatureMismatch], [catalog.HashUnsupported] and [catalog.KeyUnsuitable].
func (m *Message) Verify(key *rsa.PublicKey) error {
	auth := m.Header.ClientAuth
	if auth == nil || len(auth.ClientIDSignature) == 0 || len(auth.PayloadSignature) == 0 || m.Header.SourceID == "" {
		return catalog.Errorf(catalog.SignatureMissing, "the message names no signed sender")
	}
	if err := verifyReversed(key, auth.HashAlgorithm, auth.PayloadSignature, m.Payload); err != nil {
		return err
	}
	return verifySignedText(key, auth.HashAlgorithm, auth.ClientIDSignature, upperUUID(m.Header.SourceID), m.Header.SourceID)
}

// newMessage unpacks the payload and finds the body in it.
func newMessage(header Header, payload []byte, compressed bool, lim Limits) (*Message, error) {
	content := payload
	if compressed {
		var err error
		if content, err = inflate(payload, lim); err != nil {
			return &Message{Header: header, Payload: payload}, err
		}
	}
	body := findBody(content, header, lim)
	if err := checkText(body); err != nil {
		return &Message{Header: header, Payload: payload}, err
	}
	if compressed && cap(content)/2 > len(body) {
		body = bytes.Clone(body) // what is kept of a message is its body, not all that came with it
	}
	return &Message{Header: header, Payload: payload, Body: body}, nil
}

// checkText refuses a body of XML with half a surrogate pair; another body may be no text.
func checkText(body []byte) error {
	beginning := decodeUTF16(body[:min(len(body), 64)])
	if !strings.HasPrefix(strings.TrimLeft(beginning, " \t\r\n"), "<") {
		return nil
	}
	return checkPairs(body)
}

// findBody returns the body inside the unpacked payload: the range that the header
// gives when that is a whole document or no XML at all, otherwise what the XML itself
// says. Lengths are wrong in messages that real servers accept (protocol.md 2.1).
func findBody(content []byte, h Header, lim Limits) []byte {
	if h.BodyOffset < 0 || h.BodyOffset > int64(len(content)) {
		h.BodyOffset = 0
	}
	from := content[h.BodyOffset:]
	ranged := from
	if h.BodyLength > 0 && h.BodyLength <= int64(len(from)) {
		ranged = from[:h.BodyLength]
	}
	whole, err := wholeBody(ranged, lim)
	if whole || catalog.CodeOf(err) == catalog.XMLBudget {
		return ranged // whoever parses it says what is wrong
	}
	text := decodeUTF16(from)
	end, err := xmlEnd(text, lim)
	if err != nil {
		return ranged
	}
	n := len(from) - len(trimByteOrderMark(from)) + 2*utf16Units(text[:end])
	if n+2 <= len(from) && from[n] == 0 && from[n+1] == 0 {
		n += 2 // the terminator
	}
	return from[:n]
}

// wholeBody reports whether b is one XML document with nothing left out, or no XML.
func wholeBody(b []byte, lim Limits) (bool, error) {
	text := trimText(decodeUTF16(b))
	if !strings.HasPrefix(strings.TrimLeft(text, " \t\r\n"), "<") {
		return true, nil
	}
	end, err := xmlEnd(text, lim)
	return err == nil && end == len(text), err
}

func trimByteOrderMark(b []byte) []byte {
	b, _ = cutByteOrderMark(b)
	return b
}

// validSource reports whether a SourceID is empty, "GUID:" or "UID:" and a uuid.
func validSource(id string) bool {
	_, uuid, found := strings.Cut(id, ":")
	return id == "" || found && (strings.EqualFold(id, "GUID:"+uuid) || strings.EqualFold(id, "UID:"+uuid)) && isUUID(uuid)
}

// upperUUID writes the uuid of a SourceID in upper case, the form that clients sign.
func upperUUID(id string) string {
	prefix, uuid, _ := strings.Cut(id, ":")
	return strings.ToUpper(prefix) + ":" + strings.ToUpper(uuid)
}

func (lim Limits) withDefaults() Limits {
	defaults := DefaultLimits()
	for _, field := range []struct {
		value *int64
		or    int64
	}{{&lim.Body, defaults.Body}, {&lim.Inflated, defaults.Inflated}, {&lim.Text, defaults.Text}} {
		if *field.value <= 0 {
			*field.value = field.or
		}
	}
	for _, field := range []struct {
		value *int
		or    int
	}{{&lim.Ratio, defaults.Ratio}, {&lim.Depth, defaults.Depth}, {&lim.Elements, defaults.Elements}, {&lim.Attributes, defaults.Attributes}} {
		if *field.value <= 0 {
			*field.value = field.or
		}
	}
	return lim
}
