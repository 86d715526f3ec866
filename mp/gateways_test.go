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

// TestDevicesWithoutTokensAskForTheGateways: on plain HTTP, where there are no tokens, the same list comes as the management points of the internet. Another
// site's are not named, and the other kinds of question are answered as ever.
func TestDevicesWithoutTokensAskForTheGateways(t *testing.T) {
	f := newFixture(t)
	want := []string{gatewayName + ccm.ExternalPath(ccm.DoorMutualAuth, f.roleID, "")}
	for name, test := range map[string]struct {
		ask  ccm.LocationRequest
		want []string
	}{
		"the internet":    {ccm.LocationRequest{Kind: ccm.LocationEnumerateMP, RequestType: ccm.EnumerateInternet}, want},
		"in another case": {ccm.LocationRequest{Kind: ccm.LocationEnumerateMP, RequestType: "INTERNET"}, want},
		"another site":    {ccm.LocationRequest{Kind: ccm.LocationEnumerateMP, RequestType: ccm.EnumerateInternet, SiteCode: "XYZ"}, nil},
		"assigned":        {ccm.LocationRequest{Kind: ccm.LocationEnumerateMP, RequestType: "Assigned"}, want},
	} {
		contentType, body := f.message("MP_LocationManager", test.ask.XML(), nil)
		reply, err := ccm.ParseEnumerateMPReply(f.text(f.send(f.client, methodCCM, f.url(HTTP, "/ccm_system/request"), contentType, body)))
		var got []string
		for _, point := range reply.Records {
			got = append(got, point.InternetName)
		}
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, test.want)
		}
	}
	_, err := f.site.AddGateway(t.Context(), "https://second.lab.example:8443", strings.Repeat("5", 64), "test")
	f.must(err)
	contentType, body := f.message("MP_LocationManager", ccm.LocationRequest{Kind: ccm.LocationEnumerateMP, RequestType: ccm.EnumerateInternet}.XML(), nil)
	reply, err := ccm.ParseEnumerateMPReply(f.text(f.send(f.client, methodCCM, f.url(HTTP, "/ccm_system/request"), contentType, body)))
	if err != nil || len(reply.Records) != 2 || !slices.ContainsFunc(reply.Records, func(p ccm.MPRecord) bool {
		return strings.HasPrefix(p.InternetName, "second.lab.example:8443/CCM_Proxy_MutualAuth/")
	}) {
		t.Errorf("with two gateways: got %+v, %v", reply.Records, err)
	}
}
