package kerberos

import (
	"testing"

	"postern/auth"
	"postern/catalog"
)

func FuzzAccept(f *testing.F) {
	keys := wellKeys(f, 17)
	a := newAcceptor(f, reread(f, keys), func(c *Config) { c.AllowRC4 = true })
	good := newForge(keys)
	good.kind, good.sessionKind = 17, 17
	f.Add(good.token(f))
	f.Add(good.withPAC(f, nil).token(f))
	f.Fuzz(func(t *testing.T, token []byte) {
		got, _, err := a.Accept(t.Context(), token, auth.Channel{})
		switch {
		case err != nil && catalog.CodeOf(err) == "":
			t.Errorf("an error without a code: %v", err)
		case err == nil && got.Ticket.Account != account:
			t.Errorf("accepted as %s", got.Ticket.Account)
		}
	})
}

// FuzzSealed reads what lies under the seals, as if a KDC that is trusted went mad.
func FuzzSealed(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		if parsed, err := parseTicket(data); err == nil {
			parsed.transitedRealms(parent)
			findAuthorization(parsed.data, 128, maxNesting, func([]byte) bool { return true })
		}
		if parsed, err := parseAuthenticator(data); err == nil {
			parseChecksum(parsed)
		}
	})
}

func FuzzKeytab(f *testing.F) {
	f.Add(marshalKeytab(f, wellKeys(f, 17, 23)))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ParseKeytab(data)
		if err != nil {
			if catalog.CodeOf(err) == "" {
				t.Errorf("an error without a code: %v", err)
			}
			return
		}
		k.Audit()
		if len(k.keys) > maxKeys {
			t.Errorf("%d keys", len(k.keys))
		}
	})
}

func FuzzPAC(f *testing.F) {
	keys := wellKeys(f, 17)
	good := newForge(keys)
	good.kind = 17
	f.Add(newPAC(good).build(f, good.serviceKey(f)))
	f.Add(logonInfo("CHILD", 1103))
	secret := reread(f, keys).candidates(parent, 17, 4)[0].secret
	f.Fuzz(func(t *testing.T, data []byte) {
		parseLogon(data)
		parsePACClient(data)
		if p, ok := parsePAC(data); ok {
			p.verify(&secret)
			parseLogon(p.logon)
			parsePACClient(p.client)
		}
	})
}
