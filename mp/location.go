package mp

import (
	"strconv"
	"strings"

	"postern/catalog"
	"postern/ccm"
	"postern/site"
)

// locate answers a location request (protocol.md 5). Everything in the answers is public: requests are not signed, and what the client says
// about its place decides nothing.
func (v *visit) locate(m *ccm.Message, _ site.Device) (string, error) {
	ask, err := ccm.ParseLocationRequest(m.Text())
	if err != nil {
		return "", err
	}
	answer, known := map[ccm.LocationKind]func(ccm.LocationRequest) string{
		ccm.LocationSiteInformation: v.siteInformation,
		ccm.LocationAssignedSite:    v.assignedSite,
		ccm.LocationContent:         v.contentLocation,
		ccm.LocationEnumerateMP:     v.enumerateMP,
		ccm.LocationLocalMP:         v.localMP,
		ccm.LocationWSUS:            v.wsusLocation,
	}[ask.Kind]
	if !known {
		return "", catalog.Errorf(catalog.EndpointNotHandled, "a location request of kind %s", ask.Kind)
	}
	return answer(ask), nil
}

// here reports whether a request is about this site; one that names none is.
func (v *visit) here(code ccm.SiteCode) bool { return code == "" || code == v.mp.site.SiteCode() }

func (v *visit) siteInformation(ask ccm.LocationRequest) string {
	var reply ccm.SiteInfoReply
	if v.here(ask.SiteCode) {
		reply.Sites = []ccm.SiteRecord{v.siteRecord()}
	}
	return reply.XML()
}

func (v *visit) assignedSite(ccm.LocationRequest) string {
	return ccm.AssignedSiteReply{Site: v.siteRecord()}.XML()
}

func (v *visit) siteRecord() ccm.SiteRecord {
	build := v.mp.site.Settings().BuildNumber
	return ccm.SiteRecord{
		SiteCode: v.mp.site.SiteCode(), DefaultMP: v.mp.config.FQDN, Version: "5.00." + build + ".1000", BuildNumber: build,
		Capabilities: v.capabilities(), HTTPPort: v.mp.config.HTTPPort, HTTPSPort: v.mp.config.HTTPSPort,
		SiteSigningCertificate: v.mp.site.SigningCertificate(),
	}
}

// capabilities say whether clients need a certificate on the listener that they called (protocol.md 1.4).
func (v *visit) capabilities() []ccm.Capability {
	return []ccm.Capability{ccm.SSLState(v.listener == HTTPS)}
}

func (v *visit) mpSite() ccm.MPSite {
	return ccm.MPSite{SiteCode: v.mp.site.SiteCode(), HTTPPort: v.mp.config.HTTPPort, HTTPSPort: v.mp.config.HTTPSPort}
}

// contentLocation names this site and no location: no content is published yet.
func (v *visit) contentLocation(ccm.LocationRequest) string {
	return ccm.ContentLocationReply{Sites: []ccm.ContentSite{{MPSite: v.mpSite()}}}.XML()
}

func (v *visit) enumerateMP(ask ccm.LocationRequest) string {
	reply := ccm.EnumerateMPReply{MPSite: v.mpSite()}
	if !v.here(ask.SiteCode) {
		return reply.XML()
	}
	if strings.EqualFold(ask.RequestType, ccm.EnumerateInternet) {
		reply.Records = v.internetPoints()
		return reply.XML()
	}
	for _, point := range v.mp.site.ManagementPoints() {
		record := ccm.MPRecord{IntranetName: point.FQDN, Version: v.mp.site.Settings().BuildNumber, Capabilities: v.capabilities()}
		if gateways := v.mp.site.Gateways(); len(gateways) > 0 {
			record.InternetName = gateways[0].Name + "/" + string(ccm.DoorMutualAuth) + "/" + strconv.FormatUint(point.RoleID, 10)
		}
		reply.Records = append(reply.Records, record)
	}
	return reply.XML()
}

// internetPoints names this management point once for each gateway that leads to it: the list that goes with tokens, for devices that get none.
func (v *visit) internetPoints() (records []ccm.MPRecord) {
	for _, name := range v.mp.gatewayNames() {
		records = append(records, ccm.MPRecord{
			InternetName: name, IntranetName: v.mp.config.FQDN, Version: v.mp.site.Settings().BuildNumber, Capabilities: v.capabilities(),
		})
	}
	return records
}

func (v *visit) localMP(ccm.LocationRequest) string {
	return ccm.LocalMPReply{Sites: []ccm.MPSite{v.mpSite()}}.XML()
}

func (v *visit) wsusLocation(ccm.LocationRequest) string {
	return ccm.WSUSReply{Sites: []ccm.WSUSSite{{SiteCode: v.mp.site.SiteCode()}}}.XML()
}
