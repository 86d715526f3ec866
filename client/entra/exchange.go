package entra

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"postern/catalog"
)

// Bounds of what a provider may take and send.
const (
	exchangeTime = 15 * time.Second // one request with its answer
	maxAnswer    = 1 << 20
	maxHeader    = 64 << 10
	maxToken     = 16 << 10 // servers refuse larger ones
)

// newClient returns the client for all exchanges. It follows no redirection: an assertion
// or a refresh token goes where the authority's own document says, and nowhere else.
func newClient(c Config, roots *x509.CertPool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy: c.Proxy, DialContext: c.Dial,
			TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: maxHeader,
			MaxIdleConnsPerHost: 1, IdleConnTimeout: 30 * time.Second, ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// exchange is one acquisition: it lets the libraries' requests through, bounds the
// answers, and remembers what went wrong. The libraries' own errors can hold whole
// answers, tokens included, so that nothing is taken from them.
type exchange struct {
	next http.RoundTripper
	now  func() time.Time

	mu      sync.Mutex
	refusal *Refusal      // the last one
	network error         // why there was no answer, or none to use
	status  int           // of the last answer
	ahead   time.Duration // how far the provider's clock is ahead of ours
}

// client returns an HTTP client whose requests this exchange sees.
func (x *exchange) client(base *http.Client) *http.Client {
	watched := *base
	x.next = base.Transport
	watched.Transport = x
	return &watched
}

var (
	errNotHTTPS = errors.New("the provider's document names an address that is not https")
	errTooLong  = fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
)

// RoundTrip sends one request.
func (x *exchange) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, x.failed(errNotHTTPS)
	}
	ctx, cancel := context.WithTimeout(r.Context(), exchangeTime) // the answer is read to its end below
	defer cancel()
	response, err := x.next.RoundTrip(r.WithContext(ctx))
	if err != nil {
		return nil, x.failed(err)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	response.Body.Close()
	if err == nil && len(body) > maxAnswer {
		err = errTooLong
	}
	if err != nil {
		return nil, x.failed(err)
	}
	x.answered(response, body)
	response.Body = io.NopCloser(bytes.NewReader(body))
	return response, nil
}

func (x *exchange) failed(err error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.network = err
	return err
}

func (x *exchange) answered(response *http.Response, body []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.status, x.refusal, x.network = response.StatusCode, nil, nil
	if at, err := http.ParseTime(response.Header.Get("Date")); err == nil {
		x.ahead = at.Sub(x.now())
	}
	if response.StatusCode >= 400 && response.StatusCode < 500 {
		x.refusal = parseRefusal(response.StatusCode, body)
	}
}

// parseRefusal reads an error answer (RFC 6749 5.2) with the fields that Entra adds. It
// is nil when the answer is none.
func parseRefusal(status int, body []byte) *Refusal {
	var answer struct {
		Error       string          `json:"error"`
		Description string          `json:"error_description"`
		Codes       json.RawMessage `json:"error_codes"`
		Correlation string          `json:"correlation_id"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.Error == "" {
		return nil
	}
	r := &Refusal{Status: status, Name: harmless(answer.Error, 64), Text: harmless(firstLine(answer.Description), 200), Correlation: harmless(answer.Correlation, 40)}
	var codes []int
	if json.Unmarshal(answer.Codes, &codes) == nil && len(codes) > 0 {
		r.AADSTS = codes[0]
	} else if found := aadsts.FindStringSubmatch(answer.Description); found != nil {
		_, _ = fmt.Sscan(found[1], &r.AADSTS) // at most nine digits
	}
	return r
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\r")
	line, _, _ = strings.Cut(line, "\n")
	return line
}

// explain makes a *catalog.Error of a failed acquisition, or returns the error of the
// caller's ctx when that ended. Of err, the library's own, the text is never shown.
func (x *exchange) explain(ctx context.Context, err error, host string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.network != nil:
		return catalog.Wrap(catalog.EntraUnreachable, known(x.network), "%s: %s", host, reach(x.network))
	case x.refusal != nil:
		return x.refusal.explain(x.ahead)
	case x.status >= 400:
		return catalog.Errorf(catalog.EntraUnreachable, "%s answered with status %d", host, x.status)
	case x.status >= 300:
		return catalog.Errorf(catalog.EntraUnreachable, "%s sends the device elsewhere (status %d), which is not followed", host, x.status)
	case errors.Is(err, context.DeadlineExceeded):
		return catalog.Errorf(catalog.EntraUnreachable, "%s: no answer in time", host)
	}
	return catalog.Errorf(catalog.EntraUnreachable, "%s answered with something that no token can be taken from; compare the authority in the join state with the provider's own", host)
}

// reach says why there was no answer, in words.
func reach(err error) string {
	var (
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		dns       *net.DNSError
		timeout   interface{ Timeout() bool }
	)
	switch {
	case errors.Is(err, errNotHTTPS), errors.Is(err, errTooLong):
		return err.Error()
	case errors.As(err, &authority):
		return "its certificate is under no authority that this device trusts"
	case errors.As(err, &name):
		return "its certificate is for another name"
	case errors.As(err, &invalid):
		return "its certificate is not valid, or the clock of this device is wrong"
	case errors.As(err, &record):
		return "what answers there does not speak TLS"
	case errors.As(err, &dns):
		return "its name is not resolved"
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	}
	return "the connection could not be made, or broke off"
}

// known is err when its text is the system's own, otherwise nil: a proxy's address, for
// one, may hold a password.
func known(err error) error {
	var op *net.OpError
	var dns *net.DNSError
	var verification *tls.CertificateVerificationError
	switch {
	case errors.As(err, &dns):
		return dns
	case errors.As(err, &op):
		return op
	case errors.As(err, &verification):
		return verification.Err
	}
	return nil
}
