package preflight

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/diag"
	"postern/diag/analyze"
)

// Options are what a person said.
type Options struct {
	Name   string // of the service, the first part of the host name
	Domain string // the rest of it

	Azure  bool   // Microsoft's gateway in Azure is the target: the name must be free there
	Region string // of Azure, for the name of the deployment

	Resolvers  []string // DNS servers to compare with this machine's
	Address    string   // public address that the name is to lead to; "" when it is not known
	Nameserver string   // DNS server for the look-ups in Azure's zones; "" for this machine's

	Certificate []byte              // PEM: leaf first; nil when the site issues it
	Key         []byte              // PEM
	Authorities []*x509.Certificate // own authorities; none: the system's

	Listen     string // address that the gateway will listen on
	State      string // folder of its state
	TimeSource string // URL whose Date is used, or an NTP server; "" for the management point

	ManagementPoint string // https address that a connector will dial
	Gateway         string // https address of a gateway that runs already, for a connector's machine

	Proxy    func(*http.Request) (*url.URL, error) // to the gateway and a time source, as a connector's; default http.ProxyFromEnvironment
	Resolver *net.Resolver                         // nil for the system's
	Timeout  time.Duration                         // of one exchange, default diag.Patience
	Now      func() time.Time                      // default time.Now
}

// run is one preflight.
type run struct {
	Options
	host string // NAME.DOMAIN, lower case
	date *dated
}

// dated is another clock beside ours.
type dated struct {
	theirs, ours time.Time
	source       string
}

// New returns the checks.
func New(options Options) []diag.Check {
	r := &run{Options: options}
	r.Timeout, r.Resolver = cmp.Or(r.Timeout, diag.Patience), cmp.Or(r.Resolver, net.DefaultResolver)
	if r.Now == nil {
		r.Now = time.Now
	}
	if r.Proxy == nil {
		r.Proxy = http.ProxyFromEnvironment
	}
	r.Domain = strings.Trim(r.Domain, ".")
	r.host = strings.ToLower(r.Name + "." + r.Domain)
	return []diag.Check{
		{Name: "name", What: "the rules for a service name", Run: r.checkName},
		{Name: "Azure", What: "whether the name is free there", Run: r.checkAzure},
		{Name: "DNS", What: "where the name leads today", Run: r.checkDNS},
		{Name: "certificate", What: "name, chain, usage, life and key of the server's certificate", Run: r.checkCertificate},
		{Name: "port", What: "whether the gateway could listen", Run: r.checkPort},
		{Name: "MP", What: "whether a connector on this machine would reach it", Run: r.checkManagementPoint},
		{Name: "gateway", What: "whether a connector on this machine would reach it", Run: r.checkGateway},
		{Name: "clock", What: "this machine's clock against another", Run: r.checkClock},
		{Name: "disk", What: "room where the state and the logs will be", Run: r.checkDisk},
		{Name: "files", What: "how many connections may be open at once", Run: r.checkFiles},
	}
}

var (
	plainName  = regexp.MustCompile(`^[A-Za-z0-9]{3,24}$`)
	hyphenName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*$`)
	label      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
)

// checkName applies the rules of product.md 3.1 P1 and P2. The documents differ about
// hyphens: they are refused where a storage account gets the name, and advised against elsewhere.
func (r *run) checkName(context.Context) []diag.Finding {
	code := catalog.ServiceNameForm
	if r.Azure {
		code = catalog.SymptomServiceNameForm
	}
	var findings []diag.Finding
	switch {
	case len(r.Name) < 3 || len(r.Name) > 24:
		findings = append(findings, diag.Found(diag.Fail, code, "%.100q has %d characters, wanted are 3 to 24", r.Name, len(r.Name)))
	case plainName.MatchString(r.Name):
	case !hyphenName.MatchString(r.Name):
		findings = append(findings, diag.Found(diag.Fail, code, "%.100q: letters and digits only", r.Name))
	case r.Azure:
		findings = append(findings, diag.Found(diag.Fail, code, "%q has a hyphen: a storage account of that name cannot be made", r.Name))
	default:
		findings = append(findings, diag.Found(diag.Warn, code, "%q has a hyphen: it works here, and could never become the name of a gateway in Azure that serves content", r.Name))
	}
	if bad := slices.IndexFunc(strings.Split(r.Domain, "."), func(part string) bool { return !label.MatchString(part) }); bad >= 0 || !strings.Contains(r.Domain, ".") || len(r.host) > 253 {
		findings = append(findings, diag.Found(diag.Fail, catalog.ServiceNameForm, "%.200q is not a domain such as contoso.example", r.Domain))
	} else if owner := providers(r.Domain); owner != "" {
		findings = append(findings, diag.Found(diag.Warn, catalog.CertificateAdvice, "%s belongs to %s: no public authority gives you a certificate for a name in it. Take a domain of your own and an alias (CNAME)", r.Domain, owner))
	}
	if len(findings) > 0 {
		return findings
	}
	return []diag.Finding{diag.Good("the name keeps to the rules", "%s; devices will write CCMHOSTNAME=%s/%s/<id>", r.host, r.host, ccm.DoorMutualAuth)}
}

func providers(domain string) string {
	for _, d := range []string{"cloudapp.net", "cloudapp.azure.com", "azure.com", "windows.net", "azurewebsites.net"} {
		if domain = strings.ToLower(domain); domain == d || strings.HasSuffix(domain, "."+d) {
			return "Microsoft"
		}
	}
	return ""
}

// checkAzure looks whether the names that a deployment makes exist already. DNS alone says
// so; the subscription is not asked.
func (r *run) checkAzure(ctx context.Context) []diag.Finding {
	if !r.Azure {
		return []diag.Finding{diag.NotLooked("only where Azure is the target (--azure); a gateway of your own needs no storage account, no key vault and no resource provider")}
	}
	name := strings.ToLower(r.Name)
	wanted := []struct {
		what, host string
		code       catalog.Code
	}{
		{"storage account", name + ".blob.core.windows.net", catalog.SymptomStorageNameTaken},
		{"key vault", name + ".vault.azure.net", catalog.SymptomVaultNameTaken},
	}
	if r.Region != "" {
		wanted = append(wanted, struct {
			what, host string
			code       catalog.Code
		}{"deployment", name + "." + strings.ToLower(r.Region) + ".cloudapp.azure.com", catalog.SymptomProvisionFailed})
	}
	var findings []diag.Finding
	for _, w := range wanted {
		findings = append(findings, r.free(ctx, w.what, w.host, w.code))
	}
	return append(findings, diag.NotLooked("rights in the subscription and its resource providers (KeyVault, Storage, Network, Compute): look in the portal, or `az provider show`"))
}

func (r *run) free(ctx context.Context, what, host string, code catalog.Code) diag.Finding {
	found, err := r.lookUp(ctx, host)
	switch {
	case err != nil:
		return diag.NotLooked("%s %s: %s", what, host, analyze.Reason(err))
	case len(found) > 0:
		return diag.Found(diag.Fail, code, "%s %s exists: %s", what, host, addresses(found))
	}
	return diag.Good("the name is free", "%s %s does not exist", what, host)
}

// lookUp returns no address and no error for a name that does not exist.
func (r *run) lookUp(ctx context.Context, host string) ([]netip.Addr, error) {
	if r.Nameserver != "" {
		answer := analyze.Ask(ctx, r.Nameserver, host, r.Timeout)
		return answer.Addresses, answer.Err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*r.Timeout)
	defer cancel()
	found, err := r.Resolver.LookupNetIP(ctx, "ip", host)
	var name *net.DNSError
	if errors.As(err, &name) && name.IsNotFound {
		return nil, nil
	}
	for i := range found {
		found[i] = found[i].Unmap()
	}
	return found, err
}

func addresses(list []netip.Addr) string {
	var text []string
	for _, a := range list {
		text = append(text, a.String())
	}
	return strings.Join(text, ", ")
}

// checkDNS says where the name leads today. Before the deployment it may lead nowhere yet.
func (r *run) checkDNS(ctx context.Context) []diag.Finding {
	here, err := r.lookUp(ctx, r.host)
	var findings []diag.Finding
	switch {
	case err != nil:
		findings = append(findings, diag.NotLooked("this machine's resolver: %s", analyze.Reason(err)))
	default:
		findings = append(findings, r.judge("this machine", r.host+" -> "+addresses(here), here))
	}
	for _, server := range r.Resolvers {
		answer := analyze.Ask(ctx, server, r.host, r.Timeout)
		if answer.Err != nil {
			findings = append(findings, diag.NotLooked("%s does not answer: %s", answer.Server, analyze.Reason(answer.Err)))
			continue
		}
		findings = append(findings, r.judge(answer.Server, answer.String(), answer.Addresses))
	}
	return findings
}

func (r *run) judge(who, way string, found []netip.Addr) diag.Finding {
	wanted := cmp.Or(r.Address, "the gateway's public address")
	expected, err := netip.ParseAddr(r.Address)
	switch {
	case r.Address != "" && err != nil:
		return diag.Found(diag.Fail, catalog.InvalidArgument, "--address %.64q is not an IP address", r.Address)
	case len(found) == 0:
		return diag.Found(diag.Warn, catalog.ClientNameNotResolved, "%s: %s leads nowhere yet; put a record into the zone %s that leads to %s, outside and, where the company has its own zone inside (split DNS), there too", who, r.host, r.Domain, wanted)
	case r.Address != "" && !slices.Contains(found, expected):
		return diag.Found(diag.Fail, catalog.ResolversDiffer, "%s: %s, wanted %s", who, way, r.Address)
	case r.Address == "":
		return diag.Good("the name leads to an address", "%s: %s\nis that the gateway's? With --address it is compared", who, way)
	}
	return diag.Good("the name leads to the gateway's address", "%s: %s", who, way)
}

// checkPort opens the port and closes it again.
func (r *run) checkPort(context.Context) []diag.Finding {
	listener, err := net.Listen("tcp", r.Listen)
	switch {
	case err == nil:
		listener.Close()
		return []diag.Finding{diag.Good("the port is free", "%s could be opened, and is closed again\nfrom outside, TCP %s must reach it untouched: no device that looks into TLS, no web application firewall. The connector dials out to it; no port is opened inside", r.Listen, portOf(r.Listen))}
	case errors.Is(err, syscall.EADDRINUSE):
		return []diag.Finding{diag.Found(diag.Fail, catalog.AddressInUse, "%s: another program listens there", r.Listen)}
	case errors.Is(err, syscall.EACCES):
		return []diag.Finding{diag.Found(diag.Warn, catalog.AddressInUse, "%s: this user may not open it (ports below 1024); the service needs CAP_NET_BIND_SERVICE, which the unit in docs/operations.md gives", r.Listen)}
	}
	return []diag.Finding{diag.Found(diag.Fail, catalog.AddressInUse, "%s: %s", r.Listen, analyze.Reason(err))}
}

func portOf(listen string) string {
	_, port, _ := net.SplitHostPort(listen)
	return port
}

// checkManagementPoint asks as a connector will, straight, and learns the time on the way.
func (r *run) checkManagementPoint(ctx context.Context) []diag.Finding {
	if r.ManagementPoint == "" {
		return []diag.Finding{diag.NotLooked("give --management-point URL on the machine where the connector will run")}
	}
	got, err := r.ask(ctx, strings.TrimRight(r.ManagementPoint, "/")+"/SMS_MP/.sms_aut?"+string(ccm.AuthMPList), nil, "https")
	if err != nil {
		return []diag.Finding{unreachable(err, catalog.BackendUnreachable, r.ManagementPoint)}
	}
	told := fmt.Sprintf("%.200s: %s\nit shows a certificate of %s", r.ManagementPoint, got.status, got.issuer)
	if got.code == http.StatusForbidden {
		return []diag.Finding{diag.Good("the management point answers and wants a certificate of the company", "%s\nthe connector needs one for client authentication (client_certificates), with digital signature, from a root that the site allows", told)}
	}
	if _, err := ccm.ParseMPList(string(got.body)); got.code != http.StatusOK || err != nil {
		return []diag.Finding{diag.Found(diag.Fail, catalog.BackendUnreachable, "%s\nthat is no answer of a management point to MPLIST: another server has the address, or a portal of the network answers", told)}
	}
	return []diag.Finding{diag.Good("the management point answers", "%s", told)}
}

// checkGateway goes a connector's first steps to a gateway that runs already.
func (r *run) checkGateway(ctx context.Context) []diag.Finding {
	if r.Gateway == "" {
		return []diag.Finding{diag.NotLooked("give --gateway URL when one runs already, on the machine where the connector will run")}
	}
	got, err := r.ask(ctx, strings.TrimRight(r.Gateway, "/")+"/"+string(ccm.DoorMutualAuth)+"/ServiceMetadata", r.Proxy, "https")
	if err != nil {
		return []diag.Finding{unreachable(err, catalog.GatewayUnreachable, r.Gateway+got.by)}
	}
	told := fmt.Sprintf("%.200s: %s%s\nit shows a certificate of %s; a connector compares its key with the pin on the site's list", r.Gateway, got.status, got.by, got.issuer)
	if got.code != http.StatusOK && !strings.Contains(got.status, "CMGService_") {
		return []diag.Finding{diag.Found(diag.Fail, catalog.NotAGateway, "%s", told)}
	}
	return []diag.Finding{diag.Good("the gateway can be reached", "%s", told)}
}

func unreachable(err error, code catalog.Code, where string) diag.Finding {
	return diag.Found(diag.Fail, code, "%.200s: %s", where, analyze.Reason(err))
}

// maxAnswer bounds what is read of an answer.
const maxAnswer = 256 << 10

// answer is what an address says.
type answer struct {
	code   int
	status string // the status line without the version
	issuer string // of the certificate that was shown
	by     string // which proxy, as words; "" straight
	body   []byte
}

// ask asks one address, of one of these schemes, without judging the certificate: nothing secret is sent. Without choose it goes straight.
func (r *run) ask(ctx context.Context, address string, choose func(*http.Request) (*url.URL, error), schemes ...string) (got answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*r.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil || request.URL.Host == "" || request.URL.User != nil || !slices.Contains(schemes, request.URL.Scheme) {
		return got, errors.New("that is not an address such as https://mp.corp.example")
	}
	dialer := &net.Dialer{Timeout: r.Timeout, Resolver: r.Resolver}
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}, // what it shows is told, and judged by whoever connects
		DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10, DialContext: dialer.DialContext}
	defer transport.CloseIdleConnections()
	if choose != nil {
		proxy, err := analyze.ChooseProxy(choose, request)
		if err != nil {
			return got, err
		}
		if proxy != nil {
			analyze.Through(transport, proxy, dialer)
			got.by = fmt.Sprintf(", through the proxy %.100s", proxy.Host)
		}
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return got, err
	}
	defer response.Body.Close()
	if theirs, err := http.ParseTime(response.Header.Get("Date")); err == nil && r.date == nil {
		r.date = &dated{theirs, r.Now(), address[:min(len(address), 100)]}
	}
	got.code, got.status = response.StatusCode, fmt.Sprintf("%.100s", response.Status)
	if response.TLS != nil {
		got.issuer = fmt.Sprintf("%.200s", response.TLS.PeerCertificates[0].Issuer)
	}
	got.body, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	return got, err
}
