package logfile

import (
	"cmp"
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// Events is a [slog.Handler] that writes JSON lines to a rotated file. Each event
// carries the trace and message id of its context. Debug events are written while
// verbose is on. A nil *Events writes nothing.
type Events struct {
	slog.Handler
	shared *eventFile
}

// eventFile is what a handler and those derived from it share.
type eventFile struct {
	level slog.LevelVar
	lost  atomic.Uint64

	mu  sync.Mutex
	out rotating
}

// Write writes one line; the JSON handler calls it once for each event.
func (f *eventFile) Write(line []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.out.Write(line)
	if err != nil {
		f.lost.Add(1)
	}
	return n, err
}

func newEvents(dir string, file File) *Events {
	f := &eventFile{out: rotating{
		path:  filepath.Join(dir, filepath.Base(file.Name)),
		limit: cmp.Or(file.Limit, EventsLimit),
	}}
	return &Events{Handler: slog.NewJSONHandler(f, &slog.HandlerOptions{Level: &f.level}), shared: f}
}

// Enabled says whether an event of this level is written.
func (e *Events) Enabled(ctx context.Context, level slog.Level) bool {
	return e != nil && e.Handler.Enabled(ctx, level)
}

// Handle writes the event with the ids of its context as trace_id, span_id and
// message_id.
func (e *Events) Handle(ctx context.Context, record slog.Record) error {
	if e == nil {
		return nil
	}
	t := TraceOf(ctx)
	ids := [...]slog.Attr{slog.String("trace_id", t.ID), slog.String("span_id", t.Span), slog.String("message_id", t.Message)}
	for _, id := range ids {
		if id.Value.String() != "" {
			record.AddAttrs(id)
		}
	}
	return e.Handler.Handle(ctx, record)
}

// WithAttrs returns a handler on the same file whose events carry attrs.
func (e *Events) WithAttrs(attrs []slog.Attr) slog.Handler {
	if e == nil {
		return e
	}
	return &Events{Handler: e.Handler.WithAttrs(attrs), shared: e.shared}
}

// WithGroup returns a handler on the same file whose further attributes, the ids
// among them, are in a group.
func (e *Events) WithGroup(name string) slog.Handler {
	if e == nil {
		return e
	}
	return &Events{Handler: e.Handler.WithGroup(name), shared: e.shared}
}

// SetVerbose switches debug events on or off, at run time.
func (e *Events) SetVerbose(on bool) {
	if e == nil {
		return
	}
	level := slog.LevelInfo
	if on {
		level = slog.LevelDebug
	}
	e.shared.level.Set(level)
}

// Lost returns how many events could not be written.
func (e *Events) Lost() uint64 {
	if e == nil {
		return 0
	}
	return e.shared.lost.Load()
}

// Close closes the file. An event written later opens it again.
func (e *Events) Close() error {
	if e == nil {
		return nil
	}
	e.shared.mu.Lock()
	defer e.shared.mu.Unlock()
	return e.shared.out.close()
}
