package inbox

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A segment is a file of frames. A frame is the length of its content (4 bytes, little endian), the CRC-32C of the content (4 bytes), and the
// content: the length of the head (4 bytes), the head as JSON, and the message as it was received.

const (
	frameHead = 8
	// MaxMessage is the largest message that a record may hold.
	MaxMessage = 16 << 20
	maxFrame   = MaxMessage + 1<<20
)

// errDamaged says that a segment goes on with bytes that are no whole record: a crash cut it off, or the disk changed it.
var errDamaged = errors.New("bytes that are no record")

// head is everything of a record but its message.
type head struct {
	Record
	Message []byte `json:",omitempty"` // hides Record.Message: it follows the head as it is
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // made once by the library

// appendFrame adds the record to b.
func appendFrame(b []byte, r Record) ([]byte, error) {
	text, err := json.Marshal(head{Record: r})
	if err != nil {
		return b, fmt.Errorf("encode record %s: %w", r.ID, err)
	}
	start := len(b)
	b = append(b, make([]byte, frameHead)...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	b = append(b, text...)
	b = append(b, r.Message...)
	content := b[start+frameHead:]
	binary.LittleEndian.PutUint32(b[start:], uint32(len(content)))
	binary.LittleEndian.PutUint32(b[start+4:], crc32.Checksum(content, castagnoli()))
	return b, nil
}

// readFrame reads the next record and the number of bytes that its frame takes. The error is io.EOF at the end of the segment, errDamaged
// when the frame is cut off or wrong. With errDamaged comes the size of a frame that is all there: when only its content is wrong, the next one
// follows it. Nothing is searched for in between, since a message may hold bytes that look like a record.
func readFrame(r io.Reader) (Record, int64, error) {
	var prefix [frameHead]byte
	switch _, err := io.ReadFull(r, prefix[:]); {
	case err == io.EOF:
		return Record{}, 0, io.EOF
	case err == io.ErrUnexpectedEOF:
		return Record{}, 0, errDamaged
	case err != nil:
		return Record{}, 0, err
	}
	length := binary.LittleEndian.Uint32(prefix[:])
	if length < 4 || length > maxFrame {
		return Record{}, 0, errDamaged
	}
	content, err := io.ReadAll(io.LimitReader(r, int64(length))) // grows with what is there, not with what the length claims
	if err != nil {
		return Record{}, 0, err
	}
	if len(content) < int(length) {
		return Record{}, 0, errDamaged
	}
	if crc32.Checksum(content, castagnoli()) != binary.LittleEndian.Uint32(prefix[4:]) {
		return Record{}, frameHead + int64(length), errDamaged
	}
	record, err := decodeContent(content)
	return record, frameHead + int64(length), err
}

func decodeContent(content []byte) (Record, error) {
	size := binary.LittleEndian.Uint32(content)
	if uint64(size) > uint64(len(content)-4) {
		return Record{}, errDamaged
	}
	var h head
	if err := json.Unmarshal(content[4:4+size], &h); err != nil {
		return Record{}, errDamaged
	}
	h.Record.Message = append([]byte(nil), content[4+size:]...)
	return h.Record, nil
}
