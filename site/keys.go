package site

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

// What a key of the site is for. Token keys have the purpose "token:" and the kind.
const (
	PurposeRoot        = "root"         // signs role certificates and the site state; its hash is the trusted root key
	PurposeSiteSigning = "site-signing" // the certificate that SITESIGNCERT serves (S4)
	purposeToken       = "token:"
)

const (
	rootLife        = 20 * 365 * 24 * time.Hour
	siteSigningLife = 10 * 365 * 24 * time.Hour
)

// InitOptions describe a new site.
type InitOptions struct {
	SiteCode ccm.SiteCode
	By       string
}

// Init makes a site in an empty store: hierarchy id, site root, site signing certificate and one key for each kind of token. A store that
// holds a site already is refused with code AlreadyExists and left as it is.
func Init(ctx context.Context, config Config, options InitOptions) (*Site, error) {
	s := newSite(config)
	hierarchy, err := newUUID(s.rand)
	if err != nil {
		return nil, err
	}
	now := s.time()
	records, err := s.firstKeys(options.SiteCode, now)
	if err != nil {
		return nil, fmt.Errorf("make the site's keys: %w", err)
	}
	err = s.store.Update(ctx, func(tx Tx) error {
		if code, err := tx.Setting(settingSiteCode); err == nil {
			return catalog.Errorf(catalog.AlreadyExists, "the store holds site %s already", code)
		} else if !errors.Is(err, ErrNotFound) {
			return err
		}
		if err := tx.PutSetting(settingSiteCode, string(options.SiteCode)); err != nil {
			return err
		}
		if err := tx.PutSetting(settingHierarchy, hierarchy); err != nil {
			return err
		}
		for _, record := range records {
			if err := tx.PutSigningKey(record); err != nil {
				return err
			}
		}
		if _, err := tx.NextEpoch(s.epochNow()); err != nil {
			return err
		}
		return s.trust(tx, options.By, "site.init", string(options.SiteCode), map[string]string{"hierarchy": hierarchy, "root": token.PinOf(records[0].Public)})
	})
	if err != nil {
		return nil, fmt.Errorf("init site: %w", err)
	}
	return s, s.Refresh(ctx)
}

func (s *Site) firstKeys(code ccm.SiteCode, now time.Time) ([]KeyRecord, error) {
	root, err := ecdsa.GenerateKey(elliptic.P256(), s.rand)
	if err != nil {
		return nil, err
	}
	rootCert, err := s.selfSigned(rootTemplate(code, now), root)
	if err != nil {
		return nil, err
	}
	first := KeyRecord{Purpose: PurposeRoot, Algorithm: token.AlgorithmES256, Certificate: rootCert, State: token.KeyActive, NotBefore: now, NotAfter: now.Add(rootLife), Created: now}
	if err := s.seal(&first, root); err != nil {
		return nil, err
	}
	signing, err := s.newSiteSigning(code, now)
	if err != nil {
		return nil, err
	}
	records := []KeyRecord{first, signing}
	for _, kind := range token.Kinds() {
		record, err := s.newTokenKey(kind, token.AlgorithmES256, now)
		if err != nil {
			return nil, err
		}
		records = append(records, record)
	}
	return records, nil
}

// newTokenKey makes a key. Bulk tokens are RS256 whatever the algorithm of the others.
func (s *Site) newTokenKey(kind token.Kind, algorithm string, now time.Time) (KeyRecord, error) {
	if kind == token.KindBulk {
		algorithm = token.AlgorithmRS256
	}
	key, err := token.NewKeyOf(kind, algorithm, now.Add(-tokenLeeway), s.rand) // a node whose clock is behind signs with it at once
	if err != nil {
		return KeyRecord{}, err
	}
	record := KeyRecord{
		ID: key.ID, Purpose: purposeToken + string(kind), Algorithm: key.Algorithm, Certificate: key.Certificate,
		State: key.State, NotBefore: key.NotBefore, NotAfter: key.NotAfter, Created: now,
	}
	return record, s.seal(&record, key.Signer)
}

// seal fills in the public and the sealed private half, and the id when there is none.
func (s *Site) seal(record *KeyRecord, key crypto.Signer) error {
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if record.Public, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		return err
	}
	if record.ID == "" {
		sum := sha256.Sum256(record.Public)
		record.ID = hex.EncodeToString(sum[:16])
	}
	record.Private = s.sealer.Seal(sealLabel(record.ID), private)
	return nil
}

func sealLabel(id string) string { return "signing-key:" + id }

// unseal opens the keys of a snapshot.
func (s *Site) unseal(next *snapshot, records []KeyRecord) error {
	for _, record := range records {
		next.takeRecord(record)
		if record.Purpose == PurposeRoot {
			next.takeRoot(record)
		}
		if record.ended(s.now()) && record.State != token.KeyActive {
			continue
		}
		if len(record.Private) == 0 && record.State != token.KeyActive { // it was erased when it was replaced or revoked
			next.takeErased(record)
			continue
		}
		private, err := s.sealer.Open(sealLabel(record.ID), record.Private)
		if err != nil {
			return catalog.Wrap(catalog.KeyFileWrong, err, "the site's keys cannot be opened with this site.key; it belongs to another site or was changed")
		}
		parsed, err := x509.ParsePKCS8PrivateKey(private)
		if err != nil {
			return fmt.Errorf("key %s: %w", record.ID, err)
		}
		if err := next.take(record, parsed.(crypto.Signer)); err != nil {
			return fmt.Errorf("key %s: %w", record.ID, err)
		}
	}
	if next.root == nil {
		return catalog.Errorf(catalog.SiteNotInitialised, "the store holds no site root; restore a backup, or run `postern site init` on an empty store")
	}
	next.ring = token.NewRing(next.hierarchy, next.keys)
	next.verifier = next.ring.Verifier()
	return nil
}

func (next *snapshot) take(record KeyRecord, signer crypto.Signer) (err error) {
	switch {
	case record.Purpose == PurposeRoot && record.State == token.KeyActive:
		next.root, next.rootID = signer, record.ID
		if next.nonces, err = nonceKey(signer); err != nil {
			return err
		}
		next.rootCert, err = x509.ParseCertificate(record.Certificate)
		return err
	case record.Purpose == PurposeSiteSigning && record.State == token.KeyActive:
		next.signing = record.Certificate
		return nil
	}
	next.takeToken(record, signer, signer.Public())
	return nil
}

// takeErased takes a key that has no private half any more.
func (next *snapshot) takeErased(record KeyRecord) {
	if public, err := x509.ParsePKIXPublicKey(record.Public); err == nil {
		next.takeToken(record, nil, public)
	}
}

func (next *snapshot) takeToken(record KeyRecord, signer crypto.Signer, public crypto.PublicKey) {
	for _, kind := range token.Kinds() {
		if record.Purpose == purposeToken+string(kind) {
			next.keys = append(next.keys, token.Key{
				ID: record.ID, Kind: kind, Algorithm: record.Algorithm, Certificate: record.Certificate, Signer: signer,
				Public: public, NotBefore: record.NotBefore, NotAfter: record.NotAfter, State: record.State,
			})
		}
	}
}

// SigningKeys lists the site's keys; private halves stay sealed.
func (s *Site) SigningKeys(ctx context.Context) (records []KeyRecord, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		records, err = tx.SigningKeys()
		return err
	})
	return records, err
}
