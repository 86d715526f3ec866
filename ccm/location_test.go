package ccm

import (
	"reflect"
	"strings"
	"testing"

	"postern/catalog"
)

func TestParseCapturedLocationRequests(t *testing.T) {
	tests := map[string]LocationRequest{
		"sdk-location/01-site-information": {Kind: LocationSiteInformation, SiteCode: "PRI"},
		"sdk-location/02-assigned-site":    {Kind: LocationAssignedSite},
		"sdk-location/03-content-location": {Kind: LocationContent, SiteCode: "PRI", Package: LocationPackage{"PRI00001", "1"}, Client: ClientLocation{Type: "SMSPackage"}},
		"sdk-location/04-enumerate-mp":     {Kind: LocationEnumerateMP, SiteCode: "PRI", RequestType: "Assigned"},
		"sdk-location/05-local-mp":         {Kind: LocationLocalMP, SiteCode: "PRI"},
		"sdk-location/06-wsus-location":    {Kind: LocationWSUS, SiteCode: "PRI", Content: LocationPackage{"{00000000-0000-0000-0000-000000000000}", "0"}},
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			_, message := openCapture(t, name)
			got, err := ParseLocationRequest(message.Text())
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v %v, want %+v", got, err, want)
			}
		})
	}
}

func TestLocationRequestRoundTrip(t *testing.T) {
	client := ClientLocation{
		Type: "SMSPackage", OnInternet: true, UseInternetDP: true, ADSite: "Default-First-Site-Name", Forest: "lab.local", Domain: "LAB",
		Addresses: []ClientAddress{{"10.0.0.7", "10.0.0.0"}, {"fe80::1", ""}}, Groups: []BoundaryGroup{{"1", "{A}", "0"}},
	}
	tests := []LocationRequest{
		{Kind: LocationSiteInformation, SiteCode: "PRI"},
		{Kind: LocationAssignedSite},
		{Kind: LocationContent, SiteCode: "PRI", Package: LocationPackage{"PRI00001", "1"}, Client: client},
		{Kind: LocationEnumerateMP, SiteCode: "PRI", RequestType: "Internet", Client: ClientLocation{OnInternet: true}},
		{Kind: LocationLocalMP, SiteCode: "PRI"},
		{Kind: LocationWSUS, SiteCode: "PRI", Content: LocationPackage{"{0}", "0"}},
		{Kind: LocationUpdateSF, Package: LocationPackage{"UID:1", "2"}, Client: ClientLocation{Groups: []BoundaryGroup{{"1", "", ""}}}},
		{Kind: LocationTokenServices},
	}
	for _, want := range tests {
		t.Run(string(want.Kind), func(t *testing.T) {
			got, err := ParseLocationRequest(want.XML())
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s\ngot  %+v %v\nwant %+v", want.XML(), got, err, want)
			}
		})
	}
}

func TestParseLocationRequestRefuses(t *testing.T) {
	tests := map[string]struct {
		text string
		want catalog.Code
	}{
		"unknown root":       {"<StealRequest/>", catalog.LocationRequestUnknown},
		"a reply":            {"<SiteInfoReply/>", catalog.LocationRequestUnknown},
		"not XML":            {"SiteInformationRequest", catalog.LocationRequestMalformed},
		"site code too long": {`<SiteInformationRequest><SiteCode Name="PRI1"/></SiteInformationRequest>`, catalog.LocationRequestMalformed},
		"site code injected": {`<LocalMPLocationRequest><AssignedSite SiteCode="P'1"/></LocalMPLocationRequest>`, catalog.LocationRequestMalformed},
		"too many addresses": {`<LocalMPLocationRequest><ClientLocationInfo><IPAddresses>` + strings.Repeat("<IPAddress/>", 1000) + `</IPAddresses></ClientLocationInfo></LocalMPLocationRequest>`, catalog.LocationRequestMalformed},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseLocationRequest(test.text); catalog.CodeOf(err) != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

var testCapabilities = []Capability{{"SSLState", "0", "1"}}

func testSiteRecord() SiteRecord {
	return SiteRecord{
		SiteCode: "PRI", DefaultMP: "127.0.0.1", Version: "5.00.9122.1000", BuildNumber: "9122", Capabilities: testCapabilities,
		SecurityModeEx: 480, HTTPPort: 80, HTTPSPort: 443, CertificateSelectFirst: true, SiteSigningCertificate: []byte{0x30, 0x82},
	}
}

func testMPSite() MPSite {
	return MPSite{SiteCode: "PRI", MasterSite: "PRI", SiteLocality: "LOCAL", HTTPPort: 80, HTTPSPort: 443}
}

func testContentReply() ContentLocationReply {
	return ContentLocationReply{
		PackageFlags: "16777216",
		Sites: []ContentSite{{testMPSite(), []ContentRecord{{
			URLs:   []ContentURL{{"http://127.0.0.1/SMS_DP_SMSPKG$/PRI00001", "http://127.0.0.1/SMS_DP_SMSSIG$/PRI00001.1.tar"}},
			ADSite: "Default-First-Site-Name", Subnets: []string{"127.0.0.0", ""}, Version: "9122", Capabilities: testCapabilities,
			ServerName: "127.0.0.1", DPType: "SERVER", Locality: "LOCAL",
		}}}},
		ClientPackage: ClientPackage{"PRI00002", "1", "00"},
	}
}

const testSiteXML = `<Site><SiteCode>PRI</SiteCode><DefaultMP>127.0.0.1</DefaultMP><Version>5.00.9122.1000</Version><BuildNumber>9122</BuildNumber>` +
	`<Capabilities SchemaVersion="1.0"><Property Name="SSLState" Value="0" Version="1"/></Capabilities>` +
	`<ClientOperationalSettings><Version>5.00.9122.1000</Version><SecurityConfiguration><SecurityModeMask>0</SecurityModeMask><SecurityModeMaskEx>480</SecurityModeMaskEx>` +
	`<HTTPPort>80</HTTPPort><HTTPSPort>443</HTTPSPort><CertificateStoreName/><CertificateSelectionCriteria/><CertificateSelectFirstFlag>1</CertificateSelectFirstFlag>` +
	`<SiteSigningCert>3082</SiteSigningCert></SecurityConfiguration></ClientOperationalSettings></Site>`

const testMPSiteXML = `<MPSite SiteCode="PRI" MasterSiteCode="PRI" SiteLocality="LOCAL" IISPreferedPort="80" IISSSLPreferedPort="443"/>`

// Each reply in the shape that the messaging SDK accepted from the stub.
func TestLocationReplies(t *testing.T) {
	tests := map[string]struct {
		reply interface{ XML() string }
		xml   string
		parse func(string) (any, error)
	}{
		"site information": {
			SiteInfoReply{[]SiteRecord{testSiteRecord()}},
			`<SiteInfoReply SchemaVersion="1.00"><Sites>` + testSiteXML + `</Sites></SiteInfoReply>`,
			func(text string) (any, error) { return ParseSiteInfoReply(text) },
		},
		"assigned site": {
			AssignedSiteReply{testSiteRecord()},
			`<AssignedSiteReply SchemaVersion="1.00">` + testSiteXML + `</AssignedSiteReply>`,
			func(text string) (any, error) { return ParseAssignedSiteReply(text) },
		},
		"content location": {
			testContentReply(),
			`<ContentLocationReply SchemaVersion="1.00"><ContentInfo PackageFlags="16777216"><ContentHashValues/></ContentInfo><Sites><Site>` + testMPSiteXML +
				`<LocationRecords><LocationRecord><URL Name="http://127.0.0.1/SMS_DP_SMSPKG$/PRI00001" Signature="http://127.0.0.1/SMS_DP_SMSSIG$/PRI00001.1.tar"/>` +
				`<ADSite Name="Default-First-Site-Name"/><IPSubnets><IPSubnet Address="127.0.0.0"/><IPSubnet Address=""/></IPSubnets><Metric Value=""/><Version>9122</Version>` +
				`<Capabilities SchemaVersion="1.0"><Property Name="SSLState" Value="0" Version="1"/></Capabilities><ServerRemoteName>127.0.0.1</ServerRemoteName>` +
				`<DPType>SERVER</DPType><Locality>LOCAL</Locality></LocationRecord></LocationRecords></Site></Sites>` +
				`<ClientPackage FullPackageID="PRI00002" FullPackageVersion="1" FullPackageHash="00"/></ContentLocationReply>`,
			func(text string) (any, error) { return ParseContentLocationReply(text) },
		},
		"management points": {
			EnumerateMPReply{testMPSite(), []MPRecord{{IntranetName: "127.0.0.1", Version: "9122", Capabilities: testCapabilities}}},
			`<EnumerateMPLocationReply SchemaVersion="1.00">` + testMPSiteXML + `<LocationRecords><LocationRecord><InternetName Value=""/><IntranetName Value="127.0.0.1"/>` +
				`<Windows Trust="0"/><Version>9122</Version><Capabilities SchemaVersion="1.0"><Property Name="SSLState" Value="0" Version="1"/></Capabilities></LocationRecord></LocationRecords></EnumerateMPLocationReply>`,
			func(text string) (any, error) { return ParseEnumerateMPReply(text) },
		},
		"local management point": {
			LocalMPReply{[]MPSite{testMPSite()}},
			`<LocalMPLocationReply SchemaVersion="1.00"><Sites><Site>` + testMPSiteXML + `</Site></Sites></LocalMPLocationReply>`,
			func(text string) (any, error) { return ParseLocalMPReply(text) },
		},
		"update server": {
			WSUSReply{[]WSUSSite{{"PRI", []WSUSRecord{{"http://127.0.0.1:8530", "127.0.0.1", "1"}}}}},
			`<WSUSLocationReply SchemaVersion="1.00"><Sites><Site><MPSite SiteCode="PRI"/><LocationRecords><LocationRecord WSUSURL="http://127.0.0.1:8530" ServerName="127.0.0.1" Version="1"/></LocationRecords></Site></Sites></WSUSLocationReply>`,
			func(text string) (any, error) { return ParseWSUSReply(text) },
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := test.reply.XML(); got != test.xml {
				t.Errorf("got  %s\nwant %s", got, test.xml)
			}
			back, err := test.parse(test.xml)
			if err != nil || !reflect.DeepEqual(back, test.reply) {
				t.Errorf("got  %+v %v\nwant %+v", back, err, test.reply)
			}
			if _, err := test.parse("<html/>"); catalog.CodeOf(err) != catalog.LocationReplyMalformed {
				t.Errorf("another document: %v", err)
			}
			if strings.Contains(test.xml, `SiteCode="PRI"`) {
				if _, err := test.parse(strings.Replace(test.xml, `SiteCode="PRI"`, `SiteCode="P RI"`, 1)); catalog.CodeOf(err) != catalog.LocationReplyMalformed {
					t.Errorf("bad site code: %v", err)
				}
			}
		})
	}
}

func TestParseCapturedLocationReplies(t *testing.T) {
	site, err := ParseSiteInfoReply(openCapturedReply(t, "sdk-location/01-site-information").Text())
	if err != nil || len(site.Sites) != 1 {
		t.Fatalf("%+v %v", site, err)
	}
	if _, err := ParseCertificate(site.Sites[0].SiteSigningCertificate); err != nil {
		t.Errorf("site signing certificate: %v", err)
	}
	want := testSiteRecord()
	want.SiteSigningCertificate = site.Sites[0].SiteSigningCertificate
	if !reflect.DeepEqual(site.Sites[0], want) {
		t.Errorf("got %+v, want %+v", site.Sites[0], want)
	}
	content, err := ParseContentLocationReply(openCapturedReply(t, "sdk-location/03-content-location").Text())
	if err != nil || !reflect.DeepEqual(content, testContentReply()) {
		t.Errorf("got %+v %v, want %+v", content, err, testContentReply())
	}
	points, err := ParseEnumerateMPReply(openCapturedReply(t, "sdk-location/04-enumerate-mp").Text())
	if err != nil || len(points.Records) != 1 || points.Records[0].IntranetName != "127.0.0.1" || points.MPSite != testMPSite() {
		t.Errorf("got %+v %v", points, err)
	}
	local, err := ParseLocalMPReply(openCapturedReply(t, "sdk-location/05-local-mp").Text())
	if err != nil || !reflect.DeepEqual(local.Sites, []MPSite{testMPSite()}) {
		t.Errorf("got %+v %v", local, err)
	}
	updates, err := ParseWSUSReply(openCapturedReply(t, "sdk-location/06-wsus-location").Text())
	if err != nil || len(updates.Sites) != 1 || updates.Sites[0].Records[0].URL != "http://127.0.0.1:8530" {
		t.Errorf("got %+v %v", updates, err)
	}
}

func FuzzParseLocationRequest(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseLocationRequest(text)
		if err != nil {
			if code := catalog.CodeOf(err); code != catalog.LocationRequestMalformed && code != catalog.LocationRequestUnknown {
				t.Fatal(err)
			}
			return
		}
		again, err := ParseLocationRequest(r.XML())
		if err != nil || again.Kind != r.Kind || again.SiteCode != r.SiteCode {
			t.Fatalf("written and read again: %+v %v, was %+v", again, err, r)
		}
	})
}
