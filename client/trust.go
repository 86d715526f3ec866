package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"postern/catalog"
	"postern/token"
)

// anchor is by what the agent recognises servers: the site root's hash or a company's
// authorities. The zero anchor, good inside over https only, is the system's authorities.
type anchor struct {
	RootKey string    `json:"root_key,omitempty"` // token.Pin of the site root
	CA      string    `json:"ca,omitempty"`       // PEM
	Learned time.Time `json:"learned,omitzero"`   // when the root key was taken on first use
	From    string    `json:"from,omitempty"`     // from which management point

	Former []formerRoot `json:"former_roots,omitempty"` // from which the site has led to RootKey
}

func (n anchor) empty() bool { return n.RootKey == "" && n.CA == "" }

// same reports whether two anchors recognise the same servers.
func (n anchor) same(other anchor) bool { return n.RootKey == other.RootKey && n.CA == other.CA }

// origin says where the anchor comes from.
func (n anchor) origin() string {
	led := ""
	if len(n.Former) > 0 {
		led = fmt.Sprintf("; the site has led on from the root %s, which was replaced", n.Former[0].RootKey)
	}
	switch {
	case !n.Learned.IsZero():
		return fmt.Sprintf("learned on first use at %s from %s, not given by a person", stamp(n.Learned), n.From) + led
	case n.empty():
		return ""
	}
	return "given at enrolment" + led
}

// noAnchorInside is the refusal of plain HTTP where nothing could be recognised.
func noAnchorInside(r route) error {
	return catalog.Errorf(catalog.ClientNoTrustAnchor, "over plain HTTP nothing shows whose management point %s is; give --root-key, or --trust-first-use if you must", r.Host)
}

// String says it in words.
func (n anchor) String() string {
	switch {
	case n.RootKey != "":
		return "site root " + n.RootKey
	case n.CA != "":
		return "given authority"
	}
	return ""
}

// maxAnchorFile bounds a file with authorities.
const maxAnchorFile = 1 << 20

// anchorOf reads what a Setup names; the zero anchor when it names nothing.
func anchorOf(s Setup) (anchor, error) {
	switch {
	case s.CAFile != "":
		return authorities(s.CAFile)
	case s.RootKeyFile != "":
		text, err := readSmall(s.RootKeyFile)
		if err != nil {
			return anchor{}, err
		}
		pin, err := ParseRootKey(text)
		if err != nil {
			return anchor{}, catalog.Wrap(catalog.ClientCAFile, err, "%s holds neither the root key nor its hash", s.RootKeyFile)
		}
		return anchor{RootKey: pin}, nil
	case s.RootKey != "":
		pin, err := ParseRootKey(s.RootKey)
		return anchor{RootKey: pin}, err
	}
	return anchor{}, nil
}

func authorities(path string) (anchor, error) {
	pem, err := readSmall(path)
	if err != nil {
		return anchor{}, err
	}
	if !x509.NewCertPool().AppendCertsFromPEM([]byte(pem)) {
		return anchor{}, catalog.Errorf(catalog.ClientCAFile, "%s holds no certificate in PEM", path)
	}
	return anchor{CA: pem}, nil
}

func readSmall(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", catalog.Wrap(catalog.ClientCAFile, err, "%s cannot be read", path)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxAnchorFile+1))
	if err != nil || len(content) > maxAnchorFile {
		return "", catalog.Wrap(catalog.ClientCAFile, err, "%s cannot be read or is too large", path)
	}
	return string(content), nil
}

// tlsConfig returns how a connection to the host of a route is judged under a site root. now is the device's
// own clock: the site's time is learned from an answer, and an answer needs a server that
// has been recognised already.
func (n anchor) tlsConfig(r route, now func() time.Time) *tls.Config {
	host := hostName(r.Host)
	config := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, Time: now}
	config.InsecureSkipVerify = true // the next line is the check
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		return checkServer(cs.PeerCertificates, n, r.role(), host, now())
	}
	return config
}

func hostName(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}

// maxChain is the longest chain of a role certificate: leaf, two authorities, root.
const maxChain = 4

// checkServer checks the chain that a server showed: leaf first, the site root last
// (design decision 15). Codes: ClientServerRoot, ClientServerRole, ClientServerHost,
// ClientServerExpired.
func checkServer(chain []*x509.Certificate, n anchor, role, host string, now time.Time) error {
	if err := checkIssued(chain, n, role, now); err != nil {
		return err
	}
	leaf := chain[0]
	if err := leaf.VerifyHostname(bracketed(host)); err != nil {
		return catalog.Wrap(catalog.ClientServerHost, err, "asked for %s; the certificate is for %s", host, strings.Join(names(leaf), ", "))
	}
	return nil
}

// checkIssued checks that a chain is one of a role under the site root.
func checkIssued(chain []*x509.Certificate, n anchor, role string, now time.Time) error {
	if len(chain) < 2 || len(chain) > maxChain {
		return catalog.Errorf(catalog.ClientServerRoot, "the server shows %d certificates; wanted are its own first and the site root last", len(chain))
	}
	now = notBefore(chain, now)
	if got := token.Pin(chain[len(chain)-1].PublicKey); !n.trusts(got, now) {
		return catalog.Errorf(catalog.ClientServerRoot, "the server's chain ends in the root %s, wanted %s", got, n.RootKey)
	}
	if err := checkChain(chain, now); err != nil {
		return err
	}
	return checkRole(chain[0], role)
}

func bracketed(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

func names(leaf *x509.Certificate) []string {
	all := append([]string{}, leaf.DNSNames...)
	for _, address := range leaf.IPAddresses {
		all = append(all, address.String())
	}
	if len(all) == 0 {
		return []string{"no host"}
	}
	return all[:min(len(all), 10)]
}

func checkChain(chain []*x509.Certificate, now time.Time) error {
	leaf := chain[0]
	if leaf.IsCA {
		return catalog.Errorf(catalog.ClientServerRole, "the server shows the certificate of an authority")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(chain[len(chain)-1])
	for _, certificate := range chain[1 : len(chain)-1] {
		between.AddCert(certificate)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err == nil {
		return nil
	}
	if certificateError := ofCertificate(err, now); certificateError != nil {
		return certificateError
	}
	return catalog.Wrap(catalog.ClientServerRoot, err, "the server's chain does not hold")
}

// ofCertificate gives a code to what the standard library says about a certificate, or
// nil when it is none of these.
func ofCertificate(err error, now time.Time) error {
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var authority x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return catalog.Wrap(catalog.ClientServerExpired, err, "valid from %s to %s; this device's clock says %s", stamp(invalid.Cert.NotBefore), stamp(invalid.Cert.NotAfter), stamp(now))
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return catalog.Wrap(catalog.ClientServerRole, err, "the certificate is not for a server")
	case errors.As(err, &invalid):
		return catalog.Wrap(catalog.ClientServerUntrusted, err, "the certificate cannot be used")
	case errors.As(err, &host):
		return catalog.Wrap(catalog.ClientServerHost, err, "asked for %s; the certificate is for %s", host.Host, strings.Join(names(host.Certificate), ", "))
	case errors.As(err, &authority):
		return catalog.Wrap(catalog.ClientServerUntrusted, err, "the certificate does not lead to an authority that was given")
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// checkRole wants exactly one role name in the certificate, and that one.
func checkRole(leaf *x509.Certificate, role string) error {
	var roles []string
	for _, uri := range leaf.URIs {
		if _, its, _, ok := token.ParseRoleURI(uri); ok {
			roles = append(roles, its)
		}
	}
	if len(roles) != 1 || roles[0] != role {
		return catalog.Errorf(catalog.ClientServerRole, "the certificate is for %q, wanted %s", roles, role)
	}
	return nil
}
