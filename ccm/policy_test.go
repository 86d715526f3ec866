package ccm

import (
	"encoding/xml"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"postern/catalog"
)

func TestParseCapturedAssignmentsRequests(t *testing.T) {
	sdk := AssignmentsRequest{ClientID: sdkClient, FQDN: "localhost", NetBIOSName: "vm", PolicySource: "SMS:PRI", RequestType: AssignmentsAlways, ResourceType: "Machine"}
	tests := map[string]AssignmentsRequest{
		"sdk-policy/01-assignments-zlib":         sdk,
		"sdk-policy/02-assignments-uncompressed": sdk,
		"python-client-anonymous-http/02-policy-assignments": {ClientID: "GUID:096EFF83-379B-49CB-B96D-9296C239D7A2", FQDN: "testpc1.lab.local", NetBIOSName: "testpc1",
			PolicySource: "SMS:PRI", RequestType: AssignmentsAlways, ResourceType: "Machine"},
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			_, message := openCapture(t, name)
			got, err := ParseAssignmentsRequest(message.Text())
			if err != nil || got != want {
				t.Errorf("got %+v %v, want %+v", got, err, want)
			}
			if built, want := BuildAssignmentsRequest(got), strings.ReplaceAll(message.Text(), " />", "/>"); built != want {
				t.Errorf("built  %s\nwanted %s", built, want)
			}
		})
	}
}

func TestParseAssignmentsRequest(t *testing.T) {
	identification := `<Identification><Machine><ClientID>` + string(sdkClient) + `</ClientID></Machine></Identification>`
	tests := map[string]struct {
		text string
		want AssignmentsRequest
		code catalog.Code
	}{
		"acknowledge as the 2007 documentation spells it": {
			text: `<RequestAssignments Ack="true" RequestType="Full"><ServerCookie> c </ServerCookie>` + identification + `</RequestAssignments>`,
			want: AssignmentsRequest{ClientID: sdkClient, RequestType: "Full", ServerCookie: "c", Ack: true},
		},
		"client id that is none": {text: `<RequestAssignments><Identification><Machine><ClientID>GUID:1</ClientID></Machine></Identification></RequestAssignments>`, code: catalog.AssignmentsRequestMalformed},
		"no identification":      {text: `<RequestAssignments/>`, code: catalog.AssignmentsRequestMalformed},
		"two client ids":         {text: `<RequestAssignments><Identification><Machine><ClientID>` + string(sdkClient) + `</ClientID><ClientID>GUID:00000000-0000-0000-0000-000000000000</ClientID></Machine></Identification></RequestAssignments>`, code: catalog.AssignmentsRequestMalformed},
		"two identifications":    {text: `<RequestAssignments>` + identification + identification + `</RequestAssignments>`, code: catalog.AssignmentsRequestMalformed},
		"another document":       {text: `<ReplyAssignments/>`, code: catalog.AssignmentsRequestMalformed},
		"not XML":                {text: `RequestAssignments`, code: catalog.AssignmentsRequestMalformed},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseAssignmentsRequest(test.text)
			if code := catalog.CodeOf(err); code != test.code || got != test.want {
				t.Errorf("got %+v %v, want %+v %q", got, err, test.want, test.code)
			}
		})
	}
}

const testPolicyID = "{c6fe32fb-7e9c-4776-abe3-2a6d107447f1}"

func testAssignmentsReply() AssignmentsReply {
	return AssignmentsReply{
		SiteCode: "PRI", ClientID: sdkClient, FQDN: "sdk1.lab.local", NetBIOSName: "SDK1", ServerCookie: "2026-01-01 00:00:00.000",
		Assignments: []PolicyAssignment{
			{ID: "{11111111-1111-1111-1111-111111111111}", PolicyID: testPolicyID, Version: "2.00", Category: "NAAConfig", Flags: PolicyRequiresAuth | PolicySecret | PolicyIntranetOnly | PolicyPersistWhole, Hash: "SHA256:00"},
			{ID: "{33333333-3333-3333-3333-333333333333}", PolicyID: "PS120003-PS100009-6F6BCC28", Version: "1.00", Type: "Machine", Category: "Soft<ware>", Location: "http://<mp>/SMS_MP/.sms_pol?a]b.1_00"},
		},
	}
}

const testAssignmentsXML = `<ReplyAssignments SchemaVersion="1.00" ReplyType="Full"><Identification><Machine><ClientID>GUID:A670CC56-2308-4189-A826-4A4938AFE403</ClientID><FQDN>sdk1.lab.local</FQDN><NetBIOSName>SDK1</NetBIOSName><SID/></Machine><User/></Identification>` +
	`<PolicySource>SMS:PRI</PolicySource><Resource ResourceType="Machine"/><ServerCookie>2026-01-01 00:00:00.000</ServerCookie>` +
	`<PolicyAssignment PolicyAssignmentID="{11111111-1111-1111-1111-111111111111}"><Condition/><Policy PolicyID="{c6fe32fb-7e9c-4776-abe3-2a6d107447f1}" PolicyVersion="2.00" PolicyType="Machine" PolicyCategory="NAAConfig" PolicyFlags="30" PolicyPriority="25">` +
	`<PolicyLocation PolicyHash="SHA256:00" PolicyHashEx="SHA256:00"><![CDATA[http://<mp>/SMS_MP/.sms_pol?{c6fe32fb-7e9c-4776-abe3-2a6d107447f1}.2_00]]></PolicyLocation></Policy></PolicyAssignment>` +
	`<PolicyAssignment PolicyAssignmentID="{33333333-3333-3333-3333-333333333333}"><Condition/><Policy PolicyID="PS120003-PS100009-6F6BCC28" PolicyVersion="1.00" PolicyType="Machine" PolicyCategory="Soft&lt;ware&gt;" PolicyFlags="0" PolicyPriority="25">` +
	`<PolicyLocation><![CDATA[http://<mp>/SMS_MP/.sms_pol?a%5Db.1_00]]></PolicyLocation></Policy></PolicyAssignment></ReplyAssignments>`

func TestAssignmentsReplyXML(t *testing.T) {
	if got := testAssignmentsReply().XML(); got != testAssignmentsXML {
		t.Errorf("got  %s\nwant %s", got, testAssignmentsXML)
	}
}

// The two ways in which third-party clients read the reply (protocol.md 4.2, 12).
func TestAssignmentsReplyForThirdPartyParsers(t *testing.T) {
	text := testAssignmentsReply().XML()
	expression := regexp.MustCompile(`PolicyCategory="NAAConfig".*?<!\[CDATA\[https*://<mp>([^]]+)`)
	if got, want := expression.FindStringSubmatch(text), "/SMS_MP/.sms_pol?"+testPolicyID+".2_00"; got == nil || got[1] != want {
		t.Errorf("by regular expression: got %q, want %q", got, want)
	}
	var tree struct {
		PolicyAssignment []struct {
			Policy struct {
				Children []struct {
					XMLName xml.Name
					Text    string `xml:",chardata"`
				} `xml:",any"`
			}
		}
	}
	if err := xml.Unmarshal([]byte(text), &tree); err != nil {
		t.Fatal(err)
	}
	if len(tree.PolicyAssignment) != 2 {
		t.Fatalf("%d assignments directly under the root", len(tree.PolicyAssignment))
	}
	first := tree.PolicyAssignment[0].Policy.Children[0]
	if first.XMLName.Local != "PolicyLocation" || !strings.HasPrefix(first.Text, "http://<mp>/") {
		t.Errorf("first child of Policy: %s %s", first.XMLName.Local, first.Text)
	}
}

func TestAssignmentsReplyRoundTrip(t *testing.T) {
	want := testAssignmentsReply()
	want.ReplyType, want.ResourceType = "Full", "Machine"
	want.Assignments[0].Type, want.Assignments[0].Location = "Machine", PolicyLocation(testPolicyID, "2.00")
	want.Assignments[1].Location = "http://<mp>/SMS_MP/.sms_pol?a%5Db.1_00"
	got, err := ParseAssignmentsReply(want.XML())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v %v\nwant %+v", got, err, want)
	}
}

func TestParseCapturedAssignmentsReplies(t *testing.T) {
	for _, name := range []string{"sdk-policy/01-assignments-zlib", "sdk-policy/02-assignments-uncompressed", "python-client-anonymous-http/02-policy-assignments"} {
		t.Run(name, func(t *testing.T) {
			reply, err := ParseAssignmentsReply(openCapturedReply(t, name).Text())
			if err != nil {
				t.Fatal(err)
			}
			if len(reply.Assignments) != 1 || reply.SiteCode != "PRI" {
				t.Fatalf("got %+v", reply)
			}
			location := strings.TrimPrefix(reply.Assignments[0].Location, "http://<mp>/SMS_MP/.sms_pol?")
			id, version, err := ParsePolicyQuery(location)
			if err != nil || id != "{22222222-2222-2222-2222-222222222222}" || version != "1.00" {
				t.Errorf("location %s: %s %s %v", location, id, version, err)
			}
		})
	}
}

func TestParseAssignmentsReplyRefuses(t *testing.T) {
	tests := map[string]string{
		"flags that are no number":  strings.Replace(testAssignmentsXML, `PolicyFlags="30"`, `PolicyFlags="x"`, 1),
		"flags beyond 32 bits":      strings.Replace(testAssignmentsXML, `PolicyFlags="30"`, `PolicyFlags="4294967296"`, 1),
		"policy id with a path":     strings.Replace(testAssignmentsXML, `PolicyID="{c6`, `PolicyID="../{c6`, 1),
		"assignment without policy": `<ReplyAssignments><PolicyAssignment/></ReplyAssignments>`,
		"another document":          `<html/>`,
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseAssignmentsReply(text); catalog.CodeOf(err) != catalog.AssignmentsReplyMalformed {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestParsePolicyQuery(t *testing.T) {
	tests := map[string]struct {
		query, id, version string
	}{
		"braces encoded, as the SDK sends it": {"%7B22222222-2222-2222-2222-222222222222%7D.1_00", "{22222222-2222-2222-2222-222222222222}", "1.00"},
		"braces encoded in lower case":        {"%7b22222222-2222-2222-2222-222222222222%7d.1_00", "{22222222-2222-2222-2222-222222222222}", "1.00"},
		"braces as they are":                  {testPolicyID + ".2_00", testPolicyID, "2.00"},
		"id without braces":                   {"PS120003-PS100009-6F6BCC28.1_00", "PS120003-PS100009-6F6BCC28", "1.00"},
		"id with a full stop":                 {"lab.wifi.12_03", "lab.wifi", "12.03"},
		"empty":                               {"", "", ""},
		"no version":                          {testPolicyID, "", ""},
		"version with a full stop":            {testPolicyID + ".1.00", "", ""},
		"no id":                               {".1_00", "", ""},
		"path in the id":                      {"../../etc/passwd.1_00", "", ""},
		"encoded slash":                       {"a%2Fb.1_00", "", ""},
		"encoded twice":                       {"%257Ba%257D.1_00", "", ""},
		"broken encoding":                     {"%7.1_00", "", ""},
		"quote":                               {"a'b.1_00", "", ""},
		"line feed at the end":                {"a.1_00%0A", "", ""},
		"second argument":                     {"a.1_00&x=1", "", ""},
		"longer than any id":                  {strings.Repeat("a", 129) + ".1_00", "", ""},
		"longer than any query":               {strings.Repeat("a", 2000) + ".1_00", "", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			id, version, err := ParsePolicyQuery(test.query)
			if id != test.id || version != test.version {
				t.Errorf("got %q %q %v, want %q %q", id, version, err, test.id, test.version)
			}
			if test.id == "" && catalog.CodeOf(err) != catalog.PolicyQueryMalformed {
				t.Errorf("got %v, want %s", err, catalog.PolicyQueryMalformed)
			}
		})
	}
}

func TestPolicyLocation(t *testing.T) {
	tests := map[string]struct{ version, want string }{
		"version given": {"2.00", "http://<mp>/SMS_MP/.sms_pol?{a}.2_00"},
		"first version": {"", "http://<mp>/SMS_MP/.sms_pol?{a}.1_00"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := PolicyLocation("{a}", test.version); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestPolicyBody(t *testing.T) {
	const text = `<Policy PolicyID="{a}">é 😀</Policy>`
	body := PolicyBody(text)
	if body[0] != 0xFF || body[1] != 0xFE || len(body)%2 != 0 {
		t.Errorf("body begins % x and has %d bytes", body[:4], len(body))
	}
	tests := map[string][]byte{
		"as written":        body,
		"without the mark":  body[2:],
		"with a final NUL":  append(body[:len(body):len(body)], 0, 0),
		"with three zeroes": append(body[:len(body):len(body)], 0, 0, 0),
	}
	for name, body := range tests {
		t.Run(name, func(t *testing.T) {
			if got := DecodePolicyBody(body); got != text {
				t.Errorf("got %q, want %q", got, text)
			}
		})
	}
	if got := DecodePolicyBody(openCapturedBody(t, "sdk-policy/03-body-plain")); !strings.HasPrefix(got, `<?xml version="1.0"?><Policy PolicyID=`) || !strings.HasSuffix(got, "</Policy>") {
		t.Errorf("captured body: %.60q", got)
	}
}

func FuzzParseAssignmentsRequest(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseAssignmentsRequest(text)
		if err != nil {
			return
		}
		if _, err := ParseClientID(string(r.ClientID)); err != nil {
			t.Fatal(err)
		}
		if again, err := ParseAssignmentsRequest(BuildAssignmentsRequest(r)); err != nil || again.ClientID != r.ClientID || again.Ack != r.Ack {
			t.Fatalf("built and read again: %+v %v, was %+v", again, err, r)
		}
	})
}

func FuzzParsePolicyQuery(f *testing.F) {
	f.Fuzz(func(t *testing.T, query string) {
		id, version, err := ParsePolicyQuery(query)
		if err != nil {
			return
		}
		if !ValidPolicyID(id) {
			t.Fatalf("accepted id %q", id)
		}
		_, again, _ := strings.Cut(PolicyLocation(id, version), "?")
		if id2, version2, err := ParsePolicyQuery(again); id2 != id || version2 != version || err != nil {
			t.Fatalf("location of %q %q gives %q %q %v", id, version, id2, version2, err)
		}
	})
}

func TestPolicyFlagsHas(t *testing.T) {
	flags := PolicyFlags(30)
	if !flags.Has(PolicyRequiresAuth|PolicySecret) || flags.Has(PolicyTaskSequence) || flags.Has(PolicySecret|PolicyCompressed) {
		t.Errorf("flags %d", flags)
	}
}

func TestPolicyHash(t *testing.T) {
	const want = "SHA256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855"
	if got := PolicyHash(nil); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
