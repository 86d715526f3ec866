package storetest

import (
	"encoding/json"
	"testing"
	"time"

	"postern/site"
	"postern/token"
)

func tenants(t *testing.T, s site.Store) {
	plain := site.Tenant{Tenant: token.Tenant{ID: "example.realm"}, Created: start}
	full := site.Tenant{
		Tenant: token.Tenant{
			ID: "2ca9a796-a1a6-43ec-88f1-5935b32155c5", Issuers: []string{"https://login.example/v2.0", "https://sts.example/"}, Audiences: []string{"https://ConfigMgrService", "api://a,\"b\""},
			ClientApp: "app", Resource: "https://ConfigMgrService", Disabled: true, Keys: json.RawMessage(`{"keys":[{"kid":"` + "\xff" + `"}]}`),
		},
		KeysFetched: start.Add(time.Minute), Created: start.Add(time.Second), By: "anna",
	}
	update(t, s, func(tx site.Tx) error { return tx.PutTenant(plain) })
	update(t, s, func(tx site.Tx) error { return tx.PutTenant(full) })
	all := func() []site.Tenant {
		return read(t, s, func(tx site.Tx) ([]site.Tenant, error) { return tx.Tenants() })
	}
	get := func(id string) func(site.Tx) (site.Tenant, error) {
		return func(tx site.Tx) (site.Tenant, error) { return tx.Tenant(id) }
	}
	same(t, "by id", all(), []site.Tenant{full, plain})
	same(t, "one of them", read(t, s, get(full.ID)), full)
	missing(t, s, "a tenant in another case", get("EXAMPLE.realm"))
	full.Disabled, full.Keys, full.Issuers = false, nil, full.Issuers[:1]
	update(t, s, func(tx site.Tx) error { return tx.PutTenant(full) })
	same(t, "replaced", all(), []site.Tenant{full, plain})
	update(t, s, func(tx site.Tx) error { return tx.DeleteTenant(full.ID) })
	same(t, "after deleting", all(), []site.Tenant{plain})
	refused(t, s, "deleting it again", site.ErrNotFound, func(tx site.Tx) error { return tx.DeleteTenant(full.ID) })
}

func authorities(t *testing.T, s site.Store) {
	root := site.Authority{Fingerprint: "ff", Certificate: []byte{0x30, 0, 0xff}, Root: true, Subject: `CN="Root"`, NotAfter: start.Add(time.Hour), Created: start, By: "anna"}
	below := site.Authority{Fingerprint: "0a", Certificate: []byte{1}, Subject: "CN=Issuing", Created: start.Add(time.Second)}
	for _, a := range []site.Authority{root, below} {
		update(t, s, func(tx site.Tx) error { return tx.PutAuthority(a) })
	}
	all := func() []site.Authority {
		return read(t, s, func(tx site.Tx) ([]site.Authority, error) { return tx.Authorities() })
	}
	same(t, "by fingerprint", all(), []site.Authority{below, root})
	root.By = "bert"
	update(t, s, func(tx site.Tx) error { return tx.PutAuthority(root) })
	same(t, "replaced", all(), []site.Authority{below, root})
	update(t, s, func(tx site.Tx) error { return tx.DeleteAuthority("0a") })
	same(t, "after deleting", all(), []site.Authority{root})
	refused(t, s, "deleting it again", site.ErrNotFound, func(tx site.Tx) error { return tx.DeleteAuthority("0a") })
}
