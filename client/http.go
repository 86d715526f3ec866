package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/logfile"
	"postern/token"
)

// Budgets of answers, far above what servers send, and of time.
const (
	maxTokenAnswer = 64 << 10
	maxProblem     = 64 << 10
	maxPolicyBody  = 8 << 20
	maxHeaderBytes = 64 << 10
	requestTime    = 60 * time.Second // Msg/Timeout (protocol.md 2.2)
)

// call is one request as an act describes it. It is made anew for each try, because proofs
// are for one use.
type call struct {
	method, url, query, contentType string
	body                            []byte
	token                           string // goes into Authorization with a proof of the signing key; "" for none
	scheme                          string // of Authorization; "" is DPoP
	preAuth                         bool   // the token is exchanged, not used
	keyAlone                        bool   // a proof of the signing key goes along although there is no token
	ofGateway                       bool   // the gateway itself answers, so no management point signs
	header                          http.Header
	windows                         *windowsProof // Windows authentication, when not nil
	limit                           int64         // bytes of the answer
}

// answer is what came back, with status 200.
type answer struct {
	contentType string
	body        []byte
	date        time.Time // the server's clock; zero when it did not say
}

// serverSaid is an error with the time that the server's answer carried.
type serverSaid struct {
	err   error
	date  time.Time
	nonce string // for proofs; "" when there was none
}

func (s *serverSaid) Error() string { return s.err.Error() }
func (s *serverSaid) Unwrap() error { return s.err }

// ask sends a request and lets read judge the answer. When the refusal is one that a wrong
// clock explains and the server's clock differs, the agent takes the server's time, says
// so, and asks once more; a proof that was used up by a retry of the transport is made
// anew likewise.
func (a *Agent) ask(ctx context.Context, c *conversation, prepare func(now time.Time) (call, error), read func(answer) error) error {
	err := a.askOnce(ctx, c, prepare, read)
	if err == nil || !a.worthAgain(ctx, c, err) {
		return err
	}
	return a.askOnce(ctx, c, prepare, read)
}

func (a *Agent) askOnce(ctx context.Context, c *conversation, prepare func(now time.Time) (call, error), read func(answer) error) error {
	q, err := prepare(a.clock.corrected())
	if err != nil {
		return err
	}
	got, err := a.send(ctx, c, q)
	if err != nil {
		return err
	}
	if err := read(got); err != nil {
		return &serverSaid{err: err, date: got.date}
	}
	return nil
}

// worthAgain learns from a refusal. The time is taken only from a server that was
// recognised: on plain HTTP anybody could set it.
func (a *Agent) worthAgain(ctx context.Context, c *conversation, err error) bool {
	code := catalog.CodeOf(err)
	if code == catalog.ProofReplayed {
		return true
	}
	said, ok := errors.AsType[*serverSaid](err)
	if !ok || !c.route.secure() {
		return false
	}
	asked := slices.Contains(nonceCodes(), code) && a.nonces.demanded(said.nonce)
	if !asked && !slices.Contains(clockCodes(), code) || !a.clock.learn(said.date) {
		return asked
	}
	a.logs.clockIsWrong(c.log, a.clock.difference())
	a.log.WarnContext(ctx, "the clock of this device is wrong; going on with the site's time",
		"code", string(catalog.ClientClock), "refusal", string(code), "offset", a.clock.difference())
	return true
}

// send makes one request. Errors have catalogue codes and carry no token.
func (a *Agent) send(ctx context.Context, c *conversation, q call) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	if q.windows != nil {
		return a.sendWithTicket(ctx, c, q)
	}
	response, err := a.open(ctx, c, q)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	return a.receive(c, q, response)
}

// open sends a request and returns the answer as it begins. A server under a root that is
// not known is asked how the site root was replaced; the request goes out, anew, once that
// is known.
func (a *Agent) open(ctx context.Context, c *conversation, q call) (*http.Response, error) {
	response, err := a.openOnce(ctx, c, q)
	if err == nil || !otherRoot(err) {
		return response, err
	}
	if err := a.followRoots(ctx, c, err); err != nil {
		return nil, err
	}
	return a.openOnce(ctx, c, q)
}

func (a *Agent) openOnce(ctx context.Context, c *conversation, q call) (*http.Response, error) {
	r, err := a.request(ctx, c, q)
	if err != nil {
		return nil, err
	}
	client, err := a.httpClient(c.route)
	if err != nil {
		return nil, err
	}
	c.line.write(c.log, c.route, q)
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{ConnectDone: func(_, _ string, err error) {
		if err == nil {
			a.logs.connected(c)
		}
	}}))
	response, err := client.Do(r)
	if err != nil {
		err = connectionError(err, a.config.Now())
		a.logs.connectionFailed(c, q.url, err)
		return nil, err
	}
	return response, nil
}

func (a *Agent) request(ctx context.Context, c *conversation, q call) (*http.Request, error) {
	address := q.url
	if q.query != "" {
		address += "?" + q.query
	}
	r, err := http.NewRequestWithContext(ctx, q.method, address, bytes.NewReader(q.body))
	if err != nil {
		return nil, catalog.Wrap(catalog.ClientCommandValue, err, "the address cannot be used")
	}
	for name, values := range q.header {
		r.Header[name] = values
	}
	if q.contentType != "" {
		r.Header.Set("Content-Type", q.contentType)
	}
	r.Header.Set("User-Agent", c.agent)
	if a.current().Anchor.wantsSignature(c.route) && !q.ofGateway {
		if err := a.askSignature(r.Header); err != nil {
			return nil, err
		}
	}
	span := a.newTrace()
	span.ID = c.trace.ID
	r.Header.Set("Traceparent", span.Traceparent())
	return r, a.prove(c, q, r.Header)
}

// schemeBearer is for tokens of a tenant: they are bound to no key of the device.
const schemeBearer = "Bearer"

// prove puts the token into a request, with a proof of the key that the device is known by.
// Behind a gateway a certificate comes with a proof of its own key: what the gateway says of
// a certificate is the gateway's word alone.
func (a *Agent) prove(c *conversation, q call, header http.Header) error {
	var key crypto.Signer
	switch {
	case q.token != "":
		key = a.speaker(c).signing
		header.Set("Authorization", cmp.Or(q.scheme, "DPoP")+" "+q.token)
	case q.keyAlone:
		key = a.speaker(c).signing
	case c.certificate() && c.route.RoleID != 0 && !q.ofGateway:
		company, err := a.certificateInUse()
		if err != nil {
			return err
		}
		if company == nil {
			return nil
		}
		key = company.key
	default:
		return nil
	}
	proof, err := token.SignProofNonce(key, q.method, q.url, q.token, a.nonces.get(), a.clock.corrected(), a.config.Rand)
	if err != nil {
		return err
	}
	header.Set("DPoP", proof)
	return nil
}

// receive reads an answer within its budget.
func (a *Agent) receive(c *conversation, q call, response *http.Response) (answer, error) {
	date, err := http.ParseTime(response.Header.Get("Date"))
	if err != nil {
		date = time.Time{}
	}
	if response.StatusCode == http.StatusOK {
		a.hearNonce(c, response, date)
	}
	limit := q.limit
	if response.StatusCode != http.StatusOK {
		limit = maxProblem
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	switch {
	case err != nil:
		err = catalog.Wrap(catalog.ClientConnectionLost, err, "the answer of %s ended early", c.route.Host)
		a.logs.connectionFailed(c, q.url, err)
		return answer{}, err
	case response.StatusCode != http.StatusOK:
		return answer{}, a.refused(c, q, response, body, date)
	case int64(len(body)) > limit:
		return answer{}, catalog.Errorf(catalog.ClientAnswerTooLarge, "%s answered with more than %d bytes", c.route.Host, limit)
	}
	if err := a.checkSigned(c, response, body); err != nil {
		if !otherRoot(err) {
			return answer{}, err
		}
		if err := a.followRoots(response.Request.Context(), c, err); err != nil {
			return answer{}, err
		}
		if err := a.checkSigned(c, response, body); err != nil {
			return answer{}, err
		}
	}
	return answer{contentType: response.Header.Get("Content-Type"), body: body, date: date}, nil
}

func (a *Agent) refused(c *conversation, q call, response *http.Response, body []byte, date time.Time) error {
	status := statusOf(response)
	a.logs.badStatus(c, q.url, status)
	if int64(len(body)) > maxProblem {
		body = nil
	}
	refusal := parseProblem(c.route.Host, status, response.Header, body, q.token)
	a.logs.refused(c, refusal)
	if !slices.Contains(nonceCodes(), catalog.CodeOf(refusal)) {
		a.hearNonce(c, response, date)
	}
	return &serverSaid{refusal, date, response.Header.Get("DPoP-Nonce")}
}

// statusOf reads the reason phrase: of the status line, or of the header that stands in
// for it where there is none.
func statusOf(response *http.Response) ccm.Status {
	status := ccm.StatusFrom(response.StatusCode, response.Header)
	if response.ProtoMajor == 1 && response.Header.Get(ccm.HeaderStatus) == "" {
		if _, phrase, ok := strings.Cut(response.Status, " "); ok && phrase != "" {
			status.Reason = clean(phrase, 128)
		}
	}
	return status
}

// httpClient returns the client for a route; another route or anchor ends the old
// connections.
func (a *Agent) httpClient(r route) (*http.Client, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.record.Anchor
	if r.Internet && (n.empty() || !r.secure()) {
		return nil, catalog.Errorf(catalog.ClientNoTrustAnchor, "give --root-key or --ca-file for %s", r.Host)
	}
	if n.empty() && !r.secure() {
		return nil, noAnchorInside(r)
	}
	shown := "" // the company's own renewal may put another certificate into the same files
	if a.company != nil {
		shown = a.company.chosen().Sum
	}
	via := strings.Join([]string{r.Scheme, r.Host, r.role(), n.RootKey, n.CA, shown, string(a.checking(a.record)), strings.Join(a.record.Revocation.Sources, " ")}, "\x00")
	if a.companyErr != nil && r.secure() {
		return nil, a.companyErr
	}
	if a.client != nil && a.via == via {
		return a.client, nil
	}
	if a.client != nil {
		a.client.CloseIdleConnections()
	}
	trust, err := a.serverCheck(a.record, r)
	if err != nil {
		return nil, err
	}
	a.show(trust)
	a.client, a.via = newHTTPClient(a.config, trust), via
	return a.client, nil
}

// show lets connections show the company's certificate to whoever asks for one. It runs
// with a.mu held.
func (a *Agent) show(trust *tls.Config) {
	company := a.company
	if company == nil {
		return
	}
	trust.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &company.chain, nil }
}

func newHTTPClient(config Config, trust *tls.Config) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy: config.Proxy, DialContext: config.Dial, TLSClientConfig: trust, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: 30 * time.Second, IdleConnTimeout: 90 * time.Second, MaxIdleConnsPerHost: 4,
			MaxResponseHeaderBytes: maxHeaderBytes, DisableCompression: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// connectionError gives a code to a request that got no answer.
func connectionError(err error, now time.Time) error {
	if catalog.CodeOf(err) != "" {
		inner, _ := errors.AsType[*catalog.Error](err)
		return inner
	}
	if certificate := ofCertificate(err, now); certificate != nil {
		return certificate
	}
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err // the address is said once already
	}
	var name *net.DNSError
	var dial *net.OpError
	var alert tls.AlertError
	var record tls.RecordHeaderError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &name):
		return catalog.Wrap(catalog.ClientNameNotResolved, err, "%s", clean(name.Name, 255))
	case errors.Is(err, context.DeadlineExceeded) || timeout(err):
		return catalog.Wrap(catalog.ClientTimeout, err, "no answer")
	case handshakeError(err) != nil:
		return handshakeError(err)
	case errors.As(err, &alert) || errors.As(err, &record) || strings.Contains(err.Error(), "tls: "):
		return catalog.Wrap(catalog.ClientTLSFailed, err, "the handshake failed")
	case errors.As(err, &dial) && (dial.Op == "dial" || dial.Op == "proxyconnect"):
		return catalog.Wrap(catalog.ClientCannotConnect, err, "no connection")
	}
	return catalog.Wrap(catalog.ClientConnectionLost, err, "no complete answer")
}

func timeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// Transient reports whether trying again later may help without anything being changed:
// the network, or a server that is busy.
func Transient(err error) bool {
	switch catalog.CodeOf(err) {
	case catalog.ClientNameNotResolved, catalog.ClientCannotConnect, catalog.ClientTimeout, catalog.ClientConnectionLost, catalog.ClientServerBusy,
		catalog.EntraUnreachable, catalog.RevocationUnreachable, catalog.RevocationAnswerNone, catalog.RoamNoWay:
		return true
	case catalog.ClientNoManagementPoint:
		none, ok := errors.AsType[*catalog.Error](err)
		return ok && Transient(none.Err)
	}
	refusal, ok := errors.AsType[*ServerError](err)
	return ok && busy(refusal.Status)
}

// contextOf keeps a conversation's trace in a context that does not end with its caller.
func contextOf(ctx context.Context) context.Context {
	return logfile.WithTrace(context.WithoutCancel(ctx), logfile.TraceOf(ctx))
}
