package entra

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf16"

	"postern/catalog"
)

const tenantID = "9aaf466a-3f40-4468-b3cd-f0010f21f05a" // S2

func TestParseStatus(t *testing.T) {
	for _, test := range []struct {
		file string
		want JoinState
	}{
		{"hybrid.txt", JoinState{
			JoinType: JoinHybrid, DomainJoined: true, TenantID: tenantID, TenantName: "Contoso", Provider: DialectEntra,
			Authority: publicCloud + tenantID, DeviceID: deviceID, User: User{Name: "meg@contoso.com"}, Source: "dsregcmd /status",
			WorkplaceJoin: WorkplaceJoin{Thumbprint: "D293213EF327483560EED8410CAE36BB67208179", NotAfter: time.Date(2029, 1, 11, 21, 32, 50, 0, time.UTC)},
		}},
		{"registered.txt", JoinState{
			JoinType: JoinRegistered, WorkplaceJoined: true, TenantID: tenantID, TenantName: "Contoso", Provider: DialectEntra,
			Authority: publicCloud + tenantID, DeviceID: deviceID, Source: "dsregcmd /status",
			WorkplaceJoin: WorkplaceJoin{Thumbprint: "D293213EF327483560EED8410CAE36BB67208179"},
		}},
		{"none.txt", JoinState{JoinType: JoinNone, DomainJoined: true, Provider: DialectEntra, Source: "dsregcmd /status"}},
	} {
		content, err := os.ReadFile(filepath.Join("testdata", "dsregcmd", test.file))
		if err != nil {
			t.Fatal(err)
		}
		windows := bytes.ReplaceAll(content, []byte("\n"), []byte("\r\n"))
		wide := []byte{0xff, 0xfe}
		for _, unit := range utf16.Encode([]rune(string(windows))) {
			wide = append(wide, byte(unit), byte(unit>>8))
		}
		for name, output := range map[string][]byte{"as captured": content, "with CR LF": windows, "as PowerShell writes it": wide} {
			if got, err := ParseStatus(output); err != nil || got != test.want {
				t.Errorf("%s %s: got %+v, %v, want %+v", test.file, name, got, err, test.want)
			}
		}
	}
}

func TestParseStatusRefuses(t *testing.T) {
	for name, output := range map[string]string{
		"nothing":               "",
		"another program":       "'dsregcmd' is not recognized as an internal or external command",
		"joined to nowhere":     "AzureAdJoined : YES\nDeviceId : " + deviceID,
		"a tenant that is none": "AzureAdJoined : YES\nTenantId : contoso\nDeviceId : " + deviceID,
		"too long":              "AzureAdJoined : NO\n" + strings.Repeat("x", maxStatus),
		"too many lines":        "AzureAdJoined : NO\n" + strings.Repeat("\n", maxStatusLines),
	} {
		if _, err := ParseStatus([]byte(output)); catalog.CodeOf(err) != catalog.EntraJoinState {
			t.Errorf("%s: got %v, want %s", name, err, catalog.EntraJoinState)
		}
	}
}

func TestReadJoinState(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "join-state.json")
	write := func(content string, mode os.FileMode) {
		t.Helper()
		os.Remove(path)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	ids := `"tenant_id":"` + strings.ToUpper(tenantID) + `","device_id":"` + deviceID + `"`
	write(`{"join_type":"hybrid",`+ids+`,"workplace_join":{"certificate":"wpj.pem","key":"/keys/wpj.key"},"ca_file":"ca.pem","user":{"sid":"`+userSID+`"}}`, 0o644)
	t.Setenv(joinStateVariable, path)
	got, err := PlatformJoinState()
	want := JoinState{
		JoinType: JoinHybrid, DomainJoined: true, TenantID: tenantID, DeviceID: deviceID, Provider: DialectEntra, Authority: publicCloud + tenantID,
		CAFile: filepath.Join(dir, "ca.pem"), WorkplaceJoin: WorkplaceJoin{Certificate: filepath.Join(dir, "wpj.pem"), Key: "/keys/wpj.key"},
		User: User{SID: userSID}, Source: path,
	}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, test := range []struct {
		name, content string
		mode          os.FileMode
		says          string
	}{
		{"others may write to it", `{"join_type":"none"}`, 0o666, "has the mode 0666"},
		{"no JSON", `join_type: none`, 0o600, "it is no join state"},
		{"a name that nobody knows", `{"join_type":"none","tenant":"x"}`, 0o600, `unknown field "tenant"`},
		{"something follows", `{"join_type":"none"}{}`, 0o600, "something follows"},
		{"no join type", `{}`, 0o600, "join_type is none of"},
		{"joined without a tenant", `{"join_type":"entra","device_id":"` + deviceID + `"}`, 0o600, "tenant_id is missing"},
		{"joined without a device", `{"join_type":"entra","tenant_id":"` + tenantID + `"}`, 0o600, "device_id is missing"},
		{"a tenant that is none", `{"join_type":"entra","tenant_id":"contoso","device_id":"` + deviceID + `"}`, 0o600, "tenant_id is no GUID"},
		{"another provider without an authority", `{"join_type":"entra","provider":"openid","tenant_id":"acme","device_id":"pc1"}`, 0o600, "authority is missing"},
		{"an authority without TLS", `{"join_type":"entra",` + ids + `,"authority":"http://login.example/x"}`, 0o600, "authority is no https address"},
		{"an authority with a password", `{"join_type":"entra",` + ids + `,"authority":"https://a:b@login.example/x"}`, 0o600, "authority is no https address"},
		{"a certificate without a key", `{"join_type":"entra",` + ids + `,"workplace_join":{"certificate":"a"}}`, 0o600, "needs certificate and key"},
		{"a SID that is none", `{"join_type":"entra",` + ids + `,"device_sid":"S-1"}`, 0o600, "device_sid is no SID"},
		{"a provider that is none", `{"join_type":"none","provider":"saml"}`, 0o600, "provider is neither"},
		{"an escape sequence", `{"join_type":"none","tenant_name":"\u001b[31m"}`, 0o600, "cannot be printed"},
		{"too long", `{"join_type":"none"}` + strings.Repeat(" ", maxJoinState), 0o600, "longer than"},
	} {
		write(test.content, test.mode)
		if _, err := ReadJoinState(path); catalog.CodeOf(err) != catalog.EntraJoinState || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.says)
		}
	}
	os.Remove(path)
	if _, err := PlatformJoinState(); catalog.CodeOf(err) != catalog.EntraNotJoined {
		t.Errorf("without a file: got %v, want %s", err, catalog.EntraNotJoined)
	}
}

func TestAuthorityIsTheJoinsOwn(t *testing.T) {
	cloud, other := publicCloud+tenantID, "https://127.0.0.1:8443/"+tenantID
	for _, test := range []struct {
		name      string
		dialect   Dialect
		own, site string
		want      string // "" when it is refused
	}{
		{"the site names none", DialectEntra, cloud + "/", "", cloud},
		{"the issuer of version 1 tokens", DialectEntra, cloud, "https://sts.windows.net/" + tenantID + "/", cloud},
		{"the issuer of version 2 tokens", DialectEntra, cloud, cloud + "/v2.0", cloud},
		{"the stand-in's issuer", DialectEntra, other, other + "/", other},
		{"another host", DialectEntra, cloud, other, ""},
		{"another port", DialectEntra, other, strings.Replace(other, "8443", "8444", 1), ""},
		{"Microsoft's for another's", DialectEntra, other, cloud, ""},
		{"without TLS", DialectEntra, cloud, "http://sts.windows.net/" + tenantID, ""},
		{"an openid issuer", DialectOpenID, "https://sso.example/realms/a", "https://sso.example/realms/a", "https://sso.example/realms/a"},
		{"an openid issuer with a slash", DialectOpenID, "https://sso.example/realms/a", "https://sso.example/realms/a/", "https://sso.example/realms/a/"},
		{"an openid issuer that is not named", DialectOpenID, "https://sso.example/", "", "https://sso.example/"},
		{"another realm of the same host", DialectOpenID, "https://sso.example/realms/a", "https://sso.example/realms/b", ""},
	} {
		got, ok := JoinState{Provider: test.dialect, Authority: test.own}.authority(test.site)
		if ok != (test.want != "") || ok && got != test.want {
			t.Errorf("%s: got %q, %v, want %q", test.name, got, ok, test.want)
		}
	}
}

func TestExamine(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	join := JoinState{JoinType: JoinEntra, TenantID: tenantID, DeviceID: deviceID, Provider: DialectEntra, WorkplaceJoin: WorkplaceJoin{
		Certificate: filepath.Join(dir, "wpj.pem"), Key: filepath.Join(dir, "wpj.key")}}
	b := &bench{t: t, dir: dir}
	certificate, key := wpj(t, now.Add(-time.Hour), now.Add(time.Hour))
	b.install(certificate, key)
	for _, test := range []struct {
		name   string
		change func(j *JoinState)
		now    time.Time
		want   catalog.Code
	}{
		{"all is well", func(*JoinState) {}, now, ""},
		{"the thumbprint fits", func(j *JoinState) { j.WorkplaceJoin.Thumbprint = thumbprint(certificate) }, now, ""},
		{"the thumbprint is another's", func(j *JoinState) { j.WorkplaceJoin.Thumbprint = strings.Repeat("0", 40) }, now, catalog.EntraCertificateMissing},
		{"the certificate has expired", func(*JoinState) {}, now.Add(2 * time.Hour), catalog.EntraCertificateMissing},
		{"no certificate", func(j *JoinState) { j.WorkplaceJoin = WorkplaceJoin{} }, now, catalog.EntraCertificateMissing},
		{"not joined", func(j *JoinState) { *j = JoinState{JoinType: JoinNone} }, now, catalog.EntraNotJoined},
		{"registered only", func(j *JoinState) { j.JoinType = JoinRegistered }, now, catalog.EntraNotJoined},
		{"in the system's store, and expired", func(j *JoinState) {
			j.WorkplaceJoin = WorkplaceJoin{Thumbprint: strings.Repeat("0", 40), NotAfter: now.Add(-time.Hour)}
		}, now, catalog.EntraCertificateMissing},
	} {
		j := join
		test.change(&j)
		var got catalog.Code
		if found := Examine(j, test.now); len(found.Problems) > 0 {
			got = catalog.CodeOf(found.Problems[0])
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// stalled is a provider that takes a request and never answers.
type stalled struct{}

func (stalled) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestAnExchangeEndsAfterFifteenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &exchange{next: stalled{}, now: time.Now}
		began := time.Now()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://login.example/", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = x.RoundTrip(request)
		if took := time.Since(began); took != exchangeTime {
			t.Errorf("it took %s, want %s", took, exchangeTime)
		}
		if err := x.explain(t.Context(), err, "login.example"); catalog.CodeOf(err) != catalog.EntraUnreachable || !strings.Contains(err.Error(), "no answer in time") {
			t.Errorf("got %v", err)
		}
	})
}

func TestEveryMeaningSaysWhatToDo(t *testing.T) {
	for number, m := range meanings() {
		if m.text == "" || m.code == "" && m.remedy == "" {
			t.Errorf("AADSTS%d: %+v", number, m)
		}
	}
	for word, m := range words() {
		if m.text == "" || m.code == "" && m.remedy == "" {
			t.Errorf("%s: %+v", word, m)
		}
	}
}

func TestHarmless(t *testing.T) {
	const key = "Zm9vYmFyYmF6Zm9vYmFyYmF6Zm9vYmFyYmF6Zm9vYmFyYmF6"
	for _, test := range []struct{ name, text, want string }{
		{"plain", "Application with identifier '" + deviceID + "' was not found", "Application with identifier '" + deviceID + "' was not found"},
		{"a token", "got eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln here", "got [removed] here"},
		{"a key", "secret " + key, "secret [removed]"},
		{"control characters", "a\x1b[31mb\x00c", "a [31mb c"},
	} {
		if got := harmless(test.text, 200); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
	if got := harmless(strings.Repeat("é ", 300), 201); len(got) > 201 || strings.ContainsRune(got, '\ufffd') {
		t.Errorf("cut badly: %q", got)
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Fuzz(func(t *testing.T, output []byte) {
		j, err := ParseStatus(output)
		if err != nil {
			if catalog.CodeOf(err) != catalog.EntraJoinState {
				t.Errorf("got %v, want a code", err)
			}
			return
		}
		if err := j.check(); err != nil {
			t.Errorf("accepted what a file could not say: %v", err)
		}
	})
}

func FuzzJoinState(f *testing.F) {
	f.Fuzz(func(t *testing.T, content []byte) {
		j, err := parseJoinState(content)
		if err != nil {
			return
		}
		if again, err := j.complete(); err != nil || again != j {
			t.Errorf("complete changes what it has completed: %+v, %v", again, err)
		}
		Examine(JoinState{JoinType: j.JoinType, Source: j.Source}, time.Now())
	})
}

func FuzzRefusal(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		r := parseRefusal(http.StatusBadRequest, body)
		if r == nil {
			return
		}
		err := r.explain(0)
		if !errors.As(err, new(*Refusal)) || secretLike.MatchString(r.Text) || len(r.Text) > 200 {
			t.Errorf("got %v of %q", err, body)
		}
	})
}

// The broker of Windows is not called here; what stands in its place is nothing.
func TestNoSystemBrokerButOnWindows(t *testing.T) {
	if broker := system(); broker != nil {
		_, err := broker.Token(context.Background(), Want{})
		if catalog.CodeOf(err) != catalog.EntraNeedsBroker {
			t.Errorf("got %v, want %s", err, catalog.EntraNeedsBroker)
		}
	}
}
