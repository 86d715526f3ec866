package kerberos

import (
	"encoding/asn1"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"postern/catalog"
)

const (
	maxComponents = 8  // of a principal's name
	maxElements   = 64 // of authorization data, in one list
	maxNesting    = 4  // of authorization data
)

// sealed is an EncryptedData (RFC 4120 5.2.9).
type sealed struct {
	kind    int32 // encryption type
	version int   // of the key; 0 when not said
	data    []byte
}

// request is a KRB_AP_REQ (RFC 4120 5.5.1). Nothing in it is proved yet.
type request struct {
	userToUser          bool
	mutual              bool
	service             string
	realm               string // of the service
	sealedTicket        sealed
	sealedAuthenticator sealed
}

// ticket is an EncTicketPart (RFC 4120 5.3): what the KDC sealed.
type ticket struct {
	invalid     bool
	keyType     int32
	key         []byte
	realm       string // of the client
	client      string
	transitKind int32
	transit     []byte
	authTime    time.Time
	start, end  time.Time
	data        cryptobyte.String // AuthorizationData, empty when there is none
}

// authenticator is what the client sealed with the session key (RFC 4120 5.5.1).
type authenticator struct {
	realm        string
	client       string
	checksumType int32
	checksum     []byte
	time         time.Time
	microseconds int
	subkey       secret // the zero value when there is none
	sequence     uint32
	data         cryptobyte.String
}

// application is the tag of a Kerberos message.
func application(number int) der.Tag { return der.Tag(number) | 0x40 | 0x20 }

// field is the explicit tag of a member.
func field(number uint8) der.Tag { return der.Tag(number).ContextSpecific().Constructed() }

func parseRequest(data []byte) (request, error) {
	var r request
	input := cryptobyte.String(data)
	var message, sequence, options, wrapped, sealedPart cryptobyte.String
	var version, kind int64
	ok := input.ReadASN1(&message, application(asnAppTag.APREQ)) && input.Empty() &&
		message.ReadASN1(&sequence, der.SEQUENCE) && message.Empty() &&
		readNumber(&sequence, 0, &version) && version == iana.PVNO &&
		readNumber(&sequence, 1, &kind) && kind == msgtype.KRB_AP_REQ &&
		sequence.ReadASN1(&options, field(2)) &&
		readOptions(options, &r) &&
		sequence.ReadASN1(&wrapped, field(3)) && readSealedTicket(wrapped, &r) &&
		sequence.ReadASN1(&sealedPart, field(4)) && readSealed(sealedPart, &r.sealedAuthenticator)
	if !ok {
		return request{}, catalog.Errorf(catalog.KerberosRequestMalformed, "the ticket message of %d bytes is not a whole AP-REQ", len(data))
	}
	return r, nil
}

func readOptions(options cryptobyte.String, r *request) bool {
	set, ok := readFlags(&options)
	r.userToUser, r.mutual = set.At(flags.APOptionUseSessionKey) == 1, set.At(flags.APOptionMutualRequired) == 1
	return ok
}

func readSealedTicket(wrapped cryptobyte.String, r *request) bool {
	var message, sequence, part cryptobyte.String
	var version int64
	return wrapped.ReadASN1(&message, application(asnAppTag.Ticket)) && wrapped.Empty() &&
		message.ReadASN1(&sequence, der.SEQUENCE) &&
		readNumber(&sequence, 0, &version) && version == iana.PVNO &&
		readText(&sequence, 1, &r.realm) &&
		readName(&sequence, 2, &r.service) &&
		sequence.ReadASN1(&part, field(3)) && readSealed(part, &r.sealedTicket)
}

func readSealed(wrapped cryptobyte.String, s *sealed) bool {
	var sequence cryptobyte.String
	var kind, version int64
	ok := wrapped.ReadASN1(&sequence, der.SEQUENCE) &&
		readNumber(&sequence, 0, &kind) && int64(int32(kind)) == kind &&
		readOptionalNumber(&sequence, 1, &version) &&
		readBytes(&sequence, 2, &s.data)
	s.kind, s.version = int32(kind), int(uint32(version)) // some KDCs write the version as a signed number
	return ok
}

func parseTicket(plain []byte) (ticket, error) {
	var t ticket
	input := cryptobyte.String(plain)
	var message, sequence, bits, key, transited cryptobyte.String
	var set asn1.BitString
	ok := input.ReadASN1(&message, application(asnAppTag.EncTicketPart)) &&
		message.ReadASN1(&sequence, der.SEQUENCE) &&
		sequence.ReadASN1(&bits, field(0)) &&
		sequence.ReadASN1(&key, field(1)) && readTyped(key, &t.keyType, &t.key) &&
		readText(&sequence, 2, &t.realm) &&
		readName(&sequence, 3, &t.client) &&
		sequence.ReadASN1(&transited, field(4)) && readTyped(transited, &t.transitKind, &t.transit) &&
		readTime(&sequence, 5, &t.authTime) &&
		readOptionalTime(&sequence, 6, &t.start) &&
		readTime(&sequence, 7, &t.end)
	if ok {
		set, ok = readFlags(&bits)
	}
	if ok {
		t.data, ok = readAuthorization(&sequence)
	}
	if !ok {
		return ticket{}, catalog.Errorf(catalog.KerberosRequestMalformed, "what the KDC sealed is not a ticket")
	}
	t.invalid = set.At(flags.Invalid) == 1
	if t.start.IsZero() {
		t.start = t.authTime
	}
	return t, nil
}

// readAuthorization skips renew-till and the addresses.
func readAuthorization(sequence *cryptobyte.String) (data cryptobyte.String, ok bool) {
	var present bool
	ok = sequence.SkipOptionalASN1(field(8)) && sequence.SkipOptionalASN1(field(9)) && sequence.ReadOptionalASN1(&data, &present, field(10))
	return data, ok
}

func parseAuthenticator(plain []byte) (authenticator, error) {
	var a authenticator
	input := cryptobyte.String(plain)
	var message, sequence, checksum, subkey cryptobyte.String
	var version, microseconds, number int64
	var hasChecksum, hasSubkey, hasData bool
	ok := input.ReadASN1(&message, application(asnAppTag.Authenticator)) &&
		message.ReadASN1(&sequence, der.SEQUENCE) &&
		readNumber(&sequence, 0, &version) && version == iana.PVNO &&
		readText(&sequence, 1, &a.realm) &&
		readName(&sequence, 2, &a.client) &&
		sequence.ReadOptionalASN1(&checksum, &hasChecksum, field(3)) &&
		(!hasChecksum || readTyped(checksum, &a.checksumType, &a.checksum)) &&
		readNumber(&sequence, 4, &microseconds) && microseconds >= 0 && microseconds < 1e6 &&
		readTime(&sequence, 5, &a.time) &&
		sequence.ReadOptionalASN1(&subkey, &hasSubkey, field(6)) &&
		(!hasSubkey || readSubkey(subkey, &a.subkey)) &&
		readOptionalNumber(&sequence, 7, &number) &&
		sequence.ReadOptionalASN1(&a.data, &hasData, field(8))
	if !ok {
		return authenticator{}, catalog.Errorf(catalog.KerberosRequestMalformed, "what the client sealed is not an authenticator")
	}
	a.microseconds, a.sequence = int(microseconds), uint32(number)
	a.time = a.time.Add(time.Duration(microseconds) * time.Microsecond)
	return a, nil
}

func readSubkey(wrapped cryptobyte.String, s *secret) bool {
	var kind int32
	var value []byte
	if !readTyped(wrapped, &kind, &value) {
		return false
	}
	made, ok := newSecret(kind, value)
	*s = made
	return ok
}

// eachAuthorization calls visit for every element of authorization data; it returns
// false when the data is broken or too much, or when visit does.
func eachAuthorization(data cryptobyte.String, visit func(kind int32, value []byte) bool) bool {
	var list cryptobyte.String
	if !data.ReadASN1(&list, der.SEQUENCE) || !data.Empty() {
		return false
	}
	for count := 0; !list.Empty(); count++ {
		var kind int32
		var value []byte
		if count == maxElements || !readTypedElement(&list, &kind, &value) || !visit(kind, value) {
			return false
		}
	}
	return true
}

// readTyped reads the shape that keys, checksums, transited realms and authorization
// data share: a number and bytes, in a sequence that fills its wrapping.
func readTyped(wrapped cryptobyte.String, kind *int32, value *[]byte) bool {
	return readTypedElement(&wrapped, kind, value) && wrapped.Empty()
}

func readTypedElement(from *cryptobyte.String, kind *int32, value *[]byte) bool {
	var sequence cryptobyte.String
	var number int64
	ok := from.ReadASN1(&sequence, der.SEQUENCE) && readNumber(&sequence, 0, &number) && int64(int32(number)) == number && readBytes(&sequence, 1, value)
	*kind = int32(number)
	return ok
}

func readNumber(from *cryptobyte.String, tag uint8, number *int64) bool {
	var wrapped cryptobyte.String
	return from.ReadASN1(&wrapped, field(tag)) && wrapped.ReadASN1Integer(number) && wrapped.Empty()
}

func readOptionalNumber(from *cryptobyte.String, tag uint8, number *int64) bool {
	var wrapped cryptobyte.String
	var present bool
	if !from.ReadOptionalASN1(&wrapped, &present, field(tag)) {
		return false
	}
	return !present || wrapped.ReadASN1Integer(number) && wrapped.Empty()
}

func readBytes(from *cryptobyte.String, tag uint8, value *[]byte) bool {
	var wrapped, content cryptobyte.String
	ok := from.ReadASN1(&wrapped, field(tag)) && wrapped.ReadASN1(&content, der.OCTET_STRING) && wrapped.Empty()
	*value = content
	return ok
}

func readText(from *cryptobyte.String, tag uint8, text *string) bool {
	var wrapped, content cryptobyte.String
	ok := from.ReadASN1(&wrapped, field(tag)) && wrapped.ReadASN1(&content, der.GeneralString) && wrapped.Empty()
	*text = string(content)
	return ok
}

// readName reads a PrincipalName as text, its components joined by slashes. A component
// with a slash of its own cannot be told from two then, so it is no name. The type of the
// name says nothing about who it is (RFC 4120 6.2).
func readName(from *cryptobyte.String, tag uint8, name *string) bool {
	var wrapped, sequence, list, components cryptobyte.String
	var kind int64
	ok := from.ReadASN1(&wrapped, field(tag)) && wrapped.ReadASN1(&sequence, der.SEQUENCE) && wrapped.Empty() &&
		readNumber(&sequence, 0, &kind) &&
		sequence.ReadASN1(&list, field(1)) && list.ReadASN1(&components, der.SEQUENCE) && list.Empty() && !components.Empty()
	if !ok {
		return false
	}
	var parts [maxComponents]string
	count := 0
	for ; !components.Empty(); count++ {
		var part cryptobyte.String
		if count == maxComponents || !components.ReadASN1(&part, der.GeneralString) {
			return false
		}
		if parts[count] = string(part); strings.Contains(parts[count], "/") {
			return false
		}
	}
	*name = strings.Join(parts[:count], "/")
	return true
}

func readFlags(from *cryptobyte.String) (asn1.BitString, bool) {
	var set asn1.BitString
	ok := from.ReadASN1BitString(&set) && from.Empty()
	return set, ok
}

func readTime(from *cryptobyte.String, tag uint8, t *time.Time) bool {
	var wrapped, content cryptobyte.String
	return from.ReadASN1(&wrapped, field(tag)) && wrapped.ReadASN1(&content, der.GeneralizedTime) && wrapped.Empty() && parseTime(content, t)
}

func readOptionalTime(from *cryptobyte.String, tag uint8, t *time.Time) bool {
	return !from.PeekASN1Tag(field(tag)) || readTime(from, tag, t)
}

// parseTime reads a KerberosTime, which has one form only: YYYYMMDDHHMMSSZ (RFC 4120 5.2.3).
func parseTime(text []byte, t *time.Time) bool {
	if len(text) != 15 || text[14] != 'Z' {
		return false
	}
	var digits [14]int
	for i := range digits {
		if text[i] < '0' || text[i] > '9' {
			return false
		}
		digits[i] = int(text[i] - '0')
	}
	two := func(i int) int { return 10*digits[i] + digits[i+1] }
	year, month, day, hour, minute, second := 100*two(0)+two(2), two(4), two(6), two(8), two(10), two(12)
	*t = time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC)
	return month >= 1 && month <= 12 && day >= 1 && t.Day() == day && hour < 24 && minute < 60 && second <= 60
}
