package kerberos

import (
	"testing"

	"postern/auth"
	"postern/catalog"
)

// Our own KDC alone speaks for our own accounts: what came back through another realm, which is trusted for its own computers, is refused (C83).
func TestAnotherRealmHasNoWordOnOurAccounts(t *testing.T) {
	keys := wellKeys(t, 18)
	a := newAcceptor(t, reread(t, keys), nil)
	f := newForge(keys)
	f.realm, f.authRealm, f.transitKind, f.transit = parent, parent, 1, child
	refused(t, a, f.token(t), auth.Channel{}, catalog.KerberosTransitNotTrusted, child, true)
}

// The keytab's realm is trusted without being listed, so that its short name is taken too.
func TestAPACCannotTakeTheNameOfTheKeytabsRealm(t *testing.T) {
	keys := wellKeys(t, 18)
	f := newForge(keys).withPAC(t, func(p *pacForge) { p.logon = logonInfo("A2003", 1103) })
	refused(t, newAcceptor(t, reread(t, keys), nil), f.token(t), auth.Channel{}, catalog.KerberosPACClient, parent, true)
}
