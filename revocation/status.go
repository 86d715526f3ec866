package revocation

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"postern/catalog"
)

// question is one certificate to be asked about.
type question struct {
	certificate, issuer *x509.Certificate
	chain               []*x509.Certificate // the verified chain, whose authorities may have signed lists
	staple              []byte
	now                 time.Time
}

func (q question) unknown(err error) CertificateStatus {
	fault := faultOf(err)
	return CertificateStatus{Certificate: q.certificate, State: StateUnknown, Code: fault.Code, Sentence: fault.Sentence, err: fault.err}
}

// status asks the stapled answer, responders and lists in turn. What counts is the first that is good or revoked; then a
// stale one; then the first reason why nobody knows.
func (c *Checker) status(ctx context.Context, q question) CertificateStatus {
	best := q.unknown(catalog.Errorf(catalog.RevocationSourceMissing, "nobody is known who could say whether %s, issued by %s, is revoked", describe(q.certificate), describe(q.issuer)))
	for _, ask := range []func(context.Context, question) CertificateStatus{c.askStaple, c.askResponders, c.askLists} {
		got := ask(ctx, q)
		if decided(got) {
			return got
		}
		if best.State == StateUnknown && (got.State != StateUnknown || best.Code == catalog.RevocationSourceMissing) {
			best = got
		}
	}
	return best
}

func decided(s CertificateStatus) bool {
	return s.State == StateRevoked || s.State == StateGood && !s.Stale
}

// addresses of a certificate that may be asked: at most four.
func (c *Checker) named(addresses []string) (usable []string) {
	if !c.config.FromCertificate {
		return nil
	}
	for _, address := range addresses {
		if _, err := parseAddress(address); err == nil && len(usable) < 4 {
			usable = append(usable, address)
		}
	}
	return usable
}

// askLists asks every list that may speak for the issuer: first those in memory, then those that must be fetched.
func (c *Checker) askLists(ctx context.Context, q question) CertificateStatus {
	named := c.named(q.certificate.CRLDistributionPoints)
	addresses := slices.Concat(c.listURLs, named)
	if len(addresses) == 0 {
		return q.unknown(noSource(q, len(q.certificate.CRLDistributionPoints) > 0 && c.config.FromCertificate))
	}
	var best CertificateStatus
	for _, wait := range []bool{false, true} {
		best = q.unknown(noSource(q, false))
		for _, address := range addresses {
			got := c.askList(ctx, address, q, wait)
			if got.State == StateRevoked {
				return got
			}
			best = better(best, got)
		}
		if decided(best) {
			break
		}
	}
	return best
}

func noSource(q question, foreignAddresses bool) error {
	if foreignAddresses {
		return catalog.Errorf(catalog.RevocationSourceMissing, "the certificate %s names no list at an http or https address", describe(q.certificate))
	}
	return catalog.Errorf(catalog.RevocationSourceMissing, "no list is known of %s, which issued %s", describe(q.issuer), describe(q.certificate))
}

// better keeps the more useful of two answers that are not revoked.
func better(a, b CertificateStatus) CertificateStatus {
	rank := func(s CertificateStatus) int {
		switch {
		case decided(s):
			return 3
		case s.State == StateGood:
			return 2
		case s.Code != catalog.RevocationSourceMissing:
			return 1
		}
		return 0
	}
	if rank(b) > rank(a) {
		return b
	}
	return a
}

// askList asks one list.
func (c *Checker) askList(ctx context.Context, address string, q question, wait bool) CertificateStatus {
	got := c.list(ctx, address, q, wait)
	if !got.held || !got.value.of(q.issuer) || !got.value.answersFor(q.certificate) {
		return q.unknown(c.whyNot(address, got, q))
	}
	l := got.value
	status := CertificateStatus{Certificate: q.certificate, State: StateGood, Source: address, ThisUpdate: l.thisUpdate, NextUpdate: l.nextUpdate}
	if e, found := l.find(q.certificate); found {
		status.State, status.Reason, status.RevokedAt = StateRevoked, int(e.reason), time.Unix(int64(e.seconds), 0).UTC()
		return status
	}
	if q.now.After(l.ends(c.config)) {
		fault := faultOf(catalog.Wrap(catalog.RevocationListDate, got.err, "the list %s was good until %s, and no newer one came", address, date(l.ends(c.config))))
		status.Stale, status.Code, status.Sentence, status.err = true, fault.Code, fault.Sentence, fault.err
	}
	return status
}

// whyNot says why a list does not answer.
func (c *Checker) whyNot(address string, got view[*list], q question) error {
	switch foreign, isForeign := errors.AsType[*foreignList](got.err); {
	case got.err != nil && !got.held && isForeign && !c.only(address) && !bytes.Equal(foreign.rawIssuer, q.issuer.RawSubject):
		return noSource(q, false) // one of several configured lists, of another authority
	case got.err != nil && !got.held:
		return got.err
	case !got.held:
		return catalog.Errorf(catalog.RevocationUnreachable, "%s was not fetched yet", address)
	case !got.value.of(q.issuer) && c.only(address):
		return catalog.Errorf(catalog.RevocationListForeign, "the list %s is from %.120q, and the certificate %s is from %s", address, got.value.issuer, describe(q.certificate), describe(q.issuer))
	}
	return noSource(q, false)
}

// only says whether an address is the only configured list, or one that a certificate named: then another authority's list
// there is a mistake to be told.
func (c *Checker) only(address string) bool {
	return len(c.listURLs) == 1 || !slices.Contains(c.listURLs, address)
}

// list returns what is known of the list at an address, fetching it when that is due.
func (c *Checker) list(ctx context.Context, address string, q question, wait bool) view[*list] {
	cell := c.lists.cell(address, q.now)
	return cell.ask(ctx, plan[*list]{
		due: func(v view[*list]) bool { return c.listDue(cell, v, q.issuer) },
		usable: func(v view[*list]) bool {
			return v.held && v.value.of(q.issuer) && !q.now.After(v.value.ends(c.config))
		},
		load:  func(v view[*list]) (*list, error) { return c.loadList(address, v, q.chain) },
		begin: c.begin,
		now:   c.config.Now,
		wait:  wait,
	})
}

// begin runs a load that goes on when the check that wanted it is over.
func (c *Checker) begin(run func()) { c.fetches.Go(run) }

// listDue says whether a list shall be fetched: it was not yet, it is about to end, it is old, or somebody became known who
// may have signed it. A source that failed rests first. The cell is held by its caller.
func (c *Checker) listDue(cell *cell[*list], v view[*list], issuer *x509.Certificate) bool {
	now := c.config.Now()
	if foreign, ok := errors.AsType[*foreignList](v.err); ok && issuer != nil && foreign.worth(issuer) {
		return true
	}
	if c.rests(cell.attempted, now) {
		return false
	}
	return !v.held || now.After(c.renewal(v))
}

// rests says whether the last attempt is so recent that there is no other yet. A clock that was set back ends the rest.
func (c *Checker) rests(attempted, now time.Time) bool {
	since := now.Sub(attempted)
	return !attempted.IsZero() && since >= 0 && since < c.config.MinAge
}

// renewal is when a list is fetched again: nine tenths of its way to the next update, and within the bounds of age.
func (c *Checker) renewal(v view[*list]) time.Time {
	latest := v.fetched.Add(c.config.MaxAge)
	if v.value.nextUpdate.IsZero() {
		return latest
	}
	early := v.value.nextUpdate.Add(-v.value.nextUpdate.Sub(v.value.thisUpdate) / 10)
	if early.After(latest) {
		return latest
	}
	return early
}

// loadList fetches a list, checks who signed it and its dates, and never puts an older one in the place of a newer.
func (c *Checker) loadList(address string, before view[*list], chain []*x509.Certificate) (*list, error) {
	request, err := http.NewRequestWithContext(c.context, http.MethodGet, address, nil)
	if err != nil {
		return nil, catalog.Wrap(catalog.RevocationUnreachable, err, "%s cannot be asked", address)
	}
	if before.held {
		setIf(request.Header, "If-None-Match", before.value.etag)
		setIf(request.Header, "If-Modified-Since", before.value.modified)
	}
	got, err := c.fetcherFor(address).do(c.context, request, c.config.MaxBytes)
	if err != nil {
		return nil, err
	}
	if got.unchanged && before.held {
		return before.value, nil
	}
	read, err := readList(got.body, c.config.MaxEntries)
	if err != nil {
		return nil, at(address, err)
	}
	l, err := read.signedBy(c.signers(before, chain))
	if err != nil {
		return nil, at(address, err)
	}
	if err := c.acceptDates(address, l, before); err != nil {
		return nil, err
	}
	l.etag, l.modified = got.etag, got.modified
	c.lists.shrink(4*c.config.MaxEntries-len(l.entries), address, func(l *list) int { return len(l.entries) })
	return l, nil
}

// acceptDates refuses a list from the future and one that is older than what is held.
func (c *Checker) acceptDates(address string, l *list, before view[*list]) error {
	now := c.config.Now()
	if l.thisUpdate.After(now.Add(c.config.Leeway)) {
		return catalog.Errorf(catalog.RevocationListDate, "the list %s begins on %s, it is now %s", address, date(l.thisUpdate), date(now))
	}
	if before.held && l.olderThan(before.value) {
		return catalog.Errorf(catalog.RevocationListDate, "the list %s of %s came in place of the newer one of %s", address, date(l.thisUpdate), date(before.value.thisUpdate))
	}
	return nil
}

// at puts the address before what is wrong with the list.
func at(address string, err error) error {
	if e, ok := asCatalog(err); ok {
		return catalog.Wrap(e.Code, e.Err, "%s: %s", address, e.Detail)
	}
	return fmt.Errorf("%s: %w", address, err)
}

func setIf(header http.Header, name, value string) {
	if value != "" {
		header.Set(name, value)
	}
}

// fetcherFor returns the fetcher that may go to an address: only those that are configured may be anywhere.
func (c *Checker) fetcherFor(address string) *fetcher {
	if slices.Contains(c.listURLs, address) || slices.Contains(c.responders, address) {
		return c.fetch
	}
	return c.guarded
}

// signers are the authorities that may have signed a list: those that are trusted, those of a chain that holds, and whoever
// signed the last one.
func (c *Checker) signers(before view[*list], chain []*x509.Certificate) []*x509.Certificate {
	signers := slices.Concat(c.config.Roots, c.config.Intermediates)
	if len(chain) > 1 {
		signers = append(signers, chain[1:]...)
	}
	if before.held && before.value.signer != nil {
		signers = append(signers, before.value.signer)
	}
	if foreign, ok := errors.AsType[*foreignList](before.err); ok {
		signers = append(signers, foreign.tried...)
	}
	slices.SortFunc(signers, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	return slices.CompactFunc(signers, (*x509.Certificate).Equal)
}
