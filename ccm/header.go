package ccm

import (
	"crypto/rsa"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"postern/catalog"
)

// Header is the Msg element that precedes a payload (protocol.md 2.2). Strings are as
// sent; none but ClientAuth.Token holds a control character. Elements that a message
// leaves out are zero, except BodyOffset and BodyLength, which are -1.
type Header struct {
	ID               string // "{GUID}", or empty; some clients send the same one for ever
	SourceID         string // the sender's client id as sent, or empty before registration
	SourceHost       string
	TargetAddress    string
	ReplyTo          string
	CorrelationID    string
	SentTime         string // of several formats and clocks (protocol.md 12)
	TargetHost       string
	TargetEndpoint   string // the routing key, e.g. "MP_ClientRegistration"
	ReplyMode        string // "Sync", "Async" in any case, "Reply", ...
	Protocol         string
	ReplyCompression string // "zlib", "none" or empty
	SchemaVersion    string
	Priority         int
	Timeout          int // milliseconds

	BodyOffset, BodyLength int64 // what the sender says of the unpacked payload
	BodyType               string
	Attachments            []Attachment
	Properties             map[string]string

	Compressed             bool        // the zlib-compress hook: the payload is a zlib stream
	ClientAuth             *ClientAuth // the clientauth hook, or nil
	AllowRegistrationReset bool        // the client understands registration status 2 and 4
	Payload                string      // the payload's type, "inline"
}

// Attachment is a range of the unpacked payload besides the body. Senders repeat and
// misplace them (protocol.md 12); they are as sent.
type Attachment struct {
	Type, Name     string
	Offset, Length int64
}

// ClientAuth is the clientauth hook: the sender's proof (protocol.md 2.3). Signatures
// are in reversed byte order, as sent.
type ClientAuth struct {
	SenderMachine     string
	PublicKey         *rsa.PublicKey // what the sender says its key is; nil when left out
	ClientIDSignature []byte
	PayloadSignature  []byte
	HashAlgorithm     string // an OID; "" means SHA-1
	Token             string // the alternative of boot media; may have line ends
}

const (
	maxHeaderPart  = 256 << 10
	maxHeaderValue = 2 << 10
	maxToken       = 16 << 10
	maxHeaderItems = 256
)

// parseHeader reads the first part of a message.
func parseHeader(part []byte, lim Limits) (Header, error) {
	if len(part) > maxHeaderPart {
		return Header{}, catalog.Errorf(catalog.MessageTooLarge, "a header of %d bytes", len(part))
	}
	if err := checkPairs(part); err != nil {
		return Header{}, fmt.Errorf("read message header: %w", err)
	}
	root, err := parseXML(trimText(decodeUTF16(part)), lim)
	if err != nil {
		return Header{}, fmt.Errorf("read message header: %w", err)
	}
	if root.Name != "Msg" {
		return Header{}, catalog.Errorf(catalog.MessageHeader, "the root element is not Msg")
	}
	if twice := root.Twice("Attachment", "Property"); twice != "" {
		return Header{}, catalog.Errorf(catalog.MessageHeader, "the element %q occurs twice", twice)
	}
	h := headerFields(root)
	steps := []func(*element) error{h.readAttachments, h.readProperties, h.readHooks}
	for _, step := range steps {
		if err := step(root); err != nil {
			return Header{}, err
		}
	}
	return h, h.check()
}

func headerFields(root *element) Header {
	body := root.Child("Body")
	return Header{
		ID:                     root.ChildText("ID"),
		SourceID:               root.ChildText("SourceID"),
		SourceHost:             root.ChildText("SourceHost"),
		TargetAddress:          root.ChildText("TargetAddress"),
		ReplyTo:                root.ChildText("ReplyTo"),
		CorrelationID:          root.ChildText("CorrelationID"),
		SentTime:               root.ChildText("SentTime"),
		TargetHost:             root.ChildText("TargetHost"),
		TargetEndpoint:         root.ChildText("TargetEndpoint"),
		ReplyMode:              root.ChildText("ReplyMode"),
		Protocol:               root.ChildText("Protocol"),
		ReplyCompression:       root.Attr("ReplyCompression"),
		SchemaVersion:          root.Attr("SchemaVersion"),
		Priority:               lenientInt(root.ChildText("Priority")),
		Timeout:                lenientInt(root.ChildText("Timeout")),
		BodyOffset:             parseSize(body.Attr("Offset")),
		BodyLength:             parseSize(body.Attr("Length")),
		BodyType:               body.Attr("Type"),
		AllowRegistrationReset: allowsReset(root.Child("ReplyCapabilities")),
		Payload:                root.Child("Payload").Attr("Type"),
	}
}

func (h *Header) readAttachments(root *element) error {
	all := root.All("Attachment")
	if len(all) > maxHeaderItems {
		return catalog.Errorf(catalog.MessageHeader, "%d attachments", len(all))
	}
	for _, e := range all {
		h.Attachments = append(h.Attachments, Attachment{
			Type:   e.Attr("Type"),
			Name:   e.Attr("Name"),
			Offset: parseSize(e.Attr("Offset")),
			Length: parseSize(e.Attr("Length")),
		})
	}
	return nil
}

func (h *Header) readProperties(root *element) error {
	all := root.All("Property")
	if len(all) > maxHeaderItems {
		return catalog.Errorf(catalog.MessageHeader, "%d properties", len(all))
	}
	for _, e := range all {
		if h.Properties == nil {
			h.Properties = make(map[string]string, len(all))
		}
		name := e.Attr("Name")
		if _, twice := h.Properties[name]; twice {
			return catalog.Errorf(catalog.MessageHeader, "the property %q occurs twice", name)
		}
		h.Properties[name] = e.Attr("Value")
	}
	return nil
}

// readHooks reads the steps that the sender has applied. The legacy signature
// ("authenticate") is left unread; what changes the bytes cannot be (protocol.md 2.3).
func (h *Header) readHooks(root *element) error {
	hooks := root.Child("Hooks")
	if hooks == nil {
		return nil
	}
	for _, hook := range hooks.Children {
		switch name := hook.Attr("Name"); name {
		case "zlib-compress":
			h.Compressed = true
		case "clientauth":
			if err := h.readClientAuth(hook); err != nil {
				return err
			}
		case "encrypt", "compress":
			return catalog.Errorf(catalog.MessageHook, "the hook %q", name)
		}
	}
	return nil
}

func (h *Header) readClientAuth(hook *element) error {
	if h.ClientAuth != nil {
		return catalog.Errorf(catalog.MessageHeader, "two clientauth hooks")
	}
	properties := make(map[string]string)
	for _, e := range hook.All("Property") {
		name := e.Attr("Name")
		if _, twice := properties[name]; twice {
			return catalog.Errorf(catalog.MessageHeader, "the clientauth property %q occurs twice", name)
		}
		properties[name] = strings.TrimSpace(e.Text)
	}
	auth := &ClientAuth{
		SenderMachine: properties["AuthSenderMachine"],
		HashAlgorithm: properties["HashAlgorithm"],
		Token:         properties["Token"],
	}
	h.ClientAuth = auth
	return auth.readBinary(properties)
}

// readBinary reads the hexadecimal properties; each may be left out.
func (a *ClientAuth) readBinary(properties map[string]string) error {
	if text := properties["PublicKey"]; text != "" {
		blob, err := parseHex(text)
		if err != nil {
			return catalog.Errorf(catalog.KeyMalformed, "the public key is not hexadecimal")
		}
		if a.PublicKey, err = ParsePublicKeyBlob(blob); err != nil {
			return err
		}
	}
	for name, target := range map[string]*[]byte{"ClientIDSignature": &a.ClientIDSignature, "PayloadSignature": &a.PayloadSignature} {
		text := properties[name]
		if text == "" {
			continue
		}
		signature, err := parseSignatureHex(text)
		if err != nil {
			return err
		}
		*target = signature
	}
	return nil
}

// check refuses values that are too long or would break a log line.
func (h *Header) check() error {
	values := []string{h.ID, h.SourceID, h.SourceHost, h.TargetAddress, h.ReplyTo, h.CorrelationID, h.SentTime, h.TargetHost,
		h.TargetEndpoint, h.ReplyMode, h.Protocol, h.ReplyCompression, h.SchemaVersion, h.BodyType, h.Payload}
	for _, a := range h.Attachments {
		values = append(values, a.Type, a.Name)
	}
	for name, value := range h.Properties {
		values = append(values, name, value)
	}
	if a := h.ClientAuth; a != nil {
		values = append(values, a.SenderMachine, a.HashAlgorithm)
		if len(a.Token) > maxToken {
			return catalog.Errorf(catalog.MessageHeader, "a token of %d bytes", len(a.Token))
		}
	}
	for _, value := range values {
		if len(value) > maxHeaderValue || strings.ContainsFunc(value, unicode.IsControl) {
			return catalog.Errorf(catalog.MessageHeader, "a value that is too long or has control characters")
		}
	}
	return nil
}

// xml writes the header as clients do, elements in alphabetical order. Characters
// beyond ASCII become references: one client cuts replies at the bytes 0D 0A, which
// are also a character of UTF-16 (protocol.md 12).
func (h Header) xml() string {
	var b strings.Builder
	write := func(name, value string) {
		if value != "" {
			b.WriteString("<" + name + ">" + escapeASCII(value) + "</" + name + ">")
		}
	}
	b.WriteString("<Msg")
	if h.ReplyCompression != "" {
		b.WriteString(` ReplyCompression="` + escapeASCII(h.ReplyCompression) + `"`)
	}
	b.WriteString(` SchemaVersion="` + escapeASCII(h.SchemaVersion) + `">`)
	fmt.Fprintf(&b, `<Body Type="%s" Length="%d" Offset="%d" />`, escapeASCII(h.BodyType), h.BodyLength, h.BodyOffset)
	write("CorrelationID", h.CorrelationID)
	b.WriteString(h.hooksXML())
	write("ID", h.ID)
	b.WriteString(`<Payload Type="` + escapeASCII(h.Payload) + `" />`)
	write("Priority", strconv.Itoa(h.Priority))
	for _, name := range slices.Sorted(maps.Keys(h.Properties)) {
		b.WriteString(`<Property Name="` + escapeASCII(name) + `" Value="` + escapeASCII(h.Properties[name]) + `" />`)
	}
	write("Protocol", h.Protocol)
	if h.AllowRegistrationReset {
		b.WriteString("<ReplyCapabilities><AllowRegistrationReset>true</AllowRegistrationReset></ReplyCapabilities>")
	}
	write("ReplyMode", h.ReplyMode)
	write("ReplyTo", h.ReplyTo)
	write("SentTime", h.SentTime)
	write("SourceHost", h.SourceHost)
	write("SourceID", h.SourceID)
	write("TargetAddress", h.TargetAddress)
	write("TargetEndpoint", h.TargetEndpoint)
	write("TargetHost", h.TargetHost)
	write("Timeout", strconv.Itoa(h.Timeout))
	b.WriteString("</Msg>")
	return b.String()
}

func (h Header) hooksXML() string {
	var b strings.Builder
	b.WriteString("<Hooks>")
	if a := h.ClientAuth; a != nil {
		b.WriteString(`<Hook2 Name="clientauth">`)
		for _, p := range []struct{ name, value string }{
			{"AuthSenderMachine", escapeASCII(a.SenderMachine)},
			{"PublicKey", upperHex(MarshalPublicKeyBlob(a.PublicKey))},
			{"ClientIDSignature", upperHex(a.ClientIDSignature)},
			{"PayloadSignature", upperHex(a.PayloadSignature)},
			{"ClientCapabilities", "NonSSL"},
			{"HashAlgorithm", escapeASCII(a.HashAlgorithm)},
		} {
			b.WriteString(`<Property Name="` + p.name + `">` + p.value + `</Property>`)
		}
		b.WriteString("</Hook2>")
	}
	if h.Compressed {
		b.WriteString(`<Hook3 Name="zlib-compress" />`)
	}
	b.WriteString("</Hooks>")
	return b.String()
}

// escapeASCII is escapeXML with references for everything beyond ASCII.
func escapeASCII(text string) string {
	text = escapeXML(text)
	if !strings.ContainsFunc(text, func(r rune) bool { return r > unicode.MaxASCII }) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if r <= unicode.MaxASCII {
			b.WriteRune(r)
			continue
		}
		b.WriteString("&#" + strconv.Itoa(int(r)) + ";")
	}
	return b.String()
}

// allowsReset reads ReplyCapabilities: the element's presence says yes, unless its text
// or an attribute says no. Its exact form is not known (protocol.md 3.4).
func allowsReset(capabilities *element) bool {
	allow := capabilities.Child("AllowRegistrationReset")
	return allow != nil && !isNo(allow.Text) && !slices.ContainsFunc(allow.Attributes, func(a attribute) bool { return isNo(a.Value) })
}

func isNo(text string) bool {
	text = strings.ToLower(strings.TrimSpace(text))
	return text == "false" || text == "0"
}

// lenientInt reads an integer that nothing depends on; what is none is 0.
func lenientInt(text string) int {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return 0
	}
	return int(n)
}

// parseSize reads an offset or a length; what is none is -1.
func parseSize(text string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil || n < 0 {
		return -1
	}
	return n
}
