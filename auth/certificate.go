package auth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"postern/catalog"
	"postern/proof"
	"postern/revocation"
	"postern/token"
)

// ClientCertificates judges what a device showed as its certificate, leaf first;
// [Certificates] is the one of Postern. Whether the device holds the key is for the
// caller to know: from the TLS handshake, or from a proof.
type ClientCertificates interface {
	Check(ctx context.Context, chain []*x509.Certificate) (proof.Proof, error)
}

// CertificatesConfig is what Certificates needs. Fields without a default are required.
type CertificatesConfig struct {
	// Authorities gives the company's authorities of this moment; nil, or one without
	// roots, means that none were uploaded. It is asked at every check, so it answers
	// from memory, and what it gave is never changed afterwards.
	Authorities func() *token.Authorities
	// Revocation is asked about the certificate's key at every check; nil: no key is
	// ever blocked.
	Revocation Revocation
	Now        func() time.Time // default time.Now
	Client     *http.Client     // fetches lists and answers; default that of package revocation
	Log        *slog.Logger     // default: nothing is logged
}

// Certificates judges client certificates under the company's authorities, by package
// revocation. It is safe for concurrent use.
//
// A certificate that was found good is not judged anew for goodFor, so that the many
// requests of one connection cost one chain; the time is shorter when what was said about
// its revocation ends sooner. Other authorities, or a list that says something new, end
// that at once. Blocked keys are asked for every time.
//
// A chain that does not hold is not judged anew for refusedFor either: a stranger may show
// one that costs much, and then ask a thousand times on one connection. One who shows
// another such chain each time learns after a few only that it is refused: what is wrong
// with it would take a hundred signatures to say, by keys that the stranger chose.
type Certificates struct {
	config  CertificatesConfig
	quiet   *rate.Sometimes
	explain *rate.Limiter  // of why a chain that no authority stands behind is refused
	retired sync.WaitGroup // judges that are being closed

	mu      sync.Mutex
	current *judge // nil before the first check
	closed  bool
}

const (
	goodFor    = 30 * time.Second // without a new judgement
	doubtful   = 10 * time.Second // the same when nobody could say whether it is revoked, and the policy is prefer
	maxGood    = 10_000           // certificates remembered
	refusedFor = 10 * time.Second // a chain that does not hold
	maxRefused = 1_000            // of them remembered
	lookAgain  = 10 * time.Second // between two looks of Run at what is due
	swapsTried = 3                // changes of the authorities that one check lives through

	explained      = 1  // a second, of the chains that no authority stands behind
	explainedBurst = 20 // of them at once
	maxShown       = 10 // certificates of a chain; package revocation reads no more
)

// NewCertificates returns Certificates. It fetches nothing before Check, Refresh or Run.
func NewCertificates(config CertificatesConfig) *Certificates {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	return &Certificates{config: config, quiet: &rate.Sometimes{First: 10, Interval: 10 * time.Second}, explain: rate.NewLimiter(explained, explainedBurst)}
}

// Check returns what a chain proves: method PKICertificate, the key of its leaf, the leaf
// itself. Address is left to the caller. Codes: GatewayCertificateRoots when no authority
// was uploaded, ClientCertificateNotTrusted for a certificate that the site issued to one
// of its roles, for a key that devices cannot have, and for a chain that no authority
// stands behind when many such come, the codes of
// [revocation.Checker.Check], and that of Config.Revocation.
func (c *Certificates) Check(ctx context.Context, chain []*x509.Certificate) (proof.Proof, error) {
	if len(chain) > 0 && chain[0] != nil && isRole(chain[0]) {
		return proof.Proof{}, catalog.Errorf(catalog.ClientCertificateNotTrusted, "the certificate is that of a role of the site, not of a device")
	}
	p, err := c.judge(ctx, chain)
	if err != nil {
		return proof.Proof{}, err
	}
	if c.config.Revocation != nil {
		if err := c.config.Revocation.Revoked(token.Claims{Key: p.Key}); err != nil {
			return proof.Proof{}, err
		}
	}
	p.At = c.config.Now()
	return p, nil
}

// isRole reports whether a certificate names a role of a site, of whichever.
func isRole(leaf *x509.Certificate) bool {
	for _, uri := range leaf.URIs {
		if _, _, _, ok := token.ParseRoleURI(uri); ok || uri.Scheme == "postern" {
			return true
		}
	}
	return false
}

// judge asks the judge in force; a verdict that was reached under authorities that are in
// force no longer is none.
func (c *Certificates) judge(ctx context.Context, chain []*x509.Certificate) (p proof.Proof, err error) {
	for range swapsTried {
		j := c.enter()
		p, err = j.check(ctx, chain, c)
		j.users.Done()
		if c.inForce(j) {
			return p, err
		}
	}
	return proof.Proof{}, catalog.Errorf(catalog.RevocationConfig, "the authorities changed %d times meanwhile; try again", swapsTried)
}

// enter returns the judge of the authorities in force, whose users the caller leaves.
func (c *Certificates) enter() *judge {
	authorities := c.config.Authorities()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && (c.current == nil || !c.current.of(authorities)) {
		c.retire(c.current)
		c.current = c.newJudge(authorities)
	}
	c.current.users.Add(1)
	return c.current
}

func (c *Certificates) inForce(j *judge) bool {
	authorities := c.config.Authorities()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed || c.current == j && j.of(authorities)
}

// retire closes a judge when its last user has left. The caller holds mu.
func (c *Certificates) retire(j *judge) {
	if j == nil || j.checker == nil {
		return
	}
	c.retired.Go(func() {
		j.users.Wait()
		j.checker.Close()
	})
}

// Close ends what is still fetched. After it, Check refuses everything.
func (c *Certificates) Close() {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		c.retire(c.current)
		c.current = &judge{err: catalog.Errorf(catalog.GatewayCertificateRoots, "the process stops")}
	}
	c.mu.Unlock()
	c.retired.Wait()
}

// Run keeps the revocation lists fresh until ctx ends, and then returns nil.
func (c *Certificates) Run(ctx context.Context) error {
	for {
		c.Refresh(ctx)
		timer := time.NewTimer(lookAgain)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// Refresh fetches the lists that are due. One that says something new is in force for
// every certificate at once.
func (c *Certificates) Refresh(ctx context.Context) {
	j := c.enter()
	defer j.users.Done()
	if j.checker == nil {
		return
	}
	j.checker.Refresh(ctx)
	if said := c.sourcesOf(j); j.learn(said) {
		for _, source := range said {
			if source.Code != "" {
				c.config.Log.Warn("revocation source", "address", source.Address, "code", source.Code, "cause", source.LastError)
			}
		}
	}
}

// CertificatesStatus is the health of the judgement of client certificates.
type CertificatesStatus struct {
	Uploaded      bool // authorities are there
	Roots         int
	Intermediates int
	Policy        string
	Sources       []revocation.SourceStatus
	Err           error // why no certificate can be judged, a *catalog.Error; nil: they are, or none were uploaded
}

// Status returns the health.
func (c *Certificates) Status() CertificatesStatus {
	j := c.enter()
	defer j.users.Done()
	if j.authorities == nil {
		return CertificatesStatus{}
	}
	return CertificatesStatus{
		Uploaded: true, Roots: len(j.authorities.Roots), Intermediates: len(j.authorities.Intermediates), Policy: j.authorities.Revocation,
		Sources: c.sourcesOf(j), Err: j.err,
	}
}

func (c *Certificates) sourcesOf(j *judge) []revocation.SourceStatus {
	if j.checker == nil {
		return nil
	}
	return j.checker.Status()
}

// judge is a checker for one set of authorities, and what it found good.
type judge struct {
	authorities *token.Authorities // nil: none were uploaded
	company     []*x509.Certificate
	checker     *revocation.Checker
	err         error          // why there is no checker
	users       sync.WaitGroup // checks under way; added to under Certificates.mu

	mu    sync.Mutex
	good  map[[sha256.Size]byte]found // by what was shown
	bad   map[[sha256.Size]byte]refused
	epoch int // of said: what was found before is not kept after
	said  []revocation.SourceStatus
}

type found struct {
	proof proof.Proof
	until time.Time
}

type refused struct {
	err   error // without the certificates that it was about
	until time.Time
}

func (c *Certificates) newJudge(authorities *token.Authorities) *judge {
	if authorities == nil || len(authorities.Roots) == 0 {
		return &judge{err: catalog.Errorf(catalog.GatewayCertificateRoots, "upload them with `postern authority add`")}
	}
	j := &judge{authorities: authorities, good: map[[sha256.Size]byte]found{}, bad: map[[sha256.Size]byte]refused{}}
	if j.company, j.checker, j.err = c.newChecker(authorities); j.err != nil {
		c.config.Log.Error("the company's authorities cannot be used", "code", catalog.CodeOf(j.err), "cause", j.err)
		return j
	}
	c.config.Log.Info("the company's authorities are in force", "roots", len(authorities.Roots), "intermediates", len(authorities.Intermediates),
		"revocation", authorities.Revocation, "sources", len(authorities.Sources))
	return j
}

func (c *Certificates) newChecker(authorities *token.Authorities) ([]*x509.Certificate, *revocation.Checker, error) {
	roots, err := parseAll(authorities.Roots)
	if err != nil {
		return nil, nil, err
	}
	intermediates, err := parseAll(authorities.Intermediates)
	if err != nil {
		return nil, nil, err
	}
	checker, err := revocation.New(revocation.Config{
		Roots: roots, Intermediates: intermediates, Policy: revocation.Policy(authorities.Revocation), Sources: authorities.Sources,
		Client: c.config.Client, Now: c.config.Now,
	})
	return slices.Concat(roots, intermediates), checker, err
}

// parseAll reads certificates. One that cannot be read spoils them all: a set that is half
// understood is not used.
func parseAll(ders [][]byte) ([]*x509.Certificate, error) {
	parsed := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		var err error
		if parsed[i], err = revocation.ParseCertificate(der); err != nil {
			return nil, catalog.Wrap(catalog.RevocationConfig, err, "authority %d of %d cannot be read", i+1, len(ders))
		}
	}
	return parsed, nil
}

// of reports whether the judge is that of these authorities. The caller holds
// Certificates.mu.
func (j *judge) of(authorities *token.Authorities) bool {
	if authorities != nil && len(authorities.Roots) == 0 {
		authorities = nil
	}
	switch {
	case authorities == j.authorities:
		return true
	case authorities == nil || j.authorities == nil:
		return false
	}
	return authorities.Revocation == j.authorities.Revocation && slices.Equal(authorities.Sources, j.authorities.Sources) &&
		slices.EqualFunc(authorities.Roots, j.authorities.Roots, bytes.Equal) &&
		slices.EqualFunc(authorities.Intermediates, j.authorities.Intermediates, bytes.Equal)
}

func (j *judge) check(ctx context.Context, chain []*x509.Certificate, c *Certificates) (proof.Proof, error) {
	if j.checker == nil {
		return proof.Proof{}, j.err
	}
	now := c.config.Now()
	sum := sumOf(chain)
	p, epoch, ok := j.remembered(sum, now)
	if ok {
		return p, nil
	}
	if err := j.refusedBefore(sum, now); err != nil {
		return proof.Proof{}, err
	}
	if !j.vouched(chain) && !c.explain.AllowN(now, 1) {
		return proof.Proof{}, catalog.Errorf(catalog.ClientCertificateNotTrusted, "no authority of the company stands behind it; many such certificates come, and what is wrong with this one was not looked for")
	}
	verdict, err := j.checker.Check(ctx, chain, revocation.ForClient())
	if err != nil {
		if len(verdict.Chain) == 0 {
			j.refuse(sum, refused{catalog.Errorf(verdict.Code, "%s", verdict.Sentence), now.Add(refusedFor)})
		}
		return proof.Proof{}, err
	}
	leaf := chain[0]
	key, err := proof.Thumbprint(leaf.PublicKey)
	if err != nil {
		return proof.Proof{}, catalog.Wrap(catalog.ClientCertificateNotTrusted, err, "the certificate's key is of a kind that devices do not use")
	}
	p = proof.Proof{Method: proof.PKICertificate, Key: key, Certificate: leaf.Raw}
	if verdict.Warning() {
		c.quiet.Do(func() {
			c.config.Log.Warn("client certificate let through by the policy prefer", "code", verdict.Code, "cause", verdict.Sentence, "subject", leaf.Subject.String())
		})
	}
	j.remember(sum, epoch, found{p, untilWhen(verdict, now)})
	return p, nil
}

// vouched reports whether an authority of the company has signed the leaf, be it by way of
// certificates that were shown. Without that no chain holds. It goes from the authorities
// down and uses the keys of those alone that they vouch for, so that it costs little
// whatever a stranger shows.
func (j *judge) vouched(chain []*x509.Certificate) bool {
	if len(chain) == 0 || len(chain) > maxShown || slices.Contains(chain, nil) {
		return true // which is refused without looking further
	}
	signers, waiting := slices.Clone(j.company), slices.Clone(chain)
	for at := 0; at < len(signers); at++ {
		signer := signers[at]
		if signer.Equal(chain[0]) {
			return true
		}
		waiting = slices.DeleteFunc(waiting, func(c *x509.Certificate) bool {
			if !bytes.Equal(c.RawIssuer, signer.RawSubject) || signer.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) != nil {
				return false
			}
			signers = append(signers, c)
			return true
		})
	}
	return slices.Contains(signers, chain[0])
}

// sumOf names what was shown, as a whole: whether a chain is found good must not depend on
// what else the same device has shown before.
func sumOf(chain []*x509.Certificate) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, certificate := range chain {
		if certificate != nil {
			one := sha256.Sum256(certificate.Raw)
			h.Write(one[:])
		}
	}
	h.Sum(sum[:0])
	return sum
}

// untilWhen is how long a verdict stands without being reached anew.
func untilWhen(verdict revocation.Verdict, now time.Time) time.Time {
	until := now.Add(goodFor)
	if verdict.Warning() {
		until = now.Add(doubtful)
	}
	sooner := func(at time.Time) {
		if !at.IsZero() && at.Before(until) {
			until = at
		}
	}
	for _, certificate := range verdict.Chain {
		sooner(certificate.NotAfter)
	}
	for _, status := range verdict.Certificates {
		sooner(status.NextUpdate)
	}
	return until
}

func (j *judge) remembered(sum [sha256.Size]byte, now time.Time) (p proof.Proof, epoch int, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f, ok := j.good[sum]
	return f.proof, j.epoch, ok && now.Before(f.until)
}

func (j *judge) refusedBefore(sum [sha256.Size]byte, now time.Time) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if r, ok := j.bad[sum]; ok && now.Before(r.until) && !now.Before(r.until.Add(-refusedFor)) {
		return r.err
	}
	return nil
}

func (j *judge) refuse(sum [sha256.Size]byte, r refused) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.bad) >= maxRefused {
		clear(j.bad)
	}
	j.bad[sum] = r
}

// remember keeps what was found good, unless a list has said something new meanwhile.
func (j *judge) remember(sum [sha256.Size]byte, epoch int, f found) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if epoch != j.epoch {
		return
	}
	if len(j.good) >= maxGood {
		clear(j.good)
	}
	j.good[sum] = f
}

// learn compares what the sources say with what they said; when it is something new,
// nothing of what was found before stands. It reports whether it was.
func (j *judge) learn(said []revocation.SourceStatus) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if slices.EqualFunc(j.said, said, sameWord) {
		return false
	}
	j.said = said
	j.epoch++
	clear(j.good)
	return true
}

func sameWord(a, b revocation.SourceStatus) bool {
	return a.Address == b.Address && a.Issuer == b.Issuer && a.Entries == b.Entries && a.Code == b.Code && a.Stale == b.Stale &&
		a.ThisUpdate.Equal(b.ThisUpdate) && a.NextUpdate.Equal(b.NextUpdate)
}
