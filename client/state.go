package client

import (
	"slices"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// State is how far a device has come.
type State string

// The states, in their order. See the package comment.
const (
	StateNew            State = "new"
	StateKeysMade       State = "keys-made"
	StateTokenExchanged State = "token-exchanged"
	StatePending        State = "pending"
	StateRegistered     State = "registered"
	StateReady          State = "ready"
)

func states() []State {
	return []State{StateNew, StateKeysMade, StateTokenExchanged, StatePending, StateRegistered, StateReady}
}

// registered reports whether the site knows the device.
func (s State) registered() bool { return s == StateRegistered || s == StateReady }

// record is state.json. It holds no secret.
type record struct {
	State      State        `json:"state"`
	Since      time.Time    `json:"since"`
	WaitingFor string       `json:"waiting_for,omitempty"`
	NextTry    time.Time    `json:"next_try,omitzero"`
	LastError  catalog.Code `json:"last_error,omitempty"`
	ErrorText  string       `json:"last_error_text,omitempty"`

	ClientID ccm.ClientID        `json:"client_id,omitempty"` // final once registered; before that reserved or proposed
	Approval ccm.ApprovalStatus  `json:"approval_status"`
	Message  string              `json:"registration_message,omitempty"` // id that a registration and its confirmations share
	Key      proof.KeyThumbprint `json:"key,omitempty"`

	Proof      string `json:"proof,omitempty"`       // by what the registration was proved
	NoKerberos string `json:"no_kerberos,omitempty"` // why Kerberos did not prove it

	Entra       cloud           `json:"entra,omitzero"`
	Certificate chosen          `json:"certificate,omitzero"` // of the company, in use
	Revocation  revocationCheck `json:"revocation,omitzero"`

	Initial  route        `json:"initial_route,omitzero"` // as given; Route is the one that is used
	Points   []route      `json:"initial_points,omitempty"`
	Ports    ports        `json:"ports,omitzero"`
	Chosen   string       `json:"chosen,omitempty"` // why Route; "" before one was chosen, and inside only
	Verified []string     `json:"verified,omitempty"`
	Signed   bool         `json:"signed,omitempty"` // answers of this site have come signed
	Route    route        `json:"route"`
	Anchor   anchor       `json:"anchor"`
	SiteCode ccm.SiteCode `json:"site_code,omitempty"`
	Name     string       `json:"name,omitempty"`
	Internet int          `json:"internet"` // InternetFlag (protocol.md 3.1)

	Tokens   []TokenStatus `json:"tokens,omitempty"`
	Policies []Assignment  `json:"policies,omitempty"`

	Roaming roaming `json:"roaming,omitzero"`
}

// tokens reports whether the device proves itself by tokens; see conversation.tokens.
func (r record) tokens() bool { return r.Route.secure() && r.Certificate.Certificate == "" }

func (r record) clone() record {
	r.Tokens, r.Policies = slices.Clone(r.Tokens), slices.Clone(r.Policies)
	r.Revocation.Sources = slices.Clone(r.Revocation.Sources)
	r.Points, r.Verified = slices.Clone(r.Points), slices.Clone(r.Verified)
	r.Roaming = r.Roaming.clone()
	return r
}

// check refuses what this version would misunderstand.
func (r record) check() error {
	if !slices.Contains(states(), r.State) {
		return catalog.Errorf(catalog.ClientStateDamaged, "state.json says %.40q, which is no state", r.State)
	}
	if r.ClientID != "" {
		if id, err := ccm.ParseClientID(string(r.ClientID)); err != nil || id != r.ClientID {
			return catalog.Errorf(catalog.ClientStateDamaged, "state.json has a client id that is none")
		}
	}
	for _, way := range slices.Concat([]route{r.Route, r.Initial, r.Roaming.Home}, r.Points, r.Roaming.Gateways) {
		if way.Host != "" && (checkHost(way.Host) != nil || way.Scheme != "http" && way.Scheme != "https") {
			return catalog.Errorf(catalog.ClientStateDamaged, "state.json has an address that is none")
		}
	}
	return nil
}

// TokenStatus is what is known of a cached token, without the token.
type TokenStatus struct {
	Kind    string    `json:"kind"` // ccm or self-prove
	Scope   string    `json:"scope,omitempty"`
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
	Renewal time.Time `json:"renewal,omitzero"` // of a self-prove token: from when on it is renewed; a CCM token is in time for the message that needs it
}

// Status is what `postern client status` prints.
type Status struct {
	State      State        `json:"state"`
	Since      time.Time    `json:"since"`
	WaitingFor string       `json:"waiting_for,omitempty"` // empty when nothing is waited for
	NextTry    time.Time    `json:"next_try,omitzero"`
	LastError  catalog.Code `json:"last_error,omitempty"`
	ErrorText  string       `json:"last_error_text,omitempty"`

	ClientID       ccm.ClientID        `json:"client_id,omitempty"`
	ApprovalStatus ccm.ApprovalStatus  `json:"approval_status"`
	Approval       string              `json:"approval"`              // in words
	Level          string              `json:"level"`                 // what the approval opens, in words
	Proof          string              `json:"proof,omitempty"`       // by what the registration was proved, in words
	NoKerberos     string              `json:"no_kerberos,omitempty"` // why Kerberos did not prove it: code and reason
	Key            proof.KeyThumbprint `json:"key,omitempty"`
	Protection     string              `json:"protection"` // what protects the key

	Certificate string `json:"certificate,omitempty"` // of the company, in use
	Entra       string `json:"entra,omitempty"`       // by whose token of the tenant the device proves itself
	Revocation  string `json:"revocation,omitempty"`  // how it is looked whether a server's certificate is revoked

	Gateway         string        `json:"gateway,omitempty"`          // HOST/CCM_Proxy_MutualAuth/<id>
	ManagementPoint string        `json:"management_point,omitempty"` // when there is no gateway
	Chosen          string        `json:"chosen,omitempty"`           // why that management point
	Trust           string        `json:"trust,omitempty"`            // where the anchor comes from
	Verified        []string      `json:"verified,omitempty"`         // what was verified of the site before anything was sent
	Anchor          string        `json:"anchor,omitempty"`           // by what servers are recognised
	SiteCode        ccm.SiteCode  `json:"site_code,omitempty"`
	Name            string        `json:"name,omitempty"`
	Tokens          []TokenStatus `json:"tokens,omitempty"`
	Policies        []Assignment  `json:"policies,omitempty"`
	ClockOffset     time.Duration `json:"clock_offset,omitempty"` // the site's clock less this device's, once learned

	Way           string    `json:"way,omitempty"`           // WayInside or WayInternet
	WaySince      time.Time `json:"way_since,omitzero"`      // since when
	WayWhy        string    `json:"way_why,omitempty"`       // and why
	LooksFor      string    `json:"looks_for,omitempty"`     // outside: the management point that it returns to
	Looked        time.Time `json:"looked,omitzero"`         // when it was last looked for
	NotInside     string    `json:"not_inside,omitempty"`    // what came of it
	Gateways      []string  `json:"gateways,omitempty"`      // that the site has named, as CCMHOSTNAME has them
	GatewaysHeard time.Time `json:"gateways_heard,omitzero"` // when
}

// Status returns how far the device has come, as the folder says it now: another process
// may have changed it.
func (a *Agent) Status() Status {
	r, err := a.readFile(fileState)
	if err != nil {
		r = a.current()
	}
	s := Status{
		State: r.State, Since: r.Since, WaitingFor: r.WaitingFor, NextTry: r.NextTry, LastError: r.LastError, ErrorText: r.ErrorText,
		ApprovalStatus: r.Approval, Key: r.Key, Protection: a.key.Protection(), Anchor: r.Anchor.String(), Trust: r.Anchor.origin(), Chosen: r.Chosen,
		Verified: r.Verified, Proof: r.Proof, NoKerberos: r.NoKerberos, SiteCode: r.SiteCode, Name: r.Name,
		Tokens: r.Tokens, Policies: r.Policies, ClockOffset: a.clock.difference(),
	}
	if s.Certificate = r.Certificate.String(); r.Entra.Use && r.Entra.Kind != "" {
		s.Entra = r.Entra.String()
	}
	if r.Route.secure() {
		s.Revocation = r.Revocation.say(r.Anchor)
	}
	if s.ClientID = r.ClientID; !r.State.registered() {
		s.ApprovalStatus = ccm.ApprovalUnknown
	}
	s.Approval, s.Level = s.ApprovalStatus.String(), level(s.ApprovalStatus)
	if r.Route.RoleID != 0 {
		s.Gateway = r.Route.name()
	} else if r.Route.Host != "" {
		s.ManagementPoint = r.Route.Scheme + "://" + r.Route.Host
	}
	r.fillWay(&s)
	return s
}

// level says what an approval status opens (design decision 2). The wire has no word for
// the level secrets, which an administrator gives on top of managed.
func level(status ccm.ApprovalStatus) string {
	switch status {
	case ccm.ApprovalUnknown:
		return "not registered"
	case ccm.ApprovalNone:
		return "known: waits for an administrator (postern device approve)"
	}
	return "managed, or more if an administrator said so"
}
