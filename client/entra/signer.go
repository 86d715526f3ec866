package entra

import (
	"context"
	"time"

	"postern/client"
	"postern/logfile"
	"postern/proof"
)

// Signer gets tokens of a tenant for this device. [Broker] is one; Windows' own would be
// another.
type Signer interface {
	// Token returns a token that lasts. Errors have the codes of the catalogue's area
	// entraclient, or are ctx's. It ends within a bounded time, unless a person is asked:
	// then within that of the sign-in, or with ctx.
	Token(ctx context.Context, want Want) (Token, error)
}

// Want says which token is wanted. Empty fields but ClientApp and Resource are those of
// the join.
type Want struct {
	User      bool   // a user's; otherwise the device's, and a user's when that fails
	TenantID  string // must be the tenant of the join, when given
	ClientApp string // AADCLIENTAPPID
	Resource  string // AADRESOURCEURI
	Authority string // issuer that the site names; it must be the join's provider

	// Log takes the lines of S2: ccmsetup.log during installation. Nil is the broker's own,
	// ADALOperationProvider.log.
	Log *logfile.Log
}

// Token is what was got.
type Token struct {
	Raw     client.Secret
	Kind    string // KindDevice or KindUser
	Account string // whose it is, for lines in logs: id of the device or of the user
	Expires time.Time
}

// The kinds of token, in the words of CCM_STS.log (S2).
const (
	KindDevice = proof.CloudDevice
	KindUser   = proof.CloudUser
)
