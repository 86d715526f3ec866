package logfile

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of a log file before it is rotated, in bytes. The client's is the documented
// default of the original client; the others are ours.
const (
	ClientLimit = 250_000
	ServerLimit = 2 << 20
	AccessLimit = 16 << 20
	EventsLimit = 16 << 20
)

// File describes one log file of a component.
type File struct {
	Name      string // "MP_RegistrationManager.log"
	Component string // written in each line; the name without ".log" when empty
	Format    Format // Client or Server; Client when zero
	Source    string // "file:line" of client lines, may be empty

	Limit int64            // bytes before rotation; the format's default when zero
	Now   func() time.Time // time.Now when nil; its zone is the zone of the lines
}

func (f File) withDefaults() File {
	f.Name = filepath.Base(f.Name)
	f.Component = attribute(cmp.Or(f.Component, strings.TrimSuffix(f.Name, filepath.Ext(f.Name))))
	f.Format = cmp.Or(f.Format, Client)
	f.Limit = cmp.Or(f.Limit, map[Format]int64{Client: ClientLimit, Server: ServerLimit}[f.Format])
	if f.Now == nil {
		f.Now = time.Now
	}
	return f
}

// Log writes the lines of one component to one file. Its methods are safe for
// concurrent use and never fail towards the caller: a line that cannot be written is
// counted in Lost. A nil *Log writes nothing.
type Log struct {
	file    File
	thread  int
	verbose atomic.Bool
	lost    atomic.Uint64

	mu     sync.Mutex
	buffer []byte
	out    rotating
}

// Open opens a component's log file in dir and makes the folder when it is missing.
func Open(dir string, file File) (*Log, error) {
	l := newLog(dir, file)
	if err := l.out.open(); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return l, nil
}

func newLog(dir string, file File) *Log {
	file = file.withDefaults()
	return &Log{
		file:   file,
		thread: Thread(file.Component),
		out:    rotating{path: filepath.Join(dir, file.Name), limit: file.Limit},
	}
}

// Thread returns the thread number that stands in a component's lines: a small number
// that depends on the component's name alone, a multiple of four as on the original
// platform. Go has no thread to name, and a viewer uses the number only to tell
// streams of lines apart; a Record with a Thread of its own keeps it.
func Thread(component string) int {
	h := fnv.New32a()
	h.Write([]byte(component))
	return 1000 + 4*int(h.Sum32()%2250)
}

// Infof writes a line. Strings, errors and other texts among args may be hostile:
// their line breaks and control characters are written out, so that a value cannot
// look like a line of its own. Line breaks of the format stay.
func (l *Log) Infof(format string, args ...any) { l.printf(Info, format, args) }

// Warningf writes a warning, as Infof does.
func (l *Log) Warningf(format string, args ...any) { l.printf(Warning, format, args) }

// Errorf writes an error, as Infof does.
func (l *Log) Errorf(format string, args ...any) { l.printf(Error, format, args) }

// Verbosef writes a line, as Infof does, when verbose lines are switched on. Nothing
// is formatted when they are not.
func (l *Log) Verbosef(format string, args ...any) {
	if l.Verbose() {
		l.printf(Info, format, args)
	}
}

// Write writes a record. Format is the file's; Time, Severity, Component, Thread and
// Source are filled in when they are zero. The line breaks of Message stay.
func (l *Log) Write(r Record) {
	if l == nil {
		return
	}
	r.Format = l.file.Format
	r.Severity = cmp.Or(r.Severity, Info)
	r.Component = cmp.Or(r.Component, l.file.Component)
	r.Thread = cmp.Or(r.Thread, l.thread)
	r.Source = cmp.Or(r.Source, l.file.Source)
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Time.IsZero() {
		r.Time = l.file.Now() // under the lock, so that times rise in the file
	}
	l.buffer = r.Append(l.buffer[:0])
	if _, err := l.out.Write(l.buffer); err != nil {
		l.lost.Add(1)
	}
	if cap(l.buffer) > 8*MessageCap {
		l.buffer = nil
	}
}

func (l *Log) printf(severity Severity, format string, args []any) {
	if l == nil {
		return
	}
	l.Write(Record{Severity: severity, Message: fmt.Sprintf(format, cleanArguments(args)...)})
}

// SetVerbose switches verbose lines on or off, at run time.
func (l *Log) SetVerbose(on bool) {
	if l != nil {
		l.verbose.Store(on)
	}
}

// Verbose says whether verbose lines are written.
func (l *Log) Verbose() bool { return l != nil && l.verbose.Load() }

// Component returns the component that the lines name.
func (l *Log) Component() string {
	if l == nil {
		return ""
	}
	return l.file.Component
}

// Path returns where the file is, or "" for a log that writes nothing.
func (l *Log) Path() string {
	if l == nil {
		return ""
	}
	return l.out.path
}

// Lost returns how many lines could not be written since the log was opened.
func (l *Log) Lost() uint64 {
	if l == nil {
		return 0
	}
	return l.lost.Load()
}

// Close closes the file. A line written later opens it again.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.close()
}

// cleanArguments returns args with every text made safe; args itself stays as it is.
func cleanArguments(args []any) []any {
	copied := false
	for i, arg := range args {
		s, ok := textOf(arg)
		if !ok || len(s) <= MessageCap && !strings.ContainsFunc(s, unsafeArgument) {
			continue
		}
		if !copied {
			args, copied = append([]any(nil), args...), true
		}
		args[i] = escape(cut(s), unsafeArgument)
	}
	return args
}

// textOf returns the text that an argument prints, when it is one.
func textOf(arg any) (string, bool) {
	value := reflect.ValueOf(arg)
	if value.Kind() == reflect.Pointer && value.IsNil() {
		return "", false // its method may panic; fmt catches that and prints <nil>
	}
	switch v := arg.(type) {
	case string:
		return v, true
	case error:
		return v.Error(), true
	case fmt.Stringer:
		return v.String(), true
	}
	if value.Kind() == reflect.String {
		return value.String(), true
	}
	return "", false
}
