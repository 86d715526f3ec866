package explain

import (
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
	access    *logfile.AccessRecord
	event     *event
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

// lines yields the records of a text. The error is nil but for the last pair.
func lines(name string, r io.Reader, limits Limits) iter.Seq2[line, error] {
	return func(yield func(line, error) bool) {
		budget := logfile.ReadLimits{Bytes: limits.FileBytes, Record: limits.Line, Records: limits.Lines}
		for record, err := range logfile.Read(r, budget) {
			if err != nil {
				yield(line{}, err)
				return
			}
			for _, l := range fromRecord(name, record) {
				if !yield(l, nil) {
					return
				}
			}
		}
	}
}

// fromRecord turns a record into lines; what the formats did not fit is looked at again, part by part.
func fromRecord(name string, record logfile.Record) []line {
	if record.Format != logfile.Plain {
		return []line{framed(name, record)}
	}
	var all []line
	number := record.Line
	for text := range strings.Lines(record.Message) {
		all = append(all, unframed(name, number, strings.TrimRight(text, "\r\n"))...)
		number++
	}
	return all
}

var kinds = map[logfile.Format]kind{logfile.Client: clientLine, logfile.Server: serverLine, logfile.W3C: accessLine}

func framed(name string, record logfile.Record) line {
	return line{file: name, number: record.Line, kind: kinds[record.Format], time: record.Time, severity: record.Severity,
		component: record.Component, text: record.Message, access: record.Access}
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
		all = append(all, l)
	}
	return all
}

const recordStart = "<![LOG["

// recordBegin is where a record can begin inside a line: a client record, or the date of an access record.
var recordBegin = regexp.MustCompile(`<!\[LOG\[|\b[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} [^ ]+ [^ ]+ /?[A-Z]`)

// split cuts a line before every record that begins in its middle; S0 has two access records on one line.
func split(text string) []string {
	if len(text) < len(recordStart) {
		return []string{text}
	}
	var parts []string
	from := 0
	for _, found := range recordBegin.FindAllStringIndex(text, 64) {
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
	return line{kind: eventLine, time: e.Time, severity: eventSeverity[e.Level], component: e.Role, text: text, event: &e}, true
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

var plainTimes = []string{"2006-01-02 15:04:05", "2006-01-02T15:04:05", "01-02-2006 15:04:05", "01/02/2006 15:04:05"}
