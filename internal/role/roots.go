package role

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/keyfile"
	"postern/site"
	"postern/token"
)

// rootLinksName is the file in the state folder of a gateway or connector with what led from the site root that it was given to the present one, one link
// in a line. Each proves itself; the file holds no secret.
const rootLinksName = "site-roots.jws"

// anchors are the site roots that the role trusts: the one in its configuration, and those to which the site has led since. A file that is damaged is told
// and left aside: the site leads there again.
func (c Config) anchors(root string, now func() time.Time, log *slog.Logger) *auth.Anchors {
	path := filepath.Join(c.State, rootLinksName)
	keep := func(links []string) error {
		return keyfile.WriteFile(path, []byte(strings.Join(links, "\n")+"\n"))
	}
	links, err := readRootLinks(path)
	anchors, led := auth.NewAnchors(root, links, keep, now)
	if err = errors.Join(err, led); err != nil {
		log.Error("what led to the present site root is not used", "code", catalog.RootLinksNotKept, "file", path, "error", err)
	}
	return anchors
}

func readRootLinks(path string) ([]string, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case info.Size() > token.MaxRoots:
		return nil, catalog.Errorf(catalog.RootLinkMalformed, "%d bytes", info.Size())
	}
	content, err := os.ReadFile(path)
	return strings.Fields(string(content)), err
}

// rootsHealth tells which site root a role is at.
func rootsHealth(h *Health, anchors *auth.Anchors) {
	h.Detail["site_root"] = anchors.Newest()
	h.Detail["site_root_changes"] = len(anchors.Links())
}

// underTLS trusts servers that hold a certificate for the role under one of the trusted roots, and nobody else.
func underTLS(roots auth.Roots, role string, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection is the verification: chain to a trusted site root, role, name
		VerifyConnection:   auth.ServerVerifierUnder(roots, role, now),
	}
}

// underRoot reports whether a certificate's chain ends in the root with that pin.
func underRoot(certificate tls.Certificate, pin string) bool { return rootOf(certificate) == pin }

// rootOf is the pin of the root that a certificate's chain ends in; "" when there is none.
func rootOf(certificate tls.Certificate) string {
	if len(certificate.Certificate) == 0 {
		return ""
	}
	root, err := x509.ParseCertificate(certificate.Certificate[len(certificate.Certificate)-1])
	if err != nil {
		return ""
	}
	return token.Pin(root.PublicKey)
}

// followRoot takes a fresh certificate when the site root was replaced, until ctx ends: here or at another management point. It waits until the gateways
// know the new root, unless the old one is trusted no more.
func (i *issuedCertificate) followRoot(ctx context.Context, s *site.Site, c Config, log *slog.Logger) error {
	for range s.Watch(ctx) {
		if rootOf(*i.current.Load()) == s.RootPin() || !i.awaitRoot(ctx, s, log) {
			continue
		}
		if err := i.renew(s, c); err != nil {
			log.Error("renew the role certificate", "error", err)
			continue
		}
		log.Info("role certificate renewed under another site root", "root", s.RootPin())
	}
	return nil
}

// rootLook is how often it is looked whether the gateways know the new root.
const rootLook = 100 * time.Millisecond

// awaitRoot waits until a certificate under the root of now may be shown; false when ctx ended.
func (i *issuedCertificate) awaitRoot(ctx context.Context, s *site.Site, log *slog.Logger) bool {
	tick := time.NewTicker(rootLook)
	defer tick.Stop()
	for s.TrustsRoot(rootOf(*i.current.Load())) == nil {
		waiting, err := s.RootWaitsFor(ctx)
		if err != nil && ctx.Err() == nil {
			log.Warn("ask whether the gateways know the new site root", "error", err)
		}
		if err == nil && len(waiting) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return ctx.Err() == nil
}

// checkChainUnder judges a chain that the site has issued for a role.
func checkChainUnder(chain [][]byte, roots auth.Roots, role string, now time.Time) (name string, leaf *x509.Certificate, err error) {
	parsed := make([]*x509.Certificate, 0, len(chain))
	for _, der := range chain {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return "", nil, catalog.Wrap(catalog.RoleCertificateMissing, err, "the certificate that the site issued cannot be read")
		}
		parsed = append(parsed, certificate)
	}
	if name, _, err = auth.RoleCertificateUnder(parsed, roots, role, now); err != nil {
		return "", nil, err
	}
	return name, parsed[0], nil
}
