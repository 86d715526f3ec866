package site

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	"postern/catalog"
	"postern/token"
)

// Confirmation is a gateway's word about an epoch of the site state.
type Confirmation struct {
	Gateway   string    `json:"gateway"`
	Confirmed bool      `json:"confirmed"`
	At        time.Time `json:"at,omitzero"`    // when the confirmation came, by the clock of the management point that took it
	Epoch     uint64    `json:"epoch"`          // the newest that it has confirmed
	Heard     time.Time `json:"heard,omitzero"` // when it was last heard, to within a minute
}

// Confirmations says of each listed gateway whether it has confirmed the epoch or a later one, and when. It asks the store, so that what a gateway
// said to another management point counts. A gateway confirms an epoch when it is in force there: what was revoked is refused, and its requests
// under way and its connections have been ended.
func (s *Site) Confirmations(ctx context.Context, epoch uint64) (all []Confirmation, err error) {
	var gateways []Gateway
	err = s.store.View(ctx, func(tx Tx) (err error) {
		gateways, err = tx.Gateways()
		return err
	})
	if err != nil {
		return nil, err
	}
	all = make([]Confirmation, 0, len(gateways))
	for _, g := range gateways {
		c := Confirmation{Gateway: g.Name, Confirmed: g.Acknowledged >= epoch, Epoch: g.Acknowledged, Heard: g.Heard}
		if c.Confirmed {
			c.At = g.AcknowledgedAt
		}
		all = append(all, c)
	}
	return all, nil
}

// confirmEvery is how often AwaitConfirmations looks.
const confirmEvery = 50 * time.Millisecond

// AwaitConfirmations waits until every listed gateway has confirmed the epoch, or until the time is over or ctx ends, and returns what each has said until
// then. The time is the wall clock's.
func (s *Site) AwaitConfirmations(ctx context.Context, epoch uint64, most time.Duration) (all []Confirmation, err error) {
	waiting, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	look := time.NewTicker(confirmEvery)
	defer look.Stop()
	for {
		if all, err = s.Confirmations(ctx, epoch); err != nil || allConfirmed(all) {
			return all, err
		}
		select {
		case <-waiting.Done():
			return all, ctx.Err()
		case <-look.C:
		}
	}
}

func allConfirmed(all []Confirmation) bool {
	for _, c := range all {
		if !c.Confirmed {
			return false
		}
	}
	return true
}

// ackAge is how old, or how far ahead, an acknowledgement may be.
const ackAge = 5 * time.Minute

// takenAcks remembers the acknowledgements that this process has taken while they could come again.
type takenAcks struct {
	mu    sync.Mutex
	until map[[sha256.Size]byte]time.Time
}

// maxTaken bounds the memory: listed gateways send one a minute, and one at each change.
const maxTaken = 4096

func (t *takenAcks) fresh(sum [sha256.Size]byte, now, until time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.until) >= maxTaken {
		maps.DeleteFunc(t.until, func(_ [sha256.Size]byte, until time.Time) bool { return now.After(until) })
	}
	if t.until == nil || len(t.until) >= maxTaken {
		t.until = map[[sha256.Size]byte]time.Time{}
	}
	if _, taken := t.until[sum]; taken {
		return false
	}
	t.until[sum] = until
	return true
}

// once refuses an acknowledgement that was taken before: here, and when it asks for a certificate, at any management point. The others change so little that a
// write to the database for each would cost more than they are worth.
func (s *Site) once(ctx context.Context, raw string, ack token.Ack) error {
	sum, until := sha256.Sum256([]byte(raw)), ack.At.Add(ackAge+time.Minute)
	fresh := s.acks.fresh(sum, s.now(), until)
	if fresh && len(ack.CSR) > 0 {
		var err error
		if fresh, err = s.Fresh(ctx, "ack:"+hex.EncodeToString(sum[:]), until); err != nil {
			return err
		}
	}
	if !fresh {
		return catalog.Errorf(catalog.AcknowledgementReplayed, "the acknowledgement of gateway %s of %s was taken before", ack.Gateway, ack.At.UTC().Format(time.RFC3339))
	}
	return nil
}

// notAhead looks at a gateway that has confirmed an epoch which this store does not know: the store was replaced by an older copy, and gateways would
// refuse its state as one of the past. The epoch is raised above it.
func (s *Site) notAhead(ctx context.Context, gateway Gateway, claimed uint64) error {
	if claimed <= s.Epoch() {
		return nil
	}
	var epoch uint64
	err := s.store.View(ctx, func(tx Tx) (err error) {
		epoch, err = tx.Epoch()
		return err
	})
	if err != nil || claimed <= epoch {
		return err // another management point has raised it
	}
	if claimed > s.epochNow()+uint64(ackAge.Milliseconds()) {
		return catalog.Errorf(catalog.GatewayAhead, "gateway %s confirms epoch %d; the site has %d, and the clock here allows %d", gateway.Name, claimed, epoch, s.epochNow())
	}
	err = s.store.Update(ctx, func(tx Tx) error {
		epoch, err := tx.Epoch()
		if err != nil || claimed <= epoch {
			return err
		}
		if _, err := tx.NextEpoch(max(s.epochNow(), claimed+1)); err != nil {
			return err
		}
		return s.trust(tx, actorSite, actionOlder, string(s.SiteCode()), map[string]string{
			"gateway": gateway.Name, "confirmed": strconv.FormatUint(claimed, 10), "epoch": strconv.FormatUint(epoch, 10),
		})
	})
	if err != nil {
		return err
	}
	s.log.Error("the store is older than the state of a gateway", "code", string(catalog.StoreOlder), "gateway", gateway.Name, "confirmed", claimed, "epoch", epoch)
	return s.Refresh(ctx)
}

// certifyEvery is how often a gateway gets another certificate at most. One that asks before is given the last one again: it may have lost it, or
// somebody asks in its name.
const certifyEvery = time.Hour

// issueGateway gives a gateway a certificate for its listed host.
func (s *Site) issueGateway(ctx context.Context, gateway Gateway, request *x509.CertificateRequest) (chain [][]byte, err error) {
	host := hostOf(gateway.Name)
	err = s.store.Update(ctx, func(tx Tx) error {
		listed, err := tx.Gateways()
		if err != nil {
			return err
		}
		for _, g := range listed {
			if g.Pin != gateway.Pin || g.Name != gateway.Name {
				continue
			}
			if chain = s.issuedLately(g); chain != nil {
				return nil
			}
			if chain, err = s.IssueRole(RoleGateway, host, request.PublicKey, []string{host}); err != nil {
				return err
			}
			g.Certified, g.Certificate = s.time(), nil
			for _, der := range chain {
				g.Certificate = append(g.Certificate, der...)
			}
			if err := tx.PutGateway(g); err != nil {
				return err
			}
			return s.trust(tx, actorSite, "certificate.issue", gateway.Name, map[string]string{"role": string(RoleGateway), "pin": gateway.Pin})
		}
		return catalog.Errorf(catalog.GatewayUnknown, "gateway %s was taken off the list", gateway.Name)
	})
	if err != nil {
		return nil, fmt.Errorf("certify gateway %s: %w", gateway.Name, err)
	}
	return chain, nil
}

// issuedLately returns the chain that the gateway was given within the hour by the root that signs now; nil when there is none.
func (s *Site) issuedLately(g Gateway) (chain [][]byte) {
	if age := s.now().Sub(g.Certified); age < 0 || age >= certifyEvery {
		return nil
	}
	certificates, err := x509.ParseCertificates(g.Certificate)
	if err != nil || len(certificates) < 2 || certificates[0].CheckSignatureFrom(s.current.Load().rootCert) != nil {
		return nil
	}
	for _, c := range certificates {
		chain = append(chain, c.Raw)
	}
	return chain
}
