package logfile

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// ErrFormat is returned for text that is a line in none of the layouts.
var ErrFormat = errors.New("not a line of a known log format")

// ParseLine reads one record of any of the formats of protocol.md 8.1: the text of one
// line, or of several when a client record holds line breaks. W3C lines are read in
// the field order of IIS 7 or IIS 6; for files with a #Fields line use [Read].
// It is lenient about what viewers are lenient about: missing attributes, the number
// of digits of a bias, the end of a line. Whatever it returns, Message is safe to
// write again but not more trustworthy than the file.
func ParseLine(line string) (Record, error) {
	line = strings.TrimRight(line, "\r\n")
	switch {
	case strings.HasPrefix(line, clientStart):
		return parseClient(line)
	case strings.Contains(line, serverMark):
		if record, err := parseServer(line); err == nil {
			return record, nil
		}
	}
	return parseAccess(line, defaultFields(line))
}

const (
	clientStart = "<![LOG["
	clientEnd   = "]LOG]!>"
	serverMark  = "$$<"
)

func parseClient(line string) (Record, error) {
	message, rest, found := strings.Cut(line[len(clientStart):], clientEnd)
	if !found || !strings.HasPrefix(rest, "<") {
		return Record{}, ErrFormat
	}
	attributes, ok := parseAttributes(rest[1:])
	if !ok {
		return Record{}, ErrFormat
	}
	at, err := parseTime(attributes["date"] + " " + attributes["time"])
	if err != nil {
		return Record{}, ErrFormat
	}
	return Record{
		Format:    Client,
		Time:      at,
		Severity:  parseSeverity(attributes["type"]),
		Component: attributes["component"],
		Context:   attributes["context"],
		Thread:    number[int](attributes["thread"]),
		Source:    attributes["file"],
		Message:   strings.ReplaceAll(message, "\r\n", "\n"),
	}, nil
}

func parseSeverity(s string) Severity {
	if severity := Severity(number[int](s)); severity >= Info && severity <= Error {
		return severity
	}
	return Info
}

// parseAttributes reads name="value" pairs up to ">". Unknown names are kept, at most
// 16 of them.
func parseAttributes(s string) (map[string]string, bool) {
	attributes := map[string]string{}
	for len(attributes) <= 16 {
		s = strings.TrimLeft(s, " ")
		if strings.HasPrefix(s, ">") {
			return attributes, true
		}
		name, rest, found := strings.Cut(s, `="`)
		if !found {
			return nil, false
		}
		value, rest, found := strings.Cut(rest, `"`)
		if !found {
			return nil, false
		}
		attributes[name] = value
		s = rest
	}
	return nil, false
}

// parseServer reads the last mark of the line, because a message may quote others.
func parseServer(line string) (Record, error) {
	at := strings.LastIndex(line, serverMark)
	message, fields := line[:at], strings.Split(strings.TrimRight(line[at+len(serverMark):], " \t"), "><")
	if len(fields) != 3 || !strings.HasSuffix(fields[2], ">") {
		return Record{}, ErrFormat
	}
	when, err := parseTime(fields[1])
	if err != nil {
		return Record{}, ErrFormat
	}
	thread, found := strings.CutPrefix(strings.TrimSuffix(fields[2], ">"), "thread=")
	if !found {
		return Record{}, ErrFormat
	}
	thread, _, _ = strings.Cut(thread, " ")
	return Record{
		Format:    Server,
		Time:      when,
		Severity:  Info,
		Component: fields[0],
		Thread:    number[int](thread),
		Message:   serverMessage(message),
	}, nil
}

// serverMessage turns the layout's line breaks into "\n". A single "~" inside is kept:
// short path names hold it.
func serverMessage(s string) string {
	s = strings.TrimSuffix(s, "  ")
	if trimmed, ok := strings.CutSuffix(s, "~~"); ok {
		s = trimmed
	} else {
		s = strings.TrimSuffix(s, "~")
	}
	return strings.ReplaceAll(s, "~~", "\n")
}

// parseTime reads "MM-dd-yyyy HH:mm:ss.fff" with a bias in minutes at its end:
// UTC = local + bias.
func parseTime(s string) (time.Time, error) {
	bias, digits := 0, strings.LastIndexAny(s, "+-")
	if digits > len("MM-dd-yyyy") {
		minutes, err := strconv.ParseInt(s[digits:], 10, 16)
		if err != nil || minutes < -24*60 || minutes > 24*60 {
			return time.Time{}, ErrFormat
		}
		bias, s = int(minutes), s[:digits]
	}
	return time.ParseInLocation("1-2-2006 15:04:05.999999999", s, zone(bias))
}

// number reads a decimal number, or 0 for what is none or does not fit.
func number[T int | int64 | uint32](s string) T {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || int64(T(n)) != n {
		return 0
	}
	return T(n)
}

// The field orders of W3C lines without a #Fields line (protocol.md 8.1).
var (
	iis6Fields = strings.Fields("date time s-sitename s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username c-ip " +
		"cs(User-Agent) sc-status sc-substatus sc-win32-status")
	iis7Fields = strings.Fields(accessFields)
)

// defaultFields tells IIS 6 from IIS 7 by the third field: a site name or an address.
func defaultFields(line string) []string {
	parts := strings.SplitN(line, " ", 4)
	if len(parts) < 4 {
		return iis7Fields
	}
	if _, err := netip.ParseAddr(parts[2]); err != nil && parts[2] != "-" {
		return iis6Fields
	}
	return iis7Fields
}

// parseAccess reads a W3C line by its field names. At least date, time, method, stem
// and status must be there; fields that are not ours are skipped.
func parseAccess(line string, fields []string) (Record, error) {
	values := strings.Fields(line)
	if len(values) < 5 || len(values) > len(fields) {
		return Record{}, ErrFormat
	}
	var (
		access AccessRecord
		clock  [2]string
		seen   int
	)
	for i, value := range values {
		if value == "-" {
			value = ""
		}
		switch name := fields[i]; name {
		case "date":
			clock[0] = value
		case "time":
			clock[1] = value
		default:
			if set, ok := accessSetters[name]; ok {
				set(&access, value)
				seen++
			}
		}
	}
	at, err := time.Parse("2006-01-02 15:04:05", clock[0]+" "+clock[1])
	if err != nil || seen < 3 || access.Method == "" || access.Stem == "" || access.Status < 100 || access.Status > 999 {
		return Record{}, ErrFormat
	}
	access.Time = at
	return Record{Format: W3C, Time: at, Severity: Info, Message: line, Access: &access}, nil
}

// accessSetters say where the value of a W3C field goes. Texts stay as they are
// written, "+" for a blank included, because a "+" of the value looks the same.
var accessSetters = map[string]func(*AccessRecord, string){
	"s-ip":            func(r *AccessRecord, v string) { r.ServerAddress = v },
	"cs-method":       func(r *AccessRecord, v string) { r.Method = v },
	"cs-uri-stem":     func(r *AccessRecord, v string) { r.Stem = v },
	"cs-uri-query":    func(r *AccessRecord, v string) { r.Query = v },
	"s-port":          func(r *AccessRecord, v string) { r.Port = number[int](v) },
	"cs-username":     func(r *AccessRecord, v string) { r.Username = v },
	"c-ip":            func(r *AccessRecord, v string) { r.ClientAddress = v },
	"cs(User-Agent)":  func(r *AccessRecord, v string) { r.UserAgent = v },
	"cs(Referer)":     func(r *AccessRecord, v string) { r.Referer = v },
	"sc-status":       func(r *AccessRecord, v string) { r.Status = number[int](v) },
	"sc-substatus":    func(r *AccessRecord, v string) { r.SubStatus = number[int](v) },
	"sc-win32-status": func(r *AccessRecord, v string) { r.Windows = number[uint32](v) },
	"sc-bytes":        func(r *AccessRecord, v string) { r.Bytes = number[int64](v) },
	"time-taken":      func(r *AccessRecord, v string) { r.Taken = milliseconds(v) },
}

// milliseconds reads a duration of at most some decades.
func milliseconds(s string) time.Duration {
	return time.Duration(min(max(number[int64](s), 0), 1<<40)) * time.Millisecond
}
