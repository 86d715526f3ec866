package mp

import (
	"net/url"

	"postern/ccm"
)

// maxGateways bounds what a token answer names; a client keeps no more.
const maxGateways = 64

// gatewayNames are the ways through the site's gateways to this management point, each as CCMHOSTNAME has it. They go with every token of a registered
// device, so that one that is inside today finds its way in from the internet tomorrow (product.md 1.6, CMGFQDNs); a device without tokens asks for them
// (internetPoints). Never nil: an empty list is an answer.
func (m *ManagementPoint) gatewayNames() []string {
	list := []string{}
	for _, gateway := range m.site.Gateways() {
		address, err := url.Parse(gateway.URL)
		if err != nil || address.Scheme != "https" || address.Host == "" || m.config.RoleID == 0 || len(list) == maxGateways {
			continue
		}
		list = append(list, address.Host+ccm.ExternalPath(ccm.DoorMutualAuth, m.config.RoleID, ""))
	}
	return list
}
