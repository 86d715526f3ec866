package store

import "postern/site"

var putKeptRevocation = upsert("kept_revocations", 2, "kind", "id", "subject", "by_whom", "why", "at")

// KeptRevocations implements site.Revocations.
func (t *tx) KeptRevocations() ([]site.Revoked, error) {
	const query = "select kind, id, subject, by_whom, why, at from kept_revocations order by kind, id"
	return many(t, query, func(r row, k *site.Revoked) error {
		return r.Scan(&k.Kind, &k.ID, &k.Subject, &k.By, &k.Why, instant{&k.At})
	})
}

// PutKeptRevocation implements site.Revocations.
func (t *tx) PutKeptRevocation(k site.Revoked) error {
	_, err := t.exec(putKeptRevocation, string(k.Kind), k.ID, k.Subject, k.By, k.Why, micros(k.At))
	return err
}

// DeleteKeptRevocation implements site.Revocations.
func (t *tx) DeleteKeptRevocation(kind site.RevokedKind, id string) error {
	n, err := t.exec("delete from kept_revocations where kind = $1 and id = $2", string(kind), id)
	return notFoundUnless(n, err)
}
