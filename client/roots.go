package client

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

// formerRoot is a site root that was replaced by another one.
type formerRoot struct {
	RootKey string    `json:"root_key"`
	Until   time.Time `json:"until,omitzero"` // certificates under it are good until then; zero: no more
}

// rootsPath is where gateways and management points tell how the site root was replaced.
const rootsPath = "/roots"

// trusts reports whether certificates under a root are good: the root that is known, and
// those from which the site has led there, for a while.
func (n anchor) trusts(pin string, now time.Time) bool {
	if pin == "" || pin == n.RootKey {
		return pin != ""
	}
	for _, f := range n.Former {
		if f.RootKey == pin {
			return now.Before(f.Until)
		}
	}
	return false
}

// knew reports whether the site has led from another anchor to this one.
func (n anchor) knew(other anchor) bool {
	for _, f := range n.Former {
		if other.RootKey == f.RootKey && other.CA == n.CA {
			return true
		}
	}
	return false
}

// led returns the anchor to which links lead; moved says that it is another.
func (n anchor) led(links []string) (next anchor, moved bool, err error) {
	roots, err := token.FollowRoots(n.RootKey, links)
	if err != nil || len(roots) < 2 {
		return n, false, err
	}
	next = n
	next.Former = append([]formerRoot{}, n.Former...)
	for _, root := range roots[:len(roots)-1] {
		former := formerRoot{RootKey: root.Pin}
		if !root.Compromised {
			former.Until = root.Retired.Add(token.RootOverlap)
		}
		next.Former = append(next.Former, former)
	}
	next.RootKey = roots[len(roots)-1].Pin
	return next, true, nil
}

// otherRoot reports whether a server was refused because it, or the signer of its answer,
// is under another root than those that are known.
func otherRoot(err error) bool {
	e, ok := errors.AsType[*catalog.Error](err)
	if !ok {
		return false
	}
	return e.Code == catalog.ClientServerRoot || e.Code == catalog.ClientReplyUnsigned && catalog.CodeOf(e.Err) == catalog.ClientServerRoot
}

// followRoots learns how the site root was replaced, after a server was refused for its
// root. It returns nil when the account holds, so that the server may be judged again: the
// device trusts another root now, perhaps by another request that met it first. Otherwise
// it returns refused itself, or why the account was not believed.
func (a *Agent) followRoots(ctx context.Context, c *conversation, refused error) error {
	known := a.current().Anchor.RootKey
	if known == "" || !otherRoot(refused) {
		return refused
	}
	_, err, _ := a.renewals.Do("roots "+c.route.Scheme+c.route.Host, func() (any, error) { return nil, a.learnRoots(ctx, c) })
	switch {
	case err == nil || a.current().Anchor.RootKey != known:
		return nil
	case errors.Is(err, errNoAccount) || ctx.Err() != nil:
		return refused
	}
	return catalog.Wrap(catalog.ClientRootRefused, refused, "%s; asked how the root was replaced: %s", plain(refused), plain(err))
}

// errNoAccount says that a server gave no account of site roots, so that there is nothing to
// say against it.
var errNoAccount = errors.New("no account of site roots")

// learnRoots asks, and keeps the root to which the answer leads.
func (a *Agent) learnRoots(ctx context.Context, c *conversation) error {
	links, err := a.askRoots(ctx, c.route)
	if err != nil || len(links) == 0 {
		return errors.Join(errNoAccount, err)
	}
	before := a.current().Anchor
	next, moved, err := before.led(links)
	if err != nil || !moved {
		return err
	}
	err = a.save(func(r *record) {
		if r.Anchor.same(before) { // another process may have been led further
			r.Anchor = next
		}
	})
	if err != nil {
		return err
	}
	a.logs.location.Infof("The site root was replaced. %s is trusted now: the root that was known has signed for it.", next.RootKey)
	a.log.InfoContext(ctx, "led to another site root", "from", before.RootKey, "to", next.RootKey, "host", c.route.Host)
	return nil
}

// askRoots asks over a connection that proves nothing. Nothing of the device is sent on it:
// no token, no certificate, no name. What comes back proves itself.
func (a *Agent) askRoots(ctx context.Context, r route) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url(ccm.EndpointState, rootsPath), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", "")
	client := newHTTPClient(a.config, &tls.Config{ServerName: hostName(r.Host), MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}) // on purpose: see above
	defer client.CloseIdleConnections()
	response, err := client.Do(request)
	if err != nil {
		return nil, connectionError(err, a.config.Now())
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, token.MaxRoots+1))
	switch {
	case err != nil:
		return nil, catalog.Wrap(catalog.ClientConnectionLost, err, "the answer ended early")
	case response.StatusCode != http.StatusOK:
		return nil, catalog.Errorf(catalog.RootLinkMalformed, "the answer has status %d", response.StatusCode)
	}
	return token.ParseRoots(body)
}
