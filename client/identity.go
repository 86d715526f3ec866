package client

import (
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/keyfile"
	"postern/proof"
)

type rsaKey = rsa.PrivateKey

// keyBits is the size of the device's keys (protocol.md 3.3).
const keyBits = 2048

// certificateName is the subject of the device's certificates (protocol.md 3.3).
const certificateName = "ConfigMgr Client"

// identity is the device's keys and certificates. It does not change; renewed returns
// another one.
type identity struct {
	signing, encryption         *rsaKey
	signingCert, encryptionCert *ccm.Certificate
	thumbprint                  proof.KeyThumbprint
}

// sealedKeys is the content of keys.sealed.
type sealedKeys struct {
	Signing         []byte `json:"signing"` // PKCS #8
	Encryption      []byte `json:"encryption"`
	SigningCert     []byte `json:"signing_certificate"` // DER
	EncryptionCert  []byte `json:"encryption_certificate"`
	FormatOfTheFile int    `json:"format"`
}

func generateKeys(random io.Reader) (signing, encryption *rsaKey, err error) {
	if signing, err = rsa.GenerateKey(random, keyBits); err != nil {
		return nil, nil, fmt.Errorf("make signing key: %w", err)
	}
	if encryption, err = rsa.GenerateKey(random, keyBits); err != nil {
		return nil, nil, fmt.Errorf("make encryption key: %w", err)
	}
	return signing, encryption, nil
}

// newIdentity certifies two keys: the one usage each that real clients have (S0),
// back-dated by a day.
func newIdentity(signing, encryption *rsaKey, now time.Time, random io.Reader) (*identity, error) {
	signingCert, err := ccm.NewClientCertificate(signing, certificateName, ccm.UsageSigning, now, random)
	if err != nil {
		return nil, err
	}
	encryptionCert, err := ccm.NewClientCertificate(encryption, certificateName, ccm.UsageEncryption, now, random)
	if err != nil {
		return nil, err
	}
	thumbprint, err := proof.Thumbprint(&signing.PublicKey)
	if err != nil {
		return nil, err
	}
	return &identity{signing, encryption, signingCert, encryptionCert, thumbprint}, nil
}

func (id *identity) same(other *identity) bool {
	return id.thumbprint == other.thumbprint && string(id.signingCert.DER) == string(other.signingCert.DER) &&
		string(id.encryptionCert.DER) == string(other.encryptionCert.DER)
}

// validAt reports whether a server with that clock takes the certificates.
func (id *identity) validAt(now time.Time) bool {
	return !now.Before(id.signingCert.NotBefore) && !now.After(id.signingCert.NotAfter)
}

// readIdentity returns the identity of a file, nil when there is no such file.
func (a *Agent) readIdentity(name, label string) (*identity, error) {
	var sealed sealedKeys
	if err := a.readSealed(name, label, &sealed); errors.Is(err, keyfile.ErrPermissions) {
		return nil, catalog.Wrap(catalog.ClientFolderOpen, err, "%s is open to others than its owner", a.path(name))
	} else if err != nil {
		return nil, catalog.Wrap(catalog.ClientKeysUnreadable, err, "%s", a.path(name))
	}
	if sealed.FormatOfTheFile == 0 {
		return nil, nil
	}
	id, err := sealed.identity()
	if err != nil {
		return nil, catalog.Wrap(catalog.ClientKeysUnreadable, err, "%s", a.path(name))
	}
	return id, nil
}

func (s sealedKeys) identity() (*identity, error) {
	if s.FormatOfTheFile != 1 {
		return nil, fmt.Errorf("format %d is of a newer version", s.FormatOfTheFile)
	}
	signing, err := parseKey(s.Signing)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	encryption, err := parseKey(s.Encryption)
	if err != nil {
		return nil, fmt.Errorf("encryption key: %w", err)
	}
	id := &identity{signing: signing, encryption: encryption}
	if id.signingCert, err = ccm.ParseCertificate(s.SigningCert); err != nil {
		return nil, fmt.Errorf("signing certificate: %w", err)
	}
	if id.encryptionCert, err = ccm.ParseCertificate(s.EncryptionCert); err != nil {
		return nil, fmt.Errorf("encryption certificate: %w", err)
	}
	if !signing.PublicKey.Equal(id.signingCert.PublicKey) || !encryption.PublicKey.Equal(id.encryptionCert.PublicKey) {
		return nil, fmt.Errorf("a certificate is not of its key")
	}
	id.thumbprint, err = proof.Thumbprint(&signing.PublicKey)
	return id, err
}

func parseKey(der []byte) (*rsaKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	if key, ok := key.(*rsaKey); ok {
		return key, nil
	}
	return nil, fmt.Errorf("a %T", key)
}

// sealed is how an identity is kept.
func (id *identity) sealed() (sealedKeys, error) {
	signing, err := x509.MarshalPKCS8PrivateKey(id.signing)
	if err != nil {
		return sealedKeys{}, fmt.Errorf("keep signing key: %w", err)
	}
	encryption, err := x509.MarshalPKCS8PrivateKey(id.encryption)
	if err != nil {
		return sealedKeys{}, fmt.Errorf("keep encryption key: %w", err)
	}
	return sealedKeys{signing, encryption, id.signingCert.DER, id.encryptionCert.DER, 1}, nil
}

func (a *Agent) writeIdentity(name, label string, id *identity) error {
	sealed, err := id.sealed()
	if err != nil {
		return err
	}
	return a.writeSealed(name, label, sealed)
}

// keepKeys writes the identity before anyone is told of it.
func (a *Agent) keepKeys(id *identity) error {
	if err := a.writeIdentity(fileKeys, labelKeys, id); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys = id
	return nil
}

// newKeys makes keys and certificates, by the site's time as far as the device knows it.
func (a *Agent) newKeys() (*identity, error) {
	signing, encryption, err := a.makeKeys(a.config.Rand)
	if err != nil {
		return nil, err
	}
	return newIdentity(signing, encryption, a.clock.corrected(), a.config.Rand)
}

// makeIdentity makes the device's keys, once.
func (a *Agent) makeIdentity() error {
	id, err := a.newKeys()
	if err != nil {
		return err
	}
	return a.keepKeys(id)
}

// recertify makes new certificates for the same keys, for a site whose clock says that the
// old ones are not valid. The identity is the key and stays.
func (a *Agent) recertify(now time.Time) error {
	old := a.ownKeys()
	id, err := newIdentity(old.signing, old.encryption, now, a.config.Rand)
	if err != nil {
		return err
	}
	return a.keepKeys(id)
}
