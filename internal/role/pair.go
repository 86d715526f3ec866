package role

import (
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"postern/catalog"
)

// pairEvery is how often the files of a certificate are looked at: a renewed one is shown without a restart.
const pairEvery = 2 * time.Second

// pair is a certificate of the company with its key, in two files that somebody else renews.
type pair struct {
	certificate, key string
	seen             [2]os.FileInfo
	current, before  atomic.Pointer[tls.Certificate]
	stale            atomic.Pointer[string] // why what lies there now is not shown
}

// openPair reads the files. Its code is ConfigInvalid.
func openPair(certificate, key string) (*pair, error) {
	p := &pair{certificate: certificate, key: key}
	read, err := p.load()
	if err != nil {
		return nil, err
	}
	p.current.Store(&read)
	return p, nil
}

// load reads the files and remembers how they looked before.
func (p *pair) load() (tls.Certificate, error) {
	p.seen = p.look()
	return loadPair(p.certificate, p.key)
}

func (p *pair) look() (seen [2]os.FileInfo) {
	for i, path := range []string{p.certificate, p.key} {
		seen[i], _ = os.Stat(path) // reading says what is wrong
	}
	return seen
}

// get is for tls.Config.GetCertificate.
func (p *pair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.current.Load(), nil }

// leaves are the certificates that open connections may have seen, DER.
func (p *pair) leaves() [][]byte {
	all := [][]byte{p.current.Load().Certificate[0]}
	if before := p.before.Load(); before != nil {
		all = append(all, before.Certificate[0])
	}
	return all
}

// watch takes renewed files until ctx ends. What cannot be used, such as a new certificate whose key has not come yet, leaves the old one in use, and health
// says so. taken hears of each that is shown from now on; it may be nil.
func (p *pair) watch(ctx context.Context, log *slog.Logger, taken func(tls.Certificate) error) error {
	return every(ctx, pairEvery, func() { p.refresh(log, taken) })
}

// refresh reads the files when one has changed, and again and again while they cannot be used.
func (p *pair) refresh(log *slog.Logger, taken func(tls.Certificate) error) {
	if now := p.look(); p.stale.Load() == nil && unchanged(now[0], p.seen[0]) && unchanged(now[1], p.seen[1]) {
		return
	}
	read, err := p.load()
	if err == nil && taken != nil {
		err = taken(read)
	}
	if err != nil {
		reason := catalog.Public(err)
		if old := p.stale.Swap(&reason); old == nil || *old != reason {
			log.Error("the certificate is not taken, the one before stays in use", "certificate", p.certificate, "code", catalog.CodeOf(err), "error", err)
		}
		return
	}
	p.before.Store(p.current.Swap(&read))
	p.stale.Store(nil)
	log.Info("certificate taken", "certificate", p.certificate, "until", read.Leaf.NotAfter)
}

// health adds what a person should know of the files; a nil pair has nothing to say.
func (p *pair) health(h *Health) {
	if p == nil {
		return
	}
	if reason := p.stale.Load(); reason != nil {
		h.problem("the certificate %s is not taken, the one before stays in use: %s", p.certificate, *reason)
	}
}

// unchanged reports whether a file is the one that was seen.
func unchanged(now, seen os.FileInfo) bool {
	return now != nil && seen != nil && os.SameFile(now, seen) && now.ModTime().Equal(seen.ModTime()) && now.Size() == seen.Size()
}
