package connector

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/token"
)

// rootsPath is where a management point tells how the site root was replaced.
const rootsPath = "/postern/roots"

// rootsTime bounds the question for it.
const rootsTime = 10 * time.Second

// siteState is the connector's view of the site, under the roots that it trusts.
func siteState(cfg Config) *auth.State {
	if cfg.Roots != nil {
		return auth.NewStateUnder(cfg.Roots, cfg.Now)
	}
	return auth.NewState(cfg.RootPin, cfg.Now)
}

// rootError is what was wrong with a management point's role certificate.
func rootError(err error) error {
	outer, ok := errors.AsType[*catalog.Error](err)
	if !ok || outer.Code != catalog.BackendCertificate {
		return nil
	}
	return outer.Err
}

// followRoots asks a management point that shows a root which is not known how the site
// root was replaced, and reports whether that led to another. It is asked over a
// connection that proves nothing: nothing is sent on it but the question, and the answer
// proves itself.
func (c *Connector) followRoots(ctx context.Context, dialer *net.Dialer, network, address string) bool {
	links, err := askRoots(ctx, dialer, network, address)
	changed := false
	if err == nil && len(links) > 0 {
		changed, err = c.state.Anchors().Follow(links)
	}
	if err != nil {
		c.cfg.Events.Warn("not led to another site root", "backend", address, "code", catalog.CodeOf(err), "error", err)
	}
	if changed {
		c.cfg.Events.Info("led to another site root", "backend", address, "root", c.state.Anchors().Newest())
	}
	return changed
}

// AskRoots asks the management point at an address, host and port, how the site root was
// replaced, over a connection that proves nothing: each link in the answer proves itself.
func AskRoots(ctx context.Context, address string) (links []string, err error) {
	return askRoots(ctx, new(net.Dialer), "tcp", address)
}

func askRoots(ctx context.Context, dialer *net.Dialer, network, address string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, rootsTime)
	defer cancel()
	host, _, _ := net.SplitHostPort(address)
	client := &http.Client{
		Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return handshake(ctx, dialer, network, address, &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, InsecureSkipVerify: true})
			},
			DisableKeepAlives: true, MaxResponseHeaderBytes: 32 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+rootsPath, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", "")
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, token.MaxRoots+1))
	switch {
	case err != nil:
		return nil, err
	case answer.StatusCode != http.StatusOK:
		return nil, catalog.Errorf(catalog.RootLinkMalformed, "the answer has status %d", answer.StatusCode)
	}
	return token.ParseRoots(body)
}
