package ccm

import (
	"crypto"
	"crypto/rsa"
	"net/http"
	"strings"
	"testing"
	"time"

	"postern/catalog"
)

func TestCapturedPolicyAuth(t *testing.T) {
	request, _ := openCapture(t, "sdk-policy/04-body-signed")
	auth, ok, err := ParsePolicyAuth(request.Header)
	if !ok || err != nil {
		t.Fatalf("%t %v", ok, err)
	}
	if want := time.Date(2026, 11, 21, 20, 57, 24, 0, time.UTC); auth.ClientID != sdkClient || !auth.Time.Equal(want) || auth.Family != PolicyAuthCCMClient {
		t.Errorf("got %s %s %s", auth.ClientID, auth.Time, auth.Family)
	}
	if err := auth.Verify(capturedKey(t, "sdk-registration/01-registration")); err != nil {
		t.Error(err)
	}
	if got := catalog.CodeOf(auth.Verify(&otherKey().PublicKey)); got != catalog.PolicyAuthSignature {
		t.Errorf("another key: got %q", got)
	}
	if got := catalog.CodeOf(auth.Verify(nil)); got != catalog.PolicyAuthSignature {
		t.Errorf("no key: got %q", got)
	}
	later := request.Header.Clone()
	later.Set(HeaderCCMClientTimestamp, "2026-11-22T20:57:24Z")
	if auth, _, err = ParsePolicyAuth(later); err != nil || auth.Verify(capturedKey(t, "sdk-registration/01-registration")) == nil {
		t.Errorf("a later time under the old signature: %v", err)
	}
}

func TestUnsignedPolicyDownload(t *testing.T) {
	request, _ := openCapture(t, "sdk-policy/03-body-plain")
	if auth, ok, err := ParsePolicyAuth(request.Header); ok || err != nil {
		t.Errorf("got %+v %t %v", auth, ok, err)
	}
}

// signHeader signs text as a client does, in one of the four ways of protocol.md 2.4.
func signHeader(t testing.TB, key *rsa.PrivateKey, hash crypto.Hash, text string, nul, digestInfo bool) string {
	t.Helper()
	data := encodeUTF16(text)
	if nul {
		data = encodeUTF16Z(text)
	}
	signature, err := signReversed(key, hash, data, digestInfo)
	if err != nil {
		t.Fatal(err)
	}
	return upperHex(signature)
}

func TestPolicyAuthFamilies(t *testing.T) {
	const uuid, at = "a670cc56-2308-4189-a826-4a4938afe403", "2026-11-21T20:57:24Z"
	families := map[string]func(sign func(string) string) http.Header{
		"A, the tools": func(sign func(string) string) http.Header {
			return tokenHeader("GUID:"+uuid+";"+at+";2", sign)
		},
		"A', without type": func(sign func(string) string) http.Header {
			return tokenHeader("GUID:"+uuid+";"+at, sign)
		},
		"A', braces": func(sign func(string) string) http.Header {
			return tokenHeader("{"+uuid+"};"+at, sign)
		},
		"B, the SDK": func(sign func(string) string) http.Header {
			return clientHeader("GUID:"+strings.ToUpper(uuid), at, sign)
		},
		"B, braces": func(sign func(string) string) http.Header {
			return clientHeader("{"+uuid+"}", at, sign)
		},
	}
	for name, header := range families {
		for _, nul := range []bool{true, false} {
			for _, digestInfo := range []bool{true, false} {
				t.Run(name+form(nul, digestInfo), func(t *testing.T) {
					sign := func(text string) string {
						return signHeader(t, testKey(), crypto.SHA256, text, nul, digestInfo)
					}
					auth, ok, err := ParsePolicyAuth(header(sign))
					if !ok || err != nil {
						t.Fatalf("%t %v", ok, err)
					}
					if auth.ClientID != sdkClient || auth.Time.Format(wireTime) != at {
						t.Errorf("got %s %s", auth.ClientID, auth.Time)
					}
					if err := auth.Verify(&testKey().PublicKey); err != nil {
						t.Error(err)
					}
					if auth.Verify(&otherKey().PublicKey) == nil {
						t.Error("another key verifies")
					}
				})
			}
		}
	}
}

func form(nul, digestInfo bool) string {
	text := ", without NUL"
	if nul {
		text = ", with NUL"
	}
	if digestInfo {
		return text + " and DigestInfo"
	}
	return text + " and bare hash"
}

func tokenHeader(token string, sign func(string) string) http.Header {
	header := http.Header{}
	header.Set("ClientToken", token)
	header.Set("ClientTokenSignature", sign(token))
	return header
}

func clientHeader(id, at string, sign func(string) string) http.Header {
	header := http.Header{}
	header.Set("CCMClientID", id)
	header.Set("CCMClientIDSignature", strings.ToLower(sign(id)))
	header.Set("CCMClientTimestamp", at)
	header.Set("CCMClientTimestampSignature", sign(at))
	return header
}

func TestPolicyAuthHash(t *testing.T) {
	const token = "GUID:A670CC56-2308-4189-A826-4A4938AFE403;2026-11-21T20:57:24Z"
	sha1 := func(text string) string { return signHeader(t, testKey(), crypto.SHA1, text, true, true) }
	tests := map[string]struct {
		header   http.Header
		verifies bool
	}{
		"SHA-1 under type 1":      {tokenHeader(token+";1", sha1), true},
		"SHA-1 under type 2":      {tokenHeader(token+";2", sha1), false},
		"SHA-1 without a type":    {tokenHeader(token, sha1), false},
		"SHA-1 of the old media":  {clientHeader(string(sdkClient), "2026-11-21T20:57:24Z", sha1), true},
		"mixed keys in one proof": {mixedHeader(t), false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			auth, _, err := ParsePolicyAuth(test.header)
			if err != nil {
				t.Fatal(err)
			}
			if err := auth.Verify(&testKey().PublicKey); (err == nil) != test.verifies {
				t.Errorf("got %v, want success %t", err, test.verifies)
			}
		})
	}
}

// mixedHeader has the id signed by one key and the time by another.
func mixedHeader(t testing.TB) http.Header {
	header := clientHeader(string(sdkClient), "2026-11-21T20:57:24Z", func(text string) string { return signHeader(t, testKey(), crypto.SHA256, text, true, true) })
	header.Set("CCMClientTimestampSignature", signHeader(t, otherKey(), crypto.SHA256, "2026-11-21T20:57:24Z", true, true))
	return header
}

func TestSignPolicyAuth(t *testing.T) {
	header := http.Header{}
	if err := SignPolicyAuth(header, sdkClient, testKey(), testTime); err != nil {
		t.Fatal(err)
	}
	if got, want := header.Get("ClientToken"), "GUID:A670CC56-2308-4189-A826-4A4938AFE403;2026-11-21T20:49:08Z;2"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	auth, ok, err := ParsePolicyAuth(header)
	if !ok || err != nil || auth.Verify(&testKey().PublicKey) != nil || !auth.Time.Equal(testTime) {
		t.Errorf("%+v %t %v", auth, ok, err)
	}
}

func TestParsePolicyAuthRefuses(t *testing.T) {
	const good = "GUID:A670CC56-2308-4189-A826-4A4938AFE403;2026-11-21T20:57:24Z;2"
	pairs := func(pairs ...string) http.Header {
		header := http.Header{}
		for i := 0; i < len(pairs); i += 2 {
			header.Add(pairs[i], pairs[i+1])
		}
		return header
	}
	tests := map[string]http.Header{
		"no signature":         pairs("ClientToken", good),
		"only a signature":     pairs("ClientTokenSignature", "00"),
		"signature empty":      pairs("ClientToken", good, "ClientTokenSignature", ""),
		"signature not hex":    pairs("ClientToken", good, "ClientTokenSignature", "xyz"),
		"signature huge":       pairs("ClientToken", good, "ClientTokenSignature", strings.Repeat("00", 4096)),
		"token twice":          pairs("ClientToken", good, "ClientToken", good, "ClientTokenSignature", "00"),
		"token empty":          pairs("ClientToken", "", "ClientTokenSignature", "00"),
		"id not a GUID":        pairs("ClientToken", "GUID:x;2026-11-21T20:57:24Z;2", "ClientTokenSignature", "00"),
		"id with one brace":    pairs("ClientToken", "{A670CC56-2308-4189-A826-4A4938AFE403;2026-11-21T20:57:24Z", "ClientTokenSignature", "00"),
		"local time":           pairs("ClientToken", "GUID:A670CC56-2308-4189-A826-4A4938AFE403;2026-11-21 20:57:24Z;2", "ClientTokenSignature", "00"),
		"day 32":               pairs("ClientToken", "GUID:A670CC56-2308-4189-A826-4A4938AFE403;2026-11-32T20:57:24Z;2", "ClientTokenSignature", "00"),
		"unknown type":         pairs("ClientToken", "GUID:A670CC56-2308-4189-A826-4A4938AFE403;2026-11-21T20:57:24Z;3", "ClientTokenSignature", "00"),
		"more after the type":  pairs("ClientToken", good+";x", "ClientTokenSignature", "00"),
		"time without its own": pairs("CCMClientID", string(sdkClient), "CCMClientIDSignature", "00", "CCMClientTimestamp", "2026-11-21T20:57:24Z"),
		"id without time":      pairs("CCMClientID", string(sdkClient), "CCMClientIDSignature", "00"),
		"time malformed":       pairs("CCMClientID", string(sdkClient), "CCMClientIDSignature", "00", "CCMClientTimestamp", "now", "CCMClientTimestampSignature", "00"),
		"both families": pairs("ClientToken", good, "ClientTokenSignature", "00",
			"CCMClientID", string(sdkClient), "CCMClientIDSignature", "00", "CCMClientTimestamp", "2026-11-21T20:57:24Z", "CCMClientTimestampSignature", "00"),
	}
	for name, header := range tests {
		t.Run(name, func(t *testing.T) {
			_, ok, err := ParsePolicyAuth(header)
			if !ok || catalog.CodeOf(err) != catalog.PolicyAuthMalformed {
				t.Errorf("got %t %v", ok, err)
			}
		})
	}
}

func FuzzParsePolicyAuth(f *testing.F) {
	f.Fuzz(func(t *testing.T, token, tokenSignature, id, idSignature, at, atSignature string) {
		header := http.Header{}
		for name, value := range map[string]string{
			HeaderClientToken: token, HeaderClientTokenSignature: tokenSignature, HeaderCCMClientID: id, HeaderCCMClientIDSignature: idSignature,
			HeaderCCMClientTimestamp: at, HeaderCCMClientTimestampSignature: atSignature,
		} {
			if value != "" {
				header.Set(name, value)
			}
		}
		auth, ok, err := ParsePolicyAuth(header)
		if err != nil || !ok {
			return
		}
		if _, err := ParseClientID(string(auth.ClientID)); err != nil {
			t.Fatalf("accepted the id %q", auth.ClientID)
		}
		if auth.Verify(&otherKey().PublicKey) == nil {
			t.Fatal("a made-up signature verifies")
		}
	})
}
