package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"

	"postern/catalog"
	"postern/revocation"
)

// revocationCheck is how the device looks whether a server's certificate is revoked, where
// an authority vouches for it. Under a site root there are no lists: role certificates last
// a year at most, and the site state that withdraws them goes to gateways and connectors,
// not to devices.
type revocationCheck struct {
	Policy  revocation.Policy `json:"policy,omitempty"`  // "" is require: an unreachable list counts as revoked (product.md 2.6)
	Sources []string          `json:"sources,omitempty"` // besides those that the certificate names
}

// say is the line of Status.
func (c revocationCheck) say(n anchor) string {
	switch {
	case n.RootKey != "":
		return "no lists: under the site root certificates last a year at most; a device is not told which ones the site has blocked before"
	case c.policy() == revocation.PolicyPrefer:
		return "lists and responders are asked; when none answers the server is taken all the same"
	case c.policy() == revocation.PolicyOff:
		return "not checked"
	}
	return "lists and responders are asked; when none answers the server is refused"
}

func (c revocationCheck) policy() revocation.Policy {
	if c.Policy == "" {
		return revocation.PolicyRequire
	}
	return c.Policy
}

// checking is the policy of this moment: /NoCRLCheck covers the set-up and nothing after it
// (product.md E056).
func (a *Agent) checking(r record) revocation.Policy {
	if a.setupUnchecked.Load() {
		return revocation.PolicyOff
	}
	return r.Revocation.policy()
}

// checksRevocation reports whether connections of this record ask for revocation.
func (a *Agent) checksRevocation(r record) bool {
	return r.Anchor.RootKey == "" && a.checking(r) != revocation.PolicyOff
}

// serverCheck is how a connection under the anchor of the record is judged. A server's name
// and the authority are judged always. It runs with a.mu held.
func (a *Agent) serverCheck(r record, way route) (*tls.Config, error) {
	if r.Anchor.RootKey != "" {
		return r.Anchor.tlsConfig(way, a.config.Now), nil
	}
	checker, err := a.checkerFor(r)
	if err != nil {
		return nil, err
	}
	name := hostName(way.Host)
	config := &tls.Config{ServerName: name, MinVersion: tls.VersionTLS12, Time: a.config.Now, InsecureSkipVerify: true} // the next lines are the check
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		usage := revocation.ForServer(name)
		usage.Staple = cs.OCSPResponse
		verdict, err := checker.Check(context.Background(), cs.PeerCertificates, usage)
		if verdict.Warning() {
			a.logs.setup.Warningf("%s: %s", way.Host, verdict.Sentence)
			a.log.Warn("nobody could say whether the server's certificate is revoked", "host", way.Host, "code", string(verdict.Code), "why", verdict.Sentence)
		}
		return ofServer(err, verdict)
	}
	return config, nil
}

// ofServer gives the client's own codes to what is wrong with a server's certificate; those
// about revocation stay. The verdict stays inside, with every flag.
func ofServer(err error, verdict revocation.Verdict) error {
	if err == nil {
		return nil
	}
	codes := map[catalog.Code]catalog.Code{
		catalog.CertificateIssuerMissing: catalog.ClientServerUntrusted, catalog.CertificateRootUnknown: catalog.ClientServerUntrusted,
		catalog.CertificateName: catalog.ClientServerHost, catalog.CertificateDate: catalog.ClientServerExpired, catalog.CertificateUsage: catalog.ClientServerRole,
	}
	code, ok := codes[verdict.Code]
	if !ok {
		return err
	}
	return catalog.Wrap(code, err, "%s", verdict.Sentence)
}

// checkerFor returns the checker for the record's anchor and policy; it is kept, with the
// lists that it holds, until [Agent.Close].
func (a *Agent) checkerFor(r record) (*revocation.Checker, error) {
	policy := a.checking(r)
	of := strings.Join(append([]string{r.Anchor.CA, string(policy)}, r.Revocation.Sources...), "\x00")
	if checker, ok := a.checkers[of]; ok {
		return checker, nil
	}
	checker, err := revocation.New(revocation.Config{
		Roots: certificatesOf(r.Anchor.CA), SystemRoots: r.Anchor.CA == "", Policy: policy, Sources: r.Revocation.Sources, FromCertificate: true,
		Client: a.config.Lists, Now: a.config.Now,
	})
	if err != nil {
		return nil, err
	}
	a.checkers[of] = checker
	return checker, nil
}

// certificatesOf reads the certificates of a PEM file; what is none is left out.
func certificatesOf(text string) (list []*x509.Certificate) {
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		if certificate, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
			list = append(list, certificate)
		}
	}
	return list
}

// handshakeError gives a code and a sentence to a handshake that failed for another reason
// than the server's certificate; nil when TLS has no part in it.
func handshakeError(err error) error {
	explained, ok := revocation.Explain(err)
	switch {
	case !ok:
		return nil
	case explained.Number == revocation.ClientCertificateNeeded:
		return catalog.Wrap(catalog.ClientCertificateWanted, err, "%s", explained.Sentence)
	case explained.Code == catalog.TLSChannelFailed:
		return catalog.Wrap(catalog.ClientTLSFailed, err, "%s", explained.Sentence)
	}
	return catalog.Wrap(explained.Code, err, "%s", explained.Sentence)
}

// explained is how the documents' logs name a connection that was not made.
func explained(err error) (winHTTP, bool) {
	code := catalog.CodeOf(err)
	if _, full := errors.AsType[*revocation.Refused](err); !full {
		if known, ok := winHTTPErrors()[code]; ok {
			return known, true
		}
	}
	e, ok := revocation.Explain(err)
	return winHTTP{e.Number, e.Text, e.Flags}, ok
}
