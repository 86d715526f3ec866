package revocation

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"postern/catalog"
)

// Budgets of a chain that somebody shows.
const (
	maxChain       = 10
	maxCertificate = 64 << 10
	maxRSABits     = 8192
	maxTried       = 4  // chains that are asked about
	maxSignatures  = 32 // that the diagnosis of a refused chain checks
)

// ParseCertificate reads one certificate in DER and tells a negative serial number, which crypto/x509 does not read, from
// other damage. Codes: CertificateUnreadable, CertificateNegativeSerial.
func ParseCertificate(der []byte) (*x509.Certificate, error) {
	if len(der) > maxCertificate {
		return nil, catalog.Errorf(catalog.CertificateUnreadable, "the certificate has %d bytes, at most %d are read", len(der), maxCertificate)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, unreadable(err)
	}
	return certificate, nil
}

// unreadable is the error of a certificate that crypto/x509 does not read. It has no type for a negative serial.
func unreadable(err error) error {
	if strings.Contains(err.Error(), "negative serial number") {
		return catalog.Wrap(catalog.CertificateNegativeSerial, err, "the certificate has a negative serial number, which no TLS library of today reads")
	}
	return catalog.Wrap(catalog.CertificateUnreadable, err, "the certificate is damaged")
}

// build returns the chains that hold, and every fault. There may be both: a certificate for another name has a chain.
func (c *Checker) build(chain []*x509.Certificate, usage Usage, now time.Time) (chains [][]*x509.Certificate, faults []Fault) {
	if fault, ok := shown(chain); !ok {
		return nil, []Fault{fault}
	}
	leaf := chain[0]
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         c.roots,
		Intermediates: c.withIntermediates(chain[1:]),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage.key()},
	})
	if err != nil {
		faults = c.diagnose(chain, usage, now, err)
	}
	chains, weak := strongest(chains)
	faults = append(faults, weak...)
	faults = append(faults, leafFaults(leaf, usage, faults)...)
	return chains[:min(len(chains), maxTried)], faults
}

func (u Usage) key() x509.ExtKeyUsage {
	if u.Server {
		return x509.ExtKeyUsageServerAuth
	}
	return x509.ExtKeyUsageClientAuth
}

func (u Usage) String() string {
	if u.Server {
		return "server authentication"
	}
	return "client authentication"
}

// shown checks the budgets of what the other side showed.
func shown(chain []*x509.Certificate) (Fault, bool) {
	refuse := func(format string, arguments ...any) (Fault, bool) {
		return Fault{FlagInvalidCertificate, catalog.CertificateUnreadable, fmt.Sprintf(format, arguments...), nil}, false
	}
	if len(chain) == 0 {
		return refuse("no certificate was shown")
	}
	if len(chain) > maxChain {
		return refuse("%d certificates were shown, at most %d are read", len(chain), maxChain)
	}
	for i, certificate := range chain {
		switch {
		case certificate == nil || len(certificate.Raw) == 0:
			return refuse("certificate %d of the chain is empty", i+1)
		case len(certificate.Raw) > maxCertificate:
			return refuse("the certificate %s has %d bytes, at most %d are read", describe(certificate), len(certificate.Raw), maxCertificate)
		case rsaBits(certificate) > maxRSABits:
			return refuse("the certificate %s has an RSA key of %d bits, at most %d are used", describe(certificate), rsaBits(certificate), maxRSABits)
		}
	}
	return Fault{}, true
}

func (c *Checker) withIntermediates(shown []*x509.Certificate) *x509.CertPool {
	if len(shown) == 0 {
		return c.intermediates
	}
	all := c.intermediates.Clone()
	for _, certificate := range shown {
		all.AddCert(certificate)
	}
	return all
}

// strongest keeps the chains without a weak certificate, or says what is weak in the first when there is none.
func strongest(chains [][]*x509.Certificate) (strong [][]*x509.Certificate, faults []Fault) {
	for _, chain := range chains {
		if found := weaknesses(chain, true); len(found) == 0 {
			strong = append(strong, chain)
		} else if faults == nil {
			faults = found
		}
	}
	if len(strong) > 0 {
		return strong, nil
	}
	return nil, faults
}

// weaknesses of a path. The signature of a trusted root protects nothing, so it is not looked at.
func weaknesses(path []*x509.Certificate, rooted bool) (faults []Fault) {
	for i, certificate := range path {
		root := rooted && i == len(path)-1
		if what := weakness(certificate, root); what != "" {
			faults = append(faults, Fault{FlagInvalidCertificate, catalog.CertificateWeak, "the certificate " + describe(certificate) + " " + what, nil})
		}
	}
	return faults
}

func weakness(certificate *x509.Certificate, root bool) string {
	switch key := certificate.PublicKey.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 {
			return fmt.Sprintf("has an RSA key of %d bits, wanted are 2048", bits)
		}
	case *ecdsa.PublicKey:
		if bits := key.Curve.Params().BitSize; bits < 256 {
			return fmt.Sprintf("has a key on a curve of %d bits, wanted are 256", bits)
		}
	}
	if !root && weakSignature(certificate.SignatureAlgorithm) {
		return "is signed with " + certificate.SignatureAlgorithm.String()
	}
	return ""
}

func weakSignature(algorithm x509.SignatureAlgorithm) bool {
	switch algorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		return true
	}
	return false
}

func rsaBits(certificate *x509.Certificate) int {
	if key, ok := certificate.PublicKey.(*rsa.PublicKey); ok {
		return key.N.BitLen()
	}
	return 0
}

// leafFaults is what this product asks of the certificate itself, whatever its chain: the extended key usage is written in
// it, the names are right.
func leafFaults(leaf *x509.Certificate, usage Usage, known []Fault) (faults []Fault) {
	if !slices.Contains(leaf.ExtKeyUsage, usage.key()) && !anyFlag(known, FlagWrongUsage) {
		faults = append(faults, wrongUsage(leaf, usage))
	}
	if sentence := nameFault(leaf, usage); sentence != "" {
		faults = append(faults, Fault{FlagName, catalog.CertificateName, sentence, nil})
	}
	return faults
}

func wrongUsage(certificate *x509.Certificate, usage Usage) Fault {
	return Fault{FlagWrongUsage, catalog.CertificateUsage, "the certificate " + describe(certificate) + " is not for " + usage.String(), nil}
}

func nameFault(leaf *x509.Certificate, usage Usage) string {
	if usage.Server {
		if usage.Name == "" || leaf.VerifyHostname(usage.Name) == nil {
			return ""
		}
		return fmt.Sprintf("the server was called by the name %.100q; its certificate is for %s", usage.Name, names(leaf))
	}
	for _, name := range append(slices.Clone(leaf.DNSNames), leaf.Subject.CommonName) {
		if strings.Contains(name, "*") || strings.ContainsFunc(name, unicode.IsControl) {
			return fmt.Sprintf("the client's certificate is for %.100q, which is the name of no client", name)
		}
	}
	return ""
}

// names lists what a server's certificate is for.
func names(leaf *x509.Certificate) string {
	listed := slices.Clone(leaf.DNSNames)
	for _, address := range leaf.IPAddresses {
		listed = append(listed, address.String())
	}
	if len(listed) == 0 {
		return fmt.Sprintf("the common name %.100q alone, and names count only among the subject alternative names", leaf.Subject.CommonName)
	}
	more := ""
	if len(listed) > 5 {
		more = fmt.Sprintf(" and %d more", len(listed)-5)
		listed = listed[:5]
	}
	for i, name := range listed {
		listed[i] = fmt.Sprintf("%.100q", name)
	}
	return strings.Join(listed, ", ") + more
}

// diagnose finds every reason why crypto/x509 refused a chain; that gives one, and hides an expired authority behind an
// unknown one.
func (c *Checker) diagnose(chain []*x509.Certificate, usage Usage, now time.Time, cause error) (faults []Fault) {
	path, trusted := c.walk(chain)
	if !trusted {
		faults = append(faults, untrusted(path[len(path)-1]))
	}
	for i, certificate := range path {
		if sentence := dateFault(certificate, now); sentence != "" {
			faults = append(faults, Fault{FlagDate, catalog.CertificateDate, sentence, nil})
		}
		if sentence := authorityFault(path, i); sentence != "" {
			faults = append(faults, Fault{FlagInvalidCertificate, catalog.CertificateConstraint, sentence, nil})
		}
		if !anyFlag(faults, FlagWrongUsage) && excludes(certificate, usage) {
			faults = append(faults, wrongUsage(certificate, usage))
		}
	}
	faults = append(faults, weaknesses(path, trusted)...)
	if len(faults) == 0 {
		explained := faultOfX509(cause)
		return []Fault{explained}
	}
	faults[0].err = cause
	return faults
}

// walk follows the issuers of the first certificate as far as they are known, without asking whether they may issue.
func (c *Checker) walk(chain []*x509.Certificate) (path []*x509.Certificate, trusted bool) {
	known := slices.Concat(c.config.Roots, c.config.Intermediates, chain[1:])
	path, budget := []*x509.Certificate{chain[0]}, maxSignatures
	for len(path) <= maxChain {
		last := path[len(path)-1]
		if c.trusts(last) {
			return path, true
		}
		issuer := issuerAmong(known, path, last, &budget)
		if issuer == nil {
			return path, c.systemIssued(last)
		}
		path = append(path, issuer)
	}
	return path, false
}

func (c *Checker) trusts(certificate *x509.Certificate) bool {
	return slices.ContainsFunc(c.config.Roots, certificate.Equal)
}

func issuerAmong(known, path []*x509.Certificate, last *x509.Certificate, budget *int) *x509.Certificate {
	for _, candidate := range known {
		if candidate == nil || !bytes.Equal(candidate.RawSubject, last.RawIssuer) || slices.ContainsFunc(path, candidate.Equal) {
			continue
		}
		if *budget--; *budget < 0 {
			return nil
		}
		if candidate.CheckSignature(last.SignatureAlgorithm, last.RawTBSCertificate, last.Signature) == nil {
			return candidate
		}
	}
	return nil
}

// systemIssued says whether a root of the operating system, which cannot be listed, is or issued this certificate.
func (c *Checker) systemIssued(certificate *x509.Certificate) bool {
	if !c.config.SystemRoots {
		return false
	}
	_, err := certificate.Verify(x509.VerifyOptions{
		Roots:       c.roots,
		CurrentTime: certificate.NotAfter,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err == nil
}

// untrusted is the fault of a path that ends before a trusted root.
func untrusted(end *x509.Certificate) Fault {
	if bytes.Equal(end.RawSubject, end.RawIssuer) {
		return Fault{FlagInvalidCA, catalog.CertificateRootUnknown, "the chain ends in " + describe(end) + ", which is not among the trusted roots", nil}
	}
	return Fault{FlagInvalidCA, catalog.CertificateIssuerMissing,
		fmt.Sprintf("the certificate %s was issued by %.120q, which is neither a trusted root nor a known intermediate authority", describe(end), end.Issuer.String()), nil}
}

func dateFault(certificate *x509.Certificate, now time.Time) string {
	switch {
	case now.Before(certificate.NotBefore):
		return "the certificate " + describe(certificate) + " is valid from " + date(certificate.NotBefore) + ", it is now " + date(now)
	case now.After(certificate.NotAfter):
		return "the certificate " + describe(certificate) + " expired on " + date(certificate.NotAfter) + ", it is now " + date(now)
	}
	return ""
}

// authorityFault says why the certificate at i of a path may not issue the one below it.
func authorityFault(path []*x509.Certificate, i int) string {
	certificate := path[i]
	switch {
	case i == 0:
		return ""
	case certificate.Version == 3 && (!certificate.BasicConstraintsValid || !certificate.IsCA),
		certificate.KeyUsage != 0 && certificate.KeyUsage&x509.KeyUsageCertSign == 0:
		return "the certificate " + describe(certificate) + " may not issue others"
	case certificate.MaxPathLen > 0 || certificate.MaxPathLenZero:
		if below := i - 1; below > certificate.MaxPathLen {
			return fmt.Sprintf("the certificate %s allows %d authorities below it, and there are %d", describe(certificate), certificate.MaxPathLen, below)
		}
	}
	return ""
}

// excludes says whether a certificate limits what it and those below it are for, and leaves this usage out.
func excludes(certificate *x509.Certificate, usage Usage) bool {
	if len(certificate.ExtKeyUsage)+len(certificate.UnknownExtKeyUsage) == 0 {
		return false
	}
	return !slices.Contains(certificate.ExtKeyUsage, usage.key()) && !slices.Contains(certificate.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// describe names a certificate for a person, within bounds and without control characters.
func describe(certificate *x509.Certificate) string {
	name := certificate.Subject.CommonName
	if name == "" && len(certificate.DNSNames) > 0 {
		name = certificate.DNSNames[0]
	}
	if name == "" {
		name = certificate.Subject.String()
	}
	return fmt.Sprintf("%.100q", name)
}

func date(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// faultOfX509 names the error types of crypto/x509.
func faultOfX509(err error) Fault {
	code := catalog.CertificateConstraint
	sentence := "the chain does not hold"
	switch e := err.(type) {
	case x509.HostnameError:
		code, sentence = catalog.CertificateName, fmt.Sprintf("the server was called by the name %.100q; its certificate is for %s", e.Host, names(e.Certificate))
	case x509.UnknownAuthorityError:
		code, sentence = catalog.CertificateRootUnknown, "the certificate is not under a root that is trusted here"
		if e.Cert != nil {
			fault := untrusted(e.Cert)
			code, sentence = fault.Code, fault.Sentence
		}
	case x509.CertificateInvalidError:
		return invalid(e)
	case x509.InsecureAlgorithmError:
		code, sentence = catalog.CertificateWeak, "a certificate of the chain is signed with "+x509.SignatureAlgorithm(e).String()
	case x509.SystemRootsError:
		code, sentence = catalog.CertificateRootUnknown, "the roots of the operating system cannot be read"
	case x509.UnhandledCriticalExtension:
		sentence = "a certificate of the chain has a critical extension that is not understood"
	case x509.ConstraintViolationError:
		sentence = "a certificate of the chain breaks a constraint of its authority"
	case asn1.SyntaxError, asn1.StructuralError:
		code, sentence = catalog.CertificateUnreadable, "the certificate is damaged"
	default:
		if inner := errors.Unwrap(err); inner != nil {
			return faultOfX509(inner)
		}
	}
	return Fault{FlagsOf(code), code, sentence, err}
}

// invalid names the reasons of x509.CertificateInvalidError.
func invalid(e x509.CertificateInvalidError) Fault {
	who := "a certificate of the chain"
	if e.Cert != nil {
		who = "the certificate " + describe(e.Cert)
	}
	reasons := map[x509.InvalidReason]struct {
		code catalog.Code
		what string
	}{
		x509.Expired:                       {catalog.CertificateDate, "is not valid at this time"},
		x509.NotAuthorizedToSign:           {catalog.CertificateConstraint, "may not issue others"},
		x509.TooManyIntermediates:          {catalog.CertificateConstraint, "allows fewer authorities below it than there are"},
		x509.IncompatibleUsage:             {catalog.CertificateUsage, "is for another use"},
		x509.NameMismatch:                  {catalog.CertificateIssuerMissing, "is not from the authority that it names"},
		x509.CANotAuthorizedForThisName:    {catalog.CertificateConstraint, "has a name that its authority may not give"},
		x509.CANotAuthorizedForExtKeyUsage: {catalog.CertificateUsage, "is for a use that its authority may not give"},
		x509.TooManyConstraints:            {catalog.CertificateConstraint, "has too many names to compare"},
		x509.UnconstrainedName:             {catalog.CertificateConstraint, "has a kind of name that its authority does not allow"},
	}
	reason, ok := reasons[e.Reason]
	if !ok {
		reason.code, reason.what = catalog.CertificateConstraint, "breaks a rule of its authority"
	}
	if e.Reason == x509.Expired && e.Cert != nil {
		reason.what = "is valid from " + date(e.Cert.NotBefore) + " to " + date(e.Cert.NotAfter)
	}
	return Fault{FlagsOf(reason.code), reason.code, who + " " + reason.what, e}
}
