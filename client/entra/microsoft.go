package entra

import (
	"context"
	"crypto/x509"
	"net/http"

	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/confidential"
	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/public"
)

// microsoft asks Entra through Microsoft's library. The library's clients are made for one
// acquisition: what is to last is in the store.
type microsoft struct {
	want  Want
	http  *http.Client
	store *store
}

// scopes asks for what the application has been granted for the resource.
func (m *microsoft) scopes() []string { return []string{m.want.Resource + "/.default"} }

// noRegion keeps the library from taking another host from the environment
// (MSAL_FORCE_REGION).
const noRegion = "DisableMsalForceRegion"

func (m *microsoft) device(ctx context.Context, c credential) (entry, error) {
	proved, err := confidential.NewCredFromCert([]*x509.Certificate{c.certificate}, c.key)
	if err != nil {
		return entry{}, err
	}
	client, err := confidential.New(m.want.Authority, m.want.ClientApp, proved,
		confidential.WithHTTPClient(m.http), confidential.WithInstanceDiscovery(false), confidential.WithAzureRegion(noRegion))
	if err != nil {
		return entry{}, err
	}
	result, err := client.AcquireTokenByCredential(ctx, m.scopes())
	return entryOf(result), err
}

// public returns a client that remembers accounts in the store. The authority is one that
// an administrator or the join named, so that Microsoft is not asked whether it exists.
func (m *microsoft) public() (public.Client, error) {
	return public.New(m.want.ClientApp, public.WithAuthority(m.want.Authority),
		public.WithHTTPClient(m.http), public.WithInstanceDiscovery(false), public.WithCache(m.store))
}

func (m *microsoft) again(ctx context.Context, old entry) (entry, error) {
	client, err := m.public()
	if err != nil {
		return entry{}, err
	}
	accounts, err := client.Accounts(ctx)
	if err != nil || len(accounts) == 0 {
		return entry{}, errNobody
	}
	chosen := accounts[0]
	for _, account := range accounts {
		if account.LocalAccountID == old.Account {
			chosen = account
		}
	}
	result, err := client.AcquireTokenSilent(ctx, m.scopes(), public.WithSilentAccount(chosen))
	return entryOf(result), err
}

func (m *microsoft) signIn(ctx context.Context) (Prompt, func(context.Context) (entry, error), error) {
	client, err := m.public()
	if err != nil {
		return Prompt{}, nil, err
	}
	code, err := client.AcquireTokenByDeviceCode(ctx, m.scopes())
	if err != nil {
		return Prompt{}, nil, err
	}
	wait := func(ctx context.Context) (entry, error) {
		result, err := code.AuthenticationResult(ctx)
		return entryOf(result), err
	}
	return Prompt{Address: code.Result.VerificationURL, Code: code.Result.UserCode, Expires: code.Result.ExpiresOn}, wait, nil
}

func entryOf(result public.AuthResult) entry {
	return entry{Token: result.AccessToken, Account: harmless(result.Account.LocalAccountID, 40), Expires: result.ExpiresOn}
}
