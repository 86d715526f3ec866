package ccm

import (
	"net/url"
	"strconv"
	"strings"

	"postern/catalog"
)

// Door is the way by which a request reaches a role: directly, or through a gateway by
// client certificate or by token (protocol.md 7.1).
type Door string

// The doors, spelled as in paths.
const (
	DoorDirect     Door = ""
	DoorMutualAuth Door = "CCM_Proxy_MutualAuth"
	DoorServerAuth Door = "CCM_Proxy_ServerAuth"
)

// Endpoint is the first segment of a path behind the door, in the form that code
// compares (protocol.md 1.1, 7.1).
type Endpoint string

// The endpoints of management points and gateways.
const (
	EndpointSystem            Endpoint = "ccm_system"
	EndpointSystemWindowsAuth Endpoint = "ccm_system_windowsauth"
	EndpointSystemTokenAuth   Endpoint = "ccm_system_tokenauth"
	EndpointSystemAltAuth     Endpoint = "ccm_system_altauth"
	EndpointSTS               Endpoint = "ccm_sts"
	EndpointMP                Endpoint = "sms_mp"
	EndpointMPWindowsAuth     Endpoint = "sms_mp_windowsauth"
	EndpointMPTokenAuth       Endpoint = "sms_mp_tokenauth"
	EndpointMPAltAuth         Endpoint = "sms_mp_altauth"
	EndpointClient            Endpoint = "ccm_client"
	EndpointIncoming          Endpoint = "ccm_incoming"
	EndpointAADAuthInfo       Endpoint = "aadauthinfo"
	EndpointServiceMetadata   Endpoint = "servicemetadata"
	EndpointContent           Endpoint = "downloadrestservice.svc"
	EndpointState             Endpoint = "postern"
)

// Path is a request path, understood. It is what every decision is made on; nobody
// looks at the text again.
type Path struct {
	Door     Door
	RoleID   uint64 // the number behind the door, 0 where there is none
	Endpoint Endpoint
	Rest     string // what follows the endpoint: "", "/request", "/.sms_aut", "/state"; lower case except for files
	Query    string // as sent, without "?"
	Original string // the whole request target as sent, for logs
}

// maxTarget bounds path and query together.
const maxTarget = 8 << 10

// place says where an endpoint may stand in a path.
type place int

const (
	direct     place = 1 << iota // without a door
	behindRole                   // behind a door and a role's number
	behindDoor                   // behind a door alone: the gateway's own
)

// route is one row of the grammar.
type route struct {
	endpoint Endpoint
	spelling string // as sent inside
	places   place
	files    bool // the rest names files, whose case counts
}

var routes = [...]route{
	{EndpointSystem, "CCM_System", direct | behindRole, false},
	{EndpointSystemWindowsAuth, "CCM_System_WindowsAuth", direct | behindRole, false},
	{EndpointSystemTokenAuth, "CCM_System_TokenAuth", direct | behindRole, false},
	{EndpointSystemAltAuth, "CCM_System_AltAuth", direct | behindRole, false},
	{EndpointSTS, "CCM_STS", direct | behindRole, false},
	{EndpointMP, "SMS_MP", direct | behindRole, false},
	{EndpointMPWindowsAuth, "SMS_MP_WindowsAuth", direct | behindRole, false},
	{EndpointMPTokenAuth, "SMS_MP_TokenAuth", direct | behindRole, false},
	{EndpointMPAltAuth, "SMS_MP_AltAuth", direct | behindRole, false},
	{EndpointClient, "CCM_Client", direct | behindRole, true},
	{EndpointIncoming, "CCM_Incoming", direct | behindRole, true},
	{EndpointAADAuthInfo, "AADAuthInfo", direct | behindDoor, false},
	{EndpointServiceMetadata, "ServiceMetadata", direct | behindDoor, false},
	{EndpointContent, "downloadrestservice.svc", direct | behindRole, false},
	{EndpointState, "postern", direct | behindRole, false},
}

// ParsePath reads a request target as it came over the wire (http.Request.RequestURI):
// path and query, compared without case, percent-encoding decoded once. What two
// parsers could understand differently is refused with [catalog.PathMalformed]:
// whole URLs, "." and "..", empty segments, segments that end in a dot or a blank,
// encoded slashes and percent signs, backslashes, characters that file names cannot
// have, control characters and everything beyond ASCII. A path that is none of ours is
// [catalog.PathUnknown], a very long one [catalog.PathTooLong].
func ParsePath(requestURI string) (Path, error) {
	if len(requestURI) > maxTarget {
		return Path{}, catalog.Errorf(catalog.PathTooLong, "a path of %d bytes", len(requestURI))
	}
	raw, query, _ := strings.Cut(requestURI, "?")
	if strings.ContainsFunc(query, func(r rune) bool { return r <= ' ' || r > '~' || r == '#' || r == '\\' }) {
		return Path{}, catalog.Errorf(catalog.PathMalformed, "a character in the query that may not stand there")
	}
	segments, err := pathSegments(raw)
	if err != nil {
		return Path{}, err
	}
	p := Path{Query: query, Original: requestURI}
	where := direct
	if p.Door = doorOf(segments[0]); p.Door != DoorDirect {
		if p.RoleID, where, segments, err = roleOf(segments[1:]); err != nil {
			return Path{}, err
		}
	}
	return p.withEndpoint(where, segments)
}

// Internal returns the path that the role itself serves, in its usual spelling and
// with the query: "/CCM_STS", "/SMS_MP/.sms_aut?MPLIST".
func (p Path) Internal() string {
	internal := (&url.URL{Path: "/" + p.Endpoint.spelling() + p.Rest}).EscapedPath()
	if p.Query != "" {
		internal += "?" + p.Query
	}
	return internal
}

// ExternalPath returns the path at a gateway of an internal path. For [DoorDirect] it
// is the internal path itself; role 0 stands for the gateway's own endpoints.
func ExternalPath(door Door, role uint64, internal string) string {
	switch {
	case door == DoorDirect:
		return internal
	case role == 0:
		return "/" + string(door) + internal
	}
	return "/" + string(door) + "/" + strconv.FormatUint(role, 10) + internal
}

func (e Endpoint) spelling() string {
	for _, r := range routes {
		if r.endpoint == e {
			return r.spelling
		}
	}
	return string(e)
}

// withEndpoint reads the endpoint and what follows it.
func (p Path) withEndpoint(where place, segments []string) (Path, error) {
	for _, r := range routes {
		if !strings.EqualFold(segments[0], r.spelling) || r.places&where == 0 {
			continue
		}
		if r.endpoint == EndpointState && where != direct && !behindDoors(segments[1:]) {
			continue
		}
		p.Endpoint = r.endpoint
		if rest := strings.Join(segments[1:], "/"); rest != "" {
			p.Rest = "/" + rest
		}
		if !r.files {
			p.Rest = strings.ToLower(p.Rest)
		}
		return p, nil
	}
	return Path{}, catalog.Errorf(catalog.PathUnknown, "no endpoint has this path")
}

// behindDoors reports whether a path of our own, without its endpoint, may stand behind a
// door: of all of them devices are told how the site root was replaced, and no more.
func behindDoors(rest []string) bool {
	return len(rest) == 1 && strings.EqualFold(rest[0], "roots")
}

func doorOf(segment string) Door {
	for _, door := range []Door{DoorMutualAuth, DoorServerAuth} {
		if strings.EqualFold(segment, string(door)) {
			return door
		}
	}
	return DoorDirect
}

// roleOf reads the role's number behind a door, where there is one.
func roleOf(segments []string) (id uint64, where place, rest []string, err error) {
	if len(segments) == 0 || segments[0] == "" {
		return 0, 0, nil, catalog.Errorf(catalog.PathUnknown, "nothing behind the door")
	}
	number := segments[0]
	if strings.Trim(number, "0123456789") != "" {
		return 0, behindDoor, segments, nil
	}
	id, err = strconv.ParseUint(number, 10, 64)
	if err != nil || number[0] == '0' {
		return 0, 0, nil, catalog.Errorf(catalog.PathMalformed, "a role's number that is none")
	}
	if len(segments) == 1 {
		return 0, 0, nil, catalog.Errorf(catalog.PathUnknown, "nothing behind the role's number")
	}
	return id, behindRole, segments[1:], nil
}

// pathSegments decodes a path and cuts it; only the last segment may be empty.
func pathSegments(raw string) ([]string, error) {
	if !strings.HasPrefix(raw, "/") {
		return nil, catalog.Errorf(catalog.PathMalformed, "a request target that does not begin with /")
	}
	path, err := decodePath(raw)
	if err != nil {
		return nil, err
	}
	segments := strings.Split(path[1:], "/")
	for i, segment := range segments {
		last := i == len(segments)-1
		if segment == "" && !last || strings.HasSuffix(segment, ".") || strings.HasSuffix(segment, " ") {
			return nil, catalog.Errorf(catalog.PathMalformed, "a segment that is empty or ends in a dot or blank")
		}
	}
	return segments, nil
}

// decodePath undoes percent-encoding once and refuses what must not be there before or
// after.
func decodePath(raw string) (string, error) {
	decoded := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c, encoded := raw[i], false
		if c == '%' {
			if i+2 >= len(raw) || !isHex(raw[i+1]) || !isHex(raw[i+2]) {
				return "", catalog.Errorf(catalog.PathMalformed, "a broken percent-encoding")
			}
			c, encoded = unhex(raw[i+1])<<4|unhex(raw[i+2]), true
			i += 2
		}
		if c < ' ' || c > '~' || strings.IndexByte(`\%"*:;<>?|#`, c) >= 0 || encoded && c == '/' || !encoded && c == ' ' {
			return "", catalog.Errorf(catalog.PathMalformed, "a character that may not stand in a path")
		}
		decoded = append(decoded, c)
	}
	return string(decoded), nil
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}
