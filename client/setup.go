package client

import (
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/revocation"
	"postern/token"
)

// Secret is a text that prints as "[secret]" whichever way it is printed.
type Secret string

// String hides the secret.
func (Secret) String() string { return "[secret]" }

// GoString hides the secret.
func (Secret) GoString() string { return "[secret]" }

// MarshalText hides the secret.
func (Secret) MarshalText() ([]byte, error) { return []byte("[secret]"), nil }

// Gateway is where a gateway publishes a management point: what CCMHOSTNAME says
// (protocol.md 7.1).
type Gateway struct {
	Host   string // host or host:port
	RoleID uint64 // the management point's number behind the door
}

// String is the form of CCMHOSTNAME, "HOST/CCM_Proxy_MutualAuth/<id>"; it is empty for
// the zero Gateway.
func (g Gateway) String() string {
	if g.Host == "" {
		return ""
	}
	return g.Host + ccm.ExternalPath(ccm.DoorMutualAuth, g.RoleID, "")
}

// Setup says where and how to enrol. Its fields are those of ccmsetup that apply, and
// ours. Zero fields are not given.
type Setup struct {
	Gateway         Gateway      // CCMHOSTNAME: the internet path
	ManagementPoint string       // SMSMP, else the first of SMSMPLIST or /mp: "https://HOST[:port]" or "http://...": the initial one
	MorePoints      []string     // further initial management points, of SMSMPLIST and /mp
	InternetPoint   string       // CCMHOSTNAME without a gateway's path: a management point on the internet
	AlwaysInternet  bool         // CCMALWAYSINF=1
	SiteCode        ccm.SiteCode // SMSSITECODE; empty: learned from the site
	Token           Secret       // the bulk registration token

	RootKey             string // hash of the site root's key (token.Pin), or the key itself as SMSPublicRootKey has it
	RootKeyFile         string // SMSROOTKEYPATH: a file that holds the same
	CAFile              string // PEM of the authority of the company that the server's certificate is under
	ResetKeyInformation bool   // RESETKEYINFORMATION=TRUE: another anchor than the one on record may be given
	TrustFirstUse       bool   // inside, without an anchor: take the root key of the first management point that answers, and pin it

	NoCRLCheck bool              // /NoCRLCheck: no revocation lists while enrolling; name and authority are judged all the same
	CRLCheck   revocation.Policy // from then on: require, prefer or off; "" as before, and require at first
	CRLSources []string          // where to ask besides what the server's certificate says, as revocation.Config has it

	Certificate CertificateChoice // of the company: preferred over Entra and tokens

	TenantID  string // AADTENANTID; empty: that of the join
	ClientApp string // AADCLIENTAPPID; empty: the gateway says it
	Resource  string // AADRESOURCEURI; empty: the gateway says it

	TokenFile string // where to read the token; "-" is standard input, see ReadToken
	Name      string // the device's host name; empty: the system's
	Dir       string // state folder, for the caller of Open

	Retry           time.Duration // /retry: try again after this long when the network fails; 0: once only
	DownloadTimeout time.Duration // /downloadtimeout: give up after this long of trying; a day when zero
	HTTPPort        int           // CCMHTTPPORT, for addresses without a port
	HTTPSPort       int           // CCMHTTPSPORT
	Verbose         bool          // CCMLOGLEVEL=0 or CCMDEBUGLOGGING=1

	Warnings []string // for the person who wrote the command line
	Notes    []string // what was accepted and has no effect here

	listGateway Gateway  // from /mp:, when CCMHOSTNAME is not given
	listPoints  []string // of /mp
	autoSite    bool     // SMSSITECODE=AUTO
}

// maxTokenFile bounds what ReadToken reads.
const maxTokenFile = token.MaxToken + 1024

// ReadToken fills Token from TokenFile; in stands for the file "-". It does nothing when
// there is a Token already, or no TokenFile. The error has the code ClientTokenFile.
func (s *Setup) ReadToken(in io.Reader) error {
	if s.Token != "" || s.TokenFile == "" {
		return nil
	}
	if s.TokenFile != "-" {
		file, err := os.Open(s.TokenFile)
		if err != nil {
			return catalog.Wrap(catalog.ClientTokenFile, err, "the file %s cannot be read", s.TokenFile)
		}
		defer file.Close()
		in = file
	}
	if in == nil {
		return catalog.Errorf(catalog.ClientTokenFile, "there is no standard input to read the token from")
	}
	content, err := io.ReadAll(io.LimitReader(in, maxTokenFile+1))
	if err != nil {
		return catalog.Wrap(catalog.ClientTokenFile, err, "%s cannot be read", s.TokenFile)
	}
	text := strings.TrimSpace(string(content))
	if len(content) > maxTokenFile || !tokenForm(text) {
		return catalog.Errorf(catalog.ClientTokenFile, "%s does not hold one token", s.TokenFile)
	}
	s.Token = Secret(text)
	return nil
}

// tokenForm reports whether text can be a token: three parts of base64url.
func tokenForm(text string) bool {
	if len(text) > token.MaxToken || strings.Count(text, ".") != 2 {
		return false
	}
	for part := range strings.SplitSeq(text, ".") {
		if part == "" || strings.Trim(part, base64URL) != "" {
			return false
		}
	}
	return true
}

const base64URL = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// ParseRootKey reads the anchor as a person gives it and returns it as token.Pin writes
// it: the hash itself in any case, or the key as SMSPublicRootKey has it, a PUBLICKEYBLOB
// in hexadecimal (protocol.md 2.6). The error has the code ClientCommandValue.
func ParseRootKey(text string) (string, error) {
	raw, err := hex.DecodeString(strings.TrimSpace(text))
	switch {
	case err != nil || len(raw) > 4096:
		return "", catalog.Errorf(catalog.ClientCommandValue, "the root key is neither its hash (64 hexadecimal digits) nor the key in hexadecimal")
	case len(raw) == 32:
		return hex.EncodeToString(raw), nil
	}
	key, err := ccm.ParsePublicKeyBlob(raw)
	if err != nil {
		return "", catalog.Wrap(catalog.ClientCommandValue, err, "the root key is neither its hash (64 hexadecimal digits) nor a public key blob")
	}
	return token.Pin(key), nil
}

// parseHostName reads CCMHOSTNAME.
func (s *Setup) parseHostName(text string) error {
	if rest, ok := cutPrefixFold(text, "https://"); ok {
		s.warn("CCMHOSTNAME is written without https://")
		text = rest
	}
	host, behind, found := strings.Cut(strings.TrimSuffix(text, "/"), "/")
	if err := checkHost(host); err != nil {
		return err
	}
	if !found {
		s.InternetPoint = "https://" + host
		return nil
	}
	id, err := roleID(behind)
	if err != nil {
		return err
	}
	s.Gateway = Gateway{Host: host, RoleID: id}
	return nil
}

// roleID reads what follows the host: CCM_Proxy_MutualAuth/<id>, or the door that
// clients with tokens use (S2).
func roleID(behind string) (uint64, error) {
	p, err := ccm.ParsePath("/" + behind + "/CCM_STS")
	if err != nil || p.Door == ccm.DoorDirect || p.RoleID == 0 || p.Rest != "" || p.Query != "" {
		return 0, catalog.Errorf(catalog.ClientCommandValue, "after the host comes /CCM_Proxy_MutualAuth/ and a number, not %.80q", behind)
	}
	return p.RoleID, nil
}

// checkHost accepts host and host:port.
func checkHost(host string) error {
	u, err := url.Parse("https://" + host)
	if err != nil || u.Host != host || u.Hostname() == "" || len(host) > 260 || strings.ContainsAny(host, "%@\\ ") {
		return catalog.Errorf(catalog.ClientCommandValue, "%.80q is not a host name", host)
	}
	if _, port, err := net.SplitHostPort(host); err == nil {
		_, err := portNumber(port)
		return err
	}
	return nil
}

func portNumber(text string) (int, error) {
	port, err := strconv.Atoi(text)
	if err != nil || port < 1 || port > 65535 {
		return 0, catalog.Errorf(catalog.ClientCommandValue, "%.20q is not a port", text)
	}
	return port, nil
}

// parsePoint reads SMSMP: a host or a URL without a path. A gateway's address may stand
// there too.
func (s *Setup) parsePoint(text string) error {
	scheme, rest := "https", text
	if after, ok := cutPrefixFold(text, "https://"); ok {
		rest = after
	} else if after, ok := cutPrefixFold(text, "http://"); ok {
		scheme, rest = "http", after
	} else {
		s.note("an address without a scheme is taken as https; write http:// for plain HTTP")
	}
	rest = strings.TrimSuffix(rest, "/")
	host, behind, found := strings.Cut(rest, "/")
	if err := checkHost(host); err != nil {
		return err
	}
	if !found {
		s.ManagementPoint = scheme + "://" + host
		return nil
	}
	id, err := roleID(behind)
	if err != nil {
		return err
	}
	if scheme == "http" {
		return catalog.Errorf(catalog.ClientPlainInternet, "a gateway is reached by https")
	}
	if s.Gateway.Host == "" {
		s.Gateway = Gateway{Host: host, RoleID: id}
	}
	return nil
}

// maxPoints bounds a list of management points, given or answered.
const maxPoints = 64

// parsePoints reads /mp:, a list.
func (s *Setup) parsePoints(text string) error {
	entries := strings.FieldsFunc(text, func(r rune) bool { return r == ';' })
	if len(entries) == 0 || len(entries) > maxPoints {
		return catalog.Errorf(catalog.ClientCommandValue, "the list has %d addresses; wanted are 1 to %d", len(entries), maxPoints)
	}
	for _, entry := range entries {
		one := Setup{}
		if err := one.parsePoint(entry); err != nil {
			return err
		}
		s.Notes = append(s.Notes, one.Notes...)
		if s.listGateway.Host == "" {
			s.listGateway = one.Gateway
		}
		if one.ManagementPoint != "" {
			s.listPoints = append(s.listPoints, one.ManagementPoint)
		}
	}
	return nil
}

// parsePointList reads SMSMPLIST: management points, with semicolons between.
func (s *Setup) parsePointList(text string) error {
	list := Setup{}
	if err := list.parsePoints(text); err != nil {
		return err
	}
	if list.listGateway.Host != "" {
		return catalog.Errorf(catalog.ClientCommandValue, "a gateway stands in CCMHOSTNAME")
	}
	s.Notes = append(s.Notes, list.Notes...)
	s.MorePoints = append(s.MorePoints, list.listPoints...)
	return nil
}

func (s *Setup) parseSiteCode(text string) error {
	if strings.EqualFold(text, "AUTO") {
		s.autoSite = true
		return nil
	}
	code, err := ccm.ParseSiteCode(text)
	if err != nil {
		return catalog.Wrap(catalog.ClientCommandValue, err, "a site code is three letters or digits, or AUTO")
	}
	s.SiteCode = code
	return nil
}

// settle fills in what one value says for another and refuses contradictions.
func (s *Setup) settle() error {
	if s.Gateway.Host == "" && s.InternetPoint == "" {
		s.Gateway = s.listGateway
	}
	s.MorePoints = append(s.MorePoints, s.listPoints...)
	if s.ManagementPoint == "" && len(s.MorePoints) > 0 {
		s.ManagementPoint, s.MorePoints = s.MorePoints[0], s.MorePoints[1:]
	}
	if s.autoSite && (s.Gateway.Host != "" || s.InternetPoint != "") {
		return catalog.Errorf(catalog.ClientCommandConflict, "SMSSITECODE=AUTO does not go with CCMHOSTNAME; write the site code")
	}
	s.remark()
	return s.check()
}

// remark says what has no effect together with something else.
func (s *Setup) remark() {
	selects := s.Certificate.Select != "" || len(s.Certificate.Issuers) > 0 || s.Certificate.First
	if selects && !s.Certificate.Use && s.Certificate.Store == "" {
		s.Certificate.Use = true
		s.note("CCMCERTSEL, CCMCERTISSUERS and CCMFIRSTCERT are taken to mean /UsePKICert")
	}
	if s.Certificate.wanted() && s.ClientApp+s.Resource+s.TenantID != "" {
		s.note("a valid certificate is preferred over Entra: the AAD properties count when there is none")
	}
	if s.NoCRLCheck {
		s.note("/NoCRLCheck covers this run and nothing after it; name and authority of a server are always checked, and under a site root there are no lists")
	}
}

// check refuses a Setup that says nothing usable or two things at once.
func (s *Setup) check() error {
	anchors := 0
	for _, given := range []string{s.RootKey, s.RootKeyFile, s.CAFile} {
		if given != "" {
			anchors++
		}
	}
	if s.TrustFirstUse && (s.Gateway.Host != "" || s.InternetPoint != "" || s.AlwaysInternet) {
		return catalog.Errorf(catalog.ClientCommandConflict, "--trust-first-use does not go with the internet path: there nothing is trusted on first use")
	}
	if s.TrustFirstUse && anchors > 0 {
		return catalog.Errorf(catalog.ClientCommandConflict, "--trust-first-use does not go with a root key or an authority: there is nothing left to learn")
	}
	if anchors > 1 {
		return catalog.Errorf(catalog.ClientCommandConflict, "give one of the root key, a file with it, and an authority's file")
	}
	if s.CRLCheck != "" {
		policy, err := revocation.ParsePolicy(string(s.CRLCheck))
		if err != nil {
			return catalog.Wrap(catalog.ClientCommandValue, err, "--crl-check is require, prefer or off")
		}
		s.CRLCheck = policy
	}
	if s.RootKey != "" {
		_, err := ParseRootKey(s.RootKey)
		return err
	}
	return nil
}

func (s *Setup) warn(format string, args ...any) {
	s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...))
}

func (s *Setup) note(format string, args ...any) {
	s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
}

// route is the address that the agent talks with. The internet path is taken when it is
// given: what is inside cannot be reached from there.
func (s *Setup) route() (route, error) {
	switch {
	case s.Gateway.Host != "":
		return route{Scheme: "https", Host: s.withPort("https", s.Gateway.Host), RoleID: s.Gateway.RoleID, Internet: true}, nil
	case s.InternetPoint != "":
		return s.pointRoute(s.InternetPoint, true)
	case s.ManagementPoint != "":
		return s.pointRoute(s.ManagementPoint, s.AlwaysInternet)
	}
	return route{}, nil
}

// points are the further initial management points.
func (s *Setup) points() ([]route, error) {
	var list []route
	for _, address := range s.MorePoints {
		r, err := s.pointRoute(address, false)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, nil
}

func (s *Setup) pointRoute(address string, internet bool) (route, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || path.Clean("/"+u.Path) != "/" {
		return route{}, catalog.Errorf(catalog.ClientCommandValue, "the management point's address is https://HOST or http://HOST, not %.120q", address)
	}
	if internet && u.Scheme == "http" {
		return route{}, catalog.Errorf(catalog.ClientPlainInternet, "%s is on the internet path and not https", u.Host)
	}
	return route{Scheme: u.Scheme, Host: s.withPort(u.Scheme, u.Host), Internet: internet}, nil
}

// withPort adds the configured port to a host without one, and takes the usual port away,
// so that the address in a proof and the Host header are the same text.
func (s *Setup) withPort(scheme, host string) string {
	usual, configured := "443", s.HTTPSPort
	if scheme == "http" {
		usual, configured = "80", s.HTTPPort
	}
	name, port, err := net.SplitHostPort(host)
	switch {
	case err != nil && configured != 0 && strconv.Itoa(configured) != usual:
		return net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(configured))
	case err == nil && port == usual && strings.Contains(name, ":"):
		return "[" + name + "]"
	case err == nil && port == usual:
		return name
	}
	return host
}

func cutPrefixFold(text, prefix string) (string, bool) {
	if len(text) < len(prefix) || !strings.EqualFold(text[:len(prefix)], prefix) {
		return text, false
	}
	return text[len(prefix):], true
}
