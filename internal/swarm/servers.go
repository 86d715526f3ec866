package swarm

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync/atomic"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/gateway"
	"postern/internal/role"
	"postern/site"
)

// The words between a fleet and its servers: one JSON document on a line each way.
type order struct {
	Do    string        `json:"do"` // one of the orders
	Sleep time.Duration `json:"sleep,omitempty"`
}

const (
	orderUsage   = "usage"
	orderCount   = "count" // the site's records, too
	orderStop    = "stop-gateway"
	orderStart   = "start-gateway"
	orderAdvance = "advance" // the clock jumps while every role is down
	orderEnd     = "end"
)

// report answers every order, and is said once the servers are up.
type report struct {
	Gateway  string        `json:"gateway,omitempty"`
	Inside   string        `json:"inside,omitempty"`
	Root     []byte        `json:"root,omitempty"`
	Bulk     string        `json:"bulk,omitempty"`
	Spent    time.Duration `json:"spent"`
	Resident int64         `json:"resident"`
	Devices  devices       `json:"devices"`
	Error    string        `json:"error,omitempty"`
}

// devices counts the site's records.
type devices struct {
	All         int `json:"all"`
	Approved    int `json:"approved"`
	Quarantined int `json:"quarantined"`
}

// servers are the real roles in this process, on a clock of their own.
type servers struct {
	dir    string
	offset atomic.Int64 // of the clock
	joined int          // how many connectors have been

	point, gateway, connector *role.Running
	pointConfig               role.Config
	gatewayConfig             role.Config
	root                      string
}

const actor = "swarm"

// Serve runs the servers of a fleet until the fleet says so or ctx ends. [Run] starts it in a process of its own.
func Serve(ctx context.Context, dir string, in io.Reader, out io.Writer) error {
	role.UseProcessors()
	s := &servers{dir: dir}
	defer s.stop()
	first, err := s.begin(ctx)
	if err != nil {
		first.Error = err.Error()
	}
	said := json.NewEncoder(out)
	if err := errors.Join(said.Encode(first), err); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return fmt.Errorf("read an order: %w", err)
		}
		if o.Do == orderEnd {
			return nil
		}
		answer, err := s.carryOut(ctx, o)
		if err != nil {
			answer.Error = err.Error()
		}
		if err := said.Encode(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (s *servers) now() time.Time { return time.Now().Add(time.Duration(s.offset.Load())) }

func (s *servers) begin(ctx context.Context) (report, error) {
	inside, err := role.FreeAddress()
	if err != nil {
		return report{}, err
	}
	made, err := role.InitSite(ctx, role.NewSite{Dir: filepath.Join(s.dir, "site"), Code: "SWM", HTTPS: inside, Actor: actor}, role.Protection{}, s.now)
	if err != nil {
		return report{}, err
	}
	s.root = made.SiteRoot
	if s.pointConfig, err = role.Load(made.Config); err != nil {
		return report{}, err
	}
	address, err := role.FreeAddress()
	if err != nil {
		return report{}, err
	}
	door, err := role.InitGateway(role.NewGateway{Dir: filepath.Join(s.dir, "gateway"), Name: "localhost", SiteRoot: s.root, Listen: address}, role.Protection{})
	if err != nil {
		return report{}, err
	}
	if s.gatewayConfig, err = role.Load(door.Config); err != nil {
		return report{}, err
	}
	if s.point, err = role.StartManagementPoint(ctx, s.pointConfig, role.Environment{Now: s.now}); err != nil {
		return report{}, err
	}
	if _, err := s.site().AddGateway(ctx, door.URL, door.Pin, actor); err != nil {
		return report{}, err
	}
	if err := errors.Join(s.startGateway(ctx), s.join(ctx)); err != nil {
		return report{}, err
	}
	bulk, _, err := s.site().NewBulkToken(ctx, site.NewBulk{Label: actor, By: actor})
	if err != nil {
		return report{}, err
	}
	roleID := s.site().ManagementPoints()[0].RoleID
	return report{
		Gateway: door.URL + ccm.ExternalPath(ccm.DoorServerAuth, roleID, ""), Inside: s.site().ManagementPoints()[0].InternalURL,
		Root: s.site().RootCertificate(), Bulk: bulk,
	}, s.ready(ctx)
}

func (s *servers) site() *site.Site { return s.point.Site }

func (s *servers) startGateway(ctx context.Context) (err error) {
	s.gateway, err = role.StartGateway(ctx, s.gatewayConfig, role.Environment{Now: s.now})
	return err
}

// join makes a connector anew: after a year its certificate has ended, as one would have that was off so long.
func (s *servers) join(ctx context.Context) error {
	s.joined++
	name := fmt.Sprint("swarm", s.joined)
	code, err := s.site().Invite(ctx, name, actor)
	if err != nil {
		return err
	}
	ask := role.NewConnector{Dir: filepath.Join(s.dir, name), ManagementPoint: s.site().ManagementPoints()[0].InternalURL, Code: code + "." + s.root}
	made, err := role.JoinConnector(ctx, ask, role.Protection{}, s.now)
	if err != nil {
		return err
	}
	config, err := role.Load(made.Config)
	if err != nil {
		return err
	}
	s.connector, err = role.StartConnector(ctx, config, role.Environment{Now: s.now})
	return err
}

// readyWithin is how long the servers may take until a device's request can be carried.
const readyWithin = time.Minute

func (s *servers) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		status := s.gateway.Gateway.Status()
		if status.Healthy && status.Certificate.Source == gateway.CertificateSite && s.now().Before(status.Certificate.NotAfter) {
			return nil
		}
		select {
		case <-ctx.Done():
			return catalog.Errorf(catalog.InternalError, "the gateway was not ready within %s: %v", readyWithin, status.Problems)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *servers) carryOut(ctx context.Context, o order) (report, error) {
	switch o.Do {
	case orderUsage:
		return report{Spent: spent(), Resident: resident()}, nil
	case orderCount:
		return s.count(ctx)
	case orderStop:
		return report{}, stopped(&s.gateway)
	case orderStart:
		return report{}, s.startGateway(ctx)
	case orderAdvance:
		return report{}, s.advance(ctx, o.Sleep)
	}
	return report{}, fmt.Errorf("%q is no order", o.Do)
}

// advance stops everything, turns the clock on and starts everything again.
func (s *servers) advance(ctx context.Context, by time.Duration) (err error) {
	if err := s.stop(); err != nil {
		return err
	}
	s.offset.Add(int64(by))
	if s.point, err = role.StartManagementPoint(ctx, s.pointConfig, role.Environment{Now: s.now}); err != nil {
		return err
	}
	if err := errors.Join(s.startGateway(ctx), s.join(ctx)); err != nil {
		return err
	}
	return s.ready(ctx)
}

func (s *servers) count(ctx context.Context) (r report, err error) {
	s.site().Flush(ctx)
	var after ccm.ClientID
	for {
		page, err := s.site().Devices(ctx, site.DeviceFilter{After: after, Limit: 1000})
		if err != nil || len(page) == 0 {
			return r, err
		}
		for _, d := range page {
			r.Devices.All++
			if d.Approval.Status == ccm.ApprovalApproved {
				r.Devices.Approved++
			}
			if d.Quarantined() {
				r.Devices.Quarantined++
			}
		}
		after = page[len(page)-1].ClientID
	}
}

func (s *servers) stop() error {
	return errors.Join(stopped(&s.connector), stopped(&s.gateway), stopped(&s.point))
}

func stopped(r **role.Running) error {
	if *r == nil {
		return nil
	}
	err := (*r).Stop()
	*r = nil
	return err
}

// trustOf is the pool with the site root alone.
func trustOf(root []byte) (*x509.CertPool, error) {
	certificate, err := x509.ParseCertificate(root)
	if err != nil {
		return nil, fmt.Errorf("read the site root: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	return pool, nil
}
