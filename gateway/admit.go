package gateway

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

// admit decides whether a request goes on, and fills in what it found on the way. The
// order is that of the package comment; what fails first is answered.
func (g *Gateway) admit(r *http.Request, x *exchange) error {
	if err := g.locate(r, x); err != nil {
		return err
	}
	if err := g.prove(r, x); err != nil {
		return err
	}
	if x.route.answer != answerForward {
		return nil
	}
	if _, ok := g.state.Published(x.path.RoleID, x.path.Endpoint); !ok {
		return notPublished()
	}
	if r.ContentLength > x.route.Body {
		return tooLarge(x.route.Body)
	}
	return nil
}

// locate finds the row of the table. Everything that is in no row gets one answer, so
// that nobody learns what exists behind (C19).
func (g *Gateway) locate(r *http.Request, x *exchange) error {
	path, err := ccm.ParsePath(r.RequestURI)
	if catalog.CodeOf(err) == catalog.PathUnknown {
		return notPublished()
	}
	if err != nil {
		return err
	}
	route, ok := g.find(path)
	if !ok {
		return notPublished()
	}
	x.path, x.route = path, route
	if !g.own(r.Host) {
		return catalog.Errorf(catalog.GatewayOtherHost, "the request is for another host")
	}
	if !slices.Contains(route.Methods, r.Method) {
		return catalog.Errorf(catalog.GatewayMethod, "allowed here: %s", strings.Join(route.Methods, ", "))
	}
	return nil
}

func notPublished() error {
	return catalog.Errorf(catalog.GatewayNotPublished, "compare the path with `postern routes`")
}

func tooLarge(limit int64) error {
	return catalog.Errorf(catalog.GatewayBodyTooLarge, "the limit here is %d bytes", limit)
}

// own reports whether a Host header names this gateway; the port does not matter.
func (g *Gateway) own(host string) bool { return slices.Contains(g.names, hostName(host)) }

// hostName returns a host without port, final dot and brackets, in lower case.
func hostName(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.Trim(strings.TrimSuffix(host, "."), "[]"))
}

// prove asks for the proof of the row.
func (g *Gateway) prove(r *http.Request, x *exchange) error {
	want := x.route.Proof
	switch {
	case want.Anyone:
		return g.proveNothing(r, x)
	case want.Certificate:
		return g.proveCertificate(r, x)
	case want.Return && auth.Bare(r):
		p, err := g.proveReturn(r, x.address)
		x.proof = p
		return err
	}
	p, err := g.proveInTurn(r, x)
	if err != nil {
		return err
	}
	x.proof = p
	if p.Method == proof.CCMToken && want.Scopes != nil && !slices.Contains(want.Scopes, p.Scope) {
		return catalog.Errorf(catalog.TokenScope, "the token's scope is %q, wanted here: %s", p.Scope, strings.Join(want.Scopes, ", "))
	}
	return nil
}

// proveNothing limits the rate. A credential need not be there, but a bad one is refused
// and never counted as none.
func (g *Gateway) proveNothing(r *http.Request, x *exchange) error {
	if !g.anonymous.allow(x.address) {
		return catalog.Errorf(catalog.GatewayTooManyRequests, "slow down")
	}
	x.proof.Method = proof.Anonymous
	if len(r.Header.Values("Authorization")) == 0 && len(r.Header.Values("DPoP")) == 0 {
		return nil
	}
	p, err := g.proveToken(r, anyKind())
	if err == nil {
		x.proof = p
	}
	return err
}

// maxExchanges is how many token exchanges may wait to have their proofs checked.
const maxExchanges = 1024

// proveInTurn lets token exchanges stand in line, so that however many come at once one
// processor forwards messages. A management point does the same (design decision 14).
func (g *Gateway) proveInTurn(r *http.Request, x *exchange) (p proof.Proof, err error) {
	if x.path.Endpoint != ccm.EndpointSTS {
		return g.proveToken(r, x.route.Proof.Tokens)
	}
	err = g.exchanges.Do(r.Context(), func(func()) error {
		p, err = g.proveToken(r, x.route.Proof.Tokens)
		return err
	})
	return p, err
}

func (g *Gateway) proveToken(r *http.Request, kinds []token.Kind) (proof.Proof, error) {
	if _, ok := g.state.Current(); !ok {
		return proof.Proof{}, catalog.Errorf(catalog.StateMissing, "the gateway has not heard from the site yet")
	}
	return g.bearer.Proof(r, kinds...)
}

// proveCertificate judges the certificate of the connection, anew at every request: it
// may have been revoked meanwhile. A proof of its key may come with it, for the
// management point, which sees no handshake; a token may not.
func (g *Gateway) proveCertificate(r *http.Request, x *exchange) error {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return catalog.Errorf(catalog.GatewayClientCertificate, "the connection shows no client certificate")
	}
	if len(r.Header.Values("Authorization")) > 0 {
		return catalog.Errorf(catalog.TokenWrongKind, "no token is accepted here, but a client certificate")
	}
	if _, ok := g.state.Current(); !ok {
		return catalog.Errorf(catalog.StateMissing, "the gateway has not heard from the site yet")
	}
	if g.judge == nil {
		return catalog.Errorf(catalog.GatewayCertificateRoots, "this gateway accepts no client certificates")
	}
	chain := r.TLS.PeerCertificates
	x.certificates = chain
	if len(chain[0].Raw) > maxShown {
		return catalog.Errorf(catalog.CertificateUnreadable, "the certificate has %d bytes, at most %d are passed on", len(chain[0].Raw), maxShown)
	}
	p, err := g.judge.Check(r.Context(), chain)
	if err == nil {
		err = g.state.Revoked(token.Claims{Key: p.Key})
	}
	if catalog.CodeOf(err) == catalog.KeyBlocked { // whoever of the two has said it
		return &withdrawn{err}
	}
	if err != nil {
		return err
	}
	if len(r.Header.Values("DPoP")) > 0 {
		if err := g.bearer.Possession(r, p.Key); err != nil {
			return err
		}
	}
	p.Address = x.address
	x.proof = p
	return nil
}

// withdrawn is the refusal of a certificate whose key the site has blocked: its holder has
// no token that could be invalid.
type withdrawn struct{ err error }

func (w *withdrawn) Error() string { return w.err.Error() }
func (w *withdrawn) Unwrap() error { return w.err }

var errOtherURL = errors.New("another host or path")

// sameURL compares the address in a proof with the request's: one of our names and the
// external path, without case.
func (g *Gateway) sameURL(r *http.Request, htu *url.URL) error {
	if !g.own(htu.Host) || !strings.EqualFold(htu.Path, r.URL.Path) {
		return errOtherURL
	}
	return nil
}

// refuse answers a request that does not go on, or did not come back.
func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, x *exchange, err error) {
	status, header := refusal(err)
	x.status, x.err = status, err
	header.Set(ccm.HeaderMessageID, x.id)
	g.giveNonce(header, err)
	if revoked(err) {
		w.Header().Set("Connection", "close") // on HTTP/2 that is a GOAWAY
	}
	if status.Code == http.StatusMethodNotAllowed {
		header.Set("Allow", strings.Join(x.route.Methods, ", "))
	}
	ccm.WriteStatus(w, r, status, header, catalog.Problem(err, x.id))
}

// retryAfter is what a client is told to wait when the gateway cannot answer now.
const retryAfter = "10"

// refusal returns the status of an error and the headers that go with it. Only the two
// phrases of the documents differ from the usual ones (protocol.md 7.4).
func refusal(err error) (ccm.Status, http.Header) {
	header := http.Header{"Content-Type": {"application/problem+json"}, "Cache-Control": {"no-store"}}
	code := catalog.CodeOf(err)
	entry, ok := catalog.Lookup(code)
	if !ok || entry.Status == 0 {
		return ccm.StatusOf(http.StatusInternalServerError), header
	}
	_, blocked := errors.AsType[*withdrawn](err)
	switch {
	case blocked:
		return ccm.StatusOf(http.StatusForbidden), header
	case entry.Status == http.StatusUnauthorized:
		header.Set("WWW-Authenticate", `DPoP algs="RS256 PS256 ES256", error="invalid_token"`)
		return ccm.StatusInvalidToken, header
	case code == catalog.GatewayClientCertificate:
		return ccm.StatusClientCertificateRequired, header
	case entry.Status == http.StatusServiceUnavailable || entry.Status == http.StatusTooManyRequests:
		header.Set("Retry-After", retryAfter)
	}
	return ccm.StatusOf(entry.Status), header
}
