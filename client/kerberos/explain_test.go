package kerberos

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/catalog"
)

// krbError is an error of a centre or a server whose clock is ahead by so much.
func krbError(t *testing.T, code int32, ahead time.Duration) []byte {
	t.Helper()
	e := messages.NewKRBError(types.PrincipalName{NameType: 2, NameString: []string{"HTTP", "mp"}}, "R", code, "said \x07 so")
	e.STime = e.STime.Add(ahead)
	raw, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// centre is a key distribution centre that gives one answer to everything.
func centre(t *testing.T, answer []byte) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var size [4]byte
			if _, err := io.ReadFull(c, size[:]); err == nil {
				io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(size[:])))
				c.Write(answer)
			}
			c.Close()
		}
	}()
	return l.Addr().String()
}

func framed(raw []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(raw))), raw...)
}

func TestACentresRefusalIsNamed(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer []byte
		code   catalog.Code
		says   string
	}{
		"its clock is ahead":              {framed(krbError(t, errorcode.KRB_AP_ERR_SKEW, 6*time.Minute)), catalog.ClientKerberosClock, "360 seconds behind"},
		"its clock is behind":             {framed(krbError(t, errorcode.KRB_AP_ERR_SKEW, -6*time.Minute)), catalog.ClientKerberosClock, "360 seconds ahead of"},
		"a wrong key":                     {framed(krbError(t, errorcode.KDC_ERR_PREAUTH_FAILED, 0)), catalog.ClientKerberosKey, "HOST$@R"},
		"a disabled account":              {framed(krbError(t, errorcode.KDC_ERR_CLIENT_REVOKED, 0)), catalog.ClientKerberosAccount, "KDC_ERR_CLIENT_REVOKED"},
		"a type it does not have":         {framed(krbError(t, errorcode.KDC_ERR_ETYPE_NOSUPP, 0)), catalog.ClientKerberosEncryption, "KDC_ERR_ETYPE_NOSUPP"},
		"something rare":                  {framed(krbError(t, errorcode.KDC_ERR_POLICY, 0)), catalog.ClientKerberosFailed, "KDC_ERR_POLICY"},
		"preauthentication without types": {framed(krbError(t, errorcode.KDC_ERR_PREAUTH_REQUIRED, 0)), catalog.ClientKerberosEncryption, "R"},
		"noise":                           {framed([]byte("noise")), catalog.ClientKerberosFailed, "R"},
		"nothing":                         {nil, catalog.ClientKerberosUnreachable, "R"},
		"four gigabytes":                  {[]byte{0xff, 0xff, 0xff, 0xff}, catalog.ClientKerberosUnreachable, "R"},
		"less than it says":               {[]byte{0, 0, 1, 0, 'x'}, catalog.ClientKerberosUnreachable, "R"},
	} {
		dir := t.TempDir()
		config, keytab := filepath.Join(dir, "krb5.conf"), filepath.Join(dir, "keytab")
		entry := "\x00\x01\x00\x01R\x00\x05HOST$\x00\x00\x00\x01\x00\x00\x00\x01\x01\x00\x12\x00\x20" + strings.Repeat("k", 32)
		write(t, keytab, "\x05\x02\x00\x00\x00"+string(rune(len(entry)))+entry)
		write(t, config, "[libdefaults]\n default_realm = R\n[realms]\n R = {\n  kdc = "+centre(t, test.answer)+"\n }\n")
		m, err := New(Config{Keytab: keytab, Config: config})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, err = m.Negotiate(t.Context(), "mp.test", nil)
		if catalog.CodeOf(err) != test.code || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "\x07") {
			t.Errorf("%s: got %v, want %s and %q", name, err, test.code, test.says)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestAServersReasonIsNamed: what a management point's reject token tells, when it tells anything.
func TestAServersReasonIsNamed(t *testing.T) {
	t.Parallel()
	q := &request{service: "HTTP/mp", key: types.EncryptionKey{KeyType: 18, KeyValue: make([]byte, 32)}, now: time.Now}
	for name, test := range map[string]struct {
		code int32
		want catalog.Code
		says string
	}{
		"clock":     {errorcode.KRB_AP_ERR_SKEW, catalog.ClientKerberosClock, "400 seconds behind the clock of HTTP/mp"},
		"modified":  {errorcode.KRB_AP_ERR_MODIFIED, catalog.ClientKerberosTicket, "KRB_AP_ERR_MODIFIED"},
		"used once": {errorcode.KRB_AP_ERR_REPEAT, catalog.ClientKerberosTicket, "KRB_AP_ERR_REPEAT"},
	} {
		raw := krbError(t, test.code, 400*time.Second)
		framedToken := asn1tools.AddASNAppTag(append([]byte("\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02"+tokenError), raw...), 0)
		for form, inner := range map[string][]byte{"framed": framedToken, "bare": raw} {
			err := q.verify(response(2, inner))
			if catalog.CodeOf(err) != test.want || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%s, %s: got %v, want %s and %q", name, form, err, test.want, test.says)
			}
		}
	}
	for name, inner := range map[string][]byte{"of NTLM": []byte("NTLMSSP\x00"), "a request": asn1tools.AddASNAppTag([]byte("\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02"+tokenRequest), 0)} {
		if err := q.verify(response(0, inner)); catalog.CodeOf(err) != catalog.ClientKerberosServer {
			t.Errorf("a token %s: got %v, want %s", name, err, catalog.ClientKerberosServer)
		}
	}
}

// response is a NegTokenResp.
func response(state byte, token []byte) []byte {
	inner := append([]byte{0xa0, 3, 0x0a, 1, state}, explicit(0xa2, explicit(0x04, token))...)
	return explicit(0xa1, explicit(0x30, inner))
}

func explicit(tag byte, content []byte) []byte {
	if len(content) < 128 {
		return append([]byte{tag, byte(len(content))}, content...)
	}
	return append([]byte{tag, 0x82, byte(len(content) >> 8), byte(len(content))}, content...)
}
