package analyze

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern/catalog"
	"postern/diag"
	"postern/revocation"
	"postern/token"
)

// soon is from where on the end of a certificate is worth a word.
const soon = 30 * 24 * time.Hour

// everySuite are the cipher suites of a client that wants to know what a server accepts.
func everySuite() (ids []uint16) {
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		ids = append(ids, suite.ID)
	}
	return ids
}

// checkTLS makes the first handshake, in whatever version the server takes.
func (r *run) checkTLS(ctx context.Context) []diag.Finding {
	if r.address == "" && r.via == nil {
		return []diag.Finding{diag.NotLooked("there is no connection")}
	}
	shown, asked, err := r.handshake(ctx, tls.VersionTLS10, tls.VersionTLS13)
	if shown == nil {
		return []diag.Finding{handshakeFailed(err)}
	}
	r.state, r.asked = shown, asked
	said := fmt.Sprintf("%s, %s", tls.VersionName(shown.Version), tls.CipherSuiteName(shown.CipherSuite))
	if asked != nil {
		said += fmt.Sprintf("; it asks for a client certificate (%d authorities named)", len(asked.AcceptableCAs))
	}
	if shown.Version < tls.VersionTLS12 {
		return []diag.Finding{diag.Found(diag.Fail, catalog.TLSChannelFailed, "%s is the newest that the server speaks; devices speak 1.2 and later\n%s", said, flagLine(revocation.FlagChannel))}
	}
	return []diag.Finding{diag.Good("the two sides speak TLS", "%s", said)}
}

func handshakeFailed(err error) diag.Finding {
	explained, ok := revocation.Explain(err)
	switch {
	case ok && explained.Code != "":
		return diag.Found(diag.Fail, explained.Code, "%s\n%s", explained.Sentence, flagLine(explained.Flags))
	case isTimeout(err):
		return diag.Found(diag.Fail, catalog.ClientTimeout, "the connection stands and the handshake gets no answer")
	}
	return diag.Found(diag.Fail, catalog.TLSChannelFailed, "%s: something on the way, or a server that speaks no TLS here\n%s", Reason(err), flagLine(revocation.FlagChannel))
}

// flagLine is how a Windows client logs it (S4).
func flagLine(flags revocation.Flags) string {
	if flags == 0 {
		return "a Windows client logs Code=12175, Text=ERROR_WINHTTP_SECURE_FAILURE"
	}
	return fmt.Sprintf("a Windows client logs lpvStatusInformation is 0x%x: %s", uint32(flags), strings.Join(flags.Names(), ", "))
}

// checkCertificate judges the chain as a device does, without revocation.
func (r *run) checkCertificate(ctx context.Context) []diag.Finding {
	if r.state == nil {
		return []diag.Finding{diag.NotLooked("there was no handshake")}
	}
	chain := r.state.PeerCertificates
	var findings []diag.Finding
	config := revocation.Config{Policy: revocation.PolicyOff, Now: r.Now, Roots: r.Authorities, SystemRoots: len(r.Authorities) == 0}
	if r.RootKey != "" {
		var found *diag.Finding
		if config.Roots, found = r.underSiteRoot(chain); found != nil {
			findings = append(findings, *found)
		}
		config.SystemRoots = false
	}
	checker, err := revocation.New(config)
	if err != nil {
		return append(findings, diag.FromError(diag.Fail, err, catalog.RevocationConfig))
	}
	defer checker.Close()
	verdict, err := checker.Check(ctx, chain, revocation.ForServer(r.host))
	for _, fault := range verdict.Faults {
		detail := fault.Sentence + "\n" + flagLine(fault.Flag)
		if len(findings) == 0 {
			detail += "\n" + Describe(chain)
		}
		if unknown := fault.Code == catalog.CertificateRootUnknown || fault.Code == catalog.CertificateIssuerMissing; unknown && issuedBySite(chain) {
			detail += "\nthe certificate says that a Postern site issued it: give --root-key HASH, as `postern site show` prints it"
		}
		findings = append(findings, diag.Found(diag.Fail, fault.Code, "%s", detail))
	}
	if err != nil && len(verdict.Faults) == 0 {
		findings = append(findings, diag.FromError(diag.Fail, err, catalog.CertificateUnreadable))
	}
	if len(findings) > 0 {
		return findings
	}
	r.trusted = true
	findings = append(findings, diag.Good("a device takes the certificate", "%s\n%s", Describe(chain), r.trustedBy()))
	return append(findings, EndsSoon(chain, r.Now())...)
}

func (r *run) trustedBy() string {
	switch {
	case r.siteRoot != nil:
		return "trusted by the site root " + r.RootKey
	case len(r.Authorities) > 0:
		return "trusted by the authorities that were given"
	}
	return "trusted by this machine's own authorities; a device may have others"
}

// EndsSoon warns of each of a chain's first eight certificates that ends soon; of short-lived
// ones when a sixth of their life is left.
func EndsSoon(chain []*x509.Certificate, now time.Time) (findings []diag.Finding) {
	for _, c := range told(chain) {
		if left := c.NotAfter.Sub(now); left > 0 && left < min(soon, c.NotAfter.Sub(c.NotBefore)/6) {
			findings = append(findings, diag.Found(diag.Warn, catalog.CertificateEndsSoon, "%s ends %s, in %s", short(c.Subject.String(), 200), c.NotAfter.UTC().Format(time.DateTime), days(left)))
		}
	}
	return findings
}

func days(d time.Duration) string {
	if d < 48*time.Hour {
		return d.Round(time.Minute).String()
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// underSiteRoot finds the site root among what was shown, the one that was given or one
// that it has led to.
func (r *run) underSiteRoot(chain []*x509.Certificate) ([]*x509.Certificate, *diag.Finding) {
	last := chain[len(chain)-1]
	pins := []string{r.RootKey}
	for _, c := range told(chain) {
		roots, err := token.FollowRoots(r.RootKey, token.CarriedLinks(c))
		for _, root := range roots {
			if err == nil && root.Trusted(r.Now()) {
				pins = append(pins, root.Pin)
			}
		}
	}
	if !slices.Contains(pins, token.Pin(last.PublicKey)) {
		found := diag.Found(diag.Fail, catalog.ClientServerRoot, "the chain ends in the root %s, wanted %s\n%s", token.Pin(last.PublicKey), r.RootKey, Describe(chain))
		return []*x509.Certificate{last}, &found // what else is wrong is told too
	}
	r.siteRoot = last
	if !issuedFor(chain[0], token.RoleGateway) && issuedBySite(chain) {
		found := diag.Found(diag.Fail, catalog.ClientServerRole, "the certificate is of the site, and not a gateway's\n%s", Describe(chain))
		return []*x509.Certificate{last}, &found
	}
	return []*x509.Certificate{last}, nil
}

func issuedBySite(chain []*x509.Certificate) bool {
	return slices.ContainsFunc([]string{token.RoleGateway, token.RoleManagementPoint, token.RoleConnector}, func(role string) bool { return issuedFor(chain[0], role) })
}

func issuedFor(leaf *x509.Certificate, role string) bool {
	for _, uri := range leaf.URIs {
		if _, its, _, ok := token.ParseRoleURI(uri); ok && its == role {
			return true
		}
	}
	return false
}

// Budgets of what is told of a chain: whoever shows it may show hundreds, with names of any length.
const (
	maxTold  = 8
	maxNames = 8
)

func told(chain []*x509.Certificate) []*x509.Certificate { return chain[:min(len(chain), maxTold)] }

// Describe is a chain for a person, leaf first, its first eight certificates.
func Describe(chain []*x509.Certificate) string {
	leaf := chain[0]
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		names = []string{"no names (subject " + leaf.Subject.String() + ")"}
	}
	for i := range names {
		names[i] = short(names[i], 200)
	}
	lines := []string{
		"for " + strings.Join(names[:min(len(names), maxNames)], ", "),
		fmt.Sprintf("valid %s to %s, %s", leaf.NotBefore.UTC().Format(time.DateOnly), leaf.NotAfter.UTC().Format(time.DateOnly), keyOf(leaf)),
	}
	for i, c := range told(chain) {
		lines = append(lines, fmt.Sprintf("%d %s, issued by %s", i+1, short(c.Subject.String(), 200), short(c.Issuer.String(), 200)))
	}
	if more := len(chain) - maxTold; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(lines, "\n")
}

func keyOf(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d, signed with %s", key.N.BitLen(), c.SignatureAlgorithm)
	case *ecdsa.PublicKey:
		return fmt.Sprintf("%s, signed with %s", key.Curve.Params().Name, c.SignatureAlgorithm)
	}
	return c.PublicKeyAlgorithm.String()
}

// checkRevocation asks where the certificates say, as a device does that requires it.
func (r *run) checkRevocation(ctx context.Context) []diag.Finding {
	switch {
	case r.state == nil:
		return []diag.Finding{diag.NotLooked("there was no handshake")}
	case !r.trusted:
		return []diag.Finding{diag.NotLooked("the chain leads to no trusted root, so nobody can say for whom to ask")}
	case r.siteRoot != nil:
		return []diag.Finding{diag.Good("no lists are needed", "what is under the site root is withdrawn by the signed site state, which connectors check")}
	}
	checker, err := revocation.New(revocation.Config{
		Policy: revocation.PolicyRequire, Now: r.Now, Roots: r.Authorities, SystemRoots: len(r.Authorities) == 0,
		FromCertificate: true, Client: r.Lists, FetchTimeout: r.Timeout, Wait: 2 * r.Timeout,
	})
	if err != nil {
		return []diag.Finding{diag.FromError(diag.Fail, err, catalog.RevocationConfig)}
	}
	defer checker.Close()
	usage := revocation.ForServer(r.host)
	usage.Staple = r.state.OCSPResponse
	verdict, err := checker.Check(ctx, r.state.PeerCertificates, usage)
	lines := sources(verdict)
	if err == nil {
		return []diag.Finding{diag.Good("not revoked, and every place that says so can be reached", "%s", lines)}
	}
	return []diag.Finding{diag.Found(diag.Fail, verdict.Code, "%s\n%s\n%s", verdict.Sentence, lines, flagLine(verdict.Flags))}
}

func sources(verdict revocation.Verdict) string {
	var lines []string
	for _, c := range verdict.Certificates {
		line := fmt.Sprintf("%s: %s", short(c.Certificate.Subject.String(), 200), c.State)
		if c.Source != "" {
			line += " (" + c.Source + ")"
		}
		if c.Sentence != "" {
			line += ": " + c.Sentence
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// checkVersions tries each version alone.
func (r *run) checkVersions(ctx context.Context) []diag.Finding {
	if r.state == nil {
		return []diag.Finding{diag.NotLooked("there was no handshake")}
	}
	var offered, refused []string
	old, usable := false, false
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		shown, _, _ := r.handshake(ctx, version, version)
		if shown == nil {
			refused = append(refused, tls.VersionName(version))
			continue
		}
		offered = append(offered, tls.VersionName(version))
		old, usable = old || version < tls.VersionTLS12, usable || version >= tls.VersionTLS12
	}
	detail := "offered: " + strings.Join(offered, ", ")
	if len(refused) > 0 {
		detail += "; not offered: " + strings.Join(refused, ", ")
	}
	switch {
	case !usable:
		return []diag.Finding{diag.Found(diag.Fail, catalog.TLSChannelFailed, "%s\n%s", detail, flagLine(revocation.FlagChannel))}
	case old:
		return []diag.Finding{diag.Found(diag.Warn, catalog.OldTLSOffered, "%s", detail)}
	}
	return []diag.Finding{diag.Good("only versions of today are offered", "%s", detail)}
}

func pin(c *x509.Certificate) string { return token.Pin(c.PublicKey) }
