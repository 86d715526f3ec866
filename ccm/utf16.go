package ccm

import (
	"encoding/binary"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"postern/catalog"
)

// decodeUTF16 decodes little-endian UTF-16 as peers send it: a byte order mark is
// dropped (FE FF means big-endian), an odd last byte is dropped, and a surrogate
// without its pair becomes U+FFFD, one for each unit, so that [rawUTF16] can find
// the bytes of any slice of the text again.
func decodeUTF16(b []byte) string {
	b, order := cutByteOrderMark(b)
	var text strings.Builder // gives its memory away, so that a large body is not copied once more
	text.Grow(len(b) / 2)
	for ; len(b) >= 2; b = b[2:] {
		unit := order.Uint16(b)
		if unit < utf8.RuneSelf {
			text.WriteByte(byte(unit))
			continue
		}
		r := rune(unit)
		if utf16.IsSurrogate(r) {
			r = utf8.RuneError
			if len(b) >= 4 {
				if pair := utf16.DecodeRune(rune(unit), rune(order.Uint16(b[2:]))); pair != utf8.RuneError {
					r, b = pair, b[2:]
				}
			}
		}
		text.WriteRune(r)
	}
	return text.String()
}

// checkPairs refuses text in which, before its first NUL, a surrogate stands without its
// pair: two different texts would read the same (threat C103). Code: XMLMalformed.
func checkPairs(b []byte) error {
	b, order := cutByteOrderMark(b)
	high := 1 // where the upper byte of a unit is
	if order == binary.BigEndian {
		high = 0
	}
	for at := 0; at+1 < len(b); at += 2 {
		switch {
		case b[at] == 0 && b[at+1] == 0:
			return nil
		case b[at+high]&0xF8 != 0xD8:
		case b[at+high]&0xFC == 0xD8 && at+3 < len(b) && b[at+2+high]&0xFC == 0xDC:
			at += 2
		default:
			return catalog.Errorf(catalog.XMLMalformed, "half a surrogate pair at character %d", at/2+1)
		}
	}
	return nil
}

// encodeUTF16 encodes text as little-endian UTF-16 without byte order mark or NUL.
func encodeUTF16(text string) []byte {
	b := make([]byte, 0, 2*len(text)+4) // and room for the terminator
	for _, r := range text {
		if r < utf8.RuneSelf {
			b = append(b, byte(r), 0)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			b = binary.LittleEndian.AppendUint16(b, unit)
		}
	}
	return b
}

// encodeUTF16Z is encodeUTF16 with the final U+0000 that signed strings and bodies have.
func encodeUTF16Z(text string) []byte { return append(encodeUTF16(text), 0, 0) }

// rawUTF16 returns the bytes of body that were decoded to text[start:end], where text
// is decodeUTF16(body) or a prefix of it: the exact bytes that a sender signed.
func rawUTF16(body []byte, text string, start, end int) []byte {
	body, _ = cutByteOrderMark(body)
	from := 2 * utf16Units(text[:start])
	return body[from : from+2*utf16Units(text[start:end])]
}

// trimText cuts what senders leave behind a body: everything from the first NUL, the
// two bytes 0D 0A read as one character, and white space (protocol.md 2.1, 12).
func trimText(text string) string {
	text, _, _ = strings.Cut(text, "\x00")
	text = strings.TrimRight(text, " \t\r\n")
	return strings.TrimRight(strings.TrimSuffix(text, "\u0a0d"), " \t\r\n")
}

func cutByteOrderMark(b []byte) ([]byte, binary.ByteOrder) {
	switch {
	case len(b) >= 2 && b[0] == 0xFF && b[1] == 0xFE:
		return b[2:], binary.LittleEndian
	case len(b) >= 2 && b[0] == 0xFE && b[1] == 0xFF:
		return b[2:], binary.BigEndian
	}
	return b, binary.LittleEndian
}

func utf16Units(text string) int {
	units := 0
	for _, r := range text {
		units++
		if r >= 0x10000 {
			units++
		}
	}
	return units
}
