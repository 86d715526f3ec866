package mp

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/catalog"
	"postern/logfile"
	"postern/token"
)

// streams counts the open streams of the site state, in all and of each connector.
type streams struct {
	open atomic.Int64

	mu sync.Mutex
	by map[string]int // by the connector's pin
}

// maxStreams is how many streams one connector may have: one for itself, and one for each of its connections to a gateway.
const maxStreams = 256

// take takes a place for a connector's stream, or answers StateStreamsFull.
func (s *streams) take(pin string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = map[string]int{}
	}
	if s.by[pin] >= maxStreams {
		return catalog.Errorf(catalog.StateStreamsFull, "%d are open", s.by[pin])
	}
	s.by[pin]++
	return nil
}

func (s *streams) give(pin string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by[pin]--; s.by[pin] <= 0 {
		delete(s.by, pin)
	}
}

// lineTimeout is how long one line of the stream may take to leave; a peer that takes longer is gone.
const lineTimeout = 30 * time.Second

// streamState gives a connector the signed site state for its gateways: a line now, a line at every change, and a signed beat between
// (design decision 4). It ends when the connector goes, is blocked, or the server stops. The state that blocks the connector is still written: it is how
// gateways behind it learn to drop it.
func (v *visit) streamState() {
	if err := v.mp.streams.take(v.hop.pin); err != nil {
		v.refuse(err)
		return
	}
	defer v.mp.streams.give(v.hop.pin)
	ctx, cancel := context.WithCancel(v.r.Context())
	defer cancel()
	moved := v.mp.site.Watch(ctx) // before the first state, so that no change falls between
	v.countStream(1)
	defer v.countStream(-1)
	v.w.Header().Set("Content-Type", "application/jose; charset=us-ascii")
	v.w.Header().Set("Cache-Control", "no-store")
	beat := time.NewTicker(v.mp.beat)
	defer beat.Stop()
	line, epoch, err := v.mp.site.State()
	if err != nil {
		v.refuse(err)
		return
	}
	for v.writeLine(line) {
		if err := v.mp.site.ConnectorAdmitted(v.hop.pin); err != nil {
			v.remember(err, "peer", v.hop.connector)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-v.mp.stopping:
			return
		case <-moved:
			line, epoch, err = v.mp.site.State()
		case <-beat.C:
			line, err = v.mp.site.Beat(epoch)
		}
		if err != nil {
			v.remember(known(err), "peer", v.hop.connector)
			return
		}
	}
}

func (v *visit) countStream(n int64) {
	open := v.mp.streams.open.Add(n)
	if hook := v.mp.config.Hooks.Streams; hook != nil {
		hook(int(open))
	}
}

// writeLine writes and flushes one line, and reports whether the peer still takes them.
func (v *visit) writeLine(line string) bool {
	control := http.NewResponseController(v.w)
	control.SetWriteDeadline(time.Now().Add(lineTimeout)) // where there are none, TCP's own time-outs end it
	if _, err := v.w.Write([]byte(line + "\n")); err != nil {
		return false
	}
	return control.Flush() == nil
}

// endStreams ends the streams of the site state, so that a server can shut down; connectors come back by themselves.
func (m *ManagementPoint) endStreams() { m.stop.Do(func() { close(m.stopping) }) }

// ackReply answers a gateway's acknowledgement: the epoch in force here and, when the gateway asked for one, its certificate, leaf first.
type ackReply struct {
	Epoch uint64   `json:"epoch"`
	Chain [][]byte `json:"chain,omitempty"` // DER, base64 in JSON
}

// acknowledge takes a gateway's signed word that it holds an epoch. The connector only carries it; the signature is the gateway's.
func (v *visit) acknowledge() {
	body, err := v.body()
	if err != nil {
		v.refuse(err)
		return
	}
	raw := string(bytes.TrimSpace(body))
	chain, err := v.mp.site.Acknowledge(v.r.Context(), raw)
	if err != nil {
		v.refuse(err)
		return
	}
	if ack, pin, err := token.OpenAck(raw); err == nil {
		v.keepGatewayLog(ack, pin)
		v.unknownKeys(ack.UnknownKeys)
	}
	v.replyJSON(ackReply{Epoch: v.mp.site.Epoch(), Chain: chain})
}

func (v *visit) replyJSON(answer any) {
	body, err := json.Marshal(answer)
	if err != nil {
		v.refuse(err)
		return
	}
	v.reply(http.StatusOK, "application/json", body)
}

// keepGatewayLog appends the lines that the gateway's CMGService.log grew by to its synchronised copy (S2). The acknowledgement has been
// verified; each line is read and written anew, so that a gateway can put nothing but log lines there.
func (v *visit) keepGatewayLog(ack token.Ack, pin string) {
	if len(ack.Log) == 0 {
		return
	}
	if len(ack.Log) > token.MaxAckLog {
		v.remember(catalog.Errorf(catalog.GatewayLogRefused, "%d bytes; the limit is %d", len(ack.Log), token.MaxAckLog), "peer", ack.Gateway)
		return
	}
	file := v.mp.logs.gateway(v.gatewayFile(pin))
	limits := logfile.DefaultReadLimits()
	limits.Bytes = token.MaxAckLog
	for record, err := range logfile.Read(bytes.NewReader(ack.Log), limits) {
		if err != nil {
			return
		}
		file.Write(record)
	}
}

// unknownKeys passes on what a listed gateway met.
func (v *visit) unknownKeys(keys []token.UnknownKey) {
	if v.mp.config.UnknownKey == nil {
		return
	}
	for _, key := range keys {
		v.mp.config.UnknownKey(key.Tenant, key.KeyID)
	}
}

// gatewayFile is the listed name of the gateway with that pin, in a form that a file name can have.
func (v *visit) gatewayFile(pin string) string {
	for _, g := range v.mp.site.Gateways() {
		if g.Pin == pin {
			return strings.ReplaceAll(g.Name, ":", "_")
		}
	}
	return "unknown"
}
