package kerberos

import (
	"net/http"
	"testing"

	"github.com/jcmturner/gokrb5/v8/types"
)

// FuzzReadCache: any file gives a cache or an error.
func FuzzReadCache(f *testing.F) {
	f.Add([]byte{5, 4, 0, 0})
	f.Fuzz(func(t *testing.T, content []byte) {
		c, err := readCache(content)
		if (c == nil) == (err == nil) {
			t.Errorf("cache %v and error %v", c, err)
		}
	})
}

// FuzzParseKeytab: any file gives keys or an error, never a key in the error.
func FuzzParseKeytab(f *testing.F) {
	f.Add([]byte{5, 2, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, content []byte) {
		keys, err := parseKeytab(content)
		if (len(keys) == 0) == (err == nil) {
			t.Errorf("%d keys and error %v", len(keys), err)
		}
		describeKeys(keys)
		duplicateKeys(keys)
		loginKey(keys)
	})
}

// FuzzParseConfig: any text gives a configuration or an error.
func FuzzParseConfig(f *testing.F) {
	f.Add("[libdefaults]\n default_realm = A\n[realms]\n A = { kdc = b }\n")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := parseConfig(text); err == nil && c == nil {
			t.Error("neither a configuration nor an error")
		}
	})
}

// FuzzParseReply: any token in WWW-Authenticate is read or refused.
func FuzzParseReply(f *testing.F) {
	f.Add([]byte{0xa1, 0x07, 0x30, 0x05, 0xa0, 0x03, 0x0a, 0x01, 0x02})
	f.Fuzz(func(t *testing.T, token []byte) {
		parsed, err := parseReply(token)
		if err == nil && parsed.proof != nil {
			(&ticket{}).proves(parsed.proof, types.Authenticator{})
		}
	})
}

// FuzzKDCReply: any answer of a KDC is read or refused.
func FuzzKDCReply(f *testing.F) {
	f.Add([]byte{0x7e, 0x00})
	f.Fuzz(func(t *testing.T, reply []byte) {
		_ = asRefusal(reply, "A")
		kindsOfferedBy(reply)
		_, _ = parseASReply(reply)
		_, _ = openGrant(reply, &ticket{}, 0)
	})
}

// FuzzUnwrap: any signed message is taken or refused.
func FuzzUnwrap(f *testing.F) {
	f.Add([]byte{5, 4, 1, 0xff, 0, 12, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13})
	w := &wrapper{key: types.EncryptionKey{KeyType: 18, KeyValue: make([]byte, 32)}}
	f.Fuzz(func(t *testing.T, message []byte) {
		if payload, err := w.unwrap(message); err == nil {
			t.Errorf("took %x", payload)
		}
	})
}

// FuzzSchemes: any WWW-Authenticate gives a few words.
func FuzzSchemes(f *testing.F) {
	f.Add(`Negotiate, NTLM, Bearer realm="x"`)
	f.Fuzz(func(t *testing.T, value string) {
		if words := schemes(http.Header{"Www-Authenticate": {value}}); len(words) > 16 {
			t.Errorf("%d words", len(words))
		}
		tokenOf(http.Header{"Www-Authenticate": {value}})
	})
}
