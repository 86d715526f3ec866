package revocation

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"postern/catalog"
)

// list is a revocation list (RFC 5280 5) whose signature was checked, without its bytes.
type list struct {
	rawIssuer  []byte
	issuer     string
	signer     *x509.Certificate // nil until the signature was checked
	thisUpdate time.Time
	nextUpdate time.Time // zero when the list names none
	scope      scope
	entries    []entry // sorted by serial

	etag, modified string
}

// scope is what the issuing distribution point extension limits a list to (RFC 5280 5.2.5).
type scope struct {
	usersOnly, authoritiesOnly bool
	points                     []string // a certificate must name one of them; nil: no limit
}

// entry is one revoked certificate in 28 bytes. crypto/x509 takes about 400 for each, which is why entries are read here
// and only the head of a list is left to it.
type entry struct {
	serial  serial
	reason  uint8
	seconds uint32 // of the revocation, since 1970
}

// serial is the content of a DER INTEGER: its length, then its bytes. Longer ones than RFC 5280 4.1.2.2 allows are hashed.
type serial [1 + 20]byte

func serialOf(content []byte) (s serial) {
	if len(content) > 20 {
		hash := sha256.Sum256(content)
		s[0] = 0xff
		copy(s[1:], hash[:])
		return s
	}
	s[0] = byte(len(content))
	copy(s[1:], content)
	return s
}

// serialOfCertificate returns the serial number as a list holds it.
func serialOfCertificate(certificate *x509.Certificate) serial {
	if certificate.SerialNumber == nil {
		return serial{}
	}
	var b cryptobyte.Builder
	b.AddASN1BigInt(certificate.SerialNumber)
	der, err := b.Bytes()
	if err != nil {
		return serial{}
	}
	var content cryptobyte.String
	input := cryptobyte.String(der)
	if !input.ReadASN1(&content, cryptobyte_asn1.INTEGER) {
		return serial{}
	}
	return serialOf(content)
}

// unsignedList is a list as it was read, before anybody's key was found to have signed it.
type unsignedList struct {
	list      *list
	algorithm x509.SignatureAlgorithm
	signed    []byte
	signature []byte
}

// readList reads a list in DER or PEM within the budget of entries. Codes: RevocationListMalformed,
// RevocationListUnsupported.
func readList(data []byte, maxEntries int) (unsignedList, error) {
	der, err := unwrapPEM(data)
	if err != nil {
		return unsignedList{}, err
	}
	parts, err := splitList(der)
	if err != nil {
		return unsignedList{}, malformed(err)
	}
	head, err := parts.head()
	if err != nil {
		return unsignedList{}, malformed(err)
	}
	if weakSignature(head.SignatureAlgorithm) || head.SignatureAlgorithm == x509.UnknownSignatureAlgorithm {
		return unsignedList{}, unsupported("it is signed with " + head.SignatureAlgorithm.String())
	}
	scope, err := readScope(head.Extensions)
	if err != nil {
		return unsignedList{}, err
	}
	entries, err := readEntries(parts.entries, maxEntries)
	if err != nil {
		return unsignedList{}, err
	}
	return unsignedList{
		list: &list{
			rawIssuer:  bytes.Clone(head.RawIssuer),
			issuer:     shortened(head.Issuer.String()),
			thisUpdate: head.ThisUpdate,
			nextUpdate: head.NextUpdate,
			scope:      scope,
			entries:    entries,
		},
		algorithm: head.SignatureAlgorithm,
		signed:    parts.signed,
		signature: head.Signature,
	}, nil
}

// shortened is text within the bounds of a log line.
func shortened(text string) string {
	if len(text) > 200 {
		return strings.ToValidUTF8(text[:200], "") + "..."
	}
	return text
}

func malformed(err error) error {
	return catalog.Wrap(catalog.RevocationListMalformed, err, "it is not a revocation list that can be read")
}

func unsupported(what string) error {
	return catalog.Errorf(catalog.RevocationListUnsupported, "the list is not used: %s", what)
}

func unwrapPEM(data []byte) ([]byte, error) {
	if !bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("-----BEGIN")) {
		return data, nil
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "X509 CRL" {
		return nil, catalog.Errorf(catalog.RevocationListMalformed, "it is PEM without a block X509 CRL")
	}
	return block.Bytes, nil
}

// listParts are the pieces of a CertificateList, each with its tag unless it says otherwise.
type listParts struct {
	signed  cryptobyte.String // tbsCertList
	before  []byte            // content of tbsCertList up to the entries
	entries cryptobyte.String // content of revokedCertificates
	after   []byte            // content of tbsCertList behind them
	trailer []byte            // signatureAlgorithm and signature
}

var errNotAList = errors.New("not a CertificateList")

func splitList(der []byte) (p listParts, err error) {
	input, outer := cryptobyte.String(der), cryptobyte.String(nil)
	if !input.ReadASN1(&outer, cryptobyte_asn1.SEQUENCE) || !input.Empty() {
		return p, errNotAList
	}
	if !outer.ReadASN1Element(&p.signed, cryptobyte_asn1.SEQUENCE) {
		return p, errNotAList
	}
	p.trailer = outer
	var content cryptobyte.String
	whole := p.signed
	if !whole.ReadASN1(&content, cryptobyte_asn1.SEQUENCE) {
		return p, errNotAList
	}
	rest := content
	// version, signature, issuer, thisUpdate, and perhaps nextUpdate
	for _, tag := range []cryptobyte_asn1.Tag{cryptobyte_asn1.INTEGER, cryptobyte_asn1.SEQUENCE, cryptobyte_asn1.SEQUENCE} {
		if !rest.SkipASN1(tag) {
			return p, errNotAList
		}
	}
	if !skipTime(&rest) {
		return p, errNotAList
	}
	skipTime(&rest)
	p.before = content[:len(content)-len(rest)]
	if rest.PeekASN1Tag(cryptobyte_asn1.SEQUENCE) && !rest.ReadASN1(&p.entries, cryptobyte_asn1.SEQUENCE) {
		return p, errNotAList
	}
	p.after = rest
	return p, nil
}

func skipTime(input *cryptobyte.String) bool {
	for _, tag := range []cryptobyte_asn1.Tag{cryptobyte_asn1.UTCTime, cryptobyte_asn1.GeneralizedTime} {
		if input.PeekASN1Tag(tag) {
			return input.SkipASN1(tag)
		}
	}
	return false
}

// head lets crypto/x509 read the same list without its entries.
func (p listParts) head() (*x509.RevocationList, error) {
	if len(p.before)+len(p.after)+len(p.trailer) > 1<<20 {
		return nil, errors.New("the head of the list is too large")
	}
	var b cryptobyte.Builder
	b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(p.before)
			b.AddBytes(p.after)
		})
		b.AddBytes(p.trailer)
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	return x509.ParseRevocationList(der)
}

// Object identifiers of RFC 5280 5.2 and 5.3.
var (
	oidNumber            = asn1.ObjectIdentifier{2, 5, 29, 20}
	oidDelta             = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidAuthorityKeyID    = asn1.ObjectIdentifier{2, 5, 29, 35}
)

// The same for entries, as their bytes: there may be a million.
const (
	derReason         = "\x55\x1d\x15" // 2.5.29.21
	derInvalidityDate = "\x55\x1d\x18" // 2.5.29.24
)

// readScope refuses lists that do not answer for every certificate of their issuer, unless they say for which they do.
func readScope(extensions []pkix.Extension) (s scope, err error) {
	for _, extension := range extensions {
		switch id := extension.Id; {
		case id.Equal(oidDelta):
			return s, unsupported("it is a delta list, which holds only the changes to another")
		case id.Equal(oidDistributionPoint):
			if s, err = readDistributionPoint(extension.Value); err != nil {
				return s, err
			}
		case id.Equal(oidNumber), id.Equal(oidAuthorityKeyID):
		case extension.Critical:
			return s, unsupported("it has the critical extension " + id.String() + ", which is not understood")
		}
	}
	return s, nil
}

func readDistributionPoint(der []byte) (s scope, err error) {
	var content, point cryptobyte.String
	input := cryptobyte.String(der)
	if !input.ReadASN1(&content, cryptobyte_asn1.SEQUENCE) || !input.Empty() {
		return s, malformed(errors.New("issuing distribution point"))
	}
	tag := func(n uint8) cryptobyte_asn1.Tag { return cryptobyte_asn1.Tag(n).ContextSpecific() }
	var named bool
	if !content.ReadOptionalASN1(&point, &named, tag(0).Constructed()) {
		return s, malformed(errors.New("distribution point"))
	}
	if named {
		if s.points, err = readPointNames(point); err != nil {
			return s, err
		}
	}
	for !content.Empty() {
		var value cryptobyte.String
		var got cryptobyte_asn1.Tag
		if !content.ReadAnyASN1(&value, &got) {
			return s, malformed(errors.New("issuing distribution point"))
		}
		set := len(value) == 1 && value[0] != 0
		switch {
		case got == tag(1):
			s.usersOnly = set
		case got == tag(2):
			s.authoritiesOnly = set
		case got == tag(3):
			return s, unsupported("it is for some reasons of revocation only")
		case got == tag(4) && set:
			return s, unsupported("it is an indirect list, which speaks for several authorities")
		case got == tag(5) && set:
			return s, unsupported("it is for attribute certificates only")
		case got != tag(4) && got != tag(5):
			return s, unsupported("its issuing distribution point is not understood")
		}
	}
	return s, nil
}

// readPointNames reads the addresses of a DistributionPointName. A name that is no address matches nothing.
func readPointNames(point cryptobyte.String) (points []string, err error) {
	points = []string{}
	var full cryptobyte.String
	var present bool
	if !point.ReadOptionalASN1(&full, &present, cryptobyte_asn1.Tag(0).ContextSpecific().Constructed()) {
		return nil, malformed(errors.New("distribution point name"))
	}
	for !full.Empty() {
		var name cryptobyte.String
		var tag cryptobyte_asn1.Tag
		if !full.ReadAnyASN1(&name, &tag) || len(points) > 64 {
			return nil, malformed(errors.New("distribution point name"))
		}
		if tag == cryptobyte_asn1.Tag(6).ContextSpecific() {
			points = append(points, string(name))
		}
	}
	return points, nil
}

// readEntries reads revokedCertificates, counting them first so that the memory is taken once.
func readEntries(input cryptobyte.String, limit int) ([]entry, error) {
	count := 0
	for rest := input; !rest.Empty(); count++ {
		if !rest.SkipASN1(cryptobyte_asn1.SEQUENCE) {
			return nil, malformed(errors.New("entry of a revoked certificate"))
		}
		if count >= limit {
			return nil, catalog.Errorf(catalog.RevocationListMalformed, "the list has more than the %d entries that are read", limit)
		}
	}
	entries := make([]entry, 0, count)
	for range count {
		read, err := readEntry(&input)
		if err != nil {
			return nil, err
		}
		entries = append(entries, read)
	}
	bySerial := func(a, b entry) int { return bytes.Compare(a.serial[:], b.serial[:]) }
	if !slices.IsSortedFunc(entries, bySerial) {
		slices.SortFunc(entries, bySerial)
	}
	return entries, nil
}

func readEntry(input *cryptobyte.String) (e entry, err error) {
	var content, number, extensions cryptobyte.String
	var present bool
	if !input.ReadASN1(&content, cryptobyte_asn1.SEQUENCE) || !content.ReadASN1(&number, cryptobyte_asn1.INTEGER) || len(number) == 0 {
		return e, malformed(errors.New("entry of a revoked certificate"))
	}
	e.serial = serialOf(number)
	at, ok := readTime(&content)
	if !ok || !content.ReadOptionalASN1(&extensions, &present, cryptobyte_asn1.SEQUENCE) || !content.Empty() {
		return e, malformed(errors.New("entry of a revoked certificate"))
	}
	e.seconds = uint32(min(max(at.Unix(), 0), 1<<32-1))
	for !extensions.Empty() {
		if e.reason, err = readEntryExtension(&extensions, e.reason); err != nil {
			return e, err
		}
	}
	return e, nil
}

// readEntryExtension reads one extension of an entry and returns the reason, when it is that.
func readEntryExtension(extensions *cryptobyte.String, reason uint8) (uint8, error) {
	var extension, id, value cryptobyte.String
	critical := false
	if !extensions.ReadASN1(&extension, cryptobyte_asn1.SEQUENCE) || !extension.ReadASN1(&id, cryptobyte_asn1.OBJECT_IDENTIFIER) ||
		(extension.PeekASN1Tag(cryptobyte_asn1.BOOLEAN) && !extension.ReadASN1Boolean(&critical)) ||
		!extension.ReadASN1(&value, cryptobyte_asn1.OCTET_STRING) {
		return reason, malformed(errors.New("extension of a revoked certificate"))
	}
	switch {
	case string(id) == derReason:
		var number int
		if !value.ReadASN1Enum(&number) {
			return reason, malformed(errors.New("reason of a revoked certificate"))
		}
		return uint8(min(max(number, 0), 255)), nil
	case critical && string(id) != derInvalidityDate:
		return reason, unsupported(fmt.Sprintf("an entry has the critical extension %.20x, as in a list for several authorities", []byte(id)))
	}
	return reason, nil
}

func readTime(input *cryptobyte.String) (t time.Time, ok bool) {
	if input.PeekASN1Tag(cryptobyte_asn1.UTCTime) {
		ok = input.ReadASN1UTCTime(&t)
		return t, ok
	}
	ok = input.ReadASN1GeneralizedTime(&t)
	return t, ok
}

// signedBy finds the authority among candidates that signed the list. Code: RevocationListForeign.
func (u unsignedList) signedBy(candidates []*x509.Certificate) (*list, error) {
	for _, candidate := range candidates {
		if !mayHaveSigned(candidate, u.list.rawIssuer) {
			continue
		}
		if candidate.CheckSignature(u.algorithm, u.signed, u.signature) == nil {
			u.list.signer = candidate
			return u.list, nil
		}
	}
	return nil, catalog.Wrap(catalog.RevocationListForeign, &foreignList{u.list.rawIssuer, candidates},
		"the list is signed by no authority that is known here; it bears the name %.120q", u.list.issuer)
}

func mayHaveSigned(candidate *x509.Certificate, rawIssuer []byte) bool {
	return bytes.Equal(candidate.RawSubject, rawIssuer) &&
		(candidate.KeyUsage == 0 || candidate.KeyUsage&x509.KeyUsageCRLSign != 0) &&
		rsaBits(candidate) <= maxRSABits
}

// foreignList remembers whose list nobody's key had signed, and whose were tried, so that it is fetched again for an
// authority that becomes known later, and only then.
type foreignList struct {
	rawIssuer []byte
	tried     []*x509.Certificate
}

func (*foreignList) Error() string { return "no known key signed the list" }

// worth says whether an authority was not tried yet and may be the one.
func (f *foreignList) worth(issuer *x509.Certificate) bool {
	return mayHaveSigned(issuer, f.rawIssuer) && !slices.ContainsFunc(f.tried, issuer.Equal)
}

// ends is the time after which the list says nothing any more.
func (l *list) ends(config Config) time.Time {
	if l.nextUpdate.IsZero() {
		return l.thisUpdate.Add(config.MaxAge)
	}
	return l.nextUpdate.Add(config.Leeway)
}

// of says whether the list is the one of this authority.
func (l *list) of(issuer *x509.Certificate) bool {
	return l != nil && l.signer != nil && bytes.Equal(l.rawIssuer, issuer.RawSubject) &&
		bytes.Equal(l.signer.RawSubjectPublicKeyInfo, issuer.RawSubjectPublicKeyInfo)
}

// answersFor says whether a certificate of the issuer is within the list's scope.
func (l *list) answersFor(certificate *x509.Certificate) bool {
	if l.scope.usersOnly && certificate.IsCA || l.scope.authoritiesOnly && !certificate.IsCA {
		return false
	}
	return l.scope.points == nil || slices.ContainsFunc(certificate.CRLDistributionPoints, func(point string) bool {
		return slices.ContainsFunc(l.scope.points, func(own string) bool { return strings.EqualFold(own, point) })
	})
}

// find returns the entry of a certificate.
func (l *list) find(certificate *x509.Certificate) (entry, bool) {
	wanted := serialOfCertificate(certificate)
	at, found := slices.BinarySearchFunc(l.entries, wanted, func(e entry, s serial) int { return bytes.Compare(e.serial[:], s[:]) })
	if !found {
		return entry{}, false
	}
	return l.entries[at], true
}

// olderThan says whether this list was made before another of the same authority. The number of a list would say so too, but
// begins anew when an authority is restored, and its lists would then be refused for good.
func (l *list) olderThan(other *list) bool {
	return other != nil && other.signer != nil && l.of(other.signer) && l.thisUpdate.Before(other.thisUpdate)
}

// reasonText is a reason of RFC 5280 5.3.1 for a person, with a leading space.
func reasonText(reason int) string {
	words := map[int]string{
		1: "key compromise", 2: "authority compromise", 3: "affiliation changed", 4: "superseded",
		5: "cessation of operation", 6: "certificate hold", 8: "removed from the list", 9: "privilege withdrawn", 10: "attribute authority compromise",
	}
	if text, ok := words[reason]; ok {
		return " (" + text + ")"
	}
	return ""
}
