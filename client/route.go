package client

import (
	"net"
	"strings"

	"postern/ccm"
	"postern/token"
)

// route is the way to the management point: directly, or behind a gateway's door.
type route struct {
	Scheme   string `json:"scheme,omitempty"`
	Host     string `json:"host,omitempty"`    // host or host:port, the usual port left out
	RoleID   uint64 `json:"role_id,omitempty"` // 0: no gateway
	Internet bool   `json:"internet,omitempty"`
}

func (r route) secure() bool { return r.Scheme == "https" }

// door is the one that clients with tokens use, whatever form CCMHOSTNAME had (S2).
func (r route) door() ccm.Door {
	if r.RoleID == 0 {
		return ccm.DoorDirect
	}
	return ccm.DoorServerAuth
}

// path is the external path of an endpoint, spelled as clients do: the messaging
// endpoints in lower case (S2).
func (r route) path(endpoint ccm.Endpoint, rest string) string {
	return r.pathBy(r.door(), endpoint, rest)
}

func (r route) pathBy(door ccm.Door, endpoint ccm.Endpoint, rest string) string {
	internal := ccm.Path{Endpoint: endpoint, Rest: rest}.Internal()
	if strings.HasPrefix(string(endpoint), string(ccm.EndpointSystem)) {
		internal = strings.ToLower(internal)
	}
	return ccm.ExternalPath(door, r.RoleID, internal)
}

// url is the external URL of an endpoint, without query: what a proof names.
func (r route) url(endpoint ccm.Endpoint, rest string) string {
	return r.Scheme + "://" + r.Host + r.path(endpoint, rest)
}

// name is how logs and CCMHOSTNAME name the route (S2).
func (r route) name() string {
	if r.RoleID == 0 {
		return r.Host
	}
	return Gateway{Host: r.Host, RoleID: r.RoleID}.String()
}

// role is the one that the server's certificate must be for.
func (r route) role() string {
	if r.RoleID == 0 {
		return token.RoleManagementPoint
	}
	return token.RoleGateway
}

// hop is the word for the other side in steps.
func (r route) hop() string {
	if r.RoleID == 0 {
		return "management point"
	}
	return "gateway"
}

func (r route) port() string {
	if _, port, err := net.SplitHostPort(r.Host); err == nil {
		return port
	}
	if r.secure() {
		return "443"
	}
	return "80"
}
