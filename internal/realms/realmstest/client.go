package realmstest

import (
	"fmt"
	"slices"
	"testing"

	"github.com/jcmturner/gokrb5/v8/client"
	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/credentials"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/spnego"

	"postern/internal/realms"
)

// Token makes a token for HTTP on a host, with an authenticator of its own: a test can send it twice, or to another server. The ticket is got by
// MIT's client, which follows every referral.
func Token(tb testing.TB, s *realms.Session, host string) []byte {
	tb.Helper()
	return Tokens(tb, s, host, 1)[0]
}

// Tokens makes n tokens with one ticket, each with an authenticator of its own.
func Tokens(tb testing.TB, s *realms.Session, host string, n int) [][]byte {
	tb.Helper()
	if _, err := s.Ticket(tb.Context(), host); err != nil {
		tb.Fatal(err)
	}
	all, err := tokens(s, host, n)
	if err != nil {
		tb.Fatal(err)
	}
	return all
}

func tokens(s *realms.Session, host string, n int) (all [][]byte, err error) {
	cache, err := credentials.LoadCCache(s.Cache)
	if err != nil {
		return nil, err
	}
	settings, err := config.Load(s.Config)
	if err != nil {
		return nil, err
	}
	account, err := client.NewFromCCache(cache, settings)
	if err != nil {
		return nil, err
	}
	defer account.Destroy()
	// A ticket that came by referral is kept under the name that was asked for, without a realm.
	at := slices.IndexFunc(cache.Credentials, func(c *credentials.Credential) bool {
		return slices.Equal(c.Server.PrincipalName.NameString, []string{"HTTP", host})
	})
	if at < 0 {
		return nil, fmt.Errorf("the cache holds no ticket for HTTP/%s", host)
	}
	var ticket messages.Ticket
	if err := ticket.Unmarshal(cache.Credentials[at].Ticket); err != nil {
		return nil, err
	}
	for range n {
		inner, err := spnego.NewNegTokenInitKRB5(account, ticket, cache.Credentials[at].Key)
		if err != nil {
			return nil, err
		}
		whole := spnego.SPNEGOToken{Init: true, NegTokenInit: inner}
		raw, err := whole.Marshal()
		if err != nil {
			return nil, err
		}
		all = append(all, raw)
	}
	return all, nil
}
