package ccm

import (
	"cmp"
	"encoding/hex"
	"net/url"
	"regexp"
	"strings"

	"postern/catalog"
)

// AuthMethod is what a .sms_aut request asks for: the first word of its query (protocol.md 1.3).
type AuthMethod string

// The methods that a management point answers. Those for boot media are left out on purpose: they hand out the ids of
// "unknown machines".
const (
	AuthSiteSignCert       AuthMethod = "SITESIGNCERT"
	AuthMPList             AuthMethod = "MPLIST"
	AuthMPList1            AuthMethod = "MPLIST1"
	AuthMPList2            AuthMethod = "MPLIST2"
	AuthMPCert             AuthMethod = "MPCERT"
	AuthMPCert2            AuthMethod = "MPCERT2"
	AuthMPTRK              AuthMethod = "MPTRK"
	AuthMPKeyInformation   AuthMethod = "MPKEYINFORMATION"
	AuthMPKeyInformationEx AuthMethod = "MPKEYINFORMATIONEX"
	AuthSMSTRC             AuthMethod = "SMSTRC"
)

// authMethods says which methods there are and whether the argument of each is a site code.
func authMethods() map[AuthMethod]bool {
	return map[AuthMethod]bool{
		AuthSiteSignCert: false, AuthMPList: false, AuthMPList1: true, AuthMPList2: true, AuthMPCert: false, AuthMPCert2: false,
		AuthMPTRK: false, AuthMPKeyInformation: false, AuthMPKeyInformationEx: false, AuthSMSTRC: false,
	}
}

var authArgumentForm = regexp.MustCompile(`^[A-Za-z0-9]{0,64}$`)

// ParseAuthQuery reads the query of a .sms_aut request, METHOD or METHOD&argument, in any case. The argument of MPLIST1 and
// MPLIST2 is a site code in upper case, or "" for this site; the others have none that matters. Errors have the code
// AuthQueryMalformed.
func ParseAuthQuery(query string) (AuthMethod, string, error) {
	if len(query) > 256 {
		return "", "", catalog.Errorf(catalog.AuthQueryMalformed, "the query is too long")
	}
	decoded, err := url.PathUnescape(query)
	if err != nil {
		return "", "", catalog.Wrap(catalog.AuthQueryMalformed, err, "the query is wrongly encoded")
	}
	name, argument, _ := strings.Cut(decoded, "&")
	method := AuthMethod(strings.ToUpper(name))
	site, known := authMethods()[method]
	switch {
	case !known:
		return "", "", catalog.Errorf(catalog.AuthQueryMalformed, "the method is not one that is answered here")
	case !authArgumentForm.MatchString(argument):
		return "", "", catalog.Errorf(catalog.AuthQueryMalformed, "the argument is neither empty nor letters and digits")
	case !site || argument == "":
		return method, argument, nil
	}
	code, err := ParseSiteCode(argument)
	if err != nil {
		return "", "", catalog.Wrap(catalog.AuthQueryMalformed, err, "the argument of %s is not a site code", method)
	}
	return method, string(code), nil
}

// Capability is one property of a management point or a site: SSLState, for instance (protocol.md 1.4).
type Capability struct{ Name, Value, Version string }

// SSLState returns the capability that says whether clients must use HTTPS with certificates.
func SSLState(https bool) Capability {
	if https {
		return Capability{Name: "SSLState", Value: "1"}
	}
	return Capability{Name: "SSLState", Value: "0"}
}

func capabilitiesXML(list []Capability) string {
	return tag("Capabilities", []string{"SchemaVersion", "1.0"}, each(list, func(c Capability) string {
		return tag("Property", append([]string{"Name", c.Name}, optional("Value", c.Value, "Version", c.Version)...))
	}))
}

func parseCapabilities(node *element) []Capability {
	var list []Capability
	for _, p := range node.All("Property") {
		list = append(list, Capability{p.Attr("Name"), p.Attr("Value"), p.Attr("Version")})
	}
	return list
}

// ManagementPoint is one entry of an MPList.
type ManagementPoint struct {
	Name         string
	FQDN         string
	SiteCode     SiteCode // "" in the answer to MPLIST
	Version      string   // the build number only, "9128"
	Capabilities []Capability
}

// MPList is the answer to MPLIST, MPLIST1 and MPLIST2 (protocol.md 1.4).
type MPList struct{ ManagementPoints []ManagementPoint }

// XML returns the list, with FQDN and SiteCode as attributes.
func (l MPList) XML() string {
	return tag("MPList", nil, each(l.ManagementPoints, func(mp ManagementPoint) string {
		return tag("MP", append([]string{"Name", mp.Name, "FQDN", mp.FQDN}, optional("SiteCode", string(mp.SiteCode))...),
			textTag("Version", mp.Version), capabilitiesXML(mp.Capabilities))
	}))
}

// ParseMPList reads an MPList, with FQDN as attribute or as element. Errors have the code AuthReplyMalformed.
func ParseMPList(text string) (MPList, error) {
	root, err := parseAuthReply(text, "MPList")
	if err != nil {
		return MPList{}, err
	}
	var list MPList
	for _, node := range root.All("MP") {
		mp := ManagementPoint{
			Name:         node.Attr("Name"),
			FQDN:         cmp.Or(node.Attr("FQDN"), node.ChildText("FQDN")),
			Version:      node.ChildText("Version"),
			Capabilities: parseCapabilities(node.Child("Capabilities")),
		}
		if mp.SiteCode, err = optionalSiteCode(node.Attr("SiteCode")); err != nil {
			return MPList{}, catalog.Wrap(catalog.AuthReplyMalformed, err, "site code of %s", mp.Name)
		}
		list.ManagementPoints = append(list.ManagementPoints, mp)
	}
	return list, nil
}

func optionalSiteCode(text string) (SiteCode, error) {
	if text == "" {
		return "", nil
	}
	return ParseSiteCode(text)
}

func parseAuthReply(text, root string) (*element, error) {
	node, err := parseRoot(trimText(text), root)
	if err != nil {
		return nil, catalog.Wrap(catalog.AuthReplyMalformed, err, "the answer is not a %s", root)
	}
	return node, nil
}

// SiteSignCert is the answer to SITESIGNCERT: the site's signing certificate in DER (protocol.md 1.3).
type SiteSignCert struct{ Certificate []byte }

// XML returns the certificate in hexadecimal inside X509Certificate.
func (s SiteSignCert) XML() string { return tag("X509Certificate", nil, upperHex(s.Certificate)) }

// ParseSiteSignCert reads the answer to SITESIGNCERT. Errors have the code AuthReplyMalformed.
func ParseSiteSignCert(text string) (SiteSignCert, error) {
	root, err := parseAuthReply(text, "X509Certificate")
	if err != nil {
		return SiteSignCert{}, err
	}
	der, err := authHex(root)
	return SiteSignCert{der}, err
}

// authHex reads the text of an element as hexadecimal; a missing element gives nil.
func authHex(node *element) ([]byte, error) {
	if node == nil {
		return nil, nil
	}
	data, err := parseHex(node.Text)
	if err != nil {
		return nil, catalog.Wrap(catalog.AuthReplyMalformed, err, "%s is not hexadecimal", node.Name)
	}
	return data, nil
}

// MPCert is the answer to MPCERT: the management point's certificate in DER (protocol.md 1.3).
type MPCert struct{ Certificate []byte }

// XML returns the certificate in hexadecimal.
func (c MPCert) XML() string {
	return tag("MPCertificate", nil, tag("Certificate", nil, upperHex(c.Certificate)))
}

// SignedCertificate is a certificate in DER and the signature over it by the site's key, in the byte order of the wire.
type SignedCertificate struct{ Certificate, Signature []byte }

// MPCert2 is the answer to MPCERT2 (protocol.md 1.3).
type MPCert2 struct{ Signing, Encryption SignedCertificate }

// XML returns both certificates with their signatures.
func (c MPCert2) XML() string {
	return tag("MPCertificates", nil, c.Signing.xml("Certificate1"), c.Encryption.xml("Certificate2"))
}

func (c SignedCertificate) xml(name string) string {
	return tag(name, optional("Signature", upperHex(c.Signature)), upperHex(c.Certificate))
}

// MPTRK is the answer to MPTRK: the trusted root key as a PUBLICKEYBLOB and a signature over it (protocol.md 1.3).
type MPTRK struct{ Key, Signature []byte }

// XML returns the key in hexadecimal.
func (k MPTRK) XML() string {
	return tag("KEYDATA", nil, tag("TRUSTEDROOTKEY", optional("Signature", upperHex(k.Signature)), upperHex(k.Key)))
}

// ParseMPTRK reads the answer to MPTRK. It checks no signature. Errors have the code AuthReplyMalformed.
func ParseMPTRK(text string) (MPTRK, error) {
	root, err := parseAuthReply(text, "KEYDATA")
	if err != nil {
		return MPTRK{}, err
	}
	key, signature, err := signedHex(root.Child("TRUSTEDROOTKEY"))
	return MPTRK{key, signature}, err
}

// signedHex reads an element's text and its Signature attribute; a missing element gives nil for both.
func signedHex(node *element) (value, signature []byte, err error) {
	if value, err = authHex(node); err != nil {
		return nil, nil, err
	}
	signature, err = hex.DecodeString(node.Attr("Signature"))
	if err != nil {
		return nil, nil, catalog.Wrap(catalog.AuthReplyMalformed, err, "%s/@Signature is not hexadecimal", node.Name)
	}
	return value, signature, nil
}

// MPKeyInformation is the answer to MPKEYINFORMATION and MPKEYINFORMATIONEX (protocol.md 1.4). It has no field for the ids of
// unknown machines: whoever has one can ask for task sequences, and this answer is anonymous.
type MPKeyInformation struct {
	AssignmentSiteCode SiteCode
	SiteCode           SiteCode
	FQDN               string
	MachineName        string
	Certificate        SignedCertificate
	TrustedRootKey     MPTRK
}

// XML returns the document; SITECODE is a direct child of the root, as the known parsers read it.
func (k MPKeyInformation) XML() string {
	return tag("MPKEYINFORMATION", nil,
		textTag("AssignmentSiteCode", string(k.AssignmentSiteCode)),
		k.Certificate.xml("MPCERTIFICATE"),
		textTag("FQDN", k.FQDN),
		textTag("MACHINENAME", k.MachineName),
		textTag("SITECODE", string(k.SiteCode)),
		tag("TRUSTEDROOTKEY", optional("Signature", upperHex(k.TrustedRootKey.Signature)), upperHex(k.TrustedRootKey.Key)))
}

// ParseMPKeyInformation reads the answer to MPKEYINFORMATION. It checks no signature. Errors have the code AuthReplyMalformed.
func ParseMPKeyInformation(text string) (MPKeyInformation, error) {
	root, err := parseAuthReply(text, "MPKEYINFORMATION")
	if err != nil {
		return MPKeyInformation{}, err
	}
	k := MPKeyInformation{FQDN: root.ChildText("FQDN"), MachineName: root.ChildText("MACHINENAME")}
	if k.SiteCode, err = optionalSiteCode(root.ChildText("SITECODE")); err != nil {
		return MPKeyInformation{}, catalog.Wrap(catalog.AuthReplyMalformed, err, "read SITECODE")
	}
	if k.AssignmentSiteCode, err = optionalSiteCode(root.ChildText("AssignmentSiteCode")); err != nil {
		return MPKeyInformation{}, catalog.Wrap(catalog.AuthReplyMalformed, err, "read AssignmentSiteCode")
	}
	if k.Certificate.Certificate, k.Certificate.Signature, err = signedHex(root.Child("MPCERTIFICATE")); err != nil {
		return MPKeyInformation{}, err
	}
	k.TrustedRootKey.Key, k.TrustedRootKey.Signature, err = signedHex(root.Child("TRUSTEDROOTKEY"))
	return k, err
}

// SMSTRC is the answer to the method SMSTRC, which callers use only to see whether a management point is there. The
// text is ours (protocol.md 1.3).
const SMSTRC = "<SMSTRC>OK</SMSTRC>"
