package analyze

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"postern/catalog"
	"postern/ccm"
	"postern/diag"
)

// Site is the site as its own roles know it. What could not be asked is left out.
type Site struct {
	Code    string
	Epoch   uint64 // of the site state in force; 0 when it is not known here
	RootKey string // pin of the site root

	Roles            []func(context.Context) Role // each asks one role of this machine
	ManagementPoints []Point
	Gateways         []Gateway
	Connectors       []Connector

	Timeout time.Duration    // of one exchange, default diag.Patience
	Now     func() time.Time // default time.Now
}

// Role is what one running role says of itself at its administration door.
type Role struct {
	Role, Name string
	Config     string   // its configuration file
	Err        error    // why it could not be asked; nil when it was
	OK         bool     // as it says
	Problems   []string // as it says
	Facts      []string // connections, epochs, certificates: one line each
}

// Point is a management point of the site.
type Point struct{ Name, URL string }

// Gateway is a gateway on the site's list.
type Gateway struct {
	Name, URL, Pin string
	Acknowledged   uint64    // the epoch that it confirmed
	Heard          time.Time // when it was last heard
}

// Connector is a connector that has joined.
type Connector struct {
	Name    string
	Expires time.Time // of its certificate
	Blocked bool
}

// NewSite returns the checks from the site's seat.
func NewSite(s Site) []diag.Check {
	s.Timeout = cmp.Or(s.Timeout, diag.Patience)
	if s.Now == nil {
		s.Now = time.Now
	}
	var checks []diag.Check
	for _, ask := range s.Roles {
		checks = append(checks, diag.Check{Name: "role", What: "what a role says of itself", Run: func(ctx context.Context) []diag.Finding { return []diag.Finding{ask(ctx).finding()} }})
	}
	for _, p := range s.ManagementPoints {
		checks = append(checks, diag.Check{Name: "MP", What: "the management point answers MPLIST, with a certificate under the site root", Run: func(ctx context.Context) []diag.Finding { return []diag.Finding{s.askPoint(ctx, p)} }})
	}
	checks = append(checks,
		diag.Check{Name: "connectors", What: "which have joined, and until when", Run: s.checkConnectors},
		diag.Check{Name: "gateways", What: "whether each has confirmed what the site says now", Run: s.checkGateways})
	for _, g := range s.Gateways {
		checks = append(checks, diag.Check{Name: "reach", What: "the gateway from here, as a device comes by it", Run: func(ctx context.Context) []diag.Finding { return s.reach(ctx, g) }})
	}
	return checks
}

// finding is what the role says, under the code that it names or the one that its kind mostly has.
func (r Role) finding() diag.Finding {
	if r.Err != nil {
		f := diag.FromError(diag.Fail, r.Err, catalog.AdminDoorClosed)
		f.Detail = r.Config + ": " + f.Detail
		return f
	}
	facts := strings.Join(r.Facts, "\n")
	if r.OK && len(r.Problems) == 0 {
		return diag.Good(strings.TrimSpace(r.Role+" "+r.Name)+" says that it is well", "%s", facts)
	}
	state, title := diag.Fail, "a role says that it is not well"
	if r.OK {
		state, title = diag.Warn, "a role works and has something to say"
	}
	code, named := r.code()
	f := diag.Found(state, code, "%s %s: %s\n%s", r.Role, r.Name, strings.Join(r.Problems, "; "), facts)
	if !named && code != catalog.GatewaySaysNotHealthy {
		f.Title = title
		f.Remedy = []string{"Read what it says, then look at it: `postern status --config " + r.Config + "`, `postern doctor --config " + r.Config + "`."}
	}
	return f
}

// code is the first of the catalogue's that the role's problems name.
func (r Role) code() (code catalog.Code, named bool) {
	for _, word := range strings.FieldsFunc(strings.Join(r.Problems, " "), func(c rune) bool { return !unicode.IsLetter(c) && !unicode.IsDigit(c) }) {
		if _, known := catalog.Lookup(catalog.Code(word)); known {
			return catalog.Code(word), true
		}
	}
	if r.OK {
		return catalog.GatewayNotConfirmed, false
	}
	return cmp.Or(map[string]catalog.Code{"gateway": catalog.GatewaySaysNotHealthy, "connector": catalog.GatewayUnreachable}[r.Role], catalog.SymptomSelfTest), false
}

// checkGateways compares the epochs. A change takes seconds to be confirmed, so one that is
// behind and was heard just now is a warning.
func (s Site) checkGateways(context.Context) (findings []diag.Finding) {
	if s.Epoch == 0 {
		return []diag.Finding{diag.NotLooked("that is known at a management point; give its configuration with --config")}
	}
	for _, g := range s.Gateways {
		findings = append(findings, s.confirmed(g))
	}
	if len(findings) == 0 {
		return []diag.Finding{diag.NotLooked("the site lists no gateway: `postern site gateway add URL PIN`")}
	}
	return findings
}

// heardWithin is how long a gateway may be silent: it says something every minute.
const heardWithin = 2 * time.Minute

func (s Site) confirmed(g Gateway) diag.Finding {
	heard := "never heard"
	age := s.Now().Sub(g.Heard)
	if !g.Heard.IsZero() {
		heard = "heard " + age.Round(time.Second).String() + " ago"
	}
	detail := fmt.Sprintf("%s: the site is at epoch %d, it confirmed %d, %s", g.Name, s.Epoch, g.Acknowledged, heard)
	switch {
	case g.Heard.IsZero() || age > heardWithin:
		return diag.Found(diag.Fail, catalog.GatewayNotConfirmed, "%s: stale", detail)
	case g.Acknowledged < s.Epoch:
		return diag.Found(diag.Warn, catalog.GatewayNotConfirmed, "%s: behind", detail)
	}
	return diag.Good("the gateway has confirmed the site state", "%s", detail)
}

func (s Site) checkConnectors(context.Context) (findings []diag.Finding) {
	if s.Epoch == 0 {
		return []diag.Finding{diag.NotLooked("that is known at a management point; give its configuration with --config")}
	}
	usable := 0
	for _, c := range s.Connectors {
		left := c.Expires.Sub(s.Now())
		switch {
		case c.Blocked:
			findings = append(findings, diag.Finding{State: diag.Skipped, Title: "blocked", Detail: c.Name})
			continue
		case left <= 0:
			findings = append(findings, diag.Found(diag.Fail, catalog.ConnectorCertificateMissing, "the certificate of %s ended %s", c.Name, c.Expires.UTC().Format(time.DateTime)))
			continue
		case left < soon/2:
			findings = append(findings, diag.Found(diag.Warn, catalog.CertificateEndsSoon, "that of the connector %s ends in %s", c.Name, days(left)))
		default:
			findings = append(findings, diag.Good("the connector has joined", "%s, certificate good for %s", c.Name, days(left)))
		}
		usable++
	}
	if usable == 0 {
		findings = append(findings, diag.Found(diag.Fail, catalog.NoConnector, "the site has no connector that could carry a request: `postern site connector invite NAME`, then `postern connector join` there"))
	}
	return findings
}

// askPoint asks a management point for MPLIST over a connection that is judged by the site root.
func (s Site) askPoint(ctx context.Context, p Point) diag.Finding {
	u, err := url.Parse(p.URL)
	if err != nil || u.Host == "" {
		return diag.Found(diag.Fail, catalog.BackendUnreachable, "%s has the address %s", p.Name, short(p.URL, 100))
	}
	ctx, cancel := context.WithTimeout(ctx, 2*s.Timeout)
	defer cancel()
	var chain []*x509.Certificate
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true} // judged below
	config.VerifyConnection = func(state tls.ConnectionState) error { chain = state.PeerCertificates; return nil }
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10, DialContext: (&net.Dialer{Timeout: s.Timeout}).DialContext}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+"/SMS_MP/.sms_aut?"+string(ccm.AuthMPList), nil)
	if err != nil {
		return diag.FromError(diag.Fail, err, catalog.BackendUnreachable)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		code := catalog.BackendUnreachable
		if isTimeout(err) {
			code = catalog.BackendTimeout
		}
		return diag.Found(diag.Fail, code, "%s: %s", p.URL, Reason(err))
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	r := &run{Options: Options{RootKey: s.RootKey, Now: s.Now}}
	if len(chain) > 0 && s.RootKey != "" {
		if _, wrong := r.underSiteRoot(chain); wrong != nil && wrong.Code == catalog.ClientServerRoot {
			return diag.Found(diag.Fail, catalog.BackendCertificate, "%s: %s", p.URL, wrong.Detail)
		}
	}
	list, err := ccm.ParseMPList(string(bytes.TrimSpace(body)))
	if response.StatusCode != http.StatusOK || err != nil {
		return diag.Found(diag.Fail, catalog.BackendUnreachable, "%s answers MPLIST with %s", p.URL, short(response.Status, 100))
	}
	return diag.Good("the management point answers", "%s: MPLIST names %d", p.URL, len(list.ManagementPoints))
}

// reach goes a device's way to a gateway as far as it needs no credential. Each finding
// says which step it is of.
func (s Site) reach(ctx context.Context, g Gateway) []diag.Finding {
	r := newRun(Options{Gateway: g.URL, RootKey: s.RootKey, Timeout: s.Timeout, Now: s.Now})
	var findings []diag.Finding
	for _, step := range []func(context.Context) []diag.Finding{r.checkName, r.checkConnection, r.checkProxy, r.checkTLS, r.checkCertificate, r.checkService, r.checkClock} {
		for _, f := range step(ctx) {
			if f.State != diag.Skipped {
				f.Detail = g.Name + ": " + f.Detail
				findings = append(findings, f)
			}
		}
	}
	return append(findings, s.pinned(r, g)...)
}

// pinned compares the key that the gateway shows with its pin, where the certificate is on
// its own key; with a company's certificate connectors see the pinned key and devices do not.
func (s Site) pinned(r *run, g Gateway) []diag.Finding {
	if r.state == nil || r.siteRoot == nil {
		return nil
	}
	if got := pin(r.state.PeerCertificates[0]); g.Pin != "" && got != g.Pin {
		return []diag.Finding{diag.Found(diag.Fail, catalog.GatewayPinMismatch, "%s shows the key %s, the site lists %s", g.Name, got, g.Pin)}
	}
	return nil
}
