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
)

// renewing keeps a connector's certificate from ending: it asks its management point, with the one that it has, for another.
type renewing struct {
	config Config
	root   string
	key    crypto.Signer
	now    func() time.Time
	log    *slog.Logger

	current atomic.Pointer[tls.Certificate]
}

// run renews until ctx ends. A certificate that cannot be renewed keeps working to its end; health says when that is.
func (r *renewing) run(ctx context.Context, c *connector.Connector) error {
	tick := time.NewTicker(renewLook)
	defer tick.Stop()
	for {
		if current := *r.current.Load(); r.due(current) {
			fresh, err := r.renew(ctx, current)
			switch {
			case err == nil:
				r.current.Store(&fresh)
				c.SetCertificate(fresh)
				r.log.InfoContext(ctx, "connector certificate renewed")
			case ctx.Err() == nil:
				r.log.WarnContext(ctx, "the connector certificate was not renewed; it is tried again", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (r *renewing) due(current tls.Certificate) bool {
	leaf, err := x509.ParseCertificate(current.Certificate[0])
	return err != nil || r.now().Add(renewBefore).After(leaf.NotAfter)
}

func (r *renewing) renew(ctx context.Context, current tls.Certificate) (fresh tls.Certificate, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(r.config.ManagementPoint, "/")+"/postern/renew", nil)
	if err != nil {
		return fresh, err
	}
	trust := PinnedTLS(r.root, token.RoleManagementPoint, r.now)
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
	if _, _, err := checkChain(reply.Chain, r.root, auth.RoleCertificate, token.RoleConnector, r.now()); err != nil {
		return fresh, err
	}
	fresh = tls.Certificate{Certificate: reply.Chain, PrivateKey: r.key}
	return fresh, keyfile.WriteFile(filepath.Join(r.config.State, roleCertName), encodeChain(reply.Chain))
}
