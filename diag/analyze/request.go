package analyze

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"postern/catalog"
	"postern/ccm"
	"postern/client"
	"postern/diag"
	"postern/token"
)

// checkClientCertificate goes through the four filters of the connection point in its order
// (S4; product.md 1.2 row 8, E019 to E022), and says at which one the certificate falls.
func (r *run) checkClientCertificate(context.Context) []diag.Finding {
	if r.Certificate == nil {
		return []diag.Finding{diag.NotLooked("no --certificate was given")}
	}
	var chain []*x509.Certificate
	for _, der := range r.Certificate.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return []diag.Finding{diag.FromError(diag.Fail, err, catalog.CertificateUnreadable)}
		}
		chain = append(chain, c)
	}
	leaf := chain[0]
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return dropped(1, "digital signature", catalog.CertificateUsage, "its key usage does not hold digital signature", chain)
	}
	passed := []string{"digital signature", "allowed root CA", "private key", "client auth"}
	findings, allowed := r.allowedRoot(chain)
	if len(findings) > 0 {
		passed = slices.Delete(passed, 1, 2) // it could not be told
	}
	if !allowed {
		return findings
	}
	if r.Certificate.PrivateKey == nil {
		return append(findings, dropped(3, "private key", catalog.SymptomNoPrivateKeyCertificate, "there is no private key for it; give --certificate-key", chain)...)
	}
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return append(findings, dropped(4, "client auth", catalog.SymptomNotClientAuthCertificate, "client authentication (1.3.6.1.5.5.7.3.2) is not among its extended key usages", chain)...)
	}
	if now := r.Now(); now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return append(findings, diag.Found(diag.Fail, catalog.SymptomCertificateOutOfDate, "it passes the filters and is not valid today\n%s", Describe(chain)))
	}
	findings = append(findings, diag.Good("no filter drops the certificate", "it passes: %s\n%s", strings.Join(passed, ", "), Describe(chain)))
	return append(findings, EndsSoon(chain[:1], r.Now())...)
}

func dropped(number int, filter string, code catalog.Code, why string, chain []*x509.Certificate) []diag.Finding {
	return []diag.Finding{diag.Found(diag.Fail, code, "filter %d of 4 (%s) drops it: %s\n%s", number, filter, why, Describe(chain))}
}

// allowedRoot is the second filter: by the authorities that were given, or by those that
// the gateway names when it asks for a certificate. Most gateways name none.
func (r *run) allowedRoot(chain []*x509.Certificate) ([]diag.Finding, bool) {
	switch {
	case len(r.ClientRoots) > 0:
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		for _, c := range r.ClientRoots {
			roots.AddCert(c)
		}
		for _, c := range chain[1:] {
			between.AddCert(c)
		}
		_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: chain[0].NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if err != nil {
			return dropped(2, "allowed root CA", catalog.SymptomNotAllowedCertificate, "it does not lead to one of the authorities that were given: "+Reason(err), chain), false
		}
	case r.asked != nil && len(r.asked.AcceptableCAs) > 0:
		if !slices.ContainsFunc(chain, func(c *x509.Certificate) bool {
			return slices.ContainsFunc(r.asked.AcceptableCAs, func(name []byte) bool { return bytes.Equal(name, c.RawIssuer) })
		}) {
			return dropped(2, "allowed root CA", catalog.SymptomNotAllowedCertificate, "the gateway names its authorities, and none of them issued it", chain), false
		}
	default:
		return []diag.Finding{diag.NotLooked("filter 2 of 4 (allowed root CA): the gateway names no authorities; give them with --client-roots")}, true
	}
	return nil, true
}

// checkManagementPoints asks for MPLIST with the identity that was given: a device's, or a
// certificate's.
func (r *run) checkManagementPoints(ctx context.Context) []diag.Finding {
	switch {
	case r.kind == kindUnknown:
		return []diag.Finding{diag.NotLooked("no gateway answers")}
	case r.Device != nil:
		return []diag.Finding{r.byDevice(ctx)}
	case r.Certificate == nil || r.Certificate.PrivateKey == nil:
		return []diag.Finding{diag.NotLooked("a gateway passes it on only for a device that proves itself; give --state FOLDER of a postern client, or --certificate with --role")}
	case r.RoleID == 0:
		return []diag.Finding{diag.NotLooked("the id of the management point is not known; give it with --role, or the whole of CCMHOSTNAME as the address")}
	case !r.trusted:
		return []diag.Finding{diag.NotLooked("the gateway's certificate was not found good, so the certificate is not shown")}
	}
	return []diag.Finding{r.byCertificate(ctx)}
}

func (r *run) byCertificate(ctx context.Context) diag.Finding {
	path := ccm.ExternalPath(ccm.DoorMutualAuth, r.RoleID, "/SMS_MP/.sms_aut")
	header := http.Header{}
	if signer, ok := r.Certificate.PrivateKey.(crypto.Signer); ok && r.kind == kindPostern {
		proof, err := token.SignProof(signer, http.MethodGet, r.url(path), "", r.corrected(), rand.Reader)
		if err != nil {
			return diag.FromError(diag.Fail, err, catalog.ClientCertificateUnusable)
		}
		header.Set("DPoP", proof)
	}
	got, err := r.get(ctx, path+"?"+string(ccm.AuthMPList), header, true)
	r.trace = got.trace
	if err != nil {
		return handshakeFailed(err)
	}
	if got.status != http.StatusOK {
		return refused(got, phraseCode(got.phrase))
	}
	list, err := ccm.ParseMPList(string(got.body))
	if err != nil {
		return diag.FromError(diag.Fail, err, catalog.ClientAnswerUnreadable)
	}
	r.answered = true
	return listed(list.ManagementPoints, "by the client certificate")
}

// phraseCode names the texts by which gateways and connection points refuse (protocol.md 7.4).
func phraseCode(phrase string) catalog.Code {
	codes := map[string]catalog.Code{
		"CMGService_Invalid_Token":               catalog.SymptomGatewayInvalidToken,
		"CMGConnector_Clientcertificaterequired": catalog.SymptomConnectorClientCertificateRequired,
		"CMGConnector_Forbidden":                 catalog.SymptomConnectorForbidden,
		"CMGConnector_Unauthorized":              catalog.SymptomConnectorUnauthorized,
		"CMGConnector_InternalServerError":       catalog.SymptomConnectorInternalServerError,
	}
	return cmp.Or(codes[phrase], catalog.ClientRefused)
}

func listed(points []ccm.ManagementPoint, how string) diag.Finding {
	var names []string
	for _, p := range points {
		names = append(names, short(cmp.Or(p.FQDN, p.Name), 100))
	}
	return diag.Good("a management point answered through the gateway", "%s\n%d management points: %s", how, len(points), strings.Join(names[:min(len(names), 8)], ", "))
}

// deviceExchanges is how many exchanges a device may need: a token first, and each again with
// a nonce, or over a new connection.
const deviceExchanges = 12

// byDevice asks as the device whose folder was given, and keeps to the gateway that is looked at.
func (r *run) byDevice(ctx context.Context) diag.Finding {
	ctx, cancel := context.WithTimeout(ctx, deviceExchanges*r.Timeout)
	defer cancel()
	agent, err := r.Device(func(step client.Step) { r.steps = append(r.steps, step) })
	if err != nil {
		return diag.FromError(diag.Fail, err, catalog.ClientStateDamaged)
	}
	defer agent.Close()
	if other := r.elsewhere(agent.Status()); other != "" {
		return diag.NotLooked("%s", other)
	}
	points, err := agent.ManagementPoints(ctx)
	if len(r.steps) > 0 {
		r.trace = r.steps[len(r.steps)-1].Trace
	}
	if err != nil {
		f := diag.FromError(diag.Fail, err, catalog.ClientRefused)
		f.Detail += hop(err)
		return f
	}
	r.answered = true
	return listed(points, "as "+string(agent.Status().ClientID))
}

// hop says where an answer came from that is a refusal.
func hop(err error) string {
	refusal, ok := errors.AsType[*client.ServerError](err)
	switch {
	case !ok:
		return ""
	case strings.HasPrefix(refusal.Phrase, "CMGService_"):
		return "\nthe gateway itself refused"
	case strings.HasPrefix(refusal.Phrase, "CMGConnector_"):
		return "\nthe gateway let it through; behind the connector it was refused"
	case refusal.Status == http.StatusServiceUnavailable || refusal.Status == http.StatusBadGateway || refusal.Status == http.StatusGatewayTimeout:
		return "\nthe gateway answers and cannot carry it inside"
	}
	return ""
}

// elsewhere says why the device of the folder cannot speak for this gateway; "" when it can.
func (r *run) elsewhere(s client.Status) string {
	host, _, _ := strings.Cut(s.Gateway, "/")
	switch {
	case s.ClientID == "" || s.ApprovalStatus == ccm.ApprovalUnknown:
		return "the device of --state is not enrolled"
	case host == "":
		return "the device of --state goes straight to " + cmp.Or(s.ManagementPoint, "its management point") + ", not through a gateway"
	case !strings.EqualFold(host, r.hostPort()):
		return "the device of --state uses the gateway " + host
	}
	return ""
}

// checkRequest follows the request of the check before by its trace id, through every hop.
func (r *run) checkRequest(context.Context) []diag.Finding {
	switch {
	case r.kind == kindUnknown:
		return []diag.Finding{diag.NotLooked("no gateway answers")}
	case r.kind != kindPostern:
		return []diag.Finding{diag.NotLooked("only our roles write a trace id")}
	case r.trace == "":
		return []diag.Finding{diag.NotLooked("no request was sent that goes through every hop")}
	}
	lines := []string{"trace " + r.trace}
	for _, step := range r.steps {
		line := fmt.Sprintf("%s: %s, %d ms", step.Hop, step.What, step.Took.Milliseconds())
		if !step.OK {
			line += ": " + step.Error
		}
		lines = append(lines, line)
	}
	if !r.answered {
		f := diag.NotLooked("%s", strings.Join(lines, "\n"))
		f.Title = "the request did not come back good; this is how far it came"
		return append([]diag.Finding{f}, r.follow()...)
	}
	return append([]diag.Finding{diag.Good("the request went through every hop and back", "%s", strings.Join(lines, "\n"))}, r.follow()...)
}

// Budgets of reading the roles' logs.
const (
	maxLogFiles = 64
	maxLogTail  = 16 << 20
)

// follow looks for the trace in the logs of the roles that can be read here.
func (r *run) follow() (findings []diag.Finding) {
	if len(r.Logs) == 0 {
		return []diag.Finding{diag.NotLooked("what each hop wrote of it; with --logs FOLDER (of a role, may be given several times) it is looked up, or: grep %s in each role's JSON log", r.trace)}
	}
	for _, folder := range r.Logs {
		lines, err := linesWith(folder, r.trace)
		switch {
		case err != nil:
			f := diag.NotLooked("%s: %s", folder, Reason(err))
			findings = append(findings, f)
		case len(lines) == 0:
			f := diag.NotLooked("%s holds nothing of the trace. A role writes good requests down only while it is verbose: `postern log verbose on --config FILE` there, then analyze again. If it is, the request did not come there", folder)
			f.Title = "not seen there"
			findings = append(findings, f)
		default:
			findings = append(findings, diag.Good("seen there", "%s\n%s", folder, strings.Join(lines[:min(len(lines), 6)], "\n")))
		}
	}
	return findings
}

// linesWith returns the lines of the folder's files that have the trace, shortened.
func linesWith(folder, trace string) (lines []string, err error) {
	names, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil || len(names) == 0 {
		return nil, cmp.Or(err, fs.ErrNotExist)
	}
	slices.Sort(names)
	for _, name := range names[:min(len(names), maxLogFiles)] {
		found, err := grep(name, trace)
		if err != nil {
			return lines, err
		}
		lines = append(lines, found...)
	}
	return lines, nil
}

func grep(name, trace string) (lines []string, err error) {
	info, err := os.Stat(name)
	if err != nil || !info.Mode().IsRegular() {
		return nil, err
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := file.Seek(max(0, info.Size()-maxLogTail), io.SeekStart); err != nil {
		return nil, err
	}
	scanner := bufio.NewScanner(io.LimitReader(file, maxLogTail))
	scanner.Buffer(make([]byte, 64<<10), maxLogTail)
	for scanner.Scan() && len(lines) < 16 {
		if strings.Contains(scanner.Text(), trace) {
			lines = append(lines, filepath.Base(name)+": "+essence(scanner.Bytes()))
		}
	}
	return lines, scanner.Err()
}

// essence is what a person wants of a JSON log line; another line is cut.
func essence(line []byte) string {
	var fields map[string]any
	if json.Unmarshal(line, &fields) != nil {
		return short(string(line), 160)
	}
	parts := []string{fmt.Sprint(fields["time"]), fmt.Sprint(fields["msg"])}
	for _, name := range []string{"method", "path", "status", "code", "hop"} {
		if value, ok := fields[name]; ok {
			parts = append(parts, fmt.Sprintf("%s=%v", name, value))
		}
	}
	return short(strings.Join(parts, " "), 200)
}
