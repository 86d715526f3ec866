package entra

import (
	"cmp"
	"context"
	"errors"
	"net/url"
	"time"

	"postern/catalog"
)

// provider is one acquisition at a provider, in its dialect. What fails has been seen by
// the exchange below it; the errors themselves are never shown.
type provider interface {
	// device asks with the certificate's key (RFC 7523).
	device(ctx context.Context, c credential) (entry, error)
	// again asks with what an earlier sign-in left; errNobody when there is none.
	again(ctx context.Context, old entry) (entry, error)
	// signIn begins a sign-in on another screen (RFC 8628); wait ends with the token.
	signIn(ctx context.Context) (Prompt, func(ctx context.Context) (entry, error), error)
}

var errNobody = errors.New("nobody has signed in before")

// open returns the provider with the exchange that watches it.
func (b *Broker) open(w Want) (provider, *exchange, string) {
	x := &exchange{now: b.config.Now}
	client := x.client(b.http)
	host := w.Authority
	if u, err := url.Parse(w.Authority); err == nil {
		host = u.Host
	}
	if b.config.Join.Provider == DialectOpenID {
		return &openID{want: w, http: client, now: b.config.Now}, x, host
	}
	return &microsoft{want: w, http: client, store: b.store}, x, host
}

// acquireDevice gets the device's own token. Where the certificate is the system's, its
// broker is asked.
func (b *Broker) acquireDevice(ctx context.Context, w Want) (entry, error) {
	j := b.config.Join
	if !j.Joined() {
		return entry{}, catalog.Errorf(catalog.EntraNotJoined, "join type %s: the device is not the tenant's", j.JoinType)
	}
	if broker := system(); broker != nil && j.WorkplaceJoin.Certificate == "" {
		t, err := broker.Token(ctx, w)
		return entry{Token: string(t.Raw), Account: t.Account, Expires: t.Expires}, err
	}
	c, err := j.credential(b.config.Now())
	if err != nil {
		return entry{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, acquireTime)
	defer cancel()
	p, x, host := b.open(w)
	got, err := p.device(bounded, c)
	if err != nil {
		return entry{}, x.explain(ctx, err, host)
	}
	got.Account = j.DeviceID
	return got, nil
}

// acquireUser gets a user's token: silently, or by asking.
func (b *Broker) acquireUser(ctx context.Context, w Want, old entry) (entry, error) {
	p, x, host := b.open(w)
	silent, cancel := context.WithTimeout(ctx, acquireTime)
	defer cancel()
	got, err := p.again(silent, old)
	if err == nil {
		return got, nil
	}
	why := "nobody has signed in before"
	if !errors.Is(err, errNobody) {
		err = x.explain(ctx, err, host)
		if ctx.Err() != nil || catalog.CodeOf(err) == catalog.EntraUnreachable {
			return entry{}, err
		}
		why = plain(err)
	}
	if b.config.SignIn == nil {
		return entry{}, catalog.Errorf(catalog.EntraSignInNeeded, "%s, and nobody can be asked here", why)
	}
	return b.ask(ctx, p, x, host)
}

// ask has a person sign in.
func (b *Broker) ask(ctx context.Context, p provider, x *exchange, host string) (entry, error) {
	begin, cancel := context.WithTimeout(ctx, acquireTime)
	defer cancel()
	prompt, wait, err := p.signIn(begin)
	if err != nil {
		return entry{}, x.explain(ctx, err, host)
	}
	if checkPage(prompt.Address) != nil || prompt.Code == "" || len(prompt.Code) > 40 || !plainText(prompt.Code) {
		return entry{}, catalog.Errorf(catalog.EntraUnreachable, "%s names no https page, or no code, for signing in", host)
	}
	b.config.SignIn(prompt)
	waiting, stop := context.WithTimeout(ctx, min(signInTime, cmp.Or(max(0, time.Until(prompt.Expires)), signInTime)))
	defer stop()
	got, err := wait(waiting)
	switch {
	case err == nil:
		return got, nil
	case ctx.Err() == nil && (waiting.Err() != nil || x.pending()):
		return entry{}, catalog.Errorf(catalog.EntraSignInNeeded, "the code was not entered in time")
	}
	return entry{}, x.explain(ctx, err, host)
}

// checkPage accepts what a person may be sent to: https, and nothing that a terminal would
// act upon.
func checkPage(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || !plainText(text) {
		return errors.New("it is no https page")
	}
	return nil
}

// pending reports whether the last answer was that nobody has entered the code yet.
func (x *exchange) pending() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.refusal != nil && (x.refusal.Name == "authorization_pending" || x.refusal.Name == "slow_down")
}
