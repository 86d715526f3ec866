package connector

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

// statePath is where the management point tells the site state (design decision 4), and
// under which gateways ask for it through the tunnel.
const statePath = "/postern/state"

// follow keeps the stream of the site state open.
func (c *Connector) follow(ctx context.Context) {
	pause := newBackoff(c.cfg.Random)
	for {
		c.following.set(Connecting, c.cfg.Now(), nil, time.Time{})
		heard, err := c.followOnce(ctx)
		if ctx.Err() != nil {
			c.following.set(Stopped, c.cfg.Now(), nil, time.Time{})
			return
		}
		if heard {
			pause.reset()
		}
		wait := pause.next()
		c.following.set(Waiting, c.cfg.Now(), err, c.cfg.Now().Add(wait))
		c.cfg.Events.Warn("site state is not followed", "code", catalog.CodeOf(err), "error", err, "next_try", wait)
		select {
		case <-ctx.Done():
		case <-c.cfg.After(wait):
		}
	}
}

// followOnce reads the stream until it ends or falls silent. heard says that at least
// one line was good.
func (c *Connector) followOnce(ctx context.Context) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	request := (&http.Request{Method: http.MethodGet, URL: c.managementPoint, Header: http.Header{"User-Agent": nil}}).WithContext(ctx)
	answer, err := c.backends.Load().RoundTrip(request)
	if err != nil {
		return false, backendError(c.managementPoint.Host, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return false, catalog.Errorf(catalog.ConnectorStateStream, "management point %s answered %.64q", c.managementPoint.Host, answer.Status)
	}
	lines := make(chan struct{})
	go c.watch(ctx, lines, cancel)
	scanner := bufio.NewScanner(answer.Body)
	scanner.Buffer(nil, token.MaxDocument+2)
	for scanner.Scan() {
		if !c.apply(scanner.Text()) {
			continue
		}
		heard = true
		select {
		case lines <- struct{}{}:
		case <-ctx.Done():
		}
	}
	return heard, c.streamError(context.Cause(ctx), scanner.Err())
}

func (c *Connector) streamError(silence, read error) error {
	if silence == nil && read == nil {
		read = errors.New("the stream ended")
	}
	return catalog.Wrap(catalog.ConnectorStateStream, errors.Join(silence, read), "management point %s", c.managementPoint.Host)
}

var errSilent = fmt.Errorf("no good line for %v", auth.StaleAfter)

// watch gives up a stream on which nothing good comes.
func (c *Connector) watch(ctx context.Context, lines <-chan struct{}, giveUp context.CancelCauseFunc) {
	for {
		select {
		case <-lines:
		case <-ctx.Done():
			return
		case <-c.cfg.After(auth.StaleAfter):
			giveUp(errSilent)
			return
		}
	}
}

// apply takes one line of the stream and reports whether it was good.
func (c *Connector) apply(line string) bool {
	if line == "" {
		return false
	}
	changed, err := c.state.Apply(line)
	if err != nil {
		c.cfg.Events.Warn("line of the site state is not used", "code", catalog.CodeOf(err), "error", err)
		return false
	}
	c.following.set(Connected, c.cfg.Now(), nil, time.Time{})
	if changed {
		state, _ := c.state.Current()
		c.cfg.Events.Info("site state", "epoch", state.Epoch)
		c.Reload()
	}
	return true
}

// maxRelayed bounds the questions about the site state that are under way for one
// connection. A gateway has one stream on each, and now and then an acknowledgement; its
// streams have no end of their own, and each holds a connection to the management point.
const maxRelayed = 8

// relayState passes a gateway's question about the site state to the management point,
// and the lines back as they come. It changes nothing and can change nothing: both
// directions are signed by others.
func (f *forwarder) relayState(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		refuseState(w, r, catalog.Errorf(catalog.ConnectorMethodRefused, "method %.32q", r.Method))
		return
	}
	defer f.relayed.Add(-1)
	if f.relayed.Add(1) > maxRelayed {
		refuseState(w, r, catalog.Errorf(catalog.ConnectorStateBusy, "%d are under way for gateway %s", maxRelayed, f.gateway.Name))
		return
	}
	ctx, cancel := f.untilDraining(r.Context())
	defer cancel()
	out := (&http.Request{
		Method: r.Method, URL: f.managementPoint, Body: r.Body, ContentLength: r.ContentLength,
		Header: http.Header{"User-Agent": nil},
	}).WithContext(ctx)
	if kind := r.Header.Get("Content-Type"); kind != "" {
		out.Header.Set("Content-Type", kind)
	}
	if r.ContentLength == 0 {
		out.Body = http.NoBody
	}
	answer, err := f.backends.Load().RoundTrip(out)
	if err != nil {
		refuseState(w, r, backendError(f.managementPoint.Host, err))
		return
	}
	defer answer.Body.Close()
	copyAnswerHeader(w.Header(), answer.Header)
	w.WriteHeader(answer.StatusCode)
	if answer.ContentLength < 0 {
		w.(http.Flusher).Flush() // the head first: the first line may be seconds away
	}
	if _, err := stream(w, answer); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// untilDraining returns a context that also ends when the connection drains: a stream has no end of its own that a drain could wait for.
func (f *forwarder) untilDraining(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-f.draining:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func refuseState(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
	ccm.WriteError(w, r, statusOf(catalog.CodeOf(err)), err)
}
