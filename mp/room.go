package mp

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// What messages may unpack to, together (users-and-threats.md R7). Strangers have a room of their own, so that those who proved something are
// answered while strangers fill theirs.
const (
	maxStranger   = 4 << 20 // bytes of one message whose sender has proved nothing yet; registrations and questions need a quarter of a megabyte at most
	strangersRoom = 64 << 20
	provedRoom    = 256 << 20
	roomWait      = 2 * time.Second
)

// room is a number of bytes of which each message that is being read or handled takes a share.
type room struct {
	free *semaphore.Weighted
	wait time.Duration
}

func newRoom(bytes int64) *room { return &room{semaphore.NewWeighted(bytes), roomWait} }

// share is what one message has of a room. The zero share is empty.
type share struct {
	of    *room
	bytes int64
}

// take waits, for a short time and never longer than ctx, until there is room.
func (r *room) take(ctx context.Context, bytes int64) (share, error) {
	ctx, cancel := context.WithTimeout(ctx, r.wait)
	defer cancel()
	if err := r.free.Acquire(ctx, bytes); err != nil {
		return share{}, catalog.Wrap(catalog.MessagesBusy, err, "no room for another %d bytes", bytes)
	}
	return share{r, bytes}, nil
}

// keep gives back what is more than so many bytes.
func (s *share) keep(bytes int64) {
	if s.bytes > bytes {
		s.of.free.Release(s.bytes - bytes)
		s.bytes = bytes
	}
}

// roomFor returns the room and the limits for the message of this request.
func (v *visit) roomFor() (*room, ccm.Limits) {
	limits := ccm.DefaultLimits()
	limits.Body = v.route.Body
	if v.proof.Method == proof.Anonymous {
		limits.Inflated = maxStranger
		return v.mp.strangers, limits
	}
	return v.mp.proved, limits
}

// mostUnpacked is the most that a body of so many bytes can unpack to.
func mostUnpacked(limits ccm.Limits, packed int) int64 {
	return min(limits.Inflated, max(ccm.RatioFloor, int64(limits.Ratio)*int64(packed)))
}
