package site

import (
	"context"
	"crypto"

	"postern/catalog"
	"postern/token"
)

// RenewConnector gives a connector that is known and not blocked another certificate for the key that it has: the pin stays, the year begins anew. Codes:
// ConnectorBlocked, ConnectorUnknown.
func (s *Site) RenewConnector(ctx context.Context, name string, public crypto.PublicKey) (chain [][]byte, err error) {
	pin := token.Pin(public)
	err = s.update(ctx, func(tx Tx) (bool, error) {
		if err := notBlocked(tx, pin); err != nil {
			return false, err
		}
		connector, err := connectorOf(tx, name, pin)
		if err != nil {
			return false, err
		}
		if chain, err = s.IssueRole(RoleConnector, name, public, nil); err != nil {
			return false, err
		}
		connector.Expires = s.time().Add(roleLife)
		if err := tx.PutConnector(connector); err != nil {
			return false, err
		}
		return false, s.trust(tx, actorSite, "connector.renew", name, map[string]string{"pin": pin})
	})
	return chain, err
}

func connectorOf(tx Tx, name, pin string) (Connector, error) {
	connectors, err := tx.Connectors()
	if err != nil {
		return Connector{}, err
	}
	for _, c := range connectors {
		if c.Name == name && c.Pin == pin {
			return c, nil
		}
	}
	return Connector{}, catalog.Errorf(catalog.ConnectorUnknown, "the site has no connector %s with the key %s", name, pin)
}
