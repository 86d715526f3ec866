package logfile

import (
	"cmp"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options are the settings of a folder of logs.
type Options struct {
	Limit   int64            // bytes before rotation of the component files; each format's default when zero
	Verbose bool             // verbose lines from the start
	Now     func() time.Time // time.Now when nil; its zone is the zone of the lines
}

// Folder is a folder of log files. Each file is opened at its first line, and asking
// twice for a file gives the same log. It is safe for concurrent use. A nil *Folder
// gives logs that write nothing.
type Folder struct {
	dir     string
	options Options

	mu      sync.Mutex
	logs    map[string]*Log // by lower-case file name
	access  map[string]*AccessLog
	events  map[string]*Events
	verbose map[string]bool // by lower-case component, also of logs not yet asked for
}

// NewFolder returns the folder; nothing is made on disk before the first line.
func NewFolder(dir string, options Options) *Folder {
	return &Folder{
		dir:     dir,
		options: options,
		logs:    map[string]*Log{},
		access:  map[string]*AccessLog{},
		events:  map[string]*Events{},
		verbose: map[string]bool{},
	}
}

// Dir returns the path of the folder, or "" for a nil folder.
func (f *Folder) Dir() string {
	if f == nil {
		return ""
	}
	return f.dir
}

// Log returns the log of a component's file. A zero Limit and Now are the folder's.
func (f *Folder) Log(file File) *Log {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	key := fileKey(file)
	if l, ok := f.logs[key]; ok {
		return l
	}
	l := newLog(f.dir, f.fill(file))
	l.SetVerbose(f.verboseOf(l.Component()))
	f.logs[key] = l
	return l
}

// Access returns the access log of the given file name.
func (f *Folder) Access(name string) *AccessLog {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	file := File{Name: name, Now: f.options.Now}
	key := fileKey(file)
	if _, ok := f.access[key]; !ok {
		f.access[key] = newAccessLog(f.dir, file)
	}
	return f.access[key]
}

// Events returns the JSON events of the given file name.
func (f *Folder) Events(name string) *Events {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	file := File{Name: name}
	key := fileKey(file)
	if _, ok := f.events[key]; !ok {
		f.events[key] = newEvents(f.dir, file)
		f.events[key].SetVerbose(f.verboseOf(""))
	}
	return f.events[key]
}

// Verbose switches the verbose lines of a component on or off, at run time; the
// component "" is all of them, and the debug events too. A component whose log is
// asked for later begins that way.
func (f *Folder) Verbose(component string, on bool) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if component == "" {
		clear(f.verbose)
		for _, e := range f.events {
			e.SetVerbose(on)
		}
	}
	f.verbose[strings.ToLower(component)] = on
	for _, l := range f.logs {
		if component == "" || strings.EqualFold(component, l.Component()) {
			l.SetVerbose(on)
		}
	}
}

// Components returns the components whose logs were asked for, sorted, each with
// whether its verbose lines are on.
func (f *Folder) Components() []Component {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []Component
	for _, l := range f.logs {
		list = append(list, Component{Name: l.Component(), Path: l.Path(), Verbose: l.Verbose(), Lost: l.Lost()})
	}
	slices.SortFunc(list, func(a, b Component) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Path, b.Path))
	})
	return list
}

// Component is the state of one component's log.
type Component struct {
	Name    string
	Path    string
	Verbose bool
	Lost    uint64 // lines that could not be written
}

// Lost returns how many lines and events of the folder could not be written.
func (f *Folder) Lost() uint64 {
	if f == nil {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var lost uint64
	for l := range maps.Values(f.logs) {
		lost += l.Lost()
	}
	for l := range maps.Values(f.access) {
		lost += l.Lost()
	}
	for e := range maps.Values(f.events) {
		lost += e.Lost()
	}
	return lost
}

// Close closes every file. A line written later opens its file again.
func (f *Folder) Close() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	for _, l := range f.logs {
		err = errors.Join(err, l.Close())
	}
	for _, l := range f.access {
		err = errors.Join(err, l.Close())
	}
	for _, e := range f.events {
		err = errors.Join(err, e.Close())
	}
	return err
}

func fileKey(file File) string { return strings.ToLower(filepath.Base(file.Name)) }

func (f *Folder) fill(file File) File {
	file.Limit = cmp.Or(file.Limit, f.options.Limit)
	if file.Now == nil {
		file.Now = f.options.Now
	}
	return file
}

func (f *Folder) verboseOf(component string) bool {
	if on, ok := f.verbose[strings.ToLower(component)]; ok {
		return on
	}
	if on, ok := f.verbose[""]; ok {
		return on
	}
	return f.options.Verbose
}
