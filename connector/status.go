package connector

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"postern/catalog"
)

// ConnectionState is what one connection is doing.
type ConnectionState string

// The states of a connection.
const (
	Connecting ConnectionState = "connecting"
	Connected  ConnectionState = "connected"
	Waiting    ConnectionState = "waiting" // it failed; the next try is at NextTry
	Draining   ConnectionState = "draining"
	Stopped    ConnectionState = "stopped"
)

// ConnectionStatus is the state of one connection, and what went wrong last.
type ConnectionStatus struct {
	State   ConnectionState `json:"state"`
	Since   time.Time       `json:"since"`
	Code    catalog.Code    `json:"code,omitempty"`  // of the last failure, kept until the next success
	Error   string          `json:"error,omitempty"` // what a person may read of it
	NextTry time.Time       `json:"next_try,omitzero"`
}

// GatewayStatus is the state of all connections to one gateway.
type GatewayStatus struct {
	Name        string             `json:"name"`
	Address     string             `json:"address"`
	Pin         string             `json:"pin"`
	Connected   int                `json:"connected"`
	Connections []ConnectionStatus `json:"connections"`
}

// Status is the connector's health, computed from its live state.
type Status struct {
	Name            string           `json:"name"`
	Epoch           uint64           `json:"epoch"` // of the site state; 0 before the first
	Stale           bool             `json:"stale"` // the site has not been heard for 30 s
	LastHeard       time.Time        `json:"last_heard,omitzero"`
	ManagementPoint ConnectionStatus `json:"management_point"` // the stream of the site state
	Gateways        []GatewayStatus  `json:"gateways"`
}

// Healthy reports whether each gateway has a connection and the site is heard.
func (s Status) Healthy() bool {
	return !s.Stale && len(s.Gateways) > 0 &&
		!slices.ContainsFunc(s.Gateways, func(g GatewayStatus) bool { return g.Connected == 0 })
}

// Status returns the connector's health.
func (c *Connector) Status() Status {
	state, _ := c.state.Current()
	status := Status{
		Name: c.cfg.Name, Epoch: state.Epoch, Stale: c.state.Stale(), LastHeard: c.state.LastHeard(),
		ManagementPoint: c.following.status(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.keepers {
		status.Gateways = append(status.Gateways, k.status())
	}
	slices.SortFunc(status.Gateways, func(a, b GatewayStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Address, b.Address))
	})
	return status
}

func (k *keeper) status() GatewayStatus {
	g := GatewayStatus{Name: k.gateway.Name, Address: k.gateway.Address, Pin: k.gateway.Pin}
	for _, s := range k.slots {
		connection := s.status()
		if connection.State == Connected {
			g.Connected++
		}
		g.Connections = append(g.Connections, connection)
	}
	return g
}

// slot is the place of one connection.
type slot struct {
	mu sync.Mutex
	is ConnectionStatus
}

func newSlot(now time.Time) *slot {
	return &slot{is: ConnectionStatus{State: Connecting, Since: now}}
}

// set changes the state. What went wrong last stays to be read until it goes well.
func (s *slot) set(state ConnectionState, now time.Time, err error, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.is.State != state {
		s.is.State, s.is.Since = state, now
	}
	s.is.NextTry = next
	switch {
	case err != nil:
		s.is.Code, s.is.Error = catalog.CodeOf(err), catalog.Public(err)
	case state == Connected:
		s.is.Code, s.is.Error = "", ""
	}
}

func (s *slot) status() ConnectionStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.is
}
