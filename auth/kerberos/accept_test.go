package kerberos

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/auth"
	"postern/catalog"
	"postern/proof"
)

func TestATicketProvesItsComputer(t *testing.T) {
	keys := wellKeys(t, 17, 18, 19, 20, 23)
	reader := reread(t, keys)
	tests := []struct {
		name   string
		change func(f *forge)
		want   func(p *proof.Ticket)
	}{
		{"without a PAC, by referral from the child realm", func(f *forge) {}, func(p *proof.Ticket) {}},
		{"with a PAC, which knows domain and SID", func(f *forge) { f.withPAC(t, nil) }, func(p *proof.Ticket) { p.PAC, p.SID = true, domSID+"-1103" }},
		{"with the PAC of MIT's KDC, which has no logon information", func(f *forge) { f.withPAC(t, func(p *pacForge) { p.logon = nil }) }, func(p *proof.Ticket) { p.PAC = true }},
		{"the domain's name from the PAC", func(f *forge) { f.withPAC(t, func(p *pacForge) { p.logon = logonInfo("KIDS", 1103) }) }, func(p *proof.Ticket) {
			p.PAC, p.SID, p.Domain = true, domSID+"-1103", "KIDS"
		}},
		{"aes128-sha1", func(f *forge) { f.kind, f.sessionKind = 17, 17; f.withPAC(t, nil) }, func(p *proof.Ticket) { p.EncryptionType, p.PAC, p.SID = 17, true, domSID+"-1103" }},
		{"aes128-sha2", func(f *forge) { f.kind, f.sessionKind = 19, 19; f.withPAC(t, nil) }, func(p *proof.Ticket) { p.EncryptionType, p.PAC, p.SID = 19, true, domSID+"-1103" }},
		{"aes256-sha2", func(f *forge) { f.kind, f.sessionKind = 20, 20; f.withPAC(t, nil) }, func(p *proof.Ticket) { p.EncryptionType, p.PAC, p.SID = 20, true, domSID+"-1103" }},
		{"RC4, by the setting", func(f *forge) { f.kind, f.sessionKind = 23, 23; f.withPAC(t, nil) }, func(p *proof.Ticket) { p.EncryptionType, p.PAC, p.SID = 23, true, domSID+"-1103" }},
		{"the key of last year", func(f *forge) { f.version, f.claimed = 3, 3 }, func(p *proof.Ticket) { p.KeyVersion = 3 }},
		{"a wrong key version is not fatal", func(f *forge) { f.claimed = 77 }, func(p *proof.Ticket) {}},
		{"no key version", func(f *forge) { f.claimed, f.version = 0, 3 }, func(p *proof.Ticket) { p.KeyVersion = 3 }},
		{"the account's own name", func(f *forge) { f.service = "SVC-MP" }, func(p *proof.Ticket) { p.Service = "svc-mp@" + parent }},
		{"any name of the account", func(f *forge) { f.service = "http/MPCLUSTER" }, func(p *proof.Ticket) { p.Service = "svc-mp@" + parent + " (asked for as http/MPCLUSTER)" }},
		{"a computer of our own realm", func(f *forge) { f.realm, f.authRealm = parent, parent }, func(p *proof.Ticket) { p.Realm, p.Domain = parent, "A2003" }},
		{"a token without SPNEGO", func(f *forge) { f.bare = true }, func(p *proof.Ticket) {}},
		{"the old identifier of Windows", func(f *forge) { f.mechanisms = [][]byte{oidMSKerberos, oidKerberos, oidNegoEx, oidNTLM} }, func(p *proof.Ticket) {}},
		{"a list that is signed", func(f *forge) { f.signList = true }, func(p *proof.Ticket) {}},
		{"a list that is signed with a key of the client", func(f *forge) {
			f.signList, f.subkey = true, types.EncryptionKey{KeyType: 17, KeyValue: []byte("fedcba9876543210")}
		}, func(p *proof.Ticket) {}},
		{"through a realm that is trusted", func(f *forge) { f.transitKind, f.transit = 1, parent }, func(p *proof.Ticket) { p.Transited = []string{parent} }},
		{"expired a little, which clocks may explain", func(f *forge) { f.end = noon.Add(-4 * time.Minute) }, func(p *proof.Ticket) {}},
		{"begins in a little", func(f *forge) { f.start = noon.Add(4 * time.Minute) }, func(p *proof.Ticket) {}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newForge(keys)
			test.change(f)
			a := newAcceptor(t, reader, func(c *Config) { c.AllowRC4 = true })
			got, reply, err := a.Accept(t.Context(), f.token(t), auth.Channel{})
			if err != nil {
				t.Fatal(err)
			}
			want := proof.Ticket{Account: account, Realm: child, Domain: "CHILD", Service: "svc-mp@" + parent + " (asked for as " + service + ")", KeyVersion: 4, EncryptionType: 18, UseUntil: noon.Add(6 * time.Minute)}
			test.want(&want)
			want.Use = got.Ticket.Use
			if !reflect.DeepEqual(*got.Ticket, want) || len(want.Use) != 64 {
				t.Errorf("got  %+v\nwant %+v", *got.Ticket, want)
			}
			if got.Method != proof.Kerberos || got.Account != want.LogName() || got.Realm != want.Realm || got.SID != want.SID || !got.At.Equal(noon) {
				t.Errorf("got proof %+v", got)
			}
			checkReply(t, f, reply)
		})
	}
}

// checkReply verifies what proves the server, as a client does, with the library.
func checkReply(t *testing.T, f *forge, reply []byte) {
	t.Helper()
	if !f.bare {
		var response struct {
			State     asn1.Enumerated       `asn1:"explicit,tag:0"`
			Mechanism asn1.ObjectIdentifier `asn1:"explicit,optional,tag:1"`
			Token     []byte                `asn1:"explicit,optional,tag:2"`
			MIC       []byte                `asn1:"explicit,optional,tag:3"`
		}
		if rest, err := asn1.UnmarshalWithParams(reply, &response, "tag:1,explicit"); err != nil || len(rest) > 0 || response.State != 0 {
			t.Fatalf("response %x: %v, state %d", reply, err, response.State)
		}
		if got := mustMarshal(t, response.Mechanism)[2:]; !bytes.Equal(got, f.mechanisms[0]) {
			t.Errorf("the answer names %x, the client offered %x first", got, f.mechanisms[0])
		}
		if want := f.mic(t, mechanismList(f.mechanisms...), 1, 23); f.signList && !bytes.Equal(response.MIC, want) {
			t.Errorf("MIC %x, want %x", response.MIC, want)
		}
		reply = response.Token
	}
	prefix := tlv(6, oidKerberos)
	_, message, ok := readFrame(reply)
	if !ok || !bytes.Contains(reply, prefix) || !bytes.HasPrefix(message, tokenReply) {
		t.Fatalf("token %x", reply)
	}
	var rep messages.APRep
	if err := rep.Unmarshal(message[2:]); err != nil {
		t.Fatal(err)
	}
	plain, err := crypto.DecryptEncPart(rep.EncPart, f.session(), 12)
	if err != nil {
		t.Fatal(err)
	}
	var part messages.EncAPRepPart
	if err := part.Unmarshal(plain); err != nil {
		t.Fatal(err)
	}
	if !part.CTime.Equal(f.clock.Truncate(time.Second)) || part.Cusec != f.clock.Nanosecond()/1000 || part.SequenceNumber != 4711 {
		t.Errorf("got %+v", part)
	}
}

func TestWithoutMutualTheServerProvesNothing(t *testing.T) {
	keys := wellKeys(t, 18)
	f := newForge(keys)
	f.apOptions, f.checksum.Checksum = nil, gss(nil, 32)
	_, reply, err := newAcceptor(t, reread(t, keys), nil).Accept(t.Context(), f.token(t), auth.Channel{})
	if err != nil {
		t.Fatal(err)
	}
	if want := "a1143012a0030a0100a10b06092a864886f712010202"; hex.EncodeToString(reply) != want {
		t.Errorf("got %x, want %s", reply, want)
	}
	f.clock, f.bare = noon.Add(time.Microsecond), true
	if _, reply, err = newAcceptor(t, reread(t, keys), nil).Accept(t.Context(), f.token(t), auth.Channel{}); err != nil || reply != nil {
		t.Errorf("bare: got %x, %v", reply, err)
	}
}

func TestEachRefusalHasItsReason(t *testing.T) {
	keys := wellKeys(t, 17, 18, 19, 20, 23)
	other := keytab.New()
	for _, p := range []string{"svc-reports", "svc-mp"} {
		addKey(t, other, p, parent, 4, 18, "nobody knows")
	}
	reader := reread(t, keys)
	options := func(value []byte) types.AuthorizationData {
		return types.AuthorizationData{relevant(t, types.AuthorizationDataEntry{ADType: 143, ADData: value})}
	}
	tests := []struct {
		name   string
		change func(f *forge)
		want   catalog.Code
		says   string
	}{
		{"ticket for another service, SPN on another account", func(f *forge) { f.keys = other; f.principal = "svc-reports" }, catalog.KerberosKeyWrong, "tried: 2"},
		{"key of another password, same version", func(f *forge) { f.keys = other }, catalog.KerberosKeyWrong, service + "@" + parent + ", key version 4, aes256-cts-hmac-sha1-96 (18)"},
		{"ticket for a service of another realm", func(f *forge) { f.serviceRealm = "CONTOSO.COM" }, catalog.KerberosKeyMissing, "HTTP/mp.a2003.vm.local@CONTOSO.COM"},
		{"realm of the service in other letters", func(f *forge) { f.serviceRealm = strings.ToLower(parent) }, catalog.KerberosKeyMissing, "a2003.vm.local"},
		{"RC4 ticket", func(f *forge) { f.kind = 23 }, catalog.KerberosEncryptionRefused, "ticket for HTTP/mp.a2003.vm.local@A2003.VM.LOCAL is rc4-hmac (23)"},
		{"RC4 session key in an AES ticket", func(f *forge) { f.sessionKind = 23 }, catalog.KerberosEncryptionRefused, "session key"},
		{"ticket expired", func(f *forge) { f.end = noon.Add(-6 * time.Minute) }, catalog.KerberosTicketExpired, "360 seconds ago"},
		{"ticket not yet valid", func(f *forge) { f.start = noon.Add(6 * time.Minute) }, catalog.KerberosTicketNotYetValid, "in 360 seconds"},
		{"postdated and not validated", func(f *forge) { f.ticketFlags = []int{flags.Invalid} }, catalog.KerberosTicketNotYetValid, "postdated"},
		{"client 6 minutes ahead", func(f *forge) { f.clock = noon.Add(6 * time.Minute) }, catalog.KerberosClockSkew, "360 seconds ahead"},
		{"client 6 minutes behind", func(f *forge) { f.clock = noon.Add(-6 * time.Minute) }, catalog.KerberosClockSkew, "360 seconds behind"},
		{"authenticator of another session", func(f *forge) { f.sealKey = bytes.Repeat([]byte{9}, 32) }, catalog.KerberosAuthenticatorBroken, account},
		{"other realm in the authenticator, a namesake", func(f *forge) { f.authRealm = parent }, catalog.KerberosNameMismatch, account + "@" + parent},
		{"other name in the authenticator", func(f *forge) { f.authName = "DC01$" }, catalog.KerberosNameMismatch, "DC01$"},
		{"realm in other letters in the authenticator", func(f *forge) { f.authRealm = strings.ToLower(child) }, catalog.KerberosNameMismatch, ""},
		{"realm that is not listed", func(f *forge) { f.realm, f.authRealm = "CONTOSO.COM", "CONTOSO.COM" }, catalog.KerberosRealmNotTrusted, "CONTOSO.COM"},
		{"realm in other letters", func(f *forge) { f.realm, f.authRealm = strings.ToLower(child), strings.ToLower(child) }, catalog.KerberosRealmNotTrusted, ""},
		{"realm with an evil beginning", func(f *forge) { f.realm, f.authRealm = "EVIL"+child, "EVIL"+child }, catalog.KerberosRealmNotTrusted, ""},
		{"through a realm that is not listed", func(f *forge) { f.transitKind, f.transit = 1, "CONTOSO.COM" }, catalog.KerberosTransitNotTrusted, "CONTOSO.COM"},
		{"through a trusted realm and one that is not", func(f *forge) { f.transitKind, f.transit = 1, parent+",CONTOSO.COM" }, catalog.KerberosTransitNotTrusted, "CONTOSO.COM"},
		{"through a realm that the KDC says it checked", func(f *forge) {
			f.transitKind, f.transit, f.ticketFlags = 1, "CONTOSO.COM", []int{flags.TransitedPolicyChecked}
		}, catalog.KerberosTransitNotTrusted, "CONTOSO.COM"},
		{"way in an unknown notation", func(f *forge) { f.transitKind, f.transit = 7, parent }, catalog.KerberosTransitNotTrusted, "cannot be read"},
		{"way of endless realms", func(f *forge) { f.transitKind, f.transit = 1, strings.Repeat("A,", 900)+"A" }, catalog.KerberosTransitNotTrusted, "cannot be read"},
		{"ticket for the KDC", func(f *forge) { f.service = "krbtgt/" + parent }, catalog.KerberosServiceRefused, "krbtgt"},
		{"ticket for kadmin, other letters", func(f *forge) { f.service = "KAdmin/changepw" }, catalog.KerberosServiceRefused, "KAdmin"},
		{"service with a control character", func(f *forge) { f.service = "HTTP/mp\n2026" }, catalog.KerberosNameInvalid, `\n`},
		{"user to user", func(f *forge) { f.apOptions = []int{flags.APOptionUseSessionKey} }, catalog.KerberosRequestMalformed, "user-to-user"},
		{"no checksum", func(f *forge) { f.checksum = types.Checksum{} }, catalog.KerberosChecksumMissing, "type 0"},
		{"checksum of another kind", func(f *forge) { f.checksum.CksumType = 16 }, catalog.KerberosChecksumMissing, "type 16"},
		{"checksum cut off", func(f *forge) { f.checksum.Checksum = f.checksum.Checksum[:23] }, catalog.KerberosChecksumMissing, "23 bytes"},
		{"checksum with another length of binding", func(f *forge) { f.checksum.Checksum[0] = 17 }, catalog.KerberosChecksumMissing, ""},
		{"bound ticket over plain HTTP", func(f *forge) { f.checksum.Checksum = gss([]byte("sixteen bytes 16"), 0) }, catalog.KerberosBindingPlain, `CHILD\WK02-020-51W$`},
		{"broken options of the client", func(f *forge) {
			f.clientAuthorization = types.AuthorizationData{{ADType: 1, ADData: []byte{0x30, 5}}}
		}, catalog.KerberosRequestMalformed, "authorization data"},
		{"options nested without end", func(f *forge) {
			f.clientAuthorization = options([]byte{0, 64, 0, 0})
			for range maxNesting + 1 {
				f.clientAuthorization = types.AuthorizationData{relevant(t, f.clientAuthorization...)}
			}
		}, catalog.KerberosRequestMalformed, "authorization data"},
		{"list of mechanisms altered", func(f *forge) { f.signList, f.alterList = true, true }, catalog.KerberosMechanismListAltered, "does not fit"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newForge(keys)
			test.change(f)
			refused(t, newAcceptor(t, reader, nil), f.token(t), auth.Channel{}, test.want, test.says, !f.bare)
		})
	}
}

// refused checks code and words of a refusal, that the answer rejects, and that the
// authenticator took no room in the memory.
func refused(t *testing.T, a *Acceptor, token []byte, channel auth.Channel, want catalog.Code, says string, spnego bool) {
	t.Helper()
	before := a.config.Replay.(*auth.Memory).Len()
	got, reply, err := a.Accept(t.Context(), token, channel)
	if catalog.CodeOf(err) != want || !strings.Contains(fmt.Sprint(err), says) {
		t.Fatalf("got %v, want %s with %q", err, want, says)
	}
	if !reflect.DeepEqual(got, proof.Proof{}) {
		t.Errorf("a refusal proves %+v", got)
	}
	switch {
	case want == catalog.KerberosClockSkew:
	case spnego && hex.EncodeToString(reply) != "a1073005a0030a0102":
		t.Errorf("reply %x is no reject", reply)
	case !spnego && reply != nil:
		t.Errorf("reply %x to what was no negotiation", reply)
	}
	if after := a.config.Replay.(*auth.Memory).Len(); after != before {
		t.Errorf("the memory of uses grew from %d to %d", before, after)
	}
}

func TestAWrongClockLearnsTheTime(t *testing.T) {
	keys := wellKeys(t, 18)
	for _, bare := range []bool{true, false} {
		f := newForge(keys)
		f.clock, f.bare = noon.Add(-time.Hour), bare
		_, reply, err := newAcceptor(t, reread(t, keys), nil).Accept(t.Context(), f.token(t), auth.Channel{})
		if got := catalog.CodeOf(err); got != catalog.KerberosClockSkew || !strings.Contains(err.Error(), "3600 seconds behind") {
			t.Fatalf("got %v", err)
		}
		if !bare {
			if !bytes.HasPrefix(reply, []byte{0xa1}) {
				t.Fatalf("reply %x", reply)
			}
			reply = reply[bytes.IndexByte(reply, 0x60):]
		}
		_, message, ok := readFrame(reply)
		if !ok || !bytes.HasPrefix(message, tokenError) {
			t.Fatalf("reply %x", reply)
		}
		var failure messages.KRBError
		if err := failure.Unmarshal(message[2:]); err != nil {
			t.Fatal(err)
		}
		if failure.ErrorCode != 37 || !failure.STime.Equal(noon) || failure.Realm != parent || failure.SName.PrincipalNameString() != service {
			t.Errorf("got %+v", failure)
		}
	}
}

func TestTokensOfOtherKinds(t *testing.T) {
	keys := wellKeys(t, 18)
	a := newAcceptor(t, reread(t, keys), nil)
	good := newForge(keys)
	ticket := tlv(0x60, tlv(6, oidKerberos), tokenRequest, good.request(t))
	ntlm := append([]byte("NTLMSSP\x00\x01\x00\x00\x00"), make([]byte, 28)...)
	userToUser := append(bytes.Clone(oidKerberos), 3)
	nego := append([]byte("NEGOEXTS"), make([]byte, 60)...)
	spnego := func(oids [][]byte, token []byte) []byte { return negotiation(mechanismList(oids...), token, nil) }
	tests := []struct {
		name   string
		token  []byte
		want   catalog.Code
		spnego bool
	}{
		{"nothing", nil, catalog.KerberosTokenMalformed, false},
		{"noise", []byte("hello, world"), catalog.KerberosTokenMalformed, false},
		{"64 KB", append(spnego([][]byte{oidKerberos}, ticket), make([]byte, 64<<10)...), catalog.KerberosTokenTooLarge, false},
		{"one byte too many", make([]byte, maxToken+1), catalog.KerberosTokenTooLarge, false},
		{"the largest that is read", make([]byte, maxToken), catalog.KerberosTokenMalformed, false},
		{"bytes after the token", append(spnego([][]byte{oidKerberos}, ticket), 0), catalog.KerberosTokenMalformed, false},
		{"NTLM by itself", ntlm, catalog.NTLMRefused, false},
		{"NTLM first in the list", spnego([][]byte{oidNTLM, oidKerberos}, ntlm), catalog.NTLMRefused, true},
		{"NTLM in place of the ticket", spnego([][]byte{oidKerberos, oidNTLM}, ntlm), catalog.NTLMRefused, true},
		{"NegoEx by itself", nego, catalog.NegoExRefused, false},
		{"NegoEx first in the list", spnego([][]byte{oidNegoEx, oidNTLM}, nego), catalog.NegoExRefused, true},
		{"NegoEx in place of the ticket", spnego([][]byte{oidMSKerberos, oidNegoEx}, nego), catalog.NegoExRefused, true},
		{"empty list of mechanisms", spnego(nil, ticket), catalog.KerberosMechanismListEmpty, true},
		{"empty list and no token", spnego(nil, nil), catalog.KerberosMechanismListEmpty, true},
		{"too many mechanisms", spnego(bytes.SplitN(bytes.Repeat([]byte{42, 0}, maxMechanisms+1), []byte{0}, maxMechanisms+1), ticket), catalog.KerberosTokenMalformed, true},
		{"unknown mechanisms only", spnego([][]byte{{0x2b, 5}}, ticket), catalog.KerberosMechanismUnknown, true},
		{"another mechanism first", spnego([][]byte{{0x2b, 5}, oidKerberos}, []byte("x")), catalog.KerberosNotPreferred, true},
		{"user to user first", spnego([][]byte{userToUser}, ticket), catalog.KerberosMechanismUnknown, true},
		{"no ticket", spnego([][]byte{oidKerberos}, nil), catalog.KerberosTicketMissing, true},
		{"an empty ticket", spnego([][]byte{oidKerberos}, []byte{}), catalog.KerberosTicketMissing, true},
		{"noise for a ticket", spnego([][]byte{oidKerberos}, []byte("noise")), catalog.KerberosTokenMalformed, true},
		{"a token of another mechanism inside", spnego([][]byte{oidKerberos}, tlv(0x60, tlv(6, []byte{0x2b, 5}), tokenRequest)), catalog.KerberosMechanismUnknown, true},
		{"a reply in place of a request", spnego([][]byte{oidKerberos}, tlv(0x60, tlv(6, oidKerberos), tokenReply, []byte{0x6f, 0})), catalog.KerberosTokenMalformed, true},
		{"a request that is empty", spnego([][]byte{oidKerberos}, tlv(0x60, tlv(6, oidKerberos), tokenRequest)), catalog.KerberosRequestMalformed, true},
		{"the second message of a negotiation", []byte{0xa1, 7, 0x30, 5, 0xa0, 3, 10, 1, 1}, catalog.KerberosTokenMalformed, false},
		{"the second message with a frame", tlv(0x60, tlv(6, oidSPNEGO), []byte{0xa1, 7, 0x30, 5, 0xa0, 3, 10, 1, 1}), catalog.KerberosTokenMalformed, true},
		{"a MIC that is none", negotiation(mechanismList(oidKerberos), ticket, []byte("mic")), catalog.KerberosMechanismListAltered, true},
		{"a MIC of the server's", negotiation(mechanismList(oidKerberos), ticket, good.mic(t, mechanismList(oidKerberos), 1, 25)), catalog.KerberosMechanismListAltered, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			refused(t, a, test.token, auth.Channel{}, test.want, "", test.spnego)
		})
	}
	if _, _, err := a.Accept(t.Context(), spnego([][]byte{oidKerberos}, ticket), auth.Channel{}); err != nil {
		t.Errorf("what the others were made from: %v", err)
	}
}

// Whatever is cut off or turned over, the token is refused and nothing breaks.
func TestTruncatedAndTurnedBytes(t *testing.T) {
	keys := wellKeys(t, 18)
	a := newAcceptor(t, reread(t, keys), nil)
	f := newForge(keys).withPAC(t, nil)
	f.signList = true
	token := f.token(t)
	for i := range token {
		if _, _, err := a.Accept(t.Context(), token[:i], auth.Channel{}); err == nil || catalog.CodeOf(err) == "" {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	inner := f.request(t)
	for i := range inner {
		cut := negotiation(mechanismList(oidKerberos), tlv(0x60, tlv(6, oidKerberos), tokenRequest, inner[:i]), nil)
		if _, _, err := a.Accept(t.Context(), cut, auth.Channel{}); catalog.CodeOf(err) != catalog.KerberosRequestMalformed {
			t.Fatalf("request cut at %d: %v", i, err)
		}
	}
	b := newAcceptor(t, reread(t, keys), func(c *Config) { c.Replay = auth.NewMemory(1<<20, func() time.Time { return noon }) })
	for i := range token {
		turned := bytes.Clone(token)
		turned[i] ^= 0x55
		p, _, err := b.Accept(t.Context(), turned, auth.Channel{})
		// the name of the service and the version of its key are not under the seal
		if err == nil && (p.Ticket.Account != account || p.Ticket.Realm != child) {
			t.Fatalf("byte %d turned: accepted as %+v", i, *p.Ticket)
		}
	}
}

func TestNamesThatDeceive(t *testing.T) {
	keys := wellKeys(t, 18)
	a := newAcceptor(t, reread(t, keys), nil)
	for name, evil := range map[string]string{
		"control character": "WK02\n$", "escape": "WK02\x1b[2J$", "null": "WK02\x00$", "right-to-left override": "WK02\u202e$", "zero width": "WK\u200b02$",
		"homograph": "W\u039a02$", "at": "WK02@" + parent, "backslash": `CORP\WK02$`, "slash": "host/wk02", "blank": "WK 02$", "delete": "WK02\x7f",
		"too long": strings.Repeat("W", maxAccount+1), "not UTF-8": "WK\xff$", "wild card": "WK*", "quote": `WK"02$`,
	} {
		t.Run(name, func(t *testing.T) {
			f := newForge(keys)
			f.name, f.authName = evil, evil
			refused(t, a, f.token(t), auth.Channel{}, catalog.KerberosNameInvalid, "", true)
		})
	}
	f := newForge(keys)
	f.name, f.authName = "", ""
	refused(t, a, f.token(t), auth.Channel{}, catalog.KerberosNameInvalid, "", true)
}

func TestASecondUseIsRefused(t *testing.T) {
	keys := wellKeys(t, 18)
	now := noon
	clock := func() time.Time { return now }
	withClock := func(c *Config) { c.Now, c.Replay = clock, auth.NewMemory(1000, clock) }
	one, two := newAcceptor(t, reread(t, keys), withClock), newAcceptor(t, reread(t, keys), withClock)
	f := newForge(keys)
	f.clock = noon.Add(4 * time.Minute) // ahead, so valid for nine minutes
	token := f.token(t)
	first, _, err := one.Accept(t.Context(), token, auth.Channel{})
	if err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{0, time.Second, 5 * time.Minute, 8 * time.Minute, 9 * time.Minute} {
		now = noon.Add(after)
		_, reply, err := one.Accept(t.Context(), token, auth.Channel{})
		if catalog.CodeOf(err) != catalog.KerberosReplay || hex.EncodeToString(reply) != "a1073005a0030a0102" {
			t.Errorf("after %s: %v", after, err)
		}
	}
	now = noon
	other, _, err := two.Accept(t.Context(), token, auth.Channel{})
	if err != nil || other.Ticket.Use != first.Ticket.Use {
		t.Errorf("another node: %v, %s and %s: the note that nodes share must have the same name", err, other.Ticket.Use, first.Ticket.Use)
	}
	now = noon.Add(10 * time.Minute)
	if _, _, err := one.Accept(t.Context(), token, auth.Channel{}); catalog.CodeOf(err) != catalog.KerberosClockSkew {
		t.Errorf("once its time is over: %v", err)
	}
}

func TestOfManySendersOneIsAccepted(t *testing.T) {
	keys := wellKeys(t, 17)
	a := newAcceptor(t, reread(t, keys), nil)
	for i := range 200 {
		f := newForge(keys)
		f.kind, f.sessionKind, f.clock = 17, 17, noon.Add(time.Duration(i)*time.Microsecond)
		token := f.token(t)
		var accepted, replayed atomic.Int32
		var start, done sync.WaitGroup
		start.Add(1)
		for range 16 {
			done.Go(func() {
				start.Wait()
				switch _, _, err := a.Accept(t.Context(), token, auth.Channel{}); {
				case err == nil:
					accepted.Add(1)
				case catalog.CodeOf(err) == catalog.KerberosReplay:
					replayed.Add(1)
				}
			})
		}
		start.Done()
		done.Wait()
		if accepted.Load() != 1 || replayed.Load() != 15 {
			t.Fatalf("authenticator %d: accepted %d times, refused as replay %d times", i, accepted.Load(), replayed.Load())
		}
	}
}

// The memory is bounded: of a million authenticators it takes what it may, then says no.
func TestAMillionAuthenticators(t *testing.T) {
	const limit = 50_000
	memory := auth.NewMemory(limit, func() time.Time { return noon })
	var fresh, full int
	for i := range 1_000_000 {
		ok, err := memory.Fresh(t.Context(), strconv.Itoa(i), noon.Add(6*time.Minute))
		switch {
		case ok:
			fresh++
		case catalog.CodeOf(err) == catalog.ProofMemoryFull:
			full++
		}
	}
	if fresh != limit || full != 1_000_000-limit || memory.Len() != limit {
		t.Errorf("fresh %d, full %d, remembered %d", fresh, full, memory.Len())
	}
	keys := wellKeys(t, 18)
	a := newAcceptor(t, reread(t, keys), func(c *Config) { c.Replay = memory })
	refused(t, a, newForge(keys).token(t), auth.Channel{}, catalog.ProofMemoryFull, "", true)
}

func TestAnotherKeytabIsTakenUp(t *testing.T) {
	old, renewed := wellKeys(t, 18), keytab.New()
	addKey(t, renewed, "svc-mp", parent, 5, 18, "next year's")
	a := newAcceptor(t, reread(t, old), nil)
	f := newForge(renewed)
	f.version, f.claimed = 5, 5
	refused(t, a, f.token(t), auth.Channel{}, catalog.KerberosKeyWrong, "", true)
	if err := a.Reload(reread(t, renewed)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Accept(t.Context(), f.token(t), auth.Channel{}); err != nil {
		t.Errorf("with the new keytab: %v", err)
	}
	weak := wellKeys(t, 23)
	if err := a.Reload(reread(t, weak)); catalog.CodeOf(err) != catalog.KerberosKeytabOnlyWeak {
		t.Errorf("a keytab with RC4 only: %v", err)
	}
	f.clock = noon.Add(time.Microsecond)
	if _, _, err := a.Accept(t.Context(), f.token(t), auth.Channel{}); err != nil {
		t.Errorf("after a keytab that was refused: %v", err)
	}
}

func TestNewWantsAKeytabAndAMemory(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("an acceptor of nothing")
	}
	if _, err := New(Config{Keytab: reread(t, wellKeys(t, 23)), Replay: auth.NewMemory(1, time.Now)}); catalog.CodeOf(err) != catalog.KerberosKeytabOnlyWeak {
		t.Errorf("RC4 only: %v", err)
	}
	for text, want := range map[string]Binding{"": WhenSent, "when-sent": WhenSent, "required": Required} {
		if got, err := ParseBinding(text); got != want || err != nil {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := ParseBinding("sometimes"); err == nil {
		t.Error("a binding that does not exist")
	}
}

var overTLS = auth.Channel{TLS: &tls.ConnectionState{}}
