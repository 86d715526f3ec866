package gateway

import (
	"net/http"
	"slices"
	"strings"

	"postern/auth"
	"postern/ccm"
	"postern/token"
)

// Route is one row of the table of what a gateway answers and which proof it asks for
// (design decision 3). What is in no row is never published.
type Route struct {
	Doors    []ccm.Door   // the doors by which it is reached
	Endpoint ccm.Endpoint // compared without case
	Rests    []string     // what may follow the endpoint, lower case; nil: anything
	Methods  []string     // HTTP methods
	Proof    Requirement
	Body     int64 // bytes that a request's body may have

	answer answer
}

// Requirement is the proof that a route asks for: exactly one of the first three.
type Requirement struct {
	Anyone      bool         // none; the rate is limited. A bad credential is refused all the same
	Certificate bool         // a client certificate from the uploaded roots
	Tokens      []token.Kind // one of these kinds of token, with a DPoP proof of its key
	Scopes      []string     // of a CCM token; nil: any
	Return      bool         // or, beside Tokens, a DPoP proof alone: a device whose tokens have ended. The rate is limited
}

// answer says who answers a route.
type answer int

const (
	answerForward  answer = iota // the role inside
	answerMetadata               // the gateway itself
	answerTenant
	answerRoots
)

// Routes returns the table of a gateway with default limits, for people and for tests
// to read.
func Routes() []Route { return routes(Limits{}.withDefaults()) }

func routes(l Limits) []Route {
	both := []ccm.Door{ccm.DoorMutualAuth, ccm.DoorServerAuth}
	mutual, server := both[:1], both[1:]
	read, exchange, send := []string{http.MethodGet, http.MethodHead}, []string{http.MethodPost}, []string{"CCM_POST", http.MethodPost}
	bare, request, files := []string{""}, []string{"/request"}, []string{"/.sms_aut", "/.sms_pol", "/.sms_dcm"}

	anyone := Requirement{Anyone: true}
	certificate := Requirement{Certificate: true}
	anyToken := Requirement{Tokens: anyKind()}
	exchangeable := Requirement{Tokens: []token.Kind{token.KindBulk, token.KindSelfProve, auth.KindEntra}, Return: true}
	anyCCM := Requirement{Tokens: []token.Kind{token.KindCCM}, Scopes: []string{token.ScopeRegister, token.ScopeClient}}
	registered := Requirement{Tokens: []token.Kind{token.KindCCM}, Scopes: []string{token.ScopeClient}}

	return []Route{
		{both, ccm.EndpointAADAuthInfo, bare, read, anyone, 0, answerTenant},
		{mutual, ccm.EndpointServiceMetadata, bare, read, anyone, 0, answerMetadata},
		{server, ccm.EndpointServiceMetadata, bare, read, anyToken, 0, answerMetadata},
		{both, ccm.EndpointSTS, bare, exchange, exchangeable, l.TokenBytes, answerForward},
		{both, ccm.EndpointSystemTokenAuth, request, send, anyCCM, l.MessageBytes, answerForward},
		{both, ccm.EndpointMPTokenAuth, files, read, registered, 0, answerForward},
		{both, ccm.EndpointClient, nil, read, registered, 0, answerForward},
		{both, ccm.EndpointContent, []string{"/getcontentxmlsecure"}, read, registered, 0, answerForward},
		{mutual, ccm.EndpointSystem, request, send, certificate, l.MessageBytes, answerForward},
		{mutual, ccm.EndpointMP, files, read, certificate, 0, answerForward},
		{server, ccm.EndpointState, []string{"/roots"}, read, anyone, 0, answerRoots},
	}
}

// anyKind is every kind of token that the site or its tenants make.
func anyKind() []token.Kind { return append(token.Kinds(), auth.KindEntra) }

// find returns the row of a path.
func (g *Gateway) find(p ccm.Path) (*Route, bool) {
	for i := range g.routes {
		if r := &g.routes[i]; r.matches(p) {
			return r, true
		}
	}
	return nil, false
}

func (r *Route) matches(p ccm.Path) bool {
	return r.Endpoint == p.Endpoint && slices.Contains(r.Doors, p.Door) && (r.Rests == nil || slices.Contains(r.Rests, p.Rest))
}

// Paths returns the row's paths as a person writes them, <id> standing for the number
// of a role.
func (r Route) Paths() []string {
	rests := r.Rests
	if rests == nil {
		rests = []string{"/<file>"}
	}
	var paths []string
	for _, door := range r.Doors {
		for _, rest := range rests {
			id := "/<id>"
			if r.answer == answerMetadata || r.answer == answerTenant {
				id = ""
			}
			paths = append(paths, "/"+string(door)+id+(ccm.Path{Endpoint: r.Endpoint}).Internal()+rest)
		}
	}
	return paths
}

// String says what the requirement asks for, as `postern routes` prints it.
func (q Requirement) String() string {
	switch {
	case q.Anyone:
		return "none (rate limited)"
	case q.Certificate:
		return "client certificate from the uploaded roots"
	case len(q.Tokens) == len(anyKind()):
		return "any valid token + DPoP"
	}
	kinds := make([]string, len(q.Tokens))
	for i, kind := range q.Tokens {
		kinds[i] = string(kind)
	}
	text := strings.Join(kinds, " or ") + " token + DPoP"
	if len(q.Scopes) > 0 {
		text += " (scope " + strings.Join(q.Scopes, " or ") + ")"
	}
	if q.Return {
		text += ", or DPoP alone (a registered key's return, rate limited)"
	}
	return text
}
