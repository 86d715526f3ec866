package kerberos

import (
	"encoding/binary"
	"encoding/hex"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	library "github.com/jcmturner/gokrb5/v8/pac"
	"github.com/jcmturner/gokrb5/v8/test/testdata"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/auth"
	"postern/catalog"
	"postern/proof"
)

func TestAnAlteredPACIsRefused(t *testing.T) {
	keys := wellKeys(t, 17, 18, 20, 23)
	reader := reread(t, keys)
	turn := func(kind uint32, offset int) func(*pacForge) {
		return func(p *pacForge) {
			p.afterSigning = func(data []byte, at map[uint32]int) { data[at[kind]+offset] ^= 1 }
		}
	}
	number := func(at int, value uint32) func(*pacForge) {
		return func(p *pacForge) {
			p.afterSigning = func(data []byte, _ map[uint32]int) { binary.LittleEndian.PutUint32(data[at:], value) }
		}
	}
	signature := func(kind int32) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, uint32(kind)), make([]byte, 16)...)
	}
	tests := []struct {
		name   string
		change func(p *pacForge)
		want   catalog.Code
	}{
		{"user in the logon information", turn(1, logonHeaders+logonUser), catalog.KerberosPACSignature},
		{"group in the logon information", turn(1, logonHeaders+logonEnd+60), catalog.KerberosPACSignature},
		{"last byte of the logon information", turn(1, len(logonInfo("CHILD", 1103))-1), catalog.KerberosPACSignature},
		{"name of the client", turn(10, 10), catalog.KerberosPACSignature},
		{"time of the client", turn(10, 0), catalog.KerberosPACSignature},
		{"the server's signature", turn(6, 4), catalog.KerberosPACSignature},
		{"last byte of the server's signature", turn(6, 15), catalog.KerberosPACSignature},
		{"type of the server's signature, RC4's for an AES key", func(p *pacForge) { p.kind = chksumtype.KERB_CHECKSUM_HMAC_MD5 }, catalog.KerberosPACSignature},
		{"type of the server's signature, the smaller AES", func(p *pacForge) {
			p.afterSigning = func(data []byte, at map[uint32]int) { data[at[6]] = 15 }
		}, catalog.KerberosPACSignature},
		{"type of the server's signature, unknown", turn(6, 1), catalog.KerberosPACMalformed},
		{"type of the KDC's signature", func(p *pacForge) {
			p.afterSigning = func(data []byte, at map[uint32]int) { data[at[7]] = 15 }
		}, catalog.KerberosPACSignature},
		{"kind of a buffer, hiding the logon information", number(pacHeader, 99), catalog.KerberosPACSignature},
		{"size of a buffer", number(pacHeader+4, 8), catalog.KerberosPACSignature},
		{"number of buffers", number(0, 3), catalog.KerberosPACMalformed},
		{"endless number of buffers", number(0, 1<<31), catalog.KerberosPACMalformed},
		{"version", number(4, 1), catalog.KerberosPACMalformed},
		{"offset beyond the end", number(pacHeader+8, 1<<30), catalog.KerberosPACMalformed},
		{"offset that wraps around", number(pacHeader+12, 0xffffffff), catalog.KerberosPACMalformed},
		{"size beyond the end", number(pacHeader+4, 0xffffffff), catalog.KerberosPACMalformed},
		{"padding between buffers", func(p *pacForge) {
			p.extra = []pacPart{{12, []byte("upn")}}
			p.afterSigning = func(data []byte, at map[uint32]int) { data[len(data)-1] ^= 1 }
		}, catalog.KerberosPACSignature},
		{"no signature of the server", func(p *pacForge) { p.noServer = true }, catalog.KerberosPACMalformed},
		{"no signature of the KDC", func(p *pacForge) { p.noKDC = true }, catalog.KerberosPACMalformed},
		{"no client", func(p *pacForge) { p.client = nil }, catalog.KerberosPACMalformed},
		{"two logon informations", func(p *pacForge) { p.extra = []pacPart{{1, logonInfo("EVIL", 500)}} }, catalog.KerberosPACMalformed},
		{"two clients", func(p *pacForge) { p.extra = []pacPart{{10, clientInfo("EVIL$", noon)}} }, catalog.KerberosPACMalformed},
		{"two signatures of the server", func(p *pacForge) { p.extra = []pacPart{{6, signature(16)}} }, catalog.KerberosPACMalformed},
		{"two signatures of the KDC", func(p *pacForge) { p.extra = []pacPart{{7, signature(16)}} }, catalog.KerberosPACMalformed},
		{"signed, of another client", func(p *pacForge) { p.client = clientInfo("DC01$", noon.Add(-3600e9)) }, catalog.KerberosPACClient},
		{"signed, of the client in other letters", func(p *pacForge) { p.client = clientInfo("wk02-020-51w$", noon.Add(-3600e9)) }, catalog.KerberosPACClient},
		{"signed, of another logon", func(p *pacForge) { p.client = clientInfo(account, noon) }, catalog.KerberosPACClient},
		{"signed, client cut off", func(p *pacForge) { p.client = p.client[:20] }, catalog.KerberosPACMalformed},
		{"signed, client too short", func(p *pacForge) { p.client = p.client[:9] }, catalog.KerberosPACMalformed},
		{"signed, logon information cut off", func(p *pacForge) { p.logon = p.logon[:len(p.logon)-16] }, catalog.KerberosPACMalformed},
		{"signed, logon information too short", func(p *pacForge) { p.logon = p.logon[:100] }, catalog.KerberosPACMalformed},
		{"signed, domain with a line break", func(p *pacForge) { p.logon = logonInfo("CH\nILD", 1103) }, catalog.KerberosNameInvalid},
		{"signed, domain too long", func(p *pacForge) { p.logon = logonInfo("SIXTEENCHARACTER", 1103) }, catalog.KerberosNameInvalid},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newForge(keys).withPAC(t, test.change)
			refused(t, newAcceptor(t, reader, nil), f.token(t), auth.Channel{}, test.want, "", true)
		})
	}
}

func TestAPACCannotTakeTheNameOfAnotherDomain(t *testing.T) {
	keys := wellKeys(t, 18)
	listed := []proof.Realm{{Name: parent, Domain: "A2003"}, {Name: child, Domain: "KIDS"}, {Name: "CORP.EXAMPLE", Domain: "CORP"}, {Name: "CORP.OTHER", Domain: "CORP"}}
	a := newAcceptor(t, reread(t, keys), func(c *Config) { c.Realms = func() []proof.Realm { return listed } })
	tests := []struct {
		name, realm, domain string
		want                catalog.Code
	}{
		{"its own, as listed", child, "KIDS", ""},
		{"one that nobody else has", child, "CHILD", ""},
		{"that of the parent", child, "A2003", catalog.KerberosPACClient},
		{"that of the parent, other letters", child, "a2003", catalog.KerberosPACClient},
		{"its own, which another realm has too", "CORP.OTHER", "CORP", ""},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newForge(keys)
			f.realm, f.authRealm, f.clock = test.realm, test.realm, noon.Add(time.Duration(i)*time.Microsecond)
			f.withPAC(t, func(p *pacForge) { p.logon = logonInfo(test.domain, 1103) })
			got, _, err := a.Accept(t.Context(), f.token(t), auth.Channel{})
			if catalog.CodeOf(err) != test.want || err == nil && got.Ticket.Domain != test.domain {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// Each bit of a PAC that is not a signature of the KDC is under the server's.
func TestEveryByteOfThePACIsSealed(t *testing.T) {
	keys := wellKeys(t, 18)
	f := newForge(keys)
	var size, from int
	measure := newPAC(f)
	measure.afterSigning = func(data []byte, at map[uint32]int) { size, from = len(data), at[7]+4 }
	measure.build(t, f.serviceKey(t))
	secret := reread(t, keys).candidates(parent, 18, 4)[0].secret
	for i := range size {
		p := newPAC(f)
		p.afterSigning = func(data []byte, _ map[uint32]int) { data[i] ^= 0x10 }
		parsed, ok := parsePAC(p.build(t, f.serviceKey(t)))
		if accepted := ok && parsed.verify(&secret); accepted != (i >= from && i < from+12) {
			t.Errorf("byte %d turned: accepted %v", i, accepted)
		}
	}
}

func TestAPACIsFoundWhereverItLies(t *testing.T) {
	keys := wellKeys(t, 18)
	reader := reread(t, keys)
	f := newForge(keys)
	pac := types.AuthorizationDataEntry{ADType: 128, ADData: newPAC(f).build(t, f.serviceKey(t))}
	other := types.AuthorizationDataEntry{ADType: 77, ADData: []byte("other")}
	tests := []struct {
		name string
		data types.AuthorizationData
		want catalog.Code
		pac  bool
	}{
		{"first of the first", types.AuthorizationData{relevant(t, pac)}, "", true},
		{"second of the second", types.AuthorizationData{relevant(t, other), relevant(t, other, pac)}, "", true},
		{"two deep", types.AuthorizationData{relevant(t, relevant(t, other, pac))}, "", true},
		{"at the top", types.AuthorizationData{pac}, "", true},
		{"nowhere", types.AuthorizationData{relevant(t, other)}, "", false},
		{"an empty element", types.AuthorizationData{relevant(t)}, "", false},
		{"twice", types.AuthorizationData{relevant(t, pac), relevant(t, pac)}, catalog.KerberosPACMalformed, false},
		{"after noise", types.AuthorizationData{{ADType: 1, ADData: []byte("noise")}, relevant(t, pac)}, catalog.KerberosPACMalformed, false},
		{"empty", types.AuthorizationData{relevant(t, types.AuthorizationDataEntry{ADType: 128, ADData: []byte{}})}, catalog.KerberosPACMalformed, false},
		{"too deep", types.AuthorizationData{relevant(t, relevant(t, relevant(t, relevant(t, relevant(t, pac)))))}, catalog.KerberosPACMalformed, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newForge(keys)
			f.authorization = test.data
			got, _, err := newAcceptor(t, reader, nil).Accept(t.Context(), f.token(t), auth.Channel{})
			if catalog.CodeOf(err) != test.want || err == nil && got.Ticket.PAC != test.pac {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// What the lean reader finds is what the library's decoder finds, in what real domain
// controllers wrote.
func TestLogonInformationOfRealDomainControllers(t *testing.T) {
	for name, text := range map[string]string{
		"Microsoft's example": testdata.MarshaledPAC_Kerb_Validation_Info_MS,
		"Windows":             testdata.MarshaledPAC_Kerb_Validation_Info,
		"over a trust":        testdata.MarshaledPAC_Kerb_Validation_Info_Trust,
		"ours":                hex.EncodeToString(logonInfo("CHILD", 1103)),
	} {
		data, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		domain, sid, ok := parseLogon(data)
		var want library.KerbValidationInfo
		if name == "ours" {
			if domain != "CHILD" || sid != domSID+"-1103" || !ok {
				t.Errorf("%s: got %q, %q, %v", name, domain, sid, ok)
			}
			continue
		}
		if err := want.Unmarshal(data); err != nil {
			t.Fatal(err)
		}
		wantSID := want.LogonDomainID.String() + "-" + decimal(want.UserID)
		if !ok || domain != want.LogonDomainName.Value || sid != wantSID {
			t.Errorf("%s: got %q, %q, %v, want %q, %q", name, domain, sid, ok, want.LogonDomainName.Value, wantSID)
		}
		for i := range data {
			parseLogon(data[:i]) // must not panic
		}
	}
}

func decimal(n uint32) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return decimal(n/10) + string(rune('0'+n%10))
}

func TestAPACOfWindowsIsRead(t *testing.T) {
	data, err := hex.DecodeString(testdata.MarshaledPAC_AD_WIN2K_PAC)
	if err != nil {
		t.Fatal(err)
	}
	p, ok := parsePAC(data)
	if !ok || p.server.kind != chksumtype.HMAC_SHA1_96_AES256 || p.kdc.kind != chksumtype.KERB_CHECKSUM_HMAC_MD5 {
		t.Fatalf("got %v, %d, %d", ok, p.server.kind, p.kdc.kind)
	}
	if name, _, ok := parsePACClient(p.client); !ok || name != "testuser1" {
		t.Errorf("client %q, %v", name, ok)
	}
	if domain, sid, ok := parseLogon(p.logon); !ok || domain != "TEST" || sid == "" {
		t.Errorf("domain %q, SID %q, %v", domain, sid, ok)
	}
}
