package mp

import (
	"bytes"
	"encoding/base64"
	"errors"
	"net/http"
	"strings"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
)

// admitTicket is Windows authentication (RFC 4559; S0): a request without credentials is asked for a ticket, and a ticket is judged before
// anything of the body is read, since clients send it again, or leave it empty, with every leg (protocol.md 12). Each request proves itself;
// a connection that was admitted once proves nothing for the next request on it. Whom a connector brings is not asked for a ticket: it could not
// be used.
func (v *visit) admitTicket() error {
	if !v.hop.direct() {
		return &refusal{statusLogonDenied(), catalog.Errorf(catalog.ProofNotAccepted, "Windows authentication works inside the network only")}
	}
	header := v.w.Header()
	header.Set("WWW-Authenticate", negotiate)
	credentials := v.r.Header.Values("Authorization")
	switch {
	case len(credentials) == 0:
		return &refusal{ccm.StatusUnauthorizedNegotiate, catalog.Errorf(catalog.NegotiateRequired, "send a Kerberos ticket for this host")}
	case len(credentials) > 1:
		return &refusal{statusLogonDenied(), catalog.Errorf(catalog.ProofNotAccepted, "there are %d Authorization headers", len(credentials))}
	}
	ticket, err := negotiateToken(credentials[0])
	if err != nil {
		return &refusal{statusLogonDenied(), err}
	}
	if v.mp.config.Windows == nil && bytes.Contains(ticket, []byte("NTLMSSP\x00")) {
		return &refusal{statusLogonDenied(), ntlmRefused()}
	}
	if v.mp.config.Windows == nil {
		return &refusal{statusLogonDenied(), catalog.Errorf(catalog.KerberosNotAvailable, "this management point has no keytab")}
	}
	accepted, reply, err := v.mp.config.Windows.Accept(v.r.Context(), ticket, v.channel())
	if len(reply) > 0 {
		header.Set("WWW-Authenticate", negotiate+" "+base64.StdEncoding.EncodeToString(reply))
	}
	switch {
	case err != nil && ours(err):
		header.Del("WWW-Authenticate") // nothing was judged; the same account is asked again later
		return err
	case err != nil:
		return &refusal{statusLogonDenied(), err}
	}
	v.proof = accepted
	return nil
}

// negotiate is the one scheme of Windows authentication here.
const negotiate = "Negotiate"

// ntlmRefused is the answer to NTLM in every wrapping (design decision 5).
func ntlmRefused() error {
	return catalog.Errorf(catalog.NTLMRefused, "NTLM is refused on purpose; send a Kerberos ticket")
}

// negotiateToken returns the token of an Authorization header.
func negotiateToken(credential string) ([]byte, error) {
	scheme, data, _ := strings.Cut(credential, " ")
	switch {
	case strings.EqualFold(scheme, "NTLM"):
		return nil, ntlmRefused()
	case !strings.EqualFold(scheme, negotiate):
		return nil, catalog.Errorf(catalog.ProofNotAccepted, "this address takes Negotiate")
	}
	token, err := base64.StdEncoding.DecodeString(strings.TrimSpace(data))
	if err != nil || len(token) == 0 {
		return nil, catalog.Wrap(catalog.NegotiateMalformed, err, "what follows Negotiate is not base64 of a token")
	}
	return token, nil
}

// channel is what the ticket may be bound to.
func (v *visit) channel() auth.Channel {
	c := auth.Channel{TLS: v.r.TLS}
	if c.TLS != nil && v.mp.config.Shown != nil {
		c.Certificates = v.mp.config.Shown(v.listener)
	}
	return c
}

// statusLogonDenied is the answer to a ticket that is refused, for the access log: SEC_E_LOGON_DENIED with sub-status 1, logon failed.
func statusLogonDenied() ccm.Status {
	return ccm.Status{Code: http.StatusUnauthorized, Reason: http.StatusText(http.StatusUnauthorized), SubStatus: 1, Windows: 2148074252}
}

// spend tells the other management points that the ticket has been used here, once, before the request is answered. A registration needs no call:
// site.Register does it in its own commit.
func (v *visit) spend() error {
	ticket := v.proof.Ticket
	if ticket == nil || v.spent {
		return nil
	}
	v.spent = true
	fresh, err := v.mp.site.Fresh(v.r.Context(), ticket.Use, ticket.UseUntil)
	switch {
	case errors.Is(err, site.ErrUnavailable):
		return nil // this node remembers it; what the others could do with it needs the database
	case err == nil && !fresh:
		return catalog.Errorf(catalog.KerberosReplay, "another management point has seen it")
	}
	return err
}

// rejected is the word of RFC 4178 to a client that its ticket is refused: a NegTokenResp with the state reject and nothing else.
const rejected = negotiate + " oQcwBaADCgEC"

// refuseSpent answers a ticket that was good here and had been used elsewhere. The proof of ourselves, which was ready for its client, is kept
// back: whoever sends a ticket again need not be its client.
func (v *visit) refuseSpent(err error) {
	if catalog.CodeOf(err) != catalog.KerberosReplay {
		v.w.Header().Del("WWW-Authenticate")
		v.refuse(err)
		return
	}
	v.w.Header().Set("WWW-Authenticate", rejected)
	v.refuseAs(statusLogonDenied(), err)
}

// emptyAnswer answers a tool that asks only whether this is a management point.
func (v *visit) emptyAnswer() {
	if err := v.spend(); err != nil {
		v.refuseSpent(err)
		return
	}
	v.empty()
}

// userName is the account for the access log.
func (v *visit) userName() string {
	if v.proof.Method != proof.Kerberos || v.w.status >= http.StatusBadRequest {
		return ""
	}
	return v.proof.Account
}
