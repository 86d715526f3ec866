package site

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"postern/catalog"
	"postern/token"
)

// The life of a bulk registration token (S3; product.md 2.3).
const (
	BulkLifetime    = token.BulkLifetime
	BulkMaxLifetime = token.BulkMaximumLifetime
	maxLabel        = 200
)

// NewBulk asks for a bulk registration token.
type NewBulk struct {
	Lifetime time.Duration // 0 = BulkLifetime
	MaxUses  int           // 0 = unlimited
	Label    string
	By       string

	Networks    []string // where it may be exchanged: prefixes and addresses; none for anywhere
	NamePattern string   // of the computers that may register by it: WK*, *.corp.example; "" for all
}

// NewBulkToken issues a bulk registration token. The token itself is returned once and kept nowhere.
func (s *Site) NewBulkToken(ctx context.Context, ask NewBulk) (raw string, kept BulkToken, err error) {
	if ask.Lifetime == 0 {
		ask.Lifetime = BulkLifetime
	}
	if err := ask.check(); err != nil {
		return "", BulkToken{}, err
	}
	networks, pattern, err := ask.limits()
	if err != nil {
		return "", BulkToken{}, err
	}
	id, err := newUUID(s.rand)
	if err != nil {
		return "", BulkToken{}, err
	}
	now := s.time().Truncate(time.Second)
	kept = BulkToken{ID: id, Label: ask.Label, MaxUses: ask.MaxUses, NotBefore: now, Expires: now.Add(ask.Lifetime), CreatedBy: ask.By, Created: now}
	kept.Networks, kept.NamePattern = networks, pattern
	claims := token.Claims{Kind: token.KindBulk, ID: id, Hierarchy: s.Hierarchy(), NotBefore: kept.NotBefore, Expires: kept.Expires}
	if raw, err = s.current.Load().ring.Sign(token.KindBulk, claims, now); err != nil {
		return "", BulkToken{}, fmt.Errorf("sign bulk registration token: %w", err)
	}
	err = s.store.Update(ctx, func(tx Tx) error {
		if err := tx.PutBulkToken(kept); err != nil {
			return err
		}
		facts := map[string]string{"label": ask.Label, "expires": kept.Expires.Format(time.RFC3339), "max-uses": strconv.Itoa(ask.MaxUses)}
		if len(networks) > 0 {
			facts["networks"] = kept.networks()
		}
		if pattern != "" {
			facts["name-pattern"] = pattern
		}
		return s.trust(tx, ask.By, "token.new", id, facts)
	})
	if err != nil {
		return "", BulkToken{}, fmt.Errorf("keep bulk registration token: %w", err)
	}
	return raw, kept, nil
}

func (ask NewBulk) check() error {
	switch {
	case ask.Lifetime < time.Minute || ask.Lifetime > BulkMaxLifetime:
		return catalog.Errorf(catalog.BulkLifetimeOutOfRange, "a lifetime of %s was asked for; 1 to %d minutes are allowed", ask.Lifetime, int(BulkMaxLifetime.Minutes()))
	case ask.MaxUses < 0:
		return catalog.Errorf(catalog.BulkUsesOutOfRange, "%d uses were asked for; give 0 for unlimited or a positive number", ask.MaxUses)
	case len(ask.Label) > maxLabel:
		return catalog.Errorf(catalog.BulkUsesOutOfRange, "the label has %d bytes; at most %d are allowed", len(ask.Label), maxLabel)
	}
	return nil
}

// BulkTokens lists what is kept of the bulk registration tokens.
func (s *Site) BulkTokens(ctx context.Context) (tokens []BulkToken, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		tokens, err = tx.BulkTokens()
		return err
	})
	return tokens, err
}

// BulkToken returns what is kept of a bulk registration token; code BulkTokenUnknown.
func (s *Site) BulkToken(ctx context.Context, id string) (t BulkToken, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		t, err = tx.BulkToken(id)
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return t, catalog.Errorf(catalog.BulkTokenUnknown, "no bulk registration token has the id %s; `postern token list` shows them", shown(id))
	}
	return t, err
}

// TokenUses returns the newest uses of a bulk registration token.
func (s *Site) TokenUses(ctx context.Context, id string, limit int) (uses []TokenUse, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		uses, err = tx.TokenUses(id, limit)
		return err
	})
	return uses, err
}

// BlockBulkToken blocks or unblocks a bulk registration token. Devices that registered with it stay. A reason may be left out: a token that leaked is
// stopped first and explained later.
func (s *Site) BlockBulkToken(ctx context.Context, id string, blocked bool, by, why string) (t BulkToken, err error) {
	detail := map[string]string{}
	if why != "" {
		if err := CheckReason(why); err != nil {
			return t, err
		}
		detail["why"] = why
	}
	action := map[bool]string{true: "token.block", false: "token.unblock"}[blocked]
	err = s.update(ctx, func(tx Tx) (moved bool, err error) {
		if t, err = tx.BulkToken(id); err != nil {
			return false, err
		}
		if t.Blocked == blocked {
			return false, nil
		}
		t.Blocked = blocked
		if err := tx.PutBulkToken(t); err != nil {
			return false, err
		}
		detail["label"] = t.Label
		return true, s.trust(tx, by, action, id, detail)
	})
	if errors.Is(err, ErrNotFound) {
		return t, catalog.Errorf(catalog.BulkTokenUnknown, "no bulk registration token has the id %s; `postern token list` shows them", id)
	}
	return t, err
}

// bulkStillAdmitted asks the database: a registration that waited in an inbox may come long after its token was blocked, also on another node.
func bulkStillAdmitted(tx Tx, id string, computer Record) error {
	if id == "" {
		return nil
	}
	bulk, err := tx.BulkToken(id)
	switch {
	case errors.Is(err, ErrNotFound):
		return catalog.Errorf(catalog.BulkTokenUnknown, "the site has no record of bulk registration token %s", id)
	case err != nil:
		return err
	case bulk.Blocked:
		return catalog.Errorf(catalog.TokenBlocked, "bulk registration token %s is blocked", id)
	}
	return bulk.admitsName(computer.NetbiosName, computer.FQDName)
}

func newUUID(r io.Reader) (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return "", fmt.Errorf("read randomness: %w", err)
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:], nil
}
