package gateway

import (
	"context"
	"crypto/x509"
	"net/http"
	"sync"

	"postern/auth"
	"postern/catalog"
	"postern/token"
)

// roots answers how the site root was replaced, to whoever asks: a device that was away
// while it was cannot know that this gateway is the site's until it has the answer, which
// proves itself.
func (g *Gateway) roots(w http.ResponseWriter, r *http.Request, x *exchange) error {
	state, ok := g.state.Current()
	if !ok {
		return catalog.Errorf(catalog.StateMissing, "the gateway has not heard from the site yet")
	}
	body, err := token.MarshalRoots(state.Roots)
	if err != nil {
		return err
	}
	return g.answerBytes(w, r, x, body)
}

// judgeConnector checks a connector's certificate. It may be under a root that this gateway
// has not heard of, because it was away while the root was replaced and hears through
// connectors alone: then the certificate itself carries what led to that root.
func (g *Gateway) judgeConnector(chain []*x509.Certificate) (name, pin string, err error) {
	name, pin, err = auth.RoleCertificateUnder(chain, g.state, token.RoleConnector, g.judgeTime())
	if catalog.CodeOf(err) != catalog.RoleCertificateRoot || len(chain) == 0 {
		return name, pin, err
	}
	links := token.CarriedLinks(chain[0])
	if len(links) == 0 {
		return name, pin, err
	}
	changed, failed := g.state.Anchors().Follow(links)
	if changed {
		g.log.Info("led to another site root by a connector's certificate", "root", g.state.Anchors().Newest())
	}
	if failed != nil && !changed {
		return name, pin, failed
	}
	return auth.RoleCertificateUnder(chain, g.state, token.RoleConnector, g.judgeTime())
}

// rootOf is the pin of the root that a chain ends in.
func rootOf(chain []*x509.Certificate) string {
	if len(chain) == 0 {
		return ""
	}
	return token.Pin(chain[len(chain)-1].PublicKey)
}

// standing are the connectors' connections by the root of the certificate that each was
// opened with.
type standing struct {
	mu    sync.Mutex
	next  int
	under map[int]standingUnder
}

type standingUnder struct {
	root string
	end  context.CancelFunc
}

// add notes a connection until the returned function is called.
func (s *standing) add(root string, end context.CancelFunc) (gone func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.under == nil {
		s.under = map[int]standingUnder{}
	}
	id := s.next
	s.next++
	s.under[id] = standingUnder{root, end}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.under, id)
	}
}

// drop ends the connections under roots that are trusted no more.
func (s *standing) drop(roots auth.Roots) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.under {
		if roots.TrustsRoot(c.root) != nil {
			c.end()
		}
	}
}

// underOldRoot reports whether the certificate that devices see is under another root than
// the newest.
func (c *certificates) underOldRoot() bool {
	shown := c.current.Load()
	chain := shown.Certificate.Certificate
	if shown.source != CertificateSite || len(chain) == 0 {
		return false
	}
	root, err := x509.ParseCertificate(chain[len(chain)-1])
	return err == nil && token.Pin(root.PublicKey) != c.state.Anchors().Newest()
}
