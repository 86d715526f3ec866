package site

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/catalog"
	"postern/token"
)

// firstRoleID is where the ids in gateway paths start: 2^56, as in the seeds (protocol.md 7.1).
const firstRoleID = 1 << 56

// InvitationLife is how long a connector's one-time code is good.
const InvitationLife = 24 * time.Hour

func (m ManagementPoint) answersTo(host string) bool {
	host = strings.TrimSuffix(host, ".")
	same := func(name string) bool { return name != "" && strings.EqualFold(name, host) }
	return same(m.FQDN) || same(m.Name) || slices.ContainsFunc(m.Names, same)
}

// Enlist records a management point when it starts, and gives it its role id the first time.
func (s *Site) Enlist(ctx context.Context, point ManagementPoint) (ManagementPoint, error) {
	err := s.update(ctx, func(tx Tx) (bool, error) {
		points, err := tx.ManagementPoints()
		if err != nil {
			return false, err
		}
		known := slices.IndexFunc(points, func(m ManagementPoint) bool { return strings.EqualFold(m.FQDN, point.FQDN) })
		if known >= 0 {
			point.RoleID, point.Created = points[known].RoleID, points[known].Created
			if same(points[known], point) {
				return false, nil
			}
		} else {
			point.RoleID, point.Created = nextRoleID(points), s.time()
		}
		if err := tx.PutManagementPoint(point); err != nil {
			return false, err
		}
		return true, s.trust(tx, actorSite, "management-point.enlist", point.FQDN, map[string]string{"role-id": fmt.Sprint(point.RoleID), "url": point.InternalURL})
	})
	return point, err
}

func same(a, b ManagementPoint) bool {
	return a.Name == b.Name && a.InternalURL == b.InternalURL && a.HTTP == b.HTTP && slices.Equal(a.Names, b.Names)
}

func nextRoleID(points []ManagementPoint) uint64 {
	next := uint64(firstRoleID)
	for _, m := range points {
		next = max(next, m.RoleID)
	}
	return next + 1
}

// AddGateway lists a gateway by its URL and the pin that `postern gateway init` printed. Clients learn the URL, connectors dial it and accept only this pin.
func (s *Site) AddGateway(ctx context.Context, address, pin, by string) (Gateway, error) {
	gateway, err := parseGateway(address, pin)
	if err != nil {
		return gateway, err
	}
	gateway.By, gateway.Created = by, s.time()
	return gateway, s.update(ctx, func(tx Tx) (bool, error) {
		listed, err := tx.Gateways()
		if err != nil {
			return false, err
		}
		for _, g := range listed {
			if g.Pin == gateway.Pin && g.Name != gateway.Name {
				return false, catalog.Errorf(catalog.AlreadyExists, "the pin is the one of gateway %s, and each gateway has its own key; `postern site gateway remove` it first if it was renamed", g.Name)
			}
		}
		if err := tx.PutGateway(gateway); err != nil {
			return false, err
		}
		return true, s.trust(tx, by, "gateway.add", gateway.Name, map[string]string{"url": gateway.URL, "pin": gateway.Pin})
	})
}

func parseGateway(address, pin string) (Gateway, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !validHost(u.Hostname(), u.Port()) {
		return Gateway{}, catalog.Errorf(catalog.GatewayAddressInvalid, "%q is not a gateway address; give https://name or https://name:port", withoutSecret(address))
	}
	pin = strings.TrimPrefix(strings.ToLower(strings.TrimSpace(pin)), "sha256:")
	if sum, err := hex.DecodeString(pin); err != nil || len(sum) != sha256.Size {
		return Gateway{}, catalog.Errorf(catalog.GatewayAddressInvalid, "the pin is not 64 hexadecimal digits; copy it from `postern gateway init` on the gateway")
	}
	name := strings.ToLower(u.Hostname())
	if port := u.Port(); port != "" && port != "443" {
		host := net.JoinHostPort(name, port)
		return Gateway{Name: host, URL: "https://" + host, Pin: pin}, nil
	}
	return Gateway{Name: name, URL: "https://" + strings.TrimSuffix(net.JoinHostPort(name, ""), ":"), Pin: pin}, nil
}

// validHost reports whether a gateway's host is an address or a DNS name: it stands in log file names, certificates and replies.
func validHost(host, port string) bool {
	if n, err := strconv.ParseUint(port, 10, 16); port != "" && (err != nil || n == 0) {
		return false
	}
	if net.ParseIP(host) != nil {
		return true
	}
	labels := strings.Split(host, ".")
	return len(host) <= 253 && !slices.ContainsFunc(labels, func(label string) bool { return !validName(label) })
}

// RemoveGateway takes a gateway off the list; connectors leave it and its acknowledgements count no more.
func (s *Site) RemoveGateway(ctx context.Context, name, by, why string) error {
	if err := signed(by, why); err != nil {
		return err
	}
	name = strings.ToLower(name)
	err := s.update(ctx, func(tx Tx) (bool, error) {
		if err := tx.DeleteGateway(name); err != nil {
			return false, err
		}
		return true, s.trust(tx, by, "gateway.remove", name, map[string]string{"why": why})
	})
	if errors.Is(err, ErrNotFound) {
		return catalog.Errorf(catalog.NotFound, "no gateway is called %q; `postern site gateway list` shows them", name)
	}
	return err
}

// Acknowledge takes a gateway's signed word that it holds a site-state epoch. When the word carries a certificate request for the pinned key, the answer
// is a fresh server certificate for the gateway's listed name.
func (s *Site) Acknowledge(ctx context.Context, raw string) (chain [][]byte, err error) {
	ack, pin, err := token.OpenAck(raw)
	if err != nil {
		return nil, err
	}
	gateways := s.Gateways()
	at := slices.IndexFunc(gateways, func(g Gateway) bool { return g.Pin == pin })
	if at < 0 {
		return nil, catalog.Errorf(catalog.GatewayUnknown, "no listed gateway has the pin %s", pin)
	}
	gateway := gateways[at]
	if skew := s.now().Sub(ack.At).Abs(); skew > 5*time.Minute {
		return nil, catalog.Errorf(catalog.GatewayClock, "the acknowledgement of gateway %s is %s away from the clock here", gateway.Name, skew.Round(time.Second))
	}
	if err := s.once(ctx, raw, ack); err != nil {
		return nil, err
	}
	if err := s.notAhead(ctx, gateway, ack.Epoch); err != nil {
		return nil, err
	}
	if err := s.keepAcknowledged(ctx, gateway, ack.Epoch); err != nil {
		return nil, err
	}
	s.noteRefusals(gateway, ack)
	if len(ack.CSR) == 0 {
		return nil, nil
	}
	return s.certifyGateway(ctx, gateway, ack.CSR)
}

// keepAcknowledged writes an acknowledgement when it says something new; a beat every ten seconds is no reason for a commit.
func (s *Site) keepAcknowledged(ctx context.Context, gateway Gateway, epoch uint64) error {
	if gateway.Acknowledged == epoch && s.now().Sub(gateway.Heard) < time.Minute {
		return nil
	}
	err := s.store.Update(ctx, func(tx Tx) error {
		gateways, err := tx.Gateways()
		if err != nil {
			return err
		}
		for _, g := range gateways {
			if g.Pin == gateway.Pin {
				if g.Heard = s.time(); epoch > g.Acknowledged {
					g.Acknowledged, g.AcknowledgedAt = epoch, g.Heard
				}
				return tx.PutGateway(g)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.Refresh(ctx)
}

func (s *Site) certifyGateway(ctx context.Context, gateway Gateway, csr []byte) ([][]byte, error) {
	request, err := requestKey(csr)
	if err != nil {
		return nil, err
	}
	if pin := token.PinOf(request.RawSubjectPublicKeyInfo); pin != gateway.Pin {
		return nil, catalog.Errorf(catalog.CertificateRequestInvalid, "the certificate request is for another key than the one listed for gateway %s", gateway.Name)
	}
	return s.issueGateway(ctx, gateway, request)
}

func hostOf(name string) string {
	if host, _, err := net.SplitHostPort(name); err == nil {
		return host
	}
	return name
}

// GatewayName reports whether host (without port) is the host name of a listed gateway.
func (s *Site) GatewayName(host string) bool {
	return slices.ContainsFunc(s.Gateways(), func(g Gateway) bool { return strings.EqualFold(hostOf(g.Name), host) })
}

// Invite returns a one-time code with which the connector called name may join within [InvitationLife]. The code is kept only as a hash.
func (s *Site) Invite(ctx context.Context, name, by string) (code string, err error) {
	if !validName(name) {
		return "", catalog.Errorf(catalog.InvalidArgument, "%q is no name for a connector; use letters, digits and inner hyphens, at most 63", name)
	}
	var b [15]byte
	if _, err := io.ReadFull(s.rand, b[:]); err != nil {
		return "", err
	}
	code = base32.StdEncoding.EncodeToString(b[:])
	return code, s.store.Update(ctx, func(tx Tx) error {
		if err := tx.PutInvitation(Invitation{CodeHash: hashCode(code), Name: name, Expires: s.time().Add(InvitationLife), By: by}); err != nil {
			return err
		}
		return s.trust(tx, by, "connector.invite", name, nil)
	})
}

func hashCode(code string) string {
	sum := sha256.Sum256([]byte(strings.ToUpper(strings.TrimSpace(code))))
	return hex.EncodeToString(sum[:])
}

func validName(name string) bool {
	if name == "" || len(name) > 63 || name[0] == '-' || name[len(name)-1] == '-' {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
	})
}

// Join redeems a connector's one-time code: the request's key gets a role certificate (decision 15). A code works once.
func (s *Site) Join(ctx context.Context, code string, csr []byte) (chain [][]byte, name string, err error) {
	request, err := requestKey(csr)
	if err != nil {
		return nil, "", err
	}
	pin, now := token.PinOf(request.RawSubjectPublicKeyInfo), s.time()
	err = s.update(ctx, func(tx Tx) (bool, error) {
		invitation, err := tx.Invitation(hashCode(code))
		if errors.Is(err, ErrNotFound) || err == nil && (!invitation.Used.IsZero() || now.After(invitation.Expires)) {
			return false, catalog.Errorf(catalog.InvitationInvalid, "the code is unknown, used or older than %d hours; ask for a new one with `postern site connector invite`", int(InvitationLife.Hours()))
		}
		if err != nil {
			return false, err
		}
		if err := notBlocked(tx, pin); err != nil {
			return false, err
		}
		name = invitation.Name
		if chain, err = s.IssueRole(RoleConnector, name, request.PublicKey, nil); err != nil {
			return false, err
		}
		invitation.Used = now
		if err := tx.PutInvitation(invitation); err != nil {
			return false, err
		}
		if err := tx.PutConnector(Connector{Name: name, Pin: pin, Expires: now.Add(roleLife), Created: now}); err != nil {
			return false, err
		}
		return true, s.trust(tx, actorSite, "connector.join", name, map[string]string{"pin": pin})
	})
	return chain, name, err
}

// notBlocked refuses the key of a blocked connector: an invitation is no pardon for it.
func notBlocked(tx Tx, pin string) error {
	connectors, err := tx.Connectors()
	if err != nil {
		return err
	}
	for _, c := range connectors {
		if c.Pin == pin && c.Blocked {
			return catalog.Errorf(catalog.ConnectorBlocked, "the key is the one of connector %s, which is blocked; join with a new key", c.Name)
		}
	}
	return notKept(tx, RevokedConnector, pin, func(k Revoked) error {
		return catalog.Errorf(catalog.ConnectorBlocked, "the key is the one of connector %s, which is blocked; join with a new key", k.Subject)
	})
}

// BlockConnector blocks or unblocks every certificate of the connector called name, by a person's decision. Gateways drop its connections when the state
// reaches them.
func (s *Site) BlockConnector(ctx context.Context, name string, blocked bool, by, why string) error {
	if err := signed(by, why); err != nil {
		return err
	}
	return s.update(ctx, func(tx Tx) (bool, error) {
		connectors, err := tx.Connectors()
		if err != nil {
			return false, err
		}
		found, moved := false, false
		for _, c := range connectors {
			if c.Name != name {
				continue
			}
			found = true
			if c.Blocked == blocked {
				continue
			}
			moved, c.Blocked = true, blocked
			if err := tx.PutConnector(c); err != nil {
				return false, err
			}
		}
		if !found {
			return false, catalog.Errorf(catalog.NotFound, "no connector is called %q; `postern site connector list` shows them", name)
		}
		if !moved {
			return false, nil
		}
		return true, s.trust(tx, by, map[bool]string{true: "connector.block", false: "connector.unblock"}[blocked], name, map[string]string{"why": why})
	})
}

// ConnectorAdmitted reports why a connector with this pin is refused, or nil. The certificate itself has been checked by auth.
func (s *Site) ConnectorAdmitted(pin string) error {
	for _, c := range s.Connectors() {
		if c.Pin != pin {
			continue
		}
		if c.Blocked {
			return catalog.Errorf(catalog.ConnectorBlocked, "connector %s is blocked", c.Name)
		}
		return nil
	}
	return catalog.Errorf(catalog.ConnectorUnknown, "no connector with the pin %s has joined this site", pin)
}
