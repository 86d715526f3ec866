package connector

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"postern/catalog"
	"postern/tunnel"
)

// steady is how long a connection must have lived for the next try to be quick again.
const steady = 30 * time.Second

// keeper holds the connections to one gateway.
type keeper struct {
	gateway Gateway
	slots   []*slot
	cancel  context.CancelFunc
}

// gateways returns whom to connect to, each once.
func (c *Connector) gateways() []Gateway {
	var all []Gateway
	if c.cfg.Gateways != nil {
		all = slices.Clone(c.cfg.Gateways())
	} else if state, ok := c.state.Current(); ok {
		for _, g := range state.Gateways {
			all = append(all, Gateway{Name: g.Name, Address: hostPort(g.URL), Pin: g.Pin})
		}
	}
	slices.SortFunc(all, func(a, b Gateway) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Address, b.Address), cmp.Compare(a.Pin, b.Pin))
	})
	return slices.Compact(all)
}

// hostPort returns the address in "https://host", "https://host:port", "host:port" or "host".
func hostPort(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		address = u.Host
	}
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), "443")
}

// reconcile starts what is listed and missing, and drains what is no longer listed. No
// two keepers serve one gateway for longer than a drain takes.
func (c *Connector) reconcile(ctx context.Context) {
	listed := c.gateways()
	if len(listed) == 0 {
		c.cfg.Events.Warn("no gateway to connect to", "code", catalog.ConnectorNoGateways)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for gateway, k := range c.keepers {
		if !slices.Contains(listed, gateway) {
			c.cfg.Events.Info("gateway is no longer listed", "gateway", gateway.Name, "address", gateway.Address)
			k.cancel()
			delete(c.keepers, gateway)
		}
	}
	for _, gateway := range listed {
		if c.keepers[gateway] == nil {
			c.keepers[gateway] = c.startKeeper(ctx, gateway)
		}
	}
}

func (c *Connector) startKeeper(ctx context.Context, gateway Gateway) *keeper {
	ctx, cancel := context.WithCancel(ctx)
	k := &keeper{gateway: gateway, cancel: cancel}
	for range c.cfg.ConnectionsPerGateway {
		s := newSlot(c.cfg.Now())
		k.slots = append(k.slots, s)
		c.keeping.Go(func() { c.keep(ctx, gateway, s) })
	}
	return k
}

// stopKeepers drains all connections and waits for them.
func (c *Connector) stopKeepers() {
	c.mu.Lock()
	for _, k := range c.keepers {
		k.cancel()
	}
	c.mu.Unlock()
	c.keeping.Wait()
}

// keep holds one connection to a gateway, and opens it again for as long as ctx lives.
func (c *Connector) keep(ctx context.Context, gateway Gateway, s *slot) {
	pause := newBackoff(c.cfg.Random)
	for ctx.Err() == nil {
		began := c.cfg.Now()
		s.set(Connecting, began, nil, time.Time{})
		err := c.connection(ctx, gateway, s)
		now := c.cfg.Now()
		if ctx.Err() != nil {
			s.set(Stopped, now, nil, time.Time{})
			return
		}
		if now.Sub(began) >= steady {
			pause.reset()
		}
		wait := pause.next()
		s.set(Waiting, now, err, now.Add(wait))
		c.cfg.Log.Errorf(connectionFailed, gateway.Name, gateway.Address, err)
		c.cfg.Events.Warn("connection to gateway ended", "gateway", gateway.Name, "address", gateway.Address,
			"code", catalog.CodeOf(err), "error", err, "next_try", wait)
		select {
		case <-ctx.Done():
		case <-c.cfg.After(wait):
		}
	}
}

// connection opens one connection and serves it to its end.
func (c *Connector) connection(ctx context.Context, gateway Gateway, s *slot) error {
	conn, err := c.dial(ctx, gateway)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { s.set(Draining, c.cfg.Now(), nil, time.Time{}) })
	defer stop()
	err = tunnel.Serve(ctx, conn, &forwarder{Connector: c, gateway: gateway, draining: ctx.Done()}, tunnel.ServeConfig{
		Grace: c.cfg.Grace,
		Log:   c.cfg.Events,
		OnReady: func() {
			s.set(Connected, c.cfg.Now(), nil, time.Time{})
			c.cfg.Log.Infof(connectionOpened, gateway.Name, gateway.Address)
			c.cfg.Events.Info("connected to gateway", "gateway", gateway.Name, "address", gateway.Address)
		},
	})
	if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == remoteError {
		return catalog.Wrap(catalog.GatewayRefusedConnector, err, "gateway %s", gateway.Name)
	}
	return err
}
