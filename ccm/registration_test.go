package ccm

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/catalog"
)

const sdkClient ClientID = "GUID:A670CC56-2308-4189-A826-4A4938AFE403"

// testKey returns one RSA key for all tests that only need some key.
var testKey = sync.OnceValue(func() *rsa.PrivateKey { return newTestKey() })

// otherKey returns a second key.
var otherKey = sync.OnceValue(func() *rsa.PrivateKey { return newTestKey() })

func newTestKey() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
}

// testCertificate returns a client certificate for testKey.
func testCertificate(t testing.TB, key *rsa.PrivateKey) *Certificate {
	t.Helper()
	certificate, err := NewClientCertificate(key, "ConfigMgr Client", UsageSigning|UsageEncryption, testTime, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

var testTime = time.Date(2026, 11, 21, 20, 49, 8, 0, time.UTC)

// utf16Message is a message whose body is the text.
func utf16Message(text string) *Message { return &Message{Body: encodeUTF16Z(text)} }

func TestParseCapturedRegistrations(t *testing.T) {
	tests := []struct {
		name, hash string
		kind       string
		smsid      ClientID
		signer     string // Signature/@SMSID
		key        string // the registration that holds the key; "" for the message's own
		netBIOS    string
		hint       bool
	}{
		{name: "python-client-anonymous-http/01-registration", hash: "1.2.840.113549.1.1.11", kind: "Registration", netBIOS: "testpc1"},
		{name: "sdk-registration/01-registration", hash: "2.16.840.1.101.3.4.2.1", kind: "Registration", netBIOS: "SDK1"},
		{name: "sdk-registration/02-confirmation", hash: "2.16.840.1.101.3.4.2.1", kind: "Confirmation", smsid: sdkClient, signer: string(sdkClient), key: "sdk-registration/01-registration"},
		{name: "sdk-registration/03-registration-windowsauth", hash: "2.16.840.1.101.3.4.2.1", kind: "Registration", netBIOS: "SDK1"},
		{name: "sdk-registration/05-registration-windowsauth-ntlm-authenticate", hash: "2.16.840.1.101.3.4.2.1", kind: "Registration", netBIOS: "SDK1"},
		{name: "sdk-registration/06-registration-hint", hash: "2.16.840.1.101.3.4.2.1", kind: "Registration", smsid: sdkClient, netBIOS: "SDK1", hint: true},
		{name: "sdk-registration-pending/01-registration", hash: "2.16.840.1.101.3.4.2.1", kind: "Registration", netBIOS: "SDK1"},
		{name: "sdk-registration-pending/02-confirmation", hash: "2.16.840.1.101.3.4.2.1", kind: "Confirmation", smsid: "GUID:223570A9-99EF-47EC-8A1E-6499FC08BBFE", signer: "GUID:223570A9-99EF-47EC-8A1E-6499FC08BBFE", key: "sdk-registration-pending/01-registration"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, message := openCapture(t, test.name)
			r, err := ParseRegistration(message)
			if err != nil {
				t.Fatal(err)
			}
			var key *rsa.PublicKey
			if test.key != "" {
				key = capturedKey(t, test.key)
			}
			if err := r.Verify(key); err != nil {
				t.Errorf("verify: %v", err)
			}
			if got, want := r.SignedBytes, dataSlice(message.Body); !bytes.Equal(got, want) {
				t.Errorf("signed bytes are %d, want the %d from <Data to </Data>", len(got), len(want))
			}
			if r.Type != test.kind || r.SMSID != test.smsid || r.SignatureSMSID != test.signer || r.HashAlgorithm != test.hash {
				t.Errorf("got %s %s %s %s", r.Type, r.SMSID, r.SignatureSMSID, r.HashAlgorithm)
			}
			if got, want := r.Property("NetBIOS Name"), test.netBIOS; got != want {
				t.Errorf("NetBIOS name: got %q, want %q", got, want)
			}
			if got, want := r.Agent, (Agent{"CCMSetup.exe", "5.00.8325.0000", 0}); got != want {
				t.Errorf("agent: got %v, want %v", got, want)
			}
			if registration := test.kind == "Registration"; (r.Signing != nil) != registration || (r.Encryption != nil) != registration {
				t.Errorf("certificates: %v, %v", r.Signing, r.Encryption)
			}
			if (len(r.Hint) > 0) != test.hint {
				t.Errorf("hint of %d bytes", len(r.Hint))
			}
			if r.Verify(&otherKey().PublicKey) == nil {
				t.Error("another key verifies")
			}
		})
	}
}

// dataSlice finds the Data element without the parser.
func dataSlice(body []byte) []byte {
	start := bytes.Index(body, encodeUTF16("<Data"))
	end := bytes.Index(body, encodeUTF16("</Data>"))
	return body[start : end+len(encodeUTF16("</Data>"))]
}

func TestHintOfTheSDK(t *testing.T) {
	_, message := openCapture(t, "sdk-registration/06-registration-hint")
	r, err := ParseRegistration(message)
	if err != nil {
		t.Fatal(err)
	}
	if r.HintClientID != sdkClient {
		t.Errorf("hint's client: got %s, want %s", r.HintClientID, sdkClient)
	}
	if err := r.VerifyHint(capturedKey(t, "sdk-registration/01-registration")); err != nil {
		t.Error(err)
	}
	if got, want := catalog.CodeOf(r.VerifyHint(&otherKey().PublicKey)), catalog.RegistrationHintInvalid; got != want {
		t.Errorf("another key: got %q, want %q", got, want)
	}
}

// testRegistration returns a registration as our client makes it.
func testRegistration(t testing.TB) RegistrationRequest {
	certificate := testCertificate(t, testKey())
	return RegistrationRequest{
		Type: RegistrationTypeRegistration, TimeStamp: testTime.Format(wireTime),
		Agent:   Agent{Identity: "postern", Version: "5.00.0000.1000"},
		Signing: certificate, Encryption: certificate, KeyType: 1,
		Properties: map[string]string{"NetBIOS Name": "A&B", "FQ Name": "a.lab.local", "InternetFlag": "1", "Device ID": "7", "Zeta": "<z>"},
	}
}

func TestRegistrationRoundTrip(t *testing.T) {
	hint, err := SignRegistrationHint(sdkClient, testKey())
	if err != nil {
		t.Fatal(err)
	}
	again := testRegistration(t)
	again.SMSID, again.Hint = sdkClient, hint
	signingOnly := testRegistration(t)
	signingOnly.Encryption = nil
	tests := map[string]RegistrationRequest{
		"first registration":                testRegistration(t),
		"registration with id and hint":     again,
		"without an encryption certificate": signingOnly,
		"confirmation":                      {Type: RegistrationTypeConfirmation, SMSID: sdkClient, SignatureSMSID: string(sdkClient), TimeStamp: "2026-11-21T20:49:13Z"},
	}
	for name, in := range tests {
		t.Run(name, func(t *testing.T) {
			text, err := BuildRegistration(in, testKey())
			if err != nil {
				t.Fatal(err)
			}
			contentType, body, err := EncodeRequest(Header{TargetEndpoint: "MP_ClientRegistration"}, text, nil)
			if err != nil {
				t.Fatal(err)
			}
			message, err := ReadMessage(contentType, bytes.NewReader(body), DefaultLimits())
			if err != nil {
				t.Fatal(err)
			}
			got, err := ParseRegistration(message)
			if err != nil {
				t.Fatal(err)
			}
			if err := got.Verify(&testKey().PublicKey); err != nil {
				t.Error(err)
			}
			for name, value := range in.Properties {
				if got.Property(name) != value {
					t.Errorf("property %s: got %q, want %q", name, got.Property(name), value)
				}
			}
			if got.Type != in.Type || got.SMSID != in.SMSID || got.SignatureSMSID != in.SignatureSMSID || got.Agent != in.Agent || got.TimeStamp != in.TimeStamp {
				t.Errorf("got %+v", got)
			}
			if (got.Signing == nil) != (in.Signing == nil) || (got.Encryption == nil) != (in.Encryption == nil) {
				t.Errorf("certificates: %v %v", got.Signing, got.Encryption)
			}
			if len(in.Hint) > 0 {
				if err := got.VerifyHint(&testKey().PublicKey); err != nil || got.HintClientID != sdkClient {
					t.Errorf("hint of %s: %v", got.HintClientID, err)
				}
			}
		})
	}
}

func TestParseRegistrationRefuses(t *testing.T) {
	good, err := BuildRegistration(testRegistration(t), testKey())
	if err != nil {
		t.Fatal(err)
	}
	data := good[strings.Index(good, "<Data"):strings.Index(good, "<Signature>")]
	signing := good[strings.Index(good, "<Signing"):strings.Index(good, "</Certificates>")]
	replace := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in the message", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	property := `<Property Name="FQ Name" Value="a.lab.local"/>`
	tests := map[string]struct {
		text string
		want catalog.Code
	}{
		"empty":                             {"", catalog.RegistrationMalformed},
		"another root":                      {strings.ReplaceAll(good, "ClientRegistrationRequest", "ClientRegistrationReply"), catalog.RegistrationMalformed},
		"a second Data before":              {replace("<Data", strings.Replace(data, "a.lab", "evil", 1)+"<Data"), catalog.RegistrationMalformed},
		"a second Data after":               {replace("<Signature>", data+"<Signature>"), catalog.RegistrationMalformed},
		"Data wrapped in another element":   {strings.Replace(replace("<Data", "<Wrap><Data"), "</Data>", "</Data></Wrap>", 1), catalog.RegistrationMalformed},
		"a second Signature":                {replace("</ClientRegistrationRequest>", "<Signature><SignatureValue>00</SignatureValue></Signature></ClientRegistrationRequest>"), catalog.RegistrationMalformed},
		"no signature":                      {good[:strings.Index(good, "<Signature>")] + "</ClientRegistrationRequest>", catalog.RegistrationMalformed},
		"signature not hexadecimal":         {replace("<SignatureValue>", "<SignatureValue>zz"), catalog.RegistrationMalformed},
		"document type":                     {`<!DOCTYPE a [<!ENTITY e "x">]>` + good, catalog.RegistrationMalformed},
		"unknown request type":              {replace(`RequestType="Registration"`, `RequestType="Take"`), catalog.RegistrationMalformed},
		"client id with an injection":       {replace(`SMSID=""`, `SMSID="GUID:x' or 1=1--"`), catalog.RegistrationMalformed},
		"confirmation without id":           {replace(`RequestType="Registration"`, `RequestType="Confirmation"`), catalog.RegistrationMalformed},
		"a property twice":                  {replace(property, property+property), catalog.RegistrationMalformed},
		"a property twice in another case":  {replace(property, property+strings.Replace(property, "FQ Name", "fq NAME", 1)), catalog.RegistrationMalformed},
		"a property of 2000 characters":     {replace("a.lab.local", strings.Repeat("a", 2000)), catalog.RegistrationMalformed},
		"too many properties":               {replace(property, strings.Repeat(property, 100)), catalog.RegistrationMalformed},
		"two signing certificates":          {replace(signing, signing+signing), catalog.RegistrationCertificate},
		"no signing certificate":            {replace(signing, ""), catalog.RegistrationCertificate},
		"signing certificate not DER":       {replace(`<Signing Encoding="HexBinary" KeyType="1">30`, `<Signing Encoding="HexBinary" KeyType="1">31`), catalog.RegistrationCertificate},
		"encryption certificate not hex":    {replace(`<Encryption Encoding="HexBinary" KeyType="1">30`, `<Encryption Encoding="HexBinary" KeyType="1">x0`), catalog.RegistrationCertificate},
		"agent type not a number":           {replace(`AgentType="0"`, `AgentType="zero"`), catalog.RegistrationMalformed},
		"key type not a number":             {strings.ReplaceAll(good, `KeyType="1"`, `KeyType="one"`), catalog.RegistrationCertificate},
		"an element twice inside Data":      {replace("<DiscoveryProperties>", "<DiscoveryProperties/><DiscoveryProperties>"), catalog.RegistrationMalformed},
		"another element after the message": {good + "<Data/>", catalog.RegistrationMalformed},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ParseRegistration(utf16Message(test.text))
			if got := catalog.CodeOf(err); got != test.want {
				t.Errorf("got %v (code %q), want %q", err, got, test.want)
			}
			said, _ := errors.AsType[*catalog.Error](err)
			if said != nil && said.Err != nil && strings.Contains(said.Detail, said.Err.Error()) {
				t.Errorf("the detail for people repeats the cause: %s", said.Detail)
			}
		})
	}
}

// What stands in a comment or a CDATA section is never taken for the signed element, and every changed byte is noticed.
func TestRegistrationSignatureCoversWhatIsRead(t *testing.T) {
	good, err := BuildRegistration(testRegistration(t), testKey())
	if err != nil {
		t.Fatal(err)
	}
	data := good[strings.Index(good, "<Data"):strings.Index(good, "<Signature>")]
	forged := strings.Replace(data, "a.lab.local", "b.lab.local", 1)
	tests := map[string]struct {
		text     string
		verifies bool
	}{
		"as sent":                           {good, true},
		"the signed Data in a comment":      {strings.Replace(good, data, "<!--"+data+"-->"+forged, 1), false},
		"the forged Data in a comment":      {strings.Replace(good, data, "<!--"+forged+"-->"+data, 1), true},
		"the signed Data in a CDATA":        {strings.Replace(good, data, "<![CDATA["+data+"]]>"+forged, 1), false},
		"the signed Data in an instruction": {strings.Replace(good, data, "<?x "+data+"?>"+forged, 1), false},
		"a changed value":                   {strings.Replace(good, "a.lab.local", "c.lab.local", 1), false},
		"a comment put into Data":           {strings.Replace(good, "</Data>", "<!-- --></Data>", 1), false},
		"a blank in the closing tag":        {strings.Replace(good, "</Data>", "</Data >", 1), false},
		"quotes changed":                    {strings.Replace(good, `SMSID=""`, `SMSID=''`, 1), false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r, err := ParseRegistration(utf16Message(test.text))
			if err != nil {
				t.Fatal(err)
			}
			err = r.Verify(nil)
			if got := err == nil; got != test.verifies {
				t.Errorf("verify: %v, want success %t", err, test.verifies)
			}
			if err != nil && catalog.CodeOf(err) != catalog.RegistrationSignature {
				t.Errorf("code %q", catalog.CodeOf(err))
			}
			if test.verifies && r.Property("FQ Name") != "a.lab.local" {
				t.Errorf("the signature fits but %q was read", r.Property("FQ Name"))
			}
		})
	}
}

func TestRegistrationResponseXML(t *testing.T) {
	tests := map[string]struct {
		in   RegistrationResponse
		want string
	}{
		"registered": {
			RegistrationResponse{Type: "Registration", TimeStamp: testTime, Status: RegistrationDone, SMSID: sdkClient, ApprovalStatus: ApprovalApproved},
			`<ClientRegistrationResponse ResponseType="Registration" TimeStamp="2026-11-21T20:49:08Z" Status="0" SMSID="GUID:A670CC56-2308-4189-A826-4A4938AFE403" ApprovalStatus="1"/>`,
		},
		"pending confirmation": {
			RegistrationResponse{Type: "Confirmation", TimeStamp: testTime, Status: RegistrationPending, SMSID: sdkClient, ApprovalStatus: ApprovalUnknown},
			`<ClientRegistrationResponse ResponseType="Confirmation" TimeStamp="2026-11-21T20:49:08Z" Status="1" SMSID="GUID:A670CC56-2308-4189-A826-4A4938AFE403" ApprovalStatus="-1"/>`,
		},
		"rejected, and so without an id": {
			RegistrationResponse{Type: "Registration", TimeStamp: testTime, Status: RegistrationRejected, SMSID: sdkClient},
			`<ClientRegistrationResponse ResponseType="Registration" TimeStamp="2026-11-21T20:49:08Z" Status="3" ApprovalStatus="0"/>`,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := test.in.XML(); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			back, err := ParseRegistrationResponse(test.want)
			if err != nil {
				t.Fatal(err)
			}
			want := test.in
			if want.Status == RegistrationRejected {
				want.SMSID = ""
			}
			if back != want {
				t.Errorf("got %+v, want %+v", back, want)
			}
		})
	}
}

func TestParseRegistrationResponse(t *testing.T) {
	tests := map[string]struct {
		text string
		want RegistrationResponse
		code catalog.Code
	}{
		"sample of the 2007 documentation": {
			text: `<ClientRegistrationResponse ResponseType="Registration" TimeStamp="2006-12-07T22:56:31Z" Status="0" SMSID="GUID:0EAD457A-7EE3-4E90-B8BF-6144266E6823"/>`,
			want: RegistrationResponse{"Registration", time.Date(2006, 12, 7, 22, 56, 31, 0, time.UTC), RegistrationDone, "GUID:0EAD457A-7EE3-4E90-B8BF-6144266E6823", ApprovalUnknown},
		},
		"id in lower case": {
			text: `<ClientRegistrationResponse ResponseType="Registration" TimeStamp="2006-12-07T22:56:31Z" Status="0" SMSID="GUID:1af488d8-7b42-4842-a4bd-b3a2842bbc42" ApprovalStatus="3"/>`,
			want: RegistrationResponse{"Registration", time.Date(2006, 12, 7, 22, 56, 31, 0, time.UTC), RegistrationDone, "GUID:1AF488D8-7B42-4842-A4BD-B3A2842BBC42", ApprovalEntra},
		},
		"certificate reset": {
			text: `<ClientRegistrationResponse ResponseType="Registration" Status="4"/>`,
			want: RegistrationResponse{Type: "Registration", Status: RegistrationCertificateReset, ApprovalStatus: ApprovalUnknown},
		},
		"no status":        {text: `<ClientRegistrationResponse SMSID="GUID:1af488d8-7b42-4842-a4bd-b3a2842bbc42"/>`, code: catalog.RegistrationResponseMalformed},
		"unknown status":   {text: `<ClientRegistrationResponse Status="9"/>`, code: catalog.RegistrationResponseMalformed},
		"done without id":  {text: `<ClientRegistrationResponse Status="0"/>`, code: catalog.RegistrationResponseMalformed},
		"a page of a cafe": {text: `<html><body>Welcome</body></html>`, code: catalog.RegistrationResponseMalformed},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseRegistrationResponse(test.text)
			if code := catalog.CodeOf(err); code != test.code || got != test.want {
				t.Errorf("got %+v %v, want %+v %q", got, err, test.want, test.code)
			}
		})
	}
}

func TestParseCapturedRegistrationReplies(t *testing.T) {
	tests := map[string]RegistrationResponse{
		"python-client-anonymous-http/01-registration": {"Registration", time.Date(2026, 11, 21, 20, 44, 28, 0, time.UTC), RegistrationPending, "GUID:096EFF83-379B-49CB-B96D-9296C239D7A2", ApprovalApproved},
		"sdk-registration/01-registration":             {"Registration", testTime, RegistrationPending, sdkClient, ApprovalApproved},
		"sdk-registration-pending/02-confirmation":     {"Confirmation", time.Date(2026, 11, 21, 20, 56, 34, 0, time.UTC), RegistrationDone, "GUID:223570A9-99EF-47EC-8A1E-6499FC08BBFE", ApprovalApproved},
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseRegistrationResponse(openCapturedReply(t, name).Text())
			if err != nil || got != want {
				t.Errorf("got %+v %v, want %+v", got, err, want)
			}
		})
	}
}

func FuzzParseRegistration(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := ParseRegistration(&Message{Body: body})
		if err != nil {
			if code := catalog.CodeOf(err); code != catalog.RegistrationMalformed && code != catalog.RegistrationCertificate {
				t.Fatalf("error without its code: %v", err)
			}
			return
		}
		if !bytes.Contains(body, r.SignedBytes) {
			t.Fatal("the signed bytes are not in the body")
		}
		if text := decodeUTF16(append([]byte{body[0], body[1]}, r.SignedBytes...)); body[0] == 0xFF && !strings.HasPrefix(text, "<Data") {
			t.Fatalf("the signed bytes begin with %.20q", text)
		}
		_ = r.Verify(nil)
	})
}

func FuzzParseRegistrationResponse(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRegistrationResponse(text)
		if err != nil {
			return
		}
		if again, err := ParseRegistrationResponse(r.XML()); err != nil || again.SMSID != r.SMSID || again.Status != r.Status {
			t.Fatalf("written and read again: %+v %v, was %+v", again, err, r)
		}
	})
}

func TestApprovalStatusString(t *testing.T) {
	tests := map[ApprovalStatus]string{ApprovalUnknown: "unknown", ApprovalNone: "not approved", ApprovalApproved: "approved", 9: "approval 9"}
	for status, want := range tests {
		if got := status.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
