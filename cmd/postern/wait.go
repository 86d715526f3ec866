package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/catalog"
	"postern/site"
)

// waiter is --wait of a command that revokes: it ends when every gateway has confirmed.
type waiter struct {
	s    *session
	most time.Duration // 0: the command does not wait
}

// usualWait is what --wait alone means; longestWait bounds what may be asked for.
const (
	usualWait   = 30 * time.Second
	longestWait = time.Hour
)

// addWait gives a command the flag --wait.
func (s *session) addWait(c *cobra.Command) *waiter {
	w := &waiter{s: s}
	c.Flags().DurationVar(&w.most, "wait", 0, "wait until every gateway has confirmed that this is in force there, and say when each did; exit status 4 when some have not")
	c.Flags().Lookup("wait").NoOptDefVal = usualWait.String()
	return w
}

// gatewayView is what a gateway has confirmed, for scripts.
type gatewayView struct {
	Gateway      string    `json:"gateway"`
	Confirmed    bool      `json:"confirmed"`
	Milliseconds int64     `json:"after_ms"` // from the command to the confirmation; 0 when it was in force already
	At           time.Time `json:"at,omitzero"`
	Epoch        uint64    `json:"epoch"`
	Heard        time.Time `json:"last_heard,omitzero"`
}

// waitView is what came of waiting, for scripts.
type waitView struct {
	Epoch     uint64        `json:"epoch"`
	Confirmed bool          `json:"confirmed"` // by every gateway
	Gateways  []gatewayView `json:"gateways"`
}

// finish prints what an act that began at a time did, and then waits if that was asked for. In JSON, what came of it is the field "revocation" of the answer,
// or a document of its own when the act has no answer.
func (w *waiter) finish(ctx context.Context, st *site.Site, began time.Time, answer any, text func(io.Writer)) error {
	if w.most == 0 {
		return w.s.print(answer, text)
	}
	if !w.s.asJSON {
		text(w.s.out)
	}
	view, waited, err := w.wait(ctx, st, began)
	if err != nil {
		return err
	}
	merged, err := withField(answer, "revocation", view)
	if err != nil {
		return err
	}
	if err := w.s.print(merged, func(out io.Writer) { showWait(out, view, waited) }); err != nil || view.Confirmed {
		return err
	}
	var names []string
	for _, g := range view.Gateways {
		if !g.Confirmed {
			names = append(names, g.Gateway)
		}
	}
	report(w.s.err, catalog.Errorf(catalog.GatewaysUnconfirmed, "%s", strings.Join(names, ", ")))
	return exitError{exitUnconfirmed}
}

// check refuses a time to wait that is none.
func (w *waiter) check() error {
	if w.most < 0 || w.most > longestWait {
		return usageError{fmt.Errorf("--wait=%s: want up to %s", w.most, longestWait)}
	}
	return nil
}

// wait waits as long as was asked for, or until ctx ends: the act is done then all the same, and what was heard until then is told.
func (w *waiter) wait(ctx context.Context, st *site.Site, began time.Time) (view waitView, waited time.Duration, err error) {
	view.Epoch = st.Epoch()
	waited = w.most
	if w.s.alone {
		fmt.Fprintln(w.s.err, "No management point runs with this store: gateways hear of it when one does.")
		waited = 0
	}
	started := time.Now()
	confirmations, err := st.AwaitConfirmations(ctx, view.Epoch, waited)
	if err != nil {
		if ctx.Err() == nil || len(confirmations) == 0 {
			return view, 0, err
		}
		fmt.Fprintln(w.s.err, "Stopped waiting; what was asked for is done.")
		waited = time.Since(started).Round(time.Second)
	}
	view.Confirmed, view.Gateways = true, []gatewayView{}
	for _, c := range confirmations {
		one := gatewayView{Gateway: c.Gateway, Confirmed: c.Confirmed, At: c.At, Epoch: c.Epoch, Heard: c.Heard}
		if c.Confirmed {
			one.Milliseconds = max(0, c.At.Sub(began).Milliseconds())
		}
		view.Confirmed = view.Confirmed && c.Confirmed
		view.Gateways = append(view.Gateways, one)
	}
	return view, waited, nil
}

func showWait(w io.Writer, view waitView, waited time.Duration) {
	if len(view.Gateways) == 0 {
		fmt.Fprintln(w, "No gateway is listed: there is none to wait for.")
		return
	}
	table(w, "GATEWAY\tCONFIRMED\tLAST HEARD", func(row func(...any)) {
		for _, g := range view.Gateways {
			switch {
			case !g.Confirmed && waited == 0:
				row(g.Gateway, "NOT CONFIRMED", stamp(g.Heard))
			case !g.Confirmed:
				row(g.Gateway, fmt.Sprintf("NOT CONFIRMED in %s", waited), stamp(g.Heard))
			case g.Milliseconds == 0:
				row(g.Gateway, "yes, was in force already", stamp(g.Heard))
			default:
				row(g.Gateway, fmt.Sprintf("yes, after %.2f s", float64(g.Milliseconds)/1000), stamp(g.Heard))
			}
		}
	})
}

// withField adds a field to a JSON object.
func withField(object any, name string, value any) (any, error) {
	fields := map[string]json.RawMessage{}
	if object != nil {
		encoded, err := json.Marshal(object)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(encoded, &fields); err != nil {
			return nil, err
		}
	}
	encoded, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	fields[name] = encoded
	return fields, nil
}
