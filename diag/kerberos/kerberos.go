package kerberos

import (
	"cmp"
	"context"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/catalog"
	"postern/diag"
)

// Seat is where the check is made.
type Seat string

// The seats.
const (
	Guess  Seat = ""
	Client Seat = "client" // a computer that registers
	Server Seat = "server" // a management point
)

// Skew is how far two clocks may differ for Kerberos (S1; RFC 4120 3.1.3).
const Skew = 5 * time.Minute

// drift is from where on a difference is worth a word.
const drift = time.Minute

// NoDirectory as the directory server means: ask none.
const NoDirectory = "none"

// Options are what a person said. Files that are "" are not used.
type Options struct {
	Seat         Seat
	Server       string // host, host:port or URL of the management point
	Address      string // where to connect instead of where the server's name leads: one node of several
	Config       string // krb5.conf
	Keytab       string // the seat's own keytab
	Cache        string // credential cache
	ServerKeytab string // the server's keytab beside the client's: says whether it can read our ticket
	Principal    string // whom to be, when the keytab holds several
	Realm        string // this machine's, where nothing else gives one
	Directory    string // LDAP server, [NoDirectory], or "" for what DNS or krb5.conf gives

	Resolver *net.Resolver    // nil for the system's
	Timeout  time.Duration    // of one exchange, default diag.Patience
	Now      func() time.Time // this machine's clock, default time.Now
}

// run is one diagnosis: what was said, and what the checks have learned so far.
type run struct {
	Options
	host     string     // of the server, lower case, without a dot at its end
	urls     []*url.URL // where the server may answer, in the order to try
	broken   error      // why the configuration cannot be used
	config   *config.Config
	realm    string              // our own
	client   types.PrincipalName // our own
	keys     []key               // of our keytab
	cache    *cache              // nil without
	server   []key               // of the server's keytab: ours on its seat
	tellings []diag.Finding      // what reading the files had to say
	found    map[string][]string // realm -> addresses of its KDCs
	answered bool                // a KDC of our realm has answered
	offset   time.Duration       // the KDC's clock minus ours
	tgt      *ticket             // nil until the login
	service  *ticket             // nil until the KDC gave it
	anon     *anonymous          // the answer to the anonymous request
	accepted *bool               // whether the server took the ticket, nil when not tried
}

// New reads the files that the options name and returns the checks. What is wrong with
// a file is what the first check finds.
func New(options Options) []diag.Check {
	r := newRun(options)
	checks := r.checks()
	for i := range checks {
		checks[i].Run = r.withName(checks[i].Run)
	}
	return checks
}

// withName puts the server's name where a remedy has NAME, so that its commands can be
// copied.
func (r *run) withName(look func(context.Context) []diag.Finding) func(context.Context) []diag.Finding {
	if r.host == "" {
		return look
	}
	return func(ctx context.Context) []diag.Finding {
		findings := look(ctx)
		for i := range findings {
			findings[i].Remedy = slices.Clone(findings[i].Remedy)
			for j, step := range findings[i].Remedy {
				findings[i].Remedy[j] = strings.NewReplacer("HTTP/NAME", "HTTP/"+r.host, "https://NAME", "https://"+r.host).Replace(step)
			}
		}
		return findings
	}
}

func (r *run) checks() []diag.Check {
	if r.Seat == Server {
		return []diag.Check{
			{Name: "keytab", What: "the server's keytab: who may read it, whose keys of which types and versions it holds", Run: r.checkKeytab},
			{Name: "name", What: "the name that clients use: forward, reverse, aliases, several addresses", Run: r.checkName},
			{Name: "kdc", What: "the KDCs of the realm: found and reachable", Run: r.checkKDC},
			{Name: "clock", What: "this machine's clock against the KDC's", Run: r.checkClock},
			{Name: "key", What: "the key that tickets are encrypted with against the keytab's", Run: r.checkServerKey},
			{Name: "directory", What: "who owns the service name, and which trusts there are", Run: r.checkDirectory},
		}
	}
	return []diag.Check{
		{Name: "account", What: "realm, account and keys of this machine", Run: r.checkAccount},
		{Name: "name", What: "the management point's name: forward, reverse, aliases", Run: r.checkName},
		{Name: "kdc", What: "the KDCs of our realm: found and reachable", Run: r.checkKDC},
		{Name: "clock", What: "this machine's clock against the KDC's", Run: r.checkClock},
		{Name: "login", What: "a ticket-granting ticket for this machine's account", Run: r.checkLogin},
		{Name: "ticket", What: "a ticket for the management point, and the way of referrals to it", Run: r.checkTicket},
		{Name: "request", What: "an anonymous request: the server invites to authenticate", Run: r.checkRequest},
		{Name: "answer", What: "the same request with the ticket", Run: r.checkAnswer},
		{Name: "directory", What: "who owns the service name, and which trusts there are", Run: r.checkDirectory},
	}
}

// SeatOf returns the seat that New takes for the options: what they say, or a guess by
// the keytab.
func SeatOf(options Options) Seat { return newRun(options).Seat }

func newRun(options Options) *run {
	r := &run{Options: options, found: map[string][]string{}}
	r.Timeout, r.Resolver = cmp.Or(r.Timeout, diag.Patience), cmp.Or(r.Resolver, net.DefaultResolver)
	if r.Now == nil {
		r.Now = time.Now
	}
	r.host, r.urls, r.broken = target(options.Server)
	r.readConfig()
	r.readKeytab()
	r.Seat = cmp.Or(r.Seat, guessSeat(r.host, r.keys))
	if r.Seat == Server {
		r.server = r.keys
	}
	r.readServerKeytab()
	r.readCache()
	r.settle()
	return r
}

// target understands what a person gives as the server.
func target(given string) (host string, urls []*url.URL, err error) {
	if given == "" {
		return "", nil, nil
	}
	schemes := []string{"https", "http"}
	if scheme, rest, ok := strings.Cut(given, "://"); ok {
		schemes, given = []string{strings.ToLower(scheme)}, rest
	}
	for _, scheme := range schemes {
		u, err := url.Parse(scheme + "://" + given)
		if err != nil || u.Hostname() == "" || u.User != nil || scheme != "https" && scheme != "http" {
			return "", nil, catalog.Errorf(catalog.CheckNameNotResolved, "%q is not a host name, host:port or http(s) URL", given)
		}
		host = strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
		urls = append(urls, &url.URL{Scheme: scheme, Host: u.Host, Path: "/ccm_system_windowsauth/request"})
	}
	return host, urls, nil
}

// guessSeat: a keytab with the key of an HTTP service is a server's, unless the server
// that was named is another one.
func guessSeat(host string, keys []key) Seat {
	for _, k := range keys {
		if service, name := k.service(); strings.EqualFold(service, "HTTP") && (host == "" || strings.EqualFold(name, host)) {
			return Server
		}
	}
	return Client
}

func (r *run) readConfig() {
	if r.Config == "" {
		r.config = config.New()
		return
	}
	loaded, err := loadConfig(r.Config)
	if err != nil {
		r.tellings = append(r.tellings, diag.FromError(diag.Fail, err, catalog.CheckConfigurationUnreadable))
		loaded = config.New()
	}
	r.config = loaded
}

func (r *run) readKeytab() {
	if r.Keytab == "" {
		return
	}
	keys, err := loadKeytab(r.Keytab)
	if err != nil {
		r.tellings = append(r.tellings, diag.FromError(diag.Fail, err, catalog.CheckKeytabUnreadable))
	}
	r.keys = keys
}

func (r *run) readServerKeytab() {
	if r.ServerKeytab == "" {
		return
	}
	keys, err := loadKeytab(r.ServerKeytab)
	if err != nil {
		r.tellings = append(r.tellings, diag.FromError(diag.Fail, err, catalog.CheckKeytabUnreadable))
	}
	r.server = append(r.server, keys...)
}

func (r *run) readCache() {
	if r.Cache == "" {
		return
	}
	content, err := readFile(r.Cache)
	if err == nil {
		r.cache, err = readCache(content)
	}
	if err != nil {
		r.tellings = append(r.tellings, diag.Found(diag.Warn, catalog.CheckNoCredential, "credential cache %s: %v", r.Cache, err))
	}
}

// settle decides who we are: what was said, the cache's owner, the keytab's computer
// account, its first login name.
func (r *run) settle() {
	switch {
	case r.Principal != "":
		r.client, r.realm = parsePrincipal(r.Principal)
	case r.cache != nil:
		r.client, r.realm = r.cache.client, r.cache.realm
	default:
		if k, ok := loginKey(r.keys); ok {
			r.client, r.realm = k.name, k.realm
		}
	}
	r.realm = cmp.Or(r.realm, r.config.LibDefaults.DefaultRealm, strings.ToUpper(r.Realm))
}

// loginKey picks the key to log in with: of a computer account when there is one, then
// of another account, then of a service name.
func loginKey(keys []key) (key, bool) {
	sorted := slices.Clone(keys)
	rank := func(k key) int {
		switch {
		case len(k.name.NameString) == 1 && strings.HasSuffix(k.name.NameString[0], "$"):
			return 0
		case len(k.name.NameString) == 1:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(sorted, func(a, b key) int { return cmp.Compare(rank(a), rank(b)) })
	if len(sorted) == 0 {
		return key{}, false
	}
	return sorted[0], true
}

func parsePrincipal(text string) (types.PrincipalName, string) {
	name, realm, _ := cutLast(text, "@")
	parts := strings.Split(name, "/")
	kind := int32(nametype.KRB_NT_PRINCIPAL)
	if len(parts) > 1 {
		kind = nametype.KRB_NT_SRV_HST
	}
	return types.PrincipalName{NameType: kind, NameString: parts}, realm
}

func cutLast(s, separator string) (before, after string, found bool) {
	if i := strings.LastIndex(s, separator); i >= 0 {
		return s[:i], s[i+len(separator):], true
	}
	return s, "", false
}

// now is this machine's clock put right by what the KDC said.
func (r *run) now() time.Time { return r.Now().Add(r.offset).UTC() }

// serviceName is what a client asks a ticket for.
func (r *run) serviceName() types.PrincipalName { return hostService("HTTP", r.host) }

func hostService(service, host string) types.PrincipalName {
	return types.PrincipalName{NameType: nametype.KRB_NT_SRV_HST, NameString: []string{service, host}}
}

// dialer connects where names lead by our resolver.
func (r *run) dialer() *net.Dialer { return &net.Dialer{Timeout: r.Timeout, Resolver: r.Resolver} }

// canTry says whether there is anything to log in with.
func (r *run) canTry() bool {
	return len(r.client.NameString) > 0 && (len(r.keys) > 0 || r.cache != nil)
}

// checkAccount tells what the files gave.
func (r *run) checkAccount(context.Context) []diag.Finding {
	findings := slices.Clone(r.tellings)
	if r.realm == "" {
		return append(findings, diag.Found(diag.Fail, catalog.CheckRealmUnknown, "no --principal, keytab, credential cache or default_realm gives one"))
	}
	if !r.canTry() {
		return append(findings, diag.Found(diag.Skipped, catalog.CheckNoCredential, "realm %s; the checks of login, ticket and answer need a credential", r.realm))
	}
	own := r.ownKeys()
	if r.cache == nil && len(own) == 0 {
		return append(findings, diag.Found(diag.Fail, catalog.CheckAccountKeyWrong, "%s holds no key of %s@%s; it has %s", r.Keytab, r.client.PrincipalNameString(), r.realm, describeKeys(r.keys)))
	}
	source := "credential cache " + r.Cache
	if len(own) > 0 {
		source = r.Keytab + "\n" + describeKeys(own)
		findings = append(findings, weakKeys(own)...)
	}
	return append(findings, diag.Good("this machine has an account to try with", "%s@%s, from %s", r.client.PrincipalNameString(), r.realm, source))
}

// ownKeys are the keytab's keys of the account that we are.
func (r *run) ownKeys() []key { return keysOf(r.keys, r.client, r.realm) }
