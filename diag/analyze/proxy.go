package analyze

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"

	"postern/catalog"
	"postern/diag"
)

// proxy is what programs of this machine go through to the gateway; nil when they go straight.
func (r *run) proxy() (*url.URL, error) {
	request, err := http.NewRequest(http.MethodGet, r.url("/"), nil)
	if err != nil || r.broken != nil {
		return nil, nil // the first check has said so
	}
	return ChooseProxy(r.Proxy, request)
}

// ChooseProxy is the proxy that a request goes through; nil when it goes straight. Its login
// is for the proxy alone: the error, unlike that of choose, does not quote it, and of the
// address only the host is to be told.
func ChooseProxy(choose func(*http.Request) (*url.URL, error), request *http.Request) (*url.URL, error) {
	proxy, err := choose(request)
	if err != nil || proxy != nil && proxy.Host == "" {
		return nil, errors.New("the proxy that is set for this machine (HTTPS_PROXY) has no address that can be read")
	}
	return proxy, nil
}

// straightOnly makes a failure of the straight way a warning where clients of this machine go through a proxy.
func (r *run) straightOnly(f diag.Finding) diag.Finding {
	if proxy, err := r.proxy(); f.State == diag.Fail && (proxy != nil || err != nil) {
		f.State = diag.Warn
		f.Detail += "\nclients of this machine go through a proxy, which is looked at for itself"
	}
	return f
}

// checkProxy goes through the proxy as a client of this machine does, and looks whether it
// lets TLS pass as it is. What comes later then goes through it too.
func (r *run) checkProxy(ctx context.Context) []diag.Finding {
	proxy, err := r.proxy()
	switch {
	case r.broken != nil:
		return []diag.Finding{diag.NotLooked("there is no address to go to")}
	case err != nil:
		return []diag.Finding{diag.Found(diag.Fail, catalog.ProxyFails, "%v", err)}
	case proxy == nil:
		return []diag.Finding{diag.NotLooked("no proxy is set here for this address; where devices go through one, set HTTPS_PROXY as it is there and analyze again")}
	}
	var straight *tls.ConnectionState
	if r.address != "" {
		straight, _, _ = r.handshake(ctx, tls.VersionTLS10, tls.VersionTLS13)
	}
	r.via = proxy
	through, _, err := r.handshake(ctx, tls.VersionTLS10, tls.VersionTLS13)
	if through == nil {
		r.via = nil
		return []diag.Finding{diag.Found(diag.Fail, catalog.ProxyFails, "%s: %s%s", short(proxy.Host, 100), Reason(err), map[bool]string{true: "\nwhat follows goes straight"}[r.address != ""])}
	}
	return []diag.Finding{passed(straight, through, proxy)}
}

// passed compares what is shown straight and through the proxy. Instances of one gateway may
// have certificates of their own, but of the same authority.
func passed(straight, through *tls.ConnectionState, proxy *url.URL) diag.Finding {
	where := short(proxy.Host, 100)
	if straight == nil {
		return diag.Good("the proxy leads to the address", "%s\nthere is no straight way to compare with, so whether it looks into TLS shows in the certificate alone", where)
	}
	here, there := straight.PeerCertificates[0], through.PeerCertificates[0]
	if !here.Equal(there) && !sameIssuer(here, there) {
		return diag.Found(diag.Fail, catalog.ProxyOpensTLS, "%s shows a certificate of %s, straight it is one of %s", where, short(there.Issuer.String(), 200), short(here.Issuer.String(), 200))
	}
	return diag.Good("the proxy leads to the gateway, and TLS passes it as it is", "%s; what follows goes through it", where)
}

// sameIssuer compares name and key of who signed.
func sameIssuer(a, b *x509.Certificate) bool {
	return string(a.RawIssuer) == string(b.RawIssuer) && string(a.AuthorityKeyId) == string(b.AuthorityKeyId)
}

// transport goes straight to the address that was found, or through the proxy. It speaks
// HTTP/1.1, whose reason phrase is part of the answer, follows nothing and keeps nothing.
func (r *run) transport(config *tls.Config) *http.Transport {
	dialer := &net.Dialer{Timeout: r.Timeout, Resolver: r.Resolver}
	t := &http.Transport{
		TLSClientConfig: config, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, r.address)
		},
	}
	if r.via == nil {
		return t
	}
	Through(t, r.via, dialer)
	return t
}

// Through makes a transport go through a proxy. The certificate of one of https:// is judged,
// by the system's authorities, before it gets its login; what it answers to CONNECT is told.
func Through(t *http.Transport, proxy *url.URL, dialer *net.Dialer) {
	t.Proxy, t.DialContext = http.ProxyURL(proxy), dialer.DialContext
	t.DialTLSContext = (&tls.Dialer{NetDialer: dialer}).DialContext
	t.OnProxyConnectResponse = func(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
		switch answer.StatusCode {
		case http.StatusOK:
			return nil
		case http.StatusProxyAuthRequired:
			return fmt.Errorf("the proxy wants a login: %s, offers %s", short(answer.Status, 100), short(answer.Header.Get("Proxy-Authenticate"), 100))
		}
		return fmt.Errorf("the proxy answers %s", short(answer.Status, 100))
	}
}

// handshake makes one TLS connection in these versions, and judges nothing. shown is what
// came, even when the server then broke off because it wants a client certificate.
func (r *run) handshake(ctx context.Context, from, to uint16) (shown *tls.ConnectionState, asked *tls.CertificateRequestInfo, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	var mu sync.Mutex                                                                                                                 // the transport may still be at it when the time is over
	config := &tls.Config{ServerName: r.host, MinVersion: from, MaxVersion: to, CipherSuites: everySuite(), InsecureSkipVerify: true} // what is shown is judged by checkCertificate
	config.VerifyConnection = func(state tls.ConnectionState) error {
		mu.Lock()
		defer mu.Unlock()
		shown = &state
		return nil
	}
	config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		asked = info
		return &tls.Certificate{}, nil
	}
	ended := httptrace.ClientTrace{TLSHandshakeDone: func(tls.ConnectionState, error) {
		mu.Lock()
		defer mu.Unlock()
		if shown != nil {
			cancel() // no request is wanted
		}
	}}
	request, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, &ended), http.MethodHead, r.url("/"), nil)
	if err != nil {
		return nil, nil, err
	}
	transport := r.transport(config)
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request)
	if err == nil {
		response.Body.Close()
	}
	mu.Lock()
	defer mu.Unlock()
	return shown, asked, err
}
