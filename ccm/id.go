package ccm

import (
	"fmt"
	"io"
	"strings"
	"time"

	"postern/catalog"
)

// ClientID is the id that a site gives a device: "GUID:" and a uuid, in upper case.
// Clients sign the upper-case form whatever they were given (protocol.md 2.4), so no
// other form exists here: make one with [ParseClientID], [NewClientID] or [NextClientID].
type ClientID string

const clientIDPrefix = "GUID:"

// ParseClientID reads "GUID:" and a uuid in any case and returns the upper-case form.
// Anything else, braces and surrounding space included, is [catalog.ClientIDMalformed]:
// this text was once a way into the site's database (protocol.md 2.5).
func ParseClientID(text string) (ClientID, error) {
	if len(text) != len(clientIDPrefix)+36 || !strings.EqualFold(text[:len(clientIDPrefix)], clientIDPrefix) || !isUUID(text[len(clientIDPrefix):]) {
		return "", catalog.Errorf(catalog.ClientIDMalformed, "a client id is GUID: and a uuid")
	}
	return ClientID(strings.ToUpper(text)), nil
}

// NewClientID returns a fresh random id (a version 4 uuid) from 16 bytes of rand.
func NewClientID(rand io.Reader) (ClientID, error) {
	uuid, err := newUUID(rand)
	if err != nil {
		return "", fmt.Errorf("make client id: %w", err)
	}
	return ClientID(clientIDPrefix + uuid), nil
}

// NextClientID returns a fresh id that begins with the time (a version 7 uuid, RFC 9562) from
// 10 bytes of rand. A site gives such ids out: devices that come together then lie together
// in its database, which is cheaper to write.
func NextClientID(now time.Time, rand io.Reader) (ClientID, error) {
	var b [16]byte
	if _, err := io.ReadFull(rand, b[6:]); err != nil {
		return "", fmt.Errorf("make client id: %w", err)
	}
	milli := uint64(now.UnixMilli())
	for at := range 6 {
		b[at] = byte(milli >> (40 - 8*at))
	}
	return ClientID(clientIDPrefix + uuidText(b, 7)), nil
}

// UUID returns the bare uuid in upper case, without "GUID:".
func (id ClientID) UUID() string { return strings.TrimPrefix(string(id), clientIDPrefix) }

// SiteCode is the three-character code of a site, in upper case.
type SiteCode string

// ParseSiteCode reads three letters or digits in any case and returns the upper-case
// form; anything else is [catalog.SiteCodeMalformed].
func ParseSiteCode(text string) (SiteCode, error) {
	if len(text) != 3 || strings.ContainsFunc(text, func(r rune) bool { return !isAlphanumeric(r) }) {
		return "", catalog.Errorf(catalog.SiteCodeMalformed, "a site code is three letters or digits")
	}
	return SiteCode(strings.ToUpper(text)), nil
}

// isUUID reports whether text is 8-4-4-4-12 hexadecimal digits.
func isUUID(text string) bool {
	if len(text) != 36 {
		return false
	}
	for i := range len(text) {
		switch i {
		case 8, 13, 18, 23:
			if text[i] != '-' {
				return false
			}
		default:
			if !isHex(text[i]) {
				return false
			}
		}
	}
	return true
}

// newUUID returns a random version 4 uuid in upper case.
func newUUID(rand io.Reader) (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return "", fmt.Errorf("read random bytes: %w", err)
	}
	return uuidText(b, 4), nil
}

// uuidText writes a uuid of a version in the form of RFC 9562, in upper case.
func uuidText(b [16]byte, version byte) string {
	b[6] = b[6]&0x0F | version<<4
	b[8] = b[8]&0x3F | 0x80
	digits := upperHex(b[:])
	return digits[:8] + "-" + digits[8:12] + "-" + digits[12:16] + "-" + digits[16:20] + "-" + digits[20:]
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func isAlphanumeric(r rune) bool {
	return '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
}
