package gateway

import (
	"crypto/tls"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/proof"
	"postern/token"
)

// A request that the gateway refuses by itself never comes to the site, which is told of it: at once where it proved a key, with the next word where it
// proved none. What is no news, or what any scanner asks for, is not told.
func TestTheSiteIsToldWhatWasRefused(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Limits.Reports, c.Limits.Acknowledgements = 300*time.Millisecond, time.Hour
		judge := auth.NewCertificates(auth.CertificatesConfig{Authorities: c.State.Authorities})
		t.Cleanup(judge.Close)
		c.Certificates = judge
	})
	w.connect()
	await(t, w.site.acks) // of the state
	client := w.client(true)
	old, thief, owner, certified := newDevice(t), newDevice(t), newDevice(t), newDevice(t)
	ended := old.token(token.KindCCM, token.ScopeClient, "t", time.Now().Add(-9*time.Hour))
	policy := tokenPath("/SMS_MP_TokenAuth/.sms_aut?MPLIST")

	do(t, client, request(t, "GET", "/nothing/of/ours", nil))
	do(t, client, request(t, "POST", tokenPath("/CCM_STS"), nil))
	for range 3 {
		do(t, client, old.show(request(t, "GET", policy, nil), ended))
	}
	do(t, client, thief.show(request(t, "GET", policy, nil), owner.ccmToken()))
	do(t, w.certified(tls.Certificate{Certificate: [][]byte{selfSigned(t, certified.key)}, PrivateKey: certified.key}, true), request(t, "GET", mutual("/SMS_MP/.sms_aut?MPLIST"), nil))

	type fact struct {
		code catalog.Code
		key  proof.KeyThumbprint
	}
	want := map[fact]int{
		{catalog.TokenExpired, old.id}:                  3,
		{catalog.ProofOtherKey, thief.id}:               1,
		{catalog.GatewayCertificateRoots, certified.id}: 1,
		{catalog.TokenMissing, ""}:                      1,
	}
	got := map[fact]int{}
	for len(got) < len(want) || got[fact{catalog.TokenExpired, old.id}] < 3 {
		for _, r := range await(t, w.site.acks).Refusals {
			got[fact{r.Code, r.Key}] += r.Times
			if r.Address != "127.0.0.1" || len(r.TraceID) != 32 || r.Endpoint == "" || time.Since(r.At).Abs() > time.Minute || strings.Contains(r.Detail, ended[:20]) {
				t.Errorf("told %+v", r)
			}
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("told %v, want %v", got, want)
	}
	w.gateway.UnknownKey("tenant", "k") // so that it speaks again
	if again := await(t, w.site.acks); len(again.Refusals) != 0 {
		t.Errorf("told a second time: %+v", again.Refusals)
	}
}

// A flood is told in part, and what one device did is not lost in what strangers do.
func TestAFloodOfRefusalsIsToldInPart(t *testing.T) {
	r := newReports()
	at := time.Now()
	stranger := func(i int) token.Refusal {
		return token.Refusal{At: at, Times: 1, Code: catalog.TokenMissing, Address: fmt.Sprintf("192.0.2.%d", i)}
	}
	for i := range 1000 {
		r.addRefusal(stranger(i))
	}
	mine := token.Refusal{At: at, Times: 1, Code: catalog.TokenExpired, Key: "k", Address: "198.51.100.1"}
	if !r.addRefusal(mine) || r.addRefusal(mine) {
		t.Error("a device's refusal is not told, or not once")
	}
	for i := range 1000 {
		r.addRefusal(token.Refusal{At: at, Times: 1, Code: catalog.TokenExpired, Key: proof.KeyThumbprint(fmt.Sprint(i)), Address: "198.51.100.1"})
	}
	var ack token.Ack
	r.pending(&ack)
	strangers, own := 0, 0
	for _, refusal := range ack.Refusals {
		switch refusal.Key {
		case "":
			strangers++
		case "k":
			own += refusal.Times
		}
	}
	if len(ack.Refusals) != token.MaxRefusals || strangers != otherRefusals || own != 2 {
		t.Errorf("%d refusals, %d of them by strangers, %d times by the device", len(ack.Refusals), strangers, own)
	}
	r.addRefusal(mine) // while the word is under way
	r.delivered(ack)
	var next token.Ack
	if r.pending(&next); len(next.Refusals) != 1 || next.Refusals[0].Times != 1 {
		t.Errorf("afterwards %+v", next.Refusals)
	}
}

func TestDetailsAreShortened(t *testing.T) {
	for _, test := range []struct{ detail, want string }{
		{"short", "short"},
		{strings.Repeat("d", 300), strings.Repeat("d", token.MaxRefusalDetail)},
		{strings.Repeat("ü", 200), strings.Repeat("ü", token.MaxRefusalDetail/2)},
		{"x" + strings.Repeat("ü", 200), "x" + strings.Repeat("ü", token.MaxRefusalDetail/2-1)},
	} {
		if got := shorten(test.detail); got != test.want {
			t.Errorf("%q became %q", test.detail, got)
		}
	}
}
