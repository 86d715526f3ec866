package role

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/connector"
	"postern/keyfile"
	"postern/token"
)

const (
	// renewBefore is how long before its end a connector's certificate is renewed. It lives a year.
	renewBefore = 90 * 24 * time.Hour
	// renewLook is how often that is looked at, and so how soon a failed renewal is tried again.
	renewLook = 6 * time.Hour
	// renewRetry is how soon a renewal that a new site root asks for is tried again, at first and at last.
	renewRetry        = time.Second
	longestRenewRetry = time.Minute
)

// renewing keeps a connector's certificate from ending: it asks its management point, with the one that it has, for another.
type renewing struct {
	config Config
	roots  *auth.Anchors
	key    crypto.Signer
	now    func() time.Time
	log    *slog.Logger

	current atomic.Pointer[tls.Certificate]
}

// run renews until ctx ends: when the end is near, and when the site root was replaced. A certificate that cannot be renewed keeps working to its end, or
// until its root is trusted no more; health says when that is.
func (r *renewing) run(ctx context.Context, c *connector.Connector) error {
	retry := renewRetry
	for {
		moved, wait := r.roots.Moved(), renewLook
		if current := *r.current.Load(); r.due(current) {
			fresh, err := r.renew(ctx, current)
			switch {
			case err == nil:
				retry = renewRetry
				r.current.Store(&fresh)
				c.SetCertificate(fresh)
				r.log.InfoContext(ctx, "connector certificate renewed")
			case ctx.Err() == nil:
				r.log.WarnContext(ctx, "the connector certificate was not renewed; it is tried again", "error", err)
				if !underRoot(current, r.roots.Newest()) { // it may be trusted no more already
					wait, retry = retry, min(2*retry, longestRenewRetry)
				}
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-moved:
			timer.Stop()
		case <-timer.C:
		}
	}
}

func (r *renewing) due(current tls.Certificate) bool {
	leaf, err := x509.ParseCertificate(current.Certificate[0])
	return err != nil || r.now().Add(renewBefore).After(leaf.NotAfter) || !underRoot(current, r.roots.Newest())
}

func (r *renewing) renew(ctx context.Context, current tls.Certificate) (fresh tls.Certificate, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(r.config.ManagementPoint, "/")+"/postern/renew", nil)
	if err != nil {
		return fresh, err
	}
	trust := underTLS(r.roots, token.RoleManagementPoint, r.now)
	trust.Certificates = []tls.Certificate{current}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: trust, DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return fresh, catalog.Wrap(catalog.JoinUnreachable, err, "%s cannot be reached or is not of this site: %s", r.config.ManagementPoint, rootCause(err))
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return fresh, err
	}
	if response.StatusCode != http.StatusOK {
		return fresh, problemError(content, response.Status)
	}
	var reply struct {
		Chain [][]byte `json:"chain"`
	}
	if err := json.Unmarshal(content, &reply); err != nil {
		return fresh, err
	}
	if _, _, err := checkChainUnder(reply.Chain, r.roots, token.RoleConnector, r.now()); err != nil {
		return fresh, err
	}
	fresh = tls.Certificate{Certificate: reply.Chain, PrivateKey: r.key}
	return fresh, keyfile.WriteFile(filepath.Join(r.config.State, roleCertName), encodeChain(reply.Chain))
}
