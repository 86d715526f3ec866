package client

import (
	"context"
	"net/http"
	"time"

	"postern/ccm"
)

// ManagementPoints asks, the way that this device goes now and with its own credential, which
// management points the site has (MPLIST, protocol.md 1.3). It is the smallest question that
// goes through every hop and is answered from the inside. Errors have the codes of the wire,
// of the client and of the server.
func (a *Agent) ManagementPoints(ctx context.Context) ([]ccm.ManagementPoint, error) {
	r := a.current()
	if !r.State.registered() {
		return nil, notEnrolled()
	}
	ctx, c := a.converse(ctx, r, a.logs.location, policyLine())
	var list ccm.MPList
	err := a.withToken(ctx, c, func(token string) error {
		endpoint := ccm.EndpointMP
		if token != "" {
			endpoint = ccm.EndpointMPTokenAuth
		}
		return a.step(ctx, c.route.hop(), "list of management points", func() error {
			return a.ask(ctx, c, func(time.Time) (call, error) {
				return call{method: http.MethodGet, url: c.url(endpoint, "/.sms_aut"), query: string(ccm.AuthMPList), token: token, limit: maxInformation}, nil
			}, func(got answer) (err error) {
				list, err = ccm.ParseMPList(string(got.body))
				return err
			})
		})
	})
	return list.ManagementPoints, err
}
