package client

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

// ports are those of CCMHTTPPORT and CCMHTTPSPORT, for addresses without one.
type ports struct {
	HTTP  int `json:"http,omitempty"`
	HTTPS int `json:"https,omitempty"`
}

// maxInformation bounds an answer of .sms_aut.
const maxInformation = 1 << 20

// betweenPoints is the pause before the next management point is tried: many devices lose
// the same one at the same time.
const betweenPoints = time.Second

// inside reports whether the route leads straight to a management point of the inner
// network.
func (r route) inside() bool { return r.RoleID == 0 && !r.Internet && r.Host != "" }

// locate finds the management point that is used from here on, inside: it asks the initial
// ones, in the order in which they were given, what they are and which others there are,
// checks what can be checked with the trusted root key, and takes one of the list.
func (e *enrolment) locate(ctx context.Context) error {
	r := e.a.current()
	if !r.Initial.inside() || r.Chosen != "" || r.Route.Internet {
		return nil
	}
	e.c = e.c.to(e.a.logs.location, policyLine())
	way, why, err := e.a.choose(ctx, e.c, e.learn)
	if err != nil {
		return err
	}
	err = e.a.save(func(r *record) { r.Route, r.Chosen = way, why })
	e.a.logs.pointChosen(way, why)
	e.c = e.c.to(e.a.logs.setup, setupLine())
	e.c.route = way
	return err
}

// at is the same conversation with another server.
func (c *conversation) at(way route) *conversation {
	next := *c
	next.route = way
	return &next
}

// tried collects why management points could not be used.
type tried struct {
	errs []error
	text []string
}

func (t *tried) add(way route, err error) {
	t.errs = append(t.errs, err)
	t.text = append(t.text, way.Scheme+"://"+way.Host+": "+plain(err))
}

// err is one reason as it is, or all of them in one.
func (t *tried) err() error {
	if len(t.errs) == 1 {
		return t.errs[0]
	}
	worst := t.errs[0]
	for _, err := range t.errs {
		if !Transient(err) {
			worst = err // waiting alone will not help
			break
		}
	}
	return catalog.Wrap(catalog.ClientNoManagementPoint, worst, "tried %d management points: %s", len(t.errs), strings.Join(t.text[:min(len(t.text), 8)], "; "))
}

// choose asks the initial management points and then takes one.
func (a *Agent) choose(ctx context.Context, c *conversation, learn bool) (route, string, error) {
	r := a.current()
	var failed tried
	for i, way := range append([]route{r.Initial}, r.Points...) {
		if i > 0 {
			if err := a.config.Wait(ctx, a.jitter(betweenPoints)); err != nil {
				return route{}, "", err
			}
		}
		if err := a.save(func(r *record) { r.Verified = nil }); err != nil {
			return route{}, "", err
		}
		var found pointInformation
		err := a.step(ctx, "management point", "information of "+way.Scheme+"://"+way.Host, func() (err error) {
			if learn && a.current().Anchor.empty() {
				if err := a.learnRoot(ctx, c.at(way)); err != nil {
					return err
				}
			}
			found, err = a.pointInformation(ctx, c.at(way))
			return err
		})
		if err == nil {
			return a.take(ctx, c.at(way), found)
		}
		if ctx.Err() != nil {
			return route{}, "", err
		}
		failed.add(way, err)
	}
	return route{}, "", failed.err()
}

// information asks a question of .sms_aut (protocol.md 1.3).
func (a *Agent) information(ctx context.Context, c *conversation, query string) (text string, err error) {
	err = a.ask(ctx, c, func(time.Time) (call, error) {
		return call{method: http.MethodGet, url: c.url(ccm.EndpointMP, "/.sms_aut"), query: query, limit: maxInformation}, nil
	}, func(got answer) error {
		text = string(got.body)
		return nil
	})
	return text, err
}

// pointInformation is what a management point says of itself and its site.
type pointInformation struct {
	list  []ccm.ManagementPoint
	ports ports  // of the site; zero when it did not say
	lack  string // why there is no list
}

// pointInformation asks a management point what it is, and judges it. An answer under
// another root is refused, one that is not there is not.
func (a *Agent) pointInformation(ctx context.Context, c *conversation) (pointInformation, error) {
	root, err := a.checkRoot(ctx, c)
	if err != nil {
		return pointInformation{}, err
	}
	if err := a.checkCertificates(ctx, c, root); err != nil {
		return pointInformation{}, err
	}
	var found pointInformation
	query := string(ccm.AuthMPList)
	if site := a.current().SiteCode; site != "" {
		query = string(ccm.AuthMPList1) + "&" + string(site)
	}
	text, err := a.information(ctx, c, query)
	if err == nil {
		var list ccm.MPList
		list, err = ccm.ParseMPList(text)
		found.list = list.ManagementPoints[:min(len(list.ManagementPoints), maxPoints)]
	}
	if err != nil && !refusal(err) && catalog.CodeOf(err) != catalog.AuthReplyMalformed {
		return pointInformation{}, err
	}
	if err != nil {
		found.lack = plain(err)
	}
	if slices.ContainsFunc(found.list, func(mp ccm.ManagementPoint) bool {
		return !c.route.secure() || !strings.EqualFold(cmp.Or(mp.FQDN, mp.Name), hostName(c.route.Host))
	}) {
		found.ports = a.sitePorts(ctx, c)
	}
	return found, nil
}

// rootKey is the key that MPTRK announces.
type rootKey struct {
	pin    string
	public any
}

// announcedRoot asks for the trusted root key: as SubjectPublicKeyInfo, or as the
// PUBLICKEYBLOB of the documents (protocol.md 1.3).
func (a *Agent) announcedRoot(ctx context.Context, c *conversation) (rootKey, error) {
	text, err := a.information(ctx, c, string(ccm.AuthMPTRK))
	if err != nil {
		return rootKey{}, err
	}
	root, err := parseRootKey(text)
	if wanted := a.current().Anchor; err == nil && wanted.RootKey != "" && !wanted.trusts(root.pin, a.config.Now()) {
		// The site may have another root than the certificate that was shown is under. Whether it led there, the caller sees.
		_ = a.followRoots(ctx, c, catalog.Errorf(catalog.ClientServerRoot, "%s announces the root key %s", c.route.Host, root.pin))
	}
	return root, err
}

func parseRootKey(text string) (rootKey, error) {
	trk, err := ccm.ParseMPTRK(text)
	if err != nil {
		return rootKey{}, err
	}
	if key, err := x509.ParsePKIXPublicKey(trk.Key); err == nil {
		return rootKey{token.Pin(key), key}, nil
	}
	key, err := ccm.ParsePublicKeyBlob(trk.Key)
	if err != nil {
		return rootKey{}, catalog.Wrap(catalog.AuthReplyMalformed, err, "the trusted root key is in no known form")
	}
	return rootKey{token.Pin(key), key}, nil
}

// checkRoot compares the root key that a management point announces with the trusted one.
// On plain HTTP it must announce it; over https its certificate has shown it already.
func (a *Agent) checkRoot(ctx context.Context, c *conversation) (rootKey, error) {
	wanted := a.current().Anchor.RootKey
	if wanted == "" {
		a.verified("no trusted root key is known; the server was recognised by an authority for its TLS certificate")
		return rootKey{}, nil
	}
	root, err := a.announcedRoot(ctx, c)
	known := refusal(err) || catalog.CodeOf(err) == catalog.AuthReplyMalformed
	switch {
	case err != nil && known && c.route.secure():
		a.verified("the server's TLS certificate is under the trusted root key")
		return rootKey{}, nil
	case err != nil && known:
		return rootKey{}, catalog.Wrap(catalog.ClientRootKeyOther, err, "%s announces no root key, wanted %s", c.route.Host, wanted)
	case err != nil:
		return rootKey{}, err
	case !a.current().Anchor.trusts(root.pin, a.config.Now()):
		return rootKey{}, catalog.Errorf(catalog.ClientRootKeyOther, "%s announces the root key %s, wanted %s", c.route.Host, root.pin, wanted)
	case c.route.secure():
		a.verified("the server's TLS certificate is under the trusted root key, and it announces that key")
	default:
		a.verified("the server announces the trusted root key, and signs its answers with a management point's certificate under it")
	}
	a.logs.rootVerified(c.route, root.pin)
	return root, nil
}

// verified notes what was or was not verified, for Status and the log.
func (a *Agent) verified(text string) {
	if slices.Contains(a.current().Verified, text) {
		return
	}
	a.logs.location.Infof("%s", text)
	if err := a.save(func(r *record) { r.Verified = append(r.Verified, text) }); err != nil {
		a.log.Warn("the state cannot be written", "error", err)
	}
}

// checkCertificates judges the certificates that a management point gives out, as far as
// the root key of this site has signed them, and the site that it is of.
func (a *Agent) checkCertificates(ctx context.Context, c *conversation, root rootKey) error {
	text, err := a.information(ctx, c, string(ccm.AuthMPKeyInformationEx))
	if Transient(err) {
		return err
	}
	known, parseErr := ccm.ParseMPKeyInformation(text)
	if err == nil && parseErr == nil {
		if wanted := a.current().SiteCode; wanted != "" && known.SiteCode != "" && known.SiteCode != wanted {
			return catalog.Errorf(catalog.ClientSiteOther, "%s is of the site %s, wanted %s", c.route.Host, known.SiteCode, wanted)
		}
		a.signedByRoot(root, known.Certificate.Certificate, "the certificate that the management point gives out", func(leaf *x509.Certificate) error {
			if err := checkRole(leaf, token.RoleManagementPoint); err != nil {
				return err
			}
			return leaf.VerifyHostname(bracketed(hostName(c.route.Host)))
		})
	}
	text, err = a.information(ctx, c, string(ccm.AuthSiteSignCert))
	if Transient(err) {
		return err
	}
	if signing, parseErr := ccm.ParseSiteSignCert(text); err == nil && parseErr == nil {
		a.signedByRoot(root, signing.Certificate, "the site signing certificate", func(*x509.Certificate) error { return nil })
	}
	return nil
}

// signedByRoot notes whether a certificate is issued under the trusted root key. Nothing is
// taken from one that is not.
func (a *Agent) signedByRoot(root rootKey, der []byte, what string, fits func(*x509.Certificate) error) {
	if root.public == nil || len(der) == 0 {
		return
	}
	leaf, err := x509.ParseCertificate(der)
	if err == nil {
		err = (&x509.Certificate{PublicKey: root.public, PublicKeyAlgorithm: algorithm(root.public)}).CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature)
	}
	if err == nil {
		err = fits(leaf)
	}
	switch now := a.config.Now(); {
	case err != nil:
		a.verified(what + " is not under the trusted root key, and is not used")
	case now.Before(leaf.NotBefore) || now.After(leaf.NotAfter):
		a.verified(what + " is under the trusted root key and not valid today")
	default:
		a.verified(what + " is issued under the trusted root key")
	}
}

// algorithm is a key's, for the standard library's check of a signature.
func algorithm(public any) x509.PublicKeyAlgorithm {
	switch public.(type) {
	case *rsa.PublicKey:
		return x509.RSA
	case *ecdsa.PublicKey:
		return x509.ECDSA
	}
	return x509.Ed25519
}

// sitePorts asks for the ports of the site's management points, which the list does not
// have. Not to know them is no error: the usual ones are tried.
func (a *Agent) sitePorts(ctx context.Context, c *conversation) ports {
	id, err := a.newMessageID()
	if err != nil {
		return ports{}
	}
	body := ccm.LocationRequest{Kind: ccm.LocationSiteInformation, SiteCode: a.current().SiteCode}.XML()
	got, err := a.deliver(ctx, c, message{id: id, endpoint: "MP_LocationManager", body: fixed(body)})
	if err != nil {
		return ports{}
	}
	reply, err := ccm.ParseSiteInfoReply(got.text)
	if err != nil || len(reply.Sites) == 0 {
		return ports{}
	}
	return ports{reply.Sites[0].HTTPPort, reply.Sites[0].HTTPSPort}
}

// candidate is a management point that may be used.
type candidate struct {
	route
	score [sha256.Size]byte // stable for a device and a host: spreads devices over the list
}

// candidates are the ways to the management points of the list, the best first: https
// before http, then in this device's own order. From https there is no way down to http.
func (r record) candidates(from route, found pointInformation) []candidate {
	https := cmp.Or(r.Ports.HTTPS, found.ports.HTTPS, 443)
	plainPort := cmp.Or(r.Ports.HTTP, found.ports.HTTP, 80)
	var list []candidate
	add := func(scheme, name string, port int) {
		host := withoutUsualPort(scheme, net.JoinHostPort(name, strconv.Itoa(port)))
		way := route{Scheme: scheme, Host: host}
		if checkHost(host) == nil && !slices.ContainsFunc(list, func(c candidate) bool { return c.route == way }) {
			list = append(list, candidate{way, sha256.Sum256([]byte(string(r.Key) + r.Name + "\x00" + strings.ToLower(name)))})
		}
	}
	for _, mp := range found.list {
		name := strings.ToLower(cmp.Or(mp.FQDN, mp.Name))
		if name == "" || checkHost(name) != nil || strings.Contains(name, ":") || mp.SiteCode != "" && r.SiteCode != "" && mp.SiteCode != r.SiteCode {
			continue
		}
		itself := strings.EqualFold(name, hostName(from.Host))
		if itself && from.secure() {
			list = append(list, candidate{from, sha256.Sum256([]byte(string(r.Key) + r.Name + "\x00" + name))})
			continue
		}
		add("https", name, https)
		switch {
		case from.secure() || demandsCertificate(mp):
		case itself:
			list = append(list, candidate{from, sha256.Sum256([]byte(string(r.Key) + r.Name + "\x00" + name))})
		default:
			add("http", name, plainPort)
		}
	}
	slices.SortStableFunc(list, func(x, y candidate) int {
		return cmp.Or(-strings.Compare(x.Scheme, y.Scheme), slices.Compare(x.score[:], y.score[:]))
	})
	return list
}

func withoutUsualPort(scheme, host string) string {
	name, port, err := net.SplitHostPort(host)
	if err != nil || port != map[string]string{"http": "80", "https": "443"}[scheme] {
		return host
	}
	if strings.Contains(name, ":") {
		return "[" + name + "]"
	}
	return name
}

// demandsCertificate reports whether a management point is in HTTPS mode (protocol.md 1.4).
func demandsCertificate(mp ccm.ManagementPoint) bool {
	return slices.ContainsFunc(mp.Capabilities, func(c ccm.Capability) bool {
		return strings.EqualFold(c.Name, "SSLState") && c.Value != "0" && c.Value != ""
	})
}

// take returns the first management point of the list that answers and is of the site. The
// one that was asked is the last resort: the device has just talked with it.
func (a *Agent) take(ctx context.Context, c *conversation, found pointInformation) (route, string, error) {
	r := a.current()
	list := r.candidates(c.route, found)
	if len(list) == 0 {
		why := "the one that was given; it names no other of the site"
		if found.lack != "" {
			why = "the one that was given; it gives no list: " + found.lack
		}
		return c.route, why, nil
	}
	failures := 0
	for i, next := range list {
		if next.route == c.route {
			return next.route, a.because(next, i, len(list), failures), nil
		}
		if failures > 0 {
			if err := a.config.Wait(ctx, a.jitter(betweenPoints)); err != nil {
				return route{}, "", err
			}
		}
		err := a.probe(ctx, c.at(next.route))
		if err == nil {
			return next.route, a.because(next, i, len(list), failures), nil
		}
		if ctx.Err() != nil {
			return route{}, "", ctx.Err()
		}
		failures++
		a.logs.pointFailed(next.route, err)
		a.log.WarnContext(ctx, "a management point of the list cannot be used", "host", next.Host, "scheme", next.Scheme, "code", string(catalog.CodeOf(err)), "error", err)
	}
	return c.route, fmt.Sprintf("the one that was given; none of the %d ways of the site's list could be used", len(list)), nil
}

func (a *Agent) because(next candidate, at, of, failures int) string {
	why := fmt.Sprintf("from the site's list, way %d of %d in this device's order", at+1, of)
	if next.secure() {
		why += ", https before http"
	}
	if failures > 0 {
		why += fmt.Sprintf("; %d before it could not be used", failures)
	}
	return why
}

// probe asks a management point for a sign of life, and for the root key where that is all
// that it can be told by.
func (a *Agent) probe(ctx context.Context, c *conversation) error {
	wanted := a.current().Anchor.RootKey
	if c.route.secure() || wanted == "" {
		_, err := a.information(ctx, c, string(ccm.AuthSMSTRC))
		if err == nil && wanted != "" {
			a.verified("the chosen management point's TLS certificate is under the trusted root key")
		}
		return err
	}
	root, err := a.announcedRoot(ctx, c)
	if err == nil && !a.current().Anchor.trusts(root.pin, a.config.Now()) {
		err = catalog.Errorf(catalog.ClientRootKeyOther, "%s announces the root key %s, wanted %s", c.route.Host, root.pin, wanted)
	}
	return err
}

// learnRoot is trust on first use: whoever answers says what is trusted from now on. It is
// done only when it was asked for, and said aloud.
func (a *Agent) learnRoot(ctx context.Context, c *conversation) error {
	pin, err := a.firstRoot(ctx, c)
	if err != nil {
		return err
	}
	learned := anchor{RootKey: pin, Learned: a.config.Now().UTC(), From: c.route.Scheme + "://" + c.route.Host}
	if err := a.save(func(r *record) { r.Anchor, r.Verified = learned, nil }); err != nil {
		return err
	}
	text := fmt.Sprintf("trusted on first use: the site root %s, as %s says. Nobody has confirmed it. Compare it with `postern site show` at the site.", pin, learned.From)
	a.config.Say(string(catalog.ClientTrustOnFirstUse) + " " + text)
	a.logs.setup.Warningf("%s", text)
	a.logs.location.Warningf("%s", text)
	a.log.WarnContext(ctx, "trusted on first use", "code", string(catalog.ClientTrustOnFirstUse), "root", pin, "from", learned.From)
	return nil
}

// firstRoot asks for the root key with nothing to recognise the server by. Over https the
// key must be the one that the server's own chain ends in.
func (a *Agent) firstRoot(ctx context.Context, c *conversation) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	shown := ""
	trust := &tls.Config{ServerName: hostName(c.route.Host), MinVersion: tls.VersionTLS12, InsecureSkipVerify: true} // on purpose: first use
	trust.VerifyConnection = func(cs tls.ConnectionState) error {
		shown = token.Pin(cs.PeerCertificates[len(cs.PeerCertificates)-1].PublicKey)
		return checkServer(cs.PeerCertificates, anchor{RootKey: shown}, c.route.role(), hostName(c.route.Host), a.config.Now())
	}
	q := call{method: http.MethodGet, url: c.url(ccm.EndpointMP, "/.sms_aut"), query: string(ccm.AuthMPTRK), limit: maxInformation}
	r, err := a.request(ctx, c, q)
	if err != nil {
		return "", err
	}
	client := newHTTPClient(a.config, trust)
	defer client.CloseIdleConnections()
	c.line.write(c.log, c.route, q)
	response, err := client.Do(r)
	if err != nil {
		err = connectionError(err, a.config.Now())
		a.logs.connectionFailed(c, q.url, err)
		return "", err
	}
	defer response.Body.Close()
	got, err := a.receive(c, q, response)
	if err != nil {
		return "", err
	}
	root, err := parseRootKey(string(got.body))
	if err == nil && c.route.secure() && root.pin != shown {
		err = catalog.Errorf(catalog.ClientRootKeyOther, "%s announces the root key %s and shows a certificate under %s", c.route.Host, root.pin, shown)
	}
	return root.pin, err
}

// move looks for another management point after the one in use failed, and reports whether
// there is one.
func (a *Agent) move(ctx context.Context) (moved bool, err error) {
	err = a.exclusive(ctx, func() error {
		r := a.current()
		ctx, c := a.converse(ctx, r, a.logs.location, policyLine())
		way, why, err := a.choose(ctx, c, false)
		if err != nil {
			return err
		}
		moved = way != r.Route
		a.logs.pointChosen(way, why)
		return a.save(func(r *record) { r.Route, r.Chosen = way, why })
	})
	return moved, err
}

// forgetPoint lets the next walk look for a management point again, after this one failed.
func (a *Agent) forgetPoint(err error) error {
	r := a.current()
	if !Transient(err) || !r.Initial.inside() || r.Chosen == "" || r.Route.Internet {
		return nil
	}
	return a.save(func(r *record) { r.Chosen = "" })
}
