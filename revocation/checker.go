package revocation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"postern/catalog"
)

// Policy says what an unknown revocation state means.
type Policy string

// The policies.
const (
	PolicyRequire Policy = "require" // unknown is refused
	PolicyPrefer  Policy = "prefer"  // unknown is let through with a warning; a stale list counts
	PolicyOff     Policy = "off"     // nobody is asked; the chain itself is always judged
)

// ParsePolicy reads a policy as a person writes it. Code: RevocationConfig.
func ParsePolicy(text string) (Policy, error) {
	switch policy := Policy(strings.ToLower(strings.TrimSpace(text))); policy {
	case PolicyRequire, PolicyPrefer, PolicyOff:
		return policy, nil
	}
	return "", catalog.Errorf(catalog.RevocationConfig, "the policy %.40q is none of require, prefer and off", text)
}

// Config is what a Checker trusts, where it asks, and its budgets. Zero values take the defaults that stand beside them.
type Config struct {
	Roots         []*x509.Certificate // trusted roots
	Intermediates []*x509.Certificate // authorities below them that the other side may leave out
	SystemRoots   bool                // trust the roots of the operating system too

	Policy          Policy       // require
	Sources         []string     // where to ask: "http://host/list.crl" for a list, "ocsp:http://host/" for a responder
	FromCertificate bool         // ask where the certificate says, too; for the servers that a client calls
	Nonce           bool         // ask responders for an answer made for this request
	Client          *http.Client // nil: no proxy, and addresses from certificates never lead to this host or a link-local one

	Now          func() time.Time // time.Now
	Leeway       time.Duration    // 5 minutes, for the dates of lists and answers
	MaxAge       time.Duration    // 24 hours: a list is fetched again then, however far its next update
	MinAge       time.Duration    // 1 minute: and not sooner than that, nor is a source that failed asked again
	FetchTimeout time.Duration    // 15 seconds for one fetch
	Wait         time.Duration    // 10 seconds that one Check waits for all its fetches; they go on without it
	MaxBytes     int64            // 20 MB of one list
	MaxEntries   int              // 1,000,000 revoked certificates in one list, four times that in all
	MaxLists     int              // 64
	MaxAnswers   int              // 10,000 OCSP answers
}

// Checker judges certificate chains. It is safe for concurrent use. [Checker.Close] ends what it still fetches.
type Checker struct {
	config        Config
	roots         *x509.CertPool
	intermediates *x509.CertPool
	listURLs      []string
	responders    []string

	context context.Context // of the fetches that run on behalf of several checks
	cancel  context.CancelFunc
	fetches sync.WaitGroup
	fetch   *fetcher // from configured places
	guarded *fetcher // from places that a certificate names
	lists   *cache[string, *list]
	answers *cache[answerKey, *answer]
	down    *outages
}

const maxSources = 64

// New returns a Checker. Nothing is fetched before the first [Checker.Check], [Checker.Refresh] or [Checker.Run]. Code:
// RevocationConfig.
func New(config Config) (*Checker, error) {
	config = withDefaults(config)
	if _, err := ParsePolicy(string(config.Policy)); err != nil {
		return nil, err
	}
	c := &Checker{config: config, intermediates: pool(config.Intermediates)}
	if err := c.readSources(); err != nil {
		return nil, err
	}
	if err := c.readRoots(); err != nil {
		return nil, err
	}
	c.context, c.cancel = context.WithCancel(context.Background())
	c.fetch = newFetcher(config, false)
	c.guarded = newFetcher(config, true)
	c.lists = newCache[string, *list](config.MaxLists)
	c.answers = newCache[answerKey, *answer](config.MaxAnswers)
	c.down = &outages{}
	return c, nil
}

func withDefaults(c Config) Config {
	if c.Policy == "" {
		c.Policy = PolicyRequire
	}
	c.Policy = Policy(strings.ToLower(string(c.Policy)))
	if c.Now == nil {
		c.Now = time.Now
	}
	setDefault(&c.Leeway, 5*time.Minute)
	setDefault(&c.MaxAge, 24*time.Hour)
	setDefault(&c.MinAge, time.Minute)
	setDefault(&c.FetchTimeout, 15*time.Second)
	setDefault(&c.Wait, 10*time.Second)
	setDefault(&c.MaxBytes, 20_000_000)
	setDefault(&c.MaxEntries, 1_000_000)
	setDefault(&c.MaxLists, maxSources)
	setDefault(&c.MaxAnswers, 10_000)
	return c
}

func setDefault[T ~int | ~int64](value *T, standard T) {
	if *value <= 0 {
		*value = standard
	}
}

func pool(certificates []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, certificate := range certificates {
		if certificate != nil {
			p.AddCert(certificate)
		}
	}
	return p
}

func (c *Checker) readRoots() error {
	c.roots = pool(c.config.Roots)
	if c.config.SystemRoots {
		system, err := x509.SystemCertPool()
		if err != nil {
			return catalog.Wrap(catalog.RevocationConfig, err, "the roots of the operating system cannot be read")
		}
		c.roots = system
		for _, root := range c.config.Roots {
			c.roots.AddCert(root)
		}
		return nil
	}
	if len(c.config.Roots) == 0 {
		return catalog.Errorf(catalog.RevocationConfig, "no root is trusted, so no chain could hold")
	}
	return nil
}

func (c *Checker) readSources() error {
	if len(c.config.Sources) > maxSources {
		return catalog.Errorf(catalog.RevocationConfig, "%d sources, at most %d", len(c.config.Sources), maxSources)
	}
	for _, text := range c.config.Sources {
		address, responder := strings.CutPrefix(strings.TrimSpace(text), "ocsp:")
		if _, err := parseAddress(address); err != nil {
			return catalog.Wrap(catalog.RevocationConfig, err, "the source %.200q is no http or https address without a user", redacted(address))
		}
		if responder {
			c.responders = append(c.responders, address)
		} else {
			c.listURLs = append(c.listURLs, address)
		}
	}
	return nil
}

// parseAddress reads an address that may be fetched.
func parseAddress(text string) (*url.URL, error) {
	if len(text) > 2048 {
		return nil, errors.New("longer than 2048 bytes")
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("not an address") // net/url's error repeats it, with a password that may be in it
	}
	if scheme := strings.ToLower(u.Scheme); (scheme != "http" && scheme != "https") || u.Hostname() == "" || u.User != nil {
		return nil, errors.New("not an http or https address of a host")
	}
	return u, nil
}

// redacted is an address without the password that somebody may have put in it.
func redacted(text string) string {
	if u, err := url.Parse(text); err == nil {
		return u.Redacted()
	}
	return "(not an address)"
}

// Close ends the fetches that still run and waits for them. The Checker must not be used afterwards.
func (c *Checker) Close() {
	c.cancel()
	c.fetches.Wait()
	c.fetch.close()
	c.guarded.close()
}

// Check judges a chain, leaf first, in the order in which the other side showed it. The error is nil exactly when the
// verdict is OK, and otherwise a *catalog.Error with the code and sentence of the first fault and a [*Refused] inside.
// It takes no longer than [Config.Wait] or ctx. Codes: CertificateUnreadable, CertificateIssuerMissing,
// CertificateRootUnknown, CertificateName, CertificateDate, CertificateUsage, CertificateWeak, CertificateConstraint,
// CertificateRevoked, and those that begin with Revocation.
func (c *Checker) Check(ctx context.Context, chain []*x509.Certificate, usage Usage) (Verdict, error) {
	now := c.config.Now()
	chains, faults := c.build(chain, usage, now)
	if len(chains) == 0 {
		if c.config.Policy == PolicyRequire && anyFlag(faults, FlagInvalidCA) {
			// Windows sets both (S4: 0x9): nobody can be asked about a certificate of an authority that is not known.
			faults = append(faults, Fault{FlagRevocationFailed, catalog.RevocationSourceMissing,
				"whether the certificate is revoked was not asked, because its authority is not trusted", nil})
		}
		return conclude(Verdict{}, faults)
	}
	if c.config.Policy == PolicyOff {
		return conclude(Verdict{Chain: chains[0], Certificates: unchecked(chains[0])}, faults)
	}
	ctx, cancel := context.WithTimeout(ctx, c.config.Wait)
	defer cancel()
	best, statuses := c.bestChain(ctx, chains, usage, now)
	warnings, more := c.weigh(statuses)
	verdict, err := conclude(Verdict{Chain: best, Certificates: statuses}, append(faults, more...))
	if err == nil && len(warnings) > 0 {
		verdict.Faults, verdict.Code, verdict.Sentence = warnings, warnings[0].Code, warnings[0].Sentence
	}
	return verdict, err
}

func anyFlag(faults []Fault, flag Flags) bool {
	for _, fault := range faults {
		if fault.Flag&flag != 0 {
			return true
		}
	}
	return false
}

func unchecked(chain []*x509.Certificate) (statuses []CertificateStatus) {
	for _, certificate := range chain[:max(len(chain)-1, 0)] {
		statuses = append(statuses, CertificateStatus{Certificate: certificate, State: StateUnchecked})
	}
	return statuses
}

// bestChain asks about the chains that hold until one is wholly good, and otherwise returns the least bad one.
func (c *Checker) bestChain(ctx context.Context, chains [][]*x509.Certificate, usage Usage, now time.Time) (best []*x509.Certificate, statuses []CertificateStatus) {
	lowest := -1
	for _, chain := range chains {
		got := c.statuses(ctx, chain, usage, now)
		if rank := badness(got); lowest < 0 || rank < lowest {
			best, statuses, lowest = chain, got, rank
		}
		if lowest == 0 {
			break
		}
	}
	return best, statuses
}

func badness(statuses []CertificateStatus) (worst int) {
	rank := map[State]int{StateGood: 0, StateUnknown: 2, StateRevoked: 3}
	for _, status := range statuses {
		worst = max(worst, rank[status.State])
		if status.Stale {
			worst = max(worst, 1)
		}
	}
	return worst
}

// statuses asks about each certificate of a chain but the root.
func (c *Checker) statuses(ctx context.Context, chain []*x509.Certificate, usage Usage, now time.Time) (statuses []CertificateStatus) {
	for i := range len(chain) - 1 {
		q := question{certificate: chain[i], issuer: chain[i+1], chain: chain, now: now}
		if i == 0 {
			q.staple = usage.Staple
		}
		statuses = append(statuses, c.status(ctx, q))
	}
	return statuses
}

// weigh turns what is known into faults and, under [PolicyPrefer], warnings.
func (c *Checker) weigh(statuses []CertificateStatus) (warnings, faults []Fault) {
	for _, status := range statuses {
		switch {
		case status.State == StateRevoked:
			faults = append(faults, Fault{FlagRevoked, catalog.CertificateRevoked, revokedSentence(status), nil})
		case status.State == StateGood && !status.Stale:
		case c.config.Policy == PolicyPrefer:
			warnings = append(warnings, Fault{FlagsOf(status.Code), status.Code, status.Sentence, status.err})
		default:
			faults = append(faults, Fault{FlagsOf(status.Code), status.Code, status.Sentence, status.err})
		}
	}
	return warnings, faults
}

func revokedSentence(s CertificateStatus) string {
	return "the certificate " + describe(s.Certificate) + " was revoked on " + date(s.RevokedAt) + reasonText(s.Reason) + ", says " + s.Source
}

// VerifyServer returns a VerifyConnection for a client that calls the server by this name. The tls.Config sets
// InsecureSkipVerify, so that this check alone decides and tells every reason. Errors are those of [Checker.Check].
func (c *Checker) VerifyServer(name string) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		_, err := c.Check(context.Background(), state.PeerCertificates, Usage{Server: true, Name: name, Staple: state.OCSPResponse})
		return err
	}
}

// VerifyClient returns a VerifyConnection for a server whose tls.Config asks for client certificates with
// RequestClientCert or RequireAnyClientCert. A connection without a certificate passes. Errors are those of [Checker.Check].
func (c *Checker) VerifyClient() func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return nil
		}
		_, err := c.Check(context.Background(), state.PeerCertificates, ForClient())
		return err
	}
}
