package client

import (
	"context"
	"io"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/logfile"
)

// Step is one act of the agent as it ended, for a person who watches.
type Step struct {
	Hop   string // with whom: client, gateway or management point
	What  string
	OK    bool
	Took  time.Duration
	Code  string // of the failure
	Error string
	Trace string // id of the conversation, the one that the servers' logs have
}

// conversation is a row of requests that belong together: one trace, one log.
type conversation struct {
	trace logfile.Trace
	log   *logfile.Log
	agent string // User-Agent
	line  httpLine
	route route
	name  string // the device's host name

	as      *identity // that is tried instead of the device's own; nil mostly
	company bool      // a certificate of the company is shown
	checks  bool      // servers' certificates are looked up in revocation lists
	looking bool      // from outside, whether the management point is there: that it is not is no error
}

// certificate reports whether the device proves itself by its certificate in TLS, and not
// by tokens.
func (c *conversation) certificate() bool { return c.company && c.route.secure() }

// tokens reports whether the device proves itself by tokens: wherever nobody can read them
// and no certificate stands for them.
func (c *conversation) tokens() bool { return c.route.secure() && !c.company }

// url is the external URL of an endpoint, without query: what a proof names. With a
// certificate a gateway is entered by its other door (S4).
func (c *conversation) url(endpoint ccm.Endpoint, rest string) string {
	if c.certificate() && c.route.RoleID != 0 {
		return c.route.Scheme + "://" + c.route.Host + c.route.pathBy(ccm.DoorMutualAuth, endpoint, rest)
	}
	return c.route.url(endpoint, rest)
}

// converse begins a conversation and puts its trace into the context.
func (a *Agent) converse(ctx context.Context, r record, log *logfile.Log, line httpLine) (context.Context, *conversation) {
	c := &conversation{trace: a.newTrace(), log: log, agent: line.agent, line: line, route: r.Route, name: r.Name, company: r.Certificate.Certificate != "", checks: a.checksRevocation(r)}
	return logfile.WithTrace(ctx, c.trace), c
}

// to is the same conversation, written into another log from here on.
func (c *conversation) to(log *logfile.Log, line httpLine) *conversation {
	next := *c
	next.log, next.line, next.agent = log, line, line.agent
	return &next
}

func (a *Agent) newTrace() logfile.Trace {
	var random [24]byte
	if _, err := io.ReadFull(a.config.Rand, random[:]); err != nil {
		a.log.Error("read randomness", "error", err)
	}
	return logfile.NewTrace(random)
}

// step does one act and tells of it.
func (a *Agent) step(ctx context.Context, hop, what string, act func() error) error {
	began := a.config.Now()
	err := act()
	s := Step{Hop: hop, What: what, OK: err == nil, Took: a.config.Now().Sub(began), Trace: logfile.TraceOf(ctx).ID}
	if err != nil {
		s.Code, s.Error = string(catalog.CodeOf(err)), err.Error()
		a.log.ErrorContext(ctx, what, "hop", hop, "code", s.Code, "error", err)
	} else {
		a.log.InfoContext(ctx, what, "hop", hop, "took", s.Took)
	}
	a.config.Observe(s)
	return err
}
