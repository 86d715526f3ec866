package gateway

import (
	"net/http"
	"time"

	"golang.org/x/time/rate"

	"postern/auth"
	"postern/catalog"
	"postern/proof"
)

// returns is the way in for devices whose tokens have all ended: they show a proof of their key and nothing else (users-and-threats.md C73). Whether the
// key is registered only the management point knows, so few of them are let through, and they have a replay memory of their own: a flood of new keys
// reaches neither the management point nor the devices that have tokens.
type returns struct {
	bearer  *auth.Bearer
	address *limiter
	all     *rate.Limiter
}

// returnMemory is how many proofs of returning devices are remembered: what the limits let through within a proof's life, and the rest is refused.
const returnMemory = 50_000

func (g *Gateway) newReturns() *returns {
	return &returns{
		bearer: auth.NewBearer(auth.BearerConfig{
			Keys: g.state, Revocation: g.state, Replay: auth.NewMemory(returnMemory, g.judgeTime), URL: g.sameURL, Now: g.judgeTime, CacheSize: -1,
			Nonces: g.state,
		}),
		address: newLimiter(g.limits.Return, g.limits.ReturnBurst),
		all:     rate.NewLimiter(g.limits.ReturnAll, int(g.limits.ReturnAll)*2),
	}
}

// proveReturn admits a device that shows nothing but a proof of its key. The cheapest look comes first, the proof is checked in the line of the token
// exchanges, and only good ones take room among those that are let through.
func (g *Gateway) proveReturn(r *http.Request, address string) (p proof.Proof, err error) {
	state, known := g.state.Current()
	switch {
	case !known:
		return proof.Proof{}, catalog.Errorf(catalog.StateMissing, "the gateway has not heard from the site yet")
	case !state.Return:
		return proof.Proof{}, catalog.Errorf(catalog.ReturnOff, "the request shows no token")
	case !g.returns.address.allow(address):
		return proof.Proof{}, catalog.Errorf(catalog.ReturnTooMany, "too many from this address")
	}
	err = g.exchanges.Do(r.Context(), func(func()) error {
		p, err = g.returns.bearer.Holder(r)
		return err
	})
	if err != nil {
		return proof.Proof{}, err
	}
	if !g.returns.all.Allow() {
		return proof.Proof{}, catalog.Errorf(catalog.ReturnTooMany, "too many at this gateway")
	}
	return p, nil
}

// judgeTime is the time by which tokens, proofs and connectors' certificates are judged: the clock's, but never before what the site has told already.
func (g *Gateway) judgeTime() time.Time { return g.state.NotBefore(g.now()) }
