package logfile

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Format is the layout of a log file's lines.
type Format int

// The layouts (protocol.md 8.1).
const (
	Plain  Format = iota // a line in none of the layouts; only read, never written
	Client               // <![LOG[message]LOG]!><time="..." ...>
	Server               // message~~  $$<Component><time><thread=N (0xHEX)>
	W3C                  // access log of the web server
)

var formatNames = [...]string{"plain", "client", "server", "w3c"}

// String returns the word for a format.
func (f Format) String() string {
	if f < 0 || int(f) >= len(formatNames) {
		return "format " + strconv.Itoa(int(f))
	}
	return formatNames[f]
}

// Severity is the type number of a client line (protocol.md 8.1). Server lines carry
// none and are read as Info.
type Severity int

// The severities of a client line.
const (
	Info    Severity = 1
	Warning Severity = 2
	Error   Severity = 3
)

// Record is one line of a log file, which may hold several lines of text.
type Record struct {
	Format    Format
	Time      time.Time // to the millisecond, in the zone that the line names
	Severity  Severity
	Component string
	Thread    int
	Context   string        // client format only
	Source    string        // client format only: "file:line"
	Message   string        // line breaks are "\n" in every format
	Access    *AccessRecord // W3C only
	Line      int           // number of the first line in the file, from 1; set by Read
}

// MessageCap is the length in bytes beyond which a message is cut and marked.
const MessageCap = 8 << 10

// Append appends the record's line in its format, with CR LF, to b. A record without
// a time, component or thread is written as it is; [Log] fills them in.
func (r Record) Append(b []byte) []byte {
	switch r.Format {
	case Client:
		return appendClient(b, r)
	case Server:
		return appendServer(b, r)
	case W3C:
		if r.Access != nil {
			return r.Access.append(b)
		}
	}
	b = appendText(b, r.Message, plainText)
	return append(b, "\r\n"...)
}

func appendClient(b []byte, r Record) []byte {
	local, bias := localTime(r.Time)
	b = append(b, "<![LOG["...)
	b = appendText(b, r.Message, clientText)
	b = append(b, `]LOG]!><time="`...)
	b = local.AppendFormat(b, "15:04:05.000")
	b = appendBias(b, bias)
	b = append(b, `" date="`...)
	b = local.AppendFormat(b, "01-02-2006")
	b = append(b, `" component="`...)
	b = append(b, attribute(r.Component)...)
	b = append(b, `" context="`...)
	b = append(b, attribute(r.Context)...)
	b = append(b, `" type="`...)
	b = strconv.AppendInt(b, int64(max(r.Severity, Info)), 10)
	b = append(b, `" thread="`...)
	b = strconv.AppendInt(b, int64(r.Thread), 10)
	b = append(b, `" file="`...)
	b = append(b, attribute(r.Source)...)
	return append(b, "\">\r\n"...)
}

func appendServer(b []byte, r Record) []byte {
	local, bias := localTime(r.Time)
	b = appendText(b, r.Message, serverText)
	b = append(b, "~~  $$<"...)
	b = append(b, attribute(r.Component)...)
	b = append(b, "><"...)
	b = local.AppendFormat(b, "01-02-2006 15:04:05.000")
	b = appendBias(b, bias)
	return fmt.Appendf(b, "><thread=%d (0x%04X)>\r\n", r.Thread, max(r.Thread, 0))
}

// localTime returns t in a zone of whole minutes and its bias: UTC = local + bias
// (protocol.md 8.1), so an hour east of Greenwich is -60.
func localTime(t time.Time) (time.Time, int) {
	_, offset := t.Zone()
	minutes := offset / 60
	if offset%60 != 0 {
		t = t.In(zone(-minutes))
	}
	return t, -minutes
}

// zone returns the location of a bias in minutes.
func zone(bias int) *time.Location {
	if bias == 0 {
		return time.UTC
	}
	return time.FixedZone("", -bias*60)
}

// appendBias appends a sign and at least two digits, as the samples have them: "+00",
// "-60", "+300".
func appendBias(b []byte, bias int) []byte {
	sign := byte('+')
	if bias < 0 {
		sign, bias = '-', -bias
	}
	b = append(b, sign)
	if bias < 10 {
		b = append(b, '0')
	}
	return strconv.AppendInt(b, int64(bias), 10)
}

// text is how one layout writes line breaks, and how it breaks up what a viewer would
// take for the layout itself.
type text struct {
	lineBreak string
	marks     func(string) string
}

var (
	recordMarks = strings.NewReplacer("]LOG]!>", "]LOG]! >", "<![LOG[", "<! [LOG[", "$$<", "$$ <")
	tildes      = strings.NewReplacer("~~", "~ ~", "~\n", "~ \n")

	plainText  = text{lineBreak: `\n`, marks: recordMarks.Replace}
	clientText = text{lineBreak: "\r\n", marks: recordMarks.Replace}
	serverText = text{lineBreak: "~~", marks: func(s string) string {
		return tildes.Replace(tildes.Replace(recordMarks.Replace(s))) // twice, for three in a row
	}}
)

// appendText appends a message as one layout writes it.
func appendText(b []byte, message string, t text) []byte {
	message = Clean(message)
	if strings.ContainsAny(message, "]<$~") {
		message = t.marks(message)
	}
	for {
		before, after, found := strings.Cut(message, "\n")
		b = append(b, before...)
		if !found {
			return b
		}
		b = append(b, t.lineBreak...)
		message = after
	}
}

// Clean returns message as every layout can carry it: line breaks as "\n", control
// characters and characters that reorder text written out (\x1b, \u202e), invalid
// UTF-8 replaced, and what exceeds MessageCap cut and marked.
func Clean(message string) string {
	message = cut(message)
	if !strings.ContainsFunc(message, unsafeRune) && utf8.ValidString(message) {
		return message
	}
	message = strings.ReplaceAll(message, "\r\n", "\n")
	return cut(escape(message, unsafeRune))
}

// cutMark ends a message that was cut; %d is the number of bytes that are missing.
const cutMark = " [... %d bytes cut]"

func cut(message string) string {
	if len(message) <= MessageCap {
		return message
	}
	end := MessageCap - len(cutMark) - 18 // room for the digits of any int
	for end > 0 && !utf8.RuneStart(message[end]) {
		end--
	}
	return message[:end] + fmt.Sprintf(cutMark, len(message)-end)
}

// escape writes the runes that unsafe names as \x or \u.
func escape(s string, unsafe func(rune) bool) string {
	var b strings.Builder
	b.Grow(len(s) + 16)
	for _, r := range s {
		switch {
		case !unsafe(r):
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// unsafeRune is what no log line holds as it is. Line feeds are the layout's matter.
func unsafeRune(r rune) bool {
	if r == '\n' || r == '\t' || r >= ' ' && r < 0x7f {
		return false
	}
	return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029'
}

// unsafeArgument is what no argument of a line holds: as unsafeRune, and line feeds.
func unsafeArgument(r rune) bool { return r == '\n' || unsafeRune(r) }

// attribute returns s as a quoted or bracketed field can carry it.
func attribute(s string) string {
	if !strings.ContainsFunc(s, unsafeAttribute) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if unsafeAttribute(r) {
			return '_'
		}
		return r
	}, s)
}

func unsafeAttribute(r rune) bool {
	return r == '"' || r == '<' || r == '>' || r == '\n' || r == '\t' || r == utf8.RuneError || unsafeRune(r)
}
