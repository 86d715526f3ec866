package logfile

import (
	"cmp"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// AccessRecord is one line of the W3C access log, in the field order of IIS 7
// (protocol.md 8.1). An empty text is written as "-".
type AccessRecord struct {
	Time          time.Time     // written in UTC, to the second
	ServerAddress string        // s-ip
	Method        string        // cs-method
	Stem          string        // cs-uri-stem
	Query         string        // cs-uri-query: what follows "?"; never a token
	Port          int           // s-port
	Username      string        // cs-username
	ClientAddress string        // c-ip
	UserAgent     string        // cs(User-Agent)
	Referer       string        // cs(Referer)
	Status        int           // sc-status
	SubStatus     int           // sc-substatus
	Windows       uint32        // sc-win32-status
	Bytes         int64         // sc-bytes
	Taken         time.Duration // time-taken, written in milliseconds
}

// accessFields is the #Fields line of the files that we write.
const accessFields = "date time s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username c-ip cs(User-Agent) cs(Referer) " +
	"sc-status sc-substatus sc-win32-status sc-bytes time-taken"

// append appends the line with CR LF to b.
func (r AccessRecord) append(b []byte) []byte {
	b = r.Time.UTC().AppendFormat(b, "2006-01-02 15:04:05")
	b = appendField(b, r.ServerAddress)
	b = appendField(b, r.Method)
	b = appendField(b, r.Stem)
	b = appendField(b, r.Query)
	b = appendNumber(b, int64(r.Port))
	b = appendField(b, r.Username)
	b = appendField(b, r.ClientAddress)
	b = appendField(b, r.UserAgent)
	b = appendField(b, r.Referer)
	b = appendNumber(b, int64(r.Status))
	b = appendNumber(b, int64(r.SubStatus))
	b = appendNumber(b, int64(r.Windows))
	b = appendNumber(b, r.Bytes)
	b = appendNumber(b, r.Taken.Milliseconds())
	return append(b, "\r\n"...)
}

func appendNumber(b []byte, n int64) []byte { return strconv.AppendInt(append(b, ' '), n, 10) }

// fieldCap is the length in bytes beyond which a field is cut.
const fieldCap = 2 << 10

// appendField appends a blank and the field: "-" when empty, "+" for a blank, control
// characters and invalid UTF-8 as %XX.
func appendField(b []byte, s string) []byte {
	b = append(b, ' ')
	if s == "" {
		return append(b, '-')
	}
	if len(s) > fieldCap {
		s = strings.ToValidUTF8(s[:fieldCap], "") + "..."
	}
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == ' ':
			b = append(b, '+')
		case r == '\n' || r == '\t' || unsafeRune(r) || r == utf8.RuneError:
			for _, c := range []byte(s[i : i+size]) {
				b = fmt.Appendf(b, "%%%02X", c)
			}
		default:
			b = append(b, s[i:i+size]...)
		}
		i += size
	}
	return b
}

// AccessLog writes a W3C access log. It is safe for concurrent use; a line that cannot
// be written is counted in Lost. A nil *AccessLog writes nothing.
type AccessLog struct {
	now  func() time.Time
	lost atomic.Uint64

	mu     sync.Mutex
	buffer []byte
	out    rotating
}

func newAccessLog(dir string, file File) *AccessLog {
	limit := cmp.Or(file.Limit, AccessLimit)
	file = file.withDefaults()
	l := &AccessLog{now: file.Now}
	l.out = rotating{path: filepath.Join(dir, file.Name), limit: limit, header: l.header}
	return l
}

func (l *AccessLog) header() []byte {
	return fmt.Appendf(nil, "#Software: Postern\r\n#Version: 1.0\r\n#Date: %s\r\n#Fields: %s\r\n",
		l.now().UTC().Format("2006-01-02 15:04:05"), accessFields)
}

// Write writes one line. A zero Time is now.
func (l *AccessLog) Write(r AccessRecord) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Time.IsZero() {
		r.Time = l.now()
	}
	l.buffer = r.append(l.buffer[:0])
	if _, err := l.out.Write(l.buffer); err != nil {
		l.lost.Add(1)
	}
}

// Lost returns how many lines could not be written since the log was opened.
func (l *AccessLog) Lost() uint64 {
	if l == nil {
		return 0
	}
	return l.lost.Load()
}

// Close closes the file. A line written later opens it again.
func (l *AccessLog) Close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.close()
}
