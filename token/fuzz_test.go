package token

import (
	"crypto/rand"
	"net/url"
	"strings"
	"testing"
)

// sameContent reports whether two compact documents sign the same bytes; a signature
// itself may have several spellings.
func sameContent(a, b string) bool {
	cut := func(s string) string { return s[:max(strings.LastIndexByte(s, '.'), 0)] }
	return cut(a) == cut(b)
}

// changes adds a good document and some damaged ones to the corpus on disk, which
// cannot hold signatures of keys that are made anew for each run.
func changes(f *testing.F, good string) {
	f.Helper()
	f.Add(good)
	f.Add(good + ".")
	f.Add(good[:len(good)/2])
	f.Add(strings.Replace(good, ".", "..", 1))
	f.Add(strings.Replace(good, "e", "f", 1))
}

func FuzzVerify(f *testing.F) {
	goods := []string{sign(f, KindBulk), sign(f, KindCCM), sign(f, KindSelfProve)}
	for _, good := range goods {
		changes(f, good)
	}
	verifier := testRing().Verifier()
	f.Fuzz(func(t *testing.T, raw string) {
		if _, err := verifier.Verify(raw, noon, Kinds()...); err != nil {
			return
		}
		for _, good := range goods {
			if sameContent(raw, good) {
				return
			}
		}
		t.Errorf("accepted what was never signed")
	})
}

func FuzzVerifyProof(f *testing.F) {
	good, err := SignProof(deviceKey(), "CCM_POST", stsURL, accessToken, noon, rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	changes(f, good)
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := VerifyProof(raw, "CCM_POST", accessToken, noon)
		if err == nil && (p.Key == "" || !proofIDForm(p.ID) || p.Method != "CCM_POST" || p.TokenHash != Hash(accessToken)) {
			t.Errorf("accepted %+v", p)
		}
	})
}

func FuzzVerifyAssertion(f *testing.F) {
	good, err := SignAssertion(deviceKey(), client, stsURL, noon)
	if err != nil {
		f.Fatal(err)
	}
	changes(f, good)
	f.Fuzz(func(t *testing.T, raw string) {
		_, _ = AssertionSubject(raw)
		_, err := VerifyAssertion(raw, &deviceKey().PublicKey, stsURL, noon)
		if err == nil && !sameContent(raw, good) {
			t.Error("accepted what was never signed")
		}
	})
}

func FuzzOpenState(f *testing.F) {
	good, err := SignState(testState(f), rootKey())
	if err != nil {
		f.Fatal(err)
	}
	changes(f, good)
	beat, err := SignBeat(7, noon, rootKey())
	if err != nil {
		f.Fatal(err)
	}
	changes(f, beat)
	pin := Pin(&rootKey().PublicKey)
	f.Fuzz(func(t *testing.T, raw string) {
		_ = Document(raw)
		if _, err := OpenState(raw, pin); err == nil && !sameContent(raw, good) {
			t.Error("accepted a state that was never signed")
		}
		if _, err := OpenBeat(raw, pin); err == nil && !sameContent(raw, beat) {
			t.Error("accepted a heartbeat that was never signed")
		}
	})
}

func FuzzOpenAck(f *testing.F) {
	good, err := SignAck(rootKey(), Ack{Gateway: "g", Epoch: 7, At: noon})
	if err != nil {
		f.Fatal(err)
	}
	changes(f, good)
	pin := Pin(&rootKey().PublicKey)
	f.Fuzz(func(t *testing.T, raw string) {
		_, got, err := OpenAck(raw)
		if err == nil && got == pin && !sameContent(raw, good) {
			t.Error("accepted what was never signed")
		}
	})
}

func FuzzOpenReply(f *testing.F) {
	good, err := SignReply(rootKey(), Reply{Nonce: "AAAAAAAAAAAAAAAAAAAAAA", Path: "/ccm_system/request", Status: 200, Sum: ReplySum(nil), At: noon})
	if err != nil {
		f.Fatal(err)
	}
	changes(f, good)
	pin := Pin(&rootKey().PublicKey)
	f.Fuzz(func(t *testing.T, raw string) {
		reply, got, err := OpenReply(raw)
		if err == nil && got == pin && !sameContent(raw, good) {
			t.Error("accepted what was never signed")
		}
		if err == nil && reply.Sum != ReplySum([]byte("another body")) && reply.Answers(reply.Nonce, reply.Path, reply.Status, []byte("another body")) == nil {
			t.Error("answers for a body that it was not made for")
		}
	})
}

func FuzzParseRoleURI(f *testing.F) {
	f.Add("postern://h/connector/c1")
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := url.Parse(raw)
		if err != nil {
			return
		}
		hierarchy, role, name, ok := ParseRoleURI(u)
		if !ok {
			return
		}
		if h, r, n, ok := ParseRoleURI(RoleURI(hierarchy, role, name)); !ok || !strings.EqualFold(h, hierarchy) || r != role || n != name {
			t.Errorf("%q: got %q %q %q, want %q %q %q", raw, h, r, n, hierarchy, role, name)
		}
	})
}
