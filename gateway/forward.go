package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
)

// streamBuffer is how much of an answer is in the gateway's hands at a time.
const streamBuffer = 32 << 10

// forward carries the request inside and the answer back. Path, host and body stay as
// they are; the connector rewrites the path. A body is never kept and never sent twice.
func (g *Gateway) forward(w http.ResponseWriter, r *http.Request, x *exchange) error {
	control := http.NewResponseController(w)
	if r.ProtoMajor == 1 {
		control.EnableFullDuplex() // otherwise net/http eats the body when the answer begins
	}
	watch := newWatch(r.Context(), g.limits.Answer)
	defer watch.stop()
	up := newUpload(r, control, watch, x, g.limits.Stall)
	x.upload = up
	if !up.present {
		auth.Await(r)
	}

	response, err := g.hub.RoundTrip(g.outgoing(watch.ctx, r, x, up))
	if err != nil {
		return up.blame(err)
	}
	defer response.Body.Close()
	auth.Answered(r)
	if response.StatusCode < 200 || response.StatusCode > 599 {
		return catalog.Errorf(catalog.GatewayAnswerInvalid, "status %d", response.StatusCode)
	}
	x.status = ccm.StatusFrom(response.StatusCode, response.Header)
	err = g.answer(w, r, response, x, watch, control)
	if err != nil && x.started {
		return err
	}
	return up.blame(err)
}

func (g *Gateway) outgoing(ctx context.Context, r *http.Request, x *exchange, up *upload) *http.Request {
	out := &http.Request{
		Method: r.Method,
		URL:    &url.URL{Scheme: "http", Host: "tunnel", Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, ForceQuery: r.URL.ForceQuery},
		Proto:  "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: x.inside(r),
		Host:   r.Host,
		Body:   http.NoBody,
	}
	if up.present {
		out.Body, out.ContentLength = up, r.ContentLength
	}
	return out.WithContext(ctx)
}

// answer writes the answer. One with a phrase of its own is small, and on HTTP/1.1 it
// needs the connection itself; everything else streams.
func (g *Gateway) answer(w http.ResponseWriter, r *http.Request, from *http.Response, x *exchange, watch *watch, control *http.ResponseController) error {
	header := pick(from.Header, responseHeaders())
	header.Set(ccm.HeaderMessageID, x.id)
	if x.status.Reason != http.StatusText(x.status.Code) {
		body, err := io.ReadAll(io.LimitReader(from.Body, maxPhrased+1))
		if err != nil {
			return watch.blame(err)
		}
		if len(body) > maxPhrased {
			return catalog.Errorf(catalog.GatewayAnswerInvalid, "an answer %s of more than %d bytes", x.status.Phrase(), maxPhrased)
		}
		x.sent = int64(len(body))
		ccm.WriteStatus(w, r, x.status, header, body)
		return nil
	}
	for name, values := range header {
		w.Header()[name] = values
	}
	if from.ContentLength >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(from.ContentLength, 10))
	}
	x.started = true
	w.WriteHeader(from.StatusCode)
	return g.stream(w, from, x, watch, control)
}

// maxPhrased bounds the body of an answer whose phrase is not the usual one.
const maxPhrased = 256 << 10

// stream copies the answer's body piece by piece. When nobody knows its length, each
// piece leaves at once.
func (g *Gateway) stream(w http.ResponseWriter, from *http.Response, x *exchange, watch *watch, control *http.ResponseController) error {
	buffer := g.buffers.Get().(*[streamBuffer]byte)
	defer g.buffers.Put(buffer)
	writing := deadline{set: control.SetWriteDeadline, limit: g.limits.Stall}
	defer writing.clear()
	if from.ContentLength < 0 {
		writing.extend()
		control.Flush()
	}
	for {
		n, err := from.Body.Read(buffer[:])
		if n > 0 {
			watch.touch()
			writing.extend()
			if _, err := w.Write(buffer[:n]); err != nil {
				return watch.blame(errClientGone)
			}
			x.sent += int64(n)
			if from.ContentLength < 0 && control.Flush() != nil {
				return watch.blame(errClientGone)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return watch.blame(err)
		}
	}
}

// upload is the device's body on its way inside: counted, limited, and given up when
// the device stalls.
type upload struct {
	from       io.ReadCloser
	present    bool
	limit      int64
	device     *http.Request // whose context ends when the device goes away
	connection *connection   // of HTTP/1; nil for HTTP/2, whose streams end one by one
	x          *exchange
	watch      *watch
	control    *http.ResponseController

	reading  sync.Mutex // held while from is read; guards what follows
	deadline deadline
	complete bool
	failure  error // why the body could not be carried
}

func newUpload(r *http.Request, control *http.ResponseController, watch *watch, x *exchange, stall time.Duration) *upload {
	u := &upload{
		from: r.Body, present: r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0,
		limit: x.route.Body, device: r, x: x, watch: watch, control: control,
		deadline: deadline{set: control.SetReadDeadline, limit: stall},
	}
	if r.ProtoMajor == 1 {
		u.connection = connectionOf(r.Context())
	}
	return u
}

// Read implements io.Reader for the tunnel.
func (u *upload) Read(p []byte) (int, error) {
	u.reading.Lock()
	defer u.reading.Unlock()
	switch {
	case u.complete:
		return 0, io.EOF
	case u.failure != nil:
		return 0, u.failure
	}
	u.deadline.extend()
	n, err := u.from.Read(p)
	u.watch.touch()
	total := u.x.received.add(int64(n))
	if total > u.limit {
		u.failure = tooLarge(u.limit)
		return 0, u.failure
	}
	if err == io.EOF || total == u.device.ContentLength {
		auth.Await(u.device)
	}
	switch {
	case err == io.EOF:
		u.deadline.clear()
		u.complete = true
		return n, err
	case errors.Is(err, os.ErrDeadlineExceeded):
		u.failure = catalog.Wrap(catalog.GatewayDeviceSlow, err, "no byte for %s", u.deadline.limit)
	case err != nil:
		u.failure = errClientGone
	}
	return n, u.failure
}

// Close implements io.Closer. The body is net/http's, which closes it itself; a Read
// under way would make it wait here.
func (u *upload) Close() error { return nil }

// blame returns the reason why a request could not be carried: the watch's, the body's
// own, or what the tunnel said.
func (u *upload) blame(err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(u.watch.ctx); catalog.CodeOf(cause) != "" {
		return cause // err may be the same, and what Read has said follows from it
	}
	if !u.reading.TryLock() {
		if u.device.Context().Err() == nil {
			return err
		}
		u.reading.Lock() // the connection has failed, so the Read is about to say how
	}
	defer u.reading.Unlock()
	if u.failure != nil {
		return u.failure
	}
	return err
}

// How much of a body is read, and how long, for a device that is still sending when it
// has its answer: one that is cut off at once may never see the answer.
const (
	drainBytes = 256 << 10
	drainTime  = 2 * time.Second
)

// finish makes sure that nobody reads the body after the handler's return. On HTTP/1, a
// body that has not ended spoils its connection: the rest of it must never be taken for
// a request.
func (u *upload) finish(answered bool) {
	if u == nil || !u.present || u.ended() || answered && u.connection != nil && u.drain() {
		return
	}
	u.connection.spoil()
	u.control.SetReadDeadline(time.Unix(1, 0)) // ends a Read under way
	u.from.Close()
}

func (u *upload) ended() bool {
	if !u.reading.TryLock() {
		return false
	}
	defer u.reading.Unlock()
	return u.complete
}

// drain sends the answer and reads the rest of the body, within bounds. It reports
// whether that was all.
func (u *upload) drain() bool {
	u.control.Flush()
	u.control.SetReadDeadline(time.Now().Add(drainTime))
	u.reading.Lock()
	defer u.reading.Unlock()
	if u.complete || catalog.CodeOf(u.failure) == catalog.GatewayDeviceSlow {
		return u.complete
	}
	_, err := io.CopyN(io.Discard, u.from, drainBytes)
	if u.complete = err == io.EOF; u.complete {
		u.control.SetReadDeadline(time.Time{})
	}
	return u.complete
}

// watch ends a request when nothing moves in either direction.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

func newWatch(parent context.Context, limit time.Duration) *watch {
	ctx, cancel := context.WithCancelCause(parent)
	w := &watch{ctx: ctx, cancel: cancel, limit: limit}
	w.timer = time.AfterFunc(limit, func() {
		cancel(catalog.Errorf(catalog.GatewayAnswerSlow, "nothing for %s", limit))
	})
	return w
}

func (w *watch) touch() { w.timer.Reset(w.limit) }

func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// blame returns our own reason for the end of a request when there is one.
func (w *watch) blame(err error) error {
	if cause := context.Cause(w.ctx); catalog.CodeOf(cause) != "" {
		return cause
	}
	return err
}

// deadline moves a connection's deadline ahead of what is sent, not at every byte.
type deadline struct {
	set   func(time.Time) error
	limit time.Duration
	last  time.Time
}

func (d *deadline) extend() {
	now := time.Now()
	if now.Sub(d.last) < d.limit/4 {
		return
	}
	d.last = now
	d.set(now.Add(d.limit)) // a writer without deadlines has the watch
}

func (d *deadline) clear() {
	if !d.last.IsZero() {
		d.set(time.Time{})
	}
}
