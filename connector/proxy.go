package connector

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpproxy"

	"postern/catalog"
)

// proxyHeadBytes bounds what a proxy may answer to CONNECT.
const proxyHeadBytes = 16 << 10

// proxyPorts are the proxy schemes that the connector speaks, with their usual ports.
var proxyPorts = map[string]string{"http": "80", "https": "443"}

// environmentProxy is the way out that HTTPS_PROXY and NO_PROXY describe. An address that cannot be read is an error
// where a proxy is needed; net/http would go without one.
func environmentProxy(environment *httpproxy.Config) func(*http.Request) (*url.URL, error) {
	config, broken := *environment, false
	if given := config.HTTPSProxy; given != "" {
		_, err := url.Parse(given)
		_, errBare := url.Parse("http://" + given) // host:port alone will do
		if broken = err != nil && (errBare != nil || strings.Contains(given, "://")); broken {
			config.HTTPSProxy = "http://unreadable.invalid" // to learn where it is needed
		}
	}
	choose := config.ProxyFunc()
	return func(r *http.Request) (*url.URL, error) {
		proxy, err := choose(r.URL)
		if proxy != nil && broken {
			return nil, catalog.Errorf(catalog.OutboundProxyUnreachable, "HTTPS_PROXY is no address: %q", withoutLogin(environment.HTTPSProxy))
		}
		return proxy, err
	}
}

// withoutLogin cuts a login from an address that cannot be used, or not even parsed.
func withoutLogin(address string) string { return address[strings.LastIndexByte(address, '@')+1:] }

// throughProxy opens a connection to address by CONNECT (RFC 9110, 9.3.6).
func (c *Connector) throughProxy(ctx context.Context, proxy *url.URL, address string) (net.Conn, error) {
	conn, err := c.dialProxy(ctx, proxy)
	if err != nil {
		return nil, catalog.Wrap(catalog.OutboundProxyUnreachable, err, "proxy %s", proxy.Host)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = askProxy(conn, proxy, address)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (c *Connector) dialProxy(ctx context.Context, proxy *url.URL) (net.Conn, error) {
	port, known := proxyPorts[proxy.Scheme]
	if !known || proxy.Hostname() == "" {
		return nil, catalog.Errorf(catalog.OutboundProxyUnreachable, "a proxy's address is http://host:port or https://host:port")
	}
	if proxy.Port() != "" {
		port = proxy.Port()
	}
	conn, err := c.cfg.Dial(ctx, "tcp", net.JoinHostPort(proxy.Hostname(), port))
	if err != nil || proxy.Scheme == "http" {
		return conn, err
	}
	secured := tls.Client(conn, &tls.Config{ServerName: proxy.Hostname(), NextProtos: []string{"http/1.1"}})
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secured, nil
}

// askProxy sends CONNECT and reads the answer. Nothing behind the answer's head can
// have come yet: on the other side TLS waits for us to begin.
func askProxy(conn net.Conn, proxy *url.URL, address string) error {
	request := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{"User-Agent": nil}}
	if user := proxy.User; user != nil {
		password, _ := user.Password()
		request.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	if err := request.Write(conn); err != nil {
		return catalog.Wrap(catalog.OutboundProxyUnreachable, err, "proxy %s", proxy.Host)
	}
	reader := bufio.NewReader(io.LimitReader(conn, proxyHeadBytes))
	answer, err := http.ReadResponse(reader, request)
	if err != nil {
		return catalog.Wrap(catalog.OutboundProxyUnreachable, err, "proxy %s gives no HTTP answer", proxy.Host)
	}
	defer answer.Body.Close()
	switch {
	case answer.StatusCode == http.StatusProxyAuthRequired:
		return catalog.Errorf(catalog.OutboundProxyAuthentication, "proxy %s offers %q", proxy.Host, answer.Header.Get("Proxy-Authenticate"))
	case answer.StatusCode != http.StatusOK:
		return catalog.Errorf(catalog.OutboundProxyRefused, "proxy %s answered %s", proxy.Host, answer.Status)
	case reader.Buffered() > 0:
		return catalog.Errorf(catalog.OutboundProxyRefused, "proxy %s sent something before the gateway could", proxy.Host)
	}
	return nil
}
