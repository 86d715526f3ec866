package entra

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"postern/catalog"
)

const maxPEM = 256 << 10

// credential is the workplace-join certificate with its key.
type credential struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// credential reads certificate and key and judges them. Errors have the code
// EntraCertificateMissing.
func (j JoinState) credential(now time.Time) (credential, error) {
	files := j.WorkplaceJoin
	if files.Certificate == "" {
		return credential{}, catalog.Errorf(catalog.EntraCertificateMissing, "the join state names no certificate")
	}
	certificate, err := readCertificate(files.Certificate)
	if err != nil {
		return credential{}, unusable(files.Certificate, err)
	}
	key, err := readKey(files.Key)
	if err != nil {
		return credential{}, unusable(files.Key, err)
	}
	c := credential{certificate, key}
	if err := c.check(j.Provider, now); err != nil {
		return c, unusable(files.Certificate, err)
	}
	return c, nil
}

func unusable(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return catalog.Errorf(catalog.EntraCertificateMissing, "there is no file %s", path)
	}
	return catalog.Errorf(catalog.EntraCertificateMissing, "%s: %v", path, err)
}

func (c credential) check(dialect Dialect, now time.Time) error {
	public, ok := c.certificate.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !public.Equal(c.key.Public()):
		return errors.New("the key is another certificate's")
	case now.After(c.certificate.NotAfter):
		return fmt.Errorf("the certificate expired at %s", c.certificate.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(c.certificate.NotBefore):
		return fmt.Errorf("the certificate begins at %s, and the clock says %s", c.certificate.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return checkKey(c.key, dialect)
}

func checkKey(key crypto.Signer, dialect Dialect) error {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if k.N.BitLen() < 2048 {
			return fmt.Errorf("the key has %d bits; wanted are 2048", k.N.BitLen())
		}
		return nil
	case *ecdsa.PrivateKey:
		if dialect == DialectOpenID && k.Curve == elliptic.P256() {
			return nil
		}
	}
	return errors.New("the key is not RSA (nor, for an openid provider, on P-256)")
}

func readCertificate(path string) (*x509.Certificate, error) {
	content, err := readOwned(path, maxPEM, 0o022)
	if err != nil {
		return nil, err
	}
	block := findBlock(content, "CERTIFICATE")
	if block == nil {
		return nil, errors.New("it has no PEM block CERTIFICATE")
	}
	certificate, err := x509.ParseCertificate(block)
	if err != nil {
		return nil, errors.New("its certificate cannot be read")
	}
	return certificate, nil
}

// readKey reads a key that is its owner's alone. Its errors show nothing of the file.
func readKey(path string) (crypto.Signer, error) {
	content, err := readOwned(path, maxPEM, 0o077)
	if err != nil {
		return nil, err
	}
	for _, form := range []struct {
		name  string
		parse func([]byte) (any, error)
	}{
		{"PRIVATE KEY", x509.ParsePKCS8PrivateKey},
		{"RSA PRIVATE KEY", func(der []byte) (any, error) { return x509.ParsePKCS1PrivateKey(der) }},
		{"EC PRIVATE KEY", func(der []byte) (any, error) { return x509.ParseECPrivateKey(der) }},
	} {
		block := findBlock(content, form.name)
		if block == nil {
			continue
		}
		parsed, err := form.parse(block)
		if key, ok := parsed.(crypto.Signer); ok && err == nil {
			return key, nil
		}
		return nil, errors.New("its key cannot be read")
	}
	return nil, errors.New("it has no PEM block PRIVATE KEY that is not encrypted")
}

func findBlock(content []byte, name string) []byte {
	for {
		block, rest := pem.Decode(content)
		if block == nil {
			return nil
		}
		if block.Type == name {
			return block.Bytes
		}
		content = rest
	}
}

// Examination is a join state looked at: what is known of the certificate, and what is in
// the way of a device token.
type Examination struct {
	Thumbprint          string // SHA-1, as dsregcmd shows it
	NotBefore, NotAfter time.Time
	Problems            []error // each a *catalog.Error; none when a device token can be asked for
}

// Examine looks at a join state and at the files that it names. Nothing is sent.
func Examine(j JoinState, now time.Time) Examination {
	e := Examination{Thumbprint: j.WorkplaceJoin.Thumbprint, NotAfter: j.WorkplaceJoin.NotAfter}
	if !j.Joined() {
		e.Problems = append(e.Problems, catalog.Errorf(catalog.EntraNotJoined, "%s says join type %s", j.Source, j.JoinType))
	}
	if j.JoinType == JoinNone {
		return e
	}
	if j.WorkplaceJoin.Certificate == "" && j.WorkplaceJoin.Thumbprint != "" {
		e.Problems = append(e.Problems, e.ended(now)...)
		if system() != nil {
			e.Problems = append(e.Problems, catalog.Errorf(catalog.EntraNeedsBroker, "the certificate %s is in the machine's store", j.WorkplaceJoin.Thumbprint))
		}
		return e
	}
	c, err := j.credential(now)
	if c.certificate != nil {
		e.Thumbprint = thumbprint(c.certificate)
		e.NotBefore, e.NotAfter = c.certificate.NotBefore, c.certificate.NotAfter
		if want := j.WorkplaceJoin.Thumbprint; err == nil && want != "" && want != e.Thumbprint {
			err = catalog.Errorf(catalog.EntraCertificateMissing, "the certificate has the thumbprint %s, and the join state says %s", e.Thumbprint, want)
		}
	}
	if err != nil {
		e.Problems = append(e.Problems, err)
	}
	return e
}

func (e Examination) ended(now time.Time) []error {
	if e.NotAfter.IsZero() || now.Before(e.NotAfter) {
		return nil
	}
	return []error{catalog.Errorf(catalog.EntraCertificateMissing, "the certificate expired at %s", e.NotAfter.UTC().Format(time.RFC3339))}
}

// thumbprint is the SHA-1 of a certificate in hexadecimal, as tools show it.
func thumbprint(certificate *x509.Certificate) string {
	return fmt.Sprintf("%X", sha1.Sum(certificate.Raw))
}
