package gateway

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"

	"postern/auth"
	"postern/catalog"
	"postern/proof"
	"postern/token"
)

// reports is what the gateway has to tell the site beside its epoch, until the site has
// taken it.
type reports struct {
	heard chan struct{} // told that there is something that should not wait
	known *rate.Limiter // of refusals whose request proved a key
	other *rate.Limiter // of those that anybody can cause

	mu       sync.Mutex
	keys     map[token.UnknownKey]bool
	refusals map[refusedRequest]token.Refusal
	told     time.Time // when something was last sent
}

// refusedRequest is what makes refusals the same.
type refusedRequest struct {
	code     catalog.Code
	endpoint string
	key      proof.KeyThumbprint
	address  string // where no key was proved
}

func sameAs(r token.Refusal) refusedRequest {
	what := refusedRequest{r.Code, r.Endpoint, r.Key, ""}
	if r.Key == "" {
		what.address = r.Address
	}
	return what
}

// How many refusals are told. A stranger's are few, so that they push nothing out of what
// the site remembers; CMGService.log counts all of them.
const (
	refusalsEvery      = time.Second
	otherRefusalsEvery = 15 * time.Second
	otherRefusals      = token.MaxRefusals / 4 // at once
)

func newReports() *reports {
	return &reports{
		heard: make(chan struct{}, 1),
		known: rate.NewLimiter(rate.Every(refusalsEvery), token.MaxRefusals),
		other: rate.NewLimiter(rate.Every(otherRefusalsEvery), otherRefusals),
		keys:  map[token.UnknownKey]bool{}, refusals: map[refusedRequest]token.Refusal{},
	}
}

// UnknownKey notes that a token named a key that its tenant does not have in the site
// state; it is made for the OnUnknownKey of package auth/entra. The site is told at once,
// but not more often than Limits.Reports. What does not fit is left out: it would be
// asked about again with the next such token.
func (g *Gateway) UnknownKey(tenant, keyID string) {
	if g.reports.addKey(token.UnknownKey{Tenant: tenant, KeyID: keyID}) {
		tell(g.reports.heard)
	}
}

func (r *reports) addKey(key token.UnknownKey) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !key.Fits() || r.keys[key] || len(r.keys) >= token.MaxUnknownKeys {
		return false
	}
	r.keys[key] = true
	return true
}

// refused notes what the gateway did not carry, or what did not come back, for the account
// that the site keeps of a device. Addresses that are in no row of the table, and proofs
// that only want for a nonce, are no news.
func (g *Gateway) refused(x *exchange) {
	code := catalog.CodeOf(x.err)
	if code == "" || x.route == nil || token.AsksNonce(x.err) {
		return
	}
	key := cmp.Or(x.proof.Key, auth.RefusedKey(x.err), x.shownKey())
	refusal := token.Refusal{
		At: g.now().UTC(), Times: 1, Code: code, Endpoint: string(x.path.Endpoint), Key: key, Address: x.address, TraceID: x.trace.ID, Detail: shorten(catalog.DetailOf(x.err)),
	}
	if g.reports.addRefusal(refusal) && key != "" {
		tell(g.reports.heard)
	}
}

// shownKey is the key of the certificate of the connection, which TLS has proved; "" when
// the route asks for none, or none was shown.
func (x *exchange) shownKey() proof.KeyThumbprint {
	if len(x.certificates) == 0 {
		return ""
	}
	key, err := proof.Thumbprint(x.certificates[0].PublicKey)
	if err != nil {
		return "" // of a kind that no device has
	}
	return key
}

func shorten(detail string) string {
	if len(detail) <= token.MaxRefusalDetail {
		return detail
	}
	end := token.MaxRefusalDetail
	for !utf8.RuneStart(detail[end]) {
		end--
	}
	return detail[:end]
}

// addRefusal reports whether the refusal is one that the site will hear of for the first time.
func (r *reports) addRefusal(refusal token.Refusal) bool {
	if !refusal.Fits() {
		return false
	}
	what, limit := sameAs(refusal), r.known
	if refusal.Key == "" {
		limit = r.other
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	before, again := r.refusals[what]
	if !again && (len(r.refusals) >= token.MaxRefusals || !limit.Allow()) {
		return false
	}
	refusal.Times += before.Times
	r.refusals[what] = refusal
	return !again
}

// wait is how long it is until the site may be told again.
func (r *reports) wait(floor time.Duration) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Until(r.told.Add(floor))
}

// pending puts what the site has not been told into an acknowledgement.
func (r *reports) pending(ack *token.Ack) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.keys)+len(r.refusals) > 0 {
		r.told = time.Now()
	}
	ack.UnknownKeys = slices.SortedFunc(maps.Keys(r.keys), func(a, b token.UnknownKey) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.KeyID, b.KeyID))
	})
	ack.Refusals = slices.SortedFunc(maps.Values(r.refusals), func(a, b token.Refusal) int { return a.At.Compare(b.At) })
}

// delivered forgets what the site took. What came again meanwhile stays, and is counted from there.
func (r *reports) delivered(ack token.Ack) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range ack.UnknownKeys {
		delete(r.keys, key)
	}
	for _, told := range ack.Refusals {
		what := sameAs(told)
		if now := r.refusals[what]; now.Times > told.Times {
			now.Times -= told.Times
			r.refusals[what] = now
		} else {
			delete(r.refusals, what)
		}
	}
}
