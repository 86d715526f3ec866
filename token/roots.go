package token

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"slices"
	"strings"
	"time"

	strictjson "github.com/go-jose/go-jose/v4/json"

	"postern/catalog"
)

// The types of a root link and of the new root's part in it, see [DocumentState].
const (
	DocumentRoot           = "postern-root+jws"
	DocumentRootPossession = "postern-root-possession+jws"
)

// RootOverlap is how long certificates under a replaced site root stay good, so that
// every role has time to take one under the next.
const RootOverlap = 30 * 24 * time.Hour

// Budgets of links, far above what a site needs in its life.
const (
	MaxRootLink  = 8 << 10
	MaxRootLinks = 64
	MaxRoots     = 640 << 10 // the document of [MarshalRoots]
)

// RootLink is the word of a site root that another takes its place. Who trusts the one
// may then trust the other, and needs nobody to say so.
type RootLink struct {
	Hierarchy string    `json:"hierarchy"`
	Sequence  uint64    `json:"sequence"` // 1 for the first change of the site's root
	From      string    `json:"from"`     // pin of the root that signs
	To        []byte    `json:"to"`       // SPKI DER of the new root
	Issued    time.Time `json:"issued"`

	// Compromised says that the key of From is assumed stolen: from now on it vouches for
	// nothing, and there is no overlap.
	Compromised bool `json:"compromised,omitempty"`

	// Possession is the same, without Possession, signed by the new root. [SignRoot] fills it in.
	Possession string `json:"possession,omitempty"`
}

// same reports whether two links say the same; who signed them does not matter.
func (l RootLink) same(other RootLink) bool {
	return l.Hierarchy == other.Hierarchy && l.Sequence == other.Sequence && l.From == other.From && slices.Equal(l.To, other.To) &&
		l.Issued.Equal(other.Issued) && l.Compromised == other.Compromised
}

// Root is one site root of a chain.
type Root struct {
	Pin         string
	Sequence    uint64    // of the link that led to it; 0 where the chain began
	Retired     time.Time // when the next took its place; zero for the newest
	Compromised bool      // it is trusted no more, from that moment
}

// Trusted reports whether certificates under the root are good at now.
func (r Root) Trusted(now time.Time) bool {
	return r.Retired.IsZero() || !r.Compromised && now.Before(r.Retired.Add(RootOverlap))
}

// SignRoot signs a link from the old root to the new one; both sign. From and To are
// filled in.
func SignRoot(link RootLink, from, to crypto.Signer) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(to.Public())
	if err != nil {
		return "", err
	}
	link.From, link.To, link.Issued, link.Possession = Pin(from.Public()), der, link.Issued.UTC(), ""
	if link.Possession, err = signDocument(to, DocumentRootPossession, link); err != nil {
		return "", err
	}
	return signDocument(from, DocumentRoot, link)
}

// OpenRoot verifies a link: signed by the root that it names as From, and by the new one.
// It proves nothing until the caller trusts From; [FollowRoots] does both. Codes:
// RootLinkMalformed, RootLinkSignature.
func OpenRoot(raw string) (RootLink, error) {
	var link, possession RootLink
	signer, err := openDocument(raw, MaxRootLink, DocumentRoot, rootCodes(), anybody, &link)
	if err != nil {
		return RootLink{}, err
	}
	holder, err := openDocument(link.Possession, MaxRootLink, DocumentRootPossession, rootCodes(), anybody, &possession)
	switch {
	case err != nil:
		return RootLink{}, err
	case signer != link.From:
		return RootLink{}, catalog.Errorf(catalog.RootLinkSignature, "it is the word of the root %s, signed by %s", short(link.From), short(signer))
	case holder != PinOf(link.To) || !link.same(possession):
		return RootLink{}, catalog.Errorf(catalog.RootLinkSignature, "the new root has not signed it")
	case link.Hierarchy == "" || link.Sequence == 0 || link.Issued.IsZero() || signer == holder:
		return RootLink{}, catalog.Errorf(catalog.RootLinkMalformed, "a field is missing or is not what it should be")
	}
	return link, nil
}

func anybody(pin string) error {
	if pin == "" {
		return catalog.Errorf(catalog.RootLinkMalformed, "the signer's key cannot be named")
	}
	return nil
}

// short is enough of a pin for a message.
func short(pin string) string { return pin[:min(len(pin), 64)] }

func rootCodes() codes {
	return codes{
		malformed: catalog.RootLinkMalformed, tooLarge: catalog.RootLinkMalformed, header: catalog.RootLinkMalformed,
		algorithm: catalog.RootLinkSignature, signature: catalog.RootLinkSignature,
	}
}

// FollowRoots returns the site roots that are reached from the one with that pin, which
// comes first; the newest is the last. The links are those of a site, in their order;
// what lies before the pinned root is not looked at. Without links the pinned root
// stands alone. Codes: those of [OpenRoot]; RootChainBroken for links that do not
// follow one another; RootNotReached when there are links and the pinned root is in none.
func FollowRoots(pin string, links []string) ([]Root, error) {
	pin = strings.ToLower(pin)
	if len(links) > MaxRootLinks {
		return nil, catalog.Errorf(catalog.RootLinkMalformed, "%d changes of the root; at most %d are read", len(links), MaxRootLinks)
	}
	roots := []Root{{Pin: pin}}
	if len(links) == 0 {
		return roots, nil
	}
	var before RootLink
	met := false // the pinned root
	for _, raw := range links {
		link, err := OpenRoot(raw)
		if err != nil {
			return nil, err
		}
		to := PinOf(link.To)
		switch {
		case before.Sequence != 0 && (link.Sequence != before.Sequence+1 || link.From != PinOf(before.To) || link.Hierarchy != before.Hierarchy):
			return nil, catalog.Errorf(catalog.RootChainBroken, "change %d does not follow change %d", link.Sequence, before.Sequence)
		case slices.ContainsFunc(roots, func(r Root) bool { return r.Pin == to }) && met:
			return nil, catalog.Errorf(catalog.RootChainBroken, "change %d leads back to a root before", link.Sequence)
		case met || link.From == pin:
			last := &roots[len(roots)-1]
			last.Retired, last.Compromised = link.Issued, link.Compromised
			roots = append(roots, Root{Pin: to, Sequence: link.Sequence})
			met = true
		case to == pin:
			roots[0].Sequence, met = link.Sequence, true
		}
		before = link
	}
	if !met {
		return nil, catalog.Errorf(catalog.RootNotReached, "none of %d changes begins at the root %s", len(links), short(pin))
	}
	return roots, nil
}

// LinksFrom returns the links that lead on from the root with that pin, so that no more
// is kept than is needed. The links have been followed before.
func LinksFrom(pin string, links []string) []string {
	for i, raw := range links {
		if link, err := OpenRoot(raw); err == nil && strings.EqualFold(link.From, pin) {
			return links[i:]
		}
	}
	return nil
}

// rootsDocument is how links travel to those who cannot verify who gives them.
type rootsDocument struct {
	Roots []string `json:"roots"`
}

// MarshalRoots writes links as the answer to a question for them.
func MarshalRoots(links []string) ([]byte, error) {
	if links == nil {
		links = []string{}
	}
	return json.Marshal(rootsDocument{links})
}

// ParseRoots reads such an answer; nothing is verified. Code: RootLinkMalformed.
func ParseRoots(content []byte) ([]string, error) {
	if len(content) > MaxRoots {
		return nil, catalog.Errorf(catalog.RootLinkMalformed, "more than %d bytes", MaxRoots)
	}
	var document rootsDocument
	if err := strictjson.Unmarshal(content, &document); err != nil {
		return nil, catalog.Errorf(catalog.RootLinkMalformed, "the answer is no account of site roots")
	}
	return document.Roots, nil
}

// OpenStateFollowing is [OpenState] for a state whose signer the caller may not know yet.
// The signature is verified with the key that comes with it; then judge says whether that
// signer is a root of the site, by what the state itself tells of changes of the root.
func OpenStateFollowing(raw string, judge func(signer string, links []string) error) (SiteState, error) {
	var state SiteState
	signer, err := openDocument(raw, MaxDocument, DocumentState, stateCodes(), anybody, &state)
	if err != nil {
		return SiteState{}, err
	}
	if PinOf(state.Root) != signer {
		return SiteState{}, catalog.Errorf(catalog.StateMalformed, "the state names another root than the one that signed it")
	}
	return state, judge(signer, state.Roots)
}

// OpenBeatOf verifies a heartbeat by any signer and returns that signer's pin, which the
// caller judges; codes as [OpenState].
func OpenBeatOf(raw string) (Beat, string, error) {
	var beat Beat
	signer, err := openDocument(raw, MaxToken, DocumentBeat, stateCodes(), anybody, &beat)
	return beat, signer, err
}

// linksExtension is where a connector's certificate carries links: a gateway that was away
// while the root was replaced has no way out to ask for them. The arc is the one for
// identifiers that nobody assigns (X.667).
func linksExtension() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 25, 1906134537, 1} }

// maxCarriedLinks is how many of the newest links a certificate carries.
const maxCarriedLinks = 16

// CarryLinks returns the extension with which a certificate carries links.
func CarryLinks(links []string) (pkix.Extension, error) {
	value, err := asn1.Marshal(links[max(0, len(links)-maxCarriedLinks):])
	return pkix.Extension{Id: linksExtension(), Value: value}, err
}

// CarriedLinks returns the links in a certificate; nil when it carries none.
func CarriedLinks(certificate *x509.Certificate) []string {
	for _, extension := range certificate.Extensions {
		if !extension.Id.Equal(linksExtension()) {
			continue
		}
		var links []string
		if rest, err := asn1.Unmarshal(extension.Value, &links); err != nil || len(rest) > 0 || len(links) > maxCarriedLinks {
			return nil
		}
		return links
	}
	return nil
}
