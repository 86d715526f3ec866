package store

import (
	"net/netip"
	"time"

	"postern/ccm"
	"postern/proof"
	"postern/site"
)

const selectReservation = "select key_thumbprint, client_id, bulk_id, created, expires from reservations"

var putReservation = insertNew("reservations", "key_thumbprint", "client_id", "bulk_id", "created", "expires")

func scanReservation(r row, v *site.Reservation) error {
	return r.Scan(&v.Key, &v.ClientID, &v.BulkID, instant{&v.Created}, instant{&v.Expires})
}

// Reservation implements site.Reservations.
func (t *tx) Reservation(key proof.KeyThumbprint) (site.Reservation, error) {
	if t.newKey != "" && t.newKey == key && t.failed == nil {
		return site.Reservation{}, site.ErrNotFound
	}
	return one(t, selectReservation+" where key_thumbprint = $1", scanReservation, string(key))
}

// ReservationByClient implements site.Reservations.
func (t *tx) ReservationByClient(id ccm.ClientID) (site.Reservation, error) {
	return one(t, selectReservation+" where client_id = $1", scanReservation, string(id))
}

// PutReservation implements site.Reservations.
func (t *tx) PutReservation(r site.Reservation) error {
	t.newKey = ""
	n, err := t.exec(putReservation, string(r.Key), string(r.ClientID), r.BulkID, micros(r.Created), micros(r.Expires))
	return existsUnless(n, err)
}

// DeleteReservation implements site.Reservations.
func (t *tx) DeleteReservation(key proof.KeyThumbprint) error {
	_, err := t.exec("delete from reservations where key_thumbprint = $1", string(key))
	return err
}

// DeleteReservationsBefore implements site.Reservations.
func (t *tx) DeleteReservationsBefore(expires time.Time) (int, error) {
	n, err := t.exec("delete from reservations where expires < $1", micros(expires))
	return int(n), err
}

const selectBulkToken = "select id, label, max_uses, uses, not_before, expires, blocked, created_by, created, last_used, networks, name_pattern from bulk_tokens"

var putBulkToken = upsert("bulk_tokens", 1, "id", "label", "max_uses", "uses", "not_before", "expires", "blocked", "created_by", "created", "last_used", "networks", "name_pattern")

func scanBulkToken(r row, v *site.BulkToken) error {
	return r.Scan(&v.ID, &v.Label, &v.MaxUses, &v.Uses, instant{&v.NotBefore}, instant{&v.Expires}, &v.Blocked, &v.CreatedBy, instant{&v.Created}, instant{&v.LastUsed},
		objectTo[[]netip.Prefix]{&v.Networks}, &v.NamePattern)
}

// BulkToken implements site.BulkTokens.
func (t *tx) BulkToken(id string) (site.BulkToken, error) {
	return one(t, selectBulkToken+" where id = $1", scanBulkToken, id)
}

// BulkTokens implements site.BulkTokens.
func (t *tx) BulkTokens() ([]site.BulkToken, error) {
	return many(t, selectBulkToken+" order by created, id", scanBulkToken)
}

// PutBulkToken implements site.BulkTokens.
func (t *tx) PutBulkToken(b site.BulkToken) error {
	networks, err := object(b.Networks, len(b.Networks))
	if err != nil {
		return err
	}
	_, err = t.exec(putBulkToken, b.ID, b.Label, int64(b.MaxUses), int64(b.Uses), micros(b.NotBefore), micros(b.Expires), b.Blocked, b.CreatedBy, micros(b.Created), micros(b.LastUsed), networks, b.NamePattern)
	return err
}

// TokenUsed implements site.BulkTokens.
func (t *tx) TokenUsed(id string, key proof.KeyThumbprint) (bool, error) {
	n, err := one(t, "select count(*) from token_uses where token_id = $1 and key_thumbprint = $2", value[int64], id, string(key))
	return n > 0, err
}

// UseToken implements site.BulkTokens. An unknown token is site.ErrNotFound.
func (t *tx) UseToken(id string, use site.TokenUse) error {
	if _, err := one(t, "select uses from bulk_tokens where id = $1", value[int64], id); err != nil {
		return err
	}
	n, err := t.exec("insert into token_uses (token_id, key_thumbprint, client_id, address, used_at) values ($1, $2, $3, $4, $5) on conflict do nothing",
		id, string(use.Key), string(use.ClientID), use.Address, micros(use.At))
	if err := existsUnless(n, err); err != nil {
		return err
	}
	_, err = t.exec("update bulk_tokens set uses = uses + 1, last_used = case when last_used < $2 then $2 else last_used end where id = $1", id, micros(use.At))
	return err
}

// TokenUses implements site.BulkTokens.
func (t *tx) TokenUses(id string, limit int) ([]site.TokenUse, error) {
	const query = "select key_thumbprint, client_id, address, used_at from token_uses where token_id = $1 order by used_at desc, id desc limit $2"
	return many(t, query, func(r row, v *site.TokenUse) error {
		return r.Scan(&v.Key, &v.ClientID, &v.Address, instant{&v.At})
	}, id, limitOf(limit))
}

// existsUnless turns an insert that inserted nothing into site.ErrExists.
func existsUnless(inserted int64, err error) error {
	if err == nil && inserted == 0 {
		return site.ErrExists
	}
	return err
}
