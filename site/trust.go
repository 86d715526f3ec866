package site

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"
)

// Sum returns the entry's hash: SHA-256, hex, over every field but Hash, each preceded by its length.
func (e TrustEntry) Sum() string {
	text := make([]byte, 0, 1024) // enough for nearly every entry
	for _, field := range [...]string{
		strconv.FormatUint(e.Sequence, 10), e.At.UTC().Format(time.RFC3339Nano), e.Actor, e.Action, e.Subject, e.Detail, e.Previous,
	} {
		text = strconv.AppendInt(text, int64(len(field)), 10)
		text = append(append(text, ':'), field...)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// Actions of the site itself when the store turned out to be an older copy.
const (
	actionOlder    = "site.older"
	actionKept     = "revocation.kept"
	actionRootKept = "root.kept"
)

// trust appends one entry to the trust log inside the transaction of the change that it records.
func (s *Site) trust(tx Tx, actor, action, subject string, detail map[string]string) error {
	head, err := tx.TrustHead()
	if err != nil {
		return err
	}
	entry := TrustEntry{
		Sequence: head.Sequence + 1,
		At:       s.time(),
		Actor:    actor,
		Action:   action,
		Subject:  subject,
		Detail:   FactsJSON(detail),
		Previous: head.Hash,
	}
	entry.Hash = entry.Sum()
	return tx.AppendTrust(entry)
}

// TrustLog returns up to limit entries after the given sequence number.
func (s *Site) TrustLog(ctx context.Context, after uint64, limit int) (entries []TrustEntry, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		entries, err = tx.TrustEntries(after, limit)
		return err
	})
	return entries, err
}

// VerifyTrustLog walks the whole chain and returns the number of entries, or an error that names the first wrong one and how many there are before it. A site's
// log begins with the entry of Init, so an empty one is wrong too. What it cannot see is that the newest entries were cut off: see [Site.Audit].
func (s *Site) VerifyTrustLog(ctx context.Context) (uint64, error) {
	report, err := s.Audit(ctx, nil)
	if err != nil {
		return 0, err
	}
	if len(report.Findings) > 0 {
		return max(report.Findings[0].Entry, 1) - 1, report.Err()
	}
	return report.Last, nil
}

// time is the site's clock at the precision that the store keeps.
func (s *Site) time() time.Time { return s.now().UTC().Truncate(time.Microsecond) }
