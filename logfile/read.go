package logfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
)

// ErrBudget ends a reading that met one of its limits.
var ErrBudget = errors.New("log is larger than the limit")

// ReadLimits bound what Read takes from a file.
type ReadLimits struct {
	Bytes   int64 // of the whole file
	Record  int   // bytes of one record; a longer one is cut and given as Plain
	Records int
}

// DefaultReadLimits are enough for the largest files that the product keeps.
func DefaultReadLimits() ReadLimits {
	return ReadLimits{Bytes: 1 << 30, Record: 256 << 10, Records: 10_000_000}
}

// Read yields the records of a log file in their order, whatever mixture of formats it
// holds, without keeping more than one. What fits no format comes as a Plain record
// with the line as its message. The error is nil but for the last pair, which has
// ErrBudget or the reader's error and no record.
func Read(r io.Reader, limits ReadLimits) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		s := scanner{
			lines:  lineReader{in: bufio.NewReaderSize(r, 32<<10), bytes: limits.Bytes, cap: limits.Record},
			limits: limits,
		}
		for records := 0; ; records++ {
			record, err := s.next()
			if err == io.EOF {
				return
			}
			if err == nil && records >= limits.Records {
				err = fmt.Errorf("%w of %d records", ErrBudget, limits.Records)
			}
			if err != nil {
				yield(Record{}, err)
				return
			}
			if !yield(record, nil) {
				return
			}
		}
	}
}

// scanner puts records together from lines.
type scanner struct {
	lines  lineReader
	limits ReadLimits
	fields []string // of the last #Fields line
	ahead  *string  // a line that was read and not used
	line   int      // number of the last line
}

// next returns the next record, or io.EOF.
func (s *scanner) next() (Record, error) {
	for {
		line, err := s.read()
		if err != nil {
			return Record{}, err
		}
		at := s.line
		if s.line == 1 {
			line = strings.TrimPrefix(line, "\ufeff")
		}
		switch {
		case strings.TrimSpace(line) == "":
			continue
		case s.directive(line):
			continue
		case strings.HasPrefix(line, clientStart):
			if line, err = s.whole(line); err != nil {
				return Record{}, err
			}
		}
		record := s.parse(line)
		record.Line = at
		return record, nil
	}
}

func (s *scanner) read() (string, error) {
	if s.ahead != nil {
		line := *s.ahead
		s.ahead = nil
		s.line++
		return line, nil
	}
	line, err := s.lines.next()
	if err == nil {
		s.line++
	}
	return line, err
}

// whole adds lines to a client record until its end. A new beginning, the end of the
// file or the limit ends it early.
func (s *scanner) whole(line string) (string, error) {
	if strings.Contains(line, clientEnd) {
		return line, nil
	}
	var b strings.Builder
	b.WriteString(line)
	for b.Len() < s.limits.Record {
		more, err := s.read()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", err
		}
		if strings.HasPrefix(more, clientStart) {
			s.ahead = &more
			s.line--
			break
		}
		b.WriteByte('\n')
		b.WriteString(more)
		if strings.Contains(more, clientEnd) {
			break
		}
	}
	return b.String(), nil
}

// directive says whether the line is a header line of a W3C file, and keeps the order
// of fields that it declares.
func (s *scanner) directive(line string) bool {
	name, value, found := strings.Cut(line, ":")
	if !found || !slices.Contains(directives, name) {
		return false
	}
	if names := strings.Fields(value); name == "#Fields" && len(names) > 0 && len(names) <= 64 {
		s.fields = names
	}
	return true
}

// directives of the W3C extended log file format.
var directives = []string{"#Software", "#Version", "#Date", "#Fields", "#Start-Date", "#End-Date", "#Remark"}

func (s *scanner) parse(line string) Record {
	if s.fields != nil {
		if record, err := parseAccess(line, s.fields); err == nil {
			return record
		}
	}
	record, err := ParseLine(line)
	if err != nil {
		return Record{Format: Plain, Message: line}
	}
	return record
}

// lineReader gives lines without their ends, each cut at cap bytes.
type lineReader struct {
	in    *bufio.Reader
	bytes int64 // that may still be read
	cap   int
}

func (l *lineReader) next() (string, error) {
	var line []byte
	for started := false; ; started = true {
		part, err := l.in.ReadSlice('\n')
		if l.bytes -= int64(len(part)); l.bytes < 0 {
			return "", fmt.Errorf("%w of bytes", ErrBudget)
		}
		line = append(line, part[:min(len(part), max(l.cap-len(line), 0))]...)
		switch {
		case err == nil:
			return strings.TrimRight(string(line), "\r\n"), nil
		case err == bufio.ErrBufferFull:
			continue
		case err == io.EOF && (started || len(part) > 0):
			return strings.TrimRight(string(line), "\r\n"), nil
		}
		return "", err
	}
}
