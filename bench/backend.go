//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Sizes of the two kinds of request (README.md).
const (
	postBytes   = 2 << 10
	answerBytes = 1536
	getBytes    = 64 << 10
)

// backend answers in the place of a management point: 1.5 KB to a message, 64 KB to everything else. It listens twice, with the
// certificate that the site issued and in plain HTTP.
func backend(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("backend", flag.ContinueOnError)
	secure, plain := flags.String("https", "", "address"), flags.String("http", "", "address")
	certificate, key := flags.String("certificate", "", "PEM file"), flags.String("key", "", "PEM file")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	small, large := []byte(strings.Repeat("a", answerBytes)), []byte(strings.Repeat("b", getBytes))
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := large
		if r.Method != http.MethodGet {
			body = small
			if n, err := io.Copy(io.Discard, r.Body); err != nil || n != postBytes {
				http.Error(w, "not the request that was sent", http.StatusBadRequest)
				return
			}
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body)
	})
	open := &http.Server{Addr: *plain, Handler: handler}
	closed := &http.Server{Addr: *secure, Handler: handler, TLSConfig: &tls.Config{ClientAuth: tls.RequestClientCert}}
	return serveUntil(ctx, map[*http.Server]func() error{
		open:   open.ListenAndServe,
		closed: func() error { return closed.ListenAndServeTLS(*certificate, *key) },
	})
}

// proxy is the least that a proxy in Go can be: net/http's ReverseProxy behind TLS, one hop, no rules.
func proxy(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("proxy", flag.ContinueOnError)
	address, to := flags.String("https", "", "address"), flags.String("to", "", "address of the backend")
	certificate, key := flags.String("certificate", "", "PEM file"), flags.String("key", "", "PEM file")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	reverse := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: *to})
	reverse.Transport = &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	server := &http.Server{Addr: *address, Handler: reverse, TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}}
	return serveUntil(ctx, map[*http.Server]func() error{server: func() error { return server.ListenAndServeTLS(*certificate, *key) }})
}

func serveUntil(ctx context.Context, servers map[*http.Server]func() error) error {
	ended := make(chan error, len(servers))
	for server, listen := range servers {
		server.ReadHeaderTimeout = 5 * time.Second
		defer server.Close()
		go func() { ended <- listen() }()
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	}
}
