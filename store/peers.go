package store

import (
	"cmp"
	"slices"

	"postern/site"
)

var (
	putSigningKey      = upsert("signing_keys", 1, "id", "purpose", "algorithm", "certificate", "public_key", "private_key", "state", "not_before", "not_after", "created", "changed", "epoch", "why", "link")
	putManagementPoint = upsert("management_points", 1, "role_id", "name", "fqdn", "internal_url", "plain_http", "names", "created")
	putGateway         = upsert("gateways", 1, "name", "url", "pin", "acknowledged", "heard", "created", "created_by", "acknowledged_at", "certified", "certificate")
	putConnector       = upsert("connectors", 1, "pin", "name", "serial", "expires", "blocked", "created")
	putInvitation      = upsert("invitations", 1, "code_hash", "name", "expires", "used", "created_by")
)

// SigningKeys implements site.Keys.
func (t *tx) SigningKeys() ([]site.KeyRecord, error) {
	const query = "select id, purpose, algorithm, certificate, public_key, private_key, state, not_before, not_after, created, changed, epoch, why, link from signing_keys order by created, id"
	return many(t, query, func(r row, k *site.KeyRecord) error {
		var epoch int64
		err := r.Scan(&k.ID, &k.Purpose, &k.Algorithm, bytesTo{&k.Certificate}, bytesTo{&k.Public}, bytesTo{&k.Private}, &k.State, instant{&k.NotBefore}, instant{&k.NotAfter}, instant{&k.Created},
			instant{&k.Changed}, &epoch, &k.Why, &k.Link)
		k.Epoch = uint64(epoch)
		return err
	})
}

// PutSigningKey implements site.Keys.
func (t *tx) PutSigningKey(k site.KeyRecord) error {
	_, err := t.exec(putSigningKey, k.ID, k.Purpose, k.Algorithm, blob(k.Certificate), blob(k.Public), blob(k.Private), k.State, micros(k.NotBefore), micros(k.NotAfter), micros(k.Created),
		micros(k.Changed), int64(k.Epoch), k.Why, k.Link)
	return err
}

// ManagementPoints implements site.Peers.
func (t *tx) ManagementPoints() ([]site.ManagementPoint, error) {
	const query = "select role_id, name, fqdn, internal_url, plain_http, names, created from management_points"
	list, err := many(t, query, func(r row, m *site.ManagementPoint) error {
		var role int64
		err := r.Scan(&role, &m.Name, &m.FQDN, &m.InternalURL, &m.HTTP, objectTo[[]string]{&m.Names}, instant{&m.Created})
		m.RoleID = uint64(role)
		return err
	})
	// The column is signed: ids beyond its middle are negative there, so the order is made here.
	slices.SortFunc(list, func(a, b site.ManagementPoint) int { return cmp.Compare(a.RoleID, b.RoleID) })
	return list, err
}

// PutManagementPoint implements site.Peers.
func (t *tx) PutManagementPoint(m site.ManagementPoint) error {
	names, err := object(m.Names, len(m.Names))
	if err != nil {
		return err
	}
	_, err = t.exec(putManagementPoint, int64(m.RoleID), m.Name, m.FQDN, m.InternalURL, m.HTTP, names, micros(m.Created))
	return err
}

// Gateways implements site.Peers.
func (t *tx) Gateways() ([]site.Gateway, error) {
	const query = "select name, url, pin, acknowledged, heard, created, created_by, acknowledged_at, certified, certificate from gateways order by name"
	return many(t, query, func(r row, g *site.Gateway) error {
		var acknowledged int64
		err := r.Scan(&g.Name, &g.URL, &g.Pin, &acknowledged, instant{&g.Heard}, instant{&g.Created}, &g.By, instant{&g.AcknowledgedAt}, instant{&g.Certified}, bytesTo{&g.Certificate})
		g.Acknowledged = uint64(acknowledged)
		return err
	})
}

// PutGateway implements site.Peers.
func (t *tx) PutGateway(g site.Gateway) error {
	_, err := t.exec(putGateway, g.Name, g.URL, g.Pin, int64(g.Acknowledged), micros(g.Heard), micros(g.Created), g.By, micros(g.AcknowledgedAt), micros(g.Certified), blob(g.Certificate))
	return err
}

// DeleteGateway implements site.Peers.
func (t *tx) DeleteGateway(name string) error {
	n, err := t.exec("delete from gateways where name = $1", name)
	return notFoundUnless(n, err)
}

// Connectors implements site.Peers.
func (t *tx) Connectors() ([]site.Connector, error) {
	const query = "select pin, name, serial, expires, blocked, created from connectors order by name, created, pin"
	return many(t, query, func(r row, c *site.Connector) error {
		return r.Scan(&c.Pin, &c.Name, &c.Serial, instant{&c.Expires}, &c.Blocked, instant{&c.Created})
	})
}

// PutConnector implements site.Peers.
func (t *tx) PutConnector(c site.Connector) error {
	_, err := t.exec(putConnector, c.Pin, c.Name, c.Serial, micros(c.Expires), c.Blocked, micros(c.Created))
	return err
}

// Invitation implements site.Peers.
func (t *tx) Invitation(codeHash string) (site.Invitation, error) {
	const query = "select code_hash, name, expires, used, created_by from invitations where code_hash = $1"
	return one(t, query, func(r row, i *site.Invitation) error {
		return r.Scan(&i.CodeHash, &i.Name, instant{&i.Expires}, instant{&i.Used}, &i.By)
	}, codeHash)
}

// PutInvitation implements site.Peers.
func (t *tx) PutInvitation(i site.Invitation) error {
	_, err := t.exec(putInvitation, i.CodeHash, i.Name, micros(i.Expires), micros(i.Used), i.By)
	return err
}
