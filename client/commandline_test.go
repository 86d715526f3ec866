package client

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

// seedToken has the form of a token; the real one of S3 needs no place here.
const seedToken = "eyJ0eXAiOiJKV1QifQ.eyJVbmlxdWVJZCI6ImVhMmZjNTEwIn0.Y-6s6_h18cnIZP8OPqdjpxQHUhg"

func TestTheDocumentedLineIsUnderstood(t *testing.T) {
	got, err := ParseCommandLine([]string{
		"/mp:https://GerryHCMG.emslab.ie/CCM_Proxy_MutualAuth/72186325152220500", `CCMHOSTNAME="GerryHCMG.emslab.ie/CCM_Proxy_MutualAuth/72186325152220500"`,
		"SMSSiteCode=GER", "SMSMP=https://MEM.hampson.local", "/regtoken:" + seedToken, "/nocrlcheck",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Gateway{Host: "GerryHCMG.emslab.ie", RoleID: 72186325152220500}
	if got.Gateway != want || got.SiteCode != "GER" || got.ManagementPoint != "https://MEM.hampson.local" || got.Token != seedToken {
		t.Errorf("got %+v", got)
	}
	if len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "--token-file") || len(got.Notes) != 1 {
		t.Errorf("got the warnings %q and the notes %q, want one each", got.Warnings, got.Notes)
	}
	way, err := got.route()
	if url := way.url(ccm.EndpointSTS, ""); url != "https://GerryHCMG.emslab.ie/CCM_Proxy_ServerAuth/72186325152220500/CCM_STS" || err != nil {
		t.Errorf("got %s, %v", url, err)
	}
}

func TestParseCommandLine(t *testing.T) {
	pin := strings.Repeat("AB", 32)
	tests := []struct {
		name string
		args []string
		ok   func(Setup) bool
	}{
		{"gateway with a port and the other door", []string{"ccmhostname=127.0.0.1:8443/ccm_proxy_serverauth/7"}, func(s Setup) bool { return s.Gateway == Gateway{"127.0.0.1:8443", 7} }},
		{"gateway by /mp: alone", []string{"/MP:https://g.test/CCM_Proxy_MutualAuth/7;https://mp.test"}, func(s Setup) bool {
			return s.Gateway == Gateway{"g.test", 7} && s.ManagementPoint == "https://mp.test"
		}},
		{"SMSMP before /mp:", []string{"/mp:https://a.test", "SMSMP=https://b.test"}, func(s Setup) bool { return s.ManagementPoint == "https://b.test" }},
		{"value after an equals sign", []string{"/retry=5"}, func(s Setup) bool { return s.Retry == 5*time.Minute }},
		{"plain HTTP inside", []string{"SMSMP=http://mp"}, func(s Setup) bool { return s.ManagementPoint == "http://mp" }},
		{"no scheme is https", []string{"SMSMP=mp"}, func(s Setup) bool { return s.ManagementPoint == "https://mp" && len(s.Notes) == 1 }},
		{"a management point on the internet", []string{"CCMHOSTNAME=mp.contoso.com"}, func(s Setup) bool { return s.InternetPoint == "https://mp.contoso.com" }},
		{"https:// in CCMHOSTNAME is taken off", []string{"CCMHOSTNAME=https://g.test/CCM_Proxy_MutualAuth/7"}, func(s Setup) bool { return s.Gateway.Host == "g.test" && len(s.Warnings) == 1 }},
		{"root key by its hash", []string{"smspublicrootkey=" + pin}, func(s Setup) bool { return s.RootKey == strings.ToLower(pin) }},
		{"the tenant and its applications", []string{"AADTENANTID=9aaf466a-3f40-4468-b3cd-f0010f21f05a", "aadclientappid=0b7c8ab3", `AADRESOURCEURI="https://ConfigMgrService"`}, func(s Setup) bool {
			return s.TenantID == "9aaf466a-3f40-4468-b3cd-f0010f21f05a" && s.ClientApp == "0b7c8ab3" && s.Resource == "https://ConfigMgrService" && len(s.Notes)+len(s.Warnings) == 0
		}},
		{"no revocation lists, said what it covers", []string{"/NOCRLCHECK"}, func(s Setup) bool { return s.NoCRLCheck && len(s.Notes) == 1 }},
		{"a certificate of the company", []string{"/usepkicert", "CCMCERTSTORE=/etc/certificates", "CCMFIRSTCERT=1", "CCMCERTSEL=subjectattr:OU=Kiosks", "CCMCERTISSUERS=CN=Contoso Root CA; O=Contoso | CN=Litware Root"}, func(s Setup) bool {
			c := s.Certificate
			return c.Use && c.Store == "/etc/certificates" && c.First && c.Select == "subjectattr:OU=Kiosks" && len(c.Issuers) == 2 && len(c.Issuers[0]) == 2
		}},
		{"a criterion alone", []string{"CCMFIRSTCERT=1"}, func(s Setup) bool { return s.Certificate.Use && len(s.Notes) == 1 }},
		{"certificate and tenant", []string{"/UsePKICert", "AADTENANTID=x"}, func(s Setup) bool { return len(s.Notes) == 1 }},
		{"what comes later has a warning", []string{"SMSSIGNCERT=x", "DNSSUFFIX=x"}, func(s Setup) bool { return len(s.Warnings) == 2 }},
		{"what has no effect has a note", []string{"/BITSPriority:HIGH", "FSP=x", "SMSCACHESIZE=1"}, func(s Setup) bool { return len(s.Notes) == 3 }},
		{"everything in the logs", []string{"CCMLOGLEVEL=0"}, func(s Setup) bool { return s.Verbose }},
		{"any site", []string{"SMSSITECODE=auto", "SMSMP=https://mp"}, func(s Setup) bool { return s.SiteCode == "" }},
		{"nothing", nil, func(s Setup) bool { return s.Gateway.Host == "" }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseCommandLine(test.args)
			if err != nil || !test.ok(got) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestCommandLinesThatAreRefused(t *testing.T) {
	tests := []struct {
		name string
		args []string
		code catalog.Code
		text string
	}{
		{"slip in a property", []string{"CCMHOSTNME=x"}, catalog.ClientCommandUnknown, "CCMHOSTNAME"},
		{"slip in a parameter", []string{"/regtokn:x"}, catalog.ClientCommandUnknown, "/regtoken"},
		{"slash forgotten", []string{"nocrlcheck"}, catalog.ClientCommandUnknown, "/NoCRLCheck"},
		{"nothing like it", []string{"/qqqqqqqqqqqqqqqqqqqq"}, catalog.ClientCommandUnknown, "none of"},
		{"gateway without a number", []string{"CCMHOSTNAME=g.test/CCM_Proxy_MutualAuth"}, catalog.ClientCommandValue, "CCMHOSTNAME"},
		{"gateway with another path", []string{"CCMHOSTNAME=g.test/CCM_Proxy_MutualAuth/7/CCM_STS"}, catalog.ClientCommandValue, ""},
		{"gateway by http", []string{"/mp:http://g.test/CCM_Proxy_MutualAuth/7"}, catalog.ClientPlainInternet, ""},
		{"user in a host", []string{"SMSMP=https://a@b"}, catalog.ClientCommandValue, ""},
		{"port zero", []string{"SMSMP=https://a:0"}, catalog.ClientCommandValue, ""},
		{"token that is none", []string{"/regtoken:hello"}, catalog.ClientCommandValue, "/regtoken"},
		{"twice", []string{"SMSMP=https://a", "smsmp=https://a"}, catalog.ClientCommandConflict, "twice"},
		{"AUTO with a gateway", []string{"CCMHOSTNAME=g.test/CCM_Proxy_MutualAuth/7", "SMSSITECODE=AUTO"}, catalog.ClientCommandConflict, "AUTO"},
		{"two anchors", []string{"SMSROOTKEYPATH=f", "SMSPublicRootKey=" + strings.Repeat("00", 32)}, catalog.ClientCommandConflict, ""},
		{"root key that is none", []string{"SMSPublicRootKey=0602"}, catalog.ClientCommandValue, ""},
		{"value missing", []string{"/retry:"}, catalog.ClientCommandValue, "minutes"},
		{"uninstall", []string{"/uninstall"}, catalog.ClientCommandNotSupported, "state folder"},
		{"a switch with a value", []string{"/nocrlcheck:1"}, catalog.ClientCommandValue, "/NoCRLCheck takes no value"},
		{"slip in a property of the tenant", []string{"AADTENANT=x"}, catalog.ClientCommandUnknown, "AADTENANTID"},
		{"slip in a switch", []string{"/UsePKI"}, catalog.ClientCommandUnknown, "/UsePKICert"},
		{"a criterion that is none", []string{"CCMCERTSEL=wk02"}, catalog.ClientCommandValue, "subjectstr"},
		{"an attribute without value", []string{"CCMCERTSEL=subjectattr:OU"}, catalog.ClientCommandValue, ""},
		{"issuers that are none", []string{"CCMCERTISSUERS=Contoso"}, catalog.ClientCommandValue, "CN=NAME"},
		{"a resource with blanks", []string{"AADRESOURCEURI=a b"}, catalog.ClientCommandValue, "AADRESOURCEURI"},
		{"no name check", []string{"CCMCERTNAMECHECK=0"}, catalog.ClientCommandNotSupported, "always"},
		{"control character", []string{"SMSMP=a\nb"}, catalog.ClientCommandValue, ""},
		{"site code", []string{"SMSSITECODE=GERM"}, catalog.ClientCommandValue, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := ParseCommandLine(test.args)
			if catalog.CodeOf(err) != test.code || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want %s with %q", err, test.code, test.text)
			}
		})
	}
}

func TestATokenIsNeverPrinted(t *testing.T) {
	s, err := ParseCommandLine([]string{"/regtoken:" + seedToken})
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	_, refused := ParseCommandLine([]string{"/regtoken:" + seedToken + "!"})
	for how, text := range map[string]string{"%v": fmt.Sprintf("%v", s), "%+v": fmt.Sprintf("%+v", s), "%#v": fmt.Sprintf("%#v", s), "JSON": string(asJSON), "refusal": refused.Error()} {
		if strings.Contains(text, seedToken[:16]) {
			t.Errorf("%s shows the token: %s", how, text)
		}
	}
}

func TestRootKeys(t *testing.T) {
	key := testKeys()[0]
	blob := hex.EncodeToString(ccm.MarshalPublicKeyBlob(&key.PublicKey))
	if got, err := ParseRootKey(blob); got != token.Pin(&key.PublicKey) || err != nil {
		t.Errorf("got %q, %v, want the key's hash", got, err)
	}
}

func TestReadToken(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name, file, in string
		code           catalog.Code
	}{
		{"file with a line end", write("good", seedToken+"\r\n"), "", ""},
		{"standard input", "-", seedToken + "\n", ""},
		{"two lines", write("two", seedToken+"\n"+seedToken), "", catalog.ClientTokenFile},
		{"no file", filepath.Join(dir, "none"), "", catalog.ClientTokenFile},
		{"huge", write("huge", strings.Repeat("a", 1<<20)), "", catalog.ClientTokenFile},
		{"empty input", "-", "", catalog.ClientTokenFile},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := Setup{TokenFile: test.file}
			err := s.ReadToken(bytes.NewBufferString(test.in))
			if catalog.CodeOf(err) != test.code || err == nil && s.Token != seedToken {
				t.Errorf("got %v, want %q", err, test.code)
			}
		})
	}
}

func TestTheTableIsWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range Parameters() {
		name := strings.ToUpper(p.Name)
		if seen[name] || p.Meaning == "" || (p.Use == Applies) != (p.set != nil) || p.Use != Applies && p.Note == "" {
			t.Errorf("row %s is there twice or incomplete", p.Name)
		}
		seen[name] = true
	}
}

func FuzzParseCommandLine(f *testing.F) {
	f.Fuzz(func(t *testing.T, line string) {
		s, err := ParseCommandLine(strings.Split(line, "\n"))
		if err != nil {
			if catalog.CodeOf(err) == "" {
				t.Errorf("no code: %v", err)
			}
			return
		}
		way, err := s.route()
		if err != nil {
			if catalog.CodeOf(err) == "" {
				t.Errorf("no code: %v", err)
			}
			return
		}
		if way.Host != "" && checkHost(way.Host) != nil {
			t.Errorf("accepted the host %q", way.Host)
		}
		if way.Internet && !way.secure() {
			t.Errorf("accepted plain HTTP on the internet: %+v", way)
		}
	})
}

func FuzzProblem(f *testing.F) {
	f.Fuzz(func(t *testing.T, status int, phrase, contentType string, body []byte, retry, sent string) {
		header := map[string][]string{"Content-Type": {contentType}, "Retry-After": {retry}, ccm.HeaderMessageID: {phrase}}
		err := parseProblem("h", ccm.Status{Code: status, Reason: phrase}, header, body, sent)
		if _, known := catalog.Lookup(catalog.CodeOf(err)); !known {
			t.Fatalf("code %q is not in the catalogue", catalog.CodeOf(err))
		}
		text := err.Error()
		if strings.ContainsAny(text, "\r\n\x1b\x00") || len(text) > 2000 {
			t.Errorf("not fit for a log: %q", text)
		}
		if tokenForm(sent) && repeats(text, sent) {
			t.Errorf("the token is in %q", text)
		}
		if wait := asked(err); wait < 0 || wait > maxRetryAfter {
			t.Errorf("waits %s", wait)
		}
	})
}

func FuzzTokenAnswer(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := parseTokenAnswer(token.KindCCM, answer{body: body}, begin())
		if err != nil {
			if catalog.CodeOf(err) == "" {
				t.Errorf("no code: %v", err)
			}
			return
		}
		if !tokenForm(got.Token) || !got.Expires.After(begin()) || got.Expires.Sub(begin()) > maxTokenLife {
			t.Errorf("accepted %+v", got)
		}
	})
}

func TestProblems(t *testing.T) {
	tests := []struct {
		name        string
		status      ccm.Status
		contentType string
		body        string
		code        catalog.Code
		has, hasNot string
	}{
		{"a code", ccm.StatusInvalidToken, "application/problem+json", `{"code":"P210","detail":"ended"}`, catalog.TokenExpired, "CMGService_Invalid_Token", ""},
		{"only the documented phrase", ccm.StatusInvalidToken, "", "", catalog.SymptomGatewayInvalidToken, "401", ""},
		{"a connector's phrase", ccm.ConnectorStatus(403, "Client certificate required"), "", "", catalog.SymptomConnectorClientCertificateRequired, "", ""},
		{"an unknown code is named", ccm.StatusOf(400), "application/problem+json", `{"code":"P999","title":"Odd"}`, catalog.ClientRefused, "P999 Odd", ""},
		{"the token comes back", ccm.StatusOf(400), "application/problem+json", `{"code":"P201","detail":"your token ` + seedToken + ` is bad"}`, catalog.TokenMalformed, "", seedToken[:16]},
		{"a part of it comes back", ccm.StatusOf(400), "application/problem+json", `{"code":"P201","detail":"` + seedToken[30:60] + `"}`, catalog.TokenMalformed, "withheld", seedToken[30:60]},
		{"terminal escapes", ccm.StatusOf(400), "application/problem+json", `{"code":"P201","detail":"a\u001b[31mb\r\nc"}`, catalog.TokenMalformed, "a [31mb  c", "\x1b"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := parseProblem("g.test", test.status, map[string][]string{"Content-Type": {test.contentType}}, []byte(test.body), seedToken)
			if catalog.CodeOf(err) != test.code || !strings.Contains(err.Error(), test.has) || test.hasNot != "" && strings.Contains(err.Error(), test.hasNot) {
				t.Errorf("got %v, want %s with %q without %q", err, test.code, test.has, test.hasNot)
			}
		})
	}
}

func TestJitterStaysNear(t *testing.T) {
	a := &Agent{config: Config{Rand: rand.Reader}}
	for range 1000 {
		if d := a.jitter(time.Hour); d < 48*time.Minute || d >= 72*time.Minute {
			t.Fatalf("got %s", d)
		}
	}
}
