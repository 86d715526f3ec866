package explain

import (
	"bytes"
	"encoding/json"
	"io"
	"iter"
	"regexp"
	"strconv"
	"strings"
	"time"

	"postern/logfile"
)

// kind is the form of a line.
type kind int

const (
	plainLine  kind = iota // ccmsetup text, copies out of a viewer, anything else
	clientLine             // <![LOG[...]LOG]!>
	serverLine             // text  $$<Component><time><thread>
	accessLine             // W3C
	eventLine              // our JSON
)

var kindNames = [...]string{"plain text", "client format", "server format", "access log", "JSON events"}

// line is one record of a log file.
type line struct {
	file      string
	number    int // of its first line in the file, from 1
	kind      kind
	time      time.Time // zero when the line has none
	severity  logfile.Severity
	component string
	text      string // the message, or the whole line where nothing frames it
	low       string // text in lower case
	access    *logfile.AccessRecord
	event     *event
	before    *line  // of an HTTP error without an address: the line before it that has one
	host      string // ... of a line that is kept: the host of that one
}

// event is one line of our JSON logs. Only what the rules use is kept.
type event struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"`
	Msg     string    `json:"msg"`
	Role    string    `json:"role"`
	Code    string    `json:"code"`
	Act     string    `json:"act"`
	Address string    `json:"address"`
	Route   string    `json:"route"`
	Status  int       `json:"status"`
	Trace   string    `json:"trace_id"`
	Message string    `json:"message_id"`
}

// lines yields the lines of a text, all of them. The error is nil but for the last pair.
func lines(name string, r io.Reader, limits Limits) iter.Seq2[line, error] {
	return func(yield func(line, error) bool) {
		s := newScanner(r, limits, nil)
		for {
			record, number, err := s.next()
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(line{}, err)
				return
			}
			for _, l := range fromRecord(name, number, trimmed(record)) {
				if !yield(l, nil) {
					return
				}
			}
		}
	}
}

// trimmed is a record without the blanks and zero bytes around it; a log torn by a crash has a tail of zero bytes.
func trimmed(record []byte) []byte {
	if len(record) >= len(gap) && record[0] == 0 && bytes.Count(record, gap[:1]) == len(record) {
		return nil // a hole in the file
	}
	begin, end := 0, len(record)
	for begin < end && (record[begin] == 0 || record[begin] == '\n' || record[begin] == '\r') {
		begin++
	}
	for begin < end && (record[end-1] == 0 || record[end-1] == '\n' || record[end-1] == '\r' || record[end-1] == ' ') {
		end--
	}
	return bytes.TrimPrefix(record[begin:end], byteOrderMark)
}

var byteOrderMark = []byte("\ufeff")

// kindOf tells the form of a record by its beginning and its end.
func kindOf(record []byte) kind {
	switch {
	case len(record) == 0:
		return plainLine
	case record[0] == '<' && bytes.HasPrefix(record, clientStart) && bytes.Contains(record, clientEnd):
		return clientLine
	case record[0] == '{' && bytes.Contains(record, eventMessage):
		return eventLine
	case record[len(record)-1] == '>' && bytes.Contains(record[max(0, len(record)-160):], serverMark):
		return serverLine
	case len(record) > 19 && record[4] == '-' && record[7] == '-' && record[10] == ' ' && record[13] == ':':
		return accessLine
	}
	return plainLine
}

var (
	eventMessage = []byte(`"msg"`)
	serverMark   = []byte("$$<")
)

// fromRecord turns a record into lines; what the formats did not fit is looked at again, part by part.
func fromRecord(name string, number int, raw []byte) []line {
	if record, err := logfile.ParseLine(string(raw)); err == nil && (record.Format != logfile.Client || bytes.Count(raw, clientStart) == 1) {
		record.Line = number
		return []line{framed(name, record)}
	}
	var all []line
	for text := range strings.Lines(string(raw)) {
		all = append(all, unframed(name, number, strings.TrimRight(text, "\r\n"))...)
		number++
	}
	return all
}

var kinds = map[logfile.Format]kind{logfile.Client: clientLine, logfile.Server: serverLine, logfile.W3C: accessLine}

func framed(name string, record logfile.Record) line {
	l := line{file: name, number: record.Line, kind: kinds[record.Format], time: record.Time, severity: record.Severity,
		component: record.Component, text: record.Message, access: record.Access}
	l.low = lower(l.text)
	return l
}

// unframed reads a line that is in no format as a whole: JSON, several records run together, the rest of a torn one,
// a copy out of a document.
func unframed(name string, number int, text string) []line {
	text = strings.Trim(text, "\x00")
	if l, ok := parseEvent(text); ok {
		l.file, l.number = name, number
		return []line{l}
	}
	var all []line
	for _, part := range split(text) {
		l := line{file: name, number: number, text: part}
		if record, err := logfile.ParseLine(part); err == nil {
			record.Line = number
			l = framed(name, record)
		} else if access, ok := parseFragment(part); ok {
			l.kind, l.access, l.time = accessLine, &access, access.Time
		} else {
			l.text = strings.TrimPrefix(part, recordStart)
			l.time = leadingTime(l.text)
		}
		l.low = lower(l.text)
		all = append(all, l)
	}
	return all
}

const recordStart = "<![LOG["

// recordBegin is where a record can begin inside a line: a client record, or the date of an access record; a bare carriage
// return ends a line as well.
var recordBegin = regexp.MustCompile(`<!\[LOG\[|\r|\b[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} [^ ]+ [^ ]+ /?[A-Z]`)

// split cuts a line before every record that begins in its middle; S0 has two access records on one line.
func split(text string) []string {
	if len(text) < len(recordStart) {
		return []string{text}
	}
	var parts []string
	from := 0
	for _, found := range recordBegin.FindAllStringIndex(text, -1) {
		if part := strings.TrimSpace(text[from:found[0]]); part != "" {
			parts = append(parts, part)
		}
		from = found[0]
	}
	return append(parts, strings.TrimSpace(text[from:]))
}

// parseEvent reads a line of our JSON logs: an object with a time, a level and a message.
func parseEvent(text string) (line, bool) {
	if !strings.HasPrefix(text, "{") || !strings.Contains(text, `"msg"`) {
		return line{}, false
	}
	var e event
	if err := json.Unmarshal([]byte(text), &e); err != nil && e.Time.IsZero() {
		return line{}, false
	}
	if e.Time.IsZero() || e.Level == "" || e.Msg == "" {
		return line{}, false
	}
	return line{kind: eventLine, time: e.Time, severity: eventSeverity[e.Level], component: e.Role, text: text, low: lower(text), event: &e}, true
}

var eventSeverity = map[string]logfile.Severity{"DEBUG": logfile.Info, "INFO": logfile.Info, "WARN": logfile.Warning, "ERROR": logfile.Error}

// fragment is an access record as documents quote it (S1:L36-42, S4:L115-118): without a date, with a placeholder or two,
// or with more numbers at its end than our own files have.
var fragment = regexp.MustCompile(`(?:^|[ >])(CCM_POST|BITS_POST|GET|HEAD|POST|PUT|PROPFIND) (/[^ ]*) ([^ ]+) ([0-9]{1,5}|<[^<>]{1,40}>) ` +
	`(-|<[^<>]{1,60}>|[^ <>]+) (?:(<[^<>]{1,60}>|[0-9a-fA-F.:]{2,45}) )?([^ ]+) (?:(?:-|https?://[^ ]+) )?([1-5][0-9]{2}) ([0-9]{1,4}) ([0-9]{1,10})(?: [0-9]+){0,4}\s*$`)

func parseFragment(text string) (logfile.AccessRecord, bool) {
	if !strings.Contains(text, " /") {
		return logfile.AccessRecord{}, false
	}
	found := fragment.FindStringSubmatch(text)
	if found == nil {
		return logfile.AccessRecord{}, false
	}
	r := logfile.AccessRecord{Method: found[1], Stem: found[2], Query: found[3], Username: found[5], ClientAddress: found[6], UserAgent: found[7]}
	r.Time = leadingTime(text)
	if r.ClientAddress == "" { // "- <address> agent", or an account left out
		r.Username, r.ClientAddress = "", r.Username
	}
	if r.Username == "-" {
		r.Username = ""
	}
	r.Port, _ = strconv.Atoi(found[4])
	r.Status, _ = strconv.Atoi(found[8])
	r.SubStatus, _ = strconv.Atoi(found[9])
	windows, _ := strconv.ParseUint(found[10], 10, 32)
	r.Windows = uint32(windows)
	return r, true
}

// leadingTime reads the time at the beginning of a plain line, where there is one, as UTC.
func leadingTime(text string) time.Time {
	if len(text) == 0 || (text[0] < '0' || text[0] > '9') && text[0] != '[' && text[0] != '<' {
		return time.Time{}
	}
	if text[0] == '[' { // [thread, process][time] of the console
		at := strings.Index(text[:min(len(text), 40)], "][")
		text = text[at+1:]
	}
	text = strings.TrimLeft(text, "[<")
	for _, layout := range plainTimes {
		if len(text) < len(layout) {
			continue
		}
		if at, err := time.Parse(layout, text[:len(layout)]); err == nil {
			return at
		}
	}
	return time.Time{}
}

var plainTimes = []string{"2006-01-02 15:04:05", "2006-01-02T15:04:05", "01-02-2006 15:04:05", "01/02/2006 15:04:05", "02.01.2006 15:04:05", "01/02/06 15:04:05"}
