package preflight

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"postern/catalog"
	"postern/diag"
	"postern/diag/analyze"
	"postern/revocation"
)

// publicLife is how long public authorities may make a certificate last (CA/Browser Forum).
const publicLife = 398 * 24 * time.Hour

// checkCertificate judges the certificate that the gateway will show, as a device will.
func (r *run) checkCertificate(ctx context.Context) []diag.Finding {
	if r.Certificate == nil {
		return []diag.Finding{diag.NotLooked("no --certificate was given: the site issues one by itself, and devices need the hash of the site root (--root-key). With a certificate of a public authority they need nothing")}
	}
	chain, err := readChain(r.Certificate)
	if err != nil {
		return []diag.Finding{diag.FromError(diag.Fail, err, catalog.CertificateUnreadable)}
	}
	findings := r.judgeChain(ctx, chain)
	findings = append(findings, r.judgeKey()...)
	findings = append(findings, analyze.EndsSoon(chain, r.Now())...)
	return append(findings, r.advice(chain[0])...)
}

func readChain(text []byte) (chain []*x509.Certificate, err error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := revocation.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, catalog.Errorf(catalog.CertificateUnreadable, "the file holds no certificate in PEM form; from a PFX: `openssl pkcs12 -in gateway.pfx -nokeys -out gateway.crt`")
	}
	return chain, nil
}

func (r *run) judgeChain(ctx context.Context, chain []*x509.Certificate) (findings []diag.Finding) {
	checker, err := revocation.New(revocation.Config{Policy: revocation.PolicyOff, Now: r.Now, Roots: r.Authorities, SystemRoots: len(r.Authorities) == 0})
	if err != nil {
		return []diag.Finding{diag.FromError(diag.Fail, err, catalog.RevocationConfig)}
	}
	defer checker.Close()
	verdict, err := checker.Check(ctx, chain, revocation.ForServer(r.host))
	for i, fault := range verdict.Faults {
		detail := fault.Sentence
		if i == 0 {
			detail += "\n" + analyze.Describe(chain)
		}
		if len(r.Authorities) == 0 && (fault.Code == catalog.CertificateRootUnknown || fault.Code == catalog.CertificateIssuerMissing) {
			detail += "\nan authority of your own? Give it with --ca-file, and bring it to the devices before they first talk"
		}
		findings = append(findings, diag.Found(diag.Fail, fault.Code, "%s", detail))
	}
	if err != nil && len(findings) == 0 {
		findings = append(findings, diag.FromError(diag.Fail, err, catalog.CertificateUnreadable))
	}
	if len(findings) == 0 {
		findings = append(findings, diag.Good("a device will take the certificate", "%s", analyze.Describe(chain)))
	}
	return findings
}

// judgeKey wants the key that belongs to the certificate, in a form that can be read. It
// says nothing of the key itself.
func (r *run) judgeKey() []diag.Finding {
	if r.Key == nil {
		return []diag.Finding{diag.NotLooked("the private key: no --certificate-key was given")}
	}
	if block, _ := pem.Decode(r.Key); block != nil && (strings.Contains(block.Type, "ENCRYPTED") || block.Headers["DEK-Info"] != "") {
		return []diag.Finding{diag.Found(diag.Fail, catalog.ServerKeyMismatch, "the key is sealed with a password; a gateway starts without a person, so it must be open, and readable by the gateway's user only")}
	}
	if _, err := tls.X509KeyPair(r.Certificate, r.Key); err != nil {
		return []diag.Finding{diag.Found(diag.Fail, catalog.ServerKeyMismatch, "%s", strings.TrimPrefix(err.Error(), "tls: "))}
	}
	return []diag.Finding{diag.Good("the private key belongs to the certificate", "")}
}

// advice is what works and should be known (product.md 3.2).
func (r *run) advice(leaf *x509.Certificate) (findings []diag.Finding) {
	tell := func(format string, arguments ...any) {
		findings = append(findings, diag.Found(diag.Warn, catalog.CertificateAdvice, format, arguments...))
	}
	for _, name := range leaf.DNSNames {
		if rest, ok := strings.CutPrefix(name, "*."); ok && strings.EqualFold(rest, r.Domain) {
			tell("%s is a wildcard: it works for %s, and its key at the edge is good for every host of %s. In the wizard of Microsoft's gateway, replace the * by the service name", name, r.host, r.Domain)
		}
	}
	if len(r.Authorities) > 0 {
		tell("the authority is one of your own: devices need its root before they first talk, and reach its revocation list from the internet (or the check is off)%s", lists(leaf))
	} else if life := leaf.NotAfter.Sub(leaf.NotBefore); life > publicLife {
		tell("its life is %d days; of public authorities some clients take 398 at most", int(life.Hours()/24))
	}
	return findings
}

func lists(leaf *x509.Certificate) string {
	if places := append(append([]string{}, leaf.CRLDistributionPoints...), leaf.OCSPServer...); len(places) > 0 {
		return fmt.Sprintf("\nit says to ask at %s", strings.Join(places[:min(len(places), 4)], ", "))
	}
	return "\nit names no place where to ask whether it is revoked: devices that require the check refuse it"
}
