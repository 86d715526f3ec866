package storetest

import (
	"testing"
	"time"

	"postern/site"
)

func signingKeys(t *testing.T, s site.Store) {
	first := site.KeyRecord{
		ID: "b", Purpose: "bulk", Algorithm: "RS256", Certificate: []byte{1, 0, 2}, Public: []byte{3}, Private: []byte{0, 255}, State: "active",
		NotBefore: start, NotAfter: start.Add(time.Hour), Created: start,
		Changed: start.Add(time.Minute), Epoch: 1<<63 + 5, Why: "lost; 'it'", Link: "a.b.c",
	}
	second := site.KeyRecord{ID: "a", Purpose: "ccm", Algorithm: "ES256", Private: []byte{9}, Created: start.Add(time.Second)}
	update(t, s, func(tx site.Tx) error { return tx.PutSigningKey(second) })
	update(t, s, func(tx site.Tx) error { return tx.PutSigningKey(first) })
	keys := func() []site.KeyRecord {
		return read(t, s, func(tx site.Tx) ([]site.KeyRecord, error) { return tx.SigningKeys() })
	}
	same(t, "keys, the oldest first", keys(), []site.KeyRecord{first, second})
	first.State = "retired"
	update(t, s, func(tx site.Tx) error { return tx.PutSigningKey(first) })
	same(t, "a replaced key", keys(), []site.KeyRecord{first, second})
}

func managementPoints(t *testing.T, s site.Store) {
	small := site.ManagementPoint{RoleID: 7, Name: "MP1", FQDN: "mp1.example.com", InternalURL: "https://mp1.example.com:443", HTTP: true, Names: []string{"mp", "b,\"c\""}, Created: start}
	large := site.ManagementPoint{RoleID: 1<<63 + 5, Name: "MP2"}
	update(t, s, func(tx site.Tx) error { return tx.PutManagementPoint(large) })
	update(t, s, func(tx site.Tx) error { return tx.PutManagementPoint(small) })
	points := func() []site.ManagementPoint {
		return read(t, s, func(tx site.Tx) ([]site.ManagementPoint, error) { return tx.ManagementPoints() })
	}
	same(t, "by role id", points(), []site.ManagementPoint{small, large})
	small.Names, small.HTTP = nil, false
	update(t, s, func(tx site.Tx) error { return tx.PutManagementPoint(small) })
	same(t, "replaced", points(), []site.ManagementPoint{small, large})
}

func gateways(t *testing.T, s site.Store) {
	b := site.Gateway{Name: "b", URL: "https://b.example.com", Pin: "00", Acknowledged: 12, Heard: start, Created: start, By: "anna"}
	a := site.Gateway{Name: "B", URL: "https://a.example.com"} // names sort by bytes
	update(t, s, func(tx site.Tx) error { return tx.PutGateway(b) })
	update(t, s, func(tx site.Tx) error { return tx.PutGateway(a) })
	all := func() []site.Gateway {
		return read(t, s, func(tx site.Tx) ([]site.Gateway, error) { return tx.Gateways() })
	}
	same(t, "by name", all(), []site.Gateway{a, b})
	b.Acknowledged, b.Heard, b.AcknowledgedAt, b.Certified, b.Certificate = 13, start.Add(time.Second), start.Add(time.Minute), start.Add(time.Hour), []byte{0, 255}
	update(t, s, func(tx site.Tx) error { return tx.PutGateway(b) })
	same(t, "replaced", all(), []site.Gateway{a, b})
	update(t, s, func(tx site.Tx) error { return tx.DeleteGateway("B") })
	same(t, "after deleting", all(), []site.Gateway{b})
	refused(t, s, "deleting it again", site.ErrNotFound, func(tx site.Tx) error { return tx.DeleteGateway("B") })
}

func connectors(t *testing.T, s site.Store) {
	old := site.Connector{Name: "c1", Pin: "ff", Serial: "0a", Expires: start.Add(time.Hour), Created: start}
	renewed := site.Connector{Name: "c1", Pin: "00", Serial: "0b", Expires: start.Add(2 * time.Hour), Created: start.Add(time.Minute)}
	other := site.Connector{Name: "a", Pin: "11", Created: start.Add(time.Hour)}
	for _, c := range []site.Connector{renewed, other, old} {
		update(t, s, func(tx site.Tx) error { return tx.PutConnector(c) })
	}
	all := func() []site.Connector {
		return read(t, s, func(tx site.Tx) ([]site.Connector, error) { return tx.Connectors() })
	}
	same(t, "by name, then time", all(), []site.Connector{other, old, renewed})
	old.Blocked = true
	update(t, s, func(tx site.Tx) error { return tx.PutConnector(old) })
	same(t, "replaced by pin", all(), []site.Connector{other, old, renewed})
}

func invitations(t *testing.T, s site.Store) {
	i := site.Invitation{CodeHash: "abc", Name: "c1", Expires: start, By: "anna"}
	get := func(hash string) func(site.Tx) (site.Invitation, error) {
		return func(tx site.Tx) (site.Invitation, error) { return tx.Invitation(hash) }
	}
	missing(t, s, "unknown code", get("abc"))
	update(t, s, func(tx site.Tx) error { return tx.PutInvitation(i) })
	same(t, "unused", read(t, s, get("abc")), i)
	i.Used = start.Add(time.Second)
	update(t, s, func(tx site.Tx) error { return tx.PutInvitation(i) })
	same(t, "used", read(t, s, get("abc")), i)
}
