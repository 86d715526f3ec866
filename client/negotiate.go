package client

import (
	"context"
	"crypto"
	_ "crypto/sha256" // the hashes of tls-server-end-point
	_ "crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"io"
	"net/http"
	"strings"

	"postern/catalog"
)

// Negotiator proves this computer with the machine's own credential of its domain. The
// one for keytabs and credential caches is package kerberos below; Windows' own (SSPI)
// would go behind the same interface.
type Negotiator interface {
	// Negotiate makes one proof for the web service of a host; it is used once. binding is
	// the channel binding's application data (RFC 5929), nil on plain HTTP. It ends within a
	// bounded time and with ctx. Errors carry the ClientKerberos codes.
	Negotiate(ctx context.Context, host string, binding []byte) (Negotiation, error)
}

// Negotiation is one proof.
type Negotiation struct {
	Token   []byte // for Authorization: Negotiate
	Client  string // who it proves, e.g. WK02-020-51W$@CHILD.A2003.VM.LOCAL
	Service string // to whom, e.g. HTTP/mp.a2003.vm.local@A2003.VM.LOCAL

	// Verify judges the server's token: nil only when it proves that the server holds the
	// service's key. It is called with nil when the server sent none. Of a refused proof it
	// says why, as far as the token does.
	Verify func(reply []byte) error
}

// channelBinding is tls-server-end-point of a connection: the hash of the certificate that
// the server showed (RFC 5929 4). It is nil without TLS.
func channelBinding(state *tls.ConnectionState) []byte {
	if state == nil || len(state.PeerCertificates) == 0 {
		return nil
	}
	leaf, hash := state.PeerCertificates[0], crypto.SHA256
	switch leaf.SignatureAlgorithm {
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		hash = crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		hash = crypto.SHA512
	}
	sum := hash.New()
	sum.Write(leaf.Raw)
	return sum.Sum([]byte("tls-server-end-point:"))
}

// offersNegotiate reports whether an answer asks for a ticket.
func offersNegotiate(header http.Header) bool {
	for _, challenge := range header.Values("WWW-Authenticate") {
		scheme, _, _ := strings.Cut(strings.TrimSpace(challenge), " ")
		if strings.EqualFold(scheme, "Negotiate") {
			return true
		}
	}
	return false
}

// maxServerToken bounds a server's token in base64.
const maxServerToken = 90 << 10

// serverToken is the token in an answer's WWW-Authenticate: Negotiate, or nil.
func serverToken(header http.Header) []byte {
	for _, challenge := range header.Values("WWW-Authenticate") {
		scheme, value, found := strings.Cut(strings.TrimSpace(challenge), " ")
		if !found || !strings.EqualFold(scheme, "Negotiate") || len(value) > maxServerToken {
			continue
		}
		if token, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value)); err == nil {
			return token
		}
	}
	return nil
}

// windowsProof is the proof of one message, and who was proved once it is.
type windowsProof struct {
	by     Negotiator
	proved Negotiation
}

// unproven is in the chain of errors that ended Windows authentication before the server
// took the message: the device may go another way. A server that took it and could not
// prove itself is none of these.
type unproven struct{ err error }

func (u *unproven) Error() string { return u.err.Error() }
func (u *unproven) Unwrap() error { return u.err }

// sendWithTicket is Windows authentication (S0): the message goes out without credentials
// first, is answered 401 Negotiate, and goes out again with the ticket. Nothing of an
// answer is believed before the server has proved itself too.
func (a *Agent) sendWithTicket(ctx context.Context, c *conversation, q call) (answer, error) {
	first, err := a.open(ctx, c, q)
	if err != nil {
		return answer{}, err
	}
	if first.StatusCode != http.StatusUnauthorized {
		return a.noTicketWanted(c, q, first)
	}
	drain(first)
	if !offersNegotiate(first.Header) {
		return answer{}, &unproven{catalog.Errorf(catalog.ClientKerberosNotOffered, "%s answers 401 and does not offer Negotiate", c.route.Host)}
	}
	n, err := q.windows.by.Negotiate(ctx, hostName(c.route.Host), channelBinding(first.TLS))
	if err != nil {
		return answer{}, &unproven{err}
	}
	q.header = http.Header{"Authorization": {"Negotiate " + base64.StdEncoding.EncodeToString(n.Token)}}
	second, err := a.open(ctx, c, q)
	if err != nil {
		return answer{}, err
	}
	defer second.Body.Close()
	if second.StatusCode >= http.StatusInternalServerError || busy(second.StatusCode) {
		return answer{}, a.notNow(c, q, second)
	}
	proof := n.Verify(serverToken(second.Header))
	if second.StatusCode == http.StatusUnauthorized {
		return answer{}, &unproven{a.ticketRefused(c, q, second, proof)}
	}
	if proof != nil {
		return answer{}, proof
	}
	q.windows.proved = n
	return a.receive(c, q, second)
}

// noTicketWanted judges an answer to a request without credentials that is not 401.
func (a *Agent) noTicketWanted(c *conversation, q call, first *http.Response) (answer, error) {
	defer first.Body.Close()
	_, err := a.receive(c, q, first)
	switch {
	case err != nil && Transient(err):
		return answer{}, err
	case err != nil:
		return answer{}, &unproven{err}
	}
	return answer{}, &unproven{catalog.Errorf(catalog.ClientKerberosNotOffered, "%s takes the message without asking for a ticket", c.route.Host)}
}

// notNow is the error of a server that could not judge the ticket. It has not taken the
// message and proves nothing; the device tries again later, with another ticket.
func (a *Agent) notNow(c *conversation, q call, second *http.Response) error {
	_, err := a.receive(c, q, second)
	if Transient(err) {
		return err
	}
	return catalog.Wrap(catalog.ClientServerBusy, err, "%s could not judge the ticket: %d", c.route.Host, second.StatusCode)
}

// ticketRefused is why the second request was answered 401: in the server's own words when
// it has any, else as far as its token tells.
func (a *Agent) ticketRefused(c *conversation, q call, second *http.Response, proof error) error {
	_, err := a.receive(c, q, second)
	switch catalog.CodeOf(err) {
	case "", catalog.ClientRefused, catalog.ClientConnectionLost:
	default:
		return err
	}
	if code := catalog.CodeOf(proof); code != "" && code != catalog.ClientKerberosServer {
		return proof
	}
	return catalog.Wrap(catalog.ClientKerberosTicket, err, "%s answers the ticket with 401 and no reason", c.route.Host)
}

// drain reads the small rest of an answer, so that its connection is used again.
func drain(response *http.Response) {
	defer response.Body.Close()
	io.Copy(io.Discard, io.LimitReader(response.Body, maxProblem))
}
