package site

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
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
	signing, err := rsa.GenerateKey(s.rand, minKeyBits)
	if err != nil {
		return nil, err
	}
	signingCert, err := s.selfSigned(siteSigningTemplate(code, now), signing)
	if err != nil {
		return nil, err
	}
	records := []KeyRecord{
		{Purpose: PurposeRoot, Algorithm: "ES256", Certificate: rootCert, NotAfter: now.Add(rootLife)},
		{Purpose: PurposeSiteSigning, Algorithm: "RS256", Certificate: signingCert, NotAfter: now.Add(siteSigningLife)},
	}
	for i, key := range []crypto.Signer{root, signing} {
		records[i].State, records[i].NotBefore, records[i].Created = token.KeyActive, now, now
		if err := s.seal(&records[i], key); err != nil {
			return nil, err
		}
	}
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
		next.root = signer
		next.rootCert, err = x509.ParseCertificate(record.Certificate)
		return err
	case record.Purpose == PurposeSiteSigning && record.State == token.KeyActive:
		next.signing = record.Certificate
		return nil
	}
	for _, kind := range token.Kinds() {
		if record.Purpose == purposeToken+string(kind) {
			next.keys = append(next.keys, token.Key{
				ID: record.ID, Kind: kind, Algorithm: record.Algorithm, Certificate: record.Certificate, Signer: signer,
				Public: signer.Public(), NotBefore: record.NotBefore, NotAfter: record.NotAfter, State: record.State,
			})
		}
	}
	return nil
}

// SigningKeys lists the site's keys; private halves stay sealed.
func (s *Site) SigningKeys(ctx context.Context) (records []KeyRecord, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		records, err = tx.SigningKeys()
		return err
	})
	return records, err
}

// RotateKey makes a new key for one kind of token and retires the ones before it: they sign no more, and verify until the longest
// token that they signed has ended. Every token in the field stays good. The new key's algorithm is that of the setting token.algorithm.
func (s *Site) RotateKey(ctx context.Context, kind token.Kind, by string) (KeyRecord, error) {
	if !slices.Contains(token.Kinds(), kind) {
		return KeyRecord{}, catalog.Errorf(catalog.InvalidArgument, "no tokens of kind %q exist; use bulk, ccm or self-prove", kind)
	}
	now := s.time()
	fresh, err := s.newTokenKey(kind, s.Settings().TokenAlgorithm, now)
	if err != nil {
		return KeyRecord{}, err
	}
	lifetimes := map[token.Kind]time.Duration{token.KindBulk: token.BulkMaximumLifetime, token.KindCCM: token.CCMLifetime, token.KindSelfProve: token.SelfProveLifetime}
	err = s.update(ctx, func(tx Tx) (bool, error) {
		records, err := tx.SigningKeys()
		if err != nil {
			return false, err
		}
		for _, old := range records {
			if old.Purpose != fresh.Purpose || old.State != token.KeyActive {
				continue
			}
			old.State, old.NotAfter = token.KeyRetired, now.Add(lifetimes[kind])
			if err := tx.PutSigningKey(old); err != nil {
				return false, err
			}
		}
		if err := tx.PutSigningKey(fresh); err != nil {
			return false, err
		}
		return true, s.trust(tx, by, "key.rotate", fresh.ID, map[string]string{"purpose": fresh.Purpose, "algorithm": fresh.Algorithm})
	})
	return fresh, err
}
