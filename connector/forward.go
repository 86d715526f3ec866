package connector

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/logfile"
)

// Exchange is what is known of one request when it is over.
type Exchange struct {
	MessageID string
	Gateway   string       // through which it came
	Endpoint  ccm.Endpoint // "" when the path was not understood
	Backend   string       // host, "" when none was asked
	Status    int          // answered to the gateway; 0 when the answer broke off
	Code      catalog.Code // of our own refusal, or of the failure
	Bearer    bool         // came with a token
	Received  int64        // bytes of the request's body
	Sent      int64        // bytes of the answer's body
	Elapsed   time.Duration
}

// forwarder answers what comes over one connection to a gateway.
type forwarder struct {
	*Connector
	gateway  Gateway
	draining <-chan struct{} // closed when the connection takes no more; streams of the site state end then
	relayed  atomic.Int32    // questions about the site state under way
}

// ServeHTTP passes a request on to the backend that the table names, and its answer
// back. Bodies stream both ways. When the answer cannot be completed it panics with
// http.ErrAbortHandler, so that the gateway sees it break off.
func (f *forwarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.RequestURI == statePath {
		f.relayState(w, r)
		return
	}
	x := f.begin(r)
	defer x.end()
	answer, err := x.ask()
	if err != nil {
		x.refuse(w, err)
		return
	}
	defer answer.Body.Close()
	x.pass(w, answer)
}

// exchange is one request on its way.
type exchange struct {
	*forwarder
	Exchange
	request *http.Request
	began   time.Time
	path    ccm.Path
	target  *url.URL // nil until the table named it
	counter *counter
	err     error
}

func (f *forwarder) begin(r *http.Request) *exchange {
	x := &exchange{forwarder: f, request: r, began: f.cfg.Now()}
	x.MessageID = r.Header.Get(ccm.HeaderMessageID)
	if x.MessageID == "" || len(x.MessageID) > 64 {
		x.MessageID = newMessageID()
		r.Header.Set(ccm.HeaderMessageID, x.MessageID) // also in what is passed on: one request, one id
	}
	trace, _ := logfile.ParseTraceparent(r.Header.Get("Traceparent"))
	trace.Message = x.MessageID
	x.request = r.WithContext(logfile.WithTrace(r.Context(), trace))
	x.Gateway = f.gateway.Name
	x.Bearer = r.Header.Get("Authorization") != ""
	return x
}

// ask finds the backend and sends it the request.
func (x *exchange) ask() (*http.Response, error) {
	if err := x.route(); err != nil {
		return nil, err
	}
	x.counter = x.traffic.begin(x.Gateway, x.Endpoint, x.Backend)
	x.logForwarding()
	answer, err := x.backends.Load().RoundTrip(x.outgoing())
	if err != nil {
		return nil, backendError(x.Backend, err)
	}
	if answer.StatusCode >= 300 && answer.StatusCode < 400 && answer.StatusCode != http.StatusNotModified || answer.StatusCode < 200 {
		answer.Body.Close()
		return nil, catalog.Errorf(catalog.BackendRedirect, "status %d from management point %s", answer.StatusCode, x.Backend)
	}
	return answer, nil
}

// route understands the path and looks it up in the site's signed table.
func (x *exchange) route() error {
	path, err := ccm.ParsePath(x.request.RequestURI)
	if err != nil {
		return err
	}
	x.path, x.Endpoint = path, path.Endpoint
	if !methods[x.request.Method] {
		return catalog.Errorf(catalog.ConnectorMethodRefused, "method %.32q", x.request.Method)
	}
	if _, known := x.state.Current(); !known {
		return catalog.Errorf(catalog.ConnectorStateMissing, "connector %s", x.cfg.Name)
	}
	base, published := x.state.Published(path.RoleID, path.Endpoint)
	if path.Door == ccm.DoorDirect || !published {
		return catalog.Errorf(catalog.ConnectorEndpointUnknown, "role %d, endpoint %s", path.RoleID, path.Endpoint)
	}
	x.target, err = backendURL(base, path.Internal())
	if err == nil {
		x.Backend = x.target.Host
	}
	return err
}

// outgoing is the request as the backend gets it: made new, from what was understood.
func (x *exchange) outgoing() *http.Request {
	out := &http.Request{
		Method:        x.request.Method,
		URL:           x.target,
		Host:          x.target.Host,
		Header:        requestHeader(x.request.Header),
		Body:          http.NoBody,
		ContentLength: x.request.ContentLength,
	}
	if x.request.Body != nil && x.request.Body != http.NoBody && x.request.ContentLength != 0 {
		out.Body = &countingBody{ReadCloser: x.request.Body, n: x.counter.received}
	}
	return out.WithContext(x.request.Context())
}

// pass gives the backend's answer to the gateway.
func (x *exchange) pass(w http.ResponseWriter, answer *http.Response) {
	copyAnswerHeader(w.Header(), answer.Header)
	text := phrase(answer)
	if text != "" {
		w.Header().Set(ccm.HeaderStatus, text)
	}
	x.logAnswer(answer.StatusCode, text)
	w.WriteHeader(answer.StatusCode)
	n, err := stream(w, answer)
	x.Sent = n
	if err != nil {
		x.err, x.Code = err, catalog.TunnelAborted // what the gateway makes of it
		panic(http.ErrAbortHandler)
	}
	x.Status = answer.StatusCode
}

// refuse answers in the connector's own name.
func (x *exchange) refuse(w http.ResponseWriter, err error) {
	x.err = err
	if x.request.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the device is gone, nobody reads an answer
	}
	x.Code = catalog.CodeOf(err)
	status := statusOf(x.Code)
	x.Status = status.Code
	x.logRefusal(status, err)
	if status.Code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "10")
	}
	ccm.WriteError(w, x.request, status, err)
}

// statusOf returns the status of a refusal: the catalogue's, and for 500 with the
// phrase that the documents have.
func statusOf(code catalog.Code) ccm.Status {
	entry, _ := catalog.Lookup(code)
	switch entry.Status {
	case 0, http.StatusInternalServerError:
		return ccm.ConnectorStatus(http.StatusInternalServerError, "")
	}
	return ccm.StatusOf(entry.Status)
}

func (x *exchange) end() {
	x.Elapsed = x.cfg.Now().Sub(x.began)
	if x.counter != nil {
		x.Received = x.counter.received.Load()
		x.traffic.end(x.counter, x.Bearer, x.Sent, x.Status == 0 || x.Status >= 400)
	}
	x.logEnd()
	x.cfg.OnRequest(x.Exchange)
}

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// stream copies an answer's body. One of unknown length is flushed as it comes: the
// other side may be waiting for a line of it.
func stream(w http.ResponseWriter, answer *http.Response) (written int64, err error) {
	buffer := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buffer)
	var flusher http.Flusher
	if answer.ContentLength < 0 {
		flusher, _ = w.(http.Flusher)
	}
	for {
		n, readErr := answer.Body.Read(buffer[:])
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return written, fmt.Errorf("answer the gateway: %w", err)
			}
			written += int64(n)
			if flusher != nil {
				flusher.Flush()
			}
		}
		if errors.Is(readErr, io.EOF) && !errors.Is(readErr, io.ErrUnexpectedEOF) {
			return written, nil
		}
		if readErr != nil {
			return written, fmt.Errorf("read the answer: %w", readErr)
		}
	}
}

// countingBody counts what is read of a request's body.
type countingBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// newMessageID makes an id for a request that came without one.
func newMessageID() string {
	var id [16]byte
	rand.Read(id[:]) // never fails
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// external is the request's URL as the device wrote it.
func (x *exchange) external() string {
	host := x.request.Header.Get(ccm.HeaderExternalHost)
	if host == "" {
		host = x.request.Host
	}
	return "https://" + host + x.request.RequestURI
}

// internal is the URL at the backend, or the external one when none was found.
func (x *exchange) internal() string {
	if x.target == nil {
		return x.external()
	}
	return x.target.String()
}

// endpointName is the first segment of the internal path, as sent inside (S2).
func (x *exchange) endpointName() string {
	if x.target == nil {
		return ""
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(x.target.Path, "/"), "/")
	return name
}
