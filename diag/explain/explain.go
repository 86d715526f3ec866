package explain

import (
	"context"
	"errors"
	"io"

	"postern/catalog"
	"postern/logfile"
)

// Input is what is to be explained.
type Input struct {
	Paths  []string  // files, folders, patterns, zip archives, "-"
	Stdin  io.Reader // what "-" reads
	Limits Limits    // DefaultLimits when zero
}

// Run reads the logs and explains them. What cannot be read is said in the report; the error is a code of the catalogue
// when nothing could be read, or that of ctx.
func Run(ctx context.Context, in Input) (Report, error) {
	if in.Limits == (Limits{}) {
		in.Limits = DefaultLimits()
	}
	c := &collector{limits: in.Limits, stdin: in.Stdin}
	defer c.close()
	if err := c.collect(ctx, in.Paths); err != nil {
		return Report{}, err
	}
	r := &reading{limits: in.Limits, left: in.Limits.Bytes, timeline: newTimeline(in.Limits), notes: c}
	for _, s := range c.sources {
		if err := r.source(ctx, s); err != nil {
			return Report{}, err
		}
	}
	if len(r.timeline.files) == 0 && r.binary == 0 {
		return Report{}, unreadable(c.notes)
	}
	return judge(r.timeline, c.notes), nil
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
	limits   Limits
	left     int64 // bytes of all files that may still be read
	timeline *timeline
	notes    *collector
	binary   int
}

func (r *reading) source(ctx context.Context, s source) error {
	if r.left <= 0 {
		r.notes.note("%s was not read: the limit of all files together is reached", s.name)
		return nil
	}
	file, err := s.open()
	if err != nil {
		r.notes.note("%s cannot be read: %v", s.name, reason(err))
		return nil
	}
	defer file.Close()
	counted := &counter{in: file}
	content, isText := text(counted)
	if !isText {
		r.binary++
		if s.named {
			r.notes.note("%s holds no text", s.name)
		}
		return nil
	}
	limits := r.limits
	limits.FileBytes = min(limits.FileBytes, r.left)
	err = r.lines(ctx, s.name, content, limits)
	r.left -= counted.n
	return err
}

func (r *reading) lines(ctx context.Context, name string, content io.Reader, limits Limits) error {
	o := r.timeline.begin(name)
	defer o.end()
	n := 0
	for l, err := range lines(name, content, limits) {
		switch {
		case errors.Is(err, logfile.ErrBudget):
			r.notes.note("%s was read to line %d only: %v", name, n, err)
		case err != nil:
			r.notes.note("%s was read to line %d only: %v", name, n, reason(err))
		default:
			o.observe(l)
			n = l.number
		}
		if n%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

type counter struct {
	in io.Reader
	n  int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	c.n += int64(n)
	return n, err
}
