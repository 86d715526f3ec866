package kerberos

import (
	"crypto/sha512"
	"encoding/binary"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/auth"
	"postern/proof"
)

const (
	parent  = "A2003.VM.LOCAL"
	child   = "CHILD.A2003.VM.LOCAL"
	service = "HTTP/mp.a2003.vm.local"
	account = "WK02-020-51W$"
	domSID  = "S-1-5-21-397955417-626881126-188441444"
)

// noon is the time of all tests.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// wellKeys are the keys of the service in the tests' keytab, versions 3 and 4.
func wellKeys(t testing.TB, kinds ...int32) *keytab.Keytab {
	t.Helper()
	kt := keytab.New()
	for _, kind := range kinds {
		addKey(t, kt, "svc-mp", parent, 3, kind, "last year's")
		addKey(t, kt, "svc-mp", parent, 4, kind, "this year's")
	}
	return kt
}

// addKey adds a key that is made from a secret without the thousands of rounds that a
// password takes.
func addKey(t testing.TB, kt *keytab.Keytab, name, realm string, version uint8, kind int32, secret string) {
	t.Helper()
	if err := kt.AddEntry(name, realm, "", noon.AddDate(0, 0, int(version)), version, 23); err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum512([]byte(secret))
	kt.Entries[len(kt.Entries)-1].Key = types.EncryptionKey{KeyType: kind, KeyValue: sum[:encryptions[kind].size]}
}

func reread(t testing.TB, kt *keytab.Keytab) *Keytab {
	t.Helper()
	data, err := kt.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParseKeytab(data)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// forge makes a token with the library's encoder, one that is right in everything unless
// a test changes it.
type forge struct {
	keys                  *keytab.Keytab
	kind, sessionKind     int32
	version, claimed      int // of the key used and of that named
	name, realm           string
	authName, authRealm   string
	service, serviceRealm string
	authTime, start, end  time.Time
	clock                 time.Time
	ticketFlags           []int
	apOptions             []int
	transitKind           int32
	transit               string
	authorization         types.AuthorizationData // of the ticket
	clientAuthorization   types.AuthorizationData // of the authenticator
	checksum              types.Checksum
	sessionKey, sealKey   []byte // sealKey: of the authenticator, when it differs
	subkey                types.EncryptionKey
	mechanisms            [][]byte
	bare                  bool
	signList              bool
	alterList             bool
	principal             string
}

func newForge(keys *keytab.Keytab) *forge {
	return &forge{
		keys: keys, kind: 18, sessionKind: 18, version: 4, claimed: 4, principal: "svc-mp",
		name: account, realm: child, authName: account, authRealm: child, service: service, serviceRealm: parent,
		authTime: noon.Add(-time.Hour), start: noon.Add(-time.Hour), end: noon.Add(9 * time.Hour), clock: noon,
		apOptions: []int{flags.APOptionMutualRequired}, checksum: types.Checksum{CksumType: 0x8003, Checksum: gss(nil, 2|32)},
		sessionKey: []byte("0123456789abcdef0123456789abcdef"), mechanisms: [][]byte{oidKerberos, oidMSKerberos},
	}
}

// gss is the checksum of RFC 4121 4.1.1.
func gss(binding []byte, flags uint32) []byte {
	sum := make([]byte, 24)
	binary.LittleEndian.PutUint32(sum, 16)
	copy(sum[4:], binding)
	binary.LittleEndian.PutUint32(sum[20:], flags)
	return sum
}

func principal(name string) types.PrincipalName {
	return types.NewPrincipalName(nametype.KRB_NT_PRINCIPAL, name)
}

func (f *forge) serviceKey(t testing.TB) types.EncryptionKey {
	t.Helper()
	key, _, err := f.keys.GetEncryptionKey(principal(f.principal), parent, f.version, f.kind)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (f *forge) session() types.EncryptionKey {
	size := len(f.sessionKey)
	if want := encryptions[f.sessionKind].size; want > 0 {
		size = want
	}
	return types.EncryptionKey{KeyType: f.sessionKind, KeyValue: f.sessionKey[:size]}
}

func mustMarshal(t testing.TB, value any) []byte {
	t.Helper()
	b, err := asn1.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (f *forge) ticket(t testing.TB) messages.Ticket {
	t.Helper()
	part := messages.EncTicketPart{
		Flags: types.NewKrbFlags(), Key: f.session(), CRealm: f.realm, CName: principal(f.name),
		Transited: messages.TransitedEncoding{TRType: f.transitKind, Contents: []byte(f.transit)},
		AuthTime:  f.authTime, StartTime: f.start, EndTime: f.end, RenewTill: f.end, AuthorizationData: f.authorization,
	}
	for _, flag := range f.ticketFlags {
		types.SetFlag(&part.Flags, flag)
	}
	plain := asn1tools.AddASNAppTag(mustMarshal(t, part), 3)
	sealed, err := crypto.GetEncryptedData(plain, f.serviceKey(t), 2, f.claimed)
	if err != nil {
		t.Fatal(err)
	}
	return messages.Ticket{TktVNO: 5, Realm: f.serviceRealm, SName: principal(f.service), EncPart: sealed}
}

func (f *forge) request(t testing.TB) []byte {
	t.Helper()
	a := types.Authenticator{
		AVNO: 5, CRealm: f.authRealm, CName: principal(f.authName), Cksum: f.checksum, Cusec: f.clock.Nanosecond() / 1000,
		CTime: f.clock.Truncate(time.Second), SubKey: f.subkey, SeqNumber: 4711, AuthorizationData: f.clientAuthorization,
	}
	key := f.session()
	if f.sealKey != nil {
		key.KeyValue = f.sealKey
	}
	plain, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := crypto.GetEncryptedData(plain, key, 11, 0)
	if err != nil {
		t.Fatal(err)
	}
	req := messages.APReq{PVNO: 5, MsgType: 14, APOptions: types.NewKrbFlags(), Ticket: f.ticket(t), EncryptedAuthenticator: sealed}
	for _, option := range f.apOptions {
		types.SetFlag(&req.APOptions, option)
	}
	data, err := req.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// token is the whole, SPNEGO around it unless it is to be bare.
func (f *forge) token(t testing.TB) []byte {
	t.Helper()
	inner := tlv(0x60, tlv(6, oidKerberos), tokenRequest, f.request(t))
	if f.bare {
		return inner
	}
	list := mechanismList(f.mechanisms...)
	var mic []byte
	if f.signList {
		mic = f.mic(t, list, 0, 25)
	}
	if f.alterList {
		list = mechanismList(f.mechanisms[0])
	}
	return negotiation(list, inner, mic)
}

func (f *forge) contextKey(t testing.TB) *secret {
	t.Helper()
	k := f.session()
	if f.subkey.KeyType != 0 {
		k = f.subkey
	}
	s, ok := newSecret(k.KeyType, k.KeyValue)
	if !ok {
		t.Fatal("no secret")
	}
	return &s
}

// mic is a MIC token made by the library's checksum.
func (f *forge) mic(t testing.TB, list []byte, flags byte, usage uint32) []byte {
	t.Helper()
	header := []byte{4, 4, flags, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint64(header[8:], 4711)
	key := f.contextKey(t)
	sum, err := key.etype.GetChecksumHash(key.value, append(append([]byte{}, list...), header...), usage)
	if err != nil {
		t.Fatal(err)
	}
	return append(header, sum...)
}

func tlv(tag byte, parts ...[]byte) []byte {
	var content []byte
	for _, part := range parts {
		content = append(content, part...)
	}
	return append(append([]byte{tag}, asn1tools.MarshalLengthBytes(len(content))...), content...)
}

func mechanismList(oids ...[]byte) []byte {
	var encoded [][]byte
	for _, oid := range oids {
		encoded = append(encoded, tlv(6, oid))
	}
	return tlv(0x30, encoded...)
}

// negotiation is a NegTokenInit with its frame; parts that are nil are left out.
func negotiation(list, token, mic []byte) []byte {
	members := [][]byte{tlv(0xa0, list)}
	if token != nil {
		members = append(members, tlv(0xa2, tlv(4, token)))
	}
	if mic != nil {
		members = append(members, tlv(0xa3, tlv(4, mic)))
	}
	return tlv(0x60, tlv(6, oidSPNEGO), tlv(0xa0, tlv(0x30, members...)))
}

// relevant wraps elements as KDCs do.
func relevant(t testing.TB, elements ...types.AuthorizationDataEntry) types.AuthorizationDataEntry {
	t.Helper()
	return types.AuthorizationDataEntry{ADType: 1, ADData: mustMarshal(t, types.AuthorizationData(elements))}
}

// pacForge makes a PAC; its parts can be changed before and after it is signed.
type pacForge struct {
	logon, client   []byte
	kind            int32 // of the server's signature
	noServer, noKDC bool
	extra           []pacPart
	afterSigning    func(pac []byte, at map[uint32]int)
}

type pacPart struct {
	kind uint32
	data []byte
}

func newPAC(f *forge) *pacForge {
	return &pacForge{logon: logonInfo("CHILD", 1103), client: clientInfo(f.name, f.authTime), kind: pacChecksumOf[f.kind]}
}

func clientInfo(name string, at time.Time) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(at.Unix()+11644473600)*1e7)
	units := utf16.Encode([]rune(name))
	b = binary.LittleEndian.AppendUint16(b, uint16(2*len(units)))
	for _, u := range units {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// logonInfo is a KERB_VALIDATION_INFO with a name, three groups and a domain.
func logonInfo(domain string, user uint32) []byte {
	fixed := make([]byte, logonEnd)
	var tail []byte
	text := func(at int, s string) {
		units := utf16.Encode([]rune(s))
		binary.LittleEndian.PutUint16(fixed[at:], uint16(2*len(units)))
		binary.LittleEndian.PutUint16(fixed[at+2:], uint16(2*len(units)))
		binary.LittleEndian.PutUint32(fixed[at+4:], 0x20000+uint32(at))
		tail = binary.LittleEndian.AppendUint32(tail, uint32(len(units)))
		tail = binary.LittleEndian.AppendUint32(tail, 0)
		tail = binary.LittleEndian.AppendUint32(tail, uint32(len(units)))
		for _, u := range units {
			tail = binary.LittleEndian.AppendUint16(tail, u)
		}
		for len(tail)%4 != 0 {
			tail = append(tail, 0)
		}
	}
	text(logonStrings, account)
	text(logonStrings+stringHeader, "")
	binary.LittleEndian.PutUint32(fixed[logonUser:], user)
	binary.LittleEndian.PutUint32(fixed[logonUser+8:], 3)
	binary.LittleEndian.PutUint32(fixed[logonGroups:], 0x20100)
	tail = binary.LittleEndian.AppendUint32(tail, 3)
	for group := range uint32(3) {
		tail = binary.LittleEndian.AppendUint32(tail, 513+group)
		tail = binary.LittleEndian.AppendUint32(tail, 7)
	}
	text(logonServer, "DC-CHILD")
	text(logonDomain, domain)
	binary.LittleEndian.PutUint32(fixed[logonDomainID:], 0x20200)
	tail = binary.LittleEndian.AppendUint32(tail, 4)
	tail = append(tail, 1, 4, 0, 0, 0, 0, 0, 5)
	for _, part := range []uint32{21, 397955417, 626881126, 188441444} {
		tail = binary.LittleEndian.AppendUint32(tail, part)
	}
	body := append(fixed, tail...)
	for len(body)%8 != 0 {
		body = append(body, 0)
	}
	header := []byte{1, 0x10, 8, 0, 0xcc, 0xcc, 0xcc, 0xcc}
	header = binary.LittleEndian.AppendUint32(header, uint32(len(body)+4))
	header = append(header, 0, 0, 0, 0, 0, 0, 2, 0)
	return append(header, body...)
}

// build returns the PAC, signed with the service's key by the library.
func (p *pacForge) build(t testing.TB, key types.EncryptionKey) []byte {
	t.Helper()
	signature := func(kind int32) []byte {
		b := binary.LittleEndian.AppendUint32(nil, uint32(kind))
		return append(b, make([]byte, pacChecksums[kind])...)
	}
	parts := []pacPart{{1, p.logon}, {10, p.client}}
	if !p.noServer {
		parts = append(parts, pacPart{6, signature(p.kind)})
	}
	if !p.noKDC {
		parts = append(parts, pacPart{7, signature(16)})
	}
	parts = append(parts, p.extra...)
	var kept []pacPart
	for _, part := range parts {
		if part.data != nil {
			kept = append(kept, part)
		}
	}
	data := binary.LittleEndian.AppendUint32(nil, uint32(len(kept)))
	data = append(data, 0, 0, 0, 0)
	at, offset := map[uint32]int{}, pacHeader+len(kept)*pacBuffer
	for _, part := range kept {
		at[part.kind] = offset
		data = binary.LittleEndian.AppendUint32(data, part.kind)
		data = binary.LittleEndian.AppendUint32(data, uint32(len(part.data)))
		data = binary.LittleEndian.AppendUint64(data, uint64(offset))
		offset += (len(part.data) + 7) &^ 7
	}
	for _, part := range kept {
		data = append(data, part.data...)
		data = append(data, make([]byte, (8-len(part.data)%8)%8)...)
	}
	if !p.noServer {
		p.sign(t, data, at, key)
	}
	if p.afterSigning != nil {
		p.afterSigning(data, at)
	}
	return data
}

func (p *pacForge) sign(t testing.TB, data []byte, at map[uint32]int, key types.EncryptionKey) {
	t.Helper()
	e, err := crypto.GetChksumEtype(p.kind)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := e.GetChecksumHash(key.KeyValue, data, 17)
	if err != nil {
		t.Fatal(err)
	}
	copy(data[at[6]+4:], sum)
	for i := range 12 {
		if !p.noKDC {
			data[at[7]+4+i] = byte(i + 1) // the KDC's own, which nobody here can verify
		}
	}
}

// withPAC puts a PAC into the ticket as a KDC does, after another element.
func (f *forge) withPAC(t testing.TB, change func(*pacForge)) *forge {
	t.Helper()
	p := newPAC(f)
	if change != nil {
		change(p)
	}
	f.authorization = types.AuthorizationData{
		relevant(t, types.AuthorizationDataEntry{ADType: 97, ADData: []byte("other")}),
		relevant(t, types.AuthorizationDataEntry{ADType: 129, ADData: []byte("other")}, types.AuthorizationDataEntry{ADType: 128, ADData: p.build(t, f.serviceKey(t))}),
	}
	return f
}

// newAcceptor returns an acceptor at noon that trusts the child realm.
func newAcceptor(t testing.TB, keys *Keytab, change func(*Config)) *Acceptor {
	t.Helper()
	now := func() time.Time { return noon }
	config := Config{
		Keytab: keys, Now: now, Replay: auth.NewMemory(1<<16, now),
		Realms: func() []proof.Realm { return []proof.Realm{proof.NewRealm(child)} },
	}
	if change != nil {
		change(&config)
	}
	a, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
