package scrub_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"postern/diag/scrub"
)

const siteKey = "\x01\x92\xf0site\x00\x7f\x80\xc3\x11key\xfe\xaa\x55\x10\x20\x30\x40\x51\x62\x73\x84\x95\xa6\xb7\xc8"

func utf16(text string) string {
	var b strings.Builder
	for i := range len(text) {
		b.WriteByte(text[i])
		b.WriteByte(0)
	}
	return b.String()
}

func TestKnownSecretsAreFoundHoweverTheyAreWritten(t *testing.T) {
	s := scrub.New([]byte(siteKey), []byte("correct horse"), []byte("abc"))
	for name, text := range map[string]string{
		"as it is": siteKey, "a piece": siteKey[5:25], "hexadecimal": hex.EncodeToString([]byte(siteKey)), "upper case": strings.ToUpper(hex.EncodeToString([]byte(siteKey))),
		"base64": base64.StdEncoding.EncodeToString([]byte(siteKey)), "base64 behind one byte": base64.StdEncoding.EncodeToString([]byte("x" + siteKey)),
		"base64url behind two bytes": base64.RawURLEncoding.EncodeToString([]byte("xy" + siteKey + "z")), "UTF-16": utf16(siteKey), "base64 of UTF-16": base64.StdEncoding.EncodeToString([]byte(utf16(siteKey))),
		"short": "correct horse", "short in UTF-16": utf16("correct horse"), "short in base64": base64.StdEncoding.EncodeToString([]byte("correct horse")),
	} {
		t.Run(name, func(t *testing.T) {
			if !s.Holds([]byte("before " + text + " after")) {
				t.Error("not found")
			}
			clean, n := s.Text([]byte("before " + text + " after"))
			if n == 0 || s.Holds(clean) || !bytes.HasPrefix(clean, []byte("before ")) || !bytes.HasSuffix(clean, []byte(" after")) {
				t.Errorf("got %q, %d", clean, n)
			}
		})
	}
	if s.Holds([]byte("abc, -----BEGIN PRIVATE KEY-----, correct")) {
		t.Error("found what is no secret")
	}
}

func TestWhatLooksLikeASecretIsLeftOut(t *testing.T) {
	const secret = "s3cr3tS3cr3tS3cr3t"
	for name, test := range map[string]struct{ text, gone string }{
		"a token":                   {"got eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl now", "eyJ"},
		"a private key":             {"-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "MIIabc"},
		"a private key cut off":     {"-----BEGIN PRIVATE KEY-----\nMIIabc", "MIIabc"},
		"a private key's end":       {"MIIabc\nabc=\n-----END PRIVATE KEY-----", "MIIabc"},
		"a header":                  {"Authorization: DPoP " + secret, secret},
		"a header in JSON":          {`{"Authorization":"Bearer ` + secret + `","x":1}`, secret},
		"a proof header":            {"DPoP: " + secret, secret},
		"a cookie":                  {"Cookie: a=" + secret, secret},
		"a scheme":                  {"sent negotiate " + secret, secret},
		"a password in an address":  {"postgres://postern:" + secret + "@db/postern", secret},
		"a password in a DSN":       {"host=db password=" + secret + " user=x", secret},
		"a quoted password":         {"password='two words " + secret + "'", secret},
		"a password in JSON":        {`"db_password": "` + secret + `"`, secret},
		"a password in quoted JSON": {`\"password\":\"` + secret + `\"`, secret},
		"an environment":            {"PGPASSWORD=" + secret, secret},
		"a token in a query":        {"GET /x?access_token=" + secret + "&y=1", secret},
		"a command line":            {"/regtoken:" + secret, secret},
		"bytes in base64":           {"read q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA= from", "q83vEj"},
		"bytes in hexadecimal":      {"read " + strings.Repeat("0a1b2c3d", 12) + " from", "0a1b2c3d0a1b"},
		"text in UTF-16":            {utf16("password=" + secret), secret},

		"a header cut off":                {`{"Authorization":"Bearer ` + secret, secret},
		"a header in quoted JSON":         {`"body":"{\"Authorization\":\"Basic dXNlcjpwYXNz\"}"`, "dXNlcjpwYXNz"},
		"headers as a list":               {`"Cookie":["a=1","b=` + secret + `"],"x":1`, secret},
		"headers as Go prints them":       {"map[Accept:[*/*] Authorization:[Basic dXNlcjpwYXNz]]", "dXNlcjpwYXNz"},
		"a password with a quote":         {`"password":"ab\"cdefgh","x":1`, "cdefgh"},
		"a quoted password with a quote":  {`password='it\'s hidden' user=x`, "hidden"},
		"a password with commas":          {"password=ab,cd;ef&gh}ij user=x", "gh}ij"},
		"a password in German":            {"Passwort: " + secret, secret},
		"a password in French":            {"Mot de passe : " + secret, secret},
		"pass":                            {"smtp.pass = " + secret, secret},
		"a name that goes on":             {"password.database: " + secret, secret},
		"spelled otherwise":               {"Db_Pass-Word=" + secret, secret},
		"an address with @ in a password": {"postgres://postern:p@" + secret + "@db/postern", secret},
		"an address with / in a password": {"postgres://postern:p/" + secret + "@db/postern", secret},
		"an address with one slash":       {"postgres:/postern:" + secret + "@db/postern", secret},
		"an address in JSON":              {`"postgres:\/\/postern:` + secret + `@db\/postern"`, secret},
		"a JWK":                           {`{"kty":"EC","crv":"P-256","d":"4CO2fRkKDPVixa6zlA5f8OgMa20HMi14Z-GBJFCS3Os"}`, "4CO2fRkK"},
		"a PGP key":                       {"-----BEGIN PGP PRIVATE KEY BLOCK-----\nabc\n-----END PGP PRIVATE KEY BLOCK-----", "abc"},
		"a key in JSON":                   {`"key":"-----BEGIN PRIVATE KEY-----\nMIIabc\n-----END PRIVATE KEY-----\n"`, "MIIabc"},
	} {
		t.Run(name, func(t *testing.T) {
			clean, n := scrub.New().Text([]byte(test.text))
			if n == 0 || bytes.Contains(clean, []byte(test.gone)) || !bytes.Contains(clean, []byte(scrub.Mark)) {
				t.Errorf("got %q, %d", clean, n)
			}
			if again, more := scrub.New().Text(clean); more != 0 {
				t.Errorf("a second time: %q, %d", again, more)
			}
		})
	}
}

// TestKnownSecretsAreFoundEscaped: a password with characters that JSON and addresses write otherwise.
func TestKnownSecretsAreFoundEscaped(t *testing.T) {
	const password = `a"b\c&d<é f@g/h%`
	s := scrub.New([]byte(password))
	html, err := json.Marshal(password)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("tried " + password)
	address := url.URL{Scheme: "postgres", User: url.UserPassword("postern", password), Host: "db"}
	for name, text := range map[string]string{
		"JSON": string(html), "slog": log.String(), "Go": strconv.Quote(password), "a query": "x=" + url.QueryEscape(password), "a path": "/" + url.PathEscape(password), "an address": address.String(),
	} {
		if clean, n := s.Text([]byte(text)); n == 0 || bytes.Contains(clean, []byte("f@g")) || bytes.Contains(clean, []byte("f%40g")) {
			t.Errorf("%s: %s became %s", name, text, clean)
		}
	}
}

func TestWhatABundleIsReadByStays(t *testing.T) {
	for _, text := range []string{
		"device GUID:BD4A2F49-EA94-4A46-B1BF-8F8C46372B23 (wk1.corp.example) at 203.0.113.9",
		`"key":"4CO2fRkKDPVixa6zlA5f8OgMa20HMi14Z-GBJFCS3Os"`, "site_root: 5d0b648e9d0a80b5a68869c80802e7652c063596bd4e0494920409cb3de82b8f",
		"thumbprint 7BBBDB4DA3F739571E7E39AFDF98EAF3B945434A", `"trace_id":"4516ae4d01407105cccbeb5f3a31557e"`, "traceparent 00-4516ae4d01407105cccbeb5f3a31557e-0123456789abcdef-01",
		"POST /CCM_Proxy_MutualAuth/72057594037927937/CCM_System/request 200", "site_key: /var/lib/postern/site/site.key", "Negotiate authentication failed", "the token: expired",
		`"bulk-token":"bd4a2f49-ea94-4a46-b1bf-8f8c46372b23"`, "postern_mp_request_seconds_bucket{route=\"/CCM_STS\",status=\"200\",le=\"0.0005\"} 12",
		`{"time":"2026-11-22T06:27:35.795716126Z","level":"INFO","msg":"request answered","proof":"message-signature"}`,
		"the checks: 3 pass, 0 fail; https://mp.corp.example:8443/SMS_MP and https://gw.corp.example/x",
		`{"level":"WARN","msg":"connection lost","error":"dial tcp 10.0.0.1:443: refused","address":"203.0.113.9:55123"}`,
		`<![LOG[Registered client GUID:BD4A2F49-EA94-4A46-B1BF-8F8C46372B23]LOG]!><time="06:27:35.795+000" date="11-22-2026" component="MP_RegistrationManager" context="" type="1" thread="1" file="x.go:1">`,
	} {
		if clean, n := scrub.New().Text([]byte(text)); n != 0 || string(clean) != text {
			t.Errorf("%s\nbecame %s", text, clean)
		}
	}
}

func FuzzText(f *testing.F) {
	s := scrub.New([]byte(siteKey), []byte("correct horse"))
	for _, text := range []string{"", "password=", "Authorization:", "eyJabcd.", siteKey + "correct horse", utf16(siteKey), "://:@", "-----BEGIN PRIVATE KEY-----"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if clean, _ := s.Text(text); bytes.Contains(clean, []byte(siteKey)) || bytes.Contains(clean, []byte("correct horse")) {
			t.Errorf("%q became %q", text, clean)
		}
	})
}
