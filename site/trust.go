package site

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"

	"postern/catalog"
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

// VerifyTrustLog walks the whole chain and returns the number of entries, or an error that names the first wrong one. A site's log begins with
// the entry of Init, so an empty one is wrong too. What it cannot see is that the newest entries were cut off: keep the hash of the newest one elsewhere.
func (s *Site) VerifyTrustLog(ctx context.Context) (uint64, error) {
	var previous TrustEntry
	for {
		entries, err := s.TrustLog(ctx, previous.Sequence, 1000)
		if err != nil {
			return previous.Sequence, err
		}
		if len(entries) == 0 && previous.Sequence == 0 {
			return 0, catalog.Errorf(catalog.TrustLogBroken, "the log is empty: its first entry, by `postern site init`, is missing")
		}
		if len(entries) == 0 {
			return previous.Sequence, nil
		}
		for _, e := range entries {
			if err := follows(previous, e); err != nil {
				return previous.Sequence, err
			}
			previous = e
		}
	}
}

func follows(previous, e TrustEntry) error {
	switch {
	case e.Sequence != previous.Sequence+1:
		return catalog.Errorf(catalog.TrustLogBroken, "entry %d follows entry %d: entries are missing", e.Sequence, previous.Sequence)
	case e.Previous != previous.Hash:
		return catalog.Errorf(catalog.TrustLogBroken, "entry %d does not continue entry %d", e.Sequence, previous.Sequence)
	case e.Hash != e.Sum():
		return catalog.Errorf(catalog.TrustLogBroken, "entry %d was edited: its hash does not fit its content", e.Sequence)
	}
	return nil
}

// time is the site's clock at the precision that the store keeps.
func (s *Site) time() time.Time { return s.now().UTC().Truncate(time.Microsecond) }
