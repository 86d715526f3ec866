package revocation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"postern/catalog"
)

// fetcher gets lists and answers over HTTP within budgets.
type fetcher struct {
	client  *http.Client
	timeout time.Duration
	own     bool
}

// newFetcher returns a fetcher on the configured client, or one of its own. Only its own can be guarded: it does not
// connect to addresses that no authority publishes at.
func newFetcher(config Config, guarded bool) *fetcher {
	client := &http.Client{}
	if config.Client != nil {
		*client = *config.Client
	} else {
		client.Transport = transport(guarded)
	}
	client.CheckRedirect = sameHost
	client.Jar = nil
	return &fetcher{client: client, timeout: config.FetchTimeout, own: config.Client == nil}
}

func transport(guarded bool) *http.Transport {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	if guarded {
		dialer.Control = refuseLocal
	}
	return &http.Transport{
		DialContext:            dialer.DialContext,
		MaxConnsPerHost:        8,
		IdleConnTimeout:        30 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  15 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
	}
}

func (f *fetcher) close() {
	if f.own {
		f.client.CloseIdleConnections()
	}
}

var errLocal = errors.New("an address from a certificate leads to this host or its link")

// refuseLocal refuses to connect to loopback, link-local (where clouds keep a machine's secrets), multicast and unspecified
// addresses. Private networks are allowed: a company's list is published inside, and only an authority that is trusted
// here could write the address.
func refuseLocal(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	ip := at.Addr().Unmap()
	if ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
		return errLocal
	}
	return nil
}

var errElsewhere = errors.New("redirected to another host")

// sameHost follows at most three redirects, to the host and port that were asked, or to its port for https.
func sameHost(request *http.Request, via []*http.Request) error {
	first, next := via[0].URL, request.URL
	switch {
	case len(via) > 3:
		return errors.New("more than three redirects")
	case next.Scheme != "http" && next.Scheme != "https",
		!strings.EqualFold(first.Hostname(), next.Hostname()),
		first.Port() != next.Port() && port(next) != "443",
		first.Scheme == "https" && next.Scheme == "http":
		return errElsewhere
	}
	return nil
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return map[string]string{"http": "80", "https": "443"}[u.Scheme]
}

// fetched is an answer of status 200, or 304 when what is held is still current.
type fetched struct {
	body           []byte
	etag, modified string
	unchanged      bool
}

// do sends a request and reads at most limit bytes. Codes: RevocationUnreachable, RevocationListMalformed.
func (f *fetcher) do(ctx context.Context, request *http.Request, limit int64) (fetched, error) {
	address := request.URL.Redacted()
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	request.Header.Set("Accept-Encoding", "identity") // what is counted is what is read
	response, err := f.client.Do(request.WithContext(ctx))
	if err != nil {
		return fetched{}, catalog.Wrap(catalog.RevocationUnreachable, err, "%s %s", address, f.reason(ctx, err))
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotModified && conditional(request) {
		return fetched{unchanged: true}, nil
	}
	if response.StatusCode != http.StatusOK {
		return fetched{}, catalog.Errorf(catalog.RevocationUnreachable, "%s answers with the status %d", address, response.StatusCode)
	}
	body, err := readAll(response, limit)
	if _, ours := asCatalog(err); ours {
		return fetched{}, err
	}
	if err != nil {
		return fetched{}, catalog.Wrap(catalog.RevocationUnreachable, err, "%s %s", address, f.reason(ctx, err))
	}
	if int64(len(body)) > limit {
		return fetched{}, tooLarge(request.URL, limit)
	}
	return fetched{body: body, etag: bounded(response.Header.Get("ETag")), modified: bounded(response.Header.Get("Last-Modified"))}, nil
}

// readAll reads limit bytes and one more, in a buffer of the announced size.
func readAll(response *http.Response, limit int64) ([]byte, error) {
	if response.ContentLength > limit {
		return nil, tooLarge(response.Request.URL, limit)
	}
	if response.ContentLength > 0 {
		body := make([]byte, response.ContentLength)
		_, err := io.ReadFull(response.Body, body)
		return body, err
	}
	return io.ReadAll(io.LimitReader(response.Body, limit+1))
}

func tooLarge(from *url.URL, limit int64) error {
	return catalog.Errorf(catalog.RevocationListMalformed, "%s sends more than the %d bytes that are read", from.Redacted(), limit)
}

func conditional(request *http.Request) bool {
	return request.Header.Get("If-None-Match") != "" || request.Header.Get("If-Modified-Since") != ""
}

// bounded drops a header value that is too long to be sent back.
func bounded(value string) string {
	if len(value) > 256 {
		return ""
	}
	return value
}

// reason says for a person why nothing came.
func (f *fetcher) reason(ctx context.Context, err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, errElsewhere):
		return "sends the caller to another host, which is not followed"
	case errors.Is(err, errLocal):
		return "leads to an address of this host or its link, which is not asked"
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Sprintf("did not answer within %s", f.timeout)
	}
	return "cannot be reached"
}

// outages remembers which responders failed, so that each certificate does not wait for one that is down.
type outages struct {
	mu    sync.Mutex
	since map[string]outage
}

type outage struct {
	at  time.Time
	err error
}

// note remembers how the last request to an address went.
func (o *outages) note(address string, at time.Time, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		delete(o.since, address)
		return
	}
	if o.since == nil || len(o.since) >= 1024 {
		o.since = map[string]outage{}
	}
	o.since[address] = outage{at, err}
}

// last returns the failure of an address since a time, or nil.
func (o *outages) last(address string, since time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if found, ok := o.since[address]; ok && found.at.After(since) {
		return found.err
	}
	return nil
}
