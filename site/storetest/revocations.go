package storetest

import (
	"testing"
	"time"

	"postern/site"
)

func keptRevocations(t *testing.T, s site.Store) {
	b := site.Revoked{Kind: site.RevokedDevice, ID: "b", Subject: "GUID:1", By: "anna", Why: "stolen", At: start}
	a := site.Revoked{Kind: site.RevokedBulkToken, ID: "b", At: start.Add(time.Second)}
	update(t, s, func(tx site.Tx) error { return tx.PutKeptRevocation(b) })
	update(t, s, func(tx site.Tx) error { return tx.PutKeptRevocation(a) })
	all := func() []site.Revoked {
		return read(t, s, func(tx site.Tx) ([]site.Revoked, error) { return tx.KeptRevocations() })
	}
	same(t, "by kind", all(), []site.Revoked{a, b})
	b.Why = "lost"
	update(t, s, func(tx site.Tx) error { return tx.PutKeptRevocation(b) })
	same(t, "replaced", all(), []site.Revoked{a, b})
	update(t, s, func(tx site.Tx) error { return tx.DeleteKeptRevocation(site.RevokedBulkToken, "b") })
	same(t, "after deleting", all(), []site.Revoked{b})
	refused(t, s, "deleting it again", site.ErrNotFound, func(tx site.Tx) error { return tx.DeleteKeptRevocation(site.RevokedBulkToken, "b") })
}
