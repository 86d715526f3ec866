package kerberos

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

func counted(text string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
}

func cachePrincipal(realm string, components ...string) []byte {
	out := binary.BigEndian.AppendUint32(nil, 1)
	out = binary.BigEndian.AppendUint32(out, uint32(len(components)))
	out = append(out, counted(realm)...)
	for _, c := range components {
		out = append(out, counted(c)...)
	}
	return out
}

// cacheFile is a credential cache with one credential, whose ticket is noise.
func cacheFile() []byte {
	out := append([]byte{5, 4, 0, 12}, "\x00\x01\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00"...)
	out = append(out, cachePrincipal("R", "HOST$")...)
	out = append(out, cachePrincipal("R", "HOST$")...)
	out = append(out, cachePrincipal("R", "krbtgt", "R")...)
	out = append(out, 0, 18)
	out = append(out, counted(strings.Repeat("k", 32))...)
	out = append(out, make([]byte, 8)...)
	out = binary.BigEndian.AppendUint32(out, 2000000000)
	out = append(out, make([]byte, 9)...)
	out = append(out, make([]byte, 8)...)
	out = append(out, counted("ticket")...)
	return append(out, counted("")...)
}

func TestACacheIsReadAndCutAtEveryByte(t *testing.T) {
	whole := cacheFile()
	c, err := parseCache(whole)
	if err != nil || c.client.name() != "HOST$" || len(c.held) != 1 || c.held[0].server.name() != "krbtgt/R" || c.held[0].keyType != 18 || !c.held[0].end.Equal(time.Unix(2000000000, 0)) || string(c.held[0].ticket) != "ticket" {
		t.Fatalf("got %+v, %v", c, err)
	}
	for at := range whole {
		if cut, err := parseCache(whole[:at]); err == nil && len(cut.held) > 0 {
			t.Errorf("cut at %d: got %+v", at, cut)
		}
	}
	if _, err := c.granting(); err == nil {
		t.Error("a ticket of noise was taken")
	}
}

func FuzzParseCache(f *testing.F) {
	f.Add(cacheFile())
	f.Add([]byte{5, 3})
	f.Fuzz(func(t *testing.T, content []byte) {
		c, err := parseCache(content)
		if err == nil && (c.client.realm == "" || len(c.client.components) == 0) {
			t.Error("a cache of nobody")
		}
		c.granting()
	})
}

func FuzzParseKeytab(f *testing.F) {
	f.Add([]byte{5, 2}, "")
	entry := "\x00\x01\x00\x01R\x00\x05HOST$\x00\x00\x00\x01\x00\x00\x00\x00\x01\x00\x12\x00\x04keyk"
	f.Add(append([]byte{5, 2, 0, 0, 0, byte(len(entry))}, entry...), "HOST$")
	f.Fuzz(func(t *testing.T, content []byte, principal string) {
		if c, err := parseKeytab(content, principal, "R"); err == nil && (c.realm == "" || len(c.types) == 0) {
			t.Errorf("a keytab without a key for %q", principal)
		}
	})
}

func FuzzVerify(f *testing.F) {
	for _, seed := range []string{"a1073005a0030a0100", "a1073005a0030a0102", "a110300ea20c040a6f08060092864886f7120202", "a1143012a0030a0100a20b0409" + "6f0703020103020200"} {
		b, _ := hex.DecodeString(seed)
		f.Add(b)
	}
	q := &request{service: "HTTP/mp", key: types.EncryptionKey{KeyType: 18, KeyValue: make([]byte, 32)}, time: time.Unix(1, 0), now: func() time.Time { return time.Unix(1, 0) }}
	f.Fuzz(func(t *testing.T, reply []byte) {
		if q.verify(reply) == nil {
			t.Error("a proof by somebody without the key")
		}
	})
}

func FuzzKDCReply(f *testing.F) {
	f.Add([]byte{0x7e, 0x03, 0x30, 0x01, 0x00})
	f.Add([]byte{0x6d, 0x03, 0x30, 0x01, 0x00})
	key := types.EncryptionKey{KeyType: 18, KeyValue: make([]byte, 32)}
	f.Fuzz(func(t *testing.T, reply []byte) {
		raw, err := judge("R", reply)
		if err != nil {
			(&exchange{machine: &Machine{credential: &credential{realm: "R"}}}).explain(err, "HTTP/mp")
			return
		}
		var ask = ticketRequest()
		if _, _, err := opened(raw, ask, key); err == nil {
			t.Error("a ticket from somebody without the key")
		}
	})
}

func ticketRequest() (ask messages.TGSReq) {
	ask.ReqBody.SName = types.PrincipalName{NameString: []string{"HTTP", "mp"}}
	ask.ReqBody.Realm = "R"
	return ask
}
