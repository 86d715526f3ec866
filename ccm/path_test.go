package ccm

import (
	"strings"
	"testing"

	"postern/catalog"
)

func TestParsePath(t *testing.T) {
	tests := []struct {
		target   string
		door     Door
		role     uint64
		endpoint Endpoint
		rest     string
		query    string
		internal string
	}{
		{"/ccm_system/request", DoorDirect, 0, EndpointSystem, "/request", "", "/CCM_System/request"},
		{"/CCM_System/Request", DoorDirect, 0, EndpointSystem, "/request", "", "/CCM_System/request"},
		{"/ccm_system_windowsauth", DoorDirect, 0, EndpointSystemWindowsAuth, "", "", "/CCM_System_WindowsAuth"},
		{"/CCM_SYSTEM_TOKENAUTH/request", DoorDirect, 0, EndpointSystemTokenAuth, "/request", "", "/CCM_System_TokenAuth/request"},
		{"/ccm_system_altauth/request", DoorDirect, 0, EndpointSystemAltAuth, "/request", "", "/CCM_System_AltAuth/request"},
		{"/CCM_STS", DoorDirect, 0, EndpointSTS, "", "", "/CCM_STS"},
		{"/CCM_STS/", DoorDirect, 0, EndpointSTS, "", "", "/CCM_STS"},
		{"/SMS_MP/.sms_aut?SITESIGNCERT", DoorDirect, 0, EndpointMP, "/.sms_aut", "SITESIGNCERT", "/SMS_MP/.sms_aut?SITESIGNCERT"},
		{"/sms_mp/.SMS_AUT?MPLIST2&CM1", DoorDirect, 0, EndpointMP, "/.sms_aut", "MPLIST2&CM1", "/SMS_MP/.sms_aut?MPLIST2&CM1"},
		{"/SMS_MP/.sms_pol?%7B22222222-2222-2222-2222-222222222222%7D.1_00", DoorDirect, 0, EndpointMP, "/.sms_pol",
			"%7B22222222-2222-2222-2222-222222222222%7D.1_00", "/SMS_MP/.sms_pol?%7B22222222-2222-2222-2222-222222222222%7D.1_00"},
		{"/SMS_MP/.sms_pol?{2}.1_00", DoorDirect, 0, EndpointMP, "/.sms_pol", "{2}.1_00", "/SMS_MP/.sms_pol?{2}.1_00"},
		{"/%53MS_MP/%2Esms_aut?MPLIST", DoorDirect, 0, EndpointMP, "/.sms_aut", "MPLIST", "/SMS_MP/.sms_aut?MPLIST"},
		{"/CCM_Client/Sub/CCMSetup.cab", DoorDirect, 0, EndpointClient, "/Sub/CCMSetup.cab", "", "/CCM_Client/Sub/CCMSetup.cab"},
		{"/CCM_Client/a%20b.cab", DoorDirect, 0, EndpointClient, "/a b.cab", "", "/CCM_Client/a%20b.cab"},
		{"/CCM_PROXY_MUTUALAUTH/3456/SMS_MP/.sms_aut?SITESIGNCERT", DoorMutualAuth, 3456, EndpointMP, "/.sms_aut", "SITESIGNCERT", "/SMS_MP/.sms_aut?SITESIGNCERT"},
		{"/CCM_Proxy_ServerAuth/72057594037928017/CCM_STS", DoorServerAuth, 72057594037928017, EndpointSTS, "", "", "/CCM_STS"},
		{"/ccm_proxy_serverauth/18446744073709551615/ccm_system_tokenauth/request", DoorServerAuth, 18446744073709551615, EndpointSystemTokenAuth, "/request", "", "/CCM_System_TokenAuth/request"},
		{"/CCM_Proxy_ServerAuth/AADAuthInfo?TenantID=1", DoorServerAuth, 0, EndpointAADAuthInfo, "", "TenantID=1", "/AADAuthInfo?TenantID=1"},
		{"/CCM_Proxy_MutualAuth/ServiceMetadata", DoorMutualAuth, 0, EndpointServiceMetadata, "", "", "/ServiceMetadata"},
		{"/AADAuthInfo", DoorDirect, 0, EndpointAADAuthInfo, "", "", "/AADAuthInfo"},
		{"/DownloadRestService.svc/GetContentXmlSecure?pid=P&cid=C", DoorDirect, 0, EndpointContent, "/getcontentxmlsecure", "pid=P&cid=C", "/downloadrestservice.svc/getcontentxmlsecure?pid=P&cid=C"},
		{"/postern/state", DoorDirect, 0, EndpointState, "/state", "", "/postern/state"},
		{"/CCM_Proxy_ServerAuth/1/Postern/Roots", DoorServerAuth, 1, EndpointState, "/roots", "", "/postern/roots"},
	}
	for _, test := range tests {
		t.Run(test.target, func(t *testing.T) {
			p, err := ParsePath(test.target)
			if err != nil {
				t.Fatal(err)
			}
			want := Path{test.door, test.role, test.endpoint, test.rest, test.query, test.target}
			if p != want {
				t.Errorf("got %+v, want %+v", p, want)
			}
			if got := p.Internal(); got != test.internal {
				t.Errorf("internal %q, want %q", got, test.internal)
			}
			again, err := ParsePath(ExternalPath(p.Door, p.RoleID, p.Internal()))
			if again.Original = p.Original; err != nil || again != p {
				t.Errorf("its external path reads as %+v, %v", again, err)
			}
		})
	}
}

func TestParsePathRefuses(t *testing.T) {
	tests := []struct {
		name, target string
		want         catalog.Code
	}{
		{"nothing", "", catalog.PathMalformed},
		{"a star", "*", catalog.PathMalformed},
		{"a whole URL", "http://mp/ccm_system/request", catalog.PathMalformed},
		{"a host alone", "//mp/ccm_system/request", catalog.PathMalformed},
		{"no slash first", "ccm_system/request", catalog.PathMalformed},
		{"dot dot", "/ccm_client/../ccm_sts", catalog.PathMalformed},
		{"dot dot at the end", "/ccm_client/..", catalog.PathMalformed},
		{"encoded dot dot", "/ccm_client/%2e%2E/ccm_sts", catalog.PathMalformed},
		{"half encoded dot dot", "/ccm_client/.%2e/ccm_sts", catalog.PathMalformed},
		{"doubly encoded dot dot", "/ccm_client/%252e%252e/ccm_sts", catalog.PathMalformed},
		{"one dot", "/ccm_client/./x", catalog.PathMalformed},
		{"three dots", "/ccm_client/.../x", catalog.PathMalformed},
		{"dot dot behind the door", "/CCM_Proxy_ServerAuth/1/../2/CCM_STS", catalog.PathMalformed},
		{"an empty segment", "/ccm_system//request", catalog.PathMalformed},
		{"empty segments at the end", "/ccm_system/request//", catalog.PathMalformed},
		{"an encoded slash", "/ccm_system%2frequest", catalog.PathMalformed},
		{"an encoded slash in capitals", "/ccm_system%2Frequest", catalog.PathMalformed},
		{"a backslash", `/ccm_system\request`, catalog.PathMalformed},
		{"an encoded backslash", "/ccm_system%5crequest", catalog.PathMalformed},
		{"an encoded percent", "/ccm_system%25/request", catalog.PathMalformed},
		{"a broken encoding", "/ccm_system/%2", catalog.PathMalformed},
		{"an encoding that is not hexadecimal", "/ccm_system/%zz", catalog.PathMalformed},
		{"the encoding %u", "/ccm_system/%u002e", catalog.PathMalformed},
		{"an encoded NUL", "/ccm_system/request%00", catalog.PathMalformed},
		{"a NUL", "/ccm_system/request\x00", catalog.PathMalformed},
		{"an encoded line end", "/ccm_system/request%0d%0aX:y", catalog.PathMalformed},
		{"a line end", "/ccm_system/request\r\nX: y", catalog.PathMalformed},
		{"a tab", "/ccm_system/\trequest", catalog.PathMalformed},
		{"a blank", "/ccm_system/ request", catalog.PathMalformed},
		{"a segment ending in a dot", "/sms_mp./.sms_aut", catalog.PathMalformed},
		{"a segment ending in a blank", "/sms_mp%20/.sms_aut", catalog.PathMalformed},
		{"a path parameter", "/sms_mp;x=1/.sms_aut", catalog.PathMalformed},
		{"a stream of a file", "/ccm_client/x::$DATA", catalog.PathMalformed},
		{"a wild card", "/ccm_client/*", catalog.PathMalformed},
		{"overlong UTF-8 of a slash", "/ccm_client/%c0%af", catalog.PathMalformed},
		{"a full-width dot", "/ccm_client/%ef%bc%8e%ef%bc%8e/x", catalog.PathMalformed},
		{"a long s that folds to s", "/%c5%bfms_mp/.sms_aut", catalog.PathMalformed},
		{"the Kelvin sign", "/\u212Aelvin", catalog.PathMalformed},
		{"a fragment", "/ccm_sts#x", catalog.PathMalformed},
		{"a fragment in the query", "/ccm_sts?a#x", catalog.PathMalformed},
		{"a line end in the query", "/ccm_sts?a\r\nX: y", catalog.PathMalformed},
		{"a blank in the query", "/ccm_sts?a b", catalog.PathMalformed},
		{"a backslash in the query", `/ccm_sts?a\b`, catalog.PathMalformed},
		{"a role's number with a zero first", "/CCM_Proxy_ServerAuth/01/CCM_STS", catalog.PathMalformed},
		{"role zero", "/CCM_Proxy_ServerAuth/0/CCM_STS", catalog.PathMalformed},
		{"a role's number beyond 64 bits", "/CCM_Proxy_ServerAuth/18446744073709551616/CCM_STS", catalog.PathMalformed},
		{"the root", "/", catalog.PathUnknown},
		{"a stranger", "/index.html", catalog.PathUnknown},
		{"an endpoint's name and more", "/ccm_sts2", catalog.PathUnknown},
		{"nothing behind the door", "/CCM_Proxy_ServerAuth", catalog.PathUnknown},
		{"nothing behind the door's slash", "/CCM_Proxy_ServerAuth/", catalog.PathUnknown},
		{"nothing behind the role", "/CCM_Proxy_ServerAuth/1", catalog.PathUnknown},
		{"nothing behind the role's slash", "/CCM_Proxy_ServerAuth/1/", catalog.PathUnknown},
		{"a signed role's number", "/CCM_Proxy_ServerAuth/+1/CCM_STS", catalog.PathUnknown},
		{"a role's endpoint without its number", "/CCM_Proxy_ServerAuth/CCM_STS", catalog.PathUnknown},
		{"a gateway's endpoint behind a role", "/CCM_Proxy_ServerAuth/1/ServiceMetadata", catalog.PathUnknown},
		{"the site's state behind a door", "/CCM_Proxy_ServerAuth/1/postern/state", catalog.PathUnknown},
		{"below the site's roots behind a door", "/CCM_Proxy_ServerAuth/1/postern/roots/state", catalog.PathUnknown},
		{"a door behind a door", "/CCM_Proxy_ServerAuth/1/CCM_Proxy_ServerAuth/1/CCM_STS", catalog.PathUnknown},
		{"too long", "/ccm_client/" + strings.Repeat("x", maxTarget), catalog.PathTooLong},
		{"too long a query", "/ccm_sts?" + strings.Repeat("x", maxTarget), catalog.PathTooLong},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, err := ParsePath(test.target)
			if got := catalog.CodeOf(err); got != test.want {
				t.Errorf("got %+v, %v; want code %s", p, err, test.want)
			}
		})
	}
}
