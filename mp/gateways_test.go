package mp

import (
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"testing"

	"postern/ccm"
)

// TestTokensNameTheGateways: to registered devices alone, so that a bulk registration token tells nobody where the site's gateways are.
func TestTokensNameTheGateways(t *testing.T) {
	f := newFixture(t)
	bulk, _ := f.bulk(1)
	d := f.device(0)
	if first := f.tokenFrom(f.exchange(d, bulk, url.Values{})); first.Gateways != nil {
		t.Errorf("before it is registered the device is told %q", first.Gateways)
	}
	registered := f.device(1)
	f.register(registered)
	want := []string{gatewayName + ccm.ExternalPath(ccm.DoorMutualAuth, f.roleID, "")}
	for _, kind := range []string{"ccm", "self-prove"} {
		if got := f.tokenFrom(f.exchange(registered, "", f.asking(registered, kind))).Gateways; !slices.Equal(got, want) {
			t.Errorf("with its %s token the device is told %q, want %q", kind, got, want)
		}
	}
}

// TestNoGatewaysIsAnAnswer: a list that is empty takes back what a client knew; a field that is missing does not.
func TestNoGatewaysIsAnAnswer(t *testing.T) {
	for _, test := range []struct {
		list []string
		want bool
	}{{nil, false}, {[]string{}, true}} {
		text, err := json.Marshal(tokenReply{Gateways: test.list})
		if err != nil || strings.Contains(string(text), `"gateways":[]`) != test.want {
			t.Errorf("%#v: %s, %v", test.list, text, err)
		}
	}
}
