package ccm

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"encoding/binary"
	"hash/adler32"
	"io"
	"slices"
	"sync"

	"postern/catalog"
)

// RatioFloor is how many bytes may be unpacked before [Limits.Ratio] counts: small
// messages of many zeros are honest.
const RatioFloor = 64 << 10

// inflate unpacks one zlib stream (RFC 1950) as far as the limits allow; what follows
// the stream is ignored. Memory grows with what comes out, not with what was promised,
// and the ratio is judged by what has been read so far: a bomb ends after its first
// pieces, however long it is.
func inflate(packed []byte, lim Limits) ([]byte, error) {
	source := bytes.NewReader(packed) // a ByteReader, so that flate reads no further than it unpacks
	reader, err := zlib.NewReader(source)
	if err != nil {
		return nil, catalog.Wrap(catalog.InflateMalformed, err, "not a zlib stream")
	}
	content := make([]byte, 0, min(4*len(packed)+512, RatioFloor))
	for {
		if len(content) == cap(content) {
			content = slices.Grow(content, len(content)/2)
		}
		n, err := reader.Read(content[len(content):cap(content)])
		content = content[:len(content)+n]
		budget := min(lim.Inflated, max(RatioFloor, int64(lim.Ratio)*int64(len(packed)-source.Len())))
		switch {
		case int64(len(content)) > budget:
			return nil, catalog.Errorf(catalog.InflateBudget, "%d of %d bytes unpack to more than %d", len(packed)-source.Len(), len(packed), budget)
		case err == io.EOF:
			return content, nil
		case err != nil:
			return nil, catalog.Wrap(catalog.InflateMalformed, err, "a damaged zlib stream")
		}
	}
}

// deflaters keeps compressors of the default level for their 800 KB of tables, which
// take twenty times as long to make as a reply takes to compress. It holds no state.
var deflaters = sync.Pool{New: func() any { return newDeflater(flate.DefaultCompression) }}

func newDeflater(level int) *flate.Writer {
	w, err := flate.NewWriter(nil, level)
	if err != nil {
		panic("ccm: " + err.Error()) // the levels are constants
	}
	return w
}

// deflate packs content as one zlib stream.
func deflate(content []byte) []byte {
	return sealZlib(deflateBlocks(zlibHeader(), content, flate.DefaultCompression), content)
}

// deflateClean packs content as one zlib stream without the bytes 0D 0A, at which some
// clients cut a reply (protocol.md 12). A long stream nearly always has them, so what
// has them is packed again in pieces, each with the first level that avoids them.
// It reports false when none does, or when the checksum has them.
func deflateClean(content []byte) ([]byte, bool) {
	if packed := deflate(content); clean(packed) {
		return packed, true
	}
	packed := zlibHeader()
	for rest := content; len(rest) > 0; {
		longer, n := cleanPiece(packed, rest)
		if n == 0 {
			return nil, false
		}
		packed, rest = longer, rest[n:]
	}
	packed = sealZlib(packed, content)
	return packed, clean(packed)
}

// cleanPiece appends a beginning of rest to packed, as long a one as it can without
// 0D 0A, and returns how long it was, 0 when it could not.
func cleanPiece(packed, rest []byte) ([]byte, int) {
	for size := 32 << 10; size >= 64; size /= 2 {
		n := min(size, len(rest))
		for _, level := range []int{flate.DefaultCompression, flate.BestSpeed, flate.HuffmanOnly, flate.NoCompression} {
			piece := deflateBlocks(nil, rest[:n], level)
			if clean(piece) && !(bytes.HasSuffix(packed, []byte("\r")) && bytes.HasPrefix(piece, []byte("\n"))) {
				return append(packed, piece...), n
			}
		}
	}
	return nil, 0
}

// deflateBlocks appends content to packed as deflate blocks that end at a byte's edge.
func deflateBlocks(packed, content []byte, level int) []byte {
	out := bytes.NewBuffer(packed)
	w := newOrPooled(level)
	w.Reset(out)
	w.Write(content) // a buffer takes everything
	w.Flush()
	if level == flate.DefaultCompression {
		deflaters.Put(w)
	}
	return out.Bytes()
}

func newOrPooled(level int) *flate.Writer {
	if level == flate.DefaultCompression {
		return deflaters.Get().(*flate.Writer)
	}
	return newDeflater(level)
}

// zlibHeader begins a stream: deflate with a window of 32 KiB, default level.
func zlibHeader() []byte { return []byte{0x78, 0x9C} }

// sealZlib ends a stream: an empty last block and the checksum of content.
func sealZlib(packed, content []byte) []byte {
	packed = append(packed, 0x01, 0x00, 0x00, 0xFF, 0xFF)
	return binary.BigEndian.AppendUint32(packed, adler32.Checksum(content))
}

func clean(packed []byte) bool { return !bytes.Contains(packed, []byte("\r\n")) }
