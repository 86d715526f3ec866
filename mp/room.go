package mp

import (
	"context"
	"io"
	"net/http"
	"slices"
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

// smallBody is the size up to which a body takes no room while it arrives: small ones are bounded by the connections alone. Beyond it each room has as
// many bytes again for what arrives, so that senders who take their time over large bodies keep nobody's registration out.
const smallBody = 64 << 10

// How long a body may take: half a minute, and the time that as much as its route takes needs on a slow line.
const (
	bodyTime    = 30 * time.Second
	slowestLine = 16 << 10 // bytes a second
)

// room is a number of bytes of which each message that is being read or handled takes a share, and as many for what arrives.
type room struct {
	free, coming *semaphore.Weighted
	wait         time.Duration
}

func newRoom(bytes int64) *room {
	return &room{semaphore.NewWeighted(bytes), semaphore.NewWeighted(bytes), roomWait}
}

// share is what one message has of a room. The zero share is empty.
type share struct {
	of    *semaphore.Weighted
	bytes int64
}

// take waits, for a short time and never longer than ctx, until there is room.
func (r *room) take(ctx context.Context, bytes int64) (s share, err error) {
	s.of = r.free
	err = s.add(ctx, r.wait, bytes)
	return s, err
}

// add takes more of the room that the share is of.
func (s *share) add(ctx context.Context, wait time.Duration, bytes int64) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if err := s.of.Acquire(ctx, bytes); err != nil {
		return catalog.Wrap(catalog.MessagesBusy, err, "no room for another %d bytes", bytes)
	}
	s.bytes += bytes
	return nil
}

// keep gives back what is more than so many bytes.
func (s *share) keep(bytes int64) {
	if s.bytes > bytes {
		s.of.Release(s.bytes - bytes)
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

// arrive reads the body of a message in its time. It takes room for what is there, and as much again for what comes next, never for what a sender
// only announces.
func (v *visit) arrive() ([]byte, error) {
	v.hurry()
	room, _ := v.roomFor()
	v.came.of = room.coming
	data := make([]byte, 0, 4<<10)
	for {
		if now := len(data); now == cap(data) {
			if now >= smallBody {
				if err := v.came.add(v.r.Context(), room.wait, int64(now)); err != nil {
					return data, err
				}
			}
			data = slices.Grow(data, now)
		}
		n, err := v.r.Body.Read(data[len(data):cap(data)])
		switch data = data[:len(data)+n]; {
		case err == io.EOF:
			v.rest()
			return data, nil
		case err != nil:
			return data, err
		}
	}
}

// give gives back all that the message has of any room.
func (v *visit) give() {
	v.share.keep(0)
	v.came.keep(0)
}

// hurry sets the time until which the body must be there. One that a revocation has ended stays so.
func (v *visit) hurry() {
	control := http.NewResponseController(v.w)
	control.SetReadDeadline(time.Now().Add(bodyTime + time.Duration(v.route.Body/slowestLine)*time.Second)) // without deadlines TCP's own time-outs end it
	if v.r.Context().Err() != nil {
		control.SetReadDeadline(time.Unix(1, 0))
	}
}

// rest lifts that time once the body is there: the server reads on to notice a client that goes away. Of one that is not, the server reads a rest too,
// and that has its end.
func (v *visit) rest() { http.NewResponseController(v.w).SetReadDeadline(time.Time{}) }
