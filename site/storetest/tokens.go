package storetest

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"postern/proof"
	"postern/site"
)

func reservation(n int) site.Reservation {
	return site.Reservation{Key: key(n), ClientID: clientID(n), BulkID: fmt.Sprint("bulk ", n), Created: start, Expires: start.Add(time.Duration(n) * time.Hour)}
}

func reservations(t *testing.T, s site.Store) {
	for n := 1; n <= 3; n++ {
		update(t, s, func(tx site.Tx) error { return tx.PutReservation(reservation(n)) })
	}
	same(t, "by key", read(t, s, func(tx site.Tx) (site.Reservation, error) { return tx.Reservation(key(1)) }), reservation(1))
	same(t, "by client id", read(t, s, func(tx site.Tx) (site.Reservation, error) { return tx.ReservationByClient(clientID(2)) }), reservation(2))
	missing(t, s, "unknown key", func(tx site.Tx) (site.Reservation, error) { return tx.Reservation(key(9)) })
	missing(t, s, "unknown client id", func(tx site.Tx) (site.Reservation, error) { return tx.ReservationByClient(clientID(9)) })

	sameKey, sameClient := reservation(1), reservation(1)
	sameKey.ClientID, sameClient.Key = clientID(8), key(8)
	refused(t, s, "a second reservation of a key", site.ErrExists, func(tx site.Tx) error { return tx.PutReservation(sameKey) })
	refused(t, s, "a second key for a client id", site.ErrExists, func(tx site.Tx) error { return tx.PutReservation(sameClient) })
	refused(t, s, "the same again", site.ErrExists, func(tx site.Tx) error { return tx.PutReservation(reservation(1)) })

	dropped := 0
	update(t, s, func(tx site.Tx) (err error) {
		dropped, err = tx.DeleteReservationsBefore(start.Add(2 * time.Hour))
		return err
	})
	if dropped != 1 {
		t.Errorf("dropped %d that expired before the second does, want 1", dropped)
	}
	missing(t, s, "an expired one", func(tx site.Tx) (site.Reservation, error) { return tx.Reservation(key(1)) })
	update(t, s, func(tx site.Tx) error { return tx.DeleteReservation(key(2)) })
	update(t, s, func(tx site.Tx) error { return tx.DeleteReservation(key(2)) })
	missing(t, s, "a deleted one", func(tx site.Tx) (site.Reservation, error) { return tx.ReservationByClient(clientID(2)) })
	update(t, s, func(tx site.Tx) error { return tx.PutReservation(reservation(2)) })
	same(t, "the one nobody touched", read(t, s, func(tx site.Tx) (site.Reservation, error) { return tx.Reservation(key(3)) }), reservation(3))
}

func bulkToken(n int) site.BulkToken {
	return site.BulkToken{
		ID: fmt.Sprint("token-", n), Label: fmt.Sprint("label ", n), MaxUses: n, NotBefore: start, Expires: start.Add(time.Hour), CreatedBy: "anna",
		Created: start.Add(time.Duration(-n) * time.Minute),
	}
}

func bulkTokens(t *testing.T, s site.Store) {
	first, second := bulkToken(1), bulkToken(2)
	update(t, s, func(tx site.Tx) error { return tx.PutBulkToken(first) })
	update(t, s, func(tx site.Tx) error { return tx.PutBulkToken(second) })
	same(t, "tokens, the oldest first", read(t, s, func(tx site.Tx) ([]site.BulkToken, error) { return tx.BulkTokens() }), []site.BulkToken{second, first})
	missing(t, s, "unknown token", func(tx site.Tx) (site.BulkToken, error) { return tx.BulkToken("no such token") })

	use := func(n int) site.TokenUse {
		return site.TokenUse{Key: key(n), ClientID: clientID(n), Address: fmt.Sprint("192.0.2.", n), At: start.Add(time.Duration(n) * time.Second)}
	}
	for n := 1; n <= 3; n++ {
		update(t, s, func(tx site.Tx) error { return tx.UseToken(second.ID, use(n)) })
	}
	refused(t, s, "a second use by one key", site.ErrExists, func(tx site.Tx) error { return tx.UseToken(second.ID, use(2)) })
	refused(t, s, "a use of an unknown token", site.ErrNotFound, func(tx site.Tx) error { return tx.UseToken("no such token", use(2)) })
	update(t, s, func(tx site.Tx) error { return tx.UseToken(first.ID, use(2)) }) // another token is another use

	second.Uses, second.LastUsed = 3, use(3).At
	same(t, "used token", read(t, s, func(tx site.Tx) (site.BulkToken, error) { return tx.BulkToken(second.ID) }), second)
	uses := func(limit int) []site.TokenUse {
		return read(t, s, func(tx site.Tx) ([]site.TokenUse, error) { return tx.TokenUses(second.ID, limit) })
	}
	same(t, "uses, the newest first", uses(0), []site.TokenUse{use(3), use(2), use(1)})
	same(t, "the two newest uses", uses(2), []site.TokenUse{use(3), use(2)})
	for n, want := range map[int]bool{1: true, 4: false} {
		used := read(t, s, func(tx site.Tx) (bool, error) { return tx.TokenUsed(second.ID, key(n)) })
		same(t, fmt.Sprint("used by key ", n), used, want)
	}
	if read(t, s, func(tx site.Tx) (bool, error) { return tx.TokenUsed(second.ID, proof.KeyThumbprint("")) }) {
		t.Error("used by no key")
	}

	second.Blocked, second.Label = true, "blocked"
	second.Networks, second.NamePattern = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}, "WK-?*.Corp.Example"
	update(t, s, func(tx site.Tx) error { return tx.PutBulkToken(second) })
	same(t, "replaced token", read(t, s, func(tx site.Tx) (site.BulkToken, error) { return tx.BulkToken(second.ID) }), second)
	same(t, "uses of a replaced token", len(uses(0)), 3)
}
