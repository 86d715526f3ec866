package entra

import (
	"context"

	"postern/client"
)

// ForClient gives the broker as an agent takes it (client.Config.Entra).
func (b *Broker) ForClient() client.Entra { return agentBroker{b} }

// agentBroker is a broker in the client's words.
type agentBroker struct{ *Broker }

// TenantID implements client.Entra.
func (b agentBroker) TenantID() string { return b.Join().TenantID }

// Token implements client.Entra.
func (b agentBroker) Token(ctx context.Context, want client.EntraWant) (client.EntraToken, error) {
	got, err := b.Broker.Token(ctx, Want{TenantID: want.TenantID, ClientApp: want.ClientApp, Resource: want.Resource, Authority: want.Authority, Log: want.Log})
	return client.EntraToken{Raw: got.Raw, Kind: got.Kind, Account: got.Account, Expires: got.Expires}, err
}
