package analyze

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/client"
	"postern/diag"
)

// Options are what a person said.
type Options struct {
	Gateway   string   // https://HOST[:PORT], with CCMHOSTNAME's path where it is known
	RoleID    uint64   // of the management point behind it, when the address has none
	Resolvers []string // host[:port] of DNS servers to compare with this machine's

	RootKey     string              // pin of the site root, for a gateway whose certificate the site issued
	Authorities []*x509.Certificate // of the gateway's certificate; none: the system's

	TenantID    string
	Token       string              // in the form of JWS
	Certificate *tls.Certificate    // of a client; PrivateKey is nil when there is none
	ClientRoots []*x509.Certificate // authorities that the site allows for clients; none: those that the gateway names

	// Device opens a device's state folder; nil when none was given.
	Device func(observe func(client.Step)) (*client.Agent, error)
	Logs   []string // folders of roles' logs, in which the synthetic request is looked for

	Proxy      func(*http.Request) (*url.URL, error) // what clients of this machine go through; default http.ProxyFromEnvironment
	Resolver   *net.Resolver                         // nil for the system's
	Nameserver string                                // host:port that stands for this machine's DNS server; "" for the system's
	Lists      *http.Client                          // fetches revocation lists; nil as in revocation.Config
	Timeout    time.Duration                         // of one exchange, default diag.Patience
	Now        func() time.Time                      // this machine's clock, default time.Now
}

// kind is whose gateway answers.
type kind string

const (
	kindUnknown   kind = ""
	kindPostern   kind = "Postern"
	kindMicrosoft kind = "Microsoft"
)

// run is one analysis: what was said, and what the checks have learned so far.
type run struct {
	Options
	host   string // lower case
	port   string
	broken error // why the address cannot be used

	addresses []netip.Addr         // of the host
	address   string               // that a connection was made to, with the port; "" when none could be made
	via       *url.URL             // proxy that the later checks go through; nil: straight
	state     *tls.ConnectionState // of the first handshake
	asked     *tls.CertificateRequestInfo
	trusted   bool // the certificate was found good, for the name, here
	siteRoot  *x509.Certificate
	kind      kind
	healthy   bool
	date      *dated        // the first answer's
	steps     []client.Step // of the device
	trace     string        // of the request that goes through every hop
	answered  bool          // that request was answered from the inside
}

// dated is a server's clock beside ours.
type dated struct{ theirs, ours time.Time }

// New returns the checks of a gateway. A wrong address is what the first check finds.
func New(options Options) []diag.Check {
	r := newRun(options)
	return []diag.Check{
		{Name: "name", What: "where the name leads, from here and from other resolvers", Run: r.checkName},
		{Name: "connection", What: "a TCP connection to each address", Run: r.checkConnection},
		{Name: "proxy", What: "the way through the proxy that clients of this machine take", Run: r.checkProxy},
		{Name: "TLS", What: "the handshake", Run: r.checkTLS},
		{Name: "certificate", What: "chain, name, usage and dates of what the gateway shows", Run: r.checkCertificate},
		{Name: "revocation", What: "whether it is revoked, and whether that can be told", Run: r.checkRevocation},
		{Name: "versions", What: "which versions of TLS are offered", Run: r.checkVersions},
		{Name: "service", What: "ServiceMetadata: a gateway answers, and is well", Run: r.checkService},
		{Name: "clock", What: "this machine's clock against the gateway's", Run: r.checkClock},
		{Name: "tenant", What: "AADAuthInfo for the tenant", Run: r.checkTenant},
		{Name: "token", What: "what the token says, and whether the gateway takes it", Run: r.checkToken},
		{Name: "client cert", What: "which of the four filters would drop the client's certificate", Run: r.checkClientCertificate},
		{Name: "MPLIST", What: "the management points, asked through the gateway", Run: r.checkManagementPoints},
		{Name: "request", What: "that request at every hop, by its trace id", Run: r.checkRequest},
	}
}

func newRun(options Options) *run {
	r := &run{Options: options}
	r.Timeout, r.Resolver = cmp.Or(r.Timeout, diag.Patience), cmp.Or(r.Resolver, net.DefaultResolver)
	if r.Now == nil {
		r.Now = time.Now
	}
	if r.Proxy == nil {
		r.Proxy = http.ProxyFromEnvironment
	}
	r.broken = r.readTarget()
	return r
}

// readTarget understands https://HOST[:PORT], the same without a scheme, and what stands
// in CCMHOSTNAME: HOST/CCM_Proxy_MutualAuth/<id> (S2).
func (r *run) readTarget() error {
	given := strings.TrimSpace(r.Gateway)
	if !strings.Contains(given, "://") {
		given = "https://" + given
	}
	u, err := url.Parse(given)
	if err != nil || u.Hostname() == "" || u.User != nil || !strings.EqualFold(u.Scheme, "https") {
		return catalog.Errorf(catalog.InvalidArgument, "%.200q is not an address such as https://gw.contoso.example", r.Gateway)
	}
	r.host, r.port = strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")), cmp.Or(u.Port(), "443")
	return r.readRole(strings.Trim(u.Path, "/"))
}

// readRole takes the id of the management point out of the address's path.
func (r *run) readRole(path string) error {
	if path == "" {
		return nil
	}
	parts := strings.Split(path, "/")
	door := len(parts) >= 1 && (strings.EqualFold(parts[0], string(ccm.DoorMutualAuth)) || strings.EqualFold(parts[0], string(ccm.DoorServerAuth)))
	if !door || len(parts) > 2 {
		return catalog.Errorf(catalog.InvalidArgument, "%.200q: after the host only CCM_Proxy_MutualAuth/<id> may stand", r.Gateway)
	}
	if len(parts) < 2 || strings.EqualFold(parts[1], "ServiceMetadata") {
		return nil
	}
	id, err := strconv.ParseUint(parts[1], 10, 64)
	if err != nil || id == 0 {
		return catalog.Errorf(catalog.InvalidArgument, "%.64q is not the id of a management point", parts[1])
	}
	r.RoleID = cmp.Or(r.RoleID, id)
	return nil
}

// hostPort is how the address is written, the usual port left out.
func (r *run) hostPort() string {
	if r.port == "443" {
		if strings.Contains(r.host, ":") {
			return "[" + r.host + "]"
		}
		return r.host
	}
	return net.JoinHostPort(r.host, r.port)
}

func (r *run) url(path string) string { return "https://" + r.hostPort() + path }

// checkConnection connects to every address, all at the same time.
func (r *run) checkConnection(ctx context.Context) []diag.Finding {
	if len(r.addresses) == 0 {
		return []diag.Finding{diag.NotLooked("the name does not lead to an address")}
	}
	type result struct {
		err  error
		took time.Duration
	}
	results := make([]result, len(r.addresses))
	done := make(chan struct{}, len(results))
	for i, address := range r.addresses {
		go func() {
			began := time.Now()
			conn, err := (&net.Dialer{Timeout: r.Timeout}).DialContext(ctx, "tcp", net.JoinHostPort(address.String(), r.port))
			if results[i] = (result{err, time.Since(began)}); err == nil {
				conn.Close()
			}
			done <- struct{}{}
		}()
	}
	for range results {
		<-done
	}
	var good, bad []string
	var last error
	for i, got := range results {
		address := net.JoinHostPort(r.addresses[i].String(), r.port)
		if got.err != nil {
			bad, last = append(bad, address+": "+Reason(got.err)), got.err
			continue
		}
		r.address = cmp.Or(r.address, address)
		good = append(good, fmt.Sprintf("%s in %s", address, got.took.Round(time.Millisecond)))
	}
	switch {
	case r.address == "" && isTimeout(last):
		return []diag.Finding{r.straightOnly(diag.Found(diag.Fail, catalog.ClientTimeout, "%s", strings.Join(bad, "\n")))}
	case r.address == "":
		return []diag.Finding{r.straightOnly(diag.Found(diag.Fail, catalog.ClientCannotConnect, "%s", strings.Join(bad, "\n")))}
	case len(bad) > 0:
		return []diag.Finding{diag.Found(diag.Warn, catalog.ClientCannotConnect, "%s\n%s", strings.Join(good, "\n"), strings.Join(bad, "\n"))}
	}
	return []diag.Finding{diag.Good("connected", "%s", strings.Join(good, "\n"))}
}
