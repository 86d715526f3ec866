package ccm

import (
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"postern/catalog"
)

func TestParseAuthQuery(t *testing.T) {
	tests := map[string]struct {
		query    string
		method   AuthMethod
		argument string
		refused  bool
	}{
		"site signing certificate":    {query: "SITESIGNCERT", method: AuthSiteSignCert},
		"lower case":                  {query: "mplist", method: AuthMPList},
		"another site":                {query: "MPLIST1&xyz", method: AuthMPList1, argument: "XYZ"},
		"as S4 has it":                {query: "MPLIST2&CM1", method: AuthMPList2, argument: "CM1"},
		"without the site code":       {query: "MPLIST2", method: AuthMPList2},
		"encoded ampersand":           {query: "MPLIST2%26CM1", method: AuthMPList2, argument: "CM1"},
		"argument that is not needed": {query: "MPLIST&ts1", method: AuthMPList, argument: "ts1"},
		"key information":             {query: "MPKEYINFORMATIONEX", method: AuthMPKeyInformationEx},
		"trace":                       {query: "SMSTRC", method: AuthSMSTRC},
		"boot media":                  {query: "MPKEYINFORMATIONMEDIA", refused: true},
		"empty":                       {query: "", refused: true},
		"unknown":                     {query: "PASSWORDS", refused: true},
		"site code too long":          {query: "MPLIST1&ABCD", refused: true},
		"site code injected":          {query: "MPLIST1&A'B", refused: true},
		"two arguments":               {query: "MPLIST1&ABC&DEF", refused: true},
		"broken encoding":             {query: "MPLIST1&%", refused: true},
		"too long":                    {query: "MPLIST&" + strings.Repeat("a", 300), refused: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			method, argument, err := ParseAuthQuery(test.query)
			if method != test.method || argument != test.argument || (err != nil) != test.refused {
				t.Errorf("got %q %q %v", method, argument, err)
			}
			if test.refused && catalog.CodeOf(err) != catalog.AuthQueryMalformed {
				t.Errorf("code of %v", err)
			}
		})
	}
}

func testKeyInformation() MPKeyInformation {
	return MPKeyInformation{
		AssignmentSiteCode: "PRI", SiteCode: "PRI", FQDN: "mp.lab.local", MachineName: "MP",
		Certificate: SignedCertificate{[]byte{1}, []byte{2}}, TrustedRootKey: MPTRK{[]byte{3}, []byte{4}},
	}
}

func TestAuthReplies(t *testing.T) {
	point := ManagementPoint{Name: "CMC.CORP.LOCAL", FQDN: "CMC.corp.local", Version: "9128", Capabilities: []Capability{SSLState(false)}}
	other := point
	other.SiteCode, other.Capabilities = "XYZ", []Capability{SSLState(true), {"SSL", "", "1"}}
	tests := map[string]struct {
		reply interface{ XML() string }
		xml   string
		parse func(string) (any, error)
	}{
		"list as a live management point gives it": {
			MPList{[]ManagementPoint{point}},
			`<MPList><MP Name="CMC.CORP.LOCAL" FQDN="CMC.corp.local"><Version>9128</Version><Capabilities SchemaVersion="1.0"><Property Name="SSLState" Value="0"/></Capabilities></MP></MPList>`,
			func(text string) (any, error) { return ParseMPList(text) },
		},
		"list of another site": {
			MPList{[]ManagementPoint{other}},
			`<MPList><MP Name="CMC.CORP.LOCAL" FQDN="CMC.corp.local" SiteCode="XYZ"><Version>9128</Version><Capabilities SchemaVersion="1.0"><Property Name="SSLState" Value="1"/><Property Name="SSL" Version="1"/></Capabilities></MP></MPList>`,
			func(text string) (any, error) { return ParseMPList(text) },
		},
		"site signing certificate": {
			SiteSignCert{[]byte{0x30, 0x82, 0x0A}}, `<X509Certificate>30820A</X509Certificate>`,
			func(text string) (any, error) { return ParseSiteSignCert(text) },
		},
		"certificate":  {MPCert{[]byte{0x30}}, `<MPCertificate><Certificate>30</Certificate></MPCertificate>`, nil},
		"certificates": {MPCert2{SignedCertificate{[]byte{1}, []byte{2}}, SignedCertificate{[]byte{3}, []byte{4}}}, `<MPCertificates><Certificate1 Signature="02">01</Certificate1><Certificate2 Signature="04">03</Certificate2></MPCertificates>`, nil},
		"trusted root key": {
			MPTRK{[]byte{6, 2}, []byte{0xFF}}, `<KEYDATA><TRUSTEDROOTKEY Signature="FF">0602</TRUSTEDROOTKEY></KEYDATA>`,
			func(text string) (any, error) { return ParseMPTRK(text) },
		},
		"key information": {
			testKeyInformation(),
			`<MPKEYINFORMATION><AssignmentSiteCode>PRI</AssignmentSiteCode><MPCERTIFICATE Signature="02">01</MPCERTIFICATE><FQDN>mp.lab.local</FQDN><MACHINENAME>MP</MACHINENAME><SITECODE>PRI</SITECODE><TRUSTEDROOTKEY Signature="04">03</TRUSTEDROOTKEY></MPKEYINFORMATION>`,
			func(text string) (any, error) { return ParseMPKeyInformation(text) },
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := test.reply.XML()
			if got != test.xml {
				t.Errorf("got  %s\nwant %s", got, test.xml)
			}
			if !utf8.ValidString(got) || strings.HasPrefix(got, "\uFEFF") || strings.HasPrefix(got, "<?") || strings.Contains(got, "UnknownMachine") {
				t.Errorf("not a plain UTF-8 document: %.40q", got)
			}
			if test.parse == nil {
				return
			}
			back, err := test.parse(got + "\r\n")
			if err != nil || !reflect.DeepEqual(back, test.reply) {
				t.Errorf("got %+v %v, want %+v", back, err, test.reply)
			}
			if _, err := test.parse("<html/>"); catalog.CodeOf(err) != catalog.AuthReplyMalformed {
				t.Errorf("another document: %v", err)
			}
		})
	}
}

func TestParseAuthReplyForms(t *testing.T) {
	list, err := ParseMPList(`<MPList><MP Name="MP"><FQDN>mp.lab.local</FQDN><Version>1</Version></MP></MPList>`)
	if err != nil || list.ManagementPoints[0].FQDN != "mp.lab.local" {
		t.Errorf("FQDN as element: %+v %v", list, err)
	}
	tests := map[string]func() error{
		"site code":   func() error { _, err := ParseMPList(`<MPList><MP SiteCode="12"/></MPList>`); return err },
		"certificate": func() error { _, err := ParseSiteSignCert(`<X509Certificate>3</X509Certificate>`); return err },
		"root key": func() error {
			_, err := ParseMPTRK(`<KEYDATA><TRUSTEDROOTKEY>x</TRUSTEDROOTKEY></KEYDATA>`)
			return err
		},
		"signature": func() error {
			_, err := ParseMPTRK(`<KEYDATA><TRUSTEDROOTKEY Signature="x">00</TRUSTEDROOTKEY></KEYDATA>`)
			return err
		},
		"SITECODE": func() error {
			_, err := ParseMPKeyInformation(`<MPKEYINFORMATION><SITECODE>1</SITECODE></MPKEYINFORMATION>`)
			return err
		},
		"mp certificate": func() error {
			_, err := ParseMPKeyInformation(`<MPKEYINFORMATION><MPCERTIFICATE>1</MPCERTIFICATE></MPKEYINFORMATION>`)
			return err
		},
	}
	for name, parse := range tests {
		t.Run(name, func(t *testing.T) {
			if err := parse(); catalog.CodeOf(err) != catalog.AuthReplyMalformed {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzParseAuthQuery(f *testing.F) {
	f.Fuzz(func(t *testing.T, query string) {
		method, argument, err := ParseAuthQuery(query)
		if err != nil {
			return
		}
		if _, known := authMethods()[method]; !known || !authArgumentForm.MatchString(argument) {
			t.Fatalf("accepted %q %q", method, argument)
		}
		if method2, argument2, err := ParseAuthQuery(string(method) + "&" + argument); method2 != method || argument2 != argument || err != nil {
			t.Fatalf("again: %q %q %v", method2, argument2, err)
		}
	})
}
