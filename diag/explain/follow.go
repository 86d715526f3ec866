package explain

import (
	"context"
	"encoding/json"
	"time"

	"postern/catalog"
)

// restOf is how much longer than a reading took the next one waits at least, so that the file that grows all the time does not take
// a core from the machine whose log it is.
const restOf = 9

// Follow explains logs that are being written: at once, and at each tick after which the verdict is another one. Files that
// grew, were cut or were put aside for a new one are read again; the others are not. A tick that comes before nine times as long
// has passed as the last reading took is let go by. It ends with nil when ctx does, and with an error when nothing can be read at
// the beginning.
func Follow(ctx context.Context, in Input, ticks <-chan time.Time, changed func(Report)) error {
	if in.Limits == (Limits{}) {
		in.Limits = DefaultLimits()
	}
	r := &reading{limits: in.Limits, progress: in.Progress, kept: map[string]*keptFile{}}
	before := ""
	for first := true; ; first = false {
		began := time.Now()
		report, err := r.explain(ctx, in)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && (first || catalog.CodeOf(err) != catalog.ExplainNothingRead):
			return err
		case err == nil && gist(report) != before:
			before = gist(report)
			changed(report)
		}
		ended := time.Now()
		for rested := false; !rested; {
			select {
			case <-ctx.Done():
				return nil
			case at := <-ticks:
				rested = at.Sub(ended) >= restOf*ended.Sub(began)
			}
		}
	}
}

// gist is what makes a report another one than the last: the verdict and what else was seen, not the number of lines.
func gist(r Report) string {
	content, err := json.Marshal([]any{r.Verdict, r.Also})
	if err != nil {
		return "" // verdicts can always be written
	}
	return string(content)
}
