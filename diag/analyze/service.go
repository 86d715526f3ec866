package analyze

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/diag"
	"postern/logfile"
)

// maxAnswer bounds an answer; the documents of a gateway are far smaller.
const maxAnswer = 256 << 10

// answer is what came back.
type answer struct {
	status int
	phrase string // the text of the status line, or of the header that stands for it
	header http.Header
	body   []byte
	trace  string
}

// problem is what is read of RFC 9457 problem details.
type problem struct {
	Title  string       `json:"title"`
	Detail string       `json:"detail"`
	Code   catalog.Code `json:"code"`
}

func (a answer) problem() (p problem) {
	if kind, _, _ := mime.ParseMediaType(a.header.Get("Content-Type")); strings.HasSuffix(kind, "json") && json.Unmarshal(a.body, &p) == nil {
		return p
	}
	return problem{}
}

// String is the status and what came with it.
func (a answer) String() string {
	text := fmt.Sprintf("%d %s", a.status, short(a.phrase, 100))
	if p := a.problem(); p.Code != "" {
		text += fmt.Sprintf(", %s %s: %s", short(string(p.Code), 8), short(p.Title, 120), short(p.Detail, 300))
	}
	return text
}

// short keeps a value that another side wrote from filling the screen.
func short(text string, limit int) string {
	text = diag.Printable(text)
	if runes := []rune(text); len(runes) > limit {
		return string(runes[:limit]) + "..."
	}
	return text
}

// get asks for one document. Without what a person gave it tells nothing that a browser
// would not, so it may go to a server whose certificate is not trusted. With a credential
// the connection must show the very certificate that was found good.
func (r *run) get(ctx context.Context, path string, header http.Header, secret bool) (answer, error) {
	if secret && !r.trusted {
		return answer{}, errors.New("the certificate was not found good; nothing secret is sent")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*r.Timeout)
	defer cancel()
	config := &tls.Config{ServerName: r.host, MinVersion: tls.VersionTLS10, CipherSuites: everySuite(), InsecureSkipVerify: true} // see VerifyConnection
	if secret {
		config.MinVersion, config.CipherSuites = tls.VersionTLS12, nil
		config.VerifyConnection = func(state tls.ConnectionState) error {
			if !bytes.Equal(state.PeerCertificates[0].Raw, r.state.PeerCertificates[0].Raw) {
				return errors.New("another certificate was shown than the one that was found good")
			}
			return nil
		}
	}
	if r.Certificate != nil && r.Certificate.PrivateKey != nil && secret {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return r.Certificate, nil }
	}
	transport := r.transport(config)
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url(path), nil)
	if err != nil {
		return answer{}, err
	}
	for name, values := range header {
		request.Header[name] = values
	}
	trace := newTrace()
	request.Header.Set("User-Agent", "postern-analyze")
	request.Header.Set("Traceparent", trace.Traceparent())
	response, err := transport.RoundTrip(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	r.hear(response.Header.Get("Date")) // before the body, which may come slowly
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err == nil {
		err = request.Context().Err() // a server that hears of the end in time may still end its answer as if it were whole
	}
	return answer{response.StatusCode, phraseOf(response), response.Header, body, trace.ID}, err
}

// hear keeps the first Date that came, beside the time at which it came.
func (r *run) hear(date string) {
	if theirs, err := http.ParseTime(date); err == nil && r.date == nil {
		r.date = &dated{theirs, r.Now()}
	}
}

func phraseOf(response *http.Response) string {
	if phrase := response.Header.Get(ccm.HeaderStatus); phrase != "" {
		return phrase
	}
	_, phrase, _ := strings.Cut(response.Status, " ")
	return phrase
}

func newTrace() logfile.Trace { return logfile.NewTrace(random24()) }

func external(door ccm.Door, document string) string { return "/" + string(door) + "/" + document }

// lost is a document that did not come, or not whole.
func lost(what string, err error) diag.Finding {
	if isTimeout(err) {
		return diag.Found(diag.Fail, catalog.ClientTimeout, "%s does not come whole in time", what)
	}
	return diag.Found(diag.Fail, catalog.ClientConnectionLost, "%s: %s", what, Reason(err))
}

// checkService asks for ServiceMetadata by the open door, and by the other one, which wants
// a token: both answers together tell a gateway from another server.
func (r *run) checkService(ctx context.Context) []diag.Finding {
	if r.state == nil {
		return []diag.Finding{diag.NotLooked("there was no handshake")}
	}
	open, err := r.get(ctx, external(ccm.DoorMutualAuth, "ServiceMetadata"), nil, false)
	if err != nil {
		return []diag.Finding{lost("ServiceMetadata", err)}
	}
	closed, err := r.get(ctx, external(ccm.DoorServerAuth, "ServiceMetadata"), nil, false)
	if err != nil {
		return []diag.Finding{lost("ServiceMetadata by the door for tokens", err)}
	}
	detail := fmt.Sprintf("GET %s: %s\nGET %s without a token: %s", external(ccm.DoorMutualAuth, "ServiceMetadata"), open, external(ccm.DoorServerAuth, "ServiceMetadata"), closed)
	if r.kind, r.healthy = recognise(open, closed); r.kind == kindUnknown {
		return []diag.Finding{diag.Found(diag.Fail, catalog.NotAGateway, "%s\nserver %s, type %s: %s", detail,
			short(open.header.Get("Server"), 60), short(open.header.Get("Content-Type"), 60), short(strings.Join(strings.Fields(string(open.body[:min(len(open.body), 400)])), " "), 120))}
	}
	switch {
	case r.kind == kindPostern && !r.healthy:
		return []diag.Finding{diag.Found(diag.Fail, catalog.GatewaySaysNotHealthy, "%s", detail)}
	case r.kind == kindMicrosoft && open.status >= 500:
		return []diag.Finding{diag.Found(diag.Fail, catalog.GatewaySaysNotHealthy, "a Microsoft gateway, by its answers\n%s", detail)}
	case r.kind == kindMicrosoft:
		return []diag.Finding{diag.Good("a Microsoft gateway answers", "%s\nits document tells nothing of connection points: MPLIST does", detail)}
	}
	return []diag.Finding{diag.Good("a Postern gateway answers and says that it is well", "%s", detail)}
}

// recognise says whose gateway gave the two answers. Ours names itself. Microsoft's refuses
// a request without a token by the text of S4 (protocol.md 7.4).
func recognise(open, closed answer) (whose kind, healthy bool) {
	var ours struct {
		Service string `json:"service"`
		Healthy bool   `json:"healthy"`
	}
	if open.status == http.StatusOK && json.Unmarshal(open.body, &ours) == nil && ours.Service == "postern-gateway" {
		return kindPostern, ours.Healthy
	}
	for _, a := range []answer{open, closed} {
		if strings.HasPrefix(a.phrase, "CMGService_") || strings.HasPrefix(a.phrase, "CMGConnector_") {
			return kindMicrosoft, open.status == http.StatusOK
		}
	}
	return kindUnknown, false
}

// How far clocks may differ: the leeway of tokens and proofs, and Kerberos' own.
const (
	clockDrift = time.Minute
	clockSkew  = 5 * time.Minute
)

// Clocks judges another clock beside this machine's, both read at the same moment; where says
// whose it is.
func Clocks(theirs, ours time.Time, where string) diag.Finding {
	difference := theirs.Sub(ours).Round(time.Second) // a Date has whole seconds
	detail := fmt.Sprintf("here %s, %s %s: %s", ours.UTC().Format(time.DateTime), where, theirs.UTC().Format(time.DateTime), apart(difference))
	switch d := difference.Abs(); {
	case d > clockSkew:
		return diag.Found(diag.Fail, catalog.ClientClock, "%s", detail)
	case d > clockDrift:
		return diag.Found(diag.Warn, catalog.ClientClock, "%s", detail)
	}
	return diag.Good("the clocks agree", "%s", detail)
}

func apart(d time.Duration) string {
	switch {
	case d.Abs() <= time.Second:
		return "no difference"
	case d > 0:
		return "this machine is " + d.String() + " behind"
	}
	return "this machine is " + (-d).String() + " ahead"
}

// checkClock compares the Date of the first answer.
func (r *run) checkClock(context.Context) []diag.Finding {
	if r.date == nil {
		return []diag.Finding{diag.NotLooked("no answer of the gateway carried a Date")}
	}
	f := Clocks(r.date.theirs, r.date.ours, "there")
	if !r.trusted {
		f.Detail += "\nthe server was not recognised, so its clock proves nothing"
	}
	return []diag.Finding{f}
}

// checkTenant asks for what a device of the tenant is told before it has a token (S2). Only
// our gateway's field names are known (protocol.md 7.2).
func (r *run) checkTenant(ctx context.Context) []diag.Finding {
	switch {
	case r.TenantID == "":
		return []diag.Finding{diag.NotLooked("no --tenant was given")}
	case r.kind == kindUnknown:
		return []diag.Finding{diag.NotLooked("no gateway answers")}
	}
	got, err := r.get(ctx, external(ccm.DoorServerAuth, "AADAuthInfo?TenantID="+url.QueryEscape(r.TenantID)), nil, false)
	if err != nil {
		return []diag.Finding{lost("AADAuthInfo", err)}
	}
	var fields map[string]any
	err = json.Unmarshal(got.body, &fields)
	if got.status != http.StatusOK || len(bytes.TrimSpace(got.body)) == 0 || err == nil && len(fields) == 0 {
		return []diag.Finding{diag.Found(diag.Fail, catalog.SymptomTenantNotOnboarded, "tenant %s: %s", short(r.TenantID, 64), got)}
	}
	if err != nil {
		return []diag.Finding{diag.Found(diag.Warn, catalog.ClientAnswerUnreadable, "%s, %d bytes that are no JSON", got, len(got.body))}
	}
	var lines []string
	for _, name := range []string{"TenantId", "ClientAppId", "ResourceUri", "Authority"} {
		if value, ok := fields[name].(string); ok {
			lines = append(lines, name+": "+short(value, 120))
		}
	}
	if len(lines) == 0 {
		lines = []string{fmt.Sprintf("%d fields of a Microsoft gateway", len(fields))}
	}
	return []diag.Finding{diag.Good("the tenant is onboarded", "%s", strings.Join(lines, "\n"))}
}
