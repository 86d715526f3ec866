package explain

import (
	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/unicode"
)

type decoder = encoding.Encoding

// The two orders of UTF-16. What is no character becomes U+FFFD.
var (
	littleEndian decoder = unicode.UTF16(unicode.LittleEndian, unicode.UseBOM)
	bigEndian    decoder = unicode.UTF16(unicode.BigEndian, unicode.UseBOM)
)

var marksOfOrder = []struct {
	bytes    []byte
	encoding decoder
}{
	{[]byte{0xff, 0xfe}, littleEndian},
	{[]byte{0xfe, 0xff}, bigEndian},
}
