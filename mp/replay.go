package mp

import (
	"context"
	"errors"
	"time"

	"postern/auth"
	"postern/site"
)

// replayMemory is the site's memory of used proofs, shared by all management points, and this node's own beside it. While the database is away the node's
// own stands alone: what still works then is a registration into the inbox, which may be repeated without harm (design decisions 6 and 8).
type replayMemory struct {
	shared auth.Replay
	local  auth.Replay
}

// Fresh implements auth.Replay.
func (m replayMemory) Fresh(ctx context.Context, id string, until time.Time) (bool, error) {
	fresh, err := m.local.Fresh(ctx, id, until)
	if err != nil || !fresh {
		return fresh, err
	}
	visitOf(ctx).endTurn() // the database may be another machine
	fresh, err = m.shared.Fresh(ctx, id, until)
	if errors.Is(err, site.ErrUnavailable) {
		return true, nil
	}
	return fresh, err
}

// maxRemembered bounds this node's memory: proofs live five minutes, so it holds 3,000 requests a second.
const maxRemembered = 1 << 20
