package ccm

import (
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"
	"slices"
	"time"

	"postern/catalog"
)

// Usage is what a client's own certificate is for (protocol.md 3.3). Third-party
// clients put both in one certificate, real ones make two.
type Usage int

// The two usages.
const (
	UsageSigning    Usage = 1 << iota // 1.3.6.1.4.1.311.101, "SMS Signing Certificate"
	UsageEncryption                   // 1.3.6.1.4.1.311.101.2
)

// Certificate is what the protocol needs of an X.509 certificate. Unlike crypto/x509 it
// can be read from a certificate with a negative serial number, which old clients have
// (protocol.md 9.1), and it takes part in no chain: whoever needs chains uses x509.
type Certificate struct {
	DER          []byte
	SHA1         [20]byte // the thumbprint that Windows shows
	PublicKey    *rsa.PublicKey
	NotBefore    time.Time
	NotAfter     time.Time
	CommonNames  []string // every CN of the subject, in order; S0 has two
	ExtKeyUsage  []asn1.ObjectIdentifier
	Serial       *big.Int
	SelfSigned   bool   // issuer is subject and the signature is the key's own
	SubjectKeyID []byte // nil when the extension is absent
	RawIssuer    []byte
}

// maxCertificate bounds the DER that is read; clients' own have 485 to 900 bytes.
const maxCertificate = 16 << 10

var (
	oidCommonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidExtKeyUsage  = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidSubjectKeyID = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidSigning      = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 101}
	oidEncryption   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 101, 2}
)

// rawCertificate is RFC 5280, 4.1, with a serial number of either sign.
type rawCertificate struct {
	TBS       rawTBS
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

type rawTBS struct {
	Raw        asn1.RawContent
	Version    int `asn1:"optional,explicit,default:0,tag:0"`
	Serial     *big.Int
	Algorithm  pkix.AlgorithmIdentifier
	Issuer     asn1.RawValue
	Validity   struct{ NotBefore, NotAfter time.Time }
	Subject    asn1.RawValue
	PublicKey  asn1.RawValue
	IssuerID   asn1.BitString   `asn1:"optional,tag:1"`
	SubjectID  asn1.BitString   `asn1:"optional,tag:2"`
	Extensions []pkix.Extension `asn1:"omitempty,optional,explicit,tag:3"`
}

// ParseCertificate reads one DER certificate with an RSA key. It checks its form, the
// size of its key and whether it signed itself, not its dates or its chain. Errors are
// [catalog.CertificateMalformed] and [catalog.KeyUnsuitable]. The result shares no
// memory with der.
func ParseCertificate(der []byte) (*Certificate, error) {
	if len(der) == 0 || len(der) > maxCertificate {
		return nil, catalog.Errorf(catalog.CertificateMalformed, "a certificate of %d bytes", len(der))
	}
	der = slices.Clone(der)
	var raw rawCertificate
	if rest, err := asn1.Unmarshal(der, &raw); err != nil || len(rest) > 0 {
		return nil, catalog.Wrap(catalog.CertificateMalformed, err, "not one DER certificate")
	}
	c := &Certificate{
		DER:       der,
		SHA1:      sha1.Sum(der),
		NotBefore: raw.TBS.Validity.NotBefore.UTC(),
		NotAfter:  raw.TBS.Validity.NotAfter.UTC(),
		Serial:    raw.TBS.Serial,
		RawIssuer: raw.TBS.Issuer.FullBytes,
	}
	steps := []func(*rawCertificate) error{c.readKey, c.readSubject, c.readExtensions, c.readSelfSigned}
	for _, step := range steps {
		if err := step(&raw); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Thumbprint returns the SHA-1 of the certificate as upper-case hexadecimal.
func (c *Certificate) Thumbprint() string { return upperHex(c.SHA1[:]) }

func (c *Certificate) readKey(raw *rawCertificate) error {
	parsed, err := x509.ParsePKIXPublicKey(raw.TBS.PublicKey.FullBytes)
	if err != nil {
		return catalog.Wrap(catalog.CertificateMalformed, err, "the certificate's key cannot be read")
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return catalog.Errorf(catalog.KeyUnsuitable, "the certificate's key is not RSA")
	}
	c.PublicKey = key
	return checkKey(key)
}

func (c *Certificate) readSubject(raw *rawCertificate) error {
	for _, name := range []asn1.RawValue{raw.TBS.Issuer, raw.TBS.Subject} {
		var rdns pkix.RDNSequence
		if rest, err := asn1.Unmarshal(name.FullBytes, &rdns); err != nil || len(rest) > 0 {
			return catalog.Wrap(catalog.CertificateMalformed, err, "a name in the certificate cannot be read")
		}
		c.CommonNames = commonNames(rdns)
	}
	return nil
}

func commonNames(rdns pkix.RDNSequence) []string {
	var names []string
	for _, rdn := range rdns {
		for _, part := range rdn {
			if text, ok := part.Value.(string); ok && part.Type.Equal(oidCommonName) {
				names = append(names, text)
			}
		}
	}
	return names
}

func (c *Certificate) readExtensions(raw *rawCertificate) error {
	for _, extension := range raw.TBS.Extensions {
		var target any
		switch {
		case extension.Id.Equal(oidExtKeyUsage):
			target = &c.ExtKeyUsage
		case extension.Id.Equal(oidSubjectKeyID):
			target = &c.SubjectKeyID
		default:
			continue
		}
		if rest, err := asn1.Unmarshal(extension.Value, target); err != nil || len(rest) > 0 {
			return catalog.Wrap(catalog.CertificateMalformed, err, "an extension of the certificate cannot be read")
		}
	}
	return nil
}

func (c *Certificate) readSelfSigned(raw *rawCertificate) error {
	if string(raw.TBS.Issuer.FullBytes) != string(raw.TBS.Subject.FullBytes) {
		return nil
	}
	hash, err := hashOf(raw.TBS.Algorithm.Algorithm.String())
	if err != nil {
		return nil // a signature that we do not check is not a self-signature
	}
	c.SelfSigned = rsa.VerifyPKCS1v15(c.PublicKey, hash, digest(hash, raw.TBS.Raw), raw.Signature.RightAlign()) == nil
	return nil
}

// NewClientCertificate makes a self-signed certificate for a client's own key, dated
// like those of real clients: from a day ago to 36500 days ahead (protocol.md 9.1).
func NewClientCertificate(key *rsa.PrivateKey, name string, usage Usage, now time.Time, rand io.Reader) (*Certificate, error) {
	var id [16]byte
	if _, err := io.ReadFull(rand, id[:]); err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	id[0] = id[0]&0x7F | 0x40 // positive, and always 16 bytes
	blob := sha1.Sum(MarshalPublicKeyBlob(&key.PublicKey))
	now = now.UTC().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber:       new(big.Int).SetBytes(id[:]),
		Subject:            pkix.Name{CommonName: name},
		NotBefore:          now.AddDate(0, 0, -1),
		NotAfter:           now.AddDate(0, 0, 36500),
		KeyUsage:           x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment,
		UnknownExtKeyUsage: usage.identifiers(),
		SubjectKeyId:       blob[:],
		SignatureAlgorithm: x509.SHA256WithRSA,
	}
	der, err := x509.CreateCertificate(rand, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make client certificate: %w", err)
	}
	return ParseCertificate(der)
}

func (u Usage) identifiers() []asn1.ObjectIdentifier {
	var ids []asn1.ObjectIdentifier
	if u&UsageSigning != 0 {
		ids = append(ids, oidSigning)
	}
	if u&UsageEncryption != 0 {
		ids = append(ids, oidEncryption)
	}
	return ids
}
