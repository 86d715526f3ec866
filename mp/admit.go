package mp

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

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
		return nil // the conversation itself is the answer: windowsauth.go
	case v.route.Accepts(proof.PKICertificate):
		return v.admitCertificate()
	case v.route.Accepts(proof.ConnectorCertificate):
		return v.admitConnector()
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
	err := v.mp.verifying.do(v.r.Context(), func() (err error) {
		p, err = v.mp.bearer.Proof(v.r, kinds...)
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

// statusUntrusted is IIS's answer to a client certificate under a root that it does not trust: CERT_E_UNTRUSTEDROOT.
func statusUntrusted() ccm.Status {
	return ccm.Status{Code: http.StatusForbidden, Reason: http.StatusText(http.StatusForbidden), SubStatus: 16, Windows: 0x800B0109}
}

// refusal is an error with the status that it is answered with, where the catalogue's is not enough.
type refusal struct {
	status ccm.Status
	err    error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// admitCertificate is the door of a listener in HTTPS mode. A connector's role certificate proves the connector and no device, so it is
// answered as if none had been shown (S4).
func (v *visit) admitCertificate() error {
	switch {
	case carriesToken(v.r):
		return catalog.Errorf(catalog.ProofNotAccepted, "this address takes a client certificate")
	case !v.showsCertificate() || !v.hop.direct():
		return &refusal{ccm.StatusClientCertificateRequired, catalog.Errorf(catalog.ClientCertificateRequired, "no client certificate of a device was shown")}
	}
	return &refusal{statusUntrusted(), catalog.Errorf(catalog.ClientCertificateNotTrusted, "company certificates are not accepted by this version")}
}

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

// Answers of windows authentication for the access log: SEC_E_LOGON_DENIED with sub-status 1, logon failed.
func statusLogonDenied() ccm.Status {
	return ccm.Status{Code: http.StatusUnauthorized, Reason: http.StatusText(http.StatusUnauthorized), SubStatus: 1, Windows: 2148074252}
}

// windowsAuth asks for a ticket, as IIS does (S0, S1). The body is not looked at: clients send it again with every leg (protocol.md 12).
func (v *visit) windowsAuth() {
	v.w.Header().Set("WWW-Authenticate", "Negotiate")
	credentials := v.r.Header.Values("Authorization")
	switch {
	case len(credentials) == 0:
		v.refuseAs(ccm.StatusUnauthorizedNegotiate, catalog.Errorf(catalog.NegotiateRequired, "send a Kerberos ticket for this host"))
	case speaksNTLM(credentials):
		v.refuseAs(statusLogonDenied(), catalog.Errorf(catalog.NTLMRefused, "NTLM is not implemented"))
	case strings.HasPrefix(strings.ToLower(credentials[0]), "negotiate "):
		v.refuseAs(statusLogonDenied(), catalog.Errorf(catalog.KerberosNotAvailable, "this management point has no realm"))
	default:
		v.refuseAs(statusLogonDenied(), catalog.Errorf(catalog.ProofNotAccepted, "this address takes Negotiate"))
	}
}

// speaksNTLM recognises NTLM under its own name and inside Negotiate, wrapped or not.
func speaksNTLM(credentials []string) bool {
	for _, credential := range credentials {
		scheme, data, _ := strings.Cut(credential, " ")
		raw, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(data))
		if strings.EqualFold(scheme, "NTLM") || bytes.Contains(raw, []byte("NTLMSSP\x00")) {
			return true
		}
	}
	return false
}
