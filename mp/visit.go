package mp

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/logfile"
	"postern/proof"
	"postern/site"
	"postern/token"
)

// visit is one request on its way through the management point.
type visit struct {
	mp       *ManagementPoint
	w        *answer
	r        *http.Request
	listener Listener
	began    time.Time

	path   ccm.Path
	route  *Route // nil until found
	hop    hop
	trace  logfile.Trace
	proof  proof.Proof
	capped bool       // what was proved is worth level known at most
	signed bool       // the answer has been signed, or refused to be
	spent  bool       // the ticket of Windows authentication has been noted
	called string     // the address in the caller's DPoP proof, once it has been compared with ours
	status ccm.Status // of a refusal, with the numbers for the access log
	unread io.Reader  // the body without its bound
	raw    []byte     // the body of a message as it was received, for the inbox
	share  share      // of the room for what messages unpack to
	came   share      // of the room for large bodies

	release func()              // gives a held request free; nil when it is not held
	held    proof.KeyThumbprint // the key whose revocation ends it
	leave   func()              // ends the turn at the token service; nil when it has none

	act     string // what was done, in words
	refused error  // the first refusal
}

type visitKey struct{}

// visitOf returns the visit that a request belongs to.
func visitOf(ctx context.Context) *visit {
	v, _ := ctx.Value(visitKey{}).(*visit)
	return v
}

// serve is the whole of a request: where it comes from, which route it takes, what it proves, and then its conversation.
func (m *ManagementPoint) serve(l Listener, w http.ResponseWriter, r *http.Request) {
	v := &visit{mp: m, w: &answer{ResponseWriter: w}, listener: l, began: m.now()}
	v.r = r.WithContext(context.WithValue(r.Context(), visitKey{}, v))
	defer v.let()
	defer v.finish()
	if err := v.receive(); err != nil {
		v.refuse(err)
		return
	}
	v.route.handle(v)
}

// receive does all that every route needs before its conversation begins.
func (v *visit) receive() error {
	relayError := v.relay()
	if strings.EqualFold(v.r.Header.Get("Connection"), "close") {
		v.w.Header().Set("Connection", "close") // a client that asked for it waits for it (protocol.md 12)
	}
	if relayError != nil {
		return relayError
	}
	path, err := ccm.ParsePath(v.r.RequestURI)
	if err != nil {
		return err
	}
	v.path = path
	route, allowed, err := v.mp.find(v.mp.on(v.listener, path, !v.hop.direct()), path, v.r.Method)
	if err != nil {
		if allowed != nil {
			v.w.Header().Set("Allow", strings.Join(allowed, ", "))
		}
		return err
	}
	v.route = route
	v.giveNonce()
	if route.endpoint == ccm.EndpointSTS {
		v.mp.logs.tokenBegins(v.mp.config.FQDN)
	}
	if err := v.admit(); err != nil {
		return err
	}
	v.proof.Address, v.proof.RequestID, v.proof.At = v.hop.address, v.trace.ID, v.began
	if err := v.hold(); err != nil {
		return err
	}
	return v.boundBody()
}

// boundBody refuses a body that says it is too large and cuts one that does not say.
func (v *visit) boundBody() error {
	if v.r.ContentLength > v.route.Body {
		return catalog.Errorf(catalog.RequestTooLarge, "%d bytes; the limit is %d", v.r.ContentLength, v.route.Body)
	}
	v.unread = v.r.Body
	v.r.Body = http.MaxBytesReader(v.w.ResponseWriter, v.r.Body, v.route.Body)
	return nil
}

// What is read, and for how long, of a body that is too large: a client that is reset while it sends never sees the status.
const (
	drainBytes = 16 << 20
	drainTime  = 2 * time.Second
)

func (v *visit) drain() {
	body := v.unread
	if body == nil {
		body = v.r.Body
	}
	http.NewResponseController(v.w).SetReadDeadline(time.Now().Add(drainTime)) // without deadlines the size alone bounds it
	io.Copy(io.Discard, io.LimitReader(body, drainBytes))
}

// body reads the whole body of a small request.
func (v *visit) body() ([]byte, error) {
	v.hurry()
	data, err := io.ReadAll(v.r.Body)
	if err == nil {
		v.rest()
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, catalog.Errorf(catalog.RequestTooLarge, "more than %d bytes", tooLarge.Limit)
	case err != nil:
		return nil, catalog.Wrap(catalog.RequestMalformed, err, "the body broke off after %d bytes", len(data))
	}
	return data, nil
}

// caller is what the site judges.
func (v *visit) caller() site.Caller {
	return site.Caller{Proof: v.proof, Ceiling: v.ceiling(), Direct: v.hop.direct()}
}

// ceiling is the highest level that this request gives: the route's, or known where only a gateway has seen the proof.
func (v *visit) ceiling() proof.Level {
	if v.capped {
		return min(v.route.Ceiling, proof.LevelKnown)
	}
	return v.route.Ceiling
}

// reply answers with a whole body. What was revoked meanwhile gets none.
func (v *visit) reply(status int, contentType string, body []byte) {
	if revoked := v.revoked(); revoked != nil {
		v.refuse(revoked)
		return
	}
	if err := v.sign(status, body); err != nil {
		v.refuse(err)
		return
	}
	v.w.Header().Set("Content-Type", contentType)
	v.w.Header().Set("Cache-Control", "no-store")
	v.w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	v.w.WriteHeader(status)
	v.write(body)
}

// piece is how much of an answer leaves before it is asked whether the rest may.
const piece = 256 << 10

// write writes the body of an answer until what the request proved is revoked.
func (v *visit) write(body []byte) {
	for part := range slices.Chunk(body, piece) {
		if revoked := v.revoked(); revoked != nil {
			v.remember(revoked, v.kind(), "")
			panic(http.ErrAbortHandler) // half an answer must not look like a whole one
		}
		if _, err := v.w.Write(part); err != nil && v.revoked() == nil {
			return
		}
	}
}

// refuse answers with the status and the catalogue's account of err, and keeps both.
func (v *visit) refuse(err error) {
	if revoked := v.revoked(); revoked != nil {
		err = revoked // the rest follows from that
		v.w.Header().Set("Connection", "close")
	}
	var exact *refusal
	if errors.As(err, &exact) {
		v.refuseAs(exact.status, exact.err)
		return
	}
	v.refuseAs(ccm.Status{}, err)
}

// retryAfter is what a caller is told to wait when the fault is not its own.
const retryAfter = "5"

func (v *visit) refuseAs(status ccm.Status, err error) {
	err = known(err)
	if status.Code == 0 {
		status = statusOf(err)
	}
	v.status = status
	v.remember(err, v.kind(), "")
	if v.route != nil && v.route.endpoint == ccm.EndpointSTS {
		v.mp.logs.tokenRefused(status.Code, err)
	}
	if status.Code == http.StatusRequestEntityTooLarge {
		v.drain()
	}
	header := v.w.Header()
	switch {
	case status.Code >= http.StatusInternalServerError || status.Code == http.StatusTooManyRequests:
		header.Set("Retry-After", retryAfter)
	case status.Code == http.StatusUnauthorized && header.Get("WWW-Authenticate") == "":
		header.Set("WWW-Authenticate", challenge(err))
	}
	v.r.Header.Set(ccm.HeaderMessageID, v.trace.Message)
	ccm.WriteError(v.w, v.r, status, err)
}

// challenge is the answer's word to a client without a good token (RFC 9449 7.1).
func challenge(err error) string {
	const algorithms = `algs="RS256 PS256 ES256"`
	if code := catalog.CodeOf(err); code == catalog.TokenMissing {
		return "DPoP " + algorithms
	}
	if token.AsksNonce(err) {
		return `DPoP error="use_dpop_nonce", ` + algorithms
	}
	return `DPoP error="invalid_token", ` + algorithms
}

// known gives every error a code: what has none is a fault of ours, and a database that is away is said to be away.
func known(err error) error {
	switch {
	case catalog.CodeOf(err) != "":
		return err // the store says more exactly what is wrong: a full disk, a database that is away
	case errors.Is(err, site.ErrUnavailable):
		return catalog.Wrap(catalog.StoreUnavailable, err, "try again shortly")
	}
	return catalog.Wrap(catalog.InternalError, err, "")
}

// firstOperationCode begins the areas of the catalogue that are about our own machinery: operation, store, inbox.
const firstOperationCode catalog.Code = "P750"

// ours reports whether err is a fault on our side rather than the caller's.
func ours(err error) bool {
	code := catalog.CodeOf(known(err))
	entry, _ := catalog.Lookup(code)
	return entry.Status >= http.StatusInternalServerError || entry.Status == 0 && code >= firstOperationCode
}

func statusOf(err error) ccm.Status {
	if entry, ok := catalog.Lookup(catalog.CodeOf(err)); ok && entry.Status != 0 {
		return ccm.StatusOf(entry.Status)
	}
	return ccm.StatusOf(http.StatusInternalServerError)
}

// remember keeps a refusal: in the log with its cause, in the site's events with its code. Its subject is who is known to have asked: a device, else the
// key that was proved.
func (v *visit) remember(err error, kind, subject string) {
	code := catalog.CodeOf(err)
	if v.refused == nil {
		v.refused = err
	}
	if v.mp.config.Hooks.Refused != nil {
		v.mp.config.Hooks.Refused(code)
	}
	if subject == "" {
		subject = cmp.Or(string(v.proof.Client), string(v.proof.Key), string(auth.RefusedKey(err)))
	}
	v.mp.log.LogAttrs(v.r.Context(), levelOf(err), "refused",
		slog.String("code", string(code)), slog.String("route", v.routeName()), slog.String("subject", subject),
		slog.String("address", v.hop.address), slog.String("connector", v.hop.connector), slog.Any("error", err))
	if code != catalog.NegotiateRequired { // half of all healthy Windows authentication; the access log has it
		v.note(code, kind, subject, catalog.DetailOf(err))
	}
}

func levelOf(err error) slog.Level {
	entry, _ := catalog.Lookup(catalog.CodeOf(err))
	switch {
	case ours(err):
		return slog.LevelError
	case entry.Severity == catalog.SeverityInfo:
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

func (v *visit) note(code catalog.Code, kind, subject, detail string) {
	v.mp.site.Note(site.Event{Code: string(code), Kind: kind, Subject: subject, Address: v.hop.address, TraceID: v.trace.ID, Detail: detail})
}

// kind is the word for the conversation in events.
func (v *visit) kind() string {
	if v.route == nil {
		return "request"
	}
	switch v.route.endpoint {
	case ccm.EndpointSTS:
		return "token"
	case ccm.EndpointMP, ccm.EndpointMPTokenAuth, ccm.EndpointMPAltAuth:
		return "policy"
	case ccm.EndpointState:
		return "peer"
	}
	return "message"
}

func (v *visit) routeName() string {
	if v.route == nil {
		return ""
	}
	return v.route.Path
}

// finish ends every request: it answers for a panic, and writes the access log.
func (v *visit) finish() {
	if fault := recover(); fault != nil {
		if fault == http.ErrAbortHandler {
			v.access()
			panic(fault)
		}
		v.mp.log.ErrorContext(v.r.Context(), "panic", "route", v.routeName(), "panic", fmt.Sprint(fault), "stack", string(debug.Stack()))
		err := catalog.Errorf(catalog.InternalError, "")
		if v.w.status == 0 {
			v.refuse(err)
		} else {
			v.access()
			panic(http.ErrAbortHandler) // half an answer must not look like a whole one
		}
	}
	v.access()
}

// answer is the response writer that remembers what was answered. http.ResponseController reaches the connection through Unwrap.
type answer struct {
	http.ResponseWriter
	status int
	bytes  int64
}

// WriteHeader implements [http.ResponseWriter].
func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= 200 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (a *answer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	n, err := a.ResponseWriter.Write(b)
	a.bytes += int64(n)
	return n, err
}

// Unwrap lets [http.ResponseController] find the connection.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// newTrace makes the ids of a request that brought none. The message id is the trace id written as a uuid, so that one finds the other.
func (m *ManagementPoint) newTrace() logfile.Trace {
	var random [24]byte
	if _, err := io.ReadFull(m.config.Rand, random[:]); err != nil {
		m.log.Error("read randomness", "error", err)
	}
	t := logfile.NewTrace(random)
	t.Message = asUUID(random[:16])
	return t
}

func asUUID(b []byte) string {
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// hostOnly returns an address without its port.
func hostOnly(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}
