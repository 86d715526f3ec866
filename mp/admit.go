package mp

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

// admit finds out what the request proves and whether the route takes it. A credential that the route does not name is refused, and so is
// one that is wrong: neither becomes an anonymous request.
func (v *visit) admit() error {
	switch {
	case v.route.Accepts(proof.Kerberos):
		return v.admitTicket()
	case v.route.Accepts(proof.PKICertificate):
		return v.admitCertificate()
	case v.route.Accepts(proof.ConnectorCertificate):
		return v.admitConnector()
	}
	if v.route.Accepts(proof.Assertion) && auth.Bare(v.r) {
		p, err := v.holder()
		v.proof = p
		return err
	}
	kinds := v.route.kinds()
	switch carried := carriesToken(v.r); {
	case !carried && v.route.anonymous():
		v.proof.Method = proof.Anonymous
		return nil
	case carried && len(kinds) == 0:
		return catalog.Errorf(catalog.ProofNotAccepted, "no token is accepted here")
	}
	p, err := v.bearer(kinds)
	if err != nil {
		return err
	}
	v.proof = p
	if p.Scope == token.ScopeRegister && !v.route.Register {
		return catalog.Errorf(catalog.TokenScope, "the token is for registering; exchange it again after that")
	}
	return nil
}

// bearer reads the token. At the token service, where callers need no other proof, the signatures of strangers wait for their turn.
func (v *visit) bearer(kinds []token.Kind) (proof.Proof, error) {
	if v.route.endpoint != ccm.EndpointSTS {
		return v.mp.bearer.Proof(v.r, kinds...)
	}
	var p proof.Proof
	err := v.turn(v.mp.verifying, func() (err error) {
		p, err = v.mp.bearer.Proof(v.r, kinds...)
		return err
	})
	return p, err
}

// holder reads a proof of a key without a token: of a device whose tokens have ended, and that proves by an assertion that the key is a registered one.
func (v *visit) holder() (p proof.Proof, err error) {
	err = v.turn(v.mp.verifying, func() (err error) {
		p, err = v.mp.bearer.Holder(v.r)
		return err
	})
	return p, err
}

// anonymous reports whether a request without a credential may go on; what it then proves is inside its body.
func (route *Route) anonymous() bool {
	return route.Accepts(proof.Anonymous) || route.Accepts(proof.Assertion)
}

func carriesToken(r *http.Request) bool {
	return len(r.Header.Values("Authorization")) > 0 || len(r.Header.Values("DPoP")) > 0
}

// refusal is an error with the status that it is answered with, where the catalogue's is not enough.
type refusal struct {
	status ccm.Status
	err    error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func (v *visit) admitConnector() error {
	switch {
	case carriesToken(v.r):
		return catalog.Errorf(catalog.ProofNotAccepted, "this address takes a connector's certificate")
	case v.hop.direct():
		return catalog.Wrap(catalog.ConnectorOnly, v.hop.err, "show the certificate that the site gave to a connector")
	}
	v.proof = proof.Proof{Method: proof.ConnectorCertificate, Account: v.hop.connector}
	return nil
}

// calledURL compares the address in a DPoP proof with the request (design decision 6): at this management point by its own name, or behind
// a listed gateway's door with this role's number when a connector relays. Ports are not compared: a balancer may have its own.
func (m *ManagementPoint) calledURL(r *http.Request, htu *url.URL) error {
	v := visitOf(r.Context())
	if v == nil {
		return errors.New("the request has no visit")
	}
	path, err := ccm.ParsePath(htu.EscapedPath())
	if err != nil {
		return err
	}
	host := htu.Hostname()
	switch {
	case path.Endpoint != v.path.Endpoint || path.Rest != v.path.Rest:
		return fmt.Errorf("the proof is for %s", path.Internal())
	case path.Door == ccm.DoorDirect && (!v.hop.direct() || !m.site.OwnName(host)):
		return fmt.Errorf("the proof is for the host %.255q", host)
	case path.Door != ccm.DoorDirect && (v.hop.direct() || path.RoleID != m.config.RoleID || !m.site.GatewayName(host)):
		return fmt.Errorf("the proof is for role %d at the gateway %.255q", path.RoleID, host)
	}
	v.called = htu.String()
	return nil
}
