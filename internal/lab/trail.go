package lab

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"postern/catalog"
	"postern/client"
	"postern/connector"
	"postern/gateway"
	"postern/mp"
	"postern/proof"
)

// Step is one line of a story: what happened at which hop, what was proved there, and how long it took.
type Step struct {
	Hop   string  `json:"hop"`
	What  string  `json:"what"`
	OK    bool    `json:"ok"`
	MS    float64 `json:"ms"`
	Code  string  `json:"code,omitempty"`
	Error string  `json:"error,omitempty"`
	Trace string  `json:"trace,omitempty"`
}

// trail gathers what the roles say of the requests that pass, and tells it in the order of the hops.
type trail struct {
	report func(Step)

	mu      sync.Mutex
	steps   []Step
	muted   bool
	waiting map[string][]Step // by message id, until the gateway, which ends last, has spoken
}

func newTrail(report func(Step)) *trail { return &trail{report: report, waiting: map[string][]Step{}} }

// Steps returns every step so far.
func (t *trail) all() []Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Step(nil), t.steps...)
}

func (t *trail) add(steps ...Step) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.muted {
		return
	}
	for _, s := range steps {
		t.steps = append(t.steps, s)
		if t.report != nil {
			t.report(s)
		}
	}
}

// mute leaves out what happens until it is unmuted: steps that are meant to fail.
func (t *trail) mute(muted bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.muted = muted
}

// tell runs an act and adds its step.
func (t *trail) tell(hop string, act func() (string, error)) error {
	begun := time.Now()
	what, err := act()
	t.add(stepOf(hop, what, time.Since(begun), err))
	return err
}

func stepOf(hop, what string, took time.Duration, err error) Step {
	s := Step{Hop: hop, What: what, OK: err == nil, MS: milliseconds(took)}
	if err != nil {
		s.Code, s.Error = string(catalog.CodeOf(err)), err.Error()
	}
	return s
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// keep holds the inner hops of a message back until the gateway tells.
func (t *trail) keep(id string, s Step) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting[id] = append(t.waiting[id], s)
}

func (t *trail) take(id string) []Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	inner := t.waiting[id]
	delete(t.waiting, id)
	return inner
}

func (t *trail) gateway(e gateway.Exchange) {
	inner := t.take(e.MessageID)
	s := stepOf("gateway", "", e.Duration, e.Err)
	s.Trace = e.TraceID
	s.What = fmt.Sprintf("%s %s: %s", e.Method, e.Path.Endpoint, provedText(string(e.Proof.Method), e.Proof.Scope))
	s.OK = e.Err == nil && e.Status.Code < 400
	if !s.OK && s.Error == "" {
		s.Error = fmt.Sprintf("%d %s", e.Status.Code, e.Status.Reason)
	}
	t.add(append([]Step{s}, reversed(inner)...)...)
}

// provedText says in words what a gateway or management point checked.
func provedText(method, scope string) string {
	words := map[string]string{
		"":                      "nothing had to be proved",
		"bulk-token":            "bulk registration token and proof by the new device key verified",
		"ccm-token":             "CCM token and proof by its device's key verified",
		"self-prove-token":      "self-prove token and proof by its device's key verified",
		"entra":                 "Entra token of an onboarded tenant and proof by the device key verified",
		"pki-certificate":       "client certificate of the company verified",
		"message-signature":     "message signature verified with the registered key",
		"connector-certificate": "connector certificate verified",
		"anonymous":             "nothing proved",
		"assertion":             "proof by a device's key alone verified, without a token",
	}
	text := words[method]
	if text == "" {
		text = method
	}
	if scope != "" {
		text += " (scope " + scope + ")"
	}
	return text
}

func reversed(steps []Step) []Step {
	out := make([]Step, 0, len(steps))
	for i := len(steps) - 1; i >= 0; i-- {
		out = append(out, steps[i])
	}
	return out
}

func (t *trail) connector(e connector.Exchange) {
	if e.Backend == "" {
		return
	}
	s := Step{Hop: "connector", What: fmt.Sprintf("%s: by table to https://%s", e.Endpoint, e.Backend), OK: e.Code == "", MS: milliseconds(e.Elapsed), Code: string(e.Code)}
	t.keep(e.MessageID, s)
}

// peerRoutes are asked by gateways and connectors themselves, so no gateway tells of them.
const peerRoutes = "/postern/"

func (t *trail) managementPoint(e mp.Exchange) {
	switch {
	case e.Proof.Method == proof.Kerberos || catalog.CodeOf(e.Err) == catalog.NegotiateRequired:
		t.add(windowsAuthStep(e))
		return
	case e.Connector == "" || strings.HasPrefix(e.Route, peerRoutes):
		return
	}
	what := provedText(string(e.Proof.Method), e.Proof.Scope)
	if e.Act != "" {
		what += "; " + e.Act
	}
	s := stepOf("management point", fmt.Sprintf("%s: %s", e.Route, what), e.Duration, e.Err)
	t.keep(e.MessageID, s)
}

// device returns what a device's agent reports to.
func (t *trail) device(name string) func(client.Step) {
	return func(c client.Step) {
		t.add(Step{Hop: "device " + name, What: c.What, OK: c.OK, MS: milliseconds(c.Took), Code: c.Code, Error: c.Error, Trace: c.Trace})
	}
}
