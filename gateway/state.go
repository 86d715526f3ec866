package gateway

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/keyfile"
	"postern/token"
)

// statePath is where a management point streams the site state (design decision 4).
const statePath = "/postern/state"

// keptState is the last signed state on disk.
type keptState struct {
	path string
	mu   sync.Mutex // one line at a time is applied, put into force and written
	err  error      // the last attempt to write
}

// recall applies the state that was kept before a restart. Its signature is checked like
// any other's; one that does not hold is left aside.
func (g *Gateway) recall() {
	if g.kept.path == "" {
		return
	}
	line, err := readKept(g.kept.path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		_, err = g.state.Apply(line)
	}
	if err != nil {
		g.log.Warn("kept site state not used", "code", catalog.GatewayStateFile, "cause", err)
	}
}

func readKept(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	line, err := io.ReadAll(io.LimitReader(file, token.MaxDocument+1))
	return string(line), err
}

// followAll follows the site state through every connector's connection until ctx ends:
// the fastest is heard first, and one that holds lines back hides nothing.
func (g *Gateway) followAll(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	followed := map[string]context.CancelFunc{}
	for {
		live := map[string]bool{}
		for _, c := range g.hub.Connections() {
			live[c.ID] = true
			if followed[c.ID] != nil {
				continue
			}
			through, stop := context.WithCancel(ctx)
			followed[c.ID] = stop
			work.Go(func() { g.follow(through, c.ID, c.Name) })
		}
		for id, stop := range followed {
			if !live[id] {
				stop()
				delete(followed, id)
			}
		}
		tell(g.acknowledge)
		select {
		case <-ctx.Done():
			return
		case <-g.connectors:
		}
	}
}

// longestRetry bounds the pause between two attempts to hear the site.
const longestRetry = 30 * time.Second

// follow keeps one stream open through one connection for as long as that lives.
func (g *Gateway) follow(ctx context.Context, id, connector string) {
	pause := g.limits.Retry
	for ctx.Err() == nil {
		heard, err := g.listen(ctx, id)
		if ctx.Err() != nil || catalog.CodeOf(err) == catalog.TunnelGone {
			return
		}
		if heard {
			pause = g.limits.Retry
		}
		g.log.Warn("site state stream ended", "connector", connector, "connection", id, "code", catalog.CodeOf(err), "cause", err)
		sleep(ctx, pause/2+rand.N(pause/2+1))
		pause = min(2*pause, longestRetry)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// listen reads lines until the stream ends. heard says that one of them was good. Its
// error is never nil.
func (g *Gateway) listen(ctx context.Context, id string) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(auth.StaleAfter, func() {
		cancel(catalog.Errorf(catalog.GatewayStateStream, "nothing for %s", auth.StaleAfter))
	})
	defer silence.Stop()
	response, err := g.hub.Through(id).RoundTrip(g.toSite(ctx, http.MethodGet, nil))
	if err != nil {
		return false, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return false, catalog.Errorf(catalog.GatewayStateStream, "the site answered with status %d", response.StatusCode)
	}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, token.MaxDocument+2)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		err := g.apply(lines.Text())
		if err == nil {
			heard = true
			silence.Reset(auth.StaleAfter)
			continue
		}
		if code := catalog.CodeOf(err); code != catalog.StateOlderEpoch && code != catalog.StateStale {
			return heard, err // StateBehind gets the state anew; the others are no word of the site
		}
		g.quiet.Do(func() {
			g.log.Warn("site state line refused", "connection", id, "code", catalog.CodeOf(err), "cause", err)
		})
	}
	return heard, streamError(ctx, lines.Err())
}

func streamError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err == nil {
		err = io.EOF
	}
	return catalog.Wrap(catalog.GatewayStateStream, err, "the stream broke off")
}

// toSite returns a request of the gateway's own to the management point's state door.
func (g *Gateway) toSite(ctx context.Context, method string, body io.Reader) *http.Request {
	request, err := http.NewRequestWithContext(ctx, method, "http://tunnel"+statePath, body)
	if err != nil {
		panic("gateway: " + err.Error()) // all parts are constants
	}
	request.Host = g.names[0]
	return request
}

// apply takes one line of the site. A new state ends the connections of blocked connectors
// and what is under way of other things that were revoked, is kept on disk, and is
// acknowledged after that; blocked keys and tokens are asked for at every request.
func (g *Gateway) apply(line string) error {
	g.kept.mu.Lock()
	defer g.kept.mu.Unlock()
	changed, err := g.state.Apply(line)
	if err != nil || !changed {
		return err
	}
	state, _ := g.state.Current()
	g.log.Info("site state applied", "epoch", state.Epoch)
	g.cut()
	g.dropBlocked() // which a peer may hold up
	g.keep(line)
	tell(g.acknowledge)
	return nil
}

// keep writes the state in force; g.kept.mu is held.
func (g *Gateway) keep(line string) {
	if g.kept.path == "" {
		return
	}
	if g.kept.err = keyfile.WriteFile(g.kept.path, []byte(line)); g.kept.err != nil {
		g.log.Error("site state not kept", "code", catalog.GatewayStateFile, "cause", g.kept.err)
	}
}

// inForce returns the state that has been taken whole: what it revokes is cut off.
func (g *Gateway) inForce() (token.SiteState, bool) {
	g.kept.mu.Lock()
	defer g.kept.mu.Unlock()
	return g.state.Current()
}
