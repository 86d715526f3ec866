package client

import (
	"bytes"
	"context"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
)

// methodCCM is the method of messages (S0).
const methodCCM = "CCM_POST"

// message is one message to a management point.
type message struct {
	id       string // "{GUID}"
	endpoint string
	body     func(now time.Time) (string, error)
	token    string        // CCM token; "" sends it to ccm_system
	windows  *windowsProof // sends it to ccm_system_windowsauth
	source   ccm.ClientID
	signed   bool
	told     bool // the log says already that it is sent
}

// reply is the answer to a message.
type reply struct {
	id   string
	text string
	date time.Time // the server's clock
}

// deliver sends a message and returns the answer, checked to be the one to it. An
// asynchronous endpoint answers with an empty text.
func (a *Agent) deliver(ctx context.Context, c *conversation, m message) (reply, error) {
	endpoint := ccm.EndpointSystem
	switch {
	case m.windows != nil:
		endpoint = ccm.EndpointSystemWindowsAuth
	case m.token != "":
		endpoint = ccm.EndpointSystemTokenAuth
	}
	address := c.url(endpoint, "/request")
	if !m.told {
		a.logs.messageSent(c, m)
	}
	var got reply
	err := a.ask(ctx, c, func(now time.Time) (call, error) {
		contentType, body, err := a.encode(c, m, now)
		return call{method: methodCCM, url: address, contentType: contentType, body: body, token: m.token, windows: m.windows, limit: ccm.DefaultLimits().Body}, err
	}, func(from answer) (err error) {
		got, err = readReply(m, from)
		return err
	})
	if err == nil {
		a.logs.messageAnswered(c, m.id, got.id)
	}
	return got, err
}

func (a *Agent) encode(c *conversation, m message, now time.Time) (contentType string, body []byte, err error) {
	text, err := m.body(now)
	if err != nil {
		return "", nil, err
	}
	h := ccm.Header{
		ID: m.id, SourceID: string(m.source), SourceHost: c.name, TargetAddress: "mp:" + m.endpoint, ReplyTo: "direct:" + c.name + ":SccmMessaging",
		SentTime: wireTime(now), TargetHost: hostName(c.route.Host), TargetEndpoint: m.endpoint, Compressed: true, AllowRegistrationReset: true,
	}
	key := a.identity().signing
	if !m.signed {
		key = nil
	}
	return ccm.EncodeRequest(h, text, key)
}

func wireTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// readReply reads an answer and refuses one to another message (C70).
func readReply(m message, from answer) (reply, error) {
	got, err := ccm.DecodeReply(from.contentType, bytes.NewReader(from.body), ccm.DefaultLimits())
	if err != nil {
		return reply{date: from.date}, err
	}
	if got.NoReply() {
		return reply{date: from.date}, nil
	}
	to := got.Header.CorrelationID
	if strings.Trim(to, "{}0-") != "" && !strings.EqualFold(to, m.id) {
		return reply{}, catalog.Errorf(catalog.ClientReplyOther, "asked with message %s, answered to %.64q", m.id, clean(to, 64))
	}
	return reply{id: clean(got.Header.ID, 64), text: got.Text(), date: from.date}, nil
}

// newMessageID makes an id for a message.
func (a *Agent) newMessageID() (string, error) {
	id, err := ccm.NewClientID(a.config.Rand)
	return "{" + id.UUID() + "}", err
}

func fixed(text string) func(time.Time) (string, error) {
	return func(time.Time) (string, error) { return text, nil }
}

// Send sends a message signed with the device's key to an endpoint of the management
// point, with a CCM token that it renews first when it is close to expiry, and returns
// the answer's text; an asynchronous endpoint has none. Errors have the codes of the wire,
// of the client and of the server; one code is ReplyEmpty, with which a management point
// refuses a message without saying why. A message whose answer was lost is sent again by
// another way, with the same id: it may arrive twice.
func (a *Agent) Send(ctx context.Context, endpoint, body string) (string, error) {
	r := a.current()
	if !r.State.registered() {
		return "", notEnrolled()
	}
	if endpoint == "" || len(endpoint) > 128 || strings.ContainsFunc(endpoint, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", catalog.Errorf(catalog.ClientCommandValue, "%.64q is not an endpoint such as MP_PolicyManager", endpoint)
	}
	id, err := a.newMessageID() // one for all ways: whoever gets the message twice can see that
	if err != nil {
		return "", err
	}
	var got reply
	err = a.byAnyWay(ctx, func() (err error) {
		ctx, c := a.converse(ctx, a.current(), a.logs.messaging, messageLine())
		got, err = a.sendSigned(ctx, c, message{id: id, endpoint: endpoint, body: fixed(body)})
		return err
	})
	return got.text, err
}

func notEnrolled() error {
	return catalog.Errorf(catalog.ClientNotEnrolled, "run `postern client enrol` first")
}

// sendSigned sends a signed message.
func (a *Agent) sendSigned(ctx context.Context, c *conversation, m message) (got reply, err error) {
	m.source, m.signed = a.current().ClientID, true
	a.logs.messageSent(c, m) // before a token is renewed for it (S2)
	m.told = true
	err = a.withToken(ctx, c, func(token string) (err error) {
		m.token = token
		got, err = a.deliver(ctx, c, m)
		return err
	})
	return got, err
}
