package ccm

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"postern/catalog"
)

// LocationKind is what a location request asks for. The name of its root element follows from it (protocol.md 5).
type LocationKind string

// The kinds of location requests of protocol.md 5.
const (
	LocationSiteInformation LocationKind = "SiteInformation"
	LocationAssignedSite    LocationKind = "AssignedSite"
	LocationContent         LocationKind = "ContentLocation"
	LocationEnumerateMP     LocationKind = "EnumerateMP"
	LocationLocalMP         LocationKind = "LocalMP"
	LocationWSUS            LocationKind = "WSUS"
	LocationUpdateSF        LocationKind = "UpdateSF"
	LocationTokenServices   LocationKind = "TokenServices"
)

// locationRoots maps the root elements of requests to their kinds.
func locationRoots() map[string]LocationKind {
	return map[string]LocationKind{
		"SiteInformationRequest":     LocationSiteInformation,
		"AssignedSiteRequest":        LocationAssignedSite,
		"ContentLocationRequest":     LocationContent,
		"EnumerateMPLocationRequest": LocationEnumerateMP,
		"LocalMPLocationRequest":     LocationLocalMP,
		"WSUSLocationRequest":        LocationWSUS,
		"UpdateSFRequest":            LocationUpdateSF,
		"TokenServicesRequest":       LocationTokenServices,
	}
}

// Root returns the name of the request's root element, "" for an unknown kind.
func (k LocationKind) Root() string {
	for root, kind := range locationRoots() {
		if kind == k {
			return root
		}
	}
	return ""
}

// LocationRequest is the body of a message to MP_LocationManager. What a kind does not have stays empty.
type LocationRequest struct {
	Kind        LocationKind
	SiteCode    SiteCode // asked about, or assigned
	RequestType string   // Assigned, Proxy, Local or EnumerateInternet, in EnumerateMP
	Package     LocationPackage
	Content     LocationPackage // in WSUS
	Client      ClientLocation
}

// EnumerateInternet is the RequestType that asks for the ways in from the internet.
const EnumerateInternet = "Internet"

// LocationPackage names a package, an update or the WSUS content that is looked for.
type LocationPackage struct{ ID, Version string }

// ClientLocation is where the client says it is. It is a claim; the answer must not depend on it for anything secret.
type ClientLocation struct {
	Type          string // SMSPackage, SMSUpdate or SMSWSUS
	OnInternet    bool
	UseInternetDP bool
	ADSite        string
	Forest        string
	Domain        string
	Addresses     []ClientAddress
	Groups        []BoundaryGroup
}

// ClientAddress is one address of the client and the subnet it is in.
type ClientAddress struct{ Address, Subnet string }

// BoundaryGroup is a group of network boundaries that the client was in.
type BoundaryGroup struct{ ID, GUID, Flag string }

// maxLocationItems bounds the addresses and groups of one request.
const maxLocationItems = 256

// ParseLocationRequest reads the body of a location request. Errors have the codes LocationRequestMalformed and, for a root
// element that is none of protocol.md 5, LocationRequestUnknown.
func ParseLocationRequest(text string) (LocationRequest, error) {
	root, err := parseXML(text, DefaultLimits())
	if err != nil {
		return LocationRequest{}, catalog.Wrap(catalog.LocationRequestMalformed, err, "location request")
	}
	kind, known := locationRoots()[root.Name]
	if !known {
		return LocationRequest{}, catalog.Errorf(catalog.LocationRequestUnknown, "the root element is %.64q", root.Name)
	}
	request := LocationRequest{
		Kind:        kind,
		RequestType: root.Attr("RequestType"),
		Package:     parsePackage(root.Child("Package")),
		Content:     parsePackage(root.Child("Content")),
	}
	site := cmp.Or(root.Child("SiteCode").Attr("Name"), root.Child("AssignedSite").Attr("SiteCode"))
	if request.SiteCode, err = optionalSiteCode(site); err != nil {
		return LocationRequest{}, catalog.Wrap(catalog.LocationRequestMalformed, err, "%s: the site code is not one", root.Name)
	}
	if request.Client, err = parseClientLocation(root.Child("ClientLocationInfo")); err != nil {
		return LocationRequest{}, catalog.Wrap(catalog.LocationRequestMalformed, err, "%s: ClientLocationInfo", root.Name)
	}
	return request, nil
}

func parsePackage(node *element) LocationPackage {
	return LocationPackage{node.Attr("ID"), node.Attr("Version")}
}

func parseClientLocation(node *element) (ClientLocation, error) {
	client := ClientLocation{
		Type:          node.Attr("LocationType"),
		OnInternet:    node.Attr("OnInternet") == "1",
		UseInternetDP: node.Attr("UseInternetDP") == "1",
		ADSite:        node.Child("ADSite").Attr("Name"),
		Forest:        node.Child("Forest").Attr("Name"),
		Domain:        node.Child("Domain").Attr("Name"),
	}
	addresses := node.Child("IPAddresses").All("IPAddress")
	groups := node.Child("BoundaryGroups").All("BoundaryGroup")
	if len(addresses) > maxLocationItems || len(groups) > maxLocationItems {
		return ClientLocation{}, fmt.Errorf("more than %d addresses or groups", maxLocationItems)
	}
	for _, a := range addresses {
		client.Addresses = append(client.Addresses, ClientAddress{a.Attr("Address"), a.Attr("SubnetAddress")})
	}
	for _, g := range groups {
		client.Groups = append(client.Groups, BoundaryGroup{g.Attr("GroupID"), g.Attr("GroupGUID"), g.Attr("GroupFlag")})
	}
	return client, nil
}

// XML returns the request as our client sends it; the element names are those of protocol.md 5.
func (r LocationRequest) XML() string {
	return tag(r.Kind.Root(), append([]string{"SchemaVersion", "1.00"}, r.attributesXML()...), r.siteXML(), r.Content.xml("Content"), r.clientXML(), r.Package.xml("Package"))
}

func (r LocationRequest) attributesXML() []string {
	if r.Kind == LocationContent {
		return []string{"BGRVersion", "1"}
	}
	return optional("RequestType", r.RequestType)
}

func (r LocationRequest) siteXML() string {
	switch {
	case r.SiteCode == "":
		return ""
	case r.Kind == LocationSiteInformation || r.Kind == LocationEnumerateMP:
		return tag("SiteCode", []string{"Name", string(r.SiteCode)})
	}
	return tag("AssignedSite", []string{"SiteCode", string(r.SiteCode)})
}

func (p LocationPackage) xml(name string) string {
	if p == (LocationPackage{}) {
		return ""
	}
	return tag(name, []string{"ID", p.ID, "Version", p.Version})
}

func (r LocationRequest) clientXML() string {
	if !slices.Contains([]LocationKind{LocationContent, LocationEnumerateMP, LocationLocalMP, LocationWSUS, LocationUpdateSF}, r.Kind) {
		return ""
	}
	c := r.Client
	groups := each(c.Groups, func(g BoundaryGroup) string {
		return tag("BoundaryGroup", optional("GroupID", g.ID, "GroupGUID", g.GUID, "GroupFlag", g.Flag))
	})
	if groups != "" {
		groups = tag("BoundaryGroups", nil, groups)
	}
	return tag("ClientLocationInfo", append(optional("LocationType", c.Type), "OnInternet", bit(c.OnInternet), "UseInternetDP", bit(c.UseInternetDP)),
		tag("ADSite", optional("Name", c.ADSite)),
		named("Forest", c.Forest), named("Domain", c.Domain),
		tag("IPAddresses", nil, each(c.Addresses, func(a ClientAddress) string {
			return tag("IPAddress", optional("Address", a.Address, "SubnetAddress", a.Subnet))
		})), groups)
}

// named returns <tagName Name="..."/>, or nothing for an empty name.
func named(tagName, name string) string {
	if name == "" {
		return ""
	}
	return tag(tagName, []string{"Name", name})
}

func bit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// schema is the attribute that most replies begin with.
func schema() []string { return []string{"SchemaVersion", "1.00"} }

// SiteRecord describes one site to a client (protocol.md 5).
type SiteRecord struct {
	SiteCode                     SiteCode
	DefaultMP                    string
	Version                      string // "5.00.9122.1000"
	BuildNumber                  string // "9122"
	Capabilities                 []Capability
	SecurityMode                 int // SecurityModeMask
	SecurityModeEx               int // SecurityModeMaskEx
	HTTPPort                     int
	HTTPSPort                    int
	CertificateStoreName         string
	CertificateSelectionCriteria string
	CertificateSelectFirst       bool
	SiteSigningCertificate       []byte // DER
}

func (s SiteRecord) xml() string {
	return tag("Site", nil,
		textTag("SiteCode", string(s.SiteCode)),
		textTag("DefaultMP", s.DefaultMP),
		textTag("Version", s.Version),
		textTag("BuildNumber", s.BuildNumber),
		capabilitiesXML(s.Capabilities),
		tag("ClientOperationalSettings", nil, textTag("Version", s.Version), s.securityXML()))
}

func (s SiteRecord) securityXML() string {
	return tag("SecurityConfiguration", nil,
		textTag("SecurityModeMask", strconv.Itoa(s.SecurityMode)),
		textTag("SecurityModeMaskEx", strconv.Itoa(s.SecurityModeEx)),
		textTag("HTTPPort", strconv.Itoa(s.HTTPPort)),
		textTag("HTTPSPort", strconv.Itoa(s.HTTPSPort)),
		textTag("CertificateStoreName", s.CertificateStoreName),
		textTag("CertificateSelectionCriteria", s.CertificateSelectionCriteria),
		textTag("CertificateSelectFirstFlag", bit(s.CertificateSelectFirst)),
		textTag("SiteSigningCert", upperHex(s.SiteSigningCertificate)))
}

func parseSite(node *element) (SiteRecord, error) {
	security := node.Child("ClientOperationalSettings").Child("SecurityConfiguration")
	site := SiteRecord{
		DefaultMP:                    node.ChildText("DefaultMP"),
		Version:                      node.ChildText("Version"),
		BuildNumber:                  node.ChildText("BuildNumber"),
		Capabilities:                 parseCapabilities(node.Child("Capabilities")),
		CertificateStoreName:         security.ChildText("CertificateStoreName"),
		CertificateSelectionCriteria: security.ChildText("CertificateSelectionCriteria"),
		CertificateSelectFirst:       security.ChildText("CertificateSelectFirstFlag") == "1",
	}
	var err error
	if site.SiteCode, err = optionalSiteCode(node.ChildText("SiteCode")); err != nil {
		return SiteRecord{}, fmt.Errorf("read SiteCode: %w", err)
	}
	if site.SiteSigningCertificate, err = parseHex(security.ChildText("SiteSigningCert")); err != nil {
		return SiteRecord{}, fmt.Errorf("read SiteSigningCert: %w", err)
	}
	for name, target := range map[string]*int{
		"SecurityModeMask": &site.SecurityMode, "SecurityModeMaskEx": &site.SecurityModeEx,
		"HTTPPort": &site.HTTPPort, "HTTPSPort": &site.HTTPSPort,
	} {
		if *target, err = optionalNumber(security.ChildText(name)); err != nil {
			return SiteRecord{}, fmt.Errorf("read %s: %w", name, err)
		}
	}
	return site, nil
}

func optionalNumber(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	return strconv.Atoi(text)
}

func parseSites(nodes []*element) ([]SiteRecord, error) {
	var sites []SiteRecord
	for _, node := range nodes {
		site, err := parseSite(node)
		if err != nil {
			return nil, catalog.Wrap(catalog.LocationReplyMalformed, err, "site record")
		}
		sites = append(sites, site)
	}
	return sites, nil
}

// parseReply reads a reply and checks the name of its root.
func parseReply(text, root string) (*element, error) {
	node, err := parseRoot(text, root)
	if err != nil {
		return nil, catalog.Wrap(catalog.LocationReplyMalformed, err, "the answer is not a %s", root)
	}
	return node, nil
}

// SiteInfoReply is the answer to a SiteInformationRequest.
type SiteInfoReply struct{ Sites []SiteRecord }

// XML returns the reply.
func (r SiteInfoReply) XML() string {
	return tag("SiteInfoReply", schema(), tag("Sites", nil, each(r.Sites, SiteRecord.xml)))
}

// ParseSiteInfoReply reads a SiteInfoReply. Errors have the code LocationReplyMalformed, as with the other replies.
func ParseSiteInfoReply(text string) (SiteInfoReply, error) {
	root, err := parseReply(text, "SiteInfoReply")
	if err != nil {
		return SiteInfoReply{}, err
	}
	sites, err := parseSites(root.Child("Sites").All("Site"))
	return SiteInfoReply{sites}, err
}

// AssignedSiteReply is the answer to an AssignedSiteRequest.
type AssignedSiteReply struct{ Site SiteRecord }

// XML returns the reply.
func (r AssignedSiteReply) XML() string { return tag("AssignedSiteReply", schema(), r.Site.xml()) }

// ParseAssignedSiteReply reads an AssignedSiteReply.
func ParseAssignedSiteReply(text string) (AssignedSiteReply, error) {
	root, err := parseReply(text, "AssignedSiteReply")
	if err != nil {
		return AssignedSiteReply{}, err
	}
	sites, err := parseSites(root.All("Site"))
	if err != nil || len(sites) == 0 {
		return AssignedSiteReply{}, err
	}
	return AssignedSiteReply{sites[0]}, nil
}

// MPSite names the site of a management point that answers (protocol.md 5).
type MPSite struct {
	SiteCode     SiteCode
	MasterSite   SiteCode // the site's own code when empty
	SiteLocality string   // LOCAL or REMOTE
	HTTPPort     int
	HTTPSPort    int
}

func (s MPSite) xml() string {
	return tag("MPSite", optional(
		"SiteCode", string(s.SiteCode),
		"MasterSiteCode", cmp.Or(string(s.MasterSite), string(s.SiteCode)),
		"SiteLocality", cmp.Or(s.SiteLocality, "LOCAL"),
		"IISPreferedPort", port(s.HTTPPort),
		"IISSSLPreferedPort", port(s.HTTPSPort)))
}

func port(number int) string {
	if number == 0 {
		return ""
	}
	return strconv.Itoa(number)
}

func parseMPSite(node *element) (MPSite, error) {
	site := MPSite{SiteLocality: node.Attr("SiteLocality")}
	var err error
	if site.SiteCode, err = optionalSiteCode(node.Attr("SiteCode")); err != nil {
		return MPSite{}, catalog.Wrap(catalog.LocationReplyMalformed, err, "MPSite/@SiteCode")
	}
	if site.MasterSite, err = optionalSiteCode(node.Attr("MasterSiteCode")); err != nil {
		return MPSite{}, catalog.Wrap(catalog.LocationReplyMalformed, err, "MPSite/@MasterSiteCode")
	}
	if site.HTTPPort, err = optionalNumber(node.Attr("IISPreferedPort")); err != nil {
		return MPSite{}, catalog.Wrap(catalog.LocationReplyMalformed, err, "MPSite/@IISPreferedPort")
	}
	if site.HTTPSPort, err = optionalNumber(node.Attr("IISSSLPreferedPort")); err != nil {
		return MPSite{}, catalog.Wrap(catalog.LocationReplyMalformed, err, "MPSite/@IISSSLPreferedPort")
	}
	return site, nil
}

// ContentLocationReply is the answer to a ContentLocationRequest: where a package lies, site by site.
type ContentLocationReply struct {
	PackageFlags  string
	Sites         []ContentSite
	ClientPackage ClientPackage
}

// ContentSite is one site that holds the content.
type ContentSite struct {
	MPSite  MPSite
	Records []ContentRecord
}

// ContentRecord is one distribution point.
type ContentRecord struct {
	URLs         []ContentURL
	ADSite       string
	Subnets      []string
	Version      string // build number
	Capabilities []Capability
	ServerName   string
	DPType       string // SERVER when empty
	Locality     string // LOCAL when empty
}

// ContentURL is where the content and its signature file are.
type ContentURL struct{ Name, Signature string }

// ClientPackage names the client's own installation package.
type ClientPackage struct{ ID, Version, Hash string }

// XML returns the reply.
func (r ContentLocationReply) XML() string {
	return tag("ContentLocationReply", schema(),
		tag("ContentInfo", optional("PackageFlags", r.PackageFlags), tag("ContentHashValues", nil)),
		tag("Sites", nil, each(r.Sites, func(s ContentSite) string {
			return tag("Site", nil, s.MPSite.xml(), tag("LocationRecords", nil, each(s.Records, ContentRecord.xml)))
		})),
		r.ClientPackage.xml())
}

func (p ClientPackage) xml() string {
	if p == (ClientPackage{}) {
		return ""
	}
	return tag("ClientPackage", []string{"FullPackageID", p.ID, "FullPackageVersion", p.Version, "FullPackageHash", p.Hash})
}

func (r ContentRecord) xml() string {
	return tag("LocationRecord", nil,
		each(r.URLs, func(u ContentURL) string {
			return tag("URL", append([]string{"Name", u.Name}, optional("Signature", u.Signature)...))
		}),
		tag("ADSite", []string{"Name", r.ADSite}),
		tag("IPSubnets", nil, each(r.Subnets, func(s string) string { return tag("IPSubnet", []string{"Address", s}) })),
		tag("Metric", []string{"Value", ""}),
		textTag("Version", r.Version),
		capabilitiesXML(r.Capabilities),
		textTag("ServerRemoteName", r.ServerName),
		textTag("DPType", cmp.Or(r.DPType, "SERVER")),
		textTag("Locality", cmp.Or(r.Locality, "LOCAL")))
}

// ParseContentLocationReply reads a ContentLocationReply.
func ParseContentLocationReply(text string) (ContentLocationReply, error) {
	root, err := parseReply(text, "ContentLocationReply")
	if err != nil {
		return ContentLocationReply{}, err
	}
	client := root.Child("ClientPackage")
	reply := ContentLocationReply{
		PackageFlags:  root.Child("ContentInfo").Attr("PackageFlags"),
		ClientPackage: ClientPackage{client.Attr("FullPackageID"), client.Attr("FullPackageVersion"), client.Attr("FullPackageHash")},
	}
	for _, node := range root.Child("Sites").All("Site") {
		site := ContentSite{}
		if site.MPSite, err = parseMPSite(node.Child("MPSite")); err != nil {
			return ContentLocationReply{}, err
		}
		for _, record := range node.Child("LocationRecords").All("LocationRecord") {
			site.Records = append(site.Records, parseContentRecord(record))
		}
		reply.Sites = append(reply.Sites, site)
	}
	return reply, nil
}

func parseContentRecord(node *element) ContentRecord {
	record := ContentRecord{
		ADSite:       node.Child("ADSite").Attr("Name"),
		Version:      node.ChildText("Version"),
		Capabilities: parseCapabilities(node.Child("Capabilities")),
		ServerName:   node.ChildText("ServerRemoteName"),
		DPType:       node.ChildText("DPType"),
		Locality:     node.ChildText("Locality"),
	}
	for _, u := range node.All("URL") {
		record.URLs = append(record.URLs, ContentURL{u.Attr("Name"), u.Attr("Signature")})
	}
	for _, s := range node.Child("IPSubnets").All("IPSubnet") {
		record.Subnets = append(record.Subnets, s.Attr("Address"))
	}
	return record
}

// EnumerateMPReply is the answer to an EnumerateMPLocationRequest.
type EnumerateMPReply struct {
	MPSite  MPSite
	Records []MPRecord
}

// MPRecord is one management point as an EnumerateMPReply names it.
type MPRecord struct {
	IntranetName string
	InternetName string
	Version      string // build number
	Capabilities []Capability
}

// XML returns the reply.
func (r EnumerateMPReply) XML() string {
	return tag("EnumerateMPLocationReply", schema(), r.MPSite.xml(), tag("LocationRecords", nil, each(r.Records, func(mp MPRecord) string {
		return tag("LocationRecord", nil,
			tag("InternetName", []string{"Value", mp.InternetName}),
			tag("IntranetName", []string{"Value", mp.IntranetName}),
			tag("Windows", []string{"Trust", "0"}),
			textTag("Version", mp.Version),
			capabilitiesXML(mp.Capabilities))
	})))
}

// ParseEnumerateMPReply reads an EnumerateMPLocationReply.
func ParseEnumerateMPReply(text string) (EnumerateMPReply, error) {
	root, err := parseReply(text, "EnumerateMPLocationReply")
	if err != nil {
		return EnumerateMPReply{}, err
	}
	site, err := parseMPSite(root.Child("MPSite"))
	if err != nil {
		return EnumerateMPReply{}, err
	}
	reply := EnumerateMPReply{MPSite: site}
	for _, node := range root.Child("LocationRecords").All("LocationRecord") {
		reply.Records = append(reply.Records, MPRecord{
			IntranetName: node.Child("IntranetName").Attr("Value"),
			InternetName: node.Child("InternetName").Attr("Value"),
			Version:      node.ChildText("Version"),
			Capabilities: parseCapabilities(node.Child("Capabilities")),
		})
	}
	return reply, nil
}

// LocalMPReply is the answer to a LocalMPLocationRequest: the sites whose management point is near.
type LocalMPReply struct{ Sites []MPSite }

// XML returns the reply.
func (r LocalMPReply) XML() string {
	return tag("LocalMPLocationReply", schema(), tag("Sites", nil, each(r.Sites, func(s MPSite) string { return tag("Site", nil, s.xml()) })))
}

// ParseLocalMPReply reads a LocalMPLocationReply.
func ParseLocalMPReply(text string) (LocalMPReply, error) {
	root, err := parseReply(text, "LocalMPLocationReply")
	if err != nil {
		return LocalMPReply{}, err
	}
	var reply LocalMPReply
	for _, node := range root.Child("Sites").All("Site") {
		site, err := parseMPSite(node.Child("MPSite"))
		if err != nil {
			return LocalMPReply{}, err
		}
		reply.Sites = append(reply.Sites, site)
	}
	return reply, nil
}

// WSUSReply is the answer to a WSUSLocationRequest.
type WSUSReply struct{ Sites []WSUSSite }

// WSUSSite is one site and its update servers.
type WSUSSite struct {
	SiteCode SiteCode
	Records  []WSUSRecord
}

// WSUSRecord is one update server.
type WSUSRecord struct{ URL, ServerName, Version string }

// XML returns the reply.
func (r WSUSReply) XML() string {
	return tag("WSUSLocationReply", schema(), tag("Sites", nil, each(r.Sites, func(s WSUSSite) string {
		return tag("Site", nil, tag("MPSite", []string{"SiteCode", string(s.SiteCode)}), tag("LocationRecords", nil, each(s.Records, func(w WSUSRecord) string {
			return tag("LocationRecord", []string{"WSUSURL", w.URL, "ServerName", w.ServerName, "Version", w.Version})
		})))
	})))
}

// ParseWSUSReply reads a WSUSLocationReply.
func ParseWSUSReply(text string) (WSUSReply, error) {
	root, err := parseReply(text, "WSUSLocationReply")
	if err != nil {
		return WSUSReply{}, err
	}
	var reply WSUSReply
	for _, node := range root.Child("Sites").All("Site") {
		mp, err := parseMPSite(node.Child("MPSite"))
		if err != nil {
			return WSUSReply{}, err
		}
		site := WSUSSite{SiteCode: mp.SiteCode}
		for _, w := range node.Child("LocationRecords").All("LocationRecord") {
			site.Records = append(site.Records, WSUSRecord{w.Attr("WSUSURL"), w.Attr("ServerName"), w.Attr("Version")})
		}
		reply.Sites = append(reply.Sites, site)
	}
	return reply, nil
}
