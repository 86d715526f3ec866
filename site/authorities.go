package site

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"

	"postern/catalog"
	"postern/token"
)

// Authority is a certificate authority of the company under which client certificates are accepted.
type Authority struct {
	Fingerprint string    `json:"fingerprint"` // SHA-256 of the certificate, lower-case hex
	Certificate []byte    `json:"certificate"` // DER
	Root        bool      `json:"root"`        // it signed itself, and is where chains may end
	Subject     string    `json:"subject"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	Created     time.Time `json:"created,omitzero"`
	By          string    `json:"by"`
}

// Budgets of authorities. All of them fit into a tenth of a site state ([token.MaxDocument]).
const (
	maxAuthorities      = 64
	maxAuthority        = 16 << 10
	maxAllAuthorities   = 256 << 10
	maxAuthorityUpload  = 1 << 20
	maxSources          = 64
	maxSource           = 2048
	settingRevocation   = "authority.revocation"
	settingSources      = "authority.sources"
	revocationByDefault = "require"
)

// Revocation says how it is judged whether a client certificate was revoked: package revocation has the words.
type Revocation struct {
	Policy  string   // require, prefer or off; "" leaves it as it is, which is require at first
	Sources []string // lists and responders: the only addresses that are asked. nil leaves them as they are
}

// AddAuthorities uploads certificate authorities, in PEM or DER, and may set how revocation is judged. Roots and intermediates are told apart by
// themselves. Only authorities are taken. One that is there already changes nothing. Codes: AuthorityInvalid, RevocationConfig.
func (s *Site) AddAuthorities(ctx context.Context, encoded []byte, rule Revocation, by string) (added []Authority, err error) {
	fresh, err := readAuthorities(encoded)
	if err != nil {
		return nil, err
	}
	if rule, err = rule.checked(); err != nil {
		return nil, err
	}
	err = s.update(ctx, func(tx Tx) (bool, error) {
		added = nil
		moved, err := s.setRevocation(tx, rule, by)
		if err != nil {
			return false, err
		}
		listed, err := tx.Authorities()
		if err != nil {
			return false, err
		}
		for _, a := range fresh {
			if at := slices.IndexFunc(listed, func(l Authority) bool { return l.Fingerprint == a.Fingerprint }); at >= 0 {
				added = append(added, listed[at])
				continue
			}
			a.Created, a.By = s.time(), by
			listed, added, moved = append(listed, a), append(added, a), true
			if err := tx.PutAuthority(a); err != nil {
				return false, err
			}
			kind := map[bool]string{true: "root", false: "intermediate"}[a.Root]
			if err := s.trust(tx, by, "authority.add", a.Fingerprint, map[string]string{"subject": a.Subject, "kind": kind, "ends": a.NotAfter.Format(time.RFC3339)}); err != nil {
				return false, err
			}
		}
		return moved, tooMany(listed)
	})
	return added, err
}

func tooMany(listed []Authority) error {
	size := 0
	for _, a := range listed {
		size += len(a.Certificate)
	}
	if len(listed) > maxAuthorities || size > maxAllAuthorities {
		return catalog.Errorf(catalog.AuthorityInvalid, "%d authorities of %d bytes together; at most %d of %d bytes are allowed", len(listed), size, maxAuthorities, maxAllAuthorities)
	}
	return nil
}

func readAuthorities(encoded []byte) ([]Authority, error) {
	if len(encoded) > maxAuthorityUpload {
		return nil, catalog.Errorf(catalog.AuthorityInvalid, "%d bytes; at most %d are read", len(encoded), maxAuthorityUpload)
	}
	var list []Authority
	for _, der := range certificatesIn(encoded) {
		a, err := readAuthority(der)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(list, func(l Authority) bool { return l.Fingerprint == a.Fingerprint }) {
			list = append(list, a)
		}
		if len(list) > maxAuthorities {
			return nil, tooMany(list)
		}
	}
	if len(list) == 0 {
		return nil, catalog.Errorf(catalog.AuthorityInvalid, "there is no certificate")
	}
	return list, nil
}

// certificatesIn splits PEM; what is no PEM is one certificate in DER.
func certificatesIn(encoded []byte) (list [][]byte) {
	if !bytes.Contains(encoded, []byte("-----BEGIN")) {
		return [][]byte{encoded}
	}
	for block, rest := pem.Decode(encoded); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			list = append(list, block.Bytes)
		}
	}
	return list
}

func readAuthority(der []byte) (Authority, error) {
	if len(der) > maxAuthority {
		return Authority{}, catalog.Errorf(catalog.AuthorityInvalid, "a certificate has %d bytes; at most %d are allowed", len(der), maxAuthority)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return Authority{}, catalog.Wrap(catalog.AuthorityInvalid, err, "what was given is no certificate in PEM or DER")
	}
	subject := shown(c.Subject.String())
	key, isRSA := c.PublicKey.(*rsa.PublicKey)
	switch {
	case !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return Authority{}, catalog.Errorf(catalog.AuthorityInvalid, "%s may not issue certificates: it is no authority", subject)
	case isRSA && key.N.BitLen() < minKeyBits:
		return Authority{}, catalog.Errorf(catalog.AuthorityInvalid, "%s has an RSA key of %d bits; at least %d are needed", subject, key.N.BitLen(), minKeyBits)
	}
	root := bytes.Equal(c.RawSubject, c.RawIssuer)
	if root && len(c.AuthorityKeyId) > 0 && len(c.SubjectKeyId) > 0 && !bytes.Equal(c.AuthorityKeyId, c.SubjectKeyId) {
		root = false // the authority's new key, signed with its former one
	}
	var insecure x509.InsecureAlgorithmError // on a root nobody relies on the signature
	if err := c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); root && err != nil && !errors.As(err, &insecure) {
		return Authority{}, catalog.Wrap(catalog.AuthorityInvalid, err, "%s says that it signed itself, and did not", subject)
	}
	sum := sha256.Sum256(der)
	return Authority{Fingerprint: hex.EncodeToString(sum[:]), Certificate: der, Root: root, Subject: subject, NotAfter: c.NotAfter.UTC()}, nil
}

// RemoveAuthority takes an authority off the list. The fingerprint may be shortened to what names one.
func (s *Site) RemoveAuthority(ctx context.Context, fingerprint, by, why string) (removed Authority, err error) {
	if err := signed(by, why); err != nil {
		return removed, err
	}
	wanted := strings.TrimPrefix(strings.ToLower(strings.ReplaceAll(strings.TrimSpace(fingerprint), ":", "")), "sha256")
	err = s.update(ctx, func(tx Tx) (bool, error) {
		listed, err := tx.Authorities()
		if err != nil {
			return false, err
		}
		named := slices.DeleteFunc(listed, func(a Authority) bool { return !strings.HasPrefix(a.Fingerprint, wanted) })
		if len(wanted) < 8 || len(named) != 1 {
			return false, catalog.Errorf(catalog.NotFound, "%+.80q names %d authorities; give the fingerprint, or at least its first 8 digits, from `postern authority list`", fingerprint, len(named))
		}
		removed = named[0]
		if err := tx.DeleteAuthority(removed.Fingerprint); err != nil {
			return false, err
		}
		return true, s.trust(tx, by, "authority.remove", removed.Fingerprint, map[string]string{"subject": removed.Subject, "why": why})
	})
	return removed, err
}

// SetRevocation sets how revocation is judged. Code: RevocationConfig.
func (s *Site) SetRevocation(ctx context.Context, rule Revocation, by string) error {
	rule, err := rule.checked()
	if err != nil {
		return err
	}
	return s.update(ctx, func(tx Tx) (bool, error) { return s.setRevocation(tx, rule, by) })
}

func (s *Site) setRevocation(tx Tx, rule Revocation, by string) (moved bool, err error) {
	was, err := readRevocation(tx)
	if err != nil {
		return false, err
	}
	next := was
	next.Policy = cmp.Or(rule.Policy, was.Policy)
	if rule.Sources != nil {
		next.Sources = rule.Sources
	}
	if next.Policy == was.Policy && slices.Equal(next.Sources, was.Sources) {
		return false, nil
	}
	if err := tx.PutSetting(settingRevocation, next.Policy); err != nil {
		return false, err
	}
	if err := tx.PutSetting(settingSources, strings.Join(next.Sources, "\n")); err != nil {
		return false, err
	}
	return true, s.trust(tx, by, "authority.revocation", next.Policy, map[string]string{"sources": strings.Join(next.Sources, " ")})
}

func readRevocation(tx Tx) (rule Revocation, err error) {
	policy, err := optional(tx, settingRevocation)
	if err != nil {
		return rule, err
	}
	sources, err := optional(tx, settingSources)
	return Revocation{Policy: cmp.Or(policy, revocationByDefault), Sources: strings.Fields(sources)}, err
}

// checked returns the rule as it is kept.
func (r Revocation) checked() (Revocation, error) {
	r.Policy = strings.ToLower(strings.TrimSpace(r.Policy))
	if !slices.Contains([]string{"", "require", "prefer", "off"}, r.Policy) {
		return r, catalog.Errorf(catalog.RevocationConfig, "the policy %+.40q is none of require, prefer and off", r.Policy)
	}
	if r.Sources == nil {
		return r, nil
	}
	sources := []string{}
	for _, source := range r.Sources {
		if source = strings.TrimSpace(source); source == "" {
			continue
		}
		if !sourceAddress(strings.TrimPrefix(source, "ocsp:")) {
			return r, catalog.Errorf(catalog.RevocationConfig, "the source %+.200q is no http or https address without a user, nor one with ocsp: before it", withoutSecret(source))
		}
		sources = append(sources, source)
	}
	if len(sources) > maxSources {
		return r, catalog.Errorf(catalog.RevocationConfig, "%d sources; at most %d are allowed", len(sources), maxSources)
	}
	r.Sources = sources
	return r, nil
}

// withoutSecret is an address as a message may quote it: one that may name a user with a password loses all but its scheme, another what it asks for.
func withoutSecret(address string) string {
	if strings.Contains(address, "@") {
		if scheme, _, found := strings.Cut(address, "//"); found {
			return scheme + "//...@..."
		}
		return "...@..."
	}
	if at := strings.IndexAny(address, "?#"); at >= 0 {
		return address[:at+1] + "..."
	}
	return address
}

func sourceAddress(address string) bool {
	u, err := url.Parse(address)
	plain := !strings.ContainsFunc(address, func(r rune) bool { return r <= ' ' || r > '~' })
	return err == nil && plain && len(address) <= maxSource && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" && u.User == nil
}

// UploadedAuthorities returns the authorities by fingerprint. It answers from memory.
func (s *Site) UploadedAuthorities() []Authority { return s.current.Load().authorities }

// Revocation returns how revocation is judged.
func (s *Site) Revocation() Revocation { return s.current.Load().revocation }

// Authorities returns what gateways and management points judge client certificates by; nil when no root was uploaded. It answers from memory
// and is not to be changed.
func (s *Site) Authorities() *token.Authorities { return s.current.Load().state.Authorities }

// publishedAuthorities is nil without a root: no chain could hold.
func (now *snapshot) publishedAuthorities() *token.Authorities {
	list := &token.Authorities{Revocation: now.revocation.Policy, Sources: now.revocation.Sources}
	for _, a := range now.authorities {
		if a.Root {
			list.Roots = append(list.Roots, a.Certificate)
		} else {
			list.Intermediates = append(list.Intermediates, a.Certificate)
		}
	}
	if len(list.Roots) == 0 {
		return nil
	}
	return list
}
