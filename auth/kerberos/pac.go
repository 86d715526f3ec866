package kerberos

import (
	"bytes"
	"crypto/hmac"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/jcmturner/gokrb5/v8/iana/adtype"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"golang.org/x/crypto/cryptobyte"

	"postern/catalog"
	"postern/proof"
)

// Buffers of a PAC that we read (MS-PAC 2.4).
const (
	pacLogon           = 1
	pacServerSignature = 6
	pacKDCSignature    = 7
	pacClient          = 10
)

const (
	maxPACBuffers = 64
	pacHeader     = 8
	pacBuffer     = 16
	maxDomain     = 15 // of a NetBIOS name
)

// pacChecksums are the types of signatures and their sizes.
var pacChecksums = map[int32]int{
	chksumtype.HMAC_SHA1_96_AES128: 12, chksumtype.HMAC_SHA1_96_AES256: 12,
	chksumtype.HMAC_SHA256_128_AES128: 16, chksumtype.HMAC_SHA384_192_AES256: 24,
	chksumtype.CMAC_CAMELLIA128: 16, chksumtype.CMAC_CAMELLIA256: 16,
	chksumtype.KERB_CHECKSUM_HMAC_MD5: 16,
}

// pacChecksumOf is the one type of signature that a key of the service makes. A KDC that
// signed with another would let a weaker one stand in for a strong key.
var pacChecksumOf = map[int32]int32{
	etypeID.AES128_CTS_HMAC_SHA1_96:    chksumtype.HMAC_SHA1_96_AES128,
	etypeID.AES256_CTS_HMAC_SHA1_96:    chksumtype.HMAC_SHA1_96_AES256,
	etypeID.AES128_CTS_HMAC_SHA256_128: chksumtype.HMAC_SHA256_128_AES128,
	etypeID.AES256_CTS_HMAC_SHA384_192: chksumtype.HMAC_SHA384_192_AES256,
	etypeID.RC4_HMAC:                   chksumtype.KERB_CHECKSUM_HMAC_MD5,
}

// pac is a Privilege Attribute Certificate (MS-PAC 2.3).
type pac struct {
	data        []byte
	logon       []byte
	client      []byte
	server, kdc pacSignature
}

type pacSignature struct {
	kind     int32
	from, to int // where the signature lies in the PAC
}

// checkPAC reads account and domain from the PAC, when there is one: MIT's KDC writes
// one without logon information, or none. It is never believed unverified.
//
// The KDC's own signature cannot be verified without the key of krbtgt, which no service
// has. It protects against services that forge a PAC for others; what we judge here was
// made by our KDC for us, under a key that only the two of us have.
func (v *visit) checkPAC() error {
	data, err := v.findPAC()
	if data == nil || err != nil {
		return err
	}
	p, ok := parsePAC(data)
	if !ok {
		return catalog.Errorf(catalog.KerberosPACMalformed, "the PAC of %s cannot be read", v.proved.LogName())
	}
	if want := pacChecksumOf[v.key.secret.kind]; p.server.kind != want {
		return catalog.Errorf(catalog.KerberosPACSignature, "the PAC of %s is signed with type %d, where the key makes type %d", v.proved.LogName(), p.server.kind, want)
	}
	if !p.verify(&v.key.secret) {
		return catalog.Errorf(catalog.KerberosPACSignature, "the PAC of %s was altered, or signed with another key", v.proved.LogName())
	}
	if err := v.checkPACClient(p); err != nil {
		return err
	}
	v.proved.PAC = true
	return v.readLogon(p)
}

// findPAC looks through every element of the ticket's authorization data.
func (v *visit) findPAC() (found []byte, err error) {
	if v.ticket.data.Empty() {
		return nil, nil
	}
	count := 0
	ok := findAuthorization(v.ticket.data, adtype.ADWin2KPAC, maxNesting, func(value []byte) bool {
		found, count = value, count+1
		return true
	})
	if !ok || count > 1 {
		return nil, catalog.Errorf(catalog.KerberosPACMalformed, "the authorization data of %s cannot be read, or has more than one PAC", v.proved.LogName())
	}
	return found, nil
}

// findAuthorization calls visit for each element of a kind, also of those inside of
// AD-IF-RELEVANT (RFC 4120 5.2.6.1). It returns false for data that is broken or too deep.
func findAuthorization(data cryptobyte.String, kind int32, nesting int, visit func(value []byte) bool) bool {
	return eachAuthorization(data, func(found int32, value []byte) bool {
		switch found {
		case kind:
			return visit(value)
		case ifRelevant:
			return nesting > 0 && findAuthorization(value, kind, nesting-1, visit)
		}
		return true
	})
}

// parsePAC finds the buffers. Each that we read must be there once at most, both
// signatures and the client exactly once.
func parsePAC(data []byte) (pac, bool) {
	p := pac{data: data}
	if len(data) < pacHeader || binary.LittleEndian.Uint32(data[4:]) != 0 {
		return p, false
	}
	count := binary.LittleEndian.Uint32(data)
	if count > maxPACBuffers || len(data) < pacHeader+int(count)*pacBuffer {
		return p, false
	}
	for i := range int(count) {
		if !p.addBuffer(data[pacHeader+i*pacBuffer:]) {
			return p, false
		}
	}
	return p, p.client != nil && p.server.to > 0 && p.kdc.to > 0
}

func (p *pac) addBuffer(header []byte) bool {
	kind, size, offset := binary.LittleEndian.Uint32(header), uint64(binary.LittleEndian.Uint32(header[4:])), binary.LittleEndian.Uint64(header[8:])
	length := uint64(len(p.data))
	if offset > length || size > length-offset {
		return false
	}
	content := p.data[offset : offset+size : offset+size]
	switch kind {
	case pacLogon:
		return setOnce(&p.logon, content)
	case pacClient:
		return setOnce(&p.client, content)
	case pacServerSignature:
		return p.server.read(content, int(offset))
	case pacKDCSignature:
		return p.kdc.read(content, int(offset))
	}
	return true
}

func setOnce(to *[]byte, content []byte) bool {
	if *to != nil {
		return false
	}
	*to = content
	return true
}

// read reads a PAC_SIGNATURE_DATA (MS-PAC 2.8). What may follow the signature, the
// number of a read-only domain controller, is signed data like the rest.
func (s *pacSignature) read(content []byte, offset int) bool {
	if s.to > 0 || len(content) < 4 {
		return false
	}
	kind := int32(binary.LittleEndian.Uint32(content))
	size, ok := pacChecksums[kind]
	if !ok || len(content) < 4+size {
		return false
	}
	*s = pacSignature{kind, offset + 4, offset + 4 + size}
	return true
}

// verify compares the server's signature, which is over the PAC with both signatures
// set to zero (MS-PAC 2.8.1).
func (p pac) verify(key *secret) bool {
	blank := bytes.Clone(p.data)
	clear(blank[p.server.from:p.server.to])
	clear(blank[p.kdc.from:p.kdc.to])
	return hmac.Equal(key.checksum(usagePAC, blank), p.data[p.server.from:p.server.to])
}

// checkPACClient compares the PAC_CLIENT_INFO (MS-PAC 2.7) with the ticket: the same
// name, and the second at which the client logged on.
func (v *visit) checkPACClient(p pac) error {
	name, at, ok := parsePACClient(p.client)
	if !ok {
		return catalog.Errorf(catalog.KerberosPACMalformed, "the PAC of %s names no client", v.proved.LogName())
	}
	if name != v.ticket.client || !at.Equal(v.ticket.authTime) {
		return catalog.Errorf(catalog.KerberosPACClient, "the PAC is for %.100q, logged on at %s, the ticket for %s, at %s", name, stamp(at), v.ticket.client, stamp(v.ticket.authTime))
	}
	return nil
}

// parsePACClient returns the name and the time, cut to seconds as tickets have it.
func parsePACClient(data []byte) (name string, at time.Time, ok bool) {
	if len(data) < 10 {
		return "", time.Time{}, false
	}
	const fromUnix = 11644473600 // seconds from 1601 to 1970
	at = time.Unix(int64(binary.LittleEndian.Uint64(data)/1e7)-fromUnix, 0)
	size := int(binary.LittleEndian.Uint16(data[8:]))
	if size%2 != 0 || len(data) < 10+size {
		return "", time.Time{}, false
	}
	return decodeUTF16(data[10 : 10+size]), at, true
}

func decodeUTF16(data []byte) string {
	units := make([]uint16, len(data)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(data[2*i:])
	}
	return string(utf16.Decode(units))
}

// readLogon takes the domain's short name and the account's SID.
func (v *visit) readLogon(p pac) error {
	if p.logon == nil {
		return nil
	}
	domain, sid, ok := parseLogon(p.logon)
	if !ok {
		return catalog.Errorf(catalog.KerberosPACMalformed, "the logon information of %s cannot be read", v.proved.LogName())
	}
	v.proved.SID = sid
	if domain == "" {
		return nil
	}
	if !accountName(domain) || len(domain) > maxDomain {
		return catalog.Errorf(catalog.KerberosNameInvalid, "the PAC of %s names the domain %.50q, which is no NetBIOS name", v.proved.LogName(), domain)
	}
	if other, taken := v.ownerOf(domain); taken {
		return catalog.Errorf(catalog.KerberosPACClient, "the PAC of %s@%s names the domain %s, which is that of the realm %s", v.ticket.client, v.ticket.realm, domain, other)
	}
	v.proved.Domain = domain
	return nil
}

// ownerOf returns the other realm whose short name a domain is: one of our list, or of
// the keytab. A KDC that is trusted for its own computers must not be able to put another
// domain's name into logs.
func (v *visit) ownerOf(domain string) (realm string, taken bool) {
	if strings.EqualFold(domain, v.proved.Domain) {
		return "", false
	}
	realms := v.realms
	for name := range v.keytab.byType {
		if _, listed := v.listed(name.realm); !listed {
			realms = append(slices.Clip(realms), proof.NewRealm(name.realm))
		}
	}
	for _, r := range realms {
		if r.Name != v.ticket.realm && strings.EqualFold(r.Domain, domain) {
			return r.Name, true
		}
	}
	return "", false
}

// Where members of KERB_VALIDATION_INFO lie after the headers of the serialization
// (MS-PAC 2.5, MS-RPCE 2.2.6). Pointers are numbers there; what they point to follows
// in the order of the pointers.
const (
	logonHeaders  = 20 // type and private header, and the pointer to the whole
	logonStrings  = 48 // six strings: names, script, profile, home
	logonUser     = 100
	logonGroups   = 112 // pointer; the count stands inside too
	logonServer   = 136
	logonDomain   = 144
	logonDomainID = 152
	logonEnd      = 216
	stringHeader  = 8
)

// parseLogon returns the domain's NetBIOS name and the account's SID, "" where the
// KDC wrote none.
func parseLogon(data []byte) (domain, sid string, ok bool) {
	if len(data) < logonHeaders+logonEnd || !bytes.Equal(data[:4], []byte{1, 0x10, 8, 0}) {
		return "", "", false
	}
	fixed := data[logonHeaders:]
	pointer := func(at int) bool { return binary.LittleEndian.Uint32(fixed[at:]) != 0 }
	r := deferred{data: fixed, at: logonEnd}
	for i := range 6 {
		r.text(pointer(logonStrings + i*stringHeader + 4))
	}
	r.groups(pointer(logonGroups))
	r.text(pointer(logonServer + 4))
	domain = r.text(pointer(logonDomain + 4))
	domainID := r.sid(pointer(logonDomainID))
	user := binary.LittleEndian.Uint32(fixed[logonUser:])
	if r.broken {
		return "", "", false
	}
	if domainID != "" && user != 0 {
		sid = domainID + "-" + strconv.FormatUint(uint64(user), 10)
	}
	return domain, sid, true
}

// deferred reads what pointers point to, each on a boundary of four bytes. After the
// first thing that does not fit it reads nothing.
type deferred struct {
	data   []byte
	at     int
	broken bool
}

func (r *deferred) take(size uint64) []byte {
	if r.broken || size > uint64(len(r.data)-r.at) {
		r.broken = true
		return nil
	}
	taken := r.data[r.at : r.at+int(size)]
	r.at = min((r.at+int(size)+3)&^3, len(r.data))
	return taken
}

func (r *deferred) number() uint64 {
	if b := r.take(4); b != nil {
		return uint64(binary.LittleEndian.Uint32(b))
	}
	return 0
}

// text reads a conformant and varying array of UTF-16.
func (r *deferred) text(present bool) string {
	if !present {
		return ""
	}
	room, offset, length := r.number(), r.number(), r.number()
	if offset != 0 || length > room {
		r.broken = true
	}
	return decodeUTF16(r.take(2 * length))
}

func (r *deferred) groups(present bool) {
	if present {
		r.take(8 * r.number())
	}
}

// sid reads an RPC_SID (MS-DTYP 2.4.2.3).
func (r *deferred) sid(present bool) string {
	if !present {
		return ""
	}
	count := r.number()
	head := r.take(8)
	if head == nil || head[0] != 1 || uint64(head[1]) != count || count > 15 {
		r.broken = true
		return ""
	}
	authority := uint64(binary.BigEndian.Uint16(head[2:]))<<32 | uint64(binary.BigEndian.Uint32(head[4:]))
	sid := fmt.Sprintf("S-1-%d", authority)
	for range count {
		sid += "-" + strconv.FormatUint(r.number(), 10)
	}
	return sid
}
