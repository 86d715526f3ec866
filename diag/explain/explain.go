package explain

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"postern/catalog"
	"postern/logfile"
)

// Input is what is to be explained.
type Input struct {
	Paths    []string  // files, folders, patterns, zip archives, "-"
	Stdin    io.Reader // what "-" reads
	Limits   Limits    // DefaultLimits when zero
	Progress func(Progress)
}

// Progress is how far a reading is.
type Progress struct {
	File        string // that is read
	Done, Files int    // files read, and of how many
	Bytes       int64  // read of all files
}

// Run reads the logs and explains them. What cannot be read is said in the report; the error is a code of the catalogue
// when nothing could be read, or that of ctx.
func Run(ctx context.Context, in Input) (Report, error) {
	if in.Limits == (Limits{}) {
		in.Limits = DefaultLimits()
	}
	r := &reading{limits: in.Limits, progress: in.Progress}
	return r.explain(ctx, in)
}

// explain reads what the paths lead to. Files that are as they were at the last time are not read again.
func (r *reading) explain(ctx context.Context, in Input) (Report, error) {
	c := &collector{limits: in.Limits, stdin: in.Stdin}
	if err := c.collect(ctx, in.Paths); err != nil {
		return Report{}, err
	}
	r.left, r.bytes, r.binary = in.Limits.Bytes, 0, 0
	r.room = room{memory: in.Limits.Memory, ids: idsOfAll}
	before := r.kept
	if before != nil {
		r.kept = map[string]*keptFile{}
	}
	var files []*logFile
	for i, s := range c.sources {
		r.tell(Progress{File: s.name, Done: i, Files: len(c.sources)})
		f, err := r.source(ctx, s, before[s.name], c)
		if err != nil {
			return Report{}, err
		}
		if f != nil {
			files = append(files, f)
		}
	}
	r.tell(Progress{Done: len(c.sources), Files: len(c.sources)})
	if len(files) == 0 && r.binary == 0 {
		return Report{}, unreadable(c.notes)
	}
	for _, f := range files {
		for _, note := range f.notes {
			c.note("%s", note)
		}
	}
	return judge(merge(files), c.said()), nil
}

func unreadable(notes []string) error {
	detail := "no file is there"
	if len(notes) > 0 {
		detail = notes[0]
	}
	return catalog.Errorf(catalog.ExplainNothingRead, "%s", printable(detail))
}

// reading is the state of a run.
type reading struct {
	limits    Limits
	left      int64 // bytes of all files that may still be read
	bytes     int64 // read
	binary    int
	room      room
	in        *bufio.Reader
	buf       []byte
	progress  func(Progress)
	last      Progress
	addresses map[string]*line     // the last address of the older generation of a log
	kept      map[string]*keptFile // of a reading that goes on; nil for one that does not
}

// room is what may still be kept of all files.
type room struct {
	memory int64
	ids    int
}

// idsOfAll is how many ids are kept of all files: enough to compare the clocks of all their machines.
const idsOfAll = 200_000

// take accounts for what is kept of a file.
func (r *room) take(f *logFile) {
	r.memory -= f.size()
	r.ids -= len(f.ids)
}

// keptFile is a file as it was read the last time.
type keptFile struct {
	state string
	file  *logFile
	size  int64
}

func (r *reading) tell(p Progress) {
	if r.progress != nil {
		p.Bytes = r.bytes
		r.last = p
		r.progress(p)
	}
}

func (r *reading) source(ctx context.Context, s source, before *keptFile, notes *collector) (*logFile, error) {
	if before != nil && s.state != "" && before.state == s.state {
		r.left -= before.size
		r.room.take(before.file)
		r.kept[s.name] = before
		return before.file, nil
	}
	if r.left <= 0 || r.room.memory <= 0 {
		notes.note("%s was not read: the limit of all files together is reached", s.name)
		return nil, nil
	}
	file, err := s.open()
	if err != nil {
		notes.note("%s cannot be read: %v", s.name, reason(err))
		return nil, nil
	}
	defer file.Close()
	counted := &counter{in: file, reading: r}
	content, isText := text(r.buffered(counted))
	if !isText {
		r.binary++
		if s.named || strings.Contains(s.name, "!") {
			notes.note("%s was not read: it holds no text", s.name)
		}
		return nil, nil
	}
	limits := r.limits
	limits.FileBytes = min(limits.FileBytes, r.left)
	f, err := r.file(ctx, s.name, content, limits)
	if err != nil {
		return nil, err
	}
	r.left -= counted.n
	r.room.take(f)
	if r.kept != nil {
		r.kept[s.name] = &keptFile{s.state, f, counted.n}
	}
	return f, nil
}

// buffered reads with the memory of the last file.
func (r *reading) buffered(in io.Reader) *bufio.Reader {
	if r.in == nil {
		r.in = bufio.NewReaderSize(nil, 64<<10)
	}
	r.in.Reset(in)
	return r.in
}

// file reads one file.
func (r *reading) file(ctx context.Context, name string, content io.Reader, limits Limits) (*logFile, error) {
	o := newObserver(name, limits, r.room)
	log := generations(name)
	if older := r.addresses[log]; older != nil && older.file != name {
		o.address = older
	}
	s := newScanner(content, limits, r.buf)
	r.buf = s.buf
	for n := 0; ; n++ {
		record, number, err := s.next()
		if err == nil && n == limits.Lines {
			err = fmt.Errorf("%w of %d records", logfile.ErrBudget, limits.Lines)
		}
		switch {
		case err == io.EOF:
			r.carry(log, o.address, number)
			return o.end(), nil
		case err != nil:
			if !errors.Is(err, logfile.ErrBudget) {
				err = reason(err)
			}
			o.file.notes = append(o.file.notes, fmt.Sprintf("%s was read to line %d only: %v", name, number-1, err))
			return o.end(), nil
		}
		o.record(record, number)
		if n%4096 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// carry keeps the last address of a log's older generation for the newer one, which goes on where it ends.
func (r *reading) carry(log string, address *line, lines int) {
	if address == nil || log == address.file {
		return
	}
	if r.addresses == nil {
		r.addresses = map[string]*line{}
	}
	last := *address
	last.number -= lines
	r.addresses[log] = &last
}

// counter counts what is read of a file.
type counter struct {
	in      io.Reader
	n       int64
	reading *reading
	told    int64
}

const tellEvery = 8 << 20

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	c.n += int64(n)
	c.reading.bytes += int64(n)
	if c.n-c.told >= tellEvery {
		c.told = c.n
		c.reading.tell(c.reading.last)
	}
	return n, err
}
