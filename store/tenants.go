package store

import (
	"encoding/json"

	"postern/site"
)

const (
	selectTenant    = "select id, issuers, audiences, client_app, resource, disabled, key_set, keys_fetched, created, created_by from tenants"
	selectAuthority = "select fingerprint, certificate, root, subject, not_after, created, created_by from authorities"
)

var (
	putTenant    = upsert("tenants", 1, "id", "issuers", "audiences", "client_app", "resource", "disabled", "key_set", "keys_fetched", "created", "created_by")
	putAuthority = upsert("authorities", 1, "fingerprint", "certificate", "root", "subject", "not_after", "created", "created_by")
)

func scanTenant(r row, t *site.Tenant) error {
	return r.Scan(&t.ID, objectTo[[]string]{&t.Issuers}, objectTo[[]string]{&t.Audiences}, &t.ClientApp, &t.Resource, &t.Disabled, bytesTo{(*[]byte)(&t.Keys)},
		instant{&t.KeysFetched}, instant{&t.Created}, &t.By)
}

// Tenants implements site.Tenants.
func (t *tx) Tenants() ([]site.Tenant, error) {
	return many(t, selectTenant+" order by id", scanTenant)
}

// Tenant implements site.Tenants.
func (t *tx) Tenant(id string) (site.Tenant, error) {
	return one(t, selectTenant+" where id = $1", scanTenant, id)
}

// PutTenant implements site.Tenants.
func (t *tx) PutTenant(v site.Tenant) error {
	issuers, err := json.Marshal(v.Issuers)
	if err != nil {
		return err
	}
	audiences, err := json.Marshal(v.Audiences)
	if err != nil {
		return err
	}
	_, err = t.exec(putTenant, v.ID, string(issuers), string(audiences), v.ClientApp, v.Resource, v.Disabled, blob(v.Keys), micros(v.KeysFetched), micros(v.Created), v.By)
	return err
}

// DeleteTenant implements site.Tenants.
func (t *tx) DeleteTenant(id string) error {
	n, err := t.exec("delete from tenants where id = $1", id)
	return notFoundUnless(n, err)
}

func scanAuthority(r row, a *site.Authority) error {
	return r.Scan(&a.Fingerprint, bytesTo{&a.Certificate}, &a.Root, &a.Subject, instant{&a.NotAfter}, instant{&a.Created}, &a.By)
}

// Authorities implements site.Authorities.
func (t *tx) Authorities() ([]site.Authority, error) {
	return many(t, selectAuthority+" order by fingerprint", scanAuthority)
}

// PutAuthority implements site.Authorities.
func (t *tx) PutAuthority(a site.Authority) error {
	_, err := t.exec(putAuthority, a.Fingerprint, blob(a.Certificate), a.Root, a.Subject, micros(a.NotAfter), micros(a.Created), a.By)
	return err
}

// DeleteAuthority implements site.Authorities.
func (t *tx) DeleteAuthority(fingerprint string) error {
	n, err := t.exec("delete from authorities where fingerprint = $1", fingerprint)
	return notFoundUnless(n, err)
}
