package client

import (
	"crypto/x509"
	"net/http"
	"sync"
	"time"

	"postern/catalog"
	"postern/token"
)

// maxNonce bounds a server's nonce; those of a site have 22 characters.
const maxNonce = 256

// nonces keeps the newest nonce of the site, while the device's clock is wrong: it then stands in a proof for the time (RFC 9449 8).
type nonces struct {
	mu     sync.Mutex
	newest string
}

func (n *nonces) get() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.newest
}

// demanded takes the nonce of a refusal that asks for one, and reports whether there is another than was sent.
func (n *nonces) demanded(nonce string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !nonceForm(nonce) || nonce == n.newest {
		return false
	}
	n.newest = nonce
	return true
}

// heard takes a newer nonce once one is in use, and drops it when the device's own clock is right again.
func (n *nonces) heard(nonce string, right bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.newest == "":
	case right:
		n.newest = ""
	case nonceForm(nonce):
		n.newest = nonce
	}
}

// nonceForm is NQCHAR of RFC 6749, as RFC 9449 8.1 has it.
func nonceForm(nonce string) bool {
	if nonce == "" || len(nonce) > maxNonce {
		return false
	}
	for i := range len(nonce) {
		if c := nonce[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// nonceCodes are the refusals that ask for a nonce.
func nonceCodes() []catalog.Code {
	return []catalog.Code{catalog.ProofNonceNeeded, catalog.ProofNonceUnknown}
}

// hearNonce looks for a nonce in an answer of a server that was recognised, and that does not ask for one.
func (a *Agent) hearNonce(c *conversation, response *http.Response, date time.Time) {
	if !c.route.secure() {
		return
	}
	right := !date.IsZero() && date.Sub(a.config.Now()).Abs() < token.Leeway/2
	a.nonces.heard(response.Header.Get("DPoP-Nonce"), right)
}

// notBefore is the device's time, or, when that is before the certificate of a server under the site root began, the time when it began: the site root has
// signed it, so it is later than the device's clock says.
func notBefore(chain []*x509.Certificate, now time.Time) time.Time {
	for _, certificate := range chain {
		if certificate.NotBefore.After(now) {
			now = certificate.NotBefore
		}
	}
	return now
}
