package token

import (
	"net/url"
	"strings"
)

// Roles that the site issues certificates to (design decision 15).
const (
	RoleManagementPoint = "management-point" // server authentication
	RoleConnector       = "connector"        // client authentication
	RoleGateway         = "gateway"          // server authentication
)

// RoleURI is the URI name in a role certificate: postern://HIERARCHY/ROLE/NAME. The
// site writes it, package auth reads it.
func RoleURI(hierarchy, role, name string) *url.URL {
	return &url.URL{Scheme: "postern", Host: strings.ToLower(hierarchy), Path: "/" + role + "/" + name}
}

// ParseRoleURI takes such a name apart; ok is false for any other URI.
func ParseRoleURI(u *url.URL) (hierarchy, role, name string, ok bool) {
	role, name, found := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	ok = u.Scheme == "postern" && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == "" &&
		found && role != "" && name != "" && !strings.Contains(name, "/")
	if !ok {
		return "", "", "", false
	}
	return u.Host, role, name, true
}
