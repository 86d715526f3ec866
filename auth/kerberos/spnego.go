package kerberos

import (
	"bytes"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"postern/catalog"
)

const (
	// maxToken is what Windows allows a token to be (MaxTokenSize 48000), and a little.
	maxToken      = 48 << 10
	maxMechanisms = 32
)

// The mechanisms, as the content of their DER object identifiers.
var (
	oidSPNEGO       = []byte{0x2b, 0x06, 0x01, 0x05, 0x05, 0x02}                         // 1.3.6.1.5.5.2
	oidKerberos     = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x12, 0x01, 0x02, 0x02}       // 1.2.840.113554.1.2.2
	oidMSKerberos   = []byte{0x2a, 0x86, 0x48, 0x82, 0xf7, 0x12, 0x01, 0x02, 0x02}       // 1.2.840.48018.1.2.2, a slip of old Windows (RFC 4178 C)
	oidNTLM         = []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x02, 0x0a} // 1.3.6.1.4.1.311.2.2.10
	oidNegoEx       = []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x02, 0x1e} // 1.3.6.1.4.1.311.2.2.30
	applicationZero = der.Tag(0x60)                                                      // the frame of every first GSS token (RFC 2743 3.1)
	ntlmSignature   = []byte("NTLMSSP\x00")                                              // MS-NLMP 2.2.1
	negoExSignature = []byte("NEGOEXTS")                                                 // MS-NEGOEX 2.2.6
	tokenRequest    = []byte{1, 0}                                                       // RFC 4121 4.1
	tokenReply      = []byte{2, 0}
	tokenError      = []byte{3, 0}
)

// offer is what a client sent, freed of its frames.
type offer struct {
	spnego    bool
	mechanism []byte // the first of the list, which the answer names
	list      []byte // the list of mechanisms with its header: what the MIC is over
	mic       []byte
	ticket    []byte // the AP-REQ
}

// readOffer takes the frames off a token. The offer says how to answer, on an error too.
func readOffer(token []byte) (offer, error) {
	if len(token) > maxToken {
		return offer{}, catalog.Errorf(catalog.KerberosTokenTooLarge, "the token has %d bytes, the limit is %d", len(token), maxToken)
	}
	if err := foreign(token); err != nil {
		return offer{}, err
	}
	oid, rest, ok := readFrame(token)
	switch {
	case !ok:
		return offer{}, malformed("the token of %d bytes is no GSS token", len(token))
	case bytes.Equal(oid, oidSPNEGO):
		return readInit(rest)
	}
	o := offer{mechanism: oidKerberos}
	return o, o.readMechanismToken(token)
}

// foreign refuses what begins as another mechanism's message does.
func foreign(token []byte) error {
	switch {
	case bytes.HasPrefix(token, ntlmSignature):
		return catalog.Errorf(catalog.NTLMRefused, "the client sent an NTLM message")
	case bytes.HasPrefix(token, negoExSignature):
		return catalog.Errorf(catalog.NegoExRefused, "the client sent a NegoEx message")
	}
	return nil
}

func malformed(format string, args ...any) error {
	return catalog.Errorf(catalog.KerberosTokenMalformed, format, args...)
}

// readFrame reads the frame of a first token: which mechanism, and its message.
func readFrame(token []byte) (oid, rest []byte, ok bool) {
	input := cryptobyte.String(token)
	var content, mechanism cryptobyte.String
	ok = input.ReadASN1(&content, applicationZero) && input.Empty() && content.ReadASN1(&mechanism, der.OBJECT_IDENTIFIER)
	return mechanism, content, ok
}

// readInit reads a NegTokenInit (RFC 4178 4.2.1).
func readInit(message []byte) (offer, error) {
	o := offer{spnego: true}
	input := cryptobyte.String(message)
	var content, sequence, list, token, mic cryptobyte.String
	var hasToken, hasMIC bool
	ok := input.ReadASN1(&content, field(0)) && input.Empty() &&
		content.ReadASN1(&sequence, der.SEQUENCE) && content.Empty() &&
		sequence.ReadASN1(&list, field(0)) &&
		sequence.SkipOptionalASN1(field(1)) &&
		sequence.ReadOptionalASN1(&token, &hasToken, field(2)) && readOctets(&token, hasToken) &&
		sequence.ReadOptionalASN1(&mic, &hasMIC, field(3)) && readOctets(&mic, hasMIC) &&
		sequence.Empty()
	if !ok {
		return o, malformed("the first message of the negotiation cannot be read")
	}
	if err := o.readMechanisms(list); err != nil {
		return o, err
	}
	o.mic = mic
	if len(token) == 0 {
		return o, catalog.Errorf(catalog.KerberosTicketMissing, "the client offers Kerberos and sent no ticket with it")
	}
	return o, o.readMechanismToken(token)
}

// readOctets unwraps an OCTET STRING in place.
func readOctets(wrapped *cryptobyte.String, present bool) bool {
	var content cryptobyte.String
	if !present {
		return true
	}
	ok := wrapped.ReadASN1(&content, der.OCTET_STRING) && wrapped.Empty()
	*wrapped = content
	return ok
}

// readMechanisms reads the list. The token that comes with it is for its first
// mechanism, so that one must be ours: an answer that asks for another would need a
// second leg, in which a client could be led to a weaker mechanism.
func (o *offer) readMechanisms(list cryptobyte.String) error {
	o.list = list
	var content cryptobyte.String
	if !list.ReadASN1(&content, der.SEQUENCE) || !list.Empty() {
		return malformed("the list of mechanisms cannot be read")
	}
	var mechanisms [][]byte
	for !content.Empty() {
		var oid cryptobyte.String
		if len(mechanisms) == maxMechanisms || !content.ReadASN1(&oid, der.OBJECT_IDENTIFIER) {
			return malformed("the list of mechanisms cannot be read")
		}
		mechanisms = append(mechanisms, oid)
	}
	if len(mechanisms) == 0 {
		return catalog.Errorf(catalog.KerberosMechanismListEmpty, "the list of mechanisms is empty")
	}
	o.mechanism = mechanisms[0]
	return judgeMechanisms(mechanisms)
}

func judgeMechanisms(mechanisms [][]byte) error {
	switch first := mechanisms[0]; {
	case kerberosMechanism(first):
		return nil
	case bytes.Equal(first, oidNTLM):
		return catalog.Errorf(catalog.NTLMRefused, "the client offers NTLM first")
	case bytes.Equal(first, oidNegoEx):
		return catalog.Errorf(catalog.NegoExRefused, "the client offers NegoEx first")
	case slices.ContainsFunc(mechanisms, kerberosMechanism):
		return catalog.Errorf(catalog.KerberosNotPreferred, "the client offers Kerberos, but another mechanism before it, and sent a token for that one")
	}
	return catalog.Errorf(catalog.KerberosMechanismUnknown, "Kerberos is not among the %d mechanisms that the client offers", len(mechanisms))
}

func kerberosMechanism(oid []byte) bool {
	return bytes.Equal(oid, oidKerberos) || bytes.Equal(oid, oidMSKerberos)
}

// readMechanismToken takes the frame off the krb5 token (RFC 4121 4.1).
func (o *offer) readMechanismToken(token []byte) error {
	if err := foreign(token); err != nil {
		return err
	}
	oid, message, ok := readFrame(token)
	switch {
	case !ok:
		return malformed("the token for Kerberos has no frame that can be read")
	case !kerberosMechanism(oid):
		return catalog.Errorf(catalog.KerberosMechanismUnknown, "the token is for a mechanism other than Kerberos")
	case !bytes.HasPrefix(message, tokenRequest):
		return malformed("the token for Kerberos is not a request")
	}
	o.ticket = message[len(tokenRequest):]
	return nil
}

// States of a negotiation (RFC 4178 4.2.2).
const (
	stateCompleted = 0
	stateReject    = 2
)

// reject returns the answer to a token that is refused: nothing for one that was not a
// negotiation and has no Kerberos error to tell.
func (o *offer) reject(kerberosError []byte) []byte {
	if !o.spnego {
		return kerberosError
	}
	return respond(stateReject, nil, kerberosError, nil)
}

// accept returns the answer that ends the negotiation.
func (o *offer) accept(reply, mic []byte) []byte {
	if !o.spnego {
		return reply
	}
	return respond(stateCompleted, o.mechanism, reply, mic)
}

// respond builds a NegTokenResp (RFC 4178 4.2.2).
func respond(state uint8, mechanism, token, mic []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(field(1), func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(field(0), func(b *cryptobyte.Builder) { addBytes(b, der.ENUM, []byte{state}) })
			addOptional(b, 1, der.OBJECT_IDENTIFIER, mechanism)
			addOptional(b, 2, der.OCTET_STRING, token)
			addOptional(b, 3, der.OCTET_STRING, mic)
		})
	})
	return b.BytesOrPanic() // nothing that it was given can be too long
}

// frame builds a krb5 token.
func frame(kind, message []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(applicationZero, func(b *cryptobyte.Builder) {
		addBytes(b, der.OBJECT_IDENTIFIER, oidKerberos)
		b.AddBytes(kind)
		b.AddBytes(message)
	})
	return b.BytesOrPanic()
}

func addBytes(b *cryptobyte.Builder, tag der.Tag, content []byte) {
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(content) })
}

func addOptional(b *cryptobyte.Builder, number uint8, tag der.Tag, content []byte) {
	if len(content) > 0 {
		b.AddASN1(field(number), func(b *cryptobyte.Builder) { addBytes(b, tag, content) })
	}
}
