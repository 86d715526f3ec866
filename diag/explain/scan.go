package explain

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"postern/logfile"
)

// scanner cuts a text into records without keeping more than one: a line, or the lines of one client record. A line
// longer than the limit comes in pieces, so that a file without line ends is read like any other.
type scanner struct {
	in       io.Reader
	buf      []byte
	from, to int
	line     int   // number of the line at buf[from]
	limit    int   // bytes of one record
	left     int64 // bytes that may still be read
	begun    bool  // the beginning of the file was looked at
	long     bool  // buf[from] goes on a line that was too long for one record
	end      error // why there is no more
}

// newScanner reads with the memory of buf, which is made larger where the limits need it.
func newScanner(in io.Reader, limits Limits, buf []byte) *scanner {
	if need := max(4*limits.Line, 64<<10); len(buf) < need {
		buf = make([]byte, need)
	}
	return &scanner{in: in, buf: buf, line: 1, limit: limits.Line, left: limits.FileBytes}
}

// next returns a record and the number of its first line. The bytes are good until the next call.
func (s *scanner) next() ([]byte, int, error) {
	for !s.begun { // a mark of the encoding is no part of the first record
		if s.to < len(byteOrderMark) && s.end == nil {
			s.fill()
			continue
		}
		s.begun = true
		if bytes.HasPrefix(s.buf[:s.to], byteOrderMark) {
			s.from = len(byteOrderMark)
		}
	}
	for {
		data := s.buf[s.from:s.to]
		end := bytes.IndexByte(data[:min(len(data), s.limit+1)], '\n')
		switch {
		case end >= 0:
			if size, wait := s.whole(data, end); !wait {
				return s.take(data, size)
			}
		case len(data) > s.limit:
			s.long = true
			return s.piece(data)
		case s.end != nil:
			if len(data) == 0 {
				return nil, s.line, s.end
			}
			return s.take(data, len(data))
		}
		s.fill()
	}
}

// take hands out the first bytes of what is read, without the line end that follows them.
func (s *scanner) take(data []byte, size int) ([]byte, int, error) {
	record, number := data[:size], s.line
	s.from += size
	if size < len(data) && data[size] == '\n' {
		s.from++
		s.line++
	}
	if bytes.IndexByte(record, '\n') >= 0 {
		s.line += bytes.Count(record, newLine)
	}
	s.long = false
	return record, number, nil
}

// piece hands out as much of a long line as one record may have, up to where another record begins in it.
func (s *scanner) piece(data []byte) ([]byte, int, error) {
	size := s.limit
	if bytes.Contains(data[1:size], clientStart) { // which is faster than to look from the end
		size = 1 + bytes.LastIndex(data[1:size], clientStart)
	}
	s.from += size
	return data[:size], s.line, nil
}

var (
	newLine     = []byte("\n")
	clientStart = []byte(recordStart)
	clientEnd   = []byte("]LOG]!>")
	clientNext  = []byte("\n" + recordStart)
)

// whole returns the size of the record that begins with the line data[:end]: more than the line when it is a client record
// whose end comes later, before another one begins. It says to wait when that is not known yet.
func (s *scanner) whole(data []byte, end int) (size int, wait bool) {
	if !bytes.HasPrefix(data, clientStart) || bytes.Contains(data[:end], clientEnd) {
		return end, false
	}
	window := data[end:min(len(data), s.limit)]
	next := bytes.Index(window, clientNext)
	if next < 0 && len(data) < s.limit && s.end == nil {
		return 0, true
	}
	if next >= 0 {
		window = window[:next]
	}
	at := bytes.Index(window, clientEnd)
	if at < 0 {
		return end, false
	}
	if rest := bytes.IndexByte(window[at:], '\n'); rest >= 0 {
		return end + at + rest, false
	}
	return end + len(window), false
}

// fill reads on. What is read stays; the end is kept for when it is used up.
func (s *scanner) fill() {
	if s.from > 0 {
		s.to = copy(s.buf, s.buf[s.from:s.to])
		s.from = 0
	}
	for range 100 {
		free := s.buf[s.to:]
		n, err := s.in.Read(free[:min(int64(len(free)), s.left+1)])
		if s.left -= int64(n); s.left < 0 {
			n, err = n-1, fmt.Errorf("%w of bytes", logfile.ErrBudget)
		}
		s.to += n
		if err != nil {
			s.end = err
		}
		if n > 0 || s.end != nil {
			return
		}
	}
	s.end = errors.New("the file gives no bytes and no end")
}
