package site

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// maxPolicyBody is the field's limit for a client policy (product.md N26).
const maxPolicyBody = 32 << 20

// policyID is the form of a policy id: a GUID in braces, or package-style words and hyphens. It never needs escaping in a location.
var policyID = regexp.MustCompile(`^(\{[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}|[A-Za-z0-9][A-Za-z0-9_-]{0,127})$`)

// policyCategory is the form of a category: it stands in an XML attribute that old parsers read with a pattern (protocol.md 12).
var policyCategory = regexp.MustCompile(`^[A-Za-z0-9_]{0,64}$`)

// NewPolicy describes a policy document that an administrator adds.
type NewPolicy struct {
	ID       string // "" makes a new GUID
	Category string
	Flags    ccm.PolicyFlags
	Level    proof.Level // 0 = the least that the flags allow
	Body     []byte      // UTF-8 XML
	All      bool
	Targets  []ccm.ClientID
	By       string
}

// least is the level below which nobody gets a policy with these flags: only secrets ever reads a secret (design decision 2).
func least(flags ccm.PolicyFlags) proof.Level {
	if flags&ccm.PolicySecret != 0 {
		return proof.LevelSecrets
	}
	return proof.LevelKnown
}

// AddPolicy keeps a document; the same id again makes its next version. A body with secrets is sealed before it reaches the store.
func (s *Site) AddPolicy(ctx context.Context, ask NewPolicy) (Policy, error) {
	if err := s.checkPolicy(ctx, &ask); err != nil {
		return Policy{}, err
	}
	policy := Policy{
		ID: ask.ID, Category: ask.Category, Type: "Machine", Flags: ask.Flags, Level: max(ask.Level, least(ask.Flags)), Body: ask.Body,
		All: ask.All, Targets: ask.Targets, Created: s.time(), By: ask.By,
	}
	err := s.store.Update(ctx, func(tx Tx) error {
		p := policy
		newest, err := tx.Policy(ask.ID, "")
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		p.Version = nextVersion(newest.Version)
		if p.Flags&ccm.PolicySecret != 0 {
			p.Body, p.Sealed = s.sealer.Seal(policyLabel(p.ID, p.Version), ask.Body), true
		}
		p.Hash = hashOf(p.Body)
		if err := tx.PutPolicy(p); err != nil {
			return err
		}
		policy.Version, policy.Sealed, policy.Hash = p.Version, p.Sealed, p.Hash
		return s.trust(tx, ask.By, "policy.add", p.ID, map[string]string{"version": p.Version, "flags": fmt.Sprint(uint32(p.Flags)), "hash": p.Hash, "all": strconv.FormatBool(p.All)})
	})
	policy.Body = nil
	return policy, err
}

// hashOf is the hash that assignments and the trust log name. Of a secret it is the hash of the sealed form: that of the text would let whoever
// reads the database try passwords against it.
func hashOf(body []byte) string {
	sum := sha256.Sum256(body)
	return "SHA256:" + strings.ToUpper(hex.EncodeToString(sum[:]))
}

func policyLabel(id, version string) string { return "policy:" + id + ":" + version }

// nextVersion counts 1.00, 2.00, ...; the location writes it as 1_00 (protocol.md 4.2).
func nextVersion(newest string) string {
	major, _, _ := strings.Cut(newest, ".")
	n, _ := strconv.Atoi(major)
	return strconv.Itoa(n+1) + ".00"
}

// needs is the least level that gets the policy. A record that says less than its flags demand opens nothing.
func (p Policy) needs() proof.Level { return max(p.Level, least(p.Flags)) }

func (s *Site) checkPolicy(ctx context.Context, ask *NewPolicy) error {
	if ask.ID == "" {
		id, err := newUUID(s.rand)
		if err != nil {
			return err
		}
		ask.ID = "{" + id + "}"
	}
	switch {
	case !policyID.MatchString(ask.ID):
		return catalog.Errorf(catalog.PolicyInvalid, "%q is no policy id; give a GUID in braces, or letters, digits, _ and -", ask.ID)
	case !policyCategory.MatchString(ask.Category):
		return catalog.Errorf(catalog.PolicyInvalid, "%q is no category; use letters, digits and _", ask.Category)
	case len(ask.Body) == 0 || len(ask.Body) > maxPolicyBody:
		return catalog.Errorf(catalog.PolicyInvalid, "the document has %d bytes; 1 to %d are allowed", len(ask.Body), maxPolicyBody)
	case ask.All == (len(ask.Targets) > 0):
		return catalog.Errorf(catalog.PolicyInvalid, "say whom the policy is for: all devices, or a list of them")
	}
	if err := ccm.CheckXML(ask.Body); err != nil {
		return catalog.Wrap(catalog.PolicyInvalid, err, "the document is not the XML that clients read")
	}
	slices.Sort(ask.Targets)
	ask.Targets = slices.Compact(ask.Targets)
	for _, id := range ask.Targets {
		_, err := s.Device(ctx, id)
		if errors.Is(err, ErrNotFound) {
			return catalog.Wrap(catalog.PolicyInvalid, err, "no device has the client id %s", id)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Policies lists the documents without their bodies.
func (s *Site) Policies(ctx context.Context) (policies []Policy, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		policies, err = tx.Policies()
		return err
	})
	return policies, err
}

// RemovePolicy removes all versions of a document.
func (s *Site) RemovePolicy(ctx context.Context, id, by string) error {
	err := s.store.Update(ctx, func(tx Tx) error {
		if err := tx.DeletePolicy(id); err != nil {
			return err
		}
		return s.trust(tx, by, "policy.remove", id, nil)
	})
	if errors.Is(err, ErrNotFound) {
		return catalog.Errorf(catalog.PolicyUnknown, "no policy has the id %s; `postern policy list` shows them", id)
	}
	return err
}

// Assignments lists the policies that target the device and that its level allows.
func (s *Site) Assignments(ctx context.Context, device Device) ([]Policy, error) {
	if device.Blocked() {
		return nil, device.Refused()
	}
	var targeted []Policy
	err := s.store.View(ctx, func(tx Tx) (err error) {
		targeted, err = tx.PoliciesFor(device.ClientID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("policies for %s: %w", device.ClientID, err)
	}
	allowed := targeted[:0]
	for _, p := range targeted {
		if device.Level() >= p.needs() {
			allowed = append(allowed, p)
		}
	}
	return allowed, nil
}

// PolicyBody returns what the device may download: the document as UTF-16 with its mark, or, when it holds a secret, EnvelopedData that only the
// device's encryption certificate opens. device is nil for a download that proved nothing.
func (s *Site) PolicyBody(ctx context.Context, device *Device, id, version string) ([]byte, error) {
	var policy Policy
	err := s.store.View(ctx, func(tx Tx) (err error) {
		policy, err = tx.Policy(id, version)
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return nil, catalog.Errorf(catalog.PolicyUnknown, "no policy has the id %s and version %s", id, version)
	}
	if err != nil {
		return nil, err
	}
	if err := mayRead(policy, device); err != nil {
		return nil, err
	}
	return s.deliver(policy, device)
}

// mayRead is the rule for a policy body. A document that asks for no proof, targets all and needs only level known goes to anyone who knows its id,
// as old clients expect (protocol.md 4.4); everything else needs a proved device.
func mayRead(p Policy, device *Device) error {
	open := p.Flags&(ccm.PolicyRequiresAuth|ccm.PolicySecret) == 0 && p.All && p.needs() <= proof.LevelKnown
	switch {
	case open:
		return nil
	case device == nil:
		return catalog.Errorf(catalog.PolicyNeedsProof, "policy %s is only for a device that proves itself", p.ID)
	case device.Blocked():
		return device.Refused()
	case device.Level() < p.needs():
		return catalog.Errorf(catalog.PolicyLevel, "policy %s needs level %s; device %s has %s", p.ID, p.needs(), device.ClientID, device.Level())
	case !p.All && !targets(p, device.ClientID):
		return catalog.Errorf(catalog.PolicyOtherDevice, "policy %s is not for device %s", p.ID, device.ClientID)
	}
	return nil
}

func targets(p Policy, id ccm.ClientID) bool {
	for _, target := range p.Targets {
		if target == id {
			return true
		}
	}
	return false
}

func (s *Site) deliver(p Policy, device *Device) ([]byte, error) {
	text := p.Body
	if p.Sealed {
		var err error
		if text, err = s.sealer.Open(policyLabel(p.ID, p.Version), p.Body); err != nil {
			return nil, catalog.Wrap(catalog.KeyFileWrong, err, "policy %s cannot be opened with this site.key", p.ID)
		}
	}
	body := ccm.PolicyBody(string(text))
	if p.Flags&ccm.PolicySecret == 0 {
		return body, nil
	}
	if len(device.Record.EncKey) == 0 {
		return nil, catalog.Errorf(catalog.PolicyNoEncryptionCertificate, "device %s registered no encryption certificate, so a secret cannot be sealed to it", device.ClientID)
	}
	recipient, err := ccm.ParseCertificate(device.Record.EncKey)
	if err != nil {
		return nil, fmt.Errorf("encryption certificate of %s: %w", device.ClientID, err)
	}
	algorithm := ccm.TripleDES
	if s.Settings().AES256 {
		algorithm = ccm.AES256
	}
	return ccm.SealPolicy(s.rand, body, recipient, algorithm)
}
