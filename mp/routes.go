package mp

import (
	"net/http"
	"slices"
	"strings"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

// Listener is a kind of listener. What a listener serves, and for which proof, is in the route table.
type Listener string

// The kinds of listener.
const (
	HTTP         Listener = "http"          // mixed mode: plain HTTP on the inside, as S0 and S1 have it
	EnhancedHTTP Listener = "enhanced-http" // TLS with a certificate that the site issued; devices prove themselves by signature or token
	HTTPS        Listener = "https"         // TLS with a certificate of the company; devices without a token need a client certificate
	// Relayed is no listener of its own: it stands for what a connector brings to one with TLS. A path with a row for it has no other for
	// connectors; a path without one is served to them as to everybody.
	Relayed Listener = "relayed"
)

// Listeners returns all kinds of listener; Relayed is none.
func Listeners() []Listener { return []Listener{HTTP, EnhancedHTTP, HTTPS} }

// Route is one line of the table: an address, where it is served, what it takes as proof, and what that is worth at most.
type Route struct {
	Methods   []string
	Path      string // as the documents spell it; matched without case
	Listeners []Listener
	Proofs    []proof.Method // any one of them; what is not here is refused, never ignored
	Ceiling   proof.Level    // the highest level that this address gives, whatever the proof
	Body      int64          // bytes of the request body at most
	Note      string         // what a reader of the table should know beside
	// Register lets a token of scope register in; it opens nothing but a registration message (design decision 11).
	Register bool

	endpoint ccm.Endpoint
	rest     string
	handle   func(*visit)
}

// Limits of request bodies.
const (
	maxMessage = 8 << 20  // the largest inventories pass
	maxTokens  = 16 << 10 // a form with one assertion
	maxJoin    = 16 << 10
)

// routeTable is the table. A proof that is only looked for inside the body, such as a message signature, is listed beside anonymous.
func routeTable() []Route {
	post, get := []string{methodCCM, http.MethodPost}, []string{http.MethodGet}
	plain, tls, all := []Listener{HTTP, EnhancedHTTP}, []Listener{EnhancedHTTP, HTTPS}, Listeners()
	pki, relayed := []Listener{HTTPS}, []Listener{Relayed}
	signed := []proof.Method{proof.Anonymous, proof.MessageSignature}
	certificate := []proof.Method{proof.PKICertificate}
	ccmToken := []proof.Method{proof.CCMToken}
	connector := []proof.Method{proof.ConnectorCertificate}

	routes := []Route{
		{Methods: post, Path: "/CCM_System/request", Listeners: plain, Proofs: signed, Ceiling: proof.LevelSecrets, Body: maxMessage, handle: (*visit).message,
			Note: "registration and location without proof; policy signed with the registered key"},
		{Methods: post, Path: "/CCM_System/request", Listeners: pki, Proofs: certificate, Ceiling: proof.LevelSecrets, Body: maxMessage, handle: (*visit).message},
		{Methods: post, Path: "/CCM_System/request", Listeners: relayed, Proofs: certificate, Ceiling: proof.LevelSecrets, Body: maxMessage, handle: (*visit).message, Note: noteRelayed},
		{Methods: post, Path: "/CCM_System_AltAuth/request", Listeners: plain, Proofs: signed, Ceiling: proof.LevelKnown, Body: maxMessage, handle: (*visit).message,
			Note: "the proofs of CCM_System, never above known"},
		{Methods: post, Path: "/CCM_System_AltAuth/request", Listeners: pki, Proofs: certificate, Ceiling: proof.LevelKnown, Body: maxMessage, handle: (*visit).message},
		{Methods: post, Path: "/CCM_System_TokenAuth/request", Listeners: tls, Proofs: ccmToken, Ceiling: proof.LevelSecrets, Body: maxMessage, Register: true, handle: (*visit).message,
			Note: "with DPoP; scope register opens MP_ClientRegistration only; policy also signed with the registered key"},
		{Methods: slices.Concat(post, get), Path: "/CCM_System_WindowsAuth/request", Listeners: all, Proofs: []proof.Method{proof.Kerberos}, Ceiling: proof.LevelManaged, Body: maxMessage, handle: (*visit).message,
			Note: "Negotiate with a ticket for this host; NTLM never; judged before the body is read"},
		{Methods: slices.Concat(post, get), Path: "/CCM_System_WindowsAuth", Listeners: all, Proofs: []proof.Method{proof.Kerberos}, Ceiling: proof.LevelManaged, Body: maxMessage, handle: (*visit).emptyAnswer,
			Note: "tools ask here whether this is a management point"},
		{Methods: []string{http.MethodPost}, Path: "/CCM_STS", Listeners: tls, Proofs: []proof.Method{proof.BulkToken, proof.SelfProveToken, proof.Entra, proof.Assertion}, Ceiling: proof.LevelSecrets, Body: maxTokens, handle: (*visit).tokens,
			Note: "tokens with DPoP; an assertion with DPoP by the registered key alone, for a device's return, or inside the assertion alone"},
	}
	for _, file := range []struct {
		name   string
		handle func(*visit)
		proofs []proof.Method
	}{{".sms_aut", (*visit).smsAut, []proof.Method{proof.Anonymous}}, {".sms_pol", (*visit).smsPol, signed}} {
		routes = append(routes,
			Route{Methods: get, Path: "/SMS_MP/" + file.name, Listeners: plain, Proofs: file.proofs, Ceiling: proof.LevelSecrets, handle: file.handle},
			Route{Methods: get, Path: "/SMS_MP/" + file.name, Listeners: pki, Proofs: certificate, Ceiling: proof.LevelSecrets, handle: file.handle},
			Route{Methods: get, Path: "/SMS_MP/" + file.name, Listeners: relayed, Proofs: certificate, Ceiling: proof.LevelSecrets, handle: file.handle, Note: noteRelayed},
			Route{Methods: get, Path: "/SMS_MP_AltAuth/" + file.name, Listeners: plain, Proofs: file.proofs, Ceiling: proof.LevelKnown, handle: file.handle},
			Route{Methods: get, Path: "/SMS_MP_AltAuth/" + file.name, Listeners: pki, Proofs: certificate, Ceiling: proof.LevelKnown, handle: file.handle},
			Route{Methods: get, Path: "/SMS_MP_TokenAuth/" + file.name, Listeners: tls, Proofs: ccmToken, Ceiling: proof.LevelSecrets, handle: file.handle, Note: "with DPoP"},
		)
	}
	routes = append(routes,
		Route{Methods: get, Path: "/postern/state", Listeners: tls, Proofs: connector, handle: (*visit).streamState, Note: "the signed site state, as it changes"},
		Route{Methods: []string{http.MethodPost}, Path: "/postern/state", Listeners: tls, Proofs: connector, Body: token.MaxAck, handle: (*visit).acknowledge, Note: "a gateway's signed acknowledgement"},
		Route{Methods: []string{http.MethodPost}, Path: renewPath, Listeners: tls, Proofs: connector, Body: maxJoin, handle: (*visit).renew, Note: "a connector's certificate, anew for the same key"},
		Route{Methods: get, Path: "/postern/roots", Listeners: all, Proofs: []proof.Method{proof.Anonymous}, handle: (*visit).roots,
			Note: "how the site root was replaced; the answer proves itself"},
		Route{Methods: []string{http.MethodPost}, Path: "/postern/join", Listeners: tls, Proofs: []proof.Method{proof.Anonymous}, Body: maxJoin, handle: (*visit).join,
			Note: "the proof is the one-time code in the body; rate limited"},
	)
	for i := range routes {
		endpoint, rest, _ := strings.Cut(strings.ToLower(routes[i].Path[1:]), "/")
		routes[i].endpoint = ccm.Endpoint(endpoint)
		if rest != "" {
			routes[i].rest = "/" + rest
		}
	}
	return routes
}

// noteRelayed is the word about certificates of which only the gateway has seen the handshake.
const noteRelayed = "the certificate that a gateway saw: level known, and more only with a DPoP proof by its key"

// methodCCM is the method of messages (S0).
const methodCCM = "CCM_POST"

// Accepts reports whether the route takes that proof.
func (route *Route) Accepts(method proof.Method) bool { return slices.Contains(route.Proofs, method) }

// relayed reports whether the route is for what a connector brings.
func (route *Route) relayed() bool { return slices.Contains(route.Listeners, Relayed) }

// kinds are the kinds of token that the route takes.
func (route *Route) kinds() []token.Kind {
	var kinds []token.Kind
	for _, k := range []struct {
		method proof.Method
		kind   token.Kind
	}{{proof.BulkToken, token.KindBulk}, {proof.SelfProveToken, token.KindSelfProve}, {proof.CCMToken, token.KindCCM}, {proof.Entra, auth.KindEntra}} {
		if route.Accepts(k.method) {
			kinds = append(kinds, k.kind)
		}
	}
	return kinds
}

// on is the listener in the table's sense of a request that came in on l.
func (m *ManagementPoint) on(l Listener, p ccm.Path, relayed bool) Listener {
	if relayed && slices.ContainsFunc(m.routes, func(route Route) bool {
		return route.endpoint == p.Endpoint && route.rest == p.Rest && route.relayed()
	}) {
		return Relayed
	}
	return l
}

// find returns the route of a path and method on a listener.
func (m *ManagementPoint) find(l Listener, p ccm.Path, method string) (*Route, []string, error) {
	if p.Door != ccm.DoorDirect {
		return nil, nil, catalog.Errorf(catalog.PathUnknown, "the path of a gateway was sent to a management point")
	}
	var allowed []string
	elsewhere := false
	for i := range m.routes {
		route := &m.routes[i]
		switch {
		case route.endpoint != p.Endpoint || route.rest != p.Rest:
		case !slices.Contains(route.Listeners, l):
			elsewhere = true
		case slices.Contains(route.Methods, method):
			return route, nil, nil
		default:
			allowed = append(allowed, route.Methods...)
		}
	}
	switch {
	case len(allowed) > 0:
		return nil, allowed, catalog.Errorf(catalog.MethodNotAllowed, "%.32q is not one of %s", method, strings.Join(allowed, ", "))
	case elsewhere:
		return nil, nil, catalog.Errorf(catalog.RouteNotOnListener, "the %s listener does not serve it", l)
	}
	return nil, nil, catalog.Errorf(catalog.PathUnknown, "a management point has nothing at this path")
}

// Routes returns the table of every management point.
func Routes() []Route { return routeTable() }
