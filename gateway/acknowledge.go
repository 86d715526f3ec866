package gateway

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"postern/catalog"
	"postern/token"
)

// acknowledged is the last word to the site that it took.
type acknowledged struct {
	mu    sync.Mutex
	epoch uint64
	at    time.Time
}

// ackTime bounds one acknowledgement; ackAnswer its answer's size.
const (
	ackTime   = 30 * time.Second
	ackAnswer = 64 << 10
)

// acknowledgeAll tells the site, until ctx ends, which state the gateway has: at every
// change, and now and then when nothing changes.
func (g *Gateway) acknowledgeAll(ctx context.Context) {
	timer := time.NewTimer(g.limits.Acknowledgements)
	defer timer.Stop()
	retry := g.limits.Retry
	due := time.Now().Add(g.limits.Acknowledgements)
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.acknowledge:
		case <-timer.C:
		case <-g.reports.heard:
			if wait := g.reports.wait(g.limits.Reports); wait > 0 {
				timer.Reset(min(wait, time.Until(due)))
				continue
			}
		}
		next := g.limits.Acknowledgements
		if err := g.acknowledgeOnce(ctx); err != nil && ctx.Err() == nil {
			g.log.Warn("acknowledgement not taken", "code", catalog.CodeOf(err), "cause", err)
			next = min(retry, next)
			retry = min(2*retry, g.limits.Acknowledgements)
		} else {
			retry = g.limits.Retry
		}
		due = time.Now().Add(next)
		timer.Reset(next)
	}
}

// acknowledgeOnce sends one acknowledgement through any connector, with a certificate
// request when a certificate is wanted and with new log lines when it is time.
func (g *Gateway) acknowledgeOnce(ctx context.Context) error {
	state, ok := g.inForce()
	if !ok || len(g.hub.Connections()) == 0 {
		return nil
	}
	ack := token.Ack{Gateway: g.names[0], Epoch: state.Epoch, At: g.now().UTC()}
	if g.certificates.wanted(state.Epoch) {
		csr, err := g.request()
		if err != nil {
			return err
		}
		ack.CSR = csr
	}
	g.reports.pending(&ack)
	lines, upTo := g.service.portion(g.limits.LogSync)
	ack.Log = lines
	raw, err := token.SignAck(g.key, ack)
	if err != nil {
		return err
	}
	chain, err := g.sendAck(ctx, raw)
	if err != nil {
		return err
	}
	g.reports.delivered(ack)
	g.service.delivered(upTo)
	g.acked.note(state.Epoch, ack.At)
	if len(ack.CSR) == 0 || len(chain) == 0 {
		return nil
	}
	if err := g.certificates.receive(chain, state.Epoch); err != nil {
		return err
	}
	g.log.Info("certificate of the site in use", "until", g.certificates.forDevices().Leaf.NotAfter)
	return nil
}

// sendAck returns the chain in the answer, nil when there is none.
func (g *Gateway) sendAck(ctx context.Context, raw string) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, ackTime)
	defer cancel()
	request := g.toSite(ctx, http.MethodPost, strings.NewReader(raw))
	request.Header.Set("Content-Type", "application/jose")
	response, err := g.hub.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, ackAnswer))
	if err != nil {
		return nil, catalog.Wrap(catalog.GatewayAcknowledgement, err, "the answer broke off")
	}
	if response.StatusCode != http.StatusOK {
		return nil, catalog.Errorf(catalog.GatewayAcknowledgement, "the site answered with status %d", response.StatusCode)
	}
	return parseReply(body)
}

// maxChain bounds the certificates in one answer.
const maxChain = 4

// parseReply reads the site's answer: the epoch there, which the stream tells better, and
// the chain that was asked for, leaf first, DER.
func parseReply(body []byte) ([][]byte, error) {
	var reply struct {
		Epoch uint64   `json:"epoch"`
		Chain [][]byte `json:"chain"`
	}
	if err := json.Unmarshal(body, &reply); err != nil {
		return nil, catalog.Wrap(catalog.GatewayAcknowledgement, err, "the site's answer cannot be read")
	}
	if len(reply.Chain) > maxChain {
		return nil, catalog.Errorf(catalog.GatewayCertificateRefused, "a chain of %d certificates, the limit is %d", len(reply.Chain), maxChain)
	}
	return reply.Chain, nil
}

func (a *acknowledged) note(epoch uint64, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.epoch, a.at = epoch, at
}

func (a *acknowledged) last() (epoch uint64, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.epoch, a.at
}
